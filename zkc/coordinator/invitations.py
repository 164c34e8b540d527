"""Making an invitation: its row in the key database, and the one line that the newcomer gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from zkc.constants import ID_BYTES
from zkc.coordinator.identity import CoordinatorIdentity
from zkc.crypto.invitations import format_invitation, invitation_curve_secret, invitation_psk
from zkc.env import Entropy
from zkc.ids import Kind
from zkc.net.addresses import host_addresses
from zkc.net.sockets import curve_public, split_endpoint, tcp_endpoint, to_raw, to_z85
from zkc.stores.keydb import InvitationRow
from zkc.wire.messages import InvitationText

_SECRET_BYTES: Final = 16
_ENDPOINTS_MAX: Final = 32
_WILDCARDS: Final = {"*": (4, 6), "::": (4, 6), "0.0.0.0": (4,)}  # noqa: S104  (what is replaced, not what is bound)


def make_invitation(
    identity: CoordinatorIdentity, entropy: Entropy, name: str, kind: Kind, expires: float, endpoints: Sequence[str],
    owner_uid: bytes | None = None,
) -> tuple[InvitationRow, str]:
    """A new invitation that can be used until ``expires`` (seconds since 1970): the row to store, and its text."""
    secret = entropy.bytes(_SECRET_BYTES)
    invite_id = entropy.bytes(ID_BYTES)
    psk = invitation_psk(secret).reveal()
    public = to_raw(curve_public(to_z85(invitation_curve_secret(secret).reveal())))
    row = InvitationRow(invite_id, name, kind, psk, public, expires, owner_uid)
    text = InvitationText(
        list(endpoints), identity.fingerprint, identity.curve_public, identity.suite.name, invite_id, name, kind, secret
    )
    return row, format_invitation(text)


def advertised(endpoints: Iterable[str]) -> tuple[str, ...]:
    """Where a newcomer may reach ``endpoints``: a wildcard is every address of this host, loopback last."""
    found: list[str] = []
    for endpoint in endpoints:
        host, port = split_endpoint(endpoint)
        families = _WILDCARDS.get(host)
        hosts = [host] if families is None else [a for a in host_addresses() if (6 if ":" in a else 4) in families]
        found += [tcp_endpoint(each, port) for each in hosts]
    return tuple(dict.fromkeys(found))[:_ENDPOINTS_MAX]
