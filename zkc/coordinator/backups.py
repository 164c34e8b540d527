"""A coordinator in one file: `write_backup` while it runs or not, `restore` into a home that has none.

::

    backup.json       version, when it was made, how long the key log is, whose it is
    identity.key      as in the home
    keys.db           the key database at one moment, as SQLite's, whatever kind it is of
    config.toml, banned    where there are any

A tar, uncompressed, in this order. It holds every secret of the coordinator.

What came after a backup is not in it (attack K05): clients that have read further in the key log say so at first
contacts, whoever was revoked since is registered again, and an invitation that was used since would be open again.
`restore` cancels all invitations, and tells the rest. Two coordinators from one backup are two logs under one name,
which clients prove to each other.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from zkc.config import load as load_config
from zkc.coordinator import identity
from zkc.coordinator.banned import FILE_NAME as BANNED
from zkc.crypto.audit import Note
from zkc.decoders import convert, json_decoder
from zkc.env import SystemClock
from zkc.errors import LocalIOError, UsageError
from zkc.stores import files
from zkc.stores.backends import is_there, shown
from zkc.stores.home import Home
from zkc.stores.keydb import KeyDb

_VERSION: Final = 1
_HEAD: Final = "backup.json"
_KEYS: Final = "keys.db"
_SMALL_MAX: Final = 1 << 20
"""Bytes of each file but the database."""
_PIECE: Final = 1 << 20


class Sink(Protocol):
    """Where a backup goes."""

    def write(self, data: bytes, /) -> object: ...


class Source(Protocol):
    """Where one comes from."""

    def read(self, size: int, /) -> bytes: ...


class Told(msgspec.Struct, frozen=True):
    """What is in a backup."""

    version: int
    fingerprint: str
    """The coordinator's."""
    made: float
    """Seconds since 1970, as below."""
    clients: int
    """How many are registered and not revoked."""
    log: int
    """Entries of the key log."""
    last: float
    """When the last of them was made."""


@dataclass(frozen=True)
class Restored:
    """What `restore` did."""

    told: Told
    cancelled: list[str]
    """Names whose open invitations are of no use any more."""


