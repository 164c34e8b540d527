"""Signed heads of the key log."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from zkc.crypto.heads import Head, sign_head, verify_head
from zkc.crypto.signing import IdentityKey
from zkc.errors import PeerViolation

KEY = IdentityKey.from_seed(bytes(range(64)))
HEAD = Head(5, bytes(range(32)))


def test_a_head_is_a_checkpoint_that_any_tool_for_logs_reads() -> None:
    """C2SP tlog-checkpoint and signed-note: taken apart here by their words alone."""
    note = sign_head(KEY, HEAD)
    assert verify_head(KEY.public, note) == HEAD
    text, _, signatures = note.partition(b"\n\n")
    origin, size, root = text.split(b"\n")
    assert (size, base64.b64decode(root)) == (b"5", HEAD.root)
    dash, name, blob = signatures.split(b"\n")[0].split(b" ")
    assert (dash, name) == ("—".encode(), origin)
    signed = base64.b64decode(blob)
    assert signed[:4] == hashlib.sha256(origin + b"\n\x01" + KEY.public.ed25519).digest()[:4]
    Ed25519PublicKey.from_public_bytes(KEY.public.ed25519).verify(signed[4:], text + b"\n")


def test_what_is_changed_in_a_head_anywhere_does_not_verify() -> None:
    note = sign_head(KEY, HEAD)
    for place in [*range(140), *range(140, len(note), 97), len(note) - 1]:
        damaged = bytearray(note)
        damaged[place] ^= 1
        with pytest.raises(PeerViolation):
            verify_head(KEY.public, bytes(damaged))


@pytest.mark.parametrize("drop", [0, 1])
def test_a_head_with_one_signature_does_not_verify(drop: int) -> None:
    text, _, signatures = sign_head(KEY, HEAD).partition(b"\n\n")
    lines = signatures.splitlines(keepends=True)
    del lines[drop]
    with pytest.raises(PeerViolation):
        verify_head(KEY.public, text + b"\n\n" + b"".join(lines))


def test_a_head_of_another_coordinator_does_not_verify() -> None:
    with pytest.raises(PeerViolation):
        verify_head(IdentityKey.from_seed(bytes(64)).public, sign_head(KEY, HEAD))


def test_a_note_is_never_a_message_of_ours() -> None:
    with pytest.raises(ValueError, match="taken for a message"):
        KEY.sign_note(b"zkc/1 card\0" + bytes(32))
