"""`zkc coordinator backup` and `restore`: all of a coordinator in one file, and what a second life may not do."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.program import Done, finished, zkc
from zkc.coordinator import admin, backups
from zkc.errors import ZkcError
from zkc.stores.home import Home
from zkc.testing import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A coordinator and its clients; alice and bob know each other."""
    with Fleet("alice", "bob", folder=tmp_path / "fleet") as started:
        assert started.zkc("alice", "send", "bob", "-m", "known to each other").code == 0
        yield started


def in_home(folder: Path, *words: str, stdin: str = "") -> Done:
    return zkc("coordinator", *words, env={"ZKC_HOME": str(folder)}, stdin=stdin)


def error_of(done: Done) -> tuple[int, str]:
    told = json.loads(done.err.splitlines()[-1]) if not done.out else done.objects[-1]
    return told["code"], told["detail"]


@pytest.mark.attack("K05")
def test_a_coordinator_goes_on_from_a_backup_once_and_a_second_time_is_noticed(fleet: Fleet, tmp_path: Path) -> None:
    """In a home that is made anew its clients notice nothing. Its invitations have ended: one that was used since the
    backup would be open again. Whoever has read what the first life wrote in the key log finds another later."""
    home, file = fleet.home("coordinator"), tmp_path / "coordinator.tar"
    (home / "banned").write_text(f"{'ab' * 32} somebody\n")
    (home / "banned").chmod(0o600)
    invited = fleet.zkc("coordinator", "coordinator", "invite", "carol").out
    done = in_home(home, "backup", str(file), "--json")
    assert done.code == 0, done.err
    assert (done.objects[0]["event"], done.objects[0]["clients"], done.objects[0]["log"]) == ("backup", 2, 2)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    fleet.coordinator.terminate()
    home.rename(tmp_path / "former")
    restored = in_home(home, "restore", str(file), "--json")
    assert restored.code == 0, restored.err
    told = restored.objects[0]
    assert (told["event"], told["fingerprint"], told["invitations"]) == (
        "restored", done.objects[0]["fingerprint"], ["carol"]
    )
    for name in ("identity.key", "config.toml", "banned"):
        if (tmp_path / "former" / name).exists():
            assert (home / name).read_bytes() == (tmp_path / "former" / name).read_bytes()
            assert (home / name).stat().st_mode & 0o777 == 0o600

    fleet.start_coordinator()
    for name in ("alice", "bob"):
        fleet.wait_linked(name)
    assert fleet.zkc("alice", "send", "bob", "-m", "as before").code == 0
    fleet.join("dave")
    fleet.start_daemon("dave")
    assert fleet.zkc("alice", "send", "dave", "-m", "somebody new").code == 0
    late = fleet.zkc("carol", "join", "--invite-file", "-", stdin=invited)
    assert late.code == 11, late.err
    coordinator = Home.resolve("coordinator", str(home))
    assert "restored" in [entry.note.event for entry in admin.audit_entries(coordinator)]
    admin.verify_audit(coordinator)

    fleet.coordinator.terminate()
    home.rename(tmp_path / "first-life")
    assert in_home(home, "restore", str(file)).code == 0
    fleet.start_coordinator()
    for name in ("alice", "bob"):
        fleet.wait_linked(name)
    fleet.join("erin")
    fleet.start_daemon("erin")
    done = fleet.zkc("alice", "send", "erin", "-m", "in dave's place", "--json")
    assert (done.code, done.events[-1]["detail"]) == (12, "log-fork")
    assert fleet.zkc("alice", "send", "bob", "-m", "those who know each other need no log").code == 0


# --- without a fleet ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """That of a coordinator that nobody has joined."""
    folder = tmp_path_factory.mktemp("backup")
    with Fleet(folder=folder / "fleet", daemons=False) as fleet:
        fleet.coordinator.terminate()
        done = fleet.zkc("coordinator", "coordinator", "backup", "-")
        assert done.code == 0, done.err
        return done.out


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


def changed(data: bytes, change: Callable[[str, bytes], bytes | None], extra: str = "") -> bytes:
    """The backup with each file as ``change`` makes it (None: without it), and one more called ``extra``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar, tarfile.open(fileobj=out, mode="w") as to:
        for member in tar:
            found = tar.extractfile(member)
            assert found is not None
            content = change(member.name, found.read())
            if content is not None:
                member.size = len(content)
                to.addfile(member, io.BytesIO(content))
        if extra:
            to.addfile(tarfile.TarInfo(extra))
    return out.getvalue()


def restore(folder: Path, data: bytes) -> backups.Restored:
    return backups.restore(Home.resolve("coordinator", str(folder / "home")), io.BytesIO(data))


def refusal(folder: Path, data: bytes) -> tuple[int, str]:
    with pytest.raises(ZkcError) as error:
        restore(folder, data)
    return error.value.code, error.value.detail


def test_a_backup_goes_through_pipes(backup: bytes, tmp_path: Path) -> None:
    assert names(backup)[:3] == ["backup.json", "identity.key", "keys.db"]
    file = tmp_path / "coordinator.tar"
    file.write_bytes(backup)
    done = finished(
        ["sh", "-c", 'cat "$1" | "$2" -m zkc coordinator restore -', "sh", str(file), sys.executable],
        env={"ZKC_HOME": str(tmp_path / "home")},
    )
    assert done.code == 0, done.err
    assert "2 clients" in done.err


def test_what_is_there_is_never_replaced(backup: bytes, tmp_path: Path) -> None:
    restore(tmp_path, backup)
    identity = tmp_path / "home" / "identity.key"
    before = identity.read_bytes()
    assert refusal(tmp_path, backup) == (2, "occupied")
    assert identity.read_bytes() == before
    identity.unlink()
    assert refusal(tmp_path, backup) == (2, "occupied"), "its database is still there"


@pytest.mark.parametrize("case", ["cut", "empty", "noise", "without", "swapped", "outside", "folder", "head"])
def test_what_is_no_whole_backup_leaves_the_home_as_it_was(backup: bytes, tmp_path: Path, case: str) -> None:
    data = {
        "cut": lambda: backup[: len(backup) // 2],
        "empty": lambda: b"",
        "noise": lambda: b"\xff" * 4096,
        "without": lambda: changed(backup, lambda name, data: None if name == "identity.key" else data),
        "swapped": lambda: changed(backup, lambda name, data: data[:-1] + b"!" if name == "identity.key" else data),
        "outside": lambda: changed(backup, lambda _, data: data, extra="../outside"),
        "folder": lambda: changed(backup, lambda _, data: data, extra="keys.db"),
        "head": lambda: changed(backup, lambda name, data: b"{}" if name == "backup.json" else data),
    }[case]()
    assert refusal(tmp_path, data) == (33, "damaged")
    left = sorted(path.name for path in (tmp_path / "home").iterdir())
    assert left == ["role", "run"]
    assert not (tmp_path / "outside").exists()
    restore(tmp_path, backup)  # a whole one is taken


def test_a_backup_of_a_later_version_is_refused(backup: bytes, tmp_path: Path) -> None:
    def later(name: str, data: bytes) -> bytes:
        return json.dumps({**json.loads(data), "version": 2}).encode() if name == "backup.json" else data

    assert refusal(tmp_path, changed(backup, later)) == (40, "newer")


def test_there_is_no_backup_of_what_is_not_there(tmp_path: Path) -> None:
    done = in_home(tmp_path / "home", "backup", str(tmp_path / "file.tar"), "--json")
    assert error_of(done) == (34, "not-running")
    assert not (tmp_path / "file.tar").exists()
