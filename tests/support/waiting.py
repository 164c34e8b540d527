"""Waiting for what must happen: with a generous deadline, never for a fixed time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

DEADLINE = 60.0
"""Seconds. Only a failing test waits this long."""


def wait_until(happened: Callable[[], object], within: float = DEADLINE) -> None:
    """Return as soon as ``happened()`` is true; `AssertionError` if it is not within ``within`` seconds.

    Where a look costs (a process, say), as long a pause comes after it: what is waited for needs the machine too.
    """
    tick = threading.Event()
    began = time.monotonic()
    end = began + within
    while not happened():
        looked = time.monotonic()
        assert looked < end, f"did not happen within {within:g} s: {happened}"
        tick.wait(min(max(looked - began, 0.002), 0.5))
        began = time.monotonic()


def sooner(act: Callable[[], object], most: float, tries: int = 5) -> None:
    """``act()`` takes less than ``most`` seconds in one of a few tries: what else a machine does slows down others."""
    took: list[float] = []
    while not took or took[-1] >= most:
        assert len(took) < tries, f"took {took} s, and not less than {most:g}: {act}"
        began = time.monotonic()
        act()
        took.append(time.monotonic() - began)


async def until(happened: Callable[[], object], within: float = DEADLINE) -> None:
    """`wait_until` for a test on an asyncio loop, which goes on meanwhile."""
    async with asyncio.timeout(within):
        tick = asyncio.Event()
        while not happened():
            try:
                async with asyncio.timeout(0.002):
                    await tick.wait()
            except TimeoutError:
                continue
