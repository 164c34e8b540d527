"""Direct delivery, the sender's side (Figure 2, 209 and 211; Figure 15, blocks 1506-1507).

 1. ACK  <- the recipient speaks first: attempt, position, credit      it holds K
 2. START, manifest, chunks ->                                          within the credit
 3. ACK  <- position and credit, again and again
 4. last chunk ->, ending with total, BLAKE3, manifest digest
 5. DONE <- the receipt: durable at the recipient, checked here field by field
 6. BYE  ->

No chunk is longer than agreed; one that was packed (where REQ says so) counts, everywhere but for its key, as what it
stands for. After the bytes that one key may take, the next attempt's keys take over on the same
connection (START of attempt + 1). A connection that breaks off is followed by another: 1 says from where it goes on, or
5 comes in place of 1.

States are values; `Line` owns the nonce counters and the running digest, and is the context of every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from zkc.constants import WINDOW_MAX
from zkc.crypto.chunks import Sealed, StreamOpener
from zkc.crypto.receipts import manifest_digest, name_digest, verify_receipt
from zkc.crypto.stream_cipher import Buffer
from zkc.errors import IntegrityError, PeerViolation
from zkc.protocol.delivery import GiveUp, NotOpened, Stopped, open_frame, opener_of, read_header, sealer_of
from zkc.protocol.session import Session, open_receipt
from zkc.protocol.step import Send, Step, Table, step
from zkc.wire.codec import decode, encode
from zkc.wire.frames import Flag, Stream
from zkc.wire.messages import Ack, AckMessage, Done, Manifest, Receipt, ReceiptBody, Start, Stop
from zkc.wire.packing import Packer

WRONG_RECEIPT: Final = "the other end lies, or one of the two versions is defective: ask there what has arrived"

# --- what the caller wants: events -----------------------------------------------------------------------------------


class Begin(Struct, frozen=True):
    """Event: START and the manifest may go out."""

    digest: blake3
    """Has taken every byte before the recipient's position."""


class Chunk(Struct, frozen=True):
    """Event: the next bytes, at most as many as a chunk has."""

    data: Buffer


class LastChunk(Struct, frozen=True):
    """Event: the last bytes, at most as many as a chunk has."""

    data: Buffer


class Leave(Struct, frozen=True):
    """Event: the receipt is here, and was found right."""


# --- what came of the recipient's words: effects ---------------------------------------------------------------------


class Credited(Struct, frozen=True):
    """The recipient has taken over ``position`` bytes."""

    position: int


class Delivered(Struct, frozen=True):
    """The recipient holds everything; the receipt has been held against what was sent."""

    receipt: bytes
    body: ReceiptBody


# --- states; ``sent``: bytes sealed so far, ``limit``: up to which byte there is credit ------------------------------


class AwaitingAck(Struct, frozen=True):
    """Nothing was said: the recipient speaks first."""

    sent: int = 0


class Admitted(Struct, frozen=True):
    """The recipient has shown that it holds K, and has given credit."""

    sent: int
    limit: int


class Sending(Struct, frozen=True):
    """START and the manifest are sealed, and ``sent`` bytes after them."""

    sent: int
    limit: int


class AwaitingDone(Struct, frozen=True):
    """Every byte and the trailer are sealed; ``digest``: BLAKE3 of the whole."""

    sent: int
    digest: bytes


class Finished(Struct, frozen=True):
    """The receipt is here."""

    sent: int


class Failed(Struct, frozen=True):
    """The recipient broke a rule: nothing more is heard; it may be told."""

    sent: int


class Ended(Struct, frozen=True):
    """One of the two has said its last word."""

    sent: int


State = AwaitingAck | Admitted | Sending | AwaitingDone | Finished | Failed | Ended


