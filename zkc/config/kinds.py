"""Kinds of values: how each is read from TOML or from a variable's text, and shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from zkc.rules.units import SIZE_MAX, format_duration, format_size, parse_duration, parse_size


class Reader(NamedTuple):
    """One kind of value. ``read`` takes what TOML gives and raises for what does not fit."""

    expects: str
    read: Callable[[object], object]
    show: Callable[[Any], object] = lambda value: value
    from_text: Callable[[str], object] = lambda text: text
    """What TOML would give for the text of an environment variable."""
    hide: Callable[[Any], object] | None = None
    """What of a value that can hold a secret may be shown; no error repeats one. None: all of it."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def choice(*choices: str) -> Reader:
    def read(value: object) -> str:
        if value not in choices:
            raise ValueError
        return _text(value)

    return Reader("one of " + ", ".join(f'"{choice}"' for choice in choices), read)


def listed(each: Reader, at_least: int) -> Reader:
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


def whole(low: int, high: int) -> Reader:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError
        return value

    def from_text(text: str) -> object:
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else text

    return Reader(f"a whole number from {low} to {high}", read, from_text=from_text)


def duration(low: str, high: str) -> Reader:
    def read(value: object) -> float:
        seconds = parse_duration(_text(value))
        if not parse_duration(low) <= seconds <= parse_duration(high):
            raise ValueError
        return seconds

    return Reader(f'a duration from "{low}" to "{high}", such as "90s", "10m", "24h", "7d"', read, show=format_duration)


def size(low: int, high: int) -> Reader:
    def read(value: object) -> int:
        size = parse_size(_text(value))
        if not low <= size <= high:
            raise ValueError
        return size

    bounds = "" if high == SIZE_MAX else f' from "{format_size(low)}" to "{format_size(high)}"'
    return Reader(f'a size{bounds}, such as "512K", "20M", "4G"', read, show=format_size)


def written(expects: str, check: Callable[[str], object], *, hide: Callable[[str], str] | None = None) -> Reader:
    def read(value: object) -> str:
        check(_text(value))
        return _text(value)

    return Reader(expects, read, hide=hide)
