"""What a command may ask the daemon of its home, over the local control socket (`zkc.net.local`), and its replies.

Many commands need these messages and nothing that a transfer is made of: `zkc.client.handover` has that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

from msgspec import Struct

from zkc.client.consent import Consent
from zkc.client.events import Options, Place
from zkc.client.happenings import Begun, Delivered, Ended, Happened, Progress
from zkc.client.small import OnDisk, Small
from zkc.ids import Acknowledgement, Compression, KeySource, PersonState, Presence
from zkc.wire.messages import (
    U8,
    U16,
    U32,
    U64,
    EncodedCard,
    Endpoints,
    Hash,
    Id,
    Manifest,
    Message,
    Name,
    Peer,
    PeerCard,
    Word,
)


class AskStatus(Message, frozen=True, tag="status"):
    pass


class AskGrant(Message, frozen=True, tag="grant"):
    tid: Id
    recipient: Name
    key_source: Literal["sender", "coordinator"]
    key_order: Literal["recipient-first", "sender-first"]
    cipher: Word
    size_class: U8
    dry_run: bool
    reach: bool
    fresh: bool
    compression: Compression
    acknowledgement: Acknowledgement
    can_listen: bool
    presence: Presence
    wait: U32
    preview: bytes
    within: float | None
    """Seconds after which the command has no more use for an answer; None: as long as it takes."""


class Job(Struct, frozen=True):
    """What a command hands over: one of `small` and `file`."""

    recipient: str
    small: Small | None
    file: OnDisk | None
    name: str | None
    note: str
    options: Options
    config_file: str
    variables: dict[str, str]
    """The command's own ``ZKC_...``, which may change the configuration for this delivery."""


class AskSend(Message, frozen=True, tag="send"):
    """Send what this holds; answered by an `EventReply` for each event, the last one how it ended."""

    job: Job


class AskListening(Message, frozen=True, tag="listening"):
    """The command that asked for a grant has bound its ports, as `MustListen` demanded."""

    ticket: Id
    endpoints: Endpoints


class AskPeers(Message, frozen=True, tag="peers"):
    pass


class AskCard(Message, frozen=True, tag="card"):
    name: str


class AskSeen(Message, frozen=True, tag="seen"):
    name: str


class AskPerson(Message, frozen=True, tag="person"):
    """What is known of the person here; before that, what he says and proves himself."""

    mode: Literal["here", "away", "auto"] | None
    pin: str

    def __repr__(self) -> str:
        return "AskPerson(…)"


class AskApplication(Message, frozen=True, tag="application"):
    app: str


class AskLeave(Message, frozen=True, tag="leave"):
    pass


class AskPending(Message, frozen=True, tag="pending"):
    """What waits for a person here."""


class AskDecision(Message, frozen=True, tag="decision"):
    """The person's answer to one of these; `DecidedReply` once the sender's coordinator has it."""

    id: str
    """The beginning of its id, as long as it is one's alone."""
    accept: bool
    reason: str
    """Told to the sender with a refusal; at most 512 characters, as on the wire."""
    pin: str
    """Empty: none was given."""

    def __repr__(self) -> str:
        return f"AskDecision({self.id!r}, …)"


class AskRotate(Message, frozen=True, tag="rotate"):
    """New permanent keys for every registration of the home."""

    identity: bool
    """New identities too."""


class AskEvents(Message, frozen=True, tag="events"):
    """What has happened, as far as it is remembered; a `HappenedReply` for each."""

    follow: bool
    """And then all that happens, without an end."""


class AskSending(Message, frozen=True, tag="sending"):
    """The command sends this by itself: `DoneReply`, then `MeasureReply` whenever somebody wants to know how far it is.
    The connection stays open for as long as it sends."""

    begun: Begun


class AskReport(Message, frozen=True, tag="report"):
    """What the command has to tell of what it sends."""

    what: list[Begun | Progress | Delivered | Ended]


class AskReload(Message, frozen=True, tag="reload"):
    """Registrations or configuration have changed: look again."""


class AskLive(Message, frozen=True, tag="live"):
    """The next transfer that matches, for this process, which has bound a pair of sockets: `LiveReply`, then, once one
    is agreed, `GrantReply`. The connection stays open until the process has no more use for it."""

    app: str
    """The application that it is sent to; empty: this home's own registration."""
    sender: str
    """Empty: anybody."""
    name: str
    """A glob that names must match; empty: any. It is the process itself that judges, on the manifest."""
    host: str
    data_port: U16
    ack_port: U16
    chunk: U32
    within: float | None
    """Seconds within which a transfer has to begin; None: as long as it takes."""


class AskOutbox(Message, frozen=True, tag="outbox"):
    """The outbox is looked at now: something may have changed there. `OutboxReply`."""


class AskExpect(Message, frozen=True, tag="expect"):
    """A command here has asked for this delivery: nobody is asked whether it may come, while it is ``wanted``."""

    sender: Hash
    tid: Id
    wanted: bool


class AskLiveReady(Message, frozen=True, tag="live-ready"):
    """The sender of the transfer that was handed over may connect: `LiveReadyReply`."""

    xid: Id


class AskLivePass(Message, frozen=True, tag="live-pass"):
    """Nothing of it was taken; its sender may come again with it."""

    xid: Id
    unwanted: bool
    """Its name does not match: then it is for somebody else."""


class AskLiveReceipt(Message, frozen=True, tag="live-receipt"):
    """Every byte of it was taken: it is done, and here is what the receipt has to say."""

    xid: Id
    manifest: Manifest
    size: U64
    digest: Hash


