from __future__ import annotations

import fcntl
import os
import select
import termios
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO

import pytest

from tests.support.waiting import DEADLINE, wait_until
from zkc.client.fanout import Branch, Fan, SharedPace, Team
from zkc.env import SystemClock
from zkc.errors import Interrupted, LocalIOError, UsageError
from zkc.net.pipe.bell import Bell
from zkc.stores.pipes import PIPE_BYTES

MIB = 1 << 20


@contextmanager
def piped(data: bytes) -> Iterator[BinaryIO]:
    """A pipe that somebody fills with ``data``, as fast as it is read."""
    reader, writer = os.pipe()

    def fill() -> None:
        with os.fdopen(writer, "wb") as into:
            try:
                into.write(data)
            except BrokenPipeError:
                return

    thread = threading.Thread(target=fill)
    thread.start()
    with os.fdopen(reader, "rb", buffering=0) as stream:
        yield stream  # type: ignore[misc]
    thread.join()


def read(branch: Branch, most: int = 1 << 62) -> bytes:
    """What it gives, to its end, which is checked."""
    got, into = bytearray(), memoryview(bytearray(MIB))
    while len(got) < most:
        count = branch.readinto(into)
        if not count:
            branch.check()
            break
        got += into[:count]
    return bytes(got)


def test_each_branch_gets_the_whole_pipe() -> None:
    data = os.urandom(8 * MIB + 1)
    with piped(data) as stream, Fan(stream, 3) as fan, ThreadPoolExecutor() as pool:
        assert all(got == data for got in pool.map(read, fan.branches))
        for branch in fan.branches:
            branch.close()


def test_the_slowest_sets_the_speed_and_one_that_leaves_none() -> None:
    """A reader that does not read holds all back, within what two pipes hold; once it has gone they go on."""
    data = os.urandom(16 * MIB)
    with piped(data) as stream, Fan(stream, 2) as fan, ThreadPoolExecutor() as pool:
        fast, slow = fan.branches
        got: list[int] = []
        into = memoryview(bytearray(MIB))

        def run() -> None:
            while count := fast.readinto(into):
                got.append(count)

        running = pool.submit(run)

        def starves() -> bool:
            """What is still to be written is for the slow one alone, and the fast one has read all of its own."""
            owed = sorted(map(len, fan._writers.values()))
            waiting = fcntl.ioctl(fast.fd, termios.FIONREAD, bytes(4))
            return owed[0] == 0 < owed[1] and waiting == bytes(4)

        wait_until(starves)
        assert sum(got) <= 2 * PIPE_BYTES
        slow.close()
        running.result(DEADLINE)
        fast.check()
        assert sum(got) == len(data)
        fast.close()


def test_when_all_have_left_nothing_more_is_read() -> None:
    with piped(bytes(64 * MIB)) as stream:
        with Fan(stream, 2) as fan:
            for branch in fan.branches:
                branch.close()
        assert stream.read(1) == b"\0"


def test_a_pipe_that_cannot_be_read_is_no_end() -> None:
    """A branch that ended there would be delivered, and be too short."""
    folder = os.open("/", os.O_RDONLY)
    with _raw(folder) as stream, Fan(stream, 2) as fan:
        for branch in fan.branches:
            with pytest.raises(LocalIOError, match="cannot read the piped data"):
                read(branch)
            branch.close()


@contextmanager
def _raw(fd: int) -> Iterator[BinaryIO]:
    """A stream with a descriptor that Python would not open."""

    class Raw:
        def fileno(self) -> int:
            return fd

    yield Raw()  # type: ignore[misc]
    os.close(fd)


def test_a_fan_that_is_ended_is_no_end_of_its_pipe() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as stream, os.fdopen(writer, "wb", buffering=0) as into:
        with Fan(stream, 1) as fan:
            (branch,) = fan.branches
            into.write(b"begun")
            assert read(branch, 5) == b"begun"
        with pytest.raises(Interrupted):
            read(branch)
        branch.close()


def test_a_team_ends_with_its_last_and_raises_what_was_no_result() -> None:
    with Team(["a", "b"], lambda name, _: name.upper(), SystemClock()) as team:
        assert team.wait() == {"a": "A", "b": "B"}

    def wrong(name: str, bell: Bell) -> None:
        if name == "a":
            raise UsageError("wrong")
        select.select([bell.fd], [], [], DEADLINE)  # told to end, since another one failed

    with Team(["a", "b"], wrong, SystemClock()) as team, pytest.raises(UsageError, match="wrong"):
        team.wait()


def test_who_leaves_a_team_tells_all_to_end() -> None:
    ended = []

    def until_told(name: str, bell: Bell) -> None:
        select.select([bell.fd], [], [], DEADLINE)
        ended.append(name)

    with pytest.raises(KeyboardInterrupt), Team(["a", "b"], until_told, SystemClock()):
        raise KeyboardInterrupt
    assert sorted(ended) == ["a", "b"]


def test_a_shared_pace_forgets_nothing() -> None:
    pace = SharedPace(1000.0)

    def take(_: int) -> None:
        for _ in range(1000):
            pace.take(1, 0.0)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, range(8)))
    assert pace.pause(0.0) == pytest.approx(8.0 - 0.1)
