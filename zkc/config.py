"""Configuration: every key with its type and default, and where each value came from.

One line of a section below is one key: to add one, write it there and into ``config/*.toml``. Precedence is option,
environment variable (``ZKC_SECTION_KEY``), file, default. Whatever is wrong is a `UsageError` of one line that names
file and line, or variable, and the key.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, overload

import tomli
from msgspec import Struct
from msgspec.structs import fields

from zkc import constants
from zkc.errors import LocalIOError, UsageError
from zkc.ids import KeyOrder, KeySource
from zkc.rules.endpoints import parse_endpoint, parse_port_range
from zkc.rules.names import escape
from zkc.rules.policy import Rules
from zkc.rules.units import SIZE_MAX, format_duration, format_size, parse_duration, parse_size

Role = Literal["client", "coordinator"]

FILE_MAX: Final = 64 * 1024
"""Bytes of a configuration file."""

SAFE_CIPHERS: Final = ("aes-256-gcm", "chacha20-poly1305")
CIPHERS: Final = (*SAFE_CIPHERS, "3des", "idea")

VARIABLES: Final = frozenset(
    {
        "ZKC_HOME", "ZKC_INVITE", "ZKC_PIN", "ZKC_PASSPHRASE_FILE",
        # What `recv --exec` sets for the command that it runs, which may be zkc again.
        "ZKC_SENDER", "ZKC_NAME", "ZKC_NOTE", "ZKC_DIGEST", "ZKC_TRANSFER", "ZKC_KEY_SOURCE",
    }
)
"""Environment variables of zkc that are no keys of a configuration."""


# --- how a value is read and shown ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reader:
    """One kind of value. ``read`` takes what TOML gives and raises for what does not fit."""

    expects: str
    read: Callable[[object], object]
    show: Callable[[Any], object] = lambda value: value
    from_text: Callable[[str], object] = lambda text: text
    """What TOML would give for the text of an environment variable."""
    secret: bool = False
    """Whether an error must not repeat the value."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _choice(*choices: str) -> Reader:
    def read(value: object) -> str:
        if value not in choices:
            raise ValueError
        return _text(value)

    return Reader("one of " + ", ".join(f'"{choice}"' for choice in choices), read)


def _listed(each: Reader, at_least: int) -> Reader:
    def read(value: object) -> tuple[object, ...]:
        if not isinstance(value, list | tuple) or len(value) < at_least:
            raise ValueError
        return tuple(each.read(item) for item in value)

    return Reader(
        ("a list: " if not at_least else "a list that is not empty: ") + each.expects,
        read,
        show=list,
        from_text=lambda text: [item.strip() for item in text.split(",") if item.strip()],
    )


def _whole(low: int, high: int) -> Reader:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError
        return value

    def from_text(text: str) -> object:
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else text

    return Reader(f"a whole number from {low} to {high}", read, from_text=from_text)


def _duration(low: str, high: str) -> Reader:
    def read(value: object) -> float:
        seconds = parse_duration(_text(value))
        if not parse_duration(low) <= seconds <= parse_duration(high):
            raise ValueError
        return seconds

    return Reader(f'a duration from "{low}" to "{high}", such as "90s", "10m", "24h", "7d"', read, show=format_duration)


def _size(low: int, high: int) -> Reader:
    def read(value: object) -> int:
        size = parse_size(_text(value))
        if not low <= size <= high:
            raise ValueError
        return size

    bounds = "" if high == SIZE_MAX else f' from "{format_size(low)}" to "{format_size(high)}"'
    return Reader(f'a size{bounds}, such as "512K", "20M", "4G"', read, show=format_size)


def _written(expects: str, check: Callable[[str], object], *, secret: bool = False) -> Reader:
    def read(value: object) -> str:
        check(_text(value))
        return _text(value)

    return Reader(expects, read, secret=secret)


def _check_keydb(url: str) -> None:
    if url and (not url.startswith("sqlite:///") or len(url) == len("sqlite:///") or escape(url) != url):
        raise ValueError


