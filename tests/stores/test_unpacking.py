"""A tree that is saved is as it was sent, whole, in the place that was named, and nowhere else."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from tests.support.items import entry, receive
from tests.support.looking import tree
from tests.support.sources import read_on
from tests.support.trees import TIME, file, folder, link, looks, make_folder, stream
from tests.support.waiting import wait_until
from zkc.client.sources import source_of
from zkc.errors import LocalIOError, UsageError
from zkc.stores import files
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.items import Item
from zkc.stores.saving import save_item, save_together

_tids = count()


def arrived(inbox: Inbox, data: bytes, name: str = "many") -> Item:
    return receive(inbox, data, next(_tids).to_bytes(16, "big"), entry(name, kind="tree"))


def sent(inbox: Inbox, *paths: Path, name: str | None = None) -> Item:
    source, manifest = source_of(list(paths), name, "")
    with closing(source):
        return arrived(inbox, read_on(source), manifest.name)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    place = tmp_path / "target"
    place.mkdir()
    return place


def test_a_saved_folder_is_as_it_was_sent(inbox: Inbox, tmp_path: Path, target: Path) -> None:
    """Contents, permissions, times of files, folders and links, empty folders, names of any bytes, links as links."""
    place = make_folder(tmp_path / "many")
    item = sent(inbox, place)
    assert save_item(item, target / "here") == target / "here"
    assert looks(target / "here") == looks(place)
    assert os.listdir(target) == ["here"]
    sparse = (target / "here" / "sparse.img").stat()
    assert sparse.st_blocks * 512 < 1 << 20, "holes are holes"
    assert inbox.items() == [item]


@pytest.mark.attack("F05")
def test_permissions_are_taken_over_as_far_as_the_umask_grants_them(inbox: Inbox, target: Path) -> None:
    """Of group and others nothing that the owner has not; no setuid, which the listing cannot even say; a folder may be
    closed to all."""
    data = stream(
        folder(0, "", 0o777), file(1, "all", mode=0o777), file(1, "none", mode=0o077), folder(1, "shut", 0o000),
        file(2, "in"), folder(1, "w", 0o300), file(1, "x", mode=0o500),
    )
    item = arrived(inbox, data)
    for umask, modes in (
        (0o022, (0o755, 0o755, 0, 0, 0o300, 0o500)), (0o077, (0o700, 0o700, 0, 0, 0o300, 0o500)),
        (0o277, (0o700, 0o700, 0, 0, 0o300, 0o500)),
    ):
        before = os.umask(umask)
        try:
            place = save_item(item, target / "many", "overwrite")
        finally:
            os.umask(before)
        assert place is not None
        found = [os.lstat(place / name).st_mode & 0o7777 for name in (".", "all", "none", "shut", "w", "x")]
        assert found == list(modes), oct(umask)
        assert os.listdir(target) == ["many"], "a folder that was shut is replaced too"


@pytest.mark.attack("F03", "F04", "F12")
def test_links_stay_links_and_nothing_goes_through_them(inbox: Inbox, tmp_path: Path, target: Path) -> None:
    """Out of the tree, absolute, to a folder beside: kept as they were sent, and never followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    data = stream(
        folder(0, ""), link(1, "abs", str(outside)), link(1, "etc", "/etc"), folder(1, "sub"), link(2, "up", "../.."),
        file(2, "x", 1), link(1, "to-sub", "sub"), contents=b"x",
    )
    place = save_item(arrived(inbox, data), target / "many")
    assert place is not None
    assert [os.readlink(place / name) for name in ("abs", "etc", "sub/up", "to-sub")] == [
        str(outside), "/etc", "../..", "sub",
    ]
    assert os.lstat(place / "abs").st_mtime_ns == place.joinpath("sub").stat().st_mtime_ns == TIME
    assert os.listdir(outside) == []


