"""The local control socket: its frames, who is at the other end, and one exchange.

A connection carries a request and the answer to it, which may have several replies; after its end another request::

    request    u32 length, body
    answer     any number of   u32 length, u8 0 (reply),   body
               then one of     u32 length, u8 1 (end)
                               u32 length, u8 2 (failure), {"code", "message", "detail", "hint"}

Bodies are JSON (bytes in it: base64) of types that the two programs agree on; ``length`` counts all that follows it.
This module needs the standard library alone, and little of it: a short command would pay more for an import than for
its work.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Generator
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

from zkc.constants import CONTROL_REQUEST_MAX
from zkc.errors import DaemonError, InternalError, PeerViolation, ZkcError, error_for

ANSWER_SECONDS: Final = 10.0
"""How long a client waits for the next reply, unless it says otherwise."""
ALIVE_SECONDS: Final = 2.0
"""Where the answer takes longer the other side says at least so often that it lives, in a reply of its own."""
KEPT_SECONDS: Final = 2.0
"""How long a client keeps a connection for its next request; the other side keeps it longer."""
PATH_MAX: Final = 107
"""Bytes of an AF_UNIX path."""

LENGTH: Final = struct.Struct(">I")
_CREDENTIALS: Final = struct.Struct("=iII")


class Mark(IntEnum):
    """First byte of each frame of an answer."""

    REPLY = 0
    END = 1
    FAILURE = 2


class Credentials(NamedTuple):
    """Who is at the other end, by the kernel's word (SO_PEERCRED)."""

    pid: int
    uid: int


def credentials(sock: socket.socket) -> Credentials:
    """The other end of a connected AF_UNIX socket."""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(found)
    return Credentials(pid, uid)


def may_talk(peer_uid: int, own_uid: int) -> bool:
    """Whether a process of ``peer_uid`` may use the control socket of one of ``own_uid``: the same user, or root."""
    return peer_uid in (own_uid, 0)


# --- grammar -------------------------------------------------------------------------------------------------------


def pack(body: bytes) -> bytes:
    """``body`` as a frame; `InternalError` if it is longer than the other side takes."""
    if len(body) > CONTROL_REQUEST_MAX:
        raise InternalError("a control message is too long", detail="limit")
    return LENGTH.pack(len(body)) + body


def length_of(header: bytes) -> int:
    """Bytes that follow the four of ``header``; `PeerViolation` (``limit``, ``malformed``) for too many, or none."""
    length = int(LENGTH.unpack(header)[0])
    if length > CONTROL_REQUEST_MAX:
        raise PeerViolation("limit", f"a control message of {length} bytes")
    if length == 0:
        raise PeerViolation("malformed", "an empty control message")
    return length


def pack_reply(body: bytes) -> bytes:
    return pack(bytes((Mark.REPLY,)) + body)


def pack_end() -> bytes:
    return pack(bytes((Mark.END,)))


def pack_failure(error: ZkcError) -> bytes:
    failed = {"code": error.code, "message": error.message, "detail": error.detail, "hint": error.hint}
    return pack(bytes((Mark.FAILURE,)) + json.dumps(failed).encode())


def read_answer(frame: bytes) -> bytes | None:
    """The body of a reply, None for the end of the answer; raises the `ZkcError` of a failure, `PeerViolation` else."""
    mark, body = frame[:1], frame[1:]
    if mark == bytes((Mark.REPLY,)):
        return body
    if frame == bytes((Mark.END,)):
        return None
    if mark == bytes((Mark.FAILURE,)):
        raise _failure(body)
    raise PeerViolation("malformed", "a frame of no kind")


def _failure(body: bytes) -> ZkcError:
    """A `ZkcError` on its way to the client."""
    try:
        failed = json.loads(body)
        code, *texts = (failed[key] for key in ("code", "message", "detail", "hint"))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise PeerViolation("malformed", "a failure of another form") from None
    if type(code) is not int or not all(isinstance(text, str) for text in texts):
        raise PeerViolation("malformed", "a failure of another form")
    message, detail, hint = texts
    return error_for(code, message, detail=detail, hint=hint)


# --- failures ---------------------------------------------------------------------------


