"""Which card is the one that a name should have, and which alarm says why it is not."""

from __future__ import annotations

import msgspec
import pytest

from tests.support.link import flipped, places, sampled
from tests.support.parties import WALL, Client, World, coordinator_of, identity_of
from zkc.constants import CARD_GRACE_SECONDS
from zkc.crypto.cards import VerifiedCard, certify, make_card, verify_card
from zkc.crypto.signing import IdentityKey
from zkc.errors import IdentityError
from zkc.ids import Kind
from zkc.protocol.trust import Authority, Known, judge_peer, verify_peer


def alarm(name: str, card: bytes, certificate: bytes, authority: Authority) -> IdentityError:
    """With what `verify_peer` refuses."""
    with pytest.raises(IdentityError) as caught:
        verify_peer(authority, name, card, certificate)
    assert caught.value.code == 12
    return caught.value


def judged(card: VerifiedCard, known: Known, now: float | None = None) -> IdentityError:
    with pytest.raises(IdentityError) as caught:
        judge_peer(card, known, now)
    assert caught.value.code == 12
    return caught.value


def card_of(
    world: World,
    name: str,
    identity: IdentityKey,
    *,
    kind: Kind = "computer",
    epoch: int = 1,
    not_after: int = int(WALL) + 1000,
    owner: IdentityKey | None = None,
) -> tuple[VerifiedCard, bytes]:
    """A card as its owner would make it, with a certificate of the coordinator for it."""
    encoded = make_card(
        name=name, kind=kind, uid=bytes(16), identity=identity, kem_key=world.bob.kem_key.public, epoch=epoch,
        not_after=not_after, owner=owner,
    )  # fmt: skip
    card = verify_card(encoded, world.suite)
    return card, certify(world.coordinator.identity, name, bytes(16), card.hash, epoch)


@pytest.fixture
def bob(default_world: World) -> Client:
    return default_world.bob


@pytest.fixture
def authority(default_world: World) -> Authority:
    return default_world.coordinator.authority


# --- the card and its certificate -----------------------------------------------------------------------------------


def test_a_certified_card_of_the_name_is_taken(each_world: World) -> None:
    for client in (each_world.alice, each_world.carol, each_world.backup):
        authority = each_world.coordinator.authority
        card = verify_peer(authority, client.name, client.card.encoded, client.certificate)
        judge_peer(card, Known(), WALL)
        judge_peer(card, client.pin, WALL)
        assert card == client.card


@pytest.mark.attack("P08")
def test_the_card_of_another_name_is_an_alarm(default_world: World, authority: Authority) -> None:
    carol = default_world.carol
    assert alarm("bob", carol.card.encoded, carol.certificate, authority).detail == "name"


@pytest.mark.attack("H11", "P01")
@sampled(60)
def test_a_damaged_card_is_an_alarm(bob: Client, authority: Authority, count: int) -> None:
    """Every byte in the soak."""
    encoded = bob.card.encoded
    for place in places(0, len(encoded), count):
        detail = alarm("bob", flipped(encoded, place, 1 << place % 8), bob.certificate, authority).detail
        assert detail == "bad-card"
    for bad in (b"", encoded[:-1], encoded + b"\0"):
        assert alarm("bob", bad, bob.certificate, authority).detail == "bad-card"


@pytest.mark.attack("P01")
@sampled(40)
def test_a_damaged_certificate_is_an_alarm(bob: Client, authority: Authority, count: int) -> None:
    """Every byte in the soak."""
    for place in places(0, len(bob.certificate), count):
        bad = flipped(bob.certificate, place, 1 << place % 8)
        assert alarm("bob", bob.card.encoded, bad, authority).detail == "bad-certificate"
    assert alarm("bob", bob.card.encoded, b"", authority).detail == "bad-certificate"


@pytest.mark.attack("H02")
def test_a_certificate_of_another_coordinator_or_client_or_epoch_is_an_alarm(
    default_world: World, bob: Client, authority: Authority
) -> None:
    identity = default_world.coordinator.identity
    for wrong in (
        certify(identity_of("impostor"), "bob", bob.uid, bob.card.hash, 1), default_world.carol.certificate,
        certify(identity, "bob", bob.uid, bob.card.hash, 2), certify(identity, "bob", bytes(16), bob.card.hash, 1),
        certify(identity, "carol", bob.uid, bob.card.hash, 1), certify(identity, "bob", bob.uid, bytes(32), 1),
    ):  # fmt: skip
        assert alarm("bob", bob.card.encoded, wrong, authority).detail == "bad-certificate"


def test_a_card_of_another_suite_is_an_alarm(authority: Authority, bob: Client) -> None:
    other = Authority(authority.identity, coordinator_of("x25519").suite)
    assert alarm("bob", bob.card.encoded, bob.certificate, other).detail == "bad-card"


