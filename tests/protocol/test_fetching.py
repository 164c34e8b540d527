"""T1 to T5 between the asker, a coordinator in between, and the client that is to send."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from tests.support.parties import Client, World
from zkc.crypto.primitives import digest
from zkc.crypto.receipts import make_receipt
from zkc.errors import IdentityError, PeerViolation, PolicyRefused
from zkc.protocol import fetching as machine
from zkc.protocol.step import step
from zkc.protocol.trust import Known
from zkc.wire.codec import decode, encode
from zkc.wire.messages import (
    Ask,
    Ask0,
    AskFrom,
    AskReply,
    AskState,
    AskStep,
    AskWhat,
    ReceiptBody,
    ShareLine,
    ShareList,
)

QID, TID, NONCE = b"q" * 16, b"t" * 16, b"n" * 32
WHAT = AskWhat("builds", "nightly.tar", "", ["*.o"])
TAKEN = machine.Verdict(0, "")
REFUSED = (PeerViolation, IdentityError)


def party(client: Client, known: Known | None = None) -> machine.Party:
    return machine.Party(client.coordinator.authority, client.identity, client.kem_key, client.card, known or Known())


def from_(client: Client, message: AskStep) -> AskFrom:
    """What an honest coordinator makes of a step of ``client``."""
    return AskFrom(client.name, message.body, message.signature, client.card.encoded, client.certificate)


def of(client: Client, reply: AskReply) -> AskReply:
    return AskReply(reply.body, reply.signature, client.card.encoded, client.certificate)


@dataclass
class Talk:
    """Carol asks alice to send to bob; each step by hand."""

    world: World

    def __post_init__(self) -> None:
        self.q, self.a = party(self.world.carol), party(self.world.alice)
        self.wish = machine.Wish(self.world.bob.card.fingerprint, TID, WHAT)

    def challenge(self) -> tuple[Any, Any, AskFrom, AskReply]:
        first = machine.create_ask0(self.q, QID, "alice", "bob")
        t1 = from_(self.world.carol, first.effects[0].message)
        answered = step(machine.SENDER, self.a, machine.Idle(NONCE), t1)
        t2 = of(self.world.alice, answered.effects[0].message)
        return first.state, answered.state, t1, t2

    def asked(self) -> tuple[Any, Any, AskFrom]:
        q, a, _, t2 = self.challenge()
        asking = step(machine.ASKER, self.q, step(machine.ASKER, self.q, q, t2).state, self.wish)
        return asking.state, a, from_(self.world.carol, asking.effects[0].message)

    def running(self, verdict: machine.Verdict = TAKEN) -> tuple[Any, Any]:
        q, a, t3 = self.asked()
        judging = step(machine.SENDER, self.a, a, t3).state
        assert (judging.what, judging.hash, judging.asker.name) == (WHAT, digest(t3.body), "carol")
        answered = step(machine.SENDER, self.a, judging, verdict)
        return step(machine.ASKER, self.q, q, of(self.world.alice, answered.effects[0].message)).state, answered.state


@pytest.fixture
def talk(default_world: World) -> Talk:
    return Talk(default_world)


def news(receipt: bytes = b"", *, over: bool = False) -> AskState:
    return AskState("nightly.tar", 7, 3, "direct", 0, "sender", "aes-256-gcm", over, 0, "", receipt, False)


@pytest.mark.claims("B8", 1, 2)
def test_a_third_client_asks_and_hears_how_it_goes(talk: Talk) -> None:
    q, a = talk.running()
    told = step(machine.SENDER, talk.a, a, news()).effects[0].message
    assert step(machine.ASKER, talk.q, q, told).effects == (machine.Told(news()),)


def test_a_refusal_is_an_error_of_the_contract(talk: Talk) -> None:
    with pytest.raises(PolicyRefused, match="zkc shares alice"):
        talk.running(machine.Verdict(25, "share"))


def test_what_is_illegal_in_a_state_does_nothing(talk: Talk) -> None:
    """Every message in every state that has no cell for it."""
    q0, a0, t1, t2 = talk.challenge()
    q1, a1, t3 = talk.asked()
    q2, a2 = talk.running()
    for table, states in ((machine.ASKER, (q0, q1, q2)), (machine.SENDER, (machine.Idle(NONCE), a0, a1, a2))):
        for state in states:
            for message in (t1, t2, t3, talk.wish, machine.Verdict(0, ""), news()):
                if (type(state), type(message)) not in table:
                    with pytest.raises(PeerViolation, match="unexpected"):
                        step(table, talk.q, state, message)


@pytest.mark.attack("P09")
def test_an_identity_of_the_right_name_is_not_the_asker(talk: Talk) -> None:
    """The coordinator has no key of carol's: whatever it puts together in her name fails."""
    _, a, t3 = talk.asked()
    ask = decode(t3.body, Ask)
    forged = [
        msgspec.structs.replace(t3, signature=talk.world.bob.identity.sign("ask", bytes(32))),
        msgspec.structs.replace(t3, signature=bytes(64)),
        msgspec.structs.replace(t3, body=encode(msgspec.structs.replace(ask, recipient="carol"))),
        msgspec.structs.replace(t3, body=encode(msgspec.structs.replace(ask, fingerprint=bytes(32)))),
        msgspec.structs.replace(t3, body=encode(msgspec.structs.replace(ask, tid=bytes(16)))),
        msgspec.structs.replace(t3, body=encode(msgspec.structs.replace(ask, sealed=ask.sealed[:-1] + b"\0"))),
    ]
    for message in forged:
        with pytest.raises(REFUSED):
            step(machine.SENDER, talk.a, a, message)
    bobs = dataclasses.replace(party(talk.world.alice), known=Known(fingerprint=talk.world.bob.card.fingerprint))
    with pytest.raises(IdentityError):
        step(machine.SENDER, bobs, machine.Idle(NONCE), talk.challenge()[2])


