"""Reading a source as the sender does."""

from __future__ import annotations

from zkc.net.pipe.outgoing import Source


def read(source: Source, n: int) -> bytes:
    """One read of at most ``n`` bytes."""
    buffer = memoryview(bytearray(n))
    return bytes(buffer[: source.readinto(buffer)])


def read_on(source: Source, n: int = 1 << 20) -> bytes:
    """Everything to the end, in reads of at most ``n`` bytes."""
    return b"".join(iter(lambda: read(source, n), b""))
