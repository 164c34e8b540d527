"""Direct delivery, the recipient's side (Figure 2, 210; Figure 16).

 1. ACK  -> attempt, position, credit                 the recipient speaks first
 2. START, manifest <-                                 judged before the first chunk is written
 3. chunks <-, each authenticated before it is handed on (block 1602); ACK -> as they are taken over
 4. last chunk <-: total, BLAKE3 and manifest digest are compared; then the caller makes it durable
 5. DONE -> the receipt (blocks 1603-1604), then BYE <- or the time is over

A connection that breaks off is followed by another, with 1 and 2 again: from the position that the recipient has come
to; after 4 its first word is DONE.

States are values; `Line` owns the nonce counters and the running digest, and is the context of every step.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import Final

from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from zkc.constants import MANIFEST_MAX, MESSAGE_TEXT_MAX, TRAILER_BYTES
from zkc.crypto.chunks import Sealed, StreamOpener
from zkc.crypto.receipts import manifest_digest, name_digest
from zkc.crypto.stream_cipher import Buffer
from zkc.errors import PeerViolation
from zkc.protocol.delivery import GiveUp, NotOpened, Stopped, open_frame, opener_of, read_header, sealer_of
from zkc.protocol.session import Session, seal_receipt
from zkc.protocol.step import Send, Step, Table, step
from zkc.wire.codec import decode, encode
from zkc.wire.frames import Flag, Stream
from zkc.wire.messages import Ack, Done, Manifest, Message, ReceiptBody, Start, Stop
from zkc.wire.packing import unpack

UNBOUNDED: Final = 1 << 63
"""More credit than a stream has bytes: for whoever reads what was recorded."""

# --- what the caller wants: events -----------------------------------------------------------------------------------


class Acknowledge(Struct, frozen=True):
    """Event: ``position`` bytes are taken over, ``credit`` more may be under way."""

    position: int
    credit: int


class Durable(Struct, frozen=True):
    """Event: all of it would outlive a loss of power; here is the receipt."""

    receipt: bytes


# --- what the sender says, opened; with START, manifest and STOP of the wire -----------------------------------------


class Chunk(Struct, frozen=True):
    """A frame of data with no flag."""

    data: Buffer


class LastChunk(Struct, frozen=True):
    """A frame of data with LAST: the trailer is in it."""

    data: Buffer


class Bye(Struct, frozen=True):
    """A frame of data with BYE."""

    data: Buffer


# --- what came of it: effects ----------------------------------------------------------------------------------------


class Started(Struct, frozen=True):
    """The sender is there and holds K."""


class Announced(Struct, frozen=True):
    """What is coming: name, note, size where it is known."""

    manifest: Manifest


class Data(Struct, frozen=True):
    """Authenticated bytes, in order; there until the next frame is received."""

    data: Buffer


class Complete(Struct, frozen=True):
    """The last bytes, there until the next frame; total and digest of the whole are right."""

    data: Buffer
    size: int
    digest: bytes


class Farewell(Struct, frozen=True):
    """The sender has its receipt."""


Event = Started | Announced | Data | Complete | Farewell | Stopped

# --- states; ``received``: bytes taken so far, ``limit``: up to which byte there is credit ---------------------------


class AwaitingStart(Struct, frozen=True):
    """The sender has not shown yet that it holds K."""

    received: int
    limit: int


class AwaitingManifest(Struct, frozen=True):
    """The sender is there."""

    received: int
    limit: int


class Receiving(Struct, frozen=True):
    """What is coming is known, and ``received`` bytes of it are here."""

    received: int
    limit: int
    manifest: Manifest


class Whole(Struct, frozen=True):
    """Every byte is here, and the digest is right; it is not durable yet."""

    received: int


class Receipted(Struct, frozen=True):
    """The receipt was sealed; the sender may not have it yet."""

    received: int


class Failed(Struct, frozen=True):
    """The sender broke a rule: nothing more is heard; it may be told."""

    received: int


class Ended(Struct, frozen=True):
    """One of the two has said its last word."""

    received: int


State = AwaitingStart | AwaitingManifest | Receiving | Whole | Receipted | Failed | Ended

_FORMS: Final[dict[tuple[Stream, Flag], type[Manifest | Start | Chunk | LastChunk | Bye | Stop]]] = {
    (Stream.MANIFEST, Flag.LAST): Manifest,
    (Stream.DATA, Flag.START): Start,
    (Stream.DATA, Flag.NONE): Chunk,
    (Stream.DATA, Flag.LAST): LastChunk,
    (Stream.DATA, Flag.BYE): Bye,
    (Stream.DATA, Flag.STOP): Stop,
}
"""Streams and flags that go together, and what such a frame holds."""


class Line:
    """What opens and seals, counter by counter: never copied, never stored."""

    def __init__(self, session: Session, attempt: int, digest: blake3, manifest: Manifest | None) -> None:
        self.session = session
        self.attempt = attempt
        self.manifest = manifest
        """As it was announced over an earlier connection."""
        self._manifest = opener_of(session, Stream.MANIFEST, attempt)
        self._data = opener_of(session, Stream.DATA, attempt)
        self._next: StreamOpener | None = None
        self._acks = sealer_of(session, Stream.ACK, attempt)
        self.hash = digest

    def open(self, frame: Buffer) -> Manifest | Start | Chunk | LastChunk | Bye | Stop:
        """What a frame holds, once it is authenticated; `NotOpened`, `PeerViolation`."""
        header = read_header(frame)
        packed = Flag.ZSTD in header.flags
        form = _FORMS.get((header.stream, header.flags & ~Flag.ZSTD))
        if form is None or (packed and (self.session.req.compression != "zstd" or form not in (Chunk, LastChunk))):
            raise NotOpened("unexpected", "stream and flags do not go together")
        opener = self._manifest if form is Manifest else self._data
        if form is Start and header.attempt == self.attempt + 1 and self._data.used_up:
            opener = self._next = opener_of(self.session, Stream.DATA, header.attempt)
        due = self._data.used_up
        plaintext = open_frame(opener, header, frame)
        if due and form in (Chunk, LastChunk):
            raise PeerViolation("limit", "a chunk where a rollover is due")
        if packed:
            end = max(len(plaintext) - (TRAILER_BYTES if form is LastChunk else 0), 0)
            plaintext = unpack(bytes(plaintext[:end]), self.session.resp.chunk) + bytes(plaintext[end:])
        if not issubclass(form, Message):
            return form(plaintext)
        if len(plaintext) > MANIFEST_MAX:
            raise PeerViolation("limit", "the manifest is too long")
        message: Manifest | Start | Stop = decode(bytes(plaintext), form)
        return message

    def roll_over(self) -> None:
        """The next attempt's keys, in both directions: its START has opened."""
        if self._next is None:
            raise PeerViolation("unexpected", "a second start, under the old keys")
        self._data, self._next = self._next, None
        self.attempt += 1
        self._acks = sealer_of(self.session, Stream.ACK, self.attempt)

    def seal(self, message: Ack | Done | Stop) -> Sealed:
        """One frame of the acknowledgement stream."""
        return self._acks.seal(encode(message))


