"""What a client runs when something arrives, or a person is asked: a command of its configuration, and a notification.

A fixed argv and an environment, never a shell. Whatever peers send, so many commands run at once and so many wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import Final, Literal

import structlog

from zkc.client.environment import without_secrets
from zkc.client.happenings import Arrived, Asked, Happening
from zkc.config import ClientConfig
from zkc.logs import Repeats
from zkc.net.desktop import Bus, NoBusError, notify
from zkc.rules.names import escape, safe_name

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

    def hear(self, what: Happening) -> None:
        """Of what happens, what arrives and what waits for a person."""
        if isinstance(what, Arrived):
            self._start("arrived", what, f"{escape(what.name)} from {what.sender}{_asked_by(what)}")
        elif isinstance(what, Asked):
            name = "a transfer" if what.name is None else escape(what.name)
            told = f"{what.sender} asks to send {name}{_asked_by(what)}: zkc accept {what.id[:8]}"
            self._start("asked", what, told)

    async def close(self) -> None:
        """An end to every command."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._bus.close()

    def _start(self, event: Event, what: Arrived | Asked, summary: str) -> None:
        hooks = self._config().hooks
        words = hooks.arrived if event == "arrived" else hooks.asked
        shown = hooks.notify in {"all", event}
        if not words and not shown:
            return
        if len(self._tasks) >= _WAITING_MAX:
            self._repeats.tell(self._log, "warning", "hook-dropped", (event,), hook=event, why="too many wait")
            return
        task = asyncio.create_task(
            self._run(event, words, _environment(what), (summary, what.note) if shown else None)
        )
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


def _asked_by(what: Arrived | Asked) -> str:
    return f", asked by {escape(what.asked_by)}" if what.asked_by else ""


def _environment(what: Arrived | Asked) -> dict[str, str]:
    """What a command learns; what the sender of what waits has not shown is empty."""
    digest, transfer = (what.digest, what.transfer) if isinstance(what, Arrived) else ("", what.id)
    return {
        "ZKC_ITEM": what.id,
        "ZKC_SENDER": what.sender,
        "ZKC_NAME": "" if what.name is None else safe_name(what.name),
        "ZKC_NOTE": what.note.replace("\0", ""),
        "ZKC_DIGEST": digest,
        "ZKC_TRANSFER": transfer,
        "ZKC_KEY_SOURCE": what.key_source,
        "ZKC_ASKED_BY": what.asked_by or "",
    }


async def _end(child: asyncio.subprocess.Process) -> None:
    """It and whatever it started in its session."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, how)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await child.wait()
                return
