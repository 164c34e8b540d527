"""The numbered steps from an empty key database to today's schema.

Every database was made by running all the steps, at once or over the years, so a fresh schema is a migrated one.
A step that was released is never edited: its text is part of each database that it made, and is compared with it at
every start. Later changes are later steps; a step that changes a table's columns seals that table's rows anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection, text

from zkc.crypto.heads import log_leaf
from zkc.crypto.merkle import leaf_hash, new_nodes
from zkc.errors import LocalIOError, VersionMismatch
from zkc.stores.rowmac import mac, verifies

Step = Callable[[Connection, bytes], None]
"""One migration: connection (in a transaction) and the key of the rows' MACs."""
Fill = Callable[[Connection], None]
"""Adds rows to a schema that is made, in the transaction that makes it."""

_TYPES: Final[dict[str, dict[str, str]]] = {
    "sqlite": {"bytes": "BLOB", "real": "REAL", "int": "INTEGER", "text": "TEXT"},
    # Names are in the order of their bytes, whatever the database's language.
    "postgresql": {"bytes": "BYTEA", "real": "DOUBLE PRECISION", "int": "BIGINT", "text": 'TEXT COLLATE "C"'},
}
"""Column types by SQLAlchemy dialect."""

_V1: Final = (
    """CREATE TABLE invitations (
        invite_id {bytes} NOT NULL PRIMARY KEY,
        name {text} NOT NULL,
        kind {text} NOT NULL,
        psk {bytes} NOT NULL,
        curve_public {bytes} NOT NULL,
        expires {real} NOT NULL,
        owner_uid {bytes},
        uid {bytes},
        psk_private {bytes},
        used_by {bytes},
        retired {int} NOT NULL,
        mac {bytes} NOT NULL
    )""",
    "CREATE INDEX invitations_by_name ON invitations (name)",
    # Every connection asks whose key it shows.
    "CREATE INDEX invitations_by_key ON invitations (curve_public)",
    """CREATE TABLE clients (
        uid {bytes} NOT NULL PRIMARY KEY,
        name {text} NOT NULL,
        kind {text} NOT NULL,
        card {bytes} NOT NULL,
        card_hash {bytes} NOT NULL,
        certificate {bytes} NOT NULL,
        curve_public {bytes} NOT NULL,
        perm_server_private {bytes} NOT NULL,
        fingerprint {bytes} NOT NULL,
        owner_uid {bytes},
        registered {real} NOT NULL,
        revoked {real},
        reason {text} NOT NULL,
        log_index {int} NOT NULL UNIQUE,
        mac {bytes} NOT NULL
    )""",
    "CREATE INDEX clients_by_name ON clients (name)",
    "CREATE INDEX clients_by_key ON clients (curve_public)",
    "CREATE UNIQUE INDEX clients_live ON clients (name) WHERE revoked IS NULL",
    # Apart from the clients: it changes all the time, and must not rewrite a row of several kilobytes of keys.
    """CREATE TABLE sightings (
        uid {bytes} NOT NULL PRIMARY KEY,
        last_seen {real} NOT NULL,
        mac {bytes} NOT NULL
    )""",
    """CREATE TABLE log (
        log_index {int} NOT NULL PRIMARY KEY,
        at {real} NOT NULL,
        event {text} NOT NULL,
        name {text} NOT NULL,
        uid {bytes} NOT NULL,
        card_hash {bytes} NOT NULL,
        reason {text} NOT NULL,
        mac {bytes} NOT NULL
    )""",
)


def _first_schema(connection: Connection, _mac_key: bytes) -> None:
    """Invitations, clients, when they were last seen, and the log of what happened to them."""
    for statement in _V1:
        connection.exec_driver_sql(statement.format_map(_TYPES[connection.dialect.name]))


def _invitations_by_end(connection: Connection, _mac_key: bytes) -> None:
    """Invitations of long ago are found without reading the others."""
    connection.exec_driver_sql("CREATE INDEX invitations_by_end ON invitations (expires)")


_AUDIT: Final = (
    """CREATE TABLE audit (
        seq {int} NOT NULL PRIMARY KEY,
        at {int} NOT NULL,
        event {text} NOT NULL,
        sender {text} NOT NULL,
        recipient {text} NOT NULL,
        code {int} NOT NULL,
        detail {text} NOT NULL,
        rule {text} NOT NULL,
        times {int} NOT NULL,
        previous {bytes} NOT NULL,
        hash {bytes} NOT NULL,
        mac {bytes} NOT NULL
    )""",
    """CREATE TABLE audit_start (
        seq {int} NOT NULL,
        hash {bytes} NOT NULL,
        mac {bytes} NOT NULL
    )""",
)


def _audit_log(connection: Connection, _mac_key: bytes) -> None:
    """Every decision, in a chain of hashes, and where the chain begins once old entries were removed."""
    for statement in _AUDIT:
        connection.exec_driver_sql(statement.format_map(_TYPES[connection.dialect.name]))


