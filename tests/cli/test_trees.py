"""Files and folders between real processes: what arrives, where it goes, and what is told."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.looking import memory
from tests.support.program import PATIENCE, TOP
from tests.support.trees import looks, make_folder
from tests.support.waiting import wait_until
from zkc.api import ReceivedItem
from zkc.client.walking import Skipped
from zkc.constants import CHUNK, HOLES_MIN
from zkc.errors import UsageError
from zkc.testing import Fleet

MIB = 1 << 20
MEMORY = 150 * MIB
"""What no process may have."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob") as running:
        yield running


@pytest.fixture
def inbox(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, with bob's inbox empty before and after."""
    yield fleet
    for item in fleet.client("bob").items():
        fleet.client("bob")._inbox.remove(item.id)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "many")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def send(fleet: Fleet, *words: str | Path, code: int = 0) -> dict[str, Any]:
    """The last object of ``zkc send bob WORDS``."""
    done = fleet.zkc("alice", "send", "bob", *map(str, words), "--json")
    assert done.code == code, done
    return done.events[-1]


# --- as it was sent -------------------------------------------------------------------------------------------------


def test_a_folder_arrives_as_it_was_sent(inbox: Fleet, place: Path, out: Path) -> None:
    """One item, one receipt; saved as ``DIR/many``, or exactly where it is said."""
    told = send(inbox, place, "--note", "all of it")
    (item,) = inbox.zkc("bob", "inbox", "--json").events
    assert (item["name"], item["kind"], item["note"]) == ("many", "tree", "all of it")
    assert (item["bytes"], item["digest"]) == (told["bytes"], told["digest"])
    (saved,) = inbox.zkc("bob", "inbox", "save", item["id"], "-o", str(out / "exactly"), "--json").events
    assert saved["path"] == str(out / "exactly")
    (taken,) = inbox.zkc("bob", "recv", "-o", str(out), "--json").events
    assert taken["path"] == str(out / "many")
    assert looks(out / "many") == looks(out / "exactly") == looks(place)
    assert inbox.zkc("bob", "recv").code == 22, "it has left the inbox"


def test_without_o_a_folder_goes_into_the_current_one(inbox: Fleet, place: Path, out: Path) -> None:
    send(inbox, place, "--name", ".ssh")
    done = inbox.zkc("bob", "recv", cwd=out)
    assert (done.code, done.out) == (0, b"_.ssh\n")
    assert looks(out / "_.ssh") == looks(place)


def test_several_paths_are_one_item_and_lie_side_by_side(inbox: Fleet, place: Path, out: Path) -> None:
    """Each path is printed; with ``-o PATH`` they are in a folder of that name."""
    (place.parent / "a.txt").write_text("a")
    told = send(inbox, place.parent / "a.txt", f"{place}/")
    assert told["name"] == "a.txt and 1 more"
    done = inbox.zkc("bob", "recv", "--keep", "-o", f"{out}/")
    assert done.out == f"{out}/a.txt\n{out}/many\n".encode()
    assert looks(out / "many") == looks(place)
    done = inbox.zkc("bob", "recv", "--keep", "-o", f"{out}/", "--conflict", "skip", "--json")
    assert (done.code, [event["path"] for event in done.events]) == (0, [None])
    (event,) = inbox.zkc("bob", "recv", "-o", str(out / "both"), "--json").events
    assert event["path"] == str(out / "both")
    assert sorted(os.listdir(out / "both")) == ["a.txt", "many"]
    send(inbox, place.parent / "a.txt", place, "--name", "parcel")
    (event,) = inbox.zkc("bob", "recv", "--json", "-o", str(out)).events
    assert (event["name"], event["path"]) == ("parcel", str(out))
    assert event["paths"] == [str(out / "a (2).txt"), str(out / "many (2)")]


