from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
import zmq

from tests.net.conftest import Door
from tests.support.evil import KeyedPeer
from tests.support.waiting import DEADLINE, until
from zkc.net.loopsocket import BATCH, DISCARD_BATCH, Dropped, LoopSocket, Received, Sent
from zkc.net.monitor import EventKind
from zkc.net.sockets import Context, Socket, shutdown_connection

BURST = 10_000


def pair(ctx: Context, transport: str, hwm: int = 0) -> tuple[Socket, Socket]:
    router, dealer = ctx.socket(zmq.ROUTER), ctx.socket(zmq.DEALER)
    for sock in (router, dealer):
        sock.set_hwm(hwm)
        sock.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    dealer.setsockopt(zmq.ROUTING_ID, b"d")
    router.bind("inproc://pair" if transport == "inproc" else "tcp://127.0.0.1:0")
    dealer.connect(router.getsockopt_string(zmq.LAST_ENDPOINT))
    return router, dealer


def numbers(received: list[Received]) -> list[int]:
    return [int.from_bytes(message.payload, "big") for message in received]


@pytest.mark.parametrize("transport", ["inproc", "tcp"])
def test_no_message_is_lost_in_bursts_both_ways_on_one_loop(ctx: Context, transport: str) -> None:
    async def scene() -> None:
        at_router: list[Received] = []
        at_dealer: list[Received] = []
        raw_router, raw_dealer = pair(ctx, transport)
        router, dealer = LoopSocket(raw_router, at_router.append), LoopSocket(raw_dealer, at_dealer.append)
        assert dealer.send(b"\0")
        await until(lambda: at_router)
        at_router.clear()
        for number in range(BURST):
            payload = number.to_bytes(4, "big")
            assert dealer.send(payload) is Sent.OK
            assert router.send(payload, b"d") is Sent.OK
        await until(lambda: len(at_router) == len(at_dealer) == BURST)
        assert numbers(at_router) == numbers(at_dealer) == list(range(BURST))
        router.close()
        dealer.close()

    asyncio.run(scene())


def test_no_message_is_lost_in_bursts_both_ways_between_a_loop_and_a_thread(ctx: Context) -> None:
    """The loop answers each message with one of its own while the thread sends and receives at full speed: every send
    of the loop may swallow the ring of a message that has just come in."""
    router, raw_dealer = pair(ctx, "tcp")
    echoed: list[bytes] = []

    def other_end() -> None:
        sent = 0
        while len(echoed) < BURST:
            for _ in range(min(97, BURST - sent)):
                raw_dealer.send(sent.to_bytes(4, "big"))
                sent += 1
            while raw_dealer.poll(0 if sent < BURST else int(DEADLINE * 1000)):
                echoed.append(raw_dealer.recv())
                if len(echoed) == BURST:
                    break
            else:
                if sent == BURST:
                    return

    async def scene() -> None:
        got: list[Received] = []
        sent: list[Sent] = []

        def echo(message: Received) -> None:
            got.append(message)
            sent.append(looped.send(message.payload, message.routing_id))

        looped = LoopSocket(router, echo)
        await asyncio.to_thread(other_end)
        assert all(sent)
        assert numbers(got) == list(range(BURST))
        looped.close()

    asyncio.run(scene())
    assert [int.from_bytes(payload, "big") for payload in echoed] == list(range(BURST))
    raw_dealer.close()


def test_a_full_peer_is_full_and_an_unknown_one_is_gone(ctx: Context) -> None:
    async def scene() -> None:
        raw_router, raw_dealer = pair(ctx, "inproc", hwm=2)
        router = LoopSocket(raw_router, lambda _: None)
        answers = [router.send(b"x", b"d") for _ in range(20)]
        assert answers[0] is Sent.OK
        assert answers[-1] is Sent.FULL
        assert not answers[-1]
        assert router.send(b"x", b"nobody") is Sent.GONE
        router.close()
        raw_dealer.close()

    asyncio.run(scene())


def test_a_flood_leaves_the_loop_its_turns(ctx: Context) -> None:
    """Between two turns of other work at most BATCH messages are handled."""

    async def scene() -> None:
        raw_router, raw_dealer = pair(ctx, "inproc")
        for number in range(BURST):
            raw_dealer.send(number.to_bytes(4, "big"))
        got: list[Received] = []
        at_turns: list[int] = []
        loop = asyncio.get_running_loop()

        def turn() -> None:
            at_turns.append(len(got))
            if len(got) < BURST:
                loop.call_soon(turn)

        router = LoopSocket(raw_router, got.append)
        turn()
        await until(lambda: len(got) == BURST)
        assert max(after - before for before, after in pairwise(at_turns)) <= BATCH
        router.close()
        raw_dealer.close()

    asyncio.run(scene())


