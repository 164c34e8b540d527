"""Links that are late, stand still, break off and stay away: a file and a pipe arrive by the command that sent them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from blake3 import blake3

from tests.support.looking import inbox_of, log_of, payloads
from tests.support.proxy import TcpProxy
from tests.support.waiting import DEADLINE, wait_until
from zkc.testing import Fleet

MIB: Final = 1 << 20
BESIDE: Final = "127.0.0.2"
"""Where others reach bob, by way of a proxy for each of his ports."""
PORTS: Final = 4
"""For two transfers at once."""
LATE: Final = 0.2
"""Seconds."""


class Wires:
    """All connections of the transfers to bob, in the hands of the test. Use as a context manager."""

    def __init__(self, ports: range) -> None:
        self.proxies = [TcpProxy(("127.0.0.1", port), listen=BESIDE, port=port) for port in ports]

    def __enter__(self) -> Wires:
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self.proxies:
            proxy.close()

    @property
    def carried(self) -> int:
        """Bytes so far."""
        return sum(len(record.up) for proxy in self.proxies for record in list(proxy.connections))

    @property
    def made(self) -> int:
        """Connections so far."""
        return sum(len(proxy.connections) for proxy in self.proxies)

    def away(self, how: Literal["reset", "silent"]) -> None:
        """Nothing gets through, and who tries is told so, or is not."""
        for proxy in self.proxies:
            if how == "silent":
                proxy.stall()
            else:
                proxy.refuse()
                proxy.cut()

    def back(self) -> None:
        for proxy in self.proxies:
            proxy.refuse(False)
            proxy.resume()


def free_ports() -> range:
    """One after the other."""
    while True:
        with ExitStack() as held, contextlib.suppress(OSError, OverflowError):
            first = held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for port in range(first + 1, first + PORTS):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            return range(first, first + PORTS)


@pytest.fixture(scope="module")
def ports() -> range:
    return free_ports()


@pytest.fixture(scope="module")
def fleet(ports: range) -> Iterator[Fleet]:
    client = {
        "transfer.listen": f"tcp://127.0.0.1:{ports[0]}-{ports[-1]}", "transfer.advertise": [BESIDE],
        "transfer.chunk": "64K", "log.level": "debug",
    }
    with Fleet("alice", "bob", client=client) as fleet:
        yield fleet


@pytest.fixture
def wires(fleet: Fleet, ports: range) -> Iterator[Wires]:
    with Wires(ports) as wires:
        yield wires


class Both:
    """A file and a pipe on their way from alice to bob. Use as a context manager."""

    def __init__(self, fleet: Fleet, folder: Path, size: int) -> None:
        self._fleet = fleet
        self._source = folder / "file"
        self.contents = {"file": os.urandom(size), "pipe": os.urandom(size)}
        for name, content in self.contents.items():
            (folder / name).write_bytes(content)

    def __enter__(self) -> Both:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        words = "send", "bob", "--json"
        self._feed = subprocess.Popen(["cat", self._source.with_name("pipe")], stdout=subprocess.PIPE)
        self.commands = {
            "file": self._fleet.popen("alice", *words, str(self._source), stdin=subprocess.DEVNULL, **pipes),
            "pipe": self._fleet.popen("alice", *words, "--name", "pipe", stdin=self._feed.stdout, **pipes),
        }
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._feed, *self.commands.values()):
            process.kill()
            process.communicate()

    @property
    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.commands.values())

    def taken(self, share: float) -> bool:
        """Whether bob has so much of each."""
        sizes = {item.name: item.size for state in inbox_of(self._fleet.home("bob")) for item in state}
        return all(sizes.get(name, 0) >= share * len(content) for name, content in self.contents.items())

    def arrived(self) -> None:
        """Each once, byte for byte, told so by its command, and nothing else is there."""
        for name, process in self.commands.items():
            out, err = process.communicate(timeout=4 * DEADLINE)
            assert process.returncode == 0, (name, out, err)
            told: dict[str, Any] = json.loads(out.splitlines()[-1])
            assert (told["event"], told["digest"]) == (
                "delivered", f"blake3:{blake3(self.contents[name]).hexdigest()}"
            )
        items, partials = inbox_of(self._fleet.home("bob"))
        assert partials == []
        assert sorted(item.name for item in items) == ["file", "pipe"]
        assert payloads(self._fleet.home("bob")) == sorted(item.id for item in items)
        for _ in items:
            with self._fleet.client("bob").receive(wait=DEADLINE) as item:
                assert item.read() == self.contents[item.item.name]
        for name in ("alice", "bob"):
            assert not [event for event in log_of(self._fleet, name) if event["event"] == "defect"]


def passes(seconds: float) -> None:
    """What the test is about is that a link is away for so long."""
    threading.Event().wait(seconds)


def misfortune(wires: Wires, both: Both, dice: random.Random, times: int) -> None:
    """Stalls and losses, each after a few more bytes; ends with the commands."""
    for _ in range(times):
        until = wires.carried + dice.randrange(MIB // 2)
        wait_until(lambda until=until: wires.carried >= until or both.ended, 4 * DEADLINE)
        if both.ended:
            return
        proxy = dice.choice(wires.proxies)
        what = dice.choice(["drop one", "drop all", "stall one"])
        if what == "drop all":
            for each in wires.proxies:
                each.cut()
        elif what == "drop one":
            proxy.cut()
        else:
            proxy.stall()
            passes(dice.uniform(0.1, 0.8))
            proxy.resume()


@pytest.mark.attack("P05")
@pytest.mark.parametrize(
    ("seed", "size", "times"), [
        (1, 3 * MIB, 5),
        *(pytest.param(seed, 32 * MIB, 60, marks=[pytest.mark.soak, pytest.mark.timeout(900)]) for seed in range(2, 8)),
    ],
)
def test_a_late_link_that_stalls_and_breaks_off_at_any_moment_carries_all(
    fleet: Fleet, wires: Wires, tmp_path: Path, seed: int, size: int, times: int
) -> None:
    for proxy in wires.proxies:
        proxy.latency(LATE)
    with Both(fleet, tmp_path, size) as both:
        misfortune(wires, both, random.Random(seed), times)
        both.arrived()
    assert wires.made > PORTS, "nothing was lost"


@pytest.mark.attack("P05")
@pytest.mark.parametrize(
    ("how", "seconds"), [
        ("reset", 8.0),
        *(pytest.param(how, 30.0, marks=[pytest.mark.soak, pytest.mark.timeout(400)]) for how in ("reset", "silent")),
    ],
)
def test_a_link_that_is_away_for_a_while_is_waited_for(
    fleet: Fleet, wires: Wires, tmp_path: Path, how: Literal["reset", "silent"], seconds: float
) -> None:
    """In the middle of both; they go on from where they were."""
    for proxy in wires.proxies:
        proxy.delay(0.02)
    with Both(fleet, tmp_path, 16 * MIB) as both:
        wait_until(lambda: both.taken(0.25))
        wires.away(how)
        began, carried = time.monotonic(), wires.carried
        passes(seconds)
        assert not any(process.poll() is not None for process in both.commands.values())
        for proxy in wires.proxies:
            proxy.delay(0)
        wires.back()
        both.arrived()
        assert time.monotonic() - began >= seconds
        assert wires.carried - carried < 1.8 * 16 * MIB, "it was begun anew"