class Line:
    """What seals and opens, counter by counter: never copied, never stored."""

    def __init__(
        self, session: Session, manifest: Manifest, attempt: int, whole: tuple[int, bytes] | None,
        allot: Callable[[int], Sealed],
    ) -> None:
        self.session = session
        self.manifest = manifest
        self.attempt = attempt
        self.whole = whole
        """Size and BLAKE3 of the stream, where an earlier connection took all of it."""
        self._allot = allot
        self.data = sealer_of(session, Stream.DATA, attempt, allot)
        self.acks = opener_of(session, Stream.ACK, attempt)
        self._next_acks: StreamOpener | None = None
        self.hash = blake3()
        self._packer = Packer() if session.req.compression == "zstd" else None

    @property
    def awaits_rollover(self) -> bool:
        """Whether the key is used up while the recipient has not yet acknowledged under it: one rollover at a time."""
        return self.data.used_up and self._next_acks is not None

    def seal_chunk(self, data: Buffer, trailer: bytes = b"", flags: Flag = Flag.NONE) -> Sealed:
        """A chunk's frame, shorter where that was agreed and it can be."""
        packed = self._packer.pack(data) if self._packer is not None else None
        if packed is not None:
            data, flags = packed, flags | Flag.ZSTD
        return self.data.seal(bytes(data) + trailer if trailer else data, flags)

    def seal_manifest(self) -> Sealed:
        """The manifest's one frame, under a key of its own."""
        return sealer_of(self.session, Stream.MANIFEST, self.attempt).seal(encode(self.manifest), Flag.LAST)

    def roll_over(self) -> None:
        """The next attempt's keys; the recipient's acknowledgements follow once it has read so far."""
        self.attempt += 1
        self.data = sealer_of(self.session, Stream.DATA, self.attempt, self._allot)
        self._next_acks = opener_of(self.session, Stream.ACK, self.attempt)

    def open(self, frame: Buffer) -> Ack | Done | Stop:
        """One frame of the acknowledgement stream; `NotOpened`, `PeerViolation`."""
        header = read_header(frame)
        if header.flags:
            raise NotOpened("unexpected", "an acknowledgement has no flags")
        acks = self.acks
        if self._next_acks is not None and header.attempt == self.attempt:
            acks = self._next_acks
        message: Ack | Done | Stop = decode(bytes(open_frame(acks, header, frame)), AckMessage)
        if acks is self._next_acks:
            self.acks, self._next_acks = acks, None
        return message


# --- what is sent ----------------------------------------------------------------------------------------------------


def create_start(line: Line, state: Admitted, event: Begin) -> Step:
    """START at the recipient's position, and the manifest (Figure 2, 209; Figure 15, blocks 1506-1507)."""
    line.hash = event.digest
    start = line.data.seal(encode(Start(line.attempt, state.sent)), Flag.START)
    return Step(Sending(state.sent, state.limit), (Send(start), Send(line.seal_manifest())))


def create_chunk(line: Line, state: Sending, event: Chunk) -> Step:
    """The next chunk, before it a rollover where one is due (Figure 2, 209; Figure 15, blocks 1506-1507)."""
    before = _rollover(line, state)
    line.hash.update(event.data)
    frame = line.seal_chunk(event.data)
    return Step(Sending(state.sent + len(event.data), state.limit), (*before, Send(frame)))


def create_last_chunk(line: Line, state: Sending, event: LastChunk) -> Step:
    """The last bytes, then total, BLAKE3, digest of the manifest (Figure 2, 209; Figure 15, blocks 1506-1507)."""
    before = _rollover(line, state)
    line.hash.update(event.data)
    sent, digest = state.sent + len(event.data), line.hash.digest()
    trailer = sent.to_bytes(8, "big") + digest + manifest_digest(line.manifest)
    frame = line.seal_chunk(event.data, trailer, Flag.LAST)
    return Step(AwaitingDone(sent, digest), (*before, Send(frame)))


def create_farewell(line: Line, state: Finished, event: Leave) -> Step:
    """BYE: the receipt is here (after Figure 2, 211)."""
    return Step(Ended(state.sent), (Send(line.data.seal(b"", Flag.BYE)),))


def create_stop(
    line: Line, state: AwaitingAck | Admitted | Sending | AwaitingDone | Finished | Failed, event: GiveUp
) -> Step:
    """STOP: the recipient need not wait (Figure 2, 209 or 211, undone)."""
    frame = line.data.seal(encode(Stop(event.code, event.detail)), Flag.STOP)
    return Step(Ended(state.sent), (Send(frame),))


