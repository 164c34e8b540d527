"""Every store of a home says of which version it is: earlier ones are brought up to date, later ones are refused.

``earlier/`` holds what earlier programs wrote, as SQL (made by them: commits 687b6ef and d14ff4e).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
from sqlalchemy import create_engine

from tests.support.env import SeededEntropy
from tests.support.program import zkc
from zkc.client.person import PersonHere
from zkc.config import ClientConfig
from zkc.coordinator import identity
from zkc.env import SystemClock
from zkc.errors import VersionMismatch
from zkc.stores import home as homes
from zkc.stores import migrations
from zkc.stores.audit_file import AuditFile
from zkc.stores.home import Home, Role
from zkc.stores.inbox import Inbox
from zkc.stores.keydb import InvitationRow, KeyDb
from zkc.stores.keystore import KeyStore
from zkc.stores.outbox import Job, Outbox
from zkc.stores.rowmac import mac
from zkc.stores.shares import Grantee, Share, change_shares, load_shares

EARLIER = Path(__file__).parent / "earlier"
JOB = Job("00000000000000aa", "bob", "a.txt", "", 1.0, 9e9, 5, paths=["/a.txt"])
SHARES = [Share("builds", "/srv/builds", [Grantee("carol", "ab" * 32)], ["carol"], "note")]


def home_in(tmp_path: Path, role: Role = "client") -> Home:
    return Home.resolve(role, str(tmp_path / "home")).prepare()


def person_in(home: Home) -> PersonHere:
    return PersonHere(home.data, ClientConfig, SystemClock(), SeededEntropy(1), MappingProxyType({}))


def keydb_of(home: Home) -> KeyDb:
    return KeyDb.open(f"sqlite:///{home.keys_db}", identity.load(home.data).mac_key, create=True)


# --- a later one ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """One kind of file: ``make`` writes it as today, ``date`` makes it one of a later version, ``open`` reads it, and
    ``command`` is one that needs it."""

    file: str
    make: Callable[[Home], object]
    date: Callable[[Path], None]
    open: Callable[[Home], object]
    command: tuple[str, ...]
    role: Role = "client"


def later_sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        (version,) = raw.execute("PRAGMA user_version").fetchone()
        raw.execute(f"PRAGMA user_version = {version + 1}")


def later_json(path: Path) -> None:
    """With what nobody knows today, as a later program would have reason to write."""
    told = json.loads(path.read_bytes())
    path.write_bytes(json.dumps({**told, "version": told["version"] + 1, "colour": {"of": "money"}}).encode())


def later_role(path: Path) -> None:
    path.write_text(f"{path.read_text().strip()} {homes.LAYOUT + 1}\n")


def later_identity(path: Path) -> None:
    body = path.read_bytes()[:-32].replace(b"zkc coordinator identity 1\n", b"zkc coordinator identity 3\n")
    path.write_bytes(body + hashlib.sha256(body).digest())


def later_keydb(path: Path) -> None:
    key, later = identity.load(path.parent).mac_key, migrations.LATEST + 1
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE schema_version SET version = ?, mac = ?", (later, mac(key, "schema_version", (later,))))


def add_job(home: Home) -> None:
    outbox = Outbox(home)
    with outbox.making(JOB.id):
        outbox.add([JOB], 3)


def make_coordinator(home: Home) -> None:
    identity.load_or_create(home.data, "x25519", SeededEntropy(2))
    keydb_of(home).close()


STORES = {
    "home": Store("role", Home.prepare, later_role, Home.prepare, ("inbox",)),
    "key store": Store(
        "keys.db", lambda home: KeyStore.open(home).close(), later_sqlite, KeyStore.open, ("peers",),
    ),
    "inbox": Store("inbox/index.db", lambda home: Inbox.open(home).close(), later_sqlite, Inbox.open, ("inbox",)),
    "audit log": Store("audit.db", lambda home: AuditFile.open(home).close(), later_sqlite, AuditFile.open, ("audit",)),
    "outbox": Store(
        f"outbox/jobs/{JOB.id}/job.json", add_job, later_json, lambda home: Outbox(home).jobs(), ("outbox",)
    ),
    "shares": Store(
        "shares.json", lambda home: change_shares(home, lambda _: SHARES), later_json, load_shares, ("share",)
    ),
    "person": Store(
        "person.json", lambda home: person_in(home).say("here"), later_json, lambda home: person_in(home).enrolled,
        ("person",),
    ),
    "identity": Store(
        "identity.key", make_coordinator, later_identity, lambda home: identity.load(home.data),
        ("coordinator", "clients"), "coordinator",
    ),
    "key database": Store(
        "keys.db", make_coordinator, later_keydb, keydb_of, ("coordinator", "clients"), "coordinator",
    ),
}


@pytest.mark.parametrize("name", STORES)
def test_a_file_of_a_later_version_is_refused_says_what_to_do_and_stays_as_it_is(tmp_path: Path, name: str) -> None:
    store = STORES[name]
    home = home_in(tmp_path, store.role)
    if store.role == "client" and name != "key store":
        put_sql(home.keys_db, (EARLIER / "keystore-1.sql").read_text())  # somebody is registered
    store.make(home)
    path = home.data / store.file
    opened = store.open(home)  # it is this program's
    if isinstance(opened, KeyStore | Inbox | AuditFile | KeyDb):
        opened.close()
    store.date(path)
    before = content(path)
    with pytest.raises(VersionMismatch) as error:
        store.open(home)
    assert (error.value.code, error.value.detail) == (40, "newer")
    done = zkc(*store.command, env={"ZKC_HOME": str(home.data)})
    (line,) = done.err.splitlines()
    assert (done.code, done.out) == (40, ""), line
    assert "newer zkc" in line
    assert "install that zkc again, or restore a backup from before it" in line
    assert content(path) == before


# --- earlier ones ---------------------------------------------------------------------------------------------------


def content(path: Path) -> object:
    """What a file says; SQLite counts in its header how often it was opened."""
    if path.suffix != ".db":
        return path.read_bytes()
    with closing(sqlite3.connect(path)) as raw:
        return version_in(path), list(raw.iterdump())


def put_sql(path: Path, text: str) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(text)
    path.chmod(0o600)


def put_json(path: Path, told: object) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in path.parents[:2]:
        folder.chmod(0o700)
    path.write_text(json.dumps(told))
    path.chmod(0o600)


def schema_of(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as raw:
        return raw.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


def version_in(path: Path) -> int:
    with closing(sqlite3.connect(path)) as raw:
        return int(raw.execute("PRAGMA user_version").fetchone()[0])


@pytest.mark.parametrize("version", [1, 2])
def test_a_key_store_of_an_earlier_version_keeps_what_is_in_it(tmp_path: Path, version: int) -> None:
    home = home_in(tmp_path)
    put_sql(home.keys_db, (EARLIER / f"keystore-{version}.sql").read_text())
    for _ in range(2):
        with KeyStore.open(home) as store:
            (registration,), (pin,) = store.registrations(), store.pins()
            assert (registration.name, registration.uid, registration.suite) == ("bob", b"u" * 16, "hybrid")
            assert registration.kem_private == b"kem" * 9
            assert (pin.name, pin.card, pin.verified) == ("alice", b"card of alice", 1500.0)
            assert (store.former("alice"), store.renewed("bob"), store.has_passphrase) == ((), None, False)
    other = home_in(tmp_path / "fresh")
    KeyStore.open(other).close()
    tables = {name for name, _ in schema_of(other.keys_db)}
    assert tables <= {name for name, _ in schema_of(home.keys_db)}
    assert version_in(home.keys_db) == version_in(other.keys_db) > version


@pytest.mark.parametrize("version", range(1, migrations.LATEST))
def test_a_key_database_of_an_earlier_version_keeps_what_is_in_it(tmp_path: Path, version: int) -> None:
    """Every step was kept as it was released, so what it makes is what was made then."""
    home = home_in(tmp_path, "coordinator")
    key = identity.load_or_create(home.data, "x25519", SeededEntropy(2)).mac_key
    row = InvitationRow(b"i" * 16, "bob", "computer", b"p" * 32, b"c" * 32, 9e9)
    values = (row.invite_id, row.name, row.kind, row.psk, row.curve_public, row.expires, None, None, None, None, 0)
    engine = create_engine(f"sqlite:///{home.keys_db}")
    with engine.begin() as connection:
        migrations.create(connection, key, version)
        marks = ", ".join("?" * (len(values) + 1))
        connection.exec_driver_sql(
            f"INSERT INTO invitations VALUES ({marks})", (*values, mac(key, "invitations", values))
        )
    engine.dispose()
    home.keys_db.chmod(0o600)
    for _ in range(2):
        with closing(keydb_of(home)) as db:
            assert db.invitations() == [row]
            assert db.audit_entries() == []
            db.check_log()


def test_an_identity_of_the_first_version_is_read_beside_those_of_the_second(tmp_path: Path) -> None:
    """The first is what every coordinator has until it rotates."""
    home = home_in(tmp_path, "coordinator")
    first = identity.load_or_create(home.data, "x25519", SeededEntropy(2))
    assert identity.identity_file(home.data).read_bytes().startswith(b"zkc coordinator identity 1\n")
    second = identity.rotate(home.data, SeededEntropy(3))
    assert identity.identity_file(home.data).read_bytes().startswith(b"zkc coordinator identity 2\n")
    assert (second.epoch, second.mac_key, second.curve) == (first.epoch + 1, first.mac_key, first.curve)


def test_shares_of_the_first_version_were_a_list(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    put_json(home.data / "shares.json", [{
        "name": "builds", "path": "/srv/builds", "to": [{"name": "carol", "fingerprint": "ab" * 32}],
        "recipients": ["carol"], "note": "note",
    }])
    assert load_shares(home) == SHARES
    assert change_shares(home, lambda shares: shares) == (SHARES, SHARES)
    assert load_shares(home) == SHARES
    assert json.loads((home.data / "shares.json").read_bytes())["version"] == 2


def test_a_person_and_a_job_from_before_they_had_a_number_are_of_the_first_version(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    put_json(home.data / "person.json", {"mode": "away", "said_at": 5.0, "wrong": 3})
    assert person_in(home).mode == "away"
    told = {
        "id": JOB.id, "recipient": "bob", "name": "a.txt", "note": "", "made": 1.0, "expires": 9e9, "bytes": 5,
        "paths": ["/a.txt"], "exclude": [], "spool": None, "key": None, "key_source": None, "cipher": None,
        "bwlimit": 0, "compress": False, "require": "online", "state": "waiting", "tries": 2, "next": 0.0, "code": 21,
        "detail": "", "why": "away",
    }
    put_json(home.outbox / "jobs" / JOB.id / "job.json", told)
    (job,) = Outbox(home).jobs()
    assert (job.id, job.paths, job.tries, job.code) == (JOB.id, JOB.paths, 2, 21)
