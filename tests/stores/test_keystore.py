"""A client's keys survive everything but damage, and damage is always noticed."""

from __future__ import annotations

import dataclasses
import os
import random
import resource
import shlex
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.program import environment
from tests.support.waiting import DEADLINE, wait_until
from zkc.client.principal import known_about
from zkc.errors import LocalIOError, UsageError, VersionMismatch
from zkc.stores import localdb, sealed_tables
from zkc.stores.home import Home
from zkc.stores.key_rows import KnownLog, Pin, Registration, Renewed
from zkc.stores.keystore import KeyStore

TID, XID, TH = b"t" * 16, b"x" * 16, b"h" * 32


def registration(name: str = "bob", uid: bytes = b"u" * 16) -> Registration:
    return Registration(
        name=name, kind="application" if "/" in name else "computer", uid=uid, identity_private=b"IDENTITY-SECRET" * 9,
        kem_private=b"KEM-SECRET" * 200, curve_secret=b"CURVE-SECRET" * 2, card=b"card" * 900,
        perm_server_public=b"server" * 200, coordinator_card=b"coordinator" * 300, coordinator_fingerprint=b"f" * 32,
        endpoints=("tcp://127.0.0.1:7670", "tcp://[::1]:7670"), suite="hybrid",
        owner=name.partition("/")[0] if "/" in name else None,
    )


def pin(name: str = "alice", *, fingerprint: bytes = b"a" * 32) -> Pin:
    return Pin(
        name=name, kind="user", fingerprint=fingerprint, card=b"card of " + name.encode(), card_hash=b"c" * 32, epoch=3,
        first_seen=1000.5, last_seen=2000.0,
    )


def set_pin(store: KeyStore, wanted: Pin) -> None:
    store.update_pin(wanted.name, lambda _: wanted)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.resolve("client", str(tmp_path / "home")).prepare()


@pytest.fixture
def store(home: Home) -> Iterator[KeyStore]:
    with KeyStore.open(home) as opened:
        yield opened


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_registration_is_read_back_as_it_was_written_by_another_opening(home: Home, store: KeyStore) -> None:
    store.save_pending(b"i" * 16, b"half way")
    assert store.pending(b"i" * 16) == b"half way"
    store.complete(registration(), b"i" * 16)
    assert store.pending(b"i" * 16) is None
    store.complete(registration("bob/backup", b"v" * 16))
    with KeyStore.open(home) as again:
        assert again.registrations() == [registration(), registration("bob/backup", b"v" * 16)]
        assert again.registration("bob/backup") == registration("bob/backup", b"v" * 16)
        assert again.registration("carol") is None


def test_what_tries_with_other_invitations_left_goes_with_the_registration(store: KeyStore) -> None:
    for invite_id in (b"i" * 16, b"j" * 16):
        store.save_pending(invite_id, b"half way")
    store.complete(registration(), b"i" * 16)
    assert (store.pending(b"i" * 16), store.pending(b"j" * 16)) == (None, None)


def test_an_applications_registration_takes_its_own_try_along_alone(store: KeyStore) -> None:
    store.complete(registration())
    for invite_id in (b"i" * 16, b"j" * 16):
        store.save_pending(invite_id, b"half way")
    store.complete(registration("bob/backup", b"v" * 16), b"i" * 16)
    assert (store.pending(b"i" * 16), store.pending(b"j" * 16)) == (None, b"half way")


def test_a_pending_registration_is_replaced_and_dropped(store: KeyStore) -> None:
    store.save_pending(b"i" * 16, b"first")
    store.save_pending(b"j" * 16, b"other")
    store.save_pending(b"i" * 16, b"second")
    assert store.pending(b"i" * 16) == b"second"
    store.drop_pending(b"i" * 16)
    assert store.pending(b"i" * 16) is None
    assert store.pending(b"j" * 16) == b"other"


