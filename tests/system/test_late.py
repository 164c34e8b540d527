"""A recipient that starts after its sender, or never: what is not delivered is never told as sent."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from blake3 import blake3

from tests.support.looking import inbox_of, payloads
from tests.support.waiting import DEADLINE
from zkc.testing import Done, Fleet

LATE: Final = 10.0
"""Seconds."""


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Bob's daemon has never run; dave, who sends too, has none."""
    with Fleet("alice", client={"transfer.listen": "tcp://127.0.0.1:0"}) as fleet:
        fleet.join("bob")
        fleet.join("dave")
        yield fleet


class Senders:
    """One of each kind at once: what waits in a daemon, and what a command keeps itself. Use as a context manager."""

    def __init__(self, fleet: Fleet, folder: Path, *options: str) -> None:
        self._fleet = fleet
        self._options = options
        self.contents = {name: os.urandom(size) for name, size in (("small", 1000), ("file", 3_000_000))}
        self.contents |= {"linked": os.urandom(200_000), "piped": os.urandom(1_500_000), "message": b"are you there"}
        for name, content in self.contents.items():
            (folder / name).write_bytes(content)
        self._folder = folder
        self.commands: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Senders:
        for name in self.contents:
            words: list[str] = {"piped": ["--name", name], "message": ["-m", "are you there"]}.get(
                name, [str(self._folder / name)]
            )
            with (self._folder / name).open("rb") as content:
                self.commands[name] = self._fleet.popen(
                    "dave" if name == "linked" else "alice", "send", "bob", *words, *self._options,
                    stdin=content if name == "piped" else subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.commands.values():
            process.kill()
            process.communicate()

    def ended(self) -> dict[str, Done]:
        def end(name: str) -> Done:
            process = self.commands[name]
            out, err = process.communicate(timeout=2 * DEADLINE)
            return Done(process.returncode, out, err)

        with ThreadPoolExecutor(len(self.commands)) as pool:
            return dict(zip(self.commands, pool.map(end, self.commands), strict=True))


def last(done: Done) -> dict[str, Any]:
    return done.events[-1]


@pytest.mark.attack("D12")
def test_a_recipient_that_starts_ten_seconds_later_gets_all_of_it_once(fleet: Fleet, tmp_path: Path) -> None:
    """Small or large, a file or a pipe, with a daemon at the sender's or without."""
    with Senders(fleet, tmp_path, "--json", "--wait", "60s") as senders:
        threading.Event().wait(LATE)
        assert [name for name, process in senders.commands.items() if process.poll() is not None] == []
        assert not inbox_of(fleet.home("bob"))[0]
        fleet.start_daemon("bob")
        done = senders.ended()
    assert {name: each.code for name, each in done.items()} == dict.fromkeys(done, 0), done
    for name, each in done.items():
        assert last(each)["event"] == "delivered"
        assert last(each)["digest"] == f"blake3:{blake3(senders.contents[name]).hexdigest()}"
    items, partials = inbox_of(fleet.home("bob"))
    assert partials == []
    assert {item.name: item.digest for item in items} == {
        name: blake3(content).digest() for name, content in senders.contents.items()
    }
    assert payloads(fleet.home("bob")) == sorted(item.id for item in items)
    assert len(items) == len(senders.contents)


@pytest.mark.attack("D12")
@pytest.mark.parametrize(
    ("shown", "options"), [("--json", ("--wait", "2s")), ("--progress", ("--wait", "60s", "--timeout", "2s"))],
    ids=["wait", "timeout"],
)
def test_who_never_starts_is_offline_once_the_wait_is_over_and_gets_nothing_later(
    fleet: Fleet, tmp_path: Path, shown: str, options: tuple[str, ...]
) -> None:
    """21, in words and in JSON; nothing says that it was sent, no receipt is there, and no daemon has kept it."""
    began = time.monotonic()
    with Senders(fleet, tmp_path, shown, *options) as senders:
        done = senders.ended()
    assert time.monotonic() - began >= 2.0
    assert {name: each.code for name, each in done.items()} == dict.fromkeys(done, 21), done
    for each in done.values():
        if shown == "--json":
            assert [event["event"] for event in each.events] == ["requested", "error"], each
            assert (last(each)["reason"], last(each)["code"]) == ("recipient-offline", 21)
        else:
            assert each.out == b""
            assert b"bob" in each.err
            assert b"offline" in each.err
            assert not [word for word in (b"delivered", b"100%", b"receipt") if word in each.err], each
    for name in ("alice", "dave"):
        receipts = fleet.home(name) / "receipts"
        assert not receipts.exists() or not list(receipts.iterdir())
    fleet.start_daemon("bob")
    assert fleet.zkc("alice", "send", "bob", "-m", "now").code == 0
    (item,), partials = inbox_of(fleet.home("bob"))
    assert (item.kind, item.size, partials) == ("message", 3, [])
