"""Which relays are there, and who may use one: what is configured under ``[relay]``, and who has said that it is one.

A relay is a client like others. It learns under which names two ends will meet, and on whose account; the recipient
learns which relay that is. Neither the coordinator nor the relay gets what the names are made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from zkc.constants import REQUEST_SECONDS
from zkc.coordinator.clients import Clients
from zkc.coordinator.core import Core
from zkc.coordinator.sessions import Session, Silence
from zkc.coordinator.transfers import Transfers
from zkc.errors import PeerViolation, PolicyRefused
from zkc.rules.endpoints import parse_endpoint
from zkc.wire.messages import AnswerBody, Failure, Ok, RelayAt, RelayHere, Rendezvous, WantRelay


@dataclass
class _Relay:
    session: Session
    endpoint: str
    given: int = 0
    """Transfers that it was given."""


class Relays:
    """All of them, in memory: one says again and again that it is there."""

    def __init__(self, core: Core, clients: Clients, transfers: Transfers) -> None:
        self._core = core
        self._clients = clients
        self._transfers = transfers
        self._relays: dict[str, _Relay] = {}

    def announce(self, session: Session, _call: bytes, body: RelayHere) -> AnswerBody:
        """`PolicyRefused` (``not-a-relay``); `UsageError` for what is no endpoint."""
        name = session.client.name
        if name not in self._core.config.relay.clients or session.client.daemon is not session:
            raise PolicyRefused("this client is not named as a relay", detail="not-a-relay")
        parse_endpoint(body.endpoint)
        known = self._relays.get(name)
        if known is None or known.session is not session or known.endpoint != body.endpoint:
            self._relays[name] = _Relay(session, body.endpoint)
            self._core.log.info("relay", name=name, endpoint=body.endpoint)
        return Ok()

    def want(self, session: Session, call: bytes, body: WantRelay) -> None:
        """The recipient of a handshake under way asks. `PolicyRefused` (``unreachable``, ``no-relay``)."""
        ends = self._transfers.ends(body.xid, session)
        if ends is None:
            raise PeerViolation("identity", "a relay for a transfer of somebody else")
        config = self._core.config.relay
        if not config.clients or (config.serves and not ends <= set(config.serves)):
            raise PolicyRefused("no relay is named for these two", detail="unreachable")
        there = {name: relay for name, relay in self._relays.items() if name in config.clients and _is_there(relay)}
        if not there:
            raise PolicyRefused("no relay is there", detail="no-relay")
        name = min(there, key=lambda each: there[each].given)
        relay = there[name]
        relay.given += 1
        told = Rendezvous(body.data, body.acks, session.client.name)
        found = RelayAt(name, relay.endpoint)
        self._clients.ask(relay.session, told, REQUEST_SECONDS, partial(self._on_reply, session, call, found))

    def _on_reply(self, session: Session, call: bytes, found: RelayAt, reply: AnswerBody | Failure | Silence) -> None:
        match reply:
            case Ok():
                self._core.log.info("relayed", relay=found.name, recipient=session.client.name)
                self._core.audit.note("relay", session.client.name, found.name)
                self._clients.answer(session, call, found)
            case Failure(detail="limit"):
                self._core.audit.note("relay", session.client.name, found.name, code=PolicyRefused.code, detail="limit")
                self._clients.fail(session, call, PolicyRefused.code, "limit")
            case _:
                self._clients.fail(session, call, PolicyRefused.code, "no-relay")


def _is_there(relay: _Relay) -> bool:
    session = relay.session
    return session.client.daemon is session and session.wire is not None and not session.ended
