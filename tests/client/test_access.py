"""Who reaches the coordinator for a command or a program: decided for each call, since daemons come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

import zkc
from tests.support.looking import log_of
from tests.support.waiting import DEADLINE
from zkc.client import control
from zkc.client.access import ByDaemon
from zkc.net.local import serve_local
from zkc.net.local_client import LocalClient
from zkc.testing import Fleet, Program
from zkc.wire.messages import Peer


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob", client={"log.level": "debug"}) as running:
        yield running


@pytest.fixture
def alice(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, in which alice's daemon runs again after the test."""
    yield fleet
    if fleet.program("alice").process.poll() is not None:
        fleet.start_daemon("alice")


def asked(fleet: Fleet, what: str) -> int:
    """How often alice's daemons were asked for it."""
    return sum(event["event"] == "command" and event["request"] == what for event in log_of(fleet, "alice"))


def test_a_program_uses_the_daemon_whenever_one_runs_and_a_link_of_its_own_whenever_none_does(alice: Fleet) -> None:
    client = alice.client("alice")
    for end in (Program.terminate, Program.kill):
        client.send("bob", b"by the daemon")
        assert [peer.name for peer in client.peers()] == ["alice", "bob"]
        told = asked(alice, "AskGrant"), asked(alice, "AskPeers")
        assert min(told) > 0
        end(alice.program("alice"))
        client.send("bob", b"by itself")
        assert [peer.name for peer in client.peers()] == ["alice", "bob"]
        assert (asked(alice, "AskGrant"), asked(alice, "AskPeers")) == told
        alice.start_daemon("alice")
        client.peers()
        assert asked(alice, "AskPeers") == told[1] + 1
    for text in 2 * (b"by the daemon", b"by itself"):
        with alice.client("bob").receive(wait=DEADLINE) as item:
            assert item.read() == text


def test_of_many_sends_of_one_program_none_is_refused(alice: Fleet) -> None:
    """They take their turns in the program, and not at the recipient, which takes so many at once."""
    count = 200

    async def scenario() -> None:
        async with zkc.Client(alice.home("alice")) as client:
            await asyncio.gather(*(client.send("bob", b"x") for _ in range(count)))

    asyncio.run(scenario())
    for _ in range(count):
        with alice.client("bob").receive(wait=DEADLINE):
            pass


def test_a_list_of_peers_of_any_length_comes_through_the_control_socket(tmp_path: Path) -> None:
    """Each reply is bounded, the answer is not: a coordinator may have 20,000 clients."""
    known = [
        Peer(f"{number:05}/".ljust(127, "x"), "application", True, 1 << 40, bytes(32), "unknown", 0)
        for number in range(20_000)
    ]

    async def handle(request: object, _: object) -> AsyncGenerator[control.ControlReply, None]:
        if isinstance(request, control.AskPeers):
            for reply in control.replies_of(known):
                yield reply
        else:
            yield control.DoneReply()

    async def scenario() -> list[Peer]:
        server = await serve_local(tmp_path / "s", handle, control.ControlRequest)
        try:
            return await asyncio.to_thread(ByDaemon(LocalClient(tmp_path / "s", control.ControlReply)).peers)
        finally:
            await server.close()

    assert asyncio.run(scenario()) == known
