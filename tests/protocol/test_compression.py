"""Deliveries whose chunks may be packed: what is counted, what is told apart, and what no packed chunk can do."""

from __future__ import annotations

from functools import cache
from typing import Final

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.test_delivery import CREDIT, OTHER, WHOLE, Delivery, Forger, violation
from tests.support.parties import world
from tests.support.talks import terms
from zkc.constants import ROLLOVER_BYTES_64BIT_BLOCK
from zkc.ids import CIPHERS
from zkc.protocol.delivery import NotOpened
from zkc.protocol.delivery_recipient import Complete, DeliveryRecipient
from zkc.protocol.session import Session
from zkc.wire.frames import DataHeader, Flag
from zkc.wire.packing import Packer

GIB: Final = 1 << 30


@cache
def sessions(cipher: str = "aes-256-gcm") -> tuple[Session, Session]:
    talk = world("x25519").transfer(terms("bob", cipher=cipher, compression="zstd"))
    talk.run()
    return talk.sessions


CHUNK: Final = sessions()[0].resp.chunk


def text(size: int) -> bytes:
    """Hexadecimal digits: half of it could be left out."""
    return blake3(b"text").hexdigest(length=size // 2 + 1)[:size].encode()


def flags_of(delivery: Delivery) -> list[Flag]:
    return [DataHeader.unpack(frame).flags for frame in delivery.frames]


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("size", [0, 1, 1000, CHUNK, 2 * CHUNK + 1])
def test_what_is_sent_packed_arrives_as_it_was(cipher: str, size: int) -> None:
    data = text(size)
    delivery = Delivery.of(sessions(cipher)).begin().send(data).finish()
    assert bytes(delivery.into) == data
    assert delivery.complete is not None
    assert (delivery.complete.size, delivery.complete.digest) == (size, blake3(data).digest())
    assert (Flag.ZSTD in flags_of(delivery) or Flag.LAST | Flag.ZSTD in flags_of(delivery)) is (size >= 1000)
    if size > CHUNK:
        assert sum(map(len, delivery.frames)) < 0.8 * size


@given(st.lists(st.one_of(st.binary(max_size=300), st.integers(0, CHUNK).map(bytes)), max_size=6), st.data())
def test_packed_chunks_and_others_follow_each_other(chunks: list[bytes], data: st.DataObject) -> None:
    """Of any sizes; and a connection that breaks off between two of them is followed by one that goes on there."""
    chunks = [chunk for chunk in chunks if chunk]
    cut = data.draw(st.integers(0, len(chunks)))
    first = Delivery.of(sessions()).begin()
    for chunk in chunks[:cut]:
        first.hear(*first.sender.chunk(chunk, last=False))
    before = b"".join(chunks[:cut])
    assert first.recipient.received == len(before)
    second = Delivery.of(sessions(), attempt=1)
    second.recipient = DeliveryRecipient(
        sessions()[1], 1, received=len(before), digest=blake3(before), manifest=WHOLE if before else None
    )
    second.sender.receive(bytes(second.recipient.ack(len(before), CREDIT)))
    second.hear(*second.sender.start(blake3(before)))
    for chunk in chunks[cut:]:
        second.hear(*second.sender.chunk(chunk, last=False))
    second.hear(*second.sender.chunk(b"", last=True))
    assert isinstance(second.complete, Complete)
    assert bytes(first.into + second.into) == b"".join(chunks)


def test_a_key_lasts_for_what_it_has_sealed_and_credit_for_what_that_stands_for() -> None:
    """A 64-bit block cipher's key takes 64 MiB: of packed chunks as many as they are, at both ends alike."""
    delivery, zeros = Delivery.of(sessions("3des")).begin(), bytes(CHUNK)
    while delivery.recipient.received <= ROLLOVER_BYTES_64BIT_BLOCK:
        delivery.hear(*delivery.sender.chunk(zeros, last=False))
    assert (delivery.sender.attempt, delivery.recipient.attempt) == (0, 0)
    assert delivery.sender.sent == delivery.recipient.received


def forged(credit: int = CREDIT, manifest: msgspec.Struct = WHOLE) -> tuple[Forger, DeliveryRecipient]:
    forger, recipient = Forger(sessions()[0]), DeliveryRecipient(sessions()[1], credit=credit)
    recipient.receive(forger.start())
    recipient.receive(forger.manifest(manifest))  # type: ignore[arg-type]
    return forger, recipient


def packed(data: bytes) -> bytes:
    frame = Packer().pack(data)
    assert frame is not None
    return frame


@pytest.mark.attack("F13")
def test_a_stream_of_a_thousand_bytes_that_unpacks_to_gigabytes_stops_at_what_it_declared() -> None:
    """However small its frames are: not a chunk more is taken."""
    forger, recipient = forged(10 * GIB, msgspec.structs.replace(WHOLE, size=1000))
    bomb = packed(bytes(CHUNK))
    assert len(bomb) < 100
    assert violation(lambda: recipient.receive(forger.chunk(bomb, Flag.ZSTD))) == "truncated"
    assert recipient.received == 0


@pytest.mark.attack("F13")
@pytest.mark.parametrize("last", [False, True])
def test_a_chunk_that_unpacks_to_more_than_was_agreed_is_refused(last: bool) -> None:
    forger, recipient = forged()
    data = bytes(CHUNK + 1)
    plaintext = packed(data) + (Forger.end(data) if last else b"")
    flags = Flag.ZSTD | (Flag.LAST if last else Flag.NONE)
    assert violation(lambda: recipient.receive(forger.chunk(plaintext, flags))) == "limit"


@pytest.mark.attack("F13")
def test_credit_counts_what_a_chunk_stands_for() -> None:
    """Or a recipient's memory would be the sender's to fill."""
    forger, recipient = forged(2 * CHUNK)
    for _ in range(2):
        recipient.receive(forger.chunk(packed(bytes(CHUNK)), Flag.ZSTD))
    assert violation(lambda: recipient.receive(forger.chunk(packed(bytes(100)), Flag.ZSTD))) == "limit"


@pytest.mark.attack("F13")
def test_the_bound_of_a_recipient_counts_what_a_chunk_stands_for() -> None:
    sender, here = sessions()
    bounded = msgspec.structs.replace(here.resp, max_bytes=CHUNK)
    forger, recipient = Forger(sender), DeliveryRecipient(Session(
        here.k, here.th, here.req, bounded, here.peer, here.own_fingerprint, None
    ))
    for frame in (forger.start(), forger.manifest(), forger.chunk(packed(bytes(CHUNK)), Flag.ZSTD)):
        recipient.receive(frame)
    assert violation(lambda: recipient.receive(forger.chunk(packed(bytes(100)), Flag.ZSTD))) == "limit"


@pytest.mark.parametrize("plaintext", [b"", b"no frame", packed(bytes(100)) + b"x"])
def test_what_does_not_unpack_ends_the_delivery(plaintext: bytes) -> None:
    forger, recipient = forged()
    assert violation(lambda: recipient.receive(forger.chunk(plaintext, Flag.ZSTD))) == "malformed"


@pytest.mark.parametrize("flag", [Flag.START, Flag.BYE, Flag.STOP])
def test_nothing_but_chunks_is_packed(flag: Flag) -> None:
    forger, recipient = forged()
    with pytest.raises(NotOpened):
        recipient.receive(forger.chunk(packed(bytes(100)), flag | Flag.ZSTD))
    forger = Forger(sessions()[0])
    recipient = DeliveryRecipient(sessions()[1])
    recipient.receive(forger.start())
    with pytest.raises(NotOpened):
        recipient.receive(forger.manifest(OTHER, Flag.LAST | Flag.ZSTD))


def test_what_was_not_agreed_is_not_unpacked() -> None:
    """REQ says whether chunks may be packed, and both ends have signed it."""
    from tests.protocol.test_delivery import forged as plain

    forger, recipient = plain()
    with pytest.raises(NotOpened):
        recipient.receive(forger.chunk(packed(bytes(100)), Flag.ZSTD))


def test_the_flag_is_authenticated() -> None:
    """Who stands in between can neither set it nor take it away."""
    for plaintext, flags in ((packed(bytes(100)), Flag.ZSTD), (bytes(100), Flag.NONE)):
        forger, recipient = forged()
        frame = bytearray(forger.chunk(plaintext, flags))
        frame[2] ^= Flag.ZSTD
        assert violation(lambda: recipient.receive(bytes(frame))) == "forged"  # noqa: B023
