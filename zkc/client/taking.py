"""Taking items out of the inbox: which one is wanted, and waiting for it. The same for ``zkc recv`` and the Python API.

Imports neither asyncio nor zmq: who takes needs no daemon and no link.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from zkc.env import Clock
from zkc.errors import NobodyThere
from zkc.stores.inbox import Claim, Inbox
from zkc.stores.items import Item

PAUSE_SECONDS: Final = 0.05
_LOOK_AGAIN: Final = 20
"""Pauses after which a waiter looks even where the inbox has not changed: another reader may have let go."""


@dataclass(frozen=True)
class Wish:
    """Which items are wanted; None: any."""

    sender: str | None = None
    name: str | None = None
    """A glob."""
    app: str | None = None
    """The part behind the slash of the registration that it came to."""
    transfer: str | None = None
    """The one delivery that somebody has asked for, and so waits for."""


def matches(item: Item, wish: Wish) -> bool:
    return (
        (wish.sender is None or item.sender == wish.sender)
        and (wish.name is None or fnmatchcase(item.name, wish.name))
        and (wish.transfer is None or item.transfer == wish.transfer)
        and (wish.app is None or item.app.partition("/")[2] == wish.app)
    )


def take(
    inbox: Inbox, wish: Wish, wait: float, *, clock: Clock, pause: Callable[[float], None],
    but: Collection[str] = (),
) -> Claim:
    """A claim on the oldest item that matches ``wish``, whose id is not one of ``but``, and that nobody else has, or
    waits for as the one delivery that he wants.

    `NobodyThere` (``empty``) after ``wait`` seconds without one. ``pause`` sleeps so many seconds, and may raise.
    """

    def wanted(item: Item) -> bool:
        return (
            item.id not in but and matches(item, wish)
            and (wish.transfer is not None or not inbox.wanted.has(item.sender_fp, item.tid))
        )

    end = clock.monotonic() + wait
    while True:
        version = inbox.version()
        claim = inbox.take_first(wanted)
        if claim is not None:
            return claim
        for _ in range(_LOOK_AGAIN):
            left = end - clock.monotonic()
            if left <= 0:
                raise NobodyThere(
                    "nothing that matches is in the inbox", detail="empty",
                    hint="try it later, or with a longer wait",
                )
            pause(min(PAUSE_SECONDS, left))
            if inbox.version() != version:
                break