@pytest.mark.parametrize("conflict", ["rename", "overwrite", "skip"])
def test_a_folder_that_is_there_follows_the_conflict(inbox: Fleet, tmp_path: Path, out: Path, conflict: str) -> None:
    """``overwrite`` replaces it whole: it does not merge. Skipped, the item stays."""
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "new").touch()
    (out / "many").mkdir()
    (out / "many" / "old").touch()
    send(inbox, tmp_path / "many")
    assert inbox.zkc("bob", "recv", "-o", str(out), "--conflict", conflict).code == 0
    wanted = {
        "rename": {"many": ["old"], "many (2)": ["new"]}, "overwrite": {"many": ["new"]}, "skip": {"many": ["old"]},
    }
    assert {name: os.listdir(out / name) for name in os.listdir(out)} == wanted[conflict]
    assert len(inbox.client("bob").items()) == (conflict == "skip")


def test_as_bytes_a_folder_is_a_tar(inbox: Fleet, place: Path, out: Path) -> None:
    """``-o -``, and the stdin of ``--exec``, which may stop reading."""
    send(inbox, place)
    done = inbox.zkc("bob", "recv", "--keep", "-o", "-")
    subprocess.run(["tar", "x", "-C", out], input=done.out, check=True, capture_output=True)
    assert looks(out / "many") == looks(place)
    (out / "by-exec").mkdir()
    words = ("tar", "x", "-C", str(out / "by-exec"))
    assert inbox.zkc("bob", "recv", "--keep", "--exec", *words).code == 0
    assert looks(out / "by-exec" / "many") == looks(place)
    assert inbox.zkc("bob", "recv", "--keep", "--exec", "true").code == 0
    assert inbox.zkc("bob", "recv", "--keep", "--exec", "false").code == 33


def test_a_sparse_file_alone_is_a_file_everywhere(inbox: Fleet, tmp_path: Path, out: Path) -> None:
    """Without its holes on the way; with them where it is saved."""
    with (tmp_path / "disk.img").open("wb") as image:
        image.truncate(HOLES_MIN + MIB)
        image.seek(1000)
        image.write(b"data")
    assert send(inbox, tmp_path / "disk.img")["bytes"] < MIB
    (event,) = inbox.zkc("bob", "recv", "-o", str(out / "here.img"), "--json").events
    assert event["path"] == str(out / "here.img")
    with (out / "here.img").open("rb") as image:
        assert image.read(2000) == bytes(1000) + b"data" + bytes(996)
    assert (out / "here.img").stat().st_size == HOLES_MIN + MIB
    assert (out / "here.img").stat().st_blocks * 512 < MIB


def test_show_lists_what_is_in_it(inbox: Fleet, place: Path) -> None:
    """A line for each, escaped; with --json an object."""
    send(inbox, place)
    (item,) = inbox.client("bob").items()
    text = inbox.zkc("bob", "inbox", "show", item.id).out.decode()
    assert "lrwxrwxrwx               many/outside -> /etc\n" in text
    assert "-rwxr-xr-x           10  many/tool.sh\n" in text
    assert "many/a\\x0ab\\x1b[2J\n" in text
    assert "\x1b" not in text
    first, *entries = inbox.zkc("bob", "inbox", "show", item.id, "--json").events
    assert first["event"] == "inbox"
    assert {"v": 1, "event": "entry", "path": "many/tool.sh", "type": "file", "bytes": 10, "mode": "0755",
            "target": None} in entries
    assert len(entries) == len(looks(place))


# --- what is refused and what stays behind --------------------------------------------------------------------------


def test_words_that_exclude_each_other_are_a_usage_error(inbox: Fleet, place: Path) -> None:
    for words in (("-", str(place)), (str(place), "-"), ("-m", "text", str(place)), (str(place), str(place))):
        assert inbox.zkc("alice", "send", "bob", *words).code == 2
    assert send(inbox, place, "--exclude", "", code=2)["reason"] == "usage"
    assert send(inbox, "-m", "text", "--exclude", "*.o", code=2)["reason"] == "usage"


@pytest.mark.attack("F09")
def test_what_is_excluded_or_cannot_be_sent_stays_behind(inbox: Fleet, tmp_path: Path) -> None:
    """One notice for each special file, none for what was excluded."""
    place = tmp_path / "many"
    (place / "build" / "in").mkdir(parents=True)
    for name in ("build/in/x", "a.o", "a.c"):
        (place / name).touch()
    os.mkfifo(place / "fifo")
    os.mkfifo(place / "build" / "fifo")
    done = inbox.zkc("alice", "send", "bob", str(place), "--exclude", "*.o", "--exclude", "build/")
    assert done.code == 0
    assert done.err.count(b"skipped ") == 1
    assert f"skipped {place}/fifo: a FIFO cannot be sent".encode() in done.err
    with tarfile.open(fileobj=io.BytesIO(inbox.zkc("bob", "recv", "-o", "-").out)) as archive:
        assert archive.getnames() == ["many", "many/a.c"]