_OTHER_USER: Final = "run it as that user, or in a home of your own"

_START: Final = "start it: zkc daemon, or in a coordinator's home zkc coordinator run"


class NotRunning(DaemonError):
    """Nobody listens there."""


class NoAnswer(DaemonError):
    """It was asked, and kept silent or closed."""


class HungUp(NoAnswer):
    """It closed the connection before the answer was whole."""


def not_running(path: Path, error: OSError) -> ZkcError:
    """Why nobody answers at ``path``."""
    if isinstance(error, PermissionError):
        return DaemonError(f"{path} belongs to somebody else", detail="permission", hint=_OTHER_USER)
    if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return NotRunning(f"nothing runs here: no process listens at {path}", detail="not-running", hint=_START)
    if isinstance(error, TimeoutError | BlockingIOError):
        # Its queue of connections is full: it is there, and takes none.
        return no_answer(path)
    return NotRunning(f"cannot reach {path}: {error.strerror or error}", detail="not-running", hint=_START)


def no_answer(path: Path, kind: type[NoAnswer] = NoAnswer) -> ZkcError:
    """It was asked, and kept silent or closed."""
    return kind(f"no answer from {path}", detail="no-answer", hint="it may have ended, or be stuck: see its log")


def bad_answer(path: Path, violation: PeerViolation) -> ZkcError:
    """It answered in a way that this version does not understand."""
    return DaemonError(
        f"{path} gave an answer that makes no sense here ({violation.detail})",
        detail="bad-answer",
        hint="after an upgrade, start it again",
    )


def check_server(path: Path, server: Credentials) -> None:
    """`DaemonError` (``permission``) unless it is our own process, or root's, that listens; root may talk to any."""
    own = os.geteuid()
    if own != 0 and not may_talk(server.uid, own):
        raise DaemonError(f"{path} is served by another user ({server.uid})", detail="permission", hint=_OTHER_USER)


def check_path(path: Path) -> None:
    """`DaemonError` (``path-too-long``) for a path that AF_UNIX cannot hold."""
    if len(os.fsencode(path)) > PATH_MAX:
        raise DaemonError(f"{path} is too long for a socket", detail="path-too-long", hint=f"at most {PATH_MAX} bytes")


# --- one exchange --------------------------------------------------------------------------------------------------


def exchange(path: Path, request: bytes, within: float | None = ANSWER_SECONDS) -> Generator[bytes, None, None]:
    """The bodies of the replies to ``request`` as they come; ``within`` seconds for each, None: as long as it takes.

    Every failure is a `ZkcError`: `NotRunning`, `NoAnswer` or another `DaemonError` (``permission``, ``bad-answer``)
    where nobody answers, else what the other side raised. Closing the generator early closes the connection, which
    tells the other side to stop.
    """
    with dial(path, request, within) as sock:
        while (reply := next_reply(path, sock)) is not None:
            yield reply


def dial(path: Path, request: bytes, within: float | None) -> socket.socket:
    """A connection on which ``request`` has been sent; see `exchange`."""
    check_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(within)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            raise not_running(path, error) from None
        check_server(path, credentials(sock))
        send(path, sock, request)
    except BaseException:
        sock.close()
        raise
    return sock


def send(path: Path, sock: socket.socket, request: bytes) -> None:
    """``request`` on a connection on which none is being answered; see `exchange`."""
    frame = pack(request)
    try:
        with contextlib.suppress(ConnectionError):
            # One that closes without having read it may have said why.
            sock.sendall(frame)
    except OSError:
        raise no_answer(path) from None


def next_reply(path: Path, sock: socket.socket) -> bytes | None:
    """The body of the next reply; None: there is no other. See `exchange`."""
    try:
        return read_answer(_exactly(sock, length_of(_exactly(sock, LENGTH.size))))
    except PeerViolation as violation:
        raise bad_answer(path, violation) from None
    except (ConnectionError, EOFError):
        raise no_answer(path, HungUp) from None
    except OSError:
        raise no_answer(path) from None


def _exactly(sock: socket.socket, count: int) -> bytes:
    """``count`` bytes; `EOFError` if the other side closes before, `TimeoutError` if it is silent too long."""
    data = bytearray()
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
