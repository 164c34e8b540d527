"""What becomes of a transfer once its handshake is over: a thread that receives, or a process that takes the stream."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from structlog.typing import FilteringBoundLogger

from zkc.client.bus import EventBus
from zkc.client.happenings import Arrived, Begun, ended
from zkc.client.inbox_sink import InboxSink, deliver
from zkc.client.readers import Reader, Readers
from zkc.client.transfers import Transfer, Transfers, anew
from zkc.config import ClientConfig
from zkc.constants import TRANSFERS_MAX
from zkc.env import Clock
from zkc.errors import InternalError, Interrupted, ZkcError
from zkc.logs import Repeats
from zkc.net.pipe.bell import Bell
from zkc.net.pipe.recipient import Incoming
from zkc.protocol.session import Session
from zkc.stores.files import translated
from zkc.stores.inbox import Inbox
from zkc.stores.items import Item
from zkc.stores.noting import Notes
from zkc.wire.messages import Manifest

JOIN_SECONDS: Final = 3.0
"""How long is waited for the end of what was told to end."""


class Deliveries:
    """Of one home. Belongs to the daemon's loop."""

    def __init__(
        self, inbox: Inbox, transfers: Transfers, readers: Readers, config: Callable[[], ClientConfig], clock: Clock,
        log: FilteringBoundLogger, repeats: Repeats, over: Callable[[Transfer], None], bus: EventBus,
        notes: Notes,
    ) -> None:
        """``config``: what it is now; ``over``: hears of each that has ended, whatever it ended with."""
        self._inbox = inbox
        self._transfers = transfers
        self._readers = readers
        self._config = config
        self._clock = clock
        self._log = log
        self._repeats = repeats
        self._notes = notes
        self._over = over
        self._bus = bus
        self._threads = ThreadPoolExecutor(TRANSFERS_MAX, thread_name_prefix="zkc-receive")
        self.received: Final[Counter[str]] = Counter()
        """Deliveries and bytes since the start, for ``zkc status``."""

    def close(self) -> None:
        """After every transfer was told to end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def begin(self, transfer: Transfer, incoming: Incoming, older: Sequence[asyncio.Future[None]]) -> None:
        """Open the door, and receive in a thread, after ``older`` have ended."""
        with translated("receiving"):
            bell = Bell()
        incoming.admit(transfer.session)
        transfer.agreed, transfer.bell = True, bell
        transfer.done = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._receive(transfer, transfer.session, incoming, bell, older))
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    def end_older(self, transfer: Transfer) -> list[asyncio.Future[None]]:
        """The sender has come back with a new handshake: an older one has no sender any more. What to wait for."""
        ending = []
        for other in self._transfers.older(transfer):
            if other.bell is not None:
                other.bell.ring(anew(transfer.req.sender))
                if other.done is not None:
                    ending.append(other.done)
            elif other.reader is not None:
                other.reader.send_away(anew(transfer.req.sender))
        return ending

    async def hand_over(self, transfer: Transfer, reader: Reader) -> None:
        """To the process that takes it as a stream; returns once that has K, and its door lets the sender in."""
        session = transfer.session
        req = session.req
        begun = Begun(req.xid.hex(), "in", req.sender, req.recipient, None, None, 0, live=True)
        self._bus.begin(begun)
        watch = asyncio.create_task(self._watch(transfer, reader, session, begun))
        watch.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await self._readers.hand_over(reader, session, transfer.context, transfer.consent)

    async def _watch(self, transfer: Transfer, reader: Reader, session: Session, begun: Begun) -> None:
        """Until the reader's end: the place in the books is its own."""
        req = session.req
        log = self._log.bind(**transfer.ids, tid=req.tid.hex())
        await asyncio.wait([reader.ended])
        session.k.wipe()
        if reader.size is not None:
            self.received["deliveries"] += 1
            self.received["bytes"] += reader.size
            log.info("received", bytes=reader.size, key_source=req.key_source, live=True)
            self._notes.note("received", req.sender, req.recipient)
            self._bus.publish(ended(begun, reader.size))
        elif not reader.passed_on:
            self._repeats.tell(
                log, "warning", "not-received", (req.sender, "live"), reason="interrupted", live=True,
                error="the process that took it has gone",
            )
            self._notes.note("received", req.sender, req.recipient, code=Interrupted.code, detail="reader-gone")
            gone = Interrupted("the process that took it has gone", detail="reader-gone")
            self._bus.publish(ended(begun, None, gone))
        else:
            self._bus.publish(ended(begun, 0, Interrupted("it is for another process", detail="ended")))
        self._over(transfer)

    async def _receive(
        self, transfer: Transfer, session: Session, incoming: Incoming, bell: Bell,
        older: Sequence[asyncio.Future[None]] = (),
    ) -> None:
        req = session.req
        log = self._log.bind(**transfer.ids, tid=req.tid.hex())
        begun: Begun | None = None
        failure: ZkcError = InternalError("a defect")

        def announced(manifest: Manifest, here: int) -> None:
            nonlocal begun
            if begun is None:
                ends = req.sender, req.recipient
                begun = Begun(req.xid.hex(), "in", *ends, manifest.name, manifest.size, here, live=False)
                self._bus.begin(begun, lambda: sink.size)

        sink = InboxSink(
            self._inbox, session, transfer.context, self._config(), self._clock, bell, transfer.consent, announced
        )
        try:
            if older:
                # Their partial item is what this one goes on with.
                await asyncio.wait(older, timeout=JOIN_SECONDS)
            await asyncio.get_running_loop().run_in_executor(
                self._threads, deliver, incoming, session, sink, bell, self._config().transfer.patience
            )
            self.received["deliveries"] += 1
            self.received["bytes"] += sink.size
            log.info("received", bytes=sink.size, key_source=req.key_source, item=sink.item_id)
            self._notes.note("received", req.sender, req.recipient)
        except ZkcError as error:
            failure = error
            self._repeats.tell(
                log, "warning", "not-received", (req.sender, error.reason, error.detail), code=error.code,
                reason=error.reason, detail=error.detail, error=error.message,
            )
            self._notes.note("received", req.sender, req.recipient, code=error.code, detail=error.detail)
        except Exception:
            log.exception("defect")
        finally:
            if sink.item is not None:
                self._bus.publish(arrived(sink.item))
            if begun is not None:
                self._bus.publish(ended(begun, sink.size, None if sink.item is not None else failure))
            session.k.wipe()
            bell.close()
            self._over(transfer)
            if transfer.done is not None and not transfer.done.done():
                transfer.done.set_result(None)


def arrived(item: Item) -> Arrived:
    """It is in the inbox."""
    return Arrived(
        item.id, item.sender, item.name, item.size, f"blake3:{item.digest.hex()}", item.note, item.key_source,
        item.received, str(item.path), item.app or None, item.kind, item.transfer,
        item.asked_by or None, item.asker.hex() or None,
    )
