"""``zkc events`` over real processes: what a follower hears of arrivals, questions, deliveries, keys and presence."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import pytest

from tests.support.waiting import DEADLINE, until, wait_until
from zkc.api import Client, SyncClient
from zkc.client.control import AskReport, ControlReply
from zkc.client.happenings import Arrived, Begun, Ended, Happened, Lost, Started, ended
from zkc.errors import DaemonError, Interrupted
from zkc.net.local_client import LocalClient
from zkc.stores.home import Home
from zkc.testing import Fleet

EVIL_NAME: Final = "\x1b[2J\u202ereport.txt"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob", "carol", "dave") as running:
        yield running


class Follower:
    """``zkc events --follow --json`` in a home, and what it has said so far."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self._process = fleet.popen(
            name, "events", "--follow", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.told: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.told.append(json.loads(line))

    def __enter__(self) -> Self:
        self._reader.start()
        wait_until(lambda: self.told)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self.ended()

    def ended(self, number: signal.Signals | None = None) -> int:
        """Its exit status, after a signal perhaps."""
        if number is not None:
            self._process.send_signal(number)
        code = self._process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        return code

    def wait(self, event: str, **keys: object) -> dict[str, Any]:
        """The first event with these keys."""
        return self.wait_all(event, **keys)[0]

    def wait_all(self, event: str, *, count: int = 1, **keys: object) -> list[dict[str, Any]]:
        def found() -> list[dict[str, Any]]:
            return [each for each in list(self.told) if {"event": event, **keys}.items() <= each.items()]

        wait_until(lambda: len(found()) >= count)
        return found()


def test_a_follower_hears_of_both_ends_of_a_delivery_without_a_gap(fleet: Fleet, tmp_path: Path) -> None:
    """By the daemon, by the command itself, by the queue; an arrival is followed, remembered and in the API alike."""
    big = tmp_path / "big.bin"
    big.write_bytes(os.urandom(3 << 20))
    with Follower(fleet, "alice") as alice, Follower(fleet, "bob") as bob:
        assert fleet.zkc("alice", "send", "bob", "-m", "hi", "--note", "a note").code == 0
        arrived = bob.wait("arrived", name="message")
        (item,) = fleet.zkc("bob", "inbox", "--json").events
        assert {key: value for key, value in item.items() if key not in {"event", "state"}}.items() <= arrived.items()
        assert alice.wait("delivered", name="message")["transfer"] == arrived["transfer"]
        assert (bob.wait("decision", kind="incoming")["code"], arrived["note"]) == (0, "a note")

        # Long enough for somebody to ask how far it is, at either end.
        assert fleet.zkc("alice", "send", "bob", str(big), "--bwlimit", "2M").code == 0
        done = alice.wait("delivered", name="big.bin")
        for follower, direction in ((alice, "out"), (bob, "in")):
            transfer = done["transfer"]
            begun = follower.wait("begun", transfer=transfer, direction=direction)
            ended = follower.wait("ended", transfer=transfer, direction=direction, code=0)
            progress = follower.wait_all("progress", transfer=transfer)
            assert (begun["total"], begun["from"], begun["to"], ended["bytes"]) == (3 << 20, "alice", "bob", 3 << 20)
            assert all(0 < each["bytes"] <= each["total"] == 3 << 20 for each in progress)
            order = [each["event"] for each in follower.told if each.get("transfer") == transfer]
            assert (order[0], order[-1], order.count("begun"), order.count("ended")) == ("begun", "ended", 1, 1)
        by_api = fleet.client("alice").send("bob", b"api", name="api")
        assert by_api.transfer == alice.wait("delivered", name="api")["transfer"]

        assert fleet.zkc("alice", "send", "bob", "-m", "later", "--queue").code == 0
        alice.wait("outbox", state="delivered", to="bob")
        job = [each["state"] for each in alice.told if each["event"] == "outbox"]
        assert job == ["waiting", "sending", "delivered"]

        # What is remembered is what was followed: numbers in order, none missing, nothing twice.
        bob.wait_all("ended", direction="in", count=4)
        remembered = fleet.zkc("bob", "events", "--json").events
        bob.wait_all(remembered[-1]["event"], seq=remembered[-1]["seq"])
        followed = [each for each in bob.told if each["event"] != "progress"]
        assert followed[: len(remembered)] == remembered
        assert [each["seq"] for each in followed] == list(range(1, len(followed) + 1))
        assert followed[0]["event"] == "started"
        assert "link" in {each["event"] for each in remembered}
        assert alice.ended(signal.SIGINT) == 130
        assert bob.ended(signal.SIGTERM) == 143


