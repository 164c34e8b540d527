"""What a client says of an address where no coordinator of its own answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable

import pytest

from zkc.client.dial import Connection
from zkc.errors import CoordinatorUnreachable
from zkc.net.sockets import context, generate_curve


def a_web_server(peer: socket.socket) -> None:
    peer.recv(10)
    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def an_ssh_server(peer: socket.socket) -> None:
    peer.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
    with contextlib.suppress(ConnectionResetError):
        peer.recv(1 << 16)


def one_that_hangs_up(peer: socket.socket) -> None:
    pass


async def dial(endpoint: str) -> CoordinatorUnreachable:
    keys, ctx = generate_curve(), context()
    connection = Connection(ctx, endpoint, generate_curve().public, keys.public, keys.secret, lambda _: None)
    try:
        with pytest.raises(CoordinatorUnreachable) as caught:
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


def test_nothing_there_is_told_as_that() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert asyncio.run(dial(f"tcp://127.0.0.1:{port}")).detail == "refused"