# --- what is said ----------------------------------------------------------------------------------------------------


def create_ack(line: Line, state: AwaitingStart | AwaitingManifest | Receiving, event: Acknowledge) -> Step:
    """ACK: what is taken over, and what may follow; credit that was given is not taken back (Figure 2, 210)."""
    frame = line.seal(Ack(line.attempt, event.position, event.credit))
    return Step(replace(state, limit=max(state.limit, event.position + event.credit)), (Send(frame),))


def create_done(line: Line, state: Whole, event: Durable) -> Step:
    """DONE: the receipt under the session key, sealed to the sender's permanent key where that was asked for (Figure 2,
    210; Figure 16, blocks 1603-1604)."""
    receipt = seal_receipt(line.session, event.receipt)
    return Step(Receipted(state.received), (Send(line.seal(Done(receipt))),))


def create_stop(
    line: Line, state: AwaitingStart | AwaitingManifest | Receiving | Whole | Receipted | Failed, event: GiveUp
) -> Step:
    """STOP: the sender need not wait (in place of the answer of Figure 16, block 1603)."""
    return Step(Ended(state.received), (Send(line.seal(Stop(event.code, event.detail))),))


# --- what comes ------------------------------------------------------------------------------------------------------


def consume_start(line: Line, state: AwaitingStart, message: Start) -> Step:
    """START, where the recipient stands (before Figure 16, block 1601)."""
    _check_place(line.attempt, state.received, message)
    return Step(AwaitingManifest(state.received, state.limit), (Started(),))


def consume_rollover(line: Line, state: Receiving, message: Start) -> Step:
    """START of the next attempt, where one is due: new keys in both directions (between two blocks 1601 of Figure 16).

    `PeerViolation` (``unexpected``).
    """
    _check_place(line.attempt + 1, state.received, message)
    line.roll_over()
    return Step(state, (Started(),))


