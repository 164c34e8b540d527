"""A tree of the inbox as bytes, made as it is read: for ``-o -`` and ``--exec``. Nothing here reads a tar.

POSIX (pax) format: any name, times to the nanosecond; a sparse file as GNU tar writes them (format 1.0).
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import Final

from zkc.rules.names import safe_name
from zkc.stores.trees import StoredTree, TopNames
from zkc.wire.listing import data_bytes, runs_of
from zkc.wire.messages import TreeEntry, TreeFile, TreeFolder

_RECORD: Final = tarfile.BLOCKSIZE
_WHOLE: Final = 1 << 20
_NANO: Final = 10**9


def bytes_of(tree: StoredTree) -> Iterator[bytes]:
    """A tar, or the bytes of the one file that the tree is, in pieces of some MiB at most. `LocalIOError`."""
    gathered = bytearray()
    for piece in _pieces(tree) if tree.file is None else _plain(tree):
        gathered += piece
        if len(gathered) >= _WHOLE:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _plain(tree: StoredTree) -> Iterator[bytes]:
    """One file, its holes as zeros."""
    after = 0
    for entry, position in tree.entries():
        if isinstance(entry, TreeFile):
            for at, data in tree.content(entry, position):
                yield from _zeros(at - after)
                yield data
                after = at + len(data)
            yield from _zeros(entry.size - after)


def _zeros(n: int) -> Iterator[bytes]:
    block = bytes(min(n, _WHOLE))
    for at in range(0, n, _WHOLE):
        yield block[: n - at]


def _pieces(tree: StoredTree) -> Iterator[bytes]:
    names = TopNames()
    parts: list[str] = []
    for entry, position in tree.entries():
        del parts[entry.depth :]
        if entry.depth == 0:
            parts.append(names.safe(entry.name) if entry.name else safe_name(tree.item.name))
        else:
            parts.append(os.fsdecode(entry.name))
        info = _info(parts, entry)
        head = _sparse(info, entry) if isinstance(entry, TreeFile) and entry.runs is not None else b""
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if isinstance(entry, TreeFile):
            yield head
            yield from (data for _, data in tree.content(entry, position))
            yield bytes(-info.size % _RECORD)
    yield bytes(2 * _RECORD)


def _info(parts: list[str], entry: TreeEntry) -> tarfile.TarInfo:
    info = tarfile.TarInfo("/".join(parts))
    info.mtime = entry.mtime_ns // _NANO
    if entry.mtime_ns % _NANO:
        whole, rest = divmod(abs(entry.mtime_ns), _NANO)
        info.pax_headers = {"mtime": f"{'-' if entry.mtime_ns < 0 else ''}{whole}.{rest:09d}"}
    if isinstance(entry, TreeFolder):
        info.type, info.mode = tarfile.DIRTYPE, entry.mode
    elif isinstance(entry, TreeFile):
        info.size, info.mode = entry.size, entry.mode
    else:
        info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, os.fsdecode(entry.target)
    return info


def _sparse(info: tarfile.TarInfo, file: TreeFile) -> bytes:
    """What stands before the data of a sparse file; ``info`` is made to say so."""
    runs = list(runs_of(file))
    if not runs or sum(runs[-1]) < file.size:
        runs.append((file.size, 0))
    told = [str(len(runs)), *(str(number) for run in runs for number in run)]
    head = "".join(f"{number}\n" for number in told).encode()
    head += bytes(-len(head) % _RECORD)
    folder, _, name = info.name.rpartition("/")
    info.pax_headers = {
        **info.pax_headers, "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": info.name,
        "GNU.sparse.realsize": str(file.size),
    }
    info.name = "/".join(filter(None, (folder, "GNUSparseFile.0", name)))
    info.size = len(head) + data_bytes(file)
    return head
