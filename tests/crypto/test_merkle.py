"""The Merkle tree: RFC 9162's example, and any tree against one that is built by the definition."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.crypto.merkle import Frontier, frontier_of, includes, inclusion_path, leaf_hash, new_nodes, node_hash

# The seven or eight inputs and roots that implementations of RFC 6962 and RFC 9162 share.
INPUTS = [bytes.fromhex(each) for each in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657",
                                           "606162636465666768696a6b6c6d6e6f")]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def root_of(entries: Sequence[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1, word by word."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return leaf_hash(entries[0])
    k = 1
    while 2 * k < len(entries):
        k *= 2
    return node_hash(root_of(entries[:k]), root_of(entries[k:]))


def nodes_of(entries: Sequence[bytes]) -> dict[tuple[int, int], bytes]:
    nodes: dict[tuple[int, int], bytes] = {}
    for index, entry in enumerate(entries):
        nodes |= new_nodes(index, leaf_hash(entry), nodes.__getitem__)
    return nodes


def test_the_known_roots() -> None:
    tree = Frontier()
    assert tree.root == hashlib.sha256().digest()
    for entry, root in zip(INPUTS, ROOTS, strict=True):
        tree = tree.add(leaf_hash(entry))
        assert tree.root.hex() == root


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=70), st.data())
def test_a_leaf_is_proved_in_a_tree_of_any_size_and_nothing_else_is(entries: list[bytes], data: st.DataObject) -> None:
    nodes = nodes_of(entries)
    size = data.draw(st.integers(1, len(entries)))
    index = data.draw(st.integers(0, size - 1))
    read: list[tuple[int, int]] = []

    def subtree(level: int, position: int) -> bytes:
        read.append((level, position))
        return nodes[level, position]

    root = root_of(entries[:size])
    assert frontier_of(size, subtree).root == root
    read.clear()
    path = inclusion_path(index, size, subtree)
    assert len(read) <= 2 * size.bit_length()
    leaf = leaf_hash(entries[index])
    assert includes(root, size, index, leaf, path)
    assert not includes(root, size, index, leaf_hash(entries[index] + b"x"), path)
    assert not includes(root, size, size, leaf, path)
    assert not includes(root, size, -1, leaf, path)
    assert not includes(root, size, index, leaf, [*path, leaf])
    assert not includes(root, size, index, leaf, path[:-1]) or not path
    for place in range(len(path)):
        other = [*path]
        other[place] = bytes(32)
        assert not includes(root, size, index, leaf, other)


def test_a_path_is_bounded() -> None:
    assert not includes(bytes(32), 2**62, 0, bytes(32), [bytes(32)] * 64)


@pytest.mark.parametrize(
    ("size", "hashes"), [(1, ()), (0, (bytes(32),)), (1, (bytes(31),)), (2**63, (bytes(32),)), (-1, (bytes(32),))]
)
def test_a_row_that_is_no_tree_is_refused(size: int, hashes: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="not"):
        Frontier(size, hashes)
