"""What a later command finds of a delivery that has begun: its id, and the handshakes that a receipt must fit."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.env import SeededEntropy
from tests.support.items import DAY, TID, XID, SetClock
from tests.support.program import environment
from zkc.errors import LocalIOError
from zkc.stores.home import Home
from zkc.stores.receipts import save_receipt
from zkc.stores.under_way import KEPT_SECONDS, UnderWay, key_of, of_key, of_source, sweep, tid_of

KEY = key_of(b"source", b"bob", b"report.pdf")
OTHER = b"o" * 16
TH = b"h" * 32


def opened(home: Home, tid: bytes = TID, key: str = KEY, clock: SetClock | None = None) -> UnderWay:
    found = UnderWay.open(home, key, tid, clock or SetClock())
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch, clock: SetClock) -> None:
    """Files are as old as the system says: the clock of these tests begins there."""
    clock.now = os.stat("/proc/self").st_mtime


def test_a_delivery_that_was_left_is_found_with_its_handshakes(home: Home, clock: SetClock) -> None:
    first = opened(home, clock=clock)
    assert (first.tid, first.begun, first.tries) == (TID, False, set())
    first.add(XID, TH)
    first.add(OTHER, TH)
    first.close(forget=False)
    again = opened(home, b"another tid aaaa", clock=clock)
    assert (again.tid, again.begun, again.tries) == (TID, True, {XID + TH, OTHER + TH})
    again.close(forget=False)


def test_a_delivery_that_is_over_leaves_nothing(home: Home, clock: SetClock) -> None:
    first = opened(home, clock=clock)
    first.add(XID, TH)
    first.close(forget=True)
    assert not list((home.outbox / "under-way").iterdir())
    again = opened(home, OTHER, clock=clock)
    assert (again.tid, again.begun) == (OTHER, False)
    again.close(forget=True)


def test_one_process_at_a_time_has_a_delivery(home: Home, clock: SetClock) -> None:
    first = opened(home, clock=clock)
    assert UnderWay.open(home, KEY, OTHER, clock) is None
    assert opened(home, OTHER, key_of(b"another"), clock).tid == OTHER
    first.close(forget=False)
    assert opened(home, OTHER, clock=clock).tid == TID


def test_a_lock_on_a_file_that_was_forgotten_meanwhile_is_none(
    home: Home, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening it and locking it the other process has finished: such a lock would protect nothing."""
    first = opened(home, clock=clock)
    first.add(XID, TH)
    real = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if first.begun:
            first.close(forget=True)
            first.tries.clear()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    second = opened(home, OTHER, clock=clock)
    assert (second.tid, second.begun) == (OTHER, False)
    assert UnderWay.open(home, KEY, TID, clock) is None
    second.add(XID, TH)
    second.close(forget=False)
    assert opened(home, TID, clock=clock).tid == OTHER