def test_completing_twice_is_once_and_another_registration_of_the_name_is_refused(store: KeyStore) -> None:
    store.complete(registration())
    store.complete(registration())
    with pytest.raises(UsageError) as caught:
        store.complete(registration(uid=b"w" * 16))
    assert caught.value.detail == "already-registered"
    assert store.registrations() == [registration()]


def test_a_home_has_one_name_of_its_own_and_any_number_of_applications(store: KeyStore) -> None:
    store.complete(registration())
    store.save_pending(b"i" * 16, b"half way")
    with pytest.raises(UsageError) as caught:
        store.complete(registration("carol", b"c" * 16), b"i" * 16)
    assert caught.value.detail == "already-registered"
    assert (store.registrations(), store.pending(b"i" * 16)) == ([registration()], b"half way")
    for app in ("bob/backup", "bob/mail"):
        store.complete(registration(app, app.encode()))
    assert [found.name for found in store.registrations()] == ["bob", "bob/backup", "bob/mail"]


def test_who_reads_waits_for_no_writer(home: Home, store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a daemon whose threads wait for another process would miss its heartbeats."""
    set_pin(store, pin())
    monkeypatch.setattr(localdb, "BUSY_SECONDS", 10 * DEADLINE)
    with KeyStore.open(home) as patient, closing(sqlite3.connect(home.keys_db, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = threading.Thread(target=set_pin, args=(patient, pin("carol")))
        waiting.start()
        wait_until(patient._tables._db._writing.locked)
        assert patient.pins() == [pin()]
        patient.version()
        assert waiting.is_alive()
        other.execute("COMMIT")
        waiting.join(DEADLINE)
        assert patient.pins() == [pin(), pin("carol")]


def test_writers_that_wait_for_each_other_do_not_add_up_their_waits(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localdb, "BUSY_SECONDS", 0.01)
    with store._tables._db._writing, pytest.raises(LocalIOError) as caught:
        set_pin(store, pin())
    assert caught.value.detail == "busy"
    set_pin(store, pin())


def test_a_closed_store_is_not_opened_again_by_a_change(home: Home) -> None:
    store = KeyStore.open(home)
    store.close()
    with pytest.raises(LocalIOError, match="closed"):
        set_pin(store, pin())


def test_what_is_put_aside_is_kept_out_of_use(home: Home, store: KeyStore) -> None:
    store.complete(registration())
    set_pin(store, pin())
    store.complete(registration(uid=b"w" * 16), put_aside=5.0)
    assert store.registrations() == [registration(uid=b"w" * 16)]
    store.complete(registration("carol", b"c" * 16), put_aside=7.0)
    assert [found.name for found in store.registrations()] == ["carol"]
    assert store.pins() == [pin()]
    with sqlite3.connect(home.keys_db) as raw:
        assert raw.execute("SELECT uid, put_aside FROM aside").fetchall() == [(b"u" * 16, 5.0), (b"w" * 16, 7.0)]
    raw.close()


def app(uid: bytes = b"a" * 16) -> Registration:
    return dataclasses.replace(registration("bob/cal", uid), owner="bob")


def test_an_application_that_is_registered_anew_puts_itself_alone_aside(store: KeyStore) -> None:
    mail = dataclasses.replace(registration("bob/mail", b"m" * 16), owner="bob")
    for one in (registration(), app(), mail):
        store.complete(one)
    store.complete(app(b"b" * 16), put_aside=5.0)
    assert store.registrations() == [registration(), app(b"b" * 16), mail]


def test_a_revoked_application_is_remembered_until_it_or_its_owner_is_registered_anew(store: KeyStore) -> None:
    store.complete(registration())
    store.complete(app())
    assert not store.revoked(app(b"z" * 16), 5.0), "another one of that name"
    assert not store.was_revoked("bob/cal")
    assert store.revoked(app(), 5.0)
    assert not store.revoked(app(), 6.0)
    assert (store.registrations(), store.was_revoked("bob/cal")) == ([registration()], True)
    store.complete(app(b"b" * 16))
    assert not store.was_revoked("bob/cal")
    assert store.revoked(app(b"b" * 16), 7.0)
    store.complete(registration(uid=b"w" * 16), put_aside=8.0)
    assert not store.was_revoked("bob/cal"), "that was another bob's"


def test_with_its_owner_a_revoked_application_leaves_the_file(home: Home, store: KeyStore) -> None:
    store.complete(registration())
    store.complete(app())
    assert store.revoked(app(), 5.0)
    assert store.remove("bob")
    assert not store.was_revoked("bob/cal")
    for path in home.data.glob("keys.db*"):
        assert b"KEM-SECRET" not in path.read_bytes()


def test_a_removed_key_leaves_the_file(home: Home, store: KeyStore) -> None:
    store.complete(registration())
    assert store.remove("bob")
    assert not store.remove("bob")
    for path in home.data.glob("keys.db*"):
        assert b"KEM-SECRET" not in path.read_bytes()
        assert b"CURVE-SECRET" not in path.read_bytes()


def test_no_secret_is_in_a_repr() -> None:
    assert "SECRET" not in repr(registration())
    assert "bob" in repr(registration())


def test_pins_are_set_replaced_and_forgotten(home: Home, store: KeyStore) -> None:
    set_pin(store, pin("carol"))
    set_pin(store, pin("alice"))
    set_pin(store, dataclasses.replace(pin("alice"), verified=7.5, alarm=b"other"))
    with KeyStore.open(home) as again:
        assert again.pins() == [dataclasses.replace(pin("alice"), verified=7.5, alarm=b"other"), pin("carol")]
        assert again.pin("dave") is None
        assert again.forget("carol")
    assert not store.forget("carol")
    assert store.pin("carol") is None


def test_a_change_that_fails_changes_nothing(store: KeyStore) -> None:
    set_pin(store, pin())

    def fail(known: Pin | None) -> Pin | None:
        assert known == pin()
        raise KeyError

    with pytest.raises(KeyError):
        store.update_pin("alice", fail)
    assert store.pins() == [pin()]
    assert store.update_pin("alice", lambda _: None) is None
    assert store.pins() == []


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables of which a row was verified, one entry a row."""
    rows: list[str] = []
    real = sealed_tables.verifies

    def counting(key: bytes, table: str, *rest: object) -> bool:
        rows.append(table)
        return real(key, table, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sealed_tables, "verifies", counting)
    return rows


def test_what_a_transfer_asks_of_the_pins_does_not_grow_with_their_number(
    home: Home, store: KeyStore, verified: list[str]
) -> None:
    for number in range(50):
        set_pin(store, pin(f"peer{number}", fingerprint=bytes([number]) * 32))
    verified.clear()
    for number in range(50):
        fingerprint = bytes([number]) * 32
        known = known_about(store, f"peer{number}", fingerprint)
        assert (known.fingerprint, known.names) == (fingerprint, (f"peer{number}",))
        set_pin(store, dataclasses.replace(pin(f"peer{number}", fingerprint=fingerprint), last_seen=3000.0))
    assert verified == []
    with KeyStore.open(home) as other:
        assert other.pins() == store.pins()
        assert len(verified) == 50
        set_pin(other, pin("peer7", fingerprint=b"7" * 32))
    assert known_about(store, "peer7", b"7" * 32).names == ("peer7",)
    assert len(verified) == 100, "another process has changed one: all of them once more"


def test_a_pin_that_another_process_makes_anew_as_it_was_can_be_changed(home: Home, store: KeyStore) -> None:
    for name in ("alice", "carol"):
        set_pin(store, pin(name))
    with KeyStore.open(home) as other:
        other.forget("alice")
        set_pin(other, pin("alice"))
    set_pin(store, dataclasses.replace(pin("alice"), verified=7.5))
    with KeyStore.open(home) as again:
        assert again.pins() == store.pins() == [dataclasses.replace(pin("alice"), verified=7.5), pin("carol")]


def test_a_pin_that_stays_as_it_is_waits_for_no_writer(store: KeyStore) -> None:
    set_pin(store, pin())
    with store._tables._db.writing():
        set_pin(store, pin())


# --- who may read it --------------------------------------------------------------------------------------------------


@pytest.mark.attack("K01")
def test_the_file_is_for_its_owner_alone_under_any_umask(home: Home) -> None:
    before = os.umask(0)
    try:
        with KeyStore.open(home) as store:
            set_pin(store, pin())
            found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.data.glob("keys.db*")}
    finally:
        os.umask(before)
    assert found == {"keys.db": 0o600, "keys.db-wal": 0o600, "keys.db-shm": 0o600}


