"""Third-party requests (claims B8): Q asks A to send something of its shares to B.

 Q, the asker                                      A, the sender
 1. T1 -> ASK0                                     1. T1 <- ASK0, the asker's card
 2. T2 <- NONCE, signed; the sender's card         2. T2 -> NONCE, signed: one use
 3. T3 -> ASK with the nonce, signed               3. T3 <- ASK: the only authority that Q has
 4. T4 <- ASKR, signed                             4. T4 -> ASKR, once it was judged
 5. T5 <- sealed: how far, in the end a receipt    5. T5 -> the same, as often as Q asks

th0 = start("ask", suite); th absorbs ASK0, NONCE, SIG, ASK, SIG, ASKR, SIG, each as one field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zkc.crypto.cards import VerifiedCard
from zkc.crypto.primitives import digest
from zkc.crypto.receipts import OpenedReceipt, open_receipt
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import KemPrivateKey, open_sealed, seal
from zkc.crypto.transcript import Transcript
from zkc.errors import PeerViolation
from zkc.protocol.step import Send, Step, Table
from zkc.protocol.trust import Authority, Known, judge_peer, verify_peer
from zkc.rules.refusals import refused_by
from zkc.wire.codec import decode, encode
from zkc.wire.messages import (
    Ask,
    Ask0,
    AskedBody,
    AskFrom,
    AskMore,
    AskReply,
    AskState,
    AskStep,
    AskTold,
    AskVerdict,
    AskWhat,
    Nonce,
    ShareList,
)


@dataclass(frozen=True, repr=False)
class Party:
    """One of the two, with its keys, and what it knows of the other."""

    authority: Authority
    identity: IdentityKey
    kem_key: KemPrivateKey
    card: VerifiedCard
    known: Known


# --- the asker's states, and its wish ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """ASK0 is out."""

    th: Transcript
    ask0: Ask0


@dataclass(frozen=True)
class Challenged:
    """The sender is who it should be, and its nonce is here."""

    th: Transcript
    ask0: Ask0
    nonce: bytes
    sender: VerifiedCard


@dataclass(frozen=True)
class Wish:
    """What is asked for. ``fingerprint``: the recipient's."""

    fingerprint: bytes
    tid: bytes
    what: AskWhat


@dataclass(frozen=True)
class Requested:
    """ASK is out; ``hash`` is what REQ and receipt must bear."""

    th: Transcript
    ask: Ask
    hash: bytes
    sender: VerifiedCard


@dataclass(frozen=True)
class Running:
    """The sender has taken it."""

    requested: Requested
    th: Transcript


@dataclass(frozen=True)
class Told:
    """Effect: what the sender says of it."""

    state: AskState


def create_ask0(asker: Party, qid: bytes, sender: str, recipient: str) -> Step:
    """T1. ``recipient`` empty: only what is shared."""
    ask0 = Ask0(qid, asker.card.name, sender, recipient, asker.card.hash)
    encoded = encode(ask0)
    return Step(Asked(_start(asker).absorb(encoded), ask0), (Send(AskStep(sender, encoded, b"")),))


def consume_nonce(asker: Party, state: Asked, message: AskReply) -> Step:
    """T2: `IdentityError`, `PeerViolation` where the sender is not the one whose name was called."""
    card, th = _verified(asker, state, message, "ask-nonce")
    nonce = decode(message.body, AskedBody)
    if not isinstance(nonce, Nonce) or (nonce.qid, nonce.card_hash) != (state.ask0.qid, card.hash):
        raise PeerViolation("identity", "a nonce of something else")
    return Step(Challenged(th, state.ask0, nonce.nonce, card))


