"""The Python API: `Client` for asyncio programs, `SyncClient` for all others. Both are one logic.

::

    with zkc.SyncClient() as client:                       # or: async with zkc.Client() as client:
        delivery = client.send("bob", b"hello")            #         delivery = await client.send("bob", b"hello")
        with client.receive(wait=60) as item:              #         async with client.receive(wait=60) as item:
            data = item.read()                             #             data = await item.read()

A client uses the daemon of its home whenever one runs, and links for itself whenever none does. Receiving reads the
inbox, which a daemon fills. Every failure is a `zkc.errors.ZkcError` with the contract's code.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, TypeVar

from zkc.client.access import Access, open_access
from zkc.client.call import Call
from zkc.client.events import Delivery, Event, Options, WouldAccept
from zkc.client.following import Following
from zkc.client.happenings import Happened
from zkc.client.passphrase import passphrase
from zkc.client.reporting import DaemonReports
from zkc.client.sending import Sending
from zkc.client.sources import Payload, source_of
from zkc.client.taking import Wish, take
from zkc.client.walking import Skipped
from zkc.config import load
from zkc.env import SystemClock, SystemEntropy
from zkc.errors import DaemonError, InternalError, Interrupted, UsageError
from zkc.ids import KeySource
from zkc.net.local_client import Kept
from zkc.stores.home import Home
from zkc.stores.inbox import Claim, Inbox
from zkc.stores.items import Item
from zkc.stores.keystore import KeyStore
from zkc.stores.saving import Conflict, save_item
from zkc.wire.messages import Peer

T = TypeVar("T")
_THREADS: Final = 48
"""Transfers at once of one `Client`; more wait for their turn. Fewer than a recipient takes from one sender
(`TRANSFERS_PER_SENDER_MAX`): it lets go of one a moment after its sender has, and would refuse the next."""
_END_SECONDS: Final = 5.0
"""How long what was told to end may take for it: a sender tells its recipient. Then nobody waits any longer."""


class ReceivedItem:
    """An item of the inbox in the hands of this program: it leaves the inbox at the end of the ``with`` block,
    unless the block raises."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self.item: Final[Item] = claim.item

    def open(self) -> BinaryIO:
        """The payload from its first byte. `UsageError` (``folder``) for what was sent as files and folders."""
        if self.item.kind == "tree":
            raise UsageError(f"item {self.item.id} has files and folders", detail="folder", hint="save it")
        return self._claim.open()

    def save(self, destination: str | os.PathLike[str], conflict: Conflict = "rename") -> Path | None:
        """Write it to ``destination``, a folder as a folder; the path that it got, or None where it was skipped."""
        return save_item(self.item, Path(destination), conflict)

    def read(self) -> bytes:
        """The whole payload."""
        with self.open() as payload:
            return payload.read()


