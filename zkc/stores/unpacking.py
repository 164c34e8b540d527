"""A tree of the inbox, written to where a person wants it.

It grows in a folder of its own beside the destination, private, and locked by the process that works on it; then one
rename puts it in its place. Everything is made by the descriptor of the folder that it belongs in, and must not exist
before; no name of a peer is ever joined to a path, and no link is followed. The links of a folder are made when all
else of it is there: from then on nothing is made in it.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from zkc.errors import LocalIOError, UsageError
from zkc.rules.names import numbered
from zkc.stores import files
from zkc.stores.items import Item
from zkc.stores.trees import StoredTree, TopNames
from zkc.wire.listing import entries_of, packed
from zkc.wire.messages import TreeEntry, TreeFile, TreeFolder, TreeLink

NUMBERS_MAX: Final = 9999
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ALL: Final = 0o777
_ONLY: Final = "file"
"""Name in the scratch folder of a tree that is one file."""


def save_tree(item: Item, folder: int, name: str, conflict: str) -> str | None:
    """The whole tree as one folder (or the one file that it is) ``name`` in the open ``folder``: the name that it got.

    None: skipped. `UsageError` where a file would replace a folder.
    """
    if conflict == "skip" and exists(folder, name):
        return None
    with StoredTree.opened(item) as tree, _scratch(folder, item.id) as scratch:
        if tree.file is not None and conflict == "overwrite" and is_folder(folder, name):
            raise UsageError(f"{name} is a folder", hint="name a file, or add a slash to save into the folder")
        _Unpacking(tree, scratch).run(is_whole=True)
        files.sync_all(scratch.descriptor)
        source = (folder, scratch.name) if tree.file is None else (scratch.descriptor, _ONLY)
        placed = _place(*source, folder, name, conflict)
        os.fsync(folder)
    return None if placed is None else placed[0]


def save_parts(item: Item, folder: int, conflict: str) -> list[str] | None:
    """What was sent together, each in the open ``folder`` under its own name made safe: the names that they got.

    All of them or none: where one cannot get its place, those before it give theirs back. None: one exists, and the
    conflict is to be skipped.
    """
    with StoredTree.opened(item) as tree:
        if conflict == "skip" and any(exists(folder, name) for name in _tops(tree)):
            return None
        with _scratch(folder, item.id) as scratch:
            work = _Unpacking(tree, scratch)
            work.run(is_whole=False)
            files.sync_all(scratch.descriptor)
            names = _place_all(scratch.descriptor, work.tops, folder, conflict)
            for name, mode in zip(names, work.tops.values(), strict=True) if names is not None else ():
                if mode is not None:
                    _set_mode(folder, name, mode)
            os.fsync(folder)
    return names


def exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_folder(folder: int, name: str) -> bool:
    """Whether a folder has that name, and not a link to one."""
    return exists(folder, name) and stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)


def _tops(tree: StoredTree) -> Iterator[str]:
    names = TopNames()
    return (names.safe(entry.name) for entry, _ in tree.entries() if entry.depth == 0)


# --- the place ------------------------------------------------------------------------------------------------------


class _Scratch:
    """A folder of ours beside the destination."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor
        self.granted = os.fstat(descriptor).st_mode
        """What the system lets a new folder have: by umask, or the folder's ACL."""


@contextmanager
def _scratch(folder: int, item_id: str) -> Iterator[_Scratch]:
    """Removed at the end where it has not become the destination; what that has replaced goes under its name."""
    _sweep(folder, item_id)
    name = files.scratch_name(f"zkc-{item_id}")
    os.mkdir(name, _ALL, dir_fd=folder)
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made = _Scratch(name, descriptor)
            os.fchmod(descriptor, files.PRIVATE_FOLDER)
            yield made
        finally:
            os.close(descriptor)
    finally:
        with files.translated(f"removing {name}"):
            files.remove_tree(folder, name)


def _sweep(folder: int, item_id: str) -> None:
    """Remove what a process left that was killed while it saved this item here."""
    ours = re.compile(rf"\.zkc-{item_id}\.\d+\.\d+", re.ASCII)
    names: list[str] = []
    with suppress(OSError):  # a folder that its owner may write to and not read
        names = os.listdir(folder)
    for name in filter(ours.fullmatch, names):
        with suppress(OSError):
            descriptor = os.open(name, _FOLDER, dir_fd=folder)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                files.remove_tree(folder, name)
            finally:
                os.close(descriptor)


def _place(source_folder: int, source: str, folder: int, name: str, conflict: str) -> tuple[str, bool] | None:
    """The name that it got, and whether something that was there has taken the place of ``source``; None: skipped."""
    candidates = (numbered(name, number) for number in range(2, NUMBERS_MAX + 1)) if conflict == "rename" else ()
    for candidate in chain([name], candidates):
        with suppress(FileExistsError):
            files.publish_any(source_folder, source, folder, candidate)
            return candidate, False
    if conflict == "skip":
        return None
    if conflict == "overwrite":
        files.exchange(source_folder, source, folder, name)
        return name, True
    raise LocalIOError(f"{name}: all its numbered names are taken", detail="exists", hint="name another folder with -o")


def _place_all(scratch: int, tops: dict[str, int | None], folder: int, conflict: str) -> list[str] | None:
    placed: list[tuple[str, str, bool]] = []
    done = False
    try:
        for name in tops:
            where = _place(scratch, name, folder, name, conflict)
            if where is None:
                return None
            placed.append((name, *where))
        done = True
    finally:
        if not done:
            for name, got, exchanged in reversed(placed):
                (files.exchange if exchanged else files.publish_any)(folder, got, scratch, name)
    return [got for _, got, _ in placed]


