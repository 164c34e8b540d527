from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.meetings import Meeting
from tests.support.waiting import DEADLINE
from zkc.net.sockets import (
    BulkPorts,
    Context,
    CurveKeys,
    Socket,
    Watch,
    bind_router,
    context,
    generate_curve,
    serve_bulk,
    split_endpoint,
    to_raw,
)
from zkc.net.zap import ThreadZap, ZapRequest


@pytest.fixture
def ctx() -> Iterator[Context]:
    made = context()
    yield made
    made.destroy(linger=0)


def served(ctx: Context, *, watch: Watch | None = None) -> tuple[Socket, Socket, int, int]:
    """The listening end of one bulk connection on free ports of loopback: pull, push, data port, ack port."""
    ports = BulkPorts("127.0.0.1")
    pull, push = serve_bulk(ctx, ports, watch=watch)
    ports.close()  # libzmq has copies
    return pull, push, ports.data_port, ports.ack_port


@dataclass
class Door:
    """A CURVE ROUTER on loopback whose ZAP admits one key, as ``guest``."""

    socket: Socket
    endpoint: str
    server: CurveKeys
    guest: CurveKeys
    asked: list[ZapRequest]

    @property
    def address(self) -> tuple[str, int]:
        return split_endpoint(self.endpoint)

    def receive(self) -> list[bytes]:
        assert self.socket.poll(int(DEADLINE * 1000)), "nothing came"
        return self.socket.recv_multipart()

    def is_silent(self) -> bool:
        """Whether nothing has been delivered so far."""
        return not self.socket.poll(0)


@pytest.fixture
def door(ctx: Context) -> Iterator[Door]:
    asked: list[ZapRequest] = []
    server, guest = generate_curve(), generate_curve()
    guest_raw = to_raw(guest.public)

    def admit(request: ZapRequest) -> str | None:
        asked.append(request)
        return "guest" if request.credentials == (guest_raw,) else None

    with ThreadZap(ctx, admit):
        router, (endpoint,) = bind_router(ctx, ["tcp://127.0.0.1:0"], server.secret)
        yield Door(router, endpoint, server, guest, asked)
        router.close(linger=0)


@pytest.fixture
def sender_listens() -> Iterator[Meeting]:
    made = Meeting("sender listens")
    yield made
    made.close()
