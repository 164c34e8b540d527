"""What is PostgreSQL's alone in a key database; what every backend does is in test_keydb.py."""

from __future__ import annotations

import itertools
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from tests.support.postgres import Postgres, postgres_server
from tests.support.waiting import wait_until
from zkc.crypto.audit import Note
from zkc.errors import DaemonError, InternalError, LocalIOError, UsageError, VersionMismatch
from zkc.ids import Kind
from zkc.stores import keydb, migrations
from zkc.stores.backends import is_there, shown
from zkc.stores.keydb import InvitationRow, KeyDb

MAC_KEY = b"\x5a" * 32
NOW = 1_700_000_000.0


def invitation(name: str, kind: Kind = "computer") -> InvitationRow:
    return InvitationRow(name.encode().ljust(16, b"."), name, kind, b"p" * 32, name.encode().ljust(32, b"."), NOW)


def names(db: KeyDb) -> list[str]:
    return [row.name for row in db.invitations()]


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.url()


@pytest.fixture
def db(url: str) -> Iterator[KeyDb]:
    with closing(KeyDb.open(url, MAC_KEY, create=True, patience=0.2)) as opened:
        yield opened


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """One that the test may stop."""
    with postgres_server() as server:
        yield server


# --- one coordinator ------------------------------------------------------------------------------------------------


def test_one_coordinator_runs_on_it_and_commands_beside_it(url: str) -> None:
    with closing(KeyDb.open(url, MAC_KEY, create=True, patience=0.2, alone=True)) as first:
        with pytest.raises(DaemonError) as caught:
            KeyDb.open(url, MAC_KEY, create=True, patience=0.2, alone=True)
        assert (caught.value.code, caught.value.detail) == (34, "already-running")
        with closing(KeyDb.open(url, MAC_KEY, create=False, patience=0.2)) as command:
            command.add_invitation(invitation("bob"))
        assert names(first) == ["bob"]
    with closing(KeyDb.open(url, MAC_KEY, create=True, patience=0.2, alone=True)) as second:
        assert names(second) == ["bob"]


def test_whose_session_was_ended_writes_nothing_once_another_runs(url: str, postgres: Postgres) -> None:
    """It was away for longer than the server waits: it is fenced, whatever it believes."""
    with closing(KeyDb.open(url, MAC_KEY, create=True, patience=0.2, alone=True)) as former:
        ended = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid ="
        postgres.run(f"{ended} {0x7A6B63} AND objid = current_schema()::regnamespace", url)
        with closing(KeyDb.open(url, MAC_KEY, create=True, patience=10, alone=True)) as later:
            with pytest.raises(DaemonError, match="another coordinator"):
                former.add_invitation(invitation("bob"))
            assert names(later) == []
        former.add_invitation(invitation("carol"))
        assert names(former) == ["carol"]


def test_two_key_databases_in_one_database_have_nothing_to_do_with_each_other(postgres: Postgres) -> None:
    urls = postgres.url(), postgres.url()
    with (
        closing(KeyDb.open(urls[0], MAC_KEY, create=True, alone=True)) as one,
        closing(KeyDb.open(urls[1], b"k" * 32, create=True, alone=True)) as other,
    ):
        one.add_invitation(invitation("bob"))
        before = other.version()
        assert names(other) == []
        one.add_invitation(invitation("carol"))
        assert other.version() == before


# --- a server that comes and goes -----------------------------------------------------------------------------------


def test_a_server_that_is_begun_anew_is_found_again(own_server: Postgres) -> None:
    with closing(KeyDb.open(own_server.url(), MAC_KEY, create=True, alone=True)) as db:
        db.add_invitation(invitation("bob"))
        for how in (signal.SIGINT, signal.SIGQUIT):  # at once, and as after a power cut
            own_server.stop(how)
            with pytest.raises(LocalIOError) as caught:
                db.invitations()
            assert (caught.value.code, caught.value.detail) == (33, "unreachable")
            own_server.start()
            assert names(db) == ["bob"]
        db.add_invitation(invitation("carol"))
        assert names(db) == ["bob", "carol"]


