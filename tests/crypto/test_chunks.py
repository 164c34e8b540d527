"""The stream of frames at the level of `StreamOpener`: what a network between the ends can do to it."""

from __future__ import annotations

import copy
import pickle
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.constants import CHUNK_MIN
from zkc.crypto.chunks import StreamOpener, StreamSealer, token, xid_tag
from zkc.crypto.primitives import Secret, expand, mac
from zkc.crypto.stream_cipher import Buffer
from zkc.errors import PeerViolation
from zkc.ids import CIPHERS, SAFE_CIPHERS
from zkc.wire.frames import DATA_HEADER_BYTES, DataHeader, Flag, Stream

K: Final = Secret(bytes(range(32)))
OTHER_K: Final = Secret(bytes(range(1, 33)))
PLAIN: Final = [b"first chunk", b"second", b"", b"the last of them"]
FIRST: Final = DATA_HEADER_BYTES + 32


def sealer(stream: Stream = Stream.DATA, attempt: int = 0, k: Secret = K, cipher: str = "aes-256-gcm") -> StreamSealer:
    return StreamSealer(k, stream, attempt, cipher)


def opener(stream: Stream = Stream.DATA, attempt: int = 0, k: Secret = K, cipher: str = "aes-256-gcm") -> StreamOpener:
    return StreamOpener(k, stream, attempt, cipher)


def frames_of(seal: StreamSealer, chunks: list[bytes] = PLAIN) -> list[bytes]:
    last = len(chunks) - 1
    return [bytes(seal.seal(c, Flag.LAST if i == last else Flag.NONE)) for i, c in enumerate(chunks)]


def take(into: StreamOpener, frame: bytes) -> Buffer:
    """What a receiver does with what came from the socket."""
    return into.open(DataHeader.unpack(frame), frame)


def refused(into: StreamOpener, frame: bytes) -> str:
    with pytest.raises(PeerViolation) as caught:
        take(into, frame)
    return caught.value.detail


