"""Processes of this home that take a transfer as a stream (``zkc recv --live``), as its daemon sees them.

A reader binds its sockets, says so over the control socket, and keeps that connection open: its end is the reader's.
The daemon makes the handshake (X2 to X5), hands K over and keeps none, and lets CONF go once the reader's door knows
the token. The reader asks for the receipt when its stdout has every byte: from that moment the delivery is done here.

    waiting  -> taken    a request matches; a handshake that comes to nothing puts it back in its place
    taken    -> holding  K is in the reader's process alone
    holding  -> done     the receipt is signed, and recorded
    holding  -> passed   nothing of it was taken: its name does not match, or its sender did not come
    any      -> gone     it hung up; what was taken and not done is broken off, and does not come to the inbox
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Final

from zkc.client import control
from zkc.client.consent import Consent
from zkc.client.handover import reply_of
from zkc.constants import LIVE_READERS_MAX
from zkc.crypto.receipts import make_receipt
from zkc.env import Clock
from zkc.errors import DaemonError, Interrupted, NobodyThere, ZkcError
from zkc.protocol.delivery_recipient import receipt_body
from zkc.protocol.session import Session
from zkc.protocol.transfer_recipient import Recipient
from zkc.stores.inbox import Inbox
from zkc.wire.messages import Req

READY_SECONDS: Final = 5.0
"""How long a reader may take to open its door, while the sender's step waits."""
ENDING_SECONDS: Final = 5.0
"""How long a sender that comes back waits to hear whether the reader of its last try has taken everything: a link's end
is seen here and there at different moments."""
BROKEN_SECONDS: Final = 60.0
"""How long the retry of a stream that broke off is kept from the inbox: a sender's usual patience."""
_KEPT: Final = 1024
"""Deliveries that are remembered for their next try."""


class Reader:
    """One process, from its registration to the end of its connection. Belongs to the daemon's loop."""

    def __init__(self, ask: control.AskLive, recipient: str) -> None:
        loop = asyncio.get_running_loop()
        self.ask: Final = ask
        self.recipient: Final = recipient
        self.waits = True
        """For a transfer; False: a handshake has it, or more."""
        self.session: Session | None = None
        """Handed over, K wiped here."""
        self.context: Recipient | None = None
        self.consent = Consent()
        self.began = 0.0
        self.size: int | None = None
        """Bytes of what is done."""
        self.passed_on = False
        """Nothing of it was taken."""
        self.ready: asyncio.Future[None] = loop.create_future()
        """Its door is open to the sender."""
        self.ended: asyncio.Future[None] = loop.create_future()
        """It has gone, or was sent away with an error."""
        self.changed = asyncio.Event()

    def wants(self, req: Req) -> bool:
        """Whether this transfer is one for it."""
        return self.waits and req.recipient == self.recipient and self.ask.sender in ("", req.sender)

    def has_under_way(self, delivery: tuple[bytes, bytes]) -> bool:
        """Whether it takes this delivery (sender's fingerprint, tid) and is not done with it."""
        session = self.session
        mine = session is not None and _delivery_of(session) == delivery
        return mine and self.size is None and not self.passed_on

    def release(self) -> None:
        """The handshake came to nothing: it waits again."""
        self.waits = True
        self.changed.set()

    def send_away(self, error: ZkcError) -> None:
        """Nothing comes of what it has."""
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # looked at, also where nobody waits for it


