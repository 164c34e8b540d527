from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from typing import Final

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from zkc.crypto.suites import (
    SUITES,
    KemPrivateKey,
    Suite,
    kem_decapsulate,
    kem_encapsulate,
    open_sealed,
    read_private,
    seal,
    suite_named,
)
from zkc.errors import PeerViolation

TH: Final = bytes(range(32))
PLAIN: Final = b"what only the holder of the key reads"
OPEN: Final = "forged: a seal does not open"


def refused(function: Callable[..., object], *arguments: object) -> str:
    """The one answer that damage has."""
    with pytest.raises(PeerViolation) as caught:
        function(*arguments)
    assert caught.value.__suppress_context__, "the library's own words must not travel with the answer"
    return str(caught.value)


# --- in pairs: what one end makes the other opens ---------------------------------------------------------------


@pytest.mark.claims("E1")
@pytest.mark.parametrize("size", [0, 1, 32, 1000, 40_000])
def test_what_is_sealed_to_a_key_opens_with_it(private_key: KemPrivateKey, size: int) -> None:
    """Any length, RSA included."""
    plaintext = bytes(i & 0xFF for i in range(size))
    sealed = seal(private_key.public, "xfer-perm", TH, plaintext)
    assert open_sealed(private_key, "xfer-perm", TH, sealed) == plaintext


def test_a_seal_to_a_key_that_travelled_opens_with_the_key_that_was_stored(
    suite: Suite, private_key: KemPrivateKey
) -> None:
    public = suite.read_public(private_key.public.encode())
    stored = read_private(private_key.encode())
    assert public == private_key.public == stored.public
    assert open_sealed(stored, "reg-done", TH, seal(public, "reg-done", TH, PLAIN)) == PLAIN


def test_both_ends_of_an_encapsulation_have_the_same_fresh_secret(private_key: KemPrivateKey) -> None:
    ours, ciphertext = kem_encapsulate(private_key.public, "chan-s", TH)
    theirs = kem_decapsulate(private_key, "chan-s", TH, ciphertext)
    again, _ = kem_encapsulate(private_key.public, "chan-s", TH)
    assert ours.reveal() == theirs.reveal()
    assert len(ours.reveal()) == 32
    assert ours.reveal() != again.reveal()


def test_a_one_time_key_works_as_a_permanent_one_does(suite: Suite) -> None:
    key = suite.generate_one_time()
    public = suite.read_one_time(key.public.encode())
    ours, ciphertext = kem_encapsulate(public, "xfer-eph", TH)
    assert kem_decapsulate(key, "xfer-eph", TH, ciphertext).reveal() == ours.reveal()


def test_sealing_twice_gives_two_ciphertexts(private_key: KemPrivateKey) -> None:
    assert seal(private_key.public, "x", TH, PLAIN) != seal(private_key.public, "x", TH, PLAIN)


def test_no_two_generated_keys_are_the_same() -> None:
    """Claim 11 core; the quick suites, many times."""
    for name in ("hybrid", "x25519"):
        keys = {SUITES[name].generate().public.raw for _ in range(50)}
        assert len(keys) == 50


@pytest.mark.parametrize(
    ("name", "kind", "public", "ciphertext"), [("hybrid", 1, 1217, 1168), ("x25519", 2, 33, 80), ("rsa", 3, 423, 384)]
)
def test_keys_and_encapsulations_have_the_sizes_of_the_specification(
    name: str, kind: int, public: int, ciphertext: int
) -> None:
    key = SUITES[name].generate()
    assert key.public.kind == kind
    assert len(key.public.encode()) == public
    assert len(kem_encapsulate(key.public, "reg1", TH)[1]) == ciphertext


@pytest.mark.claims("E1")
def test_the_rsa_suite_makes_3072_bits_with_exponent_65537_and_x25519_for_one_time_keys() -> None:
    key, once = SUITES["rsa"].generate(), SUITES["rsa"].generate_one_time()
    assert key.native.key_size == 3072
    assert key.native.public_key().public_numbers().e == 65537
    assert once.kind == 2


# --- bound to label, transcript and key -------------------------------------------------------------------------


@pytest.mark.attack("H10")
def test_a_seal_opens_under_its_own_label_transcript_and_key_alone(suite: Suite, private_key: KemPrivateKey) -> None:
    """H10 core: what was sealed as one message never opens as another, nor in another conversation."""
    sealed = seal(private_key.public, "reg-name", TH, PLAIN)
    ct = kem_encapsulate(private_key.public, "reg-name", TH)[1]
    other = suite.generate_one_time() if suite.name == "rsa" else suite.generate()
    for key, label, th in (
        (private_key, "reg-tck", TH), (private_key, "reg-name", TH[::-1]), (private_key, "reg-name", TH[:-1]),
        (private_key, "reg-nam", b"e" + TH), (private_key, "", TH), (other, "reg-name", TH),
    ):
        assert refused(open_sealed, key, label, th, sealed) == OPEN
        assert refused(kem_decapsulate, key, label, th, ct) == OPEN


