"""Keys that no honest peer has are refused where keys enter, before anything is computed with them.

The arithmetic below is plain integers on the curves' equations, so what is said of a point's order stands on its own
and not on the code under test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from zkc.crypto.cards import make_card, verify_card
from zkc.crypto.primitives import digest
from zkc.crypto.signing import _SMALL_ORDER_Y, IdentityKey, read_identity
from zkc.crypto.suites import _X25519_SMALL_ORDER, SUITES, Suite, open_sealed, seal
from zkc.errors import PeerViolation
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Card, CardBody

pytestmark = pytest.mark.attack("R09")

P: Final = 2**255 - 19
D: Final = -121665 * pow(121666, -1, P) % P
ML_KEM_Q: Final = 3329
ML_KEM_PUBLIC: Final = 1184

# The low-order encodings of edwards25519, canonical or not, with the order of each point
# (C2SP/CCTV, ed25519/README.md, "Low-order edwards25519 point encodings").
LOW_ORDER: Final = {
    "0000000000000000000000000000000000000000000000000000000000000000": 4,
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f": 4,
    "0000000000000000000000000000000000000000000000000000000000000080": 4,
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff": 4,
    "0100000000000000000000000000000000000000000000000000000000000000": 1,
    "0100000000000000000000000000000000000000000000000000000000000080": 1,
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f": 1,
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff": 1,
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05": 8,
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85": 8,
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a": 8,
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa": 8,
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f": 2,
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff": 2,
}


# --- Ed25519 --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A point of -x^2 + y^2 = 1 + d x^2 y^2 over 2^255 - 19."""

    x: int
    y: int

    def __add__(self, other: Point) -> Point:
        product = D * self.x * other.x * self.y * other.y % P
        x = (self.x * other.y + self.y * other.x) * pow(1 + product, -1, P) % P
        y = (self.y * other.y + self.x * other.x) * pow(1 - product, -1, P) % P
        return Point(x, y)

    def order(self, limit: int = 16) -> int | None:
        """The smallest n with n times the point the identity; None when it is above ``limit``."""
        total = self
        for n in range(1, limit + 1):
            if total == Point(0, 1):
                return n
            total += self
        return None

    def encodings(self) -> set[str]:
        """Every 32 bytes that a lenient decoder takes for this point: y or y + p, and any sign for x = 0."""
        ys = [y for y in (self.y, self.y + P) if y < 2**255]
        signs = (0, 1) if self.x == 0 else (self.x & 1,)
        return {(y | sign << 255).to_bytes(32, "little").hex() for y in ys for sign in signs}


def decode_point(encoding: bytes) -> Point:
    """The point, by the lenient reading (ZIP 215): y may be p or more, x = 0 may have either sign."""
    number = int.from_bytes(encoding, "little")
    sign, y = number >> 255, number % 2**255 % P
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != square:
        raise ValueError("not on the curve")
    return Point(-x % P if x & 1 != sign else x, y)


@pytest.mark.parametrize(("encoding", "order"), LOW_ORDER.items())
def test_each_listed_encoding_is_a_point_of_the_order_said(encoding: str, order: int) -> None:
    assert decode_point(bytes.fromhex(encoding)).order() == order


def test_the_list_has_every_encoding_of_every_point_of_small_order() -> None:
    """The eight multiples of a point of order 8 are all that there are; their encodings are the list."""
    generator = decode_point(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"))
    point, points = generator, set()
    for _ in range(8):
        points.add(point)
        point += generator
    assert len(points) == 8
    assert set().union(*(point.encodings() for point in points)) == set(LOW_ORDER)


def test_the_code_lists_exactly_the_y_coordinates_of_small_order() -> None:
    assert frozenset(decode_point(bytes.fromhex(encoding)).y for encoding in LOW_ORDER) == _SMALL_ORDER_Y


def test_an_honest_key_is_on_the_curve_and_of_large_order(alice: IdentityKey) -> None:
    point = decode_point(alice.public.ed25519)
    assert point.order() is None
    assert alice.public.ed25519.hex() in point.encodings()


def test_the_library_verifies_forgeries_under_a_small_order_key() -> None:
    """The reason for the list: with the identity for a key, (R = identity, S = 0) signs whatever one likes."""
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex("01" + "00" * 31))
    key.verify(bytes.fromhex("01" + "00" * 31) + bytes(32), b"alice owes me a fortune")