CHANGE = """
import os, sys
from zkc.client.trees import TreeSource
read, path = TreeSource.readinto, sys.argv.pop(1)
def late(source, into):
    with open(path, "ab") as file:
        file.write(b"more")
    return read(source, into)
TreeSource.readinto = late
from zkc.ui.cli.main import main
sys.exit(main())
"""


def test_a_file_that_changes_under_way_ends_it_and_nothing_arrives(inbox: Fleet, place: Path) -> None:
    command = [sys.executable, "-c", CHANGE, str(place / "big.bin"), "send", "bob", str(place), "--json"]
    done = subprocess.run(command, env=inbox.environment("alice"), capture_output=True, text=True, check=False)
    assert done.returncode == 33
    assert '"detail":"source-changed"' in done.stdout
    assert inbox.client("bob").items() == []


PAUSED = """
import sys
from pathlib import Path
from zkc.client.trees import TreeSource
fill, ready = TreeSource.readinto, Path(sys.argv.pop(1))
def paused(source, into):
    if source._position > 1 << 20 and not ready.exists():
        ready.touch()
        sys.stdin.read()
    return fill(source, into)
TreeSource.readinto = paused
from zkc.ui.cli.main import main
sys.exit(main())
"""


def test_a_link_that_is_lost_in_the_middle_costs_no_byte(tmp_path: Path, out: Path) -> None:
    """The recipient's daemon is killed and comes back within the sender's patience."""
    place = tmp_path / "many"
    for number in range(400):
        (place / f"{number % 7}").mkdir(parents=True, exist_ok=True)
        (place / f"{number % 7}" / f"{number}").write_bytes(os.urandom(10_000))
    with Fleet("alice", "bob") as fleet:
        ready = tmp_path / "ready"
        command = [sys.executable, "-c", PAUSED, str(ready), "send", "bob", str(place)]
        with subprocess.Popen(command, env=fleet.environment("alice"), stdin=subprocess.PIPE) as running:
            wait_until(ready.exists)
            fleet.program("bob").kill()
            fleet.start_daemon("bob")
            fleet.wait_linked("bob")
            running.communicate(timeout=PATIENCE)
        assert running.returncode == 0
        assert fleet.zkc("bob", "recv", "-o", str(out)).code == 0
    assert looks(out / "many") == looks(place)


