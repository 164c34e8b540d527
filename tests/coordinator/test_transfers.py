"""Transfer handshakes through a real coordinator, the ends played by the machines."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.coordinator import Member, NoAnswerError, Peer, RunningCoordinator, coordinator_in, join
from tests.support.waiting import wait_until
from tests.vectors import handshakes
from zkc.constants import CHUNK
from zkc.coordinator import admin
from zkc.crypto.cards import read_coordinator_card, verify_card
from zkc.ids import KeyOrder, KeySource
from zkc.protocol import transfer_recipient as receiving
from zkc.protocol import transfer_sender as sending
from zkc.protocol.step import Step, step
from zkc.protocol.trust import Authority, Known
from zkc.wire.codec import decode, encode
from zkc.wire.messages import (
    DeliverKey,
    Endpoints,
    Failure,
    Heartbeat,
    Key,
    Notify,
    Ok,
    Req,
    TransferAnswer,
    TransferConfirm,
    TransferEnd,
    TransferGrant,
    TransferKey,
    TransferPending,
    TransferRequest,
    WrappedKey,
)

SILENCE = 0.5
HERE = Endpoints(["127.0.0.1"], 1, 2, 0, "", b"")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCoordinator]:
    env = {"ZKC_TRANSFER_KEY_SOURCES": "sender,coordinator"}
    with coordinator_in(tmp_path_factory.mktemp("transfers"), env=env) as coordinator:
        yield coordinator


@dataclass
class Ends:
    """Alice and bob, both connected."""

    alice: Member
    bob: Member
    sender: Peer
    recipient: Peer

    def terms(self, **changes: Any) -> sending.Terms:
        asked: dict[str, Any] = {
            "xid": os.urandom(16), "tid": os.urandom(16), "recipient": self.bob.name, "key_source": "sender",
            "key_order": "recipient-first", "cipher": "aes-256-gcm", "size_class": 10, "fresh": False,
        }
        return sending.Terms(**(asked | changes))

    def request(self, **changes: Any) -> Step:
        """X1, made and not sent."""
        return sending.create_request(as_sender(self.alice), self.terms(**changes))


def authority(member: Member) -> Authority:
    coordinator = read_coordinator_card(member.registered.coordinator_card)
    return Authority(coordinator.identity, coordinator.suite)


def as_sender(member: Member) -> sending.Sender:
    card = verify_card(member.registered.card, authority(member).suite)
    return sending.Sender(authority(member), member.newcomer.identity, member.kem_key, card, Known(), time.time())


def as_recipient(member: Member) -> receiving.Recipient:
    card = verify_card(member.registered.card, authority(member).suite)
    return receiving.Recipient(authority(member), member.newcomer.identity, member.kem_key, card, Known())


def message_of(taken: Step) -> Any:
    (effect,) = taken.effects
    return effect.message


@pytest.fixture(scope="module")
def members(running: RunningCoordinator) -> tuple[Member, Member]:
    return join(running, "alice"), join(running, "bob")


@pytest.fixture
def ends(members: tuple[Member, Member]) -> Iterator[Ends]:
    alice, bob = members
    with alice.open() as sender, bob.open() as recipient:
        yield Ends(alice, bob, sender, recipient)


def notified(ends: Ends) -> tuple[Any, Any]:
    """X2 at bob: the coordinator's request, and his state."""
    request = ends.recipient.next_request()
    assert isinstance(request.body, Notify)
    taken = step(receiving.TABLE, as_recipient(ends.bob), receiving.Idle(), request.body)
    return request, taken.state


def accepted(ends: Ends) -> Any:
    """X3 from bob; his state."""
    request, state = notified(ends)
    taken = step(receiving.TABLE, as_recipient(ends.bob), state, receiving.Accept(HERE, CHUNK, 0))
    ends.recipient.reply(request, message_of(taken))
    return taken.state


def logged_of(running: RunningCoordinator, name: str, xid: str) -> dict[str, Any]:
    """The one event of that name about a transfer: it is written once the answer has gone out."""

    def found() -> list[dict[str, Any]]:
        return [event for event in running.events(name) if event["xid"] == xid]

    wait_until(found)
    (event,) = found()
    return event


# --- whole ----------------------------------------------------------------------


