"""What a recipient's own policy says of a transfer, once its name and size are known."""

from __future__ import annotations

from zkc.rules.policy import Asked, Refusal, Rules, Standing, judge_again
from zkc.wire.messages import Manifest, Req


def refused_by_manifest(manifest: Manifest, req: Req, rules: Rules, wall: float) -> Refusal | None:
    """What own policy says now that name and size are known, before a byte of content."""
    asked = Asked(
        req.key_source, req.cipher, manifest.size or 0, manifest.size, req.sender, req.recipient, manifest.name
    )
    return judge_again(asked, rules, Standing(wall=wall, presence="online"))