@pytest.mark.parametrize("encoding", LOW_ORDER)
def test_a_small_order_identity_is_refused(encoding: str, alice: IdentityKey) -> None:
    with pytest.raises(PeerViolation) as caught:
        read_identity(bytes.fromhex(encoding), alice.public.ml_dsa)
    assert caught.value.detail == "bad-key"


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("y", range(P, 2**255))
def test_a_non_canonical_identity_is_refused(y: int, sign: int, alice: IdentityKey) -> None:
    """All 19 values of y from p on, with both signs of x: one key has one encoding, hence one fingerprint."""
    with pytest.raises(PeerViolation) as caught:
        read_identity((y | sign << 255).to_bytes(32, "little"), alice.public.ml_dsa)
    assert caught.value.detail == "bad-key"


def test_nothing_verifies_under_bytes_that_are_no_point(alice: IdentityKey) -> None:
    """The library loads y without asking for x; such a key signs nothing, and asking it is no other failure."""
    off_curve = next(y for y in range(2, 99) if pow((y * y - 1) * pow(D * y * y + 1, -1, P), (P - 1) // 2, P) == P - 1)
    identity = read_identity(off_curve.to_bytes(32, "little"), alice.public.ml_dsa)
    for signature in (alice.sign("card", bytes(32)), bytes(64), b"\1" + bytes(63)):
        with pytest.raises(PeerViolation) as caught:
            identity.verify("card", bytes(32), signature)
        assert caught.value.detail == "forged"


@pytest.mark.parametrize("size", [0, 1, 31, 33, 64])
def test_an_ed25519_key_of_another_length_is_refused(size: int, alice: IdentityKey) -> None:
    with pytest.raises(PeerViolation) as caught:
        read_identity((alice.public.ed25519 * 2)[:size], alice.public.ml_dsa)
    assert caught.value.detail == "bad-key"


@pytest.mark.parametrize("size", [0, 1, 1951, 1953, 3904])
def test_an_ml_dsa_key_of_another_length_is_refused(size: int, alice: IdentityKey) -> None:
    with pytest.raises(PeerViolation) as caught:
        read_identity(alice.public.ed25519, (alice.public.ml_dsa * 2)[:size])
    assert caught.value.detail == "bad-key"


# --- X25519 ---------------------------------------------------------------------------------------------------------


def montgomery(scalar: int, u: int) -> int:
    """RFC 7748's ladder on curve25519 without clamping: u of scalar times the point, 0 for infinity."""
    x1, x2, z2, x3, z3 = u % P, 1, 0, u % P, 1
    for bit in reversed(range(scalar.bit_length())):
        if scalar >> bit & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        x3, z3 = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, (aa - bb) * (aa + 121665 * (aa - bb)) % P
        if scalar >> bit & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return x2 * pow(z2, P - 2, P) % P


LOW_ORDER_U: Final = sorted(_X25519_SMALL_ORDER)


@pytest.mark.parametrize("encoding", LOW_ORDER_U, ids=bytes.hex)
def test_each_listed_u_gives_the_same_secret_with_every_scalar(encoding: bytes) -> None:
    """X25519 scalars are multiples of 8, and 8 times a point of small order is nothing."""
    u = int.from_bytes(encoding, "little")
    for multiple in (1, 5, 2**251 + 77):
        assert montgomery(8 * multiple, u) == 0
    assert montgomery(8 * 5, 9) != 0


def test_the_list_has_every_u_of_small_order() -> None:
    """u of order 1 to 8 on the curve and its twist: 0, 1, -1 and the two of order 8."""
    one, other = (int.from_bytes(e, "little") for e in LOW_ORDER_U if len(set(e)) > 3)
    values = (0, 1, P - 1, one, other)
    assert all(pow(u, 3, P) for u in (one, other))
    assert {u.to_bytes(32, "little") for u in values} == _X25519_SMALL_ORDER


def points_of_small_order() -> list[bytes]:
    """Every encoding: canonical, above the field, with the top bit that RFC 7748 masks."""
    values = [int.from_bytes(encoding, "little") for encoding in LOW_ORDER_U]
    every = [u for v in values for u in (v, v + P) if u < 2**255]
    return [(u | top).to_bytes(32, "little") for u in every for top in (0, 1 << 255)]


@pytest.mark.parametrize("which", ["top bit", "plus p", "p", "all ones"])
def test_an_x25519_key_has_one_encoding(which: str) -> None:
    """Two encodings of one key would be two one-time keys, two cards, two hashes."""
    suite = SUITES["x25519"]
    honest = suite.generate().public.raw
    raw = {
        "top bit": (int.from_bytes(honest, "little") | 1 << 255).to_bytes(32, "little"),
        "plus p": (9 + P).to_bytes(32, "little"), "p": P.to_bytes(32, "little"), "all ones": b"\xff" * 32,
    }[which]  # fmt: skip
    with pytest.raises(PeerViolation, match="bad-key"):
        suite.read_public(b"\2" + raw)
    assert suite.read_public(b"\2" + honest)


@pytest.mark.parametrize("raw", points_of_small_order(), ids=bytes.hex)
def test_an_x25519_key_of_small_order_is_refused_with_either_top_bit(raw: bytes) -> None:
    """The top bit is ignored by RFC 7748, so it hides nothing; the same in the hybrid's curve half."""
    hybrid = SUITES["hybrid"].generate().public.encode()
    for suite, key in (
        (SUITES["x25519"], b"\2" + raw),
        (SUITES["hybrid"], hybrid[: 1 + ML_KEM_PUBLIC] + raw),
    ):
        for read in (suite.read_public, suite.read_one_time):
            with pytest.raises(PeerViolation) as caught:
                read(key)
            assert caught.value.detail == "bad-key"
    with pytest.raises(PeerViolation):
        SUITES["rsa"].read_one_time(b"\2" + raw)


@pytest.mark.parametrize("raw", points_of_small_order(), ids=bytes.hex)
def test_a_seal_with_a_small_order_ephemeral_does_not_open(raw: bytes) -> None:
    """An encapsulation is a public key too: the shared secret would be one that everybody knows."""
    key = SUITES["x25519"].generate()
    sealed = seal(key.public, "chan-s", bytes(32), b"secret")
    with pytest.raises(PeerViolation) as caught:
        open_sealed(key, "chan-s", bytes(32), raw + sealed[32:])
    assert caught.value.detail == "forged"


# --- ML-KEM ---------------------------------------------------------------------------------------------------------


def with_coefficient(key: bytes, index: int, value: int) -> bytes:
    """``key`` (kind, ByteEncode12 of 768 coefficients, seed, ...) with one coefficient replaced (FIPS 203, 4.2.1)."""
    number = int.from_bytes(key[1:1153], "little")
    number = number & ~(0xFFF << 12 * index) | value << 12 * index
    return key[:1] + number.to_bytes(1152, "little") + key[1153:]


@pytest.mark.parametrize("value", [ML_KEM_Q, ML_KEM_Q + 1, 4095])
@pytest.mark.parametrize("index", [0, 1, 255, 256, 511, 766, 767])
def test_an_ml_kem_key_with_a_coefficient_of_q_or_more_is_refused(index: int, value: int) -> None:
    """The modulus check of FIPS 203, 7.2; q - 1 is a coefficient like any other."""
    suite = SUITES["hybrid"]
    key = suite.generate().public.encode()
    assert suite.read_public(with_coefficient(key, index, ML_KEM_Q - 1))
    with pytest.raises(PeerViolation) as caught:
        suite.read_public(with_coefficient(key, index, value))
    assert caught.value.detail == "bad-key"


# --- in a card ------------------------------------------------------------------------------------------------------


def card_with(identity: IdentityKey, suite: Suite, /, **changes: object) -> bytes:
    """A card whose body has ``changes``, signed with the real identity: only the key check can refuse it."""
    honest = make_card(
        name="alice", kind="computer", uid=bytes(16), identity=identity, kem_key=suite.generate_one_time().public,
        epoch=1, not_after=2**31,
    )
    card: Card = decode(honest, Card)
    body = encode(msgspec.structs.replace(decode(card.body, CardBody), **changes))
    return encode(
        msgspec.structs.replace(card, body=body, signature=identity.sign_durable("card", digest(body)))
    )


@pytest.mark.parametrize("encoding", LOW_ORDER)
def test_a_card_with_a_small_order_identity_is_refused(encoding: str, alice: IdentityKey) -> None:
    """Even with a signature that the key itself would verify."""
    suite = SUITES["x25519"]
    encoded = card_with(alice, suite, ed25519=bytes.fromhex(encoding))
    card: Card = decode(encoded, Card)
    zero = bytes.fromhex("01" + "00" * 31) + bytes(32)
    for signature in (card.signature, zero + card.signature[64:]):
        with pytest.raises(PeerViolation) as caught:
            verify_card(encode(msgspec.structs.replace(card, signature=signature)), suite)
        assert caught.value.detail == "bad-key"


@pytest.mark.parametrize("size", [0, 1, 1951, 1953, 4000])
def test_a_card_with_an_ml_dsa_key_of_another_length_is_refused(size: int, alice: IdentityKey) -> None:
    with pytest.raises(PeerViolation) as caught:
        verify_card(card_with(alice, SUITES["x25519"], ml_dsa=bytes(size)), SUITES["x25519"])
    assert caught.value.detail == "bad-key"


@pytest.mark.parametrize("name", ["hybrid", "x25519"])
@pytest.mark.parametrize("change", [-33, -1, 1, 32])
def test_a_card_with_a_kem_key_of_another_length_is_refused(name: str, change: int, alice: IdentityKey) -> None:
    suite = SUITES[name]
    key = suite.generate().public.encode()
    wrong = key[:change] if change < 0 else key + bytes(change)
    with pytest.raises(PeerViolation) as caught:
        verify_card(card_with(alice, suite, kem_key=wrong), suite)
    assert caught.value.detail == "bad-key"


def test_a_card_with_a_bad_kem_key_is_refused(alice: IdentityKey) -> None:
    hybrid = SUITES["hybrid"]
    key = hybrid.generate().public.encode()
    for wrong in (
        with_coefficient(key, 3, ML_KEM_Q), key[: 1 + ML_KEM_PUBLIC] + bytes(32), b"\2" + key[1:], b"\0" + key[1:],
        b"\2" + b"\x09" + bytes(31), b"",
    ):
        with pytest.raises(PeerViolation) as caught:
            verify_card(card_with(alice, hybrid, kem_key=wrong), hybrid)
        assert caught.value.detail == "bad-key"
    with pytest.raises(PeerViolation) as caught:
        verify_card(card_with(alice, SUITES["x25519"], kem_key=b"\2" + bytes(32)), SUITES["x25519"])
    assert caught.value.detail == "bad-key"


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_card_with_an_ed25519_key_of_another_length_does_not_fit_the_grammar(size: int, alice: IdentityKey) -> None:
    with pytest.raises(PeerViolation) as caught:
        verify_card(card_with(alice, SUITES["x25519"], ed25519=bytes(size)), SUITES["x25519"])
    assert caught.value.detail == "malformed"


def test_an_owner_with_a_bad_key_is_refused(alice: IdentityKey, bob: IdentityKey) -> None:
    suite = SUITES["x25519"]
    encoded = make_card(
        name="bob/backup", kind="application", uid=bytes(16), identity=alice, kem_key=suite.generate().public,
        epoch=1, not_after=2**31, owner=bob,
    )
    card: Card = decode(encoded, Card)
    for changes in (
        {"owner_ed25519": b""}, {"owner_ed25519": bytes(32)}, {"owner_ed25519": card.owner_ed25519[:31]},
        {"owner_ml_dsa": b""}, {"owner_ml_dsa": card.owner_ml_dsa[:-1]}, {"owner_ml_dsa": card.owner_ml_dsa + b"\0"},
    ):
        with pytest.raises(PeerViolation) as caught:
            verify_card(encode(msgspec.structs.replace(card, **changes)), suite)
        assert caught.value.detail == "bad-key"


def test_the_library_still_says_invalid_signature_where_we_rely_on_it(alice: IdentityKey) -> None:
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(alice.public.ed25519).verify(bytes(64), b"")
