"""Every key of both configurations, with its type and default. One line of a section is one key."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Final, Literal

from msgspec import Struct
from msgspec.structs import FieldInfo, fields

from zkc import constants
from zkc.config.kinds import Reader, choice, duration, listed, size, whole, written
from zkc.ids import (
    CIPHERS,
    KEY_ORDERS,
    SAFE_CIPHERS,
    SUITES,
    Acknowledgement,
    Identifier,
    KeyOrder,
    KeySource,
    Suite,
    check_name,
)
from zkc.rules.endpoints import parse_endpoint, parse_listen, parse_metrics_listen
from zkc.rules.names import escape
from zkc.rules.policy import Rule, Rules, Sight
from zkc.rules.units import SIZE_MAX


def _check_keydb(url: str) -> None:
    """What a URL begins with; the rest is said by who opens it."""
    if url and (not url.startswith(_KEYDBS) or url in _KEYDBS or escape(url) != url):
        raise ValueError


def _hide_in_keydb(url: str) -> str:
    """Without a password, and without what stands behind the ``?``, where one can be too."""
    if not url.startswith("postgresql://"):
        return url
    said, asks, _ = url.partition("?")
    parts = _SERVER_URL.fullmatch(said)
    if parts is None:
        return "postgresql://***"
    user, password, place = parts.groups(default="")
    return f"postgresql://{user}{':***' * bool(password)}{'@' * bool(user)}{place}{'?***' * bool(asks)}"


def _check_word(word: str) -> None:
    if "\0" in word:
        raise ValueError


_KEY_SOURCE: Final = choice("sender", "coordinator")
_KEY_ORDER: Final = choice("recipient-first", "sender-first")
_ACKNOWLEDGEMENT: Final = choice("session", "permanent")
_IDENTIFIER: Final = choice("clear", "sealed")
_CIPHER: Final = choice(*CIPHERS)
_ACCEPT: Final = choice("all", "ask", "none")
_REQUEST: Final = choice("together", "apart")
_SEAL_TO: Final = choice("permanent", "temporary")
_SUITE: Final = choice(*SUITES)
_LOG_FORMAT: Final = choice("auto", "json", "console")
_LOG_LEVEL: Final = choice("debug", "info", "warning", "error")
_KEY_SOURCES: Final = listed(_KEY_SOURCE, 1)
_KEY_ORDERS: Final = listed(_KEY_ORDER, 1)
_CIPHERS: Final = listed(_CIPHER, 1)
_ENDPOINTS: Final = listed(written('"tcp://HOST:PORT"', parse_endpoint), 0)
_LISTEN: Final = listed(written('"tcp://HOST:PORT"', lambda text: parse_endpoint(text, listen=True)), 1)
_PORT_RANGE: Final = written('"tcp://HOST:PORT", "tcp://HOST:PORT-PORT" with two ports or more, or "off"', parse_listen)
_METRICS: Final = written('"HOST:PORT" with an address as HOST, "PORT", or "off"', parse_metrics_listen)
_ADDRESSES: Final = listed(written('"ADDRESS", of IPv4 or IPv6', ipaddress.ip_address), 0)
_NAMES: Final = listed(written('"NAME"', check_name), 0)
_SERVER_URL: Final = re.compile(
    r"postgresql://(?:([^:@/]*)(:[^@]*)?@)?((?:\[[^@/]*\]|[^:@/]*)(?::\d+)?(?:/[^:@]*)?)"
)
_KEYDBS: Final = ("sqlite:///", "postgresql://")
_KEYDB: Final = written('"", "sqlite:///PATH" or "postgresql://USER@HOST/DATABASE"', _check_keydb, hide=_hide_in_keydb)
_PATIENCE: Final = duration("1s", "7d")
_ASK_TIMEOUT: Final = duration("1s", "7d")
_SOURCES: Final = listed(choice("terminal", "session"), 0)
_WORDS: Final = listed(written('"WORD"', _check_word), 0)
_NOTIFY: Final = choice("none", "asked", "all")
_HOOK_TIMEOUT: Final = duration("1s", "1d")
_WITHIN: Final = duration("1s", "7d")
_WINDOW: Final = duration("0s", "7d")
_TELL: Final = choice("coordinator", "nobody")
_TTL: Final = duration("1s", "365d")
_LIFETIME: Final = duration("1m", "365d")
_BYTES: Final = size(0, SIZE_MAX)
_CHUNK: Final = size(constants.CHUNK_MIN, constants.CHUNK_MAX)
_PER_SENDER: Final = whole(1, 4096)
_PER_SECOND: Final = whole(1, 1_000_000)
_CLIENTS: Final = whole(1, 1_000_000)
_POOL: Final = whole(0, 1024)
_JOBS: Final = whole(1, 100_000)
_SPOOL: Final = size(0, 1 << 36)
_KEPT: Final = duration("1d", "36500d")
_ENTRIES: Final = whole(1000, 100_000_000)


class LogSection(Struct, frozen=True):
    """``[log]`` of both roles."""

    format: Annotated[Literal["auto", "json", "console"], _LOG_FORMAT] = "auto"
    level: Annotated[Literal["debug", "info", "warning", "error"], _LOG_LEVEL] = "info"


class MetricsSection(Struct, frozen=True):
    """``[metrics]`` of both roles."""

    listen: Annotated[str, _METRICS] = "off"


class AuditSection(Struct, frozen=True):
    """``[audit]`` of a coordinator; ``kept`` in seconds."""

    kept: Annotated[float, _KEPT] = 365 * 86400.0
    entries: Annotated[int, _ENTRIES] = 2_000_000


class ClientAuditSection(Struct, frozen=True):
    """``[audit]`` of a client; ``kept`` in seconds."""

    kept: Annotated[float, _KEPT] = 365 * 86400.0
    entries: Annotated[int, _ENTRIES] = 100_000


class LinkSection(Struct, frozen=True):
    """``[coordinator]`` of a client."""

    endpoints: Annotated[tuple[str, ...], _ENDPOINTS] = ()
    identifier: Annotated[Identifier, _IDENTIFIER] = "clear"


class ClientTransferSection(Struct, frozen=True):
    """``[transfer]`` of a client; ``patience`` in seconds, ``chunk`` in bytes."""

    key_sources: Annotated[tuple[KeySource, ...], _KEY_SOURCES] = ("sender",)
    key_source: Annotated[KeySource, _KEY_SOURCE] = "sender"
    key_order: Annotated[KeyOrder, _KEY_ORDER] = "recipient-first"
    acknowledgement: Annotated[Acknowledgement, _ACKNOWLEDGEMENT] = "session"
    ciphers: Annotated[tuple[str, ...], _CIPHERS] = SAFE_CIPHERS
    cipher: Annotated[str, _CIPHER] = "aes-256-gcm"
    listen: Annotated[str, _PORT_RANGE] = "tcp://*:0"
    advertise: Annotated[tuple[str, ...], _ADDRESSES] = ()
    patience: Annotated[float, _PATIENCE] = 60.0
    chunk: Annotated[int, _CHUNK] = constants.CHUNK


class InboxSection(Struct, frozen=True):
    """``[inbox]`` of a client; sizes in bytes, times in seconds."""

    accept: Annotated[Literal["all", "ask", "none"], _ACCEPT] = "all"
    ask_timeout: Annotated[float, _ASK_TIMEOUT] = 60.0
    max_bytes: Annotated[int, _BYTES] = 0
    min_free: Annotated[int, _BYTES] = 256 * 1024**2
    per_sender: Annotated[int, _PER_SENDER] = constants.TRANSFERS_PER_SENDER_MAX
    per_second: Annotated[int, _PER_SECOND] = constants.TRANSFERS_PER_SECOND_MAX


class PersonSection(Struct, frozen=True):
    """``[person]`` of a client; times in seconds."""

    sources: Annotated[tuple[str, ...], _SOURCES] = ()
    present_within: Annotated[float, _WITHIN] = 600.0
    here_for: Annotated[float, _WITHIN] = 8 * 3600.0
    window: Annotated[float, _WINDOW] = 0.0
    tell: Annotated[Literal["coordinator", "nobody"], _TELL] = "coordinator"


class HooksSection(Struct, frozen=True):
    """``[hooks]`` of a client: commands as lists of words; times in seconds."""

    arrived: Annotated[tuple[str, ...], _WORDS] = ()
    asked: Annotated[tuple[str, ...], _WORDS] = ()
    timeout: Annotated[float, _HOOK_TIMEOUT] = 60.0
    notify: Annotated[Literal["none", "asked", "all"], _NOTIFY] = "asked"


class OutboxSection(Struct, frozen=True):
    """``[outbox]`` of a client; times in seconds, sizes in bytes."""

    expires: Annotated[float, _TTL] = 7 * 86400.0
    max_jobs: Annotated[int, _JOBS] = 1000
    max_bytes: Annotated[int, _SPOOL] = 16 * 1024**3


class RegistrationSection(Struct, frozen=True):
    """``[registration]`` of a client: the document's alternatives."""

    request: Annotated[Literal["together", "apart"], _REQUEST] = "together"
    identifier: Annotated[Identifier, _IDENTIFIER] = "sealed"
    seal_to: Annotated[Literal["permanent", "temporary"], _SEAL_TO] = "permanent"


