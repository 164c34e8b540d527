"""The list of transfers: what this face has begun, what the daemon tells of, and what of it stays."""

from __future__ import annotations

from typing import Any

from zkc.client.call import Call
from zkc.client.events import Pending
from zkc.client.events import Progress as Sent
from zkc.client.happenings import Begun, Ended, Progress
from zkc.ui.tui.flows import SHOWN, Flows


def begun(id: str = "x", direction: Any = "in", **changes: Any) -> Begun:
    fields = {"sender": "bob", "recipient": "alice", "name": "film", "total": 100, "resumed_from": 0, "live": False}
    return Begun(transfer=id, direction=direction, **(fields | changes))


def cells(flows: Flows, now: float = 0.0) -> list[tuple[Any, ...]]:
    return [row.cells for row in flows.rows(now)]


def test_what_the_daemon_tells_is_listed_the_newest_first() -> None:
    flows = Flows()
    flows.hear(begun("x"), 10.0)
    flows.hear(begun("y", "out", recipient="carol", name="song"), 10.0)
    flows.hear(Progress("x", 50, 100), 12.0)
    assert cells(flows, 12.0) == [
        ("→", "carol", "song", "0 %", "", "sending"), ("←", "bob", "film", "50 %", "25B/s", "receiving"),
    ]
    flows.hear(Ended("x", "in", "bob", "alice", "film", None, 31, "interrupted", "link"), 13.0)
    assert cells(flows, 13.0)[1] == ("←", "bob", "film", "50 %", "", "interrupted: link")


def test_what_was_there_before_does_not_count_as_fast() -> None:
    flows = Flows()
    flows.hear(begun(resumed_from=90), 0.0)
    flows.hear(Progress("x", 92, 100), 2.0)
    assert cells(flows, 2.0)[0][3:5] == ("92 %", "1B/s")


def test_what_was_begun_here_is_listed_once() -> None:
    flows, call = Flows(), Call()
    own = flows.begin("carol", "film", call)
    flows.hear(begun("y", "out", sender="alice", recipient="carol"), 0.0)
    assert len(cells(flows)) == 1
    own.hear(Pending("carol"), 0.0)
    assert own.state == "a person is asked"
    own.hear(Sent(10, 100, ""), 1.0)
    own.hear(Sent(30, 100, ""), 3.0)
    assert cells(flows, 3.0) == [("→", "carol", "film", "30 %", "10B/s", "sending")]
    own.end("delivered", 100)
    assert cells(flows, 3.0) == [("→", "carol", "film", "100 %", "", "delivered")]
    assert list(flows.own()) == [own]


def test_without_its_daemon_only_what_was_begun_here_flows() -> None:
    flows = Flows()
    own = flows.begin("carol", "song", Call())
    flows.hear(begun(), 0.0)
    flows.nobody_tells()
    assert [each.over for each in flows.all.values()] == [False, True]
    assert own.state == "asking"


def test_of_those_that_are_over_the_oldest_go() -> None:
    flows = Flows()
    flows.hear(begun("stays"), 0.0)
    for number in range(SHOWN + 5):
        flows.hear(begun(f"n{number}"), 0.0)
        flows.all[f"n{number}"].end("delivered")
    assert len(flows.all) <= SHOWN + 1
    assert "stays" in flows.all
    assert "n0" not in flows.all
