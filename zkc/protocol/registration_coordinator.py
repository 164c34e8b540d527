"""Registration, the coordinator's side (Figures 1, 4 to 7).

 1. R0  <- invitation id                        ZAP has admitted this invitation's CURVE key
 2. R0c -> our card
 3. R1  <- name, sealed                         MAC before any public-key work; the name is the invitation's
 4. R2  -> temporary server key, signed         from the pool of prepared keys; an empty one is waited for
 5. R3  <- temporary client key, ct1, R3b       MAC from ss1 and psk
 6. R4  -> permanent server key, certificate    uid and key are durable before it leaves
 7. R5  <- card and CURVE key                   signed over the transcript; one transaction
 8. R6  -> certificate of the card              temporary keys are erased

Three steps wait for what is made or stored elsewhere: `MakePair` is answered by `PairMade`, `Reserve` by `Reserved`,
`Commit` by `Committed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zkc.crypto.cards import VerifiedCard, certify, verify_card
from zkc.crypto.primitives import Secret, check_mac, digest, extract
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import KemPrivateKey, KemPublicKey, Suite, kem_decapsulate, kem_encapsulate, open_sealed, seal
from zkc.crypto.transcript import Transcript
from zkc.errors import PeerViolation
from zkc.ids import Kind
from zkc.protocol.registration import message_mac
from zkc.protocol.step import Send, Step, Table
from zkc.wire.codec import decode, encode
from zkc.wire.messages import (
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
class Registrar:
    """The coordinator's side of one invitation."""

    identity: IdentityKey
    general_key: KemPrivateKey
    suite: Suite
    card: bytes
    card_signature: bytes
    invite_id: bytes
    name: str
    kind: Kind
    psk: Secret
    owner_fingerprint: bytes | None
    """For an application: the identity that must have countersigned its card."""


@dataclass(frozen=True, repr=False)
class Nothing:
    """No word has been said."""


@dataclass(frozen=True, repr=False)
class Greeted:
    th: Transcript


@dataclass(frozen=True, repr=False)
class Named:
    """R1 has verified; a temporary pair is awaited."""

    th: Transcript


@dataclass(frozen=True, repr=False)
class TempKeySent:
    th: Transcript
    temp_server: KemPrivateKey


@dataclass(frozen=True, repr=False)
class TempKeyReceived:
    th: Transcript
    temp_server: KemPrivateKey
    temp_client: KemPublicKey
    ss1: Secret
    prk: Secret


@dataclass(frozen=True, repr=False)
class Reserving:
    th: Transcript
    temp_server: KemPrivateKey
    temp_client: KemPublicKey
    ss1: Secret


@dataclass(frozen=True, repr=False)
class PermKeySent:
    th: Transcript
    temp_server: KemPrivateKey
    perm_server: KemPrivateKey
    uid: bytes
    prk: Secret


@dataclass(frozen=True, repr=False)
class Committing:
    th: Transcript
    card: VerifiedCard
    prk: Secret


@dataclass(frozen=True)
class Registered:
    """R6 has left; every temporary key is erased."""


# --- effects, and the events that answer them ----------------------------------------------------------------------


@dataclass(frozen=True)
class MakePair:
    """A temporary pair for this registration alone (A8), from the pool (A2) or made now (Figure 4, block 402)."""


@dataclass(frozen=True, repr=False)
class PairMade:
    temp_server: KemPrivateKey


@dataclass(frozen=True)
class Reserve:
    """Reserve uid and permanent server key for this invitation, durably, the same at every try (Figure 7, 701)."""


@dataclass(frozen=True, repr=False)
class Reserved:
    uid: bytes
    perm_server: KemPrivateKey


@dataclass(frozen=True)
class Commit:
    """One transaction: invitation used, client row, log entry (Figure 6, block 603)."""

    card: VerifiedCard
    curve_public: bytes
    certificate: bytes


@dataclass(frozen=True)
class Committed:
    certificate: bytes
    log_index: int


# --- consume -------------------------------------------------------------------------------------------------------


def consume_hello(registrar: Registrar, state: Nothing, message: RegHello) -> Step:
    """R0 -> our card, before the first word of Figure 1 (101): it holds the key that R1's identifier travels under."""
    if message.invite_id != registrar.invite_id:
        raise PeerViolation("identity", "the invitation is not the one that ZAP admitted")
    th = Transcript.start("reg", registrar.suite.name)
    th = th.absorb(message.invite_id, registrar.card, registrar.card_signature)
    return Step(Greeted(th), (Send(RegCoordinator(registrar.card, registrar.card_signature)),))


def consume_request_for_temp_key(registrar: Registrar, state: Greeted, message: RegName) -> Step:
    """R1: who asks for a temporary server key (Figure 4, blocks 401-404: here 401; Figure 1, 101)."""
    th = state.th.absorb(message.invite_id)
    sealed_at = th.value
    th = th.absorb(message.sealed_name)
    check_mac(message_mac(registrar.psk, "reg mac", th), message.mac)
    _check_name(registrar, message, open_sealed(registrar.general_key, "reg-name", sealed_at, message.sealed_name))
    return Step(Named(th.absorb(message.mac)), (MakePair(),))


def consume_request_in_clear(registrar: Registrar, state: Greeted, message: RegNameInClear) -> Step:
    """R1 of a client that does not seal its name (Figure 4, block 401: "may either be unencrypted or encrypted")."""
    th = state.th.absorb(message.invite_id, message.name)
    check_mac(message_mac(registrar.psk, "reg mac", th), message.mac)
    _check_name(registrar, message, message.name)
    return Step(Named(th.absorb(message.mac)), (MakePair(),))


