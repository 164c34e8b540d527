"""The client daemon: its log, and what it reads again on SIGHUP."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from tests.support.env import FixedClock
from tests.support.looking import log_of
from tests.support.waiting import wait_until
from zkc.client import daemon
from zkc.env import SystemEntropy
from zkc.errors import LocalIOError
from zkc.logs import Repeats
from zkc.stores.home import Home
from zkc.testing import Fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice") as running:
        yield running


@pytest.fixture
def alice(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, with alice's configuration as it was before, and her daemon started anew."""
    path = fleet.home("alice") / "config.toml"
    before = path.read_text()
    yield fleet
    path.write_text(before)
    fleet.start_daemon("alice")


def events(fleet: Fleet, name: str) -> list[dict[str, Any]]:
    return [event for event in log_of(fleet, "alice") if event["event"] == name]


def read_again(fleet: Fleet, text: str, outcome: str = "configuration-read") -> None:
    """SIGHUP with ``text`` behind what the configuration has, until its ``outcome`` is logged."""
    path = fleet.home("alice") / "config.toml"
    path.write_text(path.read_text() + text)
    before = len(events(fleet, outcome))
    fleet.program("alice").process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(events(fleet, outcome)) > before)


def logs_each_step(fleet: Fleet) -> bool:
    """Whether a command is logged, which is an event of the level debug."""
    before = len(events(fleet, "command"))
    fleet.wait_linked("alice")  # asks the daemon, and not the configuration
    return len(events(fleet, "command")) > before


def test_sighup_changes_the_level_of_the_log(alice: Fleet) -> None:
    assert not logs_each_step(alice)
    read_again(alice, '\n[log]\nlevel = "debug"\n')
    assert logs_each_step(alice)


def test_sighup_keeps_what_the_command_line_said(alice: Fleet) -> None:
    alice._spawn("alice", "daemon", "--debug").wait_ready()
    assert logs_each_step(alice)
    read_again(alice, '\n[log]\nlevel = "error"\n')
    assert logs_each_step(alice)


def test_sighup_says_what_needs_a_restart(alice: Fleet) -> None:
    path = alice.home("alice") / "config.toml"
    path.write_text(path.read_text().replace(json.dumps([alice.coordinator.endpoint]), '["tcp://127.0.0.1:1"]'))
    read_again(alice, "")
    assert [event["key"] for event in events(alice, "restart-needed")] == ["coordinator.endpoints"]
    assert json.loads(alice.zkc("alice", "status", "--wait", "30s", "--json").out)["linked"]


def test_sighup_with_a_configuration_that_is_wrong_changes_nothing(alice: Fleet) -> None:
    read_again(alice, '\n[log]\nlevel = "debug"\ncolour = "red"\n', "configuration-kept")
    (kept,) = events(alice, "configuration-kept")
    assert "log.colour" in kept["error"]
    assert not logs_each_step(alice)


def test_sighup_with_a_configuration_that_is_gone_changes_nothing(alice: Fleet) -> None:
    path = alice.home("alice") / "config.toml"
    path.write_text(path.read_text() + '\n[log]\nlevel = "debug"\n')
    alice.start_daemon("alice")
    before = len(events(alice, "configuration-kept"))
    path.rename(path.with_suffix(".away"))
    alice.program("alice").process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(events(alice, "configuration-kept")) > before)
    assert "is gone" in events(alice, "configuration-kept")[-1]["error"]
    assert logs_each_step(alice)


def test_a_defect_on_the_daemons_loop_is_one_event_of_its_log(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *_: object) -> None:
            pass

        async def start(self, _path: object) -> Any:
            loop = asyncio.get_running_loop()
            for _ in range(3):
                loop.call_exception_handler({"message": "a task", "exception": RuntimeError("a defect")})
            loop.call_exception_handler({"message": "a task", "exception": LocalIOError("no disk")})
            loop.call_exception_handler({"message": "only words"})

        async def until_ended(self, _stop: object) -> None:
            pass

        async def close(self) -> None:
            pass

        def reload(self) -> None:
            pass

    monkeypatch.setattr(daemon, "Daemon", Broken)
    config: Any = None
    with capture_logs() as events:
        asyncio.run(
            daemon.run(home, config, clock=FixedClock(), entropy=SystemEntropy(), on_ready=lambda _: None)
        )
    assert [(event["event"], event["what"]) for event in events] == [
        ("defect", "a task"), ("failed", "a task"), ("defect", "only words"),
    ]
    assert str(events[0]["exc_info"]) == "a defect"


def test_a_duty_that_fails_is_told_and_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_DUTY_SECONDS", 0.0)
    done: list[str] = []

    async def duty() -> None:
        done.append("begun")
        if len(done) < 3:
            raise LocalIOError("no room", detail="no-space") if len(done) == 1 else RuntimeError("a defect")

    with capture_logs() as told:
        asyncio.run(daemon.keep_up(duty, structlog.get_logger(), Repeats(FixedClock().monotonic)))
    assert done == ["begun"] * 3
    assert [(each["event"], each["log_level"]) for each in told] == [("duty-failed", "error")] * 2
    assert told[0]["error"] == "no room"
    assert isinstance(told[1]["exc_info"], RuntimeError)
