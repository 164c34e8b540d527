"""Room that is kept on a disk, so that what makes room on a full one has some for itself."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from zkc.stores import files

SPARE_BYTES: Final = 128 * 1024
"""Opening an index takes 32 KiB of shared memory beside it, recording that an item has gone some 20 KiB of its log."""


class Spare:
    """A file without content whose room is taken. Several processes may keep one, and give it up."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self) -> None:
        """Take the room where it is not taken yet. Where the disk has none, or cannot be asked for it, that waits."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(OSError):
            descriptor = os.open(self._path, flags, files.PRIVATE_FILE)
            try:
                os.posix_fallocate(descriptor, 0, SPARE_BYTES)
            except OSError:
                self._path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)

    def give_up(self) -> bool:
        """Let whoever needs it have the room; whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
