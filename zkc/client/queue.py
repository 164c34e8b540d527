"""The daemon's deliveries of jobs from the outbox: each is tried until the recipient has it, or nothing can come of it.

Who is not there is looked for every few seconds; what else may pass is tried again later and later. Delivered once:
every try of a job has the same key (``--id``), so a repeat finds what an earlier one did.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import structlog
from msgspec.structs import replace

from zkc.client.bus import EventBus
from zkc.client.call import Call
from zkc.client.events import Delivery, Event, Options, Pending, Progress
from zkc.client.handed import BusReports, Grants, ThreadGranter
from zkc.client.happenings import OutboxNews
from zkc.client.sending import Sending
from zkc.client.sources import AnySource, source_of
from zkc.client.spool import SpoolSource
from zkc.config import ClientConfig
from zkc.crypto.primitives import Secret
from zkc.env import Clock, Entropy
from zkc.errors import (
    CoordinatorUnreachable,
    DaemonError,
    InternalError,
    Interrupted,
    NobodyThere,
    NotAuthorised,
    PolicyRefused,
    RecipientOffline,
    TimedOut,
    ZkcError,
)
from zkc.stores.home import Home
from zkc.stores.noting import Notes
from zkc.stores.outbox import Job, JobState, Outbox
from zkc.wire.messages import Manifest, Peer

AT_ONCE: Final = 8
"""Deliveries whose bytes may flow; those that wait for a person's answer are not among them."""
PER_RECIPIENT: Final = 4
"""Of them all, so many to one recipient: who answers slowly keeps nobody else waiting."""
_UNDER_WAY_MAX: Final = 64
_LOOK_SECONDS: Final = 3.0
_AGAIN_FIRST: Final = 5.0
_AGAIN_MAX: Final = 600.0
_UNANSWERED_SECONDS: Final = 3600.0
"""A person who has let a question pass is not asked the same again before that."""
_ABSENT: Final = frozenset({RecipientOffline.code, NobodyThere.code})
_PASSES: Final = (
    RecipientOffline, NobodyThere, CoordinatorUnreachable, DaemonError, NotAuthorised, TimedOut, Interrupted,
)
"""What another time may be otherwise; of 25 only a limit, and of 33 only what the recipient's disk says."""
State = Literal["waiting", "sending", "failed", "delivered", "cancelled"]
Seen = Callable[[str], Awaitable[Peer]]


@dataclass
class _Running:
    """A job that is tried now."""

    recipient: str
    call: Call
    ended: asyncio.Future[int | None]
    pending: bool = False
    """A person is asked; written by its thread."""


