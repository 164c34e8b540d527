"""Direct delivery between two machines (figure 2, 209-211; figure 16): frames in, events out."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final

import msgspec
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.link import flipped, places
from tests.support.parties import identity_of, world
from tests.support.talks import terms
from zkc.constants import CHUNK_MIN, MANIFEST_MAX, MESSAGE_TEXT_MAX, TRAILER_BYTES, WINDOW_MAX
from zkc.crypto import ciphers
from zkc.crypto.chunks import StreamOpener, StreamSealer
from zkc.crypto.ciphers import AeadCipher
from zkc.crypto.primitives import Secret, digest
from zkc.crypto.receipts import make_receipt, manifest_digest
from zkc.crypto.suites import open_sealed
from zkc.crypto.unsafe import CbcThenMac
from zkc.errors import IntegrityError, PeerViolation
from zkc.ids import CIPHERS
from zkc.protocol import delivery_recipient as dr
from zkc.protocol import delivery_sender as ds
from zkc.protocol.delivery import NotOpened, Stopped
from zkc.protocol.delivery_recipient import DeliveryRecipient, receipt_body
from zkc.protocol.delivery_sender import DeliverySender
from zkc.protocol.session import Session
from zkc.wire.codec import decode, encode
from zkc.wire.frames import DATA_HEADER_BYTES, DataHeader, Flag, Stream
from zkc.wire.messages import Ack, Card, Done, Manifest, Receipt, ReceiptBody, Start, Stop

C: Final = CHUNK_MIN
CREDIT: Final = 1 << 30
WHOLE: Final = Manifest("stream", "data.bin", "a note", None, 0o644, 0)
OTHER: Final = Manifest("stream", "other.bin", "", None, 0o644, 0)


@cache
def sessions(
    cipher: str = "aes-256-gcm", serial: int = 1, source: str = "sender", acknowledgement: str = "session"
) -> tuple[Session, Session]:
    """Sender's and recipient's session of one agreed transfer from alice to bob."""
    asked = terms(
        "bob", cipher=cipher, serial=serial, key_source=source, acknowledgement=acknowledgement  # type: ignore[arg-type]
    )
    talk = world("x25519").transfer(asked)
    talk.run()
    return talk.sessions


def content(size: int) -> bytes:
    return bytes(blake3(b"content").digest(length=size)) if size else b""


@dataclasses.dataclass
class Delivery:
    """Both ends of one delivery, and what came out at the recipient."""

    sender: DeliverySender
    recipient: DeliveryRecipient
    into: bytearray = dataclasses.field(default_factory=bytearray)
    complete: dr.Complete | None = None
    delivered: ds.Delivered | None = None
    events: list[Any] = dataclasses.field(default_factory=list)
    frames: list[bytes] = dataclasses.field(default_factory=list)
    """Every frame of manifest and data, in order."""

    @classmethod
    def of(cls, pair: tuple[Session, Session] | None = None, manifest: Manifest = WHOLE, attempt: int = 0) -> Delivery:
        sender, recipient = pair or sessions()
        return cls(DeliverySender(sender, manifest, attempt), DeliveryRecipient(recipient, attempt))

    def begin(self) -> Delivery:
        """The recipient's first word, START, manifest."""
        self.sender.receive(bytes(self.recipient.ack(0, CREDIT)))
        self.hear(*self.sender.start())
        return self

    def hear(self, *frames: bytes | bytearray) -> list[Any]:
        """Frames arrive at the recipient."""
        events = []
        for frame in frames:
            self.frames.append(bytes(frame))
            event = self.recipient.receive(bytes(frame))
            if isinstance(event, dr.Data | dr.Complete):
                self.into += event.data
            if isinstance(event, dr.Complete):
                self.complete = event
            events.append(event)
        return events

    def send(self, data: bytes) -> Delivery:
        """All of ``data``, to the end."""
        for at in range(0, max(len(data), 1), C):
            piece = data[at : at + C]
            self.hear(*self.sender.chunk(piece, last=at + C >= len(data)))
            if self.complete is None:
                self.sender.receive(bytes(self.recipient.ack(len(self.into), CREDIT)))
        return self

    def receipt(self, **changes: Any) -> bytes:
        """The recipient's receipt, or one with some fields changed."""
        assert self.complete is not None
        body = receipt_body(self.recipient._line.session, WHOLE, self.complete.size, self.complete.digest, 1.0, 2.0)
        return sealed_receipt(msgspec.structs.replace(body, **changes))

    def finish(self, receipt: bytes | None = None) -> Delivery:
        event = self.sender.receive(bytes(self.recipient.done(receipt or self.receipt())))
        assert isinstance(event, ds.Delivered)
        self.delivered = event
        assert self.hear(self.sender.bye()) == [dr.Farewell()]
        return self


def sealed_receipt(body: ReceiptBody, card: bytes | None = None, signer: str = "bob") -> bytes:
    return make_receipt(identity_of(signer), body, world("x25519").bob.card.encoded if card is None else card)


def violation(function: Callable[[], object]) -> str:
    with pytest.raises(PeerViolation) as caught:
        function()
    return caught.value.detail


@dataclasses.dataclass
class Forger:
    """A sender that holds K and keeps no rule: any plaintext, any flags, any place."""

    session: Session
    attempt: int = 0
    data: StreamSealer = dataclasses.field(init=False)
    names: StreamSealer = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.data = StreamSealer(self.session.k, Stream.DATA, self.attempt, self.session.req.cipher)
        self.names = StreamSealer(self.session.k, Stream.MANIFEST, self.attempt, self.session.req.cipher)

    def start(self, offset: int = 0, flags: Flag = Flag.START, attempt: int | None = None) -> bytes:
        start = Start(self.attempt if attempt is None else attempt, offset)
        return bytes(self.data.seal(encode(start), flags))

    def manifest(self, manifest: Manifest = WHOLE, flags: Flag = Flag.LAST) -> bytes:
        return bytes(self.names.seal(encode(manifest), flags))

    def chunk(self, plaintext: bytes, flags: Flag = Flag.NONE) -> bytes:
        return bytes(self.data.seal(plaintext, flags))

    @staticmethod
    def end(data: bytes, manifest: Manifest = WHOLE, size: int | None = None) -> bytes:
        """The trailer that fits ``data``."""
        total = len(data) if size is None else size
        return total.to_bytes(8, "big") + blake3(data).digest() + manifest_digest(manifest)


def forged() -> tuple[Forger, DeliveryRecipient]:
    """A forger whose START and manifest have been taken."""
    forger, recipient = Forger(sessions()[0]), DeliveryRecipient(sessions()[1])
    recipient.receive(forger.start())
    recipient.receive(forger.manifest())
    return forger, recipient


# --- the way through ------------------------------------------------------------------------------------------------


@pytest.mark.claims("E2", "B5")
@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("size", [0, 1, C - 1, C, C + 1, 2 * C])
def test_what_is_sent_arrives_whole_and_is_acknowledged_with_a_receipt(cipher: str, size: int) -> None:
    data = content(size)
    delivery = Delivery.of(sessions(cipher)).begin().send(data).finish()
    assert bytes(delivery.into) == data
    assert delivery.complete == dr.Complete(delivery.complete.data, size, blake3(data).digest())
    body = delivery.delivered.body
    assert (body.size, body.digest, body.cipher, body.durable) == (size, blake3(data).digest(), cipher, True)
    assert (body.began, body.ended) == (1000, 2000)


