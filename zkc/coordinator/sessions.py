"""What a coordinator holds of a client that is connected: its keys, its channels, a session for each of its processes.

A session is named by the process's random instance id: it outlives a renewed channel and a new connection. The values
alone; what happens to them is `zkc.coordinator.clients`'.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from zkc.coordinator.core import Wire
from zkc.ids import PersonState
from zkc.protocol.calls import Calls
from zkc.protocol.channel import Channel, PeerKeys
from zkc.protocol.transfer_coordinator import Party
from zkc.rules.rates import Bucket, Window
from zkc.stores.keydb import ClientRow
from zkc.wire.messages import AnswerBody, Failure, HelloInfo

Silence = Literal["offline", "expired"]
"""Why a request got no answer: its client is not (or no longer) there; it did not answer in time."""
OnReply = Callable[["AnswerBody | Failure | Silence"], None]


@dataclass(eq=False)
class Client:
    """One registration that has something open here."""

    row: ClientRow
    keys: PeerKeys
    party: Party
    former_keys: PeerKeys | None = None
    """Those from before a rotation whose ROT2 may have been lost."""
    succeeded: bool = False
    """They are another identity's, which may be in wrong hands."""
    certified_by: int = 1
    """Epoch of the coordinator's identity that has certified ``party``."""
    sessions: dict[bytes, Session] = field(default_factory=dict)
    tags: dict[bytes, Session] = field(default_factory=dict)
    unconfirmed: OrderedDict[bytes, Hello] = field(default_factory=OrderedDict)
    daemon: Session | None = None
    hellos: Window = field(default_factory=Window)
    requests: Window = field(default_factory=Window)
    """X1, as policy counts them."""
    asked: dict[type, Bucket] = field(default_factory=dict)
    """Kind of request -> how much of its rate is left."""
    handshakes: int = 0
    """Transfer handshakes under way that it began."""
    revoked: bool = False

    @property
    def uid(self) -> bytes:
        return self.row.uid

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def online(self) -> bool:
        """Whether its daemon is there (a command may only ask)."""
        return self.daemon is not None and self.daemon.wire is not None


@dataclass
class Hello:
    """A channel that no record has confirmed."""

    channel: Channel
    info: HelloInfo
    since: float
    keys: PeerKeys
    """Those that it was made with."""


@dataclass(eq=False)
class Session:
    """One process of a client."""

    client: Client
    instance: bytes
    role: Literal["daemon", "once"]
    channel: Channel
    wire: Wire | None
    heard: float
    person: PersonState = "unknown"
    person_at: float = 0.0
    """Since when, monotonic seconds."""
    calls: Calls[None] = field(default_factory=Calls)
    waiting: dict[bytes, OnReply] = field(default_factory=dict)
    ended: bool = False
    ending: bool = False
    """Told that it is over; requests of it are no longer served."""
