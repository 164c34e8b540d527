"""A sink that stands still: with `Bulk(held_chunk=...)` its link's heartbeats go on, without they do not."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

from tests.net.test_pipe import WHAT, Memory, Pair
from tests.support.waiting import DEADLINE
from zkc.constants import CHUNK_MIN, WINDOW_MAX
from zkc.net import sockets
from zkc.net.pipe import Bell, Bulk, LinkLost, send


@pytest.fixture
def quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that does not answer for 0.3 s is taken for dead, and not after a minute."""
    for kind in (sockets._DATA_IN, sockets._DATA_OUT, sockets._ACKS):
        monkeypatch.setitem(kind, zmq.HEARTBEAT_IVL, 100)
        monkeypatch.setitem(kind, zmq.HEARTBEAT_TIMEOUT, 200)


@pytest.fixture(params=[0, CHUNK_MIN])
def bulk(request: pytest.FixtureRequest, quick_heartbeats: None) -> Iterator[Bulk]:
    made = Bulk(held_chunk=request.param)
    yield made
    made.close()


def test_a_sink_that_stands_still_keeps_its_link_where_the_socket_holds_the_window(bulk: Bulk) -> None:
    pair, goes_on = Pair(bulk), threading.Event()
    data = random.Random(1).randbytes(WINDOW_MAX)

    def stand(size: int) -> None:
        if size == CHUNK_MIN:
            goes_on.wait(DEADLINE)

    pair.sink.on_write = stand
    with ThreadPoolExecutor(1) as pool:
        receiving = pair.receive()
        sending = pool.submit(send, pair.sender, WHAT, Memory(pair.sender, data), Bell(), deadline=None)
        try:
            if bulk.held_chunk:
                with pytest.raises(TimeoutError):
                    sending.result(3.0)
            else:
                with pytest.raises(LinkLost):
                    sending.result(DEADLINE)
        finally:
            goes_on.set()
        if bulk.held_chunk:
            sending.result(DEADLINE)
            receiving.result(DEADLINE)
            assert pair.sink.got == data
        else:
            assert receiving.exception(DEADLINE) is not None
    pair.close()


@pytest.mark.attack("P06")
def test_what_a_held_socket_can_be_made_to_hold_is_twice_the_window(bulk: Bulk) -> None:
    """However small the chunk: so many frames, and each at most twice as long as it should be."""
    if not bulk.held_chunk:
        pytest.skip("its socket holds four frames")
    pull, push, _, _ = sockets.bind_bulk(bulk.context, "127.0.0.1", held_chunk=bulk.held_chunk)
    with pull, push:
        frames, longest = pull.getsockopt(zmq.RCVHWM), pull.getsockopt(zmq.MAXMSGSIZE)
        assert isinstance(frames, int)
        assert isinstance(longest, int)
        assert frames * bulk.held_chunk > WINDOW_MAX
        assert frames * longest < 2.1 * WINDOW_MAX