@pytest.mark.attack("K01")
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("loose", [0o644, 0o660, 0o620, 0o602, 0o604])
def test_keys_that_others_can_read_or_write_are_refused_with_the_command_that_mends_it(
    home: Home, store: KeyStore, loose: int, suffix: str
) -> None:
    store.complete(registration())
    Path(f"{home.keys_db}{suffix}").chmod(loose)
    refused_until_mended(home, "chmod")


@pytest.mark.attack("K01")
def test_keys_in_a_folder_that_the_group_can_write_to_are_refused(home: Home) -> None:
    KeyStore.open(home).close()
    home.data.chmod(0o770)
    refused_until_mended(home, "chmod")


@pytest.mark.attack("K01")
def test_a_key_file_that_is_a_symbolic_link_is_refused(home: Home, tmp_path: Path) -> None:
    with KeyStore.open(home) as store:
        store.complete(registration())
    home.keys_db.rename(tmp_path / "else where.db")
    home.keys_db.symlink_to(tmp_path / "else where.db")
    refused_until_mended(home, "mv")
    with KeyStore.open(home) as store:
        assert store.registrations() == [registration()]


@pytest.mark.attack("K01")
@pytest.mark.root
@pytest.mark.root
def test_a_key_file_of_another_user_is_refused(home: Home) -> None:
    KeyStore.open(home).close()
    os.chown(home.keys_db, 12345, 12345)
    refused_until_mended(home, "chown")


