"""Did you mean: a name or an id that nobody has, and the nearest of those that a shell would offer in its place.

Those are what this client knows by itself, or its daemon is told: pinned keys, the clients that the coordinator shows
to it, its own inbox and outbox. Nobody is asked for anything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import click

from zkc.errors import NobodyThere, NotRegistered, UnknownRecipient, UsageError, ZkcError
from zkc.ui.cli.options import nearest

_DETAILS: Final = frozenset(
    {
        (UsageError.code, "unknown-id"), (NotRegistered.code, "unknown"), (NotRegistered.code, "invite-unknown"),
    }
)
_ALIKE: Final = 0.7
"""How much of the digits of an id has to be the same: any two have some in common."""


def add_hint(context: click.Context, error: ZkcError) -> None:
    """Puts the nearest before the hint of ``error``, if it is about a name or an id that is not there."""
    if isinstance(error, NobodyThere) and error.detail == "empty":
        _add_sender(context, error)
        return
    if not isinstance(error, UnknownRecipient) and (error.code, error.detail) not in _DETAILS:
        return
    with suppress(Exception):  # whatever goes wrong here, it is that error which is told
        for parameter in context.command.get_params(context):
            value = context.params.get(parameter.name or "")
            given = [str(each) for each in (value if isinstance(value, tuple) else (value or "",))]
            words = [word.partition(":")[0] for each in given for word in each.split(",") if word]
            found = _nearest_of(context, parameter, words)
            if found:
                said(error, found)
                return


def _add_sender(context: click.Context, error: NobodyThere) -> None:
    """Nothing is there from a sender whose name is near one that is pinned. Who looks often asks no daemon."""
    from zkc.ui.cli.completing import pinned

    sender = context.params.get("sender")
    if isinstance(sender, str):
        with suppress(Exception):
            names = pinned(context)
            if sender not in names and (found := nearest(sender, names)):
                said(error, found)


def add_hint_about(context: click.Context, error: ZkcError, name: str) -> None:
    """The same for one of several recipients, that has an error of its own."""
    from zkc.ui.cli.completing import peers

    if isinstance(error, UnknownRecipient):
        with suppress(Exception):
            offered = [each.value for each in peers(context, context.command.params[0], "")]
            if name not in offered and (found := nearest(name, offered)):
                said(error, found)


def said(error: ZkcError, found: str) -> None:
    """``found`` is what was meant, or else the hint that is there already holds."""
    error.hint = f"did you mean {found}?" + (f" else: {error.hint}" if error.hint else "")


def _nearest_of(context: click.Context, parameter: click.Parameter, given: Iterable[str]) -> str | None:
    given = list(given)
    if not given:
        return None
    items = parameter.shell_complete(context, "")
    offered = [str(item.value).removesuffix(":") for item in items if item.type == "plain"]
    for word in given:
        begun = any(each.startswith(word.lower()) for each in offered)
        found = None if begun else nearest(word, offered) or nearest_id(word, offered)
        if found is not None:
            return found
    return None


def nearest_id(begun: str, ids: Iterable[str]) -> str | None:
    """The one of ``ids`` of which ``begun`` was most likely meant to be the beginning."""
    by_beginning = {each[: len(begun)]: each for each in reversed(list(ids))}
    found = nearest(begun.lower(), by_beginning, _ALIKE)
    return by_beginning[found] if found is not None else None
