"""What a person here said to a transfer."""

from __future__ import annotations

from msgspec import Struct

from zkc.wire.messages import Preview


class Consent(Struct, frozen=True):
    """Whether a person was asked about a transfer and accepted it, and what he was shown then."""

    given: bool = False
    shown: Preview | None = None
    """None: by whom it is, and nothing else."""