@pytest.mark.claims("B5", "B3", 17, 49)
@pytest.mark.parametrize("order", ["recipient-first", "sender-first"])
def test_a_coordinator_made_key_carries_data_and_the_receipt_says_so(order: str) -> None:
    talk = world("x25519").transfer(terms("bob", key_source="coordinator", key_order=order))  # type: ignore[arg-type]
    talk.run()
    delivery = Delivery.of(talk.sessions).begin().send(content(C + 5)).finish()
    assert delivery.delivered.body.key_source == "coordinator"


@pytest.mark.claims("B5")
@pytest.mark.parametrize("source", ["sender", "coordinator"])
def test_the_receipt_comes_sealed_to_the_senders_permanent_key_where_it_asks_for_that(source: str) -> None:
    """Figure 16, block 1603, names both keys: who has the session key alone does not read such a receipt."""
    everyone, pair = world("x25519"), sessions(source=source, acknowledgement="permanent")
    for sealed, ends in ((False, sessions(source=source)), (True, pair)):
        delivery = Delivery.of(ends).begin().send(b"abc")
        receipt = delivery.receipt()
        frame, done = said(delivery, receipt)
        assert receipt not in frame
        assert (done.receipt == receipt) is not sealed
        if sealed:
            for key in (everyone.bob.kem_key, everyone.carol.kem_key, everyone.alice.perm_server):
                with pytest.raises(PeerViolation, match="forged"):
                    open_sealed(key, "xfer-done", ends[0].th, done.receipt)
            assert open_sealed(everyone.alice.kem_key, "xfer-done", ends[0].th, done.receipt) == receipt
        delivered = delivery.sender.receive(frame)
        assert isinstance(delivered, ds.Delivered)
        assert delivered.receipt == receipt
    # One that is not sealed, though it was asked for, is none; nor is one of another transfer.
    for wrong in (sessions(source=source)[1], dataclasses.replace(pair[1], th=bytes(32))):
        delivery = Delivery.of(pair).begin().send(b"abc")
        receipt = delivery.receipt()
        delivery.recipient._line.session = dataclasses.replace(wrong, k=pair[1].k)
        assert violation(lambda delivery=delivery, receipt=receipt: delivery.finish(receipt)) == "forged"


def said(delivery: Delivery, receipt: bytes) -> tuple[bytes, Done]:
    """DONE as a frame, and as who has the session key reads it."""
    line, messages = delivery.recipient._line, []
    seal = line.seal
    line.seal = lambda message: messages.append(message) or seal(message)
    frame = bytes(delivery.recipient.done(receipt))
    (message,) = messages
    return frame, message


@pytest.mark.claims("B5")
def test_nothing_counts_as_delivered_before_the_acknowledgement_was_opened() -> None:
    """The sender's last word is its last chunk; only the receipt makes it `Delivered`."""
    delivery = Delivery.of().begin().send(content(C))
    assert delivery.sender.whole == (C, blake3(content(C)).digest())
    assert delivery.delivered is None
    assert delivery.finish().delivered is not None


@pytest.mark.claims("E2")
@pytest.mark.parametrize("cipher", CIPHERS)
def test_content_name_and_note_are_not_to_be_seen_on_the_way(cipher: str) -> None:
    data = b"the secret content " * 5000
    delivery = Delivery.of(sessions(cipher)).begin().send(data).finish()
    seen = b"".join(delivery.frames)
    assert b"secret content" not in seen
    assert b"data.bin" not in seen
    assert b"a note" not in seen


def test_the_recipient_speaks_first_and_credit_bounds_what_is_under_way() -> None:
    delivery = Delivery.of()
    assert not delivery.sender.has_room()
    assert delivery.sender.receive(bytes(delivery.recipient.ack(0, 2 * C))) == ds.Credited(0)
    delivery.hear(*delivery.sender.start())
    for taken in (1, 2):
        assert delivery.sender.has_room()
        delivery.hear(*delivery.sender.chunk(content(C), last=False))
        assert delivery.recipient.received == taken * C
    assert not delivery.sender.has_room()
    delivery.sender.receive(bytes(delivery.recipient.ack(C, 2 * C)))
    assert delivery.sender.has_room()
    delivery.sender.receive(bytes(delivery.recipient.ack(C, 0)))
    assert delivery.sender.has_room(), "credit that was given is not taken back"


@pytest.mark.attack("D18")
def test_no_more_is_under_way_than_an_honest_recipient_allows_whatever_credit_one_gives() -> None:
    """Of a pipe the sender keeps what is under way. It is the recipient that says how much, and it may take nothing."""
    delivery = Delivery.of()
    most = (1 << 32) - 1
    delivery.sender.receive(bytes(delivery.recipient.ack(0, most)))
    delivery.sender.start()
    for taken in (0, 0, 3 * C):
        delivery.sender.receive(bytes(delivery.recipient.ack(taken, most)))
        while delivery.sender.has_room():
            delivery.sender.chunk(bytes(C), last=False)
        assert delivery.sender.sent == taken + WINDOW_MAX


def test_the_manifest_comes_before_the_first_chunk() -> None:
    delivery = Delivery.of()
    delivery.sender.receive(bytes(delivery.recipient.ack(0, CREDIT)))
    assert delivery.hear(*delivery.sender.start()) == [dr.Started(), dr.Announced(WHOLE)]
    assert delivery.recipient.state == dr.Receiving(0, dr.UNBOUNDED, WHOLE)
    assert not delivery.into


@pytest.mark.parametrize("code", [25, 33])
def test_either_end_may_stop_with_a_code(code: int) -> None:
    delivery = Delivery.of().begin()
    delivery.hear(*delivery.sender.chunk(content(C), last=False))
    stopped = delivery.sender.receive(bytes(delivery.recipient.stop(code, "no-space")))
    assert stopped == Stopped(code, "no-space")
    other = Delivery.of().begin()
    assert other.hear(other.sender.stop(code, "source-changed")) == [Stopped(code, "source-changed")]
    early = Delivery.of()
    assert early.hear(early.sender.stop(code, "early")) == [Stopped(code, "early")]


def test_an_end_that_has_failed_may_say_so_once_and_an_end_that_was_told_says_nothing() -> None:
    """What the programs rely on when they tell the other end whatever went wrong."""
    for end in ("sender", "recipient"):
        delivery = Delivery.of().begin()
        this, other = delivery.sender, delivery.recipient
        if end == "recipient":
            this, other = other, this  # type: ignore[assignment]
        assert violation(lambda: this.receive(b"noise"))  # noqa: B023
        assert not this.ended
        other.receive(bytes(this.stop(32, "malformed")))
        for each in (this, other):
            assert each.ended
            assert violation(lambda: each.stop(32, "again")) == "unexpected"  # noqa: B023
            assert violation(lambda: each.receive(b"")) == "unexpected"  # noqa: B023


def test_size_and_digest_are_known_only_while_nothing_but_the_receipt_is_missing() -> None:
    delivery = Delivery.of()
    assert delivery.sender.whole is None
    delivery.begin()
    delivery.hear(*delivery.sender.chunk(content(C), last=False))
    assert delivery.sender.whole is None
    delivery.hear(*delivery.sender.chunk(b"end", last=True))
    assert delivery.sender.whole == (C + 3, blake3(content(C) + b"end").digest())
    delivery.finish()
    assert delivery.sender.whole is None


