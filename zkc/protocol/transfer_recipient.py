"""The transfer handshake, the recipient's side (Figures 2, 14, 15).

Sender-made key (the default)                       Coordinator-made key
 1. X2 <- REQ, signed; the sender's card              1. X2 <- the same
          its name, its pin: who sends
 2. X3 -> RESP with a one-time key, signed            2. X3 -> the same
 3. X5 <- KEY, signed                                 3. G1 <- KEYR (sender first: with CONFS)
 4. X6 -> CONF; the one-time key is erased            4. G2 -> CONFR; the one-time key is erased
                                                      5. G4 <- CONFS: the sender holds it too
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from zkc.constants import CHUNK, TERMS_VERSION
from zkc.crypto.cards import VerifiedCard
from zkc.crypto.primitives import Secret, check_mac, expand, mac
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import KemPrivateKey, kem_decapsulate, seal
from zkc.crypto.transcript import Transcript
from zkc.errors import IdentityError, PeerViolation
from zkc.ids import Presence, is_name
from zkc.protocol.session import (
    Session,
    confirmation,
    open_endpoints,
    read_req,
    session_key,
    unwrap_session_key,
)
from zkc.protocol.step import Send, Step, Table
from zkc.protocol.trust import Authority, Known, judge_peer, verify_peer
from zkc.wire.codec import decode, encode
from zkc.wire.messages import (
    ConfS,
    DeliverConfirmation,
    DeliverKey,
    DeliverSessionKey,
    Endpoints,
    Key,
    Notify,
    Ok,
    Reason,
    Req,
    Resp,
    TransferConfirm,
    TransferPending,
    TransferResponse,
)


@dataclass(frozen=True, repr=False)
class Recipient:
    """Who receives, with which keys, on whose authority, and what it knows of the sender."""

    authority: Authority
    identity: IdentityKey
    kem_key: KemPrivateKey
    card: VerifiedCard
    known: Known


@dataclass(frozen=True, repr=False)
class Notified:
    """The sender is who it should be; own policy has not judged yet."""

    th: Transcript
    req: Req
    sender: VerifiedCard


@dataclass(frozen=True)
class Accept:
    """Event: own policy lets the transfer in; the sockets are bound."""

    endpoints: Endpoints
    """Without an address: the sender is to listen."""
    chunk: int
    max_bytes: int
    live: bool = False
    """Whether a process takes it as a stream, and nothing of it is kept."""
    presence: Presence = "online"
    """The level that this client vouches for, and how old what it rests on is, in seconds."""
    presence_age: int = 0
    head: bytes = b""
    """Signed head of the key log, where it is news to the sender."""


@dataclass(frozen=True)
class AskPerson:
    """Event: own policy puts it before a person."""


@dataclass(frozen=True)
class Decline:
    """Event: own policy or a person refuses it, with a code of the contract."""

    code: int
    detail: str
    reason: str = ""
    """A person's words, for the sender alone."""


@dataclass(frozen=True, repr=False)
class AlreadyHave:
    """Event: this delivery is finished; here is its receipt."""

    receipt: bytes


@dataclass(frozen=True, repr=False)
class Responded:
    th: Transcript
    req: Req
    resp: Resp
    sender: VerifiedCard
    one_time: KemPrivateKey
    sender_listens: bool


@dataclass(frozen=True)
class Closed:
    """The answer needs no key: refused, or delivered before. Nothing is held."""


@dataclass(frozen=True, repr=False)
class KeyHeld:
    """Coordinator-made, recipient first: K is opened and confirmed; the sender's confirmation is awaited."""

    responded: Responded
    """Its one-time key is wiped."""
    session: Session


@dataclass(frozen=True, repr=False)
class Agreed:
    """Both ends hold the key: data may come (Figure 2, 210)."""

    session: Session


State = Notified | Responded | Closed | KeyHeld | Agreed
"""Once a request has been read."""


def read_request(message: Notify) -> Req:
    """REQ as it stands, before anything is verified: to look up what is known of the sender.

    `VersionMismatch`, `PeerViolation` (``malformed``).
    """
    return read_req(message.request)


@dataclass(frozen=True)
class Idle:
    """No request of this xid has come."""