_KEY_SOURCE: Final = _choice("sender", "coordinator")
_KEY_ORDER: Final = _choice("recipient-first", "sender-first")
_CIPHER: Final = _choice(*CIPHERS)
_ACCEPT: Final = _choice("all", "none")
_REQUEST: Final = _choice("together", "apart")
_SEAL_TO: Final = _choice("permanent", "temporary")
_SUITE: Final = _choice("hybrid", "x25519", "rsa")
_LOG_FORMAT: Final = _choice("auto", "json", "console")
_LOG_LEVEL: Final = _choice("debug", "info", "warning", "error")
_KEY_SOURCES: Final = _listed(_KEY_SOURCE, 1)
_CIPHERS: Final = _listed(_CIPHER, 1)
_ENDPOINTS: Final = _listed(_written('"tcp://HOST:PORT"', parse_endpoint), 0)
_LISTEN: Final = _listed(_written('"tcp://HOST:PORT"', lambda text: parse_endpoint(text, listen=True)), 1)
_PORT_RANGE: Final = _written('"tcp://HOST:PORT" or "tcp://HOST:PORT-PORT", two ports or more', parse_port_range)
_KEYDB: Final = _written('"" or "sqlite:///PATH"', _check_keydb, secret=True)
_PATIENCE: Final = _duration("1s", "7d")
_KEEP: Final = _duration("1h", "3650d")
_TTL: Final = _duration("1s", "365d")
_BYTES: Final = _size(0, SIZE_MAX)
_CHUNK: Final = _size(constants.CHUNK_MIN, constants.CHUNK_MAX)
_PER_SENDER: Final = _whole(1, 4096)
_PER_SECOND: Final = _whole(1, 1_000_000)
_CLIENTS: Final = _whole(1, 1_000_000)
_POOL: Final = _whole(0, 1024)


# --- the keys ------------------------------------------------------------------------------------------------------


class LogSection(Struct, frozen=True):
    """``[log]`` of both roles."""

    format: Annotated[Literal["auto", "json", "console"], _LOG_FORMAT] = "auto"
    level: Annotated[Literal["debug", "info", "warning", "error"], _LOG_LEVEL] = "info"


class LinkSection(Struct, frozen=True):
    """``[coordinator]`` of a client."""

    endpoints: Annotated[tuple[str, ...], _ENDPOINTS] = ()


class ClientTransferSection(Struct, frozen=True):
    """``[transfer]`` of a client; ``patience`` in seconds, ``chunk`` in bytes."""

    key_sources: Annotated[tuple[KeySource, ...], _KEY_SOURCES] = ("sender",)
    key_source: Annotated[KeySource, _KEY_SOURCE] = "sender"
    key_order: Annotated[KeyOrder, _KEY_ORDER] = "recipient-first"
    ciphers: Annotated[tuple[str, ...], _CIPHERS] = SAFE_CIPHERS
    cipher: Annotated[str, _CIPHER] = "aes-256-gcm"
    listen: Annotated[str, _PORT_RANGE] = "tcp://*:0"
    patience: Annotated[float, _PATIENCE] = 60.0
    chunk: Annotated[int, _CHUNK] = constants.CHUNK


class InboxSection(Struct, frozen=True):
    """``[inbox]`` of a client; sizes in bytes, ``keep_done`` in seconds."""

    accept: Annotated[Literal["all", "none"], _ACCEPT] = "all"
    max_bytes: Annotated[int, _BYTES] = 0
    min_free: Annotated[int, _BYTES] = 256 * 1024**2
    per_sender: Annotated[int, _PER_SENDER] = constants.TRANSFERS_PER_SENDER_MAX
    per_second: Annotated[int, _PER_SECOND] = constants.TRANSFERS_PER_SECOND_MAX
    keep_done: Annotated[float, _KEEP] = 90 * 86400.0


class RegistrationSection(Struct, frozen=True):
    """``[registration]`` of a client: the document's alternatives."""

    request: Annotated[Literal["together", "apart"], _REQUEST] = "together"
    seal_to: Annotated[Literal["permanent", "temporary"], _SEAL_TO] = "permanent"


