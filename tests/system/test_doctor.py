"""``zkc doctor``: whatever does not work is named as what it is, and not as a time-out."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.coordinator import coordinator_in
from tests.support.program import TOP
from tests.support.waiting import DEADLINE, wait_until
from zkc.client import ways
from zkc.client.doctor import Examination
from zkc.client.ways import Greeted
from zkc.config import ClientConfig
from zkc.env import SystemClock, SystemEntropy
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore
from zkc.testing import Done, Fleet

DAY: Final = 86400.0


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob", "carol", client={"transfer.listen": "tcp://127.0.0.1:0"}) as running:
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
    found = steps(done)
    assert list(found) == [
        "configuration", "keys", "daemon", "room", "listen", "resolve", "tcp", "curve", "channel", "clock", "card",
        "identity", "registration", "key", "presence", "policy", "session", "path", "acknowledgement",
    ]
    assert [each["step"] for each in done.events if each["state"] != "ok"] == ["key of bob"]  # not pinned yet
    for each in done.events:
        assert set(each) == {"v", "event", "step", "state", "message", "hint", "code", "detail"}
        assert (each["event"], each["code"], each["detail"]) == ("step", 0, "")
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
            (silent, "tcp", "filtered"),
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


def test_a_port_that_answers_and_speaks_something_else_is_named(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        endpoint = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        with configured(fleet, "alice", **{"coordinator.endpoints": [endpoint]}):
            code, step, detail, says = wrong(fleet.zkc("alice", "doctor", "--json"))
    assert (code, step, detail) == (10, "curve", "timeout")
    assert "nobody there speaks zkc" in says


def test_a_daemon_that_has_an_address_which_is_named_no_more_is_told_to_start_again(fleet: Fleet) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        former = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        fleet.program("alice").terminate()
        with (
            configured(fleet, "alice", **{"coordinator.endpoints": [former]}),
            fleet.popen("alice", "daemon") as daemon,
        ):
            wait_until(lambda: fleet.zkc("alice", "status").code == 10)
            with configured(fleet, "alice", **{"coordinator.endpoints": [fleet.coordinator.endpoint]}):
                code, step, detail, says = wrong(fleet.zkc("alice", "doctor", "--json"))
            daemon.terminate()
    fleet.start_daemon("alice")
    assert (code, step, detail) == (34, "daemon", "restart-needed")
    assert former in says


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


@pytest.mark.root
def test_a_disk_that_is_full_is_named(fleet: Fleet, small_disk: Callable[[int], Path]) -> None:
    """To the last byte, where not even the keys can be opened; and down to what is to be left free."""
    fleet.join("full")
    home = small_disk(4 << 20)
    shutil.copytree(fleet.home("full"), home, dirs_exist_ok=True)
    env = {"ZKC_HOME": str(home), "ZKC_INBOX_MIN_FREE": "1M"}
    assert fleet.zkc("full", "doctor", env=env).code == 0
    free = shutil.disk_usage(home).free
    with (home / "filling").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free)
        for step, says in (("keys", "no space left for the key store"), ("room", "inbox.min_free keeps 1.0M")):
            code, where, detail, message = wrong(fleet.zkc("full", "doctor", "--json", env=env))
            assert (code, where, detail) == (33, step, "no-space")
            assert says in message
            file.truncate(free - (512 << 10))


def test_a_recipient_without_room_and_addresses_that_lead_nowhere_are_named(fleet: Fleet) -> None:
    """Of several addresses one that is reached is enough."""
    fleet.join("dora")
    fleet.configure("dora", {"transfer.advertise": ["127.0.0.1", "127.0.0.77"]})
    fleet.start_daemon("dora")
    done = fleet.zkc("alice", "doctor", "dora", "--json")
    assert done.code == 0
    for step in ("path", "acknowledgement"):
        found = [each for each in done.events if each["step"].startswith(f"{step} ")]
        assert [each["state"] for each in found] == ["ok", "note"]
        assert "refused" in found[1]["message"]
    fleet.configure("dora", {"transfer.advertise": ["127.0.0.77"]})
    fleet.start_daemon("dora")
    assert wrong(fleet.zkc("alice", "doctor", "dora", "--json"))[:3] == (31, "path", "link")
    fleet.configure("dora", {"inbox.min_free": "1000T"})
    fleet.start_daemon("dora")
    assert wrong(fleet.zkc("alice", "doctor", "dora", "--json"))[:3] == (33, "policy", "no-space")


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
    done = fleet.zkc("dave", "doctor", "--json")
    code, step, detail, _ = wrong(done)
    assert (code, step, detail) == (11, "curve", "refused-key")
    assert "revoked" in steps(done)["curve"]["hint"]


# --- clocks and cards -----------------------------------------------------------------------------------------------


def shifted(fleet: Fleet, name: str, shift: float, *words: str, env: dict[str, str] | None = None) -> Done:
    """``zkc WORDS`` of a client whose clock is ``shift`` seconds ahead."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.shifted", str(shift), *words], check=False, capture_output=True,
        timeout=DEADLINE, env=fleet.environment(name) | {"PYTHONPATH": str(TOP)} | (env or {}),
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.attack("C16")
@pytest.mark.parametrize(
    ("shift", "apart"),
    [(-3600, "60 min behind the coordinator's"), (400, "7 min ahead of"), (365 * DAY, "525,600 min ahead of")],
)
def test_a_clock_that_is_wrong_is_named_and_by_how_much(fleet: Fleet, shift: float, apart: str) -> None:
    """`zkc doctor` names it and nothing else: the own card is judged by the coordinator's clock."""
    done = shifted(fleet, "alice", shift, "doctor", "--json")
    code, step, detail, message = wrong(done)
    assert (code, step, detail) == (12, "clock", "clock")
    assert apart in message
    assert [each["step"] for each in done.events if each.get("state") == "wrong"] == ["clock"]


