"""Bytes that are taken over for a later delivery: written encrypted, chunk by chunk, and read back as a source.

The frames are those of a transfer (`zkc.crypto.chunks`), under a key of its own that only the job has: with the job it
is erased, and what a disk still holds of the file says nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from zkc.constants import COMMITMENT_BYTES
from zkc.crypto.chunks import StreamOpener, StreamSealer
from zkc.crypto.primitives import Secret
from zkc.errors import LocalIOError, PeerViolation, PolicyRefused
from zkc.net.pipe.outgoing import Source
from zkc.rules.units import show_size
from zkc.stores import files
from zkc.wire.frames import DATA_HEADER_BYTES, DataHeader, Flag, Stream

KEY_BYTES: Final = 32
_CIPHER: Final = "aes-256-gcm"
_CHUNK: Final = 1 << 20
_TAG_BYTES: Final = 16


def spool(source: Source, path: Path, key: Secret, room: int) -> int:
    """All of ``source`` into the new file ``path``, durable; how many bytes it gave.

    `PolicyRefused` (``limit``) beyond ``room`` bytes; `LocalIOError`.
    """
    sealer = StreamSealer(key, Stream.DATA, 0, _CIPHER)
    buffer = memoryview(bytearray(_CHUNK))
    size = 0
    with files.translated("writing to the outbox"):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, files.PRIVATE_FILE)
    try:
        ended = False
        while not ended:
            filled = 0
            while filled < _CHUNK and not ended:
                count = source.readinto(buffer[filled:])
                filled, ended = filled + count, not count
            size += filled
            if size > room or sealer.used_up:
                raise PolicyRefused(
                    f"there is no room for it in the outbox: {show_size(room)} are left of outbox.max_bytes",
                    detail="limit", hint="zkc outbox lists what takes it; files go by reference, without --copy",
                )
            frame = sealer.seal(buffer[:filled], Flag.LAST if ended else Flag.NONE)
            with files.translated("writing to the outbox"):
                files.write_all(descriptor, frame)
        source.check()
        with files.translated("writing to the outbox"):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return size


class SpoolSource:
    """What `spool` wrote, from its beginning or any position."""

    fd: int | None = None
    again = True
    identity: tuple[bytes, ...] = ()

    def __init__(self, path: Path, key: Secret) -> None:
        self._key = key
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise files.local_error(error, "reading the outbox") from None
        self._begin()

    def _begin(self) -> None:
        self._file.seek(0)
        self._opener = StreamOpener(self._key, Stream.DATA, 0, _CIPHER)
        self._chunk = memoryview(b"")
        self._ended = False

    def readinto(self, into: memoryview) -> int:
        while not self._chunk and not self._ended:
            self._next()
        part = self._chunk[: len(into)]
        self._chunk = self._chunk[len(part) :]
        into[: len(part)] = part
        return len(part)

    def seek(self, position: int) -> None:
        """By reading up to there again: each frame is opened in its order."""
        self._begin()
        while position and not (self._ended and not self._chunk):
            if not self._chunk:
                self._next()
            skipped = self._chunk[:position]
            self._chunk = self._chunk[len(skipped) :]
            position -= len(skipped)

    def entry_at(self, position: int) -> tuple[str, int, int]:
        """No part of it has a name."""
        return "", 0, 0

    def check(self) -> None:
        """Every frame was authenticated."""

    def close(self) -> None:
        self._file.close()

    def _next(self) -> None:
        first = COMMITMENT_BYTES if self._opener.index == 0 else 0
        try:
            frame = self._file.read(DATA_HEADER_BYTES + first + _CHUNK + _TAG_BYTES)
            header = DataHeader.unpack(frame)
            self._chunk = memoryview(self._opener.open(header, frame))
        except (OSError, PeerViolation):
            raise LocalIOError(
                f"{self._file.name} is damaged", detail="damaged", hint="zkc outbox cancel ID, and send it again"
            ) from None
        self._ended = Flag.LAST in header.flags
