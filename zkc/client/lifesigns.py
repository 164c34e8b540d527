"""Signs of life of a person at this machine: what is typed at terminals, and what the sessions of a desktop say."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from zkc.env import Clock
from zkc.net.desktop import Bus, NoBusError, Session, user_sessions
from zkc.rules.presence import Evidence

Source = Callable[[float], Evidence]
"""What one knows at a time, in seconds since 1970."""
_UNKNOWN: Final = Evidence("session", "unknown", 0.0)
_LOOK_SECONDS: Final = 10.0
_TERMINALS: Final = (Path("/dev/pts"), Path("/dev"))


def terminal_activity(now: float, folders: tuple[Path, ...] = _TERMINALS) -> Evidence:
    """When something was last typed at a terminal of this user, as ``w`` tells it. ``now`` in seconds since 1970."""
    times = []
    for folder in folders:
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            if folder.name == "dev" and not entry.name.startswith("tty"):
                continue
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISCHR(found.st_mode) and found.st_uid == os.getuid():
                times.append(found.st_atime)
    ages = [age for time in times if (age := now - time) >= 0]  # what is of the future says nothing (attack C16)
    return Evidence("terminal", "present", min(ages)) if ages else Evidence("terminal", "unknown", 0.0)


class Sessions:
    """What logind tells of this user's sessions, looked at every few seconds while `run` runs. A `Source`."""

    def __init__(self, clock: Clock, bus: Bus) -> None:
        self._clock = clock
        self._bus = bus
        self._seen: list[Session] = []
        self._looked_at: float | None = None
        """Monotonic; None: not yet, or it failed the last time."""
        self._locked_since: dict[str, float] = {}
        """Session -> when it was first seen locked, in seconds since 1970."""
        self.problem = ""
        """Why nothing is known."""

    def __call__(self, now: float) -> Evidence:
        looked_at = self._looked_at
        if looked_at is None or self._clock.monotonic() - looked_at > 3 * _LOOK_SECONDS:
            return _UNKNOWN
        signs = [self._sign(session, now) for session in self._seen]
        known = [sign for sign in signs if sign.state != "unknown"]
        return min(known, key=lambda sign: sign.age, default=_UNKNOWN)

    def _sign(self, session: Session, now: float) -> Evidence:
        if session.locked:
            return Evidence("session", "absent", max(now - self._locked_since.get(session.id, now), 0.0))
        if not 0 < session.idle_since <= now:
            return _UNKNOWN  # a desktop that never tells is not in use for ever (attack C16: nor is one of the future)
        if session.idle or session.terminal:
            return Evidence("session", "present", now - session.idle_since)
        return Evidence("session", "present", 0.0)

    async def look(self) -> None:
        """Once, now."""
        try:
            self.take(await user_sessions(self._bus, os.getuid()))
        except NoBusError as error:
            self._looked_at, self.problem = None, str(error)

    def take(self, sessions: Sequence[Session]) -> None:
        """What there is now."""
        self._looked_at, self.problem, now = self._clock.monotonic(), "", self._clock.wall()
        self._seen = list(sessions)
        locked = [session.id for session in sessions if session.locked]
        self._locked_since = {id: self._locked_since.get(id, now) for id in locked}

    async def run(self, wanted: Callable[[], bool]) -> None:
        """For as long as the daemon lives; looks only while it is ``wanted``."""
        while True:
            if wanted():
                await self.look()
            else:
                self._bus.close()
            await asyncio.sleep(_LOOK_SECONDS)
