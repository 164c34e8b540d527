"""A link goes on trying, whatever happened to it, and says what is wrong."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from tests.support.coordinator import RunningCoordinator, coordinator_in
from tests.support.proxy import TcpProxy
from tests.support.waiting import DEADLINE, until
from zkc.client import dial, line
from zkc.client import link as module
from zkc.client.join import join
from zkc.client.link import Link
from zkc.client.principal import Principal, load_main
from zkc.config import ClientConfig
from zkc.env import SystemClock, SystemEntropy
from zkc.errors import CoordinatorUnreachable, LocalIOError, NotRegistered, VersionMismatch, ZkcError
from zkc.net import sockets
from zkc.net.sockets import context, split_endpoint
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Answer, Heartbeat, Leave, Ok, Record, Request, Revoked

NUMBERS = itertools.count(1)


class Script:
    """What becomes of the lines that a link makes, where no coordinator and no network would do that when asked to."""

    def __init__(self) -> None:
        self.made = 0
        self.broken: Exception | None = None
        """Raised by each attempt to make one."""
        self.greetings: list[Exception | None] = [None]
        """What becomes of the next ones; the last stays."""
        self.old = False
        self.silent = False
        """Nothing is answered any more."""

    def __call__(
        self, _ctx: object, _principal: object, endpoint: str, _info: object, on_plaintext: Callable[[bytes], None],
        **_: object,
    ) -> ScriptedLine:
        self.made += 1
        if self.broken is not None:
            raise self.broken
        return ScriptedLine(self, endpoint, on_plaintext)


class ScriptedLine:
    """A `zkc.client.line.Line` that does as its script says."""

    def __init__(self, script: Script, endpoint: str, on_plaintext: Callable[[bytes], None]) -> None:
        self.endpoint = endpoint
        self.coordinator = b"the one that is pinned"
        self._script = script
        self._on_plaintext = on_plaintext
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, _turn: asyncio.Lock) -> None:
        await self.renew()

    async def renew(self) -> None:
        greetings = self._script.greetings
        outcome = greetings.pop(0) if len(greetings) > 1 else greetings[0]
        if outcome is not None:
            raise outcome

    def is_old(self) -> bool:
        return self._script.old

    def send(self, plaintext: bytes) -> None:
        """Heartbeats are answered, other requests never."""
        record = decode(plaintext, Record)
        if isinstance(record, Request) and isinstance(record.body, Heartbeat) and not self._script.silent:
            asyncio.get_running_loop().call_soon(self._on_plaintext, encode(Answer(record.id, Ok())))

    def close(self) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, no_pauses: None) -> Script:
    made = Script()
    monkeypatch.setattr(module, "Line", made)
    for name in ("HEARTBEAT_SECONDS", "_TICK_SECONDS"):
        monkeypatch.setattr(module, name, 0.001)
    return made


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BACKOFF_FIRST", "BACKOFF_MAX"):
        monkeypatch.setattr(module, name, 0.001)


UNCHANGED: Any = SimpleNamespace(reloaded=lambda principal: principal)
"""A key store that nobody else writes to."""


def link_of(**options: Any) -> Link:
    principal: Any = SimpleNamespace(
        registration=SimpleNamespace(endpoints=("tcp://127.0.0.1:1",)), name="bob",
        card=SimpleNamespace(body=SimpleNamespace(epoch=1)),
        coordinator=SimpleNamespace(identity=SimpleNamespace(fingerprint=b"the one that is pinned")),
    )
    context: Any = None
    return Link(
        context, principal, "daemon", clock=SystemClock(), entropy=SystemEntropy(), handler=_nobody, keeper=UNCHANGED,
        **options,
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
    error: Exception, code: int, defect: bool, script: Script
) -> None:
    problems: list[ZkcError] = []

    async def scenario() -> None:
        told = reports()
        script.broken = error
        link = link_of(on_problem=problems.append)
        link.start()
        with pytest.raises(ZkcError) as caught:
            await link.wait_linked(DEADLINE)
        assert (caught.value.code, str(error) in str(caught.value)) == (code, True)
        await until(lambda: script.made > 5)
        assert link.problem is not None
        assert (link.problem.code, [each.code for each in problems]) == (code, [code]), "told once"
        assert bool(told) == defect
        await link.close()

    asyncio.run(scenario())


def test_a_link_whose_registration_was_ended_answers_at_once_and_closes_at_once(
    monkeypatch: pytest.MonkeyPatch, script: Script
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
    script: Script,
) -> None:
    """At the renewal of a channel: the daemon was linked, and stays up."""
    script.old = True
    script.greetings = [None, VersionMismatch("another version", detail="version")]

    async def scenario() -> None:
        states: list[bool] = []
        link = link_of(on_state=states.append)
        link.start()
        await until(lambda: states == [True, False])
        await until(lambda: script.made > 3)
        assert isinstance(link.problem, VersionMismatch)
        with pytest.raises(VersionMismatch):
            await link.wait_linked(DEADLINE)
        script.greetings = [None]
        await until(lambda: link.linked)
        await link.close()

    asyncio.run(scenario())


def test_a_daemon_is_linked_only_once_the_coordinator_has_answered_its_first_record(
    monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
    """Before that the coordinator does not count it as online, and who was told of the link would be wrong."""
    monkeypatch.setattr(module, "DIAL_SECONDS", 0.05)

    async def scenario() -> None:
        states: list[bool] = []
        script.silent = True
        link = link_of(on_state=states.append)
        link.start()
        with pytest.raises(CoordinatorUnreachable):
            await link.wait_linked(DEADLINE)
        await until(lambda: script.made > 2)
        assert (link.linked, states) == (False, [])
        script.silent = False
        await until(lambda: states == [True])
        await link.close()

    asyncio.run(scenario())


def test_a_connection_that_is_lost_before_the_first_answer_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
    monkeypatch.setattr(module, "DIAL_SECONDS", 10 * DEADLINE)

    async def scenario() -> None:
        script.silent = True
        link = link_of()
        link.start()
        await until(lambda: link._waiting)
        script.silent = False
        assert link._line is not None
        link._line.close()
        await until(lambda: link.linked)
        assert script.made == 2
        await link.close()

    asyncio.run(scenario())


def test_a_silent_renewal_of_the_channel_does_not_end_the_link(script: Script) -> None:
    silence = CoordinatorUnreachable("no answer", detail="no-answer")
    script.old = True
    script.greetings = [None, silence, silence, silence]

    async def scenario() -> None:
        link = link_of()
        link.start()
        await until(lambda: len(script.greetings) == 1)
        assert (link.linked, script.made) == (True, 1)
        await link.close()

    asyncio.run(scenario())


def test_what_an_answer_or_a_tick_raises_is_reported_once_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
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
        script.broken = CoordinatorUnreachable("no", detail="refused")
        link.start()
        await until(lambda: len(ticks) > 2)
        assert {str(error) for error in told} >= {"an answer", "a tick"}
        await link.close()

    asyncio.run(scenario())


# --- several addresses, over real sockets -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCoordinator]:
    with coordinator_in(tmp_path_factory.mktemp("coordinator")) as running:
        yield running


@pytest.fixture
def principal(coordinator: RunningCoordinator, home: Home) -> Iterator[Principal]:
    with KeyStore.open(home) as store:
        invitation = coordinator.invite(f"client-{next(NUMBERS)}")
        join(store, invitation, ClientConfig(), clock=SystemClock(), entropy=SystemEntropy())
        yield load_main(store)


@pytest.fixture
def way(coordinator: RunningCoordinator) -> Iterator[TcpProxy]:
    """An address that leads to the coordinator, as long as a test lets it."""
    with TcpProxy(split_endpoint(coordinator.endpoint)) as proxy:
        yield proxy


@pytest.fixture
def silent() -> Iterator[str]:
    """An address where something listens and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def dead() -> Iterator[str]:
    """An address where nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gives up an address: what links has not waited for the end of another."""
    monkeypatch.setattr(dial, "DIAL_SECONDS", 10 * DEADLINE)
    monkeypatch.setitem(sockets._DEALER, zmq.HANDSHAKE_IVL, int(10_000 * DEADLINE))


