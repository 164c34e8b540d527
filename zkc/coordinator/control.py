"""What administration commands ask a running coordinator, over its local control socket."""

from __future__ import annotations

from zkc.wire.messages import Message


class AskStatus(Message, frozen=True, tag="status"):
    pass


class AskOnline(Message, frozen=True, tag="online"):
    """Which clients are online: pages of `Online`."""


class LookAgain(Message, frozen=True, tag="look-again"):
    """Another process has written the key database: act on it now. Answered when that is done."""


ControlRequest = AskStatus | AskOnline | LookAgain


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


class Online(Message, frozen=True, tag="online"):
    uids: list[bytes]


class Done(Message, frozen=True, tag="done"):
    pass


ControlReply = Status | Online | Done