@pytest.mark.attack("K01")
def test_a_folder_in_place_of_the_key_file_is_refused_and_stays(home: Home) -> None:
    home.keys_db.mkdir()
    (home.keys_db / "precious").touch()
    refused_until_mended(home, "mv")
    assert (home.data / "keys.db.old" / "precious").exists()


def refused_until_mended(home: Home, tool: str) -> None:
    before = sorted((path, path.lstat().st_mode) for path in home.data.rglob("*"))
    with pytest.raises(LocalIOError) as caught:
        KeyStore.open(home)
    assert sorted((path, path.lstat().st_mode) for path in home.data.rglob("*")) == before
    assert (caught.value.code, caught.value.detail) == (33, "permission")
    line = str(caught.value)
    assert "\n" not in line
    command = shlex.split(line.partition("to mend it: ")[2])
    assert command[0] == tool
    subprocess.run(command, check=True)
    KeyStore.open(home).close()


# --- damage -----------------------------------------------------------------------------------------------------------


Read = tuple[list[Registration], list[Pin], bytes | None]


def read_all(home: Home) -> Read:
    with KeyStore.open(home) as store:
        return store.registrations(), store.pins(), store.pending(b"i" * 16)


@pytest.fixture
def whole(home: Home) -> tuple[Home, bytes, Read]:
    with KeyStore.open(home) as store:
        store.complete(registration())
        store.complete(registration("bob/backup", b"v" * 16))
        store.save_pending(b"i" * 16, b"half way")
        for name in ("alice", "carol", "dave"):
            set_pin(store, pin(name, fingerprint=name[:1].encode() * 32))
        store.forget("carol")
        set_pin(store, dataclasses.replace(pin("alice"), fingerprint=b"n" * 32, epoch=4, verified=1.0))
    return home, home.keys_db.read_bytes(), read_all(home)


