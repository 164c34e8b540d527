"""What a process that holds keys asks of the system, so that they stay in its memory (attack K07)."""

from __future__ import annotations

import ctypes
import resource
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def protect_memory() -> None:
    """No core dump of this process from now on, and no debugger or ``/proc/PID/mem`` of another one of this user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0))
