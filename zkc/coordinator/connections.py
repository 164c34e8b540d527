"""The connections of a coordinator: how many there are and whose, and who was let in and has not said a word yet.

libzmq tells of connections by their descriptor, and of who was let in by CURVE key and User-Id; only with its first
message is known which connection is whose. So silence is counted for each peer, and for all together; a connection that
stays silent is given up, for an honest peer speaks at once, and what a peer may have of both kinds is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from zkc.constants import CONNECTIONS_PER_PEER_MAX, SILENT_SECONDS


@dataclass(eq=False)
class Connections:
    """What is known of them; one for each ROUTER."""

    _open: set[int] = field(default_factory=set)
    _heard: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Descriptor -> inode and User-Id of each that has said something."""
    _unheard: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Descriptor -> inode and time of each that is open and has said nothing; the oldest is first."""
    _each: dict[str, int] = field(default_factory=dict)
    """User-Id -> how many of its connections have said something."""
    _silent: dict[str, tuple[bytes, list[float]]] = field(default_factory=dict)
    """User-Id -> CURVE key, and when each of its connections that have said nothing was let in; who has been silent
    longest is first."""

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, descriptor: int, inode: int, now: float) -> None:
        """A TCP connection was accepted; whose it is, is not known yet."""
        self._open.add(descriptor)
        if descriptor not in self._heard:
            self._unheard[descriptor] = inode, now

    def admitted(self, key: bytes, who: str, now: float) -> None:
        """A connection with CURVE key ``key`` (32 bytes) is let in as ``who``."""
        self._silent.setdefault(who, (key, []))[1].append(now)

    def has_too_many(self, who: str, now: float) -> bool:
        """Whether ``who`` has as many connections as one peer may have. Those that were let in `SILENT_SECONDS` ago and
        have said nothing are gone by now."""
        _, silent = self._silent.get(who, (b"", []))
        recent = sum(since > now - SILENT_SECONDS for since in silent)
        return self._each.get(who, 0) + recent >= CONNECTIONS_PER_PEER_MAX

    def heard(self, descriptor: int, inode: int, who: str) -> bool:
        """A message has come; whether it is the first of its connection."""
        if self._heard.get(descriptor) == (inode, who):
            return False
        self._forget_heard(descriptor)
        self._heard[descriptor] = inode, who
        self._each[who] = self._each.get(who, 0) + 1
        self._unheard.pop(descriptor, None)
        _, silent = self._silent.get(who, (b"", []))
        if len(silent) > 1:
            del silent[0]
        else:
            self._silent.pop(who, None)
        return True

    def user_of(self, descriptor: int, inode: int) -> str:
        """The User-Id of a connection that has said something; empty for another."""
        known, who = self._heard.get(descriptor, (0, ""))
        return who if known == inode else ""

    def silent_since(self, then: float) -> list[tuple[int, int]]:
        """Descriptor and inode of each that was open at ``then`` and has said nothing to this moment."""
        return [(descriptor, inode) for descriptor, (inode, since) in self._unheard.items() if since <= then]

    def closed(self, descriptor: int) -> None:
        """A connection has ended. When the last that was silent has, nobody is silent any more."""
        self._open.discard(descriptor)
        self._forget_heard(descriptor)
        self._unheard.pop(descriptor, None)
        if not self._unheard:
            self._silent.clear()

    def _forget_heard(self, descriptor: int) -> None:
        _, who = self._heard.pop(descriptor, (0, ""))
        left = self._each.get(who, 0) - 1
        if left > 0:
            self._each[who] = left
        else:
            self._each.pop(who, None)

    @property
    def suspect(self) -> tuple[bytes, str] | None:
        """CURVE key and User-Id of who has been silent for longest; None: everybody has said something.

        If the process aborts now, it is the doing of that one: a peer that claims a routing id may sit still until
        libzmq gives the same id to somebody innocent, and aborts; with its first word it would be cut off (attack O01).
        """
        for who, (key, _) in self._silent.items():
            return key, who
        return None
