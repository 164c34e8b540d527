"""The key database: one suite for every backend, then what is SQLite's alone.

A backend is one entry in `BACKENDS`: a function that says the URL of a place for a database.
"""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect

import zkc
from tests.support.link import flipped, places, sampled
from zkc.constants import FORMER_KEYS_SECONDS, INVITATIONS_KEPT_SECONDS
from zkc.crypto.heads import log_leaf
from zkc.crypto.merkle import Frontier, includes, leaf_hash
from zkc.errors import InternalError, LocalIOError, NotRegistered, UsageError, VersionMismatch, ZkcError
from zkc.stores import keydb, migrations
from zkc.stores.keydb import (
    ClientRow,
    CurveKeyTaken,
    InvitationRow,
    InviteExpired,
    InviteUnknown,
    InviteUsed,
    KeyDb,
    NameTaken,
    Outrun,
    OwnerGone,
    TooManyInvited,
    TooManySuccessions,
)
from zkc.stores.rowmac import mac, verifies

MAC_KEY = b"\x5a" * 32
NOW = 1_700_000_000.0
REPOSITORY = Path(zkc.__file__).parents[1]


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder}/keys.db"


BACKENDS: dict[str, Callable[[pytest.FixtureRequest], str]] = {
    "sqlite": lambda request: sqlite_url(request.getfixturevalue("tmp_path")),
    "postgres": lambda request: request.getfixturevalue("postgres").url(),
}

_serial = itertools.count(1)


def invitation(name: str = "bob", **changes: object) -> InvitationRow:
    number = next(_serial)
    row = InvitationRow(
        invite_id=b"I" * 8 + number.to_bytes(8, "big"),
        name=name,
        kind="computer",
        psk=b"secret-psk" + number.to_bytes(22, "big"),
        curve_public=number.to_bytes(32, "big"),
        expires=NOW + 3600,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def newcomer(db: KeyDb, invited: InvitationRow, card: bytes = b"card") -> ClientRow:
    """What the coordinator knows of a newcomer once R5 has arrived."""
    uid, private = db.reserve(invited.invite_id, lambda: (b"U" + invited.invite_id[1:], b"private" * 4))
    return client_row(invited, uid, private, card)


def client_row(invited: InvitationRow, uid: bytes, private: bytes, card: bytes) -> ClientRow:
    return ClientRow(
        uid=uid,
        name=invited.name,
        kind=invited.kind,
        card=card,
        card_hash=card.ljust(32, b"h"),
        certificate=b"certificate",
        curve_public=b"c" * 32,
        perm_server_private=private,
        fingerprint=b"f" * 32,
        owner_uid=invited.owner_uid,
    )


def enrol(db: KeyDb, name: str = "bob", now: float = NOW, **changes: object) -> ClientRow:
    """A registered client."""
    invited = invitation(name, **changes)
    db.add_invitation(invited)
    return db.register(invited.invite_id, newcomer(db, invited), now)


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest) -> str:
    return BACKENDS[request.param](request)


@pytest.fixture
def db(url: str) -> Iterator[KeyDb]:
    with closing(KeyDb.open(url, MAC_KEY, create=True)) as opened:
        yield opened


# --- every backend: invitations ------------------------------------------------------------------------------------


def test_an_invitation_reads_back_equal_in_every_field(db: KeyDb) -> None:
    owner = enrol(db, "bob")
    rows = [
        invitation("carol", kind="user", expires=NOW + 0.25),
        invitation("bob/backup", kind="application", owner_uid=owner.uid),
    ]
    for row in rows:
        db.add_invitation(row)
        assert db.invitation(row.invite_id) == row
    assert [row for row in db.invitations() if row.used_by is None] == [rows[1], rows[0]]


def test_an_invitation_for_the_name_of_a_live_client_is_refused(db: KeyDb) -> None:
    enrol(db, "bob")
    with pytest.raises(NameTaken) as caught:
        db.add_invitation(invitation("bob"))
    assert (caught.value.code, caught.value.detail) == (11, "name-taken")
    assert [row.name for row in db.invitations()] == ["bob"]


def test_cancelling_deletes_all_unused_invitations_of_the_name_and_no_others(db: KeyDb) -> None:
    first, second, other = invitation("bob"), invitation("bob"), invitation("carol")
    for row in (first, second, other):
        db.add_invitation(row)
    assert db.cancel_invitations("bob") == 2
    assert db.cancel_invitations("bob") == 0
    assert db.invitations() == [other]


def test_cancelling_leaves_the_invitation_of_a_registered_client(db: KeyDb) -> None:
    """Its newcomer may have to repeat R0 to R6."""
    stored = enrol(db, "bob")
    assert db.cancel_invitations("bob") == 0
    assert [row.used_by for row in db.invitations()] == [stored.uid]


def test_secrets_do_not_show_in_a_representation(db: KeyDb) -> None:
    invited = invitation("bob")
    db.add_invitation(invited)
    client = newcomer(db, invited)
    stored = db.invitation(invited.invite_id)
    shown = repr([invited, stored, client])
    assert "psk" not in shown
    assert "private" not in shown


# --- every backend: reservation -----------------------------------------------------------------------------------


def test_a_reservation_is_made_once_and_the_same_ever_after(db: KeyDb, url: str) -> None:
    invited = invitation("bob")
    db.add_invitation(invited)
    numbers = itertools.count()
    made = db.reserve(invited.invite_id, lambda: (b"uid%d" % next(numbers), b"key"))
    assert made == (b"uid0", b"key")
    assert db.reserve(invited.invite_id, lambda: pytest.fail("made twice")) == made
    with closing(KeyDb.open(url, MAC_KEY, create=False)) as other:
        assert other.reserve(invited.invite_id, lambda: pytest.fail("made twice")) == made


def test_of_two_reservations_at_once_both_get_the_one_that_was_stored(db: KeyDb, url: str) -> None:
    invited = invitation("bob")
    db.add_invitation(invited)

    def make_while_another_reserves() -> tuple[bytes, bytes]:
        with closing(KeyDb.open(url, MAC_KEY, create=False)) as other:
            assert other.reserve(invited.invite_id, lambda: (b"theirs", b"key-t")) == (b"theirs", b"key-t")
        return b"ours", b"key-o"

    assert db.reserve(invited.invite_id, make_while_another_reserves) == (b"theirs", b"key-t")


