"""Taking a transfer as a stream, straight from the wire: what ``zkc recv --live`` does. Nothing of it is ever on disk.

This process binds the sockets, waits at the daemon for a transfer (`zkc.client.readers`), gets K, and opens each chunk
before it hands it on. It is done when whoever reads has taken every byte; the daemon then signs the receipt.
Imports no event loop.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from blake3 import blake3

from zkc.client import control
from zkc.client.consent import Consent
from zkc.client.handover import grant_of
from zkc.client.judging import check_manifest
from zkc.config import ClientConfig
from zkc.constants import CHUNK_MAX
from zkc.crypto.stream_cipher import Buffer
from zkc.env import Clock
from zkc.errors import InternalError, Interrupted, PeerViolation, UsageError, ZkcError
from zkc.ids import owner_of
from zkc.net.descriptors import DescriptorsTaken
from zkc.net.local_client import Answer, LocalClient
from zkc.net.local_frames import bad_answer
from zkc.net.pipe.bell import Bell, LinkLost
from zkc.net.pipe.recipient import Bulk, Incoming
from zkc.net.sockets import PortsTaken
from zkc.protocol.session import Session
from zkc.rules.endpoints import parse_listen
from zkc.rules.policy import Asked, Standing, decide_size
from zkc.stores.home import Home
from zkc.stores.items import Item
from zkc.wire.messages import Manifest

_PAUSE_SECONDS: Final = 0.1
"""Between two tries to get a pair of ports."""


@dataclass(frozen=True)
class LiveWish:
    """Which transfers are wanted; empty: those to the home's own registration, from anybody."""

    sender: str = ""
    app: str = ""
    name: str = ""
    """A glob."""


class LiveReader:
    """One process that takes transfers as streams, one after the other. `close` it."""

    def __init__(self, home: Home, config: ClientConfig, clock: Clock) -> None:
        self._path: Final = home.socket_path()
        self._config = config
        self._clock = clock
        self._daemon: LocalClient[control.ControlReply] = LocalClient(self._path, control.ControlReply)
        listen = parse_listen(config.transfer.listen)
        if listen is None:
            raise UsageError(
                "recv --live takes a stream at ports of its own, and transfer.listen is off", detail="listen-off",
                hint="name an address and ports there, or take it out of the inbox",
            )
        self._host, self._ports = listen.host.strip("[]"), listen.ports or None
        # One transfer has this process to itself: twice the chunk is a seventh quicker (measured), and costs little.
        self._chunk: Final = min(2 * config.transfer.chunk, CHUNK_MAX)
        self._under_way: _UnderWay | None = None
        self._bulk = Bulk()

    def close(self) -> None:
        """After `take` has ended, whatever it ended with."""
        self._bulk.close()

    def __enter__(self) -> LiveReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def interrupt(self) -> bool:
        """From a signal handler: whether what is under way ends by itself, and tells its sender. A write that blocks
        does not: there an exception has to end it.
        """
        return self._under_way is not None and self._under_way.interrupt()

    def check_daemon(self) -> None:
        """`DaemonError` where none runs here, or it stands still."""
        self._daemon.call(control.AskStatus())

    def take(
        self, wish: LiveWish, wait: float, write: Callable[[Buffer], None], pause: Callable[[float], None],
        on_waiting: Callable[[], None] = lambda: None,
    ) -> Item:
        """The next transfer that matches, into ``write``, which blocks for as long as its reader likes and may raise:
        the sender is told. ``wait`` in seconds until one begins (inf: for ever); ``on_waiting``: from now on one may.

        What it was, without a file. `DaemonError`; `NobodyThere` (``empty``) after ``wait``; `Interrupted` where it
        broke off; `IntegrityError`, `PolicyRefused` (``limit``) for data that no honest sender makes; `PortsTaken`.
        """
        end = self._clock.monotonic() + wait
        self.check_daemon()
        item = self._take_one(wish, end, write, pause, on_waiting)
        while item is None:
            item = self._take_one(wish, end, write, pause, lambda: None)
        return item

    def _take_one(
        self, wish: LiveWish, end: float, write: Callable[[Buffer], None], pause: Callable[[float], None],
        on_waiting: Callable[[], None],
    ) -> Item | None:
        """One handshake, and what comes of it; None where nothing was taken: its name did not match, or the sender did
        not come."""
        with contextlib.closing(self._bind(end, pause)) as incoming:
            within = None if math.isinf(end) else max(end - self._clock.monotonic(), 0.0)
            ask = control.AskLive(
                wish.app, wish.sender, wish.name, self._host, *incoming.ports,
                incoming.offer_chunk(self._chunk), within,
            )
            with contextlib.closing(self._daemon.ask(ask, within=None)) as answer:
                if not isinstance(answer.next(), control.LiveReply):
                    raise self._unexpected()
                on_waiting()
                granted = answer.next()
                session = None if granted is None else grant_of(granted)
                if not isinstance(session, Session):
                    raise self._unexpected()
                try:
                    return self._receive(incoming, session, answer, wish.name, write)
                finally:
                    session.k.wipe()

    def _bind(self, end: float, pause: Callable[[float], None]) -> Incoming:
        """A pair of ports of `transfer.listen`; when all are taken, this waits for its turn."""
        while True:
            try:
                return self._bulk.listen(self._host, self._ports)
            except (PortsTaken, DescriptorsTaken):
                if self._clock.monotonic() >= end:
                    raise
            pause(_PAUSE_SECONDS)

    def _receive(
        self, incoming: Incoming, session: Session, answer: Answer[control.ControlReply], glob: str,
        write: Callable[[Buffer], None],
    ) -> Item | None:
        if glob:
            incoming.hold()
        incoming.admit(session)
        ready = self._daemon.call(control.AskLiveReady(session.req.xid))
        consent = ready.consent if isinstance(ready, control.LiveReadyReply) else Consent()
        with contextlib.closing(Bell()) as bell, _watched(answer, bell) as told:
            self._under_way = _UnderWay(bell, write)
            sink = LiveSink(self._config, session, glob, self._under_way.write, self._daemon, self._clock, consent)
            try:
                incoming.receive(session, sink, bell, self._config.transfer.patience, self._clock)
            except Interrupted as error:
                if isinstance(error, LinkLost) and not sink.began:
                    sink.pass_on(unwanted=False)
                if sink.passed_on:
                    return None
                if not told:
                    raise
                raise Interrupted(
                    f"the stream from {session.req.sender} broke off at {sink.size} bytes: {told[0].message}",
                    detail=told[0].detail, hint="see the daemon's log",
                ) from None
            finally:
                self._under_way = None
        return sink.item(self._clock.wall())

    def _unexpected(self) -> ZkcError:
        return bad_answer(self._path, PeerViolation("unexpected", "another reply"))


