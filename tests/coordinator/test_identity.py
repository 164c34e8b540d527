"""The coordinator's identity file: made once, private, and never silently another one."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.coordinator import RUN
from tests.support.program import finished
from zkc.coordinator.identity import identity_file, load, load_or_create, rotate
from zkc.crypto.cards import make_coordinator_card, sign_coordinator_card, verify_coordinator_card
from zkc.env import SystemEntropy
from zkc.errors import DaemonError, IdentityError, LocalIOError, PeerViolation
from zkc.protocol.trust import follow_coordinator

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


@pytest.mark.attack("K03", "K08")
def test_a_new_identity_is_vouched_for_and_keeps_what_others_hold_of_it(tmp_path: Path) -> None:
    first = load_or_create(tmp_path, "x25519", ENTROPY)
    second = rotate(tmp_path, ENTROPY)
    with ThreadPoolExecutor() as pool:  # of two at once one follows the other
        made = sorted(pool.map(lambda _: rotate(tmp_path, ENTROPY), range(2)), key=lambda each: each.epoch)
    last = load(tmp_path)
    assert [each.epoch for each in (first, second, *made)] == [1, 2, 3, 4]
    assert last.fingerprint == made[1].fingerprint
    assert (last.mac_key, last.curve, last.suite) == (first.mac_key, first.curve, first.suite)
    assert last.general_key.encode() != first.general_key.encode()
    pinned = verify_coordinator_card(first.card, first.card_signature, first.fingerprint)
    found = follow_coordinator(pinned, last.card, last.card_signature, last.successions)
    assert found.identity.fingerprint == last.fingerprint
    path = identity_file(tmp_path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 101):
        path.write_bytes(whole[:place] + bytes((whole[place] ^ 1,)) + whole[place + 1 :])
        with pytest.raises(LocalIOError):
            load(tmp_path)


@pytest.mark.attack("H13", "K05")
def test_another_identity_without_the_word_of_the_pinned_one_is_an_alarm(tmp_path: Path) -> None:
    """A stranger's, an older one, a chain that is cut or altered, and keys beside it that nobody vouched for."""
    for name in ("own", "other"):
        (tmp_path / name).mkdir(mode=0o700)
    first = load_or_create(tmp_path / "own", "x25519", ENTROPY)
    second, third = rotate(tmp_path / "own", ENTROPY), rotate(tmp_path / "own", ENTROPY)
    stranger = load_or_create(tmp_path / "other", "x25519", ENTROPY)
    pinned, later = (
        verify_coordinator_card(each.card, each.card_signature, each.fingerprint) for each in (first, third)
    )
    one, two = third.successions
    other_curve = make_coordinator_card(third.signing, third.general_key.public, b"c" * 32, "x25519", 3)
    for known, card, signature, chain in (
        (pinned, stranger.card, stranger.card_signature, []), (pinned, third.card, third.card_signature, [one]),
        (pinned, third.card, third.card_signature, [two]), (pinned, third.card, third.card_signature, [one, one]),
        (pinned, second.card, second.card_signature, [one, two]), (later, second.card, second.card_signature, [one]),
        (later, first.card, first.card_signature, []), (pinned, third.card, second.card_signature, [one, two]),
        (pinned, other_curve, sign_coordinator_card(third.signing, other_curve), [one, two]),
    ):
        with pytest.raises(IdentityError) as caught:
            follow_coordinator(known, card, signature, chain)
        assert caught.value.detail == "identity"
    follow_coordinator(pinned, third.card, third.card_signature, [one, two])
