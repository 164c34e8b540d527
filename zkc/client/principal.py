"""One registration of a home with its keys loaded, and what the home knows of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from zkc.crypto.cards import VerifiedCard, VerifiedCoordinator, read_coordinator_card, verify_card
from zkc.crypto.signing import IdentityKey
from zkc.crypto.successions import Descent, descend
from zkc.crypto.suites import KemPrivateKey, Suite, read_private
from zkc.errors import IdentityError, LocalIOError, NotRegistered, PeerViolation
from zkc.ids import owner_of
from zkc.protocol.channel import ClientKeys
from zkc.protocol.trust import Authority, KeyChanged, Known, follow
from zkc.stores.key_rows import Pin, Registration
from zkc.stores.keylock import locked
from zkc.stores.keystore import KeyStore
from zkc.wire.codec import decode, encode

SEEN_SECONDS: Final = 60.0
"""How exact ``last_seen`` is: a write with fsync for every transfer would cost more than the transfer."""


@dataclass(frozen=True, repr=False)
class Keys:
    """The private half of a registration."""

    identity: IdentityKey
    kem_key: KemPrivateKey
    channel_keys: ClientKeys


@dataclass(frozen=True, repr=False)
class Principal:
    """A name with its keys: bob, or bob/backup."""

    registration: Registration
    card: VerifiedCard
    coordinator: VerifiedCoordinator
    keys: Keys | None
    """None where a passphrase locks them, and nobody has given it."""

    def __repr__(self) -> str:
        return f"Principal({self.name}, …)"

    @property
    def name(self) -> str:
        return self.registration.name

    @property
    def fingerprint(self) -> bytes:
        return self.card.fingerprint

    @property
    def identity(self) -> IdentityKey:
        return self._opened.identity

    @property
    def kem_key(self) -> KemPrivateKey:
        return self._opened.kem_key

    @property
    def channel_keys(self) -> ClientKeys:
        return self._opened.channel_keys

    @property
    def _opened(self) -> Keys:
        if self.keys is None:
            raise locked(f"the keys of {self.name} are locked by a passphrase")
        return self.keys

    @property
    def authority(self) -> Authority:
        return Authority(self.coordinator.identity, self.coordinator.suite)


def load_principal(registration: Registration) -> Principal:
    """The keys of a stored registration; `LocalIOError` (``damaged``) where they do not fit together."""
    keys: Keys | None = None
    try:
        coordinator = read_coordinator_card(registration.coordinator_card)
        card = verify_card(registration.card, coordinator.suite)
        perm_server = coordinator.suite.read_public(registration.perm_server_public)
        if not registration.is_locked:
            kem_key = read_private(registration.kem_private)
            keys = Keys(
                IdentityKey.from_seed(registration.identity_private), kem_key,
                ClientKeys(coordinator.suite, registration.uid, kem_key, perm_server),
            )
    except (PeerViolation, ValueError) as error:
        raise LocalIOError(
            f"the keys of {registration.name} do not fit together ({error})", detail="damaged",
            hint="restore keys.db from a backup, or join again with --force",
        ) from None
    return Principal(registration, card, coordinator, keys)


def load_main(store: KeyStore) -> Principal:
    """The home's own registration (not an application's); `NotRegistered` where there is none."""
    for registration in store.registrations():
        if owner_of(registration.name) is None:
            return load_principal(registration)
    raise NotRegistered(
        "this client is not registered", detail="no-registration", hint="zkc join, with an invitation"
    )


class Keeper:
    """What a link may change of its registration in the key store, or find changed there."""

    def __init__(self, store: KeyStore, on_learned: Callable[[Principal], None] = lambda _: None) -> None:
        """``on_learned``: told of the registration once its coordinator has another identity."""
        self._store = store
        self._on_learned = on_learned

    def learned(self, principal: Principal, card: bytes, chain: Sequence[bytes]) -> Principal:
        """The coordinator has another identity, with this card, to which its successions ``chain`` lead: kept, with
        the way there."""
        former = principal.coordinator.identity

        def longer(stored: bytes | None) -> bytes:
            return encode(descend(None if stored is None else decode(stored, Descent), former, chain))

        self._store.change_descent(principal.registration.uid, longer)
        fingerprint = read_coordinator_card(card).identity.fingerprint
        renewed = replace(principal.registration, coordinator_card=card, coordinator_fingerprint=fingerprint)
        self._store.update_coordinator(renewed)
        found = load_principal(renewed)
        self._on_learned(found)
        return found

    def reloaded(self, principal: Principal) -> Principal:
        """As the store has it now: another process may have renewed its keys."""
        found = self._store.registration(principal.name)
        if found is None or found.uid != principal.registration.uid or found == principal.registration:
            return principal
        return principal if found.is_locked else load_principal(found)


def known_about(store: KeyStore, name: str, fingerprint: bytes = b"") -> Known:
    """What is pinned that bears on ``name`` and on the ``fingerprint`` that claims it."""
    pins = store.pinned()
    own, owner = pins.get(name), pins.get(owner_of(name) or "")
    owner_former = store.former(owner.name) if owner is not None else ()
    return Known(
        fingerprint=own.fingerprint if own else b"",
        epoch=own.epoch if own else 0,
        card=own.card if own else b"",
        owner_fingerprint=owner.fingerprint if owner else b"",
        owner_former=owner_former,
        names=pins.names_of(fingerprint),
    )


def pin_peer(store: KeyStore, card: VerifiedCard, now: float) -> None:
    """Pin at first contact; later, note that the same key was seen. ``now`` in seconds since 1970.

    An alarm stays: only a person ends it (`trust_peer`). `KeyChanged` where another key was pinned since the card was
    judged: of two first contacts at once the second does not silently take the place of the first.
    """

    def seen(pin: Pin | None) -> Pin:
        if pin is not None and pin.fingerprint != card.fingerprint:
            raise KeyChanged(card.name, pin.fingerprint, card.fingerprint)
        if pin is not None and pin.card_hash == card.hash and now - pin.last_seen < SEEN_SECONDS:
            return pin
        if pin is not None and pin.epoch > card.body.epoch:  # a newer card was seen meanwhile
            return replace(pin, last_seen=now)
        first_seen, verified, alarm = (pin.first_seen, pin.verified, pin.alarm) if pin else (now, None, b"")
        return Pin(
            card.name, card.body.kind, card.fingerprint, card.encoded, card.hash, card.body.epoch, first_seen, now,
            verified, alarm,
        )

    store.update_pin(card.name, seen)


def trust_peer(store: KeyStore, card: VerifiedCard, now: float) -> None:
    """A person named this key: it is pinned in place of whatever was, and no alarm is left. A new key is unverified."""

    def trusted(pin: Pin | None) -> Pin:
        kept = pin if pin is not None and pin.fingerprint == card.fingerprint else None
        return Pin(
            card.name, card.body.kind, card.fingerprint, card.encoded, card.hash, card.body.epoch,
            kept.first_seen if kept else now, now, kept.verified if kept else None,
        )

    store.update_pin(card.name, trusted)


def succeed_peer(store: KeyStore, suite: Suite, changed: KeyChanged, chain: Sequence[bytes], now: float) -> bool:
    """Whether the successions ``chain`` lead from what is pinned to the key that was seen: then that is pinned now, in
    its place, with what a person said of it."""
    pin, card = store.pin(changed.name), changed.card
    if pin is None or card is None or not chain:
        return False
    try:
        behind = follow(verify_card(pin.card, suite), card, chain)
    except (KeyChanged, PeerViolation):
        return False
    moved = replace(
        pin, fingerprint=card.fingerprint, card=card.encoded, card_hash=card.hash, epoch=card.body.epoch, last_seen=now,
        alarm=b"" if pin.alarm == card.fingerprint else pin.alarm,
    )
    return store.succeed(moved, pin.fingerprint, behind, now)


def another_key_seen(name: str, pin: Pin) -> IdentityError:
    """What keeps ``name`` from being compared or sent to, until a person says which key is the right one."""
    return IdentityError(
        f"another key was seen for {name}: pinned {pin.fingerprint.hex()}, seen {pin.alarm.hex()}", detail="identity",
        hint=f"ask {name} for its fingerprint over another channel; if it is the pinned one:"
        f" zkc verify {name} --trust {pin.fingerprint.hex()}",
    )


def note_alarm(store: KeyStore, name: str, seen: bytes) -> None:
    """Keep which other key showed up under a pinned name, for ``zkc peers`` and ``zkc verify``."""

    def alarmed(pin: Pin | None) -> Pin | None:
        if pin is None or pin.fingerprint == seen:
            return pin
        return replace(pin, alarm=seen)

    store.update_pin(name, alarmed)
