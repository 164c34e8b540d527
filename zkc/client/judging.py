"""What a recipient says of a transfer once its manifest tells name and size: before a byte of content."""

from __future__ import annotations

from zkc.client.consent import Consent
from zkc.errors import PolicyRefused
from zkc.protocol.session import Session, is_as_shown
from zkc.rules.policy import Asked, Rules, Standing, judge_again
from zkc.wire.messages import Manifest


def check_manifest(manifest: Manifest, session: Session, rules: Rules, wall: float, consent: Consent) -> None:
    """Own policy, with all that is known now, and what a person has seen. ``wall``: seconds since 1970.

    `PolicyRefused` (``not-as-shown``, ``rule``), `Refused` (``nobody-asked``); `NobodyThere`, `NotAuthorised` (same).
    """
    if consent.shown is not None and not is_as_shown(manifest, consent.shown):
        raise PolicyRefused("it is not what the person here was shown before he accepted", detail="not-as-shown")
    req = session.req
    asked = Asked(
        req.key_source, req.cipher, manifest.size or 0, manifest.size, req.sender, req.recipient, manifest.name
    )
    if consent.given:
        rules = rules._replace(accept="all")  # which spoke before he was asked
    standing = Standing(wall=wall, presence=session.resp.presence)
    refusal = judge_again(asked, rules, standing, agreed=consent.given)
    if refusal is not None:
        raise refusal.error()
