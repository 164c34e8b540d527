"""What a running coordinator decides goes into its audit log: several decisions in one transaction, soon after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zkc.crypto.audit import Note
from zkc.env import Clock
from zkc.errors import ZkcError
from zkc.stores.keydb import KeyDb

BATCH_SECONDS: Final = 0.1
"""How long a decision waits for others: a commit waits for the disk, and must not do so for every transfer."""
WAITING_MAX: Final = 20_000
"""Notes that wait for a database that cannot be written; what comes then is counted, and the count noted."""


class Audit:
    """The notes that are not written yet. Belongs to the event loop's thread.

    ``call_later`` (seconds, what) is the loop's.
    """

    def __init__(self, db: KeyDb, clock: Clock, call_later: Callable[[float, Callable[[], None]], object]) -> None:
        self._db = db
        self._clock = clock
        self._call_later = call_later
        self._waiting: list[Note] = []
        self._lost = 0
        self._due = False
        """Whether they are about to be written."""

    def note(
        self, event: str, sender: str = "", recipient: str = "", *, code: int = 0, detail: str = "", rule: str = ""
    ) -> None:
        """One decision (``code`` 0: granted), written within `BATCH_SECONDS`. Never fails, never waits.

        Names of clients and our own words only: no content, no name of a file, no text that a peer chose.
        """
        if len(self._waiting) >= WAITING_MAX:
            self._lost += 1
            return
        self._waiting.append(Note(self._now(), event, sender, recipient, code, detail, rule))
        if not self._due:
            self._due = True
            self._call_later(BATCH_SECONDS, self._on_timer)

    def flush(self) -> None:
        """Writes what waits. `LocalIOError`: it waits on."""
        lost = [Note(self._now(), "entries-lost", detail=str(self._lost))] if self._lost else []
        if self._waiting:
            self._db.audit([*self._waiting, *lost])
            self._waiting.clear()
            self._lost = 0

    def tick(self, _now: float) -> None:
        """Tries again what could not be written."""
        if not self._due:
            self.flush()

    def close(self) -> None:
        """The last ones, at an orderly end."""
        try:
            self.flush()
        finally:
            self._waiting.clear()

    def _on_timer(self) -> None:
        self._due = False
        try:
            self.flush()
        except ZkcError:
            return  # the tick tries again, and tells of it

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)
