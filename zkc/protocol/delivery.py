"""What both ends of a direct delivery have: the keys of its streams, and how it is given up (Figure 2, 209 to 211)."""

from __future__ import annotations

from dataclasses import dataclass

from zkc.crypto.chunks import StreamOpener, StreamSealer
from zkc.protocol.session import Session
from zkc.wire.frames import Stream


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Event: nothing comes of it, with a code of the contract."""

    code: int
    detail: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """Effect: the other end gave up, with a code of the contract."""

    code: int
    detail: str


def sealer_of(session: Session, stream: Stream, attempt: int) -> StreamSealer:
    """What seals the frames of one stream of one attempt, from index 0."""
    return StreamSealer(session.k, stream, attempt, session.req.cipher)


def opener_of(session: Session, stream: Stream, attempt: int) -> StreamOpener:
    """What opens the frames of one stream of one attempt, from index 0."""
    return StreamOpener(session.k, stream, attempt, session.req.cipher)