def _rollover(line: Line, state: Sending) -> tuple[Send, ...]:
    if not line.data.used_up:
        return ()
    line.roll_over()
    return (Send(line.data.seal(encode(Start(line.attempt, state.sent)), Flag.START)),)


# --- what comes ------------------------------------------------------------------------------------------------------


def consume_first_ack(line: Line, state: AwaitingAck, message: Ack) -> Step:
    """ACK, the recipient's first word: it is there, holds K, and says from where to go on (before Figure 2, 209)."""
    position = message.position
    return Step(Admitted(position, _limit(line, position, message)), (Credited(position),))


def consume_early_done(line: Line, state: AwaitingAck, message: Done) -> Step:
    """DONE as the first word: an earlier connection took everything (Figure 2, 211). The errors of `consume_done`."""
    if line.whole is None:
        raise PeerViolation("unexpected", "a receipt of what was not sent")
    return _receipted(line, *line.whole, message)


def consume_ack(line: Line, state: Admitted | Sending, message: Ack) -> Step:
    """ACK: so far it has taken over; credit that was given is not taken back (Figure 2, 210 on its way)."""
    limit = max(state.limit, _limit(line, state.sent, message))
    return Step(replace(state, limit=limit), (Credited(message.position),))


def consume_late_ack(line: Line, state: AwaitingDone, message: Ack) -> Step:
    """ACK after the last chunk was sealed: no credit is needed any more (Figure 2, 210 on its way)."""
    _limit(line, state.sent, message)
    return Step(state, (Credited(message.position),))


def consume_done(line: Line, state: AwaitingDone, message: Done) -> Step:
    """DONE: the recipient's answer, opened and held against what was sent (Figure 2, 211).

    `PeerViolation` for a receipt that it did not sign, `IntegrityError` (``receipt``) for one of something else.
    """
    return _receipted(line, state.sent, state.digest, message)


def consume_stop(line: Line, state: AwaitingAck | Admitted | Sending | AwaitingDone, message: Stop) -> Step:
    """STOP: the recipient gives up, in place of its answer (Figure 2, 211)."""
    return Step(Ended(state.sent), (Stopped(message.code, message.detail),))


def _receipted(line: Line, size: int, digest: bytes, message: Done) -> Step:
    receipt = open_receipt(line.session, message.receipt)
    body = check_receipt(line.session, receipt, line.manifest, size, digest)
    return Step(Finished(size), (Delivered(receipt, body),))


def _limit(line: Line, sent: int, message: Ack) -> int:
    if message.attempt != line.acks.attempt or message.position > sent:
        raise PeerViolation("unexpected", "an acknowledgement of what was not sent")
    return message.position + min(message.credit, WINDOW_MAX)


TABLE: Final[Table] = {
    (AwaitingAck, Ack): consume_first_ack,
    (AwaitingAck, Done): consume_early_done,
    (AwaitingAck, Stop): consume_stop,
    (AwaitingAck, GiveUp): create_stop,
    (Admitted, Begin): create_start,
    (Admitted, Ack): consume_ack,
    (Admitted, Stop): consume_stop,
    (Admitted, GiveUp): create_stop,
    (Sending, Chunk): create_chunk,
    (Sending, LastChunk): create_last_chunk,
    (Sending, Ack): consume_ack,
    (Sending, Stop): consume_stop,
    (Sending, GiveUp): create_stop,
    (AwaitingDone, Ack): consume_late_ack,
    (AwaitingDone, Done): consume_done,
    (AwaitingDone, Stop): consume_stop,
    (AwaitingDone, GiveUp): create_stop,
    (Finished, Leave): create_farewell,
    (Finished, GiveUp): create_stop,
    (Failed, GiveUp): create_stop,
}


