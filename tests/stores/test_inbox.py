"""An item is in the inbox once, whole, and under a name of ours; and it is taken once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.items import DAY, FP, NOW, TID, XID, SetClock, entry, on_disk, receive, stop
from tests.support.program import environment, zkc
from zkc.errors import LocalIOError, VersionMismatch
from zkc.stores import files, localdb
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.items import COLUMNS, Item
from zkc.stores.receipts import save_receipt
from zkc.stores.saving import save_item

HOSTILE = [
    "../../escape", "/etc/passwd", "..", ".", "", "a/b", "~/.bashrc", ".ssh/authorized_keys", "C:x", "CON", "nul\0byte",
    "\x1b[31mred", "new\nline", "\u202etxt.exe", "x" * 5000, "-rf", "a\\..\\b", "%s{0}", "'; DROP TABLE items; --",
]


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


def test_what_nobody_has_looked_at_is_known_to_every_process_until_somebody_has(home: Home, inbox: Inbox) -> None:
    first, second = receive(inbox), receive(inbox, tid=b"2" * 16)
    with Inbox.open(home) as other:
        assert inbox.unseen() == {first.id, second.id}
        other.mark_seen(first.id)
        other.mark_seen(first.id)
        other.mark_seen("0" * 16)
        assert inbox.unseen() == {second.id}
        inbox.remove(first.id)
        inbox.remove(second.id)
        assert other.unseen() == frozenset()
    with contextlib.closing(sqlite3.connect(home.inbox / "index.db")) as raw:
        assert raw.execute("SELECT * FROM seen").fetchall() == []


@pytest.mark.parametrize("version", [1, 2])
def test_an_index_of_a_former_version_says_of_nothing_that_anybody_asked_for_it(
    home: Home, inbox: Inbox, version: int
) -> None:
    """Nor is anything of it new. What was there, what comes now, and what a program of that version still writes beside
    one of this."""
    old, begun = receive(inbox, b"old"), inbox.begin(FP, b"p" * 16, entry("half.bin"))
    begun.write(b"h")
    begun.close(discard=False)
    inbox.close()
    index = sqlite3.connect(home.inbox / "index.db", isolation_level=None)
    index.execute("DROP TABLE seen")
    for table in ("items", "partials") if version == 1 else ():
        for name in ("asked_by", "asker", "announced"):
            index.execute(f"ALTER TABLE {table} DROP COLUMN {name}")
    index.execute(f"PRAGMA user_version = {version}")
    index.close()
    with Inbox.open(home) as again:
        assert again.items() == [old]
        assert [item.asked_by for item in again.partials()] == [""]
        assert again.unseen() == frozenset()
        new = receive(again, tid=b"n" * 16, what=entry(asked_by="carol", asker=b"c" * 32))
        with contextlib.closing(sqlite3.connect(home.inbox / "index.db", isolation_level=None)) as index:
            same = ", ".join(name for name in COLUMNS if name not in {"id", "asked_by", "asker", "announced"})
            index.execute(
                f"INSERT INTO items (id, {same}) SELECT ?, {same} FROM items WHERE id = ?",
                ("0" * 16, old.id),
            )
        assert [(item.asked_by, item.asker) for item in again.items()] == [("", b""), ("carol", b"c" * 32), ("", b"")]
        assert again.items()[1] == new
        assert again.unseen() == {new.id, "0" * 16}


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
    # role; index.db, its side files and its spare room; a partial item; an item; a receipt
    assert sorted(stat.S_IMODE(mode) for mode in found if not stat.S_ISDIR(mode)) == [0o600] * 8
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

folder, first, last, apart = sys.argv[1], *map(int, sys.argv[2:])
HERE = ("inbox.py", "partials.py", "payloads.py", "items.py", "files.py", "localdb.py")

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

for number in range(first, last, apart):
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
@pytest.mark.parametrize("apart", [5, pytest.param(1, marks=pytest.mark.soak)])
def test_a_receiver_that_is_killed_at_any_line_leaves_one_whole_item_or_none(tmp_path: Path, apart: int) -> None:
    """The suite tries each fifth line."""
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path), "0", "2000", str(apart)], capture_output=True, text=True,
        check=True, env=environment(),
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
    assert len(outcomes) > 40
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


@pytest.mark.attack("P03")
@pytest.mark.parametrize("act", [os.rename, os.link], ids=["renamed", "with both names"])
def test_what_was_killed_before_it_was_recorded_is_a_partial_item_again(
    home: Home, inbox: Inbox, act: Callable[[Path, Path], None]
) -> None:
    stopped = stop(inbox)
    act(home.inbox / "partial" / stopped.id, home.inbox / "files" / stopped.id)
    assert inbox.recover(NOW) == 0
    assert on_disk(home) == [f"partial/{stopped.id}"]
    assert inbox.partials() == [stopped]


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
        partial.close(discard=False)
        assert inbox.items() == []
        assert inbox.done(FP, TID) is None
        assert on_disk(home) == [f"partial/{partial.id}"]
        (home.data / "filler").unlink()
        later = inbox.resume(FP, TID)
        assert later is not None
        assert inbox.commit(later, b"d" * 32, bytes(20_000), NOW).path.read_bytes() == b"abc"
        assert len(inbox.items()) == 1


@pytest.mark.attack("D16")
def test_an_index_that_another_holds_at_the_commit_costs_nothing_that_came(
    home: Home, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localdb, "PATIENT_SECONDS", 0.1)
    partial = inbox.begin(FP, TID, entry())
    partial.write(b"abc")
    with sqlite3.connect(home.inbox / "index.db", isolation_level=None) as raw:
        raw.execute("BEGIN IMMEDIATE")
        with pytest.raises(LocalIOError) as caught:
            inbox.commit(partial, b"d" * 32, b"r", NOW)
        raw.execute("ROLLBACK")
    raw.close()
    assert caught.value.detail == "busy"
    partial.close(discard=False)
    again = inbox.resume(FP, TID)
    assert again is not None
    assert inbox.commit(again, b"d" * 32, b"r", NOW).path.read_bytes() == b"abc"


@pytest.mark.attack("D16", "P03")
@pytest.mark.parametrize("recovered", [True, False])
def test_what_finds_no_way_back_from_a_commit_is_put_back_by_the_next_recovery_or_when_its_sender_comes(
    home: Home, inbox: Inbox, monkeypatch: pytest.MonkeyPatch, recovered: bool
) -> None:
    """A folder of a full disk may take no name."""
    monkeypatch.setattr(localdb, "PATIENT_SECONDS", 0.1)
    partial = inbox.begin(FP, TID, entry())
    partial.write(b"abc")

    def no_room(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with sqlite3.connect(home.inbox / "index.db", isolation_level=None) as raw:
        raw.execute("BEGIN IMMEDIATE")
        link = os.link
        monkeypatch.setattr(os, "link", lambda *names, **where: link(*names, **where) or forbid())

        def forbid() -> None:
            monkeypatch.setattr(os, "link", no_room)
            monkeypatch.setattr(os, "rename", no_room)

        with pytest.raises(LocalIOError):
            inbox.commit(partial, b"d" * 32, b"r", NOW)
        raw.execute("ROLLBACK")
    raw.close()
    monkeypatch.undo()
    partial.close(discard=False)
    assert inbox.items() == []
    assert on_disk(home) == [f"files/{partial.id}"]
    if recovered:
        assert inbox.recover(NOW) == 0
    again = inbox.resume(FP, TID)
    assert again is not None
    assert again.read(0, 9) == b"abc"
    assert inbox.commit(again, b"d" * 32, b"r", NOW).path.read_bytes() == b"abc"


@pytest.mark.attack("D16")
def test_after_an_error_of_the_index_that_recorded_nothing_a_file_goes_on_where_it_was(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gets the error cannot know what was recorded; who comes later looks."""
    partial = inbox.begin(FP, TID, entry())
    partial.write(b"abc")

    def fail(*_: object) -> None:
        raise LocalIOError("the index", detail="io")

    with monkeypatch.context() as patch:
        patch.setattr(Inbox, "_record", fail)
        with pytest.raises(LocalIOError):
            inbox.commit(partial, b"d" * 32, b"r", NOW)
    partial.close(discard=False)
    again = inbox.resume(FP, TID)
    assert again is not None
    assert inbox.commit(again, b"d" * 32, b"r", NOW).path.read_bytes() == b"abc"
    assert inbox.resume(FP, TID) is None


