"""The passphrase of a home's keys, from a file, systemd or a person; never an argument, never printed."""

from __future__ import annotations

import click

from zkc.errors import UsageError
from zkc.ui.cli.output import Out


def passphrase(out: Out | None = None) -> bytes:
    """The one that there is. `LocalIOError` (``locked``) where there is nobody to ask. ``out``: of the command, where a
    thread asks that is not the command's own."""
    from zkc.client import passphrase as sources
    from zkc.ui.cli.options import current_out

    found = sources.given()
    if found is None and (out or current_out()).may_prompt:
        found = str(click.prompt("Passphrase", hide_input=True, err=True)).encode()
    return sources.passphrase() if found is None else found


def new_passphrase(out: Out, *, changed: bool = False) -> bytes:
    """A new one: asked for twice, or where nobody sits there from where the present one comes. ``changed``: there is
    one already, so that it has to be asked for."""
    from zkc.client import passphrase as sources

    found = None if changed else sources.given()
    if found is None:
        if not out.may_prompt:
            raise UsageError(
                "there is no new passphrase", hint="run it on a terminal"
                + ("" if changed else ", or name a file in ZKC_PASSPHRASE_FILE"),
            )
        found = str(click.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True)).encode()
    if not found:
        raise UsageError("the passphrase is empty", hint="zkc rotate --no-passphrase takes it away")
    return found
