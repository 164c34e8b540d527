"""Key encapsulation and sealing: ``hybrid`` (ML-KEM-768 + X25519), ``x25519``, ``rsa``.

A suite is fixed at a coordinator's first start and carried in every invitation: nothing is negotiated in band.
A public key on the wire is ``u8 kind || raw bytes`` (SubjectPublicKeyInfo for rsa). To add a suite: one `_Kind`
with its five functions, one line in `SUITES`, and its name in `zkc.ids`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
)
from cryptography.hazmat.primitives.hpke import Suite as Hpke

from zkc.crypto.primitives import Secret, fresh_key
from zkc.errors import PeerViolation

_MLKEM_PUBLIC: Final = 1184
_MLKEM_SEED: Final = 64
_X25519: Final = 32

_READ_KEPT: Final = 256
"""Permanent public keys that were read, those used last."""

_X25519_FIELD: Final = 2**255 - 19
# Points of small order on Curve25519: a shared secret with one is a constant.
_X25519_SMALL_ORDER: Final = frozenset(
    bytes.fromhex(encoding)
    for encoding in (
        "00" * 32,
        "01" + "00" * 31,
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ec" + "ff" * 30 + "7f",
    )
)


@dataclass(frozen=True)
class KemPublicKey:
    """A public key as it travels: kind and raw bytes, checked when it was read."""

    kind: int
    raw: bytes

    def encode(self) -> bytes:
        return bytes((self.kind,)) + self.raw

    @cached_property
    def native(self) -> Any:
        return _KINDS[self.kind].load_public(self.raw)


@dataclass(frozen=True, repr=False)
class KemPrivateKey:
    """A private key: its native object, the bytes to store, its public half."""

    kind: int
    secret: Secret
    public: KemPublicKey
    native: Any

    def __repr__(self) -> str:
        return f"KemPrivateKey(kind={self.kind}, …)"

    def encode(self) -> bytes:
        """``u8 kind || private bytes``: for a key store, never for the wire."""
        return bytes((self.kind,)) + self.secret.reveal()

    def wipe(self) -> None:
        """Overwrites our copy of the secret; the native object goes when its last reference goes."""
        self.secret.wipe()


@dataclass(frozen=True)
class _Kind:
    number: int
    generate: Callable[[], tuple[Any, bytes, bytes]]
    """() -> native private key, private bytes, public bytes."""
    load_private: Callable[[bytes], tuple[Any, bytes]]
    """private bytes -> native private key, public bytes."""
    load_public: Callable[[bytes], Any]
    """Public bytes -> native public key; ValueError where they are none."""
    encrypt: Callable[[Any, bytes, bytes], bytes]
    """(native public key, info, plaintext) -> ciphertext."""
    decrypt: Callable[[Any, bytes, bytes], bytes]
    """(native private key, info, ciphertext) -> plaintext; ValueError, InvalidTag, TypeError."""
    encapsulate: Callable[[Any, bytes, bytes], bytes]
    decapsulate: Callable[[Any, bytes, bytes], bytes]


# --- hybrid and x25519: HPKE, single shot, base mode (RFC 9180; the hybrid KEM of draft-ietf-hpke-pq) -------------

_HPKE_HYBRID: Final = Hpke(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_HPKE_X25519: Final = Hpke(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def _hybrid_generate() -> tuple[Any, bytes, bytes]:
    lattice, curve = mlkem.MLKEM768PrivateKey.generate(), x25519.X25519PrivateKey.generate()
    native, public = _hybrid_pair(lattice, curve)
    return native, lattice.private_bytes_raw() + curve.private_bytes_raw(), public


def _hybrid_load_private(private: bytes) -> tuple[Any, bytes]:
    if len(private) != _MLKEM_SEED + _X25519:
        raise ValueError("wrong length")
    lattice = mlkem.MLKEM768PrivateKey.from_seed_bytes(private[:_MLKEM_SEED])
    curve = x25519.X25519PrivateKey.from_private_bytes(private[_MLKEM_SEED:])
    return _hybrid_pair(lattice, curve)


def _hybrid_pair(lattice: mlkem.MLKEM768PrivateKey, curve: x25519.X25519PrivateKey) -> tuple[Any, bytes]:
    """Native private key, public bytes."""
    public = lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
    return MLKEM768X25519PrivateKey(lattice, curve), public


def _hybrid_load_public(public: bytes) -> Any:
    if len(public) != _MLKEM_PUBLIC + _X25519:
        raise ValueError("wrong length")
    return MLKEM768X25519PublicKey(
        mlkem.MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC]),
        _x25519_load_public(public[_MLKEM_PUBLIC:]),
    )


def _x25519_generate() -> tuple[Any, bytes, bytes]:
    key = x25519.X25519PrivateKey.generate()
    return key, key.private_bytes_raw(), key.public_key().public_bytes_raw()


def _x25519_load_private(private: bytes) -> tuple[Any, bytes]:
    key = x25519.X25519PrivateKey.from_private_bytes(private)
    return key, key.public_key().public_bytes_raw()


def _x25519_load_public(public: bytes) -> x25519.X25519PublicKey:
    # RFC 7748 reads u modulo the field, top bit masked: a key has many encodings there, and one here.
    if len(public) != _X25519 or int.from_bytes(public, "little") >= _X25519_FIELD:
        raise ValueError("not the canonical encoding of a point")
    if public in _X25519_SMALL_ORDER:
        raise ValueError("not a point of large order")
    return x25519.X25519PublicKey.from_public_bytes(public)


def _hpke(suite: Hpke) -> tuple[Callable[[Any, bytes, bytes], bytes], Callable[[Any, bytes, bytes], bytes]]:
    def encrypt(key: Any, info: bytes, plaintext: bytes) -> bytes:
        return suite.encrypt(plaintext, key, info=info)

    def decrypt(key: Any, info: bytes, ciphertext: bytes) -> bytes:
        return suite.decrypt(ciphertext, key, info=info)

    return encrypt, decrypt


def _rsa() -> Any:
    """`zkc.crypto.rsa`: what it imports takes 10 ms of a command's start, and few coordinators are of that suite."""
    from zkc.crypto import rsa  # noqa: PLC0415

    return rsa


