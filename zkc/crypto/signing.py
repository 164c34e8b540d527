"""Identities: Ed25519 for what lives minutes, Ed25519 and ML-DSA-65 together for what must hold for years.

A signature is over ``"zkc/1 " label 0x00 hash``; a durable one is the Ed25519 signature followed by the ML-DSA one,
and both must verify. fingerprint = H("zkc/1 id" 0x00 ed25519 || ml-dsa), 32 bytes, shown as 64 hex digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from zkc.crypto.primitives import Secret, digest
from zkc.errors import PeerViolation

ED25519_SIGNATURE: Final = 64
ML_DSA_SIGNATURE: Final = 3309
_SEED: Final = 32
_PREFIX: Final = b"zkc/1 "
_P: Final = 2**255 - 19

# y coordinates of the points of small order on edwards25519: keys that "verify" forged signatures (RFC 8032, 8.9).
_SMALL_ORDER_Y: Final = frozenset(
    int.from_bytes(bytes.fromhex(y), "little")
    for y in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
    )
)


@dataclass(frozen=True)
class IdentityPublic:
    """Both public halves, checked when they were read."""

    ed25519: bytes
    ml_dsa: bytes

    @cached_property
    def fingerprint(self) -> bytes:
        return digest(b"zkc/1 id\0", self.ed25519, self.ml_dsa)

    @cached_property
    def _ed25519(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.ed25519)

    @cached_property
    def _ml_dsa(self) -> MLDSA65PublicKey:
        return MLDSA65PublicKey.from_public_bytes(self.ml_dsa)

    def load(self) -> None:
        """Both halves parsed by the library; ValueError or TypeError where it does not take them."""
        _ = self._ed25519, self._ml_dsa

    def verify(self, label: str, hashed: bytes, signature: bytes) -> None:
        """A live (Ed25519) signature; `PeerViolation` (``forged``)."""
        try:
            self._ed25519.verify(signature, _message(label, hashed))
        except (InvalidSignature, ValueError, TypeError):
            raise PeerViolation("forged", f"signature {label!r} does not verify") from None

    def verify_durable(self, label: str, hashed: bytes, signature: bytes) -> None:
        """A durable signature: both halves; `PeerViolation` (``forged``)."""
        self._verify_both(label, _message(label, hashed), signature)

    def verify_note(self, text: bytes, signature: bytes) -> None:
        """Both halves over a note's text itself; `PeerViolation` (``forged``)."""
        self._verify_both("note", text, signature)

    def _verify_both(self, what: str, message: bytes, signature: bytes) -> None:
        if len(signature) != ED25519_SIGNATURE + ML_DSA_SIGNATURE:
            raise PeerViolation("forged", f"signature {what!r} has the wrong length")
        try:
            self._ed25519.verify(signature[:ED25519_SIGNATURE], message)
            self._ml_dsa.verify(signature[ED25519_SIGNATURE:], message)
        except (InvalidSignature, ValueError, TypeError):
            raise PeerViolation("forged", f"signature {what!r} does not verify") from None


def read_identity(ed25519: bytes, ml_dsa: bytes) -> IdentityPublic:
    """Keys of a peer; `PeerViolation` (``bad-key``) for wrong lengths, non-canonical and small-order points."""
    try:
        y = int.from_bytes(ed25519, "little") & ((1 << 255) - 1)
        if len(ed25519) != 32 or y >= _P or y in _SMALL_ORDER_Y:
            raise ValueError("not an Ed25519 point of large order")
        identity = IdentityPublic(ed25519, ml_dsa)
        identity.load()
    except (ValueError, TypeError) as error:
        raise PeerViolation("bad-key", str(error)[:80]) from None
    return identity


@dataclass(frozen=True, repr=False)
class IdentityKey:
    """A signing identity: the coordinator's, or one registration's."""

    secret: Secret
    public: IdentityPublic
    _ed25519: Ed25519PrivateKey
    _ml_dsa: MLDSA65PrivateKey

    def __repr__(self) -> str:
        return f"IdentityKey({self.public.fingerprint.hex()[:16]}, …)"

    @classmethod
    def from_seed(cls, seed: bytes) -> IdentityKey:
        """From 64 random bytes, as they are stored: Ed25519 seed, ML-DSA seed."""
        if len(seed) != 2 * _SEED:
            raise ValueError("an identity seed is 64 bytes long")
        ed25519 = Ed25519PrivateKey.from_private_bytes(seed[:_SEED])
        ml_dsa = MLDSA65PrivateKey.from_seed_bytes(seed[_SEED:])
        public = IdentityPublic(ed25519.public_key().public_bytes_raw(), ml_dsa.public_key().public_bytes_raw())
        return cls(Secret(seed), public, ed25519, ml_dsa)

    def sign(self, label: str, hashed: bytes) -> bytes:
        """A live signature: 64 bytes."""
        return self._ed25519.sign(_message(label, hashed))

    def sign_durable(self, label: str, hashed: bytes) -> bytes:
        """A durable signature: 64 + 3,309 bytes."""
        return self._sign_both(_message(label, hashed))

    def sign_note(self, text: bytes) -> bytes:
        """As durable, over a note's text itself, as signed notes are; it begins with its origin and so is no message
        of ours."""
        if text.startswith(_PREFIX):
            raise ValueError("a note that could be taken for a message")
        return self._sign_both(text)

    def _sign_both(self, message: bytes) -> bytes:
        return self._ed25519.sign(message) + self._ml_dsa.sign(message)


def safety_number(one: bytes, other: bytes) -> str:
    """The pair's number from both fingerprints, the same at both ends: 12 groups of 5 digits.

    int(H("zkc/1 safety" 0x00 min || max)) mod 10^60.
    """
    low, high = sorted((one, other))
    digits = f"{int.from_bytes(digest(b'zkc/1 safety' + bytes(1), low, high), 'big') % 10**60:060d}"
    return " ".join(digits[i : i + 5] for i in range(0, 60, 5))


def _message(label: str, hashed: bytes) -> bytes:
    return _PREFIX + label.encode() + b"\0" + hashed
