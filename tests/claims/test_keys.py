"""How a key comes to both ends, and what it opens: what the document claims of a key that the coordinator makes
(claims 1 to 57, 110) and of one that the sender makes (58 to 106).

Machines in pairs; each key is opened by hand with the key that the document names, and with every other one.
"""

from __future__ import annotations

from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tests.protocol.test_delivery import WHOLE, C, Delivery, content, sealed_receipt
from tests.support.opening import Form, Handshake, shares
from tests.support.parties import SUITE_NAMES, Client, World, world
from tests.support.talks import HERE, open_channel
from zkc.constants import CHUNK_MIN
from zkc.crypto.cards import verify_card
from zkc.crypto.primitives import Secret
from zkc.errors import PeerViolation
from zkc.ids import Presence
from zkc.protocol import transfer_coordinator as tc
from zkc.protocol import transfer_recipient as tr
from zkc.protocol import transfer_sender as ts
from zkc.protocol.delivery_recipient import receipt_body
from zkc.wire.codec import decode, encode
from zkc.wire.messages import (
    DeliverKey,
    DeliverSessionKey,
    Notify,
    Req,
    Request,
    TransferConfirm,
    TransferGrant,
    TransferKey,
    TransferRequest,
    TransferResponse,
)

RECIPIENT_FIRST: Final[Form] = ("coordinator", "recipient-first")
SENDER_FIRST: Final[Form] = ("coordinator", "sender-first")
SENDER_MADE: Final[Form] = ("sender", "recipient-first")
NAMES: Final = {RECIPIENT_FIRST: "recipient-first", SENDER_FIRST: "sender-first", SENDER_MADE: "sender-made"}

each_suite = pytest.mark.parametrize("suite", SUITE_NAMES)
each_order = pytest.mark.parametrize("form", [RECIPIENT_FIRST, SENDER_FIRST], ids=NAMES.get)
each_form = pytest.mark.parametrize("form", NAMES, ids=NAMES.get)


def carries(shake: Handshake, size: int = C + 5) -> None:
    """What the sender encrypts with its key, the recipient opens with its own; on the way nothing of it is seen."""
    delivery = Delivery.of(shake.sessions).begin().send(content(size))
    assert delivery.complete is not None
    body = receipt_body(shake.sessions[1], WHOLE, size, delivery.complete.digest, 1.0, 2.0)
    delivery.finish(sealed_receipt(body, shake.world.bob.card.encoded))
    assert bytes(delivery.into) == content(size)
    seen = b"".join(delivery.frames)
    assert content(size)[:16] not in seen
    assert b"data.bin" not in seen


def others(everyone: World, but: Client) -> list[Client]:
    clients = (everyone.alice, everyone.bob, everyone.carol, everyone.backup)
    return [client for client in clients if client is not but]


# --- a key of the coordinator's making --------------------------------------------------------------------------------


@pytest.mark.claims("B1", "B3", "B6", 1, 2, 17, 18, 26, 27, 28, 39, 49, 110)
@each_order
@each_suite
def test_one_key_goes_to_each_end_under_its_own_permanent_key_and_carries_the_data(suite: str, form: Form) -> None:
    """On the sender's request; no other client's permanent key opens either, and another key does not open the data."""
    everyone = world(suite)
    shake = Handshake(everyone, form)
    made = shake.talk.sides["coordinator"].context.fresh_key.reveal()
    shake.run()
    (request,) = shake.talk.messages(TransferRequest)
    assert decode(request.request, Req).sender == "alice"
    for end, owner in (("sender", everyone.alice), ("recipient", everyone.bob)):
        assert shake.unwrapped(end, owner) == made
        assert [shake.unwrapped(end, other) for other in others(everyone, owner)] == [None] * 3
    carries(shake)
    stranger = Handshake(everyone, form, serial=2).run().sessions[1]
    with pytest.raises(PeerViolation):
        Delivery.of((shake.sessions[0], stranger)).begin()


@pytest.mark.claims("B3", "D4", 5, 32, 40)
def test_the_sender_gets_the_key_only_once_the_recipient_has_confirmed_its_own() -> None:
    """The confirmation is lost: the recipient has its key, the sender none."""
    shake = Handshake(
        world("hybrid"), RECIPIENT_FIRST,
        and_tap=lambda turn: None if isinstance(turn.message, TransferConfirm) else turn.message,
    ).run()
    assert shake.talk.messages(DeliverSessionKey)
    assert not shake.talk.messages(TransferGrant)
    assert isinstance(shake.talk.state("coordinator"), tc.KeyWithRecipient)


