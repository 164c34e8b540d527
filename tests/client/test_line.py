"""Of several addresses the one that answers is taken."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from zkc.client import line as module
from zkc.client.line import Line, open_first
from zkc.crypto.suites import suite_named
from zkc.env import SystemClock
from zkc.errors import CoordinatorUnreachable
from zkc.net.sockets import bind_router, context, generate_curve
from zkc.net.zap import AsyncZap
from zkc.protocol.channel import VERSIONS, ClientKeys
from zkc.wire.messages import HelloInfo


def test_a_coordinator_that_does_not_answer_is_greeted_over_one_address_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is slow is not asked for a channel once more for each of its addresses."""
    monkeypatch.setattr(module, "DIAL_SECONDS", 0.3)
    monkeypatch.setattr(module, "STAGGER_SECONDS", 0.001)
    suite, server, mine = suite_named("x25519"), generate_curve(), generate_curve()
    principal: Any = SimpleNamespace(
        registration=SimpleNamespace(curve_secret=mine.secret), coordinator=SimpleNamespace(curve_key=server.public),
        channel_keys=ClientKeys(suite, bytes(16), suite.generate(), suite.generate().public),
    )
    seen: list[str] = []
    lines: list[Line] = []

    class Watched(Line):
        async def renew(self) -> None:
            seen.append("greets")
            try:
                await super().renew()
            finally:
                seen.append("gives up")

    async def scenario() -> None:
        ctx = context()
        door = AsyncZap(ctx, asyncio.get_running_loop(), lambda _: "somebody")
        router, endpoints = bind_router(ctx, ["tcp://127.0.0.1:0", "tcp://127.0.0.1:0"], server.secret)

        def make(endpoint: str) -> Line:
            info = HelloInfo("once", bytes(16), list(VERSIONS), 1)
            made = Watched(ctx, principal, endpoint, info, lambda _: None, clock=SystemClock(), if_refused="")
            lines.append(made)
            return made

        with pytest.raises(ExceptionGroup) as caught:
            await open_first(endpoints, make)
        assert [error.detail for error in caught.value.exceptions if isinstance(error, CoordinatorUnreachable)] == [
            "no-answer", "no-answer",
        ]
        assert all(made.lost.done() for made in lines), "left open"
        router.close(linger=0)
        door.close()
        ctx.destroy(linger=0)

    asyncio.run(scenario())
    assert seen == ["greets", "gives up"] * 2
