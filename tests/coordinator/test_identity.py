"""The coordinator's identity file: made once, private, and never silently another one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.coordinator import RUN
from tests.support.program import finished
from zkc.coordinator.identity import identity_file, load, load_or_create
from zkc.crypto.cards import verify_coordinator_card
from zkc.env import SystemEntropy
from zkc.errors import DaemonError, LocalIOError, PeerViolation

ENTROPY = SystemEntropy()


@pytest.mark.parametrize("suite", ["hybrid", "x25519", "rsa"])
def test_the_first_start_makes_it_and_every_later_one_reads_the_same(tmp_path: Path, suite: str) -> None:
    made = load_or_create(tmp_path, suite, ENTROPY)
    again = load_or_create(tmp_path, "hybrid", ENTROPY)
    read = load(tmp_path)
    assert made.suite.name == again.suite.name == read.suite.name == suite
    assert made.fingerprint == again.fingerprint == read.fingerprint
    assert made.curve == again.curve == read.curve
    assert made.mac_key == read.mac_key
    verified = verify_coordinator_card(read.card, read.card_signature, made.fingerprint)
    assert verified.curve_key == made.curve_public
    assert identity_file(tmp_path).stat().st_mode & 0o777 == 0o600
    assert repr(made) == f"CoordinatorIdentity({made.fingerprint.hex()[:16]}, …)"


@pytest.mark.attack("K03")
def test_a_flipped_byte_or_a_cut_is_refused_wherever_it_is(tmp_path: Path) -> None:
    load_or_create(tmp_path, "x25519", ENTROPY)
    path = identity_file(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x01
        path.write_bytes(damaged)
        with pytest.raises(LocalIOError) as error:
            load(tmp_path)
        assert error.value.detail == "damaged"
        path.write_bytes(whole[:place])
        with pytest.raises(LocalIOError):
            load_or_create(tmp_path, "x25519", ENTROPY)
    path.write_bytes(whole)
    load(tmp_path)


@pytest.mark.attack("K01")
def test_a_file_that_others_can_read_or_that_is_a_link_is_refused(tmp_path: Path) -> None:
    load_or_create(tmp_path, "x25519", ENTROPY)
    path = identity_file(tmp_path)
    path.chmod(0o640)
    with pytest.raises(LocalIOError, match="chmod 600"):
        load(tmp_path)
    path.chmod(0o600)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LocalIOError, match="symbolic link"):
        load(tmp_path)


def test_a_key_database_without_its_identity_gets_no_new_one(tmp_path: Path) -> None:
    (tmp_path / "keys.db").touch()
    with pytest.raises(LocalIOError, match="backup"):
        load_or_create(tmp_path, "hybrid", ENTROPY)
    assert not identity_file(tmp_path).exists()


def test_a_home_in_which_none_ever_ran_has_none(tmp_path: Path) -> None:
    with pytest.raises(DaemonError):
        load(tmp_path)


def test_an_unknown_suite_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(PeerViolation):
        load_or_create(tmp_path, "rot13", ENTROPY)
    assert not identity_file(tmp_path).exists()


def test_a_suite_other_than_that_of_the_first_start_is_refused(tmp_path: Path) -> None:
    load_or_create(tmp_path, "x25519", ENTROPY)
    command = [sys.executable, "-c", RUN, str(tmp_path), "tcp://127.0.0.1:0"]
    done = finished(command, env={"ZKC_COORDINATOR_SUITE": "rsa"})
    assert done.code == 2
    assert "suite is x25519, not rsa" in done.err
