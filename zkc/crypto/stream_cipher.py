"""What every symmetric cipher of a transfer can do."""

from __future__ import annotations

from typing import Protocol

Buffer = bytes | bytearray | memoryview


class StreamCipher(Protocol):
    """One key's worth of authenticated encryption; (nonce, aad) is never used twice by its caller."""

    @property
    def rollover_bytes(self) -> int:
        """How many bytes one key may take."""

    def overhead(self, n: int) -> int:
        """Bytes that sealing ``n`` bytes adds."""

    def seal_into(self, nonce: bytes, aad: bytes, plaintext: Buffer, out: memoryview) -> None:
        """Ciphertext into ``out``, which is exactly ``len(plaintext) + overhead(len(plaintext))`` long."""

    def open(self, nonce: bytes, aad: bytes, ciphertext: Buffer) -> Buffer:
        """The plaintext, only once authenticated, and there until the next call; `PeerViolation` (``forged``)."""
