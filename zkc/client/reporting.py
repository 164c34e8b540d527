"""What a delivery that leaves this home has to tell the daemon's events: its beginning, how far it is, its end.

A delivery in a thread of the daemon tells its bus (`zkc.client.handed`); a command that sends by itself tells the
daemon over the control socket, of what is over soon all at once, at its end. Nothing here fails, and no daemon that
stands still is waited for. Imports no event loop.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from zkc.client import control
from zkc.client.events import Delivery
from zkc.client.happenings import Begun, Delivered, Ended, Progress, ended
from zkc.env import Clock
from zkc.errors import InternalError, Interrupted, ZkcError
from zkc.net.local_client import Answer, Kept, LocalClient

_SOON_SECONDS: Final = 0.3
"""What is over in less is told at its end."""
_WITHIN_SECONDS: Final = 1.0
"""What a daemon has for an answer: it has nothing to wait for."""
HowFar = Callable[[], int]


class Reports:
    """Of one delivery; this one tells nobody. For the one thread that sends."""

    def __init__(self) -> None:
        self._begun: Begun | None = None
        self._how_far: HowFar = lambda: 0

    def begin(self, begun: Begun, how_far: HowFar) -> None:
        """Bytes flow, after a handshake of their own; what flowed before has broken off."""
        if self._begun is not None:
            self._end(self._ended(Interrupted("it broke off", detail="lost")))
        self._begun, self._how_far = begun, how_far
        self._begin(begun, how_far)

    def moved(self) -> None:
        """It is farther than it was."""

    def delivered(self, done: Delivery) -> None:
        """It is done."""
        told = Delivered(
            done.transfer, done.recipient, done.name, done.bytes, done.digest, done.seconds, str(done.receipt),
            done.key_source,
        )
        if self._begun is None:
            self._tell(told)  # an earlier try of it had arrived
        else:
            self._end(told, self._ended(None))

    def failed(self, error: BaseException) -> None:
        """Nothing comes of it any more."""
        if self._begun is not None:
            if not isinstance(error, Exception):
                error = Interrupted("the command was ended", detail="signal")
            self._end(self._ended(error if isinstance(error, ZkcError) else InternalError("a defect")))

    def _ended(self, error: ZkcError | None) -> Ended:
        if (begun := self._begun) is None:
            raise ValueError("it has not begun")
        self._begun = None
        return ended(begun, self._how_far(), error)

    def _begin(self, begun: Begun, how_far: HowFar) -> None:
        pass

    def _end(self, *what: Delivered | Ended) -> None:
        self._tell(*what)

    def _tell(self, *what: Begun | Delivered | Ended) -> None:
        pass


class DaemonReports(Reports):
    """In a command: to the daemon at the control socket ``path``, if one runs; ``kept`` as in `open_access`."""

    def __init__(self, path: Path, clock: Clock, kept: Kept | None = None) -> None:
        super().__init__()
        self._client: LocalClient[Any] = LocalClient(path, control.ControlReply, kept)
        self._clock = clock
        self._line: _Line | None = None
        self._first: Begun | None = None
        self._since = 0.0

    def moved(self) -> None:
        if self._line is None and self._begun is not None and self._clock.monotonic() - self._since > _SOON_SECONDS:
            self._line = _Line(self._client, self._begun, self._how_far)

    def _begin(self, begun: Begun, how_far: HowFar) -> None:
        self._first, self._since = begun, self._clock.monotonic()

    def _end(self, *what: Delivered | Ended) -> None:
        line, self._line = self._line, None
        if line is not None and line.stands():
            self._tell(*what)
        elif self._first is not None:
            self._tell(self._first, *what)
        if line is not None:
            line.close()

    def _tell(self, *what: Begun | Progress | Delivered | Ended) -> None:
        _report(self._client, *what)


class _Line:
    """A connection that stays open while a command sends, on which the daemon asks how far it is; in a thread, since it
    asks when somebody wants to know."""

    def __init__(self, client: LocalClient[Any], begun: Begun, how_far: HowFar) -> None:
        self._client = client
        self._begun = begun
        self._how_far = how_far
        self._answer: Answer[Any] | None = None
        self._known = threading.Event()
        """Whether it stands, or will not."""
        self._thread = threading.Thread(target=self._run, name="zkc-report", daemon=True)
        # A signal is for the thread that sends: it interrupts what that waits for.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def stands(self) -> bool:
        """Whether the daemon was told of the beginning, and lives."""
        self._known.wait(_WITHIN_SECONDS)
        return self._answer is not None

    def close(self) -> None:
        if (answer := self._answer) is not None:
            answer.hang_up()
        self._thread.join(_WITHIN_SECONDS)

    def _run(self) -> None:
        try:
            answer = self._client.ask(control.AskSending(self._begun), within=_WITHIN_SECONDS)
            try:
                answer.next()
                answer.wait_for_ever()
                self._answer = answer
                self._known.set()
                while answer.next() is not None:
                    _report(self._client, Progress(self._begun.transfer, self._how_far(), self._begun.total))
            finally:
                answer.close()
        except ZkcError:
            self._answer = None
        finally:
            self._known.set()


def _report(client: LocalClient[Any], *what: Begun | Progress | Delivered | Ended) -> None:
    # Where no daemon runs, or one of another version, or it stands still: it has its own troubles.
    with contextlib.suppress(ZkcError):
        client.call(control.AskReport(list(what)), within=_WITHIN_SECONDS)
