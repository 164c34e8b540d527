"""Shares with real processes: folders, who asked, and rights that end in the middle (claims B8)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.held_share import HELD, start_held
from tests.support.looking import inbox_of, log_of
from tests.support.waiting import DEADLINE, wait_until
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.items import Item
from zkc.stores.keystore import KeyStore
from zkc.stores.shares import SHARES_MAX, Share, change_shares
from zkc.testing import Fleet

TOLD = "import json, os, sys; open(sys.argv[1], 'a').write(json.dumps(dict(os.environ)) + '\\n')"
LARGE = os.urandom(HELD + (64 << 10))


class Shared:
    """Carol may have alice's folder ``builds`` sent to bob, dave and herself; alice's daemon can be held."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.gate = fleet.folder / "gate"
        self.folder = fleet.folder / "builds"
        self.told = fleet.folder / "told"
        (self.folder / "sub" / "empty").mkdir(parents=True)
        (self.folder / "sub" / "file").write_bytes(b"content")
        (self.folder / "sub" / "file").chmod(0o751)
        os.utime(self.folder / "sub" / "file", (10**9, 10**9))
        (self.folder / "top.o").write_bytes(b"object")
        (fleet.folder / "secret").write_bytes(b"secret")
        (self.folder / "out").symlink_to(fleet.folder)
        (self.folder / "sub" / "secret").symlink_to(fleet.folder / "secret")
        start_held(fleet, "alice", self.gate)
        assert fleet.zkc("alice", "verify", "carol").code == 0
        hook = [sys.executable, "-c", TOLD, str(self.told)]
        fleet.configure("bob", {"hooks.arrived": hook, "hooks.asked": hook, "hooks.notify": "none"})
        self.reread("bob")
        self.share()

    def share(self, path: Path | None = None) -> None:
        words = ("share", "builds", str(path or self.folder), "--to", "carol", "--for", "bob,carol,dave")
        assert self.fleet.zkc("alice", *words).code == 0

    def reread(self, name: str) -> None:
        program = self.fleet.coordinator if name == "coordinator" else self.fleet.program(name)
        before = self.count(name, "configuration-read")
        program.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.count(name, "configuration-read") > before)

    def count(self, name: str, event: str) -> int:
        return sum(each.get("event") == event for each in log_of(self.fleet, name))

    @contextlib.contextmanager
    def sending(self, path: str = "builds", *, held: bool = False) -> Iterator[subprocess.Popen[bytes]]:
        """Carol's command, running; ``held``: what it asks for stands still in the middle until `go_on`."""
        if held:
            os.mkfifo(self.gate)
        words = ("--json", "send", "--from", "alice", "bob", path)
        try:
            with self.fleet.popen("carol", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                try:
                    if held:
                        wait_until(lambda: self.partial() >= HELD)
                    yield process
                finally:
                    if process.poll() is None:
                        process.kill()
        finally:
            self.gate.unlink(missing_ok=True)

    def go_on(self) -> None:
        self.gate.write_bytes(b"!")

    def pending(self) -> list[dict[str, Any]]:
        return [item for item in self.fleet.zkc("bob", "inbox", "--json").events if item["state"] == "pending"]

    def items(self, name: str = "bob") -> list[Item]:
        return inbox_of(self.fleet.home(name))[0]

    def partial(self) -> int:
        return sum(item.size for item in inbox_of(self.fleet.home("bob"))[1])

    def clear(self) -> None:
        with Inbox.open(Home.resolve("client", str(self.fleet.home("bob")))) as inbox:
            for item in inbox.items():
                inbox.remove(item.id)


@pytest.fixture(scope="module")
def whole() -> Iterator[Shared]:
    with Fleet("alice", "bob", "carol", "dave") as fleet:
        yield Shared(fleet)


@pytest.fixture
def shared(whole: Shared) -> Iterator[Shared]:
    yield whole
    whole.share()
    whole.clear()


def ended(process: subprocess.Popen[bytes]) -> tuple[dict[str, Any], bytes]:
    """The last object of a command, once it has ended, and what it wrote for people."""
    out, err = process.communicate(timeout=DEADLINE)
    return json.loads(out.splitlines()[-1]), err


def audit(fleet: Fleet, name: str) -> list[dict[str, Any]]:
    return fleet.zkc(name, "audit", "--json").events


def seen(folder: Path) -> dict[str, tuple[str, object]]:
    """What is in a folder: kinds, with content and mode of files, and where links lead."""
    found: dict[str, tuple[str, object]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = "link", os.readlink(path)
        elif path.is_dir():
            found[name] = "folder", status.st_mode & 0o777
        else:
            found[name] = "file", (path.read_bytes(), status.st_mode & 0o777, status.st_mtime_ns)
    return found


@pytest.mark.claims("B8", 1, 2)
@pytest.mark.attack("F03")
def test_a_folder_of_a_share_is_sent_as_any_other_and_no_link_is_followed(shared: Shared, tmp_path: Path) -> None:
    fleet = shared.fleet
    sent = fleet.zkc("carol", "--json", "send", "--from", "alice", "bob", "builds")
    assert sent.code == 0, sent.err
    assert [event["event"] for event in sent.events] == ["requested", "granted", "progress", "delivered"]
    assert sent.events[0]["bytes"] == sent.events[2]["total"] == sent.events[-1]["bytes"] > 0
    assert fleet.zkc("carol", "receipt", "verify", sent.events[-1]["receipt"]).code == 0
    assert fleet.zkc("bob", "recv", "-o", str(tmp_path / "bobs")).code == 0
    assert seen(tmp_path / "bobs") == seen(shared.folder)
    assert seen(tmp_path / "bobs")["out"] == ("link", str(fleet.folder))

    # A folder below it, and less of one.
    assert fleet.zkc("carol", "get", "alice:builds/sub/", "-o", str(tmp_path / "sub")).code == 0
    assert seen(tmp_path / "sub") == seen(shared.folder / "sub")
    got = fleet.zkc("carol", "get", "alice:builds", "--exclude", "sub/", "--exclude", "*.o", "-o", str(tmp_path / "o"))
    assert (got.code, set(seen(tmp_path / "o"))) == (0, {"out"}), got.err
    nothing = fleet.zkc("carol", "--json", "get", "alice:builds/top.o", "--exclude", "*.o")
    assert (nothing.code, nothing.events[-1]["detail"]) == (2, "excluded")

    # Links out of it, whatever they lead to, and ways out of it look like nothing at all.
    answers = {
        fleet.zkc("carol", "--json", "get", f"alice:builds/{path}").out
        for path in ("out", "sub/secret", "..", "sub/../../builds/sub", "nothing")
    }
    assert len(answers) == 1
    assert b'"detail":"share"' in answers.pop()


def test_shares_say_what_each_is(shared: Shared) -> None:
    fleet, one = shared.fleet, shared.fleet.folder / "one"
    one.write_bytes(b"1")
    assert fleet.zkc("alice", "share", "one", str(one), "--to", "carol").code == 0
    one.unlink()
    kinds = {each["name"]: each["kind"] for each in fleet.zkc("carol", "--json", "shares", "alice").events}
    assert kinds == {"builds": "folder", "one": "gone"}
    one.write_bytes(b"1")
    assert b"one     file" in fleet.zkc("carol", "shares", "alice").out
    assert fleet.zkc("alice", "share", "--remove", "one").code == 0


def test_shares_of_several_commands_at_once_are_all_there_and_what_is_removed_is_gone(shared: Shared) -> None:
    fleet, path = shared.fleet, str(shared.folder)
    assert fleet.zkc("alice", "share", "secret", path, "--to", "carol").code == 0
    names = [f"s{number}" for number in range(4)]
    commands = [("secret", "--remove"), *((name, path, "--to", "carol") for name in names)]
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(fleet.popen("alice", "share", *words)) for words in commands]
        assert [process.wait(DEADLINE) for process in running] == [0] * len(running)
    assert [each["name"] for each in fleet.zkc("alice", "--json", "share").events] == ["builds", *names]
    for name in names:
        assert fleet.zkc("alice", "share", "--remove", name).code == 0


def test_a_word_that_is_given_twice_counts_twice(shared: Shared) -> None:
    words = "--to", "carol", "--to", "bob", "--for", "bob", "--for", "carol"
    shown = shared.fleet.zkc("alice", "share", "twice", str(shared.folder), *words, "--json").events[-1]
    assert (shown["to"], shown["for"]) == (["carol", "bob"], ["bob", "carol"])
    assert shared.fleet.zkc("alice", "share", "--remove", "twice").code == 0


def test_each_thing_that_cannot_be_shared_has_a_line_of_its_own(shared: Shared) -> None:
    fleet, home = shared.fleet, Home.resolve("client", str(shared.fleet.home("alice")))
    path = str(shared.folder)
    assert b"there is no" in fleet.zkc("alice", "share", "x", f"{path}/none", "--to", "carol").err
    assert b"the note is too long" in fleet.zkc("alice", "share", "x", path, "--to", "carol", "--note", "n" * 257).err
    assert b"the note is no UTF-8" in fleet.zkc("alice", "share", "x", path, "--to", "carol", "--note", "\udcff").err
    assert b"takes NAME alone" in fleet.zkc("alice", "share", "--remove", "builds", path).err
    many = [Share(f"many{number}", path, []) for number in range(SHARES_MAX - 1)]
    before, _ = change_shares(home, lambda shares: [*shares, *many])
    try:
        refused = fleet.zkc("alice", "share", "x", path, "--to", "carol")
        assert (refused.code, b"there are 128 shares" in refused.err) == (2, True), refused.err
        shared.share()  # in place of itself
    finally:
        change_shares(home, lambda _: before)


def test_a_path_below_a_share_may_have_slashes_and_dots_too_many(shared: Shared) -> None:
    for path in ("builds//sub/./file", "builds/./sub//file/"):
        assert shared.fleet.zkc("carol", "get", f"alice:{path}", "-o", "-").out == b"content"


@pytest.mark.parametrize("options", [(), ("--live",)], ids=["inbox", "live"])
def test_what_one_command_has_asked_for_no_other_takes(
    shared: Shared, tmp_path: Path, options: tuple[str, ...]
) -> None:
    fleet, words = shared.fleet, ("recv", "--loop", *(options or ("-o", f"{tmp_path}/")))
    with fleet.popen("carol", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as loop:
        try:
            assert loop.stdout is not None
            assert loop.stderr is not None
            if options:
                assert loop.stderr.readline() == b"waiting\n"
            else:
                assert fleet.zkc("alice", "send", "carol", "-m", "first").code == 0
                assert loop.stdout.readline()
            for _ in range(3):
                got = fleet.zkc("carol", "get", "alice:builds/top.o", "-o", "-")
                assert (got.code, got.out) == (0, b"object"), got.err
            # All else is its, as before.
            assert fleet.zkc("alice", "send", "carol", "-m", "hello").code == 0
            assert loop.stdout.read(5) == b"hello" if options else b"message" in loop.stdout.readline()
        finally:
            loop.kill()


@pytest.mark.claims("B8", 1, 2)
def test_the_recipient_hears_who_asked_before_and_after(shared: Shared) -> None:
    fleet = shared.fleet
    carol = fleet.zkc("carol", "status", "--json").events[0]["fingerprint"]
    shared.told.unlink(missing_ok=True)
    fleet.configure("bob", {"inbox.accept": "ask"})
    shared.reread("bob")
    with shared.sending("builds/top.o") as process:
        wait_until(shared.pending)
        (item,) = shared.pending()
        assert (item["from"], item["asked_by"], item["asker_fingerprint"]) == ("alice", "carol", carol)
        assert item["asker_pinned"] is None
        assert b"carol" in fleet.zkc("bob", "inbox", "show", item["id"]).out
        accepted = fleet.zkc("bob", "accept", item["id"])
        assert b"from alice, asked by carol" in accepted.err
        delivered, _ = ended(process)
    fleet.configure("bob", {"inbox.accept": "all"})
    shared.reread("bob")
    (item,) = (each for each in fleet.zkc("bob", "inbox", "--json").events if each["state"] == "ready")
    assert (item["from"], item["asked_by"], item["asker_fingerprint"]) == ("alice", "carol", carol)
    assert b"ASKED BY" in fleet.zkc("bob", "inbox").out
    wait_until(lambda: shared.told.exists() and shared.told.read_bytes().count(b"\n") == 2)
    told = [json.loads(line) for line in shared.told.read_text().splitlines()]
    assert [(each["ZKC_EVENT"], each["ZKC_ASKED_BY"]) for each in told] == [("asked", "carol"), ("arrived", "carol")]
    receipt = fleet.zkc("carol", "receipt", "verify", delivered["receipt"])
    assert b"from alice, asked by carol" in receipt.out
    wait_until(lambda: ("on-request", "carol", "bob", "ok") in [
        (each["kind"], each["from"], each["to"], each["outcome"]) for each in audit(fleet, "bob")
    ])  # fmt: skip

    # What alice sends by herself says nothing of anybody.
    assert fleet.zkc("alice", "send", "bob", "-m", "hello").code == 0
    assert [each.asked_by for each in shared.items()] == ["carol", ""]


@pytest.mark.parametrize("way", ["removed", "moved"])
def test_a_right_that_ends_in_the_middle_breaks_off(shared: Shared, way: str) -> None:
    fleet, large = shared.fleet, shared.folder / "sub" / "large"
    large.write_bytes(LARGE)
    with shared.sending(held=True) as process:
        if way == "removed":
            assert fleet.zkc("alice", "share", "--remove", "builds").code == 0
        else:
            shared.share(shared.folder / "sub")
        error, err = ended(process)
    assert (error["event"], error["code"], error["detail"]) == ("error", 25, "withdrawn")
    assert "alice withdrew the right to it" in error["message"]
    assert err == b""
    wait_until(lambda: not shared.partial())
    assert shared.items() == []
    wait_until(lambda: ("share", "carol", "bob", "withdrawn") in [
        (each["kind"], each["from"], each["to"], each["detail"]) for each in audit(fleet, "alice")
    ])  # fmt: skip
    large.unlink()
    shared.share()
    assert fleet.zkc("carol", "send", "--from", "alice", "bob", "builds").code == 0


def test_a_right_that_ends_while_a_person_is_asked_takes_the_question_back(shared: Shared) -> None:
    fleet = shared.fleet
    fleet.configure("bob", {"inbox.accept": "ask"})
    shared.reread("bob")
    with shared.sending("builds/top.o") as process:
        wait_until(shared.pending)
        assert fleet.zkc("alice", "share", "--remove", "builds").code == 0
        error, _ = ended(process)
    assert (error["code"], error["detail"]) == (25, "withdrawn")
    wait_until(lambda: not shared.pending())
    assert shared.items() == []
    fleet.configure("bob", {"inbox.accept": "all"})
    shared.reread("bob")


def test_a_link_that_is_put_in_the_place_of_a_folder_in_the_middle_is_not_followed(shared: Shared) -> None:
    """What is listed already, and not read yet."""
    fleet, later, aside = shared.fleet, shared.folder / "z", shared.folder / "aside"
    (shared.folder / "large").write_bytes(LARGE)
    later.mkdir()
    (later / "secret").write_bytes(b"shared")
    os.utime(later / "secret", (10**9, 10**9))
    os.utime(fleet.folder / "secret", (10**9, 10**9))
    with shared.sending(held=True) as process:
        later.rename(aside)
        later.symlink_to(fleet.folder)
        shared.go_on()
        error, _ = ended(process)
    assert (error["code"], error["detail"]) == (33, "source-changed")
    wait_until(lambda: not shared.partial())
    assert shared.items() == []
    later.unlink()
    (aside / "secret").unlink()
    aside.rmdir()
    (shared.folder / "large").unlink()


def test_who_asked_may_go_and_what_is_under_way_arrives(shared: Shared) -> None:
    large = shared.folder / "large"
    large.write_bytes(LARGE)
    with shared.sending("builds/large", held=True) as process:
        process.kill()
        process.wait(DEADLINE)
        shared.go_on()
        wait_until(shared.items)
    large.unlink()
    assert [item.asked_by for item in shared.items()] == ["carol"]


def test_to_several_each_has_a_delivery_of_its_own(shared: Shared) -> None:
    fleet, receipt = shared.fleet, shared.fleet.folder / "receipt"
    words = ("--json", "send", "--from", "alice", "bob,alice,dave", "builds/top.o", "--receipt", str(receipt))
    sent = fleet.zkc("carol", *words)
    told = [(each["event"], each["recipient"]) for each in sent.events if each["event"] in {"delivered", "error"}]
    assert (sent.code, told) == (25, [("delivered", "bob"), ("error", "alice"), ("delivered", "dave")])
    assert [each.name for each in shared.items("dave")] == ["top.o"]
    for name in ("bob", "dave"):
        assert fleet.zkc("carol", "receipt", "verify", f"{receipt}.{name}").code == 0
    assert not Path(f"{receipt}.alice").exists()


def test_a_group_stands_for_who_is_in_it_when_it_is_granted(shared: Shared) -> None:
    fleet = shared.fleet
    groups = {"groups.ops": ["carol", "dave"], "groups.some": ["carol", "erin"], "groups.fleet": ["web-*"]}
    fleet.configure("alice", groups)
    unpinned = fleet.zkc("alice", "--json", "share", "ops", str(shared.folder), "--to", "@some")
    assert (unpinned.code, unpinned.events[-1]["detail"]) == (20, "not-pinned")
    assert fleet.zkc("alice", "verify", "dave").code == 0
    granted = fleet.zkc("alice", "--json", "share", "ops", str(shared.folder), "--to", "@ops,carol", "--for", "@ops")
    (row,) = granted.events
    assert (row["to"], row["for"]) == (["carol", "dave"], ["carol", "dave"])
    assert fleet.zkc("dave", "get", "alice:ops/top.o", "-o", "-").out == b"object"
    for option, word, why in (
        ("--to", "@fleet", b"the pattern"), ("--to", "@nobody", b"not known to its clients"),
        ("--for", "@fleet", b"the pattern"), ("--for", "@nobody", b"not known to its clients"),
    ):  # fmt: skip
        others = ("--to", "carol") if option == "--for" else ()
        refused = fleet.zkc("alice", "share", "x", str(shared.folder), option, word, *others)
        assert (refused.code, why in refused.err) == (2, True), refused.err
    assert fleet.zkc("alice", "share", "--remove", "ops").code == 0
    fleet.configure("alice", {"groups.ops": ["carol"]})


@pytest.mark.parametrize("judge", ["coordinator", "alice", "bob"])
def test_policy_judges_alice_to_bob_whoever_asks(shared: Shared, judge: str) -> None:
    fleet, path = shared.fleet, shared.fleet.home(judge) / "config.toml"
    rule = {
        "coordinator": 'from = ["alice"]\nto = ["bob"]\n', "alice": 'to = ["bob"]\n', "bob": 'from = ["alice"]\n'
    }[judge]  # fmt: skip
    kept = path.read_text() if path.exists() else ""
    path.write_text(f'{kept}\n[[policy]]\nname = "not so"\nmode = "refuse"\n{rule}')
    shared.reread(judge)
    try:
        refused = fleet.zkc("carol", "--json", "send", "--from", "alice", "bob", "builds")
        assert (refused.code, refused.events[-1]["detail"]) == (25, "rule"), refused.out
        assert (shared.items(), shared.partial()) == ([], 0)
        # To herself it is another matter.
        assert fleet.zkc("carol", "get", "alice:builds/top.o", "-o", "-").out == b"object"
    finally:
        path.write_text(kept)
        shared.reread(judge)


def test_an_asker_that_is_revoked_in_the_middle_asks_for_nothing_more(shared: Shared) -> None:
    """Last but one in this file: carol is gone after it. What alice has agreed to is alice's, and arrives."""
    fleet, large = shared.fleet, shared.folder / "large"
    large.write_bytes(LARGE)
    with shared.sending("builds/large", held=True) as process:
        assert fleet.zkc("coordinator", "coordinator", "revoke", "carol").code == 0
        error, _ = ended(process)
        assert (error["event"], error["code"]) == ("error", 11)
        shared.go_on()
        wait_until(shared.items)
    assert fleet.zkc("carol", "send", "--from", "alice", "bob", "builds/large").code == 11
    large.unlink()


@pytest.mark.attack("P09")
def test_another_key_of_who_asks_is_an_alarm(shared: Shared) -> None:
    """Last in this file: carol is another after it."""
    fleet = shared.fleet
    fleet.program("carol").terminate()
    fleet.zkc("coordinator", "coordinator", "revoke", "carol")  # if she is not yet
    shutil.rmtree(fleet.home("carol"))
    fleet.join("carol")
    for words in (("shares", "alice"), ("send", "--from", "alice", "bob", "builds/top.o")):
        assert fleet.zkc("carol", *words).code == 12
    wait_until(lambda: ("key-changed", "carol", "alice", 12) in [
        (each["kind"], each["from"], each["to"], each["code"]) for each in audit(fleet, "alice")
    ])  # fmt: skip
    seen = fleet.zkc("carol", "status", "--json").events[0]["fingerprint"]
    (logged,) = (each for each in log_of(fleet, "alice") if each.get("event") == "key-changed")
    assert (logged["peer"], logged["seen"]) == ("carol", seen)
    with KeyStore.open(Home.resolve("client", str(fleet.home("alice")))) as store:
        pin = store.pin("carol")
    assert pin is not None
    assert pin.alarm.hex() == seen
