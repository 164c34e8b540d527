"""The grammar of every message: tagged, typed, bounded. What a message *means* is said in ``zkc.protocol``.

Four rooms: registration (R0..R6), channel (C1, S1 and what records carry), transfer (REQ, RESP, KEY, CONF and
their coordinator-made sisters), data (manifest, start, acknowledgements, receipt).
A field of type bytes that another message's transcript absorbs is opaque here: it travels as it was made.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from zkc.constants import CHUNK_MAX, CHUNK_MIN, EXCLUDES_MAX, FILE_NAME_MAX, LINK_TARGET_MAX, NOTE_MAX, RUNS_MAX
from zkc.ids import Acknowledgement, Compression, KeyOrder, KeySource, Kind, PersonState, Presence, ShareKind

Id = Annotated[bytes, Meta(min_length=16, max_length=16)]
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
IdOrSealed = Annotated[bytes, Meta(min_length=16, max_length=8 * 1024)]
MaybeHash = Annotated[bytes, Meta(max_length=32)]
Blob = Annotated[bytes, Meta(max_length=48 * 1024)]
Small = Annotated[bytes, Meta(max_length=8 * 1024)]
EncodedCard = Annotated[bytes, Meta(max_length=16 * 1024)]
EncodedSuccession = Annotated[bytes, Meta(max_length=12 * 1024)]
SealedAnswer = Annotated[bytes, Meta(max_length=24 * 1024)]
"""Room for a receipt with an application's card in it."""
Response = Annotated[bytes, Meta(max_length=26 * 1024)]
"""RESP, and with it card, certificate and keys: X4 fits into one control message whatever a recipient says."""
Terms = Annotated[bytes, Meta(max_length=16 * 1024)]
"""REQ, with a preview and a head of the key log in it."""
LiveSignature = Annotated[bytes, Meta(min_length=64, max_length=64)]
MaybeSignature = Annotated[bytes, Meta(max_length=64)]
Name = Annotated[str, Meta(max_length=127)]
Word = Annotated[str, Meta(max_length=64)]
Line = Annotated[str, Meta(max_length=512)]
U8 = Annotated[int, Meta(ge=0, le=0xFF)]
U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
U64 = Annotated[int, Meta(ge=0, le=0x7FFFFFFFFFFFFFFF)]
I64 = Annotated[int, Meta(ge=-0x8000000000000000, le=0x7FFFFFFFFFFFFFFF)]
Rwx = Annotated[int, Meta(ge=0, le=0o777)]
Component = Annotated[bytes, Meta(max_length=FILE_NAME_MAX)]
ContractCode = Annotated[int, Meta(ge=1, le=40)]


class Message(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An array of its fields in order, nothing less and nothing more."""


# --- registration --------------------------------------------------------------------------------------------------


class RegHello(Message, frozen=True, tag="R0"):
    invite_id: Id


class RegCoordinator(Message, frozen=True, tag="R0c"):
    card: Small
    """`CoordinatorCard`."""
    signature: Small


class RegName(Message, frozen=True, tag="R1"):
    invite_id: Id
    sealed_name: Small
    mac: Hash


class RegNameInClear(Message, frozen=True, tag="R1n"):
    """In place of R1."""

    invite_id: Id
    name: Small
    """`SealedName`, not sealed."""
    mac: Hash


class RegTempServer(Message, frozen=True, tag="R2"):
    temp_server_key: Small
    signature: Small


class RegTempClient(Message, frozen=True, tag="R3"):
    sealed_temp_client_key: Small
    ct1: Small
    mac: Hash
    register: MaybeHash
    """The MAC of R3b where the registration request travels in the same message, else empty."""


class RegRegister(Message, frozen=True, tag="R3b"):
    register: Hash


class RegPermServer(Message, frozen=True, tag="R4"):
    ct2: Small
    sealed_perm_server_key: Small
    mac: Hash


class RegPermClient(Message, frozen=True, tag="R5"):
    sealed_to: Literal["permanent", "temporary"]
    sealed_card: Blob
    mac: Hash


class RegDone(Message, frozen=True, tag="R6"):
    sealed_done: Small
    mac: Hash


class RegError(Message, frozen=True, tag="RE"):
    code: ContractCode
    detail: Word
    mac: Hash


RegMessage = (
    RegHello | RegCoordinator | RegName | RegNameInClear | RegTempServer | RegTempClient | RegRegister
    | RegPermServer | RegPermClient | RegDone | RegError
)


class CoordinatorCard(Message, frozen=True):
    """What an invitation's fingerprint vouches for (R0's answer)."""

    ed25519: Hash
    ml_dsa: Small
    general_key: Small
    curve_key: Hash
    suite: Word
    epoch: U32


class SealedName(Message, frozen=True):
    name: Name
    kind: Kind


class SealedPermServer(Message, frozen=True):
    uid: Id
    perm_server_key: Small
    certificate: Small
    """Coordinator's durable signature over {name, uid, H(perm_server_key), epoch}."""


