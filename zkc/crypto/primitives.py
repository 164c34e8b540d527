"""The few primitives that everything else is composed of: hash, HKDF, MAC, AEAD with a counter nonce, secrets.

Each is a high-level construction of the ``cryptography`` package under the names that the specification
(``docs/protocol.md``, Primitives) uses.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from zkc.errors import PeerViolation

NONCE_BYTES: Final = 12
ZERO_NONCE: Final = bytes(NONCE_BYTES)
_SHA256: Final = hashes.SHA256()


class Secret:
    """Key bytes that show nowhere: not in ``repr``, not in a traceback's locals, not by accident in a log.

    `wipe` overwrites the buffer; copies that the interpreter or OpenSSL made are beyond it (README, Limits).
    """

    __slots__ = ("_buffer",)

    def __init__(self, data: bytes | bytearray) -> None:
        self._buffer = bytearray(data)

    def reveal(self) -> bytes:
        """The bytes. ValueError after `wipe`: a key derived from nothing would be anybody's."""
        if not self._buffer:
            raise ValueError("this secret was wiped")
        return bytes(self._buffer)

    def wipe(self) -> None:
        self._buffer[:] = bytes(len(self._buffer))
        del self._buffer[:]

    def __repr__(self) -> str:
        return "Secret(…)" if self._buffer else "Secret(wiped)"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret is not stored by accident")


def digest(*parts: bytes) -> bytes:
    """H: SHA-256 of the parts one after another, 32 bytes."""
    return sha256(b"".join(parts)).digest()


def extract(salt: bytes, *secrets: Secret) -> Secret:
    """HKDF-Extract over the secrets one after another: a PRK of 32 bytes (RFC 5869, 2.2)."""
    return Secret(HKDF.extract(_SHA256, salt, b"".join(secret.reveal() for secret in secrets)))


def expand(prk: Secret, name: str | bytes, n: int) -> bytes:
    """HKDF-Expand(PRK, "zkc/1 " name, n) (RFC 5869, 2.3)."""
    label = name.encode() if isinstance(name, str) else name
    return HKDFExpand(_SHA256, n, b"zkc/1 " + label).derive(prk.reveal())


def mac(key: bytes, *parts: bytes) -> bytes:
    """HMAC-SHA256 of the parts one after another, 32 bytes."""
    state = hmac.new(key, digestmod=sha256)
    for part in parts:
        state.update(part)
    return state.digest()


def check_mac(expected: bytes, received: bytes) -> None:
    """Constant-time comparison; `PeerViolation` (``forged``) where they differ."""
    if not hmac.compare_digest(expected, received):
        raise PeerViolation("forged", "a MAC does not verify")


def fresh_key() -> bytes:
    """32 bytes of the library that makes the key pairs and the HPKE secrets too: it takes no entropy of ours."""
    return AESGCM.generate_key(256)


def aead_seal(key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """AES-256-GCM; the nonce is 12 bytes, the key 32, always."""
    return AESGCM(_key32(key)).encrypt(_nonce12(nonce), plaintext, aad)


def aead_open(key: bytes, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
    """The plaintext; `PeerViolation` (``forged``) for whatever does not open."""
    try:
        return AESGCM(_key32(key)).decrypt(_nonce12(nonce), ciphertext, aad)
    except (InvalidTag, ValueError):
        raise PeerViolation("forged", "a ciphertext does not open") from None


def counter_nonce(base: bytes, counter: int) -> bytes:
    """``base XOR (0^4 || u64 counter)``: 12 bytes, each counter once under a key."""
    return (int.from_bytes(base, "big") ^ counter).to_bytes(NONCE_BYTES, "big")


def _key32(key: bytes) -> bytes:
    if len(key) != 32:
        raise ValueError("an AES-256 key is 32 bytes long")
    return key


def _nonce12(nonce: bytes) -> bytes:
    if len(nonce) != NONCE_BYTES:
        raise ValueError("the nonce is 12 bytes long")
    return nonce