class SyncClient:
    """One home, for programs that block. Threads may share it."""

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        self._clock = SystemClock()
        self._entropy = SystemEntropy()
        self._home = Home.resolve("client", None if home is None else os.fspath(home)).prepare()
        self._config = load("client", self._home.config_file, os.environ).config
        self._store = KeyStore.open(self._home, passphrase=passphrase)
        self._inbox = Inbox.open(self._home)
        self._access: Access | None = None
        self._kept = Kept(self._clock)
        self._mutex = threading.Lock()
        self._calls: set[Call] = set()
        self._changed = threading.Condition()
        """Guards ``_calls`` and ``_closed``."""
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(
        self, recipient: str, payload: Payload, *, name: str | None = None, note: str = "",
        wait: float | None = None, timeout: float | None = None, key_source: KeySource | None = None,
        cipher: str | None = None, exclude: Sequence[str] = (),
        on_event: Callable[[Event | Skipped], None] = lambda _: None,
    ) -> Delivery:
        """Deliver ``payload`` (bytes, text, the path of a file or folder, a list of such paths, an open binary stream
        with a descriptor) and return the proof: the recipient holds it durably, verified. ``wait`` and ``timeout`` in
        seconds, ``exclude`` globs, as for ``zkc send``.
        """
        return self.send_in(
            Call(), recipient, payload, name=name, note=note, wait=wait, timeout=timeout, key_source=key_source,
            cipher=cipher, exclude=exclude, on_event=on_event,
        )

    @contextlib.contextmanager
    def receive(
        self, *, sender: str | None = None, name: str = "*", app: str | None = None, wait: float = 0.0
    ) -> Iterator[ReceivedItem]:
        """The oldest item that matches (``name`` is a glob), claimed for the block.

        `NobodyThere` (``empty``) after ``wait`` seconds without one; `Interrupted` when the client is closed meanwhile.
        """
        with self.take_in(Call(), sender=sender, name=name, app=app, wait=wait) as claim:
            yield ReceivedItem(claim)
            claim.finish()

    def peers(self) -> list[Peer]:
        """Every client that the coordinator tells of."""
        with self._under_way(Call()):
            return self._reach().peers()

    def items(self) -> list[Item]:
        """What is in the inbox, oldest first."""
        with self._under_way(Call()):
            return self._inbox.items()

    def events(self, *, follow: bool = False) -> Generator[Happened, None, None]:
        """What the daemon of this home remembers of what has happened, oldest first, and with ``follow`` all that
        happens from then on (`zkc.client.happenings`). Who reads too slowly is told with a `Lost`.

        `DaemonError` where no daemon runs, or when it ends (``ended``); `Interrupted` when the client is closed.
        """
        call = Call()
        with contextlib.closing(Following(self._home, follow=follow)) as following:
            while (happened := self.next_in(call, following)) is not None:
                yield happened

    def close(self) -> None:
        """End what is under way (`Interrupted`) and let go of the home, in bounded time. Again: nothing."""
        self.end_calls()
        with self._mutex:
            if self._access is not None:
                self._access.close()
                self._access = None
        self._kept.close()
        with self._changed:
            # They still need the home: a sender whose receipt has just come keeps it.
            self._changed.wait_for(lambda: not self._calls, _END_SECONDS)
        self._store.close()
        self._inbox.close()

    # --- for `Client`, which is the same logic in threads ------------------------------------------------------------

    def end_calls(self) -> None:
        """Tell what is under way to end, and let nothing more begin. Never waits."""
        with self._changed:
            self._closed = True
            for call in self._calls:
                call.end()

    def send_in(
        self, call: Call, recipient: str, payload: Payload, *, name: str | None = None, note: str = "",
        wait: float | None = None, timeout: float | None = None, key_source: KeySource | None = None,
        cipher: str | None = None, exclude: Sequence[str] = (),
        on_event: Callable[[Event | Skipped], None] = lambda _: None,
    ) -> Delivery:
        """`send`, as long as ``call`` is not told to end."""
        source, manifest = source_of(payload, name, note, exclude=exclude, on_skip=on_event)
        with contextlib.closing(source), self._under_way(call), call.bell() as bell:
            done = Sending(
                self._home, self._config, self._reach(), recipient, source, manifest,
                Options(wait, timeout, key_source, cipher), clock=self._clock, entropy=self._entropy, bell=bell,
                on_event=on_event, reports=DaemonReports(self._home.socket_path(), self._clock, self._kept),
            ).run()
        if isinstance(done, WouldAccept):
            raise InternalError("a delivery ended as a dry run")
        return done

    def take_in(
        self, call: Call, *, sender: str | None = None, name: str = "*", app: str | None = None, wait: float = 0.0
    ) -> Claim:
        """The claim of `receive`, as long as ``call`` is not told to end."""
        # Under way until it is there: what a program does with an item takes as long as it likes.
        with self._under_way(call):
            return take(self._inbox, Wish(sender, name, app), wait, clock=self._clock, pause=call.pause)

    def next_in(self, call: Call, following: Following) -> Happened | None:
        """The next one of `events`, as long as ``call`` is not told to end."""
        with self._under_way(call, goes_on=True), call.ended_by(following.hang_up):
            try:
                return following.next()
            except DaemonError as error:
                if error.detail == "ended" and call.ended:
                    raise Interrupted("this client was closed", detail="signal") from None
                raise

    def follow_in(self, *, follow: bool) -> Following:
        """The conversation behind `events`."""
        return Following(self._home, follow=follow)

    @contextlib.contextmanager
    def _under_way(self, call: Call, *, goes_on: bool = False) -> Iterator[None]:
        with self._changed:
            if self._closed and goes_on:
                raise Interrupted("this client was closed", detail="signal")
            if self._closed:
                raise UsageError("this client is closed")
            self._calls.add(call)
        try:
            yield
        finally:
            with self._changed:
                self._calls.discard(call)
                self._changed.notify_all()

    def _reach(self) -> Access:
        with self._mutex:
            if self._closed:
                raise Interrupted("this client was closed", detail="signal")
            if self._access is None:
                self._access = open_access(
                    self._home, self._store, self._config, self._clock, self._entropy, self._kept
                )
            return self._access


