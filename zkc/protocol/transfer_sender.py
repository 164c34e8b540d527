"""The transfer handshake, the sender's side (Figures 2, 13, 15).

Sender-made key (the default)                       Coordinator-made key
 1. X1 -> REQ, signed                                1. X1 -> REQ with a one-time key, signed
 2. X4 <- RESP, signed; the recipient's card         2. G3 <- RESP, card, KEYS and (recipient first) CONFR
          its name, its pin, its end, its level               the same checks; the recipient holds the key already
 3. X5 -> KEY: two encapsulations, signed            3. G4 -> CONFS
 4. X6 <- CONF: the recipient opened it              4. <- stored by the recipient (sender first: CONFR)
then data; nothing flows before 4 has verified.

th0 = start("xfer", suite); th absorbs REQ, SIG, RESP, SIG, KEY, SIG, each as one field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zkc.constants import ID_BYTES, TERMS_VERSION
from zkc.crypto.cards import VerifiedCard, kem_key_of, verify_card
from zkc.crypto.primitives import Secret, expand, mac
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import KemPrivateKey, kem_encapsulate, open_sealed, seal
from zkc.crypto.transcript import Transcript
from zkc.errors import PeerViolation, ZkcError
from zkc.ids import Acknowledgement, Compression, KeyOrder, KeySource, Presence, is_name
from zkc.protocol.session import (
    Session,
    check_confirmation,
    level_met,
    preview_at,
    read_resp,
    refusal_code,
    seal_endpoints,
    session_key,
    unmet_code,
    unwrap_session_key,
)
from zkc.protocol.step import Send, Step, Table
from zkc.protocol.trust import Authority, Known, judge_peer, verify_peer
from zkc.rules.refusals import refused_by
from zkc.wire.codec import decode, encode
from zkc.wire.messages import (
    ConfS,
    Endpoints,
    Key,
    Ok,
    Reason,
    Req,
    Resp,
    TransferConfirm,
    TransferConfirmKey,
    TransferGrant,
    TransferKey,
    TransferPending,
    TransferRequest,
    TransferResponse,
)


@dataclass(frozen=True, repr=False)
class Sender:
    """Who sends, with which keys, on whose authority, and what it knows of the recipient."""

    authority: Authority
    identity: IdentityKey
    kem_key: KemPrivateKey
    card: VerifiedCard
    known: Known
    wall: float
    """Seconds since 1970, for the end of the recipient's card alone."""


@dataclass(frozen=True)
class Terms:
    """What is asked for."""

    xid: bytes
    tid: bytes
    recipient: str
    key_source: KeySource
    key_order: KeyOrder
    cipher: str
    size_class: int
    fresh: bool
    compression: Compression = "none"
    acknowledgement: Acknowledgement = "session"
    can_listen: bool = False
    """Whether the recipient may ask to come to the sender."""
    presence: Presence = "online"
    """What must hold of the recipient, at least."""
    wait: int = 0
    """Seconds that the sender waits for a person, if one is asked; 0: as long as the recipient does."""
    preview: bytes = b""
    """`make_preview`, or nothing to judge by."""
    asker: bytes = b""
    asked_by: str = ""
    ask: bytes = b""
    """On whose request (fingerprint and name), and H(ASK) of it."""
    head: bytes = b""
    """Signed head of the key log, where it is news to the recipient."""


@dataclass(frozen=True, repr=False)
class Requested:
    th: Transcript
    req: Req
    one_time: KemPrivateKey | None
    encoded: bytes
    """REQ as it was sent."""
    signature: bytes


@dataclass(frozen=True, repr=False)
class Granted:
    """The recipient has answered and is who it should be; no key has been made."""

    th: Transcript
    req: Req
    resp: Resp
    card: VerifiedCard
    endpoints: Endpoints

    @property
    def must_listen(self) -> bool:
        """Whether the recipient comes to the sender."""
        return not self.endpoints.addresses


@dataclass(frozen=True)
class Declined:
    """Refused: what the sender ends with. Nothing is held."""

    error: ZkcError


@dataclass(frozen=True, repr=False)
class AlreadyDelivered:
    """An earlier handshake of this delivery was finished; its receipt has still to be held against what was sent."""

    card: VerifiedCard
    receipt: bytes


@dataclass(frozen=True, repr=False)
class KeyOpened:
    """Coordinator-made: the sender holds K; the recipient's confirmation has verified or is awaited."""

    granted: Granted
    k: Secret
    recipient_confirmed: bool


@dataclass(frozen=True, repr=False)
class KeySent:
    granted: Granted
    th: Transcript
    k: Secret


@dataclass(frozen=True, repr=False)
class AwaitingStored:
    """Coordinator-made, recipient first: the coordinator passes CONFS on; then data may flow."""

    sent: KeySent


@dataclass(frozen=True, repr=False)
class Agreed:
    """The recipient confirmed that it holds the key: data may flow (Figure 2, 209)."""

    session: Session