@pytest.fixture(params=CIPHERS)
def cipher(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- both ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", Stream)
def test_the_other_end_opens_the_frames_in_order(cipher: str, stream: Stream) -> None:
    frames = frames_of(sealer(stream, 7, cipher=cipher))
    into = opener(stream, 7, cipher=cipher)
    assert [take(into, frame) for frame in frames] == PLAIN
    assert into.index == len(PLAIN)
    assert into.bytes == sum(map(len, PLAIN))


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_any_chunks_of_any_attempt_come_through(chunks: list[bytes], attempt: int) -> None:
    into = opener(attempt=attempt)
    assert [take(into, frame) for frame in frames_of(sealer(attempt=attempt), chunks)] == chunks


def test_a_frame_is_header_commitment_ciphertext() -> None:
    """The commitment stands in clear in the first frame alone; plaintext stands nowhere."""
    frames = frames_of(sealer(attempt=3))
    material = expand(K, b"data " + bytes.fromhex("00000003"), 76)
    assert frames[0][DATA_HEADER_BYTES:FIRST] == material[44:]
    assert [len(f) for f in frames] == [FIRST + 11 + 16, *(DATA_HEADER_BYTES + n + 16 for n in (6, 0, 16))]
    for index, frame in enumerate(frames):
        header = DataHeader.unpack(frame)
        assert header == DataHeader(Stream.DATA, Flag.LAST if index == 3 else Flag.NONE, 3, index, xid_tag(K))
        assert not any(chunk and chunk in frame for chunk in PLAIN)


def test_a_key_is_used_up_at_its_rollover(monkeypatch: pytest.MonkeyPatch) -> None:
    seal = sealer()
    monkeypatch.setattr(type(seal._cipher), "rollover_bytes", 20)
    seal.seal(bytes(19))
    assert not seal.used_up
    seal.seal(b"x")
    assert seal.used_up


# --- D03: every byte ------------------------------------------------------------------------------------------------


@pytest.mark.attack("D03")
@pytest.mark.parametrize("index", [0, 1])
def test_a_flip_of_any_bit_of_a_frame_is_refused(cipher: str, index: int) -> None:
    """Header, commitment, ciphertext, tag; a frame with and one without a commitment."""
    frames = frames_of(sealer(cipher=cipher))
    for bit in range(8 * len(frames[index])):
        into = opener(cipher=cipher)
        for before in frames[:index]:
            take(into, before)
        damaged = bytearray(frames[index])
        damaged[bit // 8] ^= 1 << bit % 8
        assert refused(into, bytes(damaged)) in {"forged", "unexpected", "malformed", "version"}
        assert into.index == index


@pytest.mark.attack("D03")
@pytest.mark.parametrize("index", [0, 1])
def test_a_frame_cut_anywhere_or_with_more_behind_it_is_refused(cipher: str, index: int) -> None:
    frames = frames_of(sealer(cipher=cipher))
    frame = frames[index]
    for wrong in (*(frame[:n] for n in range(len(frame))), frame + b"\0", frame + frame):
        into = opener(cipher=cipher)
        for before in frames[:index]:
            take(into, before)
        assert refused(into, wrong) in {"forged", "malformed"}


@pytest.mark.attack("D03")
def test_a_failure_is_for_good() -> None:
    """Nothing after a damaged frame opens, not even the true one: the connection is over."""
    frames = frames_of(sealer())
    into = opener()
    assert refused(into, frames[0][:-1] + b"?") == "forged"
    for frame in frames:
        assert refused(into, frame) == "unexpected"


# --- D04: the last flag -----------------------------------------------------------------------------------------


@pytest.mark.attack("D04")
def test_the_last_flag_can_be_neither_set_nor_cleared(cipher: str) -> None:
    """It stands in the header (associated data) and in the nonce."""
    frames = frames_of(sealer(cipher=cipher))
    flags_at = 2
    for index in range(len(frames)):
        into = opener(cipher=cipher)
        for before in frames[:index]:
            take(into, before)
        damaged = bytearray(frames[index])
        damaged[flags_at] ^= Flag.LAST
        assert refused(into, bytes(damaged)) == "forged"


@pytest.mark.attack("D04")
def test_a_stream_without_its_last_frame_never_shows_the_last_flag() -> None:
    """Truncation at a chunk's boundary is seen: no frame of the others was made with the flag."""
    frames = frames_of(sealer())
    into = opener()
    for frame in frames[:-1]:
        take(into, frame)
        assert Flag.LAST not in DataHeader.unpack(frame).flags
    assert into.index == len(frames) - 1


@pytest.mark.attack("D04")
def test_the_nonce_tells_last_from_not_last() -> None:
    """Even if the header were not authenticated."""
    seal = sealer()
    assert seal._nonce(last=True) != seal._nonce(last=False)


# --- D05, D06: order, repetition, other attempts, transfers and keys ------------------------------------------------


@pytest.mark.attack("D05")
@given(st.permutations(range(5)))
def test_only_the_order_in_which_they_were_made_opens(order: list[int]) -> None:
    chunks = [bytes((i,)) * 9 for i in range(5)]
    frames = frames_of(sealer(), chunks)
    into = opener()
    for position, index in enumerate(order):
        if index != position:
            assert refused(into, frames[index]) == "unexpected"
            break
        assert take(into, frames[index]) == chunks[index]


@pytest.mark.attack("D05")
@pytest.mark.parametrize("index", range(4))
def test_a_frame_opens_once(index: int) -> None:
    frames = frames_of(sealer())
    into = opener()
    for frame in frames[: index + 1]:
        take(into, frame)
    assert refused(into, frames[index]) == "unexpected"


@pytest.mark.attack("D05")
def test_a_renumbered_frame_is_refused() -> None:
    """Whoever writes another index into the header meets another nonce and other associated data."""
    frames = frames_of(sealer())
    into = opener()
    take(into, frames[0])
    header = DataHeader.unpack(frames[2])
    renumbered = DataHeader(header.stream, header.flags, header.attempt, 1, header.xid_tag).pack()
    assert refused(into, renumbered + frames[2][DATA_HEADER_BYTES:]) == "forged"


@pytest.mark.attack("D05")
@pytest.mark.parametrize("attempt", [0, 2, 2**32 - 1])
def test_a_frame_of_another_attempt_is_refused(attempt: int) -> None:
    """As it is, and with the attempt in its header rewritten."""
    frame = frames_of(sealer(attempt=attempt))[0]
    assert refused(opener(attempt=1), frame) == "unexpected"
    header = DataHeader.unpack(frame)
    rewritten = DataHeader(header.stream, header.flags, 1, header.index, header.xid_tag).pack()
    assert refused(opener(attempt=1), rewritten + frame[DATA_HEADER_BYTES:]) == "forged"


@pytest.mark.attack("D06")
def test_a_frame_of_another_transfer_is_refused(cipher: str) -> None:
    """Another K: its xid_tag gives it away; with ours written over it, the commitment does; with both, the tag."""
    frame = frames_of(sealer(k=OTHER_K, cipher=cipher))[0]
    ours = frames_of(sealer(cipher=cipher))[0]
    assert refused(opener(cipher=cipher), frame) == "unexpected"
    assert refused(opener(cipher=cipher), ours[:DATA_HEADER_BYTES] + frame[DATA_HEADER_BYTES:]) == "forged"
    assert refused(opener(cipher=cipher), ours[:FIRST] + frame[FIRST:]) == "forged"


@pytest.mark.attack("D06", "H10")
@pytest.mark.parametrize("made", Stream)
@pytest.mark.parametrize("tried", Stream)
def test_a_frame_of_one_stream_is_none_of_another(made: Stream, tried: Stream) -> None:
    """An acknowledgement is never data, a manifest never a chunk, in neither direction."""
    if made is tried:
        return
    frame = frames_of(sealer(made))[0]
    assert refused(opener(tried), frame) == "unexpected"
    header = DataHeader.unpack(frame)
    rewritten = DataHeader(tried, header.flags, header.attempt, header.index, header.xid_tag).pack()
    assert refused(opener(tried), rewritten + frame[DATA_HEADER_BYTES:]) == "forged"


# --- D09: the commitment --------------------------------------------------------------------------------------------


@pytest.mark.attack("D09")
def test_a_wrong_commitment_is_refused_before_anything_is_decrypted(
    cipher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = bytearray(frames_of(sealer(cipher=cipher))[0])
    frame[DATA_HEADER_BYTES + 5] ^= 1
    into = opener(cipher=cipher)

    def never(*_: object) -> bytes:
        raise AssertionError("decrypted under a key that is not committed to")

    monkeypatch.setattr(type(into._cipher), "open", never)
    assert refused(into, bytes(frame)) == "forged"


@pytest.mark.attack("D09")
def test_one_ciphertext_that_two_keys_open_is_refused_under_the_second() -> None:
    """GCM and Poly1305 do not commit to a key: frames that open under two are made at will. The commitment decides.

    The forger who knows both keys is played by resealing: header and commitment of one, ciphertext valid for the other
    under exactly that associated data.
    """
    ours, theirs = sealer(), sealer(k=OTHER_K)
    header = DataHeader(Stream.DATA, Flag.NONE, 0, 0, xid_tag(K)).pack()
    aad = header + theirs._commitment
    body = bytearray(len(b"two faces") + 16)
    ours._cipher.seal_into(ours._nonce(last=False), aad, b"two faces", memoryview(body))
    assert ours._cipher.open(ours._nonce(last=False), aad, body) == b"two faces"
    assert refused(opener(), aad + bytes(body)) == "forged"


@pytest.mark.attack("D09")
def test_commitments_differ_by_key_stream_and_attempt() -> None:
    seen = {sealer(s, a, k)._commitment for s in Stream for a in (0, 1, 2**32 - 1) for k in (K, OTHER_K)}
    assert len(seen) == 3 * 3 * 2


# --- names on the outside: xid_tag and token ------------------------------------------------------------------------


def test_xid_tag_and_tokens_are_separate_derivations() -> None:
    """H10 core: what travels in clear or as a password says nothing of the keys, nor one of the other."""
    tokens = {token(K, socket, attempt) for socket in ("data", "ack") for attempt in (0, 1, 2**32 - 1)}
    assert len(tokens) == 6
    assert all(len(t) == 32 and set(t) <= set("0123456789abcdef") for t in tokens)
    assert xid_tag(K) == mac(K.reveal(), b"zkc/1 xid-tag\1")[:16]
    assert token(K, "data", 1) == mac(K.reveal(), b"zkc/1 token data\0\0\0\1", b"\1")[:16].hex()
    assert xid_tag(K).hex() not in tokens
    assert xid_tag(K) != xid_tag(OTHER_K)


# --- (key, nonce) never twice ---------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.binary(max_size=5), st.booleans()), max_size=30))
def test_no_nonce_comes_twice_under_one_key(chunks: list[tuple[bytes, bool]]) -> None:
    seal = sealer()
    nonces = []
    for chunk, last in chunks:
        nonces.append(seal._nonce(last))
        seal.seal(chunk, Flag.LAST if last else Flag.NONE)
    assert len(set(nonces)) == len(nonces)


@pytest.mark.parametrize("owner", [sealer(), opener()], ids=["sealer", "opener"])
@pytest.mark.parametrize("store", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_owner_of_nonces_is_neither_copied_nor_stored(owner, store) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError, match="neither copied nor stored"):
        store(owner)


def test_a_stream_shows_no_key() -> None:
    seal = sealer()
    for key in (K.reveal(), seal._commitment, seal._base.to_bytes(12, "big")):
        assert key.hex() not in repr(seal)
        assert repr(key) not in repr(seal)


@pytest.mark.parametrize("cipher", SAFE_CIPHERS)
def test_what_a_chunk_held_is_there_until_the_next_one_is_opened_and_nobody_can_change_it(cipher: str) -> None:
    texts = [bytes([n]) * (CHUNK_MIN + 1) for n in range(3)]
    frames, into = frames_of(sealer(cipher=cipher), texts), opener(cipher=cipher)
    first = memoryview(take(into, frames[0]))
    assert (bytes(first), first.readonly) == (texts[0], True)
    assert bytes(take(into, frames[1])) == texts[1]
    assert bytes(first) == texts[1], "the memory is used again"
    assert refused(into, frames[2][:-1] + bytes([frames[2][-1] ^ 1])) == "forged"