def test_nothing_is_reserved_for_an_unknown_or_a_retired_invitation(db: KeyDb) -> None:
    never_used = invitation("bob")
    db.add_invitation(never_used)
    db.retire_invitation(never_used.invite_id)
    with pytest.raises(InviteUsed):
        db.reserve(never_used.invite_id, lambda: (b"uid", b"key"))
    with pytest.raises(InviteUnknown):
        db.reserve(b"?" * 16, lambda: pytest.fail("made for nobody"))


def test_a_reservation_that_fails_leaves_the_invitation_as_it_was(db: KeyDb) -> None:
    invited = invitation("bob")
    db.add_invitation(invited)

    def fail() -> tuple[bytes, bytes]:
        raise OSError("no keys today")

    with pytest.raises(OSError, match="no keys today"):
        db.reserve(invited.invite_id, fail)
    assert db.invitation(invited.invite_id) == invited


# --- every backend: registration ----------------------------------------------------------------------------------


def test_registering_stores_the_client_uses_the_invitation_and_writes_the_log(db: KeyDb) -> None:
    invited = invitation("bob")
    db.add_invitation(invited)
    client = newcomer(db, invited)
    stored = db.register(invited.invite_id, client, NOW)
    assert stored == replace(client, registered=NOW, last_seen=NOW, log_index=0)
    assert db.client(stored.uid) == db.client_named("bob") == stored
    used = db.invitation(invited.invite_id)
    assert used is not None
    assert used.used_by == stored.uid
    (entry,) = db.log_entries()
    assert (entry.log_index, entry.event, entry.name, entry.uid) == (0, "registered", "bob", stored.uid)
    assert db.log_size() == 1


def test_the_same_card_again_gets_what_it_got_before_even_late(db: KeyDb) -> None:
    """R6 was lost: the client repeats R5, perhaps after the invitation's end."""
    invited = invitation("bob")
    db.add_invitation(invited)
    first = db.register(invited.invite_id, newcomer(db, invited), NOW)
    again = db.register(invited.invite_id, newcomer(db, invited), NOW + 7200)
    assert again == first
    assert db.log_size() == 1


def test_another_card_on_a_used_invitation_is_refused_and_changes_nothing(db: KeyDb) -> None:
    invited = invitation("bob")
    db.add_invitation(invited)
    first = db.register(invited.invite_id, newcomer(db, invited), NOW)
    with pytest.raises(InviteUsed) as caught:
        db.register(invited.invite_id, newcomer(db, invited, card=b"another"), NOW)
    assert (caught.value.code, caught.value.detail) == (11, "invite-used")
    assert db.client_named("bob") == first
    assert db.log_size() == 1


def test_an_invitation_that_is_over_cancelled_or_unknown_registers_nobody(db: KeyDb) -> None:
    expired, cancelled, retired = invitation("anna"), invitation("bob"), invitation("carol")
    clients = []
    for row in (expired, cancelled, retired):
        db.add_invitation(row)
        clients.append(newcomer(db, row))
    db.cancel_invitations("bob")
    db.retire_invitation(retired.invite_id)
    with pytest.raises(InviteExpired, match="expired") as late:
        db.register(expired.invite_id, clients[0], expired.expires)
    assert (late.value.code, late.value.detail) == (11, "expired")
    for invite_id in (cancelled.invite_id, b"?" * 16):
        with pytest.raises(InviteUnknown) as unknown:
            db.register(invite_id, clients[1], NOW)
        assert (unknown.value.code, unknown.value.detail) == (11, "invite-unknown")
    with pytest.raises(InviteUsed):
        db.register(retired.invite_id, clients[2], NOW)
    assert db.clients() == []
    assert db.log_size() == 0


def test_of_two_invitations_for_one_name_the_second_to_finish_finds_it_taken(db: KeyDb) -> None:
    first, second = invitation("bob"), invitation("bob")
    for row in (first, second):
        db.add_invitation(row)
    winner = newcomer(db, first)
    loser = newcomer(db, second, card=b"loser")
    db.register(first.invite_id, winner, NOW)
    with pytest.raises(NameTaken):
        db.register(second.invite_id, loser, NOW)
    assert [row.uid for row in db.clients()] == [winner.uid]
    left = db.invitation(second.invite_id)
    assert left is not None
    assert left.used_by is None
    assert db.log_size() == 1


@pytest.mark.parametrize("change", [{"name": "eve"}, {"kind": "user"}, {"uid": b"x" * 16}, {"owner_uid": b"x" * 16}])
def test_a_client_that_differs_from_its_invitation_is_not_stored(db: KeyDb, change: dict[str, object]) -> None:
    invited = invitation("bob")
    db.add_invitation(invited)
    client = replace(newcomer(db, invited), **change)  # type: ignore[arg-type]
    with pytest.raises(InternalError):
        db.register(invited.invite_id, client, NOW)
    assert db.clients() == []


@pytest.mark.attack("R03")
def test_fifty_at_once_with_one_invitation_are_one_winner_one_row_one_log_entry(db: KeyDb, url: str) -> None:
    invited = invitation("bob")
    db.add_invitation(invited)
    uid, private = db.reserve(invited.invite_id, lambda: (b"U" * 16, b"private"))
    together = threading.Barrier(50)

    def contend(number: int) -> str:
        with closing(KeyDb.open(url, MAC_KEY, create=False)) as mine:
            client = client_row(invited, uid, private, b"card %d" % number)
            together.wait(60)
            try:
                return mine.register(invited.invite_id, client, NOW).card.decode()
            except NotRegistered as error:
                return error.detail

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(contend, range(50)))
    winners = [each for each in results if each != "invite-used"]
    assert len(winners) == 1
    assert [row.card.decode() for row in db.clients()] == winners
    assert db.log_size() == len(db.log_entries()) == 1