def test_a_connection_that_breaks_in_a_transaction_undoes_it(db: KeyDb, postgres: Postgres, url: str) -> None:
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"

    def break_in_the_middle() -> None:
        with db._backend.writing() as connection:
            db._insert(connection, keydb._SIGHTINGS, {"uid": b"u" * 16, "last_seen": NOW})
            postgres.run(ended)

    with pytest.raises(LocalIOError) as caught:
        break_in_the_middle()
    assert caught.value.detail == "unreachable"
    assert postgres.run("SELECT count(*) FROM sightings", url) == [(0,)]
    db.add_invitation(invitation("bob"))
    assert names(db) == ["bob"]


def test_no_server_there_is_said_with_its_name_and_without_the_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(LocalIOError) as caught:
        KeyDb.open(f"postgresql://zkc:s3cret@127.0.0.1:{port}/keys?password=s3cret", MAC_KEY, create=True)
    assert caught.value.detail == "unreachable"
    assert f"postgresql://zkc:***@127.0.0.1:{port}/keys" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_silent_host_holds_up_the_first_try_and_not_each(own_server: Postgres) -> None:
    """As one that lost its power, or is behind a firewall that drops: an event loop has more to do than to wait."""
    with closing(KeyDb.open(own_server.url(), MAC_KEY, create=True, patience=2, alone=True)) as db:
        own_server.stop()
        with socket.socket(socket.AF_UNIX) as silent:
            (own_server.folder / ".s.PGSQL.5432").unlink(missing_ok=True)
            silent.bind(str(own_server.folder / ".s.PGSQL.5432"))
            silent.listen()
            began = time.monotonic()
            for _ in range(50):
                with pytest.raises(LocalIOError) as caught:
                    db.invitations()
                assert (caught.value.code, caught.value.detail) == (33, "unreachable")
            assert time.monotonic() - began < 5
        (own_server.folder / ".s.PGSQL.5432").unlink()
        own_server.start()
        wait_until(lambda: is_answered(db))


def is_answered(db: KeyDb) -> bool:
    try:
        return db.invitations() == []
    except LocalIOError:
        return False


