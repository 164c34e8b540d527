"""What commands have handed over, in the daemon: told as it goes, ended with the command."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tests.support.env import FixedClock
from tests.support.waiting import DEADLINE, until
from zkc.client.bus import EventBus
from zkc.client.control import Job
from zkc.client.events import Options, Progress, Requested
from zkc.client.grants import Grant, Wanted
from zkc.client.handed import PROGRESS_SECONDS, Handed, _Talk
from zkc.client.small import GIVEN_BACK, Notice, OnDisk, Small, Told, Waiting
from zkc.constants import HANDED_FILES_MAX
from zkc.env import SystemClock, SystemEntropy
from zkc.errors import DaemonError, PolicyRefused, RecipientOffline, UsageError
from zkc.net import local_frames
from zkc.stores.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.resolve("client", str(tmp_path)).prepare()


def job(home: Home, **changes: object) -> Job:
    fields = {
        "recipient": "bob", "small": Small("message", "message", b"hi"), "file": None, "name": None, "note": "",
        "options": Options(), "config_file": str(home.config_file), "variables": {},
    }
    return Job(**(fields | changes))  # type: ignore[arg-type]


async def offline(_wanted: Wanted, _within: float | None, _listen: object, _on_pending: object) -> Grant:
    raise RecipientOffline("bob is offline", detail="offline")


class Never:
    """A grant that nobody gives."""

    def __init__(self) -> None:
        self.asked = 0
        self.cancelled = 0

    async def __call__(self, _wanted: Wanted, _within: float | None, _listen: object, _on_pending: object) -> Grant:
        self.asked += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1
        raise AssertionError


def senders() -> int:
    return sum(thread.name.startswith("zkc-send") for thread in threading.enumerate())


async def all_of(handed: Handed, wanted: Job) -> list[Told]:
    async with contextlib.aclosing(handed.send(wanted)) as events:
        return [event async for event in events]


def test_a_failure_comes_after_what_was_told(home: Home) -> None:
    async def scene() -> None:
        handed = Handed(home, offline, SystemClock(), SystemEntropy(), EventBus(SystemClock()))
        events: list[Told] = []

        async def hear() -> None:
            async for event in handed.send(job(home, variables={"ZKC_ODD": "x"})):
                events.append(event)  # noqa: PERF401 - it ends with an error, and they are wanted

        with pytest.raises(RecipientOffline):
            await hear()
        assert [type(event) for event in events] == [Notice, Requested]
        handed.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": "../x"}, UsageError), ({"note": "x" * 5000}, UsageError), ({"recipient": "Bob"}, UsageError),
        ({"variables": {"ZKC_TRANSFER_CIPHER": "rot13"}}, UsageError),
        ({"options": Options(cipher="3des")}, PolicyRefused),
    ],
)  # fmt: skip
def test_a_job_that_is_wrong_is_refused_and_nobody_is_asked(
    home: Home, changes: dict[str, object], error: type[Exception]
) -> None:
    async def scene() -> None:
        never = Never()
        handed = Handed(home, never, SystemClock(), SystemEntropy(), EventBus(SystemClock()))
        with pytest.raises(error):
            await all_of(handed, job(home, **changes))
        assert never.asked == 0
        handed.close()

    asyncio.run(scene())


@pytest.mark.parametrize("there", ["another file", "a link to it", "nothing", "a folder"])
def test_a_file_that_the_daemon_does_not_see_is_given_back(home: Home, tmp_path: Path, there: str) -> None:
    file, at = tmp_path / "file", tmp_path / "at"
    file.write_bytes(b"x")
    match there:
        case "another file":
            at.write_bytes(b"x")
        case "a link to it":
            at.symlink_to(file)
        case "a folder":
            at.mkdir()
    status = file.stat()

    async def scene() -> None:
        never = Never()
        handed = Handed(home, never, SystemClock(), SystemEntropy(), EventBus(SystemClock()))
        with pytest.raises(DaemonError) as caught:
            await all_of(handed, job(home, small=None, file=OnDisk("x", str(at), status.st_dev, status.st_ino)))
        assert caught.value.detail == "not-here"
        assert caught.value.detail in GIVEN_BACK
        assert never.asked == 0
        handed.close()

    asyncio.run(scene())


def test_more_files_than_there_are_places_are_given_back_until_one_has_ended(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    status = (tmp_path / "file").stat()
    file = OnDisk("x", str(tmp_path / "file"), status.st_dev, status.st_ino)

    async def scene() -> None:
        handed = Handed(home, Never(), SystemClock(), SystemEntropy(), EventBus(SystemClock()))

        def begin() -> AsyncGenerator[Told, None]:
            return handed.send(job(home, small=None, file=file, options=Options(wait=3600.0)))

        under_way = [begin() for _ in range(HANDED_FILES_MAX)]
        for each in under_way:
            assert isinstance(await anext(each), Requested)
        with pytest.raises(DaemonError) as caught:
            await anext(begin())
        assert caught.value.detail == "too-many-files"
        assert caught.value.detail in GIVEN_BACK
        await under_way.pop().aclose()
        await until(lambda: handed._files < HANDED_FILES_MAX)
        last = begin()
        assert isinstance(await anext(last), Requested)
        for each in (last, *under_way):
            await each.aclose()
        handed.close()

    asyncio.run(scene())


def test_of_progress_a_command_hears_now_and_then(home: Home) -> None:
    async def scene() -> None:
        clock = FixedClock()
        talk = _Talk(clock)
        heard: list[Told] = []

        async def hear() -> None:
            async for event in talk.events():
                heard.append(event)  # noqa: PERF401 - it is read while it grows

        hearing = asyncio.ensure_future(hear())
        for position in range(10):
            await asyncio.to_thread(talk.tell, Progress(position, 10, ""))
        clock.advance(PROGRESS_SECONDS)
        await asyncio.to_thread(talk.tell, Progress(10, 10, ""))
        talk.over()
        await hearing
        assert heard == [Progress(0, 10, ""), Progress(10, 10, "")]

    asyncio.run(scene())


@pytest.mark.attack("L07")
def test_a_command_that_hangs_up_ends_its_delivery(home: Home) -> None:
    """Whatever it waits for: the grant is given up, its thread ends, and what it says last reaches nobody."""

    async def scene() -> None:
        never = Never()
        handed = Handed(home, never, SystemClock(), SystemEntropy(), EventBus(SystemClock()))
        events = handed.send(job(home, options=Options(wait=3600.0)))
        assert isinstance(await anext(events), Requested)
        waiting = asyncio.ensure_future(anext(events))
        await until(lambda: never.asked)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await events.aclose()
        await until(lambda: never.cancelled)
        handed.close()
        await until(lambda: not senders())

    asyncio.run(scene())


def test_a_thread_hears_at_once_that_its_command_hung_up(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when somebody collects what nobody refers to any more."""
    talks: list[Any] = []
    real = _Talk.events

    def events_of(talk: _Talk) -> Any:
        talks.append(real(talk))
        return talks[-1]

    monkeypatch.setattr(_Talk, "events", events_of)

    async def scene() -> None:
        handed = Handed(home, Never(), SystemClock(), SystemEntropy(), EventBus(SystemClock()))
        events = handed.send(job(home))
        assert isinstance(await anext(events), Requested)
        await events.aclose()
        assert talks[0].ag_frame is None
        handed.close()
        await until(lambda: not senders())

    asyncio.run(scene())


