"""Who may connect: libzmq asks ``inproc://zeromq.zap.01`` of a context once for each connection (ZAP 1.0, RFC 27).

The answer is 200 with a User-Id, 400 for a peer that may not connect, or, from an `AsyncZap`, 500 for one that cannot
be let in now; libzmq hands the peer 400 and 500 as they are. Never 300 (libzmq would let the peer try again on a
connection that stays half open). Start the handler before any socket binds: without it nobody is admitted.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import zmq

from zkc.errors import InternalError, PeerViolation
from zkc.net.descriptors import descriptors
from zkc.net.monitor import AsyncMonitor, EventKind, SocketEvent
from zkc.net.sockets import Context, Socket, connect_dealer, generate_curve, new_socket, plain_address, reach_locally

if TYPE_CHECKING:
    import asyncio

ENDPOINT: Final = "inproc://zeromq.zap.01"
SELF_TEST_SECONDS: Final = 5.0

_VERSION: Final = b"1.0"
REFUSED: Final = 400
OVERLOADED: Final = 500
_CREDENTIALS: Final = {"NULL": 0, "PLAIN": 2, "CURVE": 1}


@dataclass(frozen=True, slots=True)
class ZapRequest:
    """A peer at the door."""

    request_id: bytes
    domain: str
    address: str
    """The peer's IP address."""
    mechanism: str
    credentials: tuple[bytes, ...] = field(repr=False)
    """CURVE: the public key, 32 bytes, proved. PLAIN: user, password."""


class Overloaded(Exception):
    """Raised by `Admit`: the peer may connect, but not now."""


Admit = Callable[[ZapRequest], "str | None"]
"""The User-Id of a peer that may connect, or None. An exception keeps it out too."""
OnError = Callable[[Exception], None]


def parse(frames: Sequence[bytes]) -> ZapRequest:
    """The request in ZAP's frames: version, request id, domain, address, routing id, mechanism, credentials.

    The routing id is not what the peer claims but our own socket's (measured): it is left out.
    `PeerViolation` (``malformed``) for another form, another mechanism, or credentials that do not fit it.
    """
    if len(frames) < 6 or frames[0] != _VERSION:
        raise PeerViolation("malformed", "not a ZAP 1.0 request")
    try:
        domain, address, mechanism = (frames[at].decode("ascii") for at in (2, 3, 5))
    except UnicodeDecodeError:
        raise PeerViolation("malformed", "a ZAP request that is not ASCII") from None
    credentials = tuple(frames[6:])
    if _CREDENTIALS.get(mechanism) != len(credentials):
        raise PeerViolation("malformed", "credentials that do not fit the mechanism")
    if mechanism == "CURVE" and len(credentials[0]) != 32:
        raise PeerViolation("malformed", "a CURVE key that is not 32 bytes")
    return ZapRequest(frames[1], domain, plain_address(address), mechanism, credentials)


def reply(request: ZapRequest, user_id: str | None) -> list[bytes]:
    """The frames that admit the peer as ``user_id`` (ASCII, 1 to 255 characters), or with None refuse it."""
    if user_id is None:
        return _refusal(request.request_id, REFUSED)
    if not user_id or len(user_id) > 255 or not user_id.isascii():
        raise ValueError("a User-Id is 1 to 255 ASCII characters")
    return [_VERSION, request.request_id, b"200", b"", user_id.encode("ascii"), b""]


def answer(frames: Sequence[bytes], admit: Admit, on_error: OnError, failed: int = REFUSED) -> list[bytes]:
    """The answer to a request, whatever happens: refused where it is malformed, ``failed`` where ``admit`` raises."""
    status = failed
    try:
        request = parse(frames)
        return reply(request, admit(request))
    except PeerViolation:
        status = REFUSED
    except Overloaded:
        pass
    except Exception as error:  # noqa: BLE001  (a door whose keeper has failed stays shut)
        on_error(error)
    return _refusal(frames[1] if len(frames) > 1 else b"", status)


def _refusal(request_id: bytes, status: int) -> list[bytes]:
    return [_VERSION, request_id, b"%d" % status, b"", b"", b""]


