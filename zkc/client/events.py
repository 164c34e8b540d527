"""How a delivery is asked for, and what is told of it while it is under way and at its end.

Imports little, and its values are named tuples, which start sooner than dataclasses: a small `zkc send` needs these and
hardly anything else (decision 0007).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from zkc.ids import KeySource, Presence


class Options(NamedTuple):
    """How to send. Durations in seconds; None: not given. Goes over the control socket in this order."""

    wait: float | None = None
    timeout: float | None = None
    key_source: KeySource | None = None
    cipher: str | None = None
    dry_run: bool = False
    key: str | None = None
    """The same key never delivers twice to the same recipient."""
    resume: bool = True
    """Go on where an earlier command was cut off, if it sent the same file."""
    bwlimit: float = 0.0
    """Bytes a second; 0: none."""
    compress: bool = False
    require: Presence = "online"
    """What must hold of the recipient, at least."""


class Requested(NamedTuple):
    recipient: str
    name: str
    size: int | None


class Pending(NamedTuple):
    """The recipient asks a person first."""

    recipient: str


class Granted(NamedTuple):
    recipient: str
    key_source: KeySource
    presence: str
    path: str
    resumed_from: int
    """Bytes that the recipient had already."""


class Progress(NamedTuple):
    bytes: int
    total: int | None
    entry: str = ""
    """Of several files: at which of them it is."""
    entry_bytes: int = 0
    entry_total: int = 0


class Delivery(NamedTuple):
    """Delivered: the recipient holds it durably, and signed that it does."""

    transfer: str
    recipient: str
    name: str
    bytes: int
    digest: str
    seconds: float
    receipt: Path
    key_source: KeySource
    path: str
    cipher: str


class Place(NamedTuple):
    """Where a recipient listens."""

    data: str
    data_problem: str
    """Why that port cannot be reached; empty: it can."""
    acks: str
    """Acknowledgements have a port of their own."""
    acks_problem: str
    relay: str
    """The client that serves as relay there; empty: it is the recipient's own."""


class WouldAccept(NamedTuple):
    """Answer to a dry run."""

    presence: str
    asks: bool = False
    """A person there would be asked."""
    places: tuple[Place, ...] = ()
    """Where the recipient listens; empty: not looked at, or the recipient comes to the sender."""


Event = Requested | Pending | Granted | Progress
