"""Chunks written shorter: each one a zstd frame of its own (RFC 8878), or as it is where that is no longer.

A frame says how many bytes it stands for, and one that claims more than was agreed is not unpacked at all: what a peer
can make of a chunk is a chunk, in memory too.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, Final

from zkc.constants import CHUNK_MAX
from zkc.errors import PeerViolation

LEVEL: Final = 3
"""zstd's own default: 300 MB/s and more on one core."""
_WINDOW_LOG: Final = (CHUNK_MAX - 1).bit_length()
"""A decoder's memory as a power of two: no frame needs to look back further than a chunk goes."""


@cache
def _zstd() -> Any:
    """Imported when something is compressed, and not before: it is Python's own from 3.14 on."""
    if sys.version_info >= (3, 14):
        from compression import zstd  # noqa: PLC0415
    else:
        from backports import zstd  # noqa: PLC0415
    return zstd


class Packer:
    """Makes frames, with the memory that it has from the one before."""

    def __init__(self) -> None:
        self._compressor = _zstd().ZstdCompressor(LEVEL)

    def pack(self, data: bytes | bytearray | memoryview) -> bytes | None:
        """``data`` as a frame; None where that is not shorter."""
        self._compressor.set_pledged_input_size(len(data))
        frame: bytes = self._compressor.compress(data, self._compressor.FLUSH_FRAME)
        return frame if len(frame) < len(data) else None


def unpack(frame: bytes, most: int) -> bytes:
    """The bytes that ``frame`` stands for, one at least and at most ``most``.

    `PeerViolation`: ``limit`` (more than ``most``), ``malformed`` (no frame, not one frame alone, not what it claims).
    """
    zstd = _zstd()
    try:
        size = zstd.get_frame_info(frame).decompressed_size
        if size is not None and size > most:
            raise PeerViolation("limit", "a chunk that unpacks to more than the agreed size")
        decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
        data: bytes = decoder.decompress(frame, max_length=size or 1)
    except zstd.ZstdError as error:
        raise PeerViolation("malformed", f"a chunk that does not unpack ({error})"[:120]) from None
    if not size or len(data) != size or not decoder.eof or decoder.unused_data:
        raise PeerViolation("malformed", "a chunk that does not unpack to what it claims")
    return data
