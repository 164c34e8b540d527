"""`zkc coordinator run`: a parent that holds nothing but its child, and starts it again when it aborts.

libzmq ends its process when an assertion fails. The child keeps nothing in memory that a retry does not rebuild, so a
new one carries on at the same endpoints, in less than two seconds. When aborts repeat and the same peer had been let in
each time without saying a word, its CURVE key is named in the log and barred (attack O01).
This module imports neither zmq nor SQLAlchemy nor structlog: what could abort is not in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Final

import zkc
from zkc.config import load
from zkc.coordinator.banned import ban
from zkc.coordinator.reports import (
    SUSPECT_BYTES,
    Alive,
    Failed,
    Orders,
    Reloaded,
    Started,
    Suspect,
    read_line,
    unpack_suspect,
    write_line,
)
from zkc.env import Clock, SystemClock
from zkc.errors import ZkcError, error_for
from zkc.rules.names import escape
from zkc.service import Manager
from zkc.stores.home import Home, HomeLock

OnReady = Callable[[str, str], None]
"""Told once: endpoint, fingerprint."""

_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ABORTS: Final = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})
"""How a process ends by its own defect (SIGKILL is somebody else's doing, and bars nobody)."""
_IN_ITS_PLACE: Final = "already-running"
"""What ended it: another coordinator, which the next process would meet again."""
_BAR_AFTER: Final = 2
_BAR_WITHIN: Final = 60.0
"""Aborts with the same suspect, and the seconds within which they count."""
_BACKOFF_FIRST: Final = 0.1
_BACKOFF_MAX: Final = 1.0
"""Seconds before a restart (the first is at once), doubled each time: a second, and the second that a start takes."""
_QUIET_SECONDS: Final = 60.0
"""A child that lived so long has no history."""
_FAILED_STARTS_MAX: Final = 8
"""Restarts in a row that do not get ready, and then it is given up."""
_END_SECONDS: Final = 3.0
"""How long a child may take to end before it is killed."""


@dataclass
class Supervisor:
    """One coordinator. `run` returns once a signal has ended it; only the main thread may call it."""

    home: Home
    options: Mapping[str, object] = field(default_factory=dict)
    on_ready: OnReady = lambda _endpoint, _fingerprint: None
    manager: Manager = field(default_factory=Manager)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    clock: Clock = field(default_factory=SystemClock)
    _listen: list[str] = field(default_factory=list)
    _ready: bool = False
    _ending: bool = False
    _deaths: list[float] = field(default_factory=list)
    _aborts: list[tuple[float, bytes]] = field(default_factory=list)
    _failed_starts: int = 0

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. What keeps the first child from starting is raised as its own error."""
        self.home.prepare()
        self._format = load("coordinator", self.home.config_file, self.environ, self.options).config.log.format
        with self.home.lock() as lock, _signals() as bell, _shared_memory() as suspect:
            while not self._ending:
                os.pwrite(suspect, bytes(SUSPECT_BYTES), 0)
                child = _Child.start(self, lock, suspect)
                try:
                    failure = self._attend(child, bell)
                except BaseException:
                    child.signal(signal.SIGTERM)
                    raise
                finally:
                    status = child.end()
                if not self._ending:
                    self._after_death(status, failure, unpack_suspect(os.pread(suspect, SUSPECT_BYTES, 0)), bell)

    def _attend(self, child: _Child, bell: _Bell) -> Failed | None:
        """Until the child has ended or is to end; what it said of its failure."""
        deadline: float | None = None
        doors: list[socket.socket | _Bell] = [child.report, bell]
        while True:
            left = None if deadline is None else max(deadline - self.clock.monotonic(), 0.0)
            ready, _, _ = select.select(doors, [], [], left)
            if not ready:
                return None
            if bell in ready:
                for number in bell.rung():
                    if number == signal.SIGHUP:
                        self._reload(child)
                    else:
                        child.signal(number)
                        self.manager.stopping()
                        self._ending = True
                        deadline = self.clock.monotonic() + _END_SECONDS
            if child.report in ready:
                told: Started | Reloaded | Alive | Failed | None = read_line(
                    child.report, Started | Reloaded | Alive | Failed
                )
                match told:
                    case None | Failed():
                        return told
                    case Started():
                        self._started(told, child)
                    case Reloaded():
                        self.manager.ready()
                    case Alive():
                        self.manager.alive()

    def _reload(self, child: _Child) -> None:
        """The manager hears that it is done from `Reloaded`, or from the next child's `Started`."""
        if child.ready:
            child.signal(signal.SIGHUP)
        if self._ready:
            self.manager.reloading()
        child.is_outdated = not child.ready  # SIGHUP would end it now, and it may have read the configuration already

    def _started(self, started: Started, child: _Child) -> None:
        self._listen = started.endpoints
        self._failed_starts = 0
        child.ready = True
        if not self._ready:
            self._ready = True
            self.on_ready(started.endpoints[0], started.fingerprint)
        self.manager.ready()
        if child.is_outdated:
            self._reload(child)

    def _after_death(
        self, status: int, failure: Failed | None, suspect: Suspect | None, bell: _Bell
    ) -> None:
        """Gives up, or says what happened, bars whom it has to, and waits before the next start."""
        if failure is not None and (not self._ready or failure.detail == _IN_ITS_PLACE):
            raise error_of(failure)
        self._failed_starts += 1
        if not self._ready or self._failed_starts > _FAILED_STARTS_MAX:
            raise error_of(failure) if failure else error_for(
                1, f"the coordinator's process does not start (it {_how(status)})", hint="see its log"
            )
        now = self.clock.monotonic()
        self._deaths = [then for then in self._deaths if now - then < _QUIET_SECONDS]
        pause = 0.0 if not self._deaths else min(_BACKOFF_FIRST * 2 ** (len(self._deaths) - 1), _BACKOFF_MAX)
        self._deaths.append(now)
        key, who = suspect or (b"", "")
        self._say(
            "error", "process-ended", how=_how(status), pause=pause,
            why=failure.message if failure else "", key_id=key.hex(), who=who,
        )
        if key and -status in _ABORTS:
            self._blame(now, key, who)
        if pause and select.select([bell], [], [], pause)[0]:
            numbers = bell.rung()
            self._ending = any(number != signal.SIGHUP for number in numbers)
            if self._ending:
                self.manager.stopping()
            elif numbers:
                self.manager.reloading()  # what the next child does by starting

    def _blame(self, now: float, key: bytes, who: str) -> None:
        """Bars the key of a peer that was the suspect before."""
        self._aborts = [(then, other) for then, other in self._aborts if now - then < _BAR_WITHIN]
        self._aborts.append((now, key))
        if sum(other == key for _, other in self._aborts) >= _BAR_AFTER:
            ban(self.home.data, key, who)
            self._say(
                "error", "key-barred", key_id=key.hex(), who=who, why="let in and silent each time the process aborted",
                undo=f"remove its line from {self.home.data / 'banned'}",
            )

    def _say(self, level: str, event: str, **fields: object) -> None:
        """A line of the log, in the form of the child's, without the library."""
        at = datetime.fromtimestamp(self.clock.wall(), UTC).isoformat().replace("+00:00", "Z")
        told = {key: value for key, value in fields.items() if value != ""}
        if self._format == "json" or (self._format == "auto" and not sys.stderr.isatty()):
            line = json.dumps({"event": event, "level": level, "timestamp": at, **told})
        else:
            said = " ".join(f"{key}={escape(str(value))}" for key, value in told.items())
            line = f"{at} [{level}] {event} {said}"
        with contextlib.suppress(OSError, ValueError):  # nobody reads the log: no reason to end
            print(line, file=sys.stderr, flush=True)  # noqa: T201  (stderr is the log)


def error_of(failed: Failed) -> ZkcError:
    return error_for(failed.code, failed.message, detail=failed.detail, hint=failed.hint)


def _how(status: int) -> str:
    """What the exit status says."""
    if status >= 0:
        return f"exited with {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


@dataclass
class _Child:
    """The process that serves."""

    process: subprocess.Popen[bytes]
    report: socket.socket
    ready: bool = False
    is_outdated: bool = False
    """Whether the configuration is to be read again as soon as it is ready."""

    @classmethod
    def start(cls, supervisor: Supervisor, lock: HomeLock, suspect: int) -> _Child:
        home = supervisor.home
        ours, theirs = socket.socketpair()
        with theirs:
            inherited = (theirs.fileno(), suspect, lock.fileno())
            # -P: no module comes from the folder in which the coordinator happens to be started.
            command = [sys.executable, "-P", "-m", "zkc.coordinator", *map(str, inherited)]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=inherited,
                env=_environment(supervisor.environ),
            )
        orders = Orders(
            os.getpid(), str(home.data), str(home.config_folder), str(home.runtime), dict(supervisor.options),
            supervisor._listen, supervisor.manager.alive_every,  # noqa: SLF001  (its own child)
        )
        write_line(ours, orders)
        return cls(process, ours)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Its exit status; killed if it does not end by itself."""
        try:
            status = self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.report.close()
        return status


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The same zkc for the child: one that runs from its source tree is not on the path of every interpreter."""
    root = str(Path(zkc.__file__).resolve().parents[1])
    if root in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(environ)
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, environ.get("PYTHONPATH"))))}


@contextlib.contextmanager
def _shared_memory() -> Iterator[int]:
    """A file in memory, for the peer that the child suspects: it outlives the child's abort."""
    descriptor = os.memfd_create("zkc-suspect")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _Bell:
    """Signals as something to wait for with select."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def writer(self) -> int:
        return self._writer.fileno()

    def rung(self) -> list[int]:
        """The signals that came, oldest first."""
        try:
            return [number for number in self._reader.recv(4096) if number in _FORWARDED]
        except BlockingIOError:
            return []

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


@contextlib.contextmanager
def _signals() -> Iterator[_Bell]:
    """SIGTERM, SIGINT and SIGHUP ring the bell, and do nothing else; as before when it ends."""

    def ignore(_number: int, _frame: FrameType | None) -> None:
        pass

    bell = _Bell()
    old_bell = signal.set_wakeup_fd(bell.writer(), warn_on_full_buffer=False)
    old = {number: signal.signal(number, ignore) for number in _FORWARDED}
    try:
        yield bell
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_bell)
        bell.close()
