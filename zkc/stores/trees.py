"""The payload of a tree in the inbox, read: its entries, and where in the file the bytes of each are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

from zkc.errors import LocalIOError, PeerViolation, PolicyRefused
from zkc.rules.names import folded, numbered, safe_name
from zkc.rules.trees import ListingReader
from zkc.stores import files
from zkc.stores.items import Item
from zkc.wire.listing import data_bytes, runs_of
from zkc.wire.messages import TreeEntry, TreeFile

_BLOCK: Final = 64 * 1024
_COPY: Final = 1 << 20


class StoredTree:
    """One open payload. What is read of it was judged when it came, and is judged again: disks and people change it.

    Methods raise `LocalIOError` (``damaged``) where it is not as it arrived.
    """

    def __init__(self, item: Item, descriptor: int) -> None:
        self.item = item
        self._descriptor = descriptor
        first = next(self.entries(), None)
        self.is_rooted: Final = first is not None and not first[0].name
        """Whether it is one folder, or one file; else several that were sent together."""
        self.file: Final = first[0] if first is not None and self.is_rooted and isinstance(first[0], TreeFile) else None
        """Where it is one file, and no folder."""

    @classmethod
    @contextmanager
    def opened(cls, item: Item) -> Iterator[Self]:
        with files.translated(f"item {item.id}"):
            descriptor = os.open(item.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield cls(item, descriptor)
        finally:
            os.close(descriptor)

    def entries(self) -> Iterator[tuple[TreeEntry, int]]:
        """Each, with the position of its first byte in the payload. In memory are those of one block."""
        try:
            reader, at, content = ListingReader(self.item.size), 0, 0
            while not reader.complete:
                block = os.pread(self._descriptor, _BLOCK, at)
                if not block:
                    raise self.damaged()
                at += len(block)
                for entry in reader.feed(block):
                    content = content or reader.length
                    yield entry, content
                    if isinstance(entry, TreeFile):
                        content += data_bytes(entry)
        except (PeerViolation, PolicyRefused) as error:
            raise self.damaged() from error

    def paths(self) -> Iterator[tuple[str, TreeEntry]]:
        """Each entry with its path from the top: peer text, to be escaped before it is shown."""
        parts: list[str] = []
        for entry, _ in self.entries():
            del parts[entry.depth :]
            parts.append(os.fsdecode(entry.name) if entry.name else self.item.name)
            yield "/".join(parts), entry

    def content(self, file: TreeFile, position: int) -> Iterator[tuple[int, bytes]]:
        """The data of a file whose first byte in the payload is at ``position``: where in the file, and the bytes."""
        for begin, length in runs_of(file):
            at, end = begin, begin + length
            while at < end:
                data = self.read(position, end - at)
                yield at, data
                at += len(data)
                position += len(data)

    def read(self, position: int, n: int) -> bytes:
        """At most ``n`` bytes from ``position`` on, and not none."""
        data = os.pread(self._descriptor, min(n, _COPY), position)
        if not data:
            raise self.damaged()
        return data

    def damaged(self) -> LocalIOError:
        return LocalIOError(
            f"the file of item {self.item.id} is not as it arrived", detail="damaged",
            hint=f"remove it (zkc inbox rm {self.item.id}), and have it sent again",
        )


class TopNames:
    """Names for what stands at the top of a tree of several: each safe, and no two alike (attacks F01, F05, F08)."""

    def __init__(self) -> None:
        self._taken: set[bytes] = set()

    def safe(self, name: bytes) -> str:
        wanted = safe_name(os.fsdecode(name))
        candidate, number = wanted, 1
        while (key := folded(os.fsencode(candidate))) in self._taken:
            number += 1
            candidate = numbered(wanted, number)
        self._taken.add(key)
        return candidate
