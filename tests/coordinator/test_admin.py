"""The administration functions, with a running coordinator and without one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.coordinator import RunningCoordinator, coordinator_in, join
from tests.support.program import PATIENCE
from zkc.coordinator import admin
from zkc.coordinator.invitations import advertised
from zkc.crypto.invitations import parse_invitation
from zkc.errors import DaemonError, NotRegistered, UsageError, ZkcError
from zkc.net.addresses import host_addresses
from zkc.net.monitor import EventKind
from zkc.stores.home import Home


def test_status_of_an_empty_home_is_34_and_creates_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DaemonError) as error:
            admin.status(Home.resolve("coordinator", str(folder)), 0.1)
        assert error.value.code == 34
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("function", [admin.list_invitations, lambda home: list(admin.clients(home))])
def test_administration_of_a_home_in_which_none_ever_ran_is_34(tmp_path: Path, function: object) -> None:
    assert callable(function)
    with pytest.raises(DaemonError):
        function(Home.resolve("coordinator", str(tmp_path)))
    with pytest.raises(DaemonError):
        admin.invite(Home.resolve("coordinator", str(tmp_path)), "bob", endpoints=("tcp://127.0.0.1:1",))
    assert os.listdir(tmp_path) == []


def test_status_tells_who_and_where(running: RunningCoordinator) -> None:
    status = running.status
    assert status.endpoints == [running.endpoint]
    assert status.fingerprint == running.fingerprint
    assert status.keydb == f"sqlite:///{running.home.keys_db}"
    assert status.pid != running.process.pid


def test_a_command_loads_the_key_database_and_no_coordinator(running: RunningCoordinator) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "zkc", "--home", str(running.home.data), "coordinator"]
    done = subprocess.run([*command, "invite", "cheap"], capture_output=True, text=True, check=True, timeout=PATIENCE)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sqlalchemy" in imported
    assert not imported & {"structlog", "rich", "zkc.coordinator.engine", "zkc.coordinator.core"}


def test_an_invitation_names_where_the_coordinator_listens_or_what_it_is_told(running: RunningCoordinator) -> None:
    assert running.invite("endpoints").endpoints == [running.endpoint]
    told = ("tcp://192.0.2.7:7670", "tcp://[2001:db8::7]:7670")
    assert tuple(running.invite("endpoints", endpoints=told).endpoints) == told
    for wrong in ("tcp://*:7670", "tcp://host:0", "host:1"):
        with pytest.raises(UsageError):
            running.invite("endpoints", endpoints=(wrong,))


def test_an_invitation_lasts_as_long_as_it_says(running: RunningCoordinator) -> None:
    now = time.time()
    assert 86400 <= admin.invite(running.home, "day").expires - now < 86460
    assert 10 <= admin.invite(running.home, "short", ttl=10.0).expires - now < 70


@pytest.mark.attack("R11")
@pytest.mark.parametrize(
    "name", ["", "Bob", "bob smith", "bob/", "../bob", "b\u043eb", "bob\x1b[2J", "b" * 64, "bob\u202e", "-bob"]
)
def test_a_name_is_ascii_of_the_grammar(running: RunningCoordinator, name: str) -> None:
    with pytest.raises(UsageError) as error:
        admin.invite(running.home, name)
    assert error.value.code == 2


def test_an_application_is_not_invited_by_the_administrator(running: RunningCoordinator) -> None:
    with pytest.raises(UsageError, match="join --app backup"):
        admin.invite(running.home, "bob/backup")


def test_a_registered_name_is_refused_until_it_is_revoked(running: RunningCoordinator) -> None:
    join(running, "taken")
    with pytest.raises(ZkcError) as error:
        running.invite("taken")
    assert (error.value.code, error.value.detail) == (11, "name-taken")
    assert admin.revoke(running.home, "taken") == ["taken"]
    join(running, "taken")
    states = [client.revoked is None for client in admin.clients(running.home) if client.name == "taken"]
    assert states == [False, True]


def test_open_invitations_are_listed_without_their_secret_and_cancelled(running: RunningCoordinator) -> None:
    running.invite("listed")
    running.invite("listed", ttl=0.0)
    listed = [row for row in admin.list_invitations(running.home) if row.name == "listed"]
    assert sorted(row.state for row in listed) == ["expired", "open"]
    assert admin.cancel(running.home, "listed") == 2
    with pytest.raises(NotRegistered):
        admin.cancel(running.home, "listed")


def test_an_invitation_does_not_show_in_its_repr(running: RunningCoordinator) -> None:
    made = admin.invite(running.home, "repr")
    assert made.invitation not in repr(made)


def test_revoking_nobody_is_told(running: RunningCoordinator) -> None:
    with pytest.raises(NotRegistered) as error:
        admin.revoke(running.home, "nobody")
    assert error.value.detail == "unknown"
    with pytest.raises(UsageError):
        admin.revoke(running.home, "nobody", "x" * 513)


def test_everything_but_status_works_without_a_running_coordinator(tmp_path: Path) -> None:
    with coordinator_in(tmp_path) as coordinator:
        join(coordinator, "bob")
        home = coordinator.home
    home.config_file.write_text('[coordinator]\nlisten = ["tcp://127.0.0.1:0"]\n')
    with pytest.raises(UsageError, match="no port number yet"):
        admin.invite(home, "carol")
    home.config_file.write_text('[coordinator]\nlisten = ["tcp://127.0.0.1:7671"]\n')
    assert parse_invitation(admin.invite(home, "carol").invitation).endpoints == ["tcp://127.0.0.1:7671"]
    (bob,) = admin.clients(home)
    assert (bob.name, bob.online, bob.revoked) == ("bob", False, None)
    assert admin.revoke(home, "bob", "gone") == ["bob"]
    assert [client.reason for client in admin.clients(home)] == ["gone"]
    assert admin.cancel(home, "carol") == 1


def test_a_client_revoked_while_no_coordinator_ran_is_not_admitted_later(tmp_path: Path) -> None:
    coordinator = RunningCoordinator(tmp_path / "home")
    with coordinator:
        bob = join(coordinator, "bob")
    admin.revoke(coordinator.home, "bob")
    coordinator.start()
    with coordinator:
        bob.endpoint = coordinator.endpoint
        with bob.connect() as wire:
            assert wire.verdict() is EventKind.HANDSHAKE_FAILED_AUTH


def test_a_wildcard_is_every_address_of_this_host_loopback_last(tmp_path: Path) -> None:
    everywhere = advertised(["tcp://*:7670"])
    assert everywhere == tuple(
        f"tcp://[{address}]:7670" if ":" in address else f"tcp://{address}:7670" for address in host_addresses()
    )
    assert "127.0.0.1" in host_addresses()
    loopback = [address.startswith(("127.", "::1")) for address in host_addresses()]
    assert loopback == sorted(loopback)
    assert all("[" not in endpoint for endpoint in advertised(["tcp://0.0.0.0:7670"]))
    assert advertised(["tcp://host:1", "tcp://host:1"]) == ("tcp://host:1",)
    with coordinator_in(tmp_path, listen="tcp://*:0") as coordinator:
        port = coordinator.endpoint.rpartition(":")[2]
        assert coordinator.endpoint == f"tcp://*:{port}"
        assert f"tcp://127.0.0.1:{port}" in coordinator.invite("bob").endpoints

