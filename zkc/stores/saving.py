"""An item of the inbox, written to where a person wants it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Final, Literal

from zkc.errors import LocalIOError, UsageError
from zkc.rules.names import numbered
from zkc.stores import files
from zkc.stores.items import Item
from zkc.stores.unpacking import NUMBERS_MAX, exists, save_parts, save_tree

Conflict = Literal["skip", "overwrite", "rename"]
"""What to do where the destination exists."""

_COPY_BYTES: Final = 1 << 20
_NEW: Final = 0o666
"""Of what was no file where it was sent: the umask decides."""


def save_item(item: Item, destination: Path, conflict: Conflict = "rename") -> Path | None:
    """Write the payload of ``item`` to ``destination``, durable when this returns; the path that it got.

    Whole or not there: it is written under another name in the same folder and renamed. Where ``destination`` exists,
    ``skip`` leaves it and answers None, ``overwrite`` replaces it (a link itself, never what it points to), ``rename``
    finds a free name, ``a (2).txt``. Permissions are as sent, of group and others as far as the umask grants them;
    nothing else of the sender's file is taken over but its time of change (attack F05).

    A tree becomes a folder at ``destination``; one that ``overwrite`` replaces goes with all that is in it.

    ``destination`` is the caller's choice: a name that came from a peer has gone through `rules.names.safe_name`.
    Errors: `UsageError` where it is a folder, or the item ``partial``; `LocalIOError`, after which nothing is there.
    """
    name = destination.name
    _check_whole(item)
    in_the_way = (
        item.kind != "tree" and conflict == "overwrite" and destination.is_dir() and not destination.is_symlink()
    )
    if name in {"", ".."} or in_the_way:
        raise UsageError(f"{destination} is a folder", hint="name a file, or add a slash to save into the folder")
    if item.kind == "tree":
        with _opened(destination.parent) as folder, files.translated(f"saving {destination}"):
            saved = save_tree(item, folder, name, conflict)
        return None if saved is None else destination.with_name(saved)
    with _opened(destination.parent) as folder, files.translated(f"saving {destination}"):
        if conflict == "skip" and exists(folder, name):
            return None
        scratch = _copy(item, folder)
        try:
            saved = _settle(folder, scratch, name, conflict)
        finally:
            files.unlink(folder, scratch)
        os.fsync(folder)
    return None if saved is None else destination.with_name(saved)


def save_together(item: Item, folder: Path, conflict: Conflict = "rename") -> list[Path] | None:
    """Write what was sent together into ``folder``, each under its own name made safe: where each is now.

    All or none of them; with ``skip`` none where one exists. Otherwise as `save_item`.
    """
    _check_whole(item)
    with _opened(folder) as descriptor, files.translated(f"saving into {folder}"):
        names = save_parts(item, descriptor, conflict)
    return None if names is None else [folder / name for name in names]


def _check_whole(item: Item) -> None:
    if item.state == "partial":
        raise UsageError(
            f"item {item.id} has arrived only in part", detail="partial", hint="ask its sender to send it again"
        )


def _settle(folder: int, scratch: str, name: str, conflict: Conflict) -> str | None:
    if conflict == "overwrite":
        os.rename(scratch, name, src_dir_fd=folder, dst_dir_fd=folder)
        return name
    for candidate in chain([name], (numbered(name, number) for number in range(2, NUMBERS_MAX + 1))):
        try:
            files.publish(folder, scratch, folder, candidate)
        except FileExistsError:
            if conflict == "skip":
                return None
        else:
            return candidate
    raise LocalIOError(f"{name}: all its numbered names are taken", detail="exists", hint="name another file with -o")


def _copy(item: Item, folder: int) -> str:
    """The payload in a file of its own in ``folder``, with its final permissions; the file's name."""
    mode = files.kept_mode(item.mode) if item.kind == "file" else _NEW
    scratch = files.scratch_name(f"zkc-{item.id}")
    source = os.open(item.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        files.unlink(folder, scratch)  # of a process of this number that was killed
        # Made with its final mode, so that the system itself applies the umask, or the folder's ACL.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(scratch, flags, mode, dir_fd=folder)
        try:
            if _copy_bytes(source, target) != item.size:
                raise LocalIOError(
                    f"the file of item {item.id} is not as it arrived", detail="damaged",
                    hint=f"remove it (zkc inbox rm {item.id}), and have it sent again",
                )
            os.fchmod(target, os.fstat(target).st_mode & 0o077 | mode & stat.S_IRWXU)
            if item.kind == "file" and item.mtime_ns:
                with suppress(OSError, OverflowError):  # a time that this file system cannot hold
                    os.utime(target, ns=(item.mtime_ns, item.mtime_ns))
            os.fsync(target)
        except BaseException:
            files.unlink(folder, scratch)
            raise
        finally:
            os.close(target)
    finally:
        os.close(source)
    return scratch


def _copy_bytes(source: int, target: int) -> int:
    total = 0
    while chunk := os.read(source, _COPY_BYTES):
        files.write_all(target, chunk)
        total += len(chunk)
    return total


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = files.open_folder(path, follow=True)  # the user's own path: his links are his
    try:
        yield descriptor
    finally:
        os.close(descriptor)
