from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.constants import ROLLOVER_BYTES, ROLLOVER_BYTES_64BIT_BLOCK
from zkc.crypto import ciphers
from zkc.crypto.ciphers import make_cipher
from zkc.crypto.stream_cipher import StreamCipher
from zkc.errors import PeerViolation
from zkc.ids import CIPHERS, SAFE_CIPHERS, UNSAFE_CIPHERS

KEY: Final = bytes(range(32))
NONCE: Final = bytes(range(12))
PLAIN: Final = b"a chunk of somebody's file"


def sealed(cipher: StreamCipher, nonce: bytes, aad: bytes, plaintext: bytes) -> bytes:
    out = bytearray(len(plaintext) + cipher.overhead(len(plaintext)))
    cipher.seal_into(nonce, aad, plaintext, memoryview(out))
    return bytes(out)


@pytest.fixture(params=CIPHERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.claims("E2")
def test_the_ciphers_are_those_of_the_document_and_today_s() -> None:
    assert CIPHERS == ("aes-256-gcm", "chacha20-poly1305", "3des", "idea")
    assert UNSAFE_CIPHERS == ("3des", "idea")
    assert tuple(ciphers._SAFE) == SAFE_CIPHERS


@pytest.mark.parametrize("name", CIPHERS)
@given(st.binary(max_size=200), st.binary(max_size=60))
def test_one_end_opens_what_the_other_sealed(name: str, plaintext: bytes, aad: bytes) -> None:
    """In pairs: two objects from the same name and key."""
    ciphertext = sealed(make_cipher(name, KEY), NONCE, aad, plaintext)
    assert make_cipher(name, KEY).open(NONCE, aad, ciphertext) == plaintext


def test_every_length_around_a_block_opens(name: str) -> None:
    cipher = make_cipher(name, KEY)
    for size in (*range(34), 1023, 1024, 70_000):
        plaintext = bytes(i & 0xFF for i in range(size))
        assert cipher.open(NONCE, b"h", sealed(cipher, NONCE, b"h", plaintext)) == plaintext


def test_a_view_seals_and_opens_as_bytes_do(name: str) -> None:
    """The hot path hands out views of one buffer."""
    cipher = make_cipher(name, KEY)
    ciphertext = sealed(cipher, NONCE, b"h", PLAIN)
    out = bytearray(len(ciphertext))
    cipher.seal_into(NONCE, b"h", memoryview(bytearray(PLAIN)), memoryview(out))
    assert out == ciphertext
    assert cipher.open(NONCE, b"h", memoryview(ciphertext)) == PLAIN
    assert cipher.open(NONCE, b"h", bytearray(ciphertext)) == PLAIN


def test_an_out_buffer_of_another_size_is_an_error_and_not_a_short_frame(name: str) -> None:
    cipher = make_cipher(name, KEY)
    size = len(PLAIN) + cipher.overhead(len(PLAIN))
    for wrong in (size - 1, size + 1):
        with pytest.raises(ValueError):  # noqa: PT011  the library's words differ
            cipher.seal_into(NONCE, b"h", PLAIN, memoryview(bytearray(wrong)))


def test_every_flipped_bit_has_the_one_answer(name: str) -> None:
    cipher = make_cipher(name, KEY)
    ciphertext = sealed(cipher, NONCE, b"header", PLAIN)
    for bit in range(8 * len(ciphertext)):
        damaged = bytearray(ciphertext)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PeerViolation) as caught:
            cipher.open(NONCE, b"header", damaged)
        assert caught.value.detail == "forged"


def test_every_shorter_or_longer_ciphertext_is_refused(name: str) -> None:
    cipher = make_cipher(name, KEY)
    ciphertext = sealed(cipher, NONCE, b"header", PLAIN)
    for wrong in (*(ciphertext[:n] for n in range(len(ciphertext))), ciphertext + b"\0", ciphertext * 2):
        with pytest.raises(PeerViolation) as caught:
            cipher.open(NONCE, b"header", wrong)
        assert caught.value.detail == "forged"


def test_another_header_or_key_opens_nothing(name: str) -> None:
    ciphertext = sealed(make_cipher(name, KEY), NONCE, b"header", PLAIN)
    for key, aad in ((KEY, b""), (KEY, b"header "), (KEY, b"Header"), (KEY[::-1], b"header")):
        with pytest.raises(PeerViolation) as caught:
            make_cipher(name, key).open(NONCE, aad, ciphertext)
        assert caught.value.detail == "forged"


