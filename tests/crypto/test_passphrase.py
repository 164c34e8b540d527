"""A passphrase in front of keys: what a guess costs, and what it shows."""

from __future__ import annotations

import time

import pytest

from tests.support.link import flipped
from zkc.crypto.passphrase import Lock, make_lock, open_key, open_lock, seal_key
from zkc.crypto.primitives import Secret
from zkc.errors import PeerViolation

MASTER, SALT = bytes(range(32)), b"s" * 16


def refused(lock: Lock, guess: bytes) -> str:
    with pytest.raises(PeerViolation) as caught:
        open_lock(lock, guess)
    return str(caught.value)


@pytest.mark.attack("K02")
def test_a_guess_costs_64_mib_and_three_passes_and_a_wrong_one_shows_nothing() -> None:
    """Near or far, short or long: one answer, and the work of a right one."""
    lock = make_lock(b"correct horse", Secret(MASTER), SALT)
    assert lock.memory >= 64 * 1024
    assert lock.passes >= 3
    began = time.process_time()
    assert open_lock(lock, b"correct horse").reveal() == MASTER
    right = time.process_time() - began
    told = set()
    for guess in (b"", b"correct hors", b"correct horsf", b"x" * 10_000):
        began = time.process_time()
        told.add(refused(lock, guess))
        assert time.process_time() - began > right / 4
    assert len(told) == 1
    for shown in (repr(lock), *told):
        assert "horse" not in shown
        assert lock.wrapped.hex() not in shown


@pytest.mark.attack("K02", "K03")
def test_a_lock_with_another_salt_or_parameter_does_not_open() -> None:
    lock = make_lock(b"x", Secret(MASTER), SALT)
    for damaged in (
        Lock(b"t" * 16, lock.memory, lock.passes, lock.lanes, lock.wrapped),
        Lock(lock.salt, 8 * 1024, lock.passes, lock.lanes, lock.wrapped),
        Lock(lock.salt, lock.memory, 1, lock.lanes, lock.wrapped),
        Lock(lock.salt, lock.memory, lock.passes, lock.lanes, flipped(lock.wrapped, 3, 1)),
    ):
        refused(damaged, b"x")
    assert "nobody chose" in refused(Lock(lock.salt, 1 << 30, 3, 4, lock.wrapped), b"x")


def test_a_sealed_key_opens_for_its_owner_and_its_place_alone() -> None:
    stored = seal_key(Secret(MASTER), b"private", b"n" * 12, b"kem of bob")
    assert b"private" not in stored
    assert open_key(Secret(MASTER), stored, b"kem of bob") == b"private"
    for key, sealed, about in (
        (b"x" * 32, stored, b"kem of bob"), (MASTER, stored, b"kem of carol"), (MASTER, stored[:-1], b"kem of bob"),
        (MASTER, flipped(stored, len(stored) - 1, 1), b"kem of bob"), (MASTER, b"", b"kem of bob"),
    ):
        with pytest.raises(PeerViolation):
            open_key(Secret(key), sealed, about)
