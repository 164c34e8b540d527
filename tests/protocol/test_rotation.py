"""ROT1, ROT2: a registered client's next keys, and whose they may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from tests.support.link import flipped, places
from tests.support.parties import WALL, Client, World, identity_of
from tests.support.talks import TransferTalk, terms
from zkc.crypto.cards import certify, make_card, verify_card
from zkc.crypto.primitives import digest
from zkc.crypto.signing import IdentityKey
from zkc.errors import PeerViolation
from zkc.ids import KeyOrder, KeySource
from zkc.protocol.rotation import (
    Renewal,
    consume_rotate,
    consume_rotated,
    create_rotate,
    create_rotated,
    next_card,
)
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Rotate, Rotated

CURVE = b"c" * 32


def renewal_of(world: World, client: Client, *, identity: IdentityKey | None = None, card: bytes = b"") -> Renewal:
    """What ``client`` would ask for next."""
    kem_key = world.suite.generate()
    owner = identity_of("bob") if client.kind == "application" else None
    made = card or next_card(client.card, client.identity, kem_key.public, int(WALL), owner)
    return Renewal(identity or client.identity, verify_card(made, world.suite), kem_key, CURVE)


def answer_to(world: World, client: Client, message: Rotate) -> Rotated:
    """What the coordinator says, and with which new key of its own."""
    authority = world.coordinator.authority
    card = consume_rotate(client.card, authority, decode(encode(message), Rotate))
    certificate = certify(world.coordinator.identity, card.name, client.uid, card.hash, card.body.epoch)
    return create_rotated(world.coordinator.identity, card, certificate, world.suite.generate().public)


def refused(function: Callable[[], object]) -> str:
    with pytest.raises(PeerViolation) as caught:
        function()
    return caught.value.detail


def test_a_client_has_the_next_card_and_a_new_server_key(each_world: World) -> None:
    for client in (each_world.alice, each_world.carol, each_world.backup):
        renewal = renewal_of(each_world, client)
        answer = answer_to(each_world, client, create_rotate(renewal))
        key = consume_rotated(each_world.coordinator.authority, renewal, decode(encode(answer), Rotated))
        assert each_world.suite.read_public(key)
        assert renewal.card.body.epoch == client.card.body.epoch + 1
        assert renewal.card.fingerprint == client.fingerprint


def test_the_present_card_once_more_is_no_new_one(default_world: World) -> None:
    """ROT2 was lost: what the coordinator holds by now is what it is asked for."""
    alice, authority = default_world.alice, default_world.coordinator.authority
    renewal = renewal_of(default_world, alice)
    assert consume_rotate(renewal.card, authority, create_rotate(renewal)) == renewal.card


@pytest.mark.attack("K08", "H11")
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_only_the_next_epoch_follows(default_world: World, epoch: int) -> None:
    alice = default_world.alice
    other = make_card(
        name="alice", kind="computer", uid=alice.uid, identity=alice.identity,
        kem_key=default_world.suite.generate().public, epoch=epoch, not_after=int(WALL),
    )
    message = create_rotate(renewal_of(default_world, alice, card=other))
    assert refused(lambda: answer_to(default_world, alice, message)) == "epoch"


def test_the_channels_keys_without_the_identity_renew_nothing(default_world: World) -> None:
    """A thief of KEM and CURVE keys has the channel, and no card to offer: not his own, not another client's."""
    alice, bob = default_world.alice, default_world.bob
    own = make_card(
        name="alice", kind="computer", uid=alice.uid, identity=identity_of("thief"),
        kem_key=default_world.suite.generate().public, epoch=2, not_after=int(WALL),
    )
    thief = renewal_of(default_world, alice, identity=identity_of("thief"), card=own)
    for renewal in (thief, renewal_of(default_world, bob)):
        message = create_rotate(renewal)
        assert refused(lambda message=message: answer_to(default_world, alice, message)) == "identity"
    # Nor does he put a CURVE key of his own beside a card of hers.
    hers = create_rotate(renewal_of(default_world, alice))
    for curve_key, detail in ((b"t" * 32, "forged"), (b"", "forged"), (b"t" * 31, "malformed")):
        stolen = structs.replace(hers, curve_key=curve_key)
        assert refused(lambda stolen=stolen: answer_to(default_world, alice, stolen)) == detail


def test_a_damaged_rot1_or_rot2_is_refused(default_world: World) -> None:
    alice, authority = default_world.alice, default_world.coordinator.authority
    renewal = renewal_of(default_world, alice)
    asked = create_rotate(renewal)
    answered = answer_to(default_world, alice, asked)

    def tried(message: Any, place: int) -> None:
        read = decode(flipped(encode(message), place, 1 << place % 8), type(message))
        if isinstance(read, Rotated):
            consume_rotated(authority, renewal, read)
        else:
            consume_rotate(alice.card, authority, read)

    for message in (asked, answered):
        for place in places(0, len(encode(message)), 60):
            refused(lambda message=message, place=place: tried(message, place))


def test_a_server_key_of_another_epoch_or_coordinator_is_refused(default_world: World) -> None:
    """Who holds the coordinator's database, and not its identity, puts no key of his own into the client's hands."""
    alice, coordinator = default_world.alice, default_world.coordinator
    renewal, thief = renewal_of(default_world, alice), identity_of("thief")
    certificate = certify(coordinator.identity, "alice", alice.uid, renewal.card.hash, 2)
    good = create_rotated(coordinator.identity, renewal.card, certificate, default_world.suite.generate().public)
    older = structs.replace(renewal.card, body=structs.replace(renewal.card.body, epoch=1))
    for bad in (
        create_rotated(thief, renewal.card, certificate, default_world.suite.generate().public),
        create_rotated(coordinator.identity, older, certificate, default_world.suite.generate().public),
        structs.replace(good, certificate=certify(thief, "alice", alice.uid, renewal.card.hash, 2)),
        structs.replace(good, certificate=certify(coordinator.identity, "alice", alice.uid, digest(b""), 2)),
    ):
        assert refused(lambda bad=bad: consume_rotated(coordinator.authority, renewal, bad)) == "forged"
    consume_rotated(coordinator.authority, renewal, good)


@pytest.mark.parametrize("rotating", ["sender", "recipient"])
@pytest.mark.parametrize(
    ("key_source", "key_order"),
    [("sender", "recipient-first"), ("coordinator", "recipient-first"), ("coordinator", "sender-first")],
)
def test_an_end_that_has_not_heard_of_its_new_keys_is_shown_with_the_former_card(
    default_world: World, rotating: str, key_source: KeySource, key_order: KeyOrder
) -> None:
    """ROT2 is on its way, or was lost: the coordinator has the next card already. No alarm comes of it."""
    world, broker = default_world, default_world.broker()
    for end, client in (("sender", world.alice), ("recipient", world.bob)):
        former = replace(client.party, card_hash=client.card.hash)
        renewal = renewal_of(world, client)
        party = replace(
            former, card=renewal.card.encoded, card_hash=renewal.card.hash, kem_key=renewal.kem_key.public,
            certificate=b"next", former=former,
        )
        broker = replace(broker, **{end: party if end == rotating else former})
    asked = terms("bob", key_source=key_source, key_order=key_order)
    talk = TransferTalk(world.alice.sender(), broker, world.bob.recipient(), asked)
    talk.run()
    assert talk.agreed == (True, True)
    sender, recipient = talk.sessions
    assert sender.k.reveal() == recipient.k.reveal()
