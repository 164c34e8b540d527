"""Third-party requests (claims B8): each step goes to the client that is to send, and its answer back.

The coordinator says who asks, by the channel, and whose card that is; it keeps nothing between two steps.
"""

from __future__ import annotations

from typing import Final

from zkc.constants import STEP_SECONDS
from zkc.coordinator.clients import Clients
from zkc.coordinator.core import Core
from zkc.coordinator.sessions import Session, Silence
from zkc.errors import IdentityError, PeerViolation, PolicyRefused, RecipientOffline, TimedOut, UnknownRecipient
from zkc.protocol.transfer_coordinator import Party
from zkc.wire.codec import decode
from zkc.wire.messages import AnswerBody, Ask, Ask0, AskBody, AskFrom, AskReply, AskStep, Failure

_MAY_SAY: Final = frozenset({11, 12, 20, 21, 25, 30, 31, 33, 34})


class Fetching:
    """Passes on."""

    def __init__(self, core: Core, clients: Clients) -> None:
        self._core = core
        self._clients = clients

    def forward(self, session: Session, call: bytes, step: AskStep) -> None:
        """T1, T3 and the questions between T4 and T5."""
        body = decode(step.body, AskBody)
        if isinstance(body, Ask0 | Ask):
            if (body.asker, body.sender) != (session.client.name, step.to):
                raise PeerViolation("identity", "the asker is not the owner of the channel")
            if body.recipient and self._core.db.client_named(body.recipient) is None:
                raise UnknownRecipient("nobody of that name is registered", detail="recipient")
        sender = self._clients.named(step.to)
        if sender is None or sender.daemon is None or sender.daemon.wire is None:
            if self._core.db.client_named(step.to) is None:
                raise UnknownRecipient("nobody of that name is registered", detail="unknown")
            raise RecipientOffline("the client that is to send is offline", detail="offline")
        asker, to = self._clients.party(session.client), self._clients.party(sender)
        if isinstance(body, Ask0):
            asker = asker.under(body.card_hash)
        message = AskFrom(asker.name, step.body, step.signature, asker.card, asker.certificate)

        def answered(reply: AnswerBody | Failure | Silence) -> None:
            if isinstance(body, Ask) and isinstance(reply, AskReply):
                self._core.audit.note("ask", asker.name, to.name)
            self._answered(session, call, to, reply)

        self._clients.ask(sender.daemon, message, STEP_SECONDS, answered)

    def _answered(
        self, session: Session, call: bytes, to: Party, body: AnswerBody | Failure | Silence
    ) -> None:
        def fail(code: int, detail: str) -> None:
            self._core.audit.note("ask", session.client.name, to.name, code=code, detail=detail)
            self._clients.fail(session, call, code, detail)

        match body:
            case AskReply():
                self._clients.answer(session, call, AskReply(body.body, body.signature, to.card, to.certificate))
            case Failure(code=code, detail=detail):
                fail(code if code in _MAY_SAY else PolicyRefused.code, detail)
            case "offline":
                fail(RecipientOffline.code, "offline")
            case "expired":
                fail(TimedOut.code, "expired")
            case _:
                fail(IdentityError.code, "unexpected")
