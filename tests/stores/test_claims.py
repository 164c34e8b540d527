"""An item is taken by one, once, and by nobody who does not finish."""

from __future__ import annotations

import fcntl
import signal
import sqlite3
import subprocess
import sys

import pytest

from tests.support.items import FP, NOW, TID, entry, on_disk, receive
from tests.support.program import environment
from zkc.errors import LocalIOError, UsageError
from zkc.stores.home import Home
from zkc.stores.inbox import Claim, Inbox
from zkc.stores.items import Item


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
        monkeypatch.setattr(partial, "let_go", lambda: taken.append(waiter.take_first(lambda _: True)))
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