@dataclass(frozen=True)
class MakeKey:
    """Event: go on to hand the key over: the caller has looked at what was granted, and at who granted it."""

    endpoints: Endpoints | None = None
    """Where the sender listens, bound by now; needed where `Granted.must_listen`."""


def create_request(sender: Sender, terms: Terms) -> Step:
    """X1: the request to send (Figure 13, blocks 1301-1302; Figure 2, 201)."""
    if len(terms.xid) != ID_BYTES or len(terms.tid) != ID_BYTES:
        raise ValueError("xid and tid are 16 bytes long")
    one_time = sender.authority.suite.generate_one_time() if terms.key_source == "coordinator" else None
    req = Req(
        TERMS_VERSION, terms.xid, terms.tid, sender.card.name, terms.recipient, sender.known.fingerprint,
        terms.key_source, terms.key_order, terms.cipher, terms.compression, terms.acknowledgement, terms.presence,
        terms.wait, terms.size_class, terms.can_listen, terms.fresh, sender.card.hash,
        one_time.public.encode() if one_time else b"", _seal_preview(sender, terms), terms.asker,
        terms.asked_by, terms.ask, terms.head,
    )
    encoded = encode(req)
    th = Transcript.start("xfer", sender.authority.suite.name).absorb(encoded)
    signature = sender.identity.sign("xfer-req", th.value)
    state = Requested(th.absorb(signature), req, one_time, encoded, signature)
    return Step(state, (Send(TransferRequest(encoded, signature)),))


def _seal_preview(sender: Sender, terms: Terms) -> bytes:
    """To a pinned recipient alone: at first contact nobody knows whose key the coordinator would give."""
    if not (terms.preview and sender.known.card):
        return b""
    key = sender.authority.suite.read_public(kem_key_of(sender.known.card))
    return seal(key, "xfer-preview", preview_at(terms.xid, sender.card.hash), terms.preview)


def consume_pending(sender: Sender, state: Requested, message: TransferPending) -> Step:
    """PENDING in place of X4: a person is asked first. The same request once more asks for the answer (Figure 13)."""
    return Step(state, (Send(TransferRequest(state.encoded, state.signature)),))


def consume_grant(sender: Sender, state: Requested, message: TransferGrant) -> Step:
    """X4 (sender-made), G3 or G1' (coordinator-made): the recipient's signed terms and its permanent key (Figure 2,
    alternate embodiment; where the coordinator made the key: Figure 2, 207; Figure 15, blocks 1501-1502).

    Raises `IdentityError` for a card that is not the one that the name should have, `VersionMismatch` for an answer of
    another version, `PeerViolation` (``forged``, ``identity``) for terms that were changed.
    """
    req = state.req
    resp = read_resp(message.response)
    if resp.xid != req.xid:
        raise PeerViolation("identity", "an answer of another transfer")
    if (resp.key_source, resp.key_order, resp.sender_one_time_key) != (
        req.key_source, req.key_order, req.sender_one_time_key,
    ):
        raise PeerViolation("forged", "the answer is not to what was asked")
    card = verify_peer(sender.authority, req.recipient, message.card, message.certificate)
    judge_peer(card, sender.known, sender.wall)
    if resp.card_hash != card.hash:
        raise PeerViolation("identity", "an answer under another card")
    signed_at = state.th.absorb(message.response)
    card.identity.verify("xfer-resp", signed_at.value, message.signature)
    if resp.verdict == "refuse":
        raise PeerViolation("unexpected", "a card with a refusal")
    if resp.verdict == "accept" and not level_met(resp.presence, req.presence):
        raise refused_by(req.recipient, unmet_code(req.presence), "")
    made = req.key_source == "coordinator" and resp.verdict == "accept"
    if (bool(message.wrapped), bool(message.confirmation)) != (made, made and req.key_order == "recipient-first"):
        raise PeerViolation("unexpected", "a key or a confirmation where none belongs, or none where one does")
    opened = open_sealed(sender.kem_key, "xfer-ep", state.th.value, resp.sealed_endpoints)
    if resp.verdict == "have":
        if state.one_time is not None:
            state.one_time.wipe()
        return Step(AlreadyDelivered(card, opened))
    endpoints: Endpoints = decode(opened, Endpoints)
    if not (endpoints.addresses or req.can_listen):
        raise PeerViolation("unexpected", "a sender that cannot listen is asked to")
    if endpoints.relay and not (is_name(endpoints.relay) and len(endpoints.rv) == ID_BYTES and endpoints.addresses):
        raise PeerViolation("malformed", "a relay without a name, a place or a meeting")
    th = signed_at.absorb(message.signature)
    granted = Granted(th, req, resp, card, endpoints)
    if state.one_time is None:
        return Step(granted)
    k = unwrap_session_key(message.wrapped, req.xid, "S", sender.kem_key, state.one_time, th.value)
    if req.key_order == "recipient-first":
        check_confirmation(k, "confR", req.xid, message.confirmation, th.value)
    state.one_time.wipe()
    return Step(KeyOpened(granted, k, req.key_order == "recipient-first"))


