"""Every step from this home to a recipient, one by one: which are in order, and what is wrong with one that is not.

`examine` goes as far as it can: a step that needs one that failed is not tried. Nothing is changed, and nothing sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from zkc import __version__
from zkc.client.access import Access, open_access
from zkc.client.control import AskStatus, ControlReply, StatusReply
from zkc.client.events import WouldAccept
from zkc.client.grants import Wanted
from zkc.client.line import Line
from zkc.client.principal import known_about, load_main
from zkc.client.reaching import connect
from zkc.config import ClientConfig
from zkc.constants import ID_BYTES
from zkc.crypto.cards import VerifiedCard
from zkc.crypto.merkle import Frontier
from zkc.env import Clock, Entropy
from zkc.errors import (
    CoordinatorUnreachable,
    DaemonError,
    IdentityError,
    InternalError,
    Interrupted,
    LocalIOError,
    RecipientOffline,
    ZkcError,
)
from zkc.net.local_client import LocalClient
from zkc.net.local_frames import NotRunning
from zkc.net.sockets import context, split_endpoint
from zkc.protocol.channel import VERSIONS
from zkc.protocol.keylog import LogAlarm
from zkc.protocol.trust import judge_peer, verify_peer
from zkc.rules.endpoints import parse_listen
from zkc.rules.units import show_size
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.keystore import KeyStore
from zkc.wire.messages import Endpoints, HelloInfo, Peer

State = Literal["ok", "note", "wrong", "skipped"]
_ANSWER_SECONDS: Final = 3.0
_EXPIRES_SOON: Final = 14 * 86400.0
_SIZE_UNKNOWN: Final = 255


@dataclass(frozen=True)
class Finding:
    """What was found at one step. ``note``: in order, and worth to know; ``skipped``: one before it failed."""

    step: str
    state: State
    what: str
    hint: str = ""
    error: ZkcError | None = None
    """Of what is wrong."""


@dataclass(frozen=True)
class _Note:
    """In order, but."""

    what: str
    hint: str


class Examination:
    """One home, as `examine` goes through it."""

    def __init__(
        self, home: Home, read_config: Callable[[], ClientConfig], open_store: Callable[[], KeyStore], clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._home = home
        self._read_config = read_config
        self._open_store = open_store
        self._clock = clock
        self._entropy = entropy
        self._closing = contextlib.ExitStack()
        self._failed = False

    def examine(self, name: str = "") -> Iterator[Finding]:
        """Each finding as it is made. ``name``: how far it is to that recipient, too."""
        with self._closing:
            yield from self._here()
            yield from self._ways()
            yield from self._at_coordinator()
            if name:
                yield from self._to(name)

    # --- this home --------------------------------------------------------------------------------------------------

    def _here(self) -> Iterator[Finding]:
        yield self._step("configuration", self._configuration)
        yield self._step("keys", self._keys)
        if self._failed:
            return  # without either nothing else means anything
        yield self._alone("daemon", self._daemon)
        yield self._alone("room", self._room)
        yield self._alone("listen", self._listen)

    def _configuration(self) -> str:
        self._config = self._read_config()
        there = self._home.config_file.exists()
        return str(self._home.config_file) if there else "all defaults: there is no config.toml"

    def _keys(self) -> str | _Note:
        self._store = self._closing.enter_context(self._open_store())
        locked = self._locked()
        self._principal = principal = load_main(self._store)
        left = principal.card.body.not_after - self._clock.wall()
        if left <= 0:
            raise IdentityError(
                f"the card of {principal.name} has expired, or the clock of this machine is wrong", detail="expired",
                hint="look at the clock first",
            )
        about = f"{principal.name}, fingerprint {principal.fingerprint.hex()[:16]}"
        if left < _EXPIRES_SOON:
            return _Note(f"{about}; its card expires in {left / 86400:.0f} days", "zkc rotate; a daemon does so itself")
        if locked is not None:
            return _Note(f"{about}; {locked.message}", f"a daemon that runs has them; {locked.hint}")
        return about

    def _locked(self) -> LocalIOError | None:
        """Why the private keys cannot be read, where a passphrase locks them."""
        try:
            self._store.unlock()
        except LocalIOError as error:
            if error.detail != "locked":
                raise
            return error
        return None

    def _daemon(self) -> str | _Note:
        client: LocalClient[ControlReply] = LocalClient(self._home.socket_path(), ControlReply)
        try:
            reply = client.call(AskStatus(), within=_ANSWER_SECONDS)
        except NotRunning:
            return _Note("none runs here: this client can send, and nothing reaches it", "start it: zkc daemon")
        if not isinstance(reply, StatusReply):
            raise DaemonError("the daemon answers something else", detail="bad-answer", hint="start it again")
        if reply.version != __version__:
            raise DaemonError(
                f"the daemon is of zkc {reply.version}, and this is {__version__}", detail="bad-answer",
                hint="start it again, to run what is installed",
            )
        if not reply.linked:
            return _Note(f"it runs and has no link ({reply.problem or 'not yet'})", "what follows shows why")
        return f"linked to {reply.coordinator}"

    def _room(self) -> str:
        with Inbox.open(self._home) as inbox:
            free, least = inbox.free_bytes(), self._config.inbox.min_free
        if free <= least:
            raise LocalIOError(
                f"{show_size(free)} are free at the inbox, and inbox.min_free leaves {show_size(least)}",
                detail="no-space", hint="make room: nothing can be received",
            )
        return f"{show_size(free)} free at the inbox"

    def _listen(self) -> str | _Note:
        listen = parse_listen(self._config.transfer.listen)
        if listen is None:
            return _Note("transfer.listen is off", "this client receives from those who can be connected to")
        host = "" if listen.host == "*" else listen.host
        try:
            with contextlib.ExitStack() as stack:
                for family, kind, _, _, address in socket.getaddrinfo(
                    host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                ):
                    stack.enter_context(socket.socket(family, kind)).bind(address)
        except OSError as error:
            raise LocalIOError(
                f"transfer.listen: {self._config.transfer.listen} is not an address of this machine ({error.strerror})",
                detail="address", hint="see config.toml",
            ) from None
        return self._config.transfer.listen

    # --- the way to the coordinator ---------------------------------------------------------------------------------

    def _ways(self) -> Iterator[Finding]:
        """All addresses; what is wrong with one counts where no other leads there."""
        if self._failed:
            return
        endpoints = self._config.coordinator.endpoints or self._principal.registration.endpoints
        ways = [list(self._way_to(endpoint)) for endpoint in endpoints]
        one_leads_there = any(way[-1].state == "ok" for way in ways)
        for finding in (each for way in ways for each in way):
            if one_leads_there and finding.state == "wrong":
                yield replace(finding, state="note", error=None)
            else:
                yield finding

    def _way_to(self, endpoint: str) -> Iterator[Finding]:
        host, port = split_endpoint(endpoint)
        found: list[str] = []
        failed = False
        for step, look in (
            ("resolve", lambda: _resolve(host, found)),
            ("tcp", lambda: _tcp(found, port)),
            ("curve", lambda: self._channel(endpoint)),
        ):
            finding = self._alone(f"{step} {endpoint}", look) if not failed else _skipped(f"{step} {endpoint}")
            failed = failed or finding.state == "wrong"
            yield finding

    def _channel(self, endpoint: str) -> str | _Note:
        """Encrypted by its key, admitted by ours, and a channel of version VERSIONS."""
        if self._principal.keys is None:
            return _Note("not tried: the keys are locked", "")
        info = HelloInfo("once", self._entropy.bytes(ID_BYTES), list(VERSIONS), self._principal.card.body.epoch)

        async def open_line() -> None:
            zmq = context(self._entropy)
            line = Line(
                zmq, self._principal, endpoint, info, lambda _: None, clock=self._clock,
                if_refused="this registration was ended there: ask its administrator for an invitation",
            )
            try:
                await line.open(asyncio.Lock())
            finally:
                line.close()
                zmq.destroy(linger=200)

        asyncio.run(open_line())
        return f"coordinator {self._principal.coordinator.identity.fingerprint.hex()[:16]}"

    # --- what the coordinator says ----------------------------------------------------------------------------------

    def _at_coordinator(self) -> Iterator[Finding]:
        yield self._step("registration", self._registration)
        if not self._failed:
            yield self._alone("key log", self._key_log)

    def _registration(self) -> str:
        self._access: Access = self._closing.enter_context(
            contextlib.closing(open_access(self._home, self._store, self._config, self._clock, self._entropy))
        )
        card = self._card(self._principal.name)
        if card.hash != self._principal.card.hash:
            raise IdentityError(
                f"the coordinator has another card of {card.name} than this home", detail="identity",
                hint="was a backup of keys.db restored, or the client joined elsewhere? See zkc join --force",
            )
        return f"{card.name}, certified by the coordinator"

    def _key_log(self) -> str | _Note:
        known = self._store.known_log(self._principal.registration.uid)
        evidence = sorted((self._store.folder / "evidence").glob("log-fork-*.json"))
        if evidence:
            raise LogAlarm("log-fork", f"two were signed, as zkc coordinator audit --verify {evidence[-1]} shows")
        if known is None:
            return _Note("not followed yet", "a daemon follows it, and a first contact does")
        if known.foreign:
            raise LogAlarm("log-own", f"it gives the name {self._principal.name} to another key")
        return f"{known.size} entries followed, head {Frontier(known.size, known.frontier).root.hex()[:16]}"

    def _card(self, name: str) -> VerifiedCard:
        answer = self._access.card(name)
        self._principal = load_main(self._store)  # its coordinator may have another identity since
        return verify_peer(self._principal.authority, name, answer.card, answer.certificate)

    # --- the recipient ----------------------------------------------------------------------------------------------

    def _to(self, name: str) -> Iterator[Finding]:
        yield self._step(f"key of {name}", lambda: self._key_of(name))
        yield self._step(f"presence of {name}", lambda: self._presence_of(name))
        yield self._step("policy and session key", lambda: self._handshake(name))
        if self._failed:
            return
        places = self._answer.places
        if not places and not self._answer.asks:
            yield Finding("path", "note", f"{name} does not listen: it connects to this client")
        for place in places:
            by = f" by relay {place.relay}" if place.relay else ""
            found = place.problem or "ports of data and acknowledgements answer"
            yield Finding(f"path {place.where}{by}", "note" if place.problem else "ok", found)
        if places and all(place.problem for place in places):
            yield self._alone("path", lambda: _no_path(name))

    def _key_of(self, name: str) -> str | _Note:
        card = self._card(name)
        known = known_about(self._store, name, card.fingerprint)
        judge_peer(card, known, self._clock.wall())
        pin = self._store.pinned().get(name)
        if pin is None:
            return _Note(f"fingerprint {card.fingerprint.hex()[:16]}, not pinned yet", f"compare: zkc verify {name}")
        if pin.verified is None:
            return _Note("pinned, not verified by a person", f"compare: zkc verify {name}")
        return "pinned and verified"

    def _presence_of(self, name: str) -> str:
        peer: Peer = self._access.seen(name)
        if not peer.online:
            raise RecipientOffline(f"{name} is offline", detail="offline", hint="no daemon of it is linked")
        return f"online; person: {peer.person}"

    def _handshake(self, name: str) -> str | _Note:
        transfer = self._config.transfer
        wanted = Wanted(
            self._entropy.bytes(ID_BYTES), name, transfer.key_source, transfer.key_order, transfer.cipher,
            _SIZE_UNKNOWN, dry_run=True, reach=True, can_listen=parse_listen(transfer.listen) is not None,
        )
        answer = self._access.grant(wanted, None, _nowhere, lambda: None)
        if not isinstance(answer, WouldAccept):
            raise InternalError("a dry run ended as a transfer")
        self._answer = answer
        if answer.asks:
            return _Note(f"a person at {name} is asked first", "so the way of the data cannot be looked at")
        return f"{name} would accept; key made by the {transfer.key_source}, {transfer.cipher}"

    # --- findings ---------------------------------------------------------------------------------------------------

    def _step(self, step: str, look: Callable[[], str | _Note]) -> Finding:
        """What all that follows needs."""
        if self._failed:
            return _skipped(step)
        finding = self._alone(step, look)
        self._failed = finding.state == "wrong"
        return finding

    def _alone(self, step: str, look: Callable[[], str | _Note]) -> Finding:
        try:
            found = look()
        except ZkcError as error:
            return Finding(step, "wrong", error.message, error.hint, error)
        return Finding(step, "ok", found) if isinstance(found, str) else Finding(step, "note", found.what, found.hint)


def _skipped(step: str) -> Finding:
    return Finding(step, "skipped", "not tried")


def _no_path(name: str) -> str:
    raise Interrupted(
        f"none of the addresses of {name} can be reached from here", detail="link",
        hint="let its ports in there (transfer.listen), or name other addresses (transfer.advertise)",
    )


def _resolve(host: str, found: list[str]) -> str:
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise CoordinatorUnreachable(
            f"{host} has no address ({error.strerror})", detail="resolve", hint="is the name right, and does DNS work?"
        ) from None
    found += sorted(addresses)
    return ", ".join(found)


def _tcp(addresses: list[str], port: int) -> str:
    async def look() -> list[str]:
        return list(await asyncio.gather(*(connect(address, port) for address in addresses)))

    problems = asyncio.run(look())
    if all(problems):
        raise CoordinatorUnreachable(
            f"port {port}: {problems[0]}", detail="refused" if "refused" in problems[0] else "timeout",
            hint="is it running (zkc coordinator status), is the port right, does a firewall let it through?",
        )
    return f"port {port} answers"


def _nowhere(_coordinator: str) -> Endpoints:
    raise InternalError("a dry run does not listen")
