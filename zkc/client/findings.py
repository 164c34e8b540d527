"""What `zkc.client.doctor` finds at a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from zkc.errors import ZkcError

State = Literal["ok", "note", "wrong", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What was found at one step. ``note``: in order, and worth to know; ``skipped``: one before it failed."""

    step: str
    state: State
    what: str
    hint: str = ""
    error: ZkcError | None = None
    """Of what is wrong."""


@dataclass(frozen=True)
class Note:
    """In order, but."""

    what: str
    hint: str = ""


Look = Callable[[], str | Note]
"""What is in order; every `ZkcError` is what is wrong."""


def looked(step: str, look: Look) -> Finding:
    """What ``look`` finds."""
    try:
        found = look()
    except ZkcError as error:
        return Finding(step, "wrong", error.message, error.hint, error)
    return Finding(step, "ok", found) if isinstance(found, str) else Finding(step, "note", found.what, found.hint)


def skipped(step: str) -> Finding:
    return Finding(step, "skipped", "not tried")