class KeysSection(Struct, frozen=True):
    """``[keys]`` of a client; ``lifetime`` in seconds."""

    lifetime: Annotated[float, _LIFETIME] = float(constants.CARD_SECONDS)


class ClientConfig(Struct, frozen=True):
    """``config.toml`` in a client's home."""

    coordinator: LinkSection = LinkSection()
    transfer: ClientTransferSection = ClientTransferSection()
    inbox: InboxSection = InboxSection()
    person: PersonSection = PersonSection()
    hooks: HooksSection = HooksSection()
    outbox: OutboxSection = OutboxSection()
    registration: RegistrationSection = RegistrationSection()
    keys: KeysSection = KeysSection()
    audit: ClientAuditSection = ClientAuditSection()
    metrics: MetricsSection = MetricsSection()
    log: LogSection = LogSection()
    policy: tuple[Rule, ...] = ()

    def sending_rules(self) -> Rules:
        """What this client allows itself as a sender."""
        return Rules(self.transfer.key_sources, self.transfer.ciphers, policy=self.policy, side="sender")

    def receiving_rules(self) -> Rules:
        """What this client allows others who send to it."""
        return Rules(
            self.transfer.key_sources,
            self.transfer.ciphers,
            accept=self.inbox.accept,
            max_bytes=self.inbox.max_bytes,
            min_free=self.inbox.min_free,
            at_once=self.inbox.per_sender,
            per_second=self.inbox.per_second,
            policy=self.policy,
            side="recipient",
        )