class AsyncZap:
    """The ZAP handler of ``ctx`` on an asyncio loop; errors of ``admit`` go to the loop's exception handler.

    While ``admit`` raises, whoever knocks is answered 500.
    """

    def __init__(self, ctx: Context, loop: asyncio.AbstractEventLoop, admit: Admit) -> None:
        from zkc.net.loopsocket import EdgeReader  # noqa: PLC0415 - asyncio costs, and a transfer needs none

        self._loop = loop
        self._admit = admit
        self._sock = sock = _bind(ctx)
        self._reader = EdgeReader(sock, lambda: sock.recv_multipart(zmq.DONTWAIT), self._answer, loop=loop)

    def close(self) -> None:
        """Nobody is admitted any more; again: nothing."""
        self._reader.close()
        self._sock.close(linger=0)

    def _answer(self, frames: list[bytes]) -> None:
        self._sock.send_multipart(answer(frames, self._admit, self._report, OVERLOADED))

    def _report(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "ZAP: admitting failed, peer refused", "exception": error})


class ThreadZap:
    """The ZAP handler of ``ctx`` in a thread of its own; ``admit`` runs there, and so does ``on_error``.

    It guards the sockets of transfers, which never answer 500.
    Without ``on_error`` an error of ``admit`` is shown like that of any thread (`threading.excepthook`).
    """

    def __init__(self, ctx: Context, admit: Admit, on_error: OnError | None = None) -> None:
        self._admit = admit
        self._on_error = on_error or self._show
        self._sock = _bind(ctx)
        try:
            with descriptors():
                self._bell, self._ring = os.pipe()
        except BaseException:
            self._sock.close(linger=0)
            raise
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="zkc-zap", daemon=True)
        self._thread.start()

    def __enter__(self) -> ThreadZap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nobody is admitted any more, and the thread has ended; again: nothing. Not from within ``admit``."""
        if not self._closed:
            self._closed = True
            os.close(self._ring)
            self._thread.join()
            os.close(self._bell)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._sock, zmq.POLLIN)
        poller.register(self._bell, zmq.POLLIN)
        with contextlib.suppress(zmq.ContextTerminated):
            while self._bell not in (ready := dict(poller.poll())):
                if self._sock in ready:
                    self._sock.send_multipart(answer(self._sock.recv_multipart(), self._admit, self._on_error))
        self._sock.close(linger=0)

    def _show(self, error: Exception) -> None:
        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, self._thread)))


def _bind(ctx: Context) -> Socket:
    sock = new_socket(ctx, zmq.REP)
    sock.setsockopt(zmq.LINGER, 0)
    try:
        sock.bind(ENDPOINT)
    except zmq.ZMQError as error:
        sock.close(linger=0)
        raise InternalError(f"no second ZAP handler in one context: {error.strerror}") from None
    return sock


async def self_test(ctx: Context, endpoint: str, server_key: bytes, within: float = SELF_TEST_SECONDS) -> None:
    """Knock at our own door, bound at ``endpoint``, with a key that nobody has admitted.

    Returns if ZAP refused it. `InternalError` (``zap``) if it was let in, or if no ZAP handler answered within
    ``within`` seconds: libzmq without its handler is not to be left running.
    """
    import asyncio  # noqa: PLC0415 - see AsyncZap

    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[SocketEvent] = loop.create_future()

    def note(event: SocketEvent) -> None:
        if event.kind in _VERDICTS and not outcome.done():
            outcome.set_result(event)

    stranger = generate_curve()
    with contextlib.ExitStack() as closing:

        def watch(sock: Socket) -> None:
            # Undone backwards: the monitor closes while its socket is there to be told.
            closing.callback(sock.close, linger=0)
            closing.callback(AsyncMonitor(sock, note, loop=loop).close)

        connect_dealer(ctx, reach_locally(endpoint), server_key, stranger.public, stranger.secret, watch=watch)
        try:
            async with asyncio.timeout(within):
                event = await outcome
        except TimeoutError:
            raise InternalError(
                f"{endpoint}: nothing refused an unknown key within {within:g} s", detail="zap"
            ) from None
    if event.kind is not EventKind.HANDSHAKE_FAILED_AUTH:
        raise InternalError(f"{endpoint}: an unknown key ended in {event.kind.name.lower()}", detail="zap")


_VERDICTS: Final = frozenset(
    {
        EventKind.HANDSHAKE_SUCCEEDED,
        EventKind.HANDSHAKE_FAILED_AUTH,
        EventKind.HANDSHAKE_FAILED_NO_DETAIL,
        EventKind.HANDSHAKE_FAILED_PROTOCOL,
    }
)
