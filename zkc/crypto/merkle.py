"""The Merkle tree of the key log: hashes, heads and inclusion proofs of RFC 9162, section 2.1.

A tree of n leaves is a row of complete subtrees, one for each bit of n, the largest first: its `Frontier`. That row is
enough to append, and to know the root; who keeps it and is given every new leaf needs no proof of consistency.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

HASH_BYTES: Final = 32
DEPTH_MAX: Final = 63
"""Sizes are below 2^63: no frontier and no path has more hashes."""
Subtree = Callable[[int, int], bytes]
"""(level, position) -> the root of the complete subtree over the leaves position * 2^level and the 2^level - 1 next."""


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """A tree of ``size`` leaves by its complete subtrees' roots, the largest first."""

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size < 2**DEPTH_MAX or len(self.hashes) != self.size.bit_count():
            raise ValueError("not a row of complete subtrees")
        if any(len(each) != HASH_BYTES for each in self.hashes):
            raise ValueError("not hashes")

    def add(self, leaf: bytes) -> Frontier:
        """The tree with one more leaf; ``leaf`` is its hash."""
        hashes, size = list(self.hashes), self.size
        while size & 1:
            leaf = node_hash(hashes.pop(), leaf)
            size >>= 1
        return Frontier(self.size + 1, (*hashes, leaf))

    @property
    def root(self) -> bytes:
        if not self.hashes:
            return hashlib.sha256(b"").digest()
        *others, root = self.hashes
        for left in reversed(others):
            root = node_hash(left, root)
        return root


def new_nodes(index: int, leaf: bytes, node: Callable[[tuple[int, int]], bytes]) -> dict[tuple[int, int], bytes]:
    """(level, position) -> root of each subtree that leaf ``index`` completes; ``node`` gives those that are there."""
    made = {(0, index): leaf}
    level, position, hashed = 0, index, leaf
    while position & 1:
        hashed = node_hash(node((level, position - 1)), hashed)
        level, position = level + 1, position >> 1
        made[level, position] = hashed
    return made


def frontier_of(size: int, subtree: Subtree) -> Frontier:
    """The tree of the first ``size`` leaves, of stored subtrees."""
    return Frontier(size, tuple(_cover(0, size, subtree)))


def inclusion_path(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """What proves that leaf ``index`` is in the tree of ``size`` leaves (2.1.3.1), the leaf's sibling first."""
    if not 0 <= index < size:
        raise ValueError("no such leaf")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + (1 << ((end - start - 1).bit_length() - 1))
        if index < middle:
            path.append(_root(middle, end, subtree))
            end = middle
        else:
            path.append(_root(start, middle, subtree))
            start = middle
    return path[::-1]


def includes(root: bytes, size: int, index: int, leaf: bytes, path: Sequence[bytes]) -> bool:
    """Whether ``path`` proves the leaf with hash ``leaf`` at ``index`` (2.1.3.2)."""
    if not 0 <= index < size or len(path) > DEPTH_MAX:
        return False
    place, last, found = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return False
        if place & 1 or place == last:
            found = node_hash(sibling, found)
            while not place & 1 and place:
                place >>= 1
                last >>= 1
        else:
            found = node_hash(found, sibling)
        place >>= 1
        last >>= 1
    return last == 0 and found == root


def _cover(start: int, end: int, subtree: Subtree) -> list[bytes]:
    """The complete subtrees of [start, end), whose start is a multiple of the largest of them."""
    roots: list[bytes] = []
    while start < end:
        level = (end - start).bit_length() - 1
        roots.append(subtree(level, start >> level))
        start += 1 << level
    return roots


def _root(start: int, end: int, subtree: Subtree) -> bytes:
    return Frontier(end - start, tuple(_cover(start, end, subtree))).root
