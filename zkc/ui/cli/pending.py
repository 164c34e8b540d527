"""Transfers that wait for a person, as commands list and decide them: the daemon holds them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from zkc.errors import DaemonError
from zkc.net.local_frames import ANSWER_SECONDS, NotRunning
from zkc.ui.cli.output import rfc3339

if TYPE_CHECKING:
    from zkc.client.control import PendingItem
    from zkc.stores.home import Home
    from zkc.ui.cli.options import Invocation

_LOOK_SECONDS = 3.0
"""For a daemon's answer, which takes milliseconds: one that is stopped keeps nobody from what has arrived."""
_DECIDE_SECONDS = 3 * ANSWER_SECONDS
"""The daemon looks at the PIN, makes room, and tells the coordinator before it answers."""


def pending_items(call: Invocation, home: Home) -> list[PendingItem]:
    """What waits, oldest first; nothing where no daemon runs: without one nothing can wait."""
    if not os.path.lexists(home.socket_path()):
        return []
    from zkc.client import control
    from zkc.net.local_client import LocalClient

    client: LocalClient[Any] = LocalClient(home.socket_path(), control.ControlReply)
    try:
        return list(client.call(control.AskPending(), within=_LOOK_SECONDS).items)
    except NotRunning:
        return []
    except DaemonError as error:
        call.out.notice(f"what waits for a person is not known: {error.message}")
        return []


def pending_fields(item: PendingItem) -> dict[str, object]:
    """The object of one, with the keys of any other item of the inbox."""
    return {
        "id": item.id, "state": "pending", "from": item.sender, "name": item.name, "bytes": item.size, "digest": None,
        "note": item.note, "key_source": item.key_source, "received": rfc3339(item.since), "path": None,
        "app": item.app or None, "kind": None, "transfer": item.id, "verified": item.verified, "require": item.require,
        "expires": rfc3339(item.until), "asked_by": item.asked_by or None,
        "asker_fingerprint": item.asker.hex() or None, "asker_pinned": item.asker_pinned,
    }


def decide(call: Invocation, id: str, *, accept: bool, reason: str = "", pin: str = "") -> None:
    """The person's answer; told as ``accepted`` or ``refused``, with the item's keys. `DaemonError`: no daemon."""
    from zkc.client import control
    from zkc.net.local_client import LocalClient
    from zkc.rules.names import escape
    from zkc.ui.cli.homes import client_config, client_home

    home = client_home(call)
    client_config(call, home)
    client: LocalClient[Any] = LocalClient(home.socket_path(), control.ControlReply)
    item = client.call(control.AskDecision(id, accept, reason, pin), within=_DECIDE_SECONDS).item
    call.out.event("accepted" if accept else "refused", pending_fields(item))
    if not call.out.json:
        what = "a transfer" if item.name is None else escape(item.name)
        by = f", asked by {escape(item.asked_by)}" if item.asked_by else ""
        call.out.notice(f"{'accepted' if accept else 'refused'} {what} from {item.sender}{by}")
