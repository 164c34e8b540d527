"""What lies under a key database, by URL: one SQLite file, or a PostgreSQL database.

A backend gives transactions, a counter that tells when somebody else wrote, and the translation of its library's
errors; which tables there are and what stands in them is `zkc.stores.keydb`'s.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from sqlalchemy import URL, Connection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from zkc.errors import UsageError
from zkc.stores.keydb_sqlite import SqliteBackend
from zkc.stores.migrations import Fill

if TYPE_CHECKING:
    from zkc.stores.keydb_postgres import PostgresBackend

BUSY_SECONDS: Final = 10.0
"""How long a command's transaction waits for another process's; a transaction takes milliseconds."""
_FORMS: Final = "use sqlite:///PATH or postgresql://USER@HOST/DATABASE"


class Backend(Protocol):
    """An open database with the latest schema, for the thread that opened it."""

    def reading(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one state and changes nothing."""

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction that no other writer can interleave with; durable when the block has ended.

        An exception in the block undoes it.
        """

    def change_counter(self) -> int:
        """A number that differs from the last one if another connection has committed since."""

    def erase_deleted(self) -> None:
        """What was deleted leaves the disk, as far as it is in a client's hands."""

    def close(self) -> None:
        """Let go of everything. Harmless when repeated."""


def open_backend(
    url: str, mac_key: bytes, *, create: bool, patience: float, alone: bool, fill: Fill | None = None
) -> Backend:
    """The database at ``url``, brought to the latest schema.

    A transaction waits ``patience`` seconds for another process's, then it is ``busy``. ``alone``: as the one
    coordinator that runs on it. ``fill``: adds what is to be in one that is made, as part of making it.

    Errors: `UsageError` for a URL of no use, or a package that it needs (``extra``); else what the backend's own
    ``open`` says.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() == "postgresql":
        return _postgres().open(
            parsed, _shown(parsed), mac_key, create=create, patience=patience, alone=alone, fill=fill
        )
    return SqliteBackend.open(_path(parsed), mac_key, create=create, patience=patience, fill=fill)


def is_there(url: str) -> bool:
    """Whether there is a key database at ``url``, whosever it is. Errors: as `open_backend`."""
    parsed = _parsed(url)
    if parsed.get_backend_name() == "postgresql":
        return _postgres().is_there(parsed, _shown(parsed), BUSY_SECONDS)
    return os.path.lexists(_path(parsed))


def shown(url: str) -> str:
    """``url`` as a person may read it: nothing behind the ``?``, and no password."""
    return _shown(_parsed(url))


def _parsed(url: str) -> URL:
    """`UsageError` for a URL that is none of ours."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter: a port that is no number
        raise _malformed() from None
    if "@" in (parsed.host or ""):  # a part of a password that was written as it is
        raise _malformed()
    is_file = parsed.drivername == "sqlite" and parsed.database not in (None, "", ":memory:")
    if parsed.drivername == "postgresql" or (is_file and not parsed.query and not parsed.host):
        return parsed
    raise UsageError(f"{_shown(parsed)!r} is not a key database that zkc can use", hint=_FORMS)


def _malformed() -> UsageError:
    """Without the URL, which can hold a password anywhere."""
    return UsageError(
        "the key database's URL is malformed", hint=f"{_FORMS}, with an @ or % of a password as %40 or %25"
    )


def _postgres() -> type[PostgresBackend]:
    try:
        from zkc.stores.keydb_postgres import PostgresBackend  # noqa: PLC0415 - its driver is part of an extra
    except ImportError:
        raise UsageError(
            "a key database in PostgreSQL needs psycopg, which is not installed", detail="extra",
            hint="install it: pip install 'zkc[postgres]'",
        ) from None
    return PostgresBackend


def _shown(parsed: URL) -> str:
    return parsed.set(query={}).render_as_string(hide_password=True)


def _path(parsed: URL) -> Path:
    return Path(parsed.database or "").absolute()
