"""An item is in the inbox once, whole, and under a name of ours; and it is taken once."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.items import DAY, FP, NOW, TID, XID, SetClock, entry, receive
from tests.support.program import environment
from zkc.constants import PARTIALS_PER_SENDER_MAX
from zkc.errors import LocalIOError, UsageError, VersionMismatch
from zkc.stores import files
from zkc.stores.home import Home
from zkc.stores.inbox import Claim, Inbox
from zkc.stores.items import Item, NewItem
from zkc.stores.partials import PARTIAL_SECONDS
from zkc.stores.receipts import save_receipt
from zkc.stores.saving import save_item

HOSTILE = [
    "../../escape", "/etc/passwd", "..", ".", "", "a/b", "~/.bashrc", ".ssh/authorized_keys", "C:x", "CON", "nul\0byte",
    "\x1b[31mred", "new\nline", "\u202etxt.exe", "x" * 5000, "-rf", "a\\..\\b", "%s{0}", "'; DROP TABLE items; --",
]


def on_disk(home: Home) -> list[str]:
    """Payloads, finished or not."""
    return sorted(f"{path.parent.name}/{path.name}" for path in home.inbox.glob("*/*"))


# --- arriving ---------------------------------------------------------------------------------------------------------


def test_an_item_is_there_with_all_that_was_said_of_it_for_every_process(home: Home, inbox: Inbox) -> None:
    what = entry("naïve \U0001f600.txt", note="a note", app="bob/backup", kind="stream", key_source="coordinator")
    item = receive(inbox, b"payload", what=what)
    with Inbox.open(home) as other:
        assert other.items() == [item]
        assert other.done(FP, TID) == b"receipt of " + TID
    assert item == Item(
        id=item.id, sender="alice", sender_fp=FP, app="bob/backup", name=what.name, note="a note", size=7,
        digest=b"d" * 32, key_source="coordinator", kind="stream", received=NOW, xid=XID, tid=TID, mode=0o644,
        mtime_ns=10**18, path=home.inbox / "files" / item.id,
    )
    assert item.transfer == XID.hex()
    assert item.path.read_bytes() == b"payload"
    assert len(item.id) >= 12


def test_nothing_is_visible_before_the_commit_and_nothing_stays_of_what_is_discarded(home: Home, inbox: Inbox) -> None:
    partial = inbox.begin(FP, TID, entry())
    partial.write(b"abc")
    partial.write(memoryview(b"def"))
    assert partial.position == 6
    assert inbox.items() == []
    assert inbox.done(FP, TID) is None
    partial.close(discard=True)
    partial.close(discard=True)
    assert on_disk(home) == []
    with pytest.raises(LocalIOError):
        partial.write(b"late")


def test_items_are_listed_oldest_first_whatever_the_clock_said(inbox: Inbox) -> None:
    items = [receive(inbox, tid=bytes([n]) * 16, now=NOW - n) for n in range(5)]
    assert inbox.items() == items


@pytest.mark.attack("P03")
def test_a_delivery_that_is_done_yields_no_second_item_and_keeps_its_receipt(home: Home, inbox: Inbox) -> None:
    first = receive(inbox, b"one")
    partial = inbox.begin(FP, TID, entry())
    partial.write(b"one")
    assert inbox.commit(partial, b"d" * 32, b"another receipt", NOW + 1) == first
    assert inbox.items() == [first]
    assert inbox.done(FP, TID) == b"receipt of " + TID
    assert on_disk(home) == [f"files/{first.id}"]


@pytest.mark.attack("P03")
def test_a_delivery_whose_item_was_taken_is_still_done(home: Home, inbox: Inbox) -> None:
    first = receive(inbox)
    assert inbox.remove(first.id)
    again = receive(inbox)
    assert again.id == first.id
    assert inbox.items() == []
    assert inbox.done(FP, TID) == b"receipt of " + TID
    assert on_disk(home) == []


@pytest.mark.attack("P03")
def test_two_receivers_of_one_delivery_make_one_item(home: Home, inbox: Inbox) -> None:
    with Inbox.open(home) as other:
        partials = [box.begin(FP, TID, entry()) for box in (inbox, other)]
        for partial in partials:
            partial.write(b"same")
        first = inbox.commit(partials[0], b"d" * 32, b"first", NOW)
        assert other.commit(partials[1], b"d" * 32, b"second", NOW) == first
    assert on_disk(home) == [f"files/{first.id}"]


@pytest.mark.attack("P03")
def test_a_delivery_that_another_finishes_in_the_middle_of_the_commit_yields_one_item(
    home: Home, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, real = inbox.begin(FP, TID, entry()), files.publish
    partial.write(b"mine")
    first: list[Item] = []

    def overtaken(*arguments: Any) -> None:
        monkeypatch.undo()
        with Inbox.open(home) as other:
            first.append(receive(other, b"theirs"))
        real(*arguments)

    monkeypatch.setattr(files, "publish", overtaken)
    assert [inbox.commit(partial, b"d" * 32, b"late", NOW)] == first == inbox.items()
    assert on_disk(home) == [f"files/{first[0].id}"]
    assert inbox.done(FP, TID) == b"receipt of " + TID


def test_the_same_id_of_another_sender_is_another_delivery(inbox: Inbox) -> None:
    receive(inbox)
    partial = inbox.begin(b"g" * 32, TID, entry())
    inbox.commit(partial, b"d" * 32, b"r", NOW)
    assert len(inbox.items()) == 2


def test_a_receipt_is_kept_for_ninety_days(inbox: Inbox) -> None:
    receive(inbox, now=NOW)
    receive(inbox, tid=b"u" * 16, now=NOW + 89 * DAY)
    assert inbox.done(FP, TID) is not None
    inbox.recover(NOW + 91 * DAY)
    assert inbox.done(FP, TID) is None
    assert inbox.done(FP, b"u" * 16) is not None
    assert len(inbox.items()) == 2


# --- names, modes, links ----------------------------------------------------------------------------------------------


@pytest.mark.attack("F01", "F02")
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_peer_is_part_of_a_path(home: Home, inbox: Inbox, tmp_path: Path, text: str) -> None:
    what = entry(text, sender=text, note=text, app=text)
    open_partial = inbox.begin(FP, b"p" * 16, what)
    item = receive(inbox, what=what)
    assert inbox.items() == [item]
    assert (item.name, item.note, item.sender) == (text, text, text)
    names = [path.name for path in home.inbox.rglob("*") if path.parent != home.inbox]
    assert len(names) == 2
    assert all(len(name) == 16 and set(name) <= set("0123456789abcdef") for name in names)
    open_partial.close(discard=True)
    assert inbox.remove(item.id)
    inbox.recover(NOW)
    assert on_disk(home) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


@pytest.mark.attack("F05")
@pytest.mark.parametrize("sent", [0o644, 0o777, 0o7777, 0o4755, 0])
def test_files_of_the_inbox_are_0600_and_folders_0700(tmp_path: Path, sent: int) -> None:
    before = os.umask(0)
    try:
        home = Home.resolve("client", str(tmp_path / "home")).prepare()
        with Inbox.open(home) as inbox:
            inbox.begin(FP, b"p" * 16, entry("half.txt", mode=sent)).close(discard=False)
            receive(inbox, what=entry(mode=sent))
            save_receipt(home, TID, b"receipt")
            found = [path.lstat().st_mode for path in home.data.rglob("*")]
    finally:
        os.umask(before)
    # role; index.db and its side files; a partial item; an item; a receipt
    assert sorted(stat.S_IMODE(mode) for mode in found if not stat.S_ISDIR(mode)) == [0o600] * 7
    assert {stat.S_IMODE(mode) for mode in found if stat.S_ISDIR(mode)} == {0o700}


@pytest.mark.attack("F03")
@pytest.mark.parametrize("name", ["", "files", "partial"])
@pytest.mark.parametrize("kind", ["link", "file", "loose"])
def test_a_folder_of_the_inbox_that_is_not_ours_is_refused(home: Home, tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir(0o700)
    home.inbox.mkdir(0o700)
    place = home.inbox / name
    if not name:
        place.rmdir()
    if kind == "link":
        place.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        place.touch()
    else:
        place.mkdir()
        place.chmod(0o750)
    with pytest.raises(LocalIOError) as caught:
        Inbox.open(home)
    assert caught.value.detail == "permission"
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.attack("F03")
def test_a_link_in_place_of_a_payload_is_not_followed(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    item = receive(inbox)
    item.path.unlink()
    item.path.symlink_to(tmp_path / "secret")
    with pytest.raises(LocalIOError):
        inbox.take(item.id)
    with pytest.raises(LocalIOError):
        save_item(item, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert inbox.remove(item.id)
    assert (tmp_path / "secret").read_text() == "secret"


@pytest.mark.attack("F03", "F05")
def test_a_payload_never_replaces_what_has_its_id(home: Home, inbox: Inbox) -> None:
    partial = inbox.begin(FP, TID, entry())
    (home.inbox / "files" / partial.id).write_text("older")
    with pytest.raises(LocalIOError):
        inbox.commit(partial, b"d" * 32, b"r", NOW)
    partial.close(discard=True)
    assert (home.inbox / "files" / partial.id).read_text() == "older"
    assert inbox.items() == []
    assert inbox.done(FP, TID) is None


@pytest.mark.parametrize("number", [1, 95])  # EPERM, EOPNOTSUPP
def test_a_file_system_without_hard_links_does_not_replace_either(
    inbox: Inbox, home: Home, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(number, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    item = receive(inbox)
    assert item.path.read_bytes() == b"hello"
    assert on_disk(home) == [f"files/{item.id}"]
    first, second = (save_item(item, home.data / "saved.txt") for _ in range(2))
    assert (first, second) == (home.data / "saved.txt", home.data / "saved (2).txt")


# --- killed anywhere --------------------------------------------------------------------------------------------------

CRASH = """
import json, os, signal, sys

