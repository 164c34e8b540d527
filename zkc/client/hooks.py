"""What a client runs when something arrives, or a person is asked: a command of its configuration, and a notification.

A fixed argv and an environment, never a shell. Whatever peers send, so many commands run at once and so many wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

import structlog

from zkc.client.environment import item_environment, pending_environment, without_secrets
from zkc.config import ClientConfig
from zkc.logs import Repeats
from zkc.net.desktop import Bus, NoBusError, notify
from zkc.rules.names import escape

if TYPE_CHECKING:
    from zkc.client.control import PendingItem
    from zkc.stores.items import Item

_AT_ONCE: Final = 4
_WAITING_MAX: Final = 256
_END_SECONDS: Final = 2.0
"""For a command that is told to end."""
_SHOWN_MAX: Final = 200
"""Characters of a note in a notification."""
Event = Literal["arrived", "asked"]


class Hooks:
    """Belongs to the daemon's loop. ``config``: what it is now."""

    def __init__(self, config: Callable[[], ClientConfig], repeats: Repeats, bus: Bus) -> None:
        self._config = config
        self._repeats = repeats
        self._bus = bus
        self._log = structlog.get_logger("zkc.hooks")
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def arrived(self, item: Item) -> None:
        """It is in the inbox."""
        told = f"{escape(item.name)} from {item.sender}{_asked_by(item)}"
        self._start("arrived", {**item_environment(item), "ZKC_ITEM": item.id}, told, item.note)

    def asked(self, item: PendingItem) -> None:
        """It waits for a person."""
        name = "a transfer" if item.name is None else escape(item.name)
        self._start(
            "asked", {**pending_environment(item), "ZKC_ITEM": item.id},
            f"{item.sender} asks to send {name}{_asked_by(item)}: zkc accept {item.id[:8]}", item.note,
        )

    async def close(self) -> None:
        """An end to every command."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._bus.close()

    def _start(self, event: Event, environment: dict[str, str], summary: str, note: str) -> None:
        hooks = self._config().hooks
        words = hooks.arrived if event == "arrived" else hooks.asked
        shown = hooks.notify in {"all", event}
        if not words and not shown:
            return
        if len(self._tasks) >= _WAITING_MAX:
            self._repeats.tell(self._log, "warning", "hook-dropped", (event,), hook=event, why="too many wait")
            return
        task = asyncio.create_task(self._run(event, words, environment, (summary, note) if shown else None))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(
        self, event: Event, words: tuple[str, ...], environment: dict[str, str], shown: tuple[str, str] | None
    ) -> None:
        async with self._turn:
            if shown is not None:
                summary, note = shown
                try:
                    await notify(self._bus, summary, escape(note[:_SHOWN_MAX]))
                except NoBusError as error:
                    self._log.debug("not-shown", hook=event, why=str(error))
            if words:
                await self._command(event, words, environment)

    async def _command(self, event: Event, words: tuple[str, ...], environment: dict[str, str]) -> None:
        about = {"hook": event, "command": words[0], "transfer": environment["ZKC_TRANSFER"]}
        try:
            child = await asyncio.create_subprocess_exec(
                *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
                env={**without_secrets(os.environ), **environment, "ZKC_EVENT": event},
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            self._repeats.tell(self._log, "warning", "hook-failed", (event, why), **about, why=why)
            return
        try:
            async with asyncio.timeout(self._config().hooks.timeout):
                status = await child.wait()
        except TimeoutError:
            await _end(child)
            self._repeats.tell(self._log, "warning", "hook-failed", (event, "timeout"), **about, why="timeout")
            return
        except BaseException:
            await _end(child)
            raise
        if status != 0:
            self._repeats.tell(self._log, "warning", "hook-failed", (event, status), **about, status=status)
        else:
            self._log.debug("hook-done", **about)


def _asked_by(item: Item | PendingItem) -> str:
    return f", asked by {escape(item.asked_by)}" if item.asked_by else ""


async def _end(child: asyncio.subprocess.Process) -> None:
    """It and whatever it started in its session."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, how)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await child.wait()
                return
