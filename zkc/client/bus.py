"""The daemon's events: published once, remembered for a while, heard by hooks, and followed by commands and programs.

A follower has no queue of its own: it reads what is remembered, from the number at which it is. One that is too slow
finds that some are gone, and is told how many; nothing waits for it, and nothing grows. How far transfers are is asked
only while somebody follows, and each follower has at most the newest of each transfer.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from zkc.client.happenings import Begun, Ended, Happened, Happening, Lost, OwnPerson, PeerNews, Progress
from zkc.constants import EVENTS_KEPT_MAX, FOLLOWERS_MAX
from zkc.env import Clock
from zkc.errors import DaemonError
from zkc.ids import PersonState
from zkc.wire.messages import Peer

PROGRESS_SECONDS: Final = 0.5
"""Between two looks at how far transfers are."""
_PEERS_KEPT: Final = 4096
"""Peers of which it is remembered whether they were there."""
HowFar = Callable[[], int | None]
"""Bytes of a transfer so far; None: not known now."""


@dataclass
class _UnderWay:
    begun: Begun
    how_far: HowFar | None
    last: int | None = None


class _Follower:
    """One that waits, and the newest progress that it has not been told."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.progress: dict[str, Happened] = {}


class EventBus:
    """Belongs to the loop that has called `start`; `publish` may be called in any thread."""

    def __init__(self, clock: Clock, kept: int = EVENTS_KEPT_MAX) -> None:
        self._clock = clock
        self._kept: deque[Happened] = deque(maxlen=kept)
        self._next = 1
        """The number of the next one."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._hearers: list[Callable[[Happening], None]] = []
        self._followers: set[_Follower] = set()
        self._under_way: dict[str, _UnderWay] = {}
        self._measuring: asyncio.Task[None] | None = None
        self._peers: OrderedDict[str, tuple[bool, PersonState]] = OrderedDict()
        self._person: PersonState | None = None

    def start(self) -> None:
        """From now on what other threads publish is taken by the running loop."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()

    def close(self) -> None:
        """Nothing is measured any more."""
        if self._measuring is not None:
            self._measuring.cancel()

    # --- who publishes ----------------------------------------------------------------------------------------------

    def publish(self, what: Happening) -> None:
        """It has happened. Never waits, never fails."""
        self._in_loop(lambda: self._add(what))

    def begin(self, begun: Begun, how_far: HowFar | None = None) -> None:
        """``begun`` has happened; ``how_far`` is asked now and then, until its `Ended`, while somebody follows."""

        def add() -> None:
            self._under_way[begun.transfer] = _UnderWay(begun, how_far)
            self._add(begun)
            self._measure()

        self._in_loop(add)

    def is_under_way(self, transfer: str) -> bool:
        """Whether it has begun, and not ended. In the loop."""
        return transfer in self._under_way

    def saw(self, peers: Iterable[Peer]) -> None:
        """The coordinator has said this of ``peers``. In the loop."""
        for peer in peers:
            known, now = self._peers.pop(peer.name, None), (peer.online, peer.person)
            self._peers[peer.name] = now
            if known is not None and known != now:
                self._add(PeerNews(peer.name, *now))
        while len(self._peers) > _PEERS_KEPT:
            self._peers.popitem(last=False)

    def person(self, state: PersonState) -> None:
        """What is known of the person here. In the loop."""
        if state != self._person:
            self._person = state
            self._add(OwnPerson(state))

    # --- who hears --------------------------------------------------------------------------------------------------

    def hear(self, hearer: Callable[[Happening], None]) -> None:
        """``hearer`` is called in the loop with all that is published from now on, but for progress; it never waits."""
        self._hearers.append(hearer)

    async def events(self, *, follow: bool) -> AsyncGenerator[Happened, None]:
        """What is remembered, oldest first; with ``follow`` all that comes after it, too. `DaemonError` (``too-many``).
        """
        if not follow:
            for each in list(self._kept):
                yield each
            return
        with self._following() as follower:
            at = self._next - len(self._kept)
            while True:
                follower.news.clear()
                while at < self._next:
                    if gone := max(self._next - len(self._kept) - at, 0):
                        at += gone
                        yield Happened(0, self._clock.wall(), Lost(gone))
                        continue
                    happened = self._kept[at - self._next]
                    at += 1
                    yield happened
                if follower.progress:
                    yield follower.progress.pop(next(iter(follower.progress)))
                else:
                    await follower.news.wait()

    @property
    def followed(self) -> bool:
        return bool(self._followers)

    @contextmanager
    def _following(self) -> Iterator[_Follower]:
        if len(self._followers) >= FOLLOWERS_MAX:
            raise DaemonError(
                f"{FOLLOWERS_MAX} processes follow the events here already", detail="too-many", hint="end one of them"
            )
        follower = _Follower()
        self._followers.add(follower)
        self._measure()
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _in_loop(self, do: Callable[[], None]) -> None:
        if self._loop is None or threading.get_ident() == self._thread:
            do()
        else:
            with suppress(RuntimeError):  # the loop has ended, and with it whoever would hear
                self._loop.call_soon_threadsafe(do)

    def _add(self, what: Happening) -> None:
        if isinstance(what, Progress):
            self._tell_progress(what)
            return
        if isinstance(what, Ended):
            self._under_way.pop(what.transfer, None)
            for follower in self._followers:
                follower.progress.pop(what.transfer, None)
        self._kept.append(Happened(self._next, self._clock.wall(), what))
        self._next += 1
        for hearer in self._hearers:
            hearer(what)
        for follower in self._followers:
            follower.news.set()

    def _tell_progress(self, what: Progress) -> None:
        if what.transfer not in self._under_way:
            return  # it has ended meanwhile
        happened = Happened(0, self._clock.wall(), what)
        for follower in self._followers:
            follower.progress[what.transfer] = happened
            follower.news.set()

    def _measure(self) -> None:
        if self._followers and self._under_way and (self._measuring is None or self._measuring.done()):
            self._measuring = asyncio.create_task(self._keep_measuring())

    async def _keep_measuring(self) -> None:
        while self._followers and self._under_way:
            await asyncio.sleep(PROGRESS_SECONDS)
            for transfer, each in list(self._under_way.items()):
                done = None if each.how_far is None else each.how_far()
                if done is not None and done != each.last:
                    each.last = done
                    self._tell_progress(Progress(transfer, done, each.begun.total))
