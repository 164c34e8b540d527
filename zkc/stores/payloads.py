"""Files of the inbox, each named by an id that we made, and locked by the process that works on it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import Literal

from zkc.stores import files

Swept = Literal["removed", "locked", "nothing"]


def open_payload(folder: int, name: str) -> int:
    """A descriptor to read from. `OSError` for what is no regular file."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def sweep(folder: int, name: str, into: int | None = None) -> Swept:
    """Remove a file of ours that no living process has locked; with ``into`` it goes to that folder, unless something
    has its name there."""
    with files.translated("sweeping the inbox"):
        try:
            descriptor = open_payload(folder, name)
        except OSError:
            return "nothing"  # no file of ours stands there: left for a person to look at
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if into is not None:
                with suppress(FileExistsError):  # `files.publish` was killed between its two steps
                    files.publish(folder, name, into, name)
            files.unlink(folder, name)
        except BlockingIOError:
            return "locked"
        finally:
            os.close(descriptor)
        return "removed"
