"""The daemon's watch over the coordinator's key log: at each link, and once an hour, for each registration."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import structlog

from zkc.client.keylog import follow
from zkc.client.link import Link
from zkc.env import Clock
from zkc.errors import ZkcError
from zkc.logs import Repeats
from zkc.protocol.keylog import LogAlarm, LogState
from zkc.stores.keystore import KeyStore
from zkc.stores.noting import Notes

_EVERY_SECONDS: Final = 3600.0
_STALE_SECONDS: Final = 24 * 3600.0
"""A coordinator that serves, and does not show its log for so long, hides it."""


class LogWatch:
    """One task for each link, until it is closed."""

    def __init__(self, store: KeyStore, notes: Notes, clock: Clock) -> None:
        self._store = store
        self._notes = notes
        self._clock = clock
        self._log = structlog.get_logger("zkc.daemon")
        self._repeats = Repeats(clock.monotonic)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._followed: dict[str, float] = {}
        """Monotonic seconds: when the log was last followed to its end, or first asked for."""
        self.size = 0
        """Entries of the log when it was last read to its end."""

    def begin(self, link: Link) -> None:
        """There is a link (again): look now, and then every hour."""
        name = link.principal.name
        if name in self._tasks:
            self._tasks[name].cancel()
        self._followed.setdefault(name, self._clock.monotonic())
        self._tasks[name] = asyncio.create_task(self._watch(link))

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _watch(self, link: Link) -> None:
        while not link.ended.done():
            await self._look(link)
            await asyncio.sleep(_EVERY_SECONDS)

    async def _look(self, link: Link) -> None:
        name, now = link.principal.name, self._clock.monotonic()
        try:
            state = await self._follow(link)
        except LogAlarm as alarm:
            self.alarm(name, alarm)
        except ZkcError as error:
            if now - self._followed[name] > _STALE_SECONDS:
                self._alarm(name, "log-stale", f"the coordinator has not shown its key log for a day ({error})")
        else:
            self._followed[name] = now
            self.size = state.frontier.size
            self._log.debug("key-log-read", client=name, size=state.frontier.size)
            if state.foreign:
                self._alarm(
                    name, "log-own", f"the coordinator has given the name {name} to another key, whose card has the"
                    f" hash {state.foreign.hex()}: whoever contacts it for the first time may be deceived",
                )

    async def _follow(self, link: Link) -> LogState:
        principal = link.principal
        try:
            return await follow(link.request, self._store, principal)
        except LogAlarm:
            with contextlib.suppress(ZkcError):
                # Signed by an identity that the coordinator has since a moment ago?
                if await link.learn(principal):
                    return await follow(link.request, self._store, link.principal)
            raise

    def alarm(self, name: str, alarm: LogAlarm) -> None:
        """Whatever else comes of it: the log and the audit log say so."""
        self._alarm(name, alarm.detail, str(alarm))

    def _alarm(self, name: str, detail: str, what: str) -> None:
        self._repeats.tell(self._log, "error", "key-log-alarm", (name, detail), client=name, detail=detail, error=what)
        self._notes.note("key-log-alarm", name, code=LogAlarm.code, detail=detail)