folder, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
HERE = ("inbox.py", "files.py", "localdb.py")

from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.items import NewItem

ENTRY = NewItem("alice", "", "a.txt", "", "file", "sender", b"x" * 16)

def receive(inbox, left):
    def trace(frame, event, arg):
        nonlocal left
        if not frame.f_code.co_filename.endswith(HERE):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    partial = inbox.begin(b"f" * 32, b"t" * 16, ENTRY)
    partial.write(b"payload")
    inbox.commit(partial, b"d" * 32, b"receipt", 5.0)
    sys.settrace(None)

for number in range(first, last):
    home = Home.resolve("client", f"{folder}/{number}").prepare()
    Inbox.open(home).close()
    child = os.fork()
    if child == 0:
        receive(Inbox.open(home), number)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    with Inbox.open(home) as inbox:
        seen = [len(inbox.items()), inbox.done(b"f" * 32, b"t" * 16) is not None]
        inbox.recover(6.0)
        after = [[item.id for item in inbox.items()], inbox.done(b"f" * 32, b"t" * 16) is not None]
        payloads = [item.path.read_bytes().decode() for item in inbox.items()]
        left = sorted(os.listdir(home.inbox / "files")), os.listdir(home.inbox / "partial")
        listed = [item.id for item in inbox.partials()]
        partial = inbox.begin(b"f" * 32, b"t" * 16, ENTRY)
        partial.write(b"payload")
        repeated = inbox.commit(partial, b"d" * 32, b"later", 7.0).id
        final = [item.id for item in inbox.items()]
        cleared = os.listdir(home.inbox / "partial") == inbox.partials() == []
    print(json.dumps([killed, seen, after, payloads, left, listed, repeated, final, cleared]), flush=True)
    if not killed:
        break
