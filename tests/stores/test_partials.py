"""What arrived in part is listed apart, is no item, and stays for as long as somebody may want it."""

from __future__ import annotations

import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.items import DAY, FP, NOW, TID, XID, SetClock, entry, on_disk, receive, stop
from tests.support.program import environment
from zkc.constants import PARTIALS_PER_SENDER_MAX
from zkc.errors import LocalIOError, UsageError
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.items import Item
from zkc.stores.partials import PARTIAL_SECONDS
from zkc.stores.saving import save_item


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


def test_what_came_of_a_pipe_goes_once_nobody_has_written_it_for_a_while(home: Home, inbox: Inbox) -> None:
    """Counted from its end here, however long the pipe had been silent before. What is being received stays, and so do
    files: with those a later command can go on."""
    pipe = entry("stdin", kind="stream")
    file, given_up = stop(inbox), stop(inbox, b"u" * 16, what=pipe, sender_fp=b"g" * 32)
    running = inbox.begin(FP, b"v" * 16, pipe)
    os.utime(given_up.path, (NOW, NOW))
    os.utime(running.fileno(), (NOW, NOW))
    assert inbox.drop_pipes(NOW) == 0
    assert inbox.drop_pipes(NOW + 1) == 1
    assert [item.id for item in inbox.partials()] == [file.id, running.id]
    running.close(discard=False)
    assert inbox.drop_pipes(NOW + 1) == 0
    assert inbox.drop_pipes(time.time() + 1) == 1
    assert inbox.partials() == [file]
    assert on_disk(home) == [f"partial/{file.id}"]


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


# --- a delivery that goes on -----------------------------------------------------------------------------------------


def test_a_partial_item_goes_on_where_it_was(home: Home, inbox: Inbox) -> None:
    """With the same id, its bytes to be read again for the digest, and one item in the end."""
    stopped = stop(inbox, data=b"half")
    partial = inbox.resume(FP, TID)
    assert partial is not None
    assert (partial.id, partial.position, partial.entry.name) == (stopped.id, 4, stopped.name)
    assert (partial.read(0, 100), partial.read(2, 1), partial.read(4, 100)) == (b"half", b"l", b"")
    partial.write(b" and half")
    assert partial.position == 13
    item = inbox.commit(partial, b"d" * 32, b"receipt", NOW)
    assert item.path.read_bytes() == b"half and half"
    assert item.size == 13
    assert inbox.partials() == []
    assert on_disk(home) == [f"files/{item.id}"]


def test_only_the_same_delivery_of_the_same_sender_goes_on(inbox: Inbox) -> None:
    stop(inbox)
    assert inbox.resume(FP, b"another tid aaaa") is None
    assert inbox.resume(b"g" * 32, TID) is None
    assert (inbox.held_bytes(FP, b"another tid aaaa"), inbox.held_bytes(b"g" * 32, TID)) == (0, 0)
    assert inbox.held_bytes(FP, TID) == 4
    assert inbox.resume(FP, TID) is not None


def test_one_that_is_being_received_is_busy_and_stays(home: Home, inbox: Inbox) -> None:
    running = inbox.begin(FP, TID, entry())
    running.write(b"half")
    with Inbox.open(home) as other:
        with pytest.raises(LocalIOError) as caught:
            other.resume(FP, TID)
        assert caught.value.detail == "busy"
        running.write(b" and half")
        running.close(discard=False)
        again = other.resume(FP, TID)
        assert again is not None
        assert again.position == 13
        again.close(discard=False)


def test_a_resumed_partial_that_stops_again_stays_and_one_that_is_discarded_does_not(home: Home, inbox: Inbox) -> None:
    stop(inbox)
    for size in (5, 6, 7):
        partial = inbox.resume(FP, TID)
        assert partial is not None
        partial.write(b"x")
        partial.close(discard=False)
        assert [item.size for item in inbox.partials()] == [size]
    partial = inbox.resume(FP, TID)
    assert partial is not None
    partial.close(discard=True)
    assert inbox.partials() == []
    assert inbox.resume(FP, TID) is None
    assert on_disk(home) == []


def test_a_resumed_partial_says_what_its_delivery_says_of_it_now(inbox: Inbox) -> None:
    """A later handshake may name it otherwise; its xid is another."""
    stop(inbox)
    partial = inbox.resume(FP, TID)
    assert partial is not None
    partial.announce(entry("b.txt", note="new", xid=b"y" * 16, mode=0o600))
    (item,) = inbox.partials()
    assert (item.name, item.note, item.xid, item.mode, item.size) == ("b.txt", "new", b"y" * 16, 0o600, 4)
    done = inbox.commit(partial, b"d" * 32, b"receipt", NOW)
    assert (done.name, done.xid) == ("b.txt", b"y" * 16)


def test_a_resumed_partial_whose_file_is_gone_is_none(inbox: Inbox) -> None:
    stop(inbox).path.unlink()
    assert inbox.resume(FP, TID) is None


@pytest.mark.attack("L04")
def test_a_link_in_place_of_a_partial_item_is_not_gone_on_with(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    path = stop(inbox).path
    path.unlink()
    path.symlink_to(tmp_path / "victim")
    assert inbox.resume(FP, TID) is None
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_delivery_that_begins_anew_has_nothing_of_the_one_before(inbox: Inbox) -> None:
    """``fresh``: the sender says that it starts at the first byte."""
    old = stop(inbox)
    partial = inbox.begin(FP, TID, entry())
    assert (partial.position, partial.id != old.id) == (0, True)
    partial.close(discard=False)
    resumed = inbox.resume(FP, TID)
    assert resumed is not None
    assert (resumed.id, resumed.position) == (partial.id, 0)
    resumed.close(discard=True)
