"""The recipient's transfers: from a notification to a key that both ends hold (Figures 14, 15).

The handshake runs on the daemon's loop; the bytes of each transfer in a thread of their own (`zkc.client.deliveries`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from typing import Any, Final

import structlog

from zkc.client.asking import Answer, Asking, Question
from zkc.client.bus import EventBus
from zkc.client.control import AskDecision, PendingItem
from zkc.client.deliveries import JOIN_SECONDS, Deliveries
from zkc.client.gossip import Gossip
from zkc.client.keylog import check_logged
from zkc.client.person import PersonHere
from zkc.client.places import Ask, Places
from zkc.client.principal import Principal, known_about, pin_peer
from zkc.client.readers import Readers
from zkc.client.successions import follow
from zkc.client.transfers import Transfer, Transfers
from zkc.client.verdicts import Judge, Verdict
from zkc.config import ClientConfig
from zkc.constants import STEP_SECONDS
from zkc.crypto.primitives import digest
from zkc.env import Clock, Entropy
from zkc.errors import (
    Interrupted,
    NotAuthorised,
    PeerViolation,
    PolicyRefused,
    Refused,
    TimedOut,
    ZkcError,
)
from zkc.ids import Presence
from zkc.logs import Repeats
from zkc.net.pipe.recipient import Bulk
from zkc.protocol import transfer_recipient as machine
from zkc.protocol.session import level_met
from zkc.protocol.step import Step, erase, step
from zkc.protocol.trust import KeyChanged, OwnerChanged, judge_peer
from zkc.rules.refusals import refused_by
from zkc.stores.inbox import Inbox
from zkc.stores.keystore import KeyStore
from zkc.stores.noting import Notes
from zkc.wire.codec import decode, encode
from zkc.wire.messages import (
    AnswerBody,
    ConfS,
    DeliverConfirmation,
    DeliverKey,
    DeliverSessionKey,
    Key,
    Notify,
    Ok,
    RequestBody,
    TransferAnswer,
    TransferEnd,
    TransferResponse,
    WrappedKey,
)

_XIDS_KEPT: Final = 4096
"""Finished xids that are remembered, so that a replayed request is refused (attack H06)."""
_CLOSED_KEPT: Final = 256
"""Refusals, and receipts given in place of a transfer, that are kept for a sender whose answer was lost."""


class Receiver:
    """All transfers to one home. Belongs to the daemon's loop."""

    def __init__(
        self, bulk: Bulk, store: KeyStore, inbox: Inbox, config: ClientConfig, person: PersonHere, bus: EventBus,
        clock: Clock, entropy: Entropy, notes: Notes,
        gossip: Gossip,
    ) -> None:
        self._store = store
        self._notes = notes
        self._inbox = inbox
        self.config = config
        """Replaced as a whole when the configuration is read again."""
        self._person = person
        self._gossip = gossip
        self._clock = clock
        self.readers: Final = Readers(inbox, clock)
        self._transfers = Transfers()
        self._finished: OrderedDict[bytes, None] = OrderedDict()
        self._closed: OrderedDict[bytes, AnswerBody] = OrderedDict()
        """Answers that ended their handshake, by the digest of what was asked."""
        self._log = structlog.get_logger("zkc.receiving")
        self._repeats = Repeats(clock.monotonic)
        self.asking: Final = Asking(store, inbox, clock, bus)
        places = Places(bulk, self._transfers, lambda: self.config, clock, entropy, self._tell)
        self._judge = Judge(
            lambda: self.config, inbox, person, self.asking, self._transfers, self.readers, places, clock
        )
        self._deliveries = Deliveries(
            inbox, self._transfers, self.readers, lambda: self.config, clock, self._log, self._repeats, self._forget,
            bus, notes,
        )
        self.received: Final = self._deliveries.received
        self.refused: Final[Counter[str]] = Counter()
        """How often this home refused, by code and detail, ``25.rule``; both are its own words."""

    @property
    def under_way(self) -> int:
        """Transfers, those whose handshake has only begun too."""
        return len(self._transfers)

    async def handle(self, principal: Principal, endpoint: str, ask: Ask, body: RequestBody) -> AnswerBody:
        """One request of the coordinator to ``principal``, whose link leads to ``endpoint``; ``ask`` asks it something.

        One that comes again gets the answer that it got, for as long as its handshake or its transfer lives: the
        channel keeps answers too (`zkc.protocol.calls`), but not as many as there may be transfers at once.
        """
        if isinstance(body, TransferEnd):
            self._end_handshake(body.xid)
            return Ok()
        xid, asked = _xid_of(body), digest(encode(body))
        known = self._transfers.get(xid)
        given = self._closed.get(asked) if known is None else known.answers.get(asked)
        if given is not None:
            return given
        if isinstance(body, Notify):
            answer = await self._notified(principal, endpoint, ask, body)
        else:
            answer = await self._advance(xid, body)
        transfer = self._transfers.get(xid)
        if transfer is not None:
            transfer.answers[asked] = answer
        else:
            self._closed[asked] = answer
            if len(self._closed) > _CLOSED_KEPT:
                self._closed.popitem(last=False)
        return answer

    async def close(self) -> None:
        """End every transfer: senders are told; what was being written stays as partial items."""
        running = [transfer.done for transfer in self._transfers.values() if transfer.done is not None]
        for transfer in list(self._transfers.values()):
            if transfer.bell is not None:
                transfer.bell.ring()
            elif transfer.reader is not None and transfer.agreed:
                transfer.reader.send_away(Interrupted("the daemon here ended", detail="shutdown"))
            else:
                self._end_handshake(transfer.req.xid)
        if running:
            await asyncio.wait(running, timeout=JOIN_SECONDS)
        self._deliveries.close()

    # --- handshake --------------------------------------------------------------------------------------------------

    async def _notified(self, principal: Principal, endpoint: str, ask: Ask, message: Notify) -> AnswerBody:
        """X2: verify who sends, judge, bind, answer (Figure 14)."""
        req = machine.read_request(message)
        if req.xid in self._finished or req.xid in self._transfers:
            raise PeerViolation("replay", "this transfer's request has been answered")
        try:
            context, notified = self._read(principal, message)
        except (KeyChanged, OwnerChanged) as changed:
            if not await follow(ask, self._store, principal, changed, self._clock.wall(), self._notes):
                raise
            if req.xid in self._finished or req.xid in self._transfers:  # meanwhile
                raise PeerViolation("replay", "this transfer's request has been answered") from None
            context, notified = self._read(principal, message)
        card = notified.state.sender
        transfer = Transfer(context, notified.state, card, message)
        self._transfers[req.xid] = transfer
        try:
            await self._gossip.hear(ask, principal, req.sender, req.head)
            await check_logged(ask, self._store, principal, card)
            transfer.head = self._gossip.head_for(principal, req.sender)
            verdict = await self._judge.verdict(transfer, endpoint, ask)
        except BaseException:
            self._end_handshake(req.xid)
            raise
        self._note(transfer, verdict)
        if isinstance(verdict, machine.AskPerson):
            self._ask_person(transfer, endpoint, ask)
        return self._perform(transfer, step(machine.TABLE, context, transfer.state, verdict))

    def _read(self, principal: Principal, message: Notify) -> tuple[machine.Recipient, Step]:
        """X2: who it is that wants to send, by what is known of that name."""
        name = machine.read_request(message).sender
        context = machine.Recipient(
            principal.authority, principal.identity, principal.kem_key, principal.card, known_about(self._store, name)
        )
        notified: Step = step(machine.TABLE, context, machine.Idle(), message)
        # Once more, now that the key is known: is it pinned under another name?
        card = notified.state.sender
        judge_peer(card, known_about(self._store, name, card.fingerprint), None)
        return context, notified

    def _ask_person(self, transfer: Transfer, endpoint: str, ask: Ask) -> None:
        """X3 comes when the person has decided, or when the time for it is over."""
        question = self.asking.ask(transfer, self.config.inbox.ask_timeout)
        self._tell("info", "pending", (transfer.req.sender,), **transfer.ids)
        transfer.asking = asyncio.create_task(self._await_person(question, endpoint, ask))
        transfer.asking.add_done_callback(lambda _: self.asking.remove(question))

    async def _await_person(self, question: Question, endpoint: str, ask: Ask) -> None:
        transfer = question.transfer
        try:
            verdict: Verdict
            answer = await self.asking.wait(question)
            ends = transfer.req.sender, transfer.req.recipient
            if answer is None:
                verdict = machine.Decline(TimedOut.code, "unanswered")
                self._log_refusal(transfer, verdict)
                self._notes.note("answered", *ends, code=verdict.code, detail=verdict.detail)
            elif answer.accept:
                self.asking.agree(question, answer.level)
                self._notes.note("answered", *ends, detail=answer.level)
                verdict = await self._judge.verdict(transfer, endpoint, ask)
                self._note(transfer, verdict)
            else:
                verdict = machine.Decline(Refused.code, "", answer.reason)
                self._log_refusal(transfer, verdict)
                self._notes.note("answered", *ends, code=verdict.code)
            transfer.asking = None
            said = self._perform(transfer, step(machine.TABLE, transfer.context, transfer.state, verdict))
            if isinstance(said, TransferResponse):
                await ask(TransferAnswer(transfer.req.xid, said.response, said.signature))
            if answer is not None and answer.accept and isinstance(verdict, machine.Decline):
                question.outcome.set_exception(refused_by(transfer.req.recipient, verdict.code, verdict.detail))
            else:
                question.outcome.set_result(None)
        except (ZkcError, PeerViolation) as error:
            self._tell("warning", "answer-lost", (transfer.req.sender,), **transfer.ids, error=str(error))
            self._end_handshake(transfer.req.xid)

    async def prove(self, pin: str) -> None:
        """`PersonHere.prove`; a wrong one is in the log."""
        try:
            await self._person.prove(pin)
        except NotAuthorised as error:
            self._tell("warning", "pin-refused", (error.detail,), detail=error.detail)
            self._notes.note("proof", code=error.code, detail=error.detail)
            raise
        self._notes.note("proof")

    async def decide(self, said: AskDecision) -> PendingItem:
        """A person's answer to what waits under an id that begins so; returns once its sender's coordinator has it.

        `UsageError`: ``unknown-id``, ``ambiguous-id``; `NotAuthorised`: a PIN that is wrong or missing, and it still
        waits; why what was accepted cannot be let in; `Interrupted` (``ended``): nobody waits for it any more.
        """
        question = self.asking.find(said.id)
        if said.accept and said.pin:
            await self.prove(said.pin)
            question = self.asking.find(said.id)
        # Who answers is there, and with the right PIN he may.
        level: Presence = "authorised" if said.pin or self._person.level()[0] == "authorised" else "present"
        if said.accept and not level_met(level, question.item.require):
            raise NotAuthorised(
                f"{question.item.sender} asks that the person who accepts proves himself", detail="pin-needed",
                hint="give the PIN: zkc accept ID --pin-file FILE, or ZKC_PIN",
            )
        question.answer.set_result(Answer(said.accept, said.reason, level))
        await asyncio.shield(question.outcome)
        return question.item

    def _note(self, transfer: Transfer, verdict: Verdict) -> None:
        ends = transfer.req.sender, transfer.req.recipient
        asker = transfer.req.asked_by
        if asker and transfer.asking is None:  # else it was noted before the person was asked
            code, detail = (verdict.code, verdict.detail) if isinstance(verdict, machine.Decline) else (0, "")
            self._notes.note("on-request", asker, transfer.req.recipient, code=code, detail=detail)
        match verdict:
            case machine.AskPerson():
                self._notes.note("asked", *ends, rule=transfer.rule)
            case machine.Decline(code=code, detail=detail):
                self._log_refusal(transfer, verdict)
                self._notes.note("incoming", *ends, code=code, detail=detail, rule=transfer.rule)
            case machine.AlreadyHave():
                self._notes.note("incoming", *ends, detail="delivered-before")
            case _:
                self._notes.note("incoming", *ends, rule=transfer.rule)

    def _log_refusal(self, transfer: Transfer, refusal: machine.Decline) -> None:
        code, detail = refusal.code, refusal.detail
        self.refused[f"{code}.{detail}"] += 1
        told = {key: word for key, word in (("why", refusal.reason), ("rule", transfer.rule)) if word}
        self._tell(
            "info", "refused", (transfer.req.sender, code, detail), **transfer.ids, code=code, reason=detail, **told
        )

    async def _advance(self, xid: bytes, message: Any) -> AnswerBody:
        """X5, or G1 and G4: the key (Figure 15)."""
        transfer = self._transfers.get(xid)
        if transfer is None:
            raise PeerViolation("unexpected", "no handshake of this transfer")
        answer = self._perform(transfer, step(machine.TABLE, transfer.context, transfer.state, message))
        if transfer.agreed and transfer.reader is not None:
            # Before CONF leaves.
            await self._deliveries.hand_over(transfer, transfer.reader)
        return answer

    def _perform(self, transfer: Transfer, result: Step) -> AnswerBody:
        transfer.state = result.state
        if isinstance(result.state, machine.Closed):
            self._forget(transfer)
        elif isinstance(result.state, machine.Agreed):
            self._agreed(transfer)
        else:
            self._await_next(transfer)
        (effect,) = result.effects
        answer: AnswerBody = effect.message
        return answer

    def _await_next(self, transfer: Transfer) -> None:
        if transfer.timer is not None:
            transfer.timer.cancel()
        if transfer.asking is not None:
            return  # a person has his own time
        loop = asyncio.get_running_loop()
        transfer.timer = loop.call_later(STEP_SECONDS, self._end_handshake, transfer.req.xid)

    def _end_handshake(self, xid: bytes) -> None:
        """Give up a handshake that is not agreed: its keys and sockets go."""
        transfer = self._transfers.get(xid)
        if transfer is not None and not transfer.agreed:
            # Its sender may not have got what it was told.
            self._gossip.forget(transfer.context.card.body.uid, transfer.req.sender)
            erase(transfer.state)
            self._forget(transfer)

    def _forget(self, transfer: Transfer) -> None:
        xid = transfer.req.xid
        self._transfers.pop(xid, None)
        self._finished[xid] = None
        if len(self._finished) > _XIDS_KEPT:
            self._finished.popitem(last=False)
        if transfer.turn is not None:
            transfer.turn.reschedule(asyncio.get_running_loop().time())
        if transfer.timer is not None:
            transfer.timer.cancel()
        if transfer.asking is not None:
            transfer.asking.cancel()
        if transfer.incoming is not None:
            transfer.incoming.close()
        if transfer.reader is not None and not transfer.agreed:
            transfer.reader.release()

    def _tell(self, level: str, event: str, about: tuple[object, ...], **ids: object) -> None:
        """To the log, but no oftener than it can bear: a peer causes it."""
        self._repeats.tell(self._log, level, event, about, **ids)

    def _agreed(self, transfer: Transfer) -> None:
        """Both ends hold the key: open the door, and receive in a thread."""
        pin_peer(self._store, transfer.sender, self._clock.wall())
        older = self._deliveries.end_older(transfer)
        if transfer.reader is not None:
            transfer.agreed = True
        elif transfer.incoming is not None:
            self._deliveries.begin(transfer, transfer.incoming, older)
        else:
            raise PolicyRefused("there is no place for this transfer", detail="limit")
        if transfer.timer is not None:
            # Not before: until here its end is what ends a handshake that goes wrong.
            transfer.timer.cancel()


def _xid_of(body: RequestBody) -> bytes:
    """Which handshake a request belongs to. `PeerViolation` for what is no step of one."""
    xid: bytes
    match body:
        case Notify():
            xid = machine.read_request(body).xid
        case DeliverKey():
            xid = decode(body.key, Key).xid
        case DeliverSessionKey():
            xid = decode(body.wrapped, WrappedKey).xid
        case DeliverConfirmation():
            xid = decode(body.confirmation, ConfS).xid
        case _:
            raise PeerViolation("unexpected", type(body).__name__)
    return xid
