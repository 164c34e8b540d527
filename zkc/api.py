"""The Python API: `Client` for asyncio programs, `SyncClient` for all others. Both are one logic.

::

    with zkc.SyncClient() as client:                       # or: async with zkc.Client() as client:
        delivery = client.send("bob", b"hello")            #         delivery = await client.send("bob", b"hello")
        with client.receive(wait=60) as item:              #         async with client.receive(wait=60) as item:
            data = item.read()                             #             data = await item.read()

A client uses the daemon of its home where one runs, and links for itself where none does. Receiving reads the inbox,
which a daemon fills. Every failure is a `zkc.errors.ZkcError` with the contract's code.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, TypeVar

from zkc.client.access import Access, open_access
from zkc.client.grants import WouldAccept
from zkc.client.sending import Delivery, Event, Options, Sending
from zkc.client.sources import AnySource, BytesSource, FileSource, PipeSource
from zkc.config import load
from zkc.env import SystemClock, SystemEntropy
from zkc.errors import InternalError, NobodyThere, UsageError
from zkc.ids import KeySource
from zkc.net.pipe import Bell
from zkc.rules.names import own_name
from zkc.stores.home import Home
from zkc.stores.inbox import Claim, Inbox, Item
from zkc.stores.keystore import KeyStore
from zkc.wire.messages import Manifest, Peer

T = TypeVar("T")
Payload = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO
_POLL_SECONDS: Final = 0.05
_THREADS: Final = 64
"""Transfers at once of one `Client`; more wait for their turn."""


class ReceivedItem:
    """An item of the inbox in the hands of this program: it leaves the inbox at the end of the ``with`` block,
    unless the block raises."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self.item: Final[Item] = claim.item

    def open(self) -> BinaryIO:
        """The payload from its first byte."""
        return self._claim.open()

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
        self._store = KeyStore.open(self._home)
        self._inbox = Inbox.open(self._home)
        self._access: Access | None = None
        self._mutex = threading.Lock()
        self._bells: set[Bell] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(
        self, recipient: str, payload: Payload, *, name: str | None = None, note: str = "",
        wait: float | None = None, timeout: float | None = None, key_source: KeySource | None = None,
        cipher: str | None = None, on_event: Callable[[Event], None] = lambda _: None,
    ) -> Delivery:
        """Deliver ``payload`` (bytes, text, the path of a file, an open binary stream with a descriptor) and return
        the proof: the recipient holds it durably, verified. ``wait`` and ``timeout`` in seconds, as for ``zkc send``.
        """
        source, manifest = _source(payload, name, note)
        bell = Bell()
        self._bells.add(bell)
        try:
            done = Sending(
                self._home, self._config, self._reach(), recipient, source, manifest,
                Options(wait, timeout, key_source, cipher), clock=self._clock, entropy=self._entropy, bell=bell,
                on_event=on_event,
            ).run()
        finally:
            self._bells.discard(bell)
            bell.close()
            source.close()
        if isinstance(done, WouldAccept):
            raise InternalError("a delivery ended as a dry run")
        return done

    @contextlib.contextmanager
    def receive(
        self, *, sender: str | None = None, name: str = "*", app: str | None = None, wait: float = 0.0
    ) -> Iterator[ReceivedItem]:
        """The oldest item that matches (``name`` is a glob), claimed for the block.

        `NobodyThere` (``empty``) after ``wait`` seconds without one.
        """
        deadline = self._clock.monotonic() + wait
        while True:
            claim = self._inbox.take_first(lambda item: _matches(item, sender, name, app))
            if claim is not None:
                break
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise NobodyThere("nothing is waiting in the inbox", detail="empty", hint="wait= waits for something")
            threading.Event().wait(min(_POLL_SECONDS, left))
        with claim:
            yield ReceivedItem(claim)
            claim.finish()

    def peers(self) -> list[Peer]:
        """Every client that the coordinator tells of."""
        return self._reach().peers()

    def items(self) -> list[Item]:
        """What is in the inbox, oldest first."""
        return self._inbox.items()

    def close(self) -> None:
        """End what is under way (`Interrupted`) and let go of the home. Again: nothing."""
        for bell in list(self._bells):
            bell.ring()
        with self._mutex:
            if self._access is not None:
                self._access.close()
                self._access = None
        self._store.close()
        self._inbox.close()

    def _reach(self) -> Access:
        with self._mutex:
            if self._access is None:
                self._access = open_access(self._home, self._store, self._config, self._clock, self._entropy)
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
        """See `SyncClient.send`; ``on_event`` is called in a worker thread."""
        return await self._run(lambda: self._sync.send(recipient, payload, **options))

    @contextlib.asynccontextmanager
    async def receive(self, **options: Any) -> AsyncIterator[AsyncReceivedItem]:
        """See `SyncClient.receive`."""
        manager = self._sync.receive(**options)
        received = await self._run(manager.__enter__)
        try:
            yield AsyncReceivedItem(received, self._run)
        except BaseException as raised:
            await self._run(partial(manager.__exit__, type(raised), raised, raised.__traceback__))
            raise
        else:
            await self._run(partial(manager.__exit__, None, None, None))

    async def peers(self) -> list[Peer]:
        """See `SyncClient.peers`."""
        return await self._run(self._sync.peers)

    async def items(self) -> list[Item]:
        """See `SyncClient.items`."""
        return await self._run(self._sync.items)

    async def close(self) -> None:
        """See `SyncClient.close`."""
        await self._run(self._sync.close)
        self._threads.shutdown(wait=True)

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


class AsyncReceivedItem:
    """`ReceivedItem` for asyncio."""

    def __init__(self, received: ReceivedItem, run: Callable[[Callable[[], Any]], Any]) -> None:
        self.item: Final[Item] = received.item
        self._received = received
        self._run = run

    async def read(self) -> bytes:
        """The whole payload."""
        data: bytes = await self._run(self._received.read)
        return data


def _matches(item: Item, sender: str | None, name: str, app: str | None) -> bool:
    return (
        (sender is None or item.sender == sender)
        and fnmatch.fnmatchcase(item.name, name)
        and (app is None or item.app.partition("/")[2] == app)
    )


def _source(payload: Payload, name: str | None, note: str) -> tuple[AnySource, Manifest]:
    if isinstance(payload, str):
        text = payload.encode()
        return BytesSource(text), Manifest("message", own_name(name or "message"), note, len(text), 0o600, 0)
    if isinstance(payload, bytes | bytearray | memoryview):
        data = bytes(payload)
        return BytesSource(data), Manifest("stream", own_name(name or "stdin"), note, len(data), 0o600, 0)
    if isinstance(payload, os.PathLike):
        source = FileSource(Path(payload))
        return source, source.manifest(name, note)
    if not hasattr(payload, "fileno"):
        raise UsageError("a payload is bytes, text, a path, or a binary stream with a descriptor", detail="payload")
    return PipeSource(payload), Manifest("stream", own_name(name or "stdin"), note, None, 0o600, 0)