class DeliverySender:
    """One delivery over one connection: the machine's state and its line, and the doors to the table.

    ``whole``: size and BLAKE3 of the stream, where an earlier connection of this session took all of it. ``allot``: as
    in `StreamSealer`, for all that is said under the data's keys.
    """

    def __init__(
        self, session: Session, manifest: Manifest, attempt: int = 0, whole: tuple[int, bytes] | None = None,
        allot: Callable[[int], Sealed] = bytearray,
    ) -> None:
        self._line = Line(session, manifest, attempt, whole, allot)
        self.state: State = AwaitingAck()
        self.chunk_size: Final = session.resp.chunk

    @property
    def sent(self) -> int:
        """Bytes sealed so far."""
        return self.state.sent

    @property
    def attempt(self) -> int:
        """The highest one that was used."""
        return self._line.attempt

    @property
    def digest(self) -> blake3:
        """Has taken every byte that was sealed; the caller may copy it."""
        return self._line.hash

    @property
    def whole(self) -> tuple[int, bytes] | None:
        """Size and BLAKE3 of the stream while nothing but the receipt is missing; else None."""
        state = self.state
        if isinstance(state, AwaitingDone):
            return state.sent, state.digest
        return self._line.whole if isinstance(state, AwaitingAck) else None

    @property
    def ended(self) -> bool:
        """Whether one of the two has said its last word."""
        return isinstance(self.state, Ended)

    def has_room(self) -> bool:
        """Whether a chunk of any size may go: credit admits it, and the recipient has followed the last rollover."""
        state = self.state
        room = isinstance(state, Sending) and state.sent + self.chunk_size <= state.limit
        return room and not self._line.awaits_rollover

    def start(self, digest: blake3 | None = None) -> list[Sealed]:
        """START and the manifest, after the recipient's first word; ``digest`` has taken every byte before its
        position."""
        return self._say(Begin(blake3() if digest is None else digest))

    def chunk(self, data: Buffer, *, last: bool) -> list[Sealed]:
        """The next chunk, at most `chunk_size` bytes; before it a rollover where one is due."""
        return self._say(LastChunk(data) if last else Chunk(data))

    def bye(self) -> Sealed:
        """The last word: the receipt is here."""
        (frame,) = self._say(Leave())
        return frame

    def stop(self, code: int, detail: str) -> Sealed:
        """The sender gives up: the recipient need not wait."""
        (frame,) = self._say(GiveUp(code, detail))
        return frame

    def receive(self, frame: Buffer) -> Credited | Delivered | Stopped:
        """One frame of the acknowledgement stream; after an error, nothing more.

        `NotOpened`, `PeerViolation`; `IntegrityError` for a receipt of something else.
        """
        state = self.state
        if isinstance(state, Failed | Ended):
            raise PeerViolation("unexpected", "a frame after the end")
        self.state = Failed(state.sent)
        result = step(TABLE, self._line, state, self._line.open(frame))
        self.state = result.state
        event: Credited | Delivered | Stopped
        (event,) = result.effects
        return event

    def _say(self, event: Begin | Chunk | LastChunk | Leave | GiveUp) -> list[Sealed]:
        result = step(TABLE, self._line, self.state, event)
        self.state = result.state
        return [effect.message for effect in result.effects]


def check_receipt(session: Session, receipt: bytes, manifest: Manifest, size: int, digest: bytes) -> ReceiptBody:
    """A receipt of DONE or `have`: signature, card and every field, against the sender's own knowledge.

    `PeerViolation` for one that the recipient did not sign, `IntegrityError` (``receipt``) for one of something else.
    """
    req, resp = session.req, session.resp
    body = verify_receipt(session.peer.identity, receipt)
    if decode(receipt, Receipt).card != session.peer.encoded:
        raise IntegrityError(
            f"the receipt of {req.recipient} carries another card than its answer", detail="receipt",
            hint=WRONG_RECEIPT,
        )
    expected = {
        "tid": req.tid, "xid": req.xid, "th": session.th, "sender": req.sender, "recipient": req.recipient,
        "sender_fingerprint": session.own_fingerprint, "recipient_fingerprint": session.peer.fingerprint,
        "name_digest": name_digest(manifest.name), "size": size, "digest": digest,
        "manifest_digest": manifest_digest(manifest), "key_source": req.key_source, "cipher": req.cipher,
        "presence": resp.presence, "presence_age": resp.presence_age, "durable": not resp.live, "asker": req.ask,
        "asked_by": req.asked_by,
    }
    for field, value in expected.items():
        if getattr(body, field) != value:
            raise IntegrityError(
                f"the receipt of {req.recipient} does not fit what was sent ({field})", detail="receipt",
                hint=WRONG_RECEIPT,
            )
    return body