class SealedPermClient(Message, frozen=True):
    card: EncodedCard
    curve_key: Hash
    signature: Small


class SealedDone(Message, frozen=True):
    card_hash: Hash
    certificate: Small
    """Coordinator's durable signature over {name, uid, H(card), epoch}."""
    log_index: U64


class InvitationText(Message, frozen=True):
    """The fields of an invitation."""

    endpoints: Annotated[list[Line], Meta(max_length=32)]
    fingerprint: Hash
    curve_key: Hash
    suite: Word
    invite_id: Id
    name: Name
    kind: Kind
    secret: Id

    def __repr__(self) -> str:
        return f"InvitationText(name={self.name!r}, …)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("name", self.name)]


# --- cards ---------------------------------------------------------------------------------------------------------


class CardBody(Message, frozen=True):
    name: Name
    kind: Kind
    uid: Id
    ed25519: Hash
    ml_dsa: Small
    kem_key: Small
    epoch: U32
    not_after: U64
    """Seconds since 1970."""
    owner: MaybeHash
    """Fingerprint of the owner's identity for an application, else empty."""


class Card(Message, frozen=True):
    body: Small
    """`CardBody`, as it was signed."""
    signature: Small
    owner_ed25519: MaybeHash
    owner_ml_dsa: Small
    owner_signature: Small


class SuccessionBody(Message, frozen=True):
    """One identity takes the place of another under a name."""

    name: Name
    former: Hash
    """Fingerprint of the identity that goes."""
    ed25519: Hash
    ml_dsa: Small
    epoch: U32
    """Of the first card under the new one."""


class Succession(Message, frozen=True):
    body: Small
    """`SuccessionBody`, as it was signed."""
    former_signature: Small
    signature: Small
    """Durable, SIG(identity, "succession", H(body)), of the former identity and of the new one."""


class Certified(Message, frozen=True):
    """What a certificate signs: H of this."""

    name: Name
    uid: Id
    key_hash: Hash
    epoch: U32


# --- channel -------------------------------------------------------------------------------------------------------


class ChannelHello(Message, frozen=True, tag="C1"):
    uid: IdOrSealed
    """16 bytes: the uid. More: its seal to the coordinator's general key."""
    ct_s: Small
    ephemeral_key: Small
    sealed: Small


class ChannelAnswer(Message, frozen=True, tag="S1"):
    ct_e: Small
    ct_c: Small
    sealed: Small


ChannelMessage = ChannelHello | ChannelAnswer


class HelloInfo(Message, frozen=True):
    role: Literal["daemon", "once"]
    instance: Id
    """Random for each process: tells a second daemon from a renewed channel."""
    versions: Annotated[list[U16], Meta(min_length=1, max_length=16)]
    epoch: U32