@pytest.mark.attack("R03")
def test_processes_at_once_with_one_invitation_are_one_winner(db: KeyDb, url: str) -> None:
    invited = invitation("bob")
    db.add_invitation(invited)
    uid, private = db.reserve(invited.invite_id, lambda: (b"U" * 16, b"private"))
    children = [Child(url, client_row(invited, uid, private, b"card %d" % number), invited) for number in range(4)]
    try:
        for child in children:
            assert child.line() == "ready"
        for child in children:
            child.go()
        answers = sorted(child.line() for child in children)
    finally:
        for child in children:
            child.end()
    assert answers == ["invite-used", "invite-used", "invite-used", "registered"]
    assert len(db.clients()) == db.log_size() == 1


@pytest.mark.claims("A5", "A7")
def test_a_registration_that_was_acknowledged_survives_kill_9(db: KeyDb, url: str) -> None:
    invited = invitation("bob")
    db.add_invitation(invited)
    client = newcomer(db, invited)
    child = Child(url, client, invited)
    try:
        assert child.line() == "ready"
        child.go()
        assert child.line() == "registered"
        child.kill()
    finally:
        child.end()
    db.close()
    with closing(KeyDb.open(url, MAC_KEY, create=False)) as later:
        assert later.client_named("bob") == replace(client, registered=NOW, last_seen=NOW, log_index=0)
        used = later.invitation(invited.invite_id)
        assert used is not None
        assert used.used_by == client.uid
        assert later.log_size() == 1


CHILD = """
import sys
from zkc.crypto.heads import log_leaf
from zkc.crypto.merkle import Frontier, includes, leaf_hash
from zkc.errors import NotRegistered
from zkc.stores.keydb import ClientRow, KeyDb
url, mac_key, invite_id, client, now = eval(sys.stdin.readline(), {"ClientRow": ClientRow})
db = KeyDb.open(url, mac_key, create=False)
print("ready", flush=True)
sys.stdin.readline()
try:
    db.register(invite_id, client, now)
    print("registered", flush=True)
except NotRegistered as error:
    print(error.detail, flush=True)
sys.stdin.readline()
"""