def create_ask(asker: Party, state: Challenged, wish: Wish) -> Step:
    """T3."""
    sealed = seal(state.sender.kem_key, "ask-what", state.th.value, encode(wish.what))
    ask0 = state.ask0
    ask = Ask(
        ask0.qid, state.nonce, ask0.asker, ask0.sender, ask0.recipient, wish.fingerprint, wish.tid, sealed
    )
    encoded = encode(ask)
    th = state.th.absorb(encoded)
    signature = asker.identity.sign("ask", th.value)
    return Step(
        Requested(th.absorb(signature), ask, digest(encoded), state.sender),
        (Send(AskStep(ask.sender, encoded, signature)),),
    )


def consume_verdict(asker: Party, state: Requested, message: AskReply) -> Step:
    """T4: the error of the contract for what the sender refuses."""
    th = state.th.absorb(message.body)
    state.sender.identity.verify("ask-resp", th.value, message.signature)
    verdict = decode(message.body, AskedBody)
    if not isinstance(verdict, AskVerdict) or verdict.qid != state.ask.qid:
        raise PeerViolation("identity", "an answer to something else")
    if verdict.code:
        raise refused_by(state.sender.name, verdict.code, verdict.detail)
    return Step(Running(state, th.absorb(message.signature)))


def create_more(asker: Party, state: Running) -> AskStep:
    """How far is it?"""
    return AskStep(state.requested.ask.sender, encode(AskMore(state.requested.ask.qid)), b"")


def consume_told(asker: Party, state: Running, message: AskReply) -> Step:
    """T5, or that it goes on. What is sealed tells nobody who sealed it: only the receipt proves anything."""
    told = decode(message.body, AskedBody)
    if not isinstance(told, AskTold) or told.qid != state.requested.ask.qid:
        raise PeerViolation("identity", "an answer to something else")
    news = decode(open_sealed(asker.kem_key, "ask-done", state.th.value, told.sealed), AskState)
    return Step(state, (Told(news),))


def check_receipt(state: Running, receipt: bytes) -> OpenedReceipt:
    """That the recipient whom ASK names has signed for this very request. `PeerViolation` (``forged``)."""
    ask, opened = state.requested.ask, open_receipt(receipt)
    body = opened.body
    ends = body.recipient, body.recipient_fingerprint, body.sender, body.sender_fingerprint
    if (*ends, body.tid, body.asker, body.asked_by) != (
        ask.recipient, ask.fingerprint, ask.sender, state.requested.sender.fingerprint, ask.tid, state.requested.hash,
        ask.asker,
    ):
        raise PeerViolation("forged", "a receipt of something else")
    return opened


def consume_shares(asker: Party, state: Asked, message: AskReply) -> ShareList:
    """The answer to an ASK0 without a recipient."""
    _verified(asker, state, message, "ask-shares")
    told = decode(message.body, AskedBody)
    if not isinstance(told, AskTold) or told.qid != state.ask0.qid:
        raise PeerViolation("identity", "an answer to something else")
    shares: ShareList = decode(open_sealed(asker.kem_key, "ask-list", state.th.value, told.sealed), ShareList)
    return shares


ASKER: Final[Table] = {
    (Asked, AskReply): consume_nonce,
    (Challenged, Wish): create_ask,
    (Requested, AskReply): consume_verdict,
    (Running, AskReply): consume_told,
}


# --- the sender -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Idle:
    """Nothing was asked; ``nonce`` is what the shell has drawn."""

    nonce: bytes


@dataclass(frozen=True)
class Awaiting:
    """The nonce is out, for one use."""

    th: Transcript
    ask0: Ask0
    nonce: bytes
    asker: VerifiedCard


@dataclass(frozen=True)
class Judging:
    """ASK is genuine; whether it may is for the shell to judge."""

    th: Transcript
    ask: Ask
    hash: bytes
    asker: VerifiedCard
    what: AskWhat


@dataclass(frozen=True)
class Verdict:
    """``code`` 0: it is sent."""

    code: int
    detail: str


@dataclass(frozen=True)
class Sending:
    th: Transcript
    qid: bytes
    asker: VerifiedCard


