"""``zkc person``: the PIN, or the one-time codes, with which the person at this client proves that he may receive."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from zkc.errors import NotAuthorised, UsageError
from zkc.ui.cli.kinds import offers
from zkc.ui.cli.options import Command, Group, Invocation, pass_invocation

if TYPE_CHECKING:
    from zkc.client.person import PersonHere
    from zkc.stores.noting import Notes


def _person(call: Invocation) -> tuple[PersonHere, Notes]:
    """And where it is noted how he proves himself."""
    from zkc.client.command_audit import CommandAudit
    from zkc.client.person import PersonHere
    from zkc.env import SystemClock, SystemEntropy
    from zkc.ui.cli.homes import client_config, client_home, open_store

    home = client_home(call)
    config = client_config(call, home)
    open_store(home).close()
    clock = SystemClock()
    return PersonHere(home.data, lambda: config, clock, SystemEntropy()), CommandAudit(home, config, clock)


@click.command("status", cls=Command, example="zkc person status", help="What is enrolled here.")
@pass_invocation
def _status(call: Invocation) -> None:
    """``person`` with ``enrolled`` and ``proof``: pin, totp or null."""
    enrolled = _person(call)[0].enrolled
    call.out.event("person", {"enrolled": bool(enrolled), "proof": enrolled or None})
    if not call.out.json:
        what = {"pin": "a PIN is", "totp": "one-time codes are", "": "nothing is"}[enrolled]
        call.out.text(f"{what} enrolled here")


@click.command(
    "enrol", cls=Command, example=(
        "zkc person enrol\n"
        "zkc person enrol --totp\n"
        "zkc person enrol --pin-file new.txt --old-pin-file old.txt"
    ),
    help="Enrol a PIN, of 4 characters or more, or one-time codes by an authenticator app (TOTP). Whoever changes them "
    "gives the old PIN, or a code, first.",
    short_help="Enrol or change the PIN, or one-time codes.",
)
@click.option("--totp", "by_code", is_flag=True, help="One-time codes: a QR code for the app is shown once.")
@click.option(
    "--pin-file", metavar="FILE", shell_complete=offers("files"),
    help="The new PIN is the first line of FILE; '-': stdin [ZKC_PIN].",
)
@click.option(
    "--old-pin-file", metavar="FILE", shell_complete=offers("files"), help="The old PIN, where one is enrolled."
)
@pass_invocation
def _enrol(call: Invocation, *, by_code: bool, pin_file: str | None, old_pin_file: str | None) -> None:
    """``person`` with ``enrolled`` and ``proof``; for codes with ``uri``, the secret that the app takes."""
    from zkc.ui.cli.pins import ask_pin, given_pin

    person, notes = _person(call)
    if by_code and pin_file is not None:
        raise UsageError("person enrol: --totp and --pin-file exclude each other")
    old = _old(call, person, old_pin_file)
    if by_code:
        with _noted(notes, "proof-enrolled"):
            _enrol_codes(call, person, old)
        return
    pin = given_pin(pin_file)
    if pin is None:
        if not call.out.may_prompt:
            raise UsageError("person enrol: there is no PIN", hint="give it with --pin-file FILE, or in ZKC_PIN")
        pin = ask_pin("New PIN", twice=True)
    with _noted(notes, "proof-enrolled"):
        person.enrol(pin, old=old)
    call.out.event("person", {"enrolled": True, "proof": "pin"})
    if not call.out.json:
        call.out.notice("the PIN is enrolled")


@click.command(
    "remove", cls=Command, example="zkc person remove", help="Remove what is enrolled; it is given once more."
)
@click.option(
    "--pin-file", metavar="FILE", shell_complete=offers("files"),
    help="The PIN or code is the first line of FILE; '-': stdin [ZKC_PIN].",
)
@pass_invocation
def _remove(call: Invocation, *, pin_file: str | None) -> None:
    """``person`` with ``enrolled``."""
    from zkc.ui.cli.pins import given_pin

    person, notes = _person(call)
    old = given_pin(pin_file) or _old(call, person, None)
    with _noted(notes, "proof-removed"):
        person.remove(old)
    call.out.event("person", {"enrolled": False, "proof": None})
    if not call.out.json:
        call.out.notice("nothing is enrolled here any more")


def _enrol_codes(call: Invocation, person: PersonHere, old: str | None) -> None:
    """The secret goes to stdout, once; where somebody can be asked, a code shows that his app has it."""
    from zkc.crypto.totp import uri
    from zkc.ui.cli.pins import ask_pin

    secret = person.new_secret()
    text = uri(secret, _name(call))
    if not call.out.may_prompt:
        person.enrol_totp(secret, code=None, old=old)
        call.out.event("person", {"enrolled": True, "proof": "totp", "uri": text})
        if not call.out.json:
            call.out.text(text)
        return
    call.out.text(f"{_picture(text)}\n{text}")
    person.enrol_totp(secret, code=ask_pin("A code of the app"), old=old)
    call.out.notice("one-time codes are enrolled")


def _picture(text: str) -> str:
    """A QR code of half blocks."""
    import segno

    out = io.StringIO()
    segno.make(text, error="m").terminal(out, compact=True)
    return out.getvalue().rstrip("\n")


def _name(call: Invocation) -> str:
    from zkc.client.principal import load_main
    from zkc.ui.cli.homes import client_home, open_store

    with open_store(client_home(call)) as store:
        return load_main(store).name


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
    return ask_pin("Present PIN, or a code") if call.out.may_prompt else None


command = Group(
    "person", {"status": _status, "enrol": _enrol, "remove": _remove}, default="status",
    example="zkc person\nzkc person enrol",
    help="The PIN, or the one-time codes (TOTP), of the person at this client. Without a subcommand: status.",
    short_help="The PIN or one-time codes of the person here.",
)
