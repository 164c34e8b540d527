"""UNSAFE: the document's Triple-DES and IDEA, as encrypt-then-MAC. For whoever must; 64-bit blocks, no speed.

Off unless coordinator, sender and recipient each allow the cipher by name. CBC with IV = first block of
HMAC(k_iv, aad), then HMAC-SHA256 over aad, IV, ciphertext; the keys are expanded from the stream's key.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.decrepit.ciphers.algorithms import IDEA, TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.padding import PKCS7

from zkc.constants import MAC_BYTES, ROLLOVER_BYTES_64BIT_BLOCK
from zkc.crypto.primitives import Secret, check_mac, expand, mac
from zkc.crypto.stream_cipher import Buffer, StreamCipher
from zkc.errors import PeerViolation

_BLOCK: Final = 8
_ALGORITHMS: Final = {"3des": (TripleDES, 24), "idea": (IDEA, 16)}


class CbcThenMac:
    """One of the old block ciphers with the MAC that the document did not ask for."""

    rollover_bytes = ROLLOVER_BYTES_64BIT_BLOCK

    def __init__(self, name: str, key: bytes) -> None:
        algorithm, size = _ALGORITHMS[name]
        root = Secret(key)
        self._algorithm = algorithm(expand(root, f"{name} key", size))
        self._iv_key = expand(root, f"{name} iv", 32)
        self._mac_key = expand(root, f"{name} mac", 32)

    def overhead(self, n: int) -> int:
        return _BLOCK - n % _BLOCK + MAC_BYTES

    def seal_into(self, nonce: bytes, aad: bytes, plaintext: Buffer, out: memoryview) -> None:
        iv = self._iv(aad)
        padder, encryptor = PKCS7(8 * _BLOCK).padder(), Cipher(self._algorithm, modes.CBC(iv)).encryptor()
        padded = padder.update(bytes(plaintext)) + padder.finalize()
        ciphertext = encryptor.update(padded) + encryptor.finalize()
        out[:] = ciphertext + mac(self._mac_key, aad, iv, ciphertext)

    def open(self, nonce: bytes, aad: bytes, ciphertext: Buffer) -> bytes:
        body, tag = bytes(ciphertext[:-MAC_BYTES]), bytes(ciphertext[-MAC_BYTES:])
        iv = self._iv(aad)
        check_mac(mac(self._mac_key, aad, iv, body), tag)
        try:
            decryptor, unpadder = Cipher(self._algorithm, modes.CBC(iv)).decryptor(), PKCS7(8 * _BLOCK).unpadder()
            return unpadder.update(decryptor.update(body) + decryptor.finalize()) + unpadder.finalize()
        except ValueError:
            raise PeerViolation("forged", "a frame does not open") from None

    def _iv(self, aad: bytes) -> bytes:
        return mac(self._iv_key, aad)[:_BLOCK]


def make_unsafe_cipher(name: str, key: bytes) -> StreamCipher:
    """``3des`` or ``idea`` under a 32-byte stream key."""
    return CbcThenMac(name, key)
