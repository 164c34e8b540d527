"""What is too old goes, while a daemon stays up too."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.env import FixedClock
from tests.support.items import DAY, stop
from tests.support.waiting import until
from zkc.client import daemon, housekeeping
from zkc.env import SystemEntropy
from zkc.errors import LocalIOError
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.under_way import KEPT_SECONDS, UnderWay


@dataclass
class SeenClock(FixedClock):
    looks: int = 0

    def wall(self) -> float:
        self.looks += 1
        return super().wall()


def begun(home: Home, clock: FixedClock, key: str, age: float) -> Path:
    """A delivery that a command began so many seconds ago and never ended."""
    record = UnderWay.open(home, key * 64, b"t" * 16, clock)
    assert record is not None
    record.close(forget=False)
    path = home.outbox / "under-way" / (key * 64)
    os.utime(path, (clock.wall() - age,) * 2)
    return path


def run_daemon(home: Home, clock: FixedClock, monkeypatch: pytest.MonkeyPatch, scene: Callable[[], Any]) -> None:
    """``scene`` while a daemon is up that does nothing else."""

    class Idle:
        def __init__(self, *_: object) -> None:
            pass

        async def start(self, _path: object) -> None:
            pass

        async def until_ended(self, _stop: object) -> None:
            await scene()

        async def close(self) -> None:
            pass

        def reload(self) -> None:
            pass

    monkeypatch.setattr(housekeeping, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(daemon, "Daemon", Idle)
    config: Any = None
    asyncio.run(daemon.run(home, config, clock=clock, entropy=SystemEntropy(), on_ready=lambda _: None))


def test_what_is_too_old_goes_at_the_start_and_once_a_day(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SeenClock()
    with Inbox.open(home, clock=clock) as inbox:
        partial = stop(inbox)
    old, young = begun(home, clock, "a", KEPT_SECONDS + 1), begun(home, clock, "b", KEPT_SECONDS - 2 * DAY)
    times: list[float] = []
    real = Inbox.recover
    monkeypatch.setattr(Inbox, "recover", lambda self, now: times.append(now) or real(self, now))

    async def scene() -> None:
        assert not old.exists()
        assert young.exists()
        for day in range(1, 8):
            clock.advance(DAY)
            await until(lambda swept=day + 1: len(times) == swept)
        assert not young.exists()
        assert partial.path.exists(), "seven days are not over"
        clock.advance(DAY - 1)
        looks = clock.looks
        await until(lambda: clock.looks > looks + 3)
        assert len(times) == 8, "once a day"
        clock.advance(1)
        await until(lambda: not partial.path.exists())
        clock.set_wall(1.0)
        await until(lambda: times[-1] == 1.0)

    run_daemon(home, clock, monkeypatch, scene)


def test_what_cannot_be_swept_is_logged_and_tried_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, tries = FixedClock(), []

    def recover(_: Inbox, now: float) -> int:
        tries.append(now)
        if len(tries) == 2:
            raise LocalIOError("a bad disk", detail="io")
        return 0

    monkeypatch.setattr(Inbox, "recover", recover)

    async def scene() -> None:
        for swept in (2, 3):
            clock.advance(DAY)
            await until(lambda swept=swept: len(tries) == swept)

    with capture_logs() as events:
        run_daemon(home, clock, monkeypatch, scene)
    assert [(event["event"], event["detail"]) for event in events] == [("not-swept", "io")]
