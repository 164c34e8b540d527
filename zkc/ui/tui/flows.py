"""The transfers that the face lists: those that it has begun, and those that the daemon tells of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from zkc.client.call import Call
from zkc.client.events import Event, Granted, Pending, Requested
from zkc.client.events import Progress as Sent
from zkc.client.happenings import Begun, Ended, Progress
from zkc.rules.names import escape
from zkc.rules.units import show_size
from zkc.ui.tui.rows import PEER, Row, cut

SHOWN: Final = 200
"""Of those that are over the oldest go first."""


@dataclass
class Transfer:
    """One delivery: begun here, or told of by the daemon."""

    peer: str
    name: str
    call: Call | None = None
    """Of one that was begun here: how to end it."""
    sign: str = "→"
    done: int = 0
    total: int | None = None
    state: str = "asking"
    began: float | None = None
    """When its bytes began to flow, and how many were there before; None: not yet."""
    before: int = 0
    over: bool = False

    def hear(self, event: Event, now: float) -> None:
        """What its sending here tells, at ``now`` of a monotonic clock, seconds."""
        match event:
            case Sent():
                if self.began is None:
                    self.began, self.before = now, event.bytes
                self.done, self.total, self.state = event.bytes, event.total, "sending"
            case Pending():
                self.state = "a person is asked"
            case Granted():
                self.state = "sending"
            case Requested():
                pass

    def end(self, state: str, done: int | None = None) -> None:
        """It is over; ``done``: bytes, None: as many as were told of."""
        self.over, self.state, self.done = True, state, self.done if done is None else done

    @property
    def how_far(self) -> str:
        return show_size(self.done) if not self.total else f"{self.done * 100 // self.total} %"

    def rate(self, now: float) -> str:
        """While it flows."""
        moved = self.done - self.before
        if self.over or self.began is None or moved <= 0 or now <= self.began:
            return ""
        return f"{show_size(moved / (now - self.began))}/s"


class Flows:
    """All of them by key, the newest last."""

    def __init__(self) -> None:
        self.all: Final[dict[str, Transfer]] = {}
        self._numbers = itertools.count(1)

    def begin(self, peer: str, name: str, call: Call) -> Transfer:
        """One that the face begins."""
        transfer = self.all[f"t{next(self._numbers)}"] = Transfer(peer, escape(name), call)
        return transfer

    def hear(self, what: Begun | Progress | Ended, now: float) -> None:
        """The daemon tells of a transfer; of one that was begun here this face knows more."""
        known = self.all.get(what.transfer)
        match what:
            case Begun():
                inward = what.direction == "in"
                peer, name = escape(what.sender if inward else what.recipient), escape(what.name or "(a stream)")
                if not inward and any((own.peer, own.name, own.over) == (peer, name, False) for own in self.own()):
                    return
                self.all[what.transfer] = Transfer(
                    peer, name, None, "←" if inward else "→", what.resumed_from, what.total,
                    "receiving" if inward else "sending", now, what.resumed_from,
                )
                over = [key for key, each in self.all.items() if each.over]
                for key in over[: max(len(self.all) - SHOWN, 0)]:
                    self.forget(key)
            case Progress() if known is not None:
                known.done, known.total = what.bytes, what.total
            case Ended() if known is not None:
                state = "delivered" if what.code == 0 else ": ".join(filter(None, (what.reason, what.detail)))
                known.end(state, what.bytes)

    def nobody_tells(self) -> None:
        """The daemon has gone."""
        for each in self.all.values():
            if each.call is None and not each.over:
                each.end("not known: the daemon has gone")

    def forget(self, key: str) -> None:
        """One that is over."""
        del self.all[key]

    def rows(self, now: float) -> list[Row]:
        """The newest first."""
        rows = []
        for key, each in reversed(self.all.items()):
            state = escape(each.state)
            cells = each.sign, cut(each.peer, PEER), cut(each.name), each.how_far, each.rate(now), cut(state, 40)
            whose = "from" if each.sign == "←" else "to"
            detail = ((whose, each.peer), ("name", each.name), ("done", each.how_far), ("state", state))
            rows.append(Row(key, cells, detail, each.peer))
        return rows

    def own(self) -> Iterable[Transfer]:
        """Those that the face has begun."""
        return (each for each in self.all.values() if each.call is not None)