class AnswerInfo(Message, frozen=True):
    version: U16
    control_max: U32
    heartbeat_ms: U32
    time: U64
    """The coordinator's, in seconds since 1970: to tell a card that has expired from a clock that is wrong."""
    coordinator: Hash
    """Fingerprint of the identity that the coordinator has now."""


# What the records of a channel carry: requests either way, each with one answer or failure.


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    pass


class Goodbye(Message, frozen=True, tag="goodbye"):
    pass


class TransferRequest(Message, frozen=True, tag="x1"):
    request: Terms
    signature: LiveSignature


class TransferKey(Message, frozen=True, tag="x5"):
    key: Small
    signature: LiveSignature


class TransferConfirmKey(Message, frozen=True, tag="confs"):
    """Coordinator-made: the sender's confirmation (G4, G2')."""

    confirmation: Small


class TransferEnd(Message, frozen=True, tag="xend"):
    """Either end gives a handshake up; the other is told."""

    xid: Id
    code: ContractCode
    detail: Word


class ListPeers(Message, frozen=True, tag="peers"):
    after: Name


class LookUp(Message, frozen=True, tag="lookup"):
    name: Name


class PersonIs(Message, frozen=True, tag="person"):
    """Daemon to coordinator: what is known of its person."""

    state: PersonState
    age: U32
    """Seconds since it was so."""


class LookAt(Message, frozen=True, tag="look-at"):
    """Is ``name`` there?"""

    name: Name


class LogAsk(Message, frozen=True, tag="log"):
    """Client to coordinator: what follows in the key log."""

    size: U64
    """Entries that the client has; with ``fresh`` it has none, and is given what begins with its own registration."""
    fresh: bool


class LogProve(Message, frozen=True, tag="log-prove"):
    """Client to coordinator: is this card, which the client of that name has or had, in the first ``size`` entries?"""

    name: Name
    card_hash: Hash
    size: U64


class LogHeadAsk(Message, frozen=True, tag="log-head-ask"):
    """Client to coordinator: what is the root over the first ``size`` entries?"""

    size: U64


class InviteApplication(Message, frozen=True, tag="invite-app"):
    app: Name


class Leave(Message, frozen=True, tag="leave"):
    pass


class Rotate(Message, frozen=True, tag="rot1"):
    """A client's card of its next epoch, with a new permanent key."""

    card: EncodedCard
    curve_key: MaybeHash
    """The public CURVE key with which it will connect; empty: the one that it has."""
    signature: LiveSignature
    """SIG(identity, "rotate", H(H(card) || curve_key)): the card does not name the CURVE key."""
    succession: EncodedSuccession
    """`Succession`, where the card is of a new identity; else empty."""


class AskSuccessions(Message, frozen=True, tag="successions"):
    """By which successions the identity ``since`` (a fingerprint) became the one that ``name`` has now."""

    name: Name
    since: Hash


class AskCoordinator(Message, frozen=True, tag="coordinator"):
    """Which identity the coordinator has, and by which successions it came there from ``since``, a fingerprint."""

    since: Hash


class RelayHere(Message, frozen=True, tag="relay-here"):
    """Client to coordinator: this client serves as relay, for whom the coordinator's configuration says."""

    endpoint: Line


class WantRelay(Message, frozen=True, tag="want-relay"):
    """Recipient to coordinator, between X2 and X3: neither end can be connected to."""

    xid: Id
    data: Id
    acks: Id
    """The names under which the ends will meet."""


class Rendezvous(Message, frozen=True, tag="rendezvous"):
    """Coordinator to relay: two ends of a transfer to ``client`` will come under these names."""

    data: Id
    acks: Id
    client: Name


class Notify(Message, frozen=True, tag="x2"):
    request: Terms
    signature: LiveSignature
    card: EncodedCard
    certificate: Small
    presence: Presence
    """The coordinator's own policy lets nothing through below this."""


class TransferAnswer(Message, frozen=True, tag="x3a"):
    """Recipient to coordinator: RESP of a transfer about which a person was asked first."""

    xid: Id
    response: Response
    signature: LiveSignature


