"""What a home keeps for a time goes when that is over: at a daemon's start, and once a day while it stays up."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from zkc.env import Clock
from zkc.errors import ZkcError
from zkc.stores import under_way
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox

EVERY_SECONDS: Final = 86400.0
LOOK_SECONDS: Final = 600.0
"""How often the date is looked at: a machine that sleeps stops every other clock."""


class Housekeeping:
    """Partial items, receipts of deliveries that are done, deliveries that were never finished, of one home."""

    def __init__(self, home: Home, inbox: Inbox, clock: Clock) -> None:
        self._home = home
        self._inbox = inbox
        self._clock = clock
        self._last = 0.0
        """Date of the last one."""
        self._log = structlog.get_logger("zkc.daemon")

    def sweep(self) -> None:
        """Now. `LocalIOError`."""
        self._last = self._clock.wall()
        self._inbox.recover(self._last)
        under_way.sweep(self._home, self._clock)

    async def run(self) -> None:
        """Once a day, in a thread, until cancelled. What goes wrong is logged, and tried again the next day."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            # A date that was set back is a new beginning.
            if 0 <= self._clock.wall() - self._last < EVERY_SECONDS:
                continue
            try:
                await asyncio.to_thread(self.sweep)
            except ZkcError as error:
                self._log.warning("not-swept", reason=error.reason, detail=error.detail, error=str(error))
