"""What the parts of a running coordinator share: its keys, stores, clocks, counters, log, and the way out to a peer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from zkc.config import CoordinatorConfig
from zkc.coordinator.identity import CoordinatorIdentity
from zkc.coordinator.keypool import KeyPool
from zkc.env import Clock, Entropy
from zkc.errors import CoordinatorUnreachable, DaemonError, LocalIOError, PeerViolation, ZkcError
from zkc.logs import Repeats
from zkc.metrics.families import Durations
from zkc.net.loopsocket import Sent
from zkc.stores.keydb import KeyDb
from zkc.stores.noting import AuditWriter

_CODES: Final = {"identity": 12, "forged": 12, "bad-key": 12, "epoch": 12, "owner": 12, "limit": 25, "replay": 25}


def code_of(violation: PeerViolation) -> int:
    """The contract's code for a rule that an authenticated peer broke; 1 where only a defect breaks it."""
    return _CODES.get(violation.detail, 1)


def as_told(error: ZkcError) -> tuple[int, str]:
    """Code and detail by which a client hears of ``error``.

    What a coordinator's own key database says (full, held, out of reach, another's) is no word on the client's disk or
    a peer's.
    """
    if isinstance(error, LocalIOError | DaemonError):
        error = CoordinatorUnreachable("the key database does not do what it should", detail="keydb")
    return error.code, error.detail


@dataclass(frozen=True, slots=True)
class Wire:
    """Where a message came from: answers go to ``routing_id``; the rest names its TCP connection."""

    routing_id: bytes
    fd: int
    inode: int


@dataclass
class Core:
    """One running coordinator. Belongs to its event loop's thread."""

    identity: CoordinatorIdentity
    db: KeyDb
    pool: KeyPool
    clock: Clock
    entropy: Entropy
    config: CoordinatorConfig
    log: Any
    send: Callable[[bytes, bytes], Sent]
    """(frame, routing id): hand a control frame to the ROUTER; never waits."""
    hang_up: Callable[[int, int], object]
    """(descriptor, inode): end a peer's TCP connection."""
    repeats: Repeats
    """Which warnings have been given lately."""
    audit: AuditWriter
    """Where every decision is noted."""
    endpoints: tuple[str, ...] = ()
    """Where clients reach this coordinator, as invitations name it."""
    counters: Counter[str] = field(default_factory=Counter)
    durations: defaultdict[str, Durations] = field(default_factory=lambda: defaultdict(Durations))
    """How long what ended took: ``handshake``, ``registration``, and each step of a handshake by its name."""

    def count(self, name: str, n: int = 1) -> None:
        self.counters[name] += n

    def violated(self, where: str, violation: PeerViolation, **ids: object) -> None:
        """A peer broke a rule: counted, logged now and then, never answered by this."""
        self.count(f"violations.{violation.detail}")
        self.warn(f"{where}.{violation.detail}", "rule-broken", where=where, why=str(violation), **ids)

    def warn(self, kind: str, event: str, **ids: object) -> None:
        """A warning that a peer can cause: one of its kind in ten seconds."""
        withheld = self.repeats.passes(kind)
        if withheld is not None:
            self.log.warning(event, **ids, **({"withheld": withheld} if withheld else {}))
