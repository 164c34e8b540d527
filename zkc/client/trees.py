"""Folders, and several paths at once, as one stream of bytes: the listing, then the contents of its files.

The listing is made first (`zkc.client.walking`), so the stream's length is known before its first byte, and any byte of
it can be found again. A file is opened when its turn comes, by its folder's descriptor, and must still be the file that
was listed: never more than one is open.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from blake3 import blake3
from msgspec import Struct

from zkc.client.walking import FILE, FOLDER, Root, Skipped, Walk, nothing_left, too_much, unreadable
from zkc.constants import LISTING_HEADER_BYTES, TREE_TOPS_MAX
from zkc.errors import LocalIOError
from zkc.rules.names import folded
from zkc.wire.listing import data_bytes, entries_of, header, runs_of
from zkc.wire.messages import TreeEntry, TreeFile


class Tree(Struct, frozen=True):
    """What a walk has found; whoever reads it shares it."""

    head: bytearray
    """The listing, behind its length."""
    inodes: array[int]
    roots: tuple[Root, ...]
    size: int
    """Bytes of the stream."""


def walk(
    roots: Sequence[Root], exclude: Sequence[str] = (), on_skip: Callable[[Skipped], None] = lambda _: None,
    on_folder: Callable[[], None] = lambda: None,
) -> Tree:
    """`UsageError` (``limit``, ``collision``, ``excluded``), `LocalIOError` (``unreadable``); what ``on_folder``
    raises, which is called in each folder."""
    if len(roots) > TREE_TOPS_MAX:
        raise too_much(f"more than {TREE_TOPS_MAX} paths")
    found = Walk(exclude, on_skip, on_folder)
    for root in sorted(roots, key=lambda root: folded(root.name)):
        found.root(root)
    if not found.entries:
        raise nothing_left()
    found.listing[:LISTING_HEADER_BYTES] = header(len(found.listing) - LISTING_HEADER_BYTES)
    return Tree(found.listing, found.inodes, tuple(found.roots), len(found.listing) + found.data)


class TreeSource:
    """`zkc.net.pipe.outgoing.Source` of files and folders."""

    fd: int | None = None
    again = True
    """It can be read from any byte on."""

    def __init__(self, tree: Tree, descriptor: int | None = None) -> None:
        """``descriptor``: of the tree's root, opened already; closed with this."""
        self.tree = tree
        self._descriptor = descriptor
        self._head = tree.head
        self._position = 0
        self._contents = self._fresh()
        self._places: _Places | None = None

    def _fresh(self) -> _Contents:
        entries = entries_of(memoryview(self._head)[LISTING_HEADER_BYTES:])
        return _Contents(self.tree.roots, entries, self.tree.inodes)

    @property
    def identity(self) -> tuple[bytes, ...]:
        """What is the same when the same files are sent again by another command: where they are, and the listing with
        their sizes and times."""
        return *(os.path.realpath(os.fsencode(root.path)) for root in self.tree.roots), blake3(self._head).digest()

    def readinto(self, into: memoryview) -> int:
        """Fill ``into`` as far as there is something: many small files are one read."""
        head = memoryview(self._head)[self._position : self._position + len(into)]
        count = len(head)
        into[:count] = head
        if count < len(into):
            count += self._contents.readinto(into[count:])
        self._position += count
        return count

    def seek(self, offset: int) -> None:
        """The next byte read is this one of the stream. `LocalIOError` as of `read`."""
        self._contents.close()
        self._contents = self._fresh()
        self._contents.skip(max(offset - len(self._head), 0))
        self._position = offset

    def entry_at(self, position: int) -> tuple[str, int, int]:
        """The file that the byte at ``position`` belongs to, by its path in the tree, how many bytes of it are before
        that one, and how many it has; an empty name in the listing."""
        if self._places is None or position < self._places.begin:
            self._places = _Places(memoryview(self._head))
        return self._places.at(position)

    def check(self) -> None:
        """Each file was held against the listing when it had been read."""
        if self._position != self.tree.size:
            raise _changed("the folder")

    def close(self) -> None:
        self._contents.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _Places:
    """The files of a listing by the bytes that they are in the stream; asked for rising positions."""

    def __init__(self, head: memoryview) -> None:
        self._entries = entries_of(head[LISTING_HEADER_BYTES:])
        self.begin, self._end = 0, len(head)
        """Of the file at `_path`."""
        self._path: list[bytes] = []
        self._file = ""

    def at(self, position: int) -> tuple[str, int, int]:
        while position >= self._end and (entry := next(self._entries, None)) is not None:
            self._path[entry.depth :] = [entry.name]
            if isinstance(entry, TreeFile):
                self.begin, self._end = self._end, self._end + data_bytes(entry)
                self._file = os.fsdecode(b"/".join(part for part in self._path if part))
        return (self._file, min(position, self._end) - self.begin, self._end - self.begin) if self._file else ("", 0, 0)


