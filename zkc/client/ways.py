"""The way from here to one address of the coordinator, for `zkc.client.doctor`: name, TCP, CURVE, channel."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from zkc.client.findings import Finding, Note, looked, skipped
from zkc.client.line import Line
from zkc.client.principal import Principal
from zkc.client.reaching import SILENT, connect
from zkc.constants import ID_BYTES
from zkc.env import Clock, Entropy
from zkc.errors import CoordinatorUnreachable
from zkc.ids import Identifier
from zkc.net.sockets import context, split_endpoint
from zkc.protocol.channel import VERSIONS
from zkc.wire.messages import HelloInfo

_LOCKED = Note("not tried: the keys are locked")


@dataclass(frozen=True)
class Greeted:
    """What the coordinator, authenticated, says in S1."""

    coordinator: bytes
    """Fingerprint of its identity."""
    clock_ahead: float
    """By how many seconds this client's clock is ahead of its own."""


class Way:
    """To one address; `walk` it once."""

    def __init__(
        self, endpoint: str, principal: Principal, identifier: Identifier, clock: Clock, entropy: Entropy
    ) -> None:
        self._endpoint = endpoint
        self._principal = principal
        self._identifier: Identifier = identifier
        self._clock = clock
        self._entropy = entropy
        self._addresses: list[str] = []
        self._line: Line | None = None
        self.greeted: Greeted | None = None
        """Once it was walked to its end, with keys that are not locked."""

    def walk(self) -> Iterator[Finding]:
        """Each step; after one that is wrong none is tried."""
        failed = False
        with asyncio.Runner() as self._runner, contextlib.ExitStack() as self._closing:
            for step, look in (
                ("resolve", self._resolve), ("tcp", self._tcp), ("curve", self._curve), ("channel", self._channel)
            ):
                name = f"{step} {self._endpoint}"
                finding = skipped(name) if failed else looked(name, look)
                failed = failed or finding.state == "wrong"
                yield finding

    def _resolve(self) -> str:
        host, _ = split_endpoint(self._endpoint)
        try:
            addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        except OSError as error:
            raise CoordinatorUnreachable(
                f"{host} has no address ({error.strerror})", detail="resolve",
                hint="is the name right, and does DNS work?",
            ) from None
        self._addresses = sorted(addresses)
        return ", ".join(self._addresses)

    def _tcp(self) -> str:
        _, port = split_endpoint(self._endpoint)

        async def look() -> list[str]:
            return list(await asyncio.gather(*(connect(address, port) for address in self._addresses)))

        problems = self._runner.run(look())
        if all(problems):
            raise CoordinatorUnreachable(
                f"port {port}: {problems[0]}", detail="filtered" if problems[0] == SILENT else "refused",
                hint="is it running (zkc coordinator status), is the port right, does a firewall let it through?",
            )
        return f"port {port} answers"

    def _curve(self) -> str | Note:
        """Encrypted by the coordinator's key, admitted by ours."""
        if self._principal.keys is None:
            return _LOCKED
        try:
            self._runner.run(self._dial())
        except CoordinatorUnreachable as error:
            if error.detail != "timeout":
                raise
            raise CoordinatorUnreachable(
                "the port is open, and nobody there speaks zkc: the coordinator hangs, or another program has it",
                detail="timeout", hint="look at the machine: does zkc coordinator status answer there?",
            ) from None
        return f"it has the key {self._principal.coordinator.curve_key.hex()[:16]}, and admits this client's"

    async def _dial(self) -> None:
        ctx = context(self._entropy)
        self._closing.callback(ctx.destroy, linger=200)
        info = HelloInfo("once", self._entropy.bytes(ID_BYTES), list(VERSIONS), self._principal.card.body.epoch)
        self._line = Line(
            ctx, self._principal, self._endpoint, info, lambda _: None, clock=self._clock, identifier=self._identifier,
            if_refused="it was revoked there, or a backup from before its keys were renewed was restored: ask its"
            " administrator for an invitation, and take it with zkc join --force",
        )
        self._closing.callback(self._line.close)
        await self._line.dial()

    def _channel(self) -> str | Note:
        """Both have the permanent keys of the registration, and a version of the protocol in common."""
        line = self._line
        if line is None:
            return _LOCKED
        self._runner.run(line.renew())
        self.greeted = Greeted(line.coordinator, line.clock_ahead)
        return f"version {line.version} of the protocol"
