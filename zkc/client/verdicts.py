"""Whether a transfer that was announced is let in, and how: the configuration, the person, the place (Figure 14).

`zkc.rules.policy` decides by values; here they are gathered, and what it decides becomes an event of the handshake's
machine (`zkc.protocol.transfer_recipient`).
"""

from __future__ import annotations

from collections.abc import Callable

from zkc.client.asking import Asking, preview_of
from zkc.client.control import AskLive
from zkc.client.person import PersonHere
from zkc.client.places import Ask, Places
from zkc.client.readers import Readers
from zkc.client.transfers import Transfer, Transfers
from zkc.config import ClientConfig
from zkc.env import Clock
from zkc.errors import Interrupted, NobodyThere, NotAuthorised, PeerViolation, PolicyRefused, ZkcError
from zkc.ids import Presence
from zkc.net.sockets import split_endpoint
from zkc.protocol import transfer_recipient as machine
from zkc.protocol.session import level_met
from zkc.rules.endpoints import parse_listen
from zkc.rules.policy import (
    Asked,
    RuleRates,
    Rules,
    Standing,
    decide_size,
    higher,
    judge,
    least_size,
    most_size,
)
from zkc.rules.rates import Window
from zkc.stores.inbox import Inbox
from zkc.wire.messages import Endpoints

_YOU_LISTEN = Endpoints([], 0, 0, 0, "", b"")
"""What a sender is told that is to be connected to."""
_SENDERS_KEPT = 1024
"""Senders whose requests of the current second are counted, before those that are silent are forgotten."""

Verdict = machine.Accept | machine.Decline | machine.AlreadyHave | machine.AskPerson


