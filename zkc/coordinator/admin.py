"""What the administration commands do, each a function; they work with and without a running coordinator.

They write the key database themselves and then tell the running coordinator, if there is one, to look again. What is
expensive to import is imported by those that need it: `status` is asked in a loop.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from zkc.config import CoordinatorConfig
from zkc.config import load as load_config
from zkc.coordinator.control import (
    AskLoad,
    AskOnline,
    AskStatus,
    ControlReply,
    ControlRequest,
    Load,
    LookAgain,
    Online,
    Status,
)
from zkc.env import SystemClock, SystemEntropy
from zkc.errors import DaemonError, InternalError, NotRegistered, UsageError
from zkc.ids import check_name
from zkc.net.local_client import LocalClient
from zkc.net.local_frames import HungUp, NoAnswer, NotRunning
from zkc.service import Manager
from zkc.stores.home import Home

if TYPE_CHECKING:
    from zkc.coordinator.identity import CoordinatorIdentity
    from zkc.crypto.audit import Entry, Note
    from zkc.stores.keydb import KeyDb

_PAUSE_SECONDS: Final = 0.05
_ANSWER_SECONDS: Final = 3.0
"""A coordinator that serves answers in milliseconds; one that was stopped never does."""
_PAGE: Final = 256
_REASON_MAX: Final = 512
"""Characters; what a message has room for."""


def run(
    home: Home, options: Mapping[str, object] | None = None, *,
    on_ready: Callable[[str, str], None] = lambda _endpoint, _fingerprint: None, manager: Manager | None = None,
) -> None:
    """Run a coordinator in the foreground until SIGTERM or SIGINT; only from the main thread.

    ``options``: ``section.key`` -> value, as given on the command line. ``on_ready`` is called once, with the endpoint
    and the fingerprint; ``manager``: what started this as a service. Errors: what keeps it from starting (`UsageError`,
    `DaemonError`, `LocalIOError`, ...).
    """
    from zkc.coordinator.supervisor import Supervisor  # noqa: PLC0415 - the other commands do not need it

    Supervisor(home, options or {}, on_ready, manager or Manager()).run()


# --- is it up? -----------------------------------------------------------------------------------------------------


def status(home: Home, wait: float = 0.0) -> Status:
    """How the coordinator of ``home`` is; waits up to ``wait`` seconds for one. Creates nothing.

    Errors: `DaemonError` (``not-running``) where none runs.
    """
    clock = SystemClock()
    end = clock.monotonic() + wait
    while True:
        try:
            left = max(end - clock.monotonic(), _ANSWER_SECONDS if not wait else _PAUSE_SECONDS)
            answer = _client(home).call(AskStatus(), within=min(left, _ANSWER_SECONDS))
        except DaemonError:
            if clock.monotonic() >= end:
                raise
            select.select((), (), (), _PAUSE_SECONDS)
            continue
        if not isinstance(answer, Status):
            raise InternalError("the coordinator answered something else than its status")
        return answer


def loads(home: Home, every: float = 1.0) -> Iterator[Load]:
    """How busy the coordinator of ``home`` is: now, and then every ``every`` seconds, as it says by itself.

    Ends with `DaemonError`: ``not-running`` where none runs, or once it has ended; ``no-answer`` where it is stuck.
    """
    try:
        with closing(_client(home).stream(AskLoad(every), within=every + _ANSWER_SECONDS)) as replies:
            for reply in replies:
                if not isinstance(reply, Load):
                    raise InternalError("the coordinator answered something else than how busy it is")
                yield reply
    except HungUp:
        pass
    raise DaemonError(
        "the coordinator has ended", detail="not-running", hint="its log says why; start it: zkc coordinator run"
    )


def _client(home: Home) -> LocalClient[ControlReply]:
    return LocalClient(home.check().socket_path(), ControlReply)


def _ask(home: Home, request: ControlRequest) -> list[ControlReply]:
    """The running coordinator's replies; none where none runs. `NoAnswer`."""
    with suppress(NotRunning):
        return list(_client(home).stream(request, within=_ANSWER_SECONDS))
    return []


