"""A PIN as it is kept: what is guessed against it costs time and memory (RFC 9106), whatever was stolen."""

from __future__ import annotations

import hmac
from typing import Final

_ITERATIONS: Final = 3
_LANES: Final = 4
_MEMORY_KIB: Final = 64 * 1024
"""Argon2id with 64 MiB and three passes: what the RFC recommends where memory is short; a tenth of a second."""
_DIGEST_BYTES: Final = 32


def pin_digest(pin: str, salt: bytes) -> bytes:
    """32 bytes; ``salt`` is of 16 random ones."""
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id  # noqa: PLC0415 - a daemon starts without it

    return Argon2id(
        salt=salt, length=_DIGEST_BYTES, iterations=_ITERATIONS, lanes=_LANES, memory_cost=_MEMORY_KIB
    ).derive(pin.encode(errors="surrogateescape"))


def is_pin(pin: str, salt: bytes, digest: bytes) -> bool:
    """Whether ``digest`` was made of it; takes as long for a wrong one."""
    return hmac.compare_digest(pin_digest(pin, salt), digest)
