"""A new identity in the place of another: by the word of both, in order, or it is an alarm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from msgspec import structs

from tests.support.link import flipped, places
from tests.support.parties import WALL, World, identity_of
from zkc.constants import SUCCESSIONS_MAX
from zkc.crypto.cards import VerifiedCard, make_card, verify_card
from zkc.crypto.successions import heir_of, make_succession, verify_succession
from zkc.errors import PeerViolation
from zkc.protocol.rotation import Renewal, consume_rotate, create_rotate, next_card
from zkc.protocol.trust import KeyChanged, Known, OwnerChanged, follow, judge_peer
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Rotate, Succession


def identity(number: int) -> str:
    """The identity that bob has at ``number``; he begins with 0."""
    return f"bob {number}" if number else "bob"


def card_of(world: World, number: int, epoch: int, name: str = "bob") -> VerifiedCard:
    return verify_card(
        make_card(
            name=name, kind="computer", uid=world.bob.uid, identity=identity_of(identity(number)),
            kem_key=world.bob.kem_key.public, epoch=epoch, not_after=int(WALL),
        ),
        world.suite,
    )


def step_to(number: int, *, epoch: int = 0, name: str = "bob") -> bytes:
    """From the identity before ``number`` to it."""
    return make_succession(
        name, identity_of(identity(number - 1)), identity_of(identity(number)), epoch or number + 1
    )


def leads(world: World, chain: Sequence[bytes], *, to: int, epoch: int = 40) -> bool:
    try:
        follow(world.bob.card, card_of(world, to, epoch), chain)
    except KeyChanged as changed:
        assert (changed.code, changed.detail) == (12, "identity")
        return False
    return True


@pytest.mark.attack("H13")
def test_a_peer_follows_any_number_of_successions_up_to_a_bound(default_world: World) -> None:
    """One that slept through two, and through sixteen; beyond that a person has to look."""
    chain = [step_to(number) for number in range(1, SUCCESSIONS_MAX + 2)]
    for count in (1, 2, SUCCESSIONS_MAX):
        assert leads(default_world, chain[:count], to=count)
    assert not leads(default_world, chain, to=SUCCESSIONS_MAX + 1)
    behind = follow(default_world.bob.card, card_of(default_world, 2, 3), chain[:2])
    assert behind == (default_world.bob.fingerprint, identity_of(identity(1)).public.fingerprint)


@pytest.mark.attack("H13", "H02")
def test_what_the_pinned_key_did_not_sign_is_an_alarm(default_world: World) -> None:
    """The new key alone; no word; a chain that begins elsewhere, has a gap, ends elsewhere, or is out of order."""
    thief = identity_of("thief")
    genuine: Succession = decode(step_to(1), Succession)
    by_new_alone = encode(structs.replace(genuine, former_signature=genuine.signature))
    by_old_alone = encode(structs.replace(genuine, signature=genuine.former_signature))
    for chain, to in (
        ([], 1), ([by_new_alone], 1), ([by_old_alone], 1), ([step_to(2)], 2), ([step_to(1)], 2),
        ([step_to(1), step_to(2)], 1),
        ([step_to(1, epoch=5), step_to(2, epoch=5)], 2), ([step_to(1, epoch=41)], 1), ([step_to(1, name="carol")], 1),
        ([make_succession("bob", thief, identity_of(identity(1)), 2)], 1), ([b""], 1), ([step_to(1) + b"\0"], 1),
    ):  # fmt: skip
        assert not leads(default_world, chain, to=to)
    assert leads(default_world, [step_to(1), step_to(2)], to=2)


@pytest.mark.attack("H13", "P01")
def test_a_damaged_succession_leads_nowhere(default_world: World) -> None:
    good = step_to(1)
    assert heir_of(good) == identity_of(identity(1)).public.fingerprint
    for place in places(0, len(good), 60):
        with pytest.raises(PeerViolation):
            verify_succession(default_world.bob.identity.public, flipped(good, place, 1 << place % 8), "bob")


@pytest.mark.attack("H13")
def test_the_coordinator_takes_a_new_identity_with_the_word_of_the_present_one_alone(default_world: World) -> None:
    bob, authority = default_world.bob, default_world.coordinator.authority
    new, kem_key = identity_of(identity(1)), default_world.suite.generate()
    card = verify_card(next_card(bob.card, new, kem_key.public, int(WALL), None), default_world.suite)
    renewal = Renewal(new, card, kem_key, b"c" * 32, step_to(1))
    good = create_rotate(renewal)
    assert consume_rotate(bob.card, authority, decode(encode(good), Rotate)) == card
    genuine: Succession = decode(renewal.succession, Succession)
    for bad in (
        b"", step_to(2), step_to(1, epoch=3), make_succession("bob", identity_of("thief"), new, 2),
        encode(structs.replace(genuine, former_signature=genuine.signature)),
    ):
        with pytest.raises(PeerViolation) as caught:
            consume_rotate(bob.card, authority, create_rotate(replace(renewal, succession=bad)))
        assert caught.value.detail in {"identity", "forged"}


@pytest.mark.claims("A9")
def test_an_application_that_is_pinned_may_wait_for_its_owners_new_word_and_a_new_one_may_not(
    default_world: World,
) -> None:
    """A stolen identity that was left behind vouches for nobody."""
    backup, bob = default_world.backup, default_world.bob
    moved = Known(owner_fingerprint=b"n" * 32, owner_former=(bob.fingerprint,))
    judge_peer(backup.card, structs.replace(moved, fingerprint=backup.fingerprint), None)
    with pytest.raises(OwnerChanged):
        judge_peer(backup.card, moved, None)
    with pytest.raises(OwnerChanged):
        judge_peer(backup.card, structs.replace(moved, fingerprint=backup.fingerprint, owner_former=()), None)
