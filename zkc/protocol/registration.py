"""What both ends of a registration have: the MACs of its messages (Figures 1, 4 to 7, 11, 12)."""

from __future__ import annotations

from zkc.crypto.primitives import Secret, digest, expand, mac
from zkc.crypto.transcript import Transcript


def message_mac(secret: Secret, label: str, th: Transcript) -> bytes:
    """MAC of the message that ends at ``th``, by the key ``label`` of ``secret``: the invitation's psk, or a PRK."""
    return mac(expand(secret, label, 32), th.value)


def error_mac(psk: Secret, answered: bytes, code: int, detail: str) -> bytes:
    """MAC of `RegError`: over the message it answers, so that no older error can be played back."""
    return mac(expand(psk, "reg mac", 32), b"zkc/1 reg error\0", digest(answered), bytes((code,)), detail.encode())
