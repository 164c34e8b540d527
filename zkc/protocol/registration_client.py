"""Registration, the newcomer's side (Figures 1, 11, 12).

 1. R0  -> invitation id                       (CURVE under the invitation's key has let us in)
 2. R0c <- the coordinator's card              its fingerprint is the invitation's: it is the right coordinator
 3. R1  -> name, sealed                        MAC: we hold the invitation
 4. R2  <- temporary server key, signed        by the pinned identity over everything so far
 5. R3  -> temporary client key, ct1           R3b: the registration request, in the same message or apart
 6. R4  <- permanent server key, certificate   MAC from ss1, ss2, psk: the holder of the temporary server key made it
 7. R5  -> card and CURVE key, sealed          stored before it leaves, so that a retry repeats it byte for byte
 8. R6  <- certificate of the card             the coordinator holds it durably; temporary keys are erased

th0 = start("reg", suite); every field is absorbed in the order of `zkc.wire.messages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from zkc.crypto.cards import VerifiedCoordinator, make_card, verify_certificate, verify_coordinator_card
from zkc.crypto.invitations import invitation_psk
from zkc.crypto.primitives import Secret, check_mac, digest, extract
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import (
    KemPrivateKey,
    KemPublicKey,
    kem_decapsulate,
    kem_encapsulate,
    open_sealed,
    seal,
)
from zkc.crypto.transcript import Transcript
from zkc.errors import PeerViolation
from zkc.ids import Identifier, Kind
from zkc.protocol.registration import message_mac
from zkc.protocol.step import Send, Step, Table
from zkc.wire.codec import decode, encode
from zkc.wire.messages import (
    Card,
    CardBody,
    InvitationText,
    RegCoordinator,
    RegDone,
    RegHello,
    RegName,
    RegNameInClear,
    RegPermClient,
    RegPermServer,
    RegRegister,
    RegTempClient,
    RegTempServer,
    SealedDone,
    SealedName,
    SealedPermClient,
    SealedPermServer,
)


@dataclass(frozen=True, repr=False)
class Newcomer:
    """What the conversation rests on: the invitation, and permanent keys, made or kept from a try that broke off."""

    invitation: InvitationText
    identity: IdentityKey
    kem_key: KemPrivateKey
    curve_public: bytes
    not_after: int
    """Seconds since 1970: end of the card's life."""
    kept_card: bytes = b""
    """The card of an earlier try; used again if the coordinator gives the same uid."""
    owner: IdentityKey | None = None
    """Signs the card of an application."""
    request_apart: bool = False
    """R3b in a message of its own (Figure 11: the request may be separated from the key)."""
    identifier: Identifier = "sealed"
    """How R1 says the name (Figure 4, block 401, names both)."""
    seal_to: Literal["permanent", "temporary"] = "permanent"
    """Which server key R5 is sealed to (Figure 6 names both)."""

    @property
    def kind(self) -> Kind:
        return self.invitation.kind


# --- states, named by what has happened ----------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class HelloSent:
    th: Transcript


@dataclass(frozen=True, repr=False)
class NameSent:
    th: Transcript
    psk: Secret
    coordinator: VerifiedCoordinator
    coordinator_card: bytes


@dataclass(frozen=True, repr=False)
class TempKeySent:
    th: Transcript
    psk: Secret
    coordinator: VerifiedCoordinator
    coordinator_card: bytes
    temp_server: KemPublicKey
    temp_client: KemPrivateKey
    ss1: Secret


@dataclass(frozen=True, repr=False)
class CardSent:
    th: Transcript
    prk: Secret
    coordinator: VerifiedCoordinator
    coordinator_card: bytes
    uid: bytes
    perm_server: bytes
    card: bytes


@dataclass(frozen=True)
class Registered:
    uid: bytes
    card: bytes
    perm_server: bytes
    coordinator_card: bytes
    certificate: bytes


# --- effects -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeepCard:
    """Store the card durably before what follows is sent."""

    card: bytes


# --- create and consume --------------------------------------------------------------------------------------------


def create_hello(newcomer: Newcomer) -> Step:
    """R0: which invitation this is (Figure 1, 101)."""
    invitation = newcomer.invitation
    th = Transcript.start("reg", invitation.suite).absorb(invitation.invite_id)
    return Step(HelloSent(th), (Send(RegHello(invitation.invite_id)),))


def consume_coordinator(newcomer: Newcomer, state: HelloSent, message: RegCoordinator) -> Step:
    """R0's answer -> R1: compare the fingerprint, ask for a temporary server key (Figure 1, 101)."""
    invitation = newcomer.invitation
    coordinator = verify_coordinator_card(message.card, message.signature, invitation.fingerprint)
    if coordinator.suite.name != invitation.suite or coordinator.curve_key != invitation.curve_key:
        raise PeerViolation("identity", "the coordinator's keys are not those of the invitation")
    th = state.th.absorb(message.card, message.signature, invitation.invite_id)
    named = encode(SealedName(invitation.name, invitation.kind))
    if newcomer.identifier == "sealed":
        named = seal(coordinator.general_key, "reg-name", th.value, named)
    th = th.absorb(named)
    psk = invitation_psk(invitation.secret)
    tag = message_mac(psk, "reg mac", th)
    form = RegName if newcomer.identifier == "sealed" else RegNameInClear
    return Step(
        NameSent(th.absorb(tag), psk, coordinator, message.card), (Send(form(invitation.invite_id, named, tag)),)
    )


