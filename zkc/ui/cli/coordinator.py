"""``zkc coordinator``: runs a coordinator, and administers the one of this home."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zkc.errors import DaemonError, LocalIOError, UsageError
from zkc.ui.cli.auditing import audit_options, tell_entries, tell_verified
from zkc.ui.cli.kinds import Duration, offers, word
from zkc.ui.cli.options import Command, Group, Invocation, pass_invocation
from zkc.ui.cli.output import local_time, rfc3339

if TYPE_CHECKING:
    from zkc.stores.home import Home


def coordinator_home(call: Invocation) -> Home:
    """The coordinator's home that is meant; what is odd in the environment is told."""
    import os

    from zkc.config import load
    from zkc.stores.home import Home

    home = Home.resolve("coordinator", call.options.home).check()
    for notice in load("coordinator", home.config_file, os.environ).notices:
        call.out.notice(notice)
    return home


@click.command(
    "run", cls=Command, example=(
        "zkc coordinator run\n"
        "zkc coordinator run --listen tcp://192.0.2.7:7670 --listen tcp://[2001:db8::7]:7670"
    ),
    help="Run a coordinator in the foreground. The first start makes its identity and its key database. Says 'ready' "
    "on stdout, logs on stderr, ends on SIGTERM; SIGHUP reads the configuration again.",
    short_help="Run a coordinator.",
)
@click.option(
    "--listen", multiple=True, metavar="ENDPOINT",
    help="Where clients connect, tcp://HOST:PORT; port 0: the system chooses [tcp://*:7670].",
)
@pass_invocation
def _run(call: Invocation, *, listen: tuple[str, ...]) -> None:
    """``ready`` with ``endpoint`` and ``fingerprint``."""
    import os

    from zkc.coordinator.admin import run
    from zkc.hardening import protect_memory
    from zkc.service import Manager

    manager = Manager.of(os.environ)
    protect_memory()
    options: dict[str, object] = {}
    if listen:
        options["coordinator.listen"] = list(listen)
    if call.options.debug:
        options["log.level"] = "debug"

    def ready(endpoint: str, fingerprint: str) -> None:
        told = {"endpoint": endpoint, "fingerprint": fingerprint}
        call.out.item("ready", told, f"ready {endpoint} {fingerprint}")

    run(coordinator_home(call), options, on_ready=ready, manager=manager)


@click.command(
    "status", cls=Command, example="zkc coordinator status --wait 10s",
    help="Show whether the coordinator of this home is up. Ends with 34 when it is not.",
    short_help="Is it up?",
)
@click.option("--wait", type=Duration(), default=0.0, help="How long to wait for it to be up.")
@pass_invocation
def _status(call: Invocation, *, wait: float) -> None:
    """``status``, one object."""
    from zkc.coordinator.admin import status
    from zkc.net.local_frames import NotRunning

    try:
        found = status(coordinator_home(call), wait)
    except NotRunning:
        raise DaemonError(
            "no coordinator is running here", detail="not-running", hint="start it: zkc coordinator run"
        ) from None
    fields = {
        "endpoint": found.endpoints[0] if found.endpoints else None, "endpoints": found.endpoints,
        "fingerprint": found.fingerprint, "clients": found.clients, "online": found.online, "keydb": found.keydb,
        "suite": found.suite, "metrics": found.metrics or None, "counters": found.counters,
    }
    if call.out.json:
        call.out.event("status", fields)
        return
    lines = {
        "endpoint": ", ".join(found.endpoints), "fingerprint": found.fingerprint,
        "clients": f"{found.clients}, {found.online} online", "keydb": found.keydb, "suite": found.suite,
        "metrics": found.metrics or "off",
    }
    for title, text in lines.items():
        call.out.text(f"{title + ':':<13} {text}")


