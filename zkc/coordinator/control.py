"""What administration commands ask a running coordinator, over its local control socket."""

from __future__ import annotations

from zkc.wire.messages import Message


class AskStatus(Message, frozen=True, tag="status"):
    pass


class AskOnline(Message, frozen=True, tag="online"):
    """Which clients are online: pages of `Online`."""


class AskLoad(Message, frozen=True, tag="load"):
    """How busy it is: a `Load` now and then one every so many seconds, until whoever asks hangs up."""

    every: float


class LookAgain(Message, frozen=True, tag="look-again"):
    """Another process has written the key database: act on it now. Answered when that is done."""


ControlRequest = AskStatus | AskOnline | AskLoad | LookAgain


class Status(Message, frozen=True, tag="status"):
    endpoints: list[str]
    """As configured, with the ports that are bound."""
    fingerprint: str
    clients: int
    """Registered and not revoked."""
    online: int
    keydb: str
    suite: str
    pid: int
    """Of the process that serves; its supervisor is another one."""
    counters: dict[str, int]
    metrics: str = ""
    """``HOST:PORT`` where they are told; empty: nowhere."""


class Load(Message, frozen=True, tag="load"):
    """How busy a coordinator is now; what is counted is counted since its process began."""

    at: float
    """Monotonic seconds there: what lies between two of these is a time."""
    uptime: float
    clients: int
    """Registered and not revoked."""
    online: int
    connections: int
    registrations_open: int
    registrations: int
    """That were finished."""
    handshakes_open: int
    handshakes: dict[str, int]
    """Of transfers, that have ended: by the contract's reason, ``done`` for those that were brokered."""
    policy: dict[str, int]
    """Refusals by policy here, by detail."""
    messages: int


class Online(Message, frozen=True, tag="online"):
    uids: list[bytes]


class Done(Message, frozen=True, tag="done"):
    pass


ControlReply = Status | Online | Load | Done
