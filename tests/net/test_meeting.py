"""The two ends meet, whichever of them listens: the same deliveries, the same cuts, the same strangers."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import pytest
from blake3 import blake3

from tests.support.evil import COMMAND, LONG, RawPeer, greeting, raw_frame
from tests.support.meetings import FORMS, HOST, C, Meeting, silent
from tests.support.streams import Slow, persist
from tests.support.waiting import DEADLINE, wait_until
from zkc.constants import CONTROL_MESSAGE_MAX
from zkc.env import SystemClock
from zkc.errors import Interrupted, PolicyRefused, ZkcError
from zkc.net.pipe.bell import Bell, LinkLost
from zkc.net.pipe.dialling import Dialling
from zkc.net.pipe.meeting import Rung
from zkc.net.pipe.sender import Told
from zkc.net.sockets import BULK_FRAME_MAX, CURVE_OVERHEAD

MIB: Final = 1024 * 1024


@pytest.fixture(params=FORMS)
def meeting(request: pytest.FixtureRequest) -> Iterator[Meeting]:
    made = Meeting(request.param)
    yield made
    made.close()


def error_of(ended: Future[Any]) -> ZkcError:
    error = ended.exception(DEADLINE)
    assert isinstance(error, ZkcError), error
    return error


def test_a_delivery_arrives_and_both_ends_part(meeting: Meeting) -> None:
    """The recipient has the sender's last word and does not wait for its time to be over."""
    data = random.Random(1).randbytes(4 * MIB + 5)
    receiving = meeting.receive()
    delivered = meeting.attempts(data).next(Bell(), Told())
    begun = time.monotonic()
    receiving.result(DEADLINE)
    assert time.monotonic() - begun < 5.0
    assert delivered.body.digest == blake3(data).digest()
    assert meeting.sink.got == data


@pytest.mark.attack("P05")
def test_a_delivery_that_is_cut_again_and_again_goes_on_where_it_was(meeting: Meeting) -> None:
    data = random.Random(2).randbytes(8 * MIB + 17)
    places = sorted(random.Random(3).sample(range(len(data)), 20))

    def cut(got: int) -> None:
        if places and got > places[0]:
            while places and got > places[0]:
                places.pop(0)
            meeting.cut()

    meeting.sink.on_write = cut
    receiving = meeting.receive()
    delivered, lost = persist(meeting.attempts(data))
    receiving.result(DEADLINE)
    assert meeting.sink.got == data
    assert delivered.body.size == len(data)
    assert lost >= 4
    assert meeting.sink.completed == len(meeting.sink.manifests) == 1


def test_what_the_recipient_says_last_reaches_the_sender(meeting: Meeting) -> None:
    def full(_: int) -> None:
        raise PolicyRefused("too much", detail="limit")

    meeting.sink.on_write = full
    receiving = meeting.receive()
    with pytest.raises(PolicyRefused) as told:
        meeting.attempts(bytes(8 * C)).next(Bell(), Told())
    assert (told.value.detail, error_of(receiving).detail) == ("limit", "limit")


def test_what_the_sender_says_last_reaches_the_recipient(meeting: Meeting) -> None:
    bell = Bell()
    meeting.sink.on_write = lambda _: bell.ring()
    receiving = meeting.receive()
    with pytest.raises(Interrupted) as told:
        meeting.attempts(bytes(64 * MIB)).next(bell, Told())
    bell.close()
    assert told.value.detail == "signal"
    error = error_of(receiving)
    assert (type(error), error.detail) == (Interrupted, "signal")


def test_a_recipient_alone_waits_its_patience_and_no_longer(meeting: Meeting) -> None:
    for proxy in meeting.proxies:
        proxy.refuse()
    error = error_of(meeting.receive(patience=0.5))
    assert isinstance(error, LinkLost)
    assert "alice agreed to send and did not begin" in error.message


@pytest.mark.attack("P02")
def test_strangers_at_the_ports_change_nothing(meeting: Meeting) -> None:
    listening = meeting.here or meeting.incoming.listening
    assert listening is not None
    ports = (listening.data_port, listening.ack_port)
    if meeting.relay is not None:
        ports = (*ports, meeting.relay.port)
    data = random.Random(4).randbytes(2 * MIB)
    with contextlib.ExitStack() as strangers:
        for port in 4 * ports:
            strangers.enter_context(socket.create_connection((HOST, port))).sendall(b"GET / HTTP/1.1\r\n\r\n")
        receiving = meeting.receive()
        persist(meeting.attempts(data))
        receiving.result(DEADLINE)
    assert meeting.sink.got == data


def stranger(port: int, size: int) -> RawPeer:
    """Without any token, and with a command of ``size`` bytes of which the last one never comes."""
    made = RawPeer(HOST, port)
    made.send(greeting(mechanism=b"PLAIN") + raw_frame(LONG | COMMAND, size, bytes(size - 1)))
    return made


@pytest.mark.attack("D01", "O03", "P06")
def test_a_stranger_who_says_too_much_is_cut_off_alone(meeting: Meeting) -> None:
    """As much as either socket takes, at either port: the connections of a transfer that flows do not even end."""
    listening = meeting.here or meeting.incoming.listening
    assert listening is not None
    data = random.Random(6).randbytes(2 * MIB)
    receiving = meeting.receive()
    with ThreadPoolExecutor(1) as pool, Slow() as source, contextlib.ExitStack() as closing:
        sending = pool.submit(meeting.attempts_at(source).next, Bell(), Told())
        source.give(data[:MIB])
        wait_until(lambda: len(meeting.sink.got) == MIB)
        strangers = [
            closing.enter_context(stranger(port, size))
            for port in (listening.data_port, listening.ack_port)
            for size in (CONTROL_MESSAGE_MAX + CURVE_OVERHEAD, BULK_FRAME_MAX)
        ]
        for each in strangers:
            each.wait_closed()
        source.give(data[MIB:])
        source.end()
        sending.result(DEADLINE)
        receiving.result(DEADLINE)
    assert meeting.sink.got == data


@pytest.mark.attack("D01", "P06")
def test_strangers_that_were_there_first_are_not_taken_for_the_peer(meeting: Meeting) -> None:
    """Many times what the peer may be ahead arrives, while it is not known which of them it is."""
    listening = meeting.here or meeting.incoming.listening
    assert listening is not None
    data = random.Random(7).randbytes(8 * MIB)
    with contextlib.ExitStack() as closing:
        for port in 3 * (listening.data_port, listening.ack_port):
            closing.enter_context(RawPeer(HOST, port)).send(greeting(mechanism=b"PLAIN"))
        receiving = meeting.receive()
        meeting.attempts(data).next(Bell(), Told())
        receiving.result(DEADLINE)
    assert meeting.sink.got == data


def test_a_ring_ends_the_wait_of_either_end(sender_listens: Meeting) -> None:
    here, ring = sender_listens.here, sender_listens.ring
    assert here is not None
    here.expect(sender_listens.sender.k, C)
    ring.ring()
    with pytest.raises(Rung):
        here.meet(ring, time.monotonic() + DEADLINE, SystemClock())
    dialling = Dialling(
        sender_listens.doors.context, sender_listens.sender.k, here.at(["127.0.0.9"]), chunk=C, sends=False,
        peer="x",
    )
    with silent("127.0.0.9", here.data_port, here.ack_port), pytest.raises(Rung):
        dialling.meet(ring, time.monotonic() + DEADLINE, SystemClock())
    assert dialling.number == 1, "its tokens may have been shown"
