"""``zkc person``: the PIN with which the person at this client proves that he may receive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from zkc.errors import NotAuthorised, UsageError
from zkc.ui.cli.options import Command, Group, Invocation, pass_invocation

if TYPE_CHECKING:
    from zkc.client.person import PersonHere
    from zkc.stores.noting import Notes


def _person(call: Invocation) -> tuple[PersonHere, Notes]:
    """And where it is noted what becomes of his PIN."""
    from zkc.client.command_audit import CommandAudit
    from zkc.client.person import PersonHere
    from zkc.env import SystemClock, SystemEntropy
    from zkc.ui.cli.homes import client_config, client_home, open_store

    home = client_home(call)
    config = client_config(call, home)
    open_store(home).close()
    clock = SystemClock()
    return PersonHere(home.data, lambda: config, clock, SystemEntropy()), CommandAudit(home, config, clock)


@click.command("status", cls=Command, example="zkc person status", help="Whether a PIN is enrolled here.")
@pass_invocation
def _status(call: Invocation) -> None:
    """``person`` with ``enrolled``."""
    enrolled = _person(call)[0].enrolled
    call.out.event("person", {"enrolled": enrolled})
    if not call.out.json:
        call.out.text(f"a PIN is {'' if enrolled else 'not '}enrolled here")


@click.command(
    "enrol", cls=Command, example="zkc person enrol",
    help="Enrol a PIN, of 4 characters or more; whoever changes one gives the old one first.",
    short_help="Enrol or change the PIN.",
)
@click.option("--pin-file", metavar="FILE", help="The new PIN is the first line of FILE; '-': stdin [ZKC_PIN].")
@click.option("--old-pin-file", metavar="FILE", help="The old PIN, where one is enrolled.")
@pass_invocation
def _enrol(call: Invocation, *, pin_file: str | None, old_pin_file: str | None) -> None:
    """``person`` with ``enrolled``."""
    from zkc.ui.cli.pins import ask_pin, given_pin

    person, notes = _person(call)
    old = _old(call, person, old_pin_file)
    pin = given_pin(pin_file)
    if pin is None:
        if not call.out.may_prompt:
            raise UsageError("person enrol: there is no PIN", hint="give it with --pin-file FILE, or in ZKC_PIN")
        pin = ask_pin("New PIN", twice=True)
    with _noted(notes, "pin-enrolled"):
        person.enrol(pin, old=old)
    call.out.event("person", {"enrolled": True})
    if not call.out.json:
        call.out.notice("the PIN is enrolled")


@click.command("remove", cls=Command, example="zkc person remove", help="Remove the PIN, which is given once more.")
@click.option("--pin-file", metavar="FILE", help="The PIN is the first line of FILE; '-': stdin [ZKC_PIN].")
@pass_invocation
def _remove(call: Invocation, *, pin_file: str | None) -> None:
    """``person`` with ``enrolled``."""
    from zkc.ui.cli.pins import given_pin

    person, notes = _person(call)
    old = given_pin(pin_file) or _old(call, person, None)
    with _noted(notes, "pin-removed"):
        person.remove(old)
    call.out.event("person", {"enrolled": False})
    if not call.out.json:
        call.out.notice("no PIN is enrolled here any more")


@contextmanager
def _noted(notes: Notes, event: str) -> Iterator[None]:
    """Also where it is refused."""
    try:
        yield
    except NotAuthorised as error:
        notes.note(event, code=error.code, detail=error.detail)
        raise
    notes.note(event)


def _old(call: Invocation, person: PersonHere, file: str | None) -> str | None:
    from zkc.ui.cli.pins import ask_pin, given_pin

    if not person.enrolled:
        return None
    if file is not None:
        return given_pin(file)
    return ask_pin("Present PIN") if call.out.may_prompt else None


command = Group(
    "person", {"status": _status, "enrol": _enrol, "remove": _remove}, default="status", example="zkc person enrol",
    help="The PIN of the person at this client. Without a subcommand: status.",
    short_help="The PIN of the person here.",
)
