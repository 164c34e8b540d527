"""An invitation: one line of text that lets one newcomer in, once.

``zkc1-`` and base64url of the fields and a checksum over prefix and fields, which every version makes alike: so an
invitation of another version is told from a damaged one. From its secret ``s`` come the pre-shared key of
the registration and the CURVE key with which the newcomer connects; the coordinator keeps the first and the
public half of the second, so whoever steals its table cannot connect.
"""

from __future__ import annotations

import base64
import re
from typing import Final

from zkc.constants import VERSION
from zkc.crypto.primitives import Secret, digest, expand, extract
from zkc.errors import PeerViolation, UsageError, VersionMismatch
from zkc.ids import is_name
from zkc.wire.codec import decode, encode
from zkc.wire.messages import InvitationText

_PREFIX: Final = f"zkc{VERSION}-"
_LINE: Final = re.compile(r"(zkc[0-9]{1,3}-)([A-Za-z0-9_-]+)", re.ASCII)
_CHECKSUM: Final = 8


def format_invitation(invitation: InvitationText) -> str:
    """The one line, without a newline."""
    body = encode(invitation)
    return _PREFIX + base64.urlsafe_b64encode(body + _checksum(_PREFIX, body)).decode().rstrip("=")


def parse_invitation(text: str) -> InvitationText:
    """The invitation in ``text`` (white space around it is ignored).

    `UsageError` (``bad-invite``); `VersionMismatch` for one that is whole, of another version.
    """
    line = text.strip()
    try:
        prefix, body = _opened(line)
        if prefix != _PREFIX:
            raise VersionMismatch(
                f"the invitation is of version {prefix[3:-1]}, and this zkc knows {VERSION}", detail="version",
                hint="upgrade the older of the two",
            )
        invitation: InvitationText = decode(body, InvitationText)
        if format_invitation(invitation) != line or not is_name(invitation.name) or not invitation.endpoints:
            raise ValueError("form")
    except (ValueError, PeerViolation):
        raise UsageError(
            "the invitation is damaged or is none",
            detail="bad-invite",
            hint="copy the whole line that `zkc coordinator invite` printed",
        ) from None
    return invitation


def _opened(line: str) -> tuple[str, bytes]:
    """Prefix and fields of a line whose checksum is right; else `ValueError`."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise ValueError("form")
    raw = base64.b64decode(found[2] + "=" * (-len(found[2]) % 4), altchars=b"-_", validate=True)
    body = raw[:-_CHECKSUM]
    if raw[-_CHECKSUM:] != _checksum(found[1], body):
        raise ValueError("checksum")
    return found[1], body


def invitation_psk(secret: bytes) -> Secret:
    """psk: mixed into the registration's keys at both ends."""
    return Secret(expand(_root(secret), "invite psk", 32))


def invitation_curve_secret(secret: bytes) -> Secret:
    """The newcomer's CURVE secret key, 32 raw bytes."""
    return Secret(expand(_root(secret), "invite curve", 32))


def _root(secret: bytes) -> Secret:
    return extract(b"zkc/1 invite", Secret(secret))


def _checksum(prefix: str, body: bytes) -> bytes:
    return digest(b"zkc invite checksum\0", prefix.encode(), body)[:_CHECKSUM]