def consume_temp_server_key(newcomer: Newcomer, state: NameSent, message: RegTempServer) -> Step:
    """R2 -> R3: make the temporary client pair, send its public half sealed (Figure 11, blocks 1101-1104)."""
    suite = state.coordinator.suite
    th = state.th.absorb(message.temp_server_key)
    state.coordinator.identity.verify("reg-server", th.value, message.signature)
    temp_server = suite.read_public(message.temp_server_key)
    th = th.absorb(message.signature)
    temp_client = suite.generate()
    sealed = seal(temp_server, "reg-tck", th.value, temp_client.public.encode())
    th = th.absorb(sealed)
    ss1, ct1 = kem_encapsulate(temp_server, "reg1", th.value)
    th = th.absorb(ct1)
    prk = extract(th.value, ss1, state.psk)
    tag = message_mac(prk, "reg k3", th)
    th = th.absorb(tag)
    register = message_mac(prk, "reg k3b", th)
    th = th.absorb(register)
    prk.wipe()
    sent: tuple[Send, ...] = (Send(RegTempClient(sealed, ct1, tag, register)),)
    if newcomer.request_apart:
        sent = (Send(RegTempClient(sealed, ct1, tag, b"")), Send(RegRegister(register)))
    return Step(
        TempKeySent(th, state.psk, state.coordinator, state.coordinator_card, temp_server, temp_client, ss1), sent
    )


def consume_perm_server_key(newcomer: Newcomer, state: TempKeySent, message: RegPermServer) -> Step:
    """R4 -> R5: keep the permanent server key, send our card sealed to it (Figure 12, blocks 1201-1206)."""
    suite = state.coordinator.suite
    ss2 = kem_decapsulate(state.temp_client, "reg2", state.th.value, message.ct2)
    th = state.th.absorb(message.ct2)
    prk = extract(th.value, state.ss1, ss2, state.psk)
    sealed_at = th.value
    th = th.absorb(message.sealed_perm_server_key)
    check_mac(message_mac(prk, "reg k4", th), message.mac)
    offer: SealedPermServer = decode(
        open_sealed(state.temp_client, "reg-perm-server", sealed_at, message.sealed_perm_server_key), SealedPermServer
    )
    perm_server = suite.read_public(offer.perm_server_key)
    name = newcomer.invitation.name
    verify_certificate(
        state.coordinator.identity, offer.certificate, name, offer.uid, digest(offer.perm_server_key), 0
    )
    th = th.absorb(message.mac)
    card = _card_for(newcomer, offer.uid)
    th = th.absorb(newcomer.seal_to.encode())
    signature = newcomer.identity.sign("reg-client", th.absorb(card, newcomer.curve_public).value)
    sealed = seal(
        perm_server if newcomer.seal_to == "permanent" else state.temp_server,
        "reg-perm-client", th.value, encode(SealedPermClient(card, newcomer.curve_public, signature)),
    )
    th = th.absorb(sealed)
    tag = message_mac(prk, "reg k5", th)
    for secret in (state.temp_client, state.ss1, ss2, state.psk):
        secret.wipe()
    return Step(
        CardSent(
            th.absorb(tag), prk, state.coordinator, state.coordinator_card, offer.uid, offer.perm_server_key, card
        ),
        (KeepCard(card), Send(RegPermClient(newcomer.seal_to, sealed, tag))),
    )


def consume_done(newcomer: Newcomer, state: CardSent, message: RegDone) -> Step:
    """R6: the coordinator holds our permanent key and certifies it (Figure 1, 107)."""
    th = state.th.absorb(message.sealed_done)
    check_mac(message_mac(state.prk, "reg k6", th), message.mac)
    done: SealedDone = decode(
        open_sealed(newcomer.kem_key, "reg-done", state.th.value, message.sealed_done), SealedDone
    )
    body = _body_of(state.card)
    if done.card_hash != digest(encode(body)):
        raise PeerViolation("forged", "the coordinator confirms another card")
    verify_certificate(
        state.coordinator.identity, done.certificate, body.name, body.uid, done.card_hash, body.epoch
    )
    state.prk.wipe()
    return Step(Registered(state.uid, state.card, state.perm_server, state.coordinator_card, done.certificate))


TABLE: Final[Table] = {
    (HelloSent, RegCoordinator): consume_coordinator,
    (NameSent, RegTempServer): consume_temp_server_key,
    (TempKeySent, RegPermServer): consume_perm_server_key,
    (CardSent, RegDone): consume_done,
}


def _card_for(newcomer: Newcomer, uid: bytes) -> bytes:
    if newcomer.kept_card and _body_of(newcomer.kept_card).uid == uid:
        return newcomer.kept_card
    return make_card(
        name=newcomer.invitation.name, kind=newcomer.kind, uid=uid, identity=newcomer.identity,
        kem_key=newcomer.kem_key.public, epoch=1, not_after=newcomer.not_after, owner=newcomer.owner,
    )


def _body_of(card: bytes) -> CardBody:
    outer: Card = decode(card, Card)
    body: CardBody = decode(outer.body, CardBody)
    return body