@pytest.mark.claims("A9")
def test_an_applications_card_needs_its_owners_signature(default_world: World, authority: Authority) -> None:
    """A peer takes what the coordinator should have refused for what it is: an alarm."""
    backup, body = default_world.backup, default_world.backup.card.body
    alone = make_card(
        name=backup.name, kind="application", uid=body.uid, identity=backup.identity, kem_key=backup.kem_key.public,
        epoch=1, not_after=body.not_after,
    )  # fmt: skip
    assert alarm(backup.name, alone, backup.certificate, authority).detail == "bad-card"


@pytest.mark.parametrize(("name", "kind"), [("bob", "application"), ("bob/backup", "computer"), ("Bob", "computer")])
def test_a_name_that_does_not_go_with_its_kind_is_an_alarm(
    default_world: World, authority: Authority, name: str, kind: Kind
) -> None:
    encoded = make_card(
        name=name, kind=kind, uid=bytes(16), identity=identity_of("bob"), kem_key=default_world.bob.kem_key.public,
        epoch=1, not_after=0, owner=identity_of("carol") if kind == "application" else None,
    )  # fmt: skip
    assert alarm(name, encoded, b"", authority).detail == "bad-card"


# --- what is pinned -------------------------------------------------------------------------------------------------


@pytest.mark.attack("H02", "P08")
def test_another_key_than_the_pinned_one_is_an_alarm_that_names_both(default_world: World, bob: Client) -> None:
    """Well certified: the coordinator's word does not weigh against the pin."""
    card, certificate = card_of(default_world, "bob", identity_of("impostor"))
    verify_peer(default_world.coordinator.authority, "bob", card.encoded, certificate)
    error = judged(card, bob.pin)
    assert error.detail == "identity"
    assert bob.fingerprint.hex() in error.message
    assert f"zkc verify bob --trust {card.fingerprint.hex()}" in error.hint


def test_one_key_under_two_names_is_an_alarm(bob: Client) -> None:
    assert judged(bob.card, Known(names=("robert",))).detail == "two-names"
    assert judged(bob.card, Known(bob.fingerprint, names=("bob", "robert"))).detail == "two-names"
    judge_peer(bob.card, Known(bob.fingerprint, names=("bob",)), None)


@pytest.mark.claims("A9")
def test_an_application_vouched_for_by_another_than_the_pinned_owner_is_an_alarm(default_world: World) -> None:
    bob, backup = default_world.bob, default_world.backup
    judge_peer(backup.card, Known(owner_fingerprint=bob.fingerprint), None)
    card, _ = card_of(
        default_world, "bob/backup", identity_of("bob/backup"), kind="application", owner=identity_of("impostor")
    )
    assert judged(card, Known(owner_fingerprint=bob.fingerprint)).detail == "owner"


@pytest.mark.attack("H11")
def test_an_older_card_than_one_already_seen_is_an_alarm(default_world: World) -> None:
    card, _ = card_of(default_world, "bob", identity_of("bob"), epoch=3)
    for epoch in (0, 2, 3):
        judge_peer(card, Known(epoch=epoch), None)
    assert judged(card, Known(epoch=4)).detail == "epoch"


@pytest.mark.attack("H11")
def test_an_expired_card_is_an_alarm_after_a_day_of_grace(default_world: World) -> None:
    card, _ = card_of(default_world, "bob", identity_of("bob"), not_after=int(WALL))
    judge_peer(card, Known(), WALL + CARD_GRACE_SECONDS)
    assert judged(card, Known(), WALL + CARD_GRACE_SECONDS + 1).detail == "expired"


def test_where_the_end_of_a_card_does_not_count_no_clock_is_asked(default_world: World) -> None:
    """The recipient judges without a time: a wrong clock there refuses nobody."""
    card, _ = card_of(default_world, "bob", identity_of("bob"), not_after=0)
    judge_peer(card, Known(), None)


@pytest.mark.attack("H11")
def test_every_alarm_has_a_word_of_its_own(default_world: World, authority: Authority, bob: Client) -> None:
    card, certificate = card_of(default_world, "bob", bob.identity, not_after=0, epoch=1)
    words = [
        alarm("bob", b"", b"", authority).detail,
        alarm("robert", bob.card.encoded, bob.certificate, authority).detail,
        alarm("bob", bob.card.encoded, b"", authority).detail,
        judged(card, msgspec.structs.replace(bob.pin, fingerprint=bytes(31) + b"\1")).detail,
        judged(card, Known(names=("robert",))).detail,
        judged(card, Known(owner_fingerprint=bytes(32))).detail,
        judged(card, Known(epoch=2)).detail,
        judged(card, Known(), WALL).detail,
    ]
    assert len(set(words)) == len(words)
    assert certificate
