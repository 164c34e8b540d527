"""A key database in PostgreSQL, reached by the driver psycopg: for sites that have such a server, with its replicas and
its backups. Imported only where one is configured: psycopg is part of an extra.

Its tables are those of `zkc.stores.migrations`, in the first schema of the connection's ``search_path``, and one of
its own: ``writes``, a single row that every writing transaction counts up first. The lock on that row is what lets no
two of them interleave, and its number is how one process sees that another wrote. The one coordinator that runs on a
database holds an advisory lock in each of its sessions, so it is fenced: without that lock it writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

import psycopg
from psycopg.errors import ConnectionTimeout, LockNotAvailable
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from zkc.env import SystemClock
from zkc.errors import DaemonError, InternalError, LocalIOError, UsageError, ZkcError
from zkc.rules.names import escape
from zkc.stores import migrations
from zkc.stores.migrations import Fill

_LOCK_CLASS: Final = 0x7A6B63
"""Of the advisory locks of zkc ("zkc"); the schema's oid is the other half: one database can hold several."""
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_ELSEWHERE: Final = frozenset({"host", "hostaddr", "service"})
_ELSEWHERE_VARIABLES: Final = frozenset({"PGHOSTADDR", "PGSERVICE"})
"""What in a URL's query, and in libpq's environment, leads to another host than the one that the URL names."""
_SCHEMA_OID: Final = "(SELECT oid FROM pg_namespace WHERE nspname = current_schema())::int"
_IS_UTF8: Final = (
    "SELECT encoding = pg_char_to_encoding('UTF8') FROM pg_database WHERE datname = current_database()"
)
_READING: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# Each statement sees the newest state; behind the lock on `writes` nobody else makes a newer one.
_WRITING: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
_SESSION: Final = {
    "synchronous_commit": "on",  # what was committed is on disk, also where the server is told not to mind
    "idle_in_transaction_session_timeout": "60s",
    # A session of a host that lost its power ends, and its lock with it, after 25 s and not after hours.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25s",  # where an answer was under way, keepalives are not sent
    "extra_float_digits": "1",  # a number comes back as it was stored; a MAC is over it
}
"""Settings of each session, as the server calls them."""
_LINE: Final = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 10_000}
"""The same for our end of the connection, as libpq calls them; the last in milliseconds."""


_SILENT_SECONDS: Final = 5.0
"""A silent host is not tried again for so long: each try holds the event loop up, which has to answer for its door."""


class PostgresBackend:
    """One connection to a PostgreSQL database, made anew when it broke."""

    def __init__(self, engine: Engine, where: str) -> None:
        self._engine = engine
        self._writer = engine.execution_options(zkc_begin=_WRITING)
        self._where = where
        self._own_writes = 0
        self._clock = SystemClock()
        self._silent_until = 0.0

    @classmethod
    def open(
        cls, url: URL, where: str, mac_key: bytes, *, create: bool, patience: float, alone: bool,
        fill: Fill | None = None,
    ) -> Self:
        """The database at ``url``, which errors call ``where``; its tables are made, with what ``fill`` adds, where
        there are none and ``create`` is set.

        Errors: `LocalIOError` with ``missing``, ``unreachable``, ``permission``, ``damaged``, ``no-space``, ``busy``,
        ``io``; `UsageError` (``config``: its text is not in UTF-8, or the URL has a parameter that nobody knows);
        `DaemonError` (``already-running``) where ``alone`` and another is; `VersionMismatch`.
        """
        backend = cls(_engine(url, where, patience, alone), where)
        try:
            backend._prepare(mac_key, create, fill)
        except BaseException:
            backend.close()
            raise
        return backend

    @classmethod
    def is_there(cls, url: URL, where: str, patience: float) -> bool:
        """Whether there is a key database at ``url``. Errors: as `open`."""
        backend = cls(_engine(url, where, patience, alone=False), where)
        try:
            with backend.reading() as connection:
                return _has_tables(connection)
        finally:
            backend.close()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with self._translated(), self._writer.begin() as connection:
            if connection.exec_driver_sql("UPDATE writes SET number = number + 1").rowcount != 1:
                raise _damaged(self._where, "writes")
            yield connection
        self._own_writes += 1

    def change_counter(self) -> int:
        with self.reading() as connection:
            number: int = connection.exec_driver_sql("SELECT number FROM writes").scalar_one()
            return number - self._own_writes

    def erase_deleted(self) -> None:
        """Nothing: a server keeps what was deleted until it cleans up, and for longer in its write-ahead log."""

    def close(self) -> None:
        self._engine.dispose()

    def _prepare(self, mac_key: bytes, create: bool, fill: Fill | None) -> None:
        with self.reading() as connection:
            if not connection.exec_driver_sql(_IS_UTF8).scalar_one():
                raise UsageError(
                    f"the text of the key database {self._where} is not in UTF-8", detail="config",
                    hint="make one that is: createdb --encoding UTF8 --template template0 DATABASE",
                )
            there = _has_tables(connection)
        if not there:
            if not create:
                raise LocalIOError(
                    f"there is no key database in {self._where}", detail="missing",
                    hint="restore it from a backup, or correct coordinator.keydb",
                )
            self._create(mac_key, fill)
        with self.reading() as connection:
            version = migrations.version_of(connection, mac_key)
        if version < migrations.LATEST:
            with self.writing() as connection:
                migrations.upgrade(connection, mac_key)

    def _create(self, mac_key: bytes, fill: Fill | None) -> None:
        with self._translated(), self._writer.begin() as connection:
            # Of several at once the first makes them, and the others find them.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_CLASS} + 1, {_SCHEMA_OID})")
            if _has_tables(connection):
                return
            connection.exec_driver_sql("CREATE TABLE writes (number BIGINT NOT NULL)")
            connection.exec_driver_sql("INSERT INTO writes (number) VALUES (0)")
            migrations.create(connection, mac_key)
            if fill is not None:
                fill(connection)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The one door through which the driver's errors leave as ours."""
        if self._clock.monotonic() < self._silent_until:
            raise _unreachable(self._where, "its host was silent a moment ago")
        try:
            yield
        except DBAPIError as error:
            if isinstance(error.orig, ConnectionTimeout):  # nothing answered for as long as a connection may take
                self._silent_until = self._clock.monotonic() + _SILENT_SECONDS
            # Without its cause: a server quotes the row that it does not take.
            raise _error_from(error.orig, self._where) from None


