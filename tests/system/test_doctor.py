"""``zkc doctor``: whatever does not work is named as what it is, and not as a time-out."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.coordinator import coordinator_in
from tests.support.env import FixedClock
from zkc.client.doctor import Examination, Finding
from zkc.config import ClientConfig
from zkc.env import SystemClock, SystemEntropy
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore
from zkc.testing import Done, Fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob", "carol") as running:
        yield running


@contextlib.contextmanager
def configured(fleet: Fleet, name: str, **values: object) -> Iterator[None]:
    """Other values in the file alone: the daemon keeps what it has read."""
    path = fleet.home(name) / "config.toml"
    before = path.read_bytes() if path.exists() else b""
    fleet.configure(name, values)
    try:
        yield
    finally:
        path.write_bytes(before)


def steps(done: Done) -> dict[str, dict[str, Any]]:
    return {each["step"].partition(" ")[0]: each for each in done.events if each["event"] == "step"}


def wrong(done: Done) -> tuple[int, str, str, str]:
    """Exit status, step, detail and sentence of the first thing that is wrong."""
    first = next(each for each in done.events if each["event"] == "step" and each["state"] == "wrong")
    assert done.events[-1]["event"] == "error"
    assert (done.code, first["detail"]) == (first["code"], done.events[-1]["detail"])
    assert first["hint"]
    return done.code, first["step"].partition(" ")[0], first["detail"], first["message"]


def test_what_is_in_order_is_said_step_by_step_and_nothing_is_left_behind(fleet: Fleet) -> None:
    done = fleet.zkc("alice", "doctor", "bob", "--json")
    assert done.code == 0
    assert [each["step"].partition(" ")[0] for each in done.events][:9] == [
        "configuration", "keys", "daemon", "room", "listen", "resolve", "tcp", "curve", "registration"
    ]
    found = steps(done)
    assert {"key", "presence", "policy", "path"} <= set(found)
    assert all(each["state"] in {"ok", "note"} for each in found.values())
    assert found["path"]["state"] == "ok"
    assert fleet.zkc("bob", "inbox", "--json").events == []
    assert [peer["pinned"] for peer in fleet.zkc("alice", "peers", "--json").events] == [False, False]
    text = fleet.zkc("alice", "doctor").out.decode()
    assert text.startswith("ok    configuration: ")


def test_an_address_that_leads_nowhere_is_named_and_counts_only_where_none_leads_there(
    fleet: Fleet, tmp_path: Path
) -> None:
    true = fleet.zkc("alice", "status", "--json").events[-1]["coordinator"]
    with socket.socket() as closed, filtered() as silent, coordinator_in(tmp_path) as stranger:
        closed.bind(("127.0.0.1", 0))
        cases = (
            (f"tcp://127.0.0.1:{closed.getsockname()[1]}", "tcp", "refused"),
            (silent, "tcp", "timeout"),
            ("tcp://no-such-host.invalid:7670", "resolve", "resolve"),
            (stranger.endpoint, "curve", "handshake"),  # a coordinator with another key
        )
        for endpoint, step, detail in cases:
            with configured(fleet, "alice", **{"coordinator.endpoints": [endpoint]}):
                assert wrong(fleet.zkc("alice", "doctor", "--json"))[:3] == (10, step, detail), endpoint
        with configured(fleet, "alice", **{"coordinator.endpoints": [cases[0][0], true]}):
            done = fleet.zkc("alice", "doctor", "--json")
            assert done.code == 0
            assert [each["state"] for each in done.events if each["step"].startswith("tcp ")] == ["note", "ok"]


@contextlib.contextmanager
def filtered() -> Iterator[str]:
    """An address from which nothing comes back: its queue of connections is full, and SYNs are dropped."""
    with socket.socket() as listening, contextlib.ExitStack() as waiting:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            each = waiting.enter_context(socket.socket())
            each.setblocking(False)
            each.connect_ex(listening.getsockname())
        yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"


def test_what_is_wrong_at_home_is_named(fleet: Fleet) -> None:
    with configured(fleet, "alice", **{"inbox.min_free": "1000T"}):
        assert wrong(fleet.zkc("alice", "doctor", "--json"))[:3] == (33, "room", "no-space")
    with configured(fleet, "alice", **{"transfer.listen": "tcp://192.0.2.77:0"}):
        assert wrong(fleet.zkc("alice", "doctor", "--json"))[:3] == (33, "listen", "address")
    path = fleet.home("alice") / "config.toml"
    before = path.read_bytes() if path.exists() else b""
    path.write_text("[inbox]\naccept = 'perhaps'\n")
    assert wrong(fleet.zkc("alice", "doctor", "--json"))[:3] == (2, "configuration", "config")
    path.write_bytes(before)
    keys = fleet.home("alice") / "keys.db"
    keys.chmod(0o644)
    assert wrong(fleet.zkc("alice", "doctor", "--json"))[:3] == (33, "keys", "permission")
    keys.chmod(0o600)
    home = fleet.home("nobody")
    home.mkdir(mode=0o700)
    assert wrong(fleet.zkc("nobody", "doctor", "--json"))[:3] == (11, "keys", "no-registration")


def test_who_is_not_there_or_is_not_known_is_named(fleet: Fleet) -> None:
    code, step, detail, message = wrong(fleet.zkc("alice", "doctor", "nobody", "--json"))
    assert (code, step, detail) == (20, "key", "unknown")
    assert "nobody" in message
    fleet.program("carol").terminate()
    assert wrong(fleet.zkc("alice", "doctor", "carol", "--json"))[:3] == (21, "presence", "offline")
    daemon = steps(fleet.zkc("carol", "doctor", "--json"))["daemon"]
    assert (daemon["state"], "zkc daemon" in daemon["hint"]) == ("note", True)


def test_a_client_that_was_revoked_is_told_so(fleet: Fleet) -> None:
    fleet.join("dave")
    assert fleet.zkc("dave", "doctor").code == 0
    assert fleet.zkc("coordinator", "coordinator", "revoke", "dave").code == 0
    code, step, detail, _ = wrong(fleet.zkc("dave", "doctor", "--json"))
    assert (code, step) == (11, "curve")
    assert detail in {"refused-key", "revoked"}


def examined(fleet: Fleet, clock: Any) -> list[Finding]:
    home = Home.resolve("client", str(fleet.home("bob")))
    return list(Examination(home, ClientConfig, lambda: KeyStore.open(home), clock, SystemEntropy()).examine())


@pytest.mark.attack("C16")
def test_a_card_that_has_expired_is_named_with_the_clock(fleet: Fleet) -> None:
    clock = FixedClock()
    clock.set_wall(SystemClock().wall() + 80 * 86400)
    assert next(each for each in examined(fleet, clock) if each.step == "keys").state == "note"
    clock.set_wall(SystemClock().wall() + 100 * 86400)
    found = next(each for each in examined(fleet, clock) if each.state == "wrong")
    assert found.error is not None
    assert (found.step, found.error.code, found.error.detail) == ("keys", 12, "expired")
    assert "clock" in found.what
