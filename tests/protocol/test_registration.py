"""R0 to R6 between two machines (figures 1, 4-7, 11, 12)."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from tests.support.link import flipped
from tests.support.parties import (
    SUITE_NAMES,
    Coordinator,
    World,
    coordinator_of,
    identity_of,
    newcomer,
    registered,
)
from tests.support.talks import RegistrationTalk, Tap, Turn, is_wiped, passing, secrets_in, snapshot
from zkc.constants import CONTROL_MESSAGE_MAX
from zkc.crypto.cards import verify_card, verify_certificate
from zkc.crypto.primitives import digest
from zkc.crypto.suites import KemPrivateKey, open_sealed
from zkc.errors import PeerViolation
from zkc.protocol import registration_client as rc
from zkc.protocol import registration_coordinator as rs
from zkc.protocol.registration import error_mac
from zkc.protocol.step import erase, step
from zkc.wire.codec import encode
from zkc.wire.frames import ControlKind, control_frame
from zkc.wire.messages import (
    RegCoordinator,
    RegDone,
    RegHello,
    RegName,
    RegNameInClear,
    RegPermClient,
    RegRegister,
    RegTempClient,
    RegTempServer,
    SealedName,
)


@pytest.fixture(scope="module")
def coordinator() -> Coordinator:
    return coordinator_of("hybrid")


def talk_of(coordinator: Coordinator, name: str = "dave", tap: Tap = passing, **choices: object) -> RegistrationTalk:
    """A registration that has not begun."""
    invitation = coordinator.invite(name)
    new = newcomer(invitation, coordinator.suite, **choices)
    return RegistrationTalk(new, coordinator.registrar(invitation), coordinator.register(invitation), tap)


# --- the way through ------------------------------------------------------------------------------------------------


@pytest.mark.claims("A5", "A6", "A7", 26, 29, 43, 50, 61, 85, 107)
def test_both_sides_end_with_each_others_permanent_keys(each_world: World) -> None:
    """With each suite: what the client keeps is what the coordinator stored, certified by it."""
    bob, suite = each_world.bob, each_world.suite
    assert isinstance(bob.talk.state("client"), rc.Registered)
    assert isinstance(bob.talk.state("coordinator"), rs.Registered)
    assert suite.read_public(bob.talk.state("client").perm_server) == bob.perm_server.public
    assert bob.card.kem_key == bob.kem_key.public
    assert bob.card.body.uid == bob.uid
    verify_certificate(
        each_world.coordinator.identity.public, bob.certificate, "bob", bob.uid, bob.card.hash, bob.card.body.epoch
    )


@pytest.mark.claims("A1", "A2", "A3", "A5", "A6")
def test_the_messages_go_in_the_documents_order(coordinator: Coordinator) -> None:
    talk = talk_of(coordinator)
    talk.run()
    assert talk.order == [
        "RegHello", "RegCoordinator", "RegName", "RegTempServer", "RegTempClient", "reserved", "RegPermServer", "kept",
        "RegPermClient", "committed", "RegDone",
    ]  # fmt: skip


@pytest.mark.claims("A4")
@pytest.mark.parametrize("suite", ["hybrid", "x25519"])
def test_the_request_may_travel_with_the_temporary_key_or_follow_it(suite: str) -> None:
    """R3b in R3, or in a message of its own: both register, and nothing is reserved before the request."""
    together, apart = talk_of(coordinator_of(suite)), talk_of(coordinator_of(suite), request_apart=True)
    together.run()
    apart.run()
    assert [together.order.count("RegRegister"), apart.order.count("RegRegister")] == [0, 1]
    assert apart.order.index("RegTempClient") < apart.order.index("RegRegister") < apart.order.index("reserved")
    for talk in (together, apart):
        assert isinstance(talk.state("client"), rc.Registered)


@pytest.mark.claims("A4")
def test_without_the_request_the_coordinator_makes_no_permanent_key(coordinator: Coordinator) -> None:
    talk = talk_of(
        coordinator, request_apart=True,
        tap=lambda turn: None if isinstance(turn.message, RegRegister) else turn.message,
    )  # fmt: skip
    talk.run()
    assert isinstance(talk.state("coordinator"), rs.TempKeyReceived)
    assert talk.register.reserved is None


@pytest.mark.claims("A6", 29, 30, 43, 50, 85)
@pytest.mark.parametrize("suite", SUITE_NAMES)
@pytest.mark.parametrize("seal_to", ["permanent", "temporary"])
def test_the_card_is_sealed_to_the_permanent_or_the_temporary_server_key(suite: str, seal_to: str) -> None:
    """As figure 6 names both; the one key opens it and the other does not."""
    taken: list[KemPrivateKey] = []
    seen: list[tuple[bytes, bytes]] = []

    def tap(turn: Turn) -> object:
        if isinstance(turn.message, RegPermClient):
            state: rs.PermKeySent = turn.state
            taken.extend((state.perm_server, state.temp_server))
            seen.append((state.th.absorb(turn.message.sealed_to.encode()).value, turn.message.sealed_card))
            right, wrong = taken if seal_to == "permanent" else reversed(taken)
            open_sealed(right, "reg-perm-client", *seen[0])
            with pytest.raises(PeerViolation):
                open_sealed(wrong, "reg-perm-client", *seen[0])
        return turn.message

    talk = talk_of(coordinator_of(suite), tap=tap, seal_to=seal_to)
    talk.run()
    assert seen
    assert isinstance(talk.state("client"), rc.Registered)
    assert len(talk.register.committed) == 1


@pytest.mark.claims("A9")
def test_an_application_registers_with_keys_of_its_own_vouched_for_by_its_owner(each_world: World) -> None:
    backup, bob = each_world.backup, each_world.bob
    assert backup.card.owner_fingerprint == bob.fingerprint
    assert backup.fingerprint != bob.fingerprint
    assert backup.kem_key.public != bob.kem_key.public
    assert backup.perm_server.public != bob.perm_server.public
    assert backup.uid != bob.uid
    assert (bob.card.body.kind, backup.card.body.kind, each_world.carol.card.body.kind) == (
        "computer", "application", "user",
    )  # fmt: skip


@pytest.mark.claims("A9")
@pytest.mark.parametrize("owner", [None, "carol"])
def test_an_application_without_its_owners_signature_is_refused(coordinator: Coordinator, owner: str | None) -> None:
    invitation = coordinator.invite("bob/backup", "application")
    new = newcomer(invitation, coordinator.suite, owner=identity_of(owner) if owner else None)
    register = coordinator.register(invitation)
    registrar = coordinator.registrar(invitation, identity_of("bob").public.fingerprint)
    with pytest.raises(PeerViolation):
        RegistrationTalk(new, registrar, register).run()
    assert not register.committed


@pytest.mark.claims("A8", 11)
def test_no_two_clients_get_the_same_temporary_or_permanent_server_key(quick_world: World) -> None:
    clients = [quick_world.alice, quick_world.bob, quick_world.carol, quick_world.backup]
    temporary = {message.temp_server_key for c in clients for message in c.talk.messages(RegTempServer)}
    permanent = {client.perm_server.public.encode() for client in clients}
    assert len(temporary) == len(permanent) == len(clients)
    assert not temporary & permanent


@pytest.mark.claims("A2")
def test_temporary_server_keys_are_taken_from_a_pool_made_beforehand(coordinator: Coordinator) -> None:
    pool = [coordinator.suite.generate() for _ in range(2)]
    prepared = [key.public.encode() for key in pool]
    used = []
    for serial in range(2):
        invitation = coordinator.invite("dave", serial=serial)
        register = coordinator.register(invitation)
        register.pair = pool.pop
        talk = RegistrationTalk(newcomer(invitation, coordinator.suite), coordinator.registrar(invitation), register)
        talk.run()
        used += [message.temp_server_key for message in talk.messages(RegTempServer)]
    assert used == prepared[::-1]


# --- what an observer sees, and what is left -----------------------------------------------------------------------


@pytest.mark.claims("A1", "A3", "A6", 30)
@pytest.mark.attack("R08")
def test_name_card_and_keys_never_travel_in_clear(quick_world: World) -> None:
    """The identifier goes under the coordinator's general key; every public key but TSK goes sealed."""
    client = quick_world.carol
    (temporary,) = [s.temp_client.public for s in client.talk.sides["client"].states if isinstance(s, rc.TempKeySent)]
    seen = b"".join(data for _, data in client.talk.wire)
    invitation = client.talk.sides["client"].context.invitation
    hidden = {
        "name": encode(SealedName("carol", "user")), "secret": invitation.secret, "uid": client.uid,
        "card": client.card.hash, "identity": client.identity.public.ed25519, "kem": client.kem_key.public.raw[:32],
        "server key": client.perm_server.public.raw[:32], "temporary key": temporary.raw[:32],
        "psk": digest(invitation.secret)[:8],
    }  # fmt: skip
    assert not [what for what, value in hidden.items() if value in seen]
    assert b"carol" not in seen