class Readers:
    """All of one home, the one that has waited longest first."""

    def __init__(self, inbox: Inbox, clock: Clock) -> None:
        self._inbox = inbox
        self._clock = clock
        self._readers: list[Reader] = []
        self._broken: OrderedDict[tuple[bytes, bytes], float] = OrderedDict()
        """(sender's fingerprint, tid) of streams that broke off; until when that counts."""
        self._passed_on: OrderedDict[tuple[bytes, bytes], set[str]] = OrderedDict()
        """The same of deliveries that did not match; which names were wanted."""

    async def serve(
        self, ask: control.AskLive, recipient: str, end: float | None
    ) -> AsyncGenerator[control.ControlReply, None]:
        """One reader's connection, to its end; ``end``: until when it waits, in the loop's time.

        `DaemonError` (``too-many``), `NobodyThere` (``empty``), `Interrupted`.
        """
        if len(self._readers) >= LIVE_READERS_MAX:
            raise DaemonError(
                f"{LIVE_READERS_MAX} processes take live transfers here already", detail="too-many",
                hint="end one of them",
            )
        reader = Reader(ask, recipient)
        self._readers.append(reader)
        try:
            yield control.LiveReply()
            session = await self._session_for(reader, end)
            if reader.context is None:
                raise ValueError("a session comes with whom it was made by")
            yield reply_of(session, reader.context.authority.suite.name)
            await reader.ended
        finally:
            self._gone(reader)

    async def _session_for(self, reader: Reader, end: float | None) -> Session:
        while reader.session is None:
            try:
                async with asyncio.timeout_at(end if reader.waits else None):
                    await reader.changed.wait()
            except TimeoutError:
                if reader.waits:
                    raise NobodyThere(
                        "no transfer that matches has begun", detail="empty", hint="try it later, or with a longer wait"
                    ) from None
            reader.changed.clear()
            if reader.ended.done():
                reader.ended.result()
        return reader.session

    def _gone(self, reader: Reader) -> None:
        self._readers.remove(reader)
        reader.waits = False
        if not reader.ended.done():
            reader.ended.set_result(None)
        if reader.session is not None:
            reader.session.k.wipe()
            if reader.ready.done() and reader.has_under_way(delivery := _delivery_of(reader.session)):
                self._broken[delivery] = self._clock.monotonic() + BROKEN_SECONDS
                if len(self._broken) > _KEPT:
                    self._broken.popitem(last=False)

    # --- for the handshake ------------------------------------------------------------------------------------------

    def take(self, req: Req, sender_fp: bytes) -> Reader | None:
        """The reader for this transfer; it is kept for it until `Reader.release`."""
        passed_on = self._passed_on.get((sender_fp, req.tid), ())
        for reader in self._readers:
            if reader.wants(req) and reader.ask.name not in passed_on:
                reader.waits = False
                reader.changed.set()
                return reader
        return None

    async def hand_over(self, reader: Reader, session: Session, context: Recipient, consent: Consent) -> None:
        """K to its process, and until its door is open. `Interrupted` (``reader-gone``): nothing of it was taken."""
        reader.began, reader.context, reader.consent = self._clock.wall(), context, consent
        reader.session = session
        reader.changed.set()
        waits: list[asyncio.Future[None]] = [reader.ready, reader.ended]
        await asyncio.wait(waits, timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not reader.ready.done() or reader.ended.done():
            gone = Interrupted("the process that was to take it has gone", detail="reader-gone")
            reader.send_away(gone)
            raise gone

    async def settle(self, sender_fp: bytes, tid: bytes) -> None:
        """Until a reader that has this delivery under way is done with it or has gone, as far as that takes no time."""
        under_way = [reader.ended for reader in self._readers if reader.has_under_way((sender_fp, tid))]
        if under_way:
            await asyncio.wait(under_way, timeout=ENDING_SECONDS)

    def broke_off(self, sender_fp: bytes, tid: bytes) -> bool:
        """Whether a stream of this delivery broke off lately, or has not ended. Told once: who runs it again may."""
        if any(reader.has_under_way((sender_fp, tid)) for reader in self._readers):
            return True
        until = self._broken.pop((sender_fp, tid), None)
        return until is not None and self._clock.monotonic() < until

    # --- for the reader ---------------------------------------------------------------------------------------------

    def ready(self, xid: bytes) -> control.LiveReadyReply:
        """Its door is open."""
        reader = self._holding(xid)
        if not reader.ready.done():
            reader.ready.set_result(None)
        return control.LiveReadyReply(reader.consent)

    def pass_on(self, xid: bytes, *, unwanted: bool) -> None:
        """Nothing of what it got was taken; ``unwanted``: it is not to get it again."""
        reader = self._holding(xid)
        reader.passed_on = True
        if unwanted and reader.session is not None:
            self._passed_on.setdefault(_delivery_of(reader.session), set()).add(reader.ask.name)
            if len(self._passed_on) > _KEPT:
                self._passed_on.popitem(last=False)

    async def receipt(self, ask: control.AskLiveReceipt) -> control.LiveReceiptReply:
        """Sign, record, answer (Figure 16, blocks 1603-1604). `Interrupted` (``unknown-transfer``)."""
        reader = self._holding(ask.xid)
        session, context = reader.session, reader.context
        if session is None or context is None:
            raise ValueError("it holds a session")
        now = self._clock.wall()
        body = receipt_body(session, ask.manifest, ask.size, ask.digest, reader.began, now)

        def record() -> control.LiveReceiptReply:
            receipt = make_receipt(context.identity, body, context.card.encoded)
            fingerprint, tid = _delivery_of(session)
            return control.LiveReceiptReply(receipt, self._inbox.record_live(fingerprint, tid, receipt, now))

        reply = await asyncio.to_thread(record)
        reader.size = ask.size
        return reply

    def _holding(self, xid: bytes) -> Reader:
        for reader in self._readers:
            if reader.session is not None and reader.session.req.xid == xid and not reader.ended.done():
                return reader
        raise Interrupted("the daemon does not know this transfer", detail="unknown-transfer", hint="run it again")


def _delivery_of(session: Session) -> tuple[bytes, bytes]:
    return session.peer.fingerprint, session.req.tid

