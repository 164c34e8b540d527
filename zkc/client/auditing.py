"""What a daemon decides goes into the client's audit log, gathered, and written in a thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from zkc.config import ClientConfig
from zkc.env import Clock
from zkc.errors import ZkcError
from zkc.logs import Repeats
from zkc.stores.audit_file import AuditFile
from zkc.stores.noting import BATCH_SECONDS, AuditWriter

TICK_SECONDS: Final = 5.0


class DaemonAudit:
    """`zkc.stores.noting.Notes` of the daemon's loop."""

    def __init__(
        self, file: AuditFile, config: Callable[[], ClientConfig], clock: Clock, log: FilteringBoundLogger
    ) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._writer = AuditWriter(file, clock, self._soon, self._bounds)
        self._log = log
        self._repeats = Repeats(clock.monotonic)
        self.note: Final = self._writer.note

    async def run(self) -> None:
        """Until cancelled: what could not be written is tried again, what is old goes."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self._in_thread(self._writer.tick)

    async def close(self) -> None:
        """The last ones, at an orderly end."""
        await self._in_thread(self._writer.close)

    async def _in_thread(self, what: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(what)
        except ZkcError as error:
            self._repeats.tell(self._log, "warning", "audit-not-written", (error.detail,), error=str(error))

    def _soon(self, what: Callable[[], None]) -> None:
        """From any thread: the queue's note what they have delivered."""
        loop = self._loop
        with contextlib.suppress(RuntimeError):  # the loop has ended; `close` has written
            loop.call_soon_threadsafe(loop.call_later, BATCH_SECONDS, loop.run_in_executor, None, what)

    def _bounds(self) -> tuple[float, int]:
        section = self._config().audit
        return section.kept, section.entries
