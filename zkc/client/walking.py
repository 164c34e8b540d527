"""The walk over what is to be sent: it makes the listing of a tree.

Each folder is opened by its parent's descriptor, and no link is followed but one that the user named himself.
"""

from __future__ import annotations

import errno
import os
import stat
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from msgspec import Struct

from zkc.constants import (
    FILE_NAME_MAX,
    HOLES_MIN,
    LISTING_HEADER_BYTES,
    LISTING_MAX,
    RUNS_MAX,
    TREE_DEPTH_MAX,
    TREE_ENTRIES_MAX,
    TREE_PATH_MAX,
)
from zkc.errors import LocalIOError, UsageError
from zkc.rules.names import folded
from zkc.wire.listing import data_bytes, packed
from zkc.wire.messages import TreeEntry, TreeFile, TreeFolder, TreeLink

FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_SPARSE_FROM: Final = 64 * 1024
"""Bytes: a smaller file is sent whole, without a look for its holes."""
_KINDS: Final = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


class Skipped(Struct, frozen=True):
    """What is neither file nor folder nor link stays behind."""

    path: str
    kind: str
    """FIFO, socket, device."""


class Root(Struct, frozen=True):
    """A path that the user named, whose links are his, and its name at the top of the tree.

    Empty: the tree is this folder, or this file, and has the name of its manifest. ``descriptor``: of a folder that
    somebody has opened and will close, in whose place the path only stands in messages.
    """

    path: Path
    name: bytes
    descriptor: int | None = None

    def look(self) -> os.stat_result:
        return os.stat(self.path if self.descriptor is None else self.descriptor)

    def open(self) -> int:
        """The folder; `OSError`."""
        if self.descriptor is None:
            return os.open(self.path, FOLDER)
        return os.open(".", FOLDER, dir_fd=self.descriptor)