# --- invitations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Invite:
    """A new invitation; its text is a secret."""

    name: str
    invitation: str = field(repr=False)
    expires: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class OpenInvitation:
    """An invitation that was not cancelled, as the list shows it."""

    name: str
    kind: str
    expires: float
    state: Literal["open", "used", "expired"]


def invite(
    home: Home, name: str, kind: Literal["computer", "user"] = "computer", ttl: float | None = None,
    endpoints: Sequence[str] = (),
) -> Invite:
    """One single-use invitation for ``name``, for ``ttl`` seconds (``invite.ttl``).

    It names ``endpoints`` alone; without them, where the coordinator listens (or would, by its configuration). Errors:
    `UsageError`, `NameTaken` (11, ``name-taken``), `DaemonError` where no coordinator ever ran, `LocalIOError`.
    """
    from zkc.coordinator.invitations import advertised, make_invitation  # noqa: PLC0415 - see above
    from zkc.rules.endpoints import parse_endpoint  # noqa: PLC0415

    if "/" in check_name(name):
        raise UsageError(
            f"{name} is an application's name", detail="bad-name",
            hint=f"its owner registers it: zkc join --app {name.partition('/')[2]}",
        )
    reachable = [str(parse_endpoint(each, "--endpoint")) for each in endpoints] or advertised(_listening(home))
    with _opened(home) as (identity, db):
        seconds = _config(home).invite.ttl if ttl is None else ttl
        expires = SystemClock().wall() + seconds
        row, text = make_invitation(identity, SystemEntropy(), name, kind, expires, reachable)
        db.add_invitation(row, _note("invited", name))
    return Invite(name, text, expires)


def list_invitations(home: Home) -> list[OpenInvitation]:
    """All that were not cancelled and did not end long ago, by name."""
    now = SystemClock().wall()
    with _opened(home) as (_, db):
        return [
            OpenInvitation(
                row.name, row.kind, row.expires,
                "used" if row.used_by is not None or row.retired else "open" if now < row.expires else "expired",
            )
            for row in db.invitations()
        ]


def cancel(home: Home, name: str) -> int:
    """Cancel the unused invitations for ``name``; how many there were. `NotRegistered` (``invite-unknown``) if none."""
    with _opened(home) as (_, db):
        note = _note("invitation-cancelled", name)
        cancelled = db.cancel_invitations(check_name(name), note)
    if not cancelled:
        raise NotRegistered(
            f"there is no open invitation for {name}", detail="invite-unknown",
            hint="zkc coordinator invite --list shows them",
        )
    return cancelled


def _listening(home: Home) -> Sequence[str]:
    """Where the running coordinator listens, or would listen."""
    with suppress(NotRunning):
        return status(home).endpoints
    listen = _config(home).coordinator.listen
    for endpoint in listen:
        if endpoint.endswith(":0"):
            raise UsageError(
                f"the coordinator is not running, and {endpoint} has no port number yet", detail="bad-endpoint",
                hint="start it, or say --endpoint tcp://HOST:PORT",
            )
    return listen


# --- clients -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClientInfo:
    """One registration, as the list shows it."""

    name: str
    kind: str
    online: bool
    fingerprint: str
    registered: float
    last_seen: float
    """Seconds since 1970."""
    revoked: float | None
    reason: str


def clients(home: Home) -> Iterator[ClientInfo]:
    """All registrations, live and revoked, by name; nobody is online where no coordinator answers."""
    replies: list[ControlReply] = []
    with suppress(NoAnswer):
        replies = _ask(home, AskOnline())
    online = {uid for reply in replies if isinstance(reply, Online) for uid in reply.uids}
    with _opened(home) as (_, db):
        after, now = "", SystemClock().wall()
        while rows := db.clients(after, _PAGE):
            after = rows[-1].name
            for row in rows:
                is_online = row.uid in online
                yield ClientInfo(
                    row.name, row.kind, is_online, row.fingerprint.hex(), row.registered,
                    now if is_online else row.last_seen, row.revoked, row.reason,
                )