class _Contents:
    """The bytes of the listed files, one after the other."""

    def __init__(self, roots: tuple[Root, ...], entries: Iterator[TreeEntry], inodes: array[int]) -> None:
        self._entries = entries
        self._inodes = iter(inodes)
        self._roots = iter(roots)
        self._root = Root(Path(), b"")
        """The root that the last entry is in."""
        self._names: list[bytes] = []
        """The path of the last entry from there; each open folder of it has its descriptor in ``_folders``."""
        self._folders: list[int] = []
        self._file: int | None = None
        self._entry: TreeFile | None = None
        self._inode = 0
        self._runs: Iterator[tuple[int, int]] = iter(())
        self._at = self._left = 0
        """Of the run that is being read."""

    def readinto(self, into: memoryview) -> int:
        """Fill ``into`` as far as the files go. `LocalIOError` (``source-changed``, ``unreadable``)."""
        done, end = 0, len(into)
        while done < end:
            if self._left or self._next_run():
                done += self._part(into[done : done + self._left])
            elif (entry := self._next_file()) is None:
                break
            elif entry.runs is None and entry.size <= end - done:
                self._whole(entry, into[done : done + entry.size])
                done += entry.size
            else:
                self._open(entry)
        return done

    def skip(self, bytes_of_content: int) -> None:
        """Pass over so many bytes, without opening what lies before them."""
        left = bytes_of_content
        while left:
            entry = self._next_file()
            if entry is None:
                return
            size = data_bytes(entry)
            if size <= left:
                left -= size
                continue
            self._open(entry)
            for begin, length in self._runs:
                passed = min(left, length)
                self._at, self._left = begin + passed, length - passed
                left -= passed
                if self._left:
                    return

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        while self._folders:
            os.close(self._folders.pop())

    def _next_run(self) -> bool:
        """Whether there is more of the open file; where there is not, it must still be what was listed."""
        if self._file is None:
            return False
        run = next(self._runs, None)
        if run is not None:
            self._at, self._left = run
            return True
        file, self._file = self._file, None
        try:
            self._check(file)
        finally:
            os.close(file)
        return False

    def _part(self, into: memoryview) -> int:
        """Bytes read of the open file, at least one."""
        if self._file is None:
            raise ValueError("no file is open")
        try:
            count = os.preadv(self._file, [into], self._at)
        except OSError as error:
            raise unreadable(self._shown(), error) from None
        if not count:
            raise _changed(self._shown())
        self._at += count
        self._left -= count
        if not self._left:
            self._next_run()  # at once, while it is fresh
        return count

    def _whole(self, entry: TreeFile, into: memoryview) -> None:
        """A small file: the checks of a large one, with one look at it."""
        self._entry = entry
        file = self._opened(entry)
        try:
            count = os.readv(file, [into]) if entry.size else 0
            self._check(file)
        except OSError:
            raise _changed(self._shown()) from None
        finally:
            os.close(file)
        if count != entry.size:
            raise _changed(self._shown())

    def _next_file(self) -> TreeFile | None:
        for entry in self._entries:
            depth = entry.depth
            while len(self._folders) > depth:
                os.close(self._folders.pop())
            del self._names[depth:]
            self._names.append(entry.name)
            if depth == 0:
                self._root = next(self._roots)
            if isinstance(entry, TreeFile):
                self._inode = next(self._inodes)
                return entry
        return None

    def _open(self, entry: TreeFile) -> None:
        self._entry, self._runs, self._left = entry, runs_of(entry), 0
        self._file = self._opened(entry)
        self._check(self._file)

    def _opened(self, entry: TreeFile) -> int:
        try:
            if entry.depth == 0:
                return os.open(self._root.path, FILE)  # the user's own path: his links are his
            folder = self._folders[-1] if len(self._folders) == entry.depth else self._folder(entry.depth)
            return os.open(entry.name, FILE | os.O_NOFOLLOW, dir_fd=folder)
        except PermissionError as error:
            raise unreadable(self._shown(), error) from None
        except OSError:
            raise _changed(self._shown()) from None

    def _folder(self, depth: int) -> int:
        """The folder of the entry at ``depth``, each opened by the one above it."""
        while len(self._folders) < depth:
            level = len(self._folders)
            if level == 0:
                self._folders.append(self._root.open())
            else:
                opened = os.open(self._names[level], FOLDER | os.O_NOFOLLOW, dir_fd=self._folders[-1])
                self._folders.append(opened)
        return self._folders[-1]

    def _check(self, descriptor: int) -> None:
        """That the open file is the one that was listed, as it was then."""
        entry, now = self._entry, os.fstat(descriptor)
        if entry is None or not stat.S_ISREG(now.st_mode) or (
            (now.st_size, now.st_mtime_ns, now.st_ino) != (entry.size, entry.mtime_ns, self._inode)
        ):
            raise _changed(self._shown())

    def _shown(self) -> str:
        return os.path.join(self._root.path, *(os.fsdecode(name) for name in self._names[1:]))


def _changed(path: str) -> LocalIOError:
    return LocalIOError(f"{path} changed while it was sent", detail="source-changed", hint="send it again")