def _engine(url: URL, where: str, patience: float, alone: bool) -> Engine:
    """An engine of one connection, with transactions begun by us alone."""
    # A patience of 0 would be to wait for ever.
    session = {"lock_timeout": f"{max(1, round(patience * 1000))}ms", **_SESSION}
    options: dict[str, Any] = {
        "application_name": "zkc", "client_encoding": "utf8", "connect_timeout": max(2, round(patience)), **_LINE,
    }  # fmt: skip
    if not _is_to_this_host(url):
        # Keys go over this line: to another host only under a certificate that was verified, unless the URL says else.
        # At a Unix socket it says nothing.
        options["sslmode"] = "verify-full"
    options = {name: value for name, value in options.items() if name not in url.query}
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT", pool_size=1, max_overflow=0,
        pool_pre_ping=True, hide_parameters=True, connect_args=options,
    )  # fmt: skip

    @event.listens_for(engine, "connect")
    def prepare(raw: Any, _record: object) -> None:
        _set_up(raw, session, alone, where)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("zkc_begin", _READING))

    return engine


def _is_to_this_host(url: URL) -> bool:
    """Whether its server can be on no other host, whatever libpq's own variables and files say."""
    elsewhere = _ELSEWHERE & url.query.keys() or _ELSEWHERE_VARIABLES & os.environ.keys()
    return url.host in _LOOPBACK and not elsewhere


def _set_up(raw: Any, session: dict[str, str], alone: bool, where: str) -> None:
    """A new session: its settings, by statements, since poolers take no ``options`` of a connection; and where it is to
    be the one of the coordinator that runs on the database, the lock that says so. A former one's may just be ending.
    """
    try:
        for name, value in session.items():
            raw.execute("SELECT set_config(%s, %s, false)", (name, value))
        raw.commit()
        if alone:
            raw.execute(f"SELECT pg_advisory_lock({_LOCK_CLASS}, {_SCHEMA_OID})")
    except LockNotAvailable:
        raise DaemonError(
            f"another coordinator runs on the key database {where}", detail="already-running",
            hint="end it first, or give this one a database of its own",
        ) from None
    except psycopg.Error as error:
        raise _error_from(error, where) from None


def _has_tables(connection: Connection) -> bool:
    # Asked of the catalogue, not of `to_regclass`, which may still remember that there were none.
    query = "SELECT 1 FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'schema_version'"
    return connection.exec_driver_sql(query).first() is not None


def _error_from(error: BaseException | None, where: str) -> ZkcError:
    """What the driver's ``error`` means. Its codes: PostgreSQL's manual, appendix A; none where there was no answer."""
    state: str = getattr(error, "sqlstate", None) or ""
    said = escape(str(error).strip().partition("\n")[0])
    what = f"the key database {where}"
    match state:
        case "55P03" | "40001" | "40P01":
            return LocalIOError(f"{what} is held by another process", detail="busy", hint="run it again")
        case "42P01" | "42703" | "XX000" | "XX001" | "XX002":
            return _damaged(where, said)
        case "42501" | "3F000":
            made = "ALTER DATABASE NAME OWNER TO USER" if state == "42501" else "CREATE SCHEMA NAME AUTHORIZATION USER"
            return LocalIOError(f"{what}: {said}", detail="permission", hint=f"make the user its owner: {made}")
        case "25006":
            return LocalIOError(f"{what} is a replica, which takes no writes", detail="io", hint="name the primary")
        case "53100":
            return LocalIOError(
                f"no space left for {what}", detail="no-space", hint="make room on the server and run it again"
            )
        case _:
            pass
    # Connection, resources, an administrator's word, the server's own I/O: or no code at all, but of the driver's kind
    # that speaks of operation and not of wrong use.
    if state[:2] in ("08", "53", "57", "58") or (not state and isinstance(error, psycopg.OperationalError)):
        return _unreachable(where, said)
    if not state and isinstance(error, psycopg.ProgrammingError):
        # Without a word of the server's: libpq does not know a parameter of the URL.
        return UsageError(f"{what}: {said}", detail="config", hint="correct coordinator.keydb")
    return InternalError(f"{what}: {said}")


def _unreachable(where: str, why: str) -> LocalIOError:
    return LocalIOError(
        f"the key database {where} cannot be reached: {why}", detail="unreachable",
        hint="see that the server runs and lets this user in, and that coordinator.keydb names them",
    )


def _damaged(where: str, what: str) -> LocalIOError:
    return LocalIOError(
        f"the key database {where} is damaged ({what})", detail="damaged", hint="restore it from a backup"
    )
