"""How permanent public keys come to the coordinator and to a client: what the document claims of registering
(claims 8 to 11, 29, 30, 43, 50, 61, 85, 107 to 110).

Every seal is opened by hand, with the private key that the document names and with every other one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest

from tests.support.opening import opens
from tests.support.parties import Client, Coordinator, coordinator_of, newcomer, world
from tests.support.talks import RegistrationTalk, Turn, greeted, hello_info, only
from zkc.crypto.cards import verify_card
from zkc.crypto.suites import KemPrivateKey, read_private
from zkc.errors import PeerViolation
from zkc.protocol import registration_client as rc
from zkc.protocol.channel import ClientKeys, consume_answer, create_hello
from zkc.wire.codec import decode
from zkc.wire.messages import (
    RegPermClient,
    RegPermServer,
    RegTempClient,
    RegTempServer,
    SealedPermClient,
    SealedPermServer,
)

QUICK: Final = ("hybrid", "x25519")


@dataclass
class Seen:
    """One registration, with the private keys of both sides as they were when each seal was made, and where."""

    coordinator: Coordinator
    new: rc.Newcomer
    keys: dict[str, KemPrivateKey] = field(default_factory=dict)
    at: dict[str, bytes] = field(default_factory=dict)
    talk: RegistrationTalk = field(init=False)

    def tap(self, turn: Turn) -> object:
        state = turn.state
        for name in ("temp_server", "perm_server", "temp_client"):
            key = getattr(state, name, None)
            if isinstance(key, KemPrivateKey):
                self.keys.setdefault(name, read_private(key.encode()))
        if isinstance(turn.message, RegTempClient):
            self.at["reg-tck"] = state.th.value
        elif isinstance(turn.message, RegPermServer):
            self.at["reg-perm-server"] = state.th.absorb(turn.message.ct2).value
        elif isinstance(turn.message, RegPermClient):
            self.at["reg-perm-client"] = state.th.absorb(turn.message.sealed_to.encode()).value
        return turn.message

    def said(self, kind: type) -> Any:
        (message,) = self.talk.messages(kind)
        return message

    def opened_by(self, label: str, sealed: bytes, others: dict[str, KemPrivateKey]) -> tuple[set[str], bytes]:
        """Which keys open it, and what it holds."""
        keys = self.keys | {"general": self.coordinator.general_key, "perm_client": self.new.kem_key} | others
        found = {name: opens(key, label, self.at[label], sealed) for name, key in keys.items()}
        (held,) = {value for value in found.values() if value is not None}
        return {name for name, value in found.items() if value is not None}, held


def registering(suite: str, name: str, seal_to: str = "permanent") -> Seen:
    coordinator = coordinator_of(suite)
    invitation = coordinator.invite(name, serial=7)
    seen = Seen(coordinator, newcomer(invitation, coordinator.suite, seal_to=seal_to))
    register = coordinator.register(invitation)
    seen.talk = RegistrationTalk(seen.new, coordinator.registrar(invitation), register, seen.tap)
    seen.talk.run()
    assert isinstance(seen.talk.state("client"), rc.Registered)
    return seen


@pytest.mark.claims("A2", "A3", "A6", "A7", "A8", 8, 9, 10, 11, 109)
@pytest.mark.parametrize("suite", QUICK)
def test_sender_and_recipient_give_their_keys_under_temporary_server_keys_that_differ(suite: str) -> None:
    """The key that was sent to it, and no other one, opens what each sends; the coordinator has both keys then."""
    ends = [registering(suite, name, "temporary") for name in ("sender", "recipient")]
    temporary = [seen.said(RegTempServer).temp_server_key for seen in ends]
    assert temporary == [seen.keys["temp_server"].public.encode() for seen in ends]
    assert temporary[0] != temporary[1]
    for seen, other in zip(ends, reversed(ends), strict=True):
        sealed = seen.said(RegPermClient).sealed_card
        opened_by, held = seen.opened_by("reg-perm-client", sealed, {"the other's": other.keys["temp_server"]})
        assert opened_by == {"temp_server"}
        card = verify_card(decode(held, SealedPermClient).card, seen.coordinator.suite)
        (commit,) = seen.talk.register.committed
        assert card.kem_key == seen.new.kem_key.public == commit.card.kem_key
        opened_by, held = seen.opened_by("reg-tck", seen.said(RegTempClient).sealed_temp_client_key, {})
        assert (opened_by, held) == ({"temp_server"}, seen.keys["temp_client"].public.encode())


@pytest.mark.claims("A5", "A6", 29, 30, 43, 50, 61, 85, 107, 108)
@pytest.mark.parametrize("suite", QUICK)
def test_permanent_keys_travel_sealed_and_end_with_whom_they_are_for(suite: str) -> None:
    """The server's opens with the temporary client key alone, the client's with the permanent server key alone."""
    seen, other = registering(suite, "one"), registering(suite, "two")
    sealed = seen.said(RegPermServer).sealed_perm_server_key
    opened_by, held = seen.opened_by("reg-perm-server", sealed, {"the other's": other.keys["temp_client"]})
    assert opened_by == {"temp_client"}
    reserved = seen.talk.register.reserved
    assert reserved is not None
    assert decode(held, SealedPermServer).perm_server_key == reserved.public.encode()
    assert seen.talk.state("client").perm_server == reserved.public.encode()
    opened_by, held = seen.opened_by(
        "reg-perm-client", seen.said(RegPermClient).sealed_card, {"the other's": other.keys["perm_server"]}
    )
    assert opened_by == {"perm_server"}
    (commit,) = seen.talk.register.committed
    assert commit.card.kem_key == seen.new.kem_key.public
    assert decode(held, SealedPermClient).card == commit.card.encoded
    # In clear, neither is to be seen.
    wire = b"".join(data for _, data in seen.talk.wire)
    for key in (reserved.public, seen.new.kem_key.public):
        assert key.raw[-32:] not in wire


@pytest.mark.claims("A5", "A8", 26, 110)
@pytest.mark.parametrize("suite", [*QUICK, "rsa"])
def test_every_client_talks_with_the_coordinator_under_a_pair_of_its_own(suite: str) -> None:
    """What one client encrypts to the coordinator opens with the key made for it, and with none made for another."""
    everyone = world(suite)
    clients = (everyone.alice, everyone.bob, everyone.carol, everyone.backup)
    assert len({client.perm_server.public.encode() for client in clients}) == len(clients)
    for client in clients[:2]:
        for server_side in clients:
            keys = ClientKeys(everyone.suite, client.uid, client.kem_key, client.perm_server.public)
            assert _greets(keys, client, server_side) is (client is server_side)


def _greets(keys: ClientKeys, client: Client, server_side: Client) -> bool:
    """Whether a channel stands between the client and who has the keys of ``server_side`` under the client's uid."""
    sent = create_hello(keys, hello_info(), 0.0)
    try:
        answered = greeted(replace(server_side.peer_keys, uid=client.uid), only(sent))
        consume_answer(keys, sent.state, only(answered))
    except PeerViolation:
        return False
    return True
