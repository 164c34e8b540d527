"""The client of the local control socket: requests and replies of types that the two programs agree on.

Imports neither asyncio nor zmq: they would cost a short command more time than its work.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

from zkc.decoders import json_decoder
from zkc.env import Clock
from zkc.errors import PeerViolation
from zkc.net.local_frames import ANSWER_SECONDS, KEPT_SECONDS, bad_answer, dial, next_reply, send

Rep = TypeVar("Rep", bound=msgspec.Struct)

_ENCODER: Final = msgspec.json.Encoder()


def encode(value: msgspec.Struct) -> bytes:
    """``value`` as the body of a request or of a reply."""
    return _ENCODER.encode(value)


def decode(body: bytes, kind: Any) -> Any:
    """``body`` as a ``kind`` (a Struct class or a union of tagged ones); `PeerViolation` (``malformed``) otherwise."""
    try:
        return json_decoder(kind).decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise PeerViolation("malformed", str(error)[:120]) from None


class LocalClient(Generic[Rep]):
    """Asks the process at ``path``; replies are of ``reply_type`` (a Struct class or a union of tagged ones).

    Failures are those of `zkc.net.local_frames.exchange`.
    """

    def __init__(self, path: Path, reply_type: Any, kept: Kept | None = None) -> None:
        """``kept``: for who asks again and again."""
        self._path = path
        self._reply_type = reply_type
        self._kept = kept

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
        said, sock = encode(request), None if self._kept is None else self._kept.take()
        if sock is None:
            sock = dial(self._path, said, within)
        else:
            sock.settimeout(within)
            try:
                send(self._path, sock, said)
            except BaseException:
                sock.close()
                raise
        return Answer(self._path, sock, self._reply_type, self._kept)


class Answer(Generic[Rep]):
    """What one request is answered, reply by reply."""

    def __init__(self, path: Path, sock: socket.socket, reply_type: Any, kept: Kept | None) -> None:
        self._path = path
        self._sock = sock
        self._reply_type = reply_type
        self._kept = kept
        self._goes_on = False
        """Whether another request may follow: all of the answer is here."""

    def next(self) -> Rep | None:
        """The next reply; None: there is no other. The errors of `LocalClient`."""
        body = next_reply(self._path, self._sock)
        if body is None:
            self._goes_on = self._kept is not None
            return None
        try:
            return cast("Rep", decode(body, self._reply_type))
        except PeerViolation as violation:
            raise bad_answer(self._path, violation) from None

    def wait_for_ever(self) -> None:
        """For whatever comes from now on, however long that takes."""
        self._sock.settimeout(None)

    def hang_up(self) -> None:
        """Tell the other side to stop; a thread that waits in `next` learns that nothing comes."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Once no thread is in `next`; again: nothing."""
        if not self._goes_on:
            self._sock.close()
        elif self._kept is not None:
            self._kept.give(self._sock)
            self._kept = None


class Kept:
    """Connections to one process on which nothing is asked, for the next requests of this one: to make one costs either
    end as much as a short answer. Any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._idle: deque[tuple[float, socket.socket]] = deque()
        """Since when; the latest last."""
        self._lock = threading.Lock()
        self._closed = False

    def take(self) -> socket.socket | None:
        """One that stands, as far as anybody knows here."""
        with self._lock:
            self._drop_old()
            while self._idle:
                _, sock = self._idle.pop()
                if _is_silent(sock):
                    return sock
                sock.close()
        return None

    def give(self, sock: socket.socket) -> None:
        with self._lock:
            self._drop_old()
            if self._closed:
                sock.close()
            else:
                self._idle.append((self._clock.monotonic(), sock))

    def close(self) -> None:
        """All of them, and whatever is given later. Again: nothing."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop()[1].close()

    def _drop_old(self) -> None:
        late = self._clock.monotonic() - KEPT_SECONDS
        while self._idle and self._idle[0][0] < late:
            self._idle.popleft()[1].close()


def _is_silent(sock: socket.socket) -> bool:
    """Whether the other end has neither closed it nor said anything."""
    try:
        sock.setblocking(False)
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