def test_a_command_that_is_killed_while_it_sends_has_ended_all_the_same(fleet: Fleet) -> None:
    with (
        Follower(fleet, "alice") as alice,
        fleet.popen("alice", "send", "carol", "--name", "cut", "--bwlimit", "1M", stdin=subprocess.PIPE) as sender,
    ):
        assert sender.stdin is not None
        sender.stdin.write(bytes(1 << 20))
        sender.stdin.flush()
        transfer = alice.wait("begun", name="cut")["transfer"]
        sender.kill()
        assert (alice.wait("ended", transfer=transfer)["code"], sender.wait(DEADLINE)) == (31, -signal.SIGKILL)


@pytest.mark.attack("H14")
def test_who_does_not_read_holds_nobody_up_and_is_told_what_is_lost(fleet: Fleet) -> None:
    daemon: LocalClient[Any] = LocalClient(Home.resolve("client", str(fleet.home("dave"))).socket_path(), ControlReply)
    begun = Begun("ab", "out", "dave", "bob", "x" * 100, None, 0, live=False)
    with contextlib.closing(fleet.client("dave").events(follow=True)) as events:
        first = next(events)
        for _ in range(40):
            daemon.call(AskReport([ended(begun, 1)] * 300))
        daemon.call(AskReport([ended(begun, 2)]))
        read, lost, last = 1, 0, first
        while not (isinstance(last.what, Ended) and last.what.bytes == 2):
            last = next(events)
            lost += last.what.lost if isinstance(last.what, Lost) else 0
            read += not isinstance(last.what, Lost)
    assert first.seq == 1
    assert lost > 0
    assert read + lost == last.seq > 12_000


def test_questions_presence_and_policy(fleet: Fleet) -> None:
    fleet.configure("dave", {"inbox.accept": "ask"})
    fleet.program("dave").process.send_signal(signal.SIGHUP)
    with Follower(fleet, "dave") as dave, Follower(fleet, "alice") as alice:
        dave.wait("decision", kind="policy-reloaded")
        for nth, (word, answer, code) in enumerate((("accept", "accepted", 0), ("refuse", "refused", 24)), 1):
            with fleet.popen("alice", "send", "dave", "-m", "may I?", stderr=subprocess.PIPE) as sender:
                asked = dave.wait_all("asked", count=nth)[-1]
                assert (asked["from"], asked["verified"]) == ("alice", False)
                assert fleet.zkc("dave", word, asked["id"]).code == 0
                assert dave.wait("answered", id=asked["id"])["answer"] == answer
                sender.communicate(timeout=DEADLINE)
                assert sender.returncode == code
        refused = alice.wait("decision", kind="outgoing", code=24)
        assert (refused["outcome"], refused["to"]) == ("refused", "dave")

        assert fleet.zkc("dave", "presence", "here").code == 0
        dave.wait("person", person="present")
        fleet.zkc("alice", "peers")
        fleet.zkc("dave", "presence", "away")
        dave.wait("person", person="absent")
        wait_until(lambda: _person(fleet, "dave") == "absent")
        assert alice.wait("presence", name="dave", person="absent")["online"] is True


