"""What a registered client may ask of the coordinator, each request by one function of one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from zkc.constants import APPLICATION_INVITATIONS_MAX, APPLICATION_INVITE_SECONDS
from zkc.coordinator.clients import Clients, Session
from zkc.coordinator.core import Core, code_of
from zkc.coordinator.invitations import make_invitation
from zkc.coordinator.transfers import Transfers
from zkc.errors import PeerViolation, PolicyRefused, UnknownRecipient, UsageError, ZkcError
from zkc.ids import is_name
from zkc.protocol.calls import Asked
from zkc.stores.keydb import ClientRow
from zkc.wire.messages import (
    AnswerBody,
    Goodbye,
    Heartbeat,
    Invitation,
    InviteApplication,
    Leave,
    ListPeers,
    LookUp,
    Ok,
    Peer,
    PeerCard,
    PeerPage,
    TransferConfirmKey,
    TransferEnd,
    TransferKey,
    TransferRequest,
)

_PAGE_NAMES: Final = 128
"""Names on one page of peers: each entry is at most 200 bytes, the page well below 64 KiB."""


class Services:
    """Answers requests. ``revoked`` is called when a client's own leave has ended its registration."""

    def __init__(
        self, core: Core, clients: Clients, transfers: Transfers, revoked: Callable[[], None]
    ) -> None:
        self._core = core
        self._clients = clients
        self._transfers = transfers
        self._revoked = revoked
        self._handlers: Final[dict[type, Callable[[Session, bytes, Any], AnswerBody | None]]] = {
            Heartbeat: self._heartbeat,
            Goodbye: self._goodbye,
            ListPeers: self._list_peers,
            LookUp: self._look_up,
            InviteApplication: self._invite_application,
            Leave: self._leave,
            TransferRequest: self._transfer_request,
            TransferKey: self._transfer_step,
            TransferConfirmKey: self._transfer_step,
            TransferEnd: self._transfer_end,
        }
        """Request -> what answers it (None: later). What only the coordinator sends is not in it."""

    def on_request(self, session: Session, asked: Asked) -> None:
        """Answers, refuses, or hands on to where it will be answered."""
        handler = self._handlers.get(type(asked.body))
        try:
            if handler is None:
                raise PeerViolation("unexpected", f"{type(asked.body).__name__} is not a client's to ask")
            answer = handler(session, asked.id, asked.body)
        except PeerViolation as violation:
            self._core.violated("request", violation, name=session.client.name, request=type(asked.body).__name__)
            self._clients.fail(session, asked.id, code_of(violation), violation.detail)
        except ZkcError as error:
            if error.code in (1, 33):
                self._core.warn("request.failed", "a request failed", name=session.client.name, why=error.message)
            self._clients.fail(session, asked.id, error.code, error.detail)
        else:
            if answer is not None:
                self._clients.answer(session, asked.id, answer)
                self._after(session, asked.body)

    def _after(self, session: Session, body: Any) -> None:
        """What may happen only once the answer has left."""
        if isinstance(body, Goodbye):
            self._clients.goodbye(session)
        elif isinstance(body, Leave):
            self._core.db.revoke(session.client.name, "left", self._core.clock.wall())
            self._revoked()

    # --- the requests -----------------------------------------------------------------------------------------------

    def _heartbeat(self, _session: Session, _call: bytes, _body: Heartbeat) -> AnswerBody:
        return Ok()

    def _goodbye(self, _session: Session, _call: bytes, _body: Goodbye) -> AnswerBody:
        return Ok()

    def _leave(self, _session: Session, _call: bytes, _body: Leave) -> AnswerBody:
        return Ok()

    def _list_peers(self, _session: Session, _call: bytes, body: ListPeers) -> AnswerBody:
        """A page of live clients by name behind ``after``; at least one of them, or the end."""
        after, more, peers = body.after, True, list[Peer]()
        while more and not peers:
            rows = self._core.db.clients(after, _PAGE_NAMES)
            more = len({row.name for row in rows}) == _PAGE_NAMES
            after = rows[-1].name if rows else after
            peers = [self._peer(row) for row in rows if row.revoked is None]
        return PeerPage(peers, more)

    def _peer(self, row: ClientRow) -> Peer:
        online = self._clients.is_online(row.uid)
        seen = self._core.clock.wall() if online else row.last_seen
        return Peer(row.name, _kind_of(row), online, int(seen), row.fingerprint)

    def _look_up(self, _session: Session, _call: bytes, body: LookUp) -> AnswerBody:
        row = self._core.db.client_named(body.name)
        if row is None:
            raise UnknownRecipient("nobody of that name is registered", detail="unknown")
        return PeerCard(row.card, row.certificate)

    def _invite_application(self, session: Session, _call: bytes, body: InviteApplication) -> AnswerBody:
        """A short-lived invitation for ``owner/app``, vouched for by this channel."""
        core, owner = self._core, session.client
        name = f"{owner.name}/{body.app}"
        if owner.row.kind == "application" or not is_name(name):
            raise UsageError("not the name of an application", detail="bad-name")
        core.db.cancel_invitations(name)
        now = core.clock.wall()
        held = [row for row in core.db.invitations() if row.owner_uid == owner.uid and row.used_by is None]
        for row in held:
            if row.expires <= now:
                core.db.cancel_invitations(row.name)
        if sum(row.expires > now for row in held) >= APPLICATION_INVITATIONS_MAX:
            raise PolicyRefused("too many open invitations", detail="limit")
        row, text = make_invitation(
            core.identity, core.entropy, name, "application", now + APPLICATION_INVITE_SECONDS, core.endpoints,
            owner.uid,
        )
        core.db.add_invitation(row)
        core.log.info("application invited", name=name, owner=owner.name)
        return Invitation(text)

    def _transfer_request(self, session: Session, call: bytes, body: TransferRequest) -> None:
        self._transfers.request(session, call, body)

    def _transfer_step(self, session: Session, call: bytes, body: TransferKey | TransferConfirmKey) -> None:
        self._transfers.go_on(session, call, body)

    def _transfer_end(self, session: Session, _call: bytes, body: TransferEnd) -> AnswerBody:
        self._transfers.end(session, body)
        return Ok()


def _kind_of(row: ClientRow) -> Any:
    return row.kind