def test_an_error_of_the_handler_is_reported_and_stops_nothing(ctx: Context) -> None:
    async def scene() -> None:
        reported: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        got: list[bytes] = []

        def handle(message: Received) -> None:
            got.append(message.payload)
            if message.payload == b"bad":
                raise zmq.Again  # not to be taken for "nothing there"

        raw_router, raw_dealer = pair(ctx, "inproc")
        router = LoopSocket(raw_router, handle)
        for payload in (b"bad", b"good"):
            raw_dealer.send(payload)
        await until(lambda: len(got) == 2)
        assert len(reported) == 1
        router.close()
        raw_dealer.close()

    asyncio.run(scene())


@pytest.mark.attack("O03")
def test_messages_of_several_parts_are_dropped_and_reported_and_the_next_one_arrives(door: Door) -> None:
    async def scene(peer: KeyedPeer) -> None:
        got: list[Received] = []
        dropped: list[Dropped] = []
        router = LoopSocket(door.socket, got.append, on_dropped=dropped.append)
        for parts in (2, 3, DISCARD_BATCH * 3):
            peer.send(*[b"p"] * parts)
        peer.send(b"whole")
        await until(lambda: got)
        assert [message.payload for message in got] == [b"whole"]
        assert [one.parts for one in dropped] == [2, 3, DISCARD_BATCH * 3]
        assert {one.user_id for one in dropped} == {"guest"}
        assert {one.routing_id for one in dropped} == {got[0].routing_id}
        assert shutdown_connection(dropped[0].fd, dropped[0].inode)
        await asyncio.to_thread(peer.wait_dropped)
        router.close()

    with KeyedPeer(door.endpoint, door.server.public, door.guest) as peer:
        asyncio.run(scene(peer))


@pytest.mark.attack("O01")
@pytest.mark.parametrize("routing_id", [None, b"bob", b"\0bob", b"\0" * 200])
def test_a_routing_id_that_a_peer_chose_is_known_as_such(door: Door, routing_id: bytes | None) -> None:
    async def scene(peer: KeyedPeer) -> None:
        got: list[Received] = []
        router = LoopSocket(door.socket, got.append)
        peer.send(b"hello")
        await until(lambda: got)
        assert got[0].claimed is (routing_id is not None)
        assert got[0].user_id == "guest"
        router.close()

    with KeyedPeer(door.endpoint, door.server.public, door.guest, routing_id=routing_id) as peer:
        asyncio.run(scene(peer))


@pytest.mark.attack("C09")
def test_a_second_peer_that_claims_a_routing_id_gets_nothing_that_is_meant_for_the_first(door: Door) -> None:
    async def scene(first: KeyedPeer) -> None:
        got: list[Received] = []
        router = LoopSocket(door.socket, got.append)
        first.send(b"first")
        await until(lambda: got)
        with KeyedPeer(door.endpoint, door.server.public, door.guest, routing_id=got[0].routing_id) as second:
            assert await asyncio.to_thread(second.verdict) is EventKind.HANDSHAKE_SUCCEEDED
            second.send(b"second")
            assert router.send(b"answer", got[0].routing_id)
            assert await asyncio.to_thread(first.receive) == [b"answer"]
            assert second.receive(0) is None
        router.close()

    with KeyedPeer(door.endpoint, door.server.public, door.guest, routing_id=b"claimed") as peer:
        asyncio.run(scene(peer))


def test_an_empty_message_arrives_as_one(ctx: Context) -> None:
    async def scene() -> None:
        raw_router, raw_dealer = pair(ctx, "inproc")
        got: list[Received] = []
        router = LoopSocket(raw_router, got.append)
        raw_dealer.send(b"")
        await until(lambda: got)
        assert got == [Received(b"", b"d", "", -1, 0)]
        router.close()
        raw_dealer.close()

    asyncio.run(scene())


@pytest.mark.parametrize("when", ["from-its-handler", "twice", "context-first"])
def test_closing_is_clean_at_any_time(when: str) -> None:
    ctx: Context = zmq.Context()

    async def scene() -> None:
        reported: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        raw_router, raw_dealer = pair(ctx, "inproc")
        got: list[Received] = []
        close: Callable[[], None]

        def handle(message: Received) -> None:
            got.append(message)
            if when == "from-its-handler":
                close()

        router = LoopSocket(raw_router, handle)
        close = router.close
        for _ in range(3):
            raw_dealer.send(b"x")
        await until(lambda: got)
        raw_dealer.close()
        if when == "context-first":
            ending = threading.Thread(target=ctx.term)
            ending.start()
            turns = asyncio.Event()
            asyncio.get_running_loop().call_soon(turns.set)
            await turns.wait()
            router.close()
            await asyncio.to_thread(ending.join)
        elif when == "twice":
            router.close()
        router.close()
        assert router.closed
        assert len(got) == (1 if when == "from-its-handler" else len(got))
        assert not reported

    asyncio.run(scene())
    ctx.term()