@pytest.mark.attack("P03")
@pytest.mark.parametrize("cut", [1, 15, 16, 17, 47, 48, 63, 64, 65, 111])
def test_a_row_that_was_half_written_is_none(home: Home, clock: SetClock, cut: int) -> None:
    """Killed in the middle, or a disk that was full: what is whole counts, and more can be added."""
    first = opened(home, clock=clock)
    first.add(XID, TH)
    first.add(OTHER, TH)
    first.close(forget=False)
    path = home.outbox / "under-way" / KEY
    path.write_bytes(path.read_bytes()[:cut])
    again = opened(home, b"another tid aaaa", clock=clock)
    whole = [XID + TH, OTHER + TH][: max(cut - 16, 0) // 48]
    assert again.tid == (TID if cut >= 16 else b"another tid aaaa")
    assert again.tries == set(whole)
    again.add(b"n" * 16, TH)
    again.close(forget=False)
    last = opened(home, clock=clock)
    assert last.tries == {*whole, b"n" * 16 + TH}
    last.close(forget=False)


def test_what_a_killed_process_had_is_found(home: Home, clock: SetClock) -> None:
    code = (
        "import sys, os, signal\n"
        "from tests.stores.test_under_way import *\n"
        "home = Home.resolve('client', sys.argv[1])\n"
        "from zkc.env import SystemClock\n"
        "UnderWay.open(home, KEY, TID, SystemClock()).add(XID, TH)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(home.data.parent if home.data.name == "data" else home.data)],
        env=environment(), cwd=Path(__file__).parents[2], check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert opened(home, OTHER, clock=clock).tries == {XID + TH}


def test_it_is_kept_as_long_as_a_recipient_remembers_and_no_longer(home: Home, clock: SetClock) -> None:
    opened(home, clock=clock).close(forget=False)
    opened(home, key=key_of(b"newer"), clock=clock).close(forget=False)
    path = home.outbox / "under-way" / KEY
    os.utime(path, (clock.now - KEPT_SECONDS + DAY,) * 2)
    assert sweep(home, clock) == 0
    assert opened(home, OTHER, clock=clock).tid == TID
    os.utime(path, (clock.now - KEPT_SECONDS - 1,) * 2)
    assert sweep(home, clock) == 1
    assert [each.name for each in path.parent.iterdir()] == [key_of(b"newer")]
    opened(home, clock=clock).close(forget=False)
    os.utime(path, (clock.now - KEPT_SECONDS - 1,) * 2)
    assert opened(home, OTHER, clock=clock).tid == OTHER, "too old, and not swept yet"


def test_nothing_is_swept_where_nothing_ever_was(home: Home, clock: SetClock) -> None:
    assert sweep(home, clock) == 0
    assert not home.outbox.exists()


@pytest.mark.attack("L04")
def test_it_is_nobody_else_s_to_read_and_a_link_in_its_place_is_not_followed(
    home: Home, clock: SetClock, tmp_path: Path
) -> None:
    opened(home, clock=clock).close(forget=False)
    tid_of(home, "order 7", "bob", SeededEntropy())
    path = home.outbox / "under-way" / KEY
    assert path.stat().st_mode & 0o777 == (home.outbox / "secret").stat().st_mode & 0o777 == 0o600
    assert home.outbox.stat().st_mode & 0o077 == 0
    (tmp_path / "victim").write_bytes(b"precious")
    path.unlink()
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(LocalIOError):
        UnderWay.open(home, KEY, TID, clock)
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_key_has_one_id_for_each_recipient_in_a_home_and_another_in_another(home: Home, tmp_path: Path) -> None:
    other = Home.resolve("client", str(tmp_path / "other")).prepare()
    first = tid_of(home, "order 7", "bob", SeededEntropy(1))
    assert tid_of(home, "order 7", "bob", SeededEntropy(2)) == first
    assert len(first) == 16
    assert len({
        first, tid_of(home, "order 8", "bob", SeededEntropy()), tid_of(home, "order 7", "carol", SeededEntropy()),
        tid_of(home, "7", "border ", SeededEntropy()), tid_of(other, "order 7", "bob", SeededEntropy(9)),
    }) == 5


def test_fields_of_a_key_do_not_run_into_each_other() -> None:
    assert len({key_of(b"ab", b"c"), key_of(b"a", b"bc"), key_of(b"abc"), key_of(b"ab", b"c", b""), key_of()}) == 5
    assert all(len(key_of(what)) == 64 for what in (b"", b"/etc/passwd", b"../.."))


@pytest.mark.parametrize("call", ["flock", "fsync"])
def test_what_cannot_be_begun_holds_no_descriptor(
    home: Home, clock: SetClock, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    opened(home, key=key_of(b"the folder is there"), clock=clock).close(forget=True)

    def fail(*_: object) -> None:
        raise OSError(37, "no locks available")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(fcntl if call == "flock" else os, call, fail)
    with pytest.raises(LocalIOError):
        UnderWay.open(home, KEY, TID, clock)
    assert os.listdir("/proc/self/fd") == before


# --- a delivery that goes over to another key ------------------------------------------------------------------------


ONE, TWO = key_of(b"key", b"one"), key_of(b"key", b"two")


LAST = 10


class Killed(BaseException):
    pass


def command(home: Home, key: str | None, number: int, clock: SetClock) -> UnderWay:
    """The ``number``-th command that sends the source KEY: under that key, or none."""
    own = number.to_bytes(16, "big")
    if key is None:
        found = of_source(home, KEY, own, clock, adopts=True)
    else:
        found = of_key(home, key, KEY, own, own, clock, adopts=True)
    assert found is not None
    return found


@pytest.mark.attack("P03")
@pytest.mark.parametrize(
    ("first", "then"), [(ONE, TWO), (ONE, None), (None, TWO)], ids=["key-another", "key-none", "none-key"]
)
@pytest.mark.parametrize("turned", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("at", range(1, LAST + 1))
def test_killed_at_any_moment_a_delivery_belongs_to_one_command(
    home: Home, clock: SetClock, monkeypatch: pytest.MonkeyPatch, first: str | None, then: str | None, turned: bool,
    at: int,
) -> None:
    """The second one is killed at its ``at``-th call that changes anything, before it has sent a byte."""
    begun = command(home, first, 1, clock)
    begun.add(XID, TH)
    begun.close(forget=False)
    calls = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise Killed
            return real(*args, **named)

        return call

    with monkeypatch.context() as patch:
        for name in ("link", "rename", "unlink", "write", "fsync", "ftruncate"):
            patch.setattr(os, name, counted(getattr(os, name)))
        with suppress(Killed):
            command(home, then, 2, clock).close(forget=False)
    assert calls <= LAST, "each moment is one of these tests"
    owners = []
    order = (then, first) if turned else (first, then)
    for number, key in enumerate(order, 3):
        found = command(home, key, number, clock)
        owners.append(found.tid)
        assert found.tries == {XID + TH} or not found.begun
        save_receipt(home, found.tid, b"a receipt")
        found.close(forget=key is None, done=True)
    assert owners[0] == begun.tid, "whoever comes first goes on with it"
    assert owners[1] != begun.tid, "and the other one delivers for itself"
    for key, tid in zip(order, owners, strict=True):
        found = command(home, key, 9, clock)
        assert found.tid == (tid if key is not None else (9).to_bytes(16, "big")), "a key is remembered"
        found.close(forget=key is None)


def test_a_key_is_remembered_as_long_as_its_receipt_is_kept(home: Home, clock: SetClock) -> None:
    """Its id cannot be made from it once it has gone over from another command."""
    begun = command(home, None, 1, clock)
    begun.add(XID, TH)
    begun.close(forget=False)
    taken = command(home, TWO, 2, clock)
    receipt = save_receipt(home, taken.tid, b"a receipt")
    taken.close(forget=False, done=True)
    os.utime(home.outbox / "under-way" / TWO, (clock.now - KEPT_SECONDS - 1,) * 2)
    assert sweep(home, clock) == 0
    again = command(home, TWO, 3, clock)
    assert again.tid == begun.tid
    again.close(forget=False)
    receipt.unlink()
    assert sweep(home, clock) == 1


def test_where_there_are_no_hard_links_another_key_begins_anew(
    home: Home, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = command(home, None, 1, clock)
    begun.add(XID, TH)
    begun.close(forget=False)

    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    other = command(home, TWO, 2, clock)
    assert (other.tid, other.begun) == ((2).to_bytes(16, "big"), False)
    again = command(home, None, 3, clock)
    assert again.tid == begun.tid
    for each in (other, again):
        each.close(forget=False)


@pytest.mark.parametrize("call", ["link", "rename"])
def test_what_cannot_be_taken_over_holds_no_descriptor(
    home: Home, clock: SetClock, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    begun = command(home, None, 1, clock)
    begun.add(XID, TH)
    begun.close(forget=False)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "a bad disk")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(LocalIOError):
        command(home, TWO, 2, clock)
    assert os.listdir("/proc/self/fd") == before