class DeliverKey(Message, frozen=True, tag="x5r"):
    key: Small
    signature: LiveSignature


class DeliverSessionKey(Message, frozen=True, tag="keyr"):
    """Coordinator-made: the recipient's wrapped key (G1), and in sender-first order CONFS with it (G3')."""

    wrapped: Small
    confirmation: Small


class DeliverConfirmation(Message, frozen=True, tag="confr-s"):
    """Coordinator-made, recipient first: the sender's CONFS forwarded (G4)."""

    confirmation: Small


class AskStep(Message, frozen=True, tag="ask"):
    """Asker to coordinator: a step of a third-party request, for the client that is to send."""

    to: Name
    body: Small
    """An `AskBody`."""
    signature: MaybeSignature


class AskFrom(Message, frozen=True, tag="asked"):
    """Coordinator to the client that is to send: the same, and who asks."""

    asker: Name
    body: Small
    signature: MaybeSignature
    card: EncodedCard
    certificate: Small


class Revoked(Message, frozen=True, tag="revoked"):
    """Coordinator to client: this registration has ended."""

    reason: Line


class CoordinatorRenewed(Message, frozen=True, tag="coordinator-renewed"):
    """Coordinator to client: it has another identity than before; ask."""


class Replaced(Message, frozen=True, tag="replaced"):
    """Coordinator to client: another daemon of the same registration has taken over."""


RequestBody = (
    Heartbeat | Goodbye | TransferRequest | TransferKey | TransferConfirmKey | TransferEnd | ListPeers | LookUp
    | PersonIs | LookAt | LogAsk | LogProve | LogHeadAsk | InviteApplication | Leave | Rotate | AskSuccessions
    | AskCoordinator | RelayHere | WantRelay | Rendezvous
    | Notify | TransferAnswer | DeliverKey | DeliverSessionKey | DeliverConfirmation | Revoked
    | CoordinatorRenewed | Replaced
    | AskStep | AskFrom
)


class Ok(Message, frozen=True, tag="ok"):
    pass


class TransferGrant(Message, frozen=True, tag="x4"):
    response: Response
    signature: LiveSignature
    card: EncodedCard
    certificate: Small
    wrapped: Small
    """Coordinator-made: KEYS; else empty."""
    confirmation: Small
    """Coordinator-made, recipient first: CONFR; else empty."""


class TransferResponse(Message, frozen=True, tag="x3"):
    response: Response
    signature: LiveSignature


class TransferPending(Message, frozen=True, tag="pending"):
    """In place of RESP, to the coordinator and on to the sender: a person is asked first. No card, no key."""


class TransferConfirm(Message, frozen=True, tag="x6"):
    confirmation: Small


class Peer(Message, frozen=True):
    name: Name
    kind: Kind
    online: bool
    last_seen: U64
    """Seconds since 1970; 0: never."""
    fingerprint: Hash
    person: PersonState
    person_age: U32
    """Seconds since it was so."""


class PeerPage(Message, frozen=True, tag="peer-page"):
    peers: Annotated[list[Peer], Meta(max_length=256)]
    more: bool


class PeerSeen(Message, frozen=True, tag="peer-seen"):
    peer: Peer


class PeerCard(Message, frozen=True, tag="peer-card"):
    card: EncodedCard
    certificate: Small
    registered: U64
    """Seconds since 1970, when the coordinator registered the client that it is of."""


class LogLeaf(Message, frozen=True):
    """An entry of the key log, as it is hashed."""

    event: Word
    """``registered``, ``rotated``, ``succeeded`` or ``revoked``."""
    name: Name
    card_hash: Hash
    reason: Line


class LogHead(Message, frozen=True, tag="log-head"):
    head: Small
    """Signed, of as many entries as were asked for."""


class LogPage(Message, frozen=True, tag="log-page"):
    head: Small
    """The newest, signed."""
    first: U64
    """How many entries are before these."""
    frontier: Annotated[list[Hash], Meta(max_length=64)]
    """Of the tree of ``first`` entries, for one who has none; else empty."""
    entries: Annotated[list[Small], Meta(max_length=256)]
    """`LogLeaf`, each as it was hashed."""