@pytest.mark.claims("A1")
def test_the_name_goes_in_clear_where_that_is_chosen_and_is_held_against_the_invitation(
    coordinator: Coordinator
) -> None:
    """Figure 4, block 401, names both; who has not the invitation's secret is refused all the same."""
    talk = talk_of(coordinator, identifier="clear")
    talk.run()
    assert isinstance(talk.state("client"), rc.Registered)
    (said,) = talk.messages(RegNameInClear)
    assert said.name == encode(SealedName("dave", "computer"))
    for change, detail in (({"mac": bytes(32)}, "forged"), ({"name": encode(SealedName("eve", "computer"))}, "forged")):
        altered = talk_of(
            coordinator, identifier="clear",
            tap=lambda turn, change=change: (
                msgspec.structs.replace(turn.message, **change) if isinstance(turn.message, RegNameInClear)
                else turn.message
            ),
        )
        with pytest.raises(PeerViolation) as caught:
            altered.run()
        assert caught.value.detail == detail
    # Who has it, and says another name than the invitation's.
    invitation = coordinator.invite("dave")
    new = newcomer(msgspec.structs.replace(invitation, name="eve"), coordinator.suite, identifier="clear")
    with pytest.raises(PeerViolation, match="not the invitation's"):
        RegistrationTalk(new, coordinator.registrar(invitation), coordinator.register(invitation)).run()