def test_one_that_waits_between_two_tries_is_ended_too(home: Home) -> None:
    async def scene() -> None:
        tries: list[Wanted] = []

        async def nobody(wanted: Wanted, within: float | None, _listen: object, _on_pending: object) -> Grant:
            tries.append(wanted)
            return await offline(wanted, within, None, None)

        handed = Handed(home, nobody, SystemClock(), SystemEntropy(), EventBus(SystemClock()))
        events = handed.send(job(home, options=Options(wait=3600.0)))
        assert isinstance(await anext(events), Requested)
        await events.aclose()
        handed.close()
        await until(lambda: not senders())
        assert len({wanted.tid for wanted in tries}) <= 1

    asyncio.run(scene())


def test_a_daemon_that_waits_says_that_it_lives(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkc.client.handed.ALIVE_SECONDS", 0.01)
    assert local_frames.ALIVE_SECONDS < local_frames.ANSWER_SECONDS / 2

    async def scene() -> None:
        handed = Handed(home, Never(), SystemClock(), SystemEntropy(), EventBus(SystemClock()))
        async with asyncio.timeout(DEADLINE), contextlib.aclosing(handed.send(job(home))) as events:
            seen = [type(await anext(events)) for _ in range(3)]
        assert seen == [Requested, Waiting, Waiting]
        handed.close()

    asyncio.run(scene())


def test_no_event_is_passed_over_and_the_thread_goes_on_once_it_was_told(home: Home) -> None:
    """So the grant is on its way to the command before the first byte is on its way to the recipient."""

    async def scene() -> None:
        asked = asyncio.Event()

        async def grant(wanted: Wanted, within: float | None, listen: object, on_pending: object) -> Grant:
            asked.set()
            return await offline(wanted, within, listen, on_pending)

        handed = Handed(home, grant, SystemClock(), SystemEntropy(), EventBus(SystemClock()))
        events = handed.send(job(home))
        assert isinstance(await anext(events), Requested)
        # Told, and not yet asked for the next: whoever serves has not sent it.
        assert not asked.is_set()
        with pytest.raises(RecipientOffline):
            await anext(events)
        assert asked.is_set()
        handed.close()

    asyncio.run(scene())


