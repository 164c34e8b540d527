"""How a transfer is told to end, and what it is told that its link has ended. Imports no zmq."""

from __future__ import annotations

import contextlib
import os
import select

from zkc.errors import Interrupted, ZkcError
from zkc.net.descriptors import descriptors


class LinkLost(Interrupted):
    """The other end vanished in the middle, or cannot be reached: another connection may go on."""


class Bell:
    """Wakes a thread that polls: rung once, from anywhere (a signal handler included)."""

    def __init__(self) -> None:
        """`DescriptorsTaken`."""
        with descriptors():
            self.fd, self._ring = os.pipe()
        os.set_blocking(self.fd, False)
        self.rung = False
        self.said: ZkcError | None = None
        """Why it was rung, where that was told."""

    def ring(self, reason: ZkcError | None = None) -> None:
        """``reason``: what ends then, where that is not this process; of several the first counts."""
        self.said = self.said or reason
        self.rung = True
        with contextlib.suppress(OSError):
            os.write(self._ring, b"!")

    def wait(self, seconds: float) -> bool:
        """Sleep until it is rung, at most so long: whether it was."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.poll(max(seconds, 0.0) * 1000)
        return self.rung

    @property
    def reason(self) -> ZkcError:
        """What a recipient that hears it raises."""
        return self.said or Interrupted("this client ends", detail="shutdown")

    def hush(self) -> None:
        """For one that is rung again and again: until the next time. Where it was not rung: nothing."""
        self.rung = False
        with contextlib.suppress(OSError):
            os.read(self.fd, 4096)

    def close(self) -> None:
        """Again: nothing. Rung later, it wakes nobody, whoever may have its descriptors then."""
        fds, self.fd, self._ring = (self.fd, self._ring), -1, -1
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)


def interrupted(recipient: str, bell: Bell) -> ZkcError:
    """The bell, as the sender's user is told."""
    return bell.said or Interrupted(f"the transfer to {recipient} was interrupted", detail="signal")
