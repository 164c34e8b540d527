"""``zkc inbox``: what has arrived; works without the daemon."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import click

from zkc.constants import MESSAGE_TEXT_MAX
from zkc.errors import LocalIOError, UsageError
from zkc.ui.cli.items import CONFLICTS, Saved, item_fields, save
from zkc.ui.cli.kinds import offers, word
from zkc.ui.cli.options import Command, Group, Invocation, pass_invocation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkc.stores.inbox import Inbox
    from zkc.stores.items import Item

_BAR = "| "
"""Before each line of a message, so that none looks like a prompt, or like ours (attack F11)."""


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
    from zkc.ui.cli.homes import client_home
    from zkc.ui.cli.output import local_time
    from zkc.ui.cli.pending import pending_fields, pending_items

    with _opened(call) as inbox:
        items = inbox.items() + (inbox.partials() if partial else [])
        pending = pending_items(call, client_home(call))
    rows: list[dict[str, object]] = [{**item_fields(item, item.path), "at": item.received} for item in items]
    rows += [{**pending_fields(item), "at": item.since} for item in pending]
    if call.out.json:
        for row in rows:
            call.out.event("inbox", {key: value for key, value in row.items() if key != "at"})
        return
    asked = {"asked_by": "asked by"} if any(row["asked_by"] for row in rows) else {}
    columns = {
        "id": "id", "from": "from", **asked, "name": "name", "bytes": "size", "at": "received",
        "key_source": "key made by", "note": "note",
    }
    if partial or pending:
        columns |= {"state": "state"}
    call.out.table("inbox", rows, columns, {"bytes": show_size, "at": local_time}, cut={"name", "note"})


@click.command(
    "show", cls=Command, example="zkc inbox show 3f9a",
    help="Show all that is known of an item, the text of a message, and what is in a folder.",
    short_help="Show all that is known of an item.",
)
@click.argument("id", shell_complete=offers("items"))
@pass_invocation
def _show(call: Invocation, *, id: str) -> None:
    """``inbox``, one object; with ``text`` for a message."""
    with _opened(call) as inbox:
        try:
            item = inbox.find(id)
        except UsageError as error:
            waiting = _waiting(call, id) if error.detail == "unknown-id" else None
            if waiting is None:
                raise
            _show_fields(call, waiting, None)
            return
        text = _text(inbox, item) if item.kind == "message" and item.state == "ready" else None
        with contextlib.suppress(LocalIOError):  # a full disk is no reason not to show it
            inbox.mark_seen(item.id)
    _show_fields(call, item_fields(item, item.path), text)
    _show_tree(call, item)


def _waiting(call: Invocation, id: str) -> dict[str, object] | None:
    """What waits for a person under an id that begins so, if it is one."""
    from zkc.ui.cli.homes import client_home
    from zkc.ui.cli.pending import pending_fields, pending_items

    found = [item for item in pending_items(call, client_home(call)) if item.id.startswith(id.lower())]
    return pending_fields(found[0]) if len(found) == 1 else None


def _show_fields(call: Invocation, fields: dict[str, object], text: str | None) -> None:
    from zkc.rules.names import escape

    if call.out.json:
        call.out.event("inbox", fields if text is None else {**fields, "text": text})
        return
    width = max(12, *(len(key) + 1 for key, value in fields.items() if value not in (None, "", False)))
    for key, value in fields.items():
        if key == "asker_pinned":
            if value is False:
                call.out.notice(f"{fields['asked_by']} has another key here than the one that asked")
        elif value not in (None, ""):
            call.out.folded(f"{key + ':':<{width}} ", escape(str(value)), " " * (width + 1))
    if text is not None:
        call.out.text("")
        for line in text.split("\n"):
            call.out.folded(_BAR, escape(line), _BAR)


def _show_tree(call: Invocation, item: Item) -> None:
    """``entry``, an object for each file, folder and link of a tree; for a person a line like one of ``ls -l``."""
    if item.kind != "tree" or item.state != "ready":
        return
    import stat

    from zkc.rules.names import escape
    from zkc.stores.trees import StoredTree
    from zkc.wire.messages import TreeFile, TreeFolder, TreeLink

    kinds = {TreeFolder: ("folder", stat.S_IFDIR), TreeFile: ("file", stat.S_IFREG), TreeLink: ("link", stat.S_IFLNK)}
    with StoredTree.opened(item) as tree:
        if not call.out.json:
            call.out.text("")
        for path, entry in tree.paths():
            kind, bits = kinds[type(entry)]
            size = entry.size if isinstance(entry, TreeFile) else None
            target = os.fsdecode(entry.target) if isinstance(entry, TreeLink) else None
            mode = 0o777 if isinstance(entry, TreeLink) else entry.mode
            if call.out.json:
                fields = {"path": path, "type": kind, "bytes": size, "mode": f"{mode:04o}", "target": target}
                call.out.event("entry", fields)
            else:
                arrow = "" if target is None else f" -> {escape(target)}"
                shown = "" if size is None else str(size)
                call.out.text(f"{stat.filemode(bits | mode)} {shown:>12}  {escape(path)}{arrow}")


def _text(inbox: Inbox, item: Item) -> str:
    claim = inbox.take(item.id)
    if claim is None:
        raise LocalIOError(f"another command has item {item.id} right now", detail="busy", hint="run it again")
    with claim, claim.open() as payload:
        return payload.read(MESSAGE_TEXT_MAX).decode(errors="replace")


@click.command(
    "save", cls=Command, example="zkc inbox save 3f9a\nzkc inbox save 3f9a -o downloads/",
    help="Write an item to the current folder, or to PATH; it stays in the inbox.",
    short_help="Write an item to a file; it stays.",
)
@click.argument("id", shell_complete=offers("items"))
@click.option("-o", "output", metavar="PATH|DIR", shell_complete=offers("files"), help="Write it there.")
@click.option(
    "--conflict", type=word(*CONFLICTS), metavar="skip|overwrite|rename", default="rename",
    help="What to do where such a file exists [rename].",
)
@pass_invocation
def _save(call: Invocation, *, id: str, output: str | None, conflict: Any) -> None:
    """``inbox`` with ``path``, where it was saved; null where it was skipped."""
    from zkc.rules.names import escape

    if output in {"", "-"}:
        raise UsageError("inbox save: -o takes a file or a folder", hint="zkc recv -o - writes to standard output")
    with _opened(call) as inbox:
        item = inbox.find(id)
        saved = save(item, output, conflict)
    if isinstance(saved, Saved):
        lines = "\n".join(escape(str(path)) for path in saved.lines)
        call.out.item("inbox", item_fields(item, saved.path, saved.together), lines)
    else:
        what = escape(str(saved)) if item.kind != "tree" else f"a part of {escape(item.name)}"
        call.out.notice(f"{what} exists: skipped")
        call.out.event("inbox", item_fields(item, None))


@click.command("rm", cls=Command, example="zkc inbox rm 3f9a 91c0", help="Remove items from the inbox.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=offers("items"))
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
    "inbox", {"list": _list, "show": _show, "save": _save, "rm": _rm}, default="list",
    example="zkc inbox\nzkc inbox show 3f9a\nzkc inbox save 3f9a -o downloads/\nzkc inbox rm 3f9a",
    help="What has arrived. Without a subcommand: list.", short_help="What has arrived: list, show, save, remove.",
)