def test_a_signed_ask_is_worth_nothing_to_another_nonce(talk: Talk) -> None:
    _, _, t3 = talk.asked()
    *_, t1, _ = talk.challenge()
    other = step(machine.SENDER, talk.a, machine.Idle(b"m" * 32), t1).state
    with pytest.raises(PeerViolation, match="identity"):
        step(machine.SENDER, talk.a, other, t3)


def test_a_flipped_byte_anywhere_ends_it(talk: Talk) -> None:
    q, _, t1, t2 = talk.challenge()
    _, a3, t3 = talk.asked()
    for state, message, table, who in (
        (q, t2, machine.ASKER, talk.q), (a3, t3, machine.SENDER, talk.a),
        (machine.Idle(NONCE), t1, machine.SENDER, talk.a),
    ):
        body: bytes = message.body
        for at in range(0, len(body), max(len(body) // 40, 1)):
            flipped = body[:at] + bytes((body[at] ^ 1,)) + body[at + 1 :]
            changed = msgspec.structs.replace(message, body=flipped)
            try:
                after = step(table, who, state, changed)
            except REFUSED:
                continue
            # ASK0 bears no signature: what was changed in it, its asker finds in the nonce's signature.
            assert isinstance(after.state, machine.Awaiting)
            with pytest.raises(REFUSED):
                step(machine.ASKER, talk.q, q, of(talk.world.alice, after.effects[0].message))


def test_the_sender_is_the_one_whose_name_was_called(talk: Talk) -> None:
    q, _, _, t2 = talk.challenge()
    bob = talk.world.bob
    with pytest.raises(IdentityError):
        step(machine.ASKER, talk.q, q, AskReply(t2.body, t2.signature, bob.card.encoded, bob.certificate))


def receipt(talk: Talk, asked: bytes, **changes: object) -> bytes:
    bob, alice = talk.world.bob, talk.world.alice
    body = ReceiptBody(
        TID, bytes(16), bytes(32), "alice", alice.card.fingerprint, "bob", bob.card.fingerprint, bob.card.hash,
        bytes(32), 7, bytes(32), bytes(32), "sender", "aes-256-gcm", "online", 0, True, asked, "carol", 1, 2,
    )
    return make_receipt(bob.identity, msgspec.structs.replace(body, **changes), bob.card.encoded)


def test_only_a_receipt_of_this_request_is_one(talk: Talk) -> None:
    q, _ = talk.running()
    asked = q.requested.hash
    genuine = receipt(talk, asked)
    assert machine.check_receipt(q, genuine).body.size == 7
    for changes in (
        {"asker": b""}, {"asker": bytes(32)}, {"tid": bytes(16)}, {"sender": "carol"}, {"asked_by": "dave"},
    ):
        with pytest.raises(PeerViolation, match="forged"):
            machine.check_receipt(q, receipt(talk, asked, **changes))
    with pytest.raises(PeerViolation):
        machine.check_receipt(q, genuine[:200] + bytes((genuine[200] ^ 1,)) + genuine[201:])


def test_shares_are_listed_for_the_asker_alone(talk: Talk) -> None:
    first = machine.create_ask0(talk.q, QID, "alice", "")
    listed = ShareList([ShareLine("builds", "nightly", ["carol"], "folder")])
    message = from_(talk.world.carol, first.effects[0].message)
    reply = of(talk.world.alice, machine.answer_shares(talk.a, message, listed))
    assert machine.consume_shares(talk.q, first.state, reply) == listed
    with pytest.raises(PeerViolation):
        machine.consume_shares(party(talk.world.bob), first.state, reply)
    assert decode(message.body, Ask0).recipient == ""