# --- the tree -------------------------------------------------------------------------------------------------------


class _Unpacking:
    """One tree into one open folder."""

    def __init__(self, tree: StoredTree, scratch: _Scratch) -> None:
        self._tree = tree
        self._scratch = scratch.descriptor
        self._granted = scratch.granted
        self._umask_spares_owner = scratch.granted & stat.S_IRWXU == stat.S_IRWXU
        self.tops: dict[str, int | None] = {}
        """Of a tree of several: what stands at the top, and the mode that a folder gets in its place: one that its
        owner may not write to cannot be moved into another."""

    def run(self, *, is_whole: bool) -> None:
        """``is_whole``: the scratch folder becomes the tree; else what is in it moves to its place."""
        names = TopNames()
        rooted = self._tree.is_rooted
        opened = [_Opened(self._scratch, None)]
        try:
            for entry, position in self._tree.entries():
                level = entry.depth - rooted
                if level < 0:
                    self._begin_root(opened[0], entry, position)
                    continue
                while len(opened) > level + 1:
                    self._end_folder(opened.pop())
                name = entry.name
                if level == 0 and not rooted:
                    safe = names.safe(name)
                    self.tops[safe] = None
                    name = os.fsencode(safe)
                if isinstance(entry, TreeFile):
                    self._new_file(opened[-1].descriptor, name, entry, position)
                elif isinstance(entry, TreeFolder):
                    opened.append(_Opened(self._new_folder(opened[-1].descriptor, name), entry, name))
                else:
                    opened[-1].later += packed(TreeLink(entry.depth, name, entry.mtime_ns, entry.target))
            while len(opened) > 1:
                self._end_folder(opened.pop())
        finally:
            for folder in opened[1:]:
                os.close(folder.descriptor)
        self._end_root(opened[0], is_whole=is_whole)

    def _begin_root(self, folder: _Opened, entry: TreeEntry, position: int) -> None:
        if isinstance(entry, TreeFolder):
            folder.entry = entry
        elif isinstance(entry, TreeFile):
            self._new_file(self._scratch, os.fsencode(_ONLY), entry, position)

    def _end_root(self, folder: _Opened, *, is_whole: bool) -> None:
        _make_links(folder)
        if is_whole:
            mode = _ALL if folder.entry is None else files.kept_mode(folder.entry.mode)
            os.fchmod(self._scratch, _allowed(self._granted, mode))
        if folder.entry is not None:
            _set_time(self._scratch, folder.entry.mtime_ns)

    def _new_folder(self, parent: int, name: bytes) -> int:
        os.mkdir(name, _ALL, dir_fd=parent)
        if not self._umask_spares_owner:
            os.chmod(name, files.PRIVATE_FOLDER, dir_fd=parent)
        return os.open(name, _FOLDER, dir_fd=parent)

    def _new_file(self, parent: int, name: bytes, entry: TreeFile, position: int) -> None:
        mode = files.kept_mode(entry.mode)
        target = os.open(name, _NEW_FILE, mode, dir_fd=parent)
        try:
            for at, data in self._tree.content(entry, position):
                _write_at(target, data, at)
            if entry.runs is not None:
                os.ftruncate(target, entry.size)
            if not self._umask_spares_owner:
                os.fchmod(target, os.fstat(target).st_mode & 0o077 | mode & stat.S_IRWXU)
            _set_time(target, entry.mtime_ns)
        finally:
            os.close(target)

    def _end_folder(self, folder: _Opened) -> None:
        """All that is in it is there: its links, then what they would have changed."""
        entry = folder.entry
        try:
            _make_links(folder)
            if entry is None:
                return
            mode = files.kept_mode(entry.mode)
            if entry.depth == 0 and not mode & stat.S_IWUSR:
                self.tops[os.fsdecode(folder.name)] = mode
            elif mode != _ALL:
                os.fchmod(folder.descriptor, _allowed(os.fstat(folder.descriptor).st_mode, mode))
            _set_time(folder.descriptor, entry.mtime_ns)
        finally:
            os.close(folder.descriptor)


@dataclass
class _Opened:
    """A folder that is being filled."""

    descriptor: int
    entry: TreeFolder | None
    name: bytes = b""
    later: bytearray = field(default_factory=bytearray)
    """Its links, as a listing; of all folders together no longer than the tree's."""


def _make_links(folder: _Opened) -> None:
    for entry in entries_of(folder.later):
        if isinstance(entry, TreeLink):
            os.symlink(entry.target, entry.name, dir_fd=folder.descriptor)
            with suppress(OSError, OverflowError):  # a time that this file system cannot hold
                times = entry.mtime_ns, entry.mtime_ns
                os.utime(entry.name, ns=times, dir_fd=folder.descriptor, follow_symlinks=False)


def _allowed(made: int, mode: int) -> int:
    """Permissions of a folder that the system made with ``made``: the owner's of ``mode``, of group and others what
    both grant; a set-group-id bit that the user's own folder passes on stays."""
    return mode & stat.S_IRWXU | made & mode & 0o077 | made & stat.S_ISGID


def _set_mode(folder: int, name: str, mode: int) -> None:
    descriptor = os.open(name, _FOLDER, dir_fd=folder)
    try:
        os.fchmod(descriptor, _allowed(os.fstat(descriptor).st_mode, mode))
    finally:
        os.close(descriptor)


def _set_time(descriptor: int, mtime_ns: int) -> None:
    with suppress(OSError, OverflowError):  # a time that this file system cannot hold
        os.utime(descriptor, ns=(mtime_ns, mtime_ns))


def _write_at(descriptor: int, data: bytes, position: int) -> None:
    written = os.pwrite(descriptor, data, position)
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], position + written)
