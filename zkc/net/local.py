"""The local control socket of a daemon or coordinator, and the client of an asyncio program.

AF_UNIX, for the owner alone: a 0600 socket in a 0700 folder, and SO_PEERCRED asked of each connection. (ZeroMQ's ``ipc://``
would delete what it finds at the path, and take over an endpoint that lives.) `zkc.net.local_frames` has the grammar.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

from zkc.constants import CONTROL_CONNECTIONS_MAX
from zkc.errors import DaemonError, InternalError, LocalIOError, PeerViolation, ZkcError
from zkc.net.local_client import Rep, decode, encode
from zkc.net.local_frames import (
    LENGTH,
    Credentials,
    check_path,
    credentials,
    length_of,
    may_talk,
    pack_end,
    pack_failure,
    pack_reply,
)

Req = TypeVar("Req")

Handler = Callable[[Req, Credentials], AsyncGenerator[Rep, None]]
"""Answers a request with any number of replies; cancelled when its client hangs up. A `ZkcError` reaches the client."""
OnRefused = Callable[[str, Credentials], None]
"""Told why a connection was closed: ``foreign-uid``, ``too-many``, ``malformed``, ``limit``, ``half-request``."""

REQUEST_SECONDS: Final = 5.0
"""From the connection, or the end of an answer, to the end of a request; then it is closed. Above `KEPT_SECONDS`."""

_TOO_MANY: Final = pack_failure(
    DaemonError("the process here serves too many commands at once", detail="too-many", hint="run it again")
)


class LocalServer(Generic[Req, Rep]):
    """A control socket that is served; made by `serve_local`."""

    def __init__(
        self,
        path: Path,
        handler: Handler[Req, Rep],
        request_type: Any,
        on_refused: OnRefused | None,
        connections_max: int,
        request_seconds: float,
    ) -> None:
        self.path: Final = path
        self.handler: Final = handler
        self.request_type: Final = request_type
        self.request_seconds: Final = request_seconds
        self._on_refused = on_refused
        self._connections_max = connections_max
        self._connections: set[_Connection[Req, Rep]] = set()
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def start(self) -> None:
        """Claim the path and listen; see `serve_local`."""
        sock = _claim(self.path)
        self._inode = os.lstat(self.path).st_ino
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), sock=sock)

    async def close(self) -> None:
        """Stop listening, end every connection and its handler, remove the socket. Again: nothing."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        await asyncio.gather(*(connection.abort() for connection in self._connections))
        with contextlib.suppress(OSError):
            if os.lstat(self.path).st_ino == self._inode:
                self.path.unlink()

    # --- for its connections ----------------------------------------------------------------------------------------

    def admit(self, connection: _Connection[Req, Rep]) -> bool:
        """Whether there is a place for it: until `leave`."""
        if len(self._connections) >= self._connections_max:
            return False
        self._connections.add(connection)
        return True

    def leave(self, connection: _Connection[Req, Rep]) -> None:
        """Again: nothing."""
        self._connections.discard(connection)

    def refused(self, why: str, peer: Credentials) -> None:
        """See `OnRefused`."""
        if self._on_refused is not None:
            self._on_refused(why, peer)