@click.command(
    "invite", cls=Command, example=(
        "zkc coordinator invite bob > bob.invite\n"
        "zkc coordinator invite anna --kind user --ttl 7d --endpoint tcp://zkc.example.org:7670\n"
        "zkc coordinator invite --list\n"
        "zkc coordinator invite --cancel bob"
    ),
    help="Make a single-use invitation for NAME: one line, a secret, for 'zkc join' there.",
    short_help="Invite a client.",
)
@click.argument("name", required=False)
@click.option(
    "--kind", type=word("computer", "user"), metavar="computer|user", help="What is registered [computer].",
)
@click.option("--ttl", type=Duration(), help="How long it can be used [24h].")
@click.option(
    "--endpoint", multiple=True, metavar="ENDPOINT",
    help="Where this client reaches the coordinator, tcp://HOST:PORT, in place of where it listens.",
)
@click.option("--list", "listing", is_flag=True, help="List the invitations.")
@click.option(
    "--cancel", metavar="NAME", shell_complete=offers("invited"), help="Cancel the open invitations for NAME."
)
@pass_invocation
def _invite(
    call: Invocation, *, name: str | None, kind: Any, ttl: float | None, endpoint: tuple[str, ...], listing: bool,
    cancel: str | None,
) -> None:
    """``invite`` with ``name``, ``invitation``, ``expires``; in the list ``kind`` and ``state``, and no secret."""
    from zkc.coordinator import admin

    if sum((name is not None, listing, cancel is not None)) != 1:
        raise UsageError(
            "coordinator invite: say one of NAME, --list, --cancel NAME", hint="zkc coordinator invite --help"
        )
    if name is None and (kind is not None or ttl is not None or endpoint):
        raise UsageError(
            "coordinator invite: --kind, --ttl and --endpoint go with NAME alone", hint="zkc coordinator invite --help"
        )
    _check_ttl(ttl)
    home = coordinator_home(call)
    if cancel is not None:
        count = admin.cancel(home, cancel)
        call.out.event("cancelled", {"name": cancel, "count": count})
        if not call.out.json:
            call.out.notice(f"cancelled {count} invitation{'s' if count != 1 else ''} for {cancel}")
    elif name is not None:
        made = admin.invite(home, name, kind or "computer", ttl, endpoint)
        told = {"name": made.name, "invitation": made.invitation, "expires": rfc3339(made.expires)}
        call.out.item("invite", told, made.invitation)
    else:
        rows = [
            {"name": each.name, "kind": each.kind, "expires": each.expires, "state": each.state}
            for each in admin.list_invitations(home)
        ]
        if call.out.json:
            rows = [{**row, "expires": rfc3339(float(str(row["expires"])))} for row in rows]
        columns = {"name": "name", "kind": "kind", "expires": "expires", "state": "state"}
        call.out.table("invite", rows, columns, {"expires": local_time})


def _check_ttl(ttl: float | None) -> None:
    """`UsageError` for what `invite.ttl` would not take."""
    from zkc.config.keys import CoordinatorConfig, keys_of

    if ttl is not None:
        reader = keys_of(CoordinatorConfig)["invite.ttl"].reader
        try:
            reader.read(reader.show(ttl))
        except (TypeError, ValueError, UsageError):
            raise UsageError("coordinator invite: --ttl is out of bounds", hint=f"it takes {reader.expects}") from None


@click.command(
    "clients", cls=Command, example="zkc coordinator clients", help="List all registrations, revoked ones too.",
)
@pass_invocation
def _clients(call: Invocation) -> None:
    """``clients``, an object for each."""
    from zkc.coordinator.admin import clients

    as_json = call.out.json
    rows = [
        {
            "name": each.name, "kind": each.kind, "online": each.online, "fingerprint": each.fingerprint,
            "revoked": each.revoked is not None, "reason": each.reason,
            "registered": rfc3339(each.registered) if as_json else each.registered,
            "last_seen": (rfc3339(each.last_seen) if as_json else each.last_seen) if each.last_seen else None,
        }
        for each in clients(coordinator_home(call))
    ]
    columns = {
        "name": "name", "kind": "kind", "online": "online", "last_seen": "last seen", "fingerprint": "fingerprint",
        "revoked": "revoked", "reason": "reason",
    }
    call.out.table("clients", rows, columns, {"last_seen": local_time, "fingerprint": lambda text: text[:16]})


