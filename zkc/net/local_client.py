"""The local control socket: its grammar, and the client of a command.

Imports neither asyncio nor zmq: they would cost a short command more time than its work.

One connection carries one request and the answer to it, which may have several replies::

    request    u32 length, body
    answer     any number of   u32 length, u8 0 (reply),   body
               then one of     u32 length, u8 1 (end)
                               u32 length, u8 2 (failure), `Failed`

Bodies are MessagePack of types that the two programs agree on; ``length`` counts all that follows it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Generator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

from zkc.constants import CONTROL_REQUEST_MAX
from zkc.errors import DaemonError, InternalError, PeerViolation, ZkcError, error_for
from zkc.wire import codec

Rep = TypeVar("Rep", bound=msgspec.Struct)

ANSWER_SECONDS: Final = 10.0
"""How long a client waits for the next reply, unless it says otherwise."""
PATH_MAX: Final = 107
"""Bytes of an AF_UNIX path."""

LENGTH: Final = struct.Struct(">I")
_CREDENTIALS: Final = struct.Struct("=iII")


class Mark(IntEnum):
    """First byte of each frame of an answer."""

    REPLY = 0
    END = 1
    FAILURE = 2


class Failed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A `ZkcError` on its way to the client."""

    code: int
    message: str
    detail: str
    hint: str


@dataclass(frozen=True, slots=True)
class Credentials:
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


def pack_reply(reply: msgspec.Struct) -> bytes:
    return pack(bytes((Mark.REPLY,)) + codec.encode(reply))


def pack_end() -> bytes:
    return pack(bytes((Mark.END,)))


def pack_failure(error: ZkcError) -> bytes:
    return pack(bytes((Mark.FAILURE,)) + codec.encode(Failed(error.code, error.message, error.detail, error.hint)))


def read_answer(body: bytes, reply_type: Any) -> Any:
    """The reply in a frame of an answer, None for its end; raises the `ZkcError` of a failure, `PeerViolation` else."""
    if body[:1] == bytes((Mark.REPLY,)):
        return codec.decode(body[1:], reply_type)
    if body == bytes((Mark.END,)):
        return None
    if body[:1] == bytes((Mark.FAILURE,)):
        failed = codec.decode(body[1:], Failed)
        raise error_for(failed.code, failed.message, detail=failed.detail, hint=failed.hint)
    raise PeerViolation("malformed", "a frame of no kind")


# --- failures, the same for both clients ---------------------------------------------------------------------------


_OTHER_USER: Final = "run it as that user, or in a home of your own"

_START: Final = "start it: zkc daemon, or in a coordinator's home zkc coordinator run"


class NotRunning(DaemonError):
    """Nobody listens there."""


class NoAnswer(DaemonError):
    """It was asked, and kept silent or closed."""


def not_running(path: Path, error: OSError) -> ZkcError:
    """Why nobody answers at ``path``."""
    if isinstance(error, PermissionError):
        return DaemonError(f"{path} belongs to somebody else", detail="permission", hint=_OTHER_USER)
    if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return NotRunning(f"nothing listens at {path}", detail="not-running", hint=_START)
    if isinstance(error, TimeoutError | BlockingIOError):
        # Its queue of connections is full: it is there, and takes none.
        return no_answer(path)
    return NotRunning(f"cannot reach {path}: {error.strerror or error}", detail="not-running", hint=_START)


def no_answer(path: Path) -> ZkcError:
    """It was asked, and kept silent or closed."""
    return NoAnswer(f"no answer from {path}", detail="no-answer", hint="it may have ended, or be stuck: see its log")


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


# --- client --------------------------------------------------------------------------------------------------------


class LocalClient(Generic[Rep]):
    """Asks the process at ``path``; replies are of ``reply_type`` (a Struct class or a union of tagged ones).

    Every failure is a `ZkcError`: `NotRunning`, `NoAnswer` or another `DaemonError` (``permission``, ``bad-answer``)
    where nobody answers, else what the other side raised.
    """

    def __init__(self, path: Path, reply_type: Any) -> None:
        self._path = path
        self._reply_type = reply_type

    def call(self, request: msgspec.Struct, *, within: float | None = ANSWER_SECONDS) -> Rep:
        """The one reply to ``request``; ``within`` in seconds, None: as long as it takes."""
        with contextlib.closing(self.stream(request, within=within)) as replies:
            got = list(replies)
        if len(got) != 1:
            raise bad_answer(self._path, PeerViolation("malformed", f"{len(got)} replies"))
        return got[0]

    def stream(self, request: msgspec.Struct, *, within: float | None = ANSWER_SECONDS) -> Generator[Rep, None, None]:
        """The replies to ``request`` as they come; ``within`` seconds for each, None: as long as it takes.

        Closing the generator early closes the connection, which tells the other side to stop.
        """
        with contextlib.closing(self.ask(request, within=within)) as answer:
            while (reply := answer.next()) is not None:
                yield reply

    def ask(self, request: msgspec.Struct, *, within: float | None = ANSWER_SECONDS) -> Answer[Rep]:
        """The same as an object; `Answer.hang_up` ends it from another thread too."""
        check_path(self._path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(within)
            try:
                sock.connect(os.fspath(self._path))
            except OSError as error:
                raise not_running(self._path, error) from None
            check_server(self._path, credentials(sock))
            frame = pack(codec.encode(request))
            try:
                with contextlib.suppress(ConnectionError):
                    # One that closes without having read it may have said why.
                    sock.sendall(frame)
            except OSError:
                raise no_answer(self._path) from None
        except BaseException:
            sock.close()
            raise
        return Answer(self._path, sock, self._reply_type)


class Answer(Generic[Rep]):
    """What one request is answered, reply by reply."""

    def __init__(self, path: Path, sock: socket.socket, reply_type: Any) -> None:
        self._path = path
        self._sock = sock
        self._reply_type = reply_type

    def next(self) -> Rep | None:
        """The next reply; None: there is no other. The errors of `LocalClient`."""
        try:
            body = _exactly(self._sock, length_of(_exactly(self._sock, LENGTH.size)))
            return cast("Rep | None", read_answer(body, self._reply_type))
        except PeerViolation as violation:
            raise bad_answer(self._path, violation) from None
        except (OSError, EOFError):
            raise no_answer(self._path) from None

    def hang_up(self) -> None:
        """Tell the other side to stop; a thread that waits in `next` learns that nothing comes."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Once no thread is in `next`; again: nothing."""
        self._sock.close()


def _exactly(sock: socket.socket, count: int) -> bytes:
    """``count`` bytes; `EOFError` if the other side closes before, `TimeoutError` if it is silent too long."""
    data = bytearray()
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
