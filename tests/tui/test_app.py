"""The terminal's face by keys, over real daemons: what is seen, and what is done."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.support.faces import screen, until, write
from tests.support.items import entry, receive
from tests.support.waiting import DEADLINE, wait_until
from zkc.client.principal import note_alarm
from zkc.config import load
from zkc.env import SystemClock
from zkc.errors import IdentityError
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.testing import Fleet
from zkc.ui.tui.app import Face
from zkc.ui.tui.desk import Desk
from zkc.ui.tui.rows import Row
from zkc.ui.tui.run import changes

EVIL = "a\x1b[2J\u202eb[red]c.txt"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob") as running:
        pin = running.folder / "pin"
        pin.write_text("2580")
        pin.chmod(0o600)
        assert running.zkc("bob", "person", "enrol", "--pin-file", str(pin)).code == 0
        yield running


@asynccontextmanager
async def face(fleet: Fleet, name: str, size: tuple[int, int] = (80, 24)) -> AsyncIterator[Pilot[None]]:
    home = fleet.home(name)
    config, clock = load("client", home / "config.toml", {}).config, SystemClock()
    with closing(Desk(str(home), config, clock)) as desk:
        shown = Face(desk, lambda: changes(desk, clock), time.monotonic)
        async with shown.run_test(size=size, notifications=True) as pilot:
            yield pilot


def seen(doing: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(doing(), 2 * DEADLINE))


def empty(fleet: Fleet, name: str = "bob") -> None:
    for item in fleet.zkc(name, "inbox", "--json").events:
        assert fleet.zkc(name, "inbox", "rm", item["id"]).code == 0


@pytest.mark.claims("F3")
@pytest.mark.attack("F07")
def test_what_arrives_is_seen_at_once_and_read_below(fleet: Fleet) -> None:
    async def scene() -> None:
        async with face(fleet, "bob") as pilot:
            await until(pilot, lambda shown: "Nothing has arrived." in shown and "bob at tcp://" in shown)
            sent = await asyncio.to_thread(fleet.zkc, "alice", "send", "bob", "-m", "Hello Bob,\nall is \x1b[31mwell.")
            assert sent.code == 0
            shown = await until(pilot, lambda shown: "│ Hello Bob," in shown)
            assert "Inbox (1" in shown
            assert "│ all is \\x1b[31mwell." in shown
            assert "from:        alice (not verified)" in shown
            sent = await asyncio.to_thread(fleet.zkc, "alice", "send", "bob", "--name", EVIL, stdin=b"x")
            assert sent.code == 0
            await until(pilot, lambda shown: "Inbox (2" in shown)
            assert "│ Hello Bob," in screen(pilot.app), "what is being read stays under the cursor"
            await pilot.press("up")
            shown = await until(pilot, lambda shown: "name:        a\\x1b[2J\\u202eb[red]c.txt" in shown)
            assert "\x1b" not in shown
            assert "\u202e" not in shown

    empty(fleet)
    seen(scene)


def test_who_is_asked_for_a_pin_gives_it_or_refuses_with_a_reason(fleet: Fleet) -> None:
    async def scene() -> None:
        async with face(fleet, "bob") as pilot:
            with fleet.popen("alice", "send", "bob", "-m", "for bob", "--require", "authorised") as process:
                await pilot.press("2")
                shown = await until(pilot, lambda shown: "Pending (1)" in shown)
                assert "your PIN" in shown
                await pilot.press("a")
                await until(pilot, lambda shown: "asks that you prove yourself" in shown)
                await write(pilot, "1111")
                assert "1111" not in screen(pilot.app)
                await pilot.press("enter")
                await until(pilot, lambda shown: "not the PIN" in shown)
                assert process.poll() is None
                await pilot.press("a")
                await until(pilot, lambda shown: "asks that you prove yourself" in shown)
                await write(pilot, "2580")
                await pilot.press("enter")
                assert await asyncio.to_thread(process.wait, DEADLINE) == 0
            await until(pilot, lambda shown: "Nothing waits for a person." in shown)
            # A person who has proved himself lately need not again; ask by policy.
            fleet.configure("bob", {"inbox.accept": "ask"})
            assert (await asyncio.to_thread(fleet.zkc, "bob", "status")).code == 0
            reload(fleet, "bob")
            with fleet.popen("alice", "send", "bob", "-m", "no", "--json", stdout=subprocess.PIPE) as process:
                await until(pilot, lambda shown: "Pending (1)" in shown)
                await pilot.press("x")
                await until(pilot, lambda shown: "Refuse" in shown and "Why?" in shown)
                await write(pilot, "not today")
                await pilot.press("enter")
                out, _ = await asyncio.to_thread(process.communicate, None, DEADLINE)
            assert process.returncode == 24
            assert b"not today" in out
            fleet.configure("bob", {"inbox.accept": "all"})
            reload(fleet, "bob")

    empty(fleet)
    seen(scene)


def reload(fleet: Fleet, name: str) -> None:
    log = fleet.program(name).log
    before = log.read_text().count("configuration-read")
    fleet.program(name).process.send_signal(signal.SIGHUP)
    wait_until(lambda: log.read_text().count("configuration-read") > before)


def test_a_text_and_a_file_are_written_replied_forwarded_and_proved(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_bytes(b"the report")

    async def scene() -> None:
        async with face(fleet, "bob") as pilot:
            await pilot.press("c")
            await until(pilot, lambda shown: "New message or files" in shown)
            await pilot.press("f2")
            await until(pilot, lambda shown: "Whom is it for?" in shown)
            await write(pilot, "alice")
            await pilot.press("tab")
            await write(pilot, str(tmp_path / "no"))
            await pilot.press("f2")
            await until(pilot, lambda shown: "There is no " in shown)
            await pilot.press(*["backspace"] * 2)
            await write(pilot, "report.txt")
            await pilot.press("tab")
            await write(pilot, "as you wished")
            await pilot.press("f2")
            await until(pilot, lambda shown: "report.txt delivered to alice" in shown)
            await pilot.press("3")
            await until(pilot, lambda shown: "report.txt" in shown and "to:          alice" in shown)
            await pilot.press("p")
            await until(pilot, lambda shown: "genuine:     yes, by the key pinned here" in shown)
            await pilot.press("escape")
            assert (await asyncio.to_thread(fleet.zkc, "alice", "send", "bob", "-m", "thank you")).code == 0
            await pilot.press("1")
            await until(pilot, lambda shown: "│ thank you" in shown)
            await pilot.press("r")
            await until(pilot, lambda shown: "New message or files" in shown)
            await write(pilot, "welcome")
            await pilot.press("f2")
            await until(pilot, lambda shown: "message delivered to alice" in shown)
            await pilot.press("f")
            await until(pilot, lambda shown: "Forward thank you to" in shown)
            await write(pilot, "alice")
            await pilot.press("enter")
            await pilot.press("6")
            await until(pilot, lambda shown: shown.count("delivered") >= 3)

    empty(fleet)
    seen(scene)
    items = fleet.zkc("alice", "inbox", "--json").events
    assert [(item["name"], item["note"]) for item in items] == [
        ("report.txt", "as you wished"), ("message", ""), ("message", ""),
    ]
    assert fleet.zkc("alice", "recv", "--name", "report.txt", "-o", "-").out == b"the report"
    assert fleet.zkc("alice", "recv", "-o", "-").out == b"welcome"
    assert fleet.zkc("alice", "recv", "-o", "-").out == b"thank you"


def test_items_are_saved_and_removed_and_jobs_forgotten(fleet: Fleet, tmp_path: Path) -> None:
    async def scene() -> None:
        async with face(fleet, "bob") as pilot:
            await until(pilot, lambda shown: "Inbox (1" in shown)
            await pilot.press("s")
            await until(pilot, lambda shown: "Save data.bin to" in shown)
            await pilot.press(*["backspace"] * 2)
            await write(pilot, str(tmp_path))
            await pilot.press("enter")
            await until(pilot, lambda shown: "saved:" in shown)
            assert (tmp_path / "data.bin").read_bytes() == b"data"
            await pilot.press("d")
            await until(pilot, lambda shown: "Remove data.bin?" in shown)
            await pilot.press("n")
            assert "Inbox (1" in screen(pilot.app)
            await pilot.press("d", "y")
            await until(pilot, lambda shown: "Nothing has arrived." in shown)
            await pilot.press("4")
            await until(pilot, lambda shown: "Queue (1)" in shown and "dave" in shown)
            await pilot.press("t")
            await until(pilot, lambda shown: "it is tried now" in shown)
            await pilot.press("d", "y")
            await until(pilot, lambda shown: "Nothing waits to be sent." in shown)

    empty(fleet)
    assert fleet.zkc("alice", "send", "bob", "--name", "data.bin", stdin=b"data").code == 0
    assert fleet.zkc("bob", "send", "dave", "-m", "to nobody", "--queue").code == 0
    seen(scene)


def test_safety_numbers_are_compared(fleet: Fleet) -> None:
    number = fleet.zkc("alice", "verify", "bob", "--json").events[-1]["safety_number"]

    async def scene() -> None:
        async with face(fleet, "bob") as pilot:
            await pilot.press("5")
            await until(pilot, lambda shown: "name:        alice" in shown)
            await pilot.press("v")
            await until(pilot, lambda shown: number.split()[0] in shown)
            await pilot.press("y")
            await until(pilot, lambda shown: "key:         verified" in shown)

    seen(scene)
    assert fleet.zkc("bob", "verify", "alice", "--json").events[-1]["verified"] is True


def test_a_key_is_verified_only_if_it_is_the_one_that_was_compared(fleet: Fleet) -> None:
    assert fleet.zkc("bob", "verify", "alice").code == 0
    home = fleet.home("bob")
    with closing(Desk(str(home), load("client", home / "config.toml", {}).config, SystemClock())) as desk:
        _, fingerprint = desk.safety("alice")
        with pytest.raises(IdentityError):
            desk.confirm("alice", b"x" * 32)
        note_alarm(desk._store, "alice", b"y" * 32)
        with pytest.raises(IdentityError, match="another key was seen"):
            desk.safety("alice")
        with pytest.raises(IdentityError):
            desk.confirm("alice", fingerprint)
    assert fleet.zkc("bob", "verify", "alice", "--trust", fingerprint.hex()).code == 0


def test_a_large_delivery_is_seen_on_its_way_and_is_ended(fleet: Fleet, tmp_path: Path) -> None:
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(64 << 20)

    async def scene() -> None:
        async with face(fleet, "bob") as pilot:
            with fleet.popen("alice", "send", "bob", str(tmp_path / "large.bin"), "--bwlimit", "2M") as process:
                await pilot.press("6")
                await until(pilot, lambda shown: "←" in shown and "large.bin" in shown and " %" in shown)
                process.terminate()
                await asyncio.to_thread(process.wait, DEADLINE)
            await until(pilot, lambda shown: "interrupted: signal" in shown)

    seen(scene)


@pytest.mark.parametrize("size", [(20, 5), (40, 10), (200, 60)])
def test_it_lives_in_any_terminal(fleet: Fleet, size: tuple[int, int]) -> None:
    async def scene() -> None:
        async with face(fleet, "bob", size) as pilot:
            for key in ("2", "3", "4", "5", "6", "1", "question_mark", "escape", "c", "escape"):
                await pilot.press(key)
            assert screen(pilot.app).count("\n") == size[1] - 1
            await pilot.press("q")

    seen(scene)


def test_a_daemon_that_goes_away_is_told_and_found_again(fleet: Fleet) -> None:
    async def scene() -> None:
        async with face(fleet, "bob") as pilot:
            await until(pilot, lambda shown: "bob at tcp://" in shown)
            await asyncio.to_thread(fleet.program("bob").kill)
            await until(pilot, lambda shown: "no daemon runs here" in shown)
            await pilot.press("2", "4", "1")
            await asyncio.to_thread(fleet.start_daemon, "bob")
            await until(pilot, lambda shown: "bob at tcp://" in shown)

    seen(scene)


def test_ten_thousand_items_are_no_trouble(fleet: Fleet) -> None:
    cells = "1B", "now", "sender", "online"
    empty(fleet)
    many = [Row(f"{number:016x}", ("alice", "·", f"{number}.txt", *cells), ()) for number in range(10_000)]

    async def scene() -> None:
        async with face(fleet, "bob") as pilot:
            shown: Any = pilot.app
            # What its home has is read by then, and comes no more in the place of these.
            await until(pilot, lambda text: "bob at tcp://" in text and "Nothing has arrived." in text)
            shown.call_later(shown._show, "inbox", many)
            await until(pilot, lambda text: "Inbox (10000" in text and "0.txt" in text)
            await pilot.press("ctrl+end")
            await until(pilot, lambda text: "9999.txt" in text)
            await pilot.press("6", "1")
            await until(pilot, lambda text: "9999.txt" in text)

    seen(scene)


@pytest.fixture
def desk() -> Iterator[Desk]:
    """Of a home with one message, whose receipt was harmed."""
    with Fleet("carol") as running:
        home = running.home("carol")
        with closing(Inbox.open(Home.resolve("client", str(home)))) as inbox:
            receive(inbox, what=entry("message", kind="message"))
        config = load("client", home / "config.toml", {}).config
        with closing(Desk(str(home), config, SystemClock())) as opened:
            yield opened


def test_an_item_whose_receipt_was_harmed_is_listed_all_the_same(desk: Desk) -> None:
    (row,) = desk.inbox()
    assert row.cells[2] == "hello"
    assert row.cells[6] == ""


def test_what_is_read_twice_at_once_is_read_twice(desk: Desk) -> None:
    (row,) = desk.inbox()
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: desk.read(row.key), range(200)))
    assert all("│ hello" in text for text in texts)
