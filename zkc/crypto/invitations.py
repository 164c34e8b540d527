"""An invitation: one line of text that lets one newcomer in, once.

``zkc1-`` and base64url of the fields and a checksum over them. From its secret ``s`` come the pre-shared key of
the registration and the CURVE key with which the newcomer connects; the coordinator keeps the first and the
public half of the second, so whoever steals its table cannot connect.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from zkc.crypto.primitives import Secret, digest, expand, extract
from zkc.errors import PeerViolation, UsageError
from zkc.ids import is_name
from zkc.wire.codec import decode, encode
from zkc.wire.messages import InvitationText

_PREFIX: Final = "zkc1-"
_CHECKSUM: Final = 8


def format_invitation(invitation: InvitationText) -> str:
    """The one line, without a newline."""
    body = encode(invitation)
    return _PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")


def parse_invitation(text: str) -> InvitationText:
    """The invitation in ``text`` (white space around it is ignored); `UsageError` (``bad-invite``)."""
    line = text.strip()
    try:
        if not line.startswith(_PREFIX):
            raise ValueError("prefix")
        coded = line[len(_PREFIX) :].encode("ascii")
        raw = base64.b64decode(coded + b"=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        body = raw[:-_CHECKSUM]
        if raw[-_CHECKSUM:] != _checksum(body):
            raise ValueError("checksum")
        invitation: InvitationText = decode(body, InvitationText)
        if format_invitation(invitation) != line or not is_name(invitation.name) or not invitation.endpoints:
            raise ValueError("form")
    except (ValueError, binascii.Error, PeerViolation):
        raise UsageError(
            "the invitation is damaged or is none",
            detail="bad-invite",
            hint="copy the whole line that `zkc coordinator invite` printed",
        ) from None
    return invitation


def invitation_psk(secret: bytes) -> Secret:
    """psk: mixed into the registration's keys at both ends."""
    return Secret(expand(_root(secret), "invite psk", 32))


def invitation_curve_secret(secret: bytes) -> Secret:
    """The newcomer's CURVE secret key, 32 raw bytes."""
    return Secret(expand(_root(secret), "invite curve", 32))


def _root(secret: bytes) -> Secret:
    return extract(b"zkc/1 invite", Secret(secret))


def _checksum(body: bytes) -> bytes:
    return digest(b"zkc/1 invite checksum\0", body)[:_CHECKSUM]

