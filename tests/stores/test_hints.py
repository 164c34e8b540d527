"""What the system answers to a store becomes an error that says what to do."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from zkc.stores import files, sqlite


@pytest.mark.parametrize(
    ("number", "detail", "hint"),
    [
        (errno.ENOSPC, "no-space", "make room"),
        (errno.EACCES, "permission", "ls -l"),
        (errno.ENOENT, "missing", "remove"),
        (errno.ENOTDIR, "io", "something else stands there"),
        (errno.EIO, "io", "run it again"),
        (errno.ENODEV, "io", "run it again"),
    ],
    ids=errno.errorcode.get,
)
def test_what_the_system_says_comes_with_what_to_do(number: int, detail: str, hint: str) -> None:
    error = files.local_error(OSError(number, os.strerror(number)), "writing")
    assert (error.detail, hint in error.hint) == (detail, True)


@pytest.mark.parametrize(
    ("code", "readable", "detail", "hint"),
    [
        (sqlite3.SQLITE_BUSY, True, "busy", "run it again"),
        (sqlite3.SQLITE_FULL, True, "no-space", "make room"),
        (sqlite3.SQLITE_CANTOPEN, False, "permission", "ls -l"),
        (sqlite3.SQLITE_IOERR, True, "io", "run it again"),
        (sqlite3.SQLITE_CORRUPT, True, "damaged", "backup"),
    ],
)
def test_what_sqlite_says_comes_with_what_to_do(
    tmp_path: Path, code: int, readable: bool, detail: str, hint: str
) -> None:
    path = tmp_path / "index.db"
    if readable:
        path.touch(0o600)
    said = sqlite3.OperationalError("said")
    said.sqlite_errorcode = code
    error = sqlite.error_from(said, path, "the inbox")
    assert (error.detail, hint in error.hint) == (detail, True)
