"""Transfer handshakes under way: who asked whom, which step is next, until when (Figures 2, 8 to 10).

What is legal stands in `zkc.protocol.transfer_coordinator`; here its effects become requests and answers in the two
channels. All of it is in memory: a crash costs the sender another handshake.

A sender may have more handshakes under way than answers are kept for it (`zkc.protocol.calls`). So the same request
twice gets the same answer: from the machine while its handshake is open, from here for a while after.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from zkc.constants import ENDED_BYTES_MAX, HANDSHAKES_MAX, STEP_SECONDS, XIDS_KEPT_MAX
from zkc.coordinator.clients import Clients
from zkc.coordinator.core import Core, code_of
from zkc.coordinator.sessions import Client, Session, Silence
from zkc.crypto.primitives import Secret, digest
from zkc.errors import (
    CoordinatorUnreachable,
    Interrupted,
    PeerViolation,
    PolicyRefused,
    RecipientOffline,
    TimedOut,
    UnknownRecipient,
    ZkcError,
)
from zkc.protocol.step import Step, erase, step
from zkc.protocol.transfer_coordinator import (
    TABLE,
    Answered,
    AnswerSender,
    AskRecipient,
    Broker,
    FailSender,
    Finished,
    Idle,
    KeyPassed,
    KeyWithRecipient,
    KeyWithSender,
    Notified,
    PersonAsked,
    RefuseSender,
    SenderConfirmed,
    read_request,
    xid_of,
)
from zkc.rules.policy import Asked as PolicyQuestion
from zkc.rules.policy import Refusal, RuleRates, Standing, Verdict, higher, judge, least_size, most_size
from zkc.wire.codec import encode
from zkc.wire.messages import (
    AnswerBody,
    Failure,
    Ok,
    Req,
    TransferAnswer,
    TransferConfirmKey,
    TransferEnd,
    TransferKey,
    TransferPending,
    TransferRequest,
    TransferResponse,
)

_RECIPIENT_MAY_SAY: Final = frozenset({12, 22, 23, 24, 25, 30, 31, 32, 33, 40})
"""Codes of a recipient that its sender is told; any other would speak for the coordinator, and is told as policy."""
_KEY_BYTES: Final = 32
STEPS: Final[dict[type, str]] = {
    Notified: "recipient-answers", PersonAsked: "person-decides", Answered: "sender-makes-key",
    KeyPassed: "recipient-confirms", KeyWithRecipient: "recipient-confirms", KeyWithSender: "sender-confirms",
    SenderConfirmed: "recipient-ends",
}
"""What a handshake in this state waits for."""
_WAITING_MAX: Final = 8
"""Requests of the same bytes that wait for the same answer."""
Said = TransferRequest | TransferKey | TransferConfirmKey
"""What a sender says in a handshake."""


@dataclass(eq=False)
class _Handshake:
    xid: bytes
    req: Req
    sender: Client
    origin: Session
    """The sender's process that asked."""
    recipient: Client
    to: Session
    """The recipient's daemon."""
    broker: Broker
    deadline: float
    began: float
    since: float
    """When this state began."""
    state: Any = field(default_factory=Idle)
    waiting: list[tuple[Session, bytes]] = field(default_factory=list)
    """Requests of the sender that the next step answers."""
    said: bytes = b""
    """H of the sender's last message."""
    rule: str = ""
    """Of our policy, that let it in."""
    over: bool = False


@dataclass(frozen=True)
class _Ended:
    """The last word of a handshake that is over."""

    said: bytes
    answer: AnswerBody | Failure
    """What answered it; a failure is told under the id of whoever asks again."""
    size: int
    until: float