def consume_refusal(sender: Sender, state: Requested, message: TransferResponse) -> Step:
    """A refusing X3 in place of X4; no card comes with it (Figure 14, blocks 1403-1405).

    Where it is signed by the identity that is pinned, it is told as the recipient's, with the words of its person; else
    as what the coordinator may have said. `PeerViolation`: not to what was asked.
    """
    req = state.req
    resp = read_resp(message.response)
    if resp.xid != req.xid or resp.verdict != "refuse":
        raise PeerViolation("identity", "no refusal of this transfer")
    if state.one_time is not None:
        state.one_time.wipe()
    signed = _is_signed(sender, state.th.absorb(message.response), message.signature)
    reason = _reason(sender, state, resp) if signed else ""
    return Step(Declined(refused_by(req.recipient, refusal_code(resp.code), resp.detail, signed=signed, reason=reason)))


def create_key(sender: Sender, state: Granted, event: MakeKey) -> Step:
    """X5: make the session key, seal it to the recipient (claims C2; Figure 2, alternate embodiment).

    Encapsulated to the permanent key (who may read) and to the one-time key (who can never read again).
    """
    suite = sender.authority.suite
    th = state.th
    ss1, ct1 = kem_encapsulate(state.card.kem_key, "xfer-perm", th.value)
    ss2, ct2 = kem_encapsulate(suite.read_one_time(state.resp.recipient_one_time_key), "xfer-eph", th.value)
    key = encode(Key(state.req.xid, ct1, ct2, _sealed_endpoints(state, event, th)))
    th = th.absorb(key)
    signature = sender.identity.sign("xfer-key", th.value)
    th = th.absorb(signature)
    k = session_key(th, ss1, ss2)
    ss1.wipe()
    ss2.wipe()
    return Step(KeySent(state, th, k), (Send(TransferKey(key, signature)),))


def create_sender_confirmation(sender: Sender, state: KeyOpened, event: MakeKey) -> Step:
    """G4, G2': the sender confirms the coordinator-made key (Figure 15, blocks 1503-1504; Figure 2, 207)."""
    req, th = state.granted.req, state.granted.th
    sealed = _sealed_endpoints(state.granted, event, th)
    tag = mac(expand(state.k, "confS", 32), th.value, sealed)
    sent = KeySent(state.granted, th, state.k)
    return Step(
        sent if not state.recipient_confirmed else AwaitingStored(sent),
        (Send(TransferConfirmKey(encode(ConfS(req.xid, sealed, tag)))),),
    )


def consume_confirmation(sender: Sender, state: KeySent, message: TransferConfirm) -> Step:
    """X6, G4': the recipient opened the key (Figure 2, 205-206, and alternate embodiment)."""
    name = "conf" if state.granted.req.key_source == "sender" else "confR"
    check_confirmation(state.k, name, state.granted.req.xid, message.confirmation, state.th.value)
    return Step(_agreed(sender, state))


def consume_stored(sender: Sender, state: AwaitingStored, message: Ok) -> Step:
    """CONFS has reached the recipient (Figure 2, 208)."""
    return Step(_agreed(sender, state.sent))


def _is_signed(sender: Sender, th: Transcript, signature: bytes) -> bool:
    """By the identity that is pinned for the recipient, if one is."""
    if not sender.known.card:
        return False
    try:
        verify_card(sender.known.card, sender.authority.suite).identity.verify("xfer-resp", th.value, signature)
    except PeerViolation:
        return False
    return True


def _reason(sender: Sender, state: Requested, resp: Resp) -> str:
    """A person's words with a refusal; empty: none."""
    if not resp.sealed_endpoints:
        return ""
    said: Reason = decode(open_sealed(sender.kem_key, "xfer-ep", state.th.value, resp.sealed_endpoints), Reason)
    return said.text


def _sealed_endpoints(granted: Granted, event: MakeKey, th: Transcript) -> bytes:
    """Where the sender listens, if the recipient comes to it; else nothing."""
    if not granted.must_listen:
        return b""
    if event.endpoints is None:
        raise ValueError("the recipient is to come, and was not told where to")
    return seal_endpoints(granted.card.kem_key, th.value, event.endpoints)


def _agreed(sender: Sender, state: KeySent) -> Agreed:
    granted = state.granted
    return Agreed(
        Session(
            state.k, state.th.value, granted.req, granted.resp, granted.card, sender.identity.public.fingerprint,
            granted.endpoints, sender.kem_key if granted.req.acknowledgement == "permanent" else None,
        )
    )


TABLE: Final[Table] = {
    (Requested, TransferGrant): consume_grant,
    (Requested, TransferPending): consume_pending,
    (Requested, TransferResponse): consume_refusal,
    (Granted, MakeKey): create_key,
    (KeyOpened, MakeKey): create_sender_confirmation,
    (KeySent, TransferConfirm): consume_confirmation,
    (AwaitingStored, Ok): consume_stored,
}
