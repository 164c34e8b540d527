"""The bytes of a tree's listing: each entry behind its length. What a listing may say is in `zkc.rules.trees`.

::

    stream of a tree    u64 length of the listing || listing || contents of its files, in the order of the listing
    listing             entry...         depth first, a folder before what is in it
    entry               u16 length || TreeFolder, TreeFile or TreeLink, canonical MessagePack
    content of a file   its bytes; of a sparse one the bytes of its runs
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from zkc.constants import LISTING_HEADER_BYTES
from zkc.decoders import msgpack_decoder
from zkc.wire.codec import encode
from zkc.wire.messages import TreeEntry, TreeFile

LENGTH_BYTES: Final = 2

_DECODER: Final = msgpack_decoder(TreeEntry)


def packed(entry: TreeEntry) -> bytes:
    """``entry`` behind its length."""
    body = encode(entry)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def header(length: int) -> bytes:
    """What stands before a listing of ``length`` bytes."""
    return length.to_bytes(LISTING_HEADER_BYTES, "big")


def entries_of(listing: bytes | bytearray | memoryview) -> Iterator[TreeEntry]:
    """The entries of a listing that we made ourselves; a peer's goes through `zkc.rules.trees`."""
    view, at = memoryview(listing), 0
    while at < len(view):
        begin = at + LENGTH_BYTES
        at = begin + int.from_bytes(view[at:begin], "big")
        yield _DECODER.decode(view[begin:at])


def runs_of(file: TreeFile) -> Iterator[tuple[int, int]]:
    """Offset and length of each run of data, ascending; none where there is no byte."""
    if file.runs is None:
        if file.size:
            yield 0, file.size
        return
    at = 0
    for hole, data in zip(file.runs[::2], file.runs[1::2], strict=True):
        at += hole
        yield at, data
        at += data


def data_bytes(file: TreeFile) -> int:
    """Bytes of ``file`` in the stream."""
    return file.size if file.runs is None else sum(file.runs[1::2])