def revoke(
    home: Home, name: str, reason: str = "", *, on_notice: Callable[[str], None] = lambda _: None
) -> list[str]:
    """End the registration of ``name`` and of its applications, at once; the names that were ended.

    ``on_notice`` is told where a coordinator runs that does not act on it yet. `NotRegistered` (``unknown``) where
    nobody live has the name.
    """
    if len(reason) > _REASON_MAX:
        raise UsageError(f"--reason is longer than {_REASON_MAX} characters")
    with _opened(home) as (_, db):
        rows = db.revoke(check_name(name), reason, SystemClock().wall())
    if not rows:
        raise NotRegistered(f"no client {name} is registered", detail="unknown", hint="see: zkc coordinator clients")
    try:
        _ask(home, LookAgain())
    except NoAnswer:
        # It is durable: no failure, and a second try would find nobody to revoke.
        on_notice(
            f"{name} is revoked; the running coordinator did not answer, and acts on it within a second of going on"
        )
    return [row.name for row in rows]


def rotate(home: Home, *, on_notice: Callable[[str], None] = lambda _: None) -> tuple[str, list[str]]:
    """A new identity for the coordinator, for which the present one vouches: its fingerprint, and the names in open
    invitations, which name the former one and are of no use any more.

    ``on_notice`` as for `revoke`. Errors: as `identity.load`.
    """
    from zkc.coordinator.identity import rotate as rotate_identity  # noqa: PLC0415 - see above

    names = sorted({each.name for each in list_invitations(home) if each.state == "open"})
    with _opened(home) as (_, db):  # before the identity is another: without its key database nothing is done
        made = rotate_identity(home.data, SystemEntropy())
        db.audit([_note("identity-rotated")])
    try:
        _ask(home, LookAgain())
    except NoAnswer:
        on_notice("the running coordinator did not answer, and takes the new identity within a second of going on")
    return made.fingerprint.hex(), names


# --- the audit log --------------------------------------------------------------------------------------------------


def audit_entries(home: Home, *, follow: bool = False) -> Iterator[Entry]:
    """The audit log, oldest first; with ``follow`` also what is added, without an end.

    `IdentityError` (``audit-chain``) at an entry that is not what was written.
    """
    from zkc.stores.noting import entries_of  # noqa: PLC0415

    with _opened(home) as (_, db):
        yield from entries_of(db, follow=follow)


def verify_audit(home: Home, noted: bytes | None = None) -> tuple[int, bytes]:
    """Number and hash of the last entry of a chain that is in order, and has the head ``noted`` earlier."""
    with _opened(home) as (_, db):
        return db.verify_audit(noted)


# --- inside --------------------------------------------------------------------------------------------------------


def _note(event: str, recipient: str = "") -> Note:
    """An entry of the audit log, of now."""
    from zkc.crypto.audit import Note  # noqa: PLC0415

    return Note(int(SystemClock().wall() * 1000), event, recipient=recipient)


@contextmanager
def _opened(home: Home) -> Iterator[tuple[CoordinatorIdentity, KeyDb]]:
    """Identity and key database of a home in which a coordinator has run."""
    from zkc.coordinator.identity import load  # noqa: PLC0415 - see above
    from zkc.stores.keydb import KeyDb  # noqa: PLC0415

    identity = load(home.check().data)
    db = KeyDb.open(home.keydb_url(_config(home).coordinator.keydb), identity.mac_key, create=False)
    try:
        yield identity, db
    finally:
        db.close()


def _config(home: Home) -> CoordinatorConfig:
    return load_config("coordinator", home.config_file, os.environ).config
