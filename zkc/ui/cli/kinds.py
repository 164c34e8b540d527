"""Kinds of option values that several commands take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import click

from zkc.errors import UsageError
from zkc.ui.cli.options import nearest, spot

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_FINGERPRINT_DIGITS: Final = 64


class Duration(click.ParamType[float]):
    """``90s``, ``10m``, ``24h``, ``7d``: seconds."""

    name = "DUR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        from zkc.rules.units import parse_duration

        return parse_duration(value, _where(param, ctx))


class Size(click.ParamType[int]):
    """``512K``, ``20M``, ``4G``: bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        from zkc.rules.units import parse_size

        return parse_size(value, _where(param, ctx))


class Word(click.ParamType[str]):
    """One of some words; another one is told the nearest. ``words`` is asked only when there is a value."""

    name = "WORD"

    def __init__(self, words: Callable[[], Sequence[str]]) -> None:
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        words = self._words()
        if value in words:
            return str(value)
        meant = nearest(str(value), words)
        hint = f"it takes {', '.join(words)}" if meant is None else f"the nearest is {meant}"
        raise UsageError(f"{_where(param, ctx)} knows no {str(value)[:40]!r}", hint=hint)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(each) for each in self._words() if each.startswith(incomplete)]


def word(*words: str) -> Word:
    """The kind of an option that takes one of ``words``."""
    return Word(lambda: words)


def ciphers() -> tuple[str, ...]:
    """Names of all of them, the unsafe ones too."""
    from zkc.ids import CIPHERS

    return CIPHERS


class Fingerprint(click.ParamType[bytes]):
    """A whole fingerprint: 64 hex digits, with blanks and colons as people write them; 32 bytes."""

    name = "FINGERPRINT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        digits = str(value).replace(" ", "").replace(":", "")
        found = b""
        with suppress(ValueError):
            found = bytes.fromhex(digits)
        if len(digits) != _FINGERPRINT_DIGITS or not found:
            raise UsageError(
                f"{_where(param, ctx)} takes a whole fingerprint",
                hint=f"{_FINGERPRINT_DIGITS} hex digits, as the other end says them",
            )
        return found


def _where(param: click.Parameter | None, ctx: click.Context | None) -> str:
    option = max(param.opts, key=len) if param is not None else "value"
    return f"{spot(ctx)}{option}" if ctx is not None else option


def offers(what: str) -> Any:
    """What a shell offers for a value: the function of `zkc.ui.cli.completing` that is called ``what``."""

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> Any:
        from zkc.ui.cli import completing

        return getattr(completing, what)(context, parameter, begun)

    return complete
