"""Questions to the coordinator that have one answer; ``request`` is `Link.request` or alike, and raises as that."""

from __future__ import annotations

from typing import Any

from zkc.errors import InternalError, ZkcError
from zkc.wire.messages import (
    Invitation,
    InviteApplication,
    ListPeers,
    LookAt,
    Peer,
    PeerPage,
    PeerSeen,
)


async def all_peers(request: Any) -> list[Peer]:
    """Every page of the coordinator's list."""
    peers: list[Peer] = []
    while True:
        page = await request(ListPeers(peers[-1].name if peers else ""))
        if not isinstance(page, PeerPage):
            raise _unexpected(page)
        peers += page.peers
        if not page.more or not page.peers:
            return peers


async def seen(request: Any, name: str) -> Peer:
    """What the coordinator knows of ``name`` now."""
    answer = await request(LookAt(name), about=name)
    if not isinstance(answer, PeerSeen):
        raise _unexpected(answer)
    return answer.peer


async def application_invitation(request: Any, app: str) -> str:
    """The text of an invitation for an application of the one who asks."""
    answer = await request(InviteApplication(app))
    if not isinstance(answer, Invitation):
        raise _unexpected(answer)
    return answer.text


def _unexpected(reply: object) -> ZkcError:
    return InternalError(f"the coordinator answered with {type(reply).__name__}", detail="unexpected")
