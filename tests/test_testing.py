"""The harness that other projects test with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.waiting import DEADLINE
from zkc.config import load
from zkc.testing import Fleet


def test_a_fleet_can_be_configured_again_and_again(tmp_path: Path) -> None:
    """Each time adds to what the home's configuration says, in sections that are there already too."""
    fleet = Fleet("alice", folder=tmp_path)
    fleet.configure("alice", {"inbox.accept": "none", "transfer.patience": "10s"})
    fleet.configure("alice", {"inbox.min_free": "1M", "inbox.accept": "all", "transfer.ciphers": ["chacha20-poly1305"]})
    config = load("client", fleet.home("alice") / "config.toml", {}).config
    assert (config.inbox.accept, config.inbox.min_free, config.transfer.patience) == ("all", 1 << 20, 10.0)
    assert config.transfer.ciphers == ("chacha20-poly1305",)
    assert (fleet.home("alice") / "config.toml").stat().st_mode & 0o777 == 0o600


def test_the_fixture_makes_fleets_for_other_peoples_tests(zkc_fleet: Callable[..., Fleet]) -> None:
    fleet = zkc_fleet("alice", "bob")
    with fleet.client("bob") as bob, fleet.client("alice") as alice:
        alice.send("bob", b"hello", name="greeting")
        with bob.receive(wait=DEADLINE) as received:
            assert (received.read(), received.item.name, received.item.sender) == (b"hello", "greeting", "alice")
    assert fleet.zkc("bob", "inbox", "--json").out == b""