def test_a_sender_made_key_reaches_the_recipient_and_its_confirmation_the_sender(
    ends: Ends, running: RunningCoordinator
) -> None:
    alice, bob = as_sender(ends.alice), as_recipient(ends.bob)
    first = ends.request()
    call = ends.sender.send_request(message_of(first))
    state = accepted(ends)
    grant = ends.sender.answer_to(call)
    assert isinstance(grant, TransferGrant)
    granted = step(sending.TABLE, alice, first.state, grant)
    keyed = step(sending.TABLE, alice, granted.state, sending.MakeKey())
    call = ends.sender.send_request(message_of(keyed))
    request = ends.recipient.next_request()
    assert isinstance(request.body, DeliverKey)
    held = step(receiving.TABLE, bob, state, request.body)
    ends.recipient.reply(request, message_of(held))
    confirmation = ends.sender.answer_to(call)
    assert isinstance(confirmation, TransferConfirm)
    agreed = step(sending.TABLE, alice, keyed.state, confirmation)
    assert agreed.state.session.k.reveal() == held.state.session.k.reveal()
    xid = agreed.state.session.req.xid.hex()
    logged = logged_of(running, "transfer-brokered", xid)
    assert (logged["sender"], logged["recipient"]) == (ends.alice.name, ends.bob.name)


@pytest.mark.parametrize("order", ["recipient-first", "sender-first"])
def test_a_coordinator_made_key_reaches_both_in_either_order(ends: Ends, order: KeyOrder) -> None:
    source: KeySource = "coordinator"
    alice, bob = as_sender(ends.alice), as_recipient(ends.bob)
    first = ends.request(key_source=source, key_order=order)
    call = ends.sender.send_request(message_of(first))
    state = accepted(ends)
    if order == "recipient-first":
        request = ends.recipient.next_request()
        held = step(receiving.TABLE, bob, state, request.body)
        ends.recipient.reply(request, message_of(held))
        state = held.state
    granted = step(sending.TABLE, alice, first.state, ends.sender.answer_to(call))
    confirmed = step(sending.TABLE, alice, granted.state, sending.MakeKey())
    call = ends.sender.send_request(message_of(confirmed))
    request = ends.recipient.next_request()
    last = step(receiving.TABLE, bob, state, request.body)
    ends.recipient.reply(request, message_of(last) if last.effects else Ok())
    agreed = step(sending.TABLE, alice, confirmed.state, ends.sender.answer_to(call))
    assert agreed.state.session.k.reveal() == last.state.session.k.reveal()


@pytest.mark.claims("B6", 7, 22, 44, 51)
def test_every_request_gets_a_key_of_its_own_from_the_coordinator(ends: Ends) -> None:
    """The key as it was wrapped: what the ends derive from it differs by the transcript in any case."""
    made = set()
    for _ in range(2):
        ends.sender.send_request(message_of(ends.request(key_source="coordinator")))
        state = accepted(ends)
        request = ends.recipient.next_request()
        keys = {"recipient_permanent": ends.bob.kem_key, "recipient_one_time": state.one_time}
        wrapped: WrappedKey = decode(request.body.wrapped, WrappedKey)
        made.add(handshakes.unwrap({}, "R", wrapped, state.th.value, keys, "recipient"))
        ends.recipient.refuse(request, 24, "")
    assert len(made) == 2


def test_every_transfer_goes_on_after_a_link_that_broke_with_more_answers_than_are_kept(ends: Ends) -> None:
    """A daemon's sends share one session: of 30 grants lost with the link, ten were kept, and 20 sends failed."""
    requests = [ends.request() for _ in range(30)]
    calls = [ends.sender.send_request(message_of(each)) for each in requests]
    for _ in requests:
        accepted(ends)
    ends.recipient.ask(Heartbeat())  # in order: all answers have been heard
    ends.sender.wire.close()
    ends.sender.wire = ends.alice.connect()
    for call, each in zip(calls, requests, strict=True):
        ends.sender.send_request(message_of(each), call)
    grants = [ends.sender.answer_to(call) for call in calls]
    assert {type(grant) for grant in grants} == {TransferGrant}
    assert ends.recipient.asked == []


# --- refused ----------------------------------------------------------------------


def asked(ends: Ends, **changes: Any) -> Any:
    return ends.sender.ask(message_of(ends.request(**changes)))


@pytest.mark.claims("D1", "D4", 4, 20, 31, 32, 40, 62, 86)
@pytest.mark.parametrize("key_source", ["sender", "coordinator"])
def test_nobody_and_somebody_offline_are_told_apart(
    ends: Ends, running: RunningCoordinator, key_source: str
) -> None:
    """Whoever makes the key: none is made for who is not there."""
    offline = join(running, f"offline-{os.urandom(3).hex()}").name
    assert asked(ends, recipient="nobody", key_source=key_source).detail == "unknown"
    refusal = asked(ends, recipient=offline, key_source=key_source)
    assert (refusal.code, refusal.detail) == (21, "offline")


def test_what_the_coordinators_policy_does_not_allow_never_reaches_the_recipient(ends: Ends) -> None:
    refusal = asked(ends, cipher="3des")
    assert (refusal.code, refusal.detail) == (25, "cipher")
    assert ends.recipient.asked == []


