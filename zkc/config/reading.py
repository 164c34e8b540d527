"""Reading a configuration: option, environment variable (``ZKC_SECTION_KEY``), file, default, in this order.

Whatever is wrong is a `UsageError` of one line that names file and line, or variable, and the key.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar, overload

import tomli
from msgspec.structs import fields

from zkc.config.keys import ClientConfig, CoordinatorConfig, Key, keys_of, sections_of
from zkc.config.policy import TABLES, PolicyTables, read_policy
from zkc.config.toml import to_toml
from zkc.errors import UsageError
from zkc.ids import VARIABLES
from zkc.rules.names import escape
from zkc.rules.policy import locked_out
from zkc.rules.units import format_size

Role = Literal["client", "coordinator"]

FILE_MAX: Final = 256 * 1024
"""Bytes of a configuration file."""
_ENDS: Final = ("]", '"""', "'''")
"""One of them is on the last line of whatever goes over several."""


C = TypeVar("C", ClientConfig, CoordinatorConfig)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[C]):
    """A configuration, where each value came from, and notices for the user.

    ``origins`` has every ``section.key``: ``default``, ``file PATH:LINE``, ``env VARIABLE`` or ``option``.
    """

    config: C
    origins: Mapping[str, str]
    notices: tuple[str, ...] = field(default=())
    tables: PolicyTables = field(default_factory=PolicyTables)
    """Of policy, as they were written."""

    def items(self) -> Iterator[tuple[str, str, str]]:
        """``section.key``, its value as TOML writes it, its origin: what ``zkc config --show-origin`` shows."""
        for name, key in keys_of(type(self.config)).items():
            value = getattr(getattr(self.config, key.section), key.name)
            shown = (key.reader.hide or key.reader.show)(value)
            yield name, to_toml(shown), self.origins[name]
        for group, members in self.tables.groups.items():
            yield f"groups.{group}", to_toml(members), f"file {self.tables.where}"
        for rule, table, line in zip(self.tables.rules, self.tables.written, self.tables.lines, strict=True):
            for name, value in table.items():
                if name != "name":
                    yield f"policy.{to_toml(rule.name)}.{name}", to_toml(value), f"file {self.tables.where}:{line}"


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


def check_not_gone(path: Path, *, was_there: bool) -> None:
    """At a reload: `UsageError` (``config``) where the file was there before and has gone.

    Its rules would go with it, and no rules let everybody in.
    """
    if was_there and not path.exists():
        raise UsageError(
            f"{path} is gone", detail="config", hint="put it back: an empty one means all defaults"
        )


def _load(kind: type[C], path: Path | None, environ: Mapping[str, str], options: Mapping[str, object]) -> Loaded[C]:
    keys = keys_of(kind)
    values: dict[str, object] = {name: key.default for name, key in keys.items()}
    origins = dict.fromkeys(keys, "default")
    tables: PolicyTables
    found, tables = read_file(kind, path)
    for name, (value, line) in found.items():
        values[name], origins[name] = value, f"file {escape(str(path))}:{line}"
    for name, key in keys.items():
        if text := environ.get(key.variable):
            values[name] = read_value(key, key.reader.from_text(text), f"variable {key.variable}")
            origins[name] = f"env {key.variable}"
    for name, option in options.items():
        if option is not None:
            given = keys[name].reader.from_text(option) if isinstance(option, str) else option
            values[name], origins[name] = read_value(keys[name], given, f"--{keys[name].name}"), "option"
    sections: dict[str, Any] = {
        section.name: section.type(**{key.name: values[f"{section.name}.{key.name}"] for key in fields(section.type)})
        for section in sections_of(kind)
    }
    notices = [*_unknown_variables(environ), *filter(None, [locked_out(tables.rules)])]
    sections["policy"] = tables.rules
    if kind is CoordinatorConfig:
        sections["visible"] = tables.sights
    return Loaded(kind(**sections), origins, tuple(notices), tables)


def read_file(
    kind: type[ClientConfig | CoordinatorConfig], path: Path | None
) -> tuple[dict[str, tuple[object, int]], PolicyTables]:
    """``section.key`` -> (value, line) of what the file says, and its policy."""
    text = _read_text(path) if path is not None else ""
    where = escape(str(path))
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise _wrong(f"{where}:{error.lineno}: this is not TOML: {escape(error.msg)}") from None
    except RecursionError:
        raise _wrong(f"{where}: this is not TOML that zkc reads: nested too deep") from None
    lines = _lines(text)
    keys = keys_of(kind)
    found: dict[str, tuple[object, int]] = {}
    for section, table in document.items():
        if section in TABLES:
            continue
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
            found[f"{section}.{name}"] = read_value(key, value, f"{where}:{line}"), line
    return found, read_policy(document, text, where, coordinator=kind is CoordinatorConfig)


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
        is_open = bool(statement)
        statement += line + "\n"
        if is_open and not any(end in line for end in _ENDS):
            continue  # a long list is not parsed anew for each of its lines
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


def read_value(key: Key, value: object, where: str) -> object:
    with contextlib.suppress(TypeError, ValueError, UsageError):
        return key.reader.read(value)
    said = " what it is" if key.reader.hide else f" {to_toml(value)[:60]}"
    raise _wrong(f"{where}: {key.section}.{key.name} cannot be{said}", f"expected {key.reader.expects}")


def _unknown(where: str, name: str, keys: Mapping[str, Key]) -> UsageError:
    nearest = max(keys, key=lambda key: _likeness(name, key))
    return _wrong(f"{where}: {escape(name[:80])} is not a key", f"the nearest is {nearest}")


def _unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    kinds = (ClientConfig, CoordinatorConfig)
    known = {*VARIABLES, *(key.variable for kind in kinds for key in keys_of(kind).values())}
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
