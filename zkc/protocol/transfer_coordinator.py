"""The transfer handshake, the coordinator's part (Figures 2, 8 to 10): it passes on, in order, what it cannot read.

Sender-made key                                       Coordinator-made key, recipient first (sender first: 4 before 3)
 1. X1 <- request; X2 -> notification                  1. the same
 2. X3 <- answer; X4 -> the recipient's card           2. X3 <- answer; K is made; G1 -> KEYR
 3. X5 <- key -> recipient                             3. G2 <- CONFR, checked; G3 -> answer, card, KEYS, CONFR
 4. X6 <- confirmation -> sender                       4. G4 <- CONFS -> recipient; K is erased

A recipient that asks a person first says so in place of X3 (PENDING), and its X3 comes later, as a message of its own;
the sender asks again meanwhile, byte for byte.

It acts on what the channels authenticate: who spoke, and the fields of REQ and RESP that both ends sign. It checks no
signature: the ends do. The level of presence is verified before any key passes (claims D1 to D4).

One request, one key, one confirmation of the sender for each xid; the same bytes may come again, since what answered
them may have been lost with a link, and are answered with the same. They are told by th, not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from zkc.crypto.primitives import Secret, extract
from zkc.crypto.suites import KemPublicKey, Suite
from zkc.crypto.transcript import Transcript
from zkc.errors import PeerViolation, VersionMismatch
from zkc.ids import Presence
from zkc.protocol.session import (
    check_confirmation,
    level_met,
    read_req,
    read_resp,
    refusal_code,
    unmet_code,
    wrap_session_key,
)
from zkc.protocol.step import Step, Table
from zkc.rules.policy import higher
from zkc.wire.codec import decode
from zkc.wire.messages import (
    ConfS,
    DeliverConfirmation,
    DeliverKey,
    DeliverSessionKey,
    Key,
    Notify,
    Ok,
    Req,
    TransferAnswer,
    TransferConfirm,
    TransferConfirmKey,
    TransferGrant,
    TransferKey,
    TransferPending,
    TransferRequest,
    TransferResponse,
)


@dataclass(frozen=True)
class Party:
    """A registered client, as the key database has it."""

    name: str
    card: bytes
    certificate: bytes
    kem_key: KemPublicKey
    card_hash: bytes = b""
    former: Party | None = None
    """As it was before its permanent key rotated: what it signed meanwhile may name the card of then."""

    def under(self, card_hash: bytes) -> Party:
        """The party with the card that REQ or RESP names."""
        former = self.former
        return former if former is not None and former.card_hash == card_hash else self


@dataclass(frozen=True, repr=False)
class Broker:
    """One handshake's two parties, and the key that the coordinator would make for them."""

    suite: Suite
    sender: Party
    recipient: Party
    fresh_key: Secret
    """32 random bytes (Figure 2, 204; Figure 9, block 903), or none where the sender makes the key. Wiped once it is
    spent, or when none is needed."""
    least: Presence = "online"
    """The level that REQ, or this coordinator's policy, requires: the higher of both."""


# --- states --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Idle:
    """No request of this xid has come."""


@dataclass(frozen=True)
class Notified:
    """The recipient has the request; its answer is awaited."""

    req: Req
    th: Transcript
    """After REQ and its signature: what tells this request from any other."""


@dataclass(frozen=True)
class PersonAsked:
    """The recipient has the request, and asks a person; its answer comes when that one has decided."""

    req: Req
    th: Transcript


@dataclass(frozen=True)
class Answered:
    """Sender-made: the sender has the recipient's card; its key is awaited."""

    req: Req
    th: Transcript
    answer: AnswerSender


@dataclass(frozen=True)
class KeyPassed:
    """Sender-made: the key is with the recipient, whose confirmation is awaited. No other key passes."""

    req: Req
    th: Transcript
    key: bytes
    """H over KEY and its signature, as th absorbs them: what tells this key from any other."""


@dataclass(frozen=True, repr=False)
class KeyWithRecipient:
    """Coordinator-made, recipient first: KEYR is out, CONFR is awaited; nothing goes to the sender before it."""

    req: Req
    th: Transcript
    th_c: Transcript
    answer: TransferResponse
    k: Secret


@dataclass(frozen=True, repr=False)
class KeyWithSender:
    """Coordinator-made: KEYS is out, CONFS is awaited."""

    req: Req
    th: Transcript
    th_c: Transcript
    recipient_key: bytes
    """The recipient's one-time key: in sender-first order KEYR is still to be made."""
    answer: AnswerSender
    k: Secret


@dataclass(frozen=True)
class SenderConfirmed:
    """Coordinator-made: CONFS is on its way to the recipient; its word is awaited. K is erased."""

    req: Req
    confirmation: bytes


@dataclass(frozen=True)
class Finished:
    """The handshake is over; nothing of it is held."""


# --- effects -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AskRecipient:
    body: Any


@dataclass(frozen=True)
class AnswerSender:
    body: Any


@dataclass(frozen=True)
class FailSender:
    code: int
    detail: str


