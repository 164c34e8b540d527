"""One connection to the coordinator and the channel over it (C1, S1): plaintexts out, plaintexts in.

Whatever does not open is nothing: only what is authenticated counts. It stands or it is lost; `zkc.client.link` makes
the next one. A coordinator has several addresses, and some may lead nowhere: `open_first` takes the one that answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from zkc.client.dial import DIAL_SECONDS, STAGGER_SECONDS, Connection
from zkc.client.principal import Principal
from zkc.env import Clock
from zkc.errors import CoordinatorUnreachable, PeerViolation, VersionMismatch
from zkc.ids import Identifier
from zkc.net.sockets import Context, curve_public, to_raw
from zkc.protocol import channel
from zkc.protocol.step import Step, step
from zkc.wire.codec import decode, encode
from zkc.wire.frames import ControlKind, control_frame, split_control
from zkc.wire.messages import ChannelMessage, HelloInfo


class Line:
    """`open` it once; `lost` is done when its connection is gone."""

    def __init__(
        self, ctx: Context, principal: Principal, endpoint: str, info: HelloInfo,
        on_plaintext: Callable[[bytes], None], *, clock: Clock, if_refused: str, identifier: Identifier = "clear",
    ) -> None:
        """``if_refused``: what to do where the coordinator does not admit this client's key; ``identifier``: how the
        coordinator is told who this is."""
        secret = principal.registration.curve_secret
        self.endpoint = endpoint
        self._keys = principal.channel_keys
        if identifier == "sealed":
            self._keys = replace(self._keys, general=principal.coordinator.general_key)
        self._info = info
        self._on_plaintext = on_plaintext
        self._clock = clock
        self._channel: channel.Channel | None = None
        self.coordinator = b""
        """Fingerprint of the identity that the coordinator says it has."""
        self.clock_ahead = 0.0
        """By how many seconds this client's date is ahead of the coordinator's."""
        self.version = 0
        """Of the protocol, agreed with the channel."""
        self._hello: channel.HelloSent | None = None
        self._greeting: asyncio.Future[channel.Established] | None = None
        self._connection = Connection(
            ctx, endpoint, principal.coordinator.curve_key, curve_public(secret), to_raw(secret), self._on_frame,
            if_refused=if_refused,
        )

    @property
    def lost(self) -> asyncio.Future[None]:
        return self._connection.lost

    async def open(self, turn: asyncio.Lock) -> None:
        """Dial, and agree on a channel while it holds ``turn``. Errors: as `Connection.wait_up` and `renew`."""
        await self.dial()
        async with turn:
            await self.renew()

    async def dial(self) -> None:
        """A connection, and no channel yet. Errors: as `Connection.wait_up`."""
        await self._connection.wait_up()

    async def renew(self) -> None:
        """C1, S1: a new channel on this connection; the old one, if any, serves until then.

        `CoordinatorUnreachable` (``no-answer``), `VersionMismatch`.
        """
        started = channel.create_hello(self._keys, self._info, self._clock.monotonic())
        self._hello = started.state
        self._greeting = asyncio.get_running_loop().create_future()
        for effect in started.effects:
            self._connection.send(control_frame(ControlKind.CHANNEL, encode(effect.message)))
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                established = await self._greeting
        except TimeoutError:
            raise CoordinatorUnreachable(
                f"the coordinator at {self.endpoint} does not answer this client's greeting", detail="no-answer",
                hint="it may be overloaded, no longer know this registration, or be of quite another version",
            ) from None
        finally:
            self._greeting = self._hello = None
        self._channel = established.channel
        self.version = established.info.version
        self.coordinator = established.info.coordinator
        self.clock_ahead = self._clock.wall() - established.info.time

    def is_old(self) -> bool:
        """Whether its channel is due for renewal."""
        return self._channel is not None and self._channel.is_old(self._clock.monotonic())

    def send(self, plaintext: bytes) -> None:
        """Seal and send; before there is a channel, or with a full queue, it is lost."""
        if self._channel is not None:
            self._connection.send(self._channel.seal(plaintext))

    def close(self) -> None:
        """Again: nothing."""
        self._channel = None
        self._connection.close()

    def _on_frame(self, frame: bytes) -> None:
        try:
            kind, body = split_control(frame)
            if kind is ControlKind.CHANNEL:
                self._on_greeting(body)
            elif kind is ControlKind.RECORD and self._channel is not None:
                self._on_plaintext(self._channel.open(frame))
        except PeerViolation as violation:
            if violation.detail == "replay":
                self._connection.close()

    def _on_greeting(self, body: bytes) -> None:
        if self._greeting is None or self._greeting.done() or self._hello is None:
            return
        try:
            agreed: Step = step(channel.TABLE, self._keys, self._hello, decode(body, ChannelMessage))
        except PeerViolation as violation:
            if violation.detail == "version":
                self._greeting.set_exception(VersionMismatch(
                    "the coordinator speaks none of this client's versions", detail="version",
                    hint="upgrade the older of the two",
                ))
            return
        self._greeting.set_result(agreed.state)


async def open_first(endpoints: Sequence[str], make: Callable[[str], Line]) -> Line:
    """Of the lines to ``endpoints``, all of one coordinator, the first that stands; the others are closed.

    They are dialled in their order, each `STAGGER_SECONDS` after the one before, or as soon as one fails. One at a time
    greets, and meanwhile no other is dialled: a coordinator that is slow is not asked for a channel once more for each
    of its addresses. `ExceptionGroup` of what each failed with.
    """
    left, turn = list(endpoints), asyncio.Lock()
    tasks: set[asyncio.Task[None]] = set()
    made: list[Line] = []
    stand: list[Line] = []
    errors: list[Exception] = []

    async def attempt(endpoint: str) -> None:
        try:
            made.append(line := make(endpoint))
            try:
                await line.open(turn)
            except Exception:
                line.close()
                raise
        except Exception as error:  # noqa: BLE001 - told with the others
            errors.append(error)
        else:
            stand.append(line)

    chosen = None
    try:
        while (left or tasks) and not stand:
            if left and not turn.locked():
                tasks.add(asyncio.create_task(attempt(left.pop(0))))
            waiting = STAGGER_SECONDS if left else None
            done, _ = await asyncio.wait(tasks, timeout=waiting, return_when=asyncio.FIRST_COMPLETED)
            tasks -= done
        if not stand:
            raise ExceptionGroup("no address answers", errors)
        chosen = stand[0]
        return chosen
    finally:
        for task in tasks:
            task.cancel()
        for line in made:
            if line is not chosen:
                line.close()