@asynccontextmanager
async def linking(principal: Principal, *endpoints: str, **options: Any) -> AsyncIterator[Link]:
    ctx = context()
    link = Link(
        ctx, principal, "daemon", clock=SystemClock(), entropy=SystemEntropy(), handler=_nobody, keeper=UNCHANGED,
        endpoints=endpoints, **options,
    )
    link.start()
    try:
        yield link
    finally:
        await link.close()
        ctx.destroy(linger=0)


@pytest.mark.usefixtures("patient")
def test_addresses_that_keep_silent_hold_up_nobody(principal: Principal, silent: str, way: TcpProxy) -> None:
    async def scenario() -> None:
        async with linking(principal, silent, silent.replace("127.0.0.1", "localhost"), way.endpoint) as link:
            await link.wait_linked(DEADLINE)
            assert link.endpoint == way.endpoint

    asyncio.run(scenario())


@pytest.mark.usefixtures("patient", "no_pauses")
def test_a_link_that_was_lost_begins_with_the_address_that_worked(
    principal: Principal, silent: str, way: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        states: list[bool] = []
        async with linking(principal, silent, way.endpoint, on_state=states.append) as link:
            await link.wait_linked(DEADLINE)
            monkeypatch.setattr(line, "STAGGER_SECONDS", 10 * DEADLINE)
            way.cut()
            await until(lambda: states == [True, False, True])

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_pauses")
def test_who_asks_after_an_outage_is_answered_once_every_address_was_tried(
    principal: Principal, dead: str, way: TcpProxy
) -> None:
    async def scenario() -> None:
        way.refuse()
        async with linking(principal, *[dead] * 8, way.endpoint) as link:
            with pytest.raises(CoordinatorUnreachable):
                await link.wait_linked(DEADLINE)
            await until(lambda: link._rounds > 3)
            way.refuse(False)
            await link.wait_linked(DEADLINE)
            assert link.linked

    asyncio.run(scenario())


def test_who_wants_the_link_does_not_wait_for_the_end_of_a_long_pause(
    principal: Principal, way: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("BACKOFF_FIRST", 10 * DEADLINE), ("BACKOFF_MAX", 10 * DEADLINE), ("_REST_SECONDS", 0.001)):
        monkeypatch.setattr(module, name, seconds)

    async def scenario() -> None:
        way.refuse()
        async with linking(principal, way.endpoint) as link:
            for rounds in (1, 2):
                with pytest.raises(CoordinatorUnreachable):
                    await link.wait_linked(DEADLINE)
                assert link._rounds == rounds
            way.refuse(False)
            await link.wait_linked(DEADLINE)
            assert link.linked

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_pauses")
def test_each_kind_of_failure_is_told_once_until_there_is_a_link_again(
    principal: Principal, dead: str, way: TcpProxy
) -> None:
    """Two addresses that fail in two ways do not fill the log in turns; what is nearest to a coordinator is told."""
    told: list[tuple[str, str]] = []

    async def scenario() -> None:
        def lost(linked: bool) -> None:
            if not linked:
                assert link.problem is not None
                told.append(("lost", link.problem.detail))

        way.refuse()
        async with linking(
            principal, way.endpoint, dead, on_problem=lambda error: told.append(("no link", error.detail)),
            on_state=lost,
        ) as link:
            with pytest.raises(CoordinatorUnreachable) as caught:
                await link.wait_linked(DEADLINE)
            assert caught.value.detail == "handshake"
            await until(lambda: link._rounds > 5)
            assert sorted(told) == [("no link", "handshake"), ("no link", "refused")]
            way.refuse(False)
            await until(lambda: link.linked)
            way.refuse()
            way.cut()
            await until(lambda: len(told) >= 5)
            assert told[2] == ("lost", "lost")
            assert sorted(told[3:]) == [("no link", "handshake"), ("no link", "refused")]

    asyncio.run(scenario())
