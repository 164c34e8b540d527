"""What a running program decides goes into its audit log, several decisions in one transaction; and the way back.

A log that cannot be written stops nobody: notes wait in memory, `WAITING_MAX` of them, and are written once it can be;
how many came beyond that is noted then. What a peer can cause as often as it likes, a refusal, is noted one by one
`REPEATS_MAX` times a minute, and then counted: nobody pushes old entries out of the log by being refused.
"""

from __future__ import annotations

import select
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from msgspec.structs import replace

from zkc.crypto.audit import Entry, Note, clean
from zkc.env import Clock
from zkc.errors import ZkcError

BATCH_SECONDS: Final = 0.1
"""How long a decision waits for others: a commit waits for the disk, and must not do so for every transfer."""
WAITING_MAX: Final = 20_000
"""Notes that wait for a log that cannot be written: some megabytes."""
REPEATS_MAX: Final = 16
REPEATS_SECONDS: Final = 60.0
_KINDS_MAX: Final = 4096
"""Kinds of refusals that are counted at once; before there are more, the minute ends early."""
PRUNE_SECONDS: Final = 60.0
PRUNE_STEP: Final = 1000
"""Entries that are removed at once; more go with the next ticks, so that no transfer waits for them."""


FOLLOW_SECONDS: Final = 0.25
"""How often one who follows a log asks whether something was added."""


class AuditLog(Protocol):
    """Where notes go: a coordinator's `zkc.stores.keydb.KeyDb`, a client's `zkc.stores.audit_file.AuditFile`.

    Every method raises `LocalIOError`."""

    def audit(self, notes: Sequence[Note]) -> object:
        """Append them, in one transaction."""

    def prune_audit(self, before: float, at_most: int, step: int) -> int:
        """Remove at most ``step`` entries: those of before ``before``, and all but the newest ``at_most``; how many."""


class AuditSource(Protocol):
    """The same, for who reads it."""

    def version(self) -> int:
        """A number that grows whenever something is written."""

    def audit_entries(self, after: int) -> list[Entry]:
        """The first entries behind the number ``after``. `IdentityError` (``audit-chain``)."""


def entries_of(log: AuditSource, *, follow: bool) -> Iterator[Entry]:
    """The whole log, oldest first; with ``follow`` also what is added, without an end.

    `IdentityError` (``audit-chain``) at an entry that is not what was written.
    """
    last = 0
    while True:
        version = log.version()
        while page := log.audit_entries(last):
            yield from page
            last = page[-1].seq
        if not follow:
            return
        while log.version() == version:
            select.select((), (), (), FOLLOW_SECONDS)


class Notes(Protocol):
    """Where decisions are noted."""

    def note(
        self, event: str, sender: str = "", recipient: str = "", *, code: int = 0, detail: str = "", rule: str = ""
    ) -> None:
        """One decision (``code`` 0: granted). Never fails.

        Names of clients and our own words only: no content, no name of a file, no text that a peer chose.
        """


class AuditWriter:
    """The notes that are not written yet. `note` belongs to one thread; `flush` and `tick` may run in another.

    ``later`` calls something in `BATCH_SECONDS`; ``bounds``: for how many seconds entries stay, and how many.
    """

    def __init__(
        self, log: AuditLog, clock: Clock, later: Callable[[Callable[[], None]], object],
        bounds: Callable[[], tuple[float, int]],
    ) -> None:
        self._log = log
        self._clock = clock
        self._later = later
        self._bounds = bounds
        self._waiting: list[Note] = []
        self._lost = 0
        self.counts: Final[Counter[tuple[str, int]]] = Counter()
        """How many decisions there were since the start, by event and code, also where they were only counted."""
        self.dropped = 0
        """How many could not be kept until they could be written."""
        self._due = False
        """Whether they are about to be written."""
        self._refusals: dict[Note, int] = {}
        """How often each came this minute."""
        self._minute_ends = 0.0
        self._prune_at = 0.0
        self._mutex = threading.RLock()
        """Held for microseconds."""
        self._writing = threading.Lock()

    def note(
        self, event: str, sender: str = "", recipient: str = "", *, code: int = 0, detail: str = "", rule: str = ""
    ) -> None:
        """`Notes.note`, written within `BATCH_SECONDS`; it never waits."""
        noted = clean(self._clock.wall(), event, sender, recipient, code=code, detail=detail, rule=rule)
        with self._mutex:
            self.counts[event, code] += 1
            if not code or self._passes(replace(noted, at=0)):
                self._append(noted)
            if self._due or not self._waiting:
                return
            self._due = True
        self._later(self._on_timer)

    @property
    def waiting(self) -> int:
        """How many are not written yet."""
        return len(self._waiting)

    def flush(self) -> None:
        """Writes what waits. `LocalIOError`: it waits on."""
        with self._writing:
            with self._mutex:
                self._due = False
                batch, lost = self._waiting[:], self._lost
            if not batch:
                return
            self._log.audit([*batch, Note(self._now(), "entries-lost", times=lost)] if lost else batch)
            with self._mutex:
                del self._waiting[: len(batch)]
                self._lost -= lost

    def tick(self) -> None:
        """Writes what could not be written, and removes entries that are too old, or too many. `LocalIOError`."""
        now = self._clock.monotonic()
        if now >= self._minute_ends:
            self._end_minute()
        if not self._due:
            self.flush()
        if now >= self._prune_at:
            kept, at_most = self._bounds()
            if self._log.prune_audit(self._clock.wall() - kept, at_most, PRUNE_STEP) < PRUNE_STEP:
                self._prune_at = now + PRUNE_SECONDS

    def close(self) -> None:
        """The last ones, at an orderly end. `LocalIOError`: they are lost."""
        self._end_minute()
        self.flush()

    def _append(self, note: Note) -> None:
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append(note)
        else:
            self._lost += note.times
            self.dropped += note.times

    def _passes(self, refusal: Note) -> bool:
        """Whether it is noted by itself."""
        now = self._clock.monotonic()
        if now >= self._minute_ends or len(self._refusals) >= _KINDS_MAX:
            self._end_minute()
            self._minute_ends = now + REPEATS_SECONDS
        count = self._refusals[refusal] = self._refusals.get(refusal, 0) + 1
        return count <= REPEATS_MAX

    def _end_minute(self) -> None:
        """What was only counted is noted in one."""
        with self._mutex:
            refusals, self._refusals = self._refusals, {}
            for refusal, count in refusals.items():
                if count > REPEATS_MAX:
                    self._append(replace(refusal, at=self._now(), times=count - REPEATS_MAX))

    def _on_timer(self) -> None:
        try:
            self.flush()
        except ZkcError:
            return  # the tick tries again, and tells of it

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)
