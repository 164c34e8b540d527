"""Text for man pages: the few requests of man(7) that zkc's pages need, and Markdown written with them.

Markdown is parsed by markdown-it, which comes with rich. Tables become lists of terms: a page of 80 columns has no room
for more, and nothing is needed to read them but man(7).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

_WIDTH: Final = 78
"""Of the source; what is longer is a fault for mandoc."""
_ESCAPES: Final = {
    "\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq", "\u00a0": r"\ ",
}
_WRAPPER: Final = textwrap.TextWrapper(width=_WIDTH, break_long_words=False, break_on_hyphens=False)
_OPEN: Final = {"strong_open": r"\fB", "em_open": r"\fI"}
_CLOSED: Final = {"strong_close", "em_close"}


def escape(text: str) -> str:
    """``text`` as roff writes it: what reads as a request, or is none of ASCII, is written in escapes."""
    return "".join(_ESCAPES.get(each) or (each if each.isascii() else f"\\[u{ord(each):04X}]") for each in text)


def bold(text: str) -> str:
    return rf"\fB{escape(text)}\fR"


def lines(text: str) -> list[str]:
    """Escaped ``text``, wrapped; no line of it is taken for a request."""
    return [rf"\&{line}" if line.startswith(".") else line for line in _WRAPPER.wrap(text)]


def paragraph(text: str) -> list[str]:
    """Escaped ``text`` as a paragraph of its own."""
    return [".PP", *lines(text)]


def literal(text: str) -> list[str]:
    """An example: as it is, indented."""
    shown = (escape(line) for line in text.rstrip("\n").split("\n"))
    return [".PP", ".RS 4", ".EX", *(rf"\&{line}" if line.startswith(".") else line for line in shown), ".EE", ".RE"]


def term(name: str, *about: str) -> list[str]:
    """An entry of a list: escaped ``name``, and below it the escaped paragraphs ``about``."""
    first, *others = [each for each in about if each] or [""]
    out = [".TP", name, *(lines(first) or [r"\&"])]
    for each in others:
        out += [".IP", *lines(each)]
    return out


def section(title: str) -> list[str]:
    return [f".SH {_quoted(title.upper())}"]


def subsection(title: str) -> list[str]:
    return [f".SS {_quoted(title)}"]


def head(name: str, number: int, summary: str, date: str, version: str) -> list[str]:
    """The beginning of page ``name``(``number``)."""
    title = f".TH {escape(name.upper())} {number} {date} {_quoted(version)} {_quoted('zkc manual')}"
    return [title, *section("Name"), rf"{escape(name)} \- {escape(summary)}"]


def page(parts: Sequence[str]) -> str:
    """The whole of it; what begins a section needs no request for a paragraph."""
    before = ("", *parts)
    kept = [part for last, part in zip(before, parts, strict=False) if part != ".PP" or last[:3] not in {".SH", ".SS"}]
    return "\n".join(kept) + "\n"


def _quoted(text: str) -> str:
    return f'"{escape(text)}"'


# --- Markdown -------------------------------------------------------------------------------------------------------


def markdown(page: str) -> list[str]:
    """A page of ``docs/`` without its title: headings, paragraphs, lists, examples, tables."""
    return _Page(MarkdownIt("commonmark").enable("table").parse(page)).written()


def inline(text: str) -> str:
    """One paragraph of Markdown, escaped."""
    return _inline(MarkdownIt("commonmark").parseInline(text)[0].children or [])


def _inline(tokens: Sequence[Token]) -> str:
    parts: list[str] = []
    fonts = [r"\fR"]
    for token in tokens:
        if token.type in _OPEN:
            fonts.append(_OPEN[token.type])
            parts.append(fonts[-1])
        elif token.type in _CLOSED:
            fonts.pop()
            parts.append(fonts[-1])
        elif token.type == "code_inline":
            parts.append(rf"\fB{escape(token.content)}{fonts[-1]}")
        elif token.type == "text":
            parts.append(escape(token.content))
        elif token.type in {"softbreak", "hardbreak"}:
            parts.append(" ")
        elif token.type not in {"link_open", "link_close", "html_inline"}:
            raise ValueError(f"roff.py knows no {token.type}")
    return "".join(parts)


class _Page:
    """The blocks of a page, one after the other."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = iter(tokens)
        self._lists: list[Iterator[str]] = []
        self._out: list[str] = []
        self._marked: str | None = None
        """The mark of a list's item of which nothing is written yet."""

    def written(self) -> list[str]:
        blocks: Mapping[str, Callable[[Token], None]] = {
            "heading_open": self._heading, "paragraph_open": self._paragraph, "fence": self._literal,
            "code_block": self._literal, "bullet_list_open": self._list, "ordered_list_open": self._list,
            "bullet_list_close": self._list_end, "ordered_list_close": self._list_end,
            "list_item_open": self._item, "table_open": self._table,
        }
        ignored = {"list_item_close", "html_block", "hr"}
        for token in self._tokens:
            if token.type in blocks:
                blocks[token.type](token)
            elif token.type not in ignored:
                raise ValueError(f"roff.py knows no {token.type}")
        return self._out

    def _text(self, end: str) -> str:
        """What stands before the token ``end``."""
        text = ""
        while (token := next(self._tokens)).type != end:
            text += _inline(token.children or [])
        return text

    def _heading(self, token: Token) -> None:
        text = self._text("heading_close")
        level = int(token.tag.removeprefix("h"))
        if level > 1:  # the first is the title of the page
            plain = re.sub(r"\\f[BIR]", "", text)
            self._out.append(f'.SH "{_upper(plain)}"' if level == 2 else f'.SS "{plain}"')

    def _paragraph(self, token: Token) -> None:
        text = lines(self._text("paragraph_close"))
        if not text:
            return
        if self._marked is not None:
            self._out.append(self._marked)
            self._marked = None
        else:
            self._out.append(".IP" if self._lists else ".PP")
        self._out += text

    def _literal(self, token: Token) -> None:
        self._out += literal(token.content)

    def _list(self, token: Token) -> None:
        if self._lists:
            self._out.append(".RS 4")
        first = int(token.attrGet("start") or 1)
        marks = (f".IP {n}. 4" for n in range(first, 10_000)) if token.type.startswith("ordered") else None
        self._lists.append(marks or iter(lambda: r".IP \(bu 2", ""))

    def _list_end(self, _token: Token) -> None:
        self._lists.pop()
        if self._lists:
            self._out.append(".RE")

    def _item(self, _token: Token) -> None:
        self._marked = next(self._lists[-1])

    def _table(self, _token: Token) -> None:
        rows: list[list[str]] = []
        while (token := next(self._tokens)).type != "table_close":
            if token.type == "tr_open":
                rows.append([])
            elif token.type in {"th_open", "td_open"}:
                rows[-1].append(self._text(token.type.replace("open", "close")))
        titles, *entries = rows
        for first, *others in entries:
            told = [
                rf"\fI{title}\fR: {cell}" if title and len(others) > 1 else cell
                for title, cell in zip(titles[1:], others, strict=True) if cell
            ]
            self._out += [".TP", first if first.startswith("\\fB") else rf"\fB{first}\fR"]
            self._out += lines("; ".join(told)) or [r"\&"]


def _upper(text: str) -> str:
    """In capitals, but for what is an escape."""
    return re.sub(r"\\\(..|\\\[\w+\]|\\.|[^\\]+", lambda part: part[0] if part[0][0] == "\\" else part[0].upper(), text)
