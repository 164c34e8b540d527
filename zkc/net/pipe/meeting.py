"""Where the two ends of a transfer meet: one listens, the other dials, whichever of them sends.

The listening end binds its ports before it tells them, and lets in whoever shows both tokens of one attempt, above all
attempts before. The dialling end counts the attempts, and tries the addresses that it was told. Each connection has
sockets of its own, so that nothing of two is ever mixed. Either end gives its loop one `Pair` after the other::

    pair = meeting.meet(bell, until, clock)      the next connection
    meeting.leave(highest)                       it has ended: the next attempt is above `highest`
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Protocol

import zmq
from msgspec import Struct

from zkc.env import Clock
from zkc.net.pipe.bell import Bell
from zkc.net.sockets import Socket
from zkc.net.watch import ACK_BYTES, UNREAD_BYTES, data_bytes

ADDRESSES_AT_ONCE: Final = 3
"""Addresses of one peer that are tried beside each other: a peer names as many as it likes, and each takes sockets."""


class Rung(Exception):
    """The bell rang before the other end was here."""


class Meeting(Protocol):
    """Either end. One thread at a time."""

    def meet(self, bell: Bell, until: float, clock: Clock) -> Pair:
        """The next connection, waited for until ``until`` (monotonic seconds of ``clock``), or until nothing is left
        to try.

        `LinkLost` where there is none; `Rung`; `DescriptorsTaken`; `PeerViolation` for one that was cut off.
        """

    def leave(self, highest: int) -> None:
        """Drop the connection of the last `meet`; the next attempt is above ``highest``. `DescriptorsTaken`."""

    def close(self) -> None:
        """Say what was said last, for a moment, and meet nobody any more. Again: nothing."""


class End(Protocol):
    """What is known of one of the two connections of a pair."""

    events: Socket
    """Polled; readable when something has happened to it."""

    def delivered(self, message: zmq.Frame) -> None:
        """To be told of each whole message that it brought: what is none counts against it (attack P06)."""

    def is_cut(self) -> bool:
        """Whether it brought so much of what is none that it was cut off."""

    def has_come(self) -> bool:
        """Whether its handshake is over."""

    def is_gone(self) -> bool:
        """Whether it stood, and does not any more."""

    def unsent(self) -> int:
        """Bytes that this machine still has, and the other end's does not."""


def bounds(chunk: int, *, sends: bool) -> tuple[int, int]:
    """How far the other end may be ahead on the data's connection, and on that of the acknowledgements."""
    return (UNREAD_BYTES, ACK_BYTES) if sends else (data_bytes(chunk), UNREAD_BYTES)


class Pair(Struct, frozen=True):
    """One connection for each direction. A listening end may have it before both handshakes are over."""

    attempt: int
    data: Socket
    acks: Socket
    data_end: End
    acks_end: End
    path: Callable[[], str]
    """How the two have met: ``direct`` and the listening end's endpoint for data, or ``relay`` and its name."""
    bell: int | None = None
    """At the end that lets the other one in: readable when somebody came."""
    is_over: Callable[[], bool] = lambda: False
    """Whether the other end has begun a later attempt. To be asked whenever something `watched` is ready."""

    @property
    def watched(self) -> tuple[Socket | int, ...]:
        """What to poll beside the two sockets."""
        ends = self.data_end.events, self.acks_end.events
        return ends if self.bell is None else (*ends, self.bell)

    def let_go(self, seconds: float, clock: Clock) -> None:
        """After the last word: libzmq's dialling end drops what it has not read when a connection ends. So the
        listening end lets it go first, and waits so long for that."""
        until = clock.monotonic() + seconds
        while self.bell is not None and not self.data_end.is_gone():
            left = until - clock.monotonic()
            if left <= 0:
                return
            self.data_end.events.poll(math.ceil(left * 1000))
