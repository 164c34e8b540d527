"""What is sent: bytes and their running BLAKE3, from any position at which the recipient may stand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from blake3 import blake3

from zkc.constants import CHUNK_MIN
from zkc.errors import IntegrityError, Interrupted

_READ: Final = 1024 * 1024
"""Bytes that are read at once where only their digest is wanted."""


class Source(Protocol):
    """Where the sender's bytes come from. Its methods raise `LocalIOError`."""

    fd: int | None
    """Polled before each read; None: a read never waits."""
    again: bool
    """Whether it can be read again from any position."""

    def readinto(self, into: memoryview) -> int:
        """One read of at most ``len(into)`` bytes; 0 at the end."""

    def seek(self, position: int) -> None:
        """The next byte that is read is that one. Only where it can be read again."""

    def check(self) -> None:
        """At the end: `LocalIOError` (``source-changed``) where it is not what it was at the beginning."""


class Outgoing:
    """One delivery's stream, whatever connections and handshakes it takes: read, then sealed, then taken over.

    Of a source that cannot be read again, what the recipient has not taken over is kept: at most its credit, and the
    rest of the chunk in which it stands.
    """

    def __init__(self, source: Source, apart: int = CHUNK_MIN) -> None:
        """``apart``: no two marks on either side of a third are nearer to each other than so many bytes, or short
        chunks would cost their digests (2 KB) each."""
        self._source = source
        self._apart = apart
        self._marks: deque[tuple[int, blake3]] = deque([(0, blake3())])
        """Where chunks ended, each with the digest up to there: the last end that is taken over, and later ones, up to
        the last that was sealed."""
        self._kept: deque[memoryview] = deque()
        """What is between two marks each, where the source cannot be read again."""
        self._again: deque[memoryview] = deque()
        """What was read from such a source, and is to go out once more."""
        self._spare: list[memoryview] = []
        """Buffers of chunks that were kept and are taken over."""
        self._buffer = memoryview(b"")
        self._filled = 0
        self.whole: tuple[int, bytes] | None = None
        """Size and BLAKE3 of the stream, once its end has been sealed."""

    @property
    def fd(self) -> int | None:
        """Polled before each `read`; None: it never waits."""
        return None if self._again else self._source.fd

    @property
    def chunk(self) -> memoryview:
        """What was read and is not sealed."""
        return self._buffer[: self._filled]

    def read(self, size: int) -> bool:
        """One read, until `chunk` has ``size`` bytes; whether there was anything. At the end the source is checked."""
        if len(self._buffer) < size:
            while self._spare and len(self._spare[-1]) < size:
                self._spare.pop()
            grown = self._spare.pop() if self._spare else memoryview(bytearray(size))
            grown[: self._filled] = self.chunk
            self._buffer = grown
        into = self._buffer[self._filled : size]
        if self._again:
            piece = self._again.popleft()
            got = min(len(piece), len(into))
            into[:got] = piece[:got]
            if got < len(piece):
                self._again.appendleft(piece[got:])
        else:
            got = self._source.readinto(into)
            if not got:
                self._source.check()
        self._filled += got
        return got > 0

    def sealed(self, position: int, digest: blake3) -> None:
        """`chunk`, which ends at ``position``, is on its way; ``digest`` has taken everything up to there."""
        joins = len(self._marks) > 1 and position - self._marks[-2][0] <= self._apart
        if joins:
            self._marks.pop()
        self._marks.append((position, digest.copy()))
        if not self._source.again:
            if joins:
                self._kept.append(memoryview(self._kept.pop().tobytes() + self.chunk))
            elif self._filled < len(self._buffer):
                self._kept.append(memoryview(self.chunk.tobytes()))
            else:
                self._kept.append(self._buffer)
                self._buffer = memoryview(b"")
        self._filled = 0

    def taken(self, position: int) -> None:
        """The recipient has everything before ``position``: it will not ask for it again."""
        while len(self._marks) > 1 and self._marks[1][0] <= position:
            self._marks.popleft()
            if self._kept and not (piece := self._kept.popleft()).readonly:
                self._spare.append(piece)

    def go_to(
        self, position: int, pause: Callable[[], None] = lambda: None, *, fresh: bool = False
    ) -> blake3:
        """Go on at ``position``; the digest of all before it. ``pause`` is called now and then, and may raise.

        ``fresh``: nothing of it is with the recipient but what was sealed here. `Interrupted` (``pipe``) where those
        bytes are gone; `IntegrityError` (``position``) where the recipient can never have got so many.
        """
        if position > self._marks[-1][0] and (fresh or not self._source.again):
            raise _never_sent()
        if position < self._marks[0][0]:
            if not self._source.again:
                raise Interrupted(
                    "the recipient has lost some of what was piped in, and a pipe cannot be read again", detail="pipe",
                    hint="run the whole pipe again",
                )
            self._marks = deque([(0, blake3())])
        later: deque[memoryview] = deque()
        while self._marks[-1][0] > position:
            self._marks.pop()
            if self._kept:
                later.appendleft(self._kept.pop())
        start, digest = self._marks[-1][0], self._marks[-1][1].copy()
        if self._source.again:
            self._source.seek(start)
        else:
            self._again.extendleft(reversed([*later, *([self.chunk] if self._filled else [])]))
            self._buffer = memoryview(b"")
        self._filled = 0
        while start < position:
            pause()
            if not self.read(min(position - start, _READ)):
                raise _never_sent()
            digest.update(self.chunk)
            start += self._filled
            self._filled = 0
        self._marks = deque([(start, digest.copy())])
        self._kept.clear()
        return digest

    def read_through(self, pause: Callable[[], None] = lambda: None) -> tuple[int, bytes] | None:
        """Size and BLAKE3 of the whole: read now, where it was not sent whole; None where it cannot be read again."""
        if self.whole is None and self._source.again:
            size, digest = 0, self.go_to(0)
            while self.read(_READ):
                pause()
                digest.update(self.chunk)
                size += self._filled
                self._filled = 0
            self.whole = size, digest.digest()
        return self.whole


def _never_sent() -> IntegrityError:
    return IntegrityError(
        "the recipient claims to have more than was sent", detail="position",
        hint="run it again with --no-resume; if it happens again, one of the two versions is defective",
    )
