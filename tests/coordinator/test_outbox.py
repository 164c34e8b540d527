"""What waits for a slow reader: in order, bounded, and gone with it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.support.waiting import until
from zkc.constants import OUTBOX_BYTES_MAX, OUTBOXES_BYTES_MAX
from zkc.coordinator.outbox import Outbox
from zkc.net.loopsocket import Sent


class Socket:
    """A ROUTER whose peers take ``room`` more frames each."""

    def __init__(self, room: int) -> None:
        self.room = Counter[bytes]()
        self.default = room
        self.gone: set[bytes] = set()
        self.taken: dict[bytes, list[bytes]] = {}

    def send(self, frame: bytes, routing_id: bytes) -> Sent:
        if routing_id in self.gone:
            return Sent.GONE
        taken = self.taken.setdefault(routing_id, [])
        if len(taken) >= self.default + self.room[routing_id]:
            return Sent.FULL
        taken.append(frame)
        return Sent.OK


def test_a_burst_arrives_whole_and_in_order_once_there_is_room() -> None:
    async def scenario() -> None:
        socket = Socket(4)
        outbox = Outbox(socket.send)
        frames = [bytes((number,)) for number in range(64)]
        assert all(outbox.send(frame, b"a") for frame in frames)
        assert outbox.send(b"other", b"b") is Sent.OK
        assert socket.taken == {b"a": frames[:4], b"b": [b"other"]}
        socket.room[b"a"] = 10
        await until(lambda: len(socket.taken[b"a"]) == 14)
        socket.room[b"a"] = 1000
        await until(lambda: socket.taken[b"a"] == frames)
        await until(lambda: outbox.size == 0)

    asyncio.run(scenario())


@pytest.mark.attack("O05")
def test_who_never_reads_costs_no_more_than_its_share() -> None:
    async def scenario() -> None:
        socket = Socket(0)
        outbox = Outbox(socket.send)
        frame = bytes(60_000)
        outcomes = Counter(outbox.send(frame, b"slow") for _ in range(100))
        assert outbox.size <= OUTBOX_BYTES_MAX
        assert outcomes[Sent.FULL] == 100 - OUTBOX_BYTES_MAX // 60_000
        for peer in range(200):
            for _ in range(20):
                outbox.send(frame, peer.to_bytes(4, "big"))
        assert outbox.size <= OUTBOXES_BYTES_MAX
        outbox.close()
        assert outbox.size == 0

    asyncio.run(scenario())


def test_what_waits_for_a_peer_that_is_gone_is_thrown_away() -> None:
    async def scenario() -> None:
        socket = Socket(0)
        outbox = Outbox(socket.send)
        assert outbox.send(b"frame", b"a") is Sent.OK
        socket.gone.add(b"a")
        await until(lambda: outbox.size == 0)
        assert outbox.send(b"frame", b"a") is Sent.GONE

    asyncio.run(scenario())
