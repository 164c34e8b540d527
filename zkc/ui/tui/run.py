"""``zkc ui`` at work: the face over its home, until a person quits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from zkc.client.happenings import (
    Answered,
    Arrived,
    Asked,
    Begun,
    Delivered,
    Ended,
    Happening,
    KeyNews,
    LinkNews,
    Lost,
    OutboxNews,
    OwnPerson,
    PeerNews,
    Progress,
    Started,
)
from zkc.config import ClientConfig
from zkc.env import Clock
from zkc.errors import DaemonError
from zkc.ui.tui.app import LISTS, Change, Face
from zkc.ui.tui.desk import Desk

_AWAY_SECONDS: Final = 1.0
"""Between two looks for a daemon while none runs."""
_EVERYTHING: Final = frozenset({*LISTS, "status"})
_MEANS: Final[dict[type, frozenset[str]]] = {
    Arrived: frozenset({"inbox"}), Asked: frozenset({"pending"}), Answered: frozenset({"pending"}),
    Delivered: frozenset({"sent"}), OutboxNews: frozenset({"queue"}), KeyNews: frozenset({"peers", "inbox"}),
    PeerNews: frozenset({"peers"}), OwnPerson: frozenset({"status"}), LinkNews: frozenset({"status", "peers"}),
    Started: _EVERYTHING, Lost: _EVERYTHING,
}
"""Which lists an event changes."""


def run(folder: str | None, config: ClientConfig, clock: Clock) -> None:
    """Returns when the person quits. Errors of the home come before the screen is taken, a defect after it."""
    with contextlib.closing(Desk(folder, config, clock)) as desk:
        face = Face(desk, lambda: changes(desk, clock), clock.monotonic)
        face.run()
        if face.defect is not None:
            raise face.defect


def changes(desk: Desk, clock: Clock) -> Iterator[Change]:
    """What to read anew, for as long as the desk is open. A daemon that is away is looked for."""
    was_there = True
    while not desk.closed:
        since = clock.wall()
        try:
            for happened in desk.events():
                if not was_there:
                    was_there = True
                    yield Change(_EVERYTHING)
                # What is remembered from before is in the lists already.
                lists = _MEANS.get(type(happened.what), frozenset()) if happened.at >= since else frozenset()
                flow = _flow(happened.what)
                if lists or flow is not None:
                    yield Change(lists, flow)
        except DaemonError:
            pass
        if was_there and not desk.closed:
            was_there = False
            yield Change(_EVERYTHING, gone=True)
        desk.pause(_AWAY_SECONDS)


def _flow(what: Happening) -> Begun | Progress | Ended | None:
    return what if isinstance(what, Begun | Progress | Ended) else None