@pytest.mark.parametrize("kind", ["folder", "full", "file", "link", "dangling"])
def test_what_stands_there_follows_the_conflict(inbox: Inbox, target: Path, tmp_path: Path, kind: str) -> None:
    """``rename`` and ``skip`` touch nothing; ``overwrite`` replaces it as a whole, and merges nothing."""
    item = arrived(inbox, stream(folder(0, ""), file(1, "new", 1), contents=b"x"))
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").touch()
    match kind:
        case "folder":
            (target / "many").mkdir()
        case "full":
            (target / "many" / "deep" / "er").mkdir(parents=True)
            (target / "many" / "deep" / "old").write_text("old")
            (target / "many" / "link").symlink_to(victim)
        case "file":
            (target / "many").write_text("old")
        case "link":
            (target / "many").symlink_to(victim)
        case _:
            (target / "many").symlink_to("nowhere")
    before = tree(target)
    assert save_item(item, target / "many", "skip") is None
    assert tree(target) == before
    assert save_item(item, target / "many", "rename") == target / "many (2)"
    assert os.listdir(target / "many (2)") == ["new"]
    shutil.rmtree(target / "many (2)")
    assert tree(target) == before
    assert save_item(item, target / "many", "overwrite") == target / "many"
    assert sorted(tree(target)) == ["many", "many/new"]
    assert not (target / "many").is_symlink()
    assert os.listdir(victim) == ["kept"]


def test_several_paths_go_into_a_folder_under_their_own_names(inbox: Inbox, target: Path, tmp_path: Path) -> None:
    """Or, where a place is named for them, become a folder there."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    place = make_folder(tmp_path / "many")
    place.chmod(0o555)
    item = sent(inbox, tmp_path / "b.txt", place, tmp_path / "a.txt")
    saved = save_together(item, target)
    assert saved == [target / name for name in ("a.txt", "b.txt", "many")]
    assert looks(target / "many") == looks(place)
    assert sorted(os.listdir(target)) == ["a.txt", "b.txt", "many"]
    assert save_item(item, target / "all") == target / "all"
    assert sorted(os.listdir(target / "all")) == ["a.txt", "b.txt", "many"]


def test_several_paths_are_saved_all_or_none(inbox: Inbox, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that exists: all are skipped, or it alone gets a number. One that cannot be placed: the others go back."""
    item = arrived(inbox, stream(file(0, "a", 1), folder(0, "b"), file(1, "x"), file(0, "c"), contents=b"x"))
    (target / "b").mkdir()
    (target / "b" / "old").touch()
    assert save_together(item, target, "skip") is None
    assert os.listdir(target) == ["b"]
    assert save_together(item, target) == [target / "a", target / "b (2)", target / "c"]
    assert save_together(item, target, "overwrite") == [target / "a", target / "b", target / "c"]
    assert os.listdir(target / "b") == ["x"]
    for name in ("a", "c", "b (2)"):
        (shutil.rmtree if name == "b (2)" else os.unlink)(target / name)
    (target / "a").write_text("old")
    monkeypatch.setattr("zkc.stores.unpacking.NUMBERS_MAX", 1)
    before = tree(target)
    with pytest.raises(LocalIOError, match="numbered names"):
        save_together(item, target)
    (target / "a").unlink()
    with pytest.raises(LocalIOError, match="numbered names"):
        save_together(item, target)
    before.pop("a")
    assert tree(target) == before, "a was placed, b could not be, so a went back"


