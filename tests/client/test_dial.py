"""What a client says of an address where no coordinator of its own answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable

import pytest
import zmq

from tests.support.evil import send_long
from tests.support.looking import memory
from tests.support.waiting import DEADLINE, until
from zkc.client.dial import Connection
from zkc.errors import UsageError, ZkcError
from zkc.net.descriptors import DescriptorsTaken
from zkc.net.sockets import bind_router, context, generate_curve
from zkc.net.zap import AsyncZap, Overloaded, ZapRequest


def a_web_server(peer: socket.socket) -> None:
    peer.recv(10)
    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def an_ssh_server(peer: socket.socket) -> None:
    peer.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
    with contextlib.suppress(ConnectionResetError):
        peer.recv(1 << 16)


def one_that_hangs_up(peer: socket.socket) -> None:
    pass


async def dial(endpoint: str, server_key: bytes = b"") -> ZkcError:
    keys, ctx = generate_curve(), context()
    connection = Connection(
        ctx, endpoint, server_key or generate_curve().public, keys.public, keys.secret, lambda _: None
    )
    try:
        with pytest.raises(ZkcError) as caught:
            await connection.wait_up()
        return caught.value
    finally:
        connection.close()
        ctx.destroy(linger=0)


@pytest.mark.parametrize("answer", [a_web_server, an_ssh_server, one_that_hangs_up])
def test_something_else_that_answers_is_told_from_nothing(answer: Callable[[socket.socket], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                answer(peer)

        serving = threading.Thread(target=serve)
        serving.start()
        error = asyncio.run(dial(f"tcp://127.0.0.1:{server.getsockname()[1]}"))
        serving.join()
    assert error.detail == "handshake"


def test_an_address_that_cannot_be_dialled_leaves_nothing_open() -> None:
    keys, ctx = generate_curve(), context()
    ctx.set(zmq.MAX_SOCKETS, 40)

    tried = 0

    def dial_often() -> bool:
        nonlocal tried
        # libzmq closes sockets in a thread of its own: while it is behind there is none to be had.
        with contextlib.suppress(DescriptorsTaken):
            with pytest.raises(UsageError, match="not an endpoint"):
                Connection(ctx, "tcp://*:1", keys.public, keys.public, keys.secret, lambda _: None)
            tried += 1
        return tried == 50

    async def scenario() -> None:
        await until(dial_often)

    try:
        asyncio.run(scenario())
    finally:
        ctx.destroy(linger=0)


def nobody(_: ZapRequest) -> None:
    return None


def no_room(_: ZapRequest) -> None:
    raise Overloaded


@pytest.mark.parametrize(
    ("admit", "code", "detail"), [(nobody, 11, "refused-key"), (no_room, 10, "overloaded")]
)
def test_a_coordinator_without_room_is_told_from_one_that_does_not_know_us(
    admit: Callable[[ZapRequest], None], code: int, detail: str
) -> None:
    async def scenario() -> ZkcError:
        server, ctx = generate_curve(), context()
        door = AsyncZap(ctx, asyncio.get_running_loop(), admit)
        router, (endpoint,) = bind_router(ctx, ["tcp://127.0.0.1:0"], server.secret)
        try:
            return await dial(endpoint, server.public)
        finally:
            router.close(linger=0)
            door.close()
            ctx.destroy(linger=0)

    error = asyncio.run(scenario())
    assert (error.code, error.detail) == (code, detail)


def test_nothing_there_is_told_as_that() -> None:
    with socket.socket() as held:  # bound, and it does not listen: nobody else gets the port meanwhile
        held.bind(("127.0.0.1", 0))
        assert asyncio.run(dial(f"tcp://127.0.0.1:{held.getsockname()[1]}")).detail == "refused"


@pytest.mark.attack("O03")
def test_a_coordinator_s_message_without_an_end_costs_the_link_and_little_memory() -> None:
    """Whoever has taken a coordinator over cannot fill its clients' memory."""

    async def scene() -> None:
        loop, ctx, server, client = asyncio.get_running_loop(), context(), generate_curve(), generate_curve()
        zap = AsyncZap(ctx, loop, lambda _: "guest")
        router, (endpoint,) = bind_router(ctx, ["tcp://127.0.0.1:0"], server.secret)
        got: list[bytes] = []
        connection = Connection(ctx, endpoint, server.public, client.public, client.secret, got.append)
        try:
            await connection.wait_up()
            assert connection.send(b"hello")
            await until(lambda: router.poll(0))
            peer, _ = router.recv_multipart()
            router.send_multipart([peer, b"hello"])
            await until(lambda: got)
            before = memory(os.getpid(), "VmHWM")
            router.send(peer, zmq.SNDMORE)
            send_long(router, bytes(60_000), 300 << 20)
            async with asyncio.timeout(DEADLINE):
                await connection.lost
            assert memory(os.getpid(), "VmHWM") - before < 100 << 20
            assert got == [b"hello"]
        finally:
            connection.close()
            zap.close()
            router.close(linger=0)
            ctx.destroy(linger=0)

    asyncio.run(scene())