class LogProof(Message, frozen=True, tag="log-proof"):
    index: U64
    path: Annotated[list[Hash], Meta(max_length=64)]


class Invitation(Message, frozen=True, tag="invitation"):
    text: Annotated[str, Meta(max_length=4096)]

    def __repr__(self) -> str:
        return "Invitation(<secret>)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


class Rotated(Message, frozen=True, tag="rot2"):
    """The coordinator holds the new card, durably."""

    certificate: Small
    """Over {name, uid, H(card), epoch}, as in R6."""
    sealed_perm_server_key: Small
    """Seal(new permanent client key, "rot-perm-server", H(card), `SealedPermServer`), its certificate of that epoch."""


class Successions(Message, frozen=True, tag="succession-page"):
    """The oldest first; none where nothing leads from there."""

    successions: Annotated[list[EncodedSuccession], Meta(max_length=4)]
    more: bool


class CoordinatorNow(Message, frozen=True, tag="coordinator-now"):
    card: Small
    """`CoordinatorCard`."""
    signature: Small
    successions: Annotated[list[EncodedSuccession], Meta(max_length=4)]
    """The oldest first, under the empty name."""
    more: bool


class RelayAt(Message, frozen=True, tag="relay-at"):
    """Coordinator to recipient: the relay that expects both ends."""

    name: Name
    endpoint: Line


class AskReply(Message, frozen=True, tag="ask-reply"):
    """The sender's answer to a step; the coordinator puts card and certificate in."""

    body: Response
    """An `AskedBody`."""
    signature: MaybeSignature
    card: EncodedCard
    certificate: Small


AnswerBody = (
    Ok | TransferGrant | TransferResponse | TransferPending | TransferConfirm | PeerPage | PeerSeen | PeerCard
    | Invitation | Rotated | Successions | CoordinatorNow | RelayAt | LogPage | LogProof | LogHead | AskReply
)


class Request(Message, frozen=True, tag="q"):
    id: Id
    body: RequestBody


class Answer(Message, frozen=True, tag="a"):
    id: Id
    body: AnswerBody


class Failure(Message, frozen=True, tag="f"):
    id: Id
    code: ContractCode
    detail: Word


Record = Request | Answer | Failure


# --- transfer handshake: byte strings that the coordinator forwards as they came -----------------------------------


class Req(Message, frozen=True):
    version: U16
    """`TERMS_VERSION`. Read before the rest, which another version may have more of."""
    xid: Id
    tid: Id
    sender: Name
    recipient: Name
    pin: MaybeHash
    """Fingerprint under which the sender has pinned the recipient, else empty."""
    key_source: KeySource
    key_order: KeyOrder
    cipher: Word
    compression: Compression
    """``zstd``: chunks may be frames of it."""
    acknowledgement: Acknowledgement
    """``permanent``: the receipt in DONE comes sealed to the sender's permanent key."""
    presence: Presence
    wait: U32
    size_class: U8
    """Upper bound of the size as a power of two; 255: not known."""
    can_listen: bool
    fresh: bool
    card_hash: Hash
    sender_one_time_key: Small
    """Coordinator-made: e_S; else empty."""
    preview: Small
    """Seal of `Preview` to the recipient, where its key is pinned; else empty."""
    asker: MaybeHash
    """Fingerprint of the client that asked the sender for it; empty: nobody did."""
    asked_by: Name
    """Its name, as the sender knows it."""
    ask: MaybeHash
    """H(ASK) of that request, which the receipt repeats."""
    head: Small
    """Signed head of the key log, the newest that the sender knows; empty: the recipient was told it before."""