def consume_temporary_pair(registrar: Registrar, state: Named, event: PairMade) -> Step:
    """-> R2: the temporary server key, signed (Figure 4, blocks 402-404; Figure 1, 102)."""
    public = event.temp_server.public.encode()
    th = state.th.absorb(public)
    signature = registrar.identity.sign("reg-server", th.value)
    return Step(TempKeySent(th.absorb(signature), event.temp_server), (Send(RegTempServer(public, signature)),))


def consume_temp_client_key(registrar: Registrar, state: TempKeySent, message: RegTempClient) -> Step:
    """R3: the temporary client key (Figure 5, blocks 501-502; Figure 1, 103), and perhaps the request to register."""
    ct1_at = state.th.absorb(message.sealed_temp_client_key)
    ss1 = kem_decapsulate(state.temp_server, "reg1", ct1_at.value, message.ct1)
    th = ct1_at.absorb(message.ct1)
    prk = extract(th.value, ss1, registrar.psk)
    check_mac(message_mac(prk, "reg k3", th), message.mac)
    temp_client = registrar.suite.read_public(
        open_sealed(state.temp_server, "reg-tck", state.th.value, message.sealed_temp_client_key)
    )
    received = TempKeyReceived(th.absorb(message.mac), state.temp_server, temp_client, ss1, prk)
    if message.register:
        return consume_registration_request(registrar, received, RegRegister(message.register))
    return Step(received)


def consume_registration_request(registrar: Registrar, state: TempKeyReceived, message: RegRegister) -> Step:
    """R3b: now make the permanent pair for this client alone (Figure 7, block 701)."""
    check_mac(message_mac(state.prk, "reg k3b", state.th), message.register)
    state.prk.wipe()
    th = state.th.absorb(message.register)
    return Step(Reserving(th, state.temp_server, state.temp_client, state.ss1), (Reserve(),))


def consume_reservation(registrar: Registrar, state: Reserving, event: Reserved) -> Step:
    """-> R4: the permanent server key, sealed to the temporary client key (Figure 7, blocks 702-704)."""
    ss2, ct2 = kem_encapsulate(state.temp_client, "reg2", state.th.value)
    th = state.th.absorb(ct2)
    prk = extract(th.value, state.ss1, ss2, registrar.psk)
    public = event.perm_server.public.encode()
    certificate = certify(registrar.identity, registrar.name, event.uid, digest(public), 0)
    sealed = seal(
        state.temp_client, "reg-perm-server", th.value, encode(SealedPermServer(event.uid, public, certificate))
    )
    th = th.absorb(sealed)
    tag = message_mac(prk, "reg k4", th)
    state.ss1.wipe()
    ss2.wipe()
    return Step(
        PermKeySent(th.absorb(tag), state.temp_server, event.perm_server, event.uid, prk),
        (Send(RegPermServer(ct2, sealed, tag)),),
    )


def consume_perm_client_key(registrar: Registrar, state: PermKeySent, message: RegPermClient) -> Step:
    """R5: open the permanent client key with the permanent or the temporary server key (Figure 6, blocks 601-603)."""
    th = state.th.absorb(message.sealed_to.encode())
    sealed_at = th
    th = th.absorb(message.sealed_card)
    check_mac(message_mac(state.prk, "reg k5", th), message.mac)
    opener = state.perm_server if message.sealed_to == "permanent" else state.temp_server
    offer: SealedPermClient = decode(
        open_sealed(opener, "reg-perm-client", sealed_at.value, message.sealed_card), SealedPermClient
    )
    card = verify_card(offer.card, registrar.suite)
    card.identity.verify("reg-client", sealed_at.absorb(offer.card, offer.curve_key).value, offer.signature)
    if (card.name, card.body.kind, card.body.uid) != (registrar.name, registrar.kind, state.uid):
        raise PeerViolation("identity", "the card is not for this registration")
    if card.owner_fingerprint != registrar.owner_fingerprint:
        raise PeerViolation("identity", "the card is not countersigned by the application's owner")
    state.temp_server.wipe()
    certificate = certify(registrar.identity, card.name, state.uid, card.hash, card.body.epoch)
    return Step(
        Committing(th.absorb(message.mac), card, state.prk), (Commit(card, offer.curve_key, certificate),)
    )


def consume_commit(registrar: Registrar, state: Committing, event: Committed) -> Step:
    """-> R6: stored (Figure 6, block 603); the client may rely on it."""
    done = encode(SealedDone(state.card.hash, event.certificate, event.log_index))
    sealed = seal(state.card.kem_key, "reg-done", state.th.value, done)
    tag = message_mac(state.prk, "reg k6", state.th.absorb(sealed))
    state.prk.wipe()
    return Step(Registered(), (Send(RegDone(sealed, tag)),))


def _check_name(registrar: Registrar, message: RegName | RegNameInClear, encoded: bytes) -> None:
    named: SealedName = decode(encoded, SealedName)
    if (message.invite_id, named.name, named.kind) != (registrar.invite_id, registrar.name, registrar.kind):
        raise PeerViolation("identity", "the name is not the invitation's")


TABLE: Final[Table] = {
    (Nothing, RegHello): consume_hello,
    (Greeted, RegName): consume_request_for_temp_key,
    (Greeted, RegNameInClear): consume_request_in_clear,
    (Named, PairMade): consume_temporary_pair,
    (TempKeySent, RegTempClient): consume_temp_client_key,
    (TempKeyReceived, RegRegister): consume_registration_request,
    (Reserving, Reserved): consume_reservation,
    (PermKeySent, RegPermClient): consume_perm_client_key,
    (Committing, Committed): consume_commit,
}
