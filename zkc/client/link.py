"""The link of one registration to its coordinator: brought back when it breaks, and what is asked over it.

`Link` is a loop of lines (`zkc.client.line`): in each round all addresses are tried, with jittered back-off between the
rounds. Requests wait for the link, survive its loss, and are answered once. Nothing that is not authenticated ends a
link for good.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Literal, TypeVar

from zkc.client.coordinators import ask_coordinator
from zkc.client.dial import DIAL_SECONDS, STAGGER_SECONDS, nearness
from zkc.client.line import Line, open_first
from zkc.client.principal import Keeper, Principal
from zkc.constants import (
    BACKOFF_FIRST,
    BACKOFF_MAX,
    GOODBYE_SECONDS,
    HEARTBEAT_SECONDS,
    ID_BYTES,
    OFFLINE_SECONDS,
    REQUEST_SECONDS,
)
from zkc.env import Clock, Entropy
from zkc.errors import (
    CoordinatorUnreachable,
    IdentityError,
    InternalError,
    NotRegistered,
    PeerViolation,
    TimedOut,
    ZkcError,
)
from zkc.ids import Identifier, owner_of
from zkc.net.sockets import Context
from zkc.protocol.calls import Asked, Calls, Expired, Outgoing, Replied
from zkc.protocol.channel import VERSIONS
from zkc.rules.refusals import COORDINATOR, refused_by
from zkc.wire.messages import (
    AnswerBody,
    CoordinatorRenewed,
    Failure,
    Goodbye,
    Heartbeat,
    HelloInfo,
    Ok,
    Replaced,
    RequestBody,
    Revoked,
)

T = TypeVar("T")
Handler = Callable[[Any], Awaitable[AnswerBody]]
"""Answers a request of the coordinator; a `ZkcError` becomes a failure with its code."""
_TICK_SECONDS: Final = 0.25
_REST_SECONDS: Final = 0.5
"""The least pause before another try, where somebody is waiting for the link and the back-off would be longer."""
_ANEW: Final = "a link is made anew by itself: run it again, or give it --wait"


class Unanswered(TimedOut):
    """The coordinator said nothing within the time that it had; nobody's refusal is told as this."""


