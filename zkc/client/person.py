"""The person at this client: what is known of him, what he said, and the proof that he may receive.

Kept beside the keys, 0600: ``person.json``, with what he said, the digest of his PIN and the count of wrong tries.
Belongs to the daemon's loop; commands read and write the same file where no daemon runs.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from zkc.config import ClientConfig
from zkc.crypto.pins import is_pin, pin_digest
from zkc.env import Clock, Entropy
from zkc.errors import LocalIOError, NotAuthorised, UsageError
from zkc.ids import PersonState, Presence
from zkc.rules.presence import EXPLICIT, Evidence, Person, judge_person, stated_level
from zkc.stores import files

Mode = Literal["auto", "here", "away"]
PIN_MIN: Final = 4
PIN_MAX: Final = 128
_TRIES_FREE: Final = 5
"""Wrong tries before there is a wait."""
_WAIT_FIRST: Final = 60.0
_WAIT_MAX: Final = 3600.0
_SALT_BYTES: Final = 16
_TURN: Final = threading.Lock()
"""One guess at a time: many at once take no more memory than one."""
_TERMINALS: Final = (Path("/dev/pts"), Path("/dev"))


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``person.json``. Times in seconds since 1970."""

    mode: Mode = "auto"
    said_at: float = 0.0
    salt: bytes = b""
    digest: bytes = b""
    """Of the PIN; empty: none is enrolled."""
    wrong: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Wrong tries since the last right one."""
    tried_at: float = 0.0


class PersonHere:
    """What this client knows of its person. ``config``: what it is now."""

    def __init__(self, folder: Path, config: Callable[[], ClientConfig], clock: Clock, entropy: Entropy) -> None:
        self._path = folder / "person.json"
        self._config = config
        self._clock = clock
        self._entropy = entropy
        self._proved: tuple[float, bytes] | None = None
        """When a PIN was right, monotonic seconds, and its digest: a proof outlives neither the process nor the PIN."""

    # --- what is known ----------------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """What the person said; ``here`` for as long as `person.here_for`."""
        kept = self._read()
        age = self._clock.wall() - kept.said_at
        if kept.mode == "here" and not 0 <= age <= self._config().person.here_for:
            return "auto"
        return kept.mode

    def person(self) -> Person:
        kept, now, config = self._read(), self._clock.wall(), self._config().person
        evidence = []
        if (mode := self.mode) != "auto":
            state: PersonState = "present" if mode == "here" else "absent"
            evidence.append(Evidence(EXPLICIT, state, max(now - kept.said_at, 0.0)))
        if "terminal" in config.sources:
            evidence.append(terminal_activity(now))
        return judge_person(evidence, config.present_within)

    def level(self) -> tuple[Presence, int]:
        """What this client vouches for, and the age of what it rests on."""
        ago = None
        if self._proved is not None and self._proved[1] == self._read().digest:
            ago = self._clock.monotonic() - self._proved[0]
        return stated_level(self.person(), ago, self._config().person.window)

    def say(self, mode: Mode) -> None:
        """The person said so himself. Durable when this returns."""
        self._proved = None if mode == "away" else self._proved
        self._write(msgspec.structs.replace(self._read(), mode=mode, said_at=self._clock.wall()))

    # --- the proof --------------------------------------------------------------------------------------------------

    @property
    def enrolled(self) -> bool:
        return bool(self._read().digest)

    def enrol(self, pin: str, *, old: str | None) -> None:
        """``pin`` from now on; whoever has one gives it first (``old``). `UsageError`, `NotAuthorised`."""
        if not PIN_MIN <= len(pin) <= PIN_MAX:
            raise UsageError(
                f"a PIN has {PIN_MIN} to {PIN_MAX} characters", detail="bad-pin", hint="choose another one"
            )
        self._check_old(old)
        salt = self._entropy.bytes(_SALT_BYTES)
        kept = msgspec.structs.replace(self._read(), salt=salt, digest=pin_digest(pin, salt), wrong=0)
        self._write(kept)

    def remove(self, old: str | None) -> None:
        """No PIN from now on. `NotAuthorised`."""
        self._check_old(old)
        self._write(msgspec.structs.replace(self._read(), salt=b"", digest=b"", wrong=0))
        self._proved = None

    def check(self, pin: str) -> bytes:
        """One try, and the digest of the PIN; blocks for a tenth of a second.

        Wrong tries are counted before it is known that they are wrong, so that nothing that ends this process gives
        another for nothing.

        `NotAuthorised`: ``not-enrolled``, ``wrong-pin``, ``too-many``.
        """
        with _TURN:
            kept, now = self._read(), self._clock.wall()
            if not kept.digest:
                raise NotAuthorised("no PIN is enrolled here", detail="not-enrolled", hint="zkc person enrol")
            wait = _wait_after(kept.wrong)
            since = now - kept.tried_at
            # A clock that was set back makes nobody wait longer than from now.
            if wait and 0 <= since < wait:
                raise NotAuthorised(
                    "too many wrong PINs", detail="too-many", hint=f"try again in {int(wait - since) + 1} s"
                )
            counted = msgspec.structs.replace(kept, wrong=kept.wrong + 1, tried_at=now)
            self._write(counted)
            if not is_pin(pin, kept.salt, kept.digest):
                raise NotAuthorised("this is not the PIN", detail="wrong-pin", hint="try again")
            self._write(msgspec.structs.replace(counted, wrong=0))
            return kept.digest

    async def prove(self, pin: str) -> None:
        """`check`, off the loop; a right one opens the window of `person.window`."""
        digest = await asyncio.to_thread(self.check, pin)
        self._proved = self._clock.monotonic(), digest

    def _check_old(self, old: str | None) -> None:
        if not self.enrolled:
            return
        if old is None:
            raise NotAuthorised("a PIN is enrolled here", detail="wrong-pin", hint="give the present one first")
        self.check(old)

    # --- the file ---------------------------------------------------------------------------------------------------

    def _read(self) -> _Kept:
        if not os.path.lexists(self._path):
            return _Kept()
        try:
            return msgspec.json.decode(files.read_private(self._path), type=_Kept)
        except msgspec.DecodeError:
            raise LocalIOError(
                f"{self._path} is damaged", detail="damaged", hint="remove it, and enrol the PIN anew"
            ) from None

    def _write(self, kept: _Kept) -> None:
        files.write_private(self._path, msgspec.json.encode(kept), replace=True)


def _wait_after(wrong: int) -> float:
    """Seconds until the next try may be made."""
    return 0.0 if wrong < _TRIES_FREE else min(_WAIT_FIRST * 2 ** min(wrong - _TRIES_FREE, 10), _WAIT_MAX)


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