@pytest.mark.parametrize(
    "url",
    ["postgresql://zkc:s3cret", "postgresql://zkc:pass@s3cret@db.lan/keys", "postgresql://zkc@db.lan:s3cret/keys"],
)
def test_a_password_that_was_written_as_it_is_stands_in_no_error(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        KeyDb.open(url, MAC_KEY, create=True)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_parameter_that_the_library_does_not_know_is_a_wrong_url() -> None:
    with pytest.raises(UsageError, match="sslmod") as caught:
        KeyDb.open("postgresql:///keys?sslmod=require", MAC_KEY, create=True)
    assert (caught.value.code, caught.value.detail) == (2, "config")


def test_a_writer_that_finds_another_at_work_says_busy_once_its_patience_is_over(db: KeyDb, url: str) -> None:
    with closing(KeyDb.open(url, MAC_KEY, create=False)) as other, other._backend.writing():
        assert db.invitations() == []
        with pytest.raises(LocalIOError) as caught:
            db.add_invitation(invitation("bob"))
        assert caught.value.detail == "busy"
    db.add_invitation(invitation("bob"))
    assert names(db) == ["bob"]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "variables"),
    [
        ("postgresql://zkc@127.0.0.2:{port}/keys", {}),
        ("postgresql://zkc@127.0.0.2:{port}/keys", {"PGSSLMODE": "disable"}),
        ("postgresql:///keys?host=127.0.0.2&port={port}", {}),
        ("postgresql://localhost:{port}/keys?hostaddr=127.0.0.2", {}),
        ("postgresql:///keys", {"PGHOST": "127.0.0.2", "PGPORT": "{port}"}),
        ("postgresql://localhost:{port}/keys", {"PGHOSTADDR": "127.0.0.2", "PGSSLMODE": "disable"}),
    ],
)
def test_another_host_is_spoken_to_under_tls_alone(
    url: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line carries keys. Whoever means it otherwise writes `sslmode` into the URL."""
    said: list[bytes] = []

    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            said.append(connection.recv(4096))
            connection.sendall(b"N")  # no TLS here
            said.append(connection.recv(4096))

    with socket.create_server(("127.0.0.2", 0)) as server:
        answering = threading.Thread(target=answer, args=(server,))
        answering.start()
        port = server.getsockname()[1]
        for name, value in variables.items():
            monkeypatch.setenv(name, value.format(port=port))
        with pytest.raises(LocalIOError, match="SSL") as caught:
            KeyDb.open(url.format(port=port), MAC_KEY, create=True)
        answering.join(60)
    assert caught.value.detail == "unreachable"
    ask_for_tls = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
    assert said == [ask_for_tls, b""]


def test_a_database_in_another_encoding_is_refused(postgres: Postgres) -> None:
    postgres.run("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'")
    with pytest.raises(UsageError, match="UTF-8") as caught:
        KeyDb.open(postgres.url("public").replace("@/postgres", "@/ascii"), MAC_KEY, create=True)
    assert caught.value.detail == "config"


def test_what_a_site_has_set_for_its_users_changes_no_value(url: str, postgres: Postgres) -> None:
    postgres.run("CREATE ROLE odd LOGIN; ALTER ROLE odd SET extra_float_digits = 0; ALTER ROLE odd SET DateStyle = SQL")
    postgres.run("ALTER ROLE odd SET bytea_output = escape; ALTER ROLE odd SET synchronous_commit = off")
    postgres.run(f"GRANT ALL ON SCHEMA {url.rpartition('%3D')[2]} TO odd")
    with closing(KeyDb.open(url.replace("zkc@", "odd@"), MAC_KEY, create=True)) as db:
        row = replace(invitation("bob"), expires=NOW + 0.1234567)
        db.add_invitation(row)
        assert db.invitations() == [row]
        with db._backend.writing() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"


def test_a_user_who_may_make_no_tables_is_told_so(url: str, postgres: Postgres) -> None:
    postgres.run("CREATE ROLE guest LOGIN")
    with pytest.raises(LocalIOError) as caught:
        KeyDb.open(url.replace("zkc@", "guest@"), MAC_KEY, create=True)
    assert caught.value.detail == "permission"
    assert not is_there(url)
    with pytest.raises(LocalIOError, match="CREATE SCHEMA") as caught:
        KeyDb.open(f"{url}x", MAC_KEY, create=True)
    assert caught.value.detail == "permission"


def test_a_replica_is_not_written_to(db: KeyDb, url: str, postgres: Postgres) -> None:
    """What it answers is what a session answers that may only read."""
    db.add_invitation(invitation("bob"))
    schema = url.rpartition("%3D")[2]
    postgres.run(f"CREATE ROLE reader LOGIN; GRANT USAGE ON SCHEMA {schema} TO reader")
    postgres.run(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO reader")
    postgres.run("ALTER ROLE reader SET default_transaction_read_only = on")
    with closing(KeyDb.open(url.replace("zkc@", "reader@"), MAC_KEY, create=False)) as replica:
        assert names(replica) == ["bob"]
        with pytest.raises(LocalIOError, match="replica"):
            replica.add_invitation(invitation("carol"))


def test_without_the_driver_it_is_said_what_to_install(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "zkc.stores.keydb_postgres", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UsageError, match=r"zkc\[postgres\]") as caught:
        KeyDb.open(url, MAC_KEY, create=True)
    assert caught.value.detail == "extra"


def test_no_secret_stands_in_what_an_error_leaves_behind(db: KeyDb) -> None:
    """A server quotes the row that it does not take, and the driver's library what it was given."""
    row = replace(invitation("bob"), psk=b"s3cret-s3cret-s3cret-s3cret-s3cr", curve_public=None)  # type: ignore[arg-type]
    with pytest.raises(InternalError) as caught, db._backend.writing() as connection:
        db._insert(connection, keydb._INVITATIONS, keydb._values(row, keydb._INVITATION_FIELDS))
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in shown
    assert b"s3cret".hex() not in shown


@pytest.mark.attack("K03")
@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE invitations SET name = 'eve'",
        "UPDATE invitations SET expires = expires + 1",
        "UPDATE invitations SET psk = curve_public",
        "ALTER TABLE invitations RENAME TO hidden",
        "ALTER TABLE invitations RENAME COLUMN psk TO secret",
    ],
)
def test_a_change_by_another_hand_is_damage(db: KeyDb, url: str, postgres: Postgres, harm: str) -> None:
    db.add_invitation(invitation("bob"))
    postgres.run(harm, url)
    with pytest.raises(LocalIOError) as caught:
        db.invitations()
    assert caught.value.detail == "damaged"


