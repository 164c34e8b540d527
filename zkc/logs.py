"""The log of both programs: one event a line on stderr, as JSON or for people, never with a secret in it.

Log with bound ids: ``log = get_logger().bind(client=name)``, ``log.info("registered", fingerprint=...)``. Every event
passes `redact_secrets`, whatever the caller gave.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TextIO

import structlog

from zkc.crypto.primitives import Secret
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import KemPrivateKey
from zkc.rules.names import escape
from zkc.stores.files import write_all

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
REDACTED: Final = "[redacted]"
REPEAT_SECONDS: Final = 10.0
"""One warning of a kind in so many seconds; those between are counted."""
_KINDS_MAX: Final = 256
_OTHERS: Final = ""
"""The kind of all that find no place."""
_DEPTH_MAX: Final = 8

_SECRET_WORDS: Final = frozenset(
    {
        "secret", "secrets", "private", "psk", "seed", "password", "passphrase", "pin", "totp", "token", "prk",
        "invitation", "plaintext", "credentials", "k",
    }
)
_WORDS: Final = re.compile(r"[^A-Za-z0-9]+")
_INVITATION: Final = re.compile(r"zkc[0-9]+-[A-Za-z0-9_=-]{16,}")


def configure(form: str, level: str, stream: TextIO | None = None) -> None:
    """Log from ``level`` on to ``stream`` (stderr); ``form``: ``json``, ``console``, or ``auto`` by the terminal."""
    out = stream or sys.stderr
    lines = _Lines(out)
    for_people = form == "console" or (form == "auto" and out.isatty())
    colours = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in {"", "dumb"}
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback)
        if for_people
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(() if for_people else (structlog.processors.format_exc_info,)),
            redact_secrets,
            *((escape_text,) if for_people else ()),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,
    )


class _Lines:
    """A stream of lines, under the method of each level. One that cannot be written is lost: whoever reads the log may
    go, and its disk may be full, and the program goes on."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: it was closed
            try:
                descriptor = self._out.fileno()
            except io.UnsupportedOperation:
                self._out.write(f"{line}\n")
            else:
                # Past the buffer, whose rest would make the interpreter's end a failure.
                write_all(descriptor, f"{line}\n".encode(errors="backslashreplace"))

    debug = info = warning = error = critical = msg


def get_logger(**ids: object) -> Any:
    """A logger with ``ids`` bound to each of its events."""
    return structlog.get_logger(**ids)


def redact_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: what is secret by its key's name, by its type or by its look does not pass.

    Bytes never pass: what may be shown is given as text (hex). Works inside lists and dicts.
    """
    return {key: _clean(key, value, 0) for key, value in event.items()}


def escape_text(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: text that a peer may have chosen moves no cursor and begins no line (attack F07)."""
    return {
        key: escape(value) if isinstance(value, str) and key not in ("exception", "timestamp", "level") else value
        for key, value in event.items()
    }


def _clean(key: str, value: Any, depth: int) -> Any:
    if isinstance(value, Secret | KemPrivateKey | IdentityKey) or depth > _DEPTH_MAX:
        return REDACTED
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value)} bytes]"
    if not _SECRET_WORDS.isdisjoint(_WORDS.split(key.lower())) and not isinstance(value, bool | float | None):
        return REDACTED
    if isinstance(value, str):
        return _INVITATION.sub(REDACTED, value)
    if isinstance(value, dict):
        return {str(inner): _clean(str(inner), each, depth + 1) for inner, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(key, each, depth + 1) for each in value]
    if isinstance(value, int | float | bool | None):
        return value
    if key == "exc_info":
        return value
    return _INVITATION.sub(REDACTED, str(value))


@dataclass(slots=True)
class _Kind:
    since: float
    withheld: int = 0


class Repeats:
    """Lets one event of a kind through in `REPEAT_SECONDS`, and then says how many it withheld. Bounded: once there are
    too many kinds, those that are new count as one."""

    def __init__(self, monotonic: Callable[[], float], seconds: float = REPEAT_SECONDS) -> None:
        self._monotonic = monotonic
        self._seconds = seconds
        self._kinds: dict[str, _Kind] = {}

    def passes(self, kind: str) -> int | None:
        """None: withhold it. Else the number of events of this kind withheld since the last one that passed."""
        now = self._monotonic()
        if kind not in self._kinds and len(self._kinds) >= _KINDS_MAX:
            self._kinds = {name: known for name, known in self._kinds.items() if now - known.since < self._seconds}
            if len(self._kinds) >= _KINDS_MAX:
                kind = _OTHERS
        known = self._kinds.get(kind)
        if known is not None and now - known.since < self._seconds:
            known.withheld += 1
            return None
        self._kinds[kind] = _Kind(now)
        return known.withheld if known is not None else 0

    def tell(self, log: Any, level: str, event: str, about: tuple[object, ...], **ids: object) -> None:
        """``event`` with ``ids`` to ``log`` at ``level`` ("warning"), for what a peer can cause as often as it likes.

        ``about``, with the event, is its kind; what is withheld is still written at level "debug".
        """
        withheld = self.passes(f"{event} {about}")
        if withheld is None:
            log.debug(event, **ids)
        else:
            getattr(log, level)(event, **ids, **({"withheld": withheld} if withheld else {}))
