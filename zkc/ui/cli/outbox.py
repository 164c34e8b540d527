"""``zkc outbox``: jobs of ``zkc send --queue`` that wait for their delivery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from zkc.errors import UsageError
from zkc.ui.cli.kinds import offers
from zkc.ui.cli.options import Command, Group, Invocation, pass_invocation
from zkc.ui.cli.output import local_time, rfc3339

if TYPE_CHECKING:
    from zkc.client.events import Options
    from zkc.stores.outbox import Job, Outbox
    from zkc.ui.cli.send import What


def put(
    call: Invocation, recipients: Sequence[str], what: What, options: Options, *, copy: bool, expires: float | None,
    waits: bool,
) -> None:
    """``send --queue``: a job for each recipient; ``queued`` with the keys of ``outbox``."""
    from zkc.client.queueing import enqueue, poke
    from zkc.env import SystemClock, SystemEntropy
    from zkc.ids import check_name
    from zkc.ui.cli.homes import client_config, client_home, open_store

    if waits or options.wait is not None or options.timeout is not None or not options.resume:
        raise UsageError(
            "send: with --queue there is no --wait, --timeout, --receipt, --no-resume and --dry-run",
            hint="it returns at once; --expires bounds how long it is tried",
        )
    home = client_home(call)
    open_store(home).close()
    config = client_config(call, home)
    jobs = enqueue(
        home, config, [check_name(name, "recipient") for name in recipients], what.payload, what.name, what.note,
        what.exclude, options, SystemClock(), SystemEntropy(), copy=copy, expires=expires,
    )
    runs = poke(home)
    for job in jobs:
        call.out.event("queued", _row(job))
        if not call.out.json:
            call.out.notice(f"queued for {job.recipient}: job {job.id}")
    if runs is None:
        call.out.notice("no daemon runs here: it is sent once one does (zkc daemon)")


@click.command("list", cls=Command, example="zkc outbox", help="List the jobs, oldest first.")
@pass_invocation
def _list(call: Invocation) -> None:
    """``outbox``, an object for each; ``code``, ``detail`` and ``why`` of what its last try ended with; ``sent``:
    bytes, while it is being sent."""
    from zkc.client.queueing import poke
    from zkc.ui.cli.homes import client_home

    jobs = _outbox(call).jobs()
    is_sent = any(job.state == "sending" for job in jobs)
    sent = (poke(client_home(call)) if is_sent else None) or {}
    rows = [{**_row(job), "sent": sent.get(job.id)} for job in jobs]
    if not call.out.json:
        for job, row in zip(jobs, rows, strict=True):
            row["next"] = local_time(job.next) if job.next else ""
            row["expires"] = local_time(job.expires)
    columns = {
        "id": "id", "state": "state", "to": "to", "name": "name", "bytes": "bytes", "sent": "sent",
        "tries": "tries", "next": "next try", "expires": "expires", "why": "why",
    }
    call.out.table("outbox", rows, columns, cut=("name", "why"))


@click.command(
    "cancel", cls=Command, example="zkc outbox cancel 3f9a",
    help="Forget the job ID; if it is being sent, that ends. A copy of its bytes is erased.",
    short_help="Forget a job.",
)
@click.argument("id", shell_complete=offers("jobs"))
@pass_invocation
def _cancel(call: Invocation, *, id: str) -> None:
    """``cancelled`` with the keys of ``outbox``."""
    outbox = _outbox(call)
    job = outbox.find(id)
    outbox.remove(job.id)
    _told(call, "cancelled", job)


@click.command(
    "retry", cls=Command, example="zkc outbox retry 3f9a",
    help="Try the job ID now, also one that has failed; one that has expired gets as long again.",
    short_help="Try a job again, now.",
)
@click.argument("id", shell_complete=offers("jobs"))
@pass_invocation
def _retry(call: Invocation, *, id: str) -> None:
    """``retried`` with the keys of ``outbox``."""
    from zkc.env import SystemClock

    outbox = _outbox(call)
    job = outbox.retry(outbox.find(id).id, SystemClock().wall())
    if job is None:
        raise UsageError(f"no job {id!r} is in the outbox", detail="unknown-id", hint="it was delivered meanwhile")
    _told(call, "retried", job)


def _outbox(call: Invocation) -> Outbox:
    from zkc.stores.outbox import Outbox
    from zkc.ui.cli.homes import client_config, client_home, open_store

    home = client_home(call)
    client_config(call, home)
    open_store(home).close()
    return Outbox(home)


def _told(call: Invocation, event: str, job: Job) -> None:
    from zkc.client.queueing import poke
    from zkc.ui.cli.homes import client_home

    poke(client_home(call))
    call.out.event(event, _row(job))
    if not call.out.json:
        call.out.notice(f"{event} job {job.id} for {job.recipient}")


def _row(job: Job) -> dict[str, Any]:
    return {
        "id": job.id, "state": job.state, "to": job.recipient, "name": job.name, "bytes": job.bytes,
        "tries": job.tries, "next": rfc3339(job.next) if job.next else None, "expires": rfc3339(job.expires),
        "require": job.require, "copy": job.spool is not None, "code": job.code, "detail": job.detail, "why": job.why,
    }


command = Group(
    "outbox", {"list": _list, "cancel": _cancel, "retry": _retry}, default="list",
    example="zkc outbox\nzkc outbox retry 3f9a\nzkc outbox cancel 3f9a",
    help="Jobs of zkc send --queue, which the daemon delivers. Without a subcommand: list.",
    short_help="What waits to be sent.",
)
