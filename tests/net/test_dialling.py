"""Who dials, and at which of a peer's addresses: those that are silent, that refuse, that are somebody else's."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
import zmq

from tests.support.evil import COMMAND, LONG, greeting, raw_frame
from tests.support.meetings import HOST, C, Meeting, silent
from tests.support.parties import world
from tests.support.streams import WHAT, Kept, Memory, persist
from tests.support.talks import terms
from tests.support.waiting import DEADLINE, wait_until
from zkc.env import SystemClock
from zkc.net.pipe.bell import Bell, LinkLost
from zkc.net.pipe.dialling import Dialling
from zkc.net.pipe.link import CONNECT_SECONDS
from zkc.net.pipe.meeting import ADDRESSES_AT_ONCE
from zkc.net.pipe.outgoing import Outgoing
from zkc.net.pipe.recipient import Bulk
from zkc.net.pipe.sender import Attempts, Told
from zkc.net.sockets import BULK_FRAME_MAX, BulkPorts, context
from zkc.wire.messages import Endpoints


def free_ports() -> tuple[int, int]:
    with contextlib.closing(BulkPorts(HOST)) as ports:
        return ports.data_port, ports.ack_port


@pytest.mark.parametrize("family", ["127.0.0.1", "::1"])
def test_an_address_that_is_silent_holds_up_nobody(family: str) -> None:
    """Further candidates are tried beside it, and the one that answers is named."""
    bulk, bell = Bulk(), Bell()
    incoming = bulk.listen(family, None, "alice")
    listening = incoming.listening
    assert listening is not None
    talk = world("x25519").transfer(terms("bob"))
    talk.run()
    sender, recipient = talk.sessions
    incoming.admit(recipient)
    where = listening.at(["127.0.0.9", "192.0.2.1", "not an address", family])
    sink = Kept(recipient)
    reached: list[str] = []
    with silent("127.0.0.9", listening.data_port, listening.ack_port), ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(incoming.receive, recipient, sink, bell, DEADLINE)
        begun = time.monotonic()
        attempts = Attempts(dataclasses.replace(sender, endpoints=where), WHAT, Outgoing(Memory(b"hello")))
        attempts.next(Bell(), Told(on_begun=lambda endpoint, _: reached.append(endpoint)))
        took = time.monotonic() - begun
        receiving.result(DEADLINE)
    shown = f"[{family}]" if ":" in family else family
    assert reached == [f"direct tcp://{shown}:{listening.data_port}"]
    assert took < CONNECT_SECONDS / 2
    incoming.close()
    bulk.close()
    bell.close()


@contextlib.contextmanager
def dialling(addresses: list[str], ports: tuple[int, int], most: int) -> Iterator[Dialling]:
    """From a context that has room for ``most`` sockets."""
    talk = world("x25519").transfer(terms("bob"))
    talk.run()
    ctx = context()
    ctx.set(zmq.MAX_SOCKETS, most)
    made = Dialling(ctx, talk.sessions[0].k, Endpoints(addresses, *ports, 0, "", b""), chunk=C, sends=True, peer="bob")
    try:
        yield made
    finally:
        made.close()
        ctx.destroy(linger=0)


def test_of_many_addresses_that_are_silent_a_few_are_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names them takes no sockets from others; each has its time, and then the next one has its turn."""
    monkeypatch.setattr("zkc.net.pipe.dialling.CONNECT_SECONDS", 0.5)
    monkeypatch.setattr("zkc.net.pipe.dialling.NEXT_ADDRESS_SECONDS", 0.01)
    addresses = [f"127.0.0.{number}" for number in range(10, 19)]
    with contextlib.ExitStack() as closing:
        ports = free_ports()
        for address in addresses:
            closing.enter_context(silent(address, *ports))
        # Twice: libzmq takes a moment to give back those that are closed.
        dials = closing.enter_context(dialling(addresses, ports, 2 * 6 * ADDRESSES_AT_ONCE))
        bell = closing.enter_context(contextlib.closing(Bell()))
        begun = time.monotonic()
        with pytest.raises(LinkLost, match="cannot reach bob at 127.0.0.10, "):
            dials.meet(bell, begun + DEADLINE, SystemClock())
        assert time.monotonic() - begun > math.ceil(len(addresses) / ADDRESSES_AT_ONCE) * 0.5


def test_behind_many_addresses_that_refuse_the_one_that_answers_is_found(sender_listens: Meeting) -> None:
    """Those that have failed make room."""
    where = sender_listens.where()
    addresses = [f"127.0.0.{number}" for number in range(20, 30)]
    sender_listens.recipient = dataclasses.replace(
        sender_listens.recipient, endpoints=msgspec.structs.replace(where, addresses=[*addresses, HOST])
    )
    receiving = sender_listens.receive()
    persist(sender_listens.attempts(b"found"))
    receiving.result(DEADLINE)
    assert sender_listens.sink.got == b"found"


@pytest.mark.attack("D01")
def test_a_stranger_at_one_of_the_addresses_that_says_too_much_is_passed_over(sender_listens: Meeting) -> None:
    where, junk = sender_listens.where(), greeting(mechanism=b"PLAIN", as_server=True)
    with contextlib.ExitStack() as closing, ThreadPoolExecutor(2) as pool:
        for port in (where.data_port, where.ack_port):
            server = closing.enter_context(socket.create_server(("127.0.0.9", port)))

            def flood(server: socket.socket = server) -> None:
                with server.accept()[0] as stranger, contextlib.suppress(OSError):
                    stranger.sendall(junk + raw_frame(LONG | COMMAND, BULK_FRAME_MAX, bytes(BULK_FRAME_MAX - 1)))
                    stranger.recv(1)

            pool.submit(flood)
        sender_listens.recipient = dataclasses.replace(
            sender_listens.recipient, endpoints=msgspec.structs.replace(where, addresses=["127.0.0.9", HOST])
        )
        receiving = sender_listens.receive()
        persist(sender_listens.attempts(b"true"))
        receiving.result(DEADLINE)
    assert sender_listens.sink.got == b"true"


def test_a_recipient_that_finds_no_socket_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other transfers have them all for a while."""
    monkeypatch.setattr("zkc.net.pipe.recipient.TRANSFERS_MAX", 1)
    made, meetings = Meeting("sender listens"), []
    meet = Dialling.meet

    def counted(dialling: Dialling, *words: Any) -> Any:
        meetings.append(dialling.number)
        return meet(dialling, *words)

    monkeypatch.setattr(Dialling, "meet", counted)
    with contextlib.closing(made), contextlib.ExitStack() as taken, ThreadPoolExecutor(1) as pool:
        with contextlib.suppress(zmq.ZMQError):
            while True:
                taken.enter_context(made.bulk.context.socket(zmq.PAIR))
        receiving = made.receive()
        sending = pool.submit(persist, made.attempts(b"patient"))
        wait_until(lambda: len(meetings) > 2 or receiving.done())
        taken.close()
        sending.result(DEADLINE)
        receiving.result(DEADLINE)
    assert made.sink.got == b"patient"
