"""The page of metrics over HTTP, for one who comes now and then; on the program's own loop.

One request a connection, so many connections, so many seconds for each, so many bytes: whoever says nothing, or never
reads, is put out, the oldest first where others wait. A page is made once a second at most, however often it is asked
for. Nobody is authenticated, and nothing is encrypted: the door belongs on loopback, or behind a proxy that does both.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections import Counter
from collections.abc import Callable
from typing import Final

from zkc.env import Clock
from zkc.errors import LocalIOError
from zkc.net.sockets import listening_hint
from zkc.rules.endpoints import Endpoint

CONNECTIONS_MAX: Final = 8
REQUEST_MAX: Final = 8 * 1024
"""Bytes."""
SECONDS: Final = 5.0
"""From a connection to its end, whatever its peer does or does not."""
PAGE_SECONDS: Final = 1.0
"""How long a page holds."""
OUTCOMES: Final = ("served", "failed", "bad-request", "too-slow", "gave-way", "hung-up")
_REQUEST: Final = re.compile(rb"(GET|HEAD) (/[^ ?#]*)(?:\?[^ ]*)? HTTP/1\.[01]")
_TEXT: Final = "text/plain; charset=utf-8"


class Door:
    """Where the page is asked for; made and opened by `open_door`. ``page`` makes it, ``kind`` is its content type.

    ``on_failure`` is told of an exception of ``page``.
    """

    def __init__(
        self, page: Callable[[], bytes], kind: str, clock: Clock, on_failure: Callable[[Exception], None],
        *, connections_max: int = CONNECTIONS_MAX, seconds: float = SECONDS,
    ) -> None:
        self._make = page
        self._kind = kind
        self._clock = clock
        self._on_failure = on_failure
        self._connections_max = connections_max
        self.seconds: Final = seconds
        self._open: dict[_Connection, None] = {}
        """The oldest first."""
        self._page = b""
        self._made: float | None = None
        self._server: asyncio.Server | None = None
        self._serves = True
        self.address = ""
        """``HOST:PORT``, with the port that is bound."""
        self.outcomes: Final[Counter[str]] = Counter()

    async def open(self, where: Endpoint) -> None:
        """Listen. `LocalIOError` (``address-in-use``, ``address``)."""
        listening = _listen(where)
        self.address = f"{where.host}:{listening.getsockname()[1]}"
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), sock=listening, backlog=self._connections_max
        )

    def close(self) -> None:
        """Stop listening, and put everybody out."""
        self._serves = False
        if self._server is not None:
            self._server.close()
        for connection in list(self._open):
            connection.put_out("gave-way")

    def came(self, connection: _Connection) -> None:
        if not self._serves:
            connection.put_out("gave-way")  # it was accepted before, and is only told of now
            return
        if len(self._open) >= self._connections_max:
            next(iter(self._open)).put_out("gave-way")
        self._open[connection] = None

    def went(self, connection: _Connection, outcome: str) -> None:
        if connection in self._open:
            del self._open[connection]
            self.outcomes[outcome] += 1

    def answer(self, head: bytes) -> tuple[str, bytes]:
        """What becomes of a request, and what it is answered."""
        match = _REQUEST.fullmatch(head.partition(b"\r\n")[0])
        if match is None:
            return "bad-request", _response("400 Bad Request", _TEXT, b"GET /metrics\n")
        method, path = match.groups()
        if path != b"/metrics":
            return "bad-request", _response("404 Not Found", _TEXT, b"see /metrics\n", method)
        now = self._clock.monotonic()
        if self._made is None or now - self._made >= PAGE_SECONDS:
            try:
                self._page = self._make()
            except Exception as error:  # noqa: BLE001  (whatever it is, the program goes on)
                self._on_failure(error)
                return "failed", _response("500 Internal Server Error", _TEXT, b"see the log\n", method)
            self._made = now
        return "served", _response("200 OK", self._kind, self._page, method)


class _Connection(asyncio.Protocol):
    def __init__(self, door: Door) -> None:
        self._door = door
        self._heard = bytearray()
        self._outcome = ""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise AssertionError("a stream")
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(self._door.seconds, self.put_out, "too-slow")
        self._door.came(self)

    def data_received(self, data: bytes) -> None:
        if self._outcome or self._transport is None:
            return
        self._heard += data
        if b"\r\n\r\n" in self._heard or len(self._heard) > REQUEST_MAX:
            self._outcome, said = self._door.answer(bytes(self._heard[:REQUEST_MAX]))
            self._transport.write(said)
            # Once it is written; `put_out` does not wait for that.
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._door.went(self, self._outcome or "hung-up")

    def put_out(self, why: str) -> None:
        self._door.went(self, why)
        if self._transport is not None:
            self._transport.abort()


def _response(status: str, kind: str, body: bytes, method: bytes = b"GET") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if method == b"HEAD" else body)


def _listen(where: Endpoint) -> socket.socket:
    everywhere = where.host == "*"
    host = "" if everywhere else where.host.strip("[]")
    is_six = ":" in host or (everywhere and socket.has_dualstack_ipv6())
    family = socket.AF_INET6 if is_six else socket.AF_INET
    told = f"{where.host}:{where.port}"
    try:
        return socket.create_server((host, where.port), family=family, dualstack_ipv6=everywhere and is_six)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise LocalIOError(
                f"metrics.listen: {told} is in use by another program", detail="address-in-use",
                hint="end that program, or name another port",
            ) from None
        why = errno.errorcode.get(error.errno or 0, "") if error.strerror is None else error.strerror.partition(" (")[0]
        raise LocalIOError(
            f"metrics.listen: cannot listen on {told}: {why}", detail="address",
            hint=listening_hint(error.errno),
        ) from None