_hybrid_encrypt, _hybrid_decrypt = _hpke(_HPKE_HYBRID)
_x25519_encrypt, _x25519_decrypt = _hpke(_HPKE_X25519)
_HYBRID: Final = _Kind(
    1, _hybrid_generate, _hybrid_load_private, _hybrid_load_public,
    _hybrid_encrypt, _hybrid_decrypt, _hybrid_encrypt, _hybrid_decrypt,
)
_X: Final = _Kind(
    2, _x25519_generate, _x25519_load_private, _x25519_load_public,
    _x25519_encrypt, _x25519_decrypt, _x25519_encrypt, _x25519_decrypt,
)
_RSA: Final = _Kind(
    3, lambda: _rsa().generate(), lambda private: _rsa().load_private(private),
    lambda public: _rsa().load_public(public),
    lambda *args: _rsa().encrypt(*args), lambda *args: _rsa().decrypt(*args),
    lambda *args: _rsa().encapsulate(*args), lambda *args: _rsa().decapsulate(*args),
)
_KINDS: Final = {kind.number: kind for kind in (_HYBRID, _X, _RSA)}


@dataclass(frozen=True)
class Suite:
    """Which kinds of key a coordinator and its clients use."""

    name: str
    _permanent: _Kind
    _one_time: _Kind

    @property
    def permanent_kind(self) -> int:
        """The first byte of its temporary and permanent public keys."""
        return self._permanent.number

    def generate(self) -> KemPrivateKey:
        """A temporary or permanent key pair (Figure 4, block 402; 5; 7, block 701; 12, block 1204)."""
        return _generate(self._permanent)

    def generate_one_time(self) -> KemPrivateKey:
        """A key pair for one channel or one transfer; X25519 in ``rsa``, where making a pair takes 180 ms."""
        return _generate(self._one_time)

    def read_public(self, encoded: bytes) -> KemPublicKey:
        """A peer's temporary or permanent key; `PeerViolation` (``bad-key``) for another kind or no key at all."""
        return _read_permanent(self._permanent.number, encoded)

    def read_one_time(self, encoded: bytes) -> KemPublicKey:
        """A peer's one-time key."""
        return _read_public(self._one_time, encoded)


def _generate(kind: _Kind) -> KemPrivateKey:
    native, private, public = kind.generate()
    return KemPrivateKey(kind.number, Secret(private), KemPublicKey(kind.number, public), native)


