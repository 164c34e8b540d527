"""Which step of a transfer's handshake takes how long, and at whom (docs/protocol.md, section 11)."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic_ns
from typing import Final

from scripts.bench import peers, plots, stamps
from scripts.bench.report import table
from scripts.bench.steps import (
    ASKED,
    BY_SENDER,
    DELIVERED,
    OPENED,
    OUTSIDE,
    RECIPIENT_FIRST,
    SENDER_FIRST,
    WAY,
    WHAT,
    Mark,
    Part,
    parts_of,
)
from zkc.client.events import Granted
from zkc.testing import Fleet, Program

OWNERS: Final = {
    "S": ("at S, the sender's daemon", "#56b4e9"),
    "C": ("at C, the coordinator", "#e69f00"),
    "R": ("at R, the recipient's daemon", "#009e73"),
    WAY: ("on the way: channel, sockets, waking up", "#d9d9d9"),
    OUTSIDE: ("outside the handshake", "#ffffff"),
}
_SAID: Final = """\
Transfers of 1 KB, one by one, through a `zkc.Client` that has run for a while; of each part the median of {count}. All
processes are on one machine: the way from one to the next is the channel, two sockets, and that the system wakes it up.
The steps are those of `protocol.md`, X and G of section 11; what a party makes at once of what it got counts for the
step that brought it. Of section 12, step 1 is the connections and the recipient's first Ack, steps 2 to 7 are the data
until the verified receipt."""
_MADE_THERE: Final = {"transfer.key_sources": ["sender", "coordinator"]}


@dataclass(frozen=True)
class Kind:
    """A handshake of its own, and the configuration in which it is had."""

    marks: tuple[Mark, ...]
    coordinator: Mapping[str, object] = field(default_factory=dict)
    client: Mapping[str, object] = field(default_factory=dict)


KINDS: Final = {
    "hybrid, K made by the sender": Kind(BY_SENDER),
    "hybrid, K made by C, recipient first": Kind(
        RECIPIENT_FIRST, _MADE_THERE, {**_MADE_THERE, "transfer.key_source": "coordinator"}
    ),
    "hybrid, K made by C, sender first": Kind(
        SENDER_FIRST, _MADE_THERE,
        {**_MADE_THERE, "transfer.key_source": "coordinator", "transfer.key_order": "sender-first"},
    ),
    "x25519, K made by the sender": Kind(BY_SENDER, {"coordinator.suite": "x25519"}),
    "rsa, K made by the sender": Kind(BY_SENDER, {"coordinator.suite": "rsa"}),
}
"""The first is the default."""


def run(rounds: int, *, quick: bool) -> str:
    count = rounds * (2 if quick else 20)
    found = {name: _measured(kind, count) for name, kind in KINDS.items()}
    figure = plots.bars(
        "Where the time of a transfer of 1 KB goes", found, OWNERS, "milliseconds since the call of zkc.Client"
    )
    return "\n\n".join([
        "## The share of each step in a handshake",
        _SAID.format(count=count),
        plots.save(
            figure, "handshake", "A bar for each kind of handshake: how long each step takes at the sender, at the "
            "coordinator, at the recipient, and on the way", quick=quick,
        ),
        table(
            ["milliseconds", ASKED, "handshake", OPENED, DELIVERED, "whole transfer"],
            [_whole(name, parts) for name, parts in found.items()],
        ),
        *(_steps(name, found[name]) for name in list(KINDS)[:3]),
    ])


# --- measured ---------------------------------------------------------------------------------------------------------


class _Stamped(Fleet):
    """Its processes leave stamps."""

    @property
    def stamps(self) -> Path:
        return self.folder / "stamps"

    def environment(self, name: str) -> dict[str, str]:
        return super().environment(name) | stamps.environment(self.stamps)

    def start_coordinator(self) -> Program:
        self.stamps.mkdir(exist_ok=True)
        return super().start_coordinator()


def _measured(kind: Kind, count: int) -> list[Part]:
    """The median of each part, in milliseconds."""
    times: list[tuple[int, int, int]] = []
    with peers.memory_folder() as folder, _Stamped(
        "alice", "bob", folder=folder / "fleet", coordinator=kind.coordinator, client=kind.client
    ) as fleet:
        alice, payload = fleet.client("alice"), os.urandom(1024)
        for _ in range(count + 3):
            opened: list[int] = []

            def on_event(event: object, opened: list[int] = opened) -> None:
                if isinstance(event, Granted):
                    opened.append(monotonic_ns())

            began = monotonic_ns()
            alice.send("bob", payload, on_event=on_event)
            times.append((began, opened[0], monotonic_ns()))
        noted = stamps.read(fleet.stamps)
    each = [
        parts_of(kind.marks, [stamp for stamp in noted if began <= stamp.began < ended], began, opened, ended)
        for began, opened, ended in times[3:]
    ]
    return [
        Part(same[0].step, same[0].owner, statistics.median(part.length for part in same) / 1e6)
        for same in zip(*each, strict=True)
    ]


# --- told -------------------------------------------------------------------------------------------------------------


def _whole(name: str, parts: Sequence[Part]) -> list[str]:
    outside = {part.step: part.length for part in parts if part.owner == OUTSIDE}
    whole = sum(part.length for part in parts)
    handshake = whole - sum(outside.values())
    return [name, *(f"{time:.2f}" for time in (outside[ASKED], handshake, outside[OPENED], outside[DELIVERED], whole))]


def _steps(name: str, parts: Sequence[Part]) -> str:
    """How long each step takes at each party, and on the way."""
    inside = [part for part in parts if part.owner != OUTSIDE]
    whole = sum(part.length for part in inside)
    owners = ("S", "C", "R", WAY)
    rows = [_row(step, *WHAT[step], [part for part in inside if part.step == step], owners, whole)
            for step in dict.fromkeys(part.step for part in inside)]
    rows.append(_row("all", "", "", inside, owners, whole))
    head = ["step", "", "", *(f"{owner}, ms" for owner in ("at S", "at C", "at R", "on the way")), "share"]
    return f"### {name[0].upper()}{name[1:]}\n\n{table(head, rows)}"


def _row(
    step: str, way: str, what: str, parts: Sequence[Part], owners: Sequence[str], whole: float
) -> list[str]:
    by_owner = {owner: sum(part.length for part in parts if part.owner == owner) for owner in owners}
    figures = [f"{by_owner[owner]:.2f}" if by_owner[owner] else "" for owner in owners]
    return [step, way, what, *figures, f"{sum(by_owner.values()) / whole:.0%}"]