def test_a_transfer_id_is_good_for_one_handshake(ends: Ends, running: RunningCoordinator) -> None:
    first = ends.request()
    call = ends.sender.send_request(message_of(first))
    request, _ = notified(ends)
    changed = TransferRequest(message_of(first).request, bytes(64))
    again = ends.sender.ask(changed)
    assert (again.code, again.detail) == (25, "replay")
    ends.recipient.refuse(request, 25, "accept")
    assert ends.sender.answer_to(call) == Failure(call, 25, "accept")
    logged = logged_of(running, "transfer-refused", decode(message_of(first).request, Req).xid.hex())
    assert (logged["sender"], logged["code"], logged["detail"]) == (ends.alice.name, 25, "accept")
    again = ends.sender.ask(changed)
    assert (again.code, again.detail) == (25, "replay")
    again = ends.sender.ask(message_of(first))
    assert (again.code, again.detail) == (25, "accept"), "the same bytes are told the same"
    assert ends.recipient.asked == []


def test_a_recipient_cannot_speak_for_the_coordinator(ends: Ends) -> None:
    call = ends.sender.send_request(message_of(ends.request()))
    request, _ = notified(ends)
    ends.recipient.refuse(request, 11, "revoked")
    assert ends.sender.answer_to(call).code == 25


def test_a_recipient_that_answers_nonsense_ends_the_handshake(ends: Ends) -> None:
    call = ends.sender.send_request(message_of(ends.request()))
    request, _ = notified(ends)
    ends.recipient.reply(request, Ok())
    refusal = ends.sender.answer_to(call)
    assert (refusal.code, refusal.detail) == (1, "unexpected")
    assert isinstance(ends.recipient.next_request().body, TransferEnd)


def test_a_key_without_a_handshake_is_refused(ends: Ends, running: RunningCoordinator) -> None:
    key = encode(Key(os.urandom(16), b"", b"", b""))
    refusal = ends.sender.ask(TransferKey(key, bytes(64)))
    assert (refusal.code, refusal.detail) == (31, "unknown-transfer")
    call = ends.sender.send_request(message_of(first := ends.request()))
    accepted(ends)
    ends.sender.answer_to(call)
    # Not the recipient's to give, nor anybody else's.
    req: Req = decode(message_of(first).request, Req)
    refusal = ends.recipient.ask(TransferKey(encode(Key(req.xid, b"", b"", b"")), bytes(64)))
    assert (refusal.code, refusal.detail) == (12, "identity")
    # A key before its turn is not a key.
    third = ends.request()
    ends.sender.send_request(message_of(third))
    notified(ends)
    req = decode(message_of(third).request, Req)
    refusal = ends.sender.ask(TransferKey(encode(Key(req.xid, b"", b"", b"")), bytes(64)))
    assert (refusal.code, refusal.detail) == (1, "unexpected")


def test_a_request_that_is_no_request_is_refused(ends: Ends) -> None:
    refusal = ends.sender.ask(TransferRequest(b"\xc1", bytes(64)))
    assert (refusal.code, refusal.detail) == (1, "malformed")
    assert ends.sender.ask(Heartbeat()) == Ok()


def test_requests_of_one_sender_in_a_second_are_bounded(tmp_path: Path) -> None:
    with coordinator_in(tmp_path, env={"ZKC_LIMITS_PER_SECOND": "3"}) as coordinator:
        alice = join(coordinator, "alice")
        with alice.open() as sender:
            ends = Ends(alice, alice, sender, sender)
            # Made before: so many that they do not take as many seconds as would let them all pass.
            requests = [message_of(ends.request(recipient="nobody")) for _ in range(100)]
            began = int(time.monotonic())
            calls = [sender.send_request(request) for request in requests]
            details = [sender.answer_to(call).detail for call in calls]
            seconds = int(time.monotonic()) - began + 1
    assert set(details) == {"unknown", "limit"}
    assert details.count("unknown") <= 3 * seconds, "three in each second of the coordinator's clock, which is ours"


def test_handshakes_of_one_sender_are_bounded(tmp_path: Path) -> None:
    with coordinator_in(tmp_path, env={"ZKC_LIMITS_HANDSHAKES_PER_CLIENT": "2"}) as coordinator:
        alice, bob = join(coordinator, "alice"), join(coordinator, "bob")
        with alice.open() as sender, bob.open() as recipient:
            ends = Ends(alice, bob, sender, recipient)
            calls = [sender.send_request(message_of(ends.request())) for _ in range(2)]
            assert asked(ends).detail == "limit"
            request, _ = notified(ends)
            recipient.refuse(request, 24, "")
            assert {call: sender.answer_to(call).code for call in calls[:1]} == {calls[0]: 24}
            assert coordinator.counters["transfers.open"] == 1
            sender.send_request(message_of(ends.request()))
            wait_until(lambda: coordinator.counters["transfers.open"] == 2)


