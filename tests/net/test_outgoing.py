"""A stream from any position: read, sealed, taken over, and gone back in, against a plain model of bytes."""

from __future__ import annotations

import random
import tracemalloc
from typing import Final

import pytest
from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zkc.constants import CHUNK
from zkc.errors import IntegrityError, Interrupted, LocalIOError
from zkc.net.pipe.outgoing import Outgoing

SIZE: Final = 8
"""Bytes of a chunk here."""
DATA: Final = random.Random(1).randbytes(50)


class Bytes:
    """A source of bytes that gives at most ``most`` at a time; ``again`` False: once, like a pipe."""

    def __init__(self, data: bytes, *, again: bool, most: int = 1 << 20) -> None:
        self.fd: int | None = None if again else 99
        self.again = again
        self.checked = 0
        self._data, self._most, self._position = data, most, 0

    def readinto(self, into: memoryview) -> int:
        piece = self._data[self._position : self._position + min(len(into), self._most)]
        into[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def seek(self, position: int) -> None:
        assert self.again, "a pipe is read once"
        self._position = position

    def check(self) -> None:
        self.checked += 1


both = pytest.mark.parametrize("again", [True, False], ids=["file", "pipe"])


class Sent:
    """One connection's end: seals chunk after chunk, from a position on."""

    def __init__(self, outgoing: Outgoing, position: int = 0) -> None:
        self.outgoing = outgoing
        self.at = position
        self.digest = outgoing.go_to(position)
        assert self.digest.digest() == blake3(DATA[:position]).digest()

    def chunk(self, size: int = SIZE) -> bytes:
        """The next chunk of at most so many bytes."""
        while len(self.outgoing.chunk) < size and self.outgoing.read(size):
            pass
        return self.seal()

    def seal(self) -> bytes:
        """What was read, as a chunk."""
        data = bytes(self.outgoing.chunk)
        self.digest.update(data)
        self.at += len(data)
        self.outgoing.sealed(self.at, self.digest)
        return data

    def rest(self) -> bytes:
        data = b""
        while piece := self.chunk():
            data += piece
        return data


@both
@pytest.mark.parametrize("position", range(3 * SIZE + 1))
def test_it_goes_on_from_wherever_the_recipient_stands(again: bool, position: int) -> None:
    """At the end of a chunk, and in the middle of one: every byte after it, and the digest of all before it."""
    outgoing = Outgoing(Bytes(DATA, again=again))
    first = Sent(outgoing)
    for _ in range(3):
        first.chunk()
    assert Sent(outgoing, position).rest() == DATA[position:]


@both
def test_what_was_read_and_not_sealed_is_not_lost(again: bool) -> None:
    """A chunk that had not been filled when the connection broke."""
    outgoing = Outgoing(Bytes(DATA, again=again, most=3))
    first = Sent(outgoing)
    first.chunk()
    assert outgoing.read(SIZE)
    assert bytes(outgoing.chunk) == DATA[SIZE : SIZE + 3]
    second = Sent(outgoing, 5)
    assert second.chunk(4) == DATA[5:9]
    assert outgoing.read(SIZE)
    third = Sent(outgoing, 9)
    assert third.rest() == DATA[9:]


@both
def test_going_back_again_and_again_loses_and_repeats_nothing(again: bool) -> None:
    outgoing = Outgoing(Bytes(DATA, again=again, most=5))
    for position in (0, 0, 7, 8, 8, 15, 16, 17, 17):
        sent = Sent(outgoing, position)
        assert sent.chunk() + sent.chunk(3) == DATA[position : position + SIZE + 3]
        outgoing.taken(position)
    assert Sent(outgoing, 17).rest() == DATA[17:]


def test_of_a_pipe_only_what_is_not_taken_over_is_kept_and_of_a_file_nothing() -> None:
    for again in (True, False):
        outgoing = Outgoing(Bytes(DATA, again=again), apart=SIZE)
        sent = Sent(outgoing)
        for _ in range(4):
            sent.chunk()
        assert sum(map(len, outgoing._kept)) == (0 if again else 4 * SIZE)
        outgoing.taken(2 * SIZE + 1)
        assert sum(map(len, outgoing._kept)) == (0 if again else 2 * SIZE), "in the middle of a chunk: it is kept whole"
        outgoing.taken(4 * SIZE)
        assert not outgoing._kept


@pytest.mark.attack("D18")
@both
def test_a_trickle_that_nobody_takes_over_takes_little_more_than_its_bytes(again: bool) -> None:
    """Each byte was a chunk of its own; neither a buffer nor a digest is kept for each."""
    data = random.Random(2).randbytes(400)
    outgoing = Outgoing(Bytes(data, again=again, most=1))
    digest, at = outgoing.go_to(0), 0
    tracemalloc.start()
    try:
        while outgoing.read(CHUNK):
            digest.update(outgoing.chunk)
            at += 1
            outgoing.sealed(at, digest)
        assert tracemalloc.get_traced_memory()[1] < 2 * CHUNK
    finally:
        tracemalloc.stop()
    outgoing.taken(7)
    assert outgoing.go_to(123).digest() == blake3(data[:123]).digest()
    while outgoing.read(CHUNK):
        pass
    assert bytes(outgoing.chunk) == data[123:]


def test_a_full_chunk_is_kept_without_a_copy() -> None:
    outgoing = Outgoing(Bytes(bytes(2 * CHUNK + 1), again=False))
    sent = Sent(outgoing)
    for _ in range(2):
        assert outgoing.read(CHUNK)
        read = outgoing.chunk.obj
        sent.at += CHUNK
        outgoing.sealed(sent.at, sent.digest)
        assert outgoing._kept[-1].obj is read


def test_the_buffer_of_a_chunk_is_used_again_once_it_is_taken_over() -> None:
    outgoing = Outgoing(Bytes(bytes(5 * CHUNK), again=False))
    sent, buffers = Sent(outgoing), []
    for taken in (0, 0, CHUNK, CHUNK, 4 * CHUNK):
        outgoing.taken(taken)
        assert outgoing.read(CHUNK)
        buffers.append(outgoing.chunk.obj)
        sent.at += CHUNK
        outgoing.sealed(sent.at, sent.digest)
    first, second, third, fourth, fifth = map(id, buffers)
    assert third == first
    assert len({first, second, fourth}) == 3
    assert fifth in (second, third, fourth)


def test_what_a_recipient_has_lost_of_a_pipe_is_gone_and_of_a_file_read_again() -> None:
    piped = Outgoing(Bytes(DATA, again=False), apart=SIZE)
    sent = Sent(piped)
    for _ in range(3):
        sent.chunk()
    piped.taken(2 * SIZE)
    with pytest.raises(Interrupted) as caught:
        piped.go_to(2 * SIZE - 1)
    assert (caught.value.code, caught.value.detail) == (31, "pipe")
    assert Sent(piped, 2 * SIZE).rest() == DATA[2 * SIZE :], "what the recipient said before still holds"
    file = Outgoing(Bytes(DATA, again=True))
    sent = Sent(file)
    sent.rest()
    file.taken(len(DATA))
    assert Sent(file, 3).rest() == DATA[3:]


@pytest.mark.attack("D17")
@pytest.mark.parametrize(
    ("again", "sealed", "claimed"),
    [(True, 0, len(DATA) + 1), (True, 5, 1 << 62), (False, 0, 1), (False, 2, 2 * SIZE + 1), (False, 7, len(DATA) + 1)],
)
def test_a_position_beyond_what_there_is_is_a_lie(again: bool, sealed: int, claimed: int) -> None:
    """Of a pipe: beyond what was sealed; nothing is read from it to find out."""
    outgoing = Outgoing(source := Bytes(DATA, again=again))
    sent = Sent(outgoing)
    for _ in range(sealed):
        sent.chunk()
    read = source._position
    with pytest.raises(IntegrityError) as caught:
        outgoing.go_to(claimed)
    assert (caught.value.code, caught.value.detail) == (32, "position")
    assert again or source._position == read


@pytest.mark.attack("D17")
def test_of_a_file_that_begins_the_recipient_has_no_more_than_was_sealed() -> None:
    """And what it claims beyond is not read to find out."""
    outgoing = Outgoing(source := Bytes(DATA, again=True))
    with pytest.raises(IntegrityError):
        outgoing.go_to(1, fresh=True)
    sent = Sent(outgoing)
    sent.chunk()
    sent.chunk()
    with pytest.raises(IntegrityError) as caught:
        outgoing.go_to(2 * SIZE + 1, fresh=True)
    assert (caught.value.detail, source._position) == ("position", 2 * SIZE)
    assert outgoing.go_to(2 * SIZE, fresh=True).digest() == blake3(DATA[: 2 * SIZE]).digest()


def test_a_file_goes_on_at_a_position_that_this_command_never_sent() -> None:
    """Another command did: the digest of the prefix is read from the file."""
    outgoing = Outgoing(Bytes(DATA, again=True, most=4))
    assert Sent(outgoing, 33).rest() == DATA[33:]
    assert Sent(Outgoing(Bytes(DATA, again=True)), len(DATA)).rest() == b""


@both
def test_the_descriptor_is_polled_only_where_the_next_read_may_wait(again: bool) -> None:
    outgoing = Outgoing(Bytes(DATA, again=again))
    assert outgoing.fd == (None if again else 99)
    Sent(outgoing).chunk()
    again_from_the_start = Sent(outgoing, 0)
    assert outgoing.fd is None, "what is sent once more is here"
    again_from_the_start.chunk()
    assert outgoing.fd == (None if again else 99)


def test_a_source_that_was_found_changed_at_its_end_says_so() -> None:
    class Changed(Bytes):
        def check(self) -> None:
            raise LocalIOError("changed", detail="source-changed")

    for act in (lambda each: Sent(each).rest(), lambda each: each.read_through(), lambda each: each.go_to(999)):
        with pytest.raises(LocalIOError):
            act(Outgoing(Changed(DATA, again=True)))


def test_whoever_pauses_it_ends_a_long_look_back() -> None:
    class Rung(Exception):
        pass

    def ring() -> None:
        raise Rung

    for act in (lambda each: each.go_to(3, ring), lambda each: each.read_through(ring)):
        with pytest.raises(Rung):
            act(Outgoing(Bytes(DATA, again=True)))


def test_size_and_digest_of_the_whole_are_read_where_it_can_be_read_again() -> None:
    whole = len(DATA), blake3(DATA).digest()
    assert Outgoing(Bytes(DATA, again=True, most=7)).read_through() == whole
    assert Outgoing(Bytes(DATA, again=False)).read_through() is None
    known = Outgoing(Bytes(DATA, again=False))
    known.whole = whole
    assert known.read_through() == whole
    half = Outgoing(Bytes(DATA, again=True))
    Sent(half, 7).chunk()
    assert half.read_through() == whole


class Model(RuleBasedStateMachine):
    """Connections that break at any moment, with any of the credit taken over, of a file or a pipe."""

    @initialize(again=st.booleans(), most=st.integers(1, 20), size=st.integers(0, 200), apart=st.integers(0, 40))
    def begin(self, again: bool, most: int, size: int, apart: int) -> None:
        self.data = random.Random(size).randbytes(size)
        self.again, self.apart = again, apart
        self.outgoing = Outgoing(Bytes(self.data, again=again, most=most), apart=apart)
        self.taken = self.at = self.sealed = 0
        self.digest = self.outgoing.go_to(0)

    @rule(size=st.integers(1, 16))
    def read(self, size: int) -> None:
        before = bytes(self.outgoing.chunk)
        size = max(size, len(before) + 1)
        there = self.outgoing.read(size)
        got = bytes(self.outgoing.chunk)
        assert got.startswith(before)
        assert len(got) <= size
        assert got == self.data[self.at : self.at + len(got)]
        assert there == (len(got) > len(before))
        assert there or self.at + len(got) == len(self.data)

    @precondition(lambda self: len(self.outgoing.chunk))
    @rule()
    def seal(self) -> None:
        self.digest.update(self.outgoing.chunk)
        self.at += len(self.outgoing.chunk)
        self.sealed = max(self.sealed, self.at)
        self.outgoing.sealed(self.at, self.digest)

    @rule(share=st.floats(0, 1))
    def take(self, share: float) -> None:
        self.taken += round((self.at - self.taken) * share)
        self.outgoing.taken(self.taken)

    @rule(share=st.floats(0, 1), back=st.integers(0, 30))
    def break_off(self, share: float, back: int) -> None:
        """The recipient has anything from what it said to what was sealed; a file's may have lost some."""
        low = max(self.taken - back, 0) if self.again else self.taken
        self.at = low + round((self.at - low) * share)
        self.taken = self.at
        self.digest = self.outgoing.go_to(self.at)

    @invariant()
    def digest_is_that_of_what_was_sealed(self) -> None:
        if hasattr(self, "data"):
            assert self.digest.digest() == blake3(self.data[: self.at]).digest()

    @invariant()
    def nothing_is_kept_that_is_taken_over(self) -> None:
        if hasattr(self, "data"):
            kept = sum(map(len, self.outgoing._kept))
            assert kept == (0 if self.again else self.at - self.outgoing._marks[0][0])
            assert len(self.outgoing._kept) in (0, len(self.outgoing._marks) - 1)

    @invariant()
    def marks_are_apart(self) -> None:
        if hasattr(self, "data"):
            ends = [end for end, _ in self.outgoing._marks]
            assert all(later - end > self.apart for end, later in zip(ends, ends[2:], strict=False))


Model.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrder = Model.TestCase