class ClientConfig(Struct, frozen=True):
    """``config.toml`` in a client's home."""

    coordinator: LinkSection = LinkSection()
    transfer: ClientTransferSection = ClientTransferSection()
    inbox: InboxSection = InboxSection()
    registration: RegistrationSection = RegistrationSection()
    log: LogSection = LogSection()

    def sending_rules(self) -> Rules:
        """What this client allows itself as a sender."""
        return Rules(self.transfer.key_sources, self.transfer.ciphers)

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
        )


class CoordinatorSection(Struct, frozen=True):
    """``[coordinator]`` of a coordinator; ``keydb`` empty: the embedded one in its home."""

    listen: Annotated[tuple[str, ...], _LISTEN] = ("tcp://*:7670",)
    keydb: Annotated[str, _KEYDB] = ""
    suite: Annotated[Literal["hybrid", "x25519", "rsa"], _SUITE] = "hybrid"
    key_pool: Annotated[int, _POOL] = 16


class CoordinatorTransferSection(Struct, frozen=True):
    """``[transfer]`` of a coordinator."""

    key_sources: Annotated[tuple[KeySource, ...], _KEY_SOURCES] = ("sender",)
    ciphers: Annotated[tuple[str, ...], _CIPHERS] = SAFE_CIPHERS


class LimitsSection(Struct, frozen=True):
    """``[limits]`` of a coordinator."""

    clients: Annotated[int, _CLIENTS] = 20_000
    handshakes_per_client: Annotated[int, _PER_SENDER] = constants.HANDSHAKES_PER_CLIENT_MAX
    per_second: Annotated[int, _PER_SECOND] = constants.TRANSFERS_PER_SECOND_MAX


class InviteSection(Struct, frozen=True):
    """``[invite]`` of a coordinator; ``ttl`` in seconds."""

    ttl: Annotated[float, _TTL] = 86400.0


class CoordinatorConfig(Struct, frozen=True):
    """``config.toml`` in a coordinator's home."""

    coordinator: CoordinatorSection = CoordinatorSection()
    transfer: CoordinatorTransferSection = CoordinatorTransferSection()
    limits: LimitsSection = LimitsSection()
    invite: InviteSection = InviteSection()
    log: LogSection = LogSection()

    def rules(self) -> Rules:
        """What this coordinator allows between its clients."""
        return Rules(
            self.transfer.key_sources,
            self.transfer.ciphers,
            at_once=self.limits.handshakes_per_client,
            per_second=self.limits.per_second,
        )


C = TypeVar("C", ClientConfig, CoordinatorConfig)


@dataclass(frozen=True, slots=True)
class _Key:
    section: str
    name: str
    reader: Reader
    default: object

    @property
    def variable(self) -> str:
        return f"ZKC_{self.section}_{self.name}".upper()


@cache
def _keys(kind: type[ClientConfig | CoordinatorConfig]) -> dict[str, _Key]:
    return {
        f"{section.name}.{key.name}": _Key(section.name, key.name, key.type.__metadata__[0], key.default)
        for section in fields(kind)
        for key in fields(section.type)
    }


# --- reading -------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Loaded(Generic[C]):
    """A configuration, where each value came from, and notices for the user.

    ``origins`` has every ``section.key``: ``default``, ``file PATH:LINE``, ``env VARIABLE`` or ``option``.
    """

    config: C
    origins: Mapping[str, str]
    notices: tuple[str, ...] = field(default=())

    def items(self) -> Iterator[tuple[str, str, str]]:
        """``section.key``, its value as TOML writes it, its origin: what ``zkc config --show-origin`` shows."""
        for name, key in _keys(type(self.config)).items():
            value = getattr(getattr(self.config, key.section), key.name)
            yield name, _to_toml(key.reader.show(value)), self.origins[name]


@overload
def load(
    role: Literal["client"], path: Path | None, environ: Mapping[str, str], options: Mapping[str, object] = ...
) -> Loaded[ClientConfig]: ...