@pytest.mark.parametrize("safe", ["aes-256-gcm", "chacha20-poly1305"])
def test_another_nonce_opens_nothing(safe: str) -> None:
    cipher = make_cipher(safe, KEY)
    with pytest.raises(PeerViolation):
        cipher.open(NONCE[::-1], b"header", sealed(cipher, NONCE, b"header", PLAIN))


def test_no_cipher_opens_what_another_sealed() -> None:
    """The keys of two ciphers come from one stream key, under names of their own."""
    for made in CIPHERS:
        ciphertext = sealed(make_cipher(made, KEY), NONCE, b"header", PLAIN)
        for tried in set(CIPHERS) - {made}:
            with pytest.raises(PeerViolation):
                make_cipher(tried, KEY).open(NONCE, b"header", ciphertext)


@pytest.mark.parametrize("name", UNSAFE_CIPHERS)
def test_an_unsafe_cipher_has_an_iv_of_its_own_for_each_header(name: str) -> None:
    """CBC with a repeated IV would show equal beginnings."""
    cipher = make_cipher(name, KEY)
    ciphertexts = {sealed(cipher, NONCE, i.to_bytes(8, "big"), bytes(64))[:8] for i in range(200)}
    assert len(ciphertexts) == 200


@pytest.mark.parametrize("name", UNSAFE_CIPHERS)
def test_an_unsafe_cipher_checks_the_mac_before_it_decrypts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encrypt-then-MAC: no padding oracle, because nothing is decrypted that did not verify."""
    cipher = make_cipher(name, KEY)
    ciphertext = bytearray(sealed(cipher, NONCE, b"header", PLAIN))
    ciphertext[len(PLAIN) // 8 * 8 - 1] ^= 1

    def never(*_: object, **__: object) -> None:
        raise AssertionError("decrypted what did not verify")

    monkeypatch.setattr("zkc.crypto.unsafe.Cipher", never)
    with pytest.raises(PeerViolation, match="a MAC does not verify"):
        cipher.open(NONCE, b"header", ciphertext)


@pytest.mark.claims("E2")
@pytest.mark.parametrize("name", UNSAFE_CIPHERS)
def test_an_unsafe_cipher_seals_as_the_specification_says(name: str) -> None:
    """Rebuilt from HMAC and the bare block cipher: IV = HMAC(k_iv, aad), MAC over aad, IV, ciphertext."""
    from cryptography.hazmat.decrepit.ciphers.algorithms import IDEA, TripleDES
    from cryptography.hazmat.primitives.ciphers import Cipher, modes

    from zkc.crypto.primitives import Secret, expand, mac

    root = Secret(KEY)
    block = TripleDES(expand(root, "3des key", 24)) if name == "3des" else IDEA(expand(root, "idea key", 16))
    iv = mac(expand(root, f"{name} iv", 32), b"header")[:8]
    encryptor = Cipher(block, modes.CBC(iv)).encryptor()
    body = encryptor.update(PLAIN + b"\6" * 6) + encryptor.finalize()
    tag = mac(expand(root, f"{name} mac", 32), b"header", iv, body)
    assert sealed(make_cipher(name, KEY), NONCE, b"header", PLAIN) == body + tag


def test_a_64_bit_block_cipher_gets_fewer_bytes_under_a_key() -> None:
    assert {n: make_cipher(n, KEY).rollover_bytes for n in CIPHERS} == {
        "aes-256-gcm": ROLLOVER_BYTES, "chacha20-poly1305": ROLLOVER_BYTES,
        "3des": ROLLOVER_BYTES_64BIT_BLOCK, "idea": ROLLOVER_BYTES_64BIT_BLOCK,
    }


@pytest.mark.parametrize("unknown", ["", "none", "aes-128-gcm", "AES-256-GCM", "rc4", "3des ", "x" * 64])
def test_an_unknown_cipher_is_another_version(unknown: str) -> None:
    with pytest.raises(PeerViolation) as caught:
        make_cipher(unknown, KEY)
    assert caught.value.detail == "version"


def test_the_unsafe_module_is_not_loaded_for_the_safe_ciphers() -> None:
    """Who did not opt in does not even import it."""
    program = (
        "import sys, zkc.crypto.chunks, zkc.crypto.ciphers as c; c.make_cipher('aes-256-gcm', bytes(32));"
        "sys.exit('zkc.crypto.unsafe' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