def _tree_over_the_log(connection: Connection, mac_key: bytes) -> None:
    """The log becomes a Merkle tree: the roots of all complete subtrees, of the entries that are there already too."""
    statement = """CREATE TABLE log_nodes (
        level {int} NOT NULL,
        position {int} NOT NULL,
        hash {bytes} NOT NULL,
        mac {bytes} NOT NULL,
        PRIMARY KEY (level, position)
    )"""
    connection.exec_driver_sql(statement.format_map(_TYPES[connection.dialect.name]))
    rows = connection.exec_driver_sql(
        "SELECT log_index, at, event, name, uid, card_hash, reason, mac FROM log ORDER BY log_index"
    ).all()
    nodes: dict[tuple[int, int], bytes] = {}
    for place, (*values, made) in enumerate(rows):
        if not verifies(mac_key, "log", values, made) or values[0] != place:
            raise LocalIOError("the key database is damaged (log)", detail="damaged", hint="restore it from a backup")
        nodes |= new_nodes(place, leaf_hash(log_leaf(values[2], values[3], values[5], values[6])), nodes.__getitem__)
    for (level, position), hashed in nodes.items():
        sealed = mac(mac_key, "log_nodes", (level, position, hashed))
        connection.execute(
            text("INSERT INTO log_nodes (level, position, hash, mac) VALUES (:level, :position, :hash, :mac)"),
            {"level": level, "position": position, "hash": hashed, "mac": sealed},
        )


_ROTATION: Final = (
    # What clients had before their keys rotated; few at a time, and gone with the first channel under the new ones.
    """CREATE TABLE former_keys (
        uid {bytes} NOT NULL PRIMARY KEY,
        card {bytes} NOT NULL,
        certificate {bytes} NOT NULL,
        curve_public {bytes} NOT NULL,
        perm_server_private {bytes} NOT NULL,
        until {real} NOT NULL,
        mac {bytes} NOT NULL
    )""",
    # Which identity took whose place.
    """CREATE TABLE successions (
        log_index {int} NOT NULL PRIMARY KEY,
        uid {bytes} NOT NULL,
        former {bytes} NOT NULL,
        encoded {bytes} NOT NULL,
        mac {bytes} NOT NULL
    )""",
    "CREATE INDEX successions_by_client ON successions (uid)",
    "CREATE INDEX log_by_client ON log (uid)",
)


def _rotation(connection: Connection, _mac_key: bytes) -> None:
    """New keys and identities of clients."""
    for statement in _ROTATION:
        connection.exec_driver_sql(statement.format_map(_TYPES[connection.dialect.name]))


STEPS: Final[tuple[Step, ...]] = (
    _first_schema, _invitations_by_end, _audit_log, _tree_over_the_log, _rotation,
)  # fmt: skip
"""Step n is at n - 1."""
LATEST: Final = len(STEPS)

_VERSION_TABLE: Final = "CREATE TABLE schema_version (version {int} NOT NULL, mac {bytes} NOT NULL)"


def create(connection: Connection, mac_key: bytes, upto: int = LATEST) -> None:
    """The schema numbered ``upto`` in an empty database, inside the caller's transaction."""
    connection.exec_driver_sql(_VERSION_TABLE.format_map(_TYPES[connection.dialect.name]))
    _run(connection, mac_key, 0, upto)


def upgrade(connection: Connection, mac_key: bytes) -> None:
    """From whatever version stands in the database to the latest, inside the caller's transaction.

    Errors: those of `version_of`.
    """
    _run(connection, mac_key, version_of(connection, mac_key), LATEST)


def version_of(connection: Connection, mac_key: bytes) -> int:
    """The number of the database's schema.

    `LocalIOError` (``damaged``) when it does not verify, so also when ``mac_key`` is another database's;
    `VersionMismatch` when a newer zkc made it.
    """
    rows = connection.exec_driver_sql("SELECT version, mac FROM schema_version").all()
    if len(rows) != 1 or not verifies(mac_key, "schema_version", (rows[0][0],), rows[0][1]):
        raise LocalIOError(
            "the key database is damaged, or its key is another one's", detail="damaged",
            hint="restore it from a backup, together with identity.key",
        )
    version: int = rows[0][0]
    if version > LATEST:
        raise VersionMismatch(
            f"the key database was written by a newer zkc (schema {version}, this one knows up to {LATEST})",
            detail="newer",
            hint="install that zkc again, or restore a backup from before it",
        )
    return version


def _run(connection: Connection, mac_key: bytes, start: int, upto: int) -> None:
    if start == upto:
        return
    for step in STEPS[start:upto]:
        step(connection, mac_key)
    connection.exec_driver_sql("DELETE FROM schema_version")
    connection.execute(
        text("INSERT INTO schema_version (version, mac) VALUES (:version, :mac)"),
        {"version": upto, "mac": mac(mac_key, "schema_version", (upto,))},
    )
