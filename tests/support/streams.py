"""Both ends of a delivery in memory, for tests of what is between them."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Any, Final, Self

from blake3 import blake3

from tests.support.parties import identity_of, world
from tests.support.waiting import DEADLINE
from zkc.crypto.receipts import make_receipt
from zkc.net.pipe.bell import Bell, LinkLost
from zkc.net.pipe.sender import Attempts, Told
from zkc.protocol.delivery_recipient import receipt_body
from zkc.protocol.delivery_sender import Delivered
from zkc.protocol.session import Session
from zkc.wire.messages import Manifest

WHAT: Final = Manifest("stream", "data.bin", "", None, 0o600, 0)


class Memory:
    """A source in memory; ``again`` False: like a pipe that never waits, read once."""

    fd: int | None = None

    def __init__(self, data: bytes = b"", *, again: bool = True) -> None:
        self._data = memoryview(data)
        self._position = 0
        self.again = again

    def readinto(self, into: memoryview) -> int:
        piece = self._data[self._position : self._position + len(into)]
        into[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def seek(self, position: int) -> None:
        assert self.again, "a pipe is read once"
        self._position = position

    def check(self) -> None:
        """It does not change."""


class Slow:
    """A pipe, read once, that pauses where nothing is given. Use as a context manager."""

    again = False

    def __init__(self) -> None:
        self.fd, self._giving = os.pipe()
        os.set_blocking(self._giving, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        os.close(self.fd)

    def give(self, data: bytes) -> None:
        """All of it, which may be more than a pipe holds."""
        poller = select.poll()
        poller.register(self._giving, select.POLLOUT)
        while data:
            assert poller.poll(DEADLINE * 1000), "nobody reads"
            data = data[os.write(self._giving, data) :]

    def end(self) -> None:
        """Nothing more comes. Again: nothing."""
        giving, self._giving = self._giving, -1
        if giving >= 0:
            os.close(giving)

    def readinto(self, into: memoryview) -> int:
        return os.readv(self.fd, [into])

    def seek(self, position: int) -> None:
        raise AssertionError("a pipe is read once")

    def check(self) -> None:
        """Whatever comes."""


class Kept:
    """A sink in memory. ``on_write`` sees what has come so far, ``on_complete`` comes before the receipt is made."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.got = bytearray()
        self.manifests: list[Manifest] = []
        self.completed = 0
        self.on_write: Callable[[int], object] = lambda _: None
        self.on_complete: Callable[[], object] = lambda: None

    def resume(self) -> tuple[int, Any]:
        return len(self.got), blake3(bytes(self.got))

    def announced(self, manifest: Manifest) -> None:
        self.manifests.append(manifest)

    def write(self, data: bytes) -> None:
        self.got += data
        self.on_write(len(self.got))

    def complete(self, size: int, digest: bytes) -> bytes:
        self.completed += 1
        self.on_complete()
        body = receipt_body(self._session, self.manifests[0], size, digest, 1.0, 2.0)
        return make_receipt(identity_of("bob"), body, world("x25519").bob.card.encoded)


def persist(attempts: Attempts) -> tuple[Delivered, int]:
    """As many attempts as it takes, and how many broke off."""
    end = time.monotonic() + DEADLINE
    lost = 0
    while time.monotonic() < end:
        try:
            return attempts.next(Bell(), Told()), lost
        except LinkLost:
            lost += 1
    raise AssertionError(f"not delivered after {lost} attempts")
