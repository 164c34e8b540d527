"""The transcript hash that every MAC, seal, signature and key of a conversation is bound to."""

from __future__ import annotations

from hashlib import sha256
from typing import Literal

from msgspec import Struct

from zkc.crypto.primitives import digest

Pattern = Literal["reg", "chan", "xfer", "ask"]


class Transcript(Struct, frozen=True):
    """``th``: a value, so a machine verifies into a new one and commits it last.

    th0 = H("zkc/1" 0x00 pattern 0x00 suite); absorbing a field: th = H(th || u32(len field) || field), as received.
    """

    value: bytes

    @classmethod
    def start(cls, pattern: Pattern, suite: str) -> Transcript:
        return cls(digest(b"zkc/1\0", pattern.encode(), b"\0", suite.encode()))

    def absorb(self, *fields: bytes) -> Transcript:
        """The transcript after each of ``fields``, in that order."""
        th = self.value
        for field in fields:
            th = sha256(th + len(field).to_bytes(4, "big") + field).digest()
        return Transcript(th)
