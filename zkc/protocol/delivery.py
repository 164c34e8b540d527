"""What both ends of a direct delivery have: the keys of its streams, and how it is given up (Figure 2, 209 to 211).

One delivery may take several connections. Each is an attempt with keys of its own, above all attempts before it, and a
machine of its own; what goes on from one to the next is the position, the running digest, and at the end the receipt.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from zkc.crypto.chunks import Sealed, StreamOpener, StreamSealer
from zkc.crypto.stream_cipher import Buffer
from zkc.errors import PeerViolation
from zkc.protocol.session import Session
from zkc.wire.frames import DataHeader, Stream


class GiveUp(Struct, frozen=True):
    """Event: nothing comes of it, with a code of the contract."""

    code: int
    detail: str


class Stopped(Struct, frozen=True):
    """Effect: the other end gave up, with a code of the contract."""

    code: int
    detail: str


class NotOpened(PeerViolation):
    """A frame that did not open: not, or not only, made by who holds the key. It ends a connection, and no delivery."""


def open_frame(opener: StreamOpener, header: DataHeader, frame: Buffer) -> Buffer:
    """The plaintext of ``frame``, there until the next one is opened; `NotOpened`."""
    try:
        return opener.open(header, frame)
    except PeerViolation as violation:
        raise NotOpened(violation.detail, str(violation)) from None


def read_header(frame: Buffer) -> DataHeader:
    """The header of ``frame``; `NotOpened`."""
    try:
        return DataHeader.unpack(frame)
    except PeerViolation as violation:
        raise NotOpened(violation.detail, str(violation)) from None


def sealer_of(
    session: Session, stream: Stream, attempt: int, allot: Callable[[int], Sealed] = bytearray
) -> StreamSealer:
    """What seals the frames of one stream of one attempt, from index 0."""
    return StreamSealer(session.k, stream, attempt, session.req.cipher, allot)


def opener_of(session: Session, stream: Stream, attempt: int) -> StreamOpener:
    """What opens the frames of one stream of one attempt, from index 0."""
    return StreamOpener(session.k, stream, attempt, session.req.cipher)
