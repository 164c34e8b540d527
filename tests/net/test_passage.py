"""An end's way to a relay: what it holds of the bytes that it carries."""

from __future__ import annotations

import contextlib
import socket
import tracemalloc
from collections.abc import Iterator

import pytest

from zkc.constants import TRANSFERS_MAX
from zkc.net.pipe.passage import _ACK_BYTES, _DATA_BYTES, _Way


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket, socket.socket, socket.socket]]:
    """Who writes, what a way reads; what it writes to, who reads that."""
    with contextlib.ExitStack() as stack:
        first, second = socket.socketpair(), socket.socketpair()
        for each in (*first, *second):
            stack.enter_context(each)
            each.setblocking(False)
        yield *first, *second


def test_a_way_holds_what_is_under_way_and_nothing_else(
    ends: tuple[socket.socket, socket.socket, socket.socket, socket.socket],
) -> None:
    writer, source, target, reader = ends
    way = _Way(source, target, 4096)
    sent, got, content = 0, b"", bytes(range(256)) * 8192
    while len(got) < len(content):
        with contextlib.suppress(BlockingIOError):
            sent += writer.send(content[sent:])
        for _ in range(1000):
            assert way.go_on()
            assert len(way.held) <= 4096
        with contextlib.suppress(BlockingIOError):
            while piece := reader.recv(65536):
                got += piece
    assert got == content
    assert way.go_on()
    assert not way.held.obj
    writer.close()
    assert not way.go_on()
    assert reader.recv(1) == b""


@pytest.mark.attack("D16")
def test_as_many_passages_as_there_may_be_hold_nothing_as_long_as_nothing_comes(
    ends: tuple[socket.socket, socket.socket, socket.socket, socket.socket],
) -> None:
    _, source, target, _ = ends
    tracemalloc.start()
    try:
        ways = [_Way(source, target, size) for size in (_DATA_BYTES, _ACK_BYTES) for _ in range(2 * TRANSFERS_MAX)]
        took, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert took < 1024 * len(ways)
    assert TRANSFERS_MAX * 2 * (_DATA_BYTES + _ACK_BYTES) < 40 * 1024 * 1024, "where every end is slow"
