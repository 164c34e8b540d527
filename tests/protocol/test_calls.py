"""Requests and answers in a channel: each done once and answered, whatever the link does."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.env import FixedClock, SeededEntropy
from tests.support.link import HOSTILE, ROUGH, Faults, Link
from tests.support.parties import World
from tests.support.talks import open_channel
from zkc.constants import ANSWERS_KEPT_MAX, ASKED_MAX, ASKED_NEW_MAX, RETRY_SECONDS
from zkc.errors import PeerViolation
from zkc.protocol.calls import Asked, Calls, Expired, Outgoing, Replied
from zkc.protocol.channel import Channel
from zkc.wire.codec import encode
from zkc.wire.messages import (
    Answer,
    DeliverKey,
    Failure,
    Goodbye,
    Heartbeat,
    ListPeers,
    LookUp,
    Notify,
    Ok,
    PeerPage,
    Request,
    RequestBody,
    Revoked,
    TransferEnd,
    TransferKey,
    TransferRequest,
)


def ident(n: int) -> bytes:
    return n.to_bytes(16, "big")


@pytest.fixture
def pair() -> tuple[Calls[str], Calls[str]]:
    """Who asks, who answers."""
    return Calls(), Calls()


# --- one request ----------------------------------------------------------------------------------------------------


def test_a_request_is_answered_under_its_id(pair: tuple[Calls[str], Calls[str]]) -> None:
    asker, answerer = pair
    asked = answerer.receive(asker.request(ident(1), LookUp("bob"), 0.0, 10.0), "here")
    assert asked == Asked(ident(1), LookUp("bob"))
    answer = answerer.answer(ident(1), Ok())
    assert answer.via == "here"
    assert asker.receive(answer.plaintext, "there") == Replied(ident(1), Ok())


def test_a_refusal_comes_back_with_its_code(pair: tuple[Calls[str], Calls[str]]) -> None:
    asker, answerer = pair
    answerer.receive(asker.request(ident(1), LookUp("nobody"), 0.0, 10.0), "here")
    refusal = answerer.fail(ident(1), 20, "no such name")
    assert asker.receive(refusal.plaintext, "") == Replied(ident(1), Failure(ident(1), 20, "no such name"))


def test_a_repeated_request_gets_the_stored_answer_and_is_not_done_again(
    pair: tuple[Calls[str], Calls[str]],
) -> None:
    asker, answerer = pair
    request = asker.request(ident(1), Heartbeat(), 0.0, 10.0)
    answerer.receive(request, "old way")
    answer = answerer.answer(ident(1), Ok())
    for _ in range(3):
        assert answerer.receive(request, "new way") == Outgoing("new way", answer.plaintext)


def test_a_request_that_comes_again_before_its_answer_is_done_once_and_answered_where_it_came_from_last(
    pair: tuple[Calls[str], Calls[str]],
) -> None:
    """The newest valid record decides where the peer is."""
    asker, answerer = pair
    request = asker.request(ident(1), Heartbeat(), 0.0, 10.0)
    assert isinstance(answerer.receive(request, "old way"), Asked)
    assert answerer.receive(request, "new way") is None
    assert answerer.answer(ident(1), Ok()).via == "new way"


def test_an_answer_that_nobody_waits_for_is_nothing(pair: tuple[Calls[str], Calls[str]]) -> None:
    """Given up, expired, repeated or never asked."""
    asker, answerer = pair
    request = asker.request(ident(1), Heartbeat(), 0.0, 10.0)
    answerer.receive(request, "")
    answer = answerer.answer(ident(1), Ok()).plaintext
    assert isinstance(asker.receive(answer, ""), Replied)
    assert asker.receive(answer, "") is None
    assert asker.receive(encode(Answer(ident(9), Ok())), "") is None
    asker.request(ident(2), Heartbeat(), 0.0, 10.0)
    asker.forget(ident(2))
    assert asker.receive(encode(Answer(ident(2), Ok())), "") is None


# --- time -----------------------------------------------------------------------------------------------------------


def test_an_unanswered_request_is_repeated_until_its_deadline(pair: tuple[Calls[str], Calls[str]]) -> None:
    asker, _ = pair
    request = asker.request(ident(1), Heartbeat(), 100.0, 105.0)
    assert asker.tick(100.0 + RETRY_SECONDS - 0.1) == []
    assert asker.tick(100.0 + RETRY_SECONDS) == [Outgoing(None, request)]
    assert asker.tick(104.9) == [Outgoing(None, request)]
    assert asker.tick(105.0) == [Expired(ident(1))]
    assert asker.tick(1e9) == []


def test_a_link_that_is_back_carries_every_open_request_again(pair: tuple[Calls[str], Calls[str]]) -> None:
    asker, _ = pair
    plaintexts = [asker.request(ident(i), Heartbeat(), 0.0, 60.0) for i in range(3)]
    assert asker.resend(7.0) == [Outgoing(None, plaintext) for plaintext in plaintexts]
    assert asker.tick(7.0 + RETRY_SECONDS - 0.1) == []
    assert len(asker.tick(7.0 + RETRY_SECONDS)) == 3


def test_when_the_peer_is_gone_every_open_request_is_given_up(pair: tuple[Calls[str], Calls[str]]) -> None:
    asker, _ = pair
    for i in range(3):
        asker.request(ident(i), Heartbeat(), 0.0, 60.0)
    assert asker.abandon() == [Expired(ident(i)) for i in range(3)]
    assert asker.abandon() == []


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_more_requests_at_once_than_there_are_places_is_a_violation(pair: tuple[Calls[str], Calls[str]]) -> None:
    _, answerer = pair
    for i in range(ASKED_MAX):
        answerer.receive(encode(Request(ident(i), Heartbeat())), "")
    with pytest.raises(PeerViolation, match="limit"):
        answerer.receive(encode(Request(ident(ASKED_MAX), Heartbeat())), "")
    assert answerer.receive(encode(Request(ident(0), Heartbeat())), "") is None


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (
            Notify(b"", bytes(64), b"", b"", "online"),
            [DeliverKey(b"", bytes(64)), TransferEnd(b"x" * 16, 31, ""), Revoked("")],
        ),
        (TransferRequest(b"", bytes(64)), [TransferKey(b"", bytes(64)), TransferEnd(b"x" * 16, 31, ""), Goodbye()]),
    ],
    ids=["to a recipient", "of a sender"],
)
def test_transfers_that_wait_to_begin_leave_room_for_the_steps_of_those_that_have_begun(
    pair: tuple[Calls[str], Calls[str]], first: RequestBody, then: list[RequestBody]
) -> None:
    _, answerer = pair
    refused = 0
    for i in range(2 * ASKED_MAX):
        try:
            answerer.receive(encode(Request(ident(i), first)), "")
        except PeerViolation as violation:
            assert violation.detail == "limit"
            refused += 1
    assert refused == 2 * ASKED_MAX - ASKED_NEW_MAX
    for i, body in enumerate(then, 2 * ASKED_MAX):
        assert answerer.receive(encode(Request(ident(i), body)), "") == Asked(ident(i), body)


def test_the_answers_kept_are_bounded_and_the_newest_stay(pair: tuple[Calls[str], Calls[str]]) -> None:
    _, answerer = pair
    for i in range(3 * ANSWERS_KEPT_MAX):
        answerer.receive(encode(Request(ident(i), Heartbeat())), "")
        answerer.answer(ident(i), Ok())
    assert len(answerer._answers) == ANSWERS_KEPT_MAX
    for i in range(2 * ANSWERS_KEPT_MAX, 3 * ANSWERS_KEPT_MAX):
        assert isinstance(answerer.receive(encode(Request(ident(i), Heartbeat())), ""), Outgoing)


@pytest.mark.attack("C11")
@pytest.mark.parametrize(
    "record",
    [b"", b"\xc0", b"\x93\xa1q", encode(Request(ident(1), Heartbeat())) + b"\0", b"\xdd\x7f\xff\xff\xff", b"\xff" * 99],
)
def test_a_record_that_is_none_is_malformed(pair: tuple[Calls[str], Calls[str]], record: bytes) -> None:
    with pytest.raises(PeerViolation, match="malformed"):
        pair[0].receive(record, "")


# --- a link that does everything that links do ----------------------------------------------------------------------


@dataclass
class End:
    """One end: it asks, it answers each request with something that depends on the request, and counts what it did."""

    calls: Calls[str] = field(default_factory=Calls)
    done: Counter[bytes] = field(default_factory=Counter)
    asked: dict[bytes, str] = field(default_factory=dict)
    replies: dict[bytes, str] = field(default_factory=dict)
    expired: set[bytes] = field(default_factory=set)

    def hear(self, plaintext: bytes) -> list[bytes]:
        """What is to be sent after a record was heard."""
        event = self.calls.receive(plaintext, "")
        if isinstance(event, Asked):
            self.done[event.id] += 1
            assert isinstance(event.body, ListPeers)
            # A page that names what was asked, so that an answer to another request would show.
            if event.body.after.startswith("refuse"):
                return [self.calls.fail(event.id, 20, event.body.after).plaintext]
            return [self.calls.answer(event.id, PeerPage([], event.body.after.startswith("yes"))).plaintext]
        if isinstance(event, Outgoing):
            return [event.plaintext]
        if isinstance(event, Replied):
            assert event.id not in self.replies
            body = event.body
            self.replies[event.id] = (
                body.detail
                if isinstance(body, Failure)
                else "yes"
                if isinstance(body, PeerPage) and body.more
                else "no"
            )
        return []

    def check(self, other: End) -> None:
        """Each request was done at most once, and its answer is the one to it."""
        assert all(times == 1 for times in self.done.values())
        for id, reply in self.replies.items():
            assert self.asked[id].startswith(reply.split(" ")[0])
            assert other.done[id] == 1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("faults", [ROUGH, HOSTILE], ids=["rough", "hostile"])
def test_over_a_bad_link_every_request_is_done_once_and_answered(
    default_world: World, seed: int, faults: Faults
) -> None:
    """2,000 steps of two ends over real channels: records lost, repeated, reordered and damaged, both ways.

    A violation ends the channel, as in the programs; a new one carries on, and no request is lost or done twice.
    """
    clock, entropy, choice = FixedClock(), SeededEntropy(seed), random.Random(seed)
    ends = (End(), End())
    links = (Link(seed, faults), Link(seed + 1000, faults))
    channels = _new_channels(default_world)
    renewed = 0

    def send(who: int, plaintexts: list[bytes]) -> None:
        for plaintext in plaintexts:
            links[who].send(channels[who].seal(plaintext))

    def deliver(to: int) -> bool:
        """The next record to an end; False where it broke the channel."""
        frame = links[1 - to].receive()
        if frame is not None:
            try:
                plaintext = channels[to].open(frame)
            except PeerViolation:
                return False
            send(to, ends[to].hear(plaintext))
        return True

    for count in range(2000):
        who = choice.randrange(2)
        if choice.random() < 0.15 and count < 1500:
            id, body = entropy.bytes(16), f"{choice.choice(['yes', 'no', 'refuse'])} {count}"
            ends[who].asked[id] = body
            send(who, [ends[who].calls.request(id, ListPeers(body), clock.now, clock.now + 1e6)])
        elif not deliver(who):
            renewed += 1
            channels = _new_channels(default_world)
            for each in (0, 1):
                links[each].drop_all()
                send(each, [out.plaintext for out in ends[each].calls.resend(clock.now)])
        clock.advance(choice.random() * 0.2)
        for each in (0, 1):
            send(each, [due.plaintext for due in ends[each].calls.tick(clock.now) if isinstance(due, Outgoing)])
    channels = _new_channels(default_world)
    for link in links:
        link.drop_all()
        link.faults = Faults()
    for each in (0, 1):
        send(each, [out.plaintext for out in ends[each].calls.resend(clock.now)])
    while any(links):
        assert deliver(0)
        assert deliver(1)
    for end, other in ((ends[0], ends[1]), (ends[1], ends[0])):
        end.check(other)
        assert end.replies.keys() == end.asked.keys()
        assert other.done.keys() == end.asked.keys()
        assert len(end.asked) > 60
    assert renewed > 10
    assert all(link.lost and link.repeated and link.reordered for link in links)


def _new_channels(world: World) -> tuple[Channel, Channel]:
    return open_channel(world.bob.client_keys, world.bob.peer_keys)


class LossyCalls(RuleBasedStateMachine):
    """Hypothesis looks for an order of loss, repetition, delay and time that does a request twice or loses one."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = (End(), End())
        self.under_way: tuple[list[bytes], list[bytes]] = ([], [])
        self.now = 0.0
        self.next_id = 0

    @rule(
        who=st.integers(0, 1), kind=st.sampled_from(["yes", "no", "refuse"]), patience=st.sampled_from([1.0, 5.0, 60.0])
    )
    def ask(self, who: int, kind: str, patience: float) -> None:
        self.next_id += 1
        id, body = ident(self.next_id), f"{kind} {self.next_id}"
        self.ends[who].asked[id] = body
        self.under_way[who].append(self.ends[who].calls.request(id, ListPeers(body), self.now, self.now + patience))

    @rule(to=st.integers(0, 1), place=st.integers(0, 99), again=st.booleans())
    def deliver(self, to: int, place: int, again: bool) -> None:
        """Any record that is under way, in any order; it may come once more later."""
        way = self.under_way[1 - to]
        if way:
            record = way[place % len(way)] if again else way.pop(place % len(way))
            self.under_way[to].extend(self.ends[to].hear(record))

    @rule(who=st.integers(0, 1), place=st.integers(0, 99))
    def lose(self, who: int, place: int) -> None:
        if self.under_way[who]:
            self.under_way[who].pop(place % len(self.under_way[who]))

    @rule(seconds=st.sampled_from([0.5, 2.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for who in (0, 1):
            for due in self.ends[who].calls.tick(self.now):
                if isinstance(due, Expired):
                    self.ends[who].expired.add(due.id)
                else:
                    self.under_way[who].append(due.plaintext)

    @rule(who=st.integers(0, 1))
    def link_is_back(self, who: int) -> None:
        self.under_way[who].clear()
        self.under_way[who].extend(out.plaintext for out in self.ends[who].calls.resend(self.now))

    @invariant()
    def nothing_is_done_twice_or_answered_wrongly(self) -> None:
        for who in (0, 1):
            self.ends[who].check(self.ends[1 - who])
            assert not self.ends[who].expired & self.ends[who].replies.keys()

    def teardown(self) -> None:
        """A good link from now on: every request that has not run out of time is answered."""
        for who in (0, 1):
            self.link_is_back(who)
        while any(self.under_way):
            for to in (0, 1):
                self.deliver(to, 0, again=False)
        for end in self.ends:
            assert end.asked.keys() == end.replies.keys() | end.expired


LossyCalls.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLossyCalls = LossyCalls.TestCase
