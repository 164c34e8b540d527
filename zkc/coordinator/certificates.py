"""Certificates of the identity that the coordinator has now, for cards that were certified under another one."""

from __future__ import annotations

from zkc.coordinator.core import Core
from zkc.crypto.cards import certify, verify_certificate
from zkc.errors import PeerViolation
from zkc.stores.keydb import ClientRow
from zkc.wire.codec import decode
from zkc.wire.messages import Card, CardBody


def certificate_of(core: Core, row: ClientRow) -> bytes:
    """The certificate of the row's card, made anew, and kept, where the present identity did not make it.

    One by one, when they are asked for: so a new identity is one file in the place of another, and never half there.
    """
    identity = core.identity
    if identity.epoch == 1:
        return row.certificate
    body: CardBody = decode(decode(row.card, Card).body, CardBody)
    try:
        verify_certificate(
            identity.signing.public, row.certificate, row.name, row.uid, row.card_hash, body.epoch
        )
    except PeerViolation:
        made = certify(identity.signing, row.name, row.uid, row.card_hash, body.epoch)
        core.db.recertify(row.uid, row.card_hash, made)
        return made
    return row.certificate
