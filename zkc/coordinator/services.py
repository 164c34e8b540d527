"""What a registered client may ask of the coordinator, each request by one function of one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from msgspec import structs

from zkc.config.keys import LimitsSection
from zkc.constants import (
    APPLICATION_INVITATIONS_MAX,
    APPLICATION_INVITATIONS_PER_SECOND,
    APPLICATION_INVITE_SECONDS,
    ASKED_PER_SECOND_MAX,
    ASKS_AT_ONCE_MAX,
    ASKS_PER_SECOND_MAX,
    HANDSHAKES_PER_CLIENT_MAX,
    LOOKUPS_PER_SECOND_MAX,
    PAGES_AT_ONCE_MAX,
    PAGES_PER_SECOND_MAX,
    ROTATIONS_AT_ONCE_MAX,
    ROTATIONS_PER_SECOND,
)
from zkc.coordinator.certificates import certificate_of
from zkc.coordinator.clients import Clients
from zkc.coordinator.core import Core, as_told, code_of
from zkc.coordinator.fetching import Fetching
from zkc.coordinator.invitations import make_invitation
from zkc.coordinator.keylog import KeyLog
from zkc.coordinator.relays import Relays
from zkc.coordinator.sessions import Session
from zkc.coordinator.transfers import Transfers
from zkc.crypto.cards import certify, verify_card
from zkc.crypto.successions import heir_of
from zkc.crypto.suites import read_private
from zkc.errors import PeerViolation, UnknownRecipient, UsageError, ZkcError
from zkc.ids import is_name
from zkc.protocol.calls import Asked
from zkc.protocol.rotation import consume_rotate, create_rotated
from zkc.protocol.trust import Authority
from zkc.rules.policy import may_see
from zkc.rules.rates import Bucket, Rate
from zkc.stores.keydb import ClientRow
from zkc.wire.messages import (
    AnswerBody,
    AskCoordinator,
    AskStep,
    AskSuccessions,
    CoordinatorNow,
    Goodbye,
    Heartbeat,
    Invitation,
    InviteApplication,
    Leave,
    ListPeers,
    LogAsk,
    LogHeadAsk,
    LogProve,
    LookAt,
    LookUp,
    Ok,
    Peer,
    PeerCard,
    PeerPage,
    PeerSeen,
    PersonIs,
    RelayHere,
    Rotate,
    Successions,
    TransferAnswer,
    TransferConfirmKey,
    TransferEnd,
    TransferKey,
    TransferRequest,
    WantRelay,
)

_PAGE_NAMES: Final = 128
_PAGE_SUCCESSIONS: Final = 4
"""Names on one page of peers: each entry is at most 200 bytes, the page well below 64 KiB."""


RateFor = Callable[[LimitsSection], "Rate | None"]
"""How often one client may ask a kind of request, as the configuration has it; None: not bounded here."""


def _often(_limits: LimitsSection) -> Rate:
    return Rate(ASKED_PER_SECOND_MAX, ASKED_PER_SECOND_MAX)


def _lookups(_limits: LimitsSection) -> Rate:
    return Rate(LOOKUPS_PER_SECOND_MAX, LOOKUPS_PER_SECOND_MAX)


def _asks(_limits: LimitsSection) -> Rate:
    return Rate(ASKS_AT_ONCE_MAX, ASKS_PER_SECOND_MAX)


def _pages(_limits: LimitsSection) -> Rate:
    return Rate(PAGES_AT_ONCE_MAX, PAGES_PER_SECOND_MAX)


def _writes(_limits: LimitsSection) -> Rate:
    """Of what writes to the key database."""
    return Rate(2 * APPLICATION_INVITATIONS_MAX, APPLICATION_INVITATIONS_PER_SECOND)


def _rotations(_limits: LimitsSection) -> Rate:
    """Of what makes the log grow."""
    return Rate(ROTATIONS_AT_ONCE_MAX, ROTATIONS_PER_SECOND)


def _by_policy(_limits: LimitsSection) -> None:
    """Policy counts these itself, by `limits.per_second`."""


def _steps(limits: LimitsSection) -> Rate | None:
    """As many at once as there may be handshakes under way, and as fast as they may begin; 0 is no bound."""
    if not limits.per_second:
        return None
    return Rate((limits.handshakes_per_client or HANDSHAKES_PER_CLIENT_MAX) + limits.per_second, limits.per_second)


_DECIDED: Final = {InviteApplication: "invited", AskStep: "ask", RelayHere: "relay", WantRelay: "relay"}
"""Requests of which a refusal is noted here, and as what; those of transfers are where both ends are known."""


@dataclass(frozen=True)
class _Service:
    """What answers one kind of request, and how often it does for one client."""

    handler: Callable[[Session, bytes, Any], AnswerBody | None]
    """(who asks, the request's id, the request) -> the answer; None: later."""
    rate_for: RateFor


class Services:
    """Answers requests. ``revoked`` is called when a client's own leave has ended its registration."""

    def __init__(
        self, core: Core, clients: Clients, transfers: Transfers, relays: Relays, revoked: Callable[[], None]
    ) -> None:
        self._core = core
        self._clients = clients
        self._transfers = transfers
        self._revoked = revoked
        log = KeyLog(core)
        self._services: Final[dict[type, _Service]] = {
            Heartbeat: _Service(self._heartbeat, _often),
            Goodbye: _Service(self._goodbye, _often),
            ListPeers: _Service(self._list_peers, _pages),
            LookUp: _Service(self._look_up, _lookups),
            LookAt: _Service(self._look_at, _lookups),
            PersonIs: _Service(self._person, _often),
            LogAsk: _Service(log.page, _pages),
            LogProve: _Service(log.prove, _lookups),
            LogHeadAsk: _Service(log.head_at, _lookups),
            InviteApplication: _Service(self._invite_application, _writes),
            Leave: _Service(self._leave, _writes),
            Rotate: _Service(self._rotate, _rotations),
            AskSuccessions: _Service(self._successions, _lookups),
            AskCoordinator: _Service(self._coordinator, _often),
            TransferRequest: _Service(self._transfer_request, _by_policy),
            TransferKey: _Service(self._transfer_step, _steps),
            TransferConfirmKey: _Service(self._transfer_step, _steps),
            TransferAnswer: _Service(self._transfer_answer, _steps),
            TransferEnd: _Service(self._transfer_end, _steps),
            RelayHere: _Service(relays.announce, _often),
            WantRelay: _Service(relays.want, _steps),
            AskStep: _Service(Fetching(core, clients).forward, _asks),
        }
        """What only the coordinator sends is not in it."""

    def on_request(self, session: Session, asked: Asked) -> None:
        """Answers, refuses, or hands on to where it will be answered."""
        kind = type(asked.body)
        service = self._services.get(kind)
        ids = {"name": session.client.name, "request": kind.__name__, "call": asked.id.hex()}
        self._core.log.debug("request", **ids)
        try:
            self._count(session, kind, _often if service is None else service.rate_for)
            if service is None:
                raise PeerViolation("unexpected", f"{kind.__name__} is not a client's to ask")
            answer = service.handler(session, asked.id, asked.body)
        except PeerViolation as violation:
            self._core.violated("request", violation, **ids)
            self._core.audit.note("request", session.client.name, code=code_of(violation), detail=violation.detail)
            self._clients.fail(session, asked.id, code_of(violation), violation.detail)
        except ZkcError as error:
            if error.code in (1, 33):
                self._core.warn("request.failed", "request-failed", **ids, why=error.message)
            else:
                self._core.log.debug("request-refused", **ids, code=error.code, detail=error.detail)
                if kind in _DECIDED:
                    about = _DECIDED[kind], session.client.name
                    self._core.audit.note(*about, code=error.code, detail=error.detail)
            self._clients.fail(session, asked.id, *as_told(error))
        else:
            if answer is not None:
                self._clients.answer(session, asked.id, answer)
                self._after(session, asked.body)

    def _count(self, session: Session, kind: type, rate_for: RateFor) -> None:
        """`PeerViolation` (``limit``) where this client asks this too often (attack O05)."""
        rate = rate_for(self._core.config.limits)
        if rate is None:
            return
        if not session.client.asked.setdefault(kind, Bucket()).take(rate, self._core.clock.monotonic()):
            raise PeerViolation("limit", f"too many requests: {kind.__name__}")

    def _after(self, session: Session, body: Any) -> None:
        """What may happen only once the answer has left."""
        if isinstance(body, Goodbye):
            self._clients.goodbye(session)
        elif isinstance(body, Leave):
            self._revoked()

    # --- the requests -----------------------------------------------------------------------------------------------

    def _heartbeat(self, _session: Session, _call: bytes, _body: Heartbeat) -> AnswerBody:
        return Ok()

    def _goodbye(self, _session: Session, _call: bytes, _body: Goodbye) -> AnswerBody:
        return Ok()

    def _leave(self, session: Session, _call: bytes, _body: Leave) -> AnswerBody:
        """The registration is over before the client hears so; its channels end once it has heard."""
        self._core.db.revoke(session.client.name, "left", self._core.clock.wall(), "left")
        return Ok()

    def _list_peers(self, session: Session, _call: bytes, body: ListPeers) -> AnswerBody:
        """A page of live clients by name behind ``after``, of those that this one may see."""
        seen: list[ClientRow] = []
        after, more, sights = body.after, True, self._core.config.visible
        while more and not seen:
            rows = self._core.db.clients(after, _PAGE_NAMES, live=True)
            seen = [row for row in rows if may_see(session.client.name, row.name, sights)]
            more = len(rows) == _PAGE_NAMES
            after = rows[-1].name if rows else after
        return PeerPage([self._peer(row) for row in seen], more)

    def _peer(self, row: ClientRow) -> Peer:
        online = self._clients.is_online(row.uid)
        person, age = self._clients.person(row.uid)
        return Peer(row.name, row.kind, online, int(self._clients.last_seen(row)), row.fingerprint, person, age)

    def _look_at(self, session: Session, _call: bytes, body: LookAt) -> AnswerBody:
        """To who may not see it a client looks as if it were not there, whether it is or not."""
        row = self._core.db.client_named(body.name)
        if row is None:
            raise UnknownRecipient("nobody of that name is registered", detail="unknown")
        peer = self._peer(row)
        if not may_see(session.client.name, row.name, self._core.config.visible):
            peer = structs.replace(peer, online=False, last_seen=0, person="unknown", person_age=0)
        return PeerSeen(peer)

    def _person(self, session: Session, _call: bytes, body: PersonIs) -> AnswerBody:
        """What a daemon tells of its person; forgotten with its session (claims D2)."""
        session.person, session.person_at = body.state, self._core.clock.monotonic() - body.age
        return Ok()

    def _look_up(self, _session: Session, _call: bytes, body: LookUp) -> AnswerBody:
        row = self._core.db.client_named(body.name)
        if row is None:
            raise UnknownRecipient("nobody of that name is registered", detail="unknown")
        return PeerCard(row.card, certificate_of(self._core, row), int(row.registered))

    def _invite_application(self, session: Session, _call: bytes, body: InviteApplication) -> AnswerBody:
        """A short-lived invitation for ``owner/app``, vouched for by this channel (claims A9)."""
        core, owner = self._core, session.client
        name = f"{owner.name}/{body.app}"
        if owner.row.kind == "application" or not is_name(name):
            raise UsageError("not the name of an application", detail="bad-name")
        now = core.clock.wall()
        row, text = make_invitation(
            core.identity, core.entropy, name, "application", now + APPLICATION_INVITE_SECONDS, core.endpoints,
            owner.uid,
        )
        core.db.add_application_invitation(row, now, APPLICATION_INVITATIONS_MAX)
        core.log.info("application-invited", name=name, owner=owner.name)
        return Invitation(text)

    def _rotate(self, session: Session, _call: bytes, body: Rotate) -> AnswerBody:
        """ROT1: durable before ROT2 leaves; the same card gets the same keys again."""
        core, client = self._core, session.client
        identity, row = core.identity, client.row
        authority = Authority(identity.signing.public, identity.suite)
        card = consume_rotate(verify_card(row.card, identity.suite), authority, body)
        owner = core.db.client(row.owner_uid) if row.owner_uid is not None else None
        # One that it has already is no new one, though its owner has a new identity since: its answer was lost.
        if card.hash != row.card_hash and card.owner_fingerprint != (owner.fingerprint if owner is not None else None):
            raise PeerViolation("owner", "not vouched for by its owner")
        certificate = certify(identity.signing, card.name, row.uid, card.hash, card.body.epoch)
        renewed = replace(
            row, card=card.encoded, card_hash=card.hash, certificate=certificate,
            curve_public=body.curve_key or row.curve_public, fingerprint=card.fingerprint,
        )
        stored = core.db.rotate(row.card_hash, renewed, self._perm_server, core.clock.wall(), body.succession)
        self._clients.rotated(client, stored)
        core.log.info(
            "rotated", name=stored.name, uid=stored.uid.hex(), epoch=card.body.epoch,
            fingerprint=stored.fingerprint.hex(),
        )
        perm_server = read_private(stored.perm_server_private)
        return create_rotated(identity.signing, card, certificate_of(core, stored), perm_server.public)

    def _successions(self, _session: Session, _call: bytes, body: AskSuccessions) -> AnswerBody:
        row = self._core.db.client_named(body.name)
        if row is None:
            raise UnknownRecipient("nobody of that name is registered", detail="unknown")
        found = self._core.db.successions(row.uid, body.since, _PAGE_SUCCESSIONS + 1)
        return Successions(found[:_PAGE_SUCCESSIONS], len(found) > _PAGE_SUCCESSIONS)

    def _coordinator(self, _session: Session, _call: bytes, body: AskCoordinator) -> AnswerBody:
        identity = self._core.identity
        steps = [heir_of(each) for each in identity.successions]
        first = steps.index(body.since) + 1 if body.since in steps else 0
        left = identity.successions[first:]
        return CoordinatorNow(
            identity.card, identity.card_signature, list(left[:_PAGE_SUCCESSIONS]), len(left) > _PAGE_SUCCESSIONS
        )

    def _perm_server(self) -> bytes:
        """A permanent server pair for one client alone (claims A8)."""
        pair = self._core.pool.take() or self._core.identity.suite.generate()
        try:
            return pair.encode()
        finally:
            pair.wipe()

    def _transfer_request(self, session: Session, call: bytes, body: TransferRequest) -> None:
        """X1 (Figure 8)."""
        self._transfers.request(session, call, body)

    def _transfer_step(self, session: Session, call: bytes, body: TransferKey | TransferConfirmKey) -> None:
        """X5 (Figure 2, alternate embodiment), or CONFS (Figure 10)."""
        self._transfers.go_on(session, call, body)

    def _transfer_answer(self, session: Session, _call: bytes, body: TransferAnswer) -> AnswerBody:
        """X3, after a person was asked (Figure 9)."""
        return self._transfers.answered(session, body)

    def _transfer_end(self, session: Session, _call: bytes, body: TransferEnd) -> AnswerBody:
        self._transfers.end(session, body)
        return Ok()