def write_backup(home: Home, to: Sink) -> Told:
    """Everything of the coordinator in ``home``, whether it runs or not, to ``to``; what it holds.

    Errors: as `identity.load`, `KeyDb.open`; `OSError` of ``to``.
    """
    told_identity = identity.load(home.check().data)
    body = files.read_private(identity.identity_file(home.data))
    config = load_config("coordinator", home.config_file, os.environ).config
    with _scratch(home) as scratch:
        copy = scratch / _KEYS
        _copy(home.keydb_url(config.coordinator.keydb), f"sqlite:///{copy}", told_identity)
        told = _look_into(copy, told_identity)
        with tarfile.open(fileobj=to, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            for name, data in ((_HEAD, msgspec.json.encode(told)), (identity.FILE_NAME, body)):
                _add(tar, name, io.BytesIO(data), len(data))
            with copy.open("rb") as opened:
                _add(tar, _KEYS, opened, copy.stat().st_size)
            for path in (home.config_file, home.data / BANNED):
                if path.exists():
                    data = path.read_bytes()
                    _add(tar, path.name, io.BytesIO(data), len(data))
    return told


def write_file(home: Home, path: Path) -> Told:
    """`write_backup` to ``path``, 0600: whole, or not at all. Errors: those of it, `LocalIOError`."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with files.translated(f"backup {path}"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        scratch.unlink(missing_ok=True)
        try:
            with open(os.open(scratch, flags, files.PRIVATE_FILE), "wb") as opened:
                told = write_backup(home, opened)
                opened.flush()
                os.fsync(opened.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    return told


def restore(home: Home, source: Source) -> Restored:
    """The coordinator of a backup, in ``home``, where none is.

    Errors: `UsageError` (``occupied``: one is there), `DaemonError` (``already-running``),
    `VersionMismatch` (``newer``), `LocalIOError` (``damaged``, where it is no backup, or not all of it).
    """
    home.prepare()
    with home.lock(), _scratch(home) as scratch:
        if os.path.lexists(there := home.data / identity.FILE_NAME):
            raise _occupied(str(there), "restore into another home, or move this one aside")
        with files.translated("the backup"):
            told = _unpack(source, scratch)
        found = identity.load(scratch)
        inside = _look_into(scratch / _KEYS, found)
        if (inside.log, inside.fingerprint) != (told.log, told.fingerprint):
            raise _damaged()
        cancelled = _begin_anew(scratch / _KEYS, found)
        config = scratch / home.config_file.name
        if not home.config_file.exists() and config.exists():
            files.write_private(home.config_file, config.read_bytes(), replace=False)
        configured = load_config("coordinator", home.config_file, os.environ).config.coordinator.keydb
        to = home.keydb_url(configured)
        if is_there(to):
            raise _occupied(shown(to), "move it aside, or name an empty place as coordinator.keydb")
        if (scratch / BANNED).exists():
            files.write_private(home.data / BANNED, (scratch / BANNED).read_bytes(), replace=True)
        _copy(f"sqlite:///{scratch / _KEYS}", to, found)
        # Last: with a database and without an identity no coordinator starts.
        body = (scratch / identity.FILE_NAME).read_bytes()
        files.write_private(identity.identity_file(home.data), body, replace=False)
    return Restored(told, cancelled)


def _occupied(where: str, hint: str) -> UsageError:
    return UsageError(f"a coordinator is here already: {where}", detail="occupied", hint=hint)


@contextmanager
def _scratch(home: Home) -> Iterator[Path]:
    """A private folder beside what goes into it."""
    folder = home.data / f".backup-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    files.make_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(source: str, to: str, found: identity.CoordinatorIdentity) -> None:
    """The database at one moment, whoever writes meanwhile, whichever kinds the two are of."""
    with closing(KeyDb.open(source, found.mac_key, create=False)) as ours:
        ours.copy_to(to)


def _look_into(path: Path, found: identity.CoordinatorIdentity) -> Told:
    """What the database at ``path`` holds, every row of its log verified."""
    with closing(KeyDb.open(f"sqlite:///{path}", found.mac_key, create=False)) as db:
        db.check_log()
        size = db.log_size()
        last = db.log_entries(size - 1, 1)[0].at if size else 0.0
        return Told(_VERSION, found.fingerprint.hex(), SystemClock().wall(), db.live_clients(), size, last)


def _begin_anew(path: Path, found: identity.CoordinatorIdentity) -> list[str]:
    """The names whose open invitations were cancelled; the audit log says that this was restored."""
    with closing(KeyDb.open(f"sqlite:///{path}", found.mac_key, create=False)) as db:
        names = sorted({row.name for row in db.invitations() if row.used_by is None})
        now = int(SystemClock().wall() * 1000)
        cancelled = [name for name in names if db.cancel_invitations(name, Note(now, "invitation-cancelled", name))]
        db.audit([Note(now, "restored")])
    return cancelled


def _add(tar: tarfile.TarFile, name: str, data: Any, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, files.PRIVATE_FILE, int(SystemClock().wall())
    tar.addfile(member, data)


def _unpack(source: Source, folder: Path) -> Told:
    """The files of a backup in ``folder``, each of which it knows."""
    told: Told | None = None
    got: set[str] = set()
    left = [_HEAD, identity.FILE_NAME, _KEYS, "config.toml", BANNED]
    try:
        with tarfile.open(fileobj=source, mode="r|") as tar:  # type: ignore[call-overload]
            for member in tar:
                opened = tar.extractfile(member) if member.isreg() and member.name in left else None
                if opened is None or (member.name != _KEYS and member.size > _SMALL_MAX):
                    raise _damaged()
                left = left[left.index(member.name) + 1 :]
                got.add(member.name)
                if member.name == _HEAD:
                    told = _head(opened.read())
                    continue
                if told is None:
                    raise _damaged()
                with open(os.open(folder / member.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as to:
                    shutil.copyfileobj(opened, to, _PIECE)
                    to.flush()
                    os.fsync(to.fileno())
    except (tarfile.TarError, EOFError):
        raise _damaged() from None
    if told is None or not got.issuperset({_KEYS, identity.FILE_NAME}):
        raise _damaged()
    return told


def _head(data: bytes) -> Told:
    try:
        told = json_decoder(dict[str, Any]).decode(data)
        if isinstance(version := told.get("version"), int) and version > _VERSION:
            raise files.newer("the backup", Path(_HEAD))
        return convert(told, Told)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _damaged() from None


def _damaged() -> LocalIOError:
    return LocalIOError("this is no whole backup of a coordinator", detail="damaged", hint="take another one")