@pytest.mark.claims("A7")
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("seal_to", ["permanent", "temporary"])
def test_every_temporary_key_is_erased_when_the_registration_ends(
    coordinator: Coordinator, apart: bool, seal_to: str
) -> None:
    talk = talk_of(coordinator, request_apart=apart, seal_to=seal_to)
    talk.run()
    kept = talk.register.reserved
    assert kept is not None
    left = [
        path
        for side in talk.sides.values()
        for state in side.states
        for path, secret in secrets_in(state, type(state).__name__)
        if not is_wiped(secret) and secret is not kept.secret
    ]
    assert not left


@pytest.mark.claims("A7")
def test_a_registration_that_broke_off_is_erased_at_every_step(coordinator: Coordinator) -> None:
    """`erase` on the last states leaves no temporary key, wherever the conversation broke off."""
    full = talk_of(coordinator, request_apart=True)
    full.run()
    for broken_at in range(len(full.wire)):
        count = iter(range(len(full.wire)))
        talk = talk_of(
            coordinator, request_apart=True,
            tap=lambda turn, count=count, end=broken_at: turn.message if next(count) < end else None,
        )  # fmt: skip
        talk.run()
        for side in talk.sides.values():
            erase(side.state)
        kept = talk.register.reserved
        left = [
            path
            for side in talk.sides.values()
            for state in side.states
            for path, secret in secrets_in(state, type(state).__name__)
            if not is_wiped(secret) and not (kept and secret is kept.secret)
        ]
        assert not left, f"broken off before message {broken_at}"