@overload
def load(
    role: Literal["coordinator"], path: Path | None, environ: Mapping[str, str], options: Mapping[str, object] = ...
) -> Loaded[CoordinatorConfig]: ...


def load(
    role: Role, path: Path | None, environ: Mapping[str, str], options: Mapping[str, object] | None = None
) -> Loaded[ClientConfig] | Loaded[CoordinatorConfig]:
    """The configuration of ``role`` from ``options`` (``section.key`` -> value), ``environ`` and the file at ``path``.

    A file that does not exist is an empty one, an option that is None was not given, an empty variable is not set.
    Options and variables are text, lists comma separated; an option may also be what TOML would give.
    """
    if role == "client":
        return _load(ClientConfig, path, environ, options or {})
    return _load(CoordinatorConfig, path, environ, options or {})


def _load(kind: type[C], path: Path | None, environ: Mapping[str, str], options: Mapping[str, object]) -> Loaded[C]:
    keys = _keys(kind)
    values: dict[str, object] = {name: key.default for name, key in keys.items()}
    origins = dict.fromkeys(keys, "default")
    for name, (value, line) in _read_file(kind, path).items():
        values[name], origins[name] = value, f"file {escape(str(path))}:{line}"
    for name, key in keys.items():
        if text := environ.get(key.variable):
            values[name] = _value(key, key.reader.from_text(text), f"variable {key.variable}")
            origins[name] = f"env {key.variable}"
    for name, option in options.items():
        if option is not None:
            given = keys[name].reader.from_text(option) if isinstance(option, str) else option
            values[name], origins[name] = _value(keys[name], given, "option"), "option"
    sections = {
        section.name: section.type(**{key.name: values[f"{section.name}.{key.name}"] for key in fields(section.type)})
        for section in fields(kind)
    }
    return Loaded(kind(**sections), origins, tuple(_unknown_variables(environ)))


def save_client(path: Path, changes: Mapping[str, object]) -> None:
    """Writes ``changes`` (``section.key`` -> value as TOML has it) and what the file already said to ``path``.

    What equals the default is left out; comments are not kept. The file is replaced whole, so a crash leaves the old or
    the new one. `UsageError` where the old file or a value is wrong, `LocalIOError` where it cannot be written.
    """
    keys = _keys(ClientConfig)
    values = {name: value for name, (value, _) in _read_file(ClientConfig, path).items()}
    values |= {name: _value(keys[name], value, str(path)) for name, value in changes.items()}
    sections: dict[str, list[str]] = {}
    for name, key in keys.items():
        value = values.get(name, key.default)
        if value != key.default:
            sections.setdefault(key.section, []).append(f"{key.name} = {_to_toml(key.reader.show(value))}")
    text = "\n".join(f"[{section}]\n" + "".join(f"{line}\n" for line in lines) for section, lines in sections.items())
    try:
        _replace(Path(os.path.realpath(path)), f"# Written by zkc join.\n{text}".encode())
    except OSError as error:
        raise LocalIOError(f"{escape(str(path))}: cannot be written: {error.strerror}") from error


def _read_file(kind: type[ClientConfig | CoordinatorConfig], path: Path | None) -> dict[str, tuple[object, int]]:
    """``section.key`` -> (value, line) of what the file says."""
    text = _read_text(path) if path is not None else ""
    where = escape(str(path))
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise _wrong(f"{where}:{error.lineno}: this is not TOML: {escape(error.msg)}") from None
    except RecursionError:
        raise _wrong(f"{where}: this is not TOML that zkc reads: nested too deep") from None
    lines = _lines(text)
    keys = _keys(kind)
    found: dict[str, tuple[object, int]] = {}
    for section, table in document.items():
        names = {key.section for key in keys.values()}
        line = lines.get((section,), 1)
        if not isinstance(table, dict):
            if section in names:
                raise _wrong(f"{where}:{line}: {section} is a section", f"write it as [{section}], its keys below it")
            raise _unknown(f"{where}:{line}", section, keys)
        if section not in names and not table:
            nearest = max(names, key=lambda name: _likeness(section, name))
            raise _wrong(f"{where}:{line}: there is no section [{escape(section)}]", f"the nearest is [{nearest}]")
        for name, value in table.items():
            line = lines.get((section, name), line)
            key = keys.get(f"{section}.{name}")
            if key is None or "." in name:
                raise _unknown(f"{where}:{line}", f"{section}.{name}", keys)
            found[f"{section}.{name}"] = _value(key, value, f"{where}:{line}"), line
    return found


