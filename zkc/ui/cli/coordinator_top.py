"""``zkc coordinator top``: how busy the coordinator of this home is, second by second."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import click

from zkc.errors import DaemonError, UsageError
from zkc.ui.cli.kinds import Duration
from zkc.ui.cli.options import Command, Invocation, pass_invocation
from zkc.ui.cli.output import Out

if TYPE_CHECKING:
    from rich.console import RenderableType

    from zkc.coordinator.control import Load

_DONE: Final = "done"
_EVERY_MAX: Final = 3600.0
_COLUMNS: Final = {
    "online": "online", "clients": "clients", "connections": "connections", "handshakes_per_second": "handshakes/s",
    "handshakes_open": "open", "refused_per_second": "refused/s", "messages_per_second": "messages/s",
}
"""Of a line, where no screen is drawn: key and title."""


@dataclass(frozen=True)
class Pace:
    """What went on between two looks at a coordinator; rates are of that time."""

    before: Load
    now: Load

    def rate(self, before: float, now: float) -> float:
        seconds = self.now.at - self.before.at
        return round(max(now - before, 0) / seconds, 1) if seconds > 0 else 0.0

    @property
    def refused(self) -> dict[str, int]:
        """Handshakes that ended otherwise than with a key, by reason, since the coordinator's start; most first."""
        return _sorted({reason: count for reason, count in self.now.handshakes.items() if reason != _DONE})

    def refused_rate(self, reason: str) -> float:
        return self.rate(self.before.handshakes.get(reason, 0), self.now.handshakes.get(reason, 0))

    @property
    def told(self) -> dict[str, object]:
        """The object of ``--json``."""
        before, now = self.before, self.now
        refused = (
            sum(count for reason, count in load.handshakes.items() if reason != _DONE) for load in (before, now)
        )
        return {
            "uptime": round(now.uptime, 1), "clients": now.clients, "online": now.online,
            "connections": now.connections, "registrations": now.registrations,
            "registrations_open": now.registrations_open, "handshakes": now.handshakes.get(_DONE, 0),
            "handshakes_open": now.handshakes_open, "handshakes_per_second": self.refused_rate(_DONE),
            "refused": self.refused, "refused_per_second": self.rate(*refused), "policy": _sorted(now.policy),
            "messages_per_second": self.rate(before.messages, now.messages),
        }


@click.command(
    "top", cls=Command, example="zkc coordinator top",
    help="Show how busy the coordinator of this home is, second by second: clients online, connections, handshakes of "
    "transfers a second, what was refused and why. Ctrl-C ends it. With --json, or where stdout is no terminal, an "
    "object or a line each time.",
    short_help="Show how busy it is, live.",
)
@click.option("--every", type=Duration(), default=1.0, metavar="DUR", help="The time from one to the next [1s].")
@click.option("--once", is_flag=True, help="End after the first, which tells of the first such time.")
@pass_invocation
def command(call: Invocation, *, every: float, once: bool) -> None:
    """``top``, one object each time."""
    from zkc.coordinator.admin import loads
    from zkc.net.local_frames import NotRunning
    from zkc.ui.cli.coordinator import coordinator_home
    from zkc.ui.cli.signals import Signals

    if not 1 <= every <= _EVERY_MAX:
        raise UsageError("coordinator top: --every is out of bounds", hint="it takes 1s to 1h")
    with Signals():
        found = loads(coordinator_home(call), every)
        try:
            if call.out.has_screen and not once:
                _draw(call.out, found)
            else:
                _tell(call.out, pairs_of(found), once=once)
        except NotRunning:
            raise DaemonError(
                "no coordinator is running here", detail="not-running", hint="start it: zkc coordinator run"
            ) from None


def pairs_of(found: Iterable[Load]) -> Iterator[Pace]:
    return (Pace(before, now) for before, now in pairwise(found))


def _tell(out: Out, paces: Iterable[Pace], *, once: bool) -> None:
    """An object, or a line below its title, for each."""
    for number, pace in enumerate(paces):
        if not number and not out.json:
            out.text("  ".join(title.upper() for title in _COLUMNS.values()))
        told = pace.told
        cells = (str(told[key]).rjust(len(title)) for key, title in _COLUMNS.items())
        reasons = " ".join(f"{reason}={count}" for reason, count in pace.refused.items())
        out.item("top", told, "  ".join((*cells, reasons)).rstrip())
        if once:
            return


def _draw(out: Out, found: Iterator[Load]) -> None:
    from rich.console import Console
    from rich.live import Live

    first = next(found)
    console = Console(file=out.stdout, highlight=False)
    # No refresh thread: the screen changes when something is told, and a signal finds one thread.
    live = Live(
        screen(Pace(first, first)), console=console, screen=True, auto_refresh=False, redirect_stdout=False,
        redirect_stderr=False,
    )
    # Not as a context manager: a signal that comes while the first is drawn would leave the terminal as it is.
    try:
        live.start(refresh=True)
        for load in found:
            live.update(screen(Pace(first, load)), refresh=True)
            first = load
    finally:
        live.stop()


def screen(pace: Pace) -> RenderableType:
    """All that there is to see, a line each; as narrow as it can be."""
    from rich.console import Group as Lines
    from rich.table import Table
    from rich.text import Text

    from zkc.ui.cli.progress import show_left

    now, told = pace.now, pace.told
    head = Table.grid(padding=(0, 2))
    lines = {
        "up": show_left(now.uptime),
        "clients": f"{now.online:,} of {now.clients:,} online, {now.connections:,} connections",
        "handshakes": f"{told['handshakes_per_second']}/s, {now.handshakes_open:,} open, "
        f"{now.handshakes.get(_DONE, 0):,} done",
        "registrations": f"{now.registrations_open:,} open, {now.registrations:,} done",
        "messages": f"{told['messages_per_second']}/s",
        "refused": f"{told['refused_per_second']}/s",
    }
    for title, text in lines.items():
        head.add_row(Text(title, style="bold"), Text(text))
    table = Table.grid(padding=(0, 2))
    for reason, count in pace.refused.items():
        table.add_row(Text(f"  {reason}"), Text(f"{pace.refused_rate(reason)}/s"), Text(f"{count:,}"))
        if reason == "policy":
            for detail, times in _sorted(now.policy).items():
                table.add_row(Text(f"    {detail}", style="dim"), "", Text(f"{times:,}", style="dim"))
    return Lines(head, table)


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    """Most first."""
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))