@dataclass(frozen=True)
class RefuseSender:
    """The recipient's signed refusal, as it came; no card with it."""

    body: TransferResponse
    code: int
    detail: str


# --- consume -------------------------------------------------------------------------------------------------------


def read_request(message: TransferRequest) -> Req:
    """REQ, to find the parties and to ask policy; `VersionMismatch`, `PeerViolation` (``malformed``)."""
    return read_req(message.request)


def xid_of(message: TransferKey | TransferConfirmKey) -> bytes:
    """Which handshake a later message of the sender belongs to."""
    inner = decode(message.key, Key) if isinstance(message, TransferKey) else decode(message.confirmation, ConfS)
    xid: bytes = inner.xid
    return xid


def consume_request(broker: Broker, state: Idle, message: TransferRequest) -> Step:
    """X1 -> X2: the request becomes a notification (Figure 8, blocks 801-804)."""
    req = read_request(message)
    if req.sender != broker.sender.name:
        raise PeerViolation("identity", "the sender is not the owner of the channel")
    if (req.key_source == "coordinator") is not bool(req.sender_one_time_key):
        raise PeerViolation("malformed", "key source and one-time key do not go together")
    if req.sender_one_time_key:
        broker.suite.read_one_time(req.sender_one_time_key)
    th = _heard(broker, message)
    sender = broker.sender.under(req.card_hash)
    notify = Notify(message.request, message.signature, sender.card, sender.certificate, broker.least)
    return Step(Notified(req, th), (AskRecipient(notify),))


def consume_answer(broker: Broker, state: Notified, message: TransferResponse) -> Step:
    """X3 -> X4, or the session key to the recipient first (Figure 9, blocks 901-905; Figure 2, 203-204)."""
    req, k = state.req, broker.fresh_key
    try:
        resp = read_resp(message.response)
    except VersionMismatch as mismatch:
        k.wipe()
        return Step(Finished(), (FailSender(mismatch.code, mismatch.detail),))
    if resp.xid != req.xid:
        raise PeerViolation("identity", "an answer of another transfer")
    if (resp.key_source, resp.key_order) != (req.key_source, req.key_order):
        k.wipe()
        return Step(Finished(), (FailSender(25, "key-source"),))
    if resp.verdict == "refuse":
        k.wipe()
        return Step(Finished(), (RefuseSender(message, refusal_code(resp.code), resp.detail),))
    if resp.verdict == "have":
        k.wipe()
        return Step(Finished(), (_grant(broker, message),))
    least = higher(req.presence, broker.least)
    if not level_met(resp.presence, least):
        k.wipe()
        return Step(Finished(), (FailSender(unmet_code(least), ""),))
    if req.key_source == "sender":
        k.wipe()
        grant = _grant(broker, message)
        return Step(Answered(req, state.th, grant), (grant,))
    broker.suite.read_one_time(resp.recipient_one_time_key)
    th_c = state.th.absorb(message.response, message.signature)
    if req.key_order == "sender-first":
        wrapped = _wrap(broker, req, th_c, k, "S", broker.sender.under(req.card_hash), req.sender_one_time_key)
        grant = _grant(broker, message, wrapped=wrapped)
        return Step(KeyWithSender(req, state.th, th_c, resp.recipient_one_time_key, grant, k), (grant,))
    recipient = broker.recipient.under(resp.card_hash)
    wrapped = _wrap(broker, req, th_c, k, "R", recipient, resp.recipient_one_time_key)
    return Step(KeyWithRecipient(req, state.th, th_c, message, k), (AskRecipient(DeliverSessionKey(wrapped, b"")),))


def consume_pending(broker: Broker, state: Notified, message: TransferPending) -> Step:
    """PENDING in place of X3 (Figure 9, block 901): told to the sender as it is; nothing of the recipient with it."""
    return Step(PersonAsked(state.req, state.th), (AnswerSender(message),))


def consume_late_answer(broker: Broker, state: PersonAsked, message: TransferAnswer) -> Step:
    """X3 after PENDING -> X4, as if it had come at once (Figure 9, blocks 901-905; Figure 2, 203-204)."""
    return consume_answer(broker, Notified(state.req, state.th), TransferResponse(message.response, message.signature))


def consume_key(broker: Broker, state: Answered, message: TransferKey) -> Step:
    """X5: the sender-made key, passed on unread, once (Figure 2, alternate embodiment)."""
    told = state.th.absorb(message.key, message.signature).value
    return Step(KeyPassed(state.req, state.th, told), (AskRecipient(DeliverKey(message.key, message.signature)),))


def consume_confirmation(broker: Broker, state: KeyPassed, message: TransferConfirm) -> Step:
    """X6: the recipient holds the key; the sender is told (Figure 10, blocks 1001-1005)."""
    return Step(Finished(), (AnswerSender(message),))