# --- retries --------------------------------------------------------------------------------------------------------


def test_a_retry_gets_the_same_uid_and_key_and_repeats_its_card_byte_for_byte(coordinator: Coordinator) -> None:
    """R6 lost: from R0 with new temporary keys, the same reservation, the same card, one commit."""
    invitation = coordinator.invite("dave")
    register = coordinator.register(invitation)
    new = newcomer(invitation, coordinator.suite)
    first = RegistrationTalk(
        new, coordinator.registrar(invitation), register,
        tap=lambda turn: None if isinstance(turn.message, RegDone) else turn.message,
    )  # fmt: skip
    first.run()
    assert isinstance(first.state("client"), rc.CardSent)
    again = dataclasses.replace(new, kept_card=first.kept_card)
    second = RegistrationTalk(again, coordinator.registrar(invitation), register)
    second.run()
    done = second.state("client")
    assert isinstance(done, rc.Registered)
    assert (done.card, done.uid) == (first.kept_card, register.uid)
    assert done.perm_server == first.state("client").perm_server
    assert len(register.committed) == 1
    assert first.messages(RegTempServer) != second.messages(RegTempServer)


def test_a_kept_card_of_another_uid_is_made_anew(coordinator: Coordinator) -> None:
    old = talk_of(coordinator)
    old.run()
    talk = talk_of(coordinator, kept_card=old.kept_card)
    talk.register.uid = bytes(16)
    talk.run()
    assert verify_card(talk.state("client").card, coordinator.suite).body.uid == bytes(16)


def test_the_card_is_kept_before_it_leaves_and_committed_before_it_is_confirmed(coordinator: Coordinator) -> None:
    """Store first, send second, on both sides."""
    talk = talk_of(coordinator)
    talk.run()
    order = talk.order
    assert order.index("kept") < order.index("RegPermClient")
    assert order.index("reserved") < order.index("RegPermServer")
    assert order.index("committed") < order.index("RegDone")


# --- who tries to be somebody else ---------------------------------------------------------------------------------


@pytest.mark.attack("R01")
def test_another_coordinator_identity_gets_no_name(coordinator: Coordinator) -> None:
    """The client stops at R0's answer and sends no R1."""
    other = coordinator_of("hybrid", "impostor")
    invitation = coordinator.invite("dave")
    talk = RegistrationTalk(
        newcomer(invitation, coordinator.suite), other.registrar(invitation), other.register(invitation)
    )
    with pytest.raises(PeerViolation) as caught:
        talk.run()
    assert caught.value.detail == "identity"
    assert not talk.messages(RegName)


@pytest.mark.attack("R01")
def test_the_right_fingerprint_without_its_signature_gets_no_name(coordinator: Coordinator) -> None:
    """A replayed card with other general keys in it: the fingerprint fits, the signature does not."""
    other = coordinator_of("hybrid", "impostor")

    def tap(turn: Turn) -> object:
        if isinstance(turn.message, RegCoordinator):
            return RegCoordinator(
                coordinator.card, other.identity.sign_durable("coordinator-card", digest(coordinator.card))
            )
        return turn.message

    talk = talk_of(coordinator, tap=tap)
    with pytest.raises(PeerViolation, match="forged"):
        talk.run()
    assert not talk.messages(RegName)


@pytest.mark.parametrize("field", ["curve_key", "suite"])
def test_a_coordinator_card_that_differs_from_the_invitation_is_refused(coordinator: Coordinator, field: str) -> None:
    invitation = coordinator.invite("dave")
    changed = {"curve_key": bytes(32), "suite": "x25519"}[field]
    told = msgspec.structs.replace(invitation, **{field: changed})
    talk = RegistrationTalk(
        newcomer(told, coordinator.suite), coordinator.registrar(invitation), coordinator.register(invitation)
    )
    with pytest.raises(PeerViolation, match="identity"):
        talk.run()


