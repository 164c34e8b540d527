"""New keys for a registered client: what the coordinator keeps, for how long, and who may use it."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from tests.support.coordinator import Member, RunningCoordinator, join
from tests.support.waiting import wait_until
from zkc.crypto.cards import read_coordinator_card, verify_card
from zkc.crypto.signing import IdentityKey
from zkc.crypto.successions import make_succession
from zkc.crypto.suites import suite_named
from zkc.net.monitor import EventKind
from zkc.net.sockets import generate_curve, to_raw
from zkc.protocol.rotation import Renewal, consume_rotated, create_rotate, next_card
from zkc.protocol.trust import Authority
from zkc.wire.messages import Failure, Heartbeat, LookUp, Ok, PeerCard, Rotated


class Next:
    """A member's next keys, and the member that it is with them. ``identity``: a new one, too."""

    def __init__(self, member: Member, curve: Any = None, identity: IdentityKey | None = None) -> None:
        suite = suite_named(member.newcomer.invitation.suite)
        self.member, self.kem_key, self.curve = member, suite.generate(), curve or generate_curve()
        present = verify_card(member.registered.card, suite)
        former = member.newcomer.identity
        self.identity = identity or former
        word = make_succession(present.name, former, identity, present.body.epoch + 1) if identity else b""
        card = next_card(present, self.identity, self.kem_key.public, int(time.time()) + 1000, None)
        self.renewal = Renewal(
            self.identity, verify_card(card, suite), self.kem_key, to_raw(self.curve.public), word
        )
        self.message = create_rotate(self.renewal)

    def after(self, answer: Rotated) -> Member:
        coordinator = read_coordinator_card(self.member.registered.coordinator_card)
        perm_server = consume_rotated(Authority(coordinator.identity, coordinator.suite), self.renewal, answer)
        newcomer = replace(self.member.newcomer, curve=self.curve, identity=self.identity)
        newcomer.kem_key = self.kem_key
        registered = replace(self.member.registered, card=self.renewal.card.encoded, perm_server=perm_server)
        return Member(newcomer, registered, self.member.endpoint)


def former_keys(running: RunningCoordinator) -> int:
    with closing(sqlite3.connect(running.home.keys_db)) as db:
        return int(db.execute("SELECT count(*) FROM former_keys").fetchone()[0])


def test_the_former_keys_serve_until_a_channel_stands_under_the_new_ones(running: RunningCoordinator) -> None:
    """A client that never heard ROT2, or died before it stored it, comes back with what it has, and asks again."""
    member = join(running, "forgets")
    renewed = Next(member)
    with member.open("once") as peer:
        first = peer.ask(renewed.message)
    with member.open("once") as peer:
        again = peer.ask(renewed.message)
        looked = peer.ask(LookUp("forgets"))
    assert isinstance(looked, PeerCard)
    assert looked.card == renewed.renewal.card.encoded
    after = renewed.after(again)
    assert renewed.after(first).registered.perm_server == after.registered.perm_server
    assert former_keys(running) == 1
    with after.open("once") as peer:
        assert peer.ask(Heartbeat()) == Ok()
        assert former_keys(running) == 0
        with member.connect() as stale:
            assert stale.verdict() is EventKind.HANDSHAKE_FAILED_AUTH
    # And the next ones follow them.
    with after.open("once") as peer:
        assert isinstance(peer.ask(Next(after).message), Rotated)


@pytest.mark.attack("K04", "H13")
@pytest.mark.parametrize("killed", [False, True])
def test_who_is_connected_with_a_former_identity_is_out_with_the_first_channel_of_the_new_one(
    running: RunningCoordinator, *, killed: bool
) -> None:
    """A thief of a client's keys, with a channel of his; also where the coordinator died in between."""
    member = join(running, f"stolen{int(killed)}")
    renewed = Next(member, identity=IdentityKey.from_seed(os.urandom(64)))
    with member.open("once") as peer:
        answer = peer.ask(renewed.message)
    if killed:
        running.kill_child()
    with member.open() as thief, renewed.after(answer).open("once") as peer:
        thief.wire.wait_event(EventKind.HANDSHAKE_FAILED_AUTH)
        assert peer.ask(Heartbeat()) == Ok()


@pytest.mark.attack("K08")
def test_of_two_copies_that_renew_at_once_one_wins(running: RunningCoordinator) -> None:
    member = join(running, "twohomes")
    one, other = Next(member), Next(member)
    with member.open("once") as first, member.open("once") as second:
        calls = first.send_request(one.message), second.send_request(other.message)
        answers = first.answer_to(calls[0]), second.answer_to(calls[1])
    won = [isinstance(answer, Rotated) for answer in answers]
    assert sorted(won) == [False, True]
    lost = answers[won.index(False)]
    assert isinstance(lost, Failure)
    assert (lost.code, lost.detail) == (12, "epoch")
    winner = (one, other)[won.index(True)]
    with winner.after(answers[won.index(True)]).open("once") as peer:
        found = peer.ask(LookUp("twohomes"))
        assert isinstance(found, PeerCard)
        assert found.card == winner.renewal.card.encoded


def test_nobody_takes_the_curve_key_of_another(running: RunningCoordinator) -> None:
    """It is no secret, and whoever registered first would be taken for its owner."""
    early, late = join(running, "early"), join(running, "late")
    with early.open("once") as peer:
        answer = peer.ask(Next(early, late.newcomer.curve).message)
    assert isinstance(answer, Failure)
    assert (answer.code, answer.detail) == (12, "bad-key")
    with late.open("once") as peer:
        assert peer.ask(Heartbeat()) == Ok()


def test_what_is_under_way_goes_on(running: RunningCoordinator) -> None:
    """The channel from before a rotation serves on, and so does a daemon's: it stays online all the time."""
    member = join(running, "goeson")
    renewed, instance = Next(member), os.urandom(16)
    with member.open("daemon", instance) as before:
        answer = before.ask(renewed.message)
        with renewed.after(answer).open("daemon", instance):
            events = [each for each in running.events("offline") if each["name"] == "goeson"]
            assert events == []
        wait_until(lambda: any(each["name"] == "goeson" for each in running.events("offline")))
