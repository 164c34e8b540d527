"""The relay by itself: who is joined to whom, who is not, and what strangers can make it hold."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from tests.support.env import FixedClock
from tests.support.relays import Relay
from tests.support.waiting import DEADLINE, wait_until
from zkc.constants import (
    RELAY_BUFFER_BYTES,
    RELAY_BUFFER_LEAST,
    RELAY_BUFFERS_BYTES,
    RELAY_CONNECTIONS_MAX,
    RELAY_MEETINGS_MAX,
    RELAY_MEETINGS_PER_CLIENT_MAX,
    RELAY_UNUSED_SECONDS,
)
from zkc.errors import LocalIOError, PolicyRefused
from zkc.net.relay import RelayServer

NAME: Final = bytes(range(16))
OTHER: Final = bytes(16)
JOINED: Final = b"\x05\x00\x00\x01" + bytes(6)


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay() as made:
        made.announce(NAME, OTHER)
        yield made


class Guest:
    """One connection to a relay."""

    def __init__(self, relay: Relay) -> None:
        self.socket = socket.create_connection((relay.host, relay.port), timeout=DEADLINE)

    def say(self, *parts: bytes) -> None:
        for part in parts:
            self.socket.sendall(part)

    def ask(self, name: str) -> None:
        """All of libzmq's part, at once but for the answer that it waits for."""
        self.say(b"\x05\x01\x00")
        assert self.hear(2) == b"\x05\x00"
        self.say(b"\x05\x01\x00\x03" + bytes([len(name)]) + name.encode() + b"\x00\x01")

    def hear(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            piece = self.socket.recv(size - len(got))
            if not piece:
                return got
            got += piece
        return got

    def is_dropped(self) -> bool:
        """Once it is; whatever it still says before that."""
        with contextlib.suppress(ConnectionError):
            while self.socket.recv(65536):
                pass
        return True

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def guests(relay: Relay) -> Iterator[list[Guest]]:
    made = [Guest(relay) for _ in range(4)]
    yield made
    for guest in made:
        guest.close()


def test_two_ends_of_a_meeting_are_joined_both_ways(relay: Relay, guests: list[Guest]) -> None:
    """Neither hears anything before the other is there."""
    sender, recipient, *_ = guests
    sender.ask(f"{NAME.hex()}-s")
    sender.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        sender.hear(1)
    sender.socket.settimeout(DEADLINE)
    recipient.ask(f"{NAME.hex()}-r")
    for guest in (sender, recipient):
        assert guest.hear(len(JOINED)) == JOINED
    sender.say(b"to bob")
    assert recipient.hear(6) == b"to bob"
    recipient.say(b"to alice")
    assert sender.hear(8) == b"to alice"
    sender.say(b"last")
    sender.close()
    assert recipient.hear(100) == b"last"


def test_the_handshake_may_come_byte_by_byte(relay: Relay, guests: list[Guest]) -> None:
    sender, recipient, *_ = guests
    recipient.ask(f"{NAME.hex()}-r")
    asked = f"{NAME.hex()}-s".encode()
    for byte in b"\x05\x02\x02\x00" + b"\x05\x01\x00\x03" + bytes([len(asked)]) + asked + b"\x00\x01":
        sender.say(bytes([byte]))
    assert sender.hear(2 + len(JOINED)) == b"\x05\x00" + JOINED


def test_the_newest_of_each_side_counts(relay: Relay, guests: list[Guest]) -> None:
    """A later one ends what stood, and then waits for the other side's next."""
    first, recipient, second, again = guests
    first.ask(f"{NAME.hex()}-s")
    recipient.ask(f"{NAME.hex()}-r")
    assert recipient.hear(len(JOINED)) == JOINED
    second.ask(f"{NAME.hex()}-s")
    assert first.is_dropped()
    assert recipient.is_dropped()
    again.ask(f"{NAME.hex()}-r")
    assert second.hear(len(JOINED)) == again.hear(len(JOINED)) == JOINED
    again.say(b"new")
    assert second.hear(3) == b"new"


@pytest.mark.parametrize(
    "asked", [f"{(b'?' * 16).hex()}-s", f"{NAME.hex()}-x", NAME.hex(), "", "example.org", f"{NAME.hex().upper()}-s"]
)
def test_a_name_that_nobody_announced_leads_nowhere(relay: Relay, guests: list[Guest], asked: str) -> None:
    guests[0].ask(asked)
    assert guests[0].is_dropped()
    assert not relay.call(lambda: sum(len(each.ends) for each in relay.server._meetings.values()))


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n", b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", b"\x05\x01\x02", b"\x05\x00",
        b"\x05\x01\x00\x05\x02\x00\x03", b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50",
        b"\x05\x01\x00\x05\x01\x00\x03\x02ab\x00\x01and more", bytes(4096), b"\x05\xff" + bytes(600),
    ],
)
def test_what_is_not_libzmqs_part_of_socks_is_dropped(relay: Relay, guests: list[Guest], said: bytes) -> None:
    """It connects nobody to an address: it is no proxy."""
    guests[0].say(said)
    assert guests[0].is_dropped()


