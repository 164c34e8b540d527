from __future__ import annotations

import os
import resource
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zkc.constants import CHUNK_MAX, CHUNK_MIN
from zkc.errors import PeerViolation
from zkc.wire import packing
from zkc.wire.packing import Packer, unpack

ZSTD = packing._zstd()
PARAMETER = ZSTD.CompressionParameter


def frame_of(data: bytes, *, pledged: int | None = None, **parameters: int) -> bytes:
    """A frame as any compressor may make it; without a size in it where none is ``pledged``."""
    options = {getattr(PARAMETER, name): value for name, value in parameters.items()}
    compressor = ZSTD.ZstdCompressor(options=options)
    compressor.set_pledged_input_size(pledged)
    return bytes(compressor.compress(data[:1]) + compressor.compress(data[1:], compressor.FLUSH_FRAME))


def claiming(frame: bytes, size: int) -> bytes:
    """``frame``, with another size in its header: a field of four bytes, at six (RFC 8878, 3.1.1.1)."""
    assert frame[4] >> 6 == 2
    at = 5 if frame[4] & 0x20 else 6
    return frame[:at] + struct.pack("<I", size) + frame[at + 4 :]


def refusal(frame: bytes, most: int = CHUNK_MAX) -> str:
    with pytest.raises(PeerViolation) as refused:
        unpack(frame, most)
    return refused.value.detail


REPEATED = st.builds(lambda piece, times: piece * times, st.binary(max_size=64), st.integers(0, 2000))


@given(st.lists(st.binary(max_size=4000) | REPEATED))
@example([b"", b"a", bytes(CHUNK_MAX), os.urandom(CHUNK_MIN)])
def test_a_packer_makes_frames_that_unpack_alone_or_none(chunks: list[bytes]) -> None:
    """Whatever the same packer has made before: each chunk can be lost, or come again, without the others."""
    packer = Packer()
    frames = [packer.pack(memoryview(chunk)) for chunk in chunks]
    for chunk, frame in reversed(list(zip(chunks, frames, strict=True))):
        if frame is not None:
            assert len(frame) < len(chunk)
            assert unpack(frame, len(chunk)) == chunk


def test_what_does_not_shrink_is_left_as_it_is() -> None:
    packer = Packer()
    assert packer.pack(os.urandom(CHUNK_MIN)) is None
    assert packer.pack(b"") is None
    assert packer.pack(bytes(CHUNK_MIN)) is not None


@pytest.mark.attack("F13")
def test_a_frame_that_claims_too_much_is_not_unpacked() -> None:
    frame = frame_of(bytes(1 << 30), pledged=1 << 30)
    assert len(frame) < CHUNK_MIN
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(frame) == "limit"
    assert refusal(frame_of(bytes(CHUNK_MIN + 1), pledged=CHUNK_MIN + 1), CHUNK_MIN) == "limit"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024


@pytest.mark.attack("F13")
@pytest.mark.parametrize("claimed", [1, CHUNK_MIN - 1, CHUNK_MIN + 1, CHUNK_MAX])
def test_a_frame_that_unpacks_to_something_else_than_it_claims_is_refused(claimed: int) -> None:
    data = os.urandom(1000) * 66
    frame = claiming(frame_of(data, pledged=len(data)), claimed)
    assert refusal(frame) == "malformed"


@pytest.mark.attack("F13")
def test_a_frame_that_says_no_size_or_needs_more_memory_than_a_chunk_is_refused() -> None:
    assert refusal(frame_of(b"data" * 1000)) == "malformed"
    window = frame_of(bytes(1 << 23), window_log=27)  # it says its window, as it does not know its size
    assert refusal(window) == "malformed"


@pytest.mark.attack("F13")
def test_only_one_whole_frame_is_one() -> None:
    data = b"some text " * 100
    frame = frame_of(data, pledged=len(data))
    skippable = struct.pack("<II", 0x184D2A50, 4) + b"skip"
    for wrong in (
        b"", b"x", data, frame[:-1], frame[: len(frame) // 2], frame[:6], frame + b"x", frame + frame,
        frame + skippable, skippable + frame, skippable, bytes(len(frame)), frame_of(b"", pledged=0),
    ):
        assert refusal(wrong) == "malformed", wrong


@given(st.data())
def test_what_is_damaged_is_refused_or_is_a_chunk_within_its_bounds(data: st.DataObject) -> None:
    """Frames come authenticated: this holds against who has the key."""
    frame = bytearray(frame_of(b"some text " * 500, pledged=5000, checksum_flag=1))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert 0 < len(unpack(bytes(frame), CHUNK_MIN)) <= CHUNK_MIN
    except PeerViolation as refused:
        assert refused.detail in {"malformed", "limit"}