def consume_notification(recipient: Recipient, state: Idle, message: Notify) -> Step:
    """X2: who wants to send (Figure 14, blocks 1401-1402): what costs nothing first, then keys and signatures.

    `IdentityError`; `VersionMismatch`; `PeerViolation` (``forged``, ``identity``, ``malformed``).
    """
    req = read_request(message)
    if req.recipient != recipient.card.name:
        raise PeerViolation("identity", "the request is for somebody else")
    if (req.key_source == "coordinator") is not bool(req.sender_one_time_key):
        raise PeerViolation("malformed", "key source and one-time key do not go together")
    if len({bool(req.asker), bool(req.asked_by), bool(req.ask)}) > 1 or (req.asked_by and not is_name(req.asked_by)):
        raise PeerViolation("malformed", "who asked for it is not whole")
    sender = verify_peer(recipient.authority, req.sender, message.card, message.certificate)
    judge_peer(sender, recipient.known, None)
    if req.card_hash != sender.hash:
        raise PeerViolation("identity", "the request was made under another card")
    th = Transcript.start("xfer", recipient.authority.suite.name).absorb(message.request)
    sender.identity.verify("xfer-req", th.value, message.signature)
    # An alarm, though it costs nothing: raised only on the sender's own word.
    if req.pin and req.pin != recipient.identity.public.fingerprint:
        raise IdentityError(f"{req.sender} has pinned another key of this client", detail="identity")
    return Step(Notified(th.absorb(message.signature), req, sender))


def create_response(recipient: Recipient, state: Notified, event: Accept) -> Step:
    """X3: the answer, with a one-time key that makes this transfer's secrecy outlive every other key
    (Figure 14, blocks 1403-1405; Figure 2, 203)."""
    one_time = recipient.authority.suite.generate_one_time()
    sender_listens = not event.endpoints.addresses
    if sender_listens and not state.req.can_listen:
        raise ValueError("a sender that cannot listen is not asked to")
    sealed = seal(state.sender.kem_key, "xfer-ep", state.th.value, encode(event.endpoints))
    resp = _response(
        recipient, state.req, verdict="accept", sealed=sealed, one_time=one_time.public.encode(), chunk=event.chunk,
        max_bytes=event.max_bytes, live=event.live, presence=event.presence, presence_age=event.presence_age,
        head=event.head,
    )
    th, message = _sign(recipient, state.th, resp)
    return Step(Responded(th, state.req, resp, state.sender, one_time, sender_listens), (Send(message),))


def create_pending(recipient: Recipient, state: Notified, event: AskPerson) -> Step:
    """PENDING in place of X3: no key, no endpoints, no card before a person has decided (Figure 14, block 1403)."""
    return Step(state, (Send(TransferPending()),))


def create_refusal(recipient: Recipient, state: Notified, event: Decline) -> Step:
    """X3 with a signed refusal: no key, no endpoints, at most a person's words (Figure 14, blocks 1403-1405)."""
    sealed = b""
    if event.reason:
        sealed = seal(state.sender.kem_key, "xfer-ep", state.th.value, encode(Reason(event.reason)))
    resp = _response(
        recipient, state.req, verdict="refuse", sealed=sealed, code=event.code, detail=event.detail
    )
    _, message = _sign(recipient, state.th, resp)
    return Step(Closed(), (Send(message),))


def create_have(recipient: Recipient, state: Notified, event: AlreadyHave) -> Step:
    """X3 for a delivery that is finished: its receipt in place of endpoints, no key (Figure 14, blocks 1403-1405)."""
    sealed = seal(state.sender.kem_key, "xfer-ep", state.th.value, event.receipt)
    _, message = _sign(recipient, state.th, _response(recipient, state.req, verdict="have", sealed=sealed))
    return Step(Closed(), (Send(message),))


def consume_key(recipient: Recipient, state: Responded, message: DeliverKey) -> Step:
    """X5 -> X6: open the session key, confirm it (Figure 15, blocks 1501-1504; Figure 2, alternate embodiment)."""
    if state.req.key_source != "sender":
        raise PeerViolation("unexpected", "a sender-made key where a coordinator-made one was agreed")
    key: Key = decode(message.key, Key)
    if key.xid != state.req.xid:
        raise PeerViolation("identity", "a key of another transfer")
    _check_asked(state, key.sealed_endpoints)
    at = state.th.value
    th = state.th.absorb(message.key)
    state.sender.identity.verify("xfer-key", th.value, message.signature)
    th = th.absorb(message.signature)
    endpoints = open_endpoints(recipient.kem_key, at, key.sealed_endpoints)
    ss1 = kem_decapsulate(recipient.kem_key, "xfer-perm", at, key.ct1)
    ss2 = kem_decapsulate(state.one_time, "xfer-eph", at, key.ct2)
    k = session_key(th, ss1, ss2)
    for secret in (ss1, ss2, state.one_time):
        secret.wipe()
    conf = confirmation(k, "conf", state.req.xid, th.value)
    return Step(Agreed(_session(recipient, state, th, k, endpoints)), (Send(TransferConfirm(conf)),))