class Walk:
    """Makes the listing, entry by entry."""

    def __init__(
        self, exclude: Sequence[str], on_skip: Callable[[Skipped], None], on_folder: Callable[[], None]
    ) -> None:
        """``on_folder`` is called in each folder, and ends the walk with what it raises."""
        self._on_folder = on_folder
        self._exclude = tuple(_Pattern.of(glob) for glob in exclude)
        self._on_skip = on_skip
        self._user = os.geteuid()
        self.listing = bytearray(LISTING_HEADER_BYTES)
        self.inodes = array("Q")
        """Of each file, in order: another file of the same name, size and time is noticed."""
        self.data = 0
        """Bytes of content."""
        self.entries = 0
        self.roots: list[Root] = []
        self._top = b""
        """Name of the folder at the top that is being walked."""
        self._last_root: tuple[bytes, Path] | None = None

    def root(self, root: Root) -> None:
        path = root.path
        try:
            status = root.look()
            if stat.S_ISDIR(status.st_mode):
                self._root_folder(root, status)
                return
        except OSError as error:
            raise unreadable(str(path), error) from None
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is neither a file nor a folder", detail="not-a-file", hint="pipe it in instead")
        if not root.name or not self._is_excluded(root.name, b"", b"", is_folder=False):
            self._put_root(root)
            self._file(None, str(path), root.name, 0, status, str(path))

    def _root_folder(self, root: Root, status: os.stat_result) -> None:
        if root.name and self._is_excluded(root.name, b"", b"", is_folder=True):
            return
        self._put_root(root)
        self._top = root.name or os.fsencode(name_of(root.path))
        descriptor = root.open()
        try:
            self._add(TreeFolder(0, root.name, status.st_mode & 0o777, status.st_mtime_ns))
            self._inside(descriptor, 1, str(root.path), b"", len(root.name) + 1 if root.name else 0)
        finally:
            os.close(descriptor)

    def _put_root(self, root: Root) -> None:
        key = folded(root.name)
        if self._last_root is not None and self._last_root[0] == key:
            raise _collision(str(self._last_root[1]), str(root.path))
        self._last_root = key, root.path
        self.roots.append(root)

    def _inside(self, folder: int, depth: int, shown: str, inner: bytes, length: int) -> None:
        """All that is in an open folder. ``inner``: its path from the folder at the top, with a slash behind it."""
        if depth > TREE_DEPTH_MAX:
            raise too_much(f"more than {TREE_DEPTH_MAX} folders in folders: {shown}")
        self._on_folder()
        names = _names(folder, shown)
        before: tuple[bytes, str] | None = None
        for name in names:
            path = f"{shown}/{name}"
            try:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone before it was seen: as if it had never been there
            except OSError as error:
                raise unreadable(path, error) from None
            is_folder = stat.S_ISDIR(status.st_mode)
            encoded = os.fsencode(name)
            if self._exclude and self._is_excluded(encoded, inner, self._top + b"/", is_folder=is_folder):
                continue
            key = folded(encoded)
            if before is not None and before[0] == key:
                raise _collision(f"{shown}/{before[1]}", path)
            if length + len(encoded) > TREE_PATH_MAX or len(encoded) > FILE_NAME_MAX:
                raise too_much(f"a path of more than {TREE_PATH_MAX} bytes: {path[:100]}...")
            if is_folder:
                self._folder(folder, name, depth, status, path, inner + encoded + b"/", length + len(encoded) + 1)
            elif stat.S_ISREG(status.st_mode):
                self._file(folder, name, encoded, depth, status, path)
            elif stat.S_ISLNK(status.st_mode):
                self._link(folder, name, depth, status, path)
            else:
                self._on_skip(Skipped(path, _KINDS.get(stat.S_IFMT(status.st_mode), "special file")))
                continue
            before = key, name

    def _folder(
        self, parent: int, name: str, depth: int, status: os.stat_result, path: str, inner: bytes, length: int
    ) -> None:
        try:
            descriptor = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        except OSError as error:
            raise unreadable(path, error) from None
        try:
            self._add(TreeFolder(depth, os.fsencode(name), status.st_mode & 0o777, status.st_mtime_ns))
            self._inside(descriptor, depth + 1, path, inner, length)
        finally:
            os.close(descriptor)

    def _file(
        self, folder: int | None, name: str, listed: bytes, depth: int, status: os.stat_result, path: str
    ) -> None:
        """``folder`` None: the user's own path, whose links are his."""
        runs = None
        try:
            is_ours = self._user == 0 or (status.st_uid == self._user and status.st_mode & stat.S_IRUSR)
            if not is_ours and not os.access(name, os.R_OK, dir_fd=folder, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if status.st_size >= _SPARSE_FROM and status.st_blocks * 512 < status.st_size:
                descriptor = os.open(name, FILE if folder is None else FILE | os.O_NOFOLLOW, dir_fd=folder)
                try:
                    runs = _runs(descriptor, status.st_size)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise unreadable(path, error) from None
        entry = TreeFile(depth, listed, status.st_mode & 0o777, status.st_mtime_ns, status.st_size, runs)
        self._add(entry)
        self.inodes.append(status.st_ino)
        self.data += data_bytes(entry)

    def _link(self, folder: int, name: str, depth: int, status: os.stat_result, path: str) -> None:
        try:
            target = os.fsencode(os.readlink(name, dir_fd=folder))
        except OSError as error:
            raise unreadable(path, error) from None
        self._add(TreeLink(depth, os.fsencode(name), status.st_mtime_ns, target))

    def _add(self, entry: TreeEntry) -> None:
        self.entries += 1
        self.listing += packed(entry)
        if self.entries > TREE_ENTRIES_MAX:
            raise too_much(f"more than {TREE_ENTRIES_MAX} files and folders")
        if len(self.listing) > LISTING_MAX:
            raise too_much(f"a listing of more than {LISTING_MAX} bytes")

    def _is_excluded(self, name: bytes, inner: bytes, top: bytes, *, is_folder: bool) -> bool:
        path = os.fsdecode(inner + name)
        names = os.fsdecode(name), path, os.fsdecode(top) + path
        return any(pattern.matches(*names, is_folder=is_folder) for pattern in self._exclude)


class _Pattern(Struct, frozen=True):
    """One ``--exclude``: a name anywhere, or where it has a slash a path from the folder that is sent, with that
    folder's name before it or without. Stars match slashes too."""

    glob: str
    is_path: bool
    only_folders: bool

    @classmethod
    def of(cls, glob: str) -> _Pattern:
        wanted = glob.strip("/")
        if not wanted:
            raise UsageError("--exclude is empty", hint="give it a name, a path in the folder, or a glob")
        return cls(wanted, "/" in glob.rstrip("/"), glob.endswith("/"))

    def matches(self, name: str, path: str, whole: str, *, is_folder: bool) -> bool:
        if self.only_folders and not is_folder:
            return False
        if not self.is_path:
            return fnmatchcase(name, self.glob)
        return fnmatchcase(path, self.glob) or fnmatchcase(whole, self.glob)


def _names(folder: int, shown: str) -> list[str]:
    """What is in an open folder, in the order of a listing."""
    names = []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                names.append(entry.name)
                if len(names) > TREE_ENTRIES_MAX:
                    raise too_much(f"more than {TREE_ENTRIES_MAX} files and folders in {shown}")
    except OSError as error:
        raise unreadable(shown, error) from None
    names.sort(key=lambda name: folded(os.fsencode(name)))
    return names


def is_sparse(path: Path) -> bool:
    """Whether a file has so much of holes that they are worth more than a digest of the file's own bytes."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size - status.st_blocks * 512 < HOLES_MIN:
            return False
        descriptor = os.open(path, FILE)
    except OSError:
        return False  # whoever opens it in earnest will say so
    try:
        runs = _runs(descriptor, status.st_size)
    finally:
        os.close(descriptor)
    return runs is not None and status.st_size - sum(runs[1::2]) >= HOLES_MIN


def _runs(descriptor: int, size: int) -> list[int] | None:
    """Holes and data in turns, from the file system; None where it tells of no hole."""
    found: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:
            break  # no data behind this
        at = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size)
        if begin < at:
            found.append((begin, at))
    if found == [(0, size)]:
        return None
    return _flat(_fewer(found))


def _fewer(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """At most `RUNS_MAX`: the smallest holes become data, and are read as zeros."""
    surplus = len(found) - RUNS_MAX
    if surplus <= 0:
        return found
    gaps = sorted(range(1, len(found)), key=lambda at: found[at][0] - found[at - 1][1])
    filled = set(gaps[:surplus])
    kept = [found[0]]
    for at in range(1, len(found)):
        if at in filled:
            kept[-1] = kept[-1][0], found[at][1]
        else:
            kept.append(found[at])
    return kept


def _flat(found: list[tuple[int, int]]) -> list[int]:
    flat: list[int] = []
    end = 0
    for begin, after in found:
        flat += (begin - end, after - begin)
        end = after
    return flat


# --- names and errors -----------------------------------------------------------------------------------------------


def joint_name(roots: Sequence[Root]) -> str:
    """What several paths are called together: ``a.txt and 2 more``."""
    more = f" and {len(roots) - 1} more"
    first = roots[0].name.decode(errors="replace")
    while len((first + more).encode()) > FILE_NAME_MAX:
        first = first[:-1]
    return first + more


def roots_of(paths: Sequence[Path]) -> list[Root]:
    """Several paths, each at the top of the tree under its own name. `UsageError` for one without a name."""
    return [Root(path, os.fsencode(name_of(path))) for path in paths]


def name_of(path: Path) -> str:
    """What a path is called, also one that ends in ``.`` or ``..``."""
    name = path.name
    if name in {"", ".", ".."}:
        try:
            name = os.path.basename(os.path.realpath(path))
        except FileNotFoundError as error:  # the current folder was removed
            raise unreadable(str(path), error) from None
    if not name:
        raise UsageError(f"{path} has no name", detail="bad-name", hint="give it one with --name")
    return name


def is_excluded(name: str, exclude: Sequence[str]) -> bool:
    """Whether a file at the top stays behind."""
    return any(_Pattern.of(glob).matches(name, name, name, is_folder=False) for glob in exclude)


def nothing_left() -> UsageError:
    return UsageError("--exclude leaves nothing to send", detail="excluded", hint="give it a narrower glob")


def unreadable(path: str, error: OSError) -> LocalIOError:
    is_missing = error.errno == errno.ENOENT
    return LocalIOError(
        f"cannot read {path}: {error.strerror}", detail="unreadable",
        hint="check the path" if is_missing else "check its permissions, or --exclude it",
    )


def _collision(one: str, other: str) -> UsageError:
    with suppress(OSError):
        if os.path.samefile(one, other):
            return UsageError(f"{other} is named twice", detail="collision", hint="name it once")
    with suppress(ValueError):
        one = os.path.relpath(one)
    return UsageError(
        f"{one} and {other} have names that some file systems take for one", detail="collision",
        hint="--exclude one of them, or pipe a tar",
    )


def too_much(what: str) -> UsageError:
    return UsageError(f"too much for one transfer: {what}", detail="limit", hint="send it in parts, or pipe a tar")
