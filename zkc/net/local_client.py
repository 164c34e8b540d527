"""The client of the local control socket: requests and replies of types that the two programs agree on.

Imports neither asyncio nor zmq: they would cost a short command more time than its work.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

from zkc.errors import PeerViolation
from zkc.net.local_frames import ANSWER_SECONDS, bad_answer, dial, next_reply

Rep = TypeVar("Rep", bound=msgspec.Struct)

_ENCODER: Final = msgspec.json.Encoder()
_DECODERS: Final[dict[Any, msgspec.json.Decoder[Any]]] = {}


def encode(value: msgspec.Struct) -> bytes:
    """``value`` as the body of a request or of a reply."""
    return _ENCODER.encode(value)


def decode(body: bytes, kind: Any) -> Any:
    """``body`` as a ``kind`` (a Struct class or a union of tagged ones); `PeerViolation` (``malformed``) otherwise."""
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.json.Decoder(kind)
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise PeerViolation("malformed", str(error)[:120]) from None


class LocalClient(Generic[Rep]):
    """Asks the process at ``path``; replies are of ``reply_type`` (a Struct class or a union of tagged ones).

    Failures are those of `zkc.net.local_frames.exchange`.
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
        return Answer(self._path, dial(self._path, encode(request), within), self._reply_type)


class Answer(Generic[Rep]):
    """What one request is answered, reply by reply."""

    def __init__(self, path: Path, sock: socket.socket, reply_type: Any) -> None:
        self._path = path
        self._sock = sock
        self._reply_type = reply_type

    def next(self) -> Rep | None:
        """The next reply; None: there is no other. The errors of `LocalClient`."""
        body = next_reply(self._path, self._sock)
        if body is None:
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
        self._sock.close()