ControlRequest = (
    AskStatus | AskGrant | AskListening | AskSend | AskPeers | AskCard | AskApplication | AskLeave | AskRotate
    | AskReload | AskLive | AskSeen | AskPerson | AskOutbox | AskExpect | AskLiveReady | AskLivePass | AskLiveReceipt
    | AskPending | AskDecision | AskEvents | AskSending | AskReport
)


class StatusReply(Message, frozen=True, tag="status"):
    client: str
    linked: bool
    coordinator: str
    fingerprint: str
    presence: str
    listen: str
    apps: list[str]
    deliveries: int
    bytes: int
    problem: str
    problem_code: int
    version: str
    """Of the zkc that runs as daemon."""
    metrics: str = ""
    """``HOST:PORT`` where they are told; empty: nowhere."""


class GrantReply(Message, frozen=True, tag="granted"):
    k: bytes
    th: bytes
    req: bytes
    resp: bytes
    suite: str
    card: bytes
    own_fingerprint: bytes
    endpoints: bytes
    opener: bytes
    """`Session.opener`, or nothing. Who gets this may read the home's keys in any case."""

    def __repr__(self) -> str:
        return "GrantReply(…)"


class MustListen(Message, frozen=True, tag="must-listen"):
    """Before the grant: the recipient cannot be connected to. The command answers with `AskListening`."""

    ticket: Id
    coordinator: str
    """Its endpoint, at which interface others most likely are too."""


class HaveReply(Message, frozen=True, tag="have"):
    fingerprint: bytes
    ed25519: bytes
    ml_dsa: bytes
    receipt: bytes
    own_fingerprint: bytes


class AcceptReply(Message, frozen=True, tag="would-accept"):
    presence: str
    asks: bool
    places: list[Place]


class EventReply(Message, frozen=True, tag="event"):
    """One of `zkc.client.small.EVENTS`."""

    name: str
    fields: dict[str, Any]


class HappenedReply(Message, frozen=True, tag="happened"):
    happened: Happened


class MeasureReply(Message, frozen=True, tag="measure"):
    """How far is it? `AskReport`, with a `Progress`."""


class PendingReply(Message, frozen=True, tag="pending"):
    """Before the grant: the recipient asks a person first."""


class WaitReply(Message, frozen=True, tag="wait"):
    """Nothing yet; the daemon lives."""


_PEERS_PER_REPLY: Final = 256
"""80 KB at most: a list of any length goes below the bound of one reply."""


class PeersReply(Message, frozen=True, tag="peers"):
    """A part of the list."""

    peers: list[Peer]


class PendingItem(Message, frozen=True):
    """One transfer that waits for a person. ``sender``, ``name`` and ``note`` are the peer's text."""

    id: str
    sender: str
    app: str
    require: Presence
    """What its sender wants to hold: for ``authorised`` the person proves himself."""
    verified: bool
    """Whether a person has compared the safety number of its sender."""
    name: str | None
    """None: a sender that had not pinned this client's key has told nothing but its size class."""
    note: str
    size: int | None
    least_size: int
    key_source: KeySource
    since: float
    """Seconds since 1970."""
    until: float
    asked_by: str = ""
    asker: bytes = b""
    """By whose request it is sent, as its sender says: name and fingerprint; empty: nobody's."""
    asker_pinned: bool | None = None
    """Whether that is the key which is pinned here for that name; None: none is."""


class PendingListReply(Message, frozen=True, tag="pending-list"):
    items: list[PendingItem]


class DecidedReply(Message, frozen=True, tag="decided"):
    item: PendingItem


class SeenReply(Message, frozen=True, tag="seen"):
    peer: Peer


class PersonReply(Message, frozen=True, tag="person"):
    state: PersonState
    age: int
    source: str
    mode: str
    level: Presence


class CardReply(Message, frozen=True, tag="card"):
    card: PeerCard


class InvitationReply(Message, frozen=True, tag="invitation"):
    text: str

    def __repr__(self) -> str:
        return "InvitationReply(<secret>)"


class RotatedReply(Message, frozen=True, tag="rotated"):
    cards: list[EncodedCard]
    """The new one of each registration."""


class OutboxReply(Message, frozen=True, tag="outbox"):
    sent: dict[str, int]
    """Of jobs that are being sent, by id: bytes that are on their way or there."""


class DoneReply(Message, frozen=True, tag="done"):
    pass


class LiveReply(Message, frozen=True, tag="live"):
    """It waits."""


class LiveReadyReply(Message, frozen=True, tag="live-ready"):
    consent: Consent
    """A person's, who was asked before it was handed over."""


class LiveReceiptReply(Message, frozen=True, tag="live-receipt"):
    receipt: bytes
    id: str
    """By which this client's outputs call what was taken."""


ControlReply = (
    StatusReply | GrantReply | PendingReply | MustListen | HaveReply | AcceptReply | EventReply | WaitReply
    | PeersReply | CardReply | InvitationReply | RotatedReply | OutboxReply | DoneReply | PendingListReply
    | DecidedReply | LiveReply | SeenReply | PersonReply
    | LiveReadyReply | LiveReceiptReply | HappenedReply | MeasureReply
)


def replies_of(peers: list[Peer]) -> Iterator[PeersReply]:
    """All of ``peers``, in as many replies as it takes."""
    for at in range(0, len(peers), _PEERS_PER_REPLY):
        yield PeersReply(peers[at : at + _PEERS_PER_REPLY])
