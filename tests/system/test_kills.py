"""kill -9 of everything that takes part in a transfer, at any moment: the right bytes, once, and nothing left over."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from blake3 import blake3

from tests.support.held_daemon import Hold, Moment, held_daemon
from tests.support.looking import family, inbox_of, lives, log_of, payloads
from tests.support.waiting import DEADLINE, wait_until
from zkc.testing import Fleet

MIB: Final = 1 << 20
LONG: Final = 4 * DEADLINE
CONFIG: Final = {
    "transfer.listen": "tcp://127.0.0.1:0", "transfer.chunk": "64K", "transfer.patience": "60s", "log.level": "debug",
}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob", client=CONFIG) as fleet:
        yield fleet


@pytest.fixture(autouse=True)
def no_defect(fleet: Fleet) -> Iterator[None]:
    """Whatever happened: no traceback in any log, and the inbox is empty for the next test."""
    yield
    clean(fleet)


@pytest.fixture
def other_fleet() -> Iterator[Fleet]:
    """Beside ``fleet``: while the one waits for a program to start, the other goes on."""
    with Fleet("alice", "bob", client=CONFIG) as fleet:
        yield fleet
        clean(fleet)


def clean(fleet: Fleet) -> None:
    for name in ("alice", "bob", "coordinator"):
        assert not [event for event in log_of(fleet, name) if event["event"] == "defect" or "exception" in event]
    items, partials = inbox_of(fleet.home("bob"))
    for item in (*items, *partials):
        fleet.client("bob")._inbox.remove(item.id)


@contextlib.contextmanager
def closing(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """``process``, ended at last."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def sending(fleet: Fleet, *words: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """``zkc send bob`` by alice, running."""
    return closing(fleet.popen(
        "alice", "send", "bob", "--json", *words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ))


def ended(process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    """The events of a command that ended with 0."""
    out, err = process.communicate(timeout=LONG)
    assert process.returncode == 0, (process.returncode, out, err)
    events = [json.loads(line) for line in out.splitlines()]
    assert events[-1]["event"] == "delivered"
    return events


def delivered(fleet: Fleet, digest: bytes) -> None:
    """Once, with these bytes, and nothing beside it."""
    with fleet.client("bob").receive(wait=DEADLINE) as item, item.open() as payload:
        assert item.item.digest == digest
        whole = blake3()
        while piece := payload.read(MIB):
            whole.update(piece)
        assert whole.digest() == digest
        assert inbox_of(fleet.home("bob")) == ([item.item], [])
        assert payloads(fleet.home("bob")) == [item.item.id]
    assert inbox_of(fleet.home("bob")) == ([], [])
    # A recipient may still be about to close what its sender came back for.
    wait_until(lambda: payloads(fleet.home("bob")) == os.listdir(fleet.home("bob") / "inbox" / "partial") == [])


# --- at random moments ----------------------------------------------------------------------------------------------


VICTIMS: Final = {("sender",): 60, ("recipient",): 20, ("sender", "recipient"): 14, ("coordinator",): 6}
"""Who is killed together, and how often of a hundred times."""


LONG_MOMENTS: Final = {"bytes": 3, "clock": 2}
SHORT_MOMENTS: Final = {"bytes": 2, "clock": 2, "end": 1}
"""What decides when somebody is killed: that more has come, the time, or that all has come."""

STEP: Final = MIB // 8
"""At most so much more comes before a kill that waits for bytes."""


class Ordeal:
    """Files from alice to bob, each by the same command again and again, while what takes part in it is killed."""

    def __init__(self, fleet: Fleet, source: Path, kills: int, seed: int, moments: dict[str, int]) -> None:
        self._fleet = fleet
        self._source = source
        self._moments = moments
        self._inbox = fleet.home("bob") / "inbox"
        self._dice = random.Random(seed)
        self._size = 0
        self.left = kills
        self.killed: Counter[str] = Counter()
        self.files = 0
        self.resumed = 0
        """How often the recipient had more of it than ever before."""

    def one(self, size: int, *slowly: str) -> None:
        """A file of that size, to its end; ``slowly``: options for as long as there is somebody to kill."""
        self.files += 1
        digest = self._write(size)
        words = [str(self._source), "--id", f"file {self.files} of {self._source}", "--wait", "60s"]
        farthest = 0
        while True:
            here = self._partly()
            with sending(self._fleet, *words, *(slowly if self.left else ())) as process:
                events = told(process.communicate()[0]) if self._kill_around(process) else ended(process)
            positions = [event["resumed_from"] for event in events if event["event"] == "granted"]
            assert positions == sorted(positions)
            assert not positions or positions[0] >= here, "what was written is never sent again"
            self.resumed += max(positions, default=0) > farthest
            farthest = max(farthest, *positions, 0)
            if process.returncode == 0:
                break
        with sending(self._fleet, *words) as process:
            again = ended(process)[-1]
        assert (again["transfer"], again["digest"]) == (events[-1]["transfer"], f"blake3:{digest.hex()}")
        delivered(self._fleet, digest)

    def tell(self) -> None:
        """For who looks at it: shown by ``pytest -s``, and where something else fails."""
        sys.stderr.write(f"{dict(self.killed)} killed, {self.files} files, {self.resumed} times resumed farther on\n")

    def _write(self, size: int) -> bytes:
        """A new source, no two pieces of it alike; its digest."""
        self._size = size
        whole, piece = blake3(), self._dice.randbytes(MIB)
        with self._source.open("wb") as file:
            for start in range(0, size, MIB):
                part = (start.to_bytes(8, "big") + piece[8:])[: size - start]
                file.write(part)
                whole.update(part)
        return whole.digest()

    def _kill_around(self, sender: subprocess.Popen[bytes]) -> bool:
        """Whether ``sender`` was killed; False: it ends by itself."""
        while self.left and self._moment(sender):
            (who,) = self._dice.choices(list(VICTIMS), list(VICTIMS.values()))
            self.left = max(self.left - len(who), 0)
            if not self.left:
                # So that nobody waits for what goes out slowly.
                who = tuple({*who, "sender"})
            self.killed.update(who)
            for victim in who:
                self._kill(victim, sender)
            self._look()
            if "coordinator" in who:
                self._fleet.start_coordinator()
            if "recipient" in who:
                self._fleet.start_daemon("bob")
            if "sender" in who:
                return True
        return False

    def _kill(self, victim: str, sender: subprocess.Popen[bytes]) -> None:
        if victim == "sender":
            sender.kill()
            sender.wait()
        elif victim == "recipient":
            self._fleet.program("bob").kill()
        else:
            kill_coordinator(self._fleet)

    def _moment(self, sender: subprocess.Popen[bytes]) -> bool:
        """A random one has come, by the clock, by what has come, or by its end; False where ``sender`` has ended
        before."""
        (kind,) = self._dice.choices(list(self._moments), list(self._moments.values()))
        late = time.monotonic() + (self._dice.uniform(0, 0.6) if kind == "clock" else 1.0)
        size = self._partly() + self._dice.randrange(min(self._size, STEP))

        def comes() -> bool:
            if kind == "bytes":
                return self._partly() > size
            return time.monotonic() >= late or (kind == "end" and payloads(self._fleet.home("bob")) != [])

        wait_until(lambda: self._look() or comes() or sender.poll() is not None, LONG)
        return sender.poll() is None

    def _partly(self) -> int:
        """Bytes of what is partly at bob's."""
        return sum(sizes(self._inbox / "partial"))

    def _look(self) -> None:
        """What has the name of an item is never a part of one."""
        assert set(sizes(self._inbox / "files")) <= {self._size}


