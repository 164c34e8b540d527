"""``zkc events``: what happens at this home's daemon."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from zkc.ui.cli.options import Command, Invocation, pass_invocation
from zkc.ui.cli.output import rfc3339

if TYPE_CHECKING:
    from zkc.client.happenings import Happened


@click.command(
    "events", cls=Command, example="zkc events --follow",
    help="Show what this home's daemon remembers of what has happened: arrivals, deliveries, questions, decisions, "
    "keys, presence, transfers, the outbox, the link. --follow goes on with all that happens, until a signal; it ends "
    "with 34 when the daemon does. docs/events.md has every event and its keys.",
    short_help="Show or follow what happens here.",
)
@click.option("--follow", is_flag=True, help="Go on with what happens, until a signal.")
@pass_invocation
def command(call: Invocation, *, follow: bool) -> None:
    """An object for each event, its ``event`` the kind, with ``seq`` and ``time``."""
    from zkc.client.following import events
    from zkc.ui.cli.homes import client_config, client_home, open_store

    home = client_home(call)
    client_config(call, home)
    open_store(home).close()
    with contextlib.closing(events(home, follow=follow)) as happened:
        for each in happened:
            noun, fields = object_of(each)
            call.out.item(noun, fields, line_of(each))


def object_of(happened: Happened) -> tuple[str, dict[str, Any]]:
    """``event``, and the object's other keys."""
    from zkc.client.happenings import TIMES, told

    noun, fields = told(happened.what)
    for key in TIMES & fields.keys():
        fields[key] = rfc3339(fields[key]) if fields[key] else None
    return noun, {"seq": happened.seq or None, "time": rfc3339(happened.at), **fields}


def line_of(happened: Happened) -> str:
    """The same for a person: one line, with nothing in it that a terminal obeys (attack F07)."""
    from zkc.client.happenings import told
    from zkc.rules.names import escape

    noun, _ = told(happened.what)
    return escape(f"{rfc3339(happened.at)}  {noun:<9}  {_LINES[noun](happened.what)}")


def _outcome(what: Any) -> str:
    words = ("ok" if not what.code else f"refused {what.code}", what.detail, getattr(what, "rule", ""))
    more = f"({what.withheld} more before)" if what.withheld else ""
    return " ".join(each for each in (*words, more) if each)


def _size(size: int | None) -> str:
    from zkc.rules.units import show_size

    return "?" if size is None else show_size(size)


def _noted(note: str) -> str:
    return f": {note}" if note else ""


def _transfer(what: Any) -> str:
    return f"{what.sender} -> {what.recipient}  {'a stream' if what.name is None else what.name}"


def _ended(what: Any) -> str:
    how = " ".join(each for each in (f"failed {what.code}", what.reason, what.detail) if each)
    return f"{_transfer(what)}  {how if what.code else 'done'}, {_size(what.bytes)}"


def _asked(what: Any) -> str:
    name = "a transfer" if what.name is None else what.name
    return f"{what.sender} asks to send {name} ({_size(what.bytes)}): zkc accept {what.id[:8]}{_noted(what.note)}"


def _outbox(what: Any) -> str:
    return f"job {what.id} for {what.recipient}: {what.name}  {what.state}{_noted(what.why)}"


def _link(what: Any) -> str:
    why = " ".join(each for each in (what.reason, what.detail) if each)
    return f"{what.client} {'up' if what.linked else 'down'}  {what.coordinator}  {why}".rstrip()


_LINES: dict[str, Callable[[Any], str]] = {
    "arrived": lambda it: f"{it.name} from {it.sender} ({_size(it.bytes)}), item {it.id}{_noted(it.note)}",
    "asked": _asked,
    "answered": lambda it: f"{it.answer} the transfer {it.id[:8]} from {it.sender}",
    "decision": lambda it: f"{it.kind}  {it.sender or '-'} -> {it.recipient or '-'}  {_outcome(it)}",
    "key": lambda it: f"{it.kind}  {it.name or 'coordinator'}  {it.detail}".rstrip(),
    "presence": lambda it: f"{it.name} {'online' if it.online else 'offline'}, person {it.person}",
    "person": lambda it: f"the person here: {it.person}",
    "begun": lambda it: f"{_transfer(it)} ({_size(it.total)})",
    "progress": lambda it: f"{it.transfer[:8]}  {_size(it.bytes)} of {_size(it.total)}",
    "ended": _ended,
    "delivered": lambda it: f"{it.name} to {it.recipient} ({_size(it.bytes)}), receipt {it.receipt}",
    "outbox": _outbox,
    "link": _link,
    "started": lambda it: f"daemon of {it.client}, zkc {it.version}",
    "lost": lambda it: f"{it.lost} events, for they were not read in time",
}
"""What a line says of an event, by its kind."""
