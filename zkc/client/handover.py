"""A handshake that the daemon makes for a command: how it is asked for, and how what comes of it goes over the control
socket.

K of a granted transfer is handed over: the socket is the owner's alone, and the daemon keeps no copy.
"""

from __future__ import annotations

from zkc.client.control import AcceptReply, AskGrant, ControlReply, GrantReply, HaveReply
from zkc.client.events import WouldAccept
from zkc.client.grants import Grant, Have, Wanted
from zkc.crypto.cards import verify_card
from zkc.crypto.primitives import Secret
from zkc.crypto.suites import read_private, suite_named
from zkc.errors import PeerViolation
from zkc.protocol.session import Session
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Endpoints, Req, Resp


def ask_grant(wanted: Wanted, within: float | None) -> AskGrant:
    return AskGrant(
        wanted.tid, wanted.recipient, wanted.key_source, wanted.key_order, wanted.cipher, wanted.size_class,
        wanted.dry_run, wanted.reach, wanted.fresh, wanted.compression, wanted.acknowledgement, wanted.can_listen,
        wanted.presence, wanted.wait, wanted.preview, within,
    )


def wanted_of(ask: AskGrant) -> Wanted:
    """What a command asked for."""
    return Wanted(
        ask.tid, ask.recipient, ask.key_source, ask.key_order, ask.cipher, ask.size_class, ask.dry_run, ask.reach,
        ask.fresh, ask.compression, ask.acknowledgement, ask.can_listen, ask.presence, ask.wait, ask.preview,
    )


def reply_of(grant: Grant, suite: str) -> GrantReply | HaveReply | AcceptReply:
    """A grant on its way to the process that owns the bytes; our K is wiped."""
    if isinstance(grant, WouldAccept):
        return AcceptReply(grant.presence, grant.asks, list(grant.places))
    if isinstance(grant, Have):
        return HaveReply(
            grant.fingerprint, grant.ed25519, grant.ml_dsa, grant.receipt, grant.own_fingerprint
        )
    reply = GrantReply(
        grant.k.reveal(), grant.th, encode(grant.req), encode(grant.resp), suite, grant.peer.encoded,
        grant.own_fingerprint, encode(grant.endpoints or Endpoints([], 0, 0, 0, "", b"")),
        grant.opener.encode() if grant.opener else b"",
    )
    grant.k.wipe()
    return reply


def grant_of(reply: ControlReply) -> Grant:
    """The grant in the daemon's reply."""
    if isinstance(reply, AcceptReply):
        return WouldAccept(reply.presence, reply.asks, tuple(reply.places))
    if isinstance(reply, HaveReply):
        return Have(reply.fingerprint, reply.ed25519, reply.ml_dsa, reply.receipt, reply.own_fingerprint)
    if not isinstance(reply, GrantReply):
        raise PeerViolation("unexpected", type(reply).__name__)
    return Session(
        Secret(reply.k), reply.th, decode(reply.req, Req), decode(reply.resp, Resp),
        verify_card(reply.card, suite_named(reply.suite)), reply.own_fingerprint, decode(reply.endpoints, Endpoints),
        read_private(reply.opener) if reply.opener else None,
    )