def sizes(folder: Path) -> list[int]:
    """Of the files in it, which may go meanwhile."""
    found = []
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            found.append((folder / name).stat().st_size)
    return found


def told(out: bytes) -> list[dict[str, Any]]:
    """The events of a command that was killed: its last line may be half written."""
    return [json.loads(line) for line in out.split(b"\n")[:-1]]


def kill_coordinator(fleet: Fleet) -> None:
    pids = family(fleet.coordinator.process.pid)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    fleet.coordinator.kill()
    wait_until(lambda: not any(lives(pid) for pid in pids))


@pytest.fixture
def seed() -> int:
    """Another one each time, shown with a failure; or that of `PYTEST_KILLS_SEED`."""
    seed = int(os.environ.get("PYTEST_KILLS_SEED", random.SystemRandom().randrange(1 << 32)))
    sys.stderr.write(f"PYTEST_KILLS_SEED={seed}\n")
    return seed


@pytest.mark.attack("D10", "P03")
@pytest.mark.parametrize(("long", "short"), [
    pytest.param(60, 40, id="hundred", marks=pytest.mark.timeout(600)),
    pytest.param(1000, 1000, id="thousand", marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
])
def test_transfers_outlive_kills_at_random_moments(
    fleet: Fleet, other_fleet: Fleet, tmp_path: Path, long: int, short: int, seed: int
) -> None:
    """One file and one command: it goes on from where it was each time, and is delivered once. Beside it short ones,
    in their handshakes, and around their ends, more often than in their middle."""
    over_long = Ordeal(fleet, tmp_path / "long.bin", long, seed, LONG_MOMENTS)
    over_short, dice = Ordeal(other_fleet, tmp_path / "short.bin", short, seed + 1, SHORT_MOMENTS), random.Random(seed)

    def endure_short() -> None:
        while over_short.left:
            over_short.one(dice.randint(MIB, 16 * MIB))

    with ThreadPoolExecutor(1) as beside:
        enduring = beside.submit(endure_short)
        while over_long.left:
            # More than goes out at this rate until the last kill; a machine on which it does gets another file.
            over_long.one(long * MIB, "--bwlimit", "1M")
        enduring.result()
    for ordeal in (over_long, over_short):
        ordeal.tell()
    assert over_long.resumed >= long // 4


# --- between the disk and the acknowledgement -----------------------------------------------------------------------


SMALL: Final = 1000
LARGE: Final = MIB


@contextlib.contextmanager
def killed_at(fleet: Fleet, folder: Path, moment: Moment, size: int, *words: str) -> Iterator[bytes]:
    """Inside the block bob's daemon stands still at that moment of a file, whose sender has just been killed: its
    command, or alice's daemon, which sends what is small. Gives the digest; the file is ``source`` in ``folder``.
    Afterwards bob's daemon is another one."""
    source, told_of = folder / "source", folder / "told"
    content = os.urandom(size)
    source.write_bytes(content)
    with held_daemon(fleet, "bob", Hold(moment, str(told_of))):
        with sending(fleet, *words, str(source)) as process:
            wait_until(told_of.exists)
            if size == SMALL:
                fleet.program("alice").kill()
                out, _ = process.communicate(timeout=DEADLINE)
                assert (process.returncode, told(out)[-1]["reason"]) == (31, "interrupted"), out
                fleet.start_daemon("alice")
        yield blake3(content).digest()


@pytest.mark.attack("P03", "D10")
@pytest.mark.parametrize("moment", ["synced", "renamed", "recorded"])
@pytest.mark.parametrize(
    ("size", "keyed"), [(LARGE, False), (LARGE, True), (SMALL, True)], ids=["file", "key", "small"]
)
def test_both_ends_killed_between_the_disk_and_the_acknowledgement_deliver_once(
    fleet: Fleet, tmp_path: Path, moment: Moment, size: int, keyed: bool
) -> None:
    words = ["--id", f"{moment} {size}"] if keyed else []
    with killed_at(fleet, tmp_path, moment, size, *words) as digest:
        assert len(inbox_of(fleet.home("bob"))[0]) == (moment == "recorded")
    with sending(fleet, *words, str(tmp_path / "source")) as process:
        events = ended(process)
    granted = [event["resumed_from"] for event in events if event["event"] == "granted"]
    held = 0 if size == SMALL else size
    assert granted == ([] if moment == "recorded" else [held]), "no byte of what is large is sent again"
    assert (events[-1]["bytes"], events[-1]["digest"]) == (size, f"blake3:{digest.hex()}")
    delivered(fleet, digest)


@pytest.mark.attack("P03", "D10")
@pytest.mark.parametrize("size", [LARGE, SMALL], ids=["file", "small"])
def test_a_sender_killed_before_the_acknowledgement_delivers_once(fleet: Fleet, tmp_path: Path, size: int) -> None:
    """Its recipient has not noticed when the same command comes: it answers with the receipt."""
    words = "--id", f"once {size}"
    with killed_at(fleet, tmp_path, "recorded", size, *words) as digest:
        (item,) = inbox_of(fleet.home("bob"))[0]
        with sending(fleet, *words, str(tmp_path / "source")) as process:
            events = ended(process)
        assert [event["event"] for event in events] == ["requested", "delivered"], "nothing is sent again"
        assert (events[-1]["bytes"], events[-1]["digest"]) == (size, f"blake3:{digest.hex()}")
        assert inbox_of(fleet.home("bob")) == ([item], [])
    delivered(fleet, digest)