class Judge:
    """Belongs to the daemon's loop."""

    def __init__(
        self, config: Callable[[], ClientConfig], inbox: Inbox, person: PersonHere, asking: Asking,
        transfers: Transfers, readers: Readers, places: Places, clock: Clock,
    ) -> None:
        self._config = config
        self._inbox = inbox
        self._person = person
        self._asking = asking
        self._transfers = transfers
        self._readers = readers
        self._places = places
        self._clock = clock
        self._requests: dict[str, Window] = {}
        self._rates = RuleRates()

    async def verdict(self, transfer: Transfer, endpoint: str, ask: Ask) -> Verdict:
        """``endpoint``: of the coordinator; ``ask`` asks it something. What the decision rests on is left in
        ``transfer``: its rule, consent, reader, sockets.

        `PeerViolation` where the transfer was ended meanwhile.
        """
        sender, req = transfer.sender, transfer.req
        await self._readers.settle(sender.fingerprint, req.tid)
        receipt = self._inbox.done(sender.fingerprint, req.tid)
        if receipt is not None:
            return machine.AlreadyHave(receipt)
        rules = self._rules(transfer)
        # Opening it is a decapsulation, a tenth of a millisecond: a person that is asked sees it in any case.
        preview = preview_of(transfer) if rules.by_name else None
        asked = Asked(
            req.key_source, req.cipher, least_size(req.size_class), most_size(req.size_class), req.sender,
            req.recipient, name=None if preview is None else preview.name, final=False,
        )
        standing = self._standing(transfer)
        verdict = judge(asked, rules, standing._replace(free_bytes=None))
        transfer.rule = verdict.rule
        if verdict.refusal is not None:
            return machine.Decline(verdict.refusal.code, verdict.refusal.detail)
        level, required = self._level(transfer), higher(req.presence, transfer.notify.presence, verdict.require)
        unmet = self._unmet(required, level[0])
        if unmet is not None:
            return machine.Decline(unmet.code, unmet.detail)
        transfer.consent = self._asking.consent(transfer)
        must_ask = not level_met(level[0], required) or (verdict.mode == "ask" and not transfer.consent.given)
        if not must_ask and not self._inbox.wanted.has(sender.fingerprint, req.tid):
            transfer.reader = self._readers.take(req, sender.fingerprint)
        # A reader stores nothing, and is not kept waiting for a person.
        refusal = decide_size(asked, rules, standing) if transfer.reader is None else None
        if refusal is None and not self._is_counted(transfer):
            refusal = self._rates.refuse(verdict, req.sender, self._clock.monotonic())
        if refusal is not None:
            return machine.Decline(refusal.code, refusal.detail)
        if must_ask:
            return self._question(transfer, required)
        if transfer.reader is not None:
            return await self._to_reader(transfer, transfer.reader.ask, endpoint, rules.max_bytes, level)
        if self._readers.broke_off(sender.fingerprint, req.tid):
            return machine.Decline(Interrupted.code, "broken-stream")
        return await self._to_inbox(transfer, endpoint, ask, rules.max_bytes, level)

    def _is_counted(self, transfer: Transfer) -> bool:
        """It was, when a person was asked about this delivery: his yes is not refused for its number."""
        agreed = self._asking.agreement(transfer)
        return agreed is not None and not agreed.own_wish

    def _question(self, transfer: Transfer, required: Presence) -> Verdict:
        if self._asking.is_full(transfer.req.sender):
            return machine.Decline(PolicyRefused.code, "limit")
        transfer.required = required
        return machine.AskPerson()

    def _rules(self, transfer: Transfer) -> Rules:
        """Own policy; what somebody here has asked for himself he has accepted."""
        rules, agreed = self._config().receiving_rules(), self._asking.agreement(transfer)
        return rules if agreed is None or not agreed.own_wish else rules._replace(accept="all")

    def _standing(self, transfer: Transfer) -> Standing:
        req, now = transfer.req, self._clock.monotonic()
        if len(self._requests) > _SENDERS_KEPT:
            self._requests = {name: seen for name, seen in self._requests.items() if not seen.is_over(now)}
        seen = self._requests.setdefault(req.sender, Window()).add(now)
        # What this very delivery has left here ends when it is agreed anew. Handshakes of it count: there may be many.
        older = self._transfers.older(transfer)
        at_once = sum(
            other.req.sender == req.sender and not (other.incoming is not None and other.incoming.finished)
            for other in self._transfers.values() if other is not transfer and other not in older
        )
        held = 0 if req.fresh else self._inbox.held_bytes(transfer.sender.fingerprint, req.tid)
        return Standing(at_once, seen, self._inbox.free_bytes(), held, self._clock.wall())

    # --- the person -------------------------------------------------------------------------------------------------

    def _level(self, transfer: Transfer) -> tuple[Presence, int]:
        """What this client states, and the age of what it rests on: who accepted this delivery showed so much then."""
        level, agreed = self._person.level(), self._asking.agreement(transfer)
        if agreed is None or level_met(level[0], agreed.level):
            return level
        return agreed.level, int(self._clock.monotonic() - agreed.at)

    def _unmet(self, required: Presence, level: Presence) -> ZkcError | None:
        """What is refused at once, since nobody can make it good by an answer (claims D2, D3)."""
        if level_met(level, required):
            return None
        if required == "present" or self._person.person().state == "absent":
            return NobodyThere("nobody is present", detail="absent")
        return None if self._person.enrolled else NotAuthorised("nothing is enrolled", detail="not-enrolled")

    # --- where it goes ----------------------------------------------------------------------------------------------

    async def _to_reader(
        self, transfer: Transfer, ask: AskLive, endpoint: str, max_bytes: int, level: tuple[Presence, int]
    ) -> machine.Accept:
        """Straight to a process that waits for it, at its sockets."""
        addresses = await self._places.addresses(ask.host, split_endpoint(endpoint)[0])
        self._transfers.check_wanted(transfer)
        where = Endpoints(addresses, ask.data_port, ask.ack_port, 0, "", b"")
        return machine.Accept(
            where, ask.chunk, max_bytes, live=True, presence=level[0], presence_age=level[1], head=transfer.head
        )

    async def _to_inbox(
        self, transfer: Transfer, endpoint: str, ask: Ask, max_bytes: int, level: tuple[Presence, int]
    ) -> Verdict:
        """At sockets of this daemon, by the relay, or at the sender's."""
        listen = parse_listen(self._config().transfer.listen)
        relay = None
        try:
            if listen is None and not transfer.req.can_listen:
                relay = await self._places.find_relay(transfer, ask)
            incoming = transfer.incoming = await self._places.bind(transfer, listen, relay)
        except PolicyRefused as error:
            return machine.Decline(error.code, error.detail)
        where = relay or _YOU_LISTEN
        if listen is not None and incoming.listening is not None:
            where = incoming.listening.at(await self._places.addresses(listen.host, split_endpoint(endpoint)[0]))
        try:
            self._transfers.check_wanted(transfer)
        except PeerViolation:
            incoming.close()
            raise
        chunk = incoming.offer_chunk(self._config().transfer.chunk)
        return machine.Accept(
            where, chunk, max_bytes, presence=level[0], presence_age=level[1], head=transfer.head
        )
