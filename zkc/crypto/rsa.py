"""The keys of the suite ``rsa``: OAEP-SHA-256 (RFC 8017), and AES-256-GCM for what is longer than a key.

What `zkc.crypto.suites` asks of a kind of key; a public key is a SubjectPublicKeyInfo, a private one PKCS #8, both DER.
"""

from __future__ import annotations

from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from zkc.crypto.primitives import ZERO_NONCE, aead_open, aead_seal, fresh_key

_BITS: Final = range(3072, 4097)
_EXPONENT: Final = 65537


def generate() -> tuple[Any, bytes, bytes]:
    """A new native key, its private and its public bytes."""
    key = rsa.generate_private_key(_EXPONENT, _BITS.start)
    private = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key, private, _public_bytes(key.public_key())


def _public_bytes(key: rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def load_private(private: bytes) -> tuple[Any, bytes]:
    """The native key and its public bytes; ValueError where it is none."""
    key = serialization.load_der_private_key(private, None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("not an RSA key")
    return key, _public_bytes(key.public_key())


def load_public(public: bytes) -> Any:
    """The native key; ValueError where it is none, or one that was made to do harm."""
    try:
        key = serialization.load_der_public_key(public)
    except UnsupportedAlgorithm:
        raise ValueError("a key of an unknown kind") from None
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size not in _BITS:
        raise ValueError("not an RSA key of 3072 to 4096 bits")
    numbers = key.public_numbers()
    if numbers.e != _EXPONENT or _public_bytes(key) != public:
        raise ValueError("not the canonical encoding of an RSA key with exponent 65537")
    if numbers.n % 2 == 0:  # loads, and then fails when something is encrypted to it
        raise ValueError("an RSA modulus is odd")
    return key


def _oaep(info: bytes) -> padding.OAEP:
    return padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=info)


def encapsulate(key: Any, info: bytes, secret: bytes) -> bytes:
    """``secret`` to the holder of the public ``key``, bound to ``info``."""
    return bytes(key.encrypt(secret, _oaep(info)))


def decapsulate(key: Any, info: bytes, ciphertext: bytes) -> bytes:
    """What was encapsulated; ValueError."""
    return bytes(key.decrypt(ciphertext, _oaep(info)))


def encrypt(key: Any, info: bytes, plaintext: bytes) -> bytes:
    """``plaintext`` of any length to the holder of the public ``key``, bound to ``info``."""
    content_key = fresh_key()
    return encapsulate(key, info, content_key) + aead_seal(content_key, ZERO_NONCE, plaintext, info)


def decrypt(key: Any, info: bytes, ciphertext: bytes) -> bytes:
    """What was encrypted; ValueError, `PeerViolation` (``forged``)."""
    size = (key.key_size + 7) // 8
    content_key = decapsulate(key, info, ciphertext[:size])
    return aead_open(content_key, ZERO_NONCE, ciphertext[size:], info)
