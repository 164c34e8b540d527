"""A link goes on trying, whatever happened to it, and says what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tests.support.waiting import DEADLINE, until
from zkc.client import link as module
from zkc.client.link import Link
from zkc.env import SystemClock, SystemEntropy
from zkc.errors import CoordinatorUnreachable, LocalIOError, NotRegistered, VersionMismatch, ZkcError
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Answer, Heartbeat, Leave, Ok, Record, Request, Revoked


class Line:
    """`zkc.client.line.Line` as a script."""

    made = 0
    broken: Exception | None = None
    """Raised by each attempt to make one."""
    greetings: ClassVar[list[Exception | None]] = [None]
    """What becomes of the next ones; the last stays."""
    old = False

    silent = False
    """Nothing is answered any more."""

    def __init__(
        self, _ctx: object, _principal: object, endpoint: str, _info: object, on_plaintext: Callable[[bytes], None],
        **_: object,
    ) -> None:
        Line.made += 1
        if Line.broken is not None:
            raise Line.broken
        self.endpoint = endpoint
        self._on_plaintext = on_plaintext
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        await self.renew()

    async def renew(self) -> None:
        outcome = Line.greetings.pop(0) if len(Line.greetings) > 1 else Line.greetings[0]
        if outcome is not None:
            raise outcome

    def is_old(self) -> bool:
        return Line.old

    def send(self, plaintext: bytes) -> None:
        """Heartbeats are answered, other requests never."""
        record = decode(plaintext, Record)
        if isinstance(record, Request) and isinstance(record.body, Heartbeat) and not Line.silent:
            asyncio.get_running_loop().call_soon(self._on_plaintext, encode(Answer(record.id, Ok())))

    def close(self) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Line, "made", 0)
    monkeypatch.setattr(Line, "broken", None)
    monkeypatch.setattr(Line, "greetings", [None])
    monkeypatch.setattr(Line, "old", False)
    monkeypatch.setattr(Line, "silent", False)
    monkeypatch.setattr(module, "Line", Line)
    for name in ("HEARTBEAT_SECONDS", "BACKOFF_FIRST", "BACKOFF_MAX", "_TICK_SECONDS"):
        monkeypatch.setattr(module, name, 0.001)


def link_of(**options: Any) -> Link:
    principal: Any = SimpleNamespace(
        registration=SimpleNamespace(endpoints=("tcp://127.0.0.1:1",)), name="bob",
        card=SimpleNamespace(body=SimpleNamespace(epoch=1)),
    )
    context: Any = None
    return Link(
        context, principal, "daemon", clock=SystemClock(), entropy=SystemEntropy(), handler=_nobody, **options
    )


async def _nobody(_: object) -> Any:
    raise AssertionError("nobody asks")


def reports() -> list[BaseException]:
    """What the loop's exception handler is told from now on."""
    told: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["exception"]))
    return told


@pytest.mark.parametrize(
    ("error", "code", "defect"),
    [(RuntimeError("no sockets"), 1, True), (LocalIOError("no descriptors", detail="descriptors"), 33, False)],
)
def test_a_round_that_fails_in_any_way_is_told_and_the_next_one_comes(
    error: Exception, code: int, defect: bool
) -> None:
    problems: list[ZkcError] = []

    async def scenario() -> None:
        told = reports()
        Line.broken = error
        link = link_of(on_problem=problems.append)
        link.start()
        with pytest.raises(ZkcError) as caught:
            await link.wait_linked(DEADLINE)
        assert (caught.value.code, str(error) in str(caught.value)) == (code, True)
        await until(lambda: Line.made > 5)
        assert link.problem is not None
        assert (link.problem.code, [each.code for each in problems]) == (code, [code]), "told once"
        assert bool(told) == defect
        await link.close()

    asyncio.run(scenario())


def test_who_wants_the_link_does_not_wait_for_the_end_of_a_long_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BACKOFF_FIRST", 10 * DEADLINE), ("BACKOFF_MAX", 10 * DEADLINE), ("_REST_SECONDS", 0.001)):
        monkeypatch.setattr(module, name, seconds)

    async def scenario() -> None:
        Line.broken = CoordinatorUnreachable("no", detail="refused")
        link = link_of()
        link.start()
        for tries in (1, 2):
            await until(lambda tries=tries: Line.made == tries)  # type: ignore[misc]
            with pytest.raises(CoordinatorUnreachable):
                await link.wait_linked(DEADLINE)
        Line.broken = None
        await link.wait_linked(DEADLINE)
        assert link.linked
        await link.close()

    asyncio.run(scenario())