def _read_text(path: Path) -> str:
    where = escape(str(path))
    try:
        # O_NONBLOCK: a FIFO in the place of the file must not hold us.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
                raise _wrong(f"{where}: cannot be read: it is {what}")
            content = os.read(descriptor, FILE_MAX + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise _wrong(f"{where}: cannot be read: {error.strerror}") from None
    if len(content) > FILE_MAX:
        raise _wrong(f"{where}: cannot be read: it is larger than {format_size(FILE_MAX)}")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _wrong(f"{where}:{line}: cannot be read: it is not UTF-8") from None


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """The first line on which each table and key of a valid document stands.

    Statement by statement, since the parser tells no positions: the shortest run of lines that is TOML by itself is one
    statement. Dotted, quoted and inline keys are then as the parser reads them.
    """
    first: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    statement, began = "", 1
    for number, line in enumerate(text.split("\n"), start=1):
        if not statement:
            began = number
        statement += line + "\n"
        try:
            parsed = tomli.loads(statement)
        except tomli.TOMLDecodeError:
            continue
        is_header = statement.lstrip().startswith("[")
        paths = list(_paths(parsed))
        for path in paths:
            first.setdefault(path if is_header else table + path, began)
        if is_header:
            table = paths[-1]
        statement = ""
    return first


def _paths(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, (*path, name))


def _value(key: _Key, value: object, where: str) -> object:
    with contextlib.suppress(TypeError, ValueError, UsageError):
        return key.reader.read(value)
    said = " what it is" if key.reader.secret else f" {_to_toml(value)[:60]}"
    raise _wrong(f"{where}: {key.section}.{key.name} cannot be{said}", f"expected {key.reader.expects}")


def _unknown(where: str, name: str, keys: Mapping[str, _Key]) -> UsageError:
    nearest = max(keys, key=lambda key: _likeness(name, key))
    return _wrong(f"{where}: {escape(name[:80])} is not a key", f"the nearest is {nearest}")


def _unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    known = VARIABLES | {key.variable for kind in (ClientConfig, CoordinatorConfig) for key in _keys(kind).values()}
    for variable in sorted(environ):
        if variable.startswith("ZKC_") and variable not in known:
            nearest = max(sorted(known), key=lambda name: _likeness(variable, name))
            yield f"{escape(variable[:80])} is not a variable of zkc; the nearest is {nearest}"


def _likeness(given: str, known: str) -> float:
    """0 to 1; the right key in a wrong section, or in none, is nearer than anything but itself."""
    given_key, known_key = given.rpartition(".")[2], known.rpartition(".")[2]
    whole = difflib.SequenceMatcher(None, given[:80], known).ratio()
    if "." in known and "." not in given:
        return difflib.SequenceMatcher(None, given_key[:80], known_key).ratio()
    return whole if given_key != known_key else (1 + whole) / 2


def _wrong(message: str, hint: str = "") -> UsageError:
    return UsageError(message, detail="config", hint=hint)


# --- writing -------------------------------------------------------------------------------------------------------


def _to_toml(value: object) -> str:
    if isinstance(value, str):
        return '"' + "".join(map(_in_string, value)) + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_to_toml, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    return str(value)


def _in_string(char: str) -> str:
    """One character of a TOML string, shown as `escape` would on a terminal, but in TOML's own way."""
    if char in '"\\':
        return f"\\{char}"
    if escape(char) == char:
        return char
    return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08x}"


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