def consume_ask0(sender: Party, state: Idle, message: AskFrom) -> Step:
    """T1 -> T2: who asks, and a nonce to sign."""
    ask0, asker, th = read_ask0(sender, message)
    nonce = encode(Nonce(ask0.qid, state.nonce, sender.card.hash))
    th = th.absorb(nonce)
    signature = sender.identity.sign("ask-nonce", th.value)
    return Step(
        Awaiting(th.absorb(signature), ask0, state.nonce, asker), (Send(AskReply(nonce, signature, b"", b"")),)
    )


def consume_ask(sender: Party, state: Awaiting, message: AskFrom) -> Step:
    """T3: the asker's signature over our nonce, and what it asks for. `PeerViolation` for anything else."""
    ask = decode(message.body, Ask)
    ask0 = state.ask0
    if (ask.qid, ask.nonce, ask.asker, ask.sender, ask.recipient) != (
        ask0.qid, state.nonce, ask0.asker, ask0.sender, ask0.recipient
    ):
        raise PeerViolation("identity", "an ask of something else")
    th = state.th.absorb(message.body)
    state.asker.identity.verify("ask", th.value, message.signature)
    what = decode(open_sealed(sender.kem_key, "ask-what", state.th.value, ask.sealed), AskWhat)
    return Step(Judging(th.absorb(message.signature), ask, digest(message.body), state.asker, what))


def create_verdict(sender: Party, state: Judging, verdict: Verdict) -> Step:
    """T4."""
    encoded = encode(AskVerdict(state.ask.qid, verdict.code, verdict.detail))
    th = state.th.absorb(encoded)
    signature = sender.identity.sign("ask-resp", th.value)
    return Step(
        Sending(th.absorb(signature), state.ask.qid, state.asker), (Send(AskReply(encoded, signature, b"", b"")),)
    )


def tell_state(sender: Party, state: Sending, news: AskState) -> Step:
    """T5, or that it goes on."""
    sealed = seal(state.asker.kem_key, "ask-done", state.th.value, encode(news))
    return Step(state, (Send(AskReply(encode(AskTold(state.qid, sealed)), b"", b"", b"")),))


SENDER: Final[Table] = {
    (Idle, AskFrom): consume_ask0,
    (Awaiting, AskFrom): consume_ask,
    (Judging, Verdict): create_verdict,
    (Sending, AskState): tell_state,
}


def read_ask0(sender: Party, message: AskFrom) -> tuple[Ask0, VerifiedCard, Transcript]:
    """Who asks, by a card that the coordinator certifies and that the pins allow."""
    ask0 = decode(message.body, Ask0)
    card = verify_peer(sender.authority, message.asker, message.card, message.certificate)
    judge_peer(card, sender.known, None)
    if (ask0.asker, ask0.sender, ask0.card_hash) != (card.name, sender.card.name, card.hash):
        raise PeerViolation("identity", "an ask of somebody else")
    return ask0, card, _start(sender).absorb(message.body)


def answer_shares(sender: Party, message: AskFrom, shares: ShareList) -> AskReply:
    """What the asker may ask for, for its eyes alone."""
    ask0, card, th = read_ask0(sender, message)
    told = encode(AskTold(ask0.qid, seal(card.kem_key, "ask-list", th.value, encode(shares))))
    return AskReply(told, sender.identity.sign("ask-shares", th.absorb(told).value), b"", b"")


def _start(party: Party) -> Transcript:
    return Transcript.start("ask", party.authority.suite.name)


def _verified(
    asker: Party, state: Asked, message: AskReply, label: str
) -> tuple[VerifiedCard, Transcript]:
    """The sender's card, and th after its signed answer to ASK0."""
    card = verify_peer(asker.authority, state.ask0.sender, message.card, message.certificate)
    judge_peer(card, asker.known, None)
    th = state.th.absorb(message.body)
    card.identity.verify(label, th.value, message.signature)
    return card, th.absorb(message.signature)
