"""Clients that nobody can connect to: either end listens, and where neither can, a relay stands in between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.looking import inbox_of
from tests.support.ports import two_ports
from tests.support.waiting import DEADLINE, wait_until
from zkc.testing import Fleet

MIB: Final = 1 << 20
LOOPBACK: Final = "tcp://127.0.0.1:0"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Bob lets nobody connect; no-way neither; anna and alice do, and alice has a daemon."""
    with Fleet("alice", "anna", "bob", "no-way", client={"transfer.listen": LOOPBACK}, daemons=False) as made:
        for name in ("bob", "no-way"):
            made.configure(name, {"transfer.listen": "off"})
        for name in ("alice", "bob"):
            made.start_daemon(name)
        yield made


def a_file(folder: Path, size: int) -> tuple[Path, bytes]:
    path, content = folder / "big.bin", os.urandom(size)
    path.write_bytes(content)
    return path, content


def arrived(fleet: Fleet, name: str, content: bytes) -> None:
    with fleet.client(name).receive(wait=DEADLINE) as item:
        assert item.read() == content
    assert inbox_of(fleet.home(name)) == ([], [])


def events(fleet: Fleet, sender: str, *words: str, **options: Any) -> list[dict[str, Any]]:
    done = fleet.zkc(sender, "send", *words, "--json", **options)
    assert done.code == 0, done.err
    return done.events


@pytest.mark.parametrize("sender", ["alice", "anna"], ids=["by its daemon", "by a link of its own"])
def test_a_recipient_that_nobody_can_connect_to_connects_to_its_sender(
    fleet: Fleet, tmp_path: Path, sender: str
) -> None:
    """The process that has the bytes listens, whoever makes the handshake; its endpoint is the path."""
    path, content = a_file(tmp_path, 8 * MIB)
    granted = next(event for event in events(fleet, sender, "bob", str(path)) if event["event"] == "granted")
    assert granted["path"].startswith("direct tcp://127.0.0.1:")
    arrived(fleet, "bob", content)


def test_a_sender_that_nobody_can_connect_to_sends_as_ever(fleet: Fleet, tmp_path: Path) -> None:
    path, content = a_file(tmp_path, MIB)
    events(fleet, "no-way", "alice", str(path))
    arrived(fleet, "alice", content)


def test_a_recipient_that_listens_at_a_name_is_told_by_its_address(fleet: Fleet, tmp_path: Path) -> None:
    """Nobody looks up what another tells; the name is its own."""
    fleet.join("named")
    fleet.configure("named", {"transfer.listen": "tcp://localhost:0"})
    fleet.start_daemon("named")
    path, content = a_file(tmp_path, MIB)
    granted = next(event for event in events(fleet, "anna", "named", str(path)) if event["event"] == "granted")
    assert granted["path"].startswith(("direct tcp://127.0.0.1:", "direct tcp://[::1]:"))
    arrived(fleet, "named", content)


def test_where_neither_can_be_connected_to_it_is_said_at_once_with_what_to_do(fleet: Fleet) -> None:
    done = fleet.zkc("no-way", "send", "bob", "-m", "hello", "--wait", "1m", "--json")
    assert done.code == 25
    error = done.events[-1]
    assert (error["reason"], error["detail"]) == ("policy", "unreachable")
    assert "transfer.listen is off at both" in error["message"]
    assert inbox_of(fleet.home("bob")) == ([], [])


def test_a_sender_listens_on_the_ports_of_its_configuration(fleet: Fleet, tmp_path: Path) -> None:
    path, content = a_file(tmp_path, MIB)
    first, second = two_ports()
    environment = {"ZKC_TRANSFER_LISTEN": f"tcp://127.0.0.1:{first}-{second}"}
    told = events(fleet, "anna", "bob", str(path), env=environment)
    granted = next(event for event in told if event["event"] == "granted")
    assert granted["path"] in {f"direct tcp://127.0.0.1:{port}" for port in (first, second)}
    arrived(fleet, "bob", content)


def test_a_killed_recipient_that_is_back_comes_to_its_sender_again(fleet: Fleet, tmp_path: Path) -> None:
    """The sender's ports stay the same for each handshake of one command."""
    path, content = a_file(tmp_path, 96 * MIB)
    with fleet.popen("alice", "send", "bob", str(path)) as process:
        for part in (1, 2):
            wait_until(lambda: any(item.size >= part * 4 * MIB for item in inbox_of(fleet.home("bob"))[1]))  # noqa: B023
            fleet.program("bob").kill()
            fleet.start_daemon("bob")
        assert process.wait(4 * DEADLINE) == 0
    arrived(fleet, "bob", content)


@pytest.fixture
def over_ipv6(fleet: Fleet) -> Iterator[None]:
    fleet.configure("alice", {"transfer.listen": "tcp://[::1]:0"})
    fleet.start_daemon("alice")
    yield
    fleet.configure("alice", {"transfer.listen": LOOPBACK})
    fleet.start_daemon("alice")


@pytest.mark.usefixtures("over_ipv6")
@pytest.mark.parametrize(("sender", "recipient"), [("anna", "alice"), ("alice", "bob")], ids=["to", "from"])
def test_ipv6_serves_at_either_end(fleet: Fleet, tmp_path: Path, sender: str, recipient: str) -> None:
    path, content = a_file(tmp_path, MIB)
    told = events(fleet, sender, recipient, str(path))
    assert next(each for each in told if each["event"] == "granted")["path"].startswith("direct tcp://[::1]:")
    arrived(fleet, recipient, content)
