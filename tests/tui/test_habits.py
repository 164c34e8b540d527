"""What a person who knows mail programs and pagers expects of the face, over a home in which nothing moves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from queue import SimpleQueue
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable

from tests.support import waiting
from tests.support.faces import screen, until, write
from tests.support.items import NOW
from tests.support.still import StillDesk, begun, item, still_face
from tests.support.waiting import DEADLINE
from zkc.client.call import Call
from zkc.client.happenings import Progress
from zkc.errors import PeerViolation, UnknownRecipient
from zkc.ui.tui.app import Change

LONG = "\n".join(f"line {number}" for number in range(100))


class BusyDesk(StillDesk):
    """Sends to nobody, has lost its receipts, and has more to tell when it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self._more: SimpleQueue[Change | None] = SimpleQueue()
        self.held = threading.Event()
        self.held.set()

    def tell(self, change: Change | None) -> None:
        self._more.put(change)

    def transfers(self) -> Iterator[Change]:
        yield from super().transfers()
        yield from iter(self._more.get, None)

    def hang_up(self) -> None:
        super().hang_up()
        self.tell(None)

    def receipt(self, path: str) -> str:
        raise PeerViolation("malformed", "it was harmed")

    def send(self, call: Call, recipient: str, *_what: Any, **_more: Any) -> Any:
        assert self.held.wait(DEADLINE)
        raise UnknownRecipient(f"there is no {recipient}", detail="unknown", hint="who is there?")


def seen(doing: Callable[[Pilot[None], BusyDesk], Coroutine[Any, Any, None]]) -> None:
    async def play() -> None:
        desk = BusyDesk()
        async with still_face(desk).run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda shown: "Inbox (3" in shown and "│ Hi Bob," in shown and desk.told)
            await doing(pilot, desk)

    asyncio.run(asyncio.wait_for(play(), 2 * DEADLINE))


def test_letters_move_as_arrows_do_and_enter_reads() -> None:
    async def scene(pilot: Pilot[None], _desk: BusyDesk) -> None:
        await pilot.press("j")
        await until(pilot, lambda shown: "name:        minutes.pdf" in shown)
        await pilot.press("G")
        await until(pilot, lambda shown: "from:        lab-3" in shown)
        await pilot.press("g")
        await until(pilot, lambda shown: "│ Hi Bob," in shown)
        await pilot.press("j", "k", "enter")
        await until(pilot, lambda shown: "Inbox: alice" in shown and "│ Alice" in shown)
        await pilot.press("q")
        await until(pilot, lambda shown: "Inbox: alice" not in shown)
        await pilot.press("5", "enter")
        await until(pilot, lambda shown: "Peers: alice" in shown)

    seen(scene)


def test_a_word_is_found_and_found_again() -> None:
    async def scene(pilot: Pilot[None], _desk: BusyDesk) -> None:
        await pilot.press("slash")
        await write(pilot, "ONLINE")
        await pilot.press("enter")
        await until(pilot, lambda shown: "from:        carol" in shown)
        await pilot.press("n")
        await until(pilot, lambda shown: "from:        lab-3" in shown)
        await pilot.press("n")
        await until(pilot, lambda shown: "from:        carol" in shown)
        await pilot.press("4", "n")
        await until(pilot, lambda shown: "No line has ONLINE." in shown)

    seen(scene)


def test_what_arrives_meanwhile_does_not_move_what_is_read() -> None:
    async def scene(pilot: Pilot[None], desk: BusyDesk) -> None:
        desk.letters[0] = desk.letters[0][0], LONG
        await pilot.press("f5")
        await until(pilot, lambda shown: "│ line 0" in shown)
        await pilot.press("tab", "space")
        await until(pilot, lambda shown: "│ line 0" not in shown)
        where = screen(pilot.app).split("\n")[-9:]
        desk.letters.insert(0, (item("z9", "carol", "new.txt", received=NOW), ""))
        await pilot.press("f5")
        shown = await until(pilot, lambda shown: "Inbox (4" in shown)
        assert shown.split("\n")[-9:] == where

    seen(scene)