def check_damaged(home: Home, content: bytes, expected: Read) -> bool:
    """Whether the damage was seen. Fails where it changed anything that was read."""
    for suffix in ("-wal", "-shm"):
        Path(f"{home.keys_db}{suffix}").unlink(missing_ok=True)
    home.keys_db.write_bytes(content)
    try:
        found = read_all(home)
    except (LocalIOError, VersionMismatch) as error:
        assert error.detail in {"damaged", "newer", "io"}, error
        assert len(str(error).splitlines()) == 1
        return True
    assert found == expected
    return False


@pytest.mark.attack("K03")
def test_a_sample_of_flipped_bytes_never_gives_another_key(whole: tuple[Home, bytes, Read]) -> None:
    home, content, expected = whole
    generator = random.Random(3)
    # Where structure is, and anywhere.
    starts = [page + at for page in range(0, len(content), 4096) for at in range(24)]
    chosen = generator.sample(starts, 200) + [generator.randrange(len(content)) for _ in range(600)]
    flips = [flipped(content, place, generator.choice([1, 128, 255])) for place in chosen]
    assert sum(check_damaged(home, damaged, expected) for damaged in flips) > 0
    assert not check_damaged(home, content, expected)


@pytest.mark.attack("K03")
def test_a_sample_of_truncations_is_refused(whole: tuple[Home, bytes, Read]) -> None:
    home, content, expected = whole
    generator = random.Random(4)
    lengths = [0, 1, 99, 100, 4096, len(content) - 4096, len(content) - 1, *generator.sample(range(len(content)), 60)]
    for length in lengths:
        assert check_damaged(home, content[:length], expected), length


@pytest.mark.attack("K03")
@pytest.mark.soak
def test_no_flipped_byte_gives_another_key(whole: tuple[Home, bytes, Read]) -> None:
    home, content, expected = whole
    for place in range(len(content)):
        for bit in (0x01, 0x80, 0xFF):
            check_damaged(home, flipped(content, place, bit), expected)


@pytest.mark.attack("K03")
@pytest.mark.soak
def test_every_truncation_is_refused(whole: tuple[Home, bytes, Read]) -> None:
    home, content, expected = whole
    for length in range(len(content)):
        assert check_damaged(home, content[:length], expected), length


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


@pytest.mark.attack("K03")
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM pins WHERE name = 'alice'",
        "UPDATE pins SET fingerprint = zeroblob(32) WHERE name = 'alice'",
        "UPDATE pins SET verified = 1 WHERE name = 'dave'",
        "UPDATE pins SET epoch = CAST(epoch AS TEXT)",
        "UPDATE pins SET name = 'mallory' WHERE name = 'alice'",
        "INSERT INTO pins SELECT * FROM pins WHERE name = 'alice'",
        "UPDATE pins SET mac = (SELECT mac FROM pins WHERE name = 'dave')",
        "DELETE FROM registrations",
        "UPDATE registrations SET kem_private = identity_private",
        "UPDATE meta SET value = zeroblob(64) WHERE name = 'mac-key'",
        "DELETE FROM meta WHERE name = 'seal-pins'",
        "UPDATE meta SET value = (SELECT value FROM meta WHERE name = 'seal-pending') WHERE name = 'seal-pins'",
        "DELETE FROM pending",
        "DROP TABLE pins",
        "PRAGMA user_version = 0",
        "PRAGMA application_id = 1",
    ],
)
def test_a_changed_hidden_doubled_or_exchanged_row_is_refused(
    whole: tuple[Home, bytes, Read], statement: str
) -> None:
    home, _, _ = whole
    raw = sqlite3.connect(home.keys_db, isolation_level=None)
    raw.execute(statement)
    raw.close()
    with pytest.raises(LocalIOError) as caught:
        read_all(home)
    assert caught.value.detail == "damaged"


@pytest.mark.attack("K03")
def test_a_damaged_table_is_not_sealed_again_by_a_change(whole: tuple[Home, bytes, Read]) -> None:
    home, _, _ = whole
    with KeyStore.open(home) as store:
        raw = sqlite3.connect(home.keys_db, isolation_level=None)
        raw.execute("DELETE FROM pins WHERE name = 'alice'")
        raw.close()
        changes: list[Callable[[], object]] = [lambda: set_pin(store, pin("erin")), lambda: store.forget("dave")]
        for change in changes:
            with pytest.raises(LocalIOError, match="damaged"):
                change()