class Client:
    """One home, for asyncio programs: `SyncClient` in worker threads."""

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        self._sync = SyncClient(home)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="zkc-client")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def send(self, recipient: str, payload: Payload, **options: Any) -> Delivery:
        """See `SyncClient.send`; ``on_event`` is called in a worker thread. Cancelled, it sends no more."""
        call = Call()
        sending = self._submit(partial(self._sync.send_in, call, recipient, payload, **options))
        return await self._end_with(call, sending)

    @contextlib.asynccontextmanager
    async def receive(self, **options: Any) -> AsyncIterator[AsyncReceivedItem]:
        """See `SyncClient.receive`."""
        call = Call()
        taking = self._submit(partial(self._sync.take_in, call, **options))
        try:
            claim = await self._end_with(call, taking)
        except asyncio.CancelledError:
            # It may have found one at that very moment, or find it when nobody waits for its thread any more.
            taking.add_done_callback(_let_go)
            raise
        with claim:
            yield AsyncReceivedItem(ReceivedItem(claim), self._run)
            await self._end_with(Call(), self._submit(claim.finish))

    async def peers(self) -> list[Peer]:
        """See `SyncClient.peers`."""
        return await self._run(self._sync.peers)

    async def items(self) -> list[Item]:
        """See `SyncClient.items`."""
        return await self._run(self._sync.items)

    async def events(self, *, follow: bool = False) -> AsyncGenerator[Happened, None]:
        """See `SyncClient.events`. Each event is asked for when it is wanted: who does not read keeps none here."""
        following = await self._run(partial(self._sync.follow_in, follow=follow))
        call = Call()
        try:
            while True:
                reading = self._submit(partial(self._sync.next_in, call, following))
                happened = await self._end_with(call, reading)
                if happened is None:
                    return
                yield happened
        finally:
            following.hang_up()
            following.close()

    async def close(self) -> None:
        """See `SyncClient.close`."""
        # Not in the pool, whose threads may all be busy with what is to end.
        self._sync.end_calls()
        await asyncio.to_thread(self._sync.close)
        self._threads.shutdown(wait=False)

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._submit(call))

    def _submit(self, call: Callable[[], T]) -> Future[T]:
        try:
            return self._threads.submit(call)
        except RuntimeError:
            raise UsageError("this client is closed") from None

    async def _end_with(self, call: Call, job: Future[T]) -> T:
        """What ``job`` returns or raises. Cancelled, it ends ``call``, and waits for its thread in bounded time."""
        done = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            if not job.cancel():
                call.end()
                # Nobody asks any more what came of it.
                done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                await asyncio.wait([done], timeout=_END_SECONDS)
            raise


class AsyncReceivedItem:
    """`ReceivedItem` for asyncio."""

    def __init__(self, received: ReceivedItem, run: Callable[[Callable[[], Any]], Any]) -> None:
        self.item: Final[Item] = received.item
        self._received = received
        self._run = run

    async def read(self) -> bytes:
        """See `ReceivedItem.read`."""
        data: bytes = await self._run(self._received.read)
        return data

    async def save(self, destination: str | os.PathLike[str], conflict: Conflict = "rename") -> Path | None:
        """See `ReceivedItem.save`."""
        path: Path | None = await self._run(partial(self._received.save, destination, conflict))
        return path


def _let_go(taking: Future[Claim]) -> None:
    """Of a claim that nobody waits for: the item stays for others."""
    if not taking.cancelled() and taking.exception() is None:
        taking.result().close()
