"""How the C library deals with the buffers of chunks, which libzmq, Python and OpenSSL take from it."""

from __future__ import annotations

import ctypes
import functools
from typing import Final

from zkc.constants import WINDOW_MAX

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_TOP_PAD: Final = 4 * 1024 * 1024


@functools.cache
def keep_chunk_memory() -> None:
    """Reuse the memory of chunks for chunks, from the first call on.

    By default glibc gives each back to the kernel as soon as it is free, and the next one is made of fresh pages: that
    was a third of the time of a transfer (measured). Kept is at most what was under way at once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # elsewhere the C library has its own ways
        mallopt(_M_MMAP_THRESHOLD, WINDOW_MAX)
        mallopt(_M_TRIM_THRESHOLD, 2 * WINDOW_MAX)
        mallopt(_M_TOP_PAD, _TOP_PAD)