def test_what_a_failed_sync_left_is_read_from_the_disk_and_not_from_memory(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel shows what it could not write as if it had: once more, fsync would say that all is well."""
    dropped: list[tuple[int, ...]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *asked: dropped.append(asked))
    partial = inbox.begin(FP, TID, entry())
    partial.write(b"abc")

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(LocalIOError):
            inbox.commit(partial, b"d" * 32, b"r", NOW)
    assert dropped == [(partial.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)]
    partial.close(discard=True)


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


@pytest.mark.root
def test_an_item_can_be_removed_from_a_full_disk(small_disk: Callable[[int], Path]) -> None:
    """What makes room needs room itself: the item's own."""
    home = Home.resolve("client", str(small_disk(1_000_000))).prepare()
    with Inbox.open(home) as inbox:
        item, other = receive(inbox, bytes(100_000)), receive(inbox, b"another", tid=b"o" * 16)
        fill(home)
        with Inbox.open(home) as command:  # as `zkc inbox rm` beside a daemon
            assert command.remove(item.id)
        assert inbox.items() == [other]


def fill(home: Home) -> None:
    """Not a byte more fits on the disk of ``home``."""
    with (home.data / "filler").open("ab", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(4096)):
            pass


@pytest.mark.attack("D16")
@pytest.mark.root
def test_commands_see_and_make_room_on_a_full_disk_without_the_daemon(
    small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    """Each of them finds not a byte: others take whatever the one before has left free."""
    home = Home.resolve("client", str(small_disk(2_000_000))).prepare()
    with Inbox.open(home) as inbox:
        tiny, big, other = (receive(inbox, data, tid=data[:16]) for data in (b"t" * 16, b"b" * 500_000, b"o" * 16))
        part = stop(inbox)

    def run(*words: str) -> list[dict[str, Any]]:
        fill(home)
        done = zkc("--home", str(home.data), *words, "--json")
        assert done.code == 0, done
        return done.objects

    assert [each["id"] for each in run("inbox", "--partial")] == [tiny.id, big.id, other.id, part.id]
    assert [each["id"] for each in run("inbox", "rm", tiny.id)] == [tiny.id]
    assert run("recv", "-o", str(tmp_path / "taken"))[0]["id"] == big.id
    assert (tmp_path / "taken").read_bytes() == b"b" * 500_000
    assert [each["id"] for each in run("inbox", "rm", part.id, other.id)] == [part.id, other.id]
    assert run("inbox", "--partial") == []
    assert on_disk(home) == []


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


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_the_stores_of_a_client_import_nothing_heavy() -> None:
    code = (
        "import sys, zkc.stores.inbox, zkc.stores.keystore;"
        "print({'asyncio', 'structlog', 'sqlalchemy', 'zmq', 'platformdirs', 'msgspec', 'ctypes'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout == "set()\n"