def consume_recipient_confirmation(broker: Broker, state: KeyWithRecipient, message: TransferConfirm) -> Step:
    """G2 -> G3: only now does the key go to the sender (Figure 10, blocks 1001-1005; Figure 2, 206)."""
    root = extract(state.th_c.value, state.k)
    check_confirmation(root, "confR", state.req.xid, message.confirmation, state.th_c.value)
    root.wipe()
    sender = broker.sender.under(state.req.card_hash)
    wrapped = _wrap(broker, state.req, state.th_c, state.k, "S", sender, state.req.sender_one_time_key)
    grant = _grant(broker, state.answer, wrapped=wrapped, confirmation=message.confirmation)
    return Step(KeyWithSender(state.req, state.th, state.th_c, b"", grant, state.k), (grant,))


def consume_sender_confirmation(broker: Broker, state: KeyWithSender, message: TransferConfirmKey) -> Step:
    """G4, in sender-first order G2' -> G3': the sender holds the key (Figure 2, 208; Figure 10, block 1003)."""
    if state.req.key_order == "recipient-first":
        state.k.wipe()
        return Step(
            SenderConfirmed(state.req, message.confirmation), (AskRecipient(DeliverConfirmation(message.confirmation)),)
        )
    recipient = broker.recipient.under(read_resp(state.answer.body.response).card_hash)
    wrapped = _wrap(broker, state.req, state.th_c, state.k, "R", recipient, state.recipient_key)
    state.k.wipe()
    return Step(
        SenderConfirmed(state.req, message.confirmation),
        (AskRecipient(DeliverSessionKey(wrapped, message.confirmation)),),
    )


def consume_recipient_word(broker: Broker, state: SenderConfirmed, message: TransferConfirm | Ok) -> Step:
    """G4': the recipient holds the key and knows that the sender does (Figure 2, 208; Figure 10, block 1003)."""
    return Step(Finished(), (AnswerSender(message),))


# --- the same once more --------------------------------------------------------------------------------------------


def consume_request_again(
    broker: Broker, state: Notified | PersonAsked | KeyWithRecipient, message: TransferRequest
) -> Step:
    """X1 once more (Figure 8, block 801): the recipient has it, and its answer will answer this one too."""
    _check_same(broker, state.th, message)
    return Step(state)


def consume_request_answered(broker: Broker, state: Answered | KeyWithSender, message: TransferRequest) -> Step:
    """X1 once more (Figure 8, block 801), though it was answered: that answer was lost, and is given again."""
    _check_same(broker, state.th, message)
    return Step(state, (state.answer,))


def consume_key_again(broker: Broker, state: KeyPassed, message: TransferKey) -> Step:
    """X5 once more: the same bytes pass, and are with the recipient already; another key on the xid is refused."""
    if state.th.absorb(message.key, message.signature).value != state.key:
        raise PeerViolation("replay", "another key for the same transfer")
    return Step(state)


def consume_confirmation_again(broker: Broker, state: SenderConfirmed, message: TransferConfirmKey) -> Step:
    """CONFS once more (Figure 10, block 1003): it is with the recipient already."""
    if state.confirmation != message.confirmation:
        raise PeerViolation("replay", "another confirmation for the same transfer")
    return Step(state)


TABLE: Final[Table] = {
    (Idle, TransferRequest): consume_request,
    (Notified, TransferResponse): consume_answer,
    (Notified, TransferPending): consume_pending,
    (PersonAsked, TransferAnswer): consume_late_answer,
    (PersonAsked, TransferRequest): consume_request_again,
    (Answered, TransferKey): consume_key,
    (KeyPassed, TransferConfirm): consume_confirmation,
    (Notified, TransferRequest): consume_request_again,
    (Answered, TransferRequest): consume_request_answered,
    (KeyPassed, TransferKey): consume_key_again,
    (KeyWithRecipient, TransferConfirm): consume_recipient_confirmation,
    (KeyWithSender, TransferConfirmKey): consume_sender_confirmation,
    (SenderConfirmed, TransferConfirm): consume_recipient_word,
    (SenderConfirmed, Ok): consume_recipient_word,
    (KeyWithRecipient, TransferRequest): consume_request_again,
    (KeyWithSender, TransferRequest): consume_request_answered,
    (SenderConfirmed, TransferConfirmKey): consume_confirmation_again,
}


def _heard(broker: Broker, message: TransferRequest) -> Transcript:
    """th after X1."""
    return Transcript.start("xfer", broker.suite.name).absorb(message.request, message.signature)


def _check_same(broker: Broker, th: Transcript, message: TransferRequest) -> None:
    if _heard(broker, message).value != th.value:
        raise PeerViolation("replay", "another request for the same transfer")


def _grant(
    broker: Broker, message: TransferResponse, *, wrapped: bytes = b"", confirmation: bytes = b""
) -> AnswerSender:
    party = broker.recipient.under(read_resp(message.response).card_hash)
    return AnswerSender(
        TransferGrant(message.response, message.signature, party.card, party.certificate, wrapped, confirmation)
    )


def _wrap(
    broker: Broker, req: Req, th_c: Transcript, k: Secret, end: str, party: Party, one_time: bytes
) -> bytes:
    key = broker.suite.read_one_time(one_time)
    return wrap_session_key(k, req.xid, end, party.kem_key, key, th_c.value)