def test_bytes_before_the_other_end_is_there_end_a_connection(relay: Relay, guests: list[Guest]) -> None:
    guests[0].ask(f"{NAME.hex()}-s")
    guests[0].say(b"early")
    assert guests[0].is_dropped()


@pytest.mark.parametrize("said", [b"", b"\x05", b"\x05\x01\x00\x05\x01\x00\x03\xff"])
def test_half_a_handshake_is_not_waited_for(
    relay: Relay, guests: list[Guest], monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr("zkc.net.relay.HANDSHAKE_SECONDS", 0.1)
    late = Guest(relay)
    late.say(said)
    assert late.is_dropped()
    late.close()


def test_one_that_stays_alone_is_held_for_a_while_only(
    relay: Relay, guests: list[Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkc.net.relay.RELAY_LONE_SECONDS", 0.1)
    guests[0].ask(f"{NAME.hex()}-s")
    assert guests[0].is_dropped()
    guests[1].ask(f"{NAME.hex()}-r")
    assert guests[1].is_dropped(), "the first one has left the meeting"


def test_connections_are_bounded_for_each_address_and_in_all(
    relay: Relay, guests: list[Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("RELAY_CONNECTIONS_PER_ADDRESS_MAX", "RELAY_CONNECTIONS_MAX"):
        monkeypatch.setattr(f"zkc.net.relay.{bound}", 4)
        wait_until(lambda: len(relay.server._ends) == 4)
        late = Guest(relay)
        assert late.is_dropped()
        late.close()
        assert relay.events[-1] == ("relay-full", {"address": "127.0.0.1"})
        monkeypatch.undo()
    guests.pop().close()
    wait_until(lambda: len(relay.server._ends) == 3)
    next_one = Guest(relay)
    next_one.ask(f"{NAME.hex()}-s")
    next_one.close()


def test_a_slow_reader_holds_up_its_sender_and_not_the_relays_memory(relay: Relay, guests: list[Guest]) -> None:
    """What is in flight stays within one read, and what two kernels hold."""
    sender, recipient, *_ = guests
    join(sender, recipient, NAME)
    sent = fill(sender)
    wait_until(lambda: held(relay))
    assert held(relay) <= relay.server.held <= RELAY_BUFFER_BYTES
    assert len(recipient.hear(sent)) == sent
    wait_until(lambda: relay.server.held == 0)


def join(sender: Guest, recipient: Guest, name: bytes) -> None:
    """Joined by ``name``; their kernels hold little."""
    for guest, size in ((sender, socket.SO_SNDBUF), (recipient, socket.SO_RCVBUF)):
        guest.socket.setsockopt(socket.SOL_SOCKET, size, 65536)
    sender.ask(f"{name.hex()}-s")
    recipient.ask(f"{name.hex()}-r")
    assert sender.hear(len(JOINED)) == recipient.hear(len(JOINED)) == JOINED


def fill(sender: Guest) -> int:
    """Bytes that went on their way until nothing more did."""
    sender.socket.settimeout(0.5)
    sent, chunk = 0, bytes(65536)
    with contextlib.suppress(TimeoutError):
        while sent < 256 * 1024 * 1024:
            sent += sender.socket.send(chunk)
    assert sent < 64 * 1024 * 1024
    return sent


def held(relay: Relay) -> int:
    """Bytes in all buffers of a relay."""
    return relay.call(lambda: sum(end._transport.get_write_buffer_size() for end in relay.server._ends))


def test_slow_readers_together_hold_no_more_than_the_budget_and_nobody_else_up() -> None:
    names = [bytes([number]) * 16 for number in range(12)]
    budget, pairs = 2 * RELAY_BUFFER_BYTES, []
    with Relay(budget=budget) as relay, contextlib.ExitStack() as closing:
        for name in names:
            relay.announce(name, OTHER)
            sender, recipient = (Guest(relay) for _ in range(2))
            closing.callback(sender.close)
            closing.callback(recipient.close)
            join(sender, recipient, name)
            pairs.append((sender, recipient))
        slow, (quick, reader) = pairs[:-1], pairs[-1]
        with ThreadPoolExecutor(len(slow)) as pool:
            sent = list(pool.map(fill, [sender for sender, _ in slow]))
        wait_until(lambda: held(relay))
        assert held(relay) <= relay.server.held <= budget + len(slow) * RELAY_BUFFER_LEAST
        for _ in range(10):
            quick.say(bytes(100_000))
            assert len(reader.hear(100_000)) == 100_000
        for size, (_, recipient) in zip(sent, slow, strict=True):
            assert len(recipient.hear(size)) == size
        wait_until(lambda: relay.server.held == 0)
        # What is never taken goes with its connection.
        assert fill(quick)
        wait_until(lambda: relay.server.held)
        reader.close()
        quick.close()
        wait_until(lambda: relay.server.held == 0)


@pytest.mark.attack("D16")
def test_what_all_connections_together_can_make_a_relay_hold_fits_into_its_memory() -> None:
    assert RELAY_BUFFERS_BYTES + RELAY_CONNECTIONS_MAX * RELAY_BUFFER_LEAST <= 48 * 1024 * 1024


@pytest.mark.parametrize("client", ["one", "many"])
def test_announced_meetings_are_bounded_for_each_client_and_in_all(client: str) -> None:
    """Until they are forgotten, unused."""
    clock = FixedClock()
    with Relay(clock.monotonic) as relay:
        most = RELAY_MEETINGS_PER_CLIENT_MAX if client == "one" else RELAY_MEETINGS_MAX
        for i in range(0, most, 2):
            names = i.to_bytes(16, "big"), (i + 1).to_bytes(16, "big")
            relay.announce(*names, client="bob" if client == "one" else f"c{i}")
        relay.announce(bytes(16), (1).to_bytes(16, "big"), client="bob" if client == "one" else "c0")
        with pytest.raises(PolicyRefused) as full:
            relay.announce(NAME, OTHER[1:] + b"x", client="bob")
        assert full.value.detail == "limit"
        clock.advance(RELAY_UNUSED_SECONDS + 1)
        relay.announce(NAME, OTHER[1:] + b"x", client="bob")
        assert relay.call(lambda: len(relay.server._meetings)) == 2
        assert relay.call(lambda: dict(relay.server._accounts)) == {"bob": 2}


def test_an_address_that_is_taken_is_said(relay: Relay) -> None:
    with pytest.raises(LocalIOError) as taken:
        relay.run(RelayServer(lambda: 0.0).start(relay.host, relay.port))
    assert taken.value.detail == "address-in-use"