# --- broken off ----------------------------------------------------------------------


def test_either_end_may_give_up_and_the_other_is_told(ends: Ends) -> None:
    call = ends.sender.send_request(message_of(first := ends.request()))
    xid = decode(message_of(first).request, Req).xid
    request, _ = notified(ends)
    assert ends.sender.ask(TransferEnd(xid, 31, "interrupted")) == Ok()
    assert ends.sender.answer_to(call) == Failure(call, 31, "interrupted")
    assert ends.recipient.next_request().body == TransferEnd(xid, 31, "interrupted")
    ends.recipient.reply(request, Ok())

    call = ends.sender.send_request(message_of(first := ends.request()))
    xid = decode(message_of(first).request, Req).xid
    accepted(ends)
    assert isinstance(ends.sender.answer_to(call), TransferGrant)
    assert ends.recipient.ask(TransferEnd(xid, 33, "no-space")) == Ok()
    assert ends.sender.next_request().body == TransferEnd(xid, 33, "no-space")


def test_a_bystander_cannot_end_a_transfer(ends: Ends, running: RunningCoordinator) -> None:
    call = ends.sender.send_request(message_of(first := ends.request()))
    xid = decode(message_of(first).request, Req).xid
    request, _ = notified(ends)
    with join(running, f"bystander-{os.urandom(3).hex()}").open() as bystander:
        assert bystander.ask(TransferEnd(xid, 31, "interrupted")) == Ok()
    with pytest.raises(NoAnswerError):
        ends.sender.answer_to(call, SILENCE)
    ends.recipient.refuse(request, 24, "")
    assert ends.sender.answer_to(call).code == 24


def test_an_answer_after_a_person_was_asked_is_the_recipients_alone(ends: Ends, running: RunningCoordinator) -> None:
    asked = message_of(first := ends.request())
    xid = first.state.req.xid
    call = ends.sender.send_request(asked)
    request, state = notified(ends)
    ends.recipient.reply(request, TransferPending())
    assert ends.sender.answer_to(call) == TransferPending()
    again = ends.sender.send_request(asked)
    forged = TransferAnswer(xid, b"response", bytes(64))
    with join(running, f"bystander-{os.urandom(3).hex()}").open() as bystander:
        for other in (bystander, ends.sender):
            assert other.ask(forged).detail == "identity"
    with pytest.raises(NoAnswerError):
        ends.sender.answer_to(again, SILENCE)
    taken = step(receiving.TABLE, as_recipient(ends.bob), state, receiving.Accept(HERE, CHUNK, 0))
    response = message_of(taken)
    assert ends.recipient.ask(TransferAnswer(xid, response.response, response.signature)) == Ok()
    assert ends.sender.answer_to(again).response == response.response
    # Once is enough.
    assert ends.recipient.ask(TransferAnswer(xid, response.response, response.signature)).detail == "unexpected"


@pytest.mark.claims("D1", 62, 86)
@pytest.mark.attack("C15")
def test_a_sender_is_told_when_the_recipient_goes_away_in_the_middle(members: tuple[Member, Member]) -> None:
    alice, bob = members
    with alice.open() as sender:
        recipient = bob.open()
        ends = Ends(alice, bob, sender, recipient)
        call = sender.send_request(message_of(ends.request()))
        notified(ends)
        recipient.close()
        began = time.monotonic()
        refusal = sender.answer_to(call)
        assert (refusal.code, refusal.detail) == (21, "offline")
        assert time.monotonic() - began < 20.0
        again = asked(ends)
        assert (again.code, again.detail) == (21, "offline")


def test_a_recipient_that_was_revoked_is_unknown(running: RunningCoordinator, members: tuple[Member, Member]) -> None:
    name = f"gone-{os.urandom(3).hex()}"
    bob = join(running, name)
    with members[0].open() as sender, bob.open() as recipient:
        ends = Ends(members[0], bob, sender, recipient)
        call = sender.send_request(message_of(ends.request()))
        notified(ends)
        admin.revoke(running.home, name)
        assert sender.answer_to(call).code == 20
        assert asked(ends).code == 20


def test_a_crash_costs_a_retry_and_nothing_else(tmp_path: Path) -> None:
    with coordinator_in(tmp_path) as coordinator:
        alice, bob = join(coordinator, "alice"), join(coordinator, "bob")
        with alice.open() as sender, bob.open() as recipient:
            ends = Ends(alice, bob, sender, recipient)
            sender.send_request(message_of(ends.request()))
            notified(ends)
            coordinator.kill_child()
        with alice.open() as sender, bob.open() as recipient:
            ends = Ends(alice, bob, sender, recipient)
            call = sender.send_request(message_of(ends.request()))
            accepted(ends)
            assert isinstance(sender.answer_to(call), TransferGrant)