def test_a_file_system_without_renameat2_serves_too(
    inbox: Inbox, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS and others: names are taken and exchanged in steps, and what stands there is kept all the same."""

    def unknown(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(files, "_renameat2", unknown)
    item = arrived(inbox, stream(folder(0, ""), file(1, "new")))
    for conflict, wanted in (("rename", "many"), ("rename", "many (2)"), ("overwrite", "many")):
        assert save_item(item, target / "many", conflict) == target / wanted  # type: ignore[arg-type]
    both = arrived(inbox, stream(file(0, "a"), folder(0, "many")))
    assert save_together(both, target) == [target / "a", target / "many (3)"]
    assert save_together(both, target, "overwrite") == [target / "a", target / "many"]
    assert sorted(tree(target)) == ["a", "many", "many (2)", "many (2)/new", "many (3)"]


@pytest.mark.attack("F01", "F05", "F08")
def test_names_at_the_top_are_made_safe_and_stay_apart(inbox: Inbox, target: Path) -> None:
    """A dot gets its underscore there and not below; two names that become one get numbers."""
    data = stream(
        folder(0, ".ssh"), file(1, ".dot"), file(0, "CON"), file(0, "_.ssh"), file(0, "\x1b[2J"),
    )
    entries = stream(file(0, "\x1b[2J"), folder(0, ".ssh"), file(1, ".dot"), file(0, "_.ssh"), file(0, "CON"))
    with pytest.raises(LocalIOError, match="not as it arrived"):
        save_together(arrived(inbox, data), target)
    assert os.listdir(target) == []
    saved = save_together(arrived(inbox, entries), target)
    assert saved is not None
    assert [path.name for path in saved] == ["_[2J", "_.ssh", "_ (2).ssh", "_CON"]
    assert os.listdir(target / "_.ssh") == [".dot"]


def test_one_sparse_file_is_saved_as_the_file_that_it_is(inbox: Inbox, target: Path) -> None:
    """Under the name that it gets, with its holes; it replaces a file when asked, and never a folder."""
    item = arrived(inbox, stream(file(0, "", 1 << 40, [1 << 39, 4]), contents=b"data"), "disk.img")
    assert save_item(item, target / "disk.img") == target / "disk.img"
    status = (target / "disk.img").stat()
    assert (status.st_size, status.st_mtime_ns, status.st_mode & 0o777) == (1 << 40, TIME, 0o644)
    assert status.st_blocks * 512 < 1 << 20
    assert save_item(item, target / "disk.img") == target / "disk (2).img"
    assert save_item(item, target / "disk.img", "overwrite") == target / "disk.img"
    (target / "folder").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        save_item(item, target / "folder", "overwrite")
    assert sorted(os.listdir(target)) == ["disk (2).img", "disk.img", "folder"]


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_payload_that_was_damaged_makes_nothing(inbox: Inbox, target: Path) -> None:
    """Cut off, or its listing changed."""
    data = stream(folder(0, ""), file(1, "a", 5), contents=b"hello")
    for damage in (data[:-1], data[:20], data.replace(b"a", b"/")):
        item = arrived(inbox, data)
        item.path.write_bytes(damage)
        with pytest.raises(LocalIOError) as told:
            save_item(item, target / "many")
        assert told.value.detail == "damaged"
        assert os.listdir(target) == []


@pytest.mark.root
@pytest.mark.attack("F10")
def test_a_disk_that_is_full_leaves_nothing_there_and_the_item_here(
    inbox: Inbox, small_disk: Callable[[int], Path]
) -> None:
    target = small_disk(1 << 20)
    entries = folder(0, ""), file(1, "a", 10), file(1, "b", 1 << 21)
    item = arrived(inbox, stream(*entries, contents=b"x" * (10 + (1 << 21))))
    with pytest.raises(LocalIOError) as told:
        save_item(item, target / "many")
    assert told.value.detail == "no-space"
    assert os.listdir(target) == []
    assert inbox.items() == [item]


KILLED = """
import os, sys
from pathlib import Path
from zkc.stores import unpacking
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.saving import save_item
when = getattr(unpacking, sys.argv[3])
def held(*told, **more):
    Path(sys.argv[2]).with_name("ready").touch()
    import signal
    signal.pause()
setattr(unpacking, sys.argv[3], held)
with Inbox.open(Home.resolve("client", sys.argv[1])) as inbox:
    save_item(inbox.items()[0], Path(sys.argv[2]))
"""


@pytest.mark.attack("P03")
@pytest.mark.parametrize("where", ["_write_at", "_make_links", "_place"])
def test_killed_anywhere_nothing_is_half_there_and_the_next_run_clears_up(
    inbox: Inbox, home: Home, target: Path, where: str
) -> None:
    """While files are written, links made, or just before it gets its place; a folder that is shut stands in no way."""
    item = arrived(
        inbox, stream(folder(0, ""), file(1, "a", 1), folder(1, "shut", 0), link(2, "l"), contents=b"x")
    )
    command = [sys.executable, "-c", KILLED, str(home.data), str(target / "many"), where]
    with subprocess.Popen(command) as running:
        wait_until((target / "ready").exists)
        running.send_signal(signal.SIGKILL)
    (target / "ready").unlink()
    (left,) = os.listdir(target)
    assert left.startswith(f".zkc-{item.id}.")
    (target / f".zkc-{item.id}.mine").mkdir()
    assert inbox.items() == [item]
    assert save_item(item, target / "many") == target / "many"
    assert sorted(os.listdir(target)) == [f".zkc-{item.id}.mine", "many"]
    assert sorted(os.listdir(target / "many")) == ["a", "shut"]


def test_what_another_process_saves_at_the_moment_is_left_to_it(inbox: Inbox, home: Home, target: Path) -> None:
    item = arrived(inbox, stream(folder(0, ""), file(1, "a", 1), contents=b"x"))
    command = [sys.executable, "-c", KILLED, str(home.data), str(target / "many"), "_place"]
    with subprocess.Popen(command) as running:
        try:
            wait_until((target / "ready").exists)
            assert save_item(item, target / "many") == target / "many"
            assert len([name for name in os.listdir(target) if name.startswith(".zkc-")]) == 1
        finally:
            running.kill()


# --- F04 -----------------------------------------------------------------------------------------------------------


SWAPPER = """
import os, sys
target, outside, names, rounds = sys.argv[1], sys.argv[2], [f"{n:03}" for n in range(50)], 0
end = int(sys.argv[3])
def quietly(call, *words):
    try:
        call(*words)
    except OSError:
        pass
print("ready", flush=True)
while rounds < end:
    for scratch in [name for name in os.listdir(target) if name.startswith(".zkc-")]:
        for name in names:
            at = f"{target}/{scratch}/{name}"
            quietly(os.rename, at, f"{target}/{scratch}/aside{rounds}")
            quietly(os.symlink, outside, at)
            quietly(os.unlink, at)
            rounds += 1
"""


@pytest.mark.attack("F03", "F04")
@pytest.mark.parametrize("rounds", [10_000, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_no_byte_goes_outside_however_often_folders_are_swapped_for_links(
    inbox: Inbox, target: Path, tmp_path: Path, rounds: int
) -> None:
    """Rounds of another process that swaps folders that are being filled for links out of the tree."""
    outside = tmp_path / "outside"
    outside.mkdir()
    names = [f"{number:03}" for number in range(50)]
    entries = [each for name in names for each in (folder(1, name), file(2, "f", 1))]
    item = arrived(inbox, stream(folder(0, ""), *entries, contents=b"x" * len(names)))
    failed = saved = 0
    command = [sys.executable, "-c", SWAPPER, target, outside, str(rounds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout is not None
        assert swapper.stdout.readline() == b"ready\n"
        while swapper.poll() is None:
            try:
                saved += save_item(item, target / "many", "overwrite") is not None
            except LocalIOError:
                failed += 1
    assert swapper.returncode == 0
    assert failed, "it was in the way"
    assert os.listdir(outside) == []


@pytest.mark.attack("F03", "F04")
@pytest.mark.parametrize("depth", [1, 2])
def test_a_folder_that_becomes_a_link_the_moment_it_is_made_is_not_entered(
    inbox: Inbox, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    """The race of the test above, won by the attacker every time."""
    outside = tmp_path / "outside"
    outside.mkdir()
    item = arrived(inbox, stream(folder(0, ""), folder(1, "a"), folder(2, "b"), file(3, "f", 1), contents=b"x"))
    make, made = os.mkdir, count()

    def swapped(path: str | bytes, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        make(path, mode, dir_fd=dir_fd)
        if next(made) == depth:
            os.rmdir(path, dir_fd=dir_fd)
            os.symlink(outside, os.fsdecode(path), dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", swapped)
    with pytest.raises(LocalIOError):
        save_item(item, target / "many")
    assert os.listdir(outside) == os.listdir(target) == []
