"""The link of one registration to its coordinator: connected, authenticated, and brought back when it breaks.

`Link.run` is a loop of sessions (dial, C1, S1, records) with jittered back-off in between. Requests wait for the link,
survive its loss, and are answered once. Nothing that is not authenticated ends a link for good.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

from zkc.client.dial import DIAL_SECONDS, Connection
from zkc.client.principal import Principal
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
    InternalError,
    NotRegistered,
    PeerViolation,
    TimedOut,
    VersionMismatch,
    ZkcError,
)
from zkc.ids import owner_of
from zkc.net.sockets import Context, curve_public, to_raw
from zkc.protocol import channel
from zkc.protocol.calls import Asked, Calls, Expired, Outgoing, Replied
from zkc.protocol.step import Step, step
from zkc.rules.refusals import COORDINATOR, refused_by
from zkc.wire.codec import decode, encode
from zkc.wire.frames import ControlKind, control_frame, split_control
from zkc.wire.messages import (
    AnswerBody,
    ChannelMessage,
    Failure,
    Goodbye,
    Heartbeat,
    HelloInfo,
    Ok,
    Replaced,
    RequestBody,
    Revoked,
)

Handler = Callable[[Any], Awaitable[AnswerBody]]
"""Answers a request of the coordinator; a `ZkcError` becomes a failure with its code."""
_TICK_SECONDS: Final = 0.25


class Link:
    """One registration's channel. Belongs to the running loop; `start` it, `close` it."""

    def __init__(
        self, ctx: Context, principal: Principal, role: Literal["daemon", "once"], *, clock: Clock, entropy: Entropy,
        handler: Handler, endpoints: tuple[str, ...] = (), on_state: Callable[[bool], None] = lambda _: None,
        on_problem: Callable[[ZkcError], None] = lambda _: None,
    ) -> None:
        self.principal = principal
        self._context = ctx
        self._role: Final = role
        self._clock = clock
        self._entropy = entropy
        self._handler = handler
        self._endpoints = endpoints or principal.registration.endpoints
        self._on_state = on_state
        self._on_problem = on_problem
        """Told what keeps it from linking: each kind of failure once, until there was a link again."""
        self._told: set[tuple[type[ZkcError], str]] = set()
        self._instance = entropy.bytes(ID_BYTES)
        self._calls: Calls[None] = Calls()
        self._waiting: dict[bytes, tuple[asyncio.Future[AnswerBody], str]] = {}
        self._connection: Connection | None = None
        self._channel: channel.Channel | None = None
        self._greeting: asyncio.Future[channel.Established] | None = None
        self._hello: channel.HelloSent | None = None
        self._linked = asyncio.Event()
        self._stuck = asyncio.Event()
        self._heard = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._run: asyncio.Task[None] | None = None
        self.problem: ZkcError | None = None
        """Why there is no link, as far as anything says; a hint."""
        self.ended: asyncio.Future[ZkcError] = asyncio.get_running_loop().create_future()
        """Done when the coordinator, authenticated, has ended this registration or replaced this daemon."""

    # --- for the programs -------------------------------------------------------------------------------------------

    @property
    def linked(self) -> bool:
        return self._linked.is_set()

    @property
    def endpoint(self) -> str:
        """The coordinator's address in use, or the first that will be tried."""
        return self._connection.endpoint if self._connection else self._endpoints[0]

    def start(self) -> None:
        """Begin to connect, and go on for as long as the link is open."""
        self._run = asyncio.create_task(self._keep_linked())
        self._run.add_done_callback(_tell_defect)

    async def wait_linked(self, within: float) -> None:
        """`CoordinatorUnreachable`, `NotRegistered`, ...: what kept it from linking, once every address was tried in
        vain, or after ``within`` seconds. The link goes on trying."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._linked, self._stuck)]
        try:
            await asyncio.wait(waits, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
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
        plaintext = self._calls.request(id, body, now, now + within)
        if self.linked:
            self._send(plaintext)
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

    # --- the loop of sessions ---------------------------------------------------------------------------------------

    async def _keep_linked(self) -> None:
        ticking = asyncio.create_task(self._keep_ticking())
        failures = 0
        try:
            while not self.ended.done():
                try:
                    await self._establish(self._endpoints[failures % len(self._endpoints)])
                    failures = 0
                    self.problem = await self._serve()
                    self._drop()
                    pause = self._entropy.jitter(0.0, BACKOFF_FIRST)
                except Exception as error:  # noqa: BLE001 - whatever it was, a daemon that no longer tries is lost
                    failures += 1
                    pause = self._pause(failures)
                    self._failed(error, failures)
                await asyncio.sleep(pause)
        finally:
            ticking.cancel()
            if self.ended.done():
                # Nobody answers any more, and nobody ticks.
                for id in list(self._waiting):
                    self._resolve(id, None)

    def _failed(self, error: Exception, failures: int) -> None:
        """A round ended with ``error``: keep it as the problem, begin the next one from nothing."""
        if isinstance(error, ZkcError):
            self.problem = error
        else:
            self.problem = InternalError(f"the link failed: {type(error).__name__}: {error}", hint="see the log")
            _report(error)
        # A refused key is a hint that nothing authenticates: one more try before it is told.
        if failures >= len(self._endpoints) * (2 if isinstance(error, NotRegistered) else 1):
            self._stuck.set()
        try:
            self._drop()
            kind = type(self.problem), self.problem.detail
            if kind not in self._told:
                self._told.add(kind)
                self._on_problem(self.problem)
        except Exception as defect:  # noqa: BLE001 - see `_keep_linked`
            _report(defect)

    def _pause(self, failures: int) -> float:
        longest = min(BACKOFF_FIRST * 2 ** min(failures - 1, 10), BACKOFF_MAX)
        return self._entropy.jitter(longest / 2, longest)

    async def _establish(self, endpoint: str) -> None:
        """Dial, and agree on a channel."""
        keys = self.principal
        secret = keys.registration.curve_secret
        self._connection = Connection(
            self._context, endpoint, keys.coordinator.curve_key, curve_public(secret), to_raw(secret), self._on_frame,
            if_refused=f"if it was revoked: {_anew(keys.name)}",
        )
        await self._connection.wait_up()
        await self._greet()
        self.problem = None
        self._told.clear()
        self._heard = self._clock.monotonic()
        self._linked.set()
        self._stuck.clear()
        if self._role == "daemon":
            # The first record confirms the channel; before it the coordinator does not count this client as online.
            self.tell(Heartbeat())
        for outgoing in self._calls.resend(self._heard):
            self._send(outgoing.plaintext)
        self._on_state(True)

    async def _greet(self) -> None:
        """C1, S1: a new channel on this connection; the old one, if any, serves until then."""
        versions = list(channel.VERSIONS)
        info = HelloInfo(self._role, self._instance, versions, self.principal.card.body.epoch)
        started = channel.create_hello(self.principal.channel_keys, info, self._clock.monotonic())
        self._hello = started.state
        self._greeting = asyncio.get_running_loop().create_future()
        for effect in started.effects:
            self._send_frame(control_frame(ControlKind.CHANNEL, encode(effect.message)))
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                established = await self._greeting
        except TimeoutError:
            raise CoordinatorUnreachable(
                f"the coordinator at {self.endpoint} does not answer this client's greeting", detail="no-answer",
                hint="it may be overloaded, or may no longer know this registration",
            ) from None
        finally:
            self._greeting = self._hello = None
        self._channel = established.channel

    async def _serve(self) -> ZkcError:
        """Until the connection is lost, the coordinator falls silent, or has ended this: which of them it was."""
        connection = self._connection
        while connection is not None and not connection.lost.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._entropy.jitter(0.8, 1.0) * HEARTBEAT_SECONDS):
                    await asyncio.shield(connection.lost)
            if self.ended.done():
                return self.ended.result()
            if connection.lost.done():
                break
            now = self._clock.monotonic()
            if self._role == "daemon" and now - self._heard > OFFLINE_SECONDS:
                return CoordinatorUnreachable(f"the coordinator at {self.endpoint} fell silent", detail="no-answer")
            if self._channel is not None and self._channel.is_old(now):
                with contextlib.suppress(CoordinatorUnreachable):
                    await self._greet()
            self.tell(Heartbeat())
        return CoordinatorUnreachable(f"the connection to the coordinator at {self.endpoint} was lost", detail="lost")

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
            elif self.linked:
                self._send(due.plaintext)

    def _drop(self) -> None:
        was_linked = self.linked
        self._linked.clear()
        self._channel = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if was_linked:
            self._on_state(False)

    # --- frames -----------------------------------------------------------------------------------------------------

    def _on_frame(self, frame: bytes) -> None:
        """What the coordinator sent. Whatever does not open is nothing: only what is authenticated counts."""
        try:
            kind, body = split_control(frame)
            if kind is ControlKind.CHANNEL:
                self._on_greeting(body)
            elif kind is ControlKind.RECORD and self._channel is not None:
                plaintext = self._channel.open(frame)
                self._heard = self._clock.monotonic()
                self._on_record(plaintext)
        except PeerViolation as violation:
            if violation.detail == "replay" and self._connection is not None:
                self._connection.close()

    def _on_greeting(self, body: bytes) -> None:
        if self._greeting is None or self._greeting.done() or self._hello is None:
            return
        try:
            agreed: Step = step(
                channel.TABLE, self.principal.channel_keys, self._hello, decode(body, ChannelMessage)
            )
        except PeerViolation as violation:
            if violation.detail == "version":
                self._greeting.set_exception(VersionMismatch(
                    "the coordinator speaks none of this client's versions", detail="version",
                    hint="upgrade the older of the two",
                ))
            return
        self._greeting.set_result(agreed.state)

    def _on_record(self, plaintext: bytes) -> None:
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
        return await self._handler(body)

    def _end(self, error: ZkcError) -> None:
        if not self.ended.done():
            self.problem = error
            self.ended.set_result(error)

    def _send(self, plaintext: bytes) -> None:
        if self._channel is not None:
            self._send_frame(self._channel.seal(plaintext))

    def _send_frame(self, frame: bytes) -> None:
        if self._connection is not None:
            self._connection.send(frame)

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
            return CoordinatorUnreachable("no link to the coordinator yet", detail="timeout")
        return TimedOut("the coordinator did not answer in time", detail="no-answer")

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_tell_defect)


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
