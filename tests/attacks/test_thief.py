"""What a thief gets (docs/protocol.md, last table): each row with the real files, stolen from a running fleet, and no
more of them than the row says. What recorded transfers are worth to one is in test_handshake.py, what a stolen
invitation is in test_registration.py."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.evil import KeyedPeer
from tests.support.evil_fleet import error_of
from zkc.coordinator.identity import load as load_identity
from zkc.net.monitor import EventKind
from zkc.net.sockets import CurveKeys, curve_public, to_z85
from zkc.stores.home import Home
from zkc.stores.keydb import KeyDb
from zkc.stores.keystore import KeyStore
from zkc.testing import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """alice and bob, who know each other."""
    with Fleet("alice", "bob", folder=tmp_path) as fleet:
        assert fleet.zkc("alice", "send", "bob", "-m", "hello").code == 0
        yield fleet


@pytest.mark.attack("H09")
def test_the_key_database_alone_makes_no_coordinator(fleet: Fleet) -> None:
    """Its rows are sealed with the identity, and clients hold another at its address for what it is."""
    endpoint = fleet.coordinator.endpoint
    fleet.home("thief").mkdir(mode=0o700)
    shutil.copy(fleet.home("coordinator") / "keys.db", fleet.home("thief"))
    words = ["coordinator", "run", "--listen", "tcp://127.0.0.1:0", "--json"]
    assert (error_of(done := fleet.zkc("thief", *words))["detail"], done.code) == ("missing", 33)
    fleet.coordinator.kill()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    impostor = fleet.popen("other", "coordinator", "run", "--listen", endpoint, **pipes)
    assert impostor.stdout is not None
    with impostor:
        assert impostor.stdout.readline().startswith(b"ready")
        sent = fleet.zkc("alice", "send", "bob", "-m", "to whom?", "--json", "--timeout", "20s")
        assert (error_of(sent)["code"], error_of(sent)["reason"]) == (10, "coordinator-unreachable")
        impostor.terminate()
    shutil.copy(fleet.home("other") / "identity.key", fleet.home("thief"))
    assert (error_of(done := fleet.zkc("thief", *words))["detail"], done.code) == ("damaged", 33)
    assert [item.name for item in fleet.client("bob").items()] == ["message"]


@pytest.mark.attack("R04")
def test_the_table_of_invitations_opens_no_connection(fleet: Fleet) -> None:
    """Of an open invitation the coordinator keeps what verifies its holder, and nothing that makes one."""
    fleet.invite("carol")
    identity = load_identity(fleet.home("coordinator"))
    db = KeyDb.open(f"sqlite:///{fleet.home('coordinator') / 'keys.db'}", identity.mac_key, create=False)
    try:
        (row,) = [row for row in db.invitations() if row.name == "carol"]
    finally:
        db.close()
    assert row.psk is not None
    for stolen in (row.psk, row.curve_public):
        secret = to_z85(stolen)
        keys = CurveKeys(curve_public(secret), secret)
        with KeyedPeer(fleet.coordinator.endpoint, identity.curve_public, keys) as peer:
            assert peer.verdict() is EventKind.HANDSHAKE_FAILED_AUTH


def test_channel_keys_without_the_identity_ask_and_sign_nothing(fleet: Fleet) -> None:
    """Who has a client's KEM and CURVE keys passes for it at the coordinator, and with nobody else."""
    with KeyStore.open(Home.resolve("client", str(fleet.home("alice")))) as store:
        registration = store.registration("alice")
    assert registration is not None
    with KeyStore.open(Home.resolve("client", str(fleet.home("thief"))).prepare()) as store:
        store.complete(replace(registration, identity_private=os.urandom(64)), os.urandom(16))
    assert fleet.zkc("thief", "peers", "--json").code == 0, "the coordinator lists its clients for it"
    error = error_of(fleet.zkc("thief", "send", "bob", "-m", "from alice?", "--json"))
    assert (error["code"], error["reason"]) == (12, "identity")
    assert len(fleet.client("bob").items()) == 1


def test_a_whole_home_passes_for_its_owner_until_it_is_revoked(fleet: Fleet) -> None:
    shutil.copytree(fleet.home("alice"), fleet.home("thief"), ignore=shutil.ignore_patterns("run"))
    assert fleet.zkc("thief", "send", "bob", "-m", "from alice?").code == 0
    assert fleet.zkc("coordinator", "coordinator", "revoke", "alice").code == 0
    assert error_of(fleet.zkc("thief", "send", "bob", "-m", "again", "--json"))["code"] == 11
    assert len(fleet.client("bob").items()) == 2
