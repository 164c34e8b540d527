"""``python -m tests.support.power KEPT WORDS``: ``zkc WORDS``, of which KEPT has what its disk must still hold.

A disk need not hold more than was synced. So each fsync and fdatasync of the process, Python's and SQLite's alike, is
stopped by the kernel until a thread of ours has copied the file, or the folder's list of names, as it then was
(seccomp's user notification: neither a compiler nor root is needed, nor a file system of its own, which would write
down more than it was asked to: one fsync of ext4 takes every rename along). `cut` is the loss of power: what is synced
afterwards counts for nothing. `survived` then puts what the disk held in the place of the home.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import shutil
import struct
import sys
import threading
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Final, Literal

import pytest

from tests.support.program import TOP
from zkc.testing import Fleet, Program

Unsynced = Literal["lost", "empty", "zeros"]
"""What became of it: names and contents are gone; names have made it, but no contents; names and lengths have, and
zeros are where the contents should be. Names that were removed are there again only with ``lost``. A file system may do
any of it."""

CUT: Final = "cut"
"""The power has failed once this is in the folder of what is kept."""
NAMES: Final = "names"
"""Folder of the listings as they were when it did, synced or not."""

SYSTEM_CALLS: Final = {"x86_64": (317, 74, 75), "aarch64": (277, 82, 83)}
"""seccomp, fsync, fdatasync."""
PR_SET_NO_NEW_PRIVS: Final = 38
SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 8
SECCOMP_RET_USER_NOTIF: Final = 0x7FC00000
SECCOMP_RET_ALLOW: Final = 0x7FFF0000
SECCOMP_IOCTL_NOTIF_RECV: Final = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND: Final = 0xC0182101
SECCOMP_USER_NOTIF_FLAG_CONTINUE: Final = 1
NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
"""id, thread, flags; number of the call, architecture, instruction, arguments."""
ANSWER: Final = struct.Struct("=QqiI")
"""id, result, error, flags."""
BPF_LOAD, BPF_EQUAL, BPF_RETURN = 0x20, 0x15, 0x06


class Disk:
    """What was synced: ``KEPT/INODE`` is a file's content, or a line ``INODE d|f LENGTH NAME`` for each entry of a
    folder."""

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._held: dict[int, int] = {}
        """By number: open for as long as we live, so that no later file gets the same one."""

    def keep(self, path: Path) -> None:
        """It is about to be synced; what others write to it meanwhile need not be on disk afterwards."""
        found = path.stat()
        if not (S_ISDIR(found.st_mode) or S_ISREG(found.st_mode)) or (self._kept / CUT).exists():
            return
        if found.st_ino not in self._held:
            self._held[found.st_ino] = os.open(path, os.O_PATH | os.O_CLOEXEC)
        scratch = self._kept / ".scratch"
        if S_ISDIR(found.st_mode):
            scratch.write_text(_listing(path))
        else:
            shutil.copyfile(path, scratch)
        scratch.rename(self._kept / str(found.st_ino))


def cut(home: Path, kept: Path) -> None:
    """Power fails."""
    (kept / CUT).touch()
    for folder in (home, *(Path(found[0]) / name for found in os.walk(home) for name in found[1])):
        (kept / NAMES / str(folder.stat().st_ino)).write_text(_listing(folder))


def survived(home: Path, kept: Path, unsynced: Unsynced) -> None:
    """Put what the disk still holds in the place of ``home``, whose programs have ended."""
    aside = home.with_name(f"{home.name}.before")
    home.rename(aside)
    _restore(aside.stat().st_ino, home, kept, unsynced)
    shutil.rmtree(aside)


def start_daemon(fleet: Fleet, name: str, kept: Path, at: Literal["receipt", ""] = "") -> Program:
    """That of a client, its power about to fail; linked. ``kept``: a new folder. ``at``: by itself, as soon as a
    receipt is sealed; it goes on, so that the receipt gets through."""
    if platform.machine() not in SYSTEM_CALLS:
        pytest.skip(f"the numbers of this machine's system calls are not known here: {platform.machine()}")
    if "user_notif" not in _seccomp_actions():
        pytest.skip("this kernel tells nobody of a system call (seccomp's user notification)")
    (kept / NAMES).mkdir(parents=True)
    own = fleet.environment(name) | {"PYTHONPATH": str(TOP)}
    command = [sys.executable, "-m", "tests.support.power", str(kept), at, "daemon"]
    program = fleet._programs[name] = Program(command, own, fleet.folder / f"{name}.log")
    program.wait_ready()
    fleet.wait_linked(name)
    return program


def _seccomp_actions() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/seccomp/actions_avail").read_text()
    return ""


def _listing(folder: Path) -> str:
    lines = []
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            found = (folder / name).lstat()
            if S_ISDIR(found.st_mode) or S_ISREG(found.st_mode):
                kind = "d" if S_ISDIR(found.st_mode) else "f"
                lines.append(f"{found.st_ino} {kind} {found.st_size} {name}\n")
    return "".join(lines)


def _restore(inode: int, folder: Path, kept: Path, unsynced: Unsynced) -> None:
    folder.mkdir(0o700)
    listing = (kept if unsynced == "lost" else kept / NAMES) / str(inode)
    for line in listing.read_text().splitlines() if listing.exists() else []:
        number, kind, length, name = line.split(" ", 3)
        if kind == "d":
            _restore(int(number), folder / name, kept, unsynced)
            continue
        synced = kept / number
        content = synced.read_bytes() if synced.exists() else b""
        (folder / name).write_bytes(content.ljust(int(length), b"\0") if unsynced == "zeros" else content)
        (folder / name).chmod(0o600)


# --- inside the process ----------------------------------------------------------------------------------------------


def _watch_syncs(disk: Disk) -> None:
    """From now on, of this thread and those that it starts."""
    number, *syncs = SYSTEM_CALLS[platform.machine()]
    program = b"".join(
        struct.pack("=HBBI", *each) for each in (
            (BPF_LOAD, 0, 0, 0), (BPF_EQUAL, 2, 0, syncs[0]), (BPF_EQUAL, 1, 0, syncs[1]),
            (BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW), (BPF_RETURN, 0, 0, SECCOMP_RET_USER_NOTIF),
        )
    )
    code = ctypes.create_string_buffer(program, len(program))
    whole = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    listener: list[int] = []
    ready = threading.Event()

    def listen() -> None:
        ready.wait()
        while True:
            _one_sync(listener[0], disk)

    # Begun before the filter is there: this thread's own calls pass.
    threading.Thread(target=listen, name="power", daemon=True).start()
    flags = ctypes.c_ulong(SECCOMP_FILTER_FLAG_NEW_LISTENER)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    descriptor = libc.syscall(ctypes.c_long(number), ctypes.c_ulong(SECCOMP_SET_MODE_FILTER), flags, whole)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    listener.append(descriptor)
    ready.set()


def _one_sync(listener: int, disk: Disk) -> None:
    notification = bytearray(NOTIFICATION.size)
    with contextlib.suppress(FileNotFoundError, InterruptedError):  # who called has gone
        fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, notification)
        called, thread, *_, descriptor = NOTIFICATION.unpack(notification)[:7]
        try:
            disk.keep(Path(f"/proc/{thread}/fd/{descriptor}"))
        except OSError as error:
            os.write(2, f"power: {error}\n".encode())
            os._exit(1)
        answer = bytearray(ANSWER.pack(called, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE))
        fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, answer)


def _cut_at_receipt(home: Path, kept: Path) -> None:
    from zkc.protocol.delivery_recipient import DeliveryRecipient

    done = DeliveryRecipient.done

    def cut_off(machine: DeliveryRecipient, *rest: Any) -> bytearray:
        if not (kept / CUT).exists():
            cut(home, kept)
        return done(machine, *rest)

    setattr(DeliveryRecipient, "done", cut_off)  # noqa: B010  (for the program, not for mypy)


def _main(kept: Path, at: str, words: list[str]) -> int:
    from zkc.ui.cli.main import main

    home, disk = Path(os.environ["ZKC_HOME"]), Disk(kept)
    for folder, _, names in os.walk(home):
        for path in (Path(folder), *(Path(folder) / name for name in names)):
            disk.keep(path)
    _watch_syncs(disk)
    if at == "receipt":
        _cut_at_receipt(home, kept)
    return main(words)


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
