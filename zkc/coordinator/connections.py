"""The connections of a coordinator: how many there are, and who was let in and has not said a word yet.

libzmq tells of connections by their descriptor, and of who was let in by CURVE key and User-Id; only with its first
message is known which connection is whose. So silence is counted for each peer, and for all together.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False)
class Connections:
    """What is known of them; one for each ROUTER."""

    _open: set[int] = field(default_factory=set)
    _heard: dict[int, int] = field(default_factory=dict)
    """Descriptor -> inode of each that has said something."""
    _unheard: set[int] = field(default_factory=set)
    """Descriptors of those open that have said nothing."""
    _silent: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    """User-Id -> CURVE key, and how many of its connections have said nothing; who has been silent longest is first."""

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, descriptor: int) -> None:
        """A TCP connection was accepted; whose it is, is not known yet."""
        self._open.add(descriptor)
        if descriptor not in self._heard:
            self._unheard.add(descriptor)

    def admitted(self, key: bytes, who: str) -> None:
        """A connection with CURVE key ``key`` (32 bytes) is let in as ``who``."""
        self._silent[who] = key, self._silent.get(who, (key, 0))[1] + 1

    def heard(self, descriptor: int, inode: int, who: str) -> bool:
        """A message has come; whether it is the first of its connection."""
        if self._heard.get(descriptor) == inode:
            return False
        self._heard[descriptor] = inode
        self._unheard.discard(descriptor)
        key, silent = self._silent.get(who, (b"", 0))
        if silent > 1:
            self._silent[who] = key, silent - 1
        else:
            self._silent.pop(who, None)
        return True

    def closed(self, descriptor: int) -> None:
        """A connection has ended. When the last that was silent has, nobody is silent any more."""
        self._open.discard(descriptor)
        self._heard.pop(descriptor, None)
        self._unheard.discard(descriptor)
        if not self._unheard:
            self._silent.clear()

    @property
    def suspect(self) -> tuple[bytes, str] | None:
        """CURVE key and User-Id of who has been silent for longest; None: everybody has said something.

        If the process aborts now, it is the doing of that one: a peer that claims a routing id may sit still until
        libzmq gives the same id to somebody innocent, and aborts; with its first word it would be cut off (attack O01).
        """
        for who, (key, _) in self._silent.items():
            return key, who
        return None