# --- either way -------------------------------------------------------------------------------------------------------


@pytest.mark.claims("B2", "D1", "D4", 4, 20, 31, 32, 40, 62, 86)
@each_form
@pytest.mark.parametrize("answer", ["none", "refusal"])
def test_no_key_leaves_before_the_recipient_has_answered_that_it_is_there(form: Form, answer: str) -> None:
    """Neither to it, nor to the sender, which is not told its public key either."""
    decision = tr.Decline(24, "refused") if answer == "refusal" else None
    silent = answer == "none"
    shake = Handshake(
        world("hybrid"), form, decision=decision,
        and_tap=lambda turn: None if silent and isinstance(turn.message, TransferResponse) else turn.message,
    ).run()
    assert shake.talk.messages(Notify)
    assert not shake.talk.messages(TransferGrant, TransferKey, DeliverKey, DeliverSessionKey)
    assert shake.talk.agreed == (False, False)


LEVELS: Final = ("online", "present", "authorised")


@pytest.mark.claims("D2", "D3", "D4", 12, 13, 34, 35, 41, 42, 63, 64, 87, 88)
@each_form
@pytest.mark.parametrize("required", LEVELS[1:])
@pytest.mark.parametrize("stated", LEVELS)
def test_a_key_means_that_the_person_is_there_or_authorised_where_that_was_asked_for(
    form: Form, required: Presence, stated: Presence
) -> None:
    """Below the level that the sender asked for no key leaves for either end; at it or above, both get one."""
    decision = tr.Accept(HERE, CHUNK_MIN, 0, presence=stated)
    shake = Handshake(world("hybrid"), form, presence=required, decision=decision).run()
    met = LEVELS.index(stated) >= LEVELS.index(required)
    assert shake.talk.agreed == (met, met)
    assert bool(shake.talk.messages(TransferGrant, TransferKey, DeliverKey, DeliverSessionKey)) is met
    if met:
        assert shake.sessions[0].resp.presence == stated
    else:
        assert shake.talk.failure == tc.FailSender(22 if required == "present" else 23, "")


@pytest.mark.claims("A10", "B6", "C4", 6, 7, 21, 22, 33, 44, 51, 73, 78, 97, 102)
@each_form
def test_every_request_gets_another_key_under_the_same_permanent_keys(form: Form) -> None:
    """What the permanent keys of both ends open differs each time, and so does the key that the data is under."""
    everyone = world("hybrid")
    opened: set[bytes | None] = set()
    agreed: set[bytes] = set()
    for serial in range(3):
        shake = Handshake(everyone, form, serial)
        if form[0] == "coordinator":
            # As the coordinator draws it; that it draws a new one is shown where it runs.
            object.__setattr__(shake.talk.sides["coordinator"].context, "fresh_key", Secret(bytes([serial]) * 32))
            shake.run()
            assert shake.unwrapped("sender", everyone.alice) == shake.unwrapped("recipient", everyone.bob)
            opened.add(shake.unwrapped("recipient", everyone.bob))
        else:
            shake.run()
            opened.add(shares(everyone.bob.kem_key, "xfer-perm", shake.th, shake.key.ct1))
        agreed.add(shake.sessions[0].k.reveal())
    assert None not in opened
    assert len(opened) == len(agreed) == 3


@pytest.mark.claims("B1", "B2", "C2", "C4", 3, 19, 52, 71, 79, 95, 103)
@each_suite
def test_what_goes_to_the_coordinator_is_under_its_permanent_key_for_that_client_and_back_likewise(suite: str) -> None:
    """Request, key and notification, with the sender named in it, as the records of a channel: nothing of them is seen,
    and who lacks one of the four permanent keys opens none."""
    everyone = world(suite)
    shake = Handshake(everyone, SENDER_MADE).run()
    alice, bob = everyone.alice, everyone.bob
    (request,), (key,), (notify,) = (shake.talk.messages(kind) for kind in (TransferRequest, TransferKey, Notify))
    up, at_coordinator = open_channel(alice.client_keys, alice.peer_keys)
    at_bob, down = open_channel(bob.client_keys, bob.peer_keys)
    for ours, theirs, message in (
        (up, at_coordinator, request), (up, at_coordinator, key), (down, at_bob, notify)
    ):
        plain = encode(Request(bytes(16), message))
        record = ours.seal(plain)
        assert plain[20:60] not in record
        with pytest.raises(PeerViolation):
            open_channel(everyone.carol.client_keys, everyone.carol.peer_keys)[1].open(record)
        assert theirs.open(record) == plain
    assert verify_card(notify.card, everyone.suite).name == decode(notify.request, Req).sender == "alice"
    for client, server in ((alice.client_keys, bob.peer_keys), (bob.client_keys, alice.peer_keys)):
        with pytest.raises(PeerViolation):
            open_channel(client, server)


