"""What a program asks of the system: that its keys stay in its memory (attack K07), and enough open files."""

from __future__ import annotations

import ctypes
import faulthandler
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def protect_memory() -> None:
    """No core dump of this process from now on, and no debugger or ``/proc/PID/mem`` of another one of this user.

    What is left of a crash outside Python is where each thread was, on stderr: files, lines and functions, no value.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0))
    if sys.stderr is not None:  # else what is descriptor 2 now is something else
        faulthandler.enable(2)


def claim_descriptors(wanted: int) -> int:
    """As many open files as the system gives, at most ``wanted``, never fewer than now; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    allowed = max(wanted if hard == resource.RLIM_INFINITY else min(hard, wanted), soft)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed
