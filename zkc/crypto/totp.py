"""One-time codes by the clock (RFC 6238, as authenticator apps have them: SHA-1, 6 digits, 30 s)."""

from __future__ import annotations

import base64
import hmac
from typing import Final
from urllib.parse import quote, urlencode

SECRET_BYTES: Final = 20
"""RFC 4226, section 4, R6: as long as what the hash gives."""
_DIGITS: Final = 6
_STEP_SECONDS: Final = 30
_STEPS_OFF: Final = 1
"""How many steps the two clocks may differ by (RFC 6238, section 5.2)."""


def code_at(secret: bytes, step: int) -> str:
    """The code of the ``step``th half minute since 1970."""
    from cryptography.hazmat.primitives.hashes import SHA1  # noqa: PLC0415 - a daemon starts without it
    from cryptography.hazmat.primitives.twofactor.totp import TOTP  # noqa: PLC0415

    return TOTP(secret, _DIGITS, SHA1(), _STEP_SECONDS).generate(step * _STEP_SECONDS).decode()  # noqa: S303


def step_of(secret: bytes, code: str, now: float, used: int) -> int | None:
    """Which half minute ``code`` is of, if it is of about now and none up to ``used`` has been taken; else None.

    A code counts once: whoever has looked over the person's shoulder has nothing (RFC 6238, section 5.2).
    """
    current = int(now // _STEP_SECONDS)
    found = None
    for step in range(current - _STEPS_OFF, current + _STEPS_OFF + 1):
        if hmac.compare_digest(code_at(secret, step).encode(), code.encode(errors="replace")) and step > used:
            found = step
    return found




def uri(secret: bytes, account: str) -> str:
    """What an authenticator app reads from a picture."""
    words = {"secret": base64.b32encode(secret).decode().rstrip("="), "issuer": "zkc"}
    return f"otpauth://totp/zkc:{quote(account, safe='')}?{urlencode(words)}"