def consume_manifest(line: Line, state: AwaitingManifest, message: Manifest) -> Step:
    """What is coming, for the caller to judge before the first chunk (Figure 16, blocks 1601-1602).

    `PeerViolation`: ``unexpected`` where it is not what was accepted before (attack F06), ``limit`` for a message that
    is none by its length (attack F11).
    """
    if message.kind == "message" and (message.size or 0) > MESSAGE_TEXT_MAX:
        raise PeerViolation("limit", "a message that is too long")
    if line.manifest is not None and message != line.manifest:
        raise PeerViolation("unexpected", "another manifest than before")
    return Step(Receiving(state.received, state.limit, message), (Announced(message),))


def consume_chunk(line: Line, state: Receiving, message: Chunk) -> Step:
    """A chunk of at most the agreed size, within the credit (Figure 2, 210; Figure 16, blocks 1601-1602).

    `PeerViolation`: ``limit``, ``truncated``.
    """
    if len(message.data) > line.session.resp.chunk:
        raise PeerViolation("limit", "a chunk above the agreed size")
    if not message.data:
        raise PeerViolation("truncated", "an empty chunk before the end")
    received = _take(line, state, message.data)
    return Step(Receiving(received, state.limit, state.manifest), (Data(message.data),))


def consume_last_chunk(line: Line, state: Receiving, message: LastChunk) -> Step:
    """The last bytes, and the totals of the whole (Figure 2, 210; Figure 16, block 1602).

    `PeerViolation`: ``limit``, ``truncated``.
    """
    end = len(message.data) - TRAILER_BYTES
    if end > line.session.resp.chunk:
        raise PeerViolation("limit", "a chunk above the agreed size")
    if end < 0:
        raise PeerViolation("truncated", "the last chunk has no end")
    data, trailer = message.data[:end], bytes(message.data[end:])
    received = _take(line, state, data)
    digest = line.hash.digest()
    if not compare_digest(trailer, received.to_bytes(8, "big") + digest + manifest_digest(state.manifest)):
        raise PeerViolation("truncated", "the totals do not fit")
    if state.manifest.size is not None and state.manifest.size != received:
        raise PeerViolation("truncated", "the size is not the announced one")
    return Step(Whole(received), (Complete(data, received, digest),))


def consume_bye(line: Line, state: Receipted, message: Bye) -> Step:
    """BYE: the sender has opened the receipt (Figure 2, 211); `PeerViolation` (``truncated``) with words in it."""
    if message.data:
        raise PeerViolation("truncated", "a farewell that says more")
    return Step(Ended(state.received), (Farewell(),))


def consume_wrong_end(
    line: Line, state: AwaitingStart | AwaitingManifest | Receiving | Whole | Receipted,
    message: Chunk | LastChunk | Bye,
) -> Step:
    """What was taken for the end is none (Figure 16, block 1602; attack D04): `PeerViolation` (``truncated``)."""
    raise PeerViolation("truncated", f"{type(message).__name__} in {type(state).__name__}")


def consume_stop(
    line: Line, state: AwaitingStart | AwaitingManifest | Receiving | Whole | Receipted, message: Stop
) -> Step:
    """STOP: the sender gives up (in place of Figure 16, block 1601)."""
    return Step(Ended(state.received), (Stopped(message.code, message.detail),))


def _check_place(attempt: int, received: int, message: Start) -> None:
    if (message.attempt, message.offset) != (attempt, received):
        raise PeerViolation("unexpected", "a start at another place")


def _take(line: Line, state: Receiving, data: Buffer) -> int:
    """Bytes taken with ``data``; nothing is hashed that is above a limit."""
    received, most, announced = state.received + len(data), line.session.resp.max_bytes, state.manifest.size
    if received > state.limit:
        raise PeerViolation("limit", "more bytes under way than there was credit for")
    if most and received > most:
        raise PeerViolation("limit", "more bytes than this client takes")
    if state.manifest.kind == "message" and received > MESSAGE_TEXT_MAX:
        raise PeerViolation("limit", "a message that is too long")
    if announced is not None and received > announced:
        raise PeerViolation("truncated", "more bytes than were announced")
    line.hash.update(data)
    return received