@pytest.mark.attack("K03")
def test_without_the_row_that_orders_writers_nothing_is_written(db: KeyDb, url: str, postgres: Postgres) -> None:
    postgres.run("DELETE FROM writes", url)
    with pytest.raises(LocalIOError) as caught:
        db.add_invitation(invitation("bob"))
    assert caught.value.detail == "damaged"
    assert db.invitations() == []


# --- the schema -----------------------------------------------------------------------------------------------------


def test_a_schema_of_every_version_is_brought_up_to_date(postgres: Postgres) -> None:
    """From each that ever was; and names are in the order of their bytes, whatever the database's language."""
    schemas = []
    for start in range(1, migrations.LATEST + 1):
        url = postgres.url()
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE writes (number BIGINT NOT NULL)")
            connection.exec_driver_sql("INSERT INTO writes (number) VALUES (0)")
            migrations.create(connection, MAC_KEY, start)
        engine.dispose()
        KeyDb.open(url, MAC_KEY, create=False).close()
        columns = "table_name, column_name, data_type, is_nullable, collation_name FROM information_schema.columns"
        ours = "WHERE table_schema = current_schema() ORDER BY 1, ordinal_position"
        found = postgres.run(f"SELECT {columns} {ours}", url)
        indexes = postgres.run("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema()", url)
        schema = url.rpartition("%3D")[2]
        schemas.append((found, sorted((name, text.replace(f"{schema}.", "")) for name, text in indexes)))
        for table in keydb.TABLES:
            assert [row[1] for row in found if row[0] == table.name] == table.columns.keys()
        assert {row[4] for row in found if row[2] == "text"} == {"C"}
    assert all(each == schemas[0] for each in schemas)


def test_a_database_of_a_newer_zkc_is_refused_as_that(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(migrations, "LATEST", migrations.LATEST + 1)
        newer.setattr(migrations, "STEPS", (*migrations.STEPS, lambda *_: None))
        newer.setattr(migrations.create, "__defaults__", (migrations.LATEST,))
        KeyDb.open(url, MAC_KEY, create=True).close()
    with pytest.raises(VersionMismatch) as caught:
        KeyDb.open(url, MAC_KEY, create=False)
    assert caught.value.detail == "newer"


# --- from one kind to the other -------------------------------------------------------------------------------------


def test_a_copy_holds_every_row_whichever_the_kinds(tmp_path: Path, postgres: Postgres) -> None:
    file = f"sqlite:///{tmp_path}/keys.db"
    urls = [file, postgres.url(), postgres.url(), f"sqlite:///{tmp_path}/again.db"]
    assert [is_there(each) for each in urls] == [False] * 4
    with closing(KeyDb.open(file, MAC_KEY, create=True)) as db:
        for number in range(1001):  # more than are copied at once
            db.audit([Note(number, "transfer", "alice", "bob")])
        db.add_invitation(invitation("zoë"))
    for source, target in itertools.pairwise(urls):
        with closing(KeyDb.open(source, MAC_KEY, create=False)) as ours:
            ours.copy_to(target)
            with pytest.raises(LocalIOError) as caught:
                ours.copy_to(target)
            assert caught.value.detail == "busy"
        with (
            closing(KeyDb.open(source, MAC_KEY, create=False)) as ours,
            closing(KeyDb.open(target, MAC_KEY, create=False)) as copy,
        ):
            assert copy.verify_audit() == ours.verify_audit()
            assert copy.invitations() == ours.invitations()
            assert copy.audit_size() == 1001
    assert [is_there(each) for each in urls] == [True] * 4


def test_what_a_person_sees_of_a_url_has_no_password() -> None:
    assert shown("postgresql://zkc:s3cret@db.lan/keys?password=s3cret") == "postgresql://zkc:***@db.lan/keys"
    assert shown("sqlite:////var/lib/zkc/keys.db") == "sqlite:////var/lib/zkc/keys.db"