"""


@pytest.mark.attack("P03")
def test_a_receiver_that_is_killed_at_any_line_leaves_one_whole_item_or_none(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path), "0", "2000"], capture_output=True, text=True, check=True,
        env=environment(),
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    for killed, seen, (ids, is_done), payloads, (in_files, in_partial), listed, repeated, final, cleared in outcomes:
        assert seen == [len(ids), is_done], "recover changes nothing that was visible"
        assert len(ids) == int(is_done) <= 1
        assert payloads == ["payload"] * len(ids)
        assert in_files == ids
        assert in_partial == listed, "a partial item has its row and its file, or neither"
        assert len(ids + listed) <= 1
        assert cleared, "the delivery that came again has replaced it"
        assert final == [repeated]
        assert ids in ([], final)
        assert killed or ids
    assert not outcomes[-1][0], "the last run went through"
    assert len(outcomes) > 60
    assert {len(outcome[2][0]) for outcome in outcomes if outcome[0]} == {0, 1}, "both sides of the commit were tried"
    assert {len(outcome[5]) for outcome in outcomes if outcome[0]} == {0, 1}, "both sides of the beginning were tried"


@pytest.mark.attack("P03", "F02")
def test_recovery_removes_orphans_and_nothing_that_is_not_ours(home: Home, inbox: Inbox, tmp_path: Path) -> None:
    item = receive(inbox)
    kept = stop(inbox, b"p" * 16)
    (home.inbox / "partial" / ("c" * 16)).touch()
    orphan, foreign = home.inbox / "files" / ("0" * 16), home.inbox / "files" / "notes.txt"
    link, folder = home.inbox / "partial" / ("a" * 16), home.inbox / "partial" / ("b" * 16)
    orphan.touch()
    foreign.write_text("mine")
    (tmp_path / "target").write_text("target")
    link.symlink_to(tmp_path / "target")
    folder.mkdir()
    assert inbox.recover(NOW) == 2
    assert inbox.recover(NOW) == 0
    assert not orphan.exists()
    assert foreign.exists()
    assert link.is_symlink()
    assert folder.exists()
    assert (tmp_path / "target").read_text() == "target"
    assert item.path.exists()
    assert inbox.partials() == [kept]


@pytest.mark.attack("P03")
def test_recovery_leaves_what_a_living_process_writes(home: Home, inbox: Inbox) -> None:
    partial = inbox.begin(FP, TID, entry())
    partial.write(b"abc")
    with Inbox.open(home) as other:
        assert other.recover(NOW) == 0
        # As if it stood between its rename and its transaction.
        (home.inbox / "partial" / partial.id).rename(home.inbox / "files" / partial.id)
        assert other.recover(NOW) == 0
        assert (home.inbox / "files" / partial.id).exists()
        partial.close(discard=False)
        assert other.recover(NOW) == 1


# --- arrived in part --------------------------------------------------------------------------------------------------


def stop(
    inbox: Inbox, tid: bytes = TID, data: bytes = b"half", what: NewItem | None = None, sender_fp: bytes = FP
) -> Item:
    """A link that is lost after ``data``, of a file of its own."""
    partial = inbox.begin(sender_fp, tid, what or entry(f"{tid.hex()}.txt"))
    partial.write(data)
    partial.close(discard=False)
    return next(item for item in inbox.partials() if item.id == partial.id)


@pytest.mark.attack("D04")
def test_what_a_stopped_stream_left_is_listed_apart_and_is_no_item(home: Home, inbox: Inbox, tmp_path: Path) -> None:
    what = entry("na\u00efve.txt", note="a note", app="bob/backup", kind="stream", key_source="coordinator")
    item = stop(inbox, what=what)
    assert item == Item(
        id=item.id, sender="alice", sender_fp=FP, app="bob/backup", name=what.name, note="a note", size=4, digest=b"",
        key_source="coordinator", kind="stream", received=NOW, xid=XID, tid=TID, mode=0o644, mtime_ns=10**18,
        path=home.inbox / "partial" / item.id, state="partial",
    )
    with Inbox.open(home) as other:
        assert other.partials() == [item]
        assert other.find(item.id[:12]) == item
    assert inbox.items() == []
    assert inbox.done(FP, TID) is None
    assert inbox.take(item.id) is None
    assert inbox.take_first(lambda _: True) is None
    with pytest.raises(UsageError) as caught:
        save_item(item, tmp_path / "saved")
    assert caught.value.detail == "partial"
    assert not (tmp_path / "saved").exists()
    assert inbox.remove(item.id)
    assert not inbox.remove(item.id)
    assert inbox.partials() == []
    assert on_disk(home) == []


def test_partial_items_are_listed_oldest_first_with_what_has_come_so_far(inbox: Inbox, clock: SetClock) -> None:
    stopped = []
    for number in range(5):
        clock.now = NOW - number
        stopped.append(stop(inbox, bytes([number]) * 16))
    running = inbox.begin(FP, TID, entry())
    running.write(b"abc")
    assert inbox.partials()[:-1] == stopped
    assert (inbox.partials()[-1].id, inbox.partials()[-1].size) == (running.id, 3)
    running.write(b"def")
    assert inbox.partials()[-1].size == 6
    running.close(discard=True)
    assert inbox.partials() == stopped


def test_what_is_being_received_is_not_removed_but_busy(home: Home, inbox: Inbox) -> None:
    partial = inbox.begin(FP, TID, entry())
    with Inbox.open(home) as other:
        with pytest.raises(LocalIOError) as caught:
            other.remove(partial.id)
        assert (caught.value.detail, partial.id in str(caught.value)) == ("busy", True)
        assert [item.id for item in other.partials()] == [partial.id]
    assert inbox.commit(partial, b"d" * 32, b"r", NOW).state == "ready"
    assert inbox.partials() == []
    assert on_disk(home) == [f"files/{partial.id}"]


def test_a_delivery_that_begins_again_takes_the_place_of_its_partial_item(home: Home, inbox: Inbox) -> None:
    other_tid, other_sender = stop(inbox, b"u" * 16), stop(inbox, sender_fp=b"g" * 32)
    first = stop(inbox)
    again = inbox.begin(FP, TID, entry())
    assert [item.id for item in inbox.partials()] == [other_tid.id, other_sender.id, again.id]
    assert not first.path.exists()
    item = inbox.commit(again, b"d" * 32, b"r", NOW)
    assert inbox.partials() == [other_tid, other_sender]
    assert on_disk(home) == sorted([f"files/{item.id}", f"partial/{other_tid.id}", f"partial/{other_sender.id}"])


def test_an_attempt_that_was_overtaken_leaves_no_partial_item(home: Home, inbox: Inbox) -> None:
    older, newer = (inbox.begin(FP, TID, entry()) for _ in range(2))
    older.write(b"goes on")
    older.close(discard=False)
    newer.close(discard=False)
    assert [item.id for item in inbox.partials()] == [newer.id]
    assert on_disk(home) == [f"partial/{newer.id}"]


@pytest.mark.parametrize("older_commits", [True, False])
@pytest.mark.parametrize("other_stops_first", [True, False])
def test_a_done_delivery_has_no_partial_item(
    home: Home, inbox: Inbox, older_commits: bool, other_stops_first: bool
) -> None:
    partials = [inbox.begin(FP, TID, entry()) for _ in range(2)]
    winner, other = partials if older_commits else reversed(partials)
    if other_stops_first:
        other.close(discard=False)
    item = inbox.commit(winner, b"d" * 32, b"r", NOW)
    other.close(discard=False)
    assert inbox.partials() == []
    assert on_disk(home) == [f"files/{item.id}"]


def test_of_one_sender_and_name_at_most_one_partial_item_stays(inbox: Inbox) -> None:
    """Each Ctrl-C, each ``--timeout`` at the sender would leave one more, and nothing would ever take them away."""
    same = entry("big.iso")
    kept = [
        stop(inbox, b"1" * 16, what=same, sender_fp=b"g" * 32),
        stop(inbox, b"2" * 16, what=entry("big.iso", app="bob/backup")), stop(inbox, b"3" * 16, what=entry("other")),
    ]  # fmt: skip
    stop(inbox, b"4" * 16, what=same)
    newest = stop(inbox, b"5" * 16, what=same)
    assert inbox.partials() == [*kept, newest]
    running, overtaking = (inbox.begin(FP, tid * 16, same) for tid in (b"6", b"7"))
    assert [item.tid for item in inbox.partials()[3:]] == [b"6" * 16, b"7" * 16]
    running.close(discard=False)
    assert [item.id for item in inbox.partials()[3:]] == [running.id, overtaking.id]
    overtaking.close(discard=False)
    assert [item.id for item in inbox.partials()[3:]] == [overtaking.id]


def test_what_arrives_whole_takes_the_place_of_what_stopped_before(home: Home, inbox: Inbox) -> None:
    same = entry("big.iso")
    whole, other, running = (inbox.begin(FP, tid * 16, same) for tid in (b"8", b"9", b"a"))
    other.close(discard=False)
    item = inbox.commit(whole, b"d" * 32, b"r", NOW)
    assert [partial.id for partial in inbox.partials()] == [running.id], "what is being received goes on"
    assert on_disk(home) == sorted([f"files/{item.id}", f"partial/{running.id}"])
    assert inbox.commit(running, b"d" * 32, b"r", NOW).id == running.id
    assert inbox.partials() == []


def test_recovery_keeps_partial_items_for_seven_days(home: Home, inbox: Inbox, clock: SetClock) -> None:
    old = stop(inbox)
    clock.now += DAY
    young = stop(inbox, b"u" * 16)
    assert inbox.recover(NOW + PARTIAL_SECONDS - 1) == 0
    assert inbox.partials() == [old, young]
    assert inbox.recover(NOW + PARTIAL_SECONDS + 1) == 1
    assert inbox.partials() == [young]
    assert on_disk(home) == [f"partial/{young.id}"]


def test_recovery_leaves_an_old_partial_item_that_is_still_being_received(inbox: Inbox) -> None:
    partial = inbox.begin(FP, TID, entry())
    assert inbox.recover(NOW + 2 * PARTIAL_SECONDS) == 0
    inbox.commit(partial, b"d" * 32, b"r", NOW)
    assert len(inbox.items()) == 1


def test_a_partial_item_whose_file_a_stranger_removed_is_none(home: Home, inbox: Inbox) -> None:
    item, kept = stop(inbox), stop(inbox, b"u" * 16)
    item.path.unlink()
    assert inbox.partials() == [kept]
    with pytest.raises(UsageError):
        inbox.find(item.id)
    assert inbox.recover(NOW) == 0
    raw = sqlite3.connect(home.inbox / "index.db")
    assert raw.execute("SELECT id FROM partials").fetchall() == [(kept.id,)]
    raw.close()


@pytest.mark.attack("F03")
def test_a_link_in_place_of_a_partial_item_is_neither_followed_nor_removed(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    item = stop(inbox)
    item.path.unlink()
    item.path.symlink_to(tmp_path / "secret")
    assert inbox.partials() == []
    assert inbox.recover(NOW) == 0
    assert not inbox.remove(item.id)
    assert item.path.is_symlink()
    assert (tmp_path / "secret").read_text() == "secret"


BEGIN = """
import sys
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.items import NewItem
inbox = Inbox.open(Home.resolve("client", sys.argv[1]))
partial = inbox.begin(b"f" * 32, b"t" * 16, NewItem("alice", "", "a.txt", "", "file", "sender", b"x" * 16))
partial.write(b"half of it")
print(partial.id, flush=True)
sys.stdin.read()
"""


@pytest.mark.attack("D04")
def test_what_a_killed_receiver_had_is_kept_as_a_partial_item(home: Home, inbox: Inbox) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BEGIN, str(home.data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment(),
    ) as receiver:
        assert receiver.stdout is not None
        item_id = receiver.stdout.readline().strip()
        with pytest.raises(LocalIOError) as caught:
            inbox.remove(item_id)
        assert caught.value.detail == "busy"
        receiver.send_signal(signal.SIGKILL)
        receiver.wait(20)
    assert inbox.recover(NOW) == 0
    (item,) = inbox.partials()
    assert (item.id, item.size, item.state, item.path.read_bytes()) == (item_id, 10, "partial", b"half of it")
    assert inbox.items() == []
    assert inbox.remove(item_id)
    assert on_disk(home) == []


@pytest.mark.attack("D16")
def test_a_thousand_partial_items_of_one_sender_leave_the_newest_few(home: Home, inbox: Inbox) -> None:
    bystander = stop(inbox, sender_fp=b"g" * 32)
    running = inbox.begin(FP, b"r" * 16, entry())
    for number in range(1000):
        inbox.begin(FP, number.to_bytes(16), entry(f"{number}.txt")).close(discard=False)
    left = inbox.partials()
    assert left[:2] == [bystander, replace(left[1], id=running.id)]
    newest = [number.to_bytes(16) for number in range(1000 - PARTIALS_PER_SENDER_MAX + 1, 1000)]
    assert [item.tid for item in left[2:]] == newest
    assert len(on_disk(home)) == PARTIALS_PER_SENDER_MAX + 1
    running.close(discard=True)


def test_more_at_once_than_are_kept_are_all_received_and_as_many_kept(home: Home, inbox: Inbox) -> None:
    running = [
        inbox.begin(FP, bytes([number]) * 16, entry(f"{number}.txt")) for number in range(PARTIALS_PER_SENDER_MAX + 3)
    ]
    inbox.commit(running.pop(), b"d" * 32, b"r", NOW)
    for partial in running:
        partial.write(b"x")
        partial.close(discard=False)
    assert len(inbox.partials()) == PARTIALS_PER_SENDER_MAX
    assert len(on_disk(home)) == PARTIALS_PER_SENDER_MAX + 1


@pytest.mark.attack("D16")
def test_partial_items_make_room_and_whole_ones_stay(home: Home, inbox: Inbox) -> None:
    item = receive(inbox)
    stopped = [stop(inbox, bytes([number]) * 16, bytes(1000)) for number in range(3)]
    other = stop(inbox, sender_fp=b"g" * 32, data=bytes(10))
    assert [inbox.remove(each.id) for each in stopped] == [True] * 3
    assert inbox.partials() == [other]
    assert inbox.remove(other.id)
    assert inbox.partials() == []
    assert on_disk(home) == [f"files/{item.id}"]


@pytest.mark.attack("D16")
@pytest.mark.root
def test_partial_items_make_room_on_a_full_disk(small_disk: Callable[[int], Path]) -> None:
    home = Home.resolve("client", str(small_disk(1_000_000))).prepare()
    with Inbox.open(home) as inbox:
        stopped = stop(inbox, b"u" * 16, bytes(200_000))
        with pytest.raises(OSError, match="No space"):
            (home.data / "filler").write_bytes(bytes(2_000_000))
        with pytest.raises(LocalIOError) as caught:
            inbox.begin(FP, TID, entry(note="x" * 4096)).write(bytes(50_000))
        assert caught.value.detail == "no-space"
        assert inbox.remove(stopped.id)
        receive(inbox, bytes(50_000))
        assert len(inbox.items()) == 1


def test_an_error_while_a_partial_item_begins_leaves_nothing(
    home: Home, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(LocalIOError):
        inbox.begin(FP, TID, entry())
    monkeypatch.undo()
    assert inbox.partials() == []
    assert on_disk(home) == []


# --- a damaged index --------------------------------------------------------------------------------------------------


def everything(home: Home) -> tuple[list[Item], list[Item]]:
    """What a command reads after the daemon has started; items, partial items."""
    with Inbox.open(home) as inbox:
        inbox.recover(NOW)
        return inbox.items(), inbox.partials()


@pytest.mark.attack("K03")
def test_a_damaged_index_is_refused_or_read_and_no_payload_goes_with_it(home: Home) -> None:
    with Inbox.open(home, clock=SetClock()) as inbox:
        receive(inbox)
        stop(inbox, b"u" * 16)
    (item,), (begun,) = whole = everything(home)
    index, generator = home.inbox / "index.db", random.Random(5)
    content = index.read_bytes()
    # Where structure is, where rows are (a page is filled from its end), and anywhere.
    places = [page + at for page in range(0, len(content), 4096) for at in (*range(12), *range(4036, 4096))]
    refused = 0
    for place in places + generator.sample(range(len(content)), 100):
        damaged = bytearray(content)
        damaged[place] ^= generator.choice([1, 128, 255])
        index.write_bytes(damaged)
        try:
            items, partials = everything(home)
        except (LocalIOError, VersionMismatch) as error:
            assert error.detail in {"damaged", "newer", "io"}, error
            refused += 1
        else:
            assert [(found.id, found.path) for found in items] == [(item.id, item.path)]
            # Where the time of its beginning is what was damaged, it may count as old.
            assert [(found.id, found.path) for found in partials] in ([(begun.id, begun.path)], [])
            assert begun.path.exists() == bool(partials)
        assert item.path.read_bytes() == b"hello"
        begun.path.touch(0o600)
        for suffix in ("-wal", "-shm"):
            Path(f"{index}{suffix}").unlink(missing_ok=True)
    assert refused > 100
    index.write_bytes(content)
    begun.path.write_bytes(b"half")
    assert everything(home) == whole


@pytest.mark.attack("K03", "F02")
@pytest.mark.parametrize("table", ["items", "partials"])
@pytest.mark.parametrize("value", ["'../../role'", "x'00'", "7", "NULL", "''", "'0123456789ABCDEF'"])
def test_an_id_that_is_none_names_no_file(home: Home, inbox: Inbox, table: str, value: str) -> None:
    receive(inbox)
    stop(inbox, b"u" * 16)
    before = on_disk(home)
    raw = sqlite3.connect(home.inbox / "index.db", isolation_level=None)
    raw.execute(f"UPDATE {table} SET id = {value}")
    raw.close()
    reads: list[Callable[[], object]] = [lambda: inbox.recover(NOW)]
    if table == "items":
        reads += [inbox.items, lambda: inbox.remove("../../role") or inbox.items()]
    else:
        reads += [
            inbox.partials, lambda: inbox.begin(FP, b"u" * 16, entry()),
            lambda: inbox.remove("../../role") or inbox.partials(),
        ]
    for read in reads:
        with pytest.raises(LocalIOError, match="damaged"):
            read()
    assert on_disk(home) == before
    assert home.exists()


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.mark.attack("D16")
@pytest.mark.root
def test_a_payload_that_does_not_fit_is_no_space_and_nothing_is_visible(small_disk: Callable[[int], Path]) -> None:
    home = Home.resolve("client", str(small_disk(1_000_000))).prepare()
    with Inbox.open(home) as inbox:
        partial = inbox.begin(FP, TID, entry())
        for _ in range(20):
            partial.write(bytes(10_000))
        with pytest.raises(LocalIOError) as caught:
            partial.write(bytes(2_000_000))
        assert (caught.value.code, caught.value.detail) == (33, "no-space")
        partial.close(discard=True)
        assert inbox.items() == []
        assert inbox.done(FP, TID) is None
        assert on_disk(home) == []
        assert inbox.free_bytes() > 100_000
        receive(inbox)
        assert len(inbox.items()) == 1


@pytest.mark.attack("D16")
@pytest.mark.root
def test_a_disk_full_at_the_commit_is_no_space_and_nothing_is_visible(small_disk: Callable[[int], Path]) -> None:
    home = Home.resolve("client", str(small_disk(1_000_000))).prepare()
    with Inbox.open(home) as inbox:
        partial = inbox.begin(FP, TID, entry())
        partial.write(b"abc")
        with pytest.raises(OSError, match="No space"):
            (home.data / "filler").write_bytes(bytes(2_000_000))
        with pytest.raises(LocalIOError) as caught:
            inbox.commit(partial, b"d" * 32, bytes(20_000), NOW)
        assert caught.value.detail == "no-space"
        partial.close(discard=True)
        assert inbox.items() == []
        assert inbox.done(FP, TID) is None
        assert on_disk(home) == []
        (home.data / "filler").unlink()
        receive(inbox)
        assert len(inbox.items()) == 1


@pytest.mark.attack("D16")
@pytest.mark.root
def test_saving_to_a_full_disk_is_no_space_and_leaves_the_item_and_no_file(
    inbox: Inbox, small_disk: Callable[[int], Path]
) -> None:
    target = small_disk(100_000)
    item = receive(inbox, bytes(200_000))
    with pytest.raises(LocalIOError) as caught:
        save_item(item, target / "a.txt")
    assert caught.value.detail == "no-space"
    assert list(target.iterdir()) == []
    assert inbox.items() == [item]


@pytest.mark.attack("D16")
def test_a_limit_on_the_size_of_files_is_no_space(inbox: Inbox, home: Home) -> None:
    partial = inbox.begin(FP, TID, entry())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(LocalIOError) as caught:
            partial.write(bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.detail == "no-space"
    partial.close(discard=True)
    assert on_disk(home) == []


# --- leaving ----------------------------------------------------------------------------------------------------------


def take(inbox: Inbox, item: Item) -> Claim:
    claim = inbox.take(item.id)
    assert claim is not None
    return claim


def test_an_item_is_taken_by_one_and_leaves_when_that_one_is_done(home: Home, inbox: Inbox) -> None:
    item = receive(inbox)
    with Inbox.open(home) as other:
        with take(inbox, item) as claim, claim.open() as payload:
            assert claim.item == item
            assert payload.read() == b"hello"
            assert other.take(item.id) is None
            assert other.items() == [item]
        with take(other, item) as claim:
            assert claim.finish()
            assert other.take(item.id) is None
        assert inbox.take(item.id) is None
    assert inbox.items() == []
    assert on_disk(home) == []


def test_the_oldest_item_that_matches_and_is_free_is_taken_first(home: Home, inbox: Inbox) -> None:
    first, second, other = (receive(inbox, tid=bytes([n]) * 16, what=entry(name)) for n, name in enumerate("aab"))
    with take(inbox, first), Inbox.open(home) as reader:
        claim = reader.take_first(lambda item: item.name == "a")
        assert claim is not None
        assert claim.item == second
        assert reader.take_first(lambda item: item.name == "a") is None
        claim.close()
        found = reader.take_first(lambda item: item.name == "b")
        assert found is not None
        assert found.item == other
        found.close()


def test_an_item_can_be_taken_as_soon_as_it_is_visible(
    inbox: Inbox, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A waiter that saw the inbox change looks once; the receiver may not have closed its file by then."""
    partial = inbox.begin(FP, TID, entry())
    taken: list[Claim | None] = []
    with Inbox.open(home) as waiter:
        monkeypatch.setattr(partial, "close", lambda discard: taken.append(waiter.take_first(lambda _: discard)))
        inbox.commit(partial, b"d" * 32, b"r", NOW)
        assert taken[0] is not None
        taken[0].close()
    monkeypatch.undo()
    partial.close(discard=True)


