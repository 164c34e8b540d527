"""Asking another client to send something of its shares: blocking, over a link of this process (claims B8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from zkc.client.events import Delivery, Event, Granted, Pending, Progress, Requested
from zkc.client.principal import Principal, known_about, pin_peer
from zkc.constants import ID_BYTES, STEP_SECONDS
from zkc.env import Clock, Entropy
from zkc.errors import IdentityError, IntegrityError, Interrupted, PeerViolation, RecipientOffline, TimedOut
from zkc.protocol import fetching as machine
from zkc.protocol.step import Step, step
from zkc.protocol.trust import judge_peer, verify_peer
from zkc.rules.refusals import refused_by
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore
from zkc.stores.receipts import save_receipt
from zkc.wire.messages import AnswerBody, AskReply, AskState, AskWhat, PeerCard, RequestBody, ShareLine

_OF_RECIPIENT: Final = frozenset({20, 21, 22, 23, 24, 25, 30})
"""Codes with which a sender ends by what its recipient, or the coordinator, has said."""
Ask = Callable[[RequestBody, float, str], AnswerBody]
"""One request to the coordinator: what, for how long, whose refusal it is."""


class Asker:
    """A home's registration, asking one other client."""

    def __init__(
        self, home: Home, store: KeyStore, principal: Principal, ask: Ask,
        look_up: Callable[[str], PeerCard], sender: str, clock: Clock, entropy: Entropy,
    ) -> None:
        """``look_up``: the card that the coordinator has of a name (`zkc.client.successions.look_up`)."""
        self._home = home
        self._store = store
        self._ask = ask
        self._look_up = look_up
        self._sender = sender
        self._clock = clock
        self._entropy = entropy
        self._name = principal.name
        self._principal = principal
        self._party = machine.Party(
            principal.authority, principal.identity, principal.kem_key, principal.card, known_about(store, sender)
        )

    def shares(self) -> list[ShareLine]:
        """What this client may ask for."""
        first = machine.create_ask0(self._party, self._entropy.bytes(ID_BYTES), self._sender, "")
        try:
            return machine.consume_shares(self._party, first.state, self._reply(first)).shares
        except PeerViolation as violation:
            raise self._alarm(violation) from None

    def fetch(
        self, recipient: str, what: AskWhat, on_event: Callable[[Event], None], timeout: float | None = None,
        expect: Callable[[bytes, bytes], None] = lambda _fingerprint, _tid: None,
    ) -> Delivery:
        """Until the recipient has it, by its receipt; every error of the contract that one of the others gives.

        ``expect``: told before it is asked for, whose delivery it will be (the sender's fingerprint) and its tid.
        """
        began = self._clock.monotonic()
        fingerprint = self._recipient(recipient)
        first = machine.create_ask0(self._party, self._entropy.bytes(ID_BYTES), self._sender, recipient)
        try:
            state: Any = self._next(first)
            pin_peer(self._store, state.sender, self._clock.wall())
            tid = self._entropy.bytes(ID_BYTES)
            expect(state.sender.fingerprint, tid)
            asked = step(machine.ASKER, self._party, state, machine.Wish(fingerprint, tid, what))
            state = self._next(asked)
            return self._follow(state, recipient, on_event, began, timeout)
        except PeerViolation as violation:
            raise self._alarm(violation) from None

    def _follow(
        self, running: machine.Running, recipient: str, on_event: Callable[[Event], None], began: float,
        timeout: float | None,
    ) -> Delivery:
        requested = pending = granted = False
        while True:
            if timeout is not None and self._clock.monotonic() - began > timeout:
                raise TimedOut(
                    f"{self._sender} has not delivered it in time", detail="timeout", hint="it goes on sending"
                )
            news = self._news(running)
            if not requested and (news.size >= 0 or news.pending or news.path or news.over):
                # Before, a folder is looked through.
                on_event(Requested(recipient, news.name, None if news.size < 0 else news.size))
                requested = True
            if news.pending and not pending:
                on_event(Pending(recipient))
                pending = True
            if news.path and not granted:
                on_event(Granted(recipient, news.key_source, "online", news.path, news.resumed_from))
                granted = True
            if granted:
                on_event(Progress(news.bytes, None if news.size < 0 else news.size))
            if not news.over:
                continue
            if news.code:
                raise self._failed(recipient, news.code, news.detail)
            return self._done(running, recipient, news, began)

    def _news(self, running: machine.Running) -> AskState:
        try:
            reply = self._replied(machine.create_more(self._party, running))
        except RecipientOffline:
            raise Interrupted(
                f"{self._sender} went offline while it sent", detail="sender-offline", hint="run the same command again"
            ) from None
        told = step(machine.ASKER, self._party, running, reply)
        state: AskState = told.effects[0].state
        return state

    def _done(self, running: machine.Running, recipient: str, news: AskState, began: float) -> Delivery:
        try:
            body = machine.check_receipt(running, news.receipt).body
        except PeerViolation as violation:
            raise IntegrityError(
                f"{self._sender} returned no receipt of {recipient} for this ({violation})", detail="receipt",
                hint=f"ask {recipient} whether it has arrived",
            ) from None
        kept = save_receipt(self._home, body.tid, news.receipt, news.name)
        return Delivery(
            transfer=body.xid.hex(), recipient=recipient, name=news.name, bytes=body.size,
            digest=f"blake3:{body.digest.hex()}", seconds=self._clock.monotonic() - began, receipt=kept,
            key_source=body.key_source, path=news.path, cipher=body.cipher,
        )

    def _failed(self, recipient: str, code: int, detail: str) -> Exception:
        """What ended a delivery that had begun, by the sender's word: mostly the recipient's answer to it."""
        if detail == "rule":
            about = f"{self._sender} or {recipient}"
        else:
            about = recipient if code in _OF_RECIPIENT and detail != "withdrawn" else self._sender
        return refused_by(about, code, detail)

    def _recipient(self, name: str) -> bytes:
        """The fingerprint that the recipient has to have."""
        if name == self._name:
            return self._principal.fingerprint
        found = self._look_up(name)  # what is pinned moves where it has a new identity
        known = known_about(self._store, name)
        if known.fingerprint:
            return known.fingerprint
        card = verify_peer(self._party.authority, name, found.card, found.certificate)
        judge_peer(card, known_about(self._store, name, card.fingerprint), None)
        pin_peer(self._store, card, self._clock.wall())
        return card.fingerprint

    def _next(self, before: Step) -> Any:
        return step(machine.ASKER, self._party, before.state, self._reply(before)).state

    def _reply(self, before: Step) -> AskReply:
        return self._replied(before.effects[0].message)

    def _replied(self, message: RequestBody) -> AskReply:
        answer = self._ask(message, STEP_SECONDS, self._sender)
        if not isinstance(answer, AskReply):
            raise PeerViolation("unexpected", type(answer).__name__)
        return answer

    def _alarm(self, violation: PeerViolation) -> IdentityError:
        return IdentityError(
            f"the request to {self._sender} did not verify ({violation})", detail=violation.detail,
            hint="somebody in between alters messages, or a version is defective; see zkc verify",
        )