class Preview(Message, frozen=True):
    """What a person or a policy may judge by before anything else is known. Always as long as any other."""

    name: Annotated[str, Meta(max_length=FILE_NAME_MAX)]
    note: Annotated[str, Meta(max_length=FILE_NAME_MAX)]
    """Its beginning."""
    size: U64 | None
    padding: Annotated[bytes, Meta(max_length=1024)]


# --- third-party requests: the coordinator reads of them who asks whom for whom -------------------------------------


class Ask0(Message, frozen=True, tag="ask0"):
    qid: Id
    asker: Name
    sender: Name
    recipient: Name
    """Empty: only what is shared is asked for."""
    card_hash: Hash


class Ask(Message, frozen=True, tag="ask"):
    qid: Id
    nonce: Hash
    asker: Name
    sender: Name
    recipient: Name
    fingerprint: Hash
    """The recipient's."""
    tid: Id
    sealed: Small
    """`AskWhat`, to the sender."""


class AskMore(Message, frozen=True, tag="ask-more"):
    """How far is it?"""

    qid: Id


AskBody = Ask0 | Ask | AskMore


class Nonce(Message, frozen=True, tag="nonce"):
    qid: Id
    nonce: Hash
    card_hash: Hash


class AskVerdict(Message, frozen=True, tag="askr"):
    qid: Id
    code: U8
    """0: it is under way."""
    detail: Word


class AskTold(Message, frozen=True, tag="ask-told"):
    qid: Id
    sealed: Response
    """`AskState`, or `ShareList`, to the asker."""


AskedBody = Nonce | AskVerdict | AskTold


class AskWhat(Message, frozen=True):
    share: Name
    path: Annotated[str, Meta(max_length=4096)]
    """Below the share; empty: the share itself."""
    note: Annotated[str, Meta(max_length=NOTE_MAX)]
    exclude: Annotated[list[Annotated[str, Meta(max_length=FILE_NAME_MAX)]], Meta(max_length=EXCLUDES_MAX)]
    """Globs of what stays behind of a folder."""


class AskState(Message, frozen=True):
    """How far a delivery is that was asked for: under way, or over with a code or a receipt."""

    name: Annotated[str, Meta(max_length=4096)]
    size: I64
    """-1: not known."""
    bytes: U64
    path: Line
    """How the two are connected; empty: not yet."""
    resumed_from: U64
    key_source: KeySource
    cipher: Word
    over: bool
    code: U8
    detail: Word
    receipt: SealedAnswer
    pending: bool
    """Whether a person at the recipient is asked first."""


class ShareLine(Message, frozen=True):
    name: Name
    note: Annotated[str, Meta(max_length=NOTE_MAX)]
    recipients: Annotated[list[Name], Meta(max_length=64)]
    kind: ShareKind
    """``gone``: there is nothing at its path."""


class ShareList(Message, frozen=True):
    shares: Annotated[list[ShareLine], Meta(max_length=256)]


class Resp(Message, frozen=True):
    version: U16
    """As in REQ."""
    xid: Id
    verdict: Literal["accept", "refuse", "have"]
    code: U8
    """0, or why it is refused."""
    detail: Word
    presence: Presence
    presence_age: U32
    recipient_one_time_key: Small
    chunk: Annotated[int, Meta(ge=CHUNK_MIN, le=CHUNK_MAX)]
    max_bytes: U64
    """The recipient's limit for this transfer; 0: none."""
    live: bool
    card_hash: Hash
    key_source: KeySource
    key_order: KeyOrder
    sender_one_time_key: Small
    sealed_endpoints: SealedAnswer
    """Seal of `Endpoints`; with verdict ``have`` of the receipt, with ``refuse`` empty or of `Reason`."""
    head: Small
    """As in REQ, of the recipient."""


class Reason(Message, frozen=True):
    """What a person says with a refusal, for the sender."""

    text: Line