def test_a_receipt_comes_once() -> None:
    delivery = Delivery.of().begin().send(b"x")
    done = bytes(delivery.recipient.done(delivery.receipt()))
    assert isinstance(delivery.sender.receive(done), ds.Delivered)
    assert violation(lambda: delivery.recipient.done(b"another")) == "unexpected"
    assert violation(lambda: delivery.sender.receive(done)) == "unexpected"


def test_owners_of_nonces_are_neither_copied_nor_stored() -> None:
    sealer = StreamSealer(sessions()[0].k, Stream.DATA, 0, "aes-256-gcm")
    for away in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            away(sealer)


# --- rollover -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cipher", CIPHERS)
def test_after_the_bytes_that_one_key_may_take_the_next_attempts_keys_take_over(
    cipher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same link, any number of times; no key is used for more, and the file is whole."""
    for kind in (AeadCipher, CbcThenMac):
        monkeypatch.setattr(kind, "rollover_bytes", 3 * C)
    data = content(11 * C + 7)
    delivery = Delivery.of(sessions(cipher)).begin().send(data).finish()
    assert bytes(delivery.into) == data
    headers = [DataHeader.unpack(frame) for frame in delivery.frames]
    assert [header.attempt for header in headers if Flag.START in header.flags] == [0, 1, 2, 3]
    places_used = [(header.stream, header.attempt, header.index) for header in headers]
    assert len(set(places_used)) == len(places_used)
    for attempt in range(4):
        taken = sum(
            h.attempt == attempt and h.stream is Stream.DATA and not h.flags & (Flag.START | Flag.BYE) for h in headers
        )
        assert taken <= 4


def test_a_second_rollover_waits_until_the_first_was_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much credit there is: acknowledgements of an attempt that was skipped would open with no key."""
    monkeypatch.setattr(AeadCipher, "rollover_bytes", 2 * C)
    delivery = Delivery.of().begin()
    frames: list[bytearray] = []
    while delivery.sender.has_room():
        frames += delivery.sender.chunk(content(C), last=False)
    assert [DataHeader.unpack(frame).attempt for frame in frames] == [0, 0, 1, 1, 1]
    acks = []
    for frame in frames:
        delivery.hear(frame)
        acks.append(bytes(delivery.recipient.ack(delivery.recipient.received, CREDIT)))
    for ack, room in zip(acks, [False, False, True, True, True], strict=True):
        delivery.sender.receive(ack)
        assert delivery.sender.has_room() is room
    delivery.send(b"end").finish()


def test_the_bound_is_64_gib_and_64_mib_for_the_small_blocks() -> None:
    bounds = {name: ciphers.make_cipher(name, bytes(32)).rollover_bytes for name in CIPHERS}
    assert bounds == {
        "aes-256-gcm": 1 << 36, "chacha20-poly1305": 1 << 36, "3des": 1 << 26, "idea": 1 << 26,
    }  # fmt: skip


@pytest.mark.attack("D05")
@pytest.mark.parametrize("when", ["too early", "skipping one", "the same again", "after the end"])
def test_a_new_attempt_begins_only_where_one_is_due(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AeadCipher, "rollover_bytes", 2 * C)
    forger, recipient = forged()
    chunks = {"too early": 1, "after the end": 1}.get(when, 2)
    for _ in range(chunks):
        recipient.receive(forger.chunk(content(C)))
    if when == "after the end":
        recipient.receive(forger.chunk(content(C) + Forger.end(content(C) * 2), Flag.LAST))
    attempt = {"skipping one": 2, "the same again": 0}.get(when, 1)
    start = Forger(sessions()[0], attempt).start(recipient.received)
    assert violation(lambda: recipient.receive(start)) == "unexpected"


@pytest.mark.attack("D11")
@pytest.mark.parametrize("last", [False, True])
def test_a_chunk_under_a_key_that_is_used_up_is_over_the_limit(last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipient holds the sender to what one key may take."""
    monkeypatch.setattr(AeadCipher, "rollover_bytes", 2 * C)
    forger, recipient = forged()
    for _ in range(2):
        recipient.receive(forger.chunk(content(C)))
    end = b"x" + Forger.end(content(C) * 2 + b"x")
    frame = forger.chunk(end, Flag.LAST) if last else forger.chunk(content(C))
    assert violation(lambda: recipient.receive(frame)) == "limit"
    assert recipient.received == 2 * C


def test_a_forged_start_of_a_new_attempt_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Header and commitment are no secret: only what opens changes keys; the last word stays under the old ones."""
    monkeypatch.setattr(AeadCipher, "rollover_bytes", 2 * C)
    delivery = Delivery.of().begin()
    for _ in range(2):
        delivery.hear(*delivery.sender.chunk(content(C), last=False))
    true = Forger(sessions()[0], 1).start(2 * C)
    assert violation(lambda: delivery.recipient.receive(flipped(true, len(true) - 1))) == "forged"
    last_word = bytes(delivery.recipient.stop(32, "forged"))
    assert DataHeader.unpack(last_word).attempt == 0
    assert delivery.sender.receive(last_word) == Stopped(32, "forged")


def test_a_forged_acknowledgement_of_the_next_attempt_gives_no_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AeadCipher, "rollover_bytes", 2 * C)
    delivery = Delivery.of().begin()
    for _ in range(3):
        delivery.hear(*delivery.sender.chunk(content(C), last=False))
    ack = bytes(delivery.recipient.ack(3 * C, CREDIT))
    assert DataHeader.unpack(ack).attempt == 1
    assert violation(lambda: delivery.sender.receive(flipped(ack, len(ack) - 1))) == "forged"
    assert delivery.sender.state == ds.Failed(3 * C)
    assert not delivery.sender.has_room()


# --- D03: damage ----------------------------------------------------------------------------------------------------


@pytest.mark.attack("D03", "D08", "P01")
@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("which", ["start", "manifest", "chunk", "last", "bye"])
def test_a_damaged_frame_is_refused_and_none_of_it_comes_out(cipher: str, which: str) -> None:
    """Each byte of the header; commitment, ciphertext and tag at even steps: nothing is taken, counted or hashed."""
    data = content(C + 100)
    whole = Delivery.of(sessions(cipher)).begin().send(data).finish().frames
    at = ["start", "manifest", "chunk", "last", "bye"].index(which)
    frame = whole[at]
    spots = [*range(DATA_HEADER_BYTES), *places(DATA_HEADER_BYTES, len(frame), 30)]
    for place in spots:
        recipient = DeliveryRecipient(sessions(cipher)[1])
        for earlier in whole[:at]:
            recipient.receive(earlier)
        before, hashed = recipient.received, recipient._line.hash.digest()
        assert violation(lambda: recipient.receive(flipped(frame, place, 1 << place % 8))) in {  # noqa: B023
            "forged", "unexpected", "malformed", "version",
        }  # fmt: skip
        assert (recipient.received, recipient._line.hash.digest()) == (before, hashed)


@pytest.mark.attack("D03", "D17")
def test_a_damaged_acknowledgement_is_refused() -> None:
    for make in (lambda d: d.recipient.ack(0, CREDIT), lambda d: d.recipient.stop(33, "no-space")):
        frame = bytes(make(Delivery.of()))
        for place in range(len(frame)):
            sender = Delivery.of().sender
            assert violation(lambda: sender.receive(flipped(frame, place, 1 << place % 8)))  # noqa: B023
            assert sender.state == ds.Failed(0)


@pytest.mark.attack("D03")
@pytest.mark.parametrize("cut", [0, 1, DATA_HEADER_BYTES - 1, DATA_HEADER_BYTES, DATA_HEADER_BYTES + 31, -1, -16])
def test_a_frame_that_was_cut_short_is_refused(cut: int) -> None:
    delivery = Delivery.of()
    delivery.sender.receive(bytes(delivery.recipient.ack(0, CREDIT)))
    frame = bytes(delivery.sender.start()[0])
    assert violation(lambda: delivery.recipient.receive(frame[:cut])) in {"malformed", "forged"}


def test_after_a_failure_nothing_more_is_taken_in_either_direction() -> None:
    """Sticky, whatever failed: a connection that broke a rule is over."""
    for bad in (
        lambda forger: forger.chunk(content(C) + b"x"), lambda forger: forger.chunk(b""),
        lambda forger: flipped(forger.chunk(content(C)), -1), lambda forger: forger.manifest(), lambda _: b"",
    ):  # fmt: skip
        forger, recipient = forged()
        assert violation(lambda: recipient.receive(bad(forger)))  # noqa: B023
        assert violation(lambda: recipient.receive(forger.chunk(content(C)))) == "unexpected"  # noqa: B023
    delivery = Delivery.of().begin()
    assert violation(lambda: delivery.sender.receive(bytes(delivery.recipient.ack(1, 1)))) == "unexpected"
    assert violation(lambda: delivery.sender.receive(bytes(delivery.recipient.ack(0, 1)))) == "unexpected"


@pytest.mark.attack("D08")
def test_no_cipher_opens_into_a_buffer_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """`decrypt_into` writes before it has checked: frames are opened by what returns only authentic plaintext."""
    calls: list[str] = []

    class Watched:
        def __init__(self, aead: AESGCM) -> None:
            self._aead = aead

        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(self._aead, name)

    monkeypatch.setitem(ciphers._SAFE, "aes-256-gcm", lambda key: AeadCipher(Watched(AESGCM(key))))  # type: ignore[arg-type]
    Delivery.of().begin().send(content(C + 1)).finish()
    assert set(calls) == {"encrypt_into", "decrypt"}


# --- D04: ends that are none ----------------------------------------------------------------------------------------


@pytest.mark.attack("D04")
def test_a_stream_that_just_stops_is_never_complete() -> None:
    """The last chunk dropped, or a stop at a chunk's end: no event says that it is whole."""
    forger, recipient = forged()
    for _ in range(3):
        assert recipient.receive(forger.chunk(content(C))) == dr.Data(content(C))
    assert violation(lambda: recipient.receive(forger.chunk(b"", Flag.BYE))) == "truncated"


@pytest.mark.attack("D04")
def test_the_last_flag_on_an_earlier_chunk_does_not_open() -> None:
    """Set on the way: the flag stands in the nonce and the header."""
    delivery = Delivery.of().begin()
    (frame,) = delivery.sender.chunk(content(C), last=False)
    header = DataHeader.unpack(bytes(frame))
    changed = msgspec.structs.replace(header, flags=Flag.LAST).pack() + bytes(frame[DATA_HEADER_BYTES:])
    assert violation(lambda: delivery.recipient.receive(changed)) == "forged"


@pytest.mark.attack("D04")
def test_a_removed_last_flag_does_not_open() -> None:
    delivery = Delivery.of().begin()
    (frame,) = delivery.sender.chunk(b"end", last=True)
    header = DataHeader.unpack(bytes(frame))
    changed = msgspec.structs.replace(header, flags=Flag.NONE).pack() + bytes(frame[DATA_HEADER_BYTES:])
    assert violation(lambda: delivery.recipient.receive(changed)) == "forged"


DATA = content(C + 10)


@pytest.mark.attack("D04")
@pytest.mark.parametrize(
    ("what", "last"),
    [
        ("no trailer", lambda: DATA[C:]),
        ("half a trailer", lambda: Forger.end(DATA)[1:]),
        ("a total too small", lambda: DATA[C:] + Forger.end(DATA, size=len(DATA) - 1)),
        ("a total too large", lambda: DATA[C:] + Forger.end(DATA, size=len(DATA) + 1)),
        ("the digest of other data", lambda: DATA[C:] + Forger.end(DATA[:-1] + b"?", size=len(DATA))),
        ("the digest of this chunk alone", lambda: DATA[C:] + Forger.end(DATA[C:], size=len(DATA))),
        ("the digest of another manifest", lambda: DATA[C:] + Forger.end(DATA, OTHER)),
        ("an empty last chunk with the end of more", lambda: Forger.end(DATA)),
        ("an end that came too early", lambda: DATA[C : C + 5] + Forger.end(DATA)),
    ],
)  # fmt: skip
def test_an_end_whose_totals_do_not_fit_is_truncated(what: str, last: Callable[[], bytes]) -> None:
    forger, recipient = forged()
    recipient.receive(forger.chunk(DATA[:C]))
    assert violation(lambda: recipient.receive(forger.chunk(last(), Flag.LAST))) == "truncated", what


@pytest.mark.attack("D04")
@pytest.mark.parametrize("announced", [C, C + 9, C + 11])
def test_a_size_that_was_announced_is_kept(announced: int) -> None:
    manifest = msgspec.structs.replace(WHOLE, size=announced)
    forger, recipient = Forger(sessions()[0]), DeliveryRecipient(sessions()[1])
    for frame in (forger.start(), forger.manifest(manifest), forger.chunk(DATA[:C])):
        recipient.receive(frame)
    last = forger.chunk(DATA[C:] + Forger.end(DATA, manifest), Flag.LAST)
    assert violation(lambda: recipient.receive(last)) == "truncated"


@pytest.mark.attack("D04")
@pytest.mark.parametrize("flags", [Flag.NONE, Flag.LAST])
def test_nothing_comes_after_the_last_chunk(flags: Flag) -> None:
    """A chunk after it, or a second last one."""
    forger, recipient = forged()
    recipient.receive(forger.chunk(b"all" + Forger.end(b"all"), Flag.LAST))
    again = forger.chunk(b"all" + Forger.end(b"all"), flags) if flags else forger.chunk(content(C))
    assert violation(lambda: recipient.receive(again)) == "truncated"


@pytest.mark.attack("D04")
def test_an_empty_chunk_before_the_end_is_truncated() -> None:
    forger, recipient = forged()
    assert violation(lambda: recipient.receive(forger.chunk(b""))) == "truncated"


def test_a_chunk_may_be_short_anywhere_and_the_last_one_empty() -> None:
    """A stream that pauses leaves as it is; its end may come alone."""
    forger, recipient = forged()
    data = content(C + 3)
    for piece in (data[:1], data[1 : C + 1], data[C + 1 :]):
        assert recipient.receive(forger.chunk(piece)) == dr.Data(piece)
    end = recipient.receive(forger.chunk(Forger.end(data), Flag.LAST))
    assert end == dr.Complete(b"", len(data), blake3(data).digest())


@given(data=st.data(), size=st.integers(0, 3 * C))
@settings(max_examples=30, deadline=None)
def test_whatever_the_sizes_of_the_chunks_the_whole_arrives(data: st.DataObject, size: int) -> None:
    """Any split into pieces of 1 to C bytes, the last of any size."""
    whole, at = content(size), 0
    delivery = Delivery.of().begin()
    while at < size and data.draw(st.booleans()):
        piece = whole[at : at + data.draw(st.integers(1, C))]
        at += len(piece)
        delivery.hear(*delivery.sender.chunk(piece, last=False))
    for begin in range(at, max(size, at + 1), C):
        delivery.hear(*delivery.sender.chunk(whole[begin : begin + C], last=begin + C >= size))
    delivery.finish()
    assert bytes(delivery.into) == whole


# --- one delivery over several connections --------------------------------------------------------------------------


def resumed(delivery: Delivery, attempt: int, manifest: Manifest = WHOLE) -> Delivery:
    """Another connection of ``delivery``'s session, from where its recipient stands."""
    old = delivery.recipient
    known = delivery.complete is not None
    kept = Delivery(
        DeliverySender(sessions()[0], manifest, attempt, delivery.sender.whole),
        DeliveryRecipient(
            sessions()[1], attempt, CREDIT, received=old.received, digest=old._line.hash, manifest=WHOLE, whole=known
        ),
        into=delivery.into, complete=delivery.complete,
    )
    if not known:
        kept.sender.receive(bytes(kept.recipient.ack(old.received, CREDIT)))
        kept.events = kept.hear(*kept.sender.start(blake3(bytes(delivery.into))))
    return kept


@pytest.mark.parametrize("cut", [0, 1, C, C + 7])
def test_a_delivery_goes_on_over_another_connection_where_the_recipient_stands(cut: int) -> None:
    """Position and digest go on; what it is was told again; the receipt is of the whole."""
    data = content(2 * C)
    first = Delivery.of().begin()
    for piece in (data[: min(cut, C)], data[C:cut]):
        if piece:
            first.hear(*first.sender.chunk(piece, last=False))
    second = resumed(first, 1)
    assert second.events == [dr.Started(), dr.Announced(WHOLE)]
    assert (second.sender.sent, second.recipient.received) == (cut, cut)
    rest = data[cut:]
    for at in range(0, len(rest), C):
        second.hear(*second.sender.chunk(rest[at : at + C], last=at + C >= len(rest)))
    second.finish()
    assert bytes(second.into) == data
    assert (second.delivered.body.size, second.delivered.body.digest) == (len(data), blake3(data).digest())
    used = {(h.stream, h.attempt) for h in map(DataHeader.unpack, second.frames)}
    assert {attempt for _, attempt in used} == {1}


@pytest.mark.attack("F06")
@pytest.mark.parametrize(
    "change", [{"name": "other.bin"}, {"size": 7}, {"note": ""}, {"mode": 0o777}, {"mtime_ns": 1}, {"kind": "file"}]
)
def test_what_was_accepted_once_is_not_called_otherwise_by_a_later_connection(change: dict[str, Any]) -> None:
    first = Delivery.of().begin()
    first.hear(*first.sender.chunk(content(C), last=False))
    assert violation(lambda: resumed(first, 1, msgspec.structs.replace(WHOLE, **change))) == "unexpected"


@pytest.mark.parametrize("offset", [0, C - 1, C + 1, 2 * C])
def test_a_later_connection_starts_where_the_recipient_stands_and_nowhere_else(offset: int) -> None:
    recipient = DeliveryRecipient(sessions()[1], 1, CREDIT, received=C, digest=blake3(content(C)), manifest=WHOLE)
    forger = Forger(sessions()[0], 1)
    assert violation(lambda: recipient.receive(forger.start(offset))) == "unexpected"


def test_a_later_connection_s_credit_counts_from_where_the_recipient_stands() -> None:
    recipient = DeliveryRecipient(sessions()[1], 1, C, received=C, digest=blake3(content(C)), manifest=WHOLE)
    forger = Forger(sessions()[0], 1)
    for frame in (forger.start(C), forger.manifest(), forger.chunk(content(C))):
        recipient.receive(frame)
    assert recipient.received == 2 * C
    assert violation(lambda: recipient.receive(forger.chunk(b"x"))) == "limit"


@pytest.mark.attack("D05")
def test_no_frame_of_an_earlier_connection_opens_in_a_later_one() -> None:
    """Neither as it is nor under the new number: each attempt has keys of its own."""
    first = Delivery.of().begin()
    (chunk,) = first.sender.chunk(content(C), last=False)
    for frame in (*first.frames, bytes(chunk)):
        with pytest.raises(NotOpened):
            resumed(Delivery.of().begin(), 1).recipient.receive(frame)
        renamed = msgspec.structs.replace(DataHeader.unpack(frame), attempt=1).pack() + frame[DATA_HEADER_BYTES:]
        with pytest.raises(NotOpened):
            resumed(Delivery.of().begin(), 1).recipient.receive(renamed)


def test_the_first_word_of_a_later_connection_is_done_where_everything_is_durable() -> None:
    """DONE was lost: it comes again, and is held against what an earlier connection took."""
    first = Delivery.of().begin().send(content(C + 5))
    again = resumed(first, 1)
    assert again.sender.whole == (C + 5, blake3(content(C + 5)).digest())
    again.finish(first.receipt())
    assert again.delivered.body.size == C + 5


@pytest.mark.attack("D15")
@pytest.mark.parametrize("change", [{"size": C}, {"digest": bytes(32)}, {"tid": bytes(16)}])
def test_a_receipt_that_comes_first_is_held_against_what_was_sent(change: dict[str, Any]) -> None:
    first = Delivery.of().begin().send(content(C + 5))
    with pytest.raises(IntegrityError) as caught:
        resumed(first, 1).finish(first.receipt(**change))
    assert caught.value.detail == "receipt"


def test_a_receipt_of_what_was_not_sent_whole_is_unexpected() -> None:
    first = Delivery.of().begin().send(content(C + 5))
    early = DeliverySender(sessions()[0], WHOLE, 1)
    done = bytes(resumed(first, 1).recipient.done(first.receipt()))
    assert violation(lambda: early.receive(done)) == "unexpected"


@pytest.mark.attack("D03")
def test_what_anybody_in_between_can_make_is_told_from_what_only_the_other_end_can() -> None:
    """A frame that does not open costs a connection; one that opens and breaks a rule costs the delivery."""
    delivery = Delivery.of().begin()
    chunk = bytes(delivery.sender.chunk(content(C), last=False)[0])
    ack = bytes(delivery.recipient.ack(0, CREDIT))
    for frame in (b"", b"noise", chunk[:-1], flipped(chunk, -1), flipped(chunk, 9), flipped(chunk, 0), ack):
        with pytest.raises(NotOpened):
            resumed(Delivery.of().begin(), 1).recipient.receive(frame)
        with pytest.raises(NotOpened):
            forged()[1].receive(b"" if frame == chunk else frame)
    for frame in (b"", b"noise", ack[:-1], flipped(ack, -1), flipped(ack, 9), flipped(ack, 0), chunk):
        with pytest.raises(NotOpened):
            Delivery.of().sender.receive(frame)
    for said in (b"", content(C + 1)):
        forger, recipient = forged()
        with pytest.raises(PeerViolation) as caught:
            recipient.receive(forger.chunk(said))
        assert not isinstance(caught.value, NotOpened)
    with pytest.raises(PeerViolation) as caught:
        (boast := Delivery.of().begin()).sender.receive(bytes(boast.recipient.ack(C + 1, 0)))
    assert not isinstance(caught.value, NotOpened)


@pytest.mark.attack("D04")
def test_a_farewell_with_words_in_it_is_refused() -> None:
    forger, recipient = forged()
    recipient.receive(forger.chunk(b"all" + Forger.end(b"all"), Flag.LAST))
    assert violation(lambda: recipient.receive(forger.chunk(b"more", Flag.BYE))) == "truncated"


@pytest.mark.attack("D04")
def test_a_farewell_before_the_receipt_is_refused() -> None:
    """Only who has the receipt may leave; what was whole is not made durable for who has left."""
    forger, recipient = forged()
    recipient.receive(forger.chunk(b"all" + Forger.end(b"all"), Flag.LAST))
    assert violation(lambda: recipient.receive(forger.chunk(b"", Flag.BYE))) == "truncated"


@pytest.mark.parametrize(
    "flags",
    [
        Flag.LAST | Flag.BYE, Flag.LAST | Flag.STOP, Flag.BYE | Flag.STOP, Flag.START | Flag.LAST,
        Flag.START | Flag.BYE,
        Flag.START | Flag.STOP, Flag.LAST | Flag.START | Flag.BYE | Flag.STOP,
    ],
)  # fmt: skip
@pytest.mark.attack("D04")
def test_flags_that_do_not_go_together_are_unexpected(flags: Flag) -> None:
    """By a sender that holds the key: what it says twice is not guessed at."""
    forger, recipient = forged()
    assert violation(lambda: recipient.receive(forger.chunk(content(C), flags))) == "unexpected"
    assert recipient.received == 0


# --- D05, D06, D09: frames of elsewhere -----------------------------------------------------------------------------


@pytest.mark.attack("D05")
@pytest.mark.parametrize("order", [(0, 0), (1, 0), (1,), (0, 2)], ids=["duplicate", "swapped", "first gone", "gap"])
def test_a_chunk_out_of_its_place_is_refused_and_never_written_twice(order: tuple[int, ...]) -> None:
    delivery = Delivery.of().begin()
    frames = [bytes(delivery.sender.chunk(content(C), last=False)[0]) for _ in range(3)]

    def arrive() -> None:
        for i in order:
            delivery.hear(frames[i])

    assert violation(arrive) == "unexpected"
    assert len(delivery.into) == (C if order[0] == 0 else 0)


@pytest.mark.attack("D05")
def test_a_frame_of_an_earlier_attempt_is_refused() -> None:
    old = Delivery.of().begin()
    (chunk,) = old.sender.chunk(content(C), last=False)
    for frame in (*old.frames, bytes(chunk)):
        fresh = Delivery.of(attempt=1)
        assert violation(lambda: fresh.recipient.receive(frame)) == "unexpected"  # noqa: B023
    fresh = Delivery.of(attempt=1).begin()
    header = DataHeader.unpack(bytes(chunk))
    renamed = msgspec.structs.replace(header, attempt=1).pack() + bytes(chunk[DATA_HEADER_BYTES:])
    assert violation(lambda: fresh.recipient.receive(renamed)) == "forged"


@pytest.mark.attack("D05", "D17")
def test_an_acknowledgement_comes_once_and_of_its_own_attempt() -> None:
    delivery = Delivery.of()
    ack = bytes(delivery.recipient.ack(0, C))
    delivery.sender.receive(ack)
    assert violation(lambda: delivery.sender.receive(ack)) == "unexpected"
    assert violation(lambda: Delivery.of(attempt=1).sender.receive(ack)) == "unexpected"


@pytest.mark.attack("D05")
@pytest.mark.parametrize(("offset", "attempt"), [(1, 0), (C, 0), (0, 1)])
def test_a_start_at_another_place_is_refused(offset: int, attempt: int) -> None:
    forger, recipient = Forger(sessions()[0]), DeliveryRecipient(sessions()[1])
    assert violation(lambda: recipient.receive(forger.start(offset, attempt=attempt))) == "unexpected"


@pytest.mark.attack("D06")
def test_a_frame_of_another_transfer_of_the_same_peers_is_refused() -> None:
    """By its tag; and with the tag changed, by its commitment or its key."""
    other = Delivery.of(sessions(serial=2)).begin()
    (chunk,) = other.sender.chunk(content(C), last=False)
    this = Delivery.of().begin()
    assert violation(lambda: this.recipient.receive(bytes(chunk))) == "unexpected"
    for at, frame in enumerate((*other.frames, bytes(chunk))):
        target = Delivery.of()
        if at == 2:
            target.begin()
        elif at == 1:
            target.hear(Delivery.of().begin().frames[0])
        tag = DataHeader.unpack(Delivery.of().begin().frames[0]).xid_tag
        renamed = msgspec.structs.replace(DataHeader.unpack(frame), xid_tag=tag).pack() + frame[DATA_HEADER_BYTES:]
        assert violation(lambda: target.recipient.receive(renamed)) == "forged"  # noqa: B023


@pytest.mark.attack("D09")
def test_a_wrong_commitment_is_refused_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    frame = Delivery.of().begin().frames[0]
    monkeypatch.setattr(AeadCipher, "open", lambda *seen: opened.append(seen))
    for place in range(DATA_HEADER_BYTES, DATA_HEADER_BYTES + 32):
        recipient = Delivery.of().recipient
        assert violation(lambda: recipient.receive(flipped(frame, place))) == "forged"  # noqa: B023
    assert not opened


@pytest.mark.attack("D09")
def test_a_ciphertext_that_is_valid_under_two_keys_is_taken_under_one_only() -> None:
    """Such frames are easily made, since GCM commits to no key: the commitment tells which key is meant."""
    one, two = Secret(b"1" * 32), Secret(b"2" * 32)
    sealers = [StreamSealer(k, Stream.DATA, 0, "aes-256-gcm") for k in (one, two)]
    keys = [AESGCM(_stream_key(k)) for k in (one, two)]
    nonces = [sealer._nonce(False) for sealer in sealers]
    header = DataHeader(Stream.DATA, Flag.NONE, 0, 0, sealers[0]._tag).pack()
    for meant in (0, 1):
        aad = header + sealers[meant]._commitment
        ciphertext = _collision([_stream_key(k) for k in (one, two)], nonces, aad)
        plain = [key.decrypt(nonce, ciphertext, aad) for key, nonce in zip(keys, nonces, strict=True)]
        assert plain[0] != plain[1], "the frame is genuine under both keys"
        for k in (one, two):
            opener = StreamOpener(k, Stream.DATA, 0, "aes-256-gcm")
            opener._tag = sealers[0]._tag
            frame = aad + ciphertext
            if k is (one, two)[meant]:
                assert opener.open(DataHeader.unpack(frame), frame) == plain[meant]
            else:
                assert violation(lambda: opener.open(DataHeader.unpack(frame), frame)) == "forged"  # noqa: B023


def _stream_key(k: Secret) -> bytes:
    from zkc.crypto.primitives import expand

    return expand(k, b"data " + bytes(4), 76)[:32]


def _collision(keys: list[bytes], nonces: list[bytes], aad: bytes) -> bytes:
    """Two blocks and a tag that GCM accepts under both keys: one linear equation in GF(2^128) for the second block."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    def block(key: bytes, data: bytes) -> int:
        encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        return int.from_bytes(encryptor.update(data), "big")

    def times(a: int, b: int) -> int:
        product = 0
        for i in range(127, -1, -1):
            if b >> i & 1:
                product ^= a
            a = a >> 1 ^ (0xE1 << 120 if a & 1 else 0)
        return product

    def power(a: int, n: int) -> int:
        result = 1 << 127
        while n:
            if n & 1:
                result = times(result, a)
            a, n = times(a, a), n >> 1
        return result

    first = b"sixteen bytes !!"
    padded = aad + bytes(-len(aad) % 16) + first + bytes(16)
    lengths = (8 * len(aad)).to_bytes(8, "big") + (8 * 32).to_bytes(8, "big")
    known, factor, masks = [], [], []
    for key, nonce in zip(keys, nonces, strict=True):
        h = block(key, bytes(16))
        y = 0
        for i in range(0, len(padded), 16):
            y = times(y ^ int.from_bytes(padded[i : i + 16], "big"), h)
        mask = block(key, nonce + b"\0\0\0\1")
        known.append(times(y ^ int.from_bytes(lengths, "big"), h) ^ mask)
        factor.append(times(h, h))
        masks.append(mask)
    second = times(known[0] ^ known[1], power(factor[0] ^ factor[1], 2**128 - 2))
    tag = known[0] ^ times(second, factor[0])
    return first + second.to_bytes(16, "big") + tag.to_bytes(16, "big")


# --- D11 and other limits -------------------------------------------------------------------------------------------


@pytest.mark.attack("D11")
@pytest.mark.parametrize(
    ("size", "flags"), [(C + 1, Flag.NONE), (C + TRAILER_BYTES + 1, Flag.LAST), (4 * C, Flag.NONE)]
)
def test_a_chunk_above_the_agreed_size_is_over_the_limit(size: int, flags: Flag) -> None:
    forger, recipient = forged()
    assert violation(lambda: recipient.receive(forger.chunk(content(size), flags))) == "limit"
    assert recipient.received == 0


def test_more_bytes_than_the_recipient_takes_are_over_the_limit() -> None:
    resp = msgspec.structs.replace(sessions()[1].resp, max_bytes=2 * C)
    limited = dataclasses.replace(sessions()[1], resp=resp)
    exact = Delivery.of((sessions()[0], limited)).begin().send(content(2 * C))
    assert exact.complete is not None
    over = Delivery.of((sessions()[0], limited)).begin()
    assert violation(lambda: over.send(content(2 * C + 1))) == "limit"
    assert over.complete is None


@pytest.mark.attack("F11")
def test_a_message_longer_than_one_is_over_the_limit() -> None:
    """By what it announces, before its first byte; where it announces nothing, with the chunk that is too much."""
    for size in (MESSAGE_TEXT_MAX, MESSAGE_TEXT_MAX + 1, 1 << 30, None):
        text = Manifest("message", "message", "", size, 0o600, 0)
        forger, recipient = Forger(sessions()[0]), DeliveryRecipient(sessions()[1])
        recipient.receive(forger.start())
        if size is not None and size > MESSAGE_TEXT_MAX:
            assert violation(partial(recipient.receive, forger.manifest(text))) == "limit"
            continue
        recipient.receive(forger.manifest(text))
        recipient.receive(forger.chunk(content(MESSAGE_TEXT_MAX)))
        beyond = forger.chunk(b"!")
        assert violation(partial(recipient.receive, beyond)) == "limit"
        assert recipient.received == MESSAGE_TEXT_MAX


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_data_beyond_the_credit_that_was_given_is_over_the_limit(chunks: int) -> None:
    """Counted from before the first ACK: a sender that heard of more has heard it from nobody."""
    forger, recipient = Forger(sessions()[0]), DeliveryRecipient(sessions()[1], credit=2 * C)
    recipient.receive(forger.start())
    recipient.receive(forger.manifest())
    recipient.ack(0, chunks * C)
    for _ in range(max(chunks, 2)):
        recipient.receive(forger.chunk(content(C)))
    before = recipient.received
    assert violation(lambda: recipient.receive(forger.chunk(content(C)))) == "limit"
    assert recipient.received == before == max(chunks, 2) * C


def test_an_end_beyond_the_credit_is_over_the_limit_and_one_within_it_is_not() -> None:
    for credit, fits in ((2 * C - 1, False), (2 * C, True)):
        forger, recipient = Forger(sessions()[0]), DeliveryRecipient(sessions()[1], credit=credit)
        data = content(2 * C)
        for frame in (forger.start(), forger.manifest(), forger.chunk(data[:C])):
            recipient.receive(frame)
        last = forger.chunk(data[C:] + Forger.end(data), Flag.LAST)
        if fits:
            assert isinstance(recipient.receive(last), dr.Complete)
        else:
            assert violation(lambda: recipient.receive(last)) == "limit"  # noqa: B023


def test_each_acknowledgement_moves_the_limit_and_none_moves_it_back() -> None:
    forger, recipient = Forger(sessions()[0]), DeliveryRecipient(sessions()[1], credit=C)
    recipient.receive(forger.start())
    recipient.receive(forger.manifest())
    recipient.receive(forger.chunk(content(C)))
    recipient.ack(C, 2 * C)
    recipient.ack(C, 0)
    for _ in range(2):
        recipient.receive(forger.chunk(content(C)))
    assert violation(lambda: recipient.receive(forger.chunk(content(C)))) == "limit"


def test_the_longest_manifest_is_one_frame_and_a_longer_one_is_refused() -> None:
    forger, recipient = Forger(sessions()[0]), DeliveryRecipient(sessions()[1])
    recipient.receive(forger.start())
    longest = Manifest("file", "n" * 255, "x" * 4096, 1, 0o644, 1)
    assert len(encode(longest)) < MANIFEST_MAX
    too_long = bytes(forger.names.seal(bytes(MANIFEST_MAX + 1), Flag.LAST))
    assert violation(lambda: recipient.receive(too_long)) == "limit"


@pytest.mark.attack("C10")
@pytest.mark.parametrize(
    ("what", "frames"),
    [
        ("a manifest before the start", lambda f: [f.manifest()]),
        ("a second manifest", lambda f: [f.start(), f.manifest(), f.manifest(OTHER)]),
        ("a manifest that is not the last of its stream", lambda f: [f.start(), f.manifest(flags=Flag.NONE)]),
        ("a manifest in the middle", lambda f: [f.start(), f.manifest(), f.chunk(content(C)), f.manifest()]),
        ("a chunk before the start", lambda f: [f.chunk(content(C))]),
        ("a chunk before the manifest", lambda f: [f.start(), f.chunk(content(C))]),
        ("an end before the manifest", lambda f: [f.start(), f.chunk(Forger.end(b""), Flag.LAST)]),
        ("a second start", lambda f: [f.start(), f.start()]),
        ("a start in the middle", lambda f: [f.start(), f.manifest(), f.chunk(content(C)), f.start(C)]),
    ],
)  # fmt: skip
def test_what_comes_out_of_its_place_is_unexpected(what: str, frames: Callable[[Forger], list[bytes]]) -> None:
    forger, recipient = Forger(sessions()[0]), DeliveryRecipient(sessions()[1])
    *before, wrong = frames(forger)
    for frame in before:
        recipient.receive(frame)
    assert violation(lambda: recipient.receive(wrong)) == "unexpected", what


def test_a_frame_of_the_other_direction_is_unexpected() -> None:
    delivery = Delivery.of()
    ack = bytes(delivery.recipient.ack(0, 1))
    start = Delivery.of().begin().frames[0]
    assert violation(lambda: delivery.recipient.receive(ack)) == "unexpected"
    assert violation(lambda: delivery.sender.receive(start)) == "unexpected"


# --- the receipt ----------------------------------------------------------------------------------------------------


OTHER_VALUES: Final[dict[str, Any]] = {
    "tid": b"T" * 16, "xid": b"X" * 16, "th": bytes(32), "sender": "mallory", "sender_fingerprint": bytes(32),
    "recipient": "carol", "recipient_fingerprint": bytes(32),
    "name_digest": digest(b"other"), "size": 4,
    "digest": bytes(32), "manifest_digest": bytes(32), "key_source": "coordinator", "cipher": "3des",
    "presence": "authorised", "presence_age": 7, "durable": False, "asker": bytes(32), "asked_by": "carol",
}  # fmt: skip


@pytest.mark.claims("B5")
@pytest.mark.attack("D17")
@pytest.mark.parametrize("field", OTHER_VALUES)
def test_a_receipt_of_something_else_in_any_field_is_no_receipt(field: str) -> None:
    """Well signed by the recipient: the sender compares every field with what it knows itself."""
    delivery = Delivery.of().begin().send(b"abc")
    wrong = delivery.receipt(**{field: OTHER_VALUES[field]})
    with pytest.raises(IntegrityError) as caught:
        delivery.finish(wrong)
    assert caught.value.detail == "receipt"
    assert f"({field})" in caught.value.message


def test_only_the_recipients_own_times_are_not_compared() -> None:
    """The card is compared itself, below."""
    assert set(ReceiptBody.__struct_fields__) - set(OTHER_VALUES) == {"card_hash", "began", "ended"}


@pytest.mark.attack("D17")
def test_a_receipt_that_the_recipient_did_not_sign_is_forged() -> None:
    """By another identity, damaged, or without one of its two signatures."""
    for make in (
        lambda d: sealed_receipt(_body(d), signer="mallory"), lambda d: flipped(d.receipt(), 40),
        lambda d: encode(Receipt(encode(_body(d)), bytes(64 + 3309), b"")),
        lambda d: encode(Receipt(encode(_body(d)), identity_of("bob").sign("receipt", digest(encode(_body(d)))), b"")),
        lambda _: b"", lambda d: d.receipt() + b"\0",
    ):  # fmt: skip
        delivery = Delivery.of().begin().send(b"abc")
        receipt = make(delivery)
        assert violation(lambda: delivery.finish(receipt or b"\0")) in {"forged", "malformed"}  # noqa: B023
        assert delivery.delivered is None


def _body(delivery: Delivery) -> ReceiptBody:
    assert delivery.complete is not None
    return receipt_body(sessions()[1], WHOLE, delivery.complete.size, delivery.complete.digest, 1.0, 2.0)


def test_a_receipt_with_another_card_in_it_is_no_receipt() -> None:
    """What is kept is checked offline against the card in it: it has to be the handshake's, to the last byte."""
    carol, bob = world("x25519").carol.card, world("x25519").bob.card
    other = encode(msgspec.structs.replace(decode(bob.encoded, Card), signature=b"none"))
    for card, changes in ((b"", {}), (carol.encoded, {}), (carol.encoded, {"card_hash": carol.hash}), (other, {})):
        delivery = Delivery.of().begin().send(b"abc")
        with pytest.raises((IntegrityError, PeerViolation), match=r"card|truncated"):
            delivery.finish(sealed_receipt(msgspec.structs.replace(_body(delivery), **changes), card))
        assert delivery.delivered is None


@pytest.mark.attack("D17")
def test_an_end_before_the_end_is_unexpected() -> None:
    """DONE for a stream that the sender has not finished."""
    finished = Delivery.of().begin().send(b"abc")
    done = Done(finished.receipt())
    for chunks in (0, 1):
        delivery = Delivery.of().begin()
        for _ in range(chunks):
            delivery.hear(*delivery.sender.chunk(content(C), last=False))
        assert violation(lambda: delivery.sender.receive(delivery.recipient._line.seal(done))) == "unexpected"  # noqa: B023


@pytest.mark.attack("D17")
def test_a_receipt_of_an_earlier_transfer_is_no_receipt() -> None:
    earlier = Delivery.of(sessions(serial=2)).begin().send(b"abc")
    replayed = earlier.receipt()
    delivery = Delivery.of().begin().send(b"abc")
    with pytest.raises(IntegrityError):
        delivery.finish(replayed)


def test_more_acknowledged_than_was_sent_is_unexpected() -> None:
    delivery = Delivery.of().begin()
    delivery.hear(*delivery.sender.chunk(content(C), last=False))
    assert violation(lambda: delivery.sender.receive(bytes(delivery.recipient.ack(C + 1, 0)))) == "unexpected"


@pytest.mark.attack("D17")
@pytest.mark.parametrize("flags", [Flag.LAST, Flag.START, Flag.STOP, Flag.BYE | Flag.STOP])
def test_an_acknowledgement_has_no_flags(flags: Flag) -> None:
    sender, recipient = sessions()
    sealer = StreamSealer(recipient.k, Stream.ACK, 0, "aes-256-gcm")
    for message in (Ack(0, 0, 1), Stop(31, "ended")):
        frame = bytes(sealer.seal(encode(message), flags))
        assert violation(lambda: DeliverySender(sender, WHOLE).receive(frame)) == "unexpected"  # noqa: B023
        sealer = StreamSealer(recipient.k, Stream.ACK, 0, "aes-256-gcm")


def test_messages_of_the_acknowledgement_stream_are_of_three_kinds() -> None:
    sender, recipient = sessions()
    sealer = StreamSealer(recipient.k, Stream.ACK, 0, "aes-256-gcm")
    assert (
        violation(lambda: DeliverySender(sender, WHOLE).receive(bytes(sealer.seal(encode(Start(0, 0)))))) == "malformed"
    )
    for message in (Ack(0, 0, 1), Stop(31, "ended")):
        sealer = StreamSealer(recipient.k, Stream.ACK, 0, "aes-256-gcm")
        assert DeliverySender(sender, WHOLE).receive(bytes(sealer.seal(encode(message))))
    sealer = StreamSealer(recipient.k, Stream.ACK, 0, "aes-256-gcm")
    done = bytes(sealer.seal(encode(Done(b"receipt"))))
    assert violation(lambda: DeliverySender(sender, WHOLE).receive(done)) == "unexpected"