class Transfers:
    """All of them, by xid; the one whose step has waited longest first."""

    def __init__(self, core: Core, clients: Clients) -> None:
        self._core = core
        self._clients = clients
        self._open: OrderedDict[bytes, _Handshake] = OrderedDict()
        self._used: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()
        """(sender's uid, xid), the newest last."""
        self._ended: OrderedDict[tuple[bytes, bytes], _Ended] = OrderedDict()
        """The same of those that have ended lately, the next to be forgotten first."""
        self._ended_bytes = 0
        self._rates = RuleRates()

    def __len__(self) -> int:
        return len(self._open)

    # --- what clients ask -------------------------------------------------------------------------------------------

    def request(self, session: Session, call: bytes, message: TransferRequest) -> None:
        """X1 (Figure 8, blocks 801-804). Errors for the sender: `PeerViolation`, and those of the contract."""
        core, sender = self._core, session.client
        seen = sender.requests.add(core.clock.monotonic())
        req = read_request(message)
        handshake = self._open.get(req.xid)
        known = (sender.uid, req.xid) in self._used
        if req.sender != sender.name:
            raise PeerViolation("identity", "the sender is not the owner of the channel")
        verdict = self._judge(req, Standing(0 if known else sender.handshakes, seen, wall=core.clock.wall()))
        if handshake is not None and handshake.sender is sender:
            self._hear(handshake, session, call, message)
            return
        if self._answer_again(session, call, req.xid, message):
            return
        if handshake is not None or known:
            raise PeerViolation("replay", "the transfer id was used")
        if len(self._open) >= HANDSHAKES_MAX:
            core.audit.note("transfer", sender.name, code=PolicyRefused.code, detail="limit")
            raise PolicyRefused("too many transfers begin at once", detail="limit")
        try:
            recipient, to = self._recipient(req.recipient)
        except (UnknownRecipient, RecipientOffline) as error:
            # A name that nobody has is a text of the sender's.
            name = "" if isinstance(error, UnknownRecipient) else req.recipient
            core.audit.note("transfer", sender.name, name, code=error.code, detail=error.detail)
            raise
        refusal = self._rates.refuse(verdict, sender.name, core.clock.monotonic())
        if refusal is not None:
            raise self._refused(verdict, refusal, req)
        fresh = core.entropy.bytes(_KEY_BYTES) if req.key_source == "coordinator" else b""
        least = higher(req.presence, verdict.require)
        broker = Broker(
            core.identity.suite, self._clients.party(sender), self._clients.party(recipient), Secret(fresh), least
        )
        now = core.clock.monotonic()
        handshake = _Handshake(req.xid, req, sender, session, recipient, to, broker, now + STEP_SECONDS, now, now)
        first = step(TABLE, broker, handshake.state, message)
        handshake.waiting.append((session, call))
        handshake.said = _told_apart(message)
        handshake.rule = verdict.rule
        self._open[req.xid] = handshake
        self._use(sender.uid, req.xid)
        sender.handshakes += 1
        core.count("transfers.begun")
        self._take(handshake, first)

    def _judge(self, req: Req, standing: Standing) -> Verdict:
        """By this coordinator's own policy, before anybody else hears of it."""
        core = self._core
        asked = PolicyQuestion(
            req.key_source, req.cipher, least_size(req.size_class), most_size(req.size_class), req.sender,
            req.recipient, key_order=req.key_order,
        )
        verdict = judge(asked, core.config.rules(), standing)
        if verdict.refusal is not None:
            raise self._refused(verdict, verdict.refusal, req)
        return verdict

    def _refused(self, verdict: Verdict, refusal: Refusal, req: Req) -> ZkcError:
        core = self._core
        core.count(f"policy.{refusal.detail}")
        core.repeats.tell(
            core.log, "info", "policy-refused", (req.sender, verdict.rule), sender=req.sender, recipient=req.recipient,
            rule=verdict.rule, why=refusal.text,
        )
        # A name that nobody has is a text of the sender's.
        recipient = "" if core.db.client_named(req.recipient) is None else req.recipient
        core.audit.note("transfer", req.sender, recipient, code=refusal.code, detail=refusal.detail, rule=verdict.rule)
        return refusal.error()

    def go_on(self, session: Session, call: bytes, message: TransferKey | TransferConfirmKey) -> None:
        """X5 (Figure 2, alternate embodiment), or CONFS (Figure 2, 207-208; Figure 10, block 1003)."""
        xid = xid_of(message)
        handshake = self._open.get(xid)
        if handshake is None:
            if self._answer_again(session, call, xid, message):
                return
            if (session.client.uid, xid) in self._used:
                raise TimedOut("the handshake is over", detail="expired")
            raise Interrupted("the handshake is not known (any more)", detail="unknown-transfer")
        if handshake.sender is not session.client:
            raise PeerViolation("identity", "another client's transfer")
        self._hear(handshake, session, call, message)

    def answered(self, session: Session, message: TransferAnswer) -> AnswerBody:
        """X3 of a recipient whose person has decided (Figure 9)."""
        handshake = self._open.get(message.xid)
        if handshake is None:
            raise Interrupted("the handshake is not known (any more)", detail="unknown-transfer")
        if session is not handshake.to:
            raise PeerViolation("identity", "another client's transfer")
        violation = self._hear_recipient(handshake, message)
        if violation is not None:
            raise violation
        return Ok()

    def end(self, session: Session, message: TransferEnd) -> None:
        """Either end gives it up; the other is told. Harmless for a handshake that is over."""
        handshake = self._open.get(message.xid)
        if handshake is None:
            return
        told = _told(message.code, message.detail)
        # By session, not by client: one may send to itself.
        if session is handshake.to and session is not handshake.origin:
            self._finish(handshake, *told, tell_recipient=False)
        elif session.client is handshake.sender:
            self._finish(handshake, *told)

    def ends(self, xid: bytes, recipient: Session) -> set[str] | None:
        """The names of both ends of a handshake that waits for this recipient's answer; None where there is none."""
        handshake = self._open.get(xid)
        if handshake is None or handshake.to is not recipient:
            return None
        return {handshake.sender.name, handshake.recipient.name}

    # --- time, and clients that go ----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Ends the handshakes whose step has taken too long; both ends are told. Forgets those that ended long ago."""
        while self._ended and next(iter(self._ended.values())).until <= now:
            self._ended_bytes -= self._ended.popitem(last=False)[1].size
        while self._open:
            handshake = next(iter(self._open.values()))
            if handshake.deadline > now:
                break
            self._core.count("transfers.expired")
            self._finish(handshake, TimedOut.code, "expired")

    def drop(self, uid: bytes) -> None:
        """The registration ``uid`` has ended: so do its handshakes."""
        for handshake in list(self._open.values()):
            if handshake.recipient.uid == uid:
                self._finish(handshake, UnknownRecipient.code, "unknown", tell_recipient=False)
            elif handshake.sender.uid == uid:
                self._finish(handshake, Interrupted.code, "interrupted")

    def close(self) -> None:
        """Erases every key that is held."""
        for handshake in list(self._open.values()):
            self._forget(handshake)

    # --- one handshake ----------------------------------------------------------------------------------------------

    def _recipient(self, name: str) -> tuple[Client, Session]:
        """The recipient and its daemon, online."""
        client = self._clients.named(name)
        if client is not None and client.daemon is not None and client.daemon.wire is not None:
            return client, client.daemon
        if client is None and self._core.db.client_named(name) is None:
            raise UnknownRecipient("nobody of that name is registered", detail="unknown")
        raise RecipientOffline("the recipient is offline", detail="offline")

    def _hear(self, handshake: _Handshake, session: Session, call: bytes, message: Said) -> None:
        """What the sender says in a handshake that is open: the next step, or the last one again."""
        if isinstance(handshake.state, PersonAsked):
            self._still_pending(handshake)
        if len(handshake.waiting) >= _WAITING_MAX:
            raise PeerViolation("limit", "the same step is asked for too often")
        taken = step(TABLE, handshake.broker, handshake.state, message)
        handshake.waiting.append((session, call))
        handshake.said = _told_apart(message)
        self._take(handshake, taken)

    def _still_pending(self, handshake: _Handshake) -> None:
        """The sender asks again, so it is there; whoever asked before has his answer. `RecipientOffline`."""
        if handshake.to.wire is None or handshake.to.client.daemon is not handshake.to:
            self._finish(handshake, RecipientOffline.code, "offline", tell_recipient=False)
            raise RecipientOffline("the recipient is offline", detail="offline")
        handshake.deadline = self._core.clock.monotonic() + STEP_SECONDS
        self._open.move_to_end(handshake.xid)
        waiting, handshake.waiting = handshake.waiting, []
        for session, call in waiting:
            self._clients.answer(session, call, TransferPending())

    def _answer_again(self, session: Session, call: bytes, xid: bytes, message: Said) -> bool:
        """The last word of a handshake that has ended, to what it answered; whether this was that."""
        ended = self._ended.get((session.client.uid, xid))
        if ended is None or ended.said != _told_apart(message):
            return False
        if isinstance(ended.answer, Failure):
            self._clients.fail(session, call, ended.answer.code, ended.answer.detail)
        else:
            self._clients.answer(session, call, ended.answer)
        return True

    def _keep(self, handshake: _Handshake, answer: AnswerBody | Failure) -> None:
        """Its last word; the oldest of too many goes."""
        key = handshake.sender.uid, handshake.xid
        size = len(encode(answer))
        self._ended[key] = _Ended(handshake.said, answer, size, self._core.clock.monotonic() + STEP_SECONDS)
        self._ended_bytes += size
        while self._ended_bytes > ENDED_BYTES_MAX:
            self._ended_bytes -= self._ended.popitem(last=False)[1].size

    def _take(self, handshake: _Handshake, taken: Step) -> None:
        """The next state, and its effects in their order."""
        if taken.state is not handshake.state:
            # What is only said again wins no time.
            now = self._core.clock.monotonic()
            handshake.deadline = now + STEP_SECONDS
            self._open.move_to_end(handshake.xid)
            self._measure(handshake, now)
        handshake.state = taken.state
        for effect in taken.effects:
            match effect:
                case AskRecipient(body=body):
                    self._clients.ask(handshake.to, body, STEP_SECONDS, partial(self._on_reply, handshake))
                case AnswerSender(body=body):
                    if isinstance(taken.state, Finished):
                        self._core.durations["handshake"].add(self._core.clock.monotonic() - handshake.began)
                        self._keep(handshake, body)
                        source = handshake.req.key_source
                        self._core.log.info("transfer-brokered", **_ids_of(handshake), key_source=source)
                        ends = handshake.sender.name, handshake.recipient.name
                        self._core.audit.note("transfer", *ends, rule=handshake.rule)
                    waiting, handshake.waiting = handshake.waiting, []
                    for session, call in waiting:
                        self._clients.answer(session, call, body)
                case FailSender(code=code, detail=detail):
                    self._tell_sender(handshake, *_told(code, detail))
                case RefuseSender(body=body, code=code, detail=detail):
                    self._tell_sender(handshake, *_told(code, detail), body)
                case _:
                    raise AssertionError(f"unexpected effect {type(effect).__name__}")
        if isinstance(handshake.state, Finished):
            self._core.count("transfers.brokered")
            self._forget(handshake)

    def _measure(self, handshake: _Handshake, now: float) -> None:
        """How long the step took that is over."""
        step_name = STEPS.get(type(handshake.state))
        if step_name is not None:
            self._core.durations[step_name].add(now - handshake.since)
        handshake.since = now

    def _on_reply(self, handshake: _Handshake, body: AnswerBody | Failure | Silence) -> None:
        """What the recipient said (Figures 9 and 10), or that it said nothing."""
        if handshake.over:
            return
        match body:
            case "offline":
                self._finish(handshake, RecipientOffline.code, "offline", tell_recipient=False)
            case "expired":
                self._finish(handshake, TimedOut.code, "expired")
            case Failure(code=code, detail=detail):
                self._finish(handshake, *_told(code, detail), tell_recipient=False)
            case _:
                self._hear_recipient(handshake, body)

    def _hear_recipient(self, handshake: _Handshake, body: AnswerBody | TransferAnswer) -> PeerViolation | None:
        """What was wrong with it, if that has ended the handshake."""
        try:
            taken = step(TABLE, handshake.broker, handshake.state, body)
        except PeerViolation as violation:
            self._core.violated("transfer", violation, name=handshake.recipient.name)
            self._finish(handshake, code_of(violation), violation.detail)
            return violation
        self._take(handshake, taken)
        return None

    def _finish(self, handshake: _Handshake, code: int, detail: str, *, tell_recipient: bool = True) -> None:
        """It ends without a result."""
        self._tell_sender(handshake, code, detail)
        if tell_recipient and handshake.to.wire is not None:
            self._clients.tell(handshake.to, TransferEnd(handshake.xid, code, detail))
        self._forget(handshake)

    def _tell_sender(
        self, handshake: _Handshake, code: int, detail: str, refusal: TransferResponse | None = None
    ) -> None:
        """As the answer to what it waits for, else as a message of its own; ``refusal`` is the recipient's own word."""
        about = handshake.sender.name, code, detail
        self._core.repeats.tell(
            self._core.log, "info", "transfer-refused", about, **_ids_of(handshake), code=code, detail=detail
        )
        ends = handshake.sender.name, handshake.recipient.name
        self._core.audit.note("transfer", *ends, code=code, detail=detail)
        waiting, handshake.waiting = handshake.waiting, []
        for session, call in waiting:
            if refusal is None:
                self._clients.fail(session, call, code, detail)
            else:
                self._clients.answer(session, call, refusal)
        self._keep(handshake, refusal or Failure(handshake.xid, code, detail))
        if not waiting and refusal is None and handshake.origin.wire is not None:
            self._clients.tell(handshake.origin, TransferEnd(handshake.xid, code, detail))

    def _forget(self, handshake: _Handshake) -> None:
        """Erases what it held."""
        handshake.over = True
        erase(handshake.state)
        handshake.broker.fresh_key.wipe()
        if self._open.pop(handshake.xid, None) is not None:
            handshake.sender.handshakes -= 1

    def _use(self, uid: bytes, xid: bytes) -> None:
        self._used[uid, xid] = None
        if len(self._used) > XIDS_KEPT_MAX:
            self._used.popitem(last=False)


def _ids_of(handshake: _Handshake) -> dict[str, str]:
    """What tells a transfer apart in the log."""
    return {
        "sender": handshake.sender.name, "recipient": handshake.recipient.name, "xid": handshake.xid.hex(),
    }


def _told_apart(message: Said) -> bytes:
    return digest(encode(message))


def _told(code: int, detail: str) -> tuple[int, str]:
    """Code and detail of one end as the other hears them. Who could not ask this coordinator has lost it."""
    if code == CoordinatorUnreachable.code:
        return Interrupted.code, "link"
    return (code if code in _RECIPIENT_MAY_SAY else PolicyRefused.code), detail