def test_an_item_that_is_finished_between_opening_and_locking_is_not_taken_again(
    home: Home, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, real = receive(inbox), fcntl.flock
    with Inbox.open(home) as other:

        def finished_first(descriptor: int, operation: int) -> None:
            monkeypatch.undo()
            with take(other, item) as claim:
                claim.finish()
            real(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", finished_first)
        assert inbox.take(item.id) is None


TAKE = """
import sys
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
with Inbox.open(Home.resolve("client", sys.argv[1])) as inbox:
    print("ready", flush=True)
    sys.stdin.readline()
    while (claim := inbox.take_first(lambda item: True)) is not None:
        with claim, claim.open() as payload:
            data = payload.read().decode()
            if claim.finish():
                print(data, flush=True)
"""


def test_processes_that_take_at_once_take_each_item_once(home: Home, inbox: Inbox) -> None:
    for number in range(60):
        receive(inbox, str(number).encode(), tid=number.to_bytes(16))
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE, str(home.data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(),
        )
        for _ in range(3)
    ]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
    for reader in readers:
        assert reader.stdin is not None
        reader.stdin.write("\n")
        reader.stdin.flush()
    taken = [line for reader in readers for line in reader.communicate(timeout=60)[0].split()]
    assert [reader.returncode for reader in readers] == [0, 0, 0]
    assert sorted(int(line) for line in taken) == list(range(60))
    assert inbox.items() == []


HOLD = """
import sys
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
claim = Inbox.open(Home.resolve("client", sys.argv[1])).take_first(lambda item: True)
print(claim.item.id, flush=True)
sys.stdin.read()
"""


def test_a_killed_reader_gives_its_item_back(home: Home, inbox: Inbox) -> None:
    item = receive(inbox)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home.data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment(),
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline().strip() == item.id
        assert inbox.take(item.id) is None
        reader.send_signal(signal.SIGKILL)
        reader.wait(20)
    take(inbox, item).close()


def test_a_child_that_reads_the_payload_does_not_keep_the_claim(inbox: Inbox) -> None:
    item = receive(inbox)
    claim = take(inbox, item)
    with claim.open() as payload, subprocess.Popen(
        ["cat", "-"], stdin=payload, stdout=subprocess.PIPE, env=environment()
    ) as child:
        claim.close()
        take(inbox, item).close()
        assert child.communicate(timeout=20)[0] == b"hello"


def test_an_item_whose_file_a_stranger_removed_is_told_and_can_be_removed(inbox: Inbox) -> None:
    item = receive(inbox)
    item.path.unlink()
    with pytest.raises(LocalIOError) as caught:
        inbox.take(item.id)
    assert (caught.value.detail, item.id in str(caught.value)) == ("missing", True)
    assert inbox.remove(item.id)
    assert not inbox.remove(item.id)
    assert inbox.take(item.id) is None


@pytest.mark.attack("F02")
@pytest.mark.parametrize("text", ["../index.db", "", "x", "../../keys.db"])
def test_what_is_no_id_is_neither_taken_nor_removed(home: Home, inbox: Inbox, text: str) -> None:
    receive(inbox)
    assert inbox.take(text) is None
    assert not inbox.remove(text)
    assert (home.inbox / "index.db").exists()
    assert len(inbox.items()) == 1


def test_an_item_is_found_by_any_unique_beginning_of_its_id(inbox: Inbox) -> None:
    items = [receive(inbox, tid=bytes([n]) * 16) for n in range(20)]
    for item in items:
        assert inbox.find(item.id) == item
        assert inbox.find(item.id[:12].upper()) == item
    with pytest.raises(UsageError) as caught:  # 20 items, 16 first digits
        next(inbox.find(digit) for digit in "0123456789abcdef" if sum(item.id[0] == digit for item in items) > 1)
    assert caught.value.detail == "ambiguous-id"
    for text in ("", "zz", "../files", "%", "0" * 17, "'", "\u0660"):
        with pytest.raises(UsageError) as unknown:
            inbox.find(text)
        assert unknown.value.detail == "unknown-id"


def test_the_version_grows_when_the_inbox_changes(home: Home, inbox: Inbox) -> None:
    seen = [inbox.version()]
    with Inbox.open(home) as other:
        item = receive(other)
        seen.append(inbox.version())
        inbox.remove(item.id)
        seen.append(inbox.version())
    assert seen == sorted(set(seen))
    assert inbox.version() == seen[-1]


def test_an_index_that_is_damaged_or_another_kind_of_file_is_refused(home: Home) -> None:
    Inbox.open(home).close()
    (home.inbox / "index.db").write_bytes(b"")
    with pytest.raises(LocalIOError, match="damaged"):
        Inbox.open(home)
    raw = sqlite3.connect(home.inbox / "index.db", isolation_level=None)
    raw.execute("CREATE TABLE items (id)")
    raw.close()
    with pytest.raises(LocalIOError, match="damaged"):
        Inbox.open(home)


def test_a_claimed_item_is_locked_for_the_life_of_the_claim_alone(inbox: Inbox) -> None:
    item = receive(inbox)
    with item.path.open("rb") as file:
        claim = take(inbox, item)
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        claim.close()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_the_stores_of_a_client_import_nothing_heavy() -> None:
    code = (
        "import sys, zkc.stores.inbox, zkc.stores.keystore;"
        "print({'asyncio', 'structlog', 'sqlalchemy', 'zmq', 'platformdirs', 'msgspec', 'ctypes'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout == "set()\n"
