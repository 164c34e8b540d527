"""Runs a command under the system call filter of a unit, as systemd would: ``sandbox.py UNIT COMMAND...``.

The kernel holds it to ``SystemCallFilter=``, ``RestrictAddressFamilies=`` and ``MemoryDenyWriteExecute=``; what systemd
does with namespaces is left out. `systemd-analyze` says what a group of calls holds, libseccomp makes the filter.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000 | errno.EPERM
_EQUAL: Final = 4
_MASKED_EQUAL: Final = 7
_WRITE, _EXECUTE = 2, 4


class _Compare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint), ("op", ctypes.c_int), ("first", ctypes.c_uint64), ("second", ctypes.c_uint64),
    )


def missing() -> str:
    """What this machine does not have of what it takes; empty: nothing."""
    if shutil.which("systemd-analyze") is None:
        return "systemd-analyze"
    return "" if ctypes.util.find_library("seccomp") else "libseccomp"


def settings(unit: Path) -> dict[str, list[str]]:
    """Each setting of the unit with its values, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def allowed_calls(filters: list[str]) -> set[str]:
    """What the lines of ``SystemCallFilter=`` leave of all calls."""
    allowed: set[str] = set()
    for line in filters:
        calls = {call for word in line.removeprefix("~").split() for call in _calls(word)}
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    return allowed


def _calls(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    told = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter", word], capture_output=True, text=True, check=True
    ).stdout
    inside = {line.strip() for line in told.splitlines() if line.startswith(" ") and "#" not in line}
    return {call for each in inside for call in _calls(each)}


def enter(unit: Path) -> None:
    """From now on this process, and what it starts, is held to it."""
    told = settings(unit)
    seccomp = ctypes.CDLL(ctypes.util.find_library("seccomp"))
    seccomp.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(_ERRNO)))
    conditions: dict[str, list[_Compare]] = {
        "socket": [
            _Compare(0, _EQUAL, getattr(socket, family), 0) for family in told["RestrictAddressFamilies"][0].split()
        ],
    }
    if told["MemoryDenyWriteExecute"] == ["yes"]:
        both = _WRITE | _EXECUTE
        conditions["mmap"] = [_Compare(2, _MASKED_EQUAL, both, bits) for bits in (0, _WRITE, _EXECUTE)]
        conditions["mprotect"] = conditions["pkey_mprotect"] = [_Compare(2, _MASKED_EQUAL, _EXECUTE, 0)]
    for name in sorted(allowed_calls(told["SystemCallFilter"])):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # of another machine, or newer than the library
            continue
        for condition in conditions.get(name, [None]):
            given = () if condition is None else (ctypes.pointer(condition),)
            result = seccomp.seccomp_rule_add_array(
                rules, ctypes.c_uint32(_ALLOW), number, len(given), *given or (None,)
            )
            if result != 0:
                raise OSError(-result, name)
    if seccomp.seccomp_load(rules) != 0:
        raise OSError("the filter was not loaded")


if __name__ == "__main__":
    enter(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
