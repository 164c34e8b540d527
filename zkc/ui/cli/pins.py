"""Where a PIN comes from: a file, standard input, the environment, a person at the terminal. Never an argument."""

from __future__ import annotations

import os
import sys

import click

from zkc.errors import LocalIOError, UsageError

_LINE_MAX = 4096


def given_pin(file: str | None) -> str | None:
    """What ``--pin-file`` or ``ZKC_PIN`` give; None: nothing."""
    if file is None:
        return os.environ.get("ZKC_PIN") or None
    try:
        if file == "-":
            text = sys.stdin.buffer.readline(_LINE_MAX)
        else:
            with open(file, "rb") as opened:
                text = opened.readline(_LINE_MAX)
    except OSError as error:
        raise LocalIOError(f"cannot read the PIN from {file}: {error.strerror}", detail="unreadable") from None
    pin = text.decode(errors="surrogateescape").rstrip("\r\n")
    if not pin:
        raise UsageError("the PIN is empty", detail="bad-pin", hint="its file holds it on the first line")
    return pin


def ask_pin(what: str, *, twice: bool = False) -> str:
    """From a terminal that may be asked."""
    return str(click.prompt(what, hide_input=True, confirmation_prompt=twice, err=True))
