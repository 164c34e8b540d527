"""Folders to send, what they look like, and the streams of trees that honest and other senders make."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from zkc.wire.codec import encode
from zkc.wire.listing import header, packed
from zkc.wire.messages import TreeEntry, TreeFile, TreeFolder, TreeLink

TIME: Final = 1_600_000_000_123_456_789


def folder(depth: int, name: str | bytes, mode: int = 0o755) -> TreeFolder:
    return TreeFolder(depth, name.encode() if isinstance(name, str) else name, mode, TIME)


def file(
    depth: int, name: str | bytes, size: int = 0, runs: list[int] | None = None, mode: int = 0o644
) -> TreeFile:
    return TreeFile(depth, name.encode() if isinstance(name, str) else name, mode, TIME, size, runs)


def link(depth: int, name: str | bytes, target: str = "target") -> TreeLink:
    return TreeLink(depth, name.encode() if isinstance(name, str) else name, TIME, target.encode())


def stream(*entries: TreeEntry | bytes, contents: bytes = b"") -> bytes:
    """The stream of a tree, whether or not it is one; bytes stand for themselves behind their length."""
    listing = b"".join(
        len(entry).to_bytes(2, "big") + entry if isinstance(entry, bytes) else packed(entry) for entry in entries
    )
    return header(len(listing)) + listing + contents


def nested(depth: int) -> bytes:
    """A listing of that many folders in folders."""
    return stream(*(folder(at, "d") for at in range(depth)))


def encoded(entry: TreeEntry) -> bytes:
    return encode(entry)


def looks(place: Path) -> dict[str, tuple[object, ...]]:
    """All below ``place`` and itself: kind, permissions, time, and content or target; ``links`` are not followed."""
    return {os.path.relpath(path, place): _look(path) for path in [place, *place.rglob("*")]}


def _look(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "link", status.st_mtime_ns, os.readlink(path)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        return "folder", mode, status.st_mtime_ns
    digest = "sparse" if status.st_size > 1 << 30 else hashlib.sha256(path.read_bytes()).hexdigest()
    return "file", mode, status.st_mtime_ns, status.st_size, digest


def make_folder(place: Path) -> Path:
    """A folder with a bit of everything that a person has, times of long ago, permissions that a umask of 022 keeps."""
    place.mkdir()
    (place / "empty").mkdir()
    (place / "deep" / "er" / "est").mkdir(parents=True)
    (place / "deep" / "er" / "est" / "bottom.txt").write_text("bottom")
    (place / "empty.txt").touch()
    (place / "tool.sh").write_text("#!/bin/sh\n")
    (place / "tool.sh").chmod(0o755)
    (place / "read-only").write_text("kept")
    (place / "read-only").chmod(0o444)
    (place / ".hidden").write_text("below the top a dot stays")
    (place / "na\u00efve \u2603.txt").write_text("letters")
    (place / os.fsdecode(b"not-utf8-\xff\xfe")).write_text("bytes")
    (place / "a\nb\x1b[2J").write_text("a name that a terminal must not see")
    (place / "big.bin").write_bytes(os.urandom(1_200_000))
    (place / "link").symlink_to("tool.sh")
    (place / "dangling").symlink_to("nowhere/at all")
    (place / "outside").symlink_to("/etc")
    (place / "loop").symlink_to(".")
    with (place / "sparse.img").open("wb") as sparse:
        sparse.seek(3 << 20)
        sparse.write(b"data" * 5000)
        sparse.truncate(9 << 20)
    (place / "locked").mkdir()
    (place / "locked" / "inside.txt").write_text("inside")
    for path in sorted(place.rglob("*"), reverse=True):
        os.utime(path, ns=(TIME, TIME + len(path.name)), follow_symlinks=False)
    (place / "locked").chmod(0o555)
    os.utime(place / "locked", ns=(TIME, TIME))
    os.utime(place, ns=(TIME, TIME - 7))
    return place
