"""What a sender asks a handshake for, and what comes of it. Imports no event loop: it costs, and a daemon has one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msgspec import Struct

from zkc.client.events import WouldAccept
from zkc.ids import Acknowledgement, Compression, KeyOrder, KeySource, Presence
from zkc.protocol.session import Session
from zkc.wire.messages import Endpoints


class Wanted(Struct, frozen=True):
    """What a sender asks for; one tid for all tries of one delivery."""

    tid: bytes
    recipient: str
    key_source: KeySource
    key_order: KeyOrder
    cipher: str
    size_class: int
    dry_run: bool = False
    reach: bool = False
    """Whether a dry run looks if the recipient's addresses can be reached."""
    fresh: bool = True
    """Whether the recipient starts at the first byte, whatever it has of this delivery."""
    compression: Compression = "none"
    acknowledgement: Acknowledgement = "session"
    can_listen: bool = False
    """Whether the recipient may ask to connect to the process that has the bytes."""
    presence: Presence = "online"
    """What must hold of the recipient, at least."""
    wait: int = 0
    """Seconds in which a person there has to decide, where one is asked; 0: as many as the recipient gives."""
    preview: bytes = b""
    """What a person or a policy may judge by (`zkc.protocol.session.make_preview`)."""
    asker: bytes = b""
    asked_by: str = ""
    ask: bytes = b""
    """Fingerprint and name of who asked for this delivery, and H(ASK)."""
    pin: bytes = b""
    """Fingerprint that the recipient must have, whatever is pinned here; empty: any that the pins allow."""


class OnRequest(Struct, frozen=True):
    """A delivery that a third client has asked for."""

    tid: bytes
    asker: bytes
    asked_by: str
    """Fingerprint and name of who asked."""
    ask: bytes
    recipient: bytes
    """Fingerprint that the recipient must have."""


@dataclass(frozen=True, repr=False)
class Have:
    """The recipient finished this delivery in an earlier try."""

    fingerprint: bytes
    ed25519: bytes
    ml_dsa: bytes
    receipt: bytes
    own_fingerprint: bytes


Listen = Callable[[str], Endpoints]
"""Called, on any thread, where the recipient cannot be connected to: binds, and says where. Takes the coordinator's
endpoint, at which interface others most likely are too."""

OnPending = Callable[[], None]
"""Called, on any thread, where the recipient asks a person first."""

Grant = Session | Have | WouldAccept
