"""What is saved is whole, under a free name, and takes nothing else over from the sender."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.support.items import FP, NOW, TID, entry, receive
from zkc.errors import LocalIOError, UsageError
from zkc.stores.inbox import Inbox
from zkc.stores.saving import Conflict, save_item


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_saved_item_has_its_bytes_and_its_time_and_nothing_else_is_left(inbox: Inbox, target: Path) -> None:
    item = receive(inbox, bytes(range(256)) * 10_000)
    assert save_item(item, target / "a.bin") == target / "a.bin"
    assert (target / "a.bin").read_bytes() == bytes(range(256)) * 10_000
    assert (target / "a.bin").stat().st_mtime_ns == 10**18
    assert [path.name for path in target.iterdir()] == ["a.bin"]
    assert inbox.items() == [item]


@pytest.mark.attack("F05")
def test_what_exists_is_kept_and_the_new_file_gets_a_number(inbox: Inbox, target: Path) -> None:
    item = receive(inbox)
    for name in ("a.txt", "a.tar.gz", "plain", ".hidden", "two.dots.txt"):
        (target / name).write_text("old")
        (target / f"{name}~").symlink_to("dangling")
        for number in (2, 3):
            stem, dot, suffix = name.partition(".tar") if ".tar" in name else name.rpartition(".")
            wanted = f"{stem} ({number}){dot}{suffix}" if stem else f"{name} ({number})"
            assert save_item(item, target / name, "rename") == target / wanted
            assert (target / wanted).read_text() == "hello"
        assert (target / name).read_text() == "old"


@pytest.mark.attack("F03", "F05")
@pytest.mark.parametrize("kind", ["dangling", "link", "folder", "fifo"])
@pytest.mark.parametrize("conflict", ["rename", "skip"])
def test_whatever_has_the_name_is_neither_followed_nor_replaced(
    inbox: Inbox, target: Path, tmp_path: Path, kind: str, conflict: Conflict
) -> None:
    place, victim = target / "a.txt", tmp_path / "victim"
    victim.write_text("victim")
    match kind:
        case "dangling":
            place.symlink_to(tmp_path / "nowhere")
        case "link":
            place.symlink_to(victim)
        case "folder":
            place.mkdir()
        case _:
            os.mkfifo(place)
    before = place.lstat()
    saved = save_item(receive(inbox), place, conflict)
    assert saved == (None if conflict == "skip" else target / "a (2).txt")
    assert os.path.samestat(before, place.lstat())
    assert victim.read_text() == "victim"
    assert not (tmp_path / "nowhere").exists()


def test_skip_leaves_what_exists_and_says_so(inbox: Inbox, target: Path) -> None:
    item = receive(inbox)
    assert save_item(item, target / "a.txt", "skip") == target / "a.txt"
    (target / "a.txt").write_text("old")
    assert save_item(item, target / "a.txt", "skip") is None
    assert contents(target) == {"a.txt": "old"}


@pytest.mark.attack("F05")
def test_a_name_that_appears_while_the_file_is_written_is_not_replaced(
    inbox: Inbox, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, real = receive(inbox), os.fsync

    def appear(descriptor: int) -> None:
        if not (target / "a.txt").exists():
            (target / "a.txt").write_text("theirs")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", appear)
    assert save_item(item, target / "a.txt", "skip") is None
    assert contents(target) == {"a.txt": "theirs"}
    (target / "a.txt").unlink()
    assert save_item(item, target / "a.txt", "rename") == target / "a (2).txt"


def test_overwrite_replaces_a_file_and_a_link_itself_but_no_folder(
    inbox: Inbox, target: Path, tmp_path: Path
) -> None:
    item = receive(inbox)
    (tmp_path / "victim").write_text("victim")
    (target / "file").write_text("old")
    (target / "link").symlink_to(tmp_path / "victim")
    (target / "folder").mkdir()
    assert save_item(item, target / "file", "overwrite") == target / "file"
    assert save_item(item, target / "link", "overwrite") == target / "link"
    assert not (target / "link").is_symlink()
    assert (tmp_path / "victim").read_text() == "victim"
    with pytest.raises(UsageError, match="is a folder"):
        save_item(item, target / "folder", "overwrite")
    assert sorted(path.name for path in target.iterdir()) == ["file", "folder", "link"]


@pytest.mark.attack("F05")
@pytest.mark.parametrize(
    ("sent", "umask", "saved"),
    [
        (0o644, 0o022, 0o644), (0o600, 0o022, 0o600), (0o755, 0o022, 0o755), (0o755, 0o077, 0o700),
        (0o777, 0o027, 0o750), (0o666, 0o002, 0o664), (0o440, 0o022, 0o440), (0o700, 0o022, 0o700),
        (0o4755, 0o022, 0o755), (0o6711, 0o022, 0o711), (0o1777, 0o022, 0o755), (0o7777, 0o000, 0o777),
        (0o077, 0o022, 0o000), (0o644, 0o777, 0o600),
    ],
)
def test_the_owner_gets_the_bits_as_sent_and_the_others_of_theirs_what_the_umask_leaves(
    inbox: Inbox, target: Path, sent: int, umask: int, saved: int
) -> None:
    item = receive(inbox, what=entry(mode=sent))
    before = os.umask(umask)
    try:
        assert save_item(item, target / "a") is not None
    finally:
        os.umask(before)
    assert stat.S_IMODE((target / "a").stat().st_mode) == saved
    assert (target / "a").stat().st_uid == os.geteuid()


@pytest.mark.attack("F05")
@pytest.mark.parametrize("kind", ["stream", "message"])
def test_what_was_no_file_is_saved_as_a_new_file_of_now(inbox: Inbox, target: Path, kind: str) -> None:
    item = receive(inbox, what=entry(mode=0o7777, kind=kind))
    before = os.umask(0o022)
    try:
        save_item(item, target / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((target / "a").stat().st_mode) == 0o644
    assert (target / "a").stat().st_mtime_ns > 10**18


@pytest.mark.parametrize("mtime_ns", [2**63 - 1, 2**64])
def test_a_time_that_no_file_can_have_keeps_nobody_from_saving(inbox: Inbox, target: Path, mtime_ns: int) -> None:
    partial = inbox.begin(FP, TID, entry(mtime_ns=min(mtime_ns, 2**63 - 1)))
    item = inbox.commit(partial, b"d" * 32, b"r", NOW)
    assert save_item(item, target / "a") == target / "a"


def test_a_numbered_name_is_cut_to_what_a_file_system_holds(inbox: Inbox, target: Path) -> None:
    item = receive(inbox)
    for name in ("x" * 251 + ".txt", "\u00e4" * 125 + ".txt", "y" * 255, "s." + "x" * 253, os.fsdecode(b"\xff" * 255)):
        assert save_item(item, target / name) == target / name
        saved = save_item(item, target / name)
        assert saved is not None
        assert " (2)" in saved.name
        assert len(os.fsencode(saved.name)) <= 255
        assert saved.suffix == Path(name).suffix or len(Path(name).suffix) > 32 or not Path(name).suffix


@pytest.mark.parametrize("place", ["missing/a.txt", "file/a.txt"])
def test_a_folder_that_is_none_is_told_in_one_line(inbox: Inbox, target: Path, place: str) -> None:
    (target / "file").touch()
    with pytest.raises(LocalIOError) as caught:
        save_item(receive(inbox), target / place)
    assert str(target) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("place", ["/", ".", ".."])
def test_a_destination_without_a_name_is_a_usage_error(inbox: Inbox, place: str) -> None:
    with pytest.raises(UsageError):
        save_item(receive(inbox), Path(place))


def test_a_payload_that_lost_bytes_is_not_saved(inbox: Inbox, target: Path) -> None:
    item = receive(inbox)
    item.path.write_bytes(b"hell")
    with pytest.raises(LocalIOError) as caught:
        save_item(item, target / "a")
    assert caught.value.detail == "damaged"
    assert contents(target) == {}