@click.command(
    "revoke", cls=Command, example="zkc coordinator revoke bob --reason 'laptop lost'",
    help="End the registration of NAME and of its applications, at once, open connections too.",
    short_help="End a client's registration.",
)
@click.argument("name", shell_complete=offers("clients"))
@click.option("--reason", metavar="TEXT", default="", help="Why: kept, and told to the client.")
@pass_invocation
def _revoke(call: Invocation, *, name: str, reason: str) -> None:
    """``revoked``, an object for each name that was ended."""
    import os

    from zkc.coordinator.admin import revoke

    reason = os.fsencode(reason).decode(errors="replace")
    for each in revoke(coordinator_home(call), name, reason, on_notice=call.out.notice):
        call.out.event("revoked", {"name": each})
        if not call.out.json:
            call.out.notice(f"revoked {each}")


@click.command(
    "rotate", cls=Command, example="zkc coordinator rotate",
    help="Give the coordinator a new identity, for which the present one vouches. Its clients take it when they are "
    "linked, those that are away when they come back. Open invitations name the former one: make them anew.",
    short_help="Give the coordinator a new identity.",
)
@pass_invocation
def _rotate(call: Invocation) -> None:
    """``rotated`` with ``fingerprint`` and ``invitations``, the names whose open ones are of no use any more."""
    from zkc.coordinator.admin import rotate

    fingerprint, names = rotate(coordinator_home(call), on_notice=call.out.notice)
    call.out.event("rotated", {"fingerprint": fingerprint, "invitations": names})
    if not call.out.json:
        call.out.notice(f"the coordinator's fingerprint is {fingerprint} from now on")
        if names:
            call.out.notice(f"open invitations are of no use any more, make them anew: {', '.join(names)}")


@click.command(
    "audit", cls=Command, example="zkc coordinator audit --follow\nzkc coordinator audit --verify",
    help="Show every decision of this coordinator: who, what, outcome. --verify walks the whole chain and prints its "
    "head; noted elsewhere, a head proves later, with --head, that nothing was cut off. --verify FILE checks evidence "
    "that some coordinator showed two key logs, on any machine.",
    short_help="Show or verify the log of all decisions.",
)
@click.argument("file", required=False, shell_complete=offers("files"))
@audit_options
@pass_invocation
def _audit(call: Invocation, *, file: str | None, follow: bool, verify: bool, head: bytes | None) -> None:
    """``audit``, an object for each entry; with ``--verify`` one ``verified`` with ``seq`` and ``head``."""
    if file is not None:
        if not verify or head is not None:
            raise UsageError("coordinator audit: FILE goes with --verify alone", hint="it is evidence of a key log")
        _check_evidence(call, file)
        return
    from zkc.coordinator import admin

    home = coordinator_home(call)
    if verify:
        tell_verified(call.out, *admin.verify_audit(home, head))
    else:
        tell_entries(call.out, admin.audit_entries(home, follow=follow))


def _check_evidence(call: Invocation, file: str) -> None:
    """``evidence`` with ``coordinator``, ``signers`` and ``size``; needs no home, and nothing but the file."""
    from pathlib import Path

    from zkc.crypto.evidence import EVIDENCE_MAX, check_evidence

    try:
        with Path(file).open("rb") as opened:
            data = opened.read(EVIDENCE_MAX)
    except OSError as error:
        raise LocalIOError(f"cannot read {file}: {error.strerror}", detail="unreadable", hint="is it there?") from None
    proved = check_evidence(data)
    coordinator, signers = proved.coordinator.hex(), [each.hex() for each in proved.signers]
    former = "".join(f", one as {each}, which it was before" for each in signers if each != coordinator)
    call.out.item(
        "evidence", {"coordinator": coordinator, "signers": signers, "size": proved.size},
        f"proved: the coordinator {coordinator} has signed two key logs of {proved.size} entries{former}",
    )


