"""A process that has hardly a descriptor left."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator


def open_now() -> set[str]:
    """Descriptors of this process."""
    return set(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def spare(count: int) -> Iterator[None]:
    """So many more can be opened, in the whole process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, open_now())) + 1 + count, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
