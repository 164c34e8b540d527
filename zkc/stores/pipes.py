"""Pipes of the system: how much of them a process may have under way."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from typing import Final

PIPE_BYTES: Final = 1 << 20
"""What Linux lets a user's pipe hold (/proc/sys/fs/pipe-max-size), 16 times what it holds at first: a chunk in one call
and not in eight."""


def widen_pipe(fd: int) -> None:
    """Where ``fd`` is a pipe, have it hold `PIPE_BYTES`; where the system allows less, it stays as it is."""
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