def consume_session_key(recipient: Recipient, state: Responded, message: DeliverSessionKey) -> Step:
    """G1 -> G2, in sender-first order G3' -> G4': the coordinator-made key (Figure 2, 205; Figure 15)."""
    if state.req.key_source != "coordinator":
        raise PeerViolation("unexpected", "a coordinator-made key where a sender-made one was agreed")
    th_c = state.th.value
    k = unwrap_session_key(message.wrapped, state.req.xid, "R", recipient.kem_key, state.one_time, th_c)
    sender_first = state.req.key_order == "sender-first"
    endpoints: Endpoints | None = None
    if sender_first:
        endpoints = _check_sender(recipient, k, state, message.confirmation)
    elif message.confirmation:
        raise PeerViolation("unexpected", "a confirmation before its time")
    state.one_time.wipe()
    session = _session(recipient, state, state.th, k, endpoints)
    conf = confirmation(k, "confR", state.req.xid, th_c)
    return Step(Agreed(session) if sender_first else KeyHeld(state, session), (Send(TransferConfirm(conf)),))


def consume_sender_confirmation(recipient: Recipient, state: KeyHeld, message: DeliverConfirmation) -> Step:
    """G4: the sender holds the key too (Figure 2, 208)."""
    endpoints = _check_sender(recipient, state.session.k, state.responded, message.confirmation)
    return Step(Agreed(replace(state.session, endpoints=endpoints)), (Send(Ok()),))


TABLE: Final[Table] = {
    (Idle, Notify): consume_notification,
    (Notified, AskPerson): create_pending,
    (Notified, Accept): create_response,
    (Notified, Decline): create_refusal,
    (Notified, AlreadyHave): create_have,
    (Responded, DeliverKey): consume_key,
    (Responded, DeliverSessionKey): consume_session_key,
    (KeyHeld, DeliverConfirmation): consume_sender_confirmation,
}


def _response(
    recipient: Recipient, req: Req, *, verdict: Literal["accept", "refuse", "have"], sealed: bytes = b"",
    one_time: bytes = b"", chunk: int = CHUNK, max_bytes: int = 0, code: int = 0, detail: str = "",
    live: bool = False, presence: Presence = "online", presence_age: int = 0, head: bytes = b"",
) -> Resp:
    return Resp(
        version=TERMS_VERSION,
        xid=req.xid,
        verdict=verdict,
        code=code,
        detail=detail,
        presence=presence,
        presence_age=presence_age,
        recipient_one_time_key=one_time,
        chunk=chunk,
        max_bytes=max_bytes,
        live=live,
        card_hash=recipient.card.hash,
        key_source=req.key_source,
        key_order=req.key_order,
        sender_one_time_key=req.sender_one_time_key,
        sealed_endpoints=sealed,
        head=head,
    )


def _sign(recipient: Recipient, th: Transcript, resp: Resp) -> tuple[Transcript, TransferResponse]:
    encoded = encode(resp)
    th = th.absorb(encoded)
    signature = recipient.identity.sign("xfer-resp", th.value)
    return th.absorb(signature), TransferResponse(encoded, signature)


def _check_sender(recipient: Recipient, k: Secret, state: Responded, encoded: bytes) -> Endpoints | None:
    """CONFS: the sender holds K; where it listens, if it was asked to."""
    th_c = state.th.value
    conf: ConfS = decode(encoded, ConfS)
    if conf.xid != state.req.xid:
        raise PeerViolation("identity", "a confirmation of another transfer")
    _check_asked(state, conf.sealed_endpoints)
    check_mac(mac(expand(k, "confS", 32), th_c, conf.sealed_endpoints), conf.mac)
    return open_endpoints(recipient.kem_key, th_c, conf.sealed_endpoints)


def _check_asked(state: Responded, sealed_endpoints: bytes) -> None:
    if bool(sealed_endpoints) is not state.sender_listens:
        raise PeerViolation("unexpected", "endpoints of a sender that was not to listen, or none of one that was")


def _session(
    recipient: Recipient, state: Responded, th: Transcript, k: Secret, endpoints: Endpoints | None
) -> Session:
    return Session(k, th.value, state.req, state.resp, state.sender, recipient.identity.public.fingerprint, endpoints)