def test_a_store_of_a_newer_program_is_left_alone(home: Home) -> None:
    KeyStore.open(home).close()
    raw = sqlite3.connect(home.keys_db, isolation_level=None)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(VersionMismatch, match="install that zkc again"):
        KeyStore.open(home)


# --- no space, and the end at any moment ------------------------------------------------------------------------------


@pytest.mark.attack("K06")
@pytest.mark.root
def test_a_pin_that_does_not_fit_on_the_disk_is_an_error_and_not_a_pin(small_disk: Callable[[int], Path]) -> None:
    home = Home.resolve("client", str(small_disk(400_000))).prepare()
    filler = home.data / "filler"
    with KeyStore.open(home) as store:
        set_pin(store, pin())
        filler.write_bytes(b"x" * 250_000)
        with pytest.raises(LocalIOError) as caught:
            set_pin(store, dataclasses.replace(pin("carol"), card=b"x" * 200_000))
        assert caught.value.detail == "no-space"
        assert store.pins() == [pin()]
        filler.unlink()
        set_pin(store, pin("carol"))
    with KeyStore.open(home) as store:
        assert store.pins() == [pin(), pin("carol")]


@pytest.mark.attack("K06")
def test_a_pin_beyond_the_limit_of_a_file_is_an_error_and_not_a_pin(home: Home) -> None:
    with KeyStore.open(home) as store:
        set_pin(store, pin())
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (home.keys_db.stat().st_size, limits[1]))
        try:
            with pytest.raises(LocalIOError):
                set_pin(store, dataclasses.replace(pin("carol"), card=b"x" * 100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert store.pins() == [pin()]


CREATE = """
import os, signal, sys
steps = int(sys.argv[2])
def trace(frame, event, arg):
    global steps
    if event == "line" and frame.f_code.co_filename.endswith("localdb.py"):
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore
home = Home.resolve("client", sys.argv[1])
sys.settrace(trace)
KeyStore.open(home)
print("whole")
"""


@pytest.mark.attack("K04")
def test_a_store_whose_making_was_killed_is_made_whole_by_the_next_opening(home: Home) -> None:
    for steps in range(0, 400, 9):
        done = subprocess.run(
            [sys.executable, "-c", CREATE, str(home.data), str(steps)],
            capture_output=True, check=False, env=environment(),
        )
        if done.stdout:
            break
        with KeyStore.open(home) as store:
            assert store.pins() == []
        for path in home.data.glob("keys.db*"):
            path.unlink()
    else:
        pytest.fail("no run went through")
    assert steps > 40


# --- new keys ---------------------------------------------------------------------------------------------------------


def renewed(number: int = 2, name: str = "bob", replaces: bytes = b"card" * 900) -> Renewed:
    return Renewed(name, b"u" * 16, replaces, b"card %d" % number, b"IDENTITY-SECRET" * 9, b"NEXT-KEM" * 9, b"N" * 32)


def with_keys(known: Registration, next_keys: Renewed) -> Registration:
    return dataclasses.replace(
        known, card=next_keys.card, kem_private=next_keys.kem_private, curve_secret=next_keys.curve_secret
    )


def test_new_keys_are_kept_before_and_take_their_place_at_once(home: Home, store: KeyStore) -> None:
    store.complete(registration())
    assert store.begin_renewal(renewed()) == renewed()
    assert store.own_cards(b"u" * 16) == ([], [registration().card, renewed().card])
    with KeyStore.open(home) as other:
        assert other.begin_renewal(renewed(3)) == renewed(), "of two processes one makes the keys, and both use them"
        assert other.registrations() == [registration()]
        other.complete_renewal(renewed(), with_keys(registration(), renewed()), b"f" * 32)
    assert store.registrations() == [with_keys(registration(), renewed())]
    assert store.renewed("bob") is None
    assert store.own_cards(b"u" * 16) == ([b"f" * 32], [renewed().card])
    store.complete_renewal(renewed(), with_keys(registration(), renewed()), b"f" * 32)
    assert store.registrations() == [with_keys(registration(), renewed())]
    assert b"KEM-SECRETKEM" not in home.keys_db.read_bytes()


def test_new_keys_of_another_card_replace_those_that_are_left_over(store: KeyStore) -> None:
    store.complete(registration())
    store.begin_renewal(renewed(2, replaces=b"long gone"))
    assert store.begin_renewal(renewed(3)) == renewed(3)
    store.complete_renewal(renewed(2, replaces=b"long gone"), with_keys(registration(), renewed()), b"f" * 32)
    assert (store.registrations(), store.renewed("bob")) == ([registration()], renewed(3))
    store.drop_renewal(renewed(3))
    assert store.renewed("bob") is None


@pytest.mark.parametrize("how", ["leave", "revoked", "force"])
def test_new_keys_leave_the_file_with_their_registration(store: KeyStore, how: str) -> None:
    store.complete(registration())
    store.begin_renewal(renewed())
    match how:
        case "leave":
            store.remove("bob")
        case "revoked":
            store.revoked(registration(), 1.0)
        case _:
            store.complete(registration(uid=b"w" * 16), put_aside=1.0)
    assert store.renewed("bob") is None


def test_a_store_of_an_older_program_is_brought_up_to_date(home: Home) -> None:
    with KeyStore.open(home) as store:
        store.complete(registration())
        set_pin(store, pin())
    with closing(sqlite3.connect(home.keys_db, isolation_level=None)) as raw:
        raw.execute("DROP TABLE renewed")
        raw.execute("DELETE FROM meta WHERE name = 'seal-renewed'")
        raw.execute("PRAGMA user_version = 1")
    with KeyStore.open(home) as store, KeyStore.open(home) as other:
        assert (store.registrations(), store.pins()) == ([registration()], [pin()])
        store.begin_renewal(renewed())
        assert other.renewed("bob") == renewed()


# --- successions ----------------------------------------------------------------------------------------------------


def test_a_pin_that_moves_along_successions_remembers_what_it_left(store: KeyStore) -> None:
    moved = pin(fingerprint=b"c" * 32)
    set_pin(store, pin())
    assert not store.succeed(moved, b"x" * 32, [b"x" * 32], 3.0), "another key is pinned by now"
    assert store.succeed(moved, b"a" * 32, [b"a" * 32, b"b" * 32], 3.0)
    assert (store.pin("alice"), store.former("alice")) == (moved, (b"a" * 32, b"b" * 32))
    assert store.former("carol") == ()
    set_pin(store, dataclasses.replace(moved, verified=4.0))
    assert len(store.former("alice")) == 2
    set_pin(store, pin(fingerprint=b"e" * 32))
    assert store.former("alice") == (), "whom a person trusts anew has no past here"


def test_what_is_forgotten_is_forgotten_with_its_past(store: KeyStore) -> None:
    set_pin(store, pin())
    store.succeed(pin(fingerprint=b"c" * 32), b"a" * 32, [b"a" * 32], 3.0)
    store.forget("alice")
    set_pin(store, pin())
    assert store.former("alice") == ()


# --- the passphrase -------------------------------------------------------------------------------------------------

SECRETS = (b"IDENTITY-SECRET", b"KEM-SECRET", b"CURVE-SECRET", b"PENDING-SECRET", b"NEXT-KEM")


def words(*given: bytes) -> Callable[[], bytes]:
    """Answers to who asks for a passphrase, one after the other."""
    left = list(given)
    return lambda: left.pop(0)


def in_file(home: Home) -> list[bytes]:
    """Which secrets are to be read in the store's files."""
    content = b"".join(path.read_bytes() for path in home.data.glob("keys.db*"))
    return [secret for secret in SECRETS if secret in content]


@pytest.mark.attack("K02")
def test_a_passphrase_leaves_no_private_key_in_the_file(home: Home) -> None:
    """Of registrations, of those put aside, of one under way, of new keys that are to come; before it and after."""
    with KeyStore.open(home) as store:
        store.complete(registration())
        store.complete(registration(uid=b"w" * 16), put_aside=1.0)
        store.save_pending(b"i" * 16, b"PENDING-SECRET")
        store.begin_renewal(renewed())
        assert in_file(home) == list(SECRETS)
        store.set_passphrase(b"sesame")
        assert store.registrations() == [registration(uid=b"w" * 16)]
    assert in_file(home) == []
    with KeyStore.open(home, passphrase=words(b"sesame")) as store:
        (found,) = store.registrations()
        assert (found.name, found.card, found.is_locked) == ("bob", registration().card, True)
        assert not any(secret in repr(found).encode() for secret in SECRETS)
        store.save_pending(b"j" * 16, b"PENDING-SECRET")  # asks, where it has to
        assert store.registrations() == [registration(uid=b"w" * 16)]
        assert store.pending(b"i" * 16) == store.pending(b"j" * 16) == b"PENDING-SECRET"
        assert store.renewed("bob") == renewed()
    assert in_file(home) == []


@pytest.mark.attack("K02")
def test_a_wrong_passphrase_is_always_told_alike(home: Home) -> None:
    with KeyStore.open(home) as store:
        store.complete(registration())
        store.set_passphrase(b"sesame")
    told = set()
    for guess in (b"", b"sesam", b"open"):
        with KeyStore.open(home, passphrase=words(guess)) as store, pytest.raises(LocalIOError) as caught:
            store.unlock()
        told.add((caught.value.detail, str(caught.value)))
    ((detail, text),) = told
    assert detail == "locked"
    assert "sesam" not in text


def test_another_passphrase_and_none(home: Home) -> None:
    with KeyStore.open(home) as running, KeyStore.open(home) as store:
        store.complete(registration())
        store.set_passphrase(b"first")
        running._passphrase = words(b"first")
        running.unlock()
        store.set_passphrase(b"second")
        assert running.registrations() == [registration()], "who has it open goes on"
        with KeyStore.open(home, passphrase=words(b"first")) as other, pytest.raises(LocalIOError):
            other.unlock()
        with KeyStore.open(home, passphrase=words(b"second")) as other:
            other.set_passphrase(None)
            assert not other.has_passphrase
        running.complete(registration("bob/backup", b"v" * 16))
    with KeyStore.open(home) as store:
        assert store.registrations() == [registration(), registration("bob/backup", b"v" * 16)]
    assert in_file(home) == [b"IDENTITY-SECRET", b"KEM-SECRET", b"CURVE-SECRET"]

# --- the coordinator's key log --------------------------------------------------------------------------------------


@pytest.mark.attack("K05")
def test_what_is_known_of_the_log_never_goes_back_and_is_known_for_each_registration(tmp_path: Path) -> None:
    home = Home.resolve("client", str(tmp_path / "home"))
    home.prepare()
    short, long = KnownLog(2, (b"a" * 32,), b"head of 2", b""), KnownLog(3, (b"b" * 32, b"c" * 32), b"head of 3", b"x")
    with KeyStore.open(home) as store:
        assert store.known_log(b"u" * 16) is None
        store.keep_log(b"u" * 16, long)
        store.keep_log(b"u" * 16, short)
    with KeyStore.open(home) as store:
        assert store.known_log(b"u" * 16) == long
        assert store.known_log(b"v" * 16) is None
    with sqlite3.connect(home.keys_db) as connection:
        connection.execute("UPDATE meta SET value = replace(value, x'03', x'02') WHERE name LIKE 'log-%'")
    with KeyStore.open(home) as store, pytest.raises(LocalIOError) as caught:
        store.known_log(b"u" * 16)
    assert caught.value.detail == "damaged"