class CoordinatorSection(Struct, frozen=True):
    """``[coordinator]`` of a coordinator; ``keydb`` empty: the embedded one in its home."""

    listen: Annotated[tuple[str, ...], _LISTEN] = ("tcp://*:7670",)
    keydb: Annotated[str, _KEYDB] = ""
    suite: Annotated[Suite, _SUITE] = "hybrid"
    key_pool: Annotated[int, _POOL] = 16


class CoordinatorTransferSection(Struct, frozen=True):
    """``[transfer]`` of a coordinator."""

    key_sources: Annotated[tuple[KeySource, ...], _KEY_SOURCES] = ("sender",)
    key_orders: Annotated[tuple[KeyOrder, ...], _KEY_ORDERS] = KEY_ORDERS
    ciphers: Annotated[tuple[str, ...], _CIPHERS] = SAFE_CIPHERS


class LimitsSection(Struct, frozen=True):
    """``[limits]`` of a coordinator."""

    clients: Annotated[int, _CLIENTS] = 20_000
    handshakes_per_client: Annotated[int, _PER_SENDER] = constants.HANDSHAKES_PER_CLIENT_MAX
    per_second: Annotated[int, _PER_SECOND] = constants.TRANSFERS_PER_SECOND_MAX


class RelaySection(Struct, frozen=True):
    """``[relay]`` of a coordinator."""

    clients: Annotated[tuple[str, ...], _NAMES] = ()
    serves: Annotated[tuple[str, ...], _NAMES] = ()


class InviteSection(Struct, frozen=True):
    """``[invite]`` of a coordinator; ``ttl`` in seconds."""

    ttl: Annotated[float, _TTL] = 86400.0


class CoordinatorConfig(Struct, frozen=True):
    """``config.toml`` in a coordinator's home."""

    coordinator: CoordinatorSection = CoordinatorSection()
    transfer: CoordinatorTransferSection = CoordinatorTransferSection()
    limits: LimitsSection = LimitsSection()
    relay: RelaySection = RelaySection()
    invite: InviteSection = InviteSection()
    audit: AuditSection = AuditSection()
    metrics: MetricsSection = MetricsSection()
    log: LogSection = LogSection()
    policy: tuple[Rule, ...] = ()
    visible: tuple[Sight, ...] = ()

    def rules(self) -> Rules:
        """What this coordinator allows between its clients."""
        return Rules(
            self.transfer.key_sources,
            self.transfer.ciphers,
            key_orders=self.transfer.key_orders,
            at_once=self.limits.handshakes_per_client,
            per_second=self.limits.per_second,
            policy=self.policy,
        )


@dataclass(frozen=True, slots=True)
class Key:
    section: str
    name: str
    reader: Reader
    default: object

    @property
    def variable(self) -> str:
        return f"ZKC_{self.section}_{self.name}".upper()


@cache
def keys_of(kind: type[ClientConfig | CoordinatorConfig]) -> dict[str, Key]:
    return {
        f"{section.name}.{key.name}": Key(section.name, key.name, key.type.__metadata__[0], key.default)
        for section in sections_of(kind)
        for key in fields(section.type)
    }


def sections_of(kind: type[ClientConfig | CoordinatorConfig]) -> tuple[FieldInfo, ...]:
    """All but the rules of policy, which are no keys: `zkc.config.policy` reads them."""
    return tuple(each for each in fields(kind) if each.name not in {"policy", "visible"})
