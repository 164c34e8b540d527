"""Folders and several paths as one stream: what is in it, from any byte on, and what is told where it cannot be."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.sources import read, read_on
from tests.support.trees import make_folder
from zkc.client.sources import TreeSource, source_of
from zkc.client.walking import Skipped
from zkc.constants import HOLES_MIN, RUNS_MAX, TREE_DEPTH_MAX
from zkc.errors import LocalIOError, UsageError, ZkcError
from zkc.rules.trees import ListingReader
from zkc.wire.listing import data_bytes
from zkc.wire.messages import Manifest, TreeEntry, TreeFile, TreeLink


def tree_of(*paths: Path, name: str | None = None, exclude: tuple[str, ...] = ()) -> tuple[TreeSource, Manifest]:
    source, manifest = source_of(list(paths), name, "", exclude=exclude)
    assert isinstance(source, TreeSource)
    return source, manifest


def whole(source: TreeSource, n: int = 100_000) -> bytes:
    data = read_on(source, n)
    source.check()
    return data


def listed(data: bytes) -> list[TreeEntry]:
    reader = ListingReader(len(data))
    return reader.feed(data)


def names(*paths: Path, exclude: tuple[str, ...] = ()) -> list[str]:
    source, _ = tree_of(*paths, exclude=exclude)
    with closing(source):
        return [os.fsdecode(entry.name) for entry in listed(whole(source))]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "many")


def test_a_folder_is_its_listing_and_the_contents_in_that_order(place: Path) -> None:
    """Judged as a recipient does; the size is known before, and the contents are those of the files."""
    source, manifest = tree_of(place)
    with closing(source):
        assert (manifest.kind, manifest.name, manifest.size) == ("tree", "many", source.tree.size)
        data = whole(source)
    assert len(data) == source.tree.size
    entries = listed(data)
    assert (entries[0].name, entries[0].depth) == (b"", 0)
    at = len(data) - sum(data_bytes(entry) for entry in entries if isinstance(entry, TreeFile))
    for entry in entries:
        if isinstance(entry, TreeFile) and entry.depth == 1:
            begin, at = at, at + data_bytes(entry)
            if entry.runs is None:
                assert data[begin:at] == (place / os.fsdecode(entry.name)).read_bytes()
        elif isinstance(entry, TreeFile):
            at += data_bytes(entry)
    links = {entry.name: entry.target for entry in entries if isinstance(entry, TreeLink)}
    assert links[b"outside"] == b"/etc"
    sparse = next(entry for entry in entries if entry.name == b"sparse.img")
    assert isinstance(sparse, TreeFile)
    assert sparse.size == 9 << 20
    assert data_bytes(sparse) < 1 << 20, "holes are not sent"


def test_it_says_which_file_a_byte_belongs_to_forwards_and_back(place: Path, tmp_path: Path) -> None:
    """For progress; the listing itself belongs to none."""
    (tmp_path / "more").write_bytes(b"more")
    source, _ = tree_of(place, tmp_path / "more")
    with closing(source):
        entries, size = listed(whole(source)), source.tree.size
        at = size - sum(data_bytes(entry) for entry in entries if isinstance(entry, TreeFile))
        expected, path = [(0, ("", 0, 0)), (at - 1, ("", 0, 0))], list[bytes]()
        for entry in entries:
            path[entry.depth :] = [entry.name]
            if isinstance(entry, TreeFile) and data_bytes(entry):
                name = os.fsdecode(b"/".join(path))
                total = data_bytes(entry)
                expected += [(at, (name, 0, total)), (at + total - 1, (name, total - 1, total))]
                at += total
        assert "many/sparse.img" in {name for _, (name, _, _) in expected}
        for each in (expected, reversed(expected)):
            assert all(source.entry_at(position) == told for position, told in each)
        _, done, total = source.entry_at(size)
        assert done == total


def test_at_the_end_it_is_at_the_last_file_and_at_no_folder_behind_it(tmp_path: Path) -> None:
    (tmp_path / "photos" / "z").mkdir(parents=True)
    (tmp_path / "photos" / "a.jpg").write_bytes(b"12345")
    source, _ = tree_of(tmp_path / "photos")
    with closing(source):
        assert source.entry_at(source.tree.size) == ("a.jpg", 5, 5)


@pytest.mark.parametrize("n", [1, 7, 4096, 1 << 20])
def test_it_can_be_read_from_any_byte_on_in_parts_of_any_size(tmp_path: Path, n: int) -> None:
    """What `seek` promises a transfer that goes on."""
    place = tmp_path / "many"
    (place / "in").mkdir(parents=True)
    (place / "a").write_bytes(os.urandom(9))
    (place / "empty").touch()
    (place / "in" / "b").write_bytes(os.urandom(5))
    with (place / "s").open("wb") as sparse:
        sparse.truncate(1 << 20)
        sparse.write(b"begin")
        sparse.seek(1 << 19)
        sparse.write(b"middle")
    source, _ = tree_of(place, place / "a")
    with closing(source):
        data = whole(source)
        offsets = range(len(data) + 1) if n > 1 else [0, 8, len(data) - 12, len(data) - 1, len(data)]
        for offset in [at for at in offsets if at < 400 or len(data) - at < 40 or at % 997 == 0]:
            source.seek(offset)
            assert whole(source, n) == data[offset:], offset
        source.seek(0)
        assert whole(source) == data


def test_another_reader_of_it_reads_for_itself(place: Path) -> None:
    source, _ = tree_of(place)
    with closing(source):
        first = read(source, 1000)
        with closing(TreeSource(source.tree)) as twin:
            data = whole(twin)
            assert data.startswith(first)
            assert first + whole(source) == data
            twin.seek(500)
            assert whole(twin) == data[500:]


def test_its_identity_is_that_of_the_files_and_not_of_the_command(tmp_path: Path) -> None:
    """The same for the same files, wherever the command runs; another one as soon as one of them differs."""
    place = make_folder(tmp_path / "many")
    identities = []
    for change in (None, None, "tool.sh", "new"):
        if change:
            (place / change).touch()
        source, _ = tree_of(place)
        identities.append(source.identity)
        source.close()
    first, again, touched, more = identities
    assert first == again
    assert len({first, touched, more}) == 3


def test_small_files_are_read_together_and_few_descriptors_are_open(tmp_path: Path) -> None:
    """One read of half a MiB for a hundred files, and no descriptor for each."""
    place = tmp_path / "many"
    for number in range(300):
        folder = place / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}").write_bytes(b"x" * 1000)
    before = len(os.listdir("/proc/self/fd"))
    source, _ = tree_of(place)
    with closing(source):
        assert len(read(source, 100_000)) == 100_000
        assert len(os.listdir("/proc/self/fd")) - before <= 4
        whole(source)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.attack("F09")
def test_what_is_no_file_is_skipped_and_told_and_nothing_hangs(tmp_path: Path) -> None:
    """FIFO, socket, device, a loop of links."""
    place = tmp_path / "many"
    place.mkdir()
    os.mkfifo(place / "fifo")
    (place / "file").write_text("x")
    (place / "loop").symlink_to("loop")
    (place / "up").symlink_to("..")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(place / "socket"))
        skipped: list[Skipped] = []
        source, _ = source_of(place, None, "", on_skip=skipped.append)
    with closing(source):
        assert isinstance(source, TreeSource)
        assert [entry.name for entry in listed(whole(source))] == [b"", b"file", b"loop", b"up"]
    assert [(Path(each.path).name, each.kind) for each in skipped] == [("fifo", "FIFO"), ("socket", "socket")]
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        source_of([place / "fifo", place / "file"], None, "")


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def truncate(path: Path) -> None:
    os.truncate(path, 10)


def exchange(path: Path) -> None:
    """Another file of the same size and time."""
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"y" * status.st_size)
    os.utime(other, ns=(status.st_mtime_ns, status.st_mtime_ns))
    other.rename(path)


def link_away(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_folder(path: Path) -> None:
    away = path.parent.with_name("away")
    path.parent.rename(away)
    path.parent.symlink_to(away)


OF_CONTENT: tuple[Callable[[Path], object], ...] = (grow, touch, truncate)
OF_PLACE: tuple[Callable[[Path], object], ...] = (exchange, link_away, fifo, link_folder, Path.unlink)
"""What does not concern a file that is open."""


@pytest.mark.attack("F09")
@pytest.mark.parametrize(
    ("change", "size", "late"),
    [
        *((change, size, False) for change in (*OF_CONTENT, *OF_PLACE) for size in (100, 3_000_000)),
        *((change, 3_000_000, True) for change in OF_CONTENT),
    ],
)
def test_a_file_that_is_not_as_it_was_listed_ends_it(
    tmp_path: Path, change: Callable[[Path], object], size: int, late: bool
) -> None:
    """Before it is read, or while it is: never other bytes under its name."""
    path = tmp_path / "many" / "in" / "file"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * size)
    source, _ = tree_of(tmp_path / "many")
    with closing(source):
        if late:
            read(source, 1_000_000)
        change(path)
        with pytest.raises(LocalIOError) as told:
            whole(source)
    assert told.value.detail == "source-changed"
    assert "file" in told.value.message


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ((), ["", "a.o", "src", "a.o", "b.c", "sub", "a.o", "x"]),
        (("*.o",), ["", "src", "b.c", "sub", "x"]),
        (("src",), ["", "a.o"]), (("src/",), ["", "a.o"]), (("src/*.o",), ["", "a.o", "src", "b.c", "sub", "x"]),
        (("a.o/",), ["", "a.o", "src", "a.o", "b.c", "sub", "a.o", "x"]),
        (("many/src/sub",), ["", "a.o", "src", "a.o", "b.c"]), (("x", "b.c", "a.o"), ["", "src", "sub"]),
        (("/a.o",), ["", "src", "a.o", "b.c", "sub", "a.o", "x"]),
        (("SRC",), ["", "a.o", "src", "a.o", "b.c", "sub", "a.o", "x"]),
    ],
)
def test_what_is_excluded_stays_behind_and_is_not_entered(
    tmp_path: Path, exclude: tuple[str, ...], left: list[str]
) -> None:
    """A name anywhere; with a slash, a path from the folder; with one at its end, folders alone."""
    sub = tmp_path / "many" / "src" / "sub"
    sub.mkdir(parents=True)
    for path in ("a.o", "src/a.o", "src/b.c", "src/sub/a.o", "src/sub/x"):
        (tmp_path / "many" / path).touch()
    assert names(tmp_path / "many", exclude=exclude) == left


def test_several_paths_are_at_the_top_under_their_own_names(tmp_path: Path) -> None:
    """One item, which is called after the first of them; a link that the user names is what it leads to."""
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("a.txt")
    source, manifest = tree_of(tmp_path / "b.txt", tmp_path / "in", tmp_path / "link")
    with closing(source):
        assert manifest.name == "b.txt and 2 more"
        data = whole(source)
    assert [(entry.depth, entry.name) for entry in listed(data)] == [(0, b"b.txt"), (0, b"in"), (0, b"link")]
    assert data.endswith(b"b.txta.txt")
    source, manifest = tree_of(tmp_path / "b.txt", tmp_path / "in", name="both")
    source.close()
    assert manifest.name == "both"
    assert names(tmp_path / "a.txt", tmp_path / "b.txt", exclude=("a*",)) == ["b.txt"]
    source, manifest = source_of([tmp_path / "b.txt"], None, "")
    source.close()
    assert manifest.kind == "file"


def test_a_path_that_ends_in_a_dot_has_the_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "many" / "in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "many")
    for path, name in ((".", "many"), ("in/..", "many"), ("in/", "in")):
        source, manifest = source_of(Path(path), None, "")
        source.close()
        assert manifest.name == name
    with pytest.raises(UsageError, match="has no name"):
        source_of(Path("/"), None, "", exclude=("*",))


def test_what_cannot_be_a_tree_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    """Two names that are one to some file systems, nothing left, too deep, no such path."""
    (tmp_path / "twins").mkdir()
    for name in ("Makefile", "makefile"):
        (tmp_path / "twins" / name).touch()
    deep = tmp_path / "deep"
    for _ in range(TREE_DEPTH_MAX + 2):
        deep /= "d"
    os.makedirs(deep)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "twins").touch()
    cases: list[tuple[list[Path], tuple[str, ...], str]] = [
        ([tmp_path / "twins"], (), "collision"), ([tmp_path / "twins", tmp_path / "other" / "twins"], (), "collision"),
        ([tmp_path / "twins" / "makefile"], ("makefile",), "excluded"),
        ([tmp_path / "twins", tmp_path / "other"], ("*",), "excluded"),
        ([tmp_path / "deep"], (), "limit"), ([tmp_path / "no", tmp_path / "other"], (), "unreadable"),
        ([], (), "payload"),
    ]
    before = len(os.listdir("/proc/self/fd"))
    for paths, exclude, detail in cases:
        with pytest.raises(ZkcError) as told:
            source_of(paths, None, "", exclude=exclude)
        assert told.value.detail == detail
        assert told.value.hint or detail == "payload"
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(UsageError, match="--exclude is empty"):
        source_of(tmp_path / "twins", None, "", exclude=("/",))
    assert names(tmp_path / "twins", exclude=("makefile",)) == ["", "Makefile"]


def test_a_file_of_very_many_holes_has_a_bounded_listing(tmp_path: Path) -> None:
    """The smallest holes are sent as zeros."""
    (tmp_path / "many").mkdir()
    size = (RUNS_MAX + 300) * 8192
    with (tmp_path / "many" / "comb").open("wb") as comb:
        for at in range(0, size, 8192):
            comb.seek(at)
            comb.write(b"x" * 4096)
        comb.truncate(size + (1 << 20))
    source, _ = tree_of(tmp_path / "many")
    with closing(source):
        data = whole(source)
    (entry,) = [entry for entry in listed(data) if isinstance(entry, TreeFile)]
    assert entry.runs is not None
    assert len(entry.runs) == 2 * RUNS_MAX
    assert data_bytes(entry) == (RUNS_MAX + 300) * 4096 + 300 * 4096


def test_a_file_that_is_mostly_holes_travels_without_them_also_alone(tmp_path: Path) -> None:
    with (tmp_path / "disk.img").open("wb") as image:
        image.truncate(HOLES_MIN + (1 << 20))
        image.seek(1 << 29)
        image.write(b"data")
    source, manifest = tree_of(tmp_path / "disk.img")
    with closing(source):
        data = whole(source)
    (entry,) = listed(data)
    assert (manifest.name, entry.name, len(data) < 1 << 16) == ("disk.img", b"", True)
    assert isinstance(entry, TreeFile)
    assert entry.size == HOLES_MIN + (1 << 20)
