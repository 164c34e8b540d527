"""That the system, or libzmq, has no descriptor left: an error of its own, since it passes. Imports no zmq."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from zkc.errors import LocalIOError


class DescriptorsTaken(LocalIOError):
    """No descriptor, or no room in the context, is left for another socket (detail ``descriptors``)."""


@contextlib.contextmanager
def descriptors() -> Iterator[None]:
    """`DescriptorsTaken` where libzmq, or the system, has none for what the block makes."""
    try:
        yield
    except Exception as error:  # an OSError, or libzmq's own, which is none
        if getattr(error, "errno", None) not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise DescriptorsTaken(
            f"no socket can be made: {getattr(error, 'strerror', error)}", detail="descriptors",
            hint="allow more open files: ulimit -n, or LimitNOFILE= of its service",
        ) from None
