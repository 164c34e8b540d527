"""What both kinds of SQLite files do alike: how a connection is set up, who may read them, their errors as ours."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from zkc.errors import InternalError, LocalIOError, ZkcError
from zkc.stores import files

SIDE_FILES: Final = ("-wal", "-shm")
"""SQLite gives them the mode of the file that it finds."""
_PRAGMAS: Final = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "secure_delete = ON",  # a secret that was removed leaves the file with its row
    "cell_size_check = ON",
    "trusted_schema = OFF",
    "temp_store = MEMORY",
)
_DAMAGED_IO: Final = frozenset(
    {sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS, sqlite3.SQLITE_IOERR_DATA}
)


class NothingChanged(LocalIOError):
    """A transaction that surely left everything as it was: no room (``no-space``), or another's turn (``busy``)."""


def prepared(connection: sqlite3.Connection) -> sqlite3.Connection:
    """The new connection with its settings: what was committed is on disk. Closed again where that fails."""
    try:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}").close()
    except BaseException:
        connection.close()
        raise
    return connection


def check_files(path: Path) -> None:
    """Refuse a file, or side files of it, that others could read or exchange (attack K01)."""
    files.check_file(path)
    for suffix in SIDE_FILES:
        # They come and go with other processes: what is no longer there is nothing to refuse.
        try:
            files.check_file(Path(f"{path}{suffix}"))
        except LocalIOError as error:
            if error.detail != "missing":
                raise


def remove(path: Path) -> None:
    """An unfinished file and its side files, as far as they are there."""
    for suffix in ("", *SIDE_FILES):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def error_from(error: BaseException | None, path: Path, what: str) -> ZkcError:
    """What SQLite's ``error`` means for the file at ``path``, which holds ``what`` ("the inbox").

    `LocalIOError` (``busy``, ``no-space``, ``permission``, ``io``, ``damaged``); `InternalError` for a wrong use.
    """
    if isinstance(error, (sqlite3.ProgrammingError, sqlite3.InterfaceError)):
        return InternalError(f"{what}: used wrongly: {error}")
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    if code == sqlite3.SQLITE_IOERR_SHMSIZE or code & 0xFF == sqlite3.SQLITE_FULL:
        return NothingChanged(f"no space left for {what} {path}", detail="no-space", hint="make room and run it again")
    match code & 0xFF:
        case sqlite3.SQLITE_CONSTRAINT:
            return InternalError(f"{what}: {error}")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return busy(path, what)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH if not (
            os.access(path, os.R_OK | os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)
        ):
            return LocalIOError(f"{what} {path} cannot be opened for writing", detail="permission", hint=files.WHOSE)
        case sqlite3.SQLITE_IOERR if code not in _DAMAGED_IO:
            return LocalIOError(f"{what} {path}: {error}", detail="io", hint=files.AGAIN)
        case _:
            # Also "no such table", "read-only" and text that is no UTF-8: only a file that is no longer ours says so.
            return damaged(path, what)


def busy(path: Path, what: str) -> LocalIOError:
    return NothingChanged(f"{what} {path} is held by another process", detail="busy", hint="run it again")


def damaged(path: Path, what: str) -> LocalIOError:
    return LocalIOError(f"{what} {path} is damaged", detail="damaged", hint="restore it from a backup")