class Child:
    """Another process that registers ``client`` when it is told to, says how that ended, and waits."""

    def __init__(self, url: str, client: ClientRow, invited: InvitationRow) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        arguments = {name: getattr(client, name) for name in client.__slots__}
        self._say(f"({url!r}, {MAC_KEY!r}, {invited.invite_id!r}, ClientRow(**{arguments!r}), {NOW!r})")

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip()

    def go(self) -> None:
        self._say("go")

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        assert self._process.wait(30) == -signal.SIGKILL

    def end(self) -> None:
        self._process.kill()
        with self._process:
            self._process.wait(30)

    def _say(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()


# --- every backend: retiring, revoking, applications ---------------------------------------------------------------


def test_a_retired_invitation_keeps_no_server_key_and_stays_used(db: KeyDb) -> None:
    invited = invitation("bob")
    db.add_invitation(invited)
    stored = db.register(invited.invite_id, newcomer(db, invited), NOW)
    for _ in range(2):
        db.retire_invitation(invited.invite_id)
        row = db.invitation(invited.invite_id)
        assert row is not None
        assert (row.retired, row.psk_private, row.used_by) == (True, None, stored.uid)
    assert db.client(stored.uid) == stored
    db.retire_invitation(b"?" * 16)


def test_revoking_ends_a_client_with_its_applications_and_frees_the_names(db: KeyDb) -> None:
    bob = enrol(db, "bob")
    backup = enrol(db, "bob/backup", owner_uid=bob.uid)
    others = [enrol(db, name) for name in ("bob-2", "bobby", "bob0", "carol")]
    revoked = db.revoke("bob", "laptop stolen", NOW + 60)
    # Their permanent server keys are gone with them: nobody opens a recorded channel of theirs.
    gone = {"perm_server_private": b"", "revoked": NOW + 60, "reason": "laptop stolen"}
    assert revoked == [replace(row, **gone) for row in (bob, backup)]
    assert [db.client(row.uid) for row in revoked] == revoked
    assert db.client_named("bob") is db.client_named("bob/backup") is None
    assert [db.client(row.uid) for row in others] == others
    entries = db.log_entries(first=6)
    assert [(each.event, each.name, each.reason) for each in entries] == [
        ("revoked", "bob", "laptop stolen"),
        ("revoked", "bob/backup", "laptop stolen"),
    ]
    assert [each.log_index for each in db.log_entries()] == list(range(8))
    assert db.revoke("bob", "again", NOW + 61) == []
    second = enrol(db, "bob", NOW + 120)
    assert db.client_named("bob") == second
    assert db.clients(limit=1) == [revoked[0], second]


def test_revoking_an_application_leaves_its_owner(db: KeyDb) -> None:
    bob = enrol(db, "bob")
    backup = enrol(db, "bob/backup", owner_uid=bob.uid)
    assert [row.uid for row in db.revoke("bob/backup", "", NOW)] == [backup.uid]
    assert db.client_named("bob") == bob


def test_no_invitation_of_before_a_revocation_registers_anybody(db: KeyDb) -> None:
    """A second, lost invitation must not become good again because the name is free."""
    first, second = invitation("bob"), invitation("bob")
    for row in (first, second):
        db.add_invitation(row)
    mine, late = newcomer(db, first), newcomer(db, second)
    bob = db.register(first.invite_id, mine, NOW)
    application = invitation("bob/backup", owner_uid=bob.uid)
    db.add_invitation(application)
    backup = newcomer(db, application)
    db.revoke("bob", "", NOW)
    for invited, client, kind in (
        (first, mine, InviteUsed),
        (second, late, InviteUnknown),
        (application, backup, InviteUnknown),
    ):
        with pytest.raises(kind):
            db.register(invited.invite_id, client, NOW)
    assert [row.retired for row in db.invitations()] == [True]


def test_nobody_is_invited_by_a_client_that_is_not_registered(db: KeyDb) -> None:
    bob = enrol(db, "bob")
    carol = enrol(db, "carol")
    db.revoke("bob", "", NOW)
    for owner in (bob.uid, carol.uid, b"?" * 16):
        with pytest.raises(OwnerGone) as caught:
            db.add_invitation(invitation("bob/backup", owner_uid=owner))
        assert caught.value.code == 11


# --- every backend: invitations for applications, and of long ago -----------------------------------------------


def application(owner: ClientRow, app: str, **changes: object) -> InvitationRow:
    return invitation(f"{owner.name}/{app}", kind="application", owner_uid=owner.uid, **changes)


def test_an_invitation_for_an_application_takes_the_place_of_the_unused_one_for_its_name(db: KeyDb) -> None:
    bob = enrol(db, "bob")
    first, second, other = application(bob, "one"), application(bob, "one"), application(bob, "two")
    for row in (first, other, second):
        db.add_application_invitation(row, NOW, 2)
    assert [row for row in db.invitations() if row.used_by is None] == [second, other]


def test_open_invitations_of_one_owner_are_bounded_and_one_too_many_changes_nothing(db: KeyDb) -> None:
    """Those of others, those that ended and those that were used do not count."""
    bob, carol = enrol(db, "bob"), enrol(db, "carol")
    enrol(db, "bob/used", owner_uid=bob.uid)
    ended = application(bob, "ended", expires=NOW - 1)
    for row in (ended, application(carol, "one"), application(bob, "one"), application(bob, "two")):
        db.add_application_invitation(row, NOW, 2)
    before = db.invitations()
    with pytest.raises(TooManyInvited) as caught:
        db.add_application_invitation(application(bob, "three"), NOW, 2)
    assert (caught.value.code, caught.value.detail) == (25, "limit")
    assert db.invitations() == before
    db.add_application_invitation(application(bob, "two"), NOW, 2)


def test_an_application_is_invited_by_its_owner_alone_and_once(db: KeyDb) -> None:
    bob, carol = enrol(db, "bob"), enrol(db, "carol")
    enrol(db, "bob/backup", owner_uid=bob.uid)
    for wrong, error in (
        (application(bob, "backup"), NameTaken),
        (invitation("bob/other", owner_uid=carol.uid), OwnerGone),
    ):
        with pytest.raises(error):
            db.add_application_invitation(wrong, NOW, 9)


def test_inviting_an_application_reads_no_invitation_of_others(db: KeyDb, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row read is a MAC to compute, on the coordinator's loop: ten thousand rows took it 0.3 seconds."""
    bob = enrol(db, "bob")
    for number in range(50):
        db.add_invitation(invitation(f"other-{number}"))
    read: list[InvitationRow] = []
    honest = KeyDb._to_invitation

    def counted(self: KeyDb, row: Any) -> InvitationRow:
        read.append(honest(self, row))
        return read[-1]

    monkeypatch.setattr(KeyDb, "_to_invitation", counted)
    db.add_application_invitation(application(bob, "one"), NOW, 16)
    assert read == []
    assert db.unretired_invitations() == [row for row in read if row.used_by == bob.uid]
    assert len(read) == 1


def test_invitations_of_long_ago_are_deleted_used_or_not_and_no_others(db: KeyDb) -> None:
    """A used one stays until its end and a day more: until then its client may come again (R6 was lost)."""
    long_ago = NOW - INVITATIONS_KEPT_SECONDS
    bob = enrol(db, "bob", now=long_ago - 60, expires=long_ago)
    enrol(db, "carol", now=long_ago, expires=long_ago + 1)
    for row in (invitation("dora", expires=long_ago), invitation("emil", expires=long_ago + 1), invitation("fay")):
        db.add_invitation(row)
    assert db.prune_invitations(NOW) == 2
    assert db.prune_invitations(NOW) == 0
    assert [row.name for row in db.invitations()] == ["carol", "emil", "fay"]
    assert db.client_named("bob") == bob


def test_inviting_an_application_deletes_invitations_of_long_ago(db: KeyDb) -> None:
    bob = enrol(db, "bob")
    db.add_invitation(invitation("dora", expires=NOW - INVITATIONS_KEPT_SECONDS))
    db.add_application_invitation(application(bob, "one"), NOW, 16)
    assert [row.name for row in db.invitations()] == ["bob", "bob/one"]


# --- every backend: lists, sightings, the log, other processes -----------------------------------------------------


def test_pages_of_clients_follow_each_other_without_gap_or_repetition(db: KeyDb) -> None:
    names = ["anna", "bob", "bob-2", "bob/backup", "carol", "dora", "emil"]
    for name in reversed(names):
        enrol(db, name)
    db.revoke("carol", "", NOW)
    enrol(db, "carol")
    seen: list[str] = []
    while page := db.clients(after=seen[-1] if seen else "", limit=2):
        seen += [row.name for row in page]
    assert seen == [*names[:5], "carol", *names[5:]]
    assert [row.name for row in db.clients()] == seen


def test_pages_of_live_clients_leave_out_the_names_that_nobody_has_any_more(db: KeyDb) -> None:
    for name in ("anna", "bob", "carol", "dora", "emil"):
        enrol(db, name)
    for name in ("anna", "bob", "dora"):
        db.revoke(name, "", NOW)
    again = enrol(db, "bob", NOW + 1)
    first = db.clients(limit=2, live=True)
    assert [row.name for row in first] == ["bob", "carol"]
    assert first[0] == again
    assert [row.name for row in db.clients("carol", 2, live=True)] == ["emil"]
    assert db.clients("emil", 2, live=True) == []


def test_a_sighting_changes_when_a_client_was_last_seen_and_nothing_else(db: KeyDb) -> None:
    bob, carol = enrol(db, "bob"), enrol(db, "carol")
    db.touch_all({bob.uid: NOW + 5})
    assert db.client_named("bob") == replace(bob, last_seen=NOW + 5)
    db.touch_all({bob.uid: NOW + 6, carol.uid: NOW + 7, b"?" * 16: NOW})
    assert [row.last_seen for row in db.clients()] == [NOW + 6, NOW + 7]
    assert db.log_size() == 2


def test_a_whole_number_of_seconds_is_as_good_as_a_fraction(db: KeyDb) -> None:
    stored = enrol(db, "bob", now=int(NOW), expires=int(NOW) + 60)
    db.touch_all({stored.uid: int(NOW) + 1})
    (revoked,) = db.revoke("bob", "", int(NOW) + 2)
    assert db.client(stored.uid) == revoked


def test_the_version_changes_when_another_wrote_and_only_then(db: KeyDb, url: str) -> None:
    enrol(db, "bob")
    before = db.version()
    enrol(db, "carol")
    assert db.version() == before
    with closing(KeyDb.open(url, MAC_KEY, create=False)) as other:
        assert other.client_named("bob") is not None
        assert db.version() == before
        other.revoke("bob", "", NOW)
    assert db.version() != before
    assert db.client_named("bob") is None


def test_what_is_not_there_is_none_or_empty(db: KeyDb) -> None:
    assert db.client(b"?" * 16) is None
    assert db.client_named("nobody") is None
    assert db.invitation(b"?" * 16) is None
    assert not db.clients()
    assert not db.invitations()
    assert not db.log_entries()
    assert db.log_size() == 0


def test_another_key_opens_nothing(db: KeyDb, url: str) -> None:
    enrol(db, "bob")
    with pytest.raises(LocalIOError) as caught:
        KeyDb.open(url, b"\x00" * 32, create=True)
    assert caught.value.detail == "damaged"


def test_only_the_first_opening_makes_a_database(url: str) -> None:
    with pytest.raises(LocalIOError) as caught:
        KeyDb.open(url, MAC_KEY, create=False)
    assert caught.value.detail == "missing"
    with closing(KeyDb.open(url, MAC_KEY, create=True)) as first:
        enrol(first, "bob")
    with closing(KeyDb.open(url, MAC_KEY, create=True)) as second:
        assert second.client_named("bob") is not None


def test_many_that_make_the_database_at_once_share_one(url: str) -> None:
    together = threading.Barrier(8)

    def start(number: int) -> None:
        together.wait(60)
        with closing(KeyDb.open(url, MAC_KEY, create=True)) as mine:
            mine.add_invitation(invitation(f"client-{number}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, range(8)))
    with closing(KeyDb.open(url, MAC_KEY, create=False)) as opened:
        assert len(opened.invitations()) == 8


@pytest.mark.parametrize(
    "bad", ["", "keys.db", "sqlite://", "sqlite:///:memory:", "sqlite:///keys.db?mode=ro", "oracle://u:s3cret@h/d"]
)
def test_a_url_of_no_use_is_a_usage_error_that_shows_no_password(bad: str) -> None:
    with pytest.raises(UsageError) as caught:
        KeyDb.open(bad, MAC_KEY, create=True)
    assert "s3cret" not in str(caught.value)


# --- the schema ----------------------------------------------------------------------------------------------------


def test_a_migrated_schema_equals_a_fresh_one_and_the_tables_in_use(tmp_path: Path) -> None:
    """From every version that ever was, step by step."""
    schemas = []
    for start in range(1, migrations.LATEST + 1):
        engine = create_engine(f"sqlite:///{tmp_path}/from-{start}.db")
        with engine.begin() as connection:
            migrations.create(connection, MAC_KEY, start)
        with engine.begin() as connection:
            assert migrations.version_of(connection, MAC_KEY) == start
            migrations.upgrade(connection, MAC_KEY)
            assert migrations.version_of(connection, MAC_KEY) == migrations.LATEST
            schemas.append(connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2").all())
            seen = inspect(connection)
            for table in keydb.TABLES:
                assert [each["name"] for each in seen.get_columns(table.name)] == table.columns.keys()
        engine.dispose()
        engine.dispose()
    assert all(each == schemas[0] for each in schemas)


def test_the_log_of_an_older_database_becomes_a_tree(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)
    with closing(KeyDb.open(url, MAC_KEY, create=True)) as db:
        for name in "abcde":
            enrol(db, name)
        db.revoke("b", "gone", NOW)
        wanted = [db.log_frontier(size) for size in range(7)]
    engine = create_engine(url)
    with engine.begin() as connection:
        for table in ("log_nodes", "former_keys", "successions"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        connection.exec_driver_sql("DROP INDEX log_by_client")
        connection.exec_driver_sql("UPDATE schema_version SET version = ?, mac = ?",
                                   (3, mac(MAC_KEY, "schema_version", (3,))))
    engine.dispose()
    with closing(KeyDb.open(url, MAC_KEY, create=False)) as db:
        db.check_log()
        assert [db.log_frontier(size) for size in range(7)] == wanted


@pytest.mark.attack("K04")
@pytest.mark.parametrize("harm", ["DELETE FROM log_nodes WHERE level = 0 AND position = 2",
                                  "DELETE FROM log WHERE log_index = 2",
                                  "UPDATE log_nodes SET hash = x'00' WHERE level = 0 AND position = 2"])
def test_a_log_and_a_tree_that_do_not_go_together_are_called_damage(tmp_path: Path, harm: str) -> None:
    url = sqlite_url(tmp_path)
    with closing(KeyDb.open(url, MAC_KEY, create=True)) as db:
        for name in "abc":
            enrol(db, name)
        db.check_log()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(harm)
    engine.dispose()
    with closing(KeyDb.open(url, MAC_KEY, create=False)) as db, pytest.raises(LocalIOError) as caught:
        db.check_log()
    assert caught.value.detail == "damaged"


def test_every_entry_is_proved_by_what_is_stored(db: KeyDb) -> None:
    for name in "abcdefg":
        enrol(db, name)
    db.revoke("c", "gone", NOW)
    leaves = [leaf_hash(log_leaf(each.event, each.name, each.card_hash, each.reason)) for each in db.log_entries()]
    tree = Frontier()
    for size, leaf in enumerate(leaves, 1):
        tree = tree.add(leaf)
        assert db.log_frontier(size) == tree
        for index in range(size):
            assert includes(tree.root, size, index, leaves[index], db.log_inclusion(index, size))


def test_a_database_of_a_newer_zkc_is_refused_as_that(tmp_path: Path) -> None:
    make_small(tmp_path / "keys.db")
    newer = migrations.LATEST + 1
    with closing(sqlite3.connect(tmp_path / "keys.db")) as raw, raw:
        raw.execute("UPDATE schema_version SET version = ?, mac = ?", (newer, mac(MAC_KEY, "schema_version", (newer,))))
    with pytest.raises(VersionMismatch):
        KeyDb.open(sqlite_url(tmp_path), MAC_KEY, create=False)


# --- SQLite: the file --------------------------------------------------------------------------------------------


def test_commits_are_synchronised_in_a_write_ahead_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def recording(*args: object, **options: object) -> sqlite3.Connection:
        opened.append(connect(*args, **options))  # type: ignore[call-overload]
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", recording)
    make_small(tmp_path / "keys.db")
    opened.clear()
    with closing(KeyDb.open(sqlite_url(tmp_path), MAC_KEY, create=False, patience=2.0)):
        pragmas = [opened[0].execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
        assert pragmas == ["wal", 2]
        assert opened[0].execute("PRAGMA busy_timeout").fetchone()[0] == 2000


@pytest.mark.attack("K01")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_every_file_of_the_database_is_0600_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with closing(KeyDb.open(sqlite_url(tmp_path), MAC_KEY, create=True)) as db:
            enrol(db, "bob")
            modes = {each.name: each.stat().st_mode & 0o777 for each in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"keys.db": 0o600, "keys.db-wal": 0o600, "keys.db-shm": 0o600}
    assert [each.name for each in tmp_path.iterdir()] == ["keys.db"]


@pytest.mark.attack("K01")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o602, 0o601])
@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_file_that_others_may_use_is_refused_with_the_way_to_mend_it(tmp_path: Path, suffix: str, mode: int) -> None:
    path = tmp_path / "keys.db"
    make_small(path)
    loose = Path(f"{path}{suffix}")
    loose.touch()
    loose.chmod(mode)
    with pytest.raises(LocalIOError) as caught:
        KeyDb.open(sqlite_url(tmp_path), MAC_KEY, create=True)
    assert caught.value.detail == "permission"
    assert caught.value.hint == f"to mend it: chmod 600 {loose}"


@pytest.mark.attack("K01")
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_a_symbolic_link_is_refused_even_to_a_good_database(tmp_path: Path, suffix: str) -> None:
    make_small(tmp_path / "keys.db")
    link = tmp_path / f"keys.db{suffix}"
    target = tmp_path / "elsewhere"
    target.touch(0o600)
    if suffix == "":
        link.rename(target)
    link.symlink_to(target)
    with pytest.raises(LocalIOError) as caught:
        KeyDb.open(sqlite_url(tmp_path), MAC_KEY, create=True)
    assert caught.value.detail == "permission"
    assert link.is_symlink()


@pytest.mark.attack("K01")
def test_a_dangling_link_is_refused_and_nothing_made_behind_it(tmp_path: Path) -> None:
    (tmp_path / "keys.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LocalIOError) as caught:
        KeyDb.open(sqlite_url(tmp_path), MAC_KEY, create=True)
    assert caught.value.detail == "permission"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.attack("K01")
def test_a_folder_in_which_others_write_is_refused(tmp_path: Path) -> None:
    make_small(tmp_path / "keys.db")
    tmp_path.chmod(0o770)
    with pytest.raises(LocalIOError) as caught:
        KeyDb.open(sqlite_url(tmp_path), MAC_KEY, create=True)
    assert (caught.value.detail, caught.value.hint) == ("permission", f"to mend it: chmod go-w {tmp_path}")


def test_a_folder_where_the_file_is_expected_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys.db").mkdir(0o700)
    with pytest.raises(LocalIOError) as caught:
        KeyDb.open(sqlite_url(tmp_path), MAC_KEY, create=True)
    assert caught.value.detail == "permission"


def test_a_database_in_a_folder_that_does_not_exist_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LocalIOError) as caught:
        KeyDb.open(f"sqlite:///{tmp_path}/none/keys.db", MAC_KEY, create=True)
    assert caught.value.detail == "missing"


def test_a_cancelled_invitations_secret_is_gone_from_the_file(tmp_path: Path) -> None:
    invited = invitation("bob")
    with closing(KeyDb.open(sqlite_url(tmp_path), MAC_KEY, create=True)) as db:
        db.add_invitation(invited)
    assert invited.psk in (tmp_path / "keys.db").read_bytes()
    with closing(KeyDb.open(sqlite_url(tmp_path), MAC_KEY, create=False)) as db:
        db.cancel_invitations("bob")
    assert [each.name for each in tmp_path.iterdir()] == ["keys.db"]
    assert invited.psk not in (tmp_path / "keys.db").read_bytes()


def test_a_writer_that_finds_the_database_held_says_busy_once_its_patience_is_over(tmp_path: Path) -> None:
    with closing(KeyDb.open(sqlite_url(tmp_path), MAC_KEY, create=True, patience=0.0)) as db:
        with closing(sqlite3.connect(tmp_path / "keys.db", isolation_level=None)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            with pytest.raises(LocalIOError) as caught:
                db.add_invitation(invitation("bob"))
            assert caught.value.detail == "busy"
            assert db.invitations() == []
            raw.execute("ROLLBACK")
        db.add_invitation(invitation("bob"))


def test_a_full_disk_is_no_space_and_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own limit on pages stands in for the disk: it answers as a full one does."""
    connections: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def recording(*args: object, **options: object) -> sqlite3.Connection:
        connections.append(connect(*args, **options))  # type: ignore[call-overload]
        return connections[-1]

    with closing(KeyDb.open(sqlite_url(tmp_path), MAC_KEY, create=True)):
        pass
    monkeypatch.setattr(sqlite3, "connect", recording)
    with closing(KeyDb.open(sqlite_url(tmp_path), MAC_KEY, create=False)) as db:
        bob = enrol(db, "bob")
        connections[0].execute("PRAGMA max_page_count = 1").close()
        invited = invitation("carol", psk=b"p" * 100_000)
        with pytest.raises(LocalIOError) as caught:
            db.add_invitation(invited)
        assert caught.value.detail == "no-space"
        assert db.clients() == [bob]
        assert db.invitation(invited.invite_id) is None


# --- SQLite: damage (attack K03) -----------------------------------------------------------------------------------


def make_small(path: Path) -> None:
    """A database with a row of every kind, in small pages so that damage hits something that matters."""
    with closing(KeyDb.open(f"sqlite:///{path}", MAC_KEY, create=True)) as db:
        bob = enrol(db, "bob")
        db.add_invitation(invitation("bob/backup", owner_uid=bob.uid))
        enrol(db, "carol")
        db.revoke("carol", "left", NOW + 1)
        db.add_invitation(invitation("dora"))
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        for step in ("PRAGMA journal_mode = DELETE", "PRAGMA page_size = 512", "VACUUM", "PRAGMA journal_mode = WAL"):
            raw.execute(step).close()


def read_all(path: Path) -> dict[str, object]:
    """Everything that the database tells, each thing by every way that leads to it."""
    with closing(KeyDb.open(f"sqlite:///{path}", MAC_KEY, create=False)) as db:
        clients, invitations = db.clients(), db.invitations()
        return {
            "clients": clients,
            "invitations": invitations,
            "log": db.log_entries(),
            "size": db.log_size(),
            "by uid": [db.client(row.uid) for row in clients],
            "by name": [db.client_named(name) for name in ("bob", "carol", "dora", "nobody")],
            "by id": [db.invitation(row.invite_id) for row in invitations],
        }


def equal_or_damaged(path: Path, data: bytes, intact: dict[str, object]) -> str:
    """How reading ``data`` ended: ``equal``, ``damaged``, or what must never happen."""
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(data)
    try:
        return "equal" if read_all(path) == intact else "ANOTHER VALUE"
    except LocalIOError as error:
        return error.detail
    except Exception as error:  # noqa: BLE001  (what else comes out is the finding)
        return repr(error)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    make_small(tmp_path / "keys.db")
    return tmp_path / "keys.db"


@pytest.mark.attack("K03")
@sampled(150)
def test_a_flipped_byte_changes_no_value_or_is_called_damage(small: Path, count: int) -> None:
    """One bit of it, another one at each place, and all of it. Every byte in the soak."""
    whole, intact = small.read_bytes(), read_all(small)
    ends: dict[str, list[tuple[int, int]]] = {}
    for place in places(0, len(whole), count):
        for mask in (1 << (place * 5 % 8), 0xFF):
            damaged = flipped(whole, place, mask)
            ends.setdefault(equal_or_damaged(small, damaged, intact), []).append((place, mask))
    assert set(ends) == {"equal", "damaged"}, {end: ends[end][:10] for end in ends if end not in ("equal", "damaged")}


@pytest.mark.attack("K03")
@sampled(150)
def test_a_flip_in_the_first_page_changes_no_value_or_is_called_damage(small: Path, count: int) -> None:
    """The header: page size, format versions, text encoding, counters; every bit of it in the soak."""
    whole, intact = small.read_bytes(), read_all(small)
    ends: dict[str, list[int]] = {}
    for bit in places(0, 108 * 8, count):
        damaged = flipped(whole, bit // 8, 1 << (bit % 8))
        ends.setdefault(equal_or_damaged(small, damaged, intact), []).append(bit)
    assert set(ends) == {"equal", "damaged"}, {end: ends[end][:10] for end in ends if end not in ("equal", "damaged")}


@pytest.mark.attack("K03")
@sampled(120)
def test_a_truncated_file_is_damaged_whatever_its_length(small: Path, count: int) -> None:
    """Every length in the soak."""
    whole, intact = small.read_bytes(), read_all(small)
    ends = {equal_or_damaged(small, whole[:length], intact) for length in places(0, len(whole), count)}
    assert ends == {"damaged"}


@pytest.mark.attack("K03")
def test_an_empty_file_is_damage_and_never_a_new_beginning(tmp_path: Path) -> None:
    (tmp_path / "keys.db").touch(0o600)
    with pytest.raises(LocalIOError) as caught:
        KeyDb.open(sqlite_url(tmp_path), MAC_KEY, create=True)
    assert caught.value.detail == "damaged"


@pytest.mark.attack("K03")
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE clients SET perm_server_private = x'00' WHERE name = 'bob'",
        "UPDATE clients SET revoked = NULL, reason = '' WHERE name = 'carol'",
        "UPDATE clients SET card = 'text'",
        "UPDATE clients SET mac = 'text'",
        "UPDATE clients SET card = CAST(x'ff' AS TEXT)",
        "UPDATE sightings SET last_seen = 0",
        "DELETE FROM sightings",
        "UPDATE invitations SET used_by = NULL",
        "UPDATE invitations SET curve_public = x'00'",
        "UPDATE invitations SET retired = 'x'",
        "UPDATE log SET card_hash = x'00'",
        "UPDATE schema_version SET version = 0",
        "DELETE FROM schema_version",
        "DROP TABLE log",
        "DROP INDEX clients_live",
        "CREATE TRIGGER t AFTER INSERT ON clients BEGIN DELETE FROM log; END",
    ],
)
def test_a_change_by_another_hand_is_damage(small: Path, change: str) -> None:
    intact = read_all(small)
    with closing(sqlite3.connect(small)) as raw, raw:
        raw.execute(change)
    assert equal_or_damaged(small, small.read_bytes(), intact) == "damaged"


@pytest.mark.attack("K03")
def test_rows_that_swapped_their_places_are_damage(small: Path) -> None:
    """Each MAC is in order, but not for the row in which it stands."""
    intact = read_all(small)
    with closing(sqlite3.connect(small)) as raw, raw:
        raw.execute("UPDATE clients SET mac = (SELECT mac FROM clients AS o WHERE o.uid != clients.uid)")
    assert equal_or_damaged(small, small.read_bytes(), intact) == "damaged"


@pytest.mark.attack("K03")
def test_damage_under_an_open_database_is_noticed_at_the_next_read(small: Path) -> None:
    with closing(KeyDb.open(f"sqlite:///{small}", MAC_KEY, create=False)) as db:
        assert db.client_named("bob") is not None
        with closing(sqlite3.connect(small)) as raw, raw:
            raw.execute("UPDATE clients SET fingerprint = x'00'")
        with pytest.raises(ZkcError) as caught:
            db.client_named("bob")
        assert caught.value.detail == "damaged"


# --- the rows' MAC ---------------------------------------------------------------------------------------------------


def test_no_two_rows_have_the_same_mac() -> None:
    rows: list[tuple[str, tuple[bytes | str | int | float | bool | None, ...]]] = [
        ("t", ()),
        ("t", (None,)),
        ("t", (b"",)),
        ("t", ("",)),
        ("t", (0,)),
        ("t", (0.0,)),
        ("t", (-0.0,)),
        ("t", ("a", "b")),
        ("t", ("ab", "")),
        ("t", ("ab",)),
        ("t", (b"ab",)),
        ("ta", ("b",)),
    ]
    assert len({mac(MAC_KEY, table, fields) for table, fields in rows}) == len(rows)
    assert mac(MAC_KEY, "t", (True,)) == mac(MAC_KEY, "t", (1,))
    assert mac(MAC_KEY, "t", ()) != mac(b"\x00" * 32, "t", ())


def test_a_mac_verifies_for_its_row_alone_and_never_raises() -> None:
    made = mac(MAC_KEY, "t", (1, "a"))
    assert verifies(MAC_KEY, "t", (1, "a"), made)
    for stored in (made[:-1], b"", None, made.hex(), 5):
        assert not verifies(MAC_KEY, "t", (1, "a"), stored)
    assert not verifies(MAC_KEY, "t", (2, "a"), made)
    assert not verifies(MAC_KEY, "t", (object(),), made)  # type: ignore[arg-type]


# --- new keys ----------------------------------------------------------------------------------------------------


def renewed(client: ClientRow, card: bytes, **changes: Any) -> ClientRow:
    return replace(client, card=card, card_hash=card.ljust(32, b"h"), certificate=b"next", **changes)


def test_new_keys_take_the_place_of_the_former_which_stay_for_a_week(db: KeyDb) -> None:
    bob = enrol(db)
    stored = db.rotate(bob.card_hash, renewed(bob, b"card 2", curve_public=b"d" * 32), lambda: b"private 2", NOW + 10)
    assert db.client(bob.uid) == stored
    assert (stored.card, stored.perm_server_private, stored.log_index) == (b"card 2", b"private 2", 1)
    assert [(entry.event, entry.card_hash) for entry in db.log_entries(1)] == [("rotated", stored.card_hash)]
    assert [db.log_index_of(bob.uid, card) for card in (bob.card_hash, stored.card_hash, bytes(32))] == [0, 1, None]
    former = db.former_keys(bob.uid, NOW + 20)
    assert former is not None
    assert (former.card, former.perm_server_private) == (bob.card, bob.perm_server_private)
    assert db.former_with_key(bob.curve_public, NOW + 20) == former
    assert db.client_with_key(b"d" * 32) == stored
    week = NOW + 10 + FORMER_KEYS_SECONDS
    assert db.former_keys(bob.uid, week - 1) == former
    assert db.former_keys(bob.uid, week) is None
    assert db.former_with_key(bob.curve_public, week) is None
    assert db.expire_former(week - 1) == []
    assert db.expire_former(week) == [bob.uid]
    assert db.former_keys(bob.uid, NOW) is None


def test_former_keys_leave_the_disk_when_they_are_forgotten(tmp_path: Path) -> None:
    """Not only the table: the log of SQLite too, while the database stays open."""
    former, url = b"FORMER-SERVER-KEY", sqlite_url(tmp_path)
    with closing(KeyDb.open(url, MAC_KEY, create=True)) as db:
        for name, forget in (("bob", db.forget_former), ("carol", lambda _uid: db.expire_former(NOW * 2))):
            client = enrol(db, name)
            for number in (2, 3):
                card, private = b"%s %d" % (name.encode(), number), former if number == 2 else b"later"
                client = db.rotate(client.card_hash, renewed(client, card), lambda private=private: private, NOW)
            assert former in on_disk(tmp_path)
            forget(client.uid)
            assert former not in on_disk(tmp_path)


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())


def test_the_same_card_gets_what_it_got_and_another_nothing(db: KeyDb) -> None:
    bob = enrol(db)
    wanted = renewed(bob, b"card 2")
    stored = db.rotate(bob.card_hash, wanted, lambda: b"private 2", NOW)
    assert db.rotate(bob.card_hash, wanted, lambda: b"other", NOW + 1) == stored
    with pytest.raises(Outrun):
        db.rotate(bob.card_hash, renewed(bob, b"card 2b"), lambda: b"other", NOW + 1)
    assert db.client(bob.uid) == stored
    assert db.log_size() == 2


def test_a_curve_key_that_somebody_connects_with_is_no_new_one(db: KeyDb) -> None:
    bob, carol, invited = enrol(db), enrol(db, "carol"), invitation("dave")
    db.add_invitation(invited)
    db.rotate(carol.card_hash, renewed(carol, b"carol 2", curve_public=b"n" * 32), lambda: b"private", NOW)
    for taken in (b"n" * 32, carol.curve_public, invited.curve_public):
        if taken != bob.curve_public:
            with pytest.raises(CurveKeyTaken):
                db.rotate(bob.card_hash, renewed(bob, b"card 2", curve_public=taken), lambda: b"private", NOW)
    assert db.client(bob.uid) == bob


@pytest.mark.parametrize("before", ["rotation", "revocation"])
def test_a_revoked_client_has_no_former_keys(db: KeyDb, before: str) -> None:
    bob = enrol(db)
    if before == "rotation":
        db.rotate(bob.card_hash, renewed(bob, b"card 2"), lambda: b"private 2", NOW)
    db.revoke("bob", "lost", NOW)
    assert db.former_keys(bob.uid, NOW) is None
    with pytest.raises(NotRegistered):
        db.rotate(bob.card_hash, renewed(bob, b"card 3"), lambda: b"private 3", NOW)


def test_successions_are_given_from_an_identity_on_and_bounded(db: KeyDb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keydb, "SUCCESSIONS_KEPT_MAX", 3)
    bob = enrol(db)
    for number in range(3):
        heir = renewed(bob, b"card %d" % number, fingerprint=b"%d" % number * 32)
        bob = db.rotate(bob.card_hash, heir, lambda: b"private", NOW, b"step %d" % number)
    assert db.successions(bob.uid, b"f" * 32, 2) == [b"step 0", b"step 1"]
    assert db.successions(bob.uid, b"1" * 32, 9) == [b"step 2"]
    assert db.successions(bob.uid, b"2" * 32, 9) == db.successions(bob.uid, b"x" * 32, 9) == []
    assert [entry.event for entry in db.log_entries(1)] == ["succeeded"] * 3
    with pytest.raises(TooManySuccessions):
        db.rotate(bob.card_hash, renewed(bob, b"card 4"), lambda: b"private", NOW, b"step 3")
    assert db.client(bob.uid) == bob
    assert db.rotate(bob.card_hash, renewed(bob, b"card 4"), lambda: b"private", NOW).card == b"card 4"
