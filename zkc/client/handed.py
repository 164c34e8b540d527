"""The daemon's half of `zkc send`: what a command has handed over (`zkc.client.small`) is sent from here."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from zkc.client.bus import EventBus
from zkc.client.call import Call
from zkc.client.control import Job
from zkc.client.events import Delivery, Progress, WouldAccept
from zkc.client.grants import Grant, Listen, OnPending, Wanted
from zkc.client.happenings import Begun, Delivered, Ended
from zkc.client.reporting import HowFar, Reports
from zkc.client.sending import Sending
from zkc.client.small import Notice, Told, Waiting
from zkc.client.sources import BytesSource, FileSource, handed_file, small_source
from zkc.config import load
from zkc.constants import CONTROL_CONNECTIONS_MAX, HANDED_FILES_MAX
from zkc.env import Clock, Entropy
from zkc.errors import DaemonError, Interrupted, PeerViolation
from zkc.net.local_frames import ALIVE_SECONDS
from zkc.stores.home import Home
from zkc.wire.messages import Endpoints, Manifest

PROGRESS_SECONDS: Final = 0.1
Grants = Callable[
    [Wanted, float | None, Callable[[str], Awaitable[Endpoints]], OnPending], Coroutine[Any, Any, Grant]
]
"""One transfer handshake, in the daemon's loop."""


class Handed:
    """Deliveries for commands, each in a thread of its own. Belongs to the running loop."""

    def __init__(self, home: Home, grant: Grants, clock: Clock, entropy: Entropy, bus: EventBus) -> None:
        self._home = home
        self._grant = grant
        self._bus = bus
        self._clock = clock
        self._entropy = entropy
        self.delivered: Final[Counter[str]] = Counter()
        """Deliveries and bytes since the start."""
        self._files = 0
        """Under way: each has a window of chunks in memory."""
        # As many as there may be commands: one that waits for its recipient keeps no other from its turn.
        self._threads = ThreadPoolExecutor(CONTROL_CONNECTIONS_MAX, thread_name_prefix="zkc-send")

    async def send(self, job: Job) -> AsyncGenerator[Told, None]:
        """The events of one delivery, the last one how it ended. Closed early, it is told to end, and nobody waits."""
        if job.file is not None and self._files >= HANDED_FILES_MAX:
            raise DaemonError("the daemon sends as many files as it can", detail="too-many-files")
        self._files += job.file is not None
        call, talk = Call(), _Talk(self._clock)
        running = asyncio.get_running_loop().run_in_executor(self._threads, self._run, job, call, talk)
        running.add_done_callback(lambda _: talk.over())
        if job.file is not None:
            running.add_done_callback(self._file_ended)
        try:
            async with contextlib.aclosing(talk.events()) as events:
                async for event in events:
                    yield event
            done = await running
            if isinstance(done, Delivery):
                self.delivered["deliveries"] += 1
                self.delivered["bytes"] += done.bytes
            yield done
        finally:
            call.end()
            talk.close()
            # Where nobody listens any more, whatever it ends with is nobody's.
            running.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    def _file_ended(self, _: object) -> None:
        self._files -= 1

    def close(self) -> None:
        """After the commands were let go: what still ends does so by itself, in bounded time."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, job: Job, call: Call, talk: _Talk) -> Delivery | WouldAccept:
        loaded = load("client", Path(job.config_file), job.variables)
        for notice in loaded.notices:
            talk.tell(Notice(notice))
        source, manifest = _source(job)
        granter = ThreadGranter(self._grant, talk.loop, call)
        with contextlib.closing(source), call.bell() as bell:
            return Sending(
                self._home, loaded.config, granter, job.recipient, source, manifest, job.options, clock=self._clock,
                entropy=self._entropy, bell=bell, on_event=talk.tell,
                reports=BusReports(self._bus),
            ).run()


def _source(job: Job) -> tuple[BytesSource | FileSource, Manifest]:
    if job.file is not None:
        return handed_file(job.file, job.name, job.note)
    if job.small is None:
        raise PeerViolation("malformed", "a job with nothing to send")
    return small_source(job.small, job.name, job.note)


class BusReports(Reports):
    """Of a delivery in a thread of the daemon."""

    def __init__(self, bus: EventBus) -> None:
        super().__init__()
        self._bus = bus

    def _begin(self, begun: Begun, how_far: HowFar) -> None:
        self._bus.begin(begun, how_far)

    def _tell(self, *what: Begun | Delivered | Ended) -> None:
        for each in what:
            self._bus.publish(each)


class ThreadGranter:
    """The daemon's own link, for a thread of it."""

    def __init__(self, grant: Grants, loop: asyncio.AbstractEventLoop, call: Call) -> None:
        self._make = grant
        self._loop = loop
        self._call = call

    def grant(self, wanted: Wanted, within: float | None, listen: Listen, on_pending: OnPending) -> Grant:
        async def bind(coordinator: str) -> Endpoints:
            return await asyncio.to_thread(listen, coordinator)

        # In this thread, not in the loop, is told what the command is told.
        steps: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        asked = asyncio.run_coroutine_threadsafe(
            self._make(wanted, within, bind, lambda: steps.put(on_pending)), self._loop
        )
        asked.add_done_callback(lambda _: steps.put(None))
        with self._call.ended_by(asked.cancel):
            try:
                while (tell := steps.get()) is not None:
                    tell()
                return asked.result()
            except CancelledError:
                raise Interrupted("the command that sent this has ended", detail="signal") from None


class _Talk:
    """What a thread tells a command, over the loop that serves it."""

    def __init__(self, clock: Clock) -> None:
        self.loop = asyncio.get_running_loop()
        self._clock = clock
        self._next_progress = 0.0
        self._told: asyncio.Queue[tuple[Told, Future[bool]] | None] = asyncio.Queue()
        self._closed = False

    def tell(self, event: Told) -> None:
        """Returns once ``event`` is on its way, so that no byte leaves before its grant was told; `Interrupted` where
        nobody listens any more. Of what is told with every chunk the command hears now and then."""
        if isinstance(event, Progress):
            now = self._clock.monotonic()
            if now < self._next_progress:
                return
            self._next_progress = now + PROGRESS_SECONDS
        taken: Future[bool] = Future()
        self.loop.call_soon_threadsafe(self._put, event, taken)
        if not taken.result():
            raise Interrupted("the command that sent this has ended", detail="signal")

    async def events(self) -> AsyncGenerator[Told, None]:
        """What is told, until `over`; `Waiting` now and then."""
        while True:
            item = None
            try:
                async with asyncio.timeout(ALIVE_SECONDS):
                    item = await self._told.get()
            except TimeoutError:
                yield Waiting()
                continue
            if item is None:
                return
            event, taken = item
            sent = False
            try:
                yield event
                sent = True
            finally:
                taken.set_result(sent)

    def over(self) -> None:
        """Nothing more is told."""
        self._told.put_nowait(None)

    def close(self) -> None:
        """Nobody listens any more."""
        self._closed = True
        with contextlib.suppress(asyncio.QueueEmpty):
            while True:
                item = self._told.get_nowait()
                if item is not None:
                    item[1].set_result(False)

    def _put(self, event: Told, taken: Future[bool]) -> None:
        if self._closed:
            taken.set_result(False)
        else:
            self._told.put_nowait((event, taken))
