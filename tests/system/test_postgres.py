"""A coordinator whose key database is in PostgreSQL, with real processes and a real server."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.postgres import Postgres, postgres_server
from tests.support.program import zkc
from tests.support.waiting import DEADLINE, wait_until
from zkc.coordinator.identity import load
from zkc.stores.keydb import KeyDb
from zkc.testing import Fleet


def keydb(url: str) -> dict[str, object]:
    return {"coordinator.keydb": url}


def test_a_coordinator_on_a_server_does_what_it_does_on_a_file(postgres: Postgres) -> None:
    url = postgres.url()
    with Fleet("alice", "bob", coordinator=keydb(url)) as fleet:
        assert fleet.zkc("alice", "send", "bob", "-m", "hello").code == 0
        (told,) = fleet.zkc("coordinator", "coordinator", "status", "--json").events
        assert told["keydb"] == "postgresql://zkc@/postgres"
        assert not (fleet.home("coordinator") / "keys.db").exists()

        fleet.coordinator.kill()  # with its session
        fleet.start_coordinator()
        for name in ("alice", "bob"):
            fleet.wait_linked(name)
        assert fleet.zkc("alice", "send", "bob", "-m", "again").code == 0

        # Another process writes, and the one that runs acts on it.
        assert fleet.zkc("coordinator", "coordinator", "revoke", "bob", "--reason", "lost").code == 0
        done = fleet.zkc("alice", "send", "bob", "-m", "too late", "--json")
        assert (done.code, done.events[-1]["reason"]) == (20, "unknown-recipient")
        verified = fleet.zkc("coordinator", "coordinator", "audit", "--verify")
        assert verified.code == 0, verified.err


def test_a_server_that_goes_and_comes_back_is_no_end() -> None:
    """Meanwhile nothing is granted to those who do not know each other, and they are told so at once."""
    with postgres_server() as server, Fleet("alice", "bob", coordinator=keydb(server.url())) as fleet:
        (told,) = fleet.zkc("coordinator", "coordinator", "status", "--json").events
        assert (told["keydb"], told["clients"]) == ("postgresql://zkc@/postgres", 2)
        server.stop()
        refused = fleet.zkc("alice", "send", "bob", "-m", "nobody knows", "--timeout", "20s", "--json")
        assert (refused.code, refused.events[-1]["detail"]) in ((10, "keydb"), (31, "link"))  # told by either end
        assert fleet.zkc("alice", "status").code == 0
        identity = (fleet.home("coordinator") / "identity.key").read_bytes()
        for words in (("invite", "carol"), ("rotate",)):
            done = fleet.zkc("coordinator", "coordinator", *words)
            assert done.code == 33
            assert b"cannot be reached" in done.err
        assert (fleet.home("coordinator") / "identity.key").read_bytes() == identity
        assert fleet.coordinator.process.poll() is None
        (told,) = fleet.zkc("coordinator", "coordinator", "status", "--json").events
        assert (told["keydb"], told["clients"]) == ("postgresql://zkc@/postgres (unreachable)", 2)
        server.start()
        wait_until(lambda: fleet.zkc("alice", "send", "bob", "-m", "hello").code == 0)
        fleet.join("carol")


def test_a_coordinator_whose_server_went_back_begins_anew_with_what_is_there() -> None:
    """As a dump that was restored, or a replica that lagged behind: whom it does not know is not linked any more."""
    with postgres_server() as server, Fleet("alice", "bob", coordinator=keydb(server.url())) as fleet:
        server.stop()
        server.keep()
        server.start()
        wait_until(lambda: fleet.zkc("alice", "send", "bob", "-m", "hello").code == 0)
        fleet.join("carol")
        fleet.start_daemon("carol")
        server.stop()
        server.go_back()
        server.start()
        wait_until(lambda: "went back to an earlier state" in fleet.coordinator.log.read_text())
        for name in ("alice", "bob"):
            fleet.wait_linked(name)
        assert fleet.zkc("alice", "send", "bob", "-m", "as before").code == 0
        assert fleet.zkc("carol", "status").code == 10
        assert fleet.zkc("coordinator", "coordinator", "invite", "carol").code == 0, "the name is free"


def test_of_two_coordinators_on_one_database_one_runs(postgres: Postgres, tmp_path: Path) -> None:
    """As after a backup was restored on a new host while the old one lives."""
    url = postgres.url()
    with Fleet("alice", coordinator=keydb(url)) as fleet:
        other = tmp_path / "other"
        other.mkdir(mode=0o700)
        for name in ("identity.key", "config.toml"):
            (other / name).write_bytes((fleet.home("coordinator") / name).read_bytes())
            (other / name).chmod(0o600)
        words = ("coordinator", "run", "--listen", "tcp://127.0.0.1:0", "--json")
        done = zkc(*words, env={"ZKC_HOME": str(other)})
        told = json.loads(done.out)
        assert (done.code, told["detail"]) == (34, "already-running")
        assert "another coordinator runs on the key database" in told["message"]
        fleet.join("bob")


def test_a_coordinator_whose_place_another_took_ends(postgres: Postgres) -> None:
    """It would go on for those who are linked to it, and hear of no revocation."""
    url = postgres.url()
    with Fleet("alice", coordinator=keydb(url)) as fleet:
        identity = load(fleet.home("coordinator"))
        postgres.run(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            f" AND classid = {0x7A6B63} AND objid = current_schema()::regnamespace", url,
        )
        with closing(KeyDb.open(url, identity.mac_key, create=False, patience=10, alone=True)):
            assert fleet.coordinator.process.wait(DEADLINE) == 34


@pytest.mark.attack("K05")
def test_a_coordinator_moves_from_a_file_to_a_server_and_back(postgres: Postgres, tmp_path: Path) -> None:
    """By a backup, whose form is one for both."""
    backup, url = tmp_path / "coordinator.tar", postgres.url()
    with Fleet("alice", "bob") as fleet:
        home, environment = fleet.home("coordinator"), {"ZKC_HOME": str(fleet.home("coordinator"))}
        for place in (url, ""):
            done = zkc("coordinator", "backup", str(backup), env=environment)
            assert done.code == 0, done.err
            fleet.coordinator.terminate()
            home.rename(tmp_path / f"before-{bool(place)}")
            home.mkdir(mode=0o700)
            fleet.configure("coordinator", keydb(place))
            done = zkc("coordinator", "restore", str(backup), env=environment)
            assert done.code == 0, done.err
            fleet.start_coordinator()
            for name in ("alice", "bob"):
                fleet.wait_linked(name)
            assert fleet.zkc("alice", "send", "bob", "-m", f"from {place}").code == 0
            assert (home / "keys.db").exists() == (not place)
            backup.unlink()


@pytest.mark.attack("K05")
def test_a_backup_is_restored_into_an_empty_place_alone(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.url()
    with Fleet("alice", coordinator=keydb(url)) as fleet:
        fleet.coordinator.terminate()
        done = fleet.zkc("coordinator", "coordinator", "backup", str(tmp_path / "tar"))
        assert done.code == 0, done.err
        done = fleet.zkc("coordinator", "coordinator", "restore", str(tmp_path / "tar"))
        assert done.code == 2
        assert b"another home" in done.err
        environment = {"ZKC_HOME": str(tmp_path / "new")}
        again = zkc("coordinator", "restore", str(tmp_path / "tar"), "--json", env={
            **environment, "ZKC_COORDINATOR_KEYDB": url,
        })  # fmt: skip
        told = json.loads(again.out.splitlines()[-1])
        assert (again.code, told["detail"]) == (2, "occupied")
        assert "coordinator.keydb" in told["message"]
        assert not (tmp_path / "new" / "identity.key").exists()
