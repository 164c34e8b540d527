"""The person at this client: what is known of him, what he said, and the proof that he may receive.

Kept beside the keys, 0600: ``person.json``, with what he said, the digest of his PIN or the secret of his one-time
codes, and the count of wrong tries.
Belongs to the daemon's loop; commands read and write the same file where no daemon runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import msgspec

from zkc.client.lifesigns import Source, terminal_activity
from zkc.config import ClientConfig
from zkc.crypto import totp
from zkc.crypto.pins import is_pin, pin_digest
from zkc.env import Clock, Entropy
from zkc.errors import LocalIOError, NotAuthorised, UsageError
from zkc.ids import PersonState, Presence
from zkc.rules.presence import EXPLICIT, Evidence, Person, judge_person, stated_level
from zkc.stores import files
from zkc.stores.documents import read_document

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


_WRONG_CODE: Final = "this is not a code of now, or it was used"
_VERSION: Final = 1


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``person.json``. Times in seconds since 1970."""

    mode: Mode = "auto"
    said_at: float = 0.0
    salt: bytes = b""
    digest: bytes = b""
    """Of the PIN; empty: none is enrolled."""
    totp: bytes = b""
    """Secret of one-time codes; empty: none is enrolled."""
    used: int = 0
    """The half minute of the last code that was taken."""
    wrong: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Wrong tries since the last right one."""
    tried_at: float = 0.0
    version: int = _VERSION

    def __repr__(self) -> str:
        return f"_Kept(mode={self.mode!r}, wrong={self.wrong}, ...)"

    @property
    def enrolled(self) -> Literal["pin", "totp", ""]:
        return "pin" if self.digest else "totp" if self.totp else ""

    @property
    def proof(self) -> bytes:
        """What a proof rests on; empty: nothing is enrolled."""
        return self.digest + self.totp


class PersonHere:
    """What this client knows of its person.

    ``config``: what it is now. ``sources``: by their names in `person.sources`.
    """

    def __init__(
        self, folder: Path, config: Callable[[], ClientConfig], clock: Clock, entropy: Entropy,
        sources: Mapping[str, Source] = MappingProxyType({"terminal": terminal_activity}),
    ) -> None:
        self._path = folder / "person.json"
        self._config = config
        self._clock = clock
        self._entropy = entropy
        self._sources = sources
        self._proved: tuple[float, bytes] | None = None
        """When he proved himself, monotonic seconds, and with what: a proof outlives neither the process nor that."""

    # --- what is known ----------------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """What the person said; ``here`` for as long as `person.here_for`."""
        kept = self._known()
        age = self._clock.wall() - kept.said_at
        if kept.mode == "here" and not 0 <= age <= self._config().person.here_for:
            return "auto"
        return kept.mode

    def person(self) -> Person:
        kept, now, config = self._known(), self._clock.wall(), self._config().person
        evidence = []
        if (mode := self.mode) != "auto":
            state: PersonState = "present" if mode == "here" else "absent"
            evidence.append(Evidence(EXPLICIT, state, max(now - kept.said_at, 0.0)))
        evidence += [source(now) for name, source in self._sources.items() if name in config.sources]
        return judge_person(evidence, config.present_within)

    def level(self) -> tuple[Presence, int]:
        """What this client vouches for, and the age of what it rests on."""
        ago = None
        if self._proved is not None and self._proved[1] == self._known().proof:
            ago = self._clock.monotonic() - self._proved[0]
        return stated_level(self.person(), ago, self._config().person.window)

    def say(self, mode: Mode) -> None:
        """The person said so himself. Durable when this returns."""
        self._proved = None if mode == "away" else self._proved
        self._change(mode=mode, said_at=self._clock.wall())

    # --- the proof --------------------------------------------------------------------------------------------------

    @property
    def enrolled(self) -> Literal["pin", "totp", ""]:
        """What he proves himself with."""
        return self._known().enrolled

    def enrol(self, pin: str, *, old: str | None) -> None:
        """``pin`` from now on; whoever has one, or codes, gives it first (``old``). `UsageError`, `NotAuthorised`."""
        if not PIN_MIN <= len(pin) <= PIN_MAX:
            raise UsageError(
                f"a PIN has {PIN_MIN} to {PIN_MAX} characters", detail="bad-pin", hint="choose another one"
            )
        self._check_old(old)
        salt = self._entropy.bytes(_SALT_BYTES)
        self._enrol(salt=salt, digest=pin_digest(pin, salt))

    def new_secret(self) -> bytes:
        """Of one-time codes, for `enrol_totp`."""
        return self._entropy.bytes(totp.SECRET_BYTES)

    def enrol_totp(self, secret: bytes, *, code: str | None, old: str | None) -> None:
        """One-time codes from now on. ``code``: one of them, which shows that the person's app has the secret.

        `NotAuthorised`: it is not, or ``old`` is not what was enrolled before.
        """
        step = 0 if code is None else totp.step_of(secret, code, self._clock.wall(), 0)
        if step is None:
            raise NotAuthorised(
                "this is not a code of the new secret", detail="wrong-pin",
                hint="nothing is enrolled; look at the clocks of this machine and of the app",
            )
        self._check_old(old)
        self._enrol(totp=secret, used=step)

    def remove(self, old: str | None) -> None:
        """Neither PIN nor codes from now on. `NotAuthorised`."""
        self._check_old(old)
        self._enrol()

    def _enrol(self, **what: object) -> None:
        nothing = {"salt": b"", "digest": b"", "totp": b"", "used": 0, "wrong": 0}
        self._change(**{**nothing, **what})

    def check(self, pin: str) -> bytes:
        """One try with a PIN or a code, and what was enrolled; blocks for a tenth of a second.

        Wrong tries are counted before it is known that they are wrong, so that nothing that ends this process gives
        another for nothing.

        `NotAuthorised`: ``not-enrolled``, ``wrong-pin``, ``too-many``.
        """
        with self._alone():
            kept, now = self._read(), self._clock.wall()
            if not kept.proof:
                raise NotAuthorised(
                    "neither PIN nor codes are enrolled here", detail="not-enrolled", hint="zkc person enrol"
                )
            wait = _wait_after(kept.wrong)
            since = now - kept.tried_at
            # A clock that was set back makes nobody wait longer than from now.
            if wait and 0 <= since < wait:
                raise NotAuthorised(
                    "too many wrong tries", detail="too-many", hint=f"try again in {int(wait - since) + 1} s"
                )
            self._write(msgspec.structs.replace(kept, wrong=kept.wrong + 1, tried_at=now))
        step = _step(kept, pin, now)
        # Meanwhile the person may have said something, or somebody may have enrolled anew, or used the same code.
        with self._alone():
            present = self._read()
            if present.proof != kept.proof or (kept.totp and present.used >= step):
                raise NotAuthorised(_WRONG_CODE, detail="wrong-pin", hint="try again")
            self._write(msgspec.structs.replace(present, wrong=0, used=max(present.used, step)))
        return kept.proof

    async def prove(self, pin: str) -> None:
        """`check`, off the loop; a right one opens the window of `person.window`."""
        digest = await asyncio.to_thread(self.check, pin)
        self._proved = self._clock.monotonic(), digest

    def _check_old(self, old: str | None) -> None:
        enrolled = self._read().enrolled
        if not enrolled:
            return
        if old is None:
            what = "a PIN is" if enrolled == "pin" else "one-time codes are"
            raise NotAuthorised(f"{what} enrolled here", detail="wrong-pin", hint="give the present one first")
        self.check(old)

    # --- the file ---------------------------------------------------------------------------------------------------

    def _read(self) -> _Kept:
        if not os.path.lexists(self._path):
            return _Kept()
        what = "what is known of the person"
        return read_document(self._path, _Kept, _VERSION, what, hint="remove it, and enrol anew")

    def _known(self) -> _Kept:
        """The same for whoever asks what is known: a file that cannot be read says nothing, and nobody is present."""
        try:
            return self._read()
        except LocalIOError:
            return _Kept()

    def _change(self, **what: Any) -> None:
        with self._alone():
            self._write(msgspec.structs.replace(self._read(), **what))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process or thread changes the file meanwhile. Short: the daemon's loop waits for it too."""
        with files.locked(self._path.with_suffix(".lock"), "what is known of the person"):
            yield

    def _write(self, kept: _Kept) -> None:
        files.write_private(self._path, msgspec.json.encode(kept), replace=True)


def _step(kept: _Kept, pin: str, now: float) -> int:
    """The half minute of a right code, or that of the last one after a right PIN; takes a tenth of a second.
    `NotAuthorised` (``wrong-pin``)."""
    if kept.totp:
        step = totp.step_of(kept.totp, pin, now, kept.used)
        if step is None:
            raise NotAuthorised(_WRONG_CODE, detail="wrong-pin", hint="wait for the next one")
        return step
    with _TURN:
        if not is_pin(pin, kept.salt, kept.digest):
            raise NotAuthorised("this is not the PIN", detail="wrong-pin", hint="try again")
    return kept.used


def _wait_after(wrong: int) -> float:
    """Seconds until the next try may be made."""
    return 0.0 if wrong < _TRIES_FREE else min(_WAIT_FIRST * 2 ** min(wrong - _TRIES_FREE, 10), _WAIT_MAX)