class _UnderWay:
    """What a signal does to a transfer. An exception between a frame that is sealed and its way out would leave a gap,
    and the sender would take that for an attack: so the bell ends it, and an exception a write alone.
    """

    def __init__(self, bell: Bell, write: Callable[[Buffer], None]) -> None:
        self._bell = bell
        self._write = write
        self._writes = self._interrupted = False

    def write(self, data: Buffer) -> None:
        self._writes = True
        try:
            if not self._interrupted:
                self._write(data)
                return
        finally:
            self._writes = False
        raise Interrupted("interrupted", detail="signal")

    def interrupt(self) -> bool:
        self._interrupted = True
        self._bell.ring(Interrupted("interrupted", detail="signal"))
        return not self._writes


@contextlib.contextmanager
def _watched(answer: Answer[control.ControlReply], bell: Bell) -> Iterator[list[ZkcError]]:
    """Rings ``bell`` when the daemon ends, or gives the transfer up: what it says is in the list. Hangs up at last."""
    told: list[ZkcError] = []

    def watch() -> None:
        try:
            answer.next()
        except ZkcError as error:
            told.append(error)
        # Not as one who comes back: what a reader has taken is not sent again.
        bell.ring(Interrupted("the daemon here has given it up", detail="ended"))

    watcher = threading.Thread(target=watch, name="zkc-live", daemon=True)
    watcher.start()
    try:
        yield told
    finally:
        answer.hang_up()
        watcher.join()


class LiveSink:
    """`zkc.net.pipe.recipient.Sink` into a stream: every byte is handed on, and none is kept."""

    def __init__(
        self, config: ClientConfig, session: Session, glob: str, write: Callable[[Buffer], None],
        daemon: LocalClient[control.ControlReply], clock: Clock, consent: Consent,
    ) -> None:
        self._consent = consent
        self._config = config
        self._clock = clock
        self._session = session
        self._glob = glob
        self._write = write
        self._daemon = daemon
        self._manifest: Manifest | None = None
        self._done: tuple[str, bytes] | None = None
        self.size = 0
        self.passed_on = False
        """Nothing of it was taken, and the daemon knows."""

    def announced(self, manifest: Manifest) -> None:
        req = self._session.req
        asked = Asked(req.key_source, req.cipher, manifest.size or 0)
        rules = self._config.receiving_rules()
        check_manifest(manifest, self._session, rules, self._clock.wall(), self._consent)
        refusal = decide_size(asked, rules, Standing())
        if refusal is not None:
            raise refusal.error()
        if self._glob and not fnmatchcase(manifest.name, self._glob):
            self.pass_on(unwanted=True)
            raise Interrupted("this process waits for another name", detail="reader-gone")
        self._manifest = manifest

    @property
    def began(self) -> bool:
        """Whether the sender has said what it sends, and that was wanted."""
        return self._manifest is not None

    def pass_on(self, *, unwanted: bool) -> None:
        """Nothing of it was taken: the sender may come again, to somebody else where it is ``unwanted``."""
        self._daemon.call(control.AskLivePass(self._session.req.xid, unwanted))
        self.passed_on = True

    def resume(self) -> tuple[int, blake3]:
        """A stream begins at its first byte."""
        return 0, blake3()

    def write(self, data: Buffer) -> None:
        self._write(data)
        self.size += len(data)

    def complete(self, size: int, digest: bytes) -> bytes:
        """All of it was taken; the daemon's receipt."""
        if self._manifest is None:
            raise ValueError("an end before the beginning")
        reply = self._daemon.call(control.AskLiveReceipt(self._session.req.xid, self._manifest, size, digest))
        if not isinstance(reply, control.LiveReceiptReply):
            raise InternalError(f"the daemon answered with {type(reply).__name__}", detail="unexpected")
        self._done = reply.id, digest
        return reply.receipt

    def item(self, now: float) -> Item:
        """What was taken, as the inbox would tell of it."""
        if self._manifest is None or self._done is None:
            raise ValueError("nothing was taken")
        (id, digest), manifest, session = self._done, self._manifest, self._session
        req = session.req
        return Item(
            id=id, sender=req.sender, sender_fp=session.peer.fingerprint,
            app=(req.recipient if owner_of(req.recipient) else ""), name=manifest.name, note=manifest.note,
            size=self.size, digest=digest, key_source=req.key_source, kind=manifest.kind, received=now, xid=req.xid,
            tid=req.tid, mode=manifest.mode, mtime_ns=manifest.mtime_ns, path=Path(), asked_by=req.asked_by,
            asker=req.asker,
        )
