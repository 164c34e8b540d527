"""Symmetric ciphers for the frames of a transfer, by name. The document's unsafe ones are in `zkc.crypto.unsafe`.

To add a cipher: a class with the members of `zkc.crypto.stream_cipher.StreamCipher`, a line in `_SAFE`, and its name
in `zkc.ids`, from where configuration and commands have it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from zkc.constants import AEAD_TAG_BYTES, CHUNK_MIN, ROLLOVER_BYTES
from zkc.crypto.stream_cipher import Buffer, StreamCipher
from zkc.errors import PeerViolation
from zkc.ids import UNSAFE_CIPHERS


class AeadCipher:
    """AES-256-GCM or ChaCha20-Poly1305."""

    rollover_bytes = ROLLOVER_BYTES

    def __init__(self, aead: AESGCM | ChaCha20Poly1305) -> None:
        self._aead = aead
        self._plaintext = memoryview(b"")
        """Of a chunk, in memory that is used again: new memory is cleared before anything is opened into it."""

    def overhead(self, n: int) -> int:
        return AEAD_TAG_BYTES

    def seal_into(self, nonce: bytes, aad: bytes, plaintext: Buffer, out: memoryview) -> None:
        self._aead.encrypt_into(nonce, plaintext, aad, out)

    def open(self, nonce: bytes, aad: bytes, ciphertext: Buffer) -> Buffer:
        n = len(ciphertext) - AEAD_TAG_BYTES
        try:
            if n <= CHUNK_MIN:
                return self._aead.decrypt(nonce, ciphertext, aad)
            if n != len(self._plaintext):
                self._plaintext = memoryview(bytearray(n))
            self._aead.decrypt_into(nonce, ciphertext, aad, self._plaintext)
            return self._plaintext.toreadonly()
        except (InvalidTag, ValueError):
            raise PeerViolation("forged", "a frame does not open") from None


_SAFE: Final[dict[str, Callable[[bytes], StreamCipher]]] = {
    "aes-256-gcm": lambda key: AeadCipher(AESGCM(key)),
    "chacha20-poly1305": lambda key: AeadCipher(ChaCha20Poly1305(key)),
}


def make_cipher(name: str, key: bytes) -> StreamCipher:
    """The cipher ``name`` under a 32-byte ``key``; `PeerViolation` (``version``) for a name not known here.

    Whether a cipher is *allowed* is policy (`zkc.rules.policy`), decided before any key exists.
    """
    if name in _SAFE:
        return _SAFE[name](key)
    if name in UNSAFE_CIPHERS:
        from zkc.crypto.unsafe import make_unsafe_cipher  # noqa: PLC0415  loaded only by those who opted in

        return make_unsafe_cipher(name, key)
    raise PeerViolation("version", f"cipher {name[:40]!r}")
