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
"""From the connection to the end of its request; then it is closed."""

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
        self._handler = handler
        self._request_type = request_type
        self._on_refused = on_refused
        self._connections_max = connections_max
        self._request_seconds = request_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def start(self) -> None:
        """Claim the path and listen; see `serve_local`."""
        sock = _claim(self.path)
        self._inode = os.lstat(self.path).st_ino
        self._server = await asyncio.start_unix_server(self._connected, sock=sock)

    async def close(self) -> None:
        """Stop listening, end every connection and its handler, remove the socket. Again: nothing."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            if os.lstat(self.path).st_ino == self._inode:
                self.path.unlink()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = credentials(writer.get_extra_info("socket"))
        if not may_talk(peer.uid, os.geteuid()):
            writer.transport.abort()
            self._refused("foreign-uid", peer)
            return
        if len(self._tasks) >= self._connections_max:
            writer.write(_TOO_MANY)
            writer.close()
            self._refused("too-many", peer)
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _refused(self, why: str, peer: Credentials) -> None:
        if self._on_refused is not None:
            self._on_refused(why, peer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Credentials) -> None:
        """One connection: one request, its answer, the end."""
        try:
            request = await self._request(reader)
            if request is not None:
                await self._while_listening(reader, self._answer(writer, request, peer))
        except PeerViolation as violation:
            self._refused(violation.detail, peer)
        except ConnectionError:
            pass  # It hung up: nobody is left to be told.
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> Req | None:
        """The request of a connection, None if it never began one."""
        header = body = b""
        try:
            async with asyncio.timeout(self._request_seconds):
                header = await reader.read(1)
                if not header:
                    return None
                header += await reader.readexactly(LENGTH.size - 1)
                body = await reader.readexactly(length_of(header))
        except TimeoutError:
            if not header:
                return None
            raise PeerViolation("half-request", "not whole in time") from None
        except asyncio.IncompleteReadError:
            raise PeerViolation("half-request", "closed in the middle") from None
        return cast("Req", decode(body, self._request_type))

    async def _while_listening(self, reader: asyncio.StreamReader, answer: Any) -> None:
        """Run ``answer`` until it is done or the client hangs up; bytes after the request are a violation."""
        loop = asyncio.get_running_loop()
        answering: asyncio.Task[None] = loop.create_task(answer)
        listening = loop.create_task(reader.read(1))
        try:
            await asyncio.wait((answering, listening), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
            elif listening.result():
                raise PeerViolation("malformed", "bytes after the request")
        finally:
            for task in (answering, listening):
                task.cancel()
            await asyncio.gather(answering, listening, return_exceptions=True)

    async def _answer(self, writer: asyncio.StreamWriter, request: Req, peer: Credentials) -> None:
        try:
            async with contextlib.aclosing(self._handler(request, peer)) as replies:
                async for reply in replies:
                    writer.write(pack_reply(encode(reply)))
                    await writer.drain()
            writer.write(pack_end())
        except ZkcError as error:
            writer.write(pack_failure(error))
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001  (a defect in one request is no end of the process)
            context = {"message": "a control request failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
            writer.write(pack_failure(InternalError("the request failed", hint="see the log of the process asked")))
        await writer.drain()


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