@pytest.mark.attack("C16")
def test_a_clock_that_is_wrong_is_blamed_for_a_recipients_card_too(fleet: Fleet) -> None:
    """By `zkc doctor`, for which a clock that is a little off is in order."""
    assert steps(shifted(fleet, "alice", 200, "doctor", "--json"))["clock"]["state"] == "ok"
    done = shifted(fleet, "alice", 365 * DAY, "doctor", "bob", "--json")
    assert wrong(done)[1] == "clock"
    assert (steps(done)["key"]["state"], steps(done)["key"]["detail"]) == ("wrong", "clock")


@pytest.mark.attack("C16")
def test_a_card_that_has_expired_is_named_at_its_own_home_and_at_a_sender_of_right_clocks(fleet: Fleet) -> None:
    """By `zkc doctor`, of a client that registered so long ago and had no daemon since, which would have renewed it."""
    for name, ago, state in (("late", 100, "wrong"), ("soon", 80, "note")):
        joined = shifted(fleet, name, -ago * DAY, "join", env={"ZKC_INVITE": fleet.invite(name)})
        assert joined.code == 0, joined
        found = steps(fleet.zkc(name, "doctor", "--json"))
        assert (found["clock"]["state"], found["card"]["state"]) == ("ok", state)
    code, step, detail, message = wrong(fleet.zkc("late", "doctor", "--json"))
    assert (code, step, detail) == (12, "card", "expired")
    assert "the card of late has expired" in message
    code, step, detail, message = wrong(fleet.zkc("alice", "doctor", "late", "--json"))
    assert (code, step, detail) == (12, "key", "expired")
    assert "its card has expired" in message
    assert fleet.zkc("late", "rotate").code == 0
    assert steps(fleet.zkc("late", "doctor", "--json"))["card"]["state"] == "ok"


# --- versions -------------------------------------------------------------------------------------------------------


def of_another_version(speaks: str) -> dict[str, str]:
    """The environment of such a process; ``speaks``: see tests/support/other_version."""
    folders = TOP, TOP / "tests" / "support" / "other_version"
    return {"PYTHONPATH": os.pathsep.join(map(str, folders)), "SPEAKS": speaks}


class MixedFleet(Fleet):
    """Some of its programs are of another version: ``speaks`` says what, by name."""

    def __init__(self, *names: str) -> None:
        super().__init__(*names)
        self.speaks: dict[str, str] = {}

    def environment(self, name: str) -> dict[str, str]:
        return super().environment(name) | (of_another_version(self.speaks[name]) if name in self.speaks else {})


def test_another_version_is_named_wherever_it_is_met() -> None:
    """At the daemon of this home, at the recipient, and at the coordinator: be it the older one, or the newer."""
    with MixedFleet("alice", "bob") as fleet:
        for name, speaks in (("alice", "release"), ("bob", "terms")):
            fleet.program(name).terminate()
            fleet.speaks[name] = speaks
            fleet.start_daemon(name)
        del fleet.speaks["alice"]
        code, step, _, message = wrong(fleet.zkc("alice", "doctor", "bob", "--json"))
        assert (code, step) == (34, "daemon")
        assert "the daemon is of zkc 0.0.1" in message
        fleet.program("alice").terminate()
        code, step, detail, message = wrong(fleet.zkc("alice", "doctor", "bob", "--json"))
        assert (code, step, detail) == (40, "policy", "version")
        assert message == "bob or the coordinator speaks no version that this client does"

        newer = fleet.zkc("alice", "doctor", "--json", env=of_another_version("channel"))
        fleet.coordinator.terminate()
        fleet.speaks["coordinator"] = "channel"
        fleet.start_coordinator()
        older = fleet.zkc("alice", "doctor", "--json")
        for done in (newer, older):
            code, step, detail, message = wrong(done)
            assert (code, step, detail) == (40, "channel", "version")
            assert "speaks none of this client's versions" in message
            found = steps(done)
            assert (found["curve"]["state"], found["clock"]["state"]) == ("ok", "skipped")


# --- the coordinator's identity -------------------------------------------------------------------------------------


def test_a_coordinator_of_another_identity_is_in_order_only_where_the_pinned_one_vouches() -> None:
    with Fleet("alice", daemons=False) as fleet:
        file, older = fleet.home("coordinator") / "identity.key", fleet.folder / "older.key"
        shutil.copy2(file, older)
        assert fleet.zkc("coordinator", "coordinator", "rotate").code == 0
        found = steps(fleet.zkc("alice", "doctor", "--json"))["identity"]
        assert (found["state"], "vouches" in found["message"]) == ("ok", True)
        assert "as pinned" in steps(fleet.zkc("alice", "doctor", "--json"))["identity"]["message"]
        fleet.coordinator.terminate()
        shutil.copy2(older, file)
        fleet.start_coordinator()
        code, step, detail, message = wrong(fleet.zkc("alice", "doctor", "--json"))
        assert (code, step, detail) == (12, "identity", "identity")
        assert "does not vouch" in message


def test_an_identity_that_a_coordinator_only_claims_is_wrong(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its greeting, while what it signs is signed by the pinned one."""
    monkeypatch.setattr(ways, "Greeted", lambda _coordinator, clock_ahead: Greeted(bytes(32), clock_ahead))
    home = Home.resolve("client", str(fleet.home("bob")))
    examination = Examination(home, ClientConfig, lambda: KeyStore.open(home), SystemClock(), SystemEntropy())
    found = next(each for each in examination.examine() if each.state == "wrong")
    assert found.error is not None
    assert (found.step, found.error.code, found.error.detail) == ("identity", 12, "identity")
    assert "shows nothing" in found.what