def test_a_seal_is_no_encapsulation_unless_it_holds_32_bytes(private_key: KemPrivateKey) -> None:
    for size in (0, 31, 33):
        sealed = seal(private_key.public, "chan-c", TH, bytes(size))
        with pytest.raises(PeerViolation) as caught:
            kem_decapsulate(private_key, "chan-c", TH, sealed)
        assert caught.value.detail == "forged"


# --- damage has one answer ---------------------------------------------------------------------------------------


def test_every_kind_of_damage_has_the_same_answer(private_key: KemPrivateKey) -> None:
    """Flipped, cut, lengthened, emptied, zeroed, all ones: the peer learns nothing of which."""
    sealed = seal(private_key.public, "xfer-ep", TH, PLAIN)
    damaged = [sealed[:n] for n in (0, 1, 31, 32, 48, len(sealed) // 2, len(sealed) - 1)]
    damaged += [sealed + b"\0", sealed * 2, bytes(len(sealed)), b"\xff" * len(sealed), bytes(60_000)]
    places = (*range(0, len(sealed), max(1, len(sealed) // 60)), len(sealed) - 1)
    damaged += [sealed[:at] + bytes((sealed[at] ^ 1 << at % 8,)) + sealed[at + 1 :] for at in places]
    answers = {refused(open_sealed, private_key, "xfer-ep", TH, d) for d in damaged}
    assert answers == {OPEN}


def test_damaged_encapsulations_have_the_same_answer(private_key: KemPrivateKey) -> None:
    ciphertext = kem_encapsulate(private_key.public, "chan-e", TH)[1]
    damaged = [b"", ciphertext[:-1], ciphertext + b"\0", bytes(len(ciphertext)), b"\xff" * len(ciphertext)]
    places = range(0, len(ciphertext), max(1, len(ciphertext) // 40))
    damaged += [ciphertext[:at] + bytes((ciphertext[at] ^ 0x80,)) + ciphertext[at + 1 :] for at in places]
    answers = {refused(kem_decapsulate, private_key, "chan-e", TH, d) for d in damaged}
    assert answers == {OPEN}


# --- public keys of the wrong kind -------------------------------------------------------------------------------


def test_a_key_of_another_suite_is_refused(suite: Suite) -> None:
    """Nothing is negotiated in band: a coordinator of one suite takes no key of another."""
    for other in SUITES.values():
        if other is not suite:
            key = other.generate().public.encode()
            assert refused(suite.read_public, key).startswith("bad-key")


@pytest.mark.parametrize("encoded", [b"", b"\1", b"\2", b"\3", b"\4" + bytes(32), b"\0" * 33, b"\xff" * 1217])
def test_bytes_that_are_no_key_are_refused(suite: Suite, encoded: bytes) -> None:
    assert refused(suite.read_public, encoded).startswith("bad-key")
    assert refused(suite.read_one_time, encoded).startswith("bad-key")


def test_the_kind_byte_is_part_of_the_key(suite: Suite, private_key: KemPrivateKey) -> None:
    encoded = private_key.public.encode()
    for kind in {*range(256)} - {private_key.kind}:
        assert refused(suite.read_public, bytes((kind,)) + encoded[1:])


def test_an_unknown_suite_is_another_version() -> None:
    assert suite_named("hybrid") is SUITES["hybrid"]
    for name in ("", "HYBRID", "hybrid ", "rsa-1024", "none"):
        with pytest.raises(PeerViolation) as caught:
            suite_named(name)
        assert caught.value.detail == "version"


# --- RSA public keys ---------------------------------------------------------------------------------------------


def spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def rsa_key(bits: int, exponent: int = 65537) -> bytes:
    """A modulus of exactly that size; that it has two primes is nothing a reader could see."""
    modulus = random.Random(bits).getrandbits(bits) | 1 << bits - 1 | 1
    return b"\3" + spki(rsa.RSAPublicNumbers(exponent, modulus).public_key())


@pytest.mark.parametrize("bits", [3072, 3073, 4095, 4096])
def test_rsa_keys_of_3072_to_4096_bits_are_taken(bits: int) -> None:
    assert SUITES["rsa"].read_public(rsa_key(bits)).native.key_size == bits


@pytest.mark.parametrize("bits", [1024, 2048, 3071, 4097, 8192, 16384])
def test_rsa_keys_of_other_sizes_are_refused(bits: int) -> None:
    """Below: weak. Above: each use costs us more than the peer."""
    assert refused(SUITES["rsa"].read_public, rsa_key(bits)).startswith("bad-key")


@pytest.mark.parametrize("exponent", [3, 17, 65535, 65539, 2**32 + 1, 2**255 + 1])
def test_rsa_keys_with_another_exponent_are_refused(exponent: int) -> None:
    assert refused(SUITES["rsa"].read_public, rsa_key(3072, exponent)).startswith("bad-key")


def test_an_even_rsa_modulus_is_refused() -> None:
    """It loads, and the first seal to it would fail: in our hands, not in the peer's."""
    numbers = SUITES["rsa"].read_public(rsa_key(3072)).native.public_numbers()
    even = b"\3" + spki(rsa.RSAPublicNumbers(65537, numbers.n - 1).public_key())
    assert refused(SUITES["rsa"].read_public, even) == "bad-key: an RSA modulus is odd"


def non_canonical(encoded: bytes) -> dict[str, bytes]:
    """The same key in other bytes: 30 82 LL LL, 30 0d, 06 09 OID, 05 00, 03 82 LL LL 00, 30 82 LL LL, 02 ..."""
    der = encoded[1:]
    length = int.from_bytes(der[2:4], "big")
    no_null = der[4:6][:1] + b"\x0b" + der[6:17] + der[19:]
    return {
        "trailing byte": der + b"\0",
        "longer form of a length": b"\x30\x83\0" + der[2:],
        "indefinite length": b"\x30\x80" + der[4:] + b"\0\0",
        "no NULL parameters": b"\x30\x82" + (length - 2).to_bytes(2, "big") + no_null,
        "PKCS #1": SUITES["rsa"].read_public(encoded).native.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.PKCS1
        ),
        "PEM": SUITES["rsa"].read_public(encoded).native.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        "leading zero in the modulus": _with_wider_modulus(der),
    }


def _with_wider_modulus(der: bytes) -> bytes:
    """The modulus as an INTEGER with one zero byte more, every length around it put right."""
    at = der.index(b"\x02\x82", 20)
    size = int.from_bytes(der[at + 2 : at + 4], "big")
    inner = b"\x02\x82" + (size + 1).to_bytes(2, "big") + b"\0" + der[at + 4 :]
    sequence = b"\x30\x82" + len(inner).to_bytes(2, "big") + inner
    bits = b"\x03\x82" + (len(sequence) + 1).to_bytes(2, "big") + b"\0" + sequence
    body = der[4:19] + bits
    return b"\x30\x82" + len(body).to_bytes(2, "big") + body


@pytest.mark.parametrize("form", non_canonical(rsa_key(3072)))
def test_an_rsa_key_has_one_encoding(form: str) -> None:
    """Two encodings of one key would be two hashes, two certificates."""
    wrong = non_canonical(rsa_key(3072))[form]
    assert refused(SUITES["rsa"].read_public, b"\3" + wrong).startswith("bad-key")


def test_public_keys_of_other_algorithms_are_refused() -> None:
    """Known ones, unknown ones, unknown curves: the reader's own exceptions stay inside."""
    honest = rsa_key(3072)
    curve = b"\3" + spki(ec.generate_private_key(ec.SECP256R1()).public_key())
    oid, p256 = bytes.fromhex("2a864886f70d010101"), bytes.fromhex("2a8648ce3d030107")
    for wrong in (
        curve,
        honest.replace(oid, oid[:-1] + b"\x63"),
        honest.replace(oid, oid[:-1] + b"\x0a"),
        curve.replace(p256, p256[:-1] + b"\x63"),
    ):
        assert refused(SUITES["rsa"].read_public, wrong).startswith("bad-key")


def test_a_damaged_rsa_key_is_refused_or_is_another_key() -> None:
    """Every bit of the structure around the modulus: no exception but the one."""
    honest = rsa_key(3072)
    for bit in range(8, 8 * 34):
        damaged = bytearray(honest)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            key = SUITES["rsa"].read_public(bytes(damaged))
        except PeerViolation as error:
            assert error.detail == "bad-key"
        else:
            assert key.native.public_numbers().n != SUITES["rsa"].read_public(honest).native.public_numbers().n


# --- private keys show nowhere -----------------------------------------------------------------------------------


def test_a_private_key_shows_and_stores_nothing(private_key: KemPrivateKey) -> None:
    assert repr(private_key) == f"KemPrivateKey(kind={private_key.kind}, …)"
    assert private_key.secret.reveal().hex() not in repr(private_key)
    with pytest.raises(TypeError):
        pickle.dumps(private_key)


def test_a_wiped_private_key_has_no_bytes_left() -> None:
    key = SUITES["x25519"].generate()
    key.wipe()
    with pytest.raises(ValueError, match="wiped"):
        key.secret.reveal()


@pytest.mark.parametrize("encoded", [b"", b"\0", b"\4" + bytes(32), b"\2" + bytes(31), b"\1" + bytes(95), b"\3abc"])
def test_bytes_that_are_no_private_key_are_refused(encoded: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        read_private(encoded)