class Link:
    """One registration's channel. Belongs to the running loop; `start` it, `close` it."""

    def __init__(
        self, ctx: Context, principal: Principal, role: Literal["daemon", "once"], *, clock: Clock, entropy: Entropy,
        handler: Handler, keeper: Keeper, endpoints: tuple[str, ...] = (), identifier: Identifier = "clear",
        on_state: Callable[[bool], None] = lambda _: None, on_problem: Callable[[ZkcError], None] = lambda _: None,
    ) -> None:
        self.principal = principal
        self._context = ctx
        self._role: Final = role
        self._clock = clock
        self._entropy = entropy
        self._handler = handler
        self._keeper = keeper
        self._endpoints = tuple(endpoints or principal.registration.endpoints)
        """The one that worked last is first."""
        self._identifier = identifier
        self._on_state = on_state
        self._on_problem = on_problem
        """Told what keeps it from linking: each kind of failure once, until there was a link again."""
        self._told: set[tuple[type[ZkcError], str]] = set()
        self._instance: Final = entropy.bytes(ID_BYTES)
        self._calls: Calls[None] = Calls()
        self._waiting: dict[bytes, tuple[asyncio.Future[AnswerBody], str]] = {}
        self._line: Line | None = None
        self._linked = False
        self._rounds = 0
        """Begun so far."""
        self._refused = 0
        """Of them, the last so many found that the key is refused."""
        self._wanted = asyncio.Event()
        """Somebody waits for the link since the last round began."""
        self._hopes: dict[asyncio.Future[None], int] = {}
        """Done when it is decided whether there is a link; with the rounds that had begun when somebody asked."""
        self._heard = 0.0
        self._learning = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._run: asyncio.Task[None] | None = None
        self.problem: ZkcError | None = None
        """Why there is no link, as far as anything says; a hint."""
        self.ended: asyncio.Future[ZkcError] = asyncio.get_running_loop().create_future()
        """Done when the coordinator, authenticated, has ended this registration or replaced this daemon."""

    # --- for the programs -------------------------------------------------------------------------------------------

    @property
    def linked(self) -> bool:
        return self._linked

    @property
    def endpoint(self) -> str:
        """The coordinator's address in use, or the first that will be tried."""
        return self._line.endpoint if self._line else self._endpoints[0]

    @property
    def clock_ahead(self) -> float:
        """By how many seconds this client's date is ahead of the coordinator's, as far as is known."""
        return self._line.clock_ahead if self._line else 0.0

    @property
    def patience(self) -> float:
        """Seconds within which `wait_linked` knows: the rest of one round, the least pause, a round of its own."""
        return 2 * (2 * DIAL_SECONDS + STAGGER_SECONDS * (len(self._endpoints) - 1)) + _REST_SECONDS

    def start(self) -> None:
        """Begin to connect, and go on for as long as the link is open."""
        self._run = asyncio.create_task(self._keep_linked())
        self._run.add_done_callback(_tell_defect)

    async def wait_linked(self, within: float) -> None:
        """`CoordinatorUnreachable`, `NotRegistered`, ...: what keeps it from linking, once every address was tried in
        vain since this was asked, or after ``within`` seconds. The link goes on trying."""
        if self.ended.done():
            raise self.ended.result()
        if self.linked:
            return
        hope: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hopes[hope] = self._rounds
        # The answer is to be of now: another round at once, and not at the end of a back-off.
        self._wanted.set()
        try:
            async with asyncio.timeout(within):
                await hope
        except TimeoutError:
            pass
        finally:
            del self._hopes[hope]
        if not self.linked:
            raise self._why_not()

    async def request(
        self, body: RequestBody, within: float = REQUEST_SECONDS, *, about: str = COORDINATOR
    ) -> AnswerBody:
        """The coordinator's answer to ``body``. Waits for the link where there is none. ``about``: whose refusal an
        error is told as, where the coordinator passes on what a peer says.

        The error of the contract that it answered with; `CoordinatorUnreachable`, `TimedOut` after ``within`` seconds.
        """
        if self.ended.done():
            raise self.ended.result()
        now = self._clock.monotonic()
        id = self._entropy.bytes(ID_BYTES)
        future: asyncio.Future[AnswerBody] = asyncio.get_running_loop().create_future()
        self._waiting[id] = future, about
        self._send(self._calls.request(id, body, now, now + within))
        try:
            return await future
        finally:
            self._calls.forget(id)
            self._waiting.pop(id, None)

    def tell(self, body: RequestBody) -> None:
        """Send ``body`` as far as the link stands; nobody waits for the answer."""
        if self.linked:
            now = self._clock.monotonic()
            self._send(self._calls.request(self._entropy.bytes(ID_BYTES), body, now, now + OFFLINE_SECONDS))

    async def learn(self, since: Principal | None = None) -> bool:
        """Ask which identity the coordinator has. Whether it is another than this registration knew, or knew when it
        was ``since``, which that vouches for, and which is kept in its place. `IdentityError` (``identity``) where it
        does not."""
        since = since or self.principal
        found = await ask_coordinator(partial(self.request, within=DIAL_SECONDS), self.principal.coordinator)
        if found is not None and self.principal.coordinator.identity != found.coordinator.identity:
            self.principal = self._keeper.learned(self.principal, found.card, found.chain)
        return self.principal.coordinator.identity != since.coordinator.identity

    async def learning(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """``attempt``, and once more where it failed by what is signed by an identity that the coordinator has since a
        moment ago, or since it began."""
        principal = self.principal
        try:
            return await attempt()
        except IdentityError as error:
            if error.detail not in {"bad-certificate", "log-proof"} or not await self.learn(principal):
                raise
        return await attempt()

    async def adopt(self, principal: Principal) -> None:
        """The registration has new keys, ``principal``: once this returns, the coordinator has a channel under them, or
        the next line will be. The present one serves until then, and what is asked meanwhile is answered."""
        self.principal = principal
        if not self.linked:
            return
        old = self._line
        try:
            line = await open_first(self._endpoints, self._make_line)
        except ExceptionGroup:
            if old is not None:
                old.close()
            return
        if self._line is not old:  # lost meanwhile, and made anew
            line.close()
            return
        self._line = line
        for outgoing in self._calls.resend(self._clock.monotonic()):
            self._send(outgoing.plaintext)
        # Until a record has come over the new one, the coordinator has only the old.
        with contextlib.suppress(ZkcError):
            await self._confirm(line)
        if old is not None:
            old.close()

    async def close(self) -> None:
        """Say goodbye (a daemon waits for its answer, at most `GOODBYE_SECONDS`), then end everything.

        A registration that the coordinator has ended gets no answer any more.
        """
        if self.linked and self._role == "daemon" and not self.ended.done():
            with contextlib.suppress(ZkcError):
                await self.request(Goodbye(), GOODBYE_SECONDS)
        tasks = [task for task in (*self._tasks, self._run) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._drop()
        for future, _ in self._waiting.values():
            future.cancel()
        for hope in self._hopes:
            hope.cancel()

    # --- the loop of sessions ---------------------------------------------------------------------------------------

    async def _keep_linked(self) -> None:
        ticking = asyncio.create_task(self._keep_ticking())
        failures = 0
        try:
            while not self.ended.done():
                self._rounds += 1
                self._wanted.clear()
                try:
                    line = await self._establish()
                    failures = 0
                    self.problem = await self._serve(line)
                    self._drop()
                    pause = self._entropy.jitter(0.0, BACKOFF_FIRST)
                except Exception as error:  # noqa: BLE001 - whatever it was, a daemon that no longer tries is lost
                    failures += 1
                    pause = self._pause(failures)
                    self._failed(error)
                await self._rest(pause)
        finally:
            ticking.cancel()
            if self.ended.done():
                # Nobody answers any more, and nobody ticks.
                for id in list(self._waiting):
                    self._resolve(id, None)
                self._decide(self._rounds)

    def _failed(self, error: Exception) -> None:
        """A round ended with ``error``: keep what says most as the problem, begin the next one from nothing."""
        problems = [_problem(each) for each in (error.exceptions if isinstance(error, ExceptionGroup) else (error,))]
        self.problem = max(problems, key=nearness)
        # A refused key is a hint that nothing authenticates: one more round before it is told.
        self._refused = self._refused + 1 if isinstance(self.problem, NotRegistered) else 0
        if self._refused != 1:
            self._decide(self._rounds - 1)
        try:
            self._drop()
            if isinstance(self.problem, NotRegistered):
                self.principal = self._keeper.reloaded(self.principal)
            for problem in problems:
                kind = type(problem), problem.detail
                if kind not in self._told:
                    self._told.add(kind)
                    self._on_problem(problem)
        except Exception as defect:  # noqa: BLE001 - see `_keep_linked`
            _report(defect)

    def _decide(self, before: int) -> None:
        """Whoever has waited since no more than ``before`` rounds had begun need not wait any longer."""
        for hope, since in self._hopes.items():
            if since <= before and not hope.done():
                hope.set_result(None)

    def _pause(self, failures: int) -> float:
        longest = min(BACKOFF_FIRST * 2 ** min(failures - 1, 10), BACKOFF_MAX)
        return self._entropy.jitter(longest / 2, longest)

    async def _rest(self, seconds: float) -> None:
        """Until the next try."""
        least = min(seconds, _REST_SECONDS)
        await asyncio.sleep(least)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds - least):
                await self._wanted.wait()

    def _make_line(self, endpoint: str) -> Line:
        info = HelloInfo(self._role, self._instance, list(VERSIONS), self.principal.card.body.epoch)
        return Line(
            self._context, self.principal, endpoint, info, self._on_plaintext, clock=self._clock,
            if_refused=f"if it was revoked: {_anew(self.principal.name)}", identifier=self._identifier,
        )

    async def _establish(self) -> Line:
        line = self._line = await open_first(self._endpoints, self._make_line)
        self.problem = None
        self._heard = self._clock.monotonic()
        if self._role == "daemon":
            await self._confirm(line)
        if line.coordinator != self.principal.coordinator.identity.fingerprint:
            await self.learn()
        self._endpoints = (line.endpoint, *(each for each in self._endpoints if each != line.endpoint))
        self._told.clear()
        self._refused = 0
        self._linked = True
        self._decide(self._rounds)
        for outgoing in self._calls.resend(self._heard):
            self._send(outgoing.plaintext)
        self._on_state(True)
        return line

    async def _confirm(self, line: Line) -> None:
        """C2: the first record confirms the channel. Once it is answered, the coordinator counts this client as online,
        and whoever was told of the link can rely on that."""
        answer = asyncio.ensure_future(self.request(Heartbeat(), DIAL_SECONDS))
        either: list[asyncio.Future[Any]] = [answer, line.lost]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise _lost(line)
            answer.result()
        finally:
            answer.cancel()

    async def _serve(self, line: Line) -> ZkcError:
        """Until the line is lost, the coordinator falls silent, or has ended this: which of them it was."""
        while not (line := self._line or line).lost.done():  # `adopt` puts another in its place
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._entropy.jitter(0.8, 1.0) * HEARTBEAT_SECONDS):
                    await asyncio.shield(line.lost)
            if self.ended.done():
                return self.ended.result()
            if line.lost.done():
                continue
            if self._role == "daemon" and self._clock.monotonic() - self._heard > OFFLINE_SECONDS:
                return CoordinatorUnreachable(
                    f"the coordinator at {line.endpoint} fell silent", detail="no-answer", hint=_ANEW
                )
            if line.is_old():
                with contextlib.suppress(CoordinatorUnreachable):
                    await line.renew()
            self.tell(Heartbeat())
        return _lost(line)

    async def _keep_ticking(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            try:
                self._tick()
            except Exception as error:  # noqa: BLE001 - without ticks no request would ever end
                _report(error)

    def _tick(self) -> None:
        for due in self._calls.tick(self._clock.monotonic()):
            if isinstance(due, Expired):
                self._resolve(due.id, None)
            else:
                self._send(due.plaintext)

    def _drop(self) -> None:
        was_linked = self.linked
        self._linked = False
        if self._line is not None:
            self._line.close()
            self._line = None
        if was_linked:
            self._on_state(False)

    # --- records ----------------------------------------------------------------------------------------------------

    def _on_plaintext(self, plaintext: bytes) -> None:
        self._heard = self._clock.monotonic()
        received = self._calls.receive(plaintext, None)
        if isinstance(received, Asked):
            self._spawn(self._answer(received))
        elif isinstance(received, Replied):
            self._resolve(received.id, received.body)
        elif isinstance(received, Outgoing):
            self._send(received.plaintext)

    async def _answer(self, asked: Asked) -> None:
        try:
            answer = await self._handle(asked.body)
        except ZkcError as error:
            outgoing = self._calls.fail(asked.id, error.code, error.detail)
        except PeerViolation as violation:
            outgoing = self._calls.fail(asked.id, 12, violation.detail)
        except Exception:
            outgoing = self._calls.fail(asked.id, InternalError.code, "")
            self._send(outgoing.plaintext)
            raise
        else:
            outgoing = self._calls.answer(asked.id, answer)
        self._send(outgoing.plaintext)

    async def _handle(self, body: RequestBody) -> AnswerBody:
        if isinstance(body, Revoked):
            self._end(NotRegistered(
                f"the registration of {self.principal.name} was revoked"
                + (f" ({body.reason})" if body.reason else ""),
                detail="revoked", hint=_anew(self.principal.name),
            ))
            return Ok()
        if isinstance(body, Replaced):
            self._end(CoordinatorUnreachable(
                f"another daemon of {self.principal.name} has taken over", detail="replaced",
                hint="two homes hold the same registration: end one of them",
            ))
            return Ok()
        if isinstance(body, CoordinatorRenewed):
            async with self._learning:
                await self.learn()
            return Ok()
        async with self._learning:
            pass  # what comes now is signed by the new identity
        return await self._handler(body)

    def _end(self, error: ZkcError) -> None:
        if not self.ended.done():
            self.problem = error
            self.ended.set_result(error)

    def _send(self, plaintext: bytes) -> None:
        """Without a channel it is lost, and sent again when there is one (`_establish`)."""
        if self._line is not None:
            self._line.send(plaintext)

    def _resolve(self, id: bytes, body: AnswerBody | Failure | None) -> None:
        future, about = self._waiting.get(id, (None, ""))
        if future is None or future.done():
            return
        if body is None:
            future.set_exception(self._why_not())
        elif isinstance(body, Failure):
            future.set_exception(refused_by(about, body.code, body.detail))
        else:
            future.set_result(body)

    def _why_not(self) -> ZkcError:
        if self.problem is not None:
            return self.problem
        if not self.linked:
            return CoordinatorUnreachable("no link to the coordinator yet", detail="timeout", hint=_ANEW)
        return Unanswered("the coordinator did not answer in time", detail="no-answer", hint="run it again")

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_tell_defect)


def _problem(error: Exception) -> ZkcError:
    """``error`` as one that can be told; a defect is reported too."""
    if isinstance(error, ZkcError):
        return error
    _report(error)
    return InternalError(f"the link failed: {type(error).__name__}: {error}", hint="see the log")


def _lost(line: Line) -> CoordinatorUnreachable:
    return CoordinatorUnreachable(
        f"the connection to the coordinator at {line.endpoint} was lost", detail="lost", hint=_ANEW
    )


def _anew(name: str) -> str:
    """What to do where ``name`` is no longer registered."""
    if owner_of(name) is not None:
        return f"zkc join --app {name.partition('/')[2]} --force registers it anew"
    return "ask for a new invitation, then zkc join --force"


def _report(error: BaseException) -> None:
    """To whatever the program does with defects: the daemon logs them."""
    asyncio.get_running_loop().call_exception_handler({"message": "the link failed", "exception": error})


def _tell_defect(task: asyncio.Task[None]) -> None:
    """A task that nobody waits for has ended: its exception is not lost."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _report(error)
