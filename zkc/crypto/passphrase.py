"""A passphrase in front of keys: Argon2id wraps a random key, and that wraps the keys.

So another passphrase changes one row, and not each key; and a wrong one costs whoever guesses what it costs the owner.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from zkc.crypto.primitives import NONCE_BYTES, ZERO_NONCE, Secret, aead_open, aead_seal
from zkc.errors import PeerViolation

SALT_BYTES: Final = 16
MEMORY_KIB: Final = 64 * 1024
"""What one guess takes: 64 MiB, and 0.15 s of a core of today."""
PASSES: Final = 3
LANES: Final = 4
_WRAP: Final = b"zkc/1 key store"
_MEMORY_KIB_MAX: Final = 1 << 20
_PASSES_MAX: Final = 64


class Lock(Struct, frozen=True):
    """What stands in the file of it: the parameters of Argon2id (RFC 9106), and the key that it wraps."""

    salt: bytes
    memory: int
    """KiB."""
    passes: int
    lanes: int
    wrapped: bytes

    def __repr__(self) -> str:
        return "Lock(…)"


def make_lock(passphrase: bytes, master: Secret, salt: bytes) -> Lock:
    """``master`` behind ``passphrase``; ``salt``: `SALT_BYTES` random bytes, new each time."""
    lock = Lock(salt, MEMORY_KIB, PASSES, LANES, b"")
    wrapped = aead_seal(_stretched(lock, passphrase), ZERO_NONCE, master.reveal(), _WRAP)
    return Lock(lock.salt, lock.memory, lock.passes, lock.lanes, wrapped)


def open_lock(lock: Lock, passphrase: bytes) -> Secret:
    """The master key; `PeerViolation` (``forged``) for another passphrase: always the same, after the same work."""
    if lock.memory > _MEMORY_KIB_MAX or lock.passes > _PASSES_MAX:
        raise PeerViolation("malformed", "parameters that nobody chose")
    return Secret(aead_open(_stretched(lock, passphrase), ZERO_NONCE, lock.wrapped, _WRAP))


def seal_key(master: Secret, private: bytes, nonce: bytes, about: bytes) -> bytes:
    """A private key for the file; ``about`` says which and whose, ``nonce`` is 12 random bytes."""
    return nonce + aead_seal(master.reveal(), nonce, private, _WRAP + about)


def open_key(master: Secret, stored: bytes, about: bytes) -> bytes:
    """What `seal_key` sealed; `PeerViolation` (``forged``)."""
    nonce, ciphertext = stored[:NONCE_BYTES], stored[NONCE_BYTES:]
    return aead_open(master.reveal(), nonce, ciphertext, _WRAP + about)


def _stretched(lock: Lock, passphrase: bytes) -> bytes:
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id  # noqa: PLC0415 - few homes have a passphrase

    made: bytes = Argon2id(
        salt=lock.salt, length=32, iterations=lock.passes, lanes=lock.lanes, memory_cost=lock.memory
    ).derive(passphrase)
    return made