@click.command(
    "backup", cls=Command, example=(
        "zkc coordinator backup /srv/backups/coordinator.tar\n"
        "zkc coordinator backup - | ssh vault 'cat > coordinator.tar'"
    ),
    help="Write everything of this coordinator, at one moment, into FILE ('-': stdout), while it runs or not. FILE has "
    "all its secrets. What is registered, revoked or rotated later is not in it: make one after each such change.",
    short_help="Write the coordinator into a file.",
)
@click.argument("file", shell_complete=offers("files"))
@pass_invocation
def _backup(call: Invocation, *, file: str) -> None:
    """``backup`` with ``fingerprint``, ``clients``, and ``log``: how many entries the key log has."""
    from pathlib import Path

    from zkc.coordinator import backups

    home = coordinator_home(call)
    if file == "-":
        call.out.payload_on_stdout()
        told = backups.write_backup(home, _Stdout(call))
    else:
        told = backups.write_file(home, Path(file))
    call.out.event("backup", {"fingerprint": told.fingerprint, "clients": told.clients, "log": told.log})
    if not call.out.json:
        call.out.notice(f"{told.clients} clients, {told.log} entries of the key log")


class _Stdout:
    """Where a backup is written that goes on to another command."""

    def __init__(self, call: Invocation) -> None:
        self.write = call.out.payload


@click.command(
    "restore", cls=Command, example="zkc coordinator restore coordinator.tar",
    help="Make the coordinator of a backup ('-': stdin) in this home, where none is. Open invitations are cancelled. "
    "What came after the backup has to be done again: who was revoked is registered again. Never run the former one "
    "beside it: docs/operations.md.",
    short_help="Make the coordinator of a backup.",
)
@click.argument("file", shell_complete=offers("files"))
@pass_invocation
def _restore(call: Invocation, *, file: str) -> None:
    """``restored`` with ``fingerprint``, ``clients``, ``log``, ``made``, ``last`` (times of backup and last entry) and
    ``invitations``: names whose open ones are of no use any more."""
    import sys

    from zkc.coordinator import backups

    home = coordinator_home(call)
    if file == "-":
        done = backups.restore(home, sys.stdin.buffer)
    else:
        try:
            opened = open(file, "rb")  # noqa: SIM115 - closed below
        except OSError as error:
            why = f"cannot read {file}: {error.strerror}"
            raise LocalIOError(why, detail="unreadable", hint="is it there?") from None
        with opened:
            done = backups.restore(home, opened)
    told = done.told
    fields = {"fingerprint": told.fingerprint, "clients": told.clients, "log": told.log, "made": rfc3339(told.made)}
    call.out.event(
        "restored", {**fields, "last": rfc3339(told.last) if told.log else None, "invitations": done.cancelled}
    )
    if not call.out.json:
        clients = "1 client" if told.clients == 1 else f"{told.clients} clients"
        call.out.notice(f"restored {told.fingerprint}: {clients}, as of {local_time(told.made)}")
        call.out.notice(
            "what was registered, revoked or rotated since has to be again; clients that know of such refuse "
            "those whom they meet for the first time (12 log-shrunk, log-fork)"
        )
        if done.cancelled:
            call.out.notice(f"open invitations are of no use any more, make them anew: {', '.join(done.cancelled)}")


command = Group(
    "coordinator",
    {
        "run": _run, "status": _status, "invite": _invite, "clients": _clients, "revoke": _revoke, "rotate": _rotate,
        "top": "zkc.ui.cli.coordinator_top", "audit": _audit, "backup": _backup, "restore": _restore,
    },
    default="run", example=(
        "zkc coordinator run\n"
        "zkc coordinator invite bob > bob.invite\n"
        "zkc coordinator clients\n"
        "zkc coordinator revoke bob --reason 'laptop lost'"
    ),
    help="Run a coordinator, and administer the one of this home. Without a subcommand: run.",
    short_help="Run and administer a coordinator.",
)
