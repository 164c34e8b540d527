"""``zkc coordinator top``: what a coordinator does, while it does it."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from rich.console import Console

from tests.support.program import zkc
from tests.support.waiting import DEADLINE
from zkc.coordinator.control import Load
from zkc.testing import Fleet
from zkc.ui.cli.coordinator_top import Pace, pairs_of, screen

TOP = ("coordinator", "top")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob") as running:
        yield running


def load(at: float, **changes: Any) -> Load:
    fields: dict[str, Any] = {
        "at": at, "uptime": at, "clients": 10, "online": 7, "connections": 8, "registrations_open": 0,
        "registrations": 10, "handshakes_open": 1, "handshakes": {}, "policy": {}, "messages": 0,
    }
    return Load(**fields | changes)


def began(fleet: Fleet, *words: str) -> subprocess.Popen[bytes]:
    return fleet.popen("coordinator", *TOP, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def tops(fleet: Fleet) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Several at once, since each takes its seconds."""
    running = {"live": began(fleet, "--json"), "once": began(fleet, "--once"), "unread": began(fleet, "--json")}
    yield running
    for each in running.values():
        each.kill()
        each.wait()
        for stream in (each.stdout, each.stderr):
            if stream is not None:
                stream.close()


def next_object(running: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert running.stdout is not None
    found = json.loads(running.stdout.readline())
    assert isinstance(found, dict)
    return found


def test_rates_are_of_the_time_between_two_looks() -> None:
    first = load(10.0, handshakes={"done": 5, "policy": 1}, messages=100)
    then = load(12.0, handshakes={"done": 11, "policy": 2, "timeout": 4}, policy={"rule": 2}, messages=101)
    (pace,) = pairs_of([first, then])
    told = pace.told
    assert (told["handshakes"], told["handshakes_per_second"]) == (11, 3.0)
    assert (told["refused"], told["refused_per_second"]) == ({"timeout": 4, "policy": 2}, 2.5)
    assert (told["policy"], told["messages_per_second"]) == ({"rule": 2}, 0.5)
    assert Pace(then, then).told["handshakes_per_second"] == 0.0


@pytest.mark.parametrize("width", [100, 60, 30])
def test_a_screen_has_all_of_it_and_is_no_wider_than_the_terminal(width: int) -> None:
    written = io.StringIO()
    console = Console(file=written, width=width, height=40, force_terminal=False)
    then = load(12.0, handshakes={"done": 1_234, "policy": 2}, policy={"rule": 2})
    console.print(screen(Pace(load(10.0), then)))
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for word in ("1,234", "policy", "rule", "617.0/s", "7 of 10"):
        assert word in text


def test_json_is_an_object_each_second_and_sees_what_goes_on(
    fleet: Fleet, tops: dict[str, subprocess.Popen[bytes]]
) -> None:
    running = tops["live"]
    first = next_object(running)
    assert (first["v"], first["event"], first["online"], first["clients"]) == (1, "top", 2, 2)
    assert fleet.zkc("alice", "send", "bob", "-m", "x").code == 0
    assert fleet.zkc("alice", "send", "nobody-here", "-m", "x").code == 20
    seen = [first]
    while seen[-1]["refused"] != {"unknown-recipient": 1} or seen[-1]["handshakes"] != 1:
        seen.append(next_object(running))
    assert max(each["handshakes_per_second"] for each in seen) > 0
    running.send_signal(signal.SIGINT)
    *_, last = [json.loads(line) for line in running.communicate(timeout=DEADLINE)[0].splitlines()]
    assert (last["event"], last["code"], running.returncode) == ("error", 130, 130)


def test_once_is_one_line_below_its_title(tops: dict[str, subprocess.Popen[bytes]]) -> None:
    out, errors = tops["once"].communicate(timeout=DEADLINE)
    assert (tops["once"].returncode, errors) == (0, b"")
    title, line = out.splitlines()
    assert title.startswith(b"ONLINE  CLIENTS")
    assert line.split()[:2] == [b"2", b"2"]


def test_who_reads_it_goes_away_and_it_ends_quietly(tops: dict[str, subprocess.Popen[bytes]]) -> None:
    running = tops["unread"]
    assert running.stdout is not None
    assert running.stderr is not None
    next_object(running)
    running.stdout.close()
    assert running.wait(DEADLINE) == 141
    assert running.stderr.read() == b""


def test_a_terminal_is_drawn_on_and_left_as_it_was(fleet: Fleet) -> None:
    ours, theirs = pty.openpty()
    with fleet.popen("coordinator", *TOP, stdin=theirs, stdout=theirs, stderr=theirs, env={"TERM": "xterm"}) as running:
        os.close(theirs)
        seen = b""
        while b"connections" not in seen:
            seen += os.read(ours, 65536)
        running.send_signal(signal.SIGTERM)
        assert running.wait(DEADLINE) == 143
        with suppress(OSError):  # EIO: nobody has the other end any more
            while more := os.read(ours, 65536):
                seen += more
    os.close(ours)
    assert seen.count(b"\x1b[?1049h") == seen.count(b"\x1b[?1049l") == 1, "another screen, and back"
    assert seen.endswith((b"\x1b[?25h", b"\x1b[?1049l")), "the cursor is there again, and nothing was said"


def test_it_ends_with_34_where_none_runs_and_once_it_has_ended(fleet: Fleet) -> None:
    with began(fleet, "--json") as running:
        next_object(running)
        try:
            assert fleet.coordinator.terminate() == 0
            *_, last = [json.loads(line) for line in running.communicate(timeout=DEADLINE)[0].splitlines()]
            assert (last["code"], last["detail"], running.returncode) == (34, "not-running", 34)
            done = fleet.zkc("coordinator", *TOP)
            assert (done.code, done.out) == (34, b"")
            assert b"no coordinator is running here" in done.err
        finally:
            fleet.start_coordinator()


@pytest.mark.parametrize("every", ["0s", "2h", "soon"])
def test_a_time_out_of_bounds_is_a_usage_error(every: str) -> None:
    assert zkc(*TOP, "--every", every).code == 2
