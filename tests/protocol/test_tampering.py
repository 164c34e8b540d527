"""Every field of every message, damaged on its way: refused at the next MAC, signature or decoding; nothing moves.

The suite damages a sample of the bytes, `scripts/soak` every one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.support.link import flipped, places, sampled
from tests.support.parties import World, coordinator_of, newcomer
from tests.support.talks import RegistrationTalk, TransferTalk, Turn, snapshot, spans, terms
from zkc.errors import IdentityError, PeerViolation, VersionMismatch
from zkc.ids import KeyOrder, KeySource
from zkc.protocol.step import step
from zkc.protocol.transfer_coordinator import FailSender
from zkc.wire.codec import decode, encode
from zkc.wire.messages import (
    DeliverConfirmation,
    DeliverKey,
    DeliverSessionKey,
    Notify,
    Ok,
    RegMessage,
    TransferConfirm,
    TransferConfirmKey,
    TransferGrant,
    TransferKey,
    TransferRequest,
    TransferResponse,
)

REFUSALS = (PeerViolation, IdentityError, VersionMismatch)
"""What an end raises at a message that did not come as it was sent."""

FORMS = [("sender", "recipient-first"), ("coordinator", "recipient-first"), ("coordinator", "sender-first")]
each_form = pytest.mark.parametrize("form", FORMS, ids=["sender-made", "recipient-first", "sender-first"])
Form = tuple[KeySource, KeyOrder]

CHECKED_ON_ARRIVAL = (Notify, TransferGrant, DeliverKey, DeliverSessionKey, DeliverConfirmation)
"""What an end takes from the coordinator; what the coordinator takes it passes on, and an end checks it."""
PASSED_ON = (TransferRequest, TransferResponse, TransferKey, TransferConfirm, TransferConfirmKey)


def damaged(message: msgspec.Struct, count: int) -> Iterator[tuple[str, bytes]]:
    """(field, encoding with one bit flipped in it): ``count`` places in each field, evenly, its ends among them."""
    encoded = encode(message)
    for name, (start, end) in spans(message).items():
        for place in places(start, end, count):
            yield f"{type(message).__name__}.{name} at {place}", flipped(encoded, place, 1 << place % 8)


def refuses(turn: Turn, encoded: bytes, grammar: Any) -> bool:
    """Whether a machine refuses the message in ``encoded``."""
    try:
        step(turn.table, turn.context, turn.state, decode(encoded, grammar))
    except REFUSALS:
        return True
    return False


@pytest.mark.attack("P01")
@sampled(40)
@pytest.mark.parametrize("suite", ["hybrid", "x25519"])
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("seal_to", ["permanent", "temporary"])
def test_no_damaged_registration_message_moves_a_state(
    suite: str, apart: bool, seal_to: str, count: int
) -> None:
    """R0 to R6: after all damage the true message still counts, and the registration ends well. Every byte in the
    soak."""
    coordinator = coordinator_of(suite)
    invitation = coordinator.invite("dave")
    new = newcomer(invitation, coordinator.suite, request_apart=apart, seal_to=seal_to)
    tried: list[str] = []

    def tap(turn: Turn) -> object:
        before = snapshot(turn.state)
        for what, encoded in damaged(turn.message, count):
            assert refuses(turn, encoded, RegMessage), what
            tried.append(what)
        assert snapshot(turn.state) == before
        return turn.message

    talk = RegistrationTalk(new, coordinator.registrar(invitation), coordinator.register(invitation), tap)
    talk.run()
    assert type(talk.state("client")).__name__ == type(talk.state("coordinator")).__name__ == "Registered"
    assert len(talk.register.committed) == 1
    assert {what.split(".")[0] for what in tried} >= {"RegHello", "RegTempClient", "RegDone"}


@pytest.mark.attack("P01", "H03", "H07", "H08")
@sampled(120)
@each_form
def test_no_damaged_message_of_a_transfer_moves_the_end_that_takes_it(
    quick_world: World, form: Form, count: int
) -> None:
    """X2, X4, X5, X6 and G1 to G4 at sender and recipient, the damage refused where it arrives; every byte in the
    soak."""
    talk = quick_world.transfer(terms("bob", key_source=form[0], key_order=form[1]))

    def tap(turn: Turn) -> object:
        if turn.to != "coordinator" and not isinstance(turn.message, Ok):
            before = snapshot(turn.state)
            for what, encoded in damaged(turn.message, count):
                assert refuses(turn, encoded, talk.grammar), what
            assert snapshot(turn.state) == before
        return turn.message

    talk.tap = tap
    talk.run()
    assert talk.agreed == (True, True)
    assert {type(message) for message in talk.messages(*CHECKED_ON_ARRIVAL)} <= set(CHECKED_ON_ARRIVAL)


@pytest.mark.attack("P01", "H03", "H05", "H07", "H08")
@sampled(50)
@each_form
@pytest.mark.parametrize("kind", PASSED_ON, ids=lambda kind: kind.__name__)
def test_what_is_damaged_before_the_coordinator_ends_at_the_next_check(
    default_world: World, form: Form, kind: type, count: int
) -> None:
    """The coordinator checks no signature: the end that is meant refuses, does not move, and agrees on nothing.
    Every byte in the soak."""
    clean = default_world.transfer(terms("bob", key_source=form[0], key_order=form[1]))
    clean.run()
    sent = [message for to, message in zip((to for to, _ in clean.wire), clean.messages(object), strict=True)
            if to == "coordinator" and isinstance(message, kind)]  # fmt: skip
    for message in sent:
        for place_of in spans(message).values():
            for place in places(*place_of, count):
                _damage_once(default_world, form, kind, place)


def _damage_once(world: World, form: Form, kind: type, place: int) -> None:
    talk = world.transfer(terms("bob", key_source=form[0], key_order=form[1]))
    sent_by: list[str] = []

    def tap(turn: Turn) -> object:
        if turn.to == "coordinator" and isinstance(turn.message, kind) and not sent_by:
            sent_by.append("recipient" if kind in (TransferResponse, TransferConfirm) else "sender")
            encoded = encode(turn.message)
            return decode(flipped(encoded, place, 1 << place % 8), talk.grammar)
        return turn.message

    talk.tap = tap
    try:
        talk.run()
    except REFUSALS:
        pass
    else:
        assert talk.failure == FailSender(40, "version"), "an answer of another version ends at the coordinator"
    (origin,) = sent_by
    assert not talk.agreed[0 if origin == "recipient" else 1]


@pytest.mark.attack("P01")
@each_form
def test_a_message_that_is_cut_short_or_drawn_out_is_refused(default_world: World, form: Form) -> None:
    talk: TransferTalk = default_world.transfer(terms("bob", key_source=form[0], key_order=form[1]))
    talk.run()
    for _, encoded in talk.wire:
        for bad in (b"", encoded[:-1], encoded[:1], encoded + b"\0", encoded + encoded):
            with pytest.raises(PeerViolation, match="malformed"):
                decode(bad, talk.grammar)
