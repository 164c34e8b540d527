"""What a command hands to the daemon of the home, a small payload whole and a file by its path: the command then needs
no key, no socket of ZeroMQ and no event loop, whose imports take longer than most transfers (decisions 0007, 0026).

This is the command's half; `zkc.client.handed` is the daemon's. Imports hardly more than the standard library.
"""

from __future__ import annotations

import json
import os
import select
import stat
from binascii import b2a_base64
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final, Literal, NamedTuple

from zkc.client.events import Delivery, Event, Granted, Options, Pending, Progress, Requested, WouldAccept
from zkc.constants import CONTROL_REQUEST_MAX, HOLES_MIN, SMALL_MAX
from zkc.env import Clock
from zkc.errors import DaemonError, Interrupted, PeerViolation
from zkc.ids import VARIABLES
from zkc.net.local_frames import ANSWER_SECONDS, HungUp, NotRunning, bad_answer, exchange
from zkc.stores.files import check_file
from zkc.stores.home import Home

STREAM_SECONDS: Final = 0.05
"""How long a pipe may take to end that is to count as small: less than the imports that a large one costs anyway."""
GIVEN_BACK: Final = frozenset({"not-here", "too-many-files"})
"""Details of a daemon that lets the command send a file by itself."""
_GRACE_SECONDS: Final = 1.0
"""What a daemon has for its answer beyond ``--timeout``, which it counts itself."""


class Small(NamedTuple):
    """A payload that is here whole. Goes over the control socket in this order, as `OnDisk` does."""

    kind: Literal["file", "stream", "message"]
    name: str
    """What it is called where nobody says otherwise."""
    data: bytes
    mode: int = 0o600
    modified_ns: int = 0
    path: str = ""
    """Of a file: its real one."""


class OnDisk(NamedTuple):
    """A regular file that the daemon reads by itself."""

    name: str
    """What it is called where nobody says otherwise."""
    path: str
    """Its real one."""
    device: int
    inode: int
    """Both as the command sees it: under another root or another mount there is something else at that path."""


class Notice(NamedTuple):
    """Something that the user should know."""

    text: str


class Waiting(NamedTuple):
    """Nothing new; the daemon lives."""


class Undone(NamedTuple):
    """The daemon does not send it, or no more: the command does."""

    begun: bool = False
    """Whether some of it may have left, and the command goes on with that."""


Told = Event | Notice | Waiting | Delivery | WouldAccept
EVENTS: Final[dict[str, type[Told]]] = {
    kind.__name__: kind for kind in (Requested, Pending, Granted, Progress, Notice, Waiting, Delivery, WouldAccept)
}
"""What a daemon tells, by name; the last two are how it ends."""


# --- what can be handed over ----------------------------------------------------------------------------------------


def look_at(payload: str | Path | BinaryIO, clock: Clock) -> tuple[Small | OnDisk | None, bytes]:
    """``payload`` whole, if it is small, or which file it is; else None, and what was read of a stream, which the
    sender has to put first.

    A file that is odd in any way is neither: who opens it next says what is wrong with it.
    """
    if isinstance(payload, str):
        try:
            return Small("message", "message", payload.encode(errors="surrogateescape")), b""
        except UnicodeEncodeError:
            return None, b""
    if isinstance(payload, Path):
        return _read_file(payload), b""
    head, ended = _read_stream(payload.fileno(), clock)
    return (Small("stream", "stdin", head) if ended else None), head