@pytest.mark.attack("R02")
def test_an_older_temporary_server_key_is_refused(coordinator: Coordinator) -> None:
    """R2 of an earlier registration of the same client: signed by the right identity, over another R1."""
    old = talk_of(coordinator)
    old.run()
    (older,) = old.messages(RegTempServer)
    talk = talk_of(coordinator, tap=lambda turn: older if isinstance(turn.message, RegTempServer) else turn.message)
    with pytest.raises(PeerViolation, match="forged"):
        talk.run()
    assert not talk.messages(RegTempClient)


@pytest.mark.attack("R05")
def test_a_wrong_mac_costs_no_public_key_operation(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds the CURVE key of an invitation, but not its secret, is refused before anything is opened."""
    opened: list[object] = []
    monkeypatch.setattr(rs, "open_sealed", lambda *seen: opened.append(seen))

    def tap(turn: Turn) -> object:
        message = turn.message
        if isinstance(message, RegName):
            return RegName(message.invite_id, message.sealed_name, flipped(message.mac, 0))
        return message

    talk = talk_of(coordinator, tap=tap)
    with pytest.raises(PeerViolation, match="forged"):
        talk.run()
    assert not opened
    assert isinstance(talk.state("coordinator"), rs.Greeted)


def test_a_name_that_is_not_the_invitations_is_refused(coordinator: Coordinator) -> None:
    told = msgspec.structs.replace(coordinator.invite("dave"), name="erin")
    talk = RegistrationTalk(
        newcomer(told, coordinator.suite), coordinator.registrar(coordinator.invite("dave")),
        coordinator.register(told),
    )  # fmt: skip
    with pytest.raises(PeerViolation, match="identity"):
        talk.run()
    assert talk.register.reserved is None


def test_the_invitation_of_another_connection_is_refused(coordinator: Coordinator) -> None:
    registrar = coordinator.registrar(coordinator.invite("dave"))
    with pytest.raises(PeerViolation, match="identity"):
        step(rs.TABLE, registrar, rs.Nothing(), RegHello(coordinator.invite("erin").invite_id))


@pytest.mark.attack("H10")
def test_a_mac_of_one_step_does_not_pass_as_another(coordinator: Coordinator) -> None:
    """R3's MAC offered as R3b's."""

    def tap(turn: Turn) -> object:
        message = turn.message
        if isinstance(message, RegTempClient):
            return RegTempClient(message.sealed_temp_client_key, message.ct1, message.mac, message.mac)
        return message

    with pytest.raises(PeerViolation, match="forged"):
        talk_of(coordinator, tap=tap).run()


def test_a_coordinator_that_confirms_another_card_is_refused(coordinator: Coordinator) -> None:
    """R6 for a card that is not the one sent, by a coordinator that has every key."""
    talk = talk_of(coordinator, tap=lambda turn: None if isinstance(turn.message, RegPermClient) else turn.message)
    talk.run()
    state: rs.PermKeySent = talk.state("coordinator")
    other = registered(coordinator, "erin", "computer")
    committing = rs.Committing(talk.state("client").th, other.card, state.prk)
    done = rs.consume_commit(
        talk.sides["coordinator"].context, committing, rs.Committed(other.certificate, 1)
    ).effects[0].message  # fmt: skip
    before = snapshot(talk.state("client"))
    with pytest.raises(PeerViolation):
        talk.feed("client", done)
    assert snapshot(talk.state("client")) == before


def test_an_error_is_bound_to_the_message_that_it_answers(coordinator: Coordinator) -> None:
    psk = coordinator.registrar(coordinator.invite("dave")).psk
    one = error_mac(psk, b"R1", 11, "expired")
    assert one not in {
        error_mac(psk, b"R3", 11, "expired"), error_mac(psk, b"R1", 12, "expired"),
        error_mac(psk, b"R1", 11, "invite-used"),
    }  # fmt: skip


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_every_registration_message_fits_in_a_control_message(each_world: World) -> None:
    for client in (each_world.alice, each_world.backup):
        for _, data in client.talk.wire:
            assert len(control_frame(ControlKind.REGISTRATION, data)) <= CONTROL_MESSAGE_MAX
