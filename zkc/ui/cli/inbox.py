"""``zkc inbox``: what has arrived; works without the daemon."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from zkc.errors import LocalIOError, UsageError
from zkc.ui.cli.items import CONFLICTS, destination, item_fields
from zkc.ui.cli.kinds import word
from zkc.ui.cli.options import Command, Group, Invocation, pass_invocation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkc.stores.inbox import Inbox
    from zkc.stores.items import Item

_TEXT_SHOWN = 64 * 1024
"""Bytes of a message that ``show`` prints."""


@contextlib.contextmanager
def _opened(call: Invocation) -> Iterator[Inbox]:
    from zkc.ui.cli.homes import client_config, client_home, open_inbox

    home = client_home(call)
    client_config(call, home)
    with open_inbox(home) as inbox:
        yield inbox


@click.command("list", cls=Command, example="zkc inbox", help="List what has arrived, oldest first.")
@click.option("--partial", is_flag=True, help="Also what is only partly there.")
@pass_invocation
def _list(call: Invocation, *, partial: bool) -> None:
    """``inbox``, an object for each item."""
    from zkc.rules.units import show_size
    from zkc.ui.cli.output import local_time

    with _opened(call) as inbox:
        items = inbox.items() + (inbox.partials() if partial else [])
    rows = [{**item_fields(item, item.path), "at": item.received} for item in items]
    if call.out.json:
        for row in rows:
            call.out.event("inbox", {key: value for key, value in row.items() if key != "at"})
        return
    columns = {
        "id": "id", "from": "from", "name": "name", "bytes": "size", "at": "received", "key_source": "key made by",
        "note": "note",
    }
    if partial:
        columns |= {"state": "state"}
    call.out.table("inbox", rows, columns, {"bytes": show_size, "at": local_time}, cut={"name", "note"})


@click.command(
    "show", cls=Command, example="zkc inbox show 3f9a",
    help="Show all that is known of an item, and the text of a message.",
)
@click.argument("id")
@pass_invocation
def _show(call: Invocation, *, id: str) -> None:
    """``inbox``, one object; with ``text`` for a message."""
    from zkc.rules.names import escape

    with _opened(call) as inbox:
        item = inbox.find(id)
        text = _text(inbox, item) if item.kind == "message" and item.state == "ready" else None
    fields = item_fields(item, item.path)
    if call.out.json:
        call.out.event("inbox", fields if text is None else {**fields, "text": text})
        return
    for key, value in fields.items():
        if value not in (None, ""):
            call.out.text(f"{key + ':':<12} {escape(str(value))}")
    if text is not None:
        call.out.text("")
        for line in text.split("\n"):
            call.out.text(escape(line))


def _text(inbox: Inbox, item: Item) -> str:
    claim = inbox.take(item.id)
    if claim is None:
        raise LocalIOError(f"another command has item {item.id} right now", detail="busy", hint="run it again")
    with claim, claim.open() as payload:
        return payload.read(_TEXT_SHOWN).decode(errors="replace")


@click.command(
    "save", cls=Command, example="zkc inbox save 3f9a -o downloads/",
    help="Write an item to the current folder, or to PATH; it stays in the inbox.",
    short_help="Write an item to a file; it stays.",
)
@click.argument("id")
@click.option("-o", "output", metavar="PATH|DIR", help="Write it there.")
@click.option(
    "--conflict", type=word(*CONFLICTS), metavar="skip|overwrite|rename", default="rename",
    help="What to do where such a file exists [rename].",
)
@pass_invocation
def _save(call: Invocation, *, id: str, output: str | None, conflict: Any) -> None:
    """``inbox`` with ``path``, where it was saved; null where it was skipped."""
    from zkc.rules.names import escape
    from zkc.stores.saving import save_item

    if output in {"", "-"}:
        raise UsageError("inbox save: -o takes a file or a folder", hint="zkc recv -o - writes to standard output")
    with _opened(call) as inbox:
        item = inbox.find(id)
        path = destination(item, output)
        saved = save_item(item, path, conflict)
    if saved is None:
        call.out.notice(f"{escape(str(path))} exists: skipped")
        call.out.event("inbox", item_fields(item, None))
    else:
        call.out.item("inbox", item_fields(item, saved), escape(str(saved)))


@click.command("rm", cls=Command, example="zkc inbox rm 3f9a", help="Remove items from the inbox.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@pass_invocation
def _rm(call: Invocation, *, ids: tuple[str, ...]) -> None:
    """``removed``, an object for each item."""
    from zkc.rules.names import escape

    with _opened(call) as inbox:
        for item in [inbox.find(each) for each in ids]:
            inbox.remove(item.id)
            call.out.event("removed", {"id": item.id, "name": item.name})
            if not call.out.json:
                call.out.notice(f"removed {escape(item.name)} ({item.id})")


command = Group(
    "inbox", {"list": _list, "show": _show, "save": _save, "rm": _rm}, default="list", example="zkc inbox",
    help="What has arrived. Without a subcommand: list.", short_help="What has arrived: list, show, save, remove.",
)