def _read_file(path: Path) -> Small | OnDisk | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode) or before.st_size - before.st_blocks * 512 >= HOLES_MIN:
            return None
        if before.st_size > SMALL_MAX:
            return OnDisk(path.name, os.path.realpath(path), before.st_dev, before.st_ino)
        data = os.read(descriptor, before.st_size + 1)
        after = os.fstat(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if len(data) != before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return None
    mode, modified = stat.S_IMODE(before.st_mode), max(before.st_mtime_ns, 0)
    return Small("file", path.name, data, mode, modified, os.path.realpath(path))


def _read_stream(descriptor: int, clock: Clock) -> tuple[bytes, bool]:
    """At most one byte more than is small, and whether the stream ended; in `STREAM_SECONDS` at most."""
    data = bytearray()
    if os.isatty(descriptor):
        return b"", False
    until = clock.monotonic() + STREAM_SECONDS
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while len(data) <= SMALL_MAX:
        try:
            if not poll.poll(max(until - clock.monotonic(), 0) * 1000):
                break
            part = os.read(descriptor, SMALL_MAX + 1 - len(data))
        except OSError:
            break
        if not part:
            return bytes(data), True
        data += part
    return bytes(data), False


# --- handing over --------------------------------------------------------------------------------------------------


def hand_over(
    home: Home, recipient: str, payload: Small | OnDisk, name: str | None, note: str, options: Options,
    environ: Mapping[str, str], on_event: Callable[[Event | Notice], None],
) -> Delivery | WouldAccept | Undone:
    """Have the daemon of ``home`` deliver ``payload``; blocks until it has.

    `Undone` where no daemon runs, or it ended, or has no place, or what is given cannot be handed over. Of what is
    small no byte has left then. Every failure is a `ZkcError` with the contract's code. Ended early, the daemon ends it
    too.
    """
    if not os.path.lexists(home.keys_db):
        return Undone()
    check_file(home.keys_db)
    variables = {key: value for key, value in environ.items() if key.startswith("ZKC_") and key not in VARIABLES}
    small, file = (payload, None) if isinstance(payload, Small) else (None, payload)
    job = {
        "recipient": recipient, "small": small, "file": file, "name": name, "note": note, "options": options,
        "config_file": os.fspath(home.config_file), "variables": variables,
    }
    try:
        request = json.dumps(["send", job], default=_base64, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Undone()
    if len(request) > CONTROL_REQUEST_MAX:
        return Undone()
    within = ANSWER_SECONDS if options.timeout is None else min(options.timeout + _GRACE_SECONDS, ANSWER_SECONDS)
    path = home.socket_path()
    done: Delivery | WouldAccept | None = None
    granted = False
    try:
        with closing(exchange(path, request, within)) as replies:
            for reply in replies:
                told = _read(path, reply)
                if isinstance(told, Delivery | WouldAccept):
                    done = told
                elif not isinstance(told, Waiting):
                    granted = granted or isinstance(told, Granted)
                    on_event(told)
    except NotRunning:
        return Undone()
    except DaemonError as error:
        if granted and isinstance(payload, OnDisk) and isinstance(error, HungUp):
            return Undone(begun=True)
        if granted:
            raise Interrupted(
                f"the daemon that sent it to {recipient} gave no answer", detail="daemon",
                hint=f"ask {recipient} whether it has arrived, before you send it again",
            ) from None
        # It lets no byte leave before it has told of the grant. Where it ended, or may come back, it is waited for.
        if isinstance(error, HungUp) or options.wait is not None or error.detail in GIVEN_BACK:
            return Undone()
        raise
    if done is None:
        raise bad_answer(path, PeerViolation("malformed", "an answer without an end"))
    return done


def as_told(event: Told) -> tuple[str, dict[str, object]]:
    """``event`` for the way to the command: its name, and its fields as JSON has them."""
    fields = {key: os.fspath(value) if isinstance(value, Path) else value for key, value in event._asdict().items()}
    return type(event).__name__, fields


def _read(path: Path, reply: bytes) -> Told:
    try:
        _tag, name, fields = json.loads(reply)
        if "receipt" in fields:
            fields["receipt"] = Path(fields["receipt"])
        kind = EVENTS[name]
        # A daemon of a later version may tell more.
        return kind(**{key: value for key, value in fields.items() if key in kind._fields})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise bad_answer(path, PeerViolation("malformed", "an event of another form")) from None


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode()
