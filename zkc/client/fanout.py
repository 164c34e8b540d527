"""One command, several recipients: a thread for each, and what they share.

Each delivery is one like any other, with a handshake, a key and an end of its own. They share the rate limit, and a
pipe, which can be read once: each has a pipe of its own, filled no further than the kernel lets it, so the slowest sets
the speed, and whoever gives up holds up nobody any longer.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Sequence
from typing import BinaryIO, Final, Generic, TypeVar

from zkc.client.sources import PipeSource
from zkc.env import Clock
from zkc.errors import Interrupted, LocalIOError
from zkc.net.pipe.bell import Bell
from zkc.rules.rates import Pace
from zkc.stores.pipes import PIPE_BYTES

T = TypeVar("T")
_END_SECONDS: Final = 5.0
"""How long those that are told to end may take for it: a sender tells its recipient. Then nobody waits any longer."""


class SharedPace(Pace):
    """For several threads."""

    def __init__(self, per_second: float) -> None:
        super().__init__(per_second)
        self._mutex = threading.Lock()

    def take(self, size: int, now: float) -> None:
        with self._mutex:
            super().take(size, now)


class Branch(PipeSource):
    """What one of several readers gets of a pipe."""

    def __init__(self, stream: BinaryIO, fan: Fan) -> None:
        super().__init__(stream)
        self._fan = fan

    def check(self) -> None:
        """An end that is none is told as what it is."""
        if self._fan.failure is not None:
            raise self._fan.failure

    def close(self) -> None:
        self._stream.close()


class Fan:
    """A thread that reads ``stream`` and writes all of it to each of ``branches``. As a context manager it runs."""

    def __init__(self, stream: BinaryIO, count: int) -> None:
        self.failure: LocalIOError | Interrupted | None = Interrupted("the pipe was not read through", detail="signal")
        """Why a branch ends where it does; None once its end is the pipe's."""
        self._source = PipeSource(stream)
        self._bell = Bell()
        self._writers: dict[int, memoryview] = {}
        """What each has still to get."""
        self.branches: list[Branch] = []
        for _ in range(count):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(writer, False)
            self._writers[writer] = memoryview(b"")
            self.branches.append(Branch(os.fdopen(reader, "rb", buffering=0), self))
        self._thread = threading.Thread(target=self._run, name="zkc-fan", daemon=True)

    def __enter__(self) -> Fan:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bell.ring()
        self._thread.join()
        self._bell.close()

    def _run(self) -> None:
        try:
            buffer = memoryview(bytearray(PIPE_BYTES))
            while self._writers and self._wait({self._source.fd: select.POLLIN}):
                got = self._source.readinto(buffer)
                if not got:
                    self.failure = None
                    break
                self._writers = dict.fromkeys(self._writers, buffer[:got])
                self._write()
        except LocalIOError as error:
            self.failure = error
        finally:
            for writer in self._writers:
                os.close(writer)

    def _write(self) -> None:
        while (open_ends := {writer: select.POLLOUT for writer, rest in self._writers.items() if rest}):
            if not self._wait(open_ends):
                return
            for writer in open_ends:
                try:
                    self._writers[writer] = self._writers[writer][os.write(writer, self._writers[writer]) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:  # its reader has given up
                    os.close(writer)
                    del self._writers[writer]

    def _wait(self, fds: dict[int | None, int] | dict[int, int]) -> bool:
        """Until one of them is ready; False where it is over."""
        poll = select.poll()
        poll.register(self._bell.fd, select.POLLIN)
        for fd, event in fds.items():
            if fd is not None:
                poll.register(fd, event)
        poll.poll()
        return not self._bell.rung


class Team(Generic[T]):
    """Calls of ``run``, one for each of ``names``, at the same time; each gets a bell. As a context manager."""

    def __init__(self, names: Sequence[str], run: Callable[[str, Bell], T], clock: Clock) -> None:
        self._run = run
        self._clock = clock
        self._bells = {name: Bell() for name in names}
        self._threads = [
            threading.Thread(target=self._one, args=(name,), name=f"zkc-send-{name}", daemon=True) for name in names
        ]
        self._done: dict[str, T] = {}
        self._failure: BaseException | None = None

    def __enter__(self) -> Team[T]:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Those that still run are told to end, and waited for in bounded time."""
        self.ring()
        end = self._clock.monotonic() + _END_SECONDS
        for thread in self._threads:
            thread.join(max(end - self._clock.monotonic(), 0.0))
        for thread, bell in zip(self._threads, self._bells.values(), strict=True):
            if not thread.is_alive():
                bell.close()

    def ring(self) -> None:
        """All are to end; from a signal handler too."""
        for bell in self._bells.values():
            bell.ring()

    def wait(self) -> dict[str, T]:
        """What each call returned; raises what one of them raised, once all have ended."""
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise self._failure
        return self._done

    def _one(self, name: str) -> None:
        try:
            self._done[name] = self._run(name, self._bells[name])
        except BaseException as error:  # noqa: BLE001 (whatever ends one is raised in the thread that waits)
            self._failure = error
            self.ring()