def test_what_was_written_and_not_sent_comes_back() -> None:
    async def scene(pilot: Pilot[None], _desk: BusyDesk) -> None:
        await pilot.press("r")
        await write(pilot, "thank you")
        await pilot.press("escape", "r")
        await until(pilot, lambda shown: "New message" in shown and "thank you" not in shown)
        await pilot.press("escape", "c")
        await until(pilot, lambda shown: "thank you" in shown)
        await write(pilot, " all")
        await until(pilot, lambda shown: "thank you all" in shown)
        await pilot.press("f2")
        await until(pilot, lambda shown: "there is no alice" in shown and "c brings back what you wrote" in shown)
        await pilot.press("c")
        await until(pilot, lambda shown: "New message" in shown and "thank you" in shown)

    seen(scene)


def test_a_transfer_that_is_over_goes_from_the_list_and_one_without_its_daemon_is_over() -> None:
    async def scene(pilot: Pilot[None], desk: BusyDesk) -> None:
        await pilot.press("6")
        await until(pilot, lambda shown: "draft.pdf" in shown)
        await pilot.press("g", "d")
        await until(pilot, lambda shown: "draft.pdf" not in shown)
        await pilot.press("G", "d")
        await until(pilot, lambda shown: "Only what was begun here" in shown)
        desk.tell(Change(gone=True))
        # Two lines, and the pane.
        await until(pilot, lambda shown: shown.count("not known: the daemon has gone") == 3)
        await pilot.press("d")
        await until(pilot, lambda shown: "spectra.h5" not in shown)

    seen(scene)


def test_the_rate_leaves_out_what_was_there_before() -> None:
    async def scene(pilot: Pilot[None], desk: BusyDesk) -> None:
        await pilot.press("6")
        desk.tell(Change(flow=begun("x9", "in", "lab-3", "again.h5", 100 << 20, resumed_from=50 << 20)))
        await until(pilot, lambda shown: "again.h5" in shown)
        desk.clock.now += 10
        desk.tell(Change(flow=Progress("x9", 60 << 20, 100 << 20)))
        await until(pilot, lambda shown: "60 %" in shown and "1.0M/s" in shown)

    seen(scene)


@pytest.mark.parametrize("keys", [("c",), ("slash",), ("f",)])
def test_letters_are_letters_where_one_writes(keys: tuple[str, ...]) -> None:
    async def scene(pilot: Pilot[None], _desk: BusyDesk) -> None:
        await pilot.press(*keys)
        await write(pilot, "jq/n1")
        await until(pilot, lambda shown: "jq/n1" in shown)

    seen(scene)


def test_the_line_under_the_cursor_is_known_without_colour() -> None:
    async def scene(pilot: Pilot[None], _desk: BusyDesk) -> None:
        style = pilot.app.screen.query_one("#inbox-table", DataTable).get_component_rich_style("datatable--cursor")
        assert style.reverse

    seen(scene)


def test_who_quits_is_asked_where_something_would_be_lost() -> None:
    async def scene(pilot: Pilot[None], desk: BusyDesk) -> None:
        desk.held.clear()
        await pilot.press("r")
        await write(pilot, "wait")
        await pilot.press("f2", "6")
        await until(pilot, lambda shown: "state:       asking" in shown)
        await pilot.press("1", "q")
        await until(pilot, lambda shown: "1 transfer under way" in shown)
        await pilot.press("n", "r")
        await write(pilot, "more")
        desk.held.set()
        await until(pilot, lambda shown: "there is no alice" in shown)
        await pilot.press("escape", "q")
        await until(pilot, lambda shown: "What you wrote was not sent" in shown)
        await pilot.press("y")
        await waiting.until(lambda: pilot.app._exit)

    seen(scene)


def test_a_harmed_receipt_is_told_of_and_ends_nothing() -> None:
    async def scene(pilot: Pilot[None], _desk: BusyDesk) -> None:
        await pilot.press("3")
        await until(pilot, lambda shown: "thesis.tar.gz" in shown)
        await pilot.press("p")
        await until(pilot, lambda shown: "malformed: it was harmed" in shown)
        await pilot.press("1")
        await until(pilot, lambda shown: "│ Hi Bob," in shown)

    seen(scene)
