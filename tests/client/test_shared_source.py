"""Folders of a share as one stream, from an open descriptor: nothing that somebody swaps meanwhile leads out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.sources import read_on
from tests.support.trees import make_folder
from zkc.client.call import Call
from zkc.client.sources import FileSource, TreeSource, shared_source, source_of
from zkc.errors import LocalIOError, PolicyRefused, UsageError, ZkcError
from zkc.rules.trees import ListingReader
from zkc.stores.shares import Share, open_shared
from zkc.wire.messages import Manifest, TreeEntry, TreeFile, TreeFolder, TreeLink


@contextmanager
def opened(
    root: Path, path: str = "", exclude: Sequence[str] = (), on_folder: Callable[[], None] = lambda: None
) -> Iterator[tuple[FileSource | TreeSource, Manifest]]:
    descriptor, name = open_shared(Share("s", str(root), []), path)
    source, manifest = shared_source(
        Path(root, path), descriptor, name, "note", exclude, lambda _: None, on_folder
    )
    with closing(source):
        yield source, manifest


def whole(source: FileSource | TreeSource) -> bytes:
    data = read_on(source, 100_000)
    source.check()
    return data


def listed(data: bytes) -> list[TreeEntry]:
    return ListingReader(len(data)).feed(data)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """With a folder ``sub``, whose like outside has the same names, sizes and times."""
    outside = tmp_path / "outside"
    for folder, content in ((outside, b"secret"), (tmp_path / "root" / "sub", b"shared")):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(content)
        os.utime(folder / "file", (10**9, 10**9))
    return tmp_path / "root"


def test_it_is_what_the_owner_s_own_command_would_send(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "many")
    with opened(folder) as (source, manifest):
        own, same = source_of([folder], None, "note")
        with closing(own):
            assert manifest == same
            assert whole(source) == read_on(own, 100_000)
        source.seek(1000)
        rest = read_on(source, 77)
        source.seek(0)
        assert rest == read_on(source, 100_000)[1000:]


def test_of_one_file_and_with_something_left_out(root: Path) -> None:
    with opened(root, "sub/file") as (file, manifest):
        assert (manifest.kind, manifest.name, manifest.size, whole(file)) == ("file", "file", 6, b"shared")
    with opened(root, exclude=("file",)) as (tree, _):
        assert [type(each) for each in listed(whole(tree))] == [TreeFolder, TreeFolder]
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError, match="leaves nothing"), opened(root, "sub/file", ("f*",)):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.attack("F03")
def test_a_folder_that_was_opened_stays_the_one_that_is_sent(root: Path) -> None:
    """Its path leads elsewhere once it is open."""
    with opened(root, "sub") as (source, _):
        (root / "sub").rename(root / "aside")
        (root / "sub").symlink_to(root.parent / "outside")
        assert whole(source).endswith(b"shared")


@pytest.mark.attack("F03")
@pytest.mark.parametrize("swapped", ["sub", "sub/file"])
def test_what_becomes_a_link_once_it_is_listed_is_not_followed(root: Path, swapped: str) -> None:
    with opened(root) as (source, _):
        (root / swapped).rename(root / "aside")
        (root / swapped).symlink_to(root.parent / "outside" / swapped.removeprefix("sub").lstrip("/"))
        with pytest.raises(LocalIOError) as changed:
            read_on(source, 100_000)
    assert changed.value.detail == "source-changed"


@pytest.mark.attack("F03")
def test_a_link_that_is_swapped_in_and_out_during_walk_and_reading_leads_nowhere(root: Path) -> None:
    """As fast as one can. Sometimes it is listed as the link that it is, sometimes the folder is sent, never more."""
    folder, aside, over, seen = root / "sub", root / "aside", threading.Event(), set()

    def swap() -> None:
        while not over.is_set():
            folder.rename(aside)
            folder.symlink_to(root.parent / "outside")
            folder.unlink()
            aside.rename(folder)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for _ in range(1000):
            try:
                with opened(root) as (source, _):
                    data = whole(source)
            except (ZkcError, PolicyRefused):
                continue
            entries = listed(data)
            seen.add(b"shared" if any(isinstance(each, TreeFile) for each in entries) else b"")
            assert b"secret" not in data
            links = [each for each in entries if isinstance(each, TreeLink)]
            assert [each.target for each in links] in ([], [os.fsencode(root.parent / "outside")])
    finally:
        over.set()
        swapping.join()
    assert seen <= {b"shared", b""}


@pytest.mark.attack("F03")
def test_a_link_that_is_put_there_between_look_and_entry_is_not_entered(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk has seen a folder, and meets a link to one outside."""
    enter, swapped = os.open, []

    def swapping(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "sub" and not swapped:
            swapped.append(path)
            (root / "sub").rename(root.parent / "aside")
            (root / "sub").symlink_to(root.parent / "outside")
        return enter(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swapping)
    with pytest.raises(LocalIOError) as refused, opened(root):
        pass
    assert (refused.value.detail, swapped) == ("unreadable", ["sub"])


def test_a_walk_ends_with_what_its_call_was_told(root: Path) -> None:
    call, folders = Call(), []

    def check() -> None:
        folders.append(1)
        if len(folders) == 2:
            call.end(PolicyRefused("it is over", detail="withdrawn"))
            call.end()
        call.check()

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PolicyRefused, match="it is over"), opened(root, on_folder=check):
        pass
    assert len(folders) == 2
    assert len(os.listdir("/proc/self/fd")) == before
