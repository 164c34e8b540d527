"""Direct delivery, the recipient's side (Figure 2, 210; Figure 16).

 1. ACK  -> attempt, position, credit                 the recipient speaks first
 2. START, manifest <-                                 judged before the first chunk is written
 3. chunks <-, each authenticated before it is handed on (block 1602); ACK -> as they are taken over
 4. last chunk <-: total, BLAKE3 and manifest digest are compared; then the caller makes it durable
 5. DONE -> the receipt (blocks 1603-1604), again until BYE <- or the time is over
"""

from __future__ import annotations

from dataclasses import dataclass
from hmac import compare_digest

from blake3 import blake3

from zkc.constants import MANIFEST_MAX, TRAILER_BYTES
from zkc.crypto.chunks import StreamOpener, StreamSealer
from zkc.crypto.receipts import manifest_digest, name_digest
from zkc.crypto.stream_cipher import Buffer
from zkc.errors import PeerViolation
from zkc.protocol.session import Session
from zkc.wire.codec import decode, encode
from zkc.wire.frames import DataHeader, Flag, Stream
from zkc.wire.messages import Ack, Done, Manifest, ReceiptBody, Start, Stop


@dataclass(frozen=True, slots=True)
class Started:
    """The sender is there and holds K."""


@dataclass(frozen=True, slots=True)
class Announced:
    """What is coming: name, note, size where it is known."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Data:
    """Authenticated bytes, in order."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Complete:
    """The last bytes; total and digest of the whole are right."""

    data: bytes
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Farewell:
    """The sender has its receipt."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The sender gave up, with a code of the contract."""

    code: int
    detail: str


Event = Started | Announced | Data | Complete | Farewell | Stopped


