"""Ready-made parties for each suite: a coordinator, and clients that went through registration with it.

Made once in a process, since keys take long to make (an RSA pair 180 ms), and never changed. A test that erases keys
or spends an invitation makes its own by `Coordinator.invite` and `newcomer`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Final

from tests.support.talks import MemoryRegister, RegistrationTalk, Talk, Tap, TransferTalk, passing
from zkc.constants import CARD_SECONDS
from zkc.crypto.cards import VerifiedCard, make_coordinator_card, sign_coordinator_card, verify_card
from zkc.crypto.invitations import invitation_psk
from zkc.crypto.primitives import Secret, digest
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import KemPrivateKey, Suite, read_private, suite_named
from zkc.ids import Kind
from zkc.protocol.channel import ClientKeys, PeerKeys
from zkc.protocol.registration_client import Newcomer
from zkc.protocol.registration_client import Registered as Joined
from zkc.protocol.registration_coordinator import Registrar
from zkc.protocol.transfer_coordinator import Broker, Party
from zkc.protocol.transfer_recipient import Recipient
from zkc.protocol.transfer_sender import Sender, Terms
from zkc.protocol.trust import Authority, Known
from zkc.wire.messages import InvitationText

WALL: Final = 1_800_000_000.0
"""The time of all tests, seconds since 1970."""
SUITE_NAMES: Final = ("hybrid", "x25519", "rsa")
STRANGER: Final = Known()
"""What is known of a peer before first contact."""


@cache
def identity_of(name: str) -> IdentityKey:
    """The same identity for the same name, in every run."""
    return IdentityKey.from_seed(digest(b"ed", name.encode()) + digest(b"ml", name.encode()))


@dataclass(frozen=True, eq=False)
class Coordinator:
    """A coordinator's identity and keys."""

    suite: Suite
    identity: IdentityKey
    general_key: KemPrivateKey
    curve_public: bytes
    card: bytes
    card_signature: bytes

    @property
    def authority(self) -> Authority:
        return Authority(self.identity.public, self.suite)

    def invite(self, name: str, kind: Kind = "computer", serial: int = 0) -> InvitationText:
        """An invitation; the same for the same name and serial."""
        seed = digest(b"invite", name.encode(), serial.to_bytes(4, "big"))
        return InvitationText(
            ["tcp://127.0.0.1:7670"],
            self.identity.public.fingerprint,
            self.curve_public,
            self.suite.name,
            seed[:16],
            name,
            kind,
            seed[16:],
        )

    def registrar(self, invitation: InvitationText, owner: bytes | None = None) -> Registrar:
        """Its side of one invitation; ``owner``: fingerprint of an application's owner."""
        return Registrar(
            self.identity,
            self.general_key,
            self.suite,
            self.card,
            self.card_signature,
            invitation.invite_id,
            invitation.name,
            invitation.kind,
            invitation_psk(invitation.secret),
            owner,
        )

    def register(self, invitation: InvitationText) -> MemoryRegister:
        """What the key database has of that invitation: nothing yet."""
        return MemoryRegister(self.suite, digest(b"uid", invitation.invite_id)[:16])


@dataclass(frozen=True, eq=False)
class Client:
    """A registered client, with what both ends hold of the registration."""

    coordinator: Coordinator
    name: str
    kind: Kind
    uid: bytes
    identity: IdentityKey
    kem_key: KemPrivateKey
    perm_server: KemPrivateKey
    card: VerifiedCard
    certificate: bytes
    talk: Talk = field(repr=False)

    @property
    def fingerprint(self) -> bytes:
        return self.identity.public.fingerprint

    @cached_property
    def pin(self) -> Known:
        """What a peer knows who has pinned this client."""
        return Known(self.fingerprint, self.card.body.epoch, b"", (self.name,))

    @property
    def client_keys(self) -> ClientKeys:
        return ClientKeys(self.coordinator.suite, self.uid, self.kem_key, self.perm_server.public)

    @property
    def peer_keys(self) -> PeerKeys:
        return PeerKeys(self.coordinator.suite, self.uid, self.perm_server, self.kem_key.public)

    @property
    def party(self) -> Party:
        return Party(self.name, self.card.encoded, self.certificate, self.kem_key.public)

    def sender(self, known: Known = STRANGER, wall: float = WALL) -> Sender:
        return Sender(self.coordinator.authority, self.identity, self.kem_key, self.card, known, wall)

    def recipient(self, known: Known = STRANGER) -> Recipient:
        return Recipient(self.coordinator.authority, self.identity, self.kem_key, self.card, known)


@dataclass(frozen=True, eq=False)
class World:
    """A coordinator and its clients: alice, bob, carol (a user), bob/backup."""

    coordinator: Coordinator
    alice: Client
    bob: Client
    carol: Client
    backup: Client

    @property
    def suite(self) -> Suite:
        return self.coordinator.suite

    def broker(self, sender: Client | None = None, recipient: Client | None = None) -> Broker:
        """The coordinator's part of one transfer; alice to bob unless said otherwise."""
        fresh = Secret(bytes(range(32)))
        return Broker(self.suite, (sender or self.alice).party, (recipient or self.bob).party, fresh)

    def transfer(
        self, terms: Terms, tap: Tap = passing, decision: object = None, *, asks: bool = False
    ) -> TransferTalk:
        """A transfer from alice to bob that has not begun."""
        return TransferTalk(
            self.alice.sender(), self.broker(), self.bob.recipient(), terms, decision=decision, asks=asks, tap=tap
        )


def newcomer(invitation: InvitationText, suite: Suite, **choices: object) -> Newcomer:
    """Who answers an invitation, with new permanent keys."""
    return Newcomer(
        invitation,
        identity_of(invitation.name),
        suite.generate(),
        digest(b"curve", invitation.name.encode()),
        int(WALL) + CARD_SECONDS,
        **choices,  # type: ignore[arg-type]
    )


def registered(coordinator: Coordinator, name: str, kind: Kind, owner: IdentityKey | None = None) -> Client:
    """A client, through the whole registration."""
    invitation = coordinator.invite(name, kind)
    new = newcomer(invitation, coordinator.suite, owner=owner)
    register = coordinator.register(invitation)
    talk = RegistrationTalk(
        new, coordinator.registrar(invitation, owner.public.fingerprint if owner else None), register
    )
    talk.run()
    joined = talk.state("client")
    if not isinstance(joined, Joined) or register.reserved is None:
        raise AssertionError("the registration did not end")
    stored = read_private(register.reserved.encode())
    card = verify_card(joined.card, coordinator.suite)
    return Client(
        coordinator, name, kind, joined.uid, new.identity, new.kem_key, stored, card, joined.certificate, talk
    )


@cache
def coordinator_of(suite_name: str, identity_name: str = "coordinator") -> Coordinator:
    """A coordinator with that suite."""
    suite, identity = suite_named(suite_name), identity_of(identity_name)
    general, curve = suite.generate(), digest(b"curve of", identity_name.encode())
    card = make_coordinator_card(identity, general.public, curve, suite.name, 1)
    return Coordinator(suite, identity, general, curve, card, sign_coordinator_card(identity, card))


@cache
def world(suite_name: str) -> World:
    """Everyone, with that suite."""
    coordinator = coordinator_of(suite_name)
    return World(
        coordinator,
        registered(coordinator, "alice", "computer"),
        registered(coordinator, "bob", "computer"),
        registered(coordinator, "carol", "user"),
        registered(coordinator, "bob/backup", "application", identity_of("bob")),
    )
