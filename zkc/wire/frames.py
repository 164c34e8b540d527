"""What one ZeroMQ frame holds: the control frame's two leading bytes, a record's header, a data frame's header.

Integers are big-endian. Counts and sizes are checked here; nothing is decrypted or decided here.
"""

from __future__ import annotations

import struct
from enum import STRICT, IntEnum, IntFlag
from typing import Final

from msgspec import Struct

from zkc.constants import CONTROL_MESSAGE_MAX, TAG_BYTES, VERSION, XID_TAG_BYTES
from zkc.errors import PeerViolation


class ControlKind(IntEnum):
    """Second byte of a control frame."""

    REGISTRATION = 1
    CHANNEL = 2
    RECORD = 3


def control_frame(kind: ControlKind, body: bytes) -> bytes:
    """``u8 version, u8 kind, body``."""
    return bytes((VERSION, kind)) + body


def split_control(frame: bytes) -> tuple[ControlKind, bytes]:
    """Kind and body of a control frame; `PeerViolation` (``malformed``, ``version``, ``limit``)."""
    if len(frame) > CONTROL_MESSAGE_MAX:
        raise PeerViolation("limit", "control message too long")
    if len(frame) < 2:
        raise PeerViolation("malformed", "short control frame")
    if frame[0] != VERSION:
        raise PeerViolation("version", f"version {frame[0]}")
    try:
        return ControlKind(frame[1]), frame[2:]
    except ValueError:
        raise PeerViolation("malformed", f"control kind {frame[1]}") from None


_RECORD: Final = struct.Struct(f">BB{TAG_BYTES}sQ")
RECORD_HEADER_BYTES: Final = _RECORD.size


def record_header(tag: bytes, counter: int) -> bytes:
    """``u8 version, u8 kind, tag 8, counter u64``: a record's first 18 bytes, all of them associated data."""
    return _RECORD.pack(VERSION, ControlKind.RECORD, tag, counter)


def split_record(frame: bytes) -> tuple[bytes, bytes, int, bytes]:
    """``(header, tag, counter, ciphertext)`` of a record frame."""
    if len(frame) < RECORD_HEADER_BYTES:
        raise PeerViolation("malformed", "short record")
    header = frame[:RECORD_HEADER_BYTES]
    _, _, tag, counter = _RECORD.unpack(header)
    return header, tag, counter, frame[RECORD_HEADER_BYTES:]


class Stream(IntEnum):
    """The three streams of a transfer, each with keys of its own."""

    MANIFEST = 1
    DATA = 2
    ACK = 3


class Flag(IntFlag, boundary=STRICT):
    """Flags of a data frame; LAST also stands in the nonce, and ZSTD beside LAST or none."""

    NONE = 0
    LAST = 1
    START = 2
    BYE = 4
    STOP = 8
    ZSTD = 16


_DATA: Final = struct.Struct(f">BBBIQ{XID_TAG_BYTES}s")
DATA_HEADER_BYTES: Final = _DATA.size


class DataHeader(Struct, frozen=True):
    """``u8 version, u8 stream, u8 flags, u32 attempt, u64 index, xid_tag 16``."""

    stream: Stream
    flags: Flag
    attempt: int
    index: int
    xid_tag: bytes

    def pack(self) -> bytes:
        return _DATA.pack(VERSION, self.stream, self.flags, self.attempt, self.index, self.xid_tag)

    @classmethod
    def unpack(cls, frame: bytes | bytearray | memoryview) -> DataHeader:
        """The header at the front of ``frame``; `PeerViolation` (``malformed``, ``version``)."""
        if len(frame) < DATA_HEADER_BYTES:
            raise PeerViolation("malformed", "short data frame")
        version, stream, flags, attempt, index, xid_tag = _DATA.unpack_from(frame)
        if version != VERSION:
            raise PeerViolation("version", f"version {version}")
        try:
            return cls(Stream(stream), Flag(flags), attempt, index, xid_tag)
        except ValueError as error:
            raise PeerViolation("malformed", str(error)) from None