class DeliveryRecipient:
    """One delivery over one link. An object: it owns nonce counters."""

    def __init__(self, session: Session, attempt: int = 0) -> None:
        self._session = session
        self._attempt = attempt
        self._data = self._opener(Stream.DATA, attempt)
        self._names = self._opener(Stream.MANIFEST, attempt)
        self._acks = self._sealer(attempt)
        self._manifest: Manifest | None = None
        self._started = False
        self._complete = False
        self._failed = False
        self._hash = blake3()
        self.received = 0

    @property
    def manifest(self) -> Manifest | None:
        return self._manifest

    def ack(self, position: int, credit: int) -> bytearray:
        """``position`` bytes are taken over; ``credit`` more may be under way."""
        return self._acks.seal(encode(Ack(self._attempt, position, credit)))

    def done(self, receipt: bytes) -> bytearray:
        """Everything is durable here."""
        return self._acks.seal(encode(Done(receipt)))

    def stop(self, code: int, detail: str) -> bytearray:
        """The recipient gives up: the sender need not wait."""
        return self._acks.seal(encode(Stop(code, detail)))

    def receive(self, frame: Buffer) -> Event:
        """One frame; after a violation nothing more.

        `PeerViolation`: ``forged``, ``unexpected``, ``limit``, ``truncated``, ``malformed``.
        """
        if self._failed:
            raise PeerViolation("unexpected", "a frame after a failure")
        self._failed = True
        event = self._receive(DataHeader.unpack(frame), frame)
        self._failed = False
        return event

    def _receive(self, header: DataHeader, frame: Buffer) -> Event:
        if header.stream is Stream.MANIFEST:
            return self._receive_manifest(header, frame)
        if Flag.START in header.flags:
            return self._receive_start(header, frame)
        plaintext = self._data.open(header, frame)
        if header.flags == Flag.STOP:
            stop: Stop = decode(plaintext, Stop)
            return Stopped(stop.code, stop.detail)
        if header.flags == Flag.BYE:
            if not self._complete or plaintext:
                raise PeerViolation("truncated", "a farewell before the end")
            return Farewell()
        if header.flags not in {Flag.NONE, Flag.LAST}:
            raise PeerViolation("unexpected", "flags that do not go together")
        return self._receive_chunk(plaintext, last=header.flags == Flag.LAST)

    def _receive_start(self, header: DataHeader, frame: Buffer) -> Event:
        data, attempt = self._data, self._attempt
        if self._started:
            attempt += 1
            if header.attempt != attempt or not data.used_up or self._complete:
                raise PeerViolation("unexpected", "a second start")
            data = self._opener(Stream.DATA, attempt)
        start: Start = decode(data.open(header, frame), Start)
        if header.flags != Flag.START or (start.attempt, start.offset) != (attempt, self.received):
            raise PeerViolation("unexpected", "a start at another place")
        if self._started:
            self._acks = self._sealer(attempt)
        self._data, self._attempt, self._started = data, attempt, True
        return Started()

    def _receive_manifest(self, header: DataHeader, frame: Buffer) -> Event:
        if not self._started or self._manifest is not None or header.flags != Flag.LAST:
            raise PeerViolation("unexpected", "a manifest out of its place")
        plaintext = self._names.open(header, frame)
        if len(plaintext) > MANIFEST_MAX:
            raise PeerViolation("limit", "the manifest is too long")
        self._manifest = manifest = decode(plaintext, Manifest)
        return Announced(manifest)

    def _receive_chunk(self, plaintext: bytes, *, last: bool) -> Event:
        manifest, size = self._manifest, self._session.resp.chunk
        if manifest is None or self._complete:
            raise PeerViolation("truncated" if self._complete else "unexpected", "a chunk out of its place")
        if len(plaintext) > size + (TRAILER_BYTES if last else 0):
            raise PeerViolation("limit", "a chunk above the agreed size")
        if not last:
            if len(plaintext) != size:
                raise PeerViolation("truncated", "a short chunk before the end")
            self._take(plaintext)
            return Data(plaintext)
        if len(plaintext) < TRAILER_BYTES:
            raise PeerViolation("truncated", "the last chunk has no end")
        data, trailer = plaintext[:-TRAILER_BYTES], plaintext[-TRAILER_BYTES:]
        if not data and self.received:
            raise PeerViolation("truncated", "an empty last chunk")
        self._take(data)
        digest = self._hash.digest()
        if not compare_digest(trailer, self.received.to_bytes(8, "big") + digest + manifest_digest(manifest)):
            raise PeerViolation("truncated", "the totals do not fit")
        if manifest.size is not None and manifest.size != self.received:
            raise PeerViolation("truncated", "the size is not the announced one")
        self._complete = True
        return Complete(data, self.received, digest)

    def _take(self, data: bytes) -> None:
        self._hash.update(data)
        self.received += len(data)
        limit = self._session.resp.max_bytes
        if limit and self.received > limit:
            raise PeerViolation("limit", "more bytes than this client takes")

    def _opener(self, stream: Stream, attempt: int) -> StreamOpener:
        return StreamOpener(self._session.k, stream, attempt, self._session.req.cipher)

    def _sealer(self, attempt: int) -> StreamSealer:
        return StreamSealer(self._session.k, Stream.ACK, attempt, self._session.req.cipher)


def receipt_body(
    session: Session, manifest: Manifest, size: int, digest: bytes, began: float, ended: float
) -> ReceiptBody:
    """What the recipient signs; ``began`` and ``ended`` are its clock, seconds since 1970."""
    req, resp = session.req, session.resp
    return ReceiptBody(
        tid=req.tid, xid=req.xid, th=session.th, sender=req.sender, sender_fingerprint=session.peer.fingerprint,
        recipient=req.recipient, recipient_fingerprint=session.own_fingerprint,
        name_digest=name_digest(manifest.name), size=size, digest=digest, manifest_digest=manifest_digest(manifest),
        key_source=req.key_source, cipher=req.cipher, presence=resp.presence, presence_age=resp.presence_age,
        durable=not resp.live, asker=b"", began=int(began * 1000), ended=int(ended * 1000),
    )
