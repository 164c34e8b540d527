"""What an outside observer sees of a client: its log, its inbox, its memory, its processes."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import struct
from pathlib import Path
from typing import Any, Final, Self

from tests.support.waiting import DEADLINE, wait_until
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.items import Item
from zkc.testing import Fleet


def log_of(fleet: Fleet, name: str) -> list[dict[str, Any]]:
    """The events of a program's log so far; every line is one JSON object."""
    lines = fleet.program(name).log.read_bytes().split(b"\n")[:-1]  # the last may be half written
    return [json.loads(line) for line in lines if line.startswith(b"{")]


def ending(fleet: Fleet, name: str, xid: bytes, within: float = DEADLINE) -> dict[str, Any]:
    """How a transfer ended for its recipient: the event ``received`` or ``not-received``, once it is logged."""
    found: list[dict[str, Any]] = []

    def is_logged() -> bool:
        found[:] = [
            event for event in log_of(fleet, name)
            if event.get("xid") == xid.hex() and event["event"] in {"received", "not-received", "defect"}
        ]
        return bool(found)

    wait_until(is_logged, within)
    return found[0]


def inbox_of(home: Path) -> tuple[list[Item], list[Item]]:
    """Whole items and partial ones."""
    with Inbox.open(Home.resolve("client", str(home))) as inbox:
        return inbox.items(), inbox.partials()


def payloads(home: Path) -> list[str]:
    """Names of the files that readers of the inbox could be given."""
    return sorted(os.listdir(home / "inbox" / "files"))


def tree(folder: Path, *, without: Path | None = None) -> dict[str, str]:
    """Each path below ``folder`` with kind, mode, size and link: what changed is what differs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if without is not None and (path == without or without in path.parents):
            continue
        status = path.lstat()
        link = os.readlink(path) if path.is_symlink() else ""
        found[str(path.relative_to(folder))] = f"{status.st_mode:o} {0 if path.is_dir() else status.st_size} {link}"
    return found


IN_MODIFY: Final = 0x2
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_Q_OVERFLOW: Final = 0x4000
INOTIFY_EVENT: Final = struct.Struct("iIII")
"""inotify(7): watch, mask, cookie, bytes of the name after it."""


class Watch:
    """What is written below some folders, by whomever: each write and each truncation, however short it lasts.

    Use as a context manager.
    """

    def __init__(self, *folders: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._folders = folders

    def __enter__(self) -> Self:
        self._descriptor = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        for folder in self._folders:
            mask = IN_MODIFY | IN_MOVED_TO | IN_CREATE
            self._checked(self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), mask))
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def written(self) -> set[str]:
        """Names of the files that were made or changed since the last call."""
        found = set()
        with contextlib.suppress(BlockingIOError):
            while events := os.read(self._descriptor, 1 << 16):
                at = 0
                while at < len(events):
                    _, mask, _, length = INOTIFY_EVENT.unpack_from(events, at)
                    at += INOTIFY_EVENT.size + length
                    assert not mask & IN_Q_OVERFLOW
                    found.add(os.fsdecode(events[at - length : at].rstrip(b"\0")))
        return found

    def _checked(self, result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        return result


def memory(pid: int, what: str = "VmRSS") -> int:
    """Bytes: ``VmRSS`` now, ``VmHWM`` at most so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {what} of process {pid}")


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(int(child) for child in children)]


def lives(pid: int) -> bool:
    """Whether there is such a process, which has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def stopped(pid: int) -> _Stopped:
    """Context manager: the process stands still (SIGSTOP) inside the block."""
    return _Stopped(pid)


class _Stopped:
    def __init__(self, pid: int) -> None:
        self._pids = family(pid)

    def __enter__(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):  # the test has killed it
                os.kill(pid, signal.SIGCONT)