def test_each_kind_of_failure_is_told_once_until_there_is_a_link_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two addresses that fail in two ways do not fill the log in turns."""
    told: list[tuple[str, str]] = []
    link: Link

    class Turns(Line):
        def __init__(self, *words: Any, **more: Any) -> None:
            if Line.broken is not None:
                Line.broken = CoordinatorUnreachable("no", detail="refused" if Line.made % 2 else "timeout")
            super().__init__(*words, **more)

    monkeypatch.setattr(module, "Line", Turns)

    def lost(linked: bool) -> None:
        if not linked:
            assert link.problem is not None
            told.append(("lost", link.problem.detail))

    async def scenario() -> None:
        nonlocal link
        Line.broken = CoordinatorUnreachable("no", detail="refused")
        link = link_of(on_problem=lambda error: told.append(("no link", error.detail)), on_state=lost)
        link.start()
        await until(lambda: Line.made > 20)
        assert sorted(told) == [("no link", "refused"), ("no link", "timeout")]
        Line.broken = None
        await until(lambda: link.linked)
        Line.broken = CoordinatorUnreachable("no", detail="refused")
        assert link._line is not None
        link._line.close()
        await until(lambda: len(told) >= 5)
        assert told[2] == ("lost", "lost")
        assert sorted(told[3:]) == [("no link", "refused"), ("no link", "timeout")]
        await link.close()

    asyncio.run(scenario())


def test_a_link_whose_registration_was_ended_answers_at_once_and_closes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its coordinator answers nothing any more, a goodbye neither."""
    monkeypatch.setattr(module, "GOODBYE_SECONDS", 10 * DEADLINE)

    async def scenario() -> None:
        link = link_of()
        link.start()
        await link.wait_linked(DEADLINE)
        waiting = asyncio.create_task(link.request(Leave(), 10 * DEADLINE))
        await until(lambda: link._waiting)
        await link._handle(Revoked("lost"))
        assert link._line is not None
        link._line.close()
        async with asyncio.timeout(DEADLINE):
            for asked in (waiting, link.request(Leave(), 10 * DEADLINE)):
                with pytest.raises(NotRegistered, match=r"revoked \(lost\)"):
                    await asked
            await link.close()

    asyncio.run(scenario())


def test_a_coordinator_that_no_longer_speaks_our_version_is_the_problem_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the renewal of a channel: the daemon was linked, and stays up."""
    monkeypatch.setattr(Line, "old", True)
    monkeypatch.setattr(Line, "greetings", [None, VersionMismatch("another version", detail="version")])

    async def scenario() -> None:
        states: list[bool] = []
        link = link_of(on_state=states.append)
        link.start()
        await until(lambda: states == [True, False])
        await until(lambda: Line.made > 3)
        assert isinstance(link.problem, VersionMismatch)
        with pytest.raises(VersionMismatch):
            await link.wait_linked(DEADLINE)
        Line.greetings = [None]
        await until(lambda: link.linked)
        await link.close()

    asyncio.run(scenario())


def test_a_daemon_is_linked_only_once_the_coordinator_has_answered_its_first_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before that the coordinator does not count it as online, and who was told of the link would be wrong."""
    monkeypatch.setattr(module, "DIAL_SECONDS", 0.05)

    async def scenario() -> None:
        states: list[bool] = []
        Line.silent = True
        link = link_of(on_state=states.append)
        link.start()
        with pytest.raises(CoordinatorUnreachable):
            await link.wait_linked(DEADLINE)
        await until(lambda: Line.made > 2)
        assert (link.linked, states) == (False, [])
        Line.silent = False
        await until(lambda: states == [True])
        await link.close()

    asyncio.run(scenario())


def test_a_connection_that_is_lost_before_the_first_answer_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIAL_SECONDS", 10 * DEADLINE)

    async def scenario() -> None:
        Line.silent = True
        link = link_of()
        link.start()
        await until(lambda: link._waiting)
        Line.silent = False
        assert link._line is not None
        link._line.close()
        await until(lambda: link.linked)
        assert Line.made == 2
        await link.close()

    asyncio.run(scenario())


def test_a_silent_renewal_of_the_channel_does_not_end_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    silence = CoordinatorUnreachable("no answer", detail="no-answer")
    monkeypatch.setattr(Line, "old", True)
    monkeypatch.setattr(Line, "greetings", [None, silence, silence, silence])

    async def scenario() -> None:
        link = link_of()
        link.start()
        await until(lambda: len(Line.greetings) == 1)
        assert (link.linked, Line.made) == (True, 1)
        await link.close()

    asyncio.run(scenario())


def test_what_an_answer_or_a_tick_raises_is_reported_once_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        told = reports()
        link = link_of()

        async def fail() -> None:
            raise RuntimeError("an answer")

        link._spawn(fail())
        await until(lambda: told)
        assert [str(error) for error in told] == ["an answer"]
        ticks: list[int] = []

        def tick() -> None:
            ticks.append(1)
            raise RuntimeError("a tick")

        monkeypatch.setattr(link, "_tick", tick)
        Line.broken = CoordinatorUnreachable("no", detail="refused")
        link.start()
        await until(lambda: len(ticks) > 2)
        assert {str(error) for error in told} >= {"an answer", "a tick"}
        await link.close()

    asyncio.run(scenario())