def _person(fleet: Fleet, name: str) -> str:
    return str(next(each["person"] for each in fleet.zkc("alice", "peers", "--json").events if each["name"] == name))


@pytest.mark.attack("F07")
def test_a_line_for_people_has_a_peers_text_escaped_and_a_full_pipe_ends_it_quietly(fleet: Fleet) -> None:
    fleet.client("alice").send("bob", b"hello", name=EVIL_NAME)

    def shown() -> str:
        done = fleet.zkc("bob", "events")
        assert done.code == 0
        return done.out.decode()

    wait_until(lambda: "report.txt from alice" in shown())
    assert "\x1b" not in shown()
    assert "\u202e" not in shown()
    with fleet.popen("bob", "events", "--follow", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"started" in process.stdout.readline()
        process.stdout.close()
        for text in ("one", "two"):
            assert fleet.zkc("alice", "send", "bob", "-m", text).code == 0
        assert process.wait(DEADLINE) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_keys_that_move_on_and_keys_that_changed_are_events(fleet: Fleet) -> None:
    with Follower(fleet, "alice") as alice:
        fleet.client("alice").send("carol", b"pinned")
        assert fleet.zkc("carol", "rotate", "--identity").code == 0
        fleet.client("alice").send("carol", b"to the same carol")
        assert alice.wait("key", kind="key-succeeded")["name"] == "carol"

        fleet.program("carol").terminate()
        assert fleet.zkc("coordinator", "coordinator", "revoke", "carol").code == 0
        shutil.rmtree(fleet.home("carol"))
        fleet.join("carol")
        fleet.start_daemon("carol")
        assert fleet.zkc("alice", "send", "carol", "-m", "to another").code == 12
        changed = alice.wait("key", kind="key-changed")
        assert (changed["name"], changed["code"]) == ("carol", 12)


def test_the_api_follows_and_a_daemon_that_is_killed_ends_it(fleet: Fleet) -> None:
    """Cleanly, with 34, at the command too; a follower that never reads holds nobody up."""

    async def scene() -> list[Happened]:
        got: list[Happened] = []
        async with Client(fleet.home("bob")) as client:
            async with contextlib.aclosing(client.events(follow=True)) as events:
                async for each in events:
                    got.append(each)
                    if isinstance(each.what, Arrived) and each.what.name == "for-the-api":
                        break
            last: list[Happened] = []
            reading = asyncio.create_task(_read_on(client, last))
            await until(lambda: last)
            fleet.program("bob").kill()
            with pytest.raises(DaemonError) as ended:
                await asyncio.wait_for(reading, DEADLINE)
            assert ended.value.detail == "ended"
        return got

    fleet.client("alice").send("bob", b"x", name="for-the-api")
    with (
        Follower(fleet, "bob") as follower,
        fleet.popen("bob", "events", "--follow", "--json", stdout=subprocess.PIPE) as silent,
    ):
        got = asyncio.run(scene())
        assert isinstance(got[0].what, Started)
        code = follower.ended()
        assert (code, follower.told[-1]["code"], follower.told[-1]["detail"]) == (34, 34, "ended")
        silent.kill()
        silent.communicate()
    gone = fleet.zkc("bob", "events", "--json")
    assert (gone.code, gone.events[-1]["detail"]) == (34, "not-running")
    fleet.start_daemon("bob")
    assert fleet.zkc("bob", "events", "--json").events[0]["seq"] == 1


async def _read_on(client: Client, got: list[Happened]) -> None:
    async for each in client.events(follow=True):
        got += [each]


def test_closing_a_client_ends_what_it_follows(fleet: Fleet) -> None:
    client = SyncClient(fleet.home("alice"))
    events = client.events(follow=True)
    next(events)
    closing = threading.Timer(0, client.close)

    def read() -> None:
        closing.start()
        for _ in events:
            pass

    with contextlib.ExitStack() as stack:
        stack.callback(closing.join, DEADLINE)
        with pytest.raises(Interrupted):
            read()