class Queue:
    """All jobs of one home. Belongs to the daemon's loop; ``seen`` asks the coordinator who is there."""

    def __init__(
        self, home: Home, config: Callable[[], ClientConfig], grant: Grants, seen: Seen, clock: Clock,
        entropy: Entropy, notes: Notes, bus: EventBus,
    ) -> None:
        self._home = home
        self._outbox = Outbox(home)
        self._config = config
        self._grant = grant
        self._seen = seen
        self._clock = clock
        self._entropy = entropy
        self._notes = notes
        self._bus = bus
        self._known: dict[str, Job] | None = None
        """As they were told last; None: before the first look, which finds nothing that is new. Of a job that is being
        sent its thread tells."""
        self._log = structlog.get_logger("zkc.queue")
        self._running: dict[str, _Running] = {}
        self._sent: dict[str, int] = {}
        """Bytes of what is under way, by job; each written by its thread."""
        self._threads = ThreadPoolExecutor(_UNDER_WAY_MAX, thread_name_prefix="zkc-queue")
        self._poked = asyncio.Event()
        self.states: Counter[JobState] = Counter()
        """How many jobs there were of each at the last look."""
        self.delivered: Final[Counter[str]] = Counter()
        """Deliveries and bytes since the start."""

    def poke(self) -> None:
        """A command has changed something: look now."""
        self._poked.set()

    def sent(self) -> dict[str, int]:
        """How far each job is that is being sent."""
        return {id: self._sent.get(id, 0) for id in self._running}

    async def run(self) -> None:
        """For as long as the daemon lives."""
        await asyncio.to_thread(self._outbox.tidy)
        for id in self._outbox.damaged():
            self._log.error("job-damaged", job=id)
        while True:
            self._poked.clear()
            try:
                await self._look()
            except ZkcError as error:
                self._log.error("outbox-unreadable", error=str(error))
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._poked.wait()
            except TimeoutError:
                pass

    async def close(self) -> None:
        """What is under way is told to end; it goes on at the next start."""
        for running in self._running.values():
            running.call.end()
        if self._running:
            await asyncio.wait([running.ended for running in self._running.values()])
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _look(self) -> None:
        running = set(self._running)
        jobs = await asyncio.to_thread(self._outbox.jobs)
        self.states = Counter(job.state for job in jobs)
        there = {job.id for job in jobs}
        self._compare(jobs, running | set(self._running))
        now = self._clock.wall()
        expired = {job.id for job in jobs if job.expires <= now}
        for id, each in self._running.items():
            if id not in there or (each.pending and id in expired):
                each.call.end()  # cancelled, or nobody has answered in time; what flows may arrive
        waiting = [job for job in jobs if job.state == "waiting" and job.id not in self._running]
        for job in waiting:
            if job.expires <= now:
                await self._fail(job, TimedOut("it was not delivered before it expired", detail="expired"))
        absent = [job for job in waiting if job.code in _ABSENT and job.next > now]
        names = sorted({job.recipient for job in absent})
        seen = dict(zip(names, await asyncio.gather(*map(self._look_for, names)), strict=True))
        for job in waiting:
            due = job.next <= now or (job in absent and has_come(job, seen[job.recipient]))
            if due and job.expires > now and self._has_place(job.recipient):
                self._begin(job)

    def _has_place(self, recipient: str) -> bool:
        running = self._running.values()
        return (
            len(running) < _UNDER_WAY_MAX and sum(not each.pending for each in running) < AT_ONCE
            and sum(each.recipient == recipient for each in running) < PER_RECIPIENT
        )

    def _compare(self, jobs: list[Job], running: set[str]) -> None:
        """What commands have changed."""
        found = {job.id: job for job in jobs}
        if self._known is None:
            self._known = found
        for job in jobs:
            if job.id not in running:
                self._tell(job, job.state)
        for id in [id for id in self._known if id not in found and id not in running]:
            self._tell(self._known[id], "cancelled")

    def _tell(self, job: Job, state: State) -> None:
        """The job is now so, if that is news. Any thread."""
        known = self._known
        if known is None or (state == job.state and known.get(job.id) == job):
            return
        if state == job.state:
            known[job.id] = job
        elif known.pop(job.id, None) is None:
            return
        self._bus.publish(OutboxNews(
            job.id, state, job.recipient, job.name, job.bytes, job.tries, job.next, job.expires, job.code, job.detail,
            job.why,
        ))

    async def _look_for(self, name: str) -> Peer | None:
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                return await self._seen(name)
        except (ZkcError, TimeoutError):
            return None

    def _begin(self, job: Job) -> None:
        loop, call = asyncio.get_running_loop(), Call()
        granter = ThreadGranter(self._grant, loop, call)
        ended = loop.run_in_executor(self._threads, self._deliver, job, call, granter)
        self._running[job.id] = _Running(job.recipient, call, ended)
        ended.add_done_callback(lambda ended: self._ended(job.id, ended))

    def _ended(self, id: str, ended: asyncio.Future[int | None]) -> None:
        self._running.pop(id, None)
        self._sent.pop(id, None)
        error = None if ended.cancelled() else ended.exception()
        if error is not None:
            self._log.error("defect", job=id, exc_info=error)
        elif not ended.cancelled() and (size := ended.result()) is not None:
            self.delivered["deliveries"] += 1
            self.delivered["bytes"] += size
        self._poked.set()

    # --- in a thread of its own -------------------------------------------------------------------------------------

    def _deliver(self, job: Job, call: Call, granter: ThreadGranter) -> int | None:
        """How many bytes were delivered; None: it was not."""
        sending = self._outbox.change(job.id, lambda each: replace(each, state="sending", tries=each.tries + 1))
        if sending is None:
            return None
        self._tell(sending, sending.state)
        try:
            size = self._send(job, call, granter)
        except ZkcError as error:
            self._after(job, error)
        except BaseException:
            self._outbox.change(job.id, lambda each: replace(each, state="failed", code=1, why="a defect: see the log"))
            raise
        else:
            self._outbox.remove(job.id)
            self._tell(sending, "delivered")
            self._notes.note("outbox", recipient=job.recipient, detail="delivered")
            self._log.info("delivered", job=job.id, recipient=job.recipient, tries=job.tries + 1)
            return size
        return None

    def _send(self, job: Job, call: Call, granter: ThreadGranter) -> int:
        options = Options(
            key_source=job.key_source, cipher=job.cipher, key=job.key or f"outbox {job.id}", bwlimit=job.bwlimit,
            compress=job.compress, require=job.require,
        )
        source, manifest = self._source(job)

        def heard(event: Event) -> None:
            if isinstance(event, Progress):
                self._sent[job.id] = event.bytes
            elif (running := self._running.get(job.id)) is not None:
                running.pending = isinstance(event, Pending)

        try:
            with call.bell() as bell:
                done = Sending(
                    self._home, self._config(), granter, job.recipient, source, manifest, options, clock=self._clock,
                    entropy=self._entropy, bell=bell, on_event=heard, reports=BusReports(self._bus),
                ).run()
        finally:
            source.close()
        if not isinstance(done, Delivery):
            raise InternalError("a delivery ended as a dry run")
        return done.bytes

    def _source(self, job: Job) -> tuple[AnySource, Manifest]:
        if job.spool is None:
            return source_of([Path(path) for path in job.paths], job.name, job.note, exclude=job.exclude)
        spool = job.spool
        manifest = Manifest(spool.kind, job.name, job.note, job.bytes, spool.mode, spool.mtime_ns)
        return SpoolSource(self._outbox.data(job), Secret(spool.key)), manifest

    def _after(self, job: Job, error: ZkcError) -> None:
        if not may_pass(error):
            self._set(job, error, state="failed", next=0.0)
            self._notes.note("outbox", recipient=job.recipient, code=error.code, detail=error.detail)
            self._log.warning(
                "not-delivered", job=job.id, recipient=job.recipient, code=error.code, detail=error.detail,
                error=error.message,
            )
            return
        pause = min(_AGAIN_FIRST * 2 ** min(job.tries, 16), _AGAIN_MAX)
        if error.detail == "unanswered":
            pause = _UNANSWERED_SECONDS
        self._set(job, error, state="waiting", next=self._clock.wall() + self._entropy.jitter(pause / 2, pause))
        self._log.info("later", job=job.id, recipient=job.recipient, code=error.code, detail=error.detail)

    def _set(self, job: Job, error: ZkcError, **what: object) -> None:
        told = {"code": error.code, "detail": error.detail, "why": error.message, **what}
        changed = self._outbox.change(job.id, lambda each: replace(each, **told))
        if changed is not None:
            self._tell(changed, changed.state)

    async def _fail(self, job: Job, error: ZkcError) -> None:
        await asyncio.to_thread(self._set, job, error, state="failed", next=0.0)
        self._notes.note("outbox", recipient=job.recipient, code=error.code, detail=error.detail)
        self._log.warning("not-delivered", job=job.id, recipient=job.recipient, code=error.code, detail=error.detail)


def may_pass(error: ZkcError) -> bool:
    """Whether another try may end otherwise, without anybody doing something about the job."""
    if isinstance(error, PolicyRefused):
        return error.detail in ("limit", "rate", "no-relay")
    return isinstance(error, _PASSES) or error.detail == "no-space"


def has_come(job: Job, peer: Peer | None) -> bool:
    """Whether whom the last try did not find is there now: the recipient, or its person."""
    there = peer is not None and peer.online
    return there and (job.code != NobodyThere.code or (peer is not None and peer.person == "present"))
