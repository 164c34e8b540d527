"""The transfers under way to one home: one xid each, with all that it has, and who is whose successor."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from zkc.client.consent import Consent
from zkc.client.readers import Reader
from zkc.crypto.cards import VerifiedCard
from zkc.errors import Interrupted, PeerViolation
from zkc.ids import Presence
from zkc.net.pipe.bell import Bell
from zkc.net.pipe.recipient import Incoming
from zkc.protocol import transfer_recipient as machine
from zkc.protocol.session import Session
from zkc.wire.messages import AnswerBody, Notify, Req


@dataclass(slots=True, eq=False)
class Transfer:
    """One xid: its handshake's state, its sockets, and once agreed its thread."""

    context: machine.Recipient
    state: machine.State
    sender: VerifiedCard
    notify: Notify
    answers: dict[bytes, AnswerBody] = field(default_factory=dict)
    """By the digest of what was asked: the same again, whose answer was lost, gets the same answer."""
    incoming: Incoming | None = None
    reader: Reader | None = None
    """The process that takes it as a stream, with sockets of its own in place of ours."""
    asking: asyncio.Task[None] | None = None
    """Its wait for a person."""
    head: bytes = b""
    """Of the key log, for its sender."""
    rule: str = ""
    """Of policy: which one decided about it."""
    required: Presence = "online"
    """What must hold of whoever accepts it."""
    consent: Consent = field(default_factory=Consent)
    """A person's: the manifest has to say what he was shown."""
    turn: asyncio.Timeout | None = None
    """Its wait for a port."""
    timer: asyncio.TimerHandle | None = None
    agreed: bool = False
    """Both ends hold the key."""
    bell: Bell | None = None
    """Of its thread."""
    done: asyncio.Future[None] | None = None
    req: Req = field(init=False)

    def __post_init__(self) -> None:
        self.req = machine.read_request(self.notify)

    @property
    def session(self) -> Session:
        """What both ends agreed on."""
        if not isinstance(self.state, machine.Agreed):
            raise ValueError("the handshake is not over")
        return self.state.session

    @property
    def ids(self) -> dict[str, str]:
        """What tells it apart in the log."""
        asked = {"asked_by": self.req.asked_by} if self.req.asked_by else {}
        return {"sender": self.req.sender, "recipient": self.req.recipient, "xid": self.req.xid.hex(), **asked}


class Transfers(dict[bytes, Transfer]):
    """By xid."""

    def older(self, transfer: Transfer) -> list[Transfer]:
        """Those of the same delivery that were agreed before."""
        return [
            other for other in self.values()
            if other is not transfer and other.agreed and other.req.tid == transfer.req.tid
            and other.sender.fingerprint == transfer.sender.fingerprint
        ]

    def check_wanted(self, transfer: Transfer) -> None:
        """`PeerViolation` where a transfer was ended while something was waited for."""
        if self.get(transfer.req.xid) is not transfer:
            raise PeerViolation("unexpected", "the transfer was ended meanwhile")


def anew(sender: str) -> Interrupted:
    """What ends a transfer in whose place another one has been made: nobody has to come back from it."""
    return Interrupted(f"{sender} has begun this delivery anew", detail="ended")