class _Connection(asyncio.Protocol, Generic[Req, Rep]):
    """One connection: a request, its answer, and so on.

    Not over asyncio's streams: a reader, a writer, and two more tasks to hear of a client that hangs up took twice the
    time of a short answer.
    """

    def __init__(self, server: LocalServer[Req, Rep]) -> None:
        self._server = server
        self._request = bytearray()
        """What came of it so far."""
        self._overdue: asyncio.TimerHandle | None = None
        self._answering: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        """Done when the client has read enough of what was written; None: it may be written."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._peer = peer = credentials(transport.get_extra_info("socket"))
        if not may_talk(peer.uid, os.geteuid()):
            self._transport.abort()
            self._server.refused("foreign-uid", peer)
        elif not self._server.admit(self):
            self._transport.write(_TOO_MANY)
            self._transport.close()
            self._server.refused("too-many", peer)
        else:
            self._await_request()

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return  # refused
        self._request += data
        try:
            if self._answering is not None:
                raise PeerViolation("malformed", "bytes after the request")
            if len(self._request) < LENGTH.size:
                return
            end = LENGTH.size + length_of(bytes(self._request[: LENGTH.size]))
            if len(self._request) < end:
                return
            if len(self._request) > end:
                raise PeerViolation("malformed", "bytes after the request")
            request = cast("Req", decode(bytes(self._request[LENGTH.size :]), self._server.request_type))
        except PeerViolation as violation:
            self._server.refused(violation.detail, self._peer)
            self._end()
            return
        self._stop_clock()
        self._answering = asyncio.get_running_loop().create_task(self._answer(request))
        # Not at its end: one that is cancelled before its first step has none.
        self._answering.add_done_callback(self._answered)

    def eof_received(self) -> None:
        """The client hangs up; the transport closes by itself."""
        if self._answering is None and self._request and not self._transport.is_closing():
            self._server.refused("half-request", self._peer)
        self._end()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()

    def pause_writing(self) -> None:
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    async def abort(self) -> None:
        """At once, whatever was not written; returns when its handler has ended."""
        self._transport.abort()
        self._end()
        if self._answering is not None:
            await asyncio.wait([self._answering])

    def _await_request(self) -> None:
        self._answering = None
        self._request.clear()
        self._overdue = asyncio.get_running_loop().call_later(self._server.request_seconds, self._give_up)

    def _give_up(self) -> None:
        """The request is not here in time; who never began one is told of to nobody."""
        if self._request:
            self._server.refused("half-request", self._peer)
        self._end()

    def _stop_clock(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()

    def _end(self) -> None:
        """Nobody waits for the answer any more. Again: nothing."""
        self._stop_clock()
        self._transport.close()
        if self._answering is None:
            self._server.leave(self)
        else:
            self._answering.cancel()

    async def _answer(self, request: Req) -> None:
        try:
            async with contextlib.aclosing(self._server.handler(request, self._peer)) as replies:
                async for reply in replies:
                    self._transport.write(pack_reply(encode(reply)))
                    await self._have_room()
            self._transport.write(pack_end())
            if not self._transport.is_closing():
                self._await_request()
        except ZkcError as error:
            self._transport.write(pack_failure(error))
        except Exception as error:  # noqa: BLE001  (a defect in one request is no end of the process)
            context = {"message": "a control request failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
            failure = InternalError("the request failed", hint="see the log of the process asked")
            self._transport.write(pack_failure(failure))

    def _answered(self, task: asyncio.Task[None]) -> None:
        if self._answering is task:  # else it waits for the next request, or answers that
            self._transport.close()
            self._server.leave(self)

    async def _have_room(self) -> None:
        if self._room is not None:
            await self._room


async def serve_local(
    path: Path,
    handler: Handler[Req, Rep],
    request_type: Any,
    *,
    on_refused: OnRefused | None = None,
    connections_max: int = CONTROL_CONNECTIONS_MAX,
    request_seconds: float = REQUEST_SECONDS,
) -> LocalServer[Req, Rep]:
    """Serve requests of ``request_type`` (a Struct class or a union of tagged ones) at ``path``.

    The home has prepared the place (`Home.prepare_socket`). Whatever stands at ``path`` is left there: `LocalIOError`
    (``socket``); `DaemonError` (``path-too-long``).
    """
    server = LocalServer(path, handler, request_type, on_refused, connections_max, request_seconds)
    await server.start()
    return server


# --- the path ------------------------------------------------------------------------------------------------------


def _claim(path: Path) -> socket.socket:
    """A socket bound to ``path``, mode 0600 from its first moment."""
    check_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the file the mode of the socket: no umask to change for all threads, no moment with a looser mode.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(os.fspath(path))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise LocalIOError(f"cannot make the control socket {path}: {error.strerror}", detail="socket") from None
    return sock