TABLE: Final[Table] = {
    (AwaitingStart, Acknowledge): create_ack,
    (AwaitingStart, Start): consume_start,
    (AwaitingStart, Bye): consume_wrong_end,
    (AwaitingStart, Stop): consume_stop,
    (AwaitingStart, GiveUp): create_stop,
    (AwaitingManifest, Acknowledge): create_ack,
    (AwaitingManifest, Manifest): consume_manifest,
    (AwaitingManifest, Bye): consume_wrong_end,
    (AwaitingManifest, Stop): consume_stop,
    (AwaitingManifest, GiveUp): create_stop,
    (Receiving, Acknowledge): create_ack,
    (Receiving, Chunk): consume_chunk,
    (Receiving, LastChunk): consume_last_chunk,
    (Receiving, Bye): consume_wrong_end,
    (Receiving, Start): consume_rollover,
    (Receiving, Stop): consume_stop,
    (Receiving, GiveUp): create_stop,
    (Whole, Durable): create_done,
    (Whole, Chunk): consume_wrong_end,
    (Whole, LastChunk): consume_wrong_end,
    (Whole, Bye): consume_wrong_end,
    (Whole, Stop): consume_stop,
    (Whole, GiveUp): create_stop,
    (Receipted, Chunk): consume_wrong_end,
    (Receipted, LastChunk): consume_wrong_end,
    (Receipted, Bye): consume_bye,
    (Receipted, Stop): consume_stop,
    (Receipted, GiveUp): create_stop,
    (Failed, GiveUp): create_stop,
}


class DeliveryRecipient:
    """One delivery over one connection: the machine's state and its line, and the doors to the table.

    ``credit``: bytes that may come before the first ACK is made, for a sender need not have heard it to be obeying
    it: what the caller is about to give. Of what came before: ``received`` bytes, whose BLAKE3 ``digest`` has taken by
    the time that the first chunk comes; the ``manifest``, where an earlier connection of this session brought it;
    ``whole``, where nothing is missing but the sender's farewell.
    """

    def __init__(
        self, session: Session, attempt: int = 0, credit: int = UNBOUNDED, *, received: int = 0,
        digest: blake3 | None = None, manifest: Manifest | None = None, whole: bool = False,
    ) -> None:
        self._line = Line(session, attempt, blake3() if digest is None else digest, manifest)
        self.state: State = Whole(received) if whole else AwaitingStart(received, received + credit)

    @property
    def attempt(self) -> int:
        """The highest one that was used."""
        return self._line.attempt

    @property
    def received(self) -> int:
        """Bytes taken so far."""
        return self.state.received

    @property
    def ended(self) -> bool:
        """Whether one of the two has said its last word."""
        return isinstance(self.state, Ended)

    def ack(self, position: int, credit: int) -> Sealed:
        """``position`` bytes are taken over; ``credit`` more may be under way."""
        return self._say(Acknowledge(position, credit))

    def done(self, receipt: bytes) -> Sealed:
        """Everything is durable here."""
        return self._say(Durable(receipt))

    def stop(self, code: int, detail: str) -> Sealed:
        """The recipient gives up: the sender need not wait."""
        return self._say(GiveUp(code, detail))

    def receive(self, frame: Buffer) -> Event:
        """One frame; after a violation nothing more.

        `NotOpened` for one that nobody with the key made, or not now; `PeerViolation`: ``unexpected``, ``limit``,
        ``truncated``, ``malformed``.
        """
        state = self.state
        if isinstance(state, Failed | Ended):
            raise PeerViolation("unexpected", "a frame after the end")
        self.state = Failed(state.received)
        result = step(TABLE, self._line, state, self._line.open(frame))
        self.state = result.state
        event: Event
        (event,) = result.effects
        return event

    def _say(self, event: Acknowledge | Durable | GiveUp) -> Sealed:
        result = step(TABLE, self._line, self.state, event)
        self.state = result.state
        (effect,) = result.effects
        frame: Sealed = effect.message
        return frame


def receipt_body(
    session: Session, manifest: Manifest, size: int, digest: bytes, began: float, ended: float
) -> ReceiptBody:
    """What the recipient signs; ``began`` and ``ended`` are its clock, seconds since 1970."""
    req, resp = session.req, session.resp
    return ReceiptBody(
        tid=req.tid, xid=req.xid, th=session.th, sender=req.sender, sender_fingerprint=session.peer.fingerprint,
        recipient=req.recipient, recipient_fingerprint=session.own_fingerprint, card_hash=resp.card_hash,
        name_digest=name_digest(manifest.name), size=size, digest=digest, manifest_digest=manifest_digest(manifest),
        key_source=req.key_source, cipher=req.cipher, presence=resp.presence, presence_age=resp.presence_age,
        durable=not resp.live, asker=req.ask, asked_by=req.asked_by, began=int(began * 1000), ended=int(ended * 1000),
    )