@lru_cache(_READ_KEPT)
def _read_permanent(kind: int, encoded: bytes) -> KemPublicKey:
    """Of a peer it is the same for each transfer, and reading one takes half the time of sealing to it."""
    return _read_public(_KINDS[kind], encoded)


def _read_public(kind: _Kind, encoded: bytes) -> KemPublicKey:
    try:
        if encoded[:1] != bytes((kind.number,)):
            raise ValueError("another kind of key")
        key = KemPublicKey(kind.number, encoded[1:])
        _ = key.native
    except (ValueError, TypeError) as error:
        raise PeerViolation("bad-key", str(error)[:80]) from None
    return key


def read_private(encoded: bytes) -> KemPrivateKey:
    """A private key from our own store, as `KemPrivateKey.encode` wrote it; ValueError where it is none."""
    kind = _KINDS.get(encoded[0]) if encoded else None
    if kind is None:
        raise ValueError("not a private key")
    native, public = kind.load_private(encoded[1:])
    return KemPrivateKey(kind.number, Secret(encoded[1:]), KemPublicKey(kind.number, public), native)


SUITES: Final = {
    suite.name: suite
    for suite in (Suite("hybrid", _HYBRID, _HYBRID), Suite("x25519", _X, _X), Suite("rsa", _RSA, _X))
}


def suite_of(encoded: bytes) -> Suite:
    """The suite whose permanent keys are of the kind of ``encoded``; `PeerViolation` (``bad-key``) where none is."""
    for suite in SUITES.values():
        if encoded[:1] == bytes((suite.permanent_kind,)):
            return suite
    raise PeerViolation("bad-key", "no suite has keys of this kind")


def suite_named(name: str) -> Suite:
    """The suite of that name; `PeerViolation` (``version``) for one that is not known here."""
    try:
        return SUITES[name]
    except KeyError:
        raise PeerViolation("version", f"suite {name!r}") from None


@dataclass(slots=True)
class Tally:
    """What this process has done so far: shows from outside that a refusal came before any costly work."""

    operations: int = 0
    """Seals, encapsulations, and openings of both, whether they succeeded or not."""


TALLY: Final = Tally()
"""The one thing here that changes. A count at the shells would miss what the machines of `zkc.protocol` seal and open
on the way to a refusal, and that is what it is asked for (attack R05: a refused newcomer costs no operation); nothing
here reads it, so no result depends on it."""


def seal(key: KemPublicKey, label: str, th: bytes, plaintext: bytes) -> bytes:
    """Seal(pk, label, th, pt): to the holder of ``key``, bound to label and transcript; says nothing of who sealed."""
    TALLY.operations += 1
    return _KINDS[key.kind].encrypt(key.native, _info(label, th), plaintext)


def open_sealed(key: KemPrivateKey, label: str, th: bytes, ciphertext: bytes) -> bytes:
    """What was sealed; `PeerViolation` (``forged``), one answer for every cause."""
    return _opened(_KINDS[key.kind].decrypt, key, label, th, ciphertext)


def kem_encapsulate(key: KemPublicKey, label: str, th: bytes) -> tuple[Secret, bytes]:
    """KemEnc(pk, label, th): a fresh 32-byte secret, and it sealed to ``key``."""
    TALLY.operations += 1
    secret = fresh_key()
    return Secret(secret), _KINDS[key.kind].encapsulate(key.native, _info(label, th), secret)


def kem_decapsulate(key: KemPrivateKey, label: str, th: bytes, ciphertext: bytes) -> Secret:
    """The secret of `kem_encapsulate`; `PeerViolation` (``forged``)."""
    secret = _opened(_KINDS[key.kind].decapsulate, key, label, th, ciphertext)
    if len(secret) != 32:
        raise PeerViolation("forged", "an encapsulated secret is 32 bytes long")
    return Secret(secret)


def _info(label: str, th: bytes) -> bytes:
    return b"zkc/1 " + label.encode() + b"\0" + th


def _opened(
    decrypt: Callable[[Any, bytes, bytes], bytes], key: KemPrivateKey, label: str, th: bytes, ciphertext: bytes
) -> bytes:
    TALLY.operations += 1
    try:
        return decrypt(key.native, _info(label, th), ciphertext)
    except (InvalidTag, ValueError, TypeError, PeerViolation):
        raise PeerViolation("forged", "a seal does not open") from None