# --- a key of the sender's making -------------------------------------------------------------------------------------


@pytest.mark.claims("C1", "C2", "C3", 58, 59, 60, 68, 69, 70, 76, 77, 82, 83, 84, 92, 93, 94, 100, 101, 106)
@each_suite
def test_the_sender_seals_a_key_to_the_recipients_public_key_and_the_coordinator_passes_it_on(suite: str) -> None:
    """The key that the coordinator handed out on request; what the sender made of it passes byte for byte and opens
    with the recipient's private keys alone, not with any that the coordinator has; data flows under it."""
    everyone = world(suite)
    shake = Handshake(everyone, SENDER_MADE).run()
    kinds = [type(message) for message in shake.talk.messages(object)]
    assert kinds.index(TransferRequest) < kinds.index(TransferGrant) < kinds.index(TransferKey)
    (grant,), (key,), (delivered,) = (shake.talk.messages(kind) for kind in (TransferGrant, TransferKey, DeliverKey))
    assert verify_card(grant.card, everyone.suite).kem_key == everyone.bob.kem_key.public
    assert (delivered.key, delivered.signature) == (key.key, key.signature)
    bystanders = others(everyone, everyone.bob)
    keys = [everyone.coordinator.general_key, *(client.perm_server for client in [everyone.bob, *bystanders])]
    keys += [client.kem_key for client in bystanders]
    for right, label, ct in (
        (everyone.bob.kem_key, "xfer-perm", shake.key.ct1), (shake.one_time["recipient"], "xfer-eph", shake.key.ct2)
    ):
        assert shares(right, label, shake.th, ct) is not None
        assert [shares(wrong, label, shake.th, ct) for wrong in keys] == [None] * len(keys)
    carries(shake)


@pytest.mark.claims("C3", 58, 59, 68, 76, 83, 92)
def test_the_sender_has_no_key_to_send_under_before_it_is_told_that_the_recipient_has_it() -> None:
    """The recipient holds it and has said so; until the coordinator tells the sender, that one can send nothing."""
    shake = Handshake(
        world("hybrid"), SENDER_MADE,
        and_tap=lambda turn: (
            None if isinstance(turn.message, TransferConfirm) and turn.to == "sender" else turn.message
        ),
    ).run()
    assert len(shake.talk.messages(TransferConfirm)) == 2
    assert shake.talk.agreed == (False, True)
    assert isinstance(shake.talk.state("sender"), ts.KeySent)


# --- algorithms -------------------------------------------------------------------------------------------------------

BY: Final = {"coordinator": (15, 24, 37, 45, 53), "sender": (66, 74, 80, 90, 98, 104)}
"""Claims of the algorithms, by who makes the session key."""


@pytest.mark.parametrize("suite", ["rsa", "x25519"])
@pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks=pytest.mark.claims("E1", *BY[form[0]]), id=name) for form, name in NAMES.items()],
)
def test_the_keys_that_a_transfer_rests_on_are_rsa_or_diffie_hellman(form: Form, suite: str) -> None:
    """All permanent keys of both ends and of the coordinator; the session key opens with them, and data flows."""
    everyone = world(suite)
    for client in (everyone.alice, everyone.bob):
        for public in (client.kem_key.public, client.perm_server.public):
            if suite == "rsa":
                key = load_der_public_key(public.raw)
                assert isinstance(key, RSAPublicKey)
                assert key.key_size >= 3072
            else:
                assert len(X25519PublicKey.from_public_bytes(public.raw).public_bytes_raw()) == len(public.raw)
    shake = Handshake(everyone, form).run()
    if form[0] == "coordinator":
        assert shake.unwrapped("sender", everyone.alice) == shake.unwrapped("recipient", everyone.bob) is not None
    else:
        assert shares(everyone.bob.kem_key, "xfer-perm", shake.th, shake.key.ct1) is not None
    carries(shake)
