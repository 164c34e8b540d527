"""The tables of docs/protocol.md and docs/events.md, from the code: messages, error codes, numbers, events.

A page keeps its prose; only what stands between ``<!-- messages: NAME ... -->``, ``<!-- codes -->``,
``<!-- numbers: PART -->`` or ``<!-- events -->`` and ``<!-- end -->`` is written here. What a field means is the line
below it in the code.
"""

from __future__ import annotations

import ast
import itertools
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

sys.path.insert(0, str(Path(__file__).parents[2]))

from zkc import constants, errors
from zkc.client import happenings
from zkc.wire import messages

TOP: Final = Path(__file__).parents[2]
PAGES: Final = (TOP / "docs" / "protocol.md", TOP / "docs" / "events.md")
_FRAME: Final = re.compile(r"<!-- (messages|numbers|codes|events)(?:: ([^>]*?))? -->\n.*?<!-- end -->", re.DOTALL)
_PARTS: Final = {"specification": "# --- specification", "tuning": "# --- tuning", "bounds": "# --- bounds"}


def classes() -> dict[str, type[msgspec.Struct]]:
    """Every message of the grammar by name, in the order of the source; the base class is none."""
    found = vars(messages).values()
    structs = [each for each in found if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    ours = [each for each in structs if each.__module__ == messages.__name__ and each.__bases__ != (msgspec.Struct,)]
    return {each.__name__: each for each in ours}


def _parsed(module: types.ModuleType) -> ast.Module:
    return ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))


def _told(body: Sequence[ast.stmt]) -> dict[str, str]:
    """Name -> the string that follows its annotated assignment."""
    told: dict[str, str] = {}
    for at, following in itertools.pairwise(body):
        match at, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                told[name] = _line(text)
    return told


def _line(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", r"\|")


def _docs(module: types.ModuleType = messages) -> dict[str, dict[str, str]]:
    return {node.name: _told(node.body) for node in _parsed(module).body if isinstance(node, ast.ClassDef)}


def kind_of(kind: Any) -> str:
    """A field's type and bounds as the page says them."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _bounded(arguments[0], next(each for each in arguments[1:] if isinstance(each, msgspec.Meta)))
    if origin is typing.Literal:
        return "str: " + ", ".join(f"`{each}`" for each in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind_of(each) for each in arguments))
    if kind is type(None):
        return "nil"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return f"`{kind.__name__}`"
    return str(kind.__name__)


def _bounded(kind: Any, meta: msgspec.Meta) -> str:
    if kind is int:
        low, high = int(meta.ge or 0), int(meta.le or 0)
        exact = {0xFF: "u8", 0xFFFF: "u16", 0xFFFFFFFF: "u32", 2**63 - 1: "u63"}
        return exact[high] if low == 0 and high in exact else f"int {low:,} to {high:,}"
    low, high = meta.min_length or 0, meta.max_length or 0
    if typing.get_origin(kind) is list:
        return f"array of {low} to {high}: {kind_of(typing.get_args(kind)[0])}"
    unit = {bytes: "bytes", str: "str"}[kind]
    return f"{unit} {low:,}" if low == high else f"{unit} {low:,} to {high:,}"


def message_tables(names: Sequence[str]) -> str:
    """A table for each of the classes called ``names``."""
    known, docs, parts = classes(), _docs(), []
    for name in names:
        kind = known[name]
        tag = kind.__struct_config__.tag
        hints = typing.get_type_hints(kind, include_extras=True)
        head = f"`{name}`, " + (f'tag `"{tag}"`' if tag is not None else "no tag")
        told = docs[name]
        rows = [f"| {field} | {kind_of(hints[field])} | {told.get(field, '')} |" for field in kind.__struct_fields__]
        table = [head + ":", "", "| field | type | |", "|---|---|---|", *rows]
        parts.append("\n".join(table) if rows else head + ": no fields.")
    return "\n\n".join(parts)


def number_table(part: str) -> str:
    """The constants of one part of zkc/constants.py."""
    source = Path(constants.__file__).read_text(encoding="utf-8")
    begins = {name: source[: source.index(mark)].count("\n") + 1 for name, mark in _PARTS.items()}
    ends = min([line for line in begins.values() if line > begins[part]], default=source.count("\n") + 1)
    tree = _parsed(constants)
    told = _told(tree.body)
    lines = ["| name | value | |", "|---|---|---|"]
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and begins[part] < node.lineno < ends:
            name = node.target.id
            lines.append(f"| {name} | {getattr(constants, name):,} | {told.get(name, '')} |")
    return "\n".join(lines)


def code_table() -> str:
    """Every code that may travel, with its reason."""
    rows = [f"| {code} | `{kind.reason}` |" for code, kind in sorted(errors.BY_CODE.items())]
    return "\n".join(["| code | reason |", "|---|---|", *rows])


def event_tables() -> str:
    """What each event of a daemon says, key by key."""
    docs, parts = _docs(happenings), []
    for kind in typing.get_args(happenings.Happening):
        hints = typing.get_type_hints(kind, include_extras=True)
        rows = [
            f"| `{field.encode_name}` | {_event_kind(field.name, hints[field.name])} "
            f"| {docs[kind.__name__].get(field.name, '')} |"
            for field in msgspec.structs.fields(kind)
        ]
        head = [f"### {happenings.tag_of(kind)}", "", _line(kind.__doc__ or ""), ""]
        parts.append("\n".join([*head, "| key | value | |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _event_kind(name: str, kind: Any) -> str:
    if name in happenings.TIMES:
        return "time or null"
    names = {"str": "text", "int": "number", "float": "number", "bool": "true, false", "nil": "null"}
    told = kind_of(kind)
    return " or ".join(names.get(word, word.removeprefix("str: ")) for word in told.split(" or "))


def filled(page: str) -> str:
    """``page`` with every frame written anew."""
    tables: dict[str, Callable[[str], str]] = {
        "messages": lambda words: message_tables(words.split()),
        "numbers": number_table,
        "codes": lambda _: code_table(),
        "events": lambda _: event_tables(),
    }

    def write(frame: re.Match[str]) -> str:
        what, words = frame[1], frame[2] or ""
        head = f"<!-- {what}: {words} -->" if words else f"<!-- {what} -->"
        return f"{head}\n\n{tables[what](words)}\n\n<!-- end -->"

    return _FRAME.sub(write, page)


def named(page: str) -> list[str]:
    """The classes that the frames of ``page`` name, in their order."""
    return [name for what, words in _FRAME.findall(page) if what == "messages" for name in words.split()]


def main(words: Sequence[str]) -> int:
    """Writes the pages; with ``--check`` tells which are old and returns 1."""
    code = 0
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        wanted = filled(page)
        if page == wanted:
            continue
        if "--check" in words:
            print(f"{os.path.relpath(path)} is old: run scripts/docs")
            code = 1
        else:
            path.write_text(wanted, encoding="utf-8")
            print(f"{os.path.relpath(path)} written")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