class Endpoints(Message, frozen=True):
    """Where an end listens: every address has both ports. Of a recipient, no address: the sender is to listen."""

    addresses: Annotated[list[Word], Meta(max_length=16)]
    data_port: U16
    ack_port: U16
    resume: U64
    """Durable position that the recipient holds of this delivery."""
    relay: Name
    """The client that serves as relay between the two, whose address and (twice) port the others are; empty: none."""
    rv: Annotated[bytes, Meta(max_length=16)]
    """16 random bytes, from which follows under which names the ends meet there; without a relay empty."""


class Key(Message, frozen=True):
    xid: Id
    ct1: Small
    ct2: Small
    sealed_endpoints: Small


class Conf(Message, frozen=True):
    xid: Id
    mac: Hash


class WrappedKey(Message, frozen=True):
    """KEYR and KEYS: p1, p2, w."""

    xid: Id
    p1: Small
    p2: Small
    w: Small


class ConfS(Message, frozen=True):
    xid: Id
    sealed_endpoints: Small
    mac: Hash


# --- data ----------------------------------------------------------------------------------------------------------


class Manifest(Message, frozen=True):
    kind: Literal["file", "stream", "message", "tree"]
    """``tree``: the stream is a listing and the contents of its files."""
    name: Annotated[str, Meta(max_length=4 * FILE_NAME_MAX)]
    note: Annotated[str, Meta(max_length=NOTE_MAX)]
    size: U64 | None
    mode: U32
    mtime_ns: U64


class TreeFolder(Message, frozen=True, tag="d"):
    """A folder of a listing; those of greater depth that follow are in it."""

    depth: U16
    """Folders above it in the listing: it is in the last of them that has one less."""
    name: Component
    """Bytes as on disk. Empty: the tree itself, which has the manifest's name."""
    mode: Rwx
    mtime_ns: I64
    """Nanoseconds since 1970."""


class TreeFile(Message, frozen=True, tag="f"):
    depth: U16
    name: Component
    """Empty: the tree is this file alone, which has the manifest's name; so a sparse file travels."""
    mode: Rwx
    mtime_ns: I64
    size: U64
    runs: Annotated[list[U64], Meta(max_length=2 * RUNS_MAX)] | None
    """A sparse file: length of a hole, length of the data behind it, and so on; only the data follows in the stream.
    What is left of the size is a hole. nil: all of it is data."""


class TreeLink(Message, frozen=True, tag="l"):
    """A symbolic link, as a link."""

    depth: U16
    name: Component
    mtime_ns: I64
    target: Annotated[bytes, Meta(min_length=1, max_length=LINK_TARGET_MAX)]


TreeEntry = TreeFolder | TreeFile | TreeLink


class Start(Message, frozen=True):
    attempt: U32
    offset: U64


class Ack(Message, frozen=True, tag="ack"):
    attempt: U32
    position: U64
    """Bytes of this stream that the recipient has taken over."""
    credit: U32
    """Bytes beyond ``position`` that the sender may have under way."""


class Done(Message, frozen=True, tag="done"):
    receipt: Blob
    """A receipt, or its seal, as REQ asks for."""


class Stop(Message, frozen=True, tag="stop"):
    """Either end gives the delivery up, with a code of the contract."""

    code: ContractCode
    detail: Word


AckMessage = Ack | Done | Stop


class ReceiptBody(Message, frozen=True):
    tid: Id
    xid: Id
    th: Hash
    sender: Name
    sender_fingerprint: Hash
    recipient: Name
    recipient_fingerprint: Hash
    card_hash: Hash
    """H(card), of the recipient's card beside it."""
    name_digest: Hash
    size: U64
    digest: Hash
    """BLAKE3 of the whole stream."""
    manifest_digest: Hash
    key_source: KeySource
    cipher: Word
    presence: Presence
    presence_age: U32
    durable: bool
    asker: MaybeHash
    """H(ASK), of a delivery on request."""
    asked_by: Name
    """By whose request, as the sender says."""
    began: U64
    ended: U64
    """Recipient's clock, milliseconds since 1970."""


class Receipt(Message, frozen=True):
    body: Small
    signature: Small
    card: EncodedCard