HELD = """
import signal, sys
from pathlib import Path
from zkc.stores import unpacking
ready = Path(sys.argv.pop(1))
def held(*_):
    ready.touch()
    signal.pause()
unpacking._write_at = held
from zkc.ui.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_it_is_saved_leaves_nothing_there_and_the_item_in_the_inbox(
    inbox: Fleet, place: Path, out: Path, number: signal.Signals, code: int
) -> None:
    send(inbox, place)
    ready = place.parent / "ready"
    command = [sys.executable, "-c", HELD, str(ready), "recv", "-o", str(out)]
    with subprocess.Popen(command, env=inbox.environment("bob"), stderr=subprocess.PIPE) as running:
        wait_until(ready.exists)
        assert os.listdir(out) != []
        running.send_signal(number)
        running.communicate(timeout=PATIENCE)
    assert running.returncode == code
    assert os.listdir(out) == []
    assert len(inbox.client("bob").items()) == 1


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.attack("D15")
def test_files_of_every_size_around_a_chunk_and_a_sparse_one_of_100_gib(
    inbox: Fleet, tmp_path: Path, out: Path
) -> None:
    """0, 1, C-1, C, C+1, 2C: the same folder there, in bounded memory."""
    place = tmp_path / "sizes"
    place.mkdir()
    for size in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK):
        (place / f"{size}").write_bytes(os.urandom(size))
    with (place / "sparse").open("wb") as sparse:
        sparse.truncate(100 << 30)
        for at in (0, 50 << 30, (100 << 30) - 5):
            sparse.seek(at)
            sparse.write(b"there")
    assert send(inbox, place)["bytes"] < 8 * MIB
    assert inbox.zkc("bob", "recv", "-o", str(out)).code == 0
    assert looks(out / "sizes") == looks(place)
    with (out / "sizes" / "sparse").open("rb") as sparse:
        for at in (0, 50 << 30, (100 << 30) - 5):
            sparse.seek(at)
            assert sparse.read(5) == b"there"
    assert (out / "sizes" / "sparse").stat().st_blocks * 512 < MIB


PEAK = """
import sys
from pathlib import Path
from tests.support.looking import memory
from tests.support.program import PATIENCE, TOP
from zkc.ui.cli.main import main
where = Path(sys.argv.pop(1))
code = main()
import os
where.write_text(str(memory(os.getpid(), "VmHWM")))
sys.exit(code)
"""


@pytest.mark.attack("F10")
def test_holes_count_for_the_bound_of_a_recipient(tmp_path: Path) -> None:
    """What would be 70 MiB where it is read is refused where 1 MiB is the bound, though it is 4 bytes on the way."""
    with (tmp_path / "disk.img").open("wb") as image:
        image.truncate(70 * MIB)
        image.write(b"data")
    (tmp_path / "in").mkdir()
    (tmp_path / "disk.img").rename(tmp_path / "in" / "disk.img")
    with Fleet("alice", "bob", client={"inbox.max_bytes": "1M"}) as fleet:
        for path in ("in", "in/disk.img"):
            error = send(fleet, tmp_path / path, code=25)
            assert error["detail"] == "limit"
        (tmp_path / "in" / "disk.img").unlink()
        send(fleet, tmp_path / "in")


def peak(fleet: Fleet, name: str, where: Path, *words: str) -> int:
    """Bytes that the process of ``zkc WORDS`` had at most; it ends with 0."""
    env = fleet.environment(name) | {"PYTHONPATH": str(TOP)}
    subprocess.run([sys.executable, "-c", PEAK, where, *words], env=env, check=True, capture_output=True, timeout=120)
    return int(where.read_text())


@pytest.mark.attack("D15")
@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_very_many_small_files_need_little_memory_anywhere(
    inbox: Fleet, tmp_path: Path, out: Path, count: int
) -> None:
    """In one folder: at the sender, at the recipient's daemon, and where it is saved."""
    place = tmp_path / "tiny"
    place.mkdir()
    folder = os.open(place, os.O_RDONLY)
    for number in range(count):
        made = os.open(f"a file like many others {number}", os.O_CREAT | os.O_WRONLY, dir_fd=folder)
        os.write(made, b"%d" % number)
        os.close(made)
    os.close(folder)
    assert peak(inbox, "alice", tmp_path / "peak", "send", "bob", str(place)) < MEMORY
    assert memory(inbox.program("bob").process.pid, "VmHWM") < MEMORY
    assert peak(inbox, "bob", tmp_path / "peak", "recv", "-o", str(out)) < MEMORY
    assert sorted(os.listdir(out / "tiny")) == sorted(os.listdir(place))
    assert (out / "tiny" / "a file like many others 17777").read_text() == "17777"


# --- the API --------------------------------------------------------------------------------------------------------


def test_the_api_sends_and_saves_folders(inbox: Fleet, place: Path, out: Path) -> None:
    """A path, or a list of paths; what stays behind is told as an event."""
    os.mkfifo(place / "fifo")
    told: list[object] = []
    alice, bob = inbox.client("alice"), inbox.client("bob")
    alice.send("bob", place, on_event=told.append)
    assert [event.kind for event in told if isinstance(event, Skipped)] == ["FIFO"]
    alice.send("bob", [place / "tool.sh", str(place / "deep")], exclude=["bottom*"])
    (place / "fifo").unlink()
    with bob.receive(wait=30) as item:
        assert isinstance(item, ReceivedItem)
        with pytest.raises(UsageError):
            item.open()
        assert item.save(out / "many") == out / "many"
    assert set(looks(out / "many")) == set(looks(place))
    with bob.receive(wait=30) as item:
        assert item.save(out / "two") == out / "two"
    assert sorted(looks(out / "two")) == [".", "deep", "deep/er", "deep/er/est", "tool.sh"]
