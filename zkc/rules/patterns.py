"""Patterns of names: ``*`` stands for any characters, ``?`` for one; the rest for itself. They match whole names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_REMEMBERED: Final = 4096
"""Names of which it is remembered whether they match, before all are forgotten: a peer chooses them."""


def matches(pattern: str, text: str) -> bool:
    """In at most len(pattern) * len(text) steps, whatever the pattern: only the last star is ever gone back to."""
    at = here = 0
    star, after = -1, 0
    while here < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, after = at, here
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[here]):
            at, here = at + 1, here + 1
        elif star >= 0:
            after += 1
            at, here = star + 1, after
        else:
            return False
    return not pattern[at:].strip("*")


class Patterns:
    """Several, of which one has to match. Made once, asked often."""

    __slots__ = ("_globs", "_known", "_names", "written")

    def __init__(self, patterns: Iterable[str]) -> None:
        self.written: Final = tuple(patterns)
        self._names: Final = frozenset(each for each in self.written if not {"*", "?"} & set(each))
        self._globs: Final = tuple(each for each in self.written if each not in self._names)
        self._known: dict[str, bool] = {}

    @property
    def is_for_all(self) -> bool:
        """Whether one of them is nothing but stars."""
        return any(not each.strip("*") for each in self._globs)

    def match(self, text: str) -> bool:
        if text in self._names:
            return True
        if not self._globs:
            return False
        known = self._known.get(text)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[text] = any(matches(glob, text) for glob in self._globs)
        return known

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patterns) and self.written == other.written

    def __hash__(self) -> int:
        return hash(self.written)
