"""Direct delivery, the sender's side (Figure 2, 209 and 211; Figure 15, blocks 1506-1507).

 1. ACK  <- the recipient speaks first: attempt, position, credit      it holds K
 2. START, manifest, chunks ->                                          within the credit
 3. ACK  <- position and credit, again and again
 4. last chunk ->, ending with total, BLAKE3, manifest digest
 5. DONE <- the receipt: durable at the recipient, checked here field by field
 6. BYE  ->

All chunks have the agreed size but the last. After the bytes that one key may take, the next attempt's keys take over
on the same link (START of attempt + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3

from zkc.constants import TRAILER_BYTES
from zkc.crypto.chunks import StreamOpener, StreamSealer
from zkc.crypto.receipts import manifest_digest, name_digest, verify_receipt
from zkc.crypto.stream_cipher import Buffer
from zkc.errors import IntegrityError, PeerViolation
from zkc.protocol.session import Session
from zkc.wire.codec import decode, encode
from zkc.wire.frames import DataHeader, Flag, Stream
from zkc.wire.messages import Ack, AckMessage, Done, Manifest, Receipt, ReceiptBody, Start, Stop


@dataclass(frozen=True, slots=True)
class Credited:
    """The recipient has taken over ``position`` bytes."""

    position: int


@dataclass(frozen=True)
class Delivered:
    """The recipient holds everything; the receipt has been held against what was sent."""

    receipt: bytes
    body: ReceiptBody


@dataclass(frozen=True, slots=True)
class Stopped:
    """The recipient gave up, with a code of the contract."""

    code: int
    detail: str


class DeliverySender:
    """One delivery over one link. An object: it owns nonce counters."""

    def __init__(self, session: Session, manifest: Manifest, attempt: int = 0) -> None:
        self._session = session
        self._manifest = manifest
        self._attempt = attempt
        self._data = self._sealer(Stream.DATA)
        self._acks = self._opener()
        self._next_acks: StreamOpener | None = None
        self._started = False
        self._failed = False
        self._limit = 0
        self._hash = blake3()
        self.sent = 0
        self.finished = False

    @property
    def chunk_size(self) -> int:
        return self._session.resp.chunk

    def has_room(self) -> bool:
        """Whether the credit admits another chunk."""
        return self._started and not self.finished and self.sent + self.chunk_size <= self._limit

    def start(self) -> list[bytearray]:
        """START and the manifest: what goes out after the recipient's first word."""
        start = self._data.seal(encode(Start(self._attempt, 0)), Flag.START)
        manifest = self._sealer(Stream.MANIFEST).seal(encode(self._manifest), Flag.LAST)
        return [start, manifest]

    def chunk(self, data: Buffer, *, last: bool) -> list[bytearray]:
        """The next chunk, exactly `chunk_size` bytes unless it is the last; before it a rollover where one is due."""
        frames = []
        if self._data.used_up:
            self._attempt += 1
            self._data = self._sealer(Stream.DATA)
            self._next_acks = self._opener()
            frames.append(self._data.seal(encode(Start(self._attempt, self.sent)), Flag.START))
        self._hash.update(data)
        self.sent += len(data)
        if last:
            self.finished = True
            digest = self._hash.digest()
            trailer = self.sent.to_bytes(8, "big") + digest + manifest_digest(self._manifest)
            if len(trailer) != TRAILER_BYTES:
                raise AssertionError("the trailer's length is fixed")
            data = bytes(data) + trailer
        frames.append(self._data.seal(data, Flag.LAST if last else Flag.NONE))
        return frames

    def bye(self) -> bytearray:
        """The last word: the receipt is here."""
        return self._data.seal(b"", Flag.BYE)

    def stop(self, code: int, detail: str) -> bytearray:
        """The sender gives up: the recipient need not wait."""
        return self._data.seal(encode(Stop(code, detail)), Flag.STOP)

    def receive(self, frame: Buffer) -> Credited | Delivered | Stopped:
        """One frame of the acknowledgement stream; after an error, nothing more.

        `PeerViolation`; `IntegrityError` for a receipt of something else.
        """
        if self._failed:
            raise PeerViolation("unexpected", "a frame after a failure")
        self._failed = True
        event = self._receive(DataHeader.unpack(frame), frame)
        self._failed = False
        return event

    def _receive(self, header: DataHeader, frame: Buffer) -> Credited | Delivered | Stopped:
        acks = self._acks
        if self._next_acks is not None and header.attempt == self._attempt:
            acks = self._next_acks
        message = decode(acks.open(header, frame), AckMessage)
        if acks is self._next_acks:
            self._acks, self._next_acks = acks, None
        if isinstance(message, Ack):
            if message.attempt != header.attempt or message.position > self.sent:
                raise PeerViolation("unexpected", "an acknowledgement of what was not sent")
            self._started = True
            self._limit = max(self._limit, message.position + message.credit)
            return Credited(message.position)
        if isinstance(message, Done):
            return self._delivered(message)
        return Stopped(message.code, message.detail)

    def _delivered(self, message: Done) -> Delivered:
        if not self.finished:
            raise PeerViolation("unexpected", "an end before the end")
        session = self._session
        body = verify_receipt(session.peer.identity, message.receipt)
        check_receipt(session, body, self._manifest, self.sent, self._hash.digest())
        if decode(message.receipt, Receipt).card != session.peer.encoded:
            raise IntegrityError(
                f"the receipt of {session.req.recipient} carries another card than its answer", detail="receipt"
            )
        return Delivered(message.receipt, body)

    def _sealer(self, stream: Stream) -> StreamSealer:
        return StreamSealer(self._session.k, stream, self._attempt, self._session.req.cipher)

    def _opener(self) -> StreamOpener:
        return StreamOpener(self._session.k, Stream.ACK, self._attempt, self._session.req.cipher)


def check_receipt(session: Session, body: ReceiptBody, manifest: Manifest, size: int, digest: bytes) -> None:
    """Every field of a receipt against the sender's own knowledge; `IntegrityError` (``receipt``)."""
    req, resp = session.req, session.resp
    expected = {
        "tid": req.tid, "xid": req.xid, "th": session.th, "sender": req.sender, "recipient": req.recipient,
        "sender_fingerprint": session.own_fingerprint, "recipient_fingerprint": session.peer.fingerprint,
        "name_digest": name_digest(manifest.name), "size": size, "digest": digest,
        "manifest_digest": manifest_digest(manifest), "key_source": req.key_source, "cipher": req.cipher,
        "presence": resp.presence, "presence_age": resp.presence_age, "durable": not resp.live, "asker": b"",
    }
    for field, value in expected.items():
        if getattr(body, field) != value:
            raise IntegrityError(
                f"the receipt of {req.recipient} does not fit what was sent ({field})", detail="receipt"
            )
