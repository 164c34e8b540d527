"""A transfer that waits for a person, at the recipient: what his answer is worth, and to whom."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from msgspec import structs

from tests.support.parties import world
from tests.support.receivers import COORDINATOR, Bob, play, verdict
from zkc.client.control import AskDecision
from zkc.client.principal import pin_peer
from zkc.constants import PENDING_MAX, PENDING_PER_SENDER_MAX
from zkc.errors import Interrupted, LocalIOError, NotAuthorised, UsageError
from zkc.rules.policy import Rule
from zkc.rules.rates import Rate
from zkc.stores.home import Home
from zkc.wire.codec import decode
from zkc.wire.messages import (
    AnswerBody,
    Ok,
    Resp,
    TransferAnswer,
    TransferEnd,
    TransferPending,
    TransferResponse,
)


class Asked(Bob):
    """bob is asked about each; ``late`` is what his daemon tells the coordinator afterwards."""

    def __init__(self, home: Home, closing: ExitStack) -> None:
        super().__init__(home, world("x25519"), closing)
        self.configure(accept="ask")
        self.late: list[tuple[str, str]] = []
        self.gone = False

    async def listen(self, body: Any) -> AnswerBody:
        """The coordinator's side of bob's link."""
        if self.gone:
            raise Interrupted("not known any more", detail="unknown-transfer")
        assert isinstance(body, TransferAnswer)
        self.late.append(verdict(TransferResponse(body.response, body.signature)))
        return Ok()

    async def ask(self, body: Any) -> AnswerBody:
        return await self.receiver.handle(self.principal, COORDINATOR, self.listen, body)

    async def waits(self, serial: int, **changes: Any) -> str:
        """The id of alice's ``serial``th transfer, which waits now."""
        xid, notify = self.request(serial, **changes)
        assert await self.ask(notify) == TransferPending()
        return xid.hex()


@pytest.fixture
def bob(home: Home) -> Iterator[Asked]:
    with ExitStack() as closing:
        yield Asked(home, closing)


def test_a_yes_counts_for_the_delivery_and_for_no_other(bob: Asked) -> None:
    async def scene() -> None:
        tid = b"t" * 16
        await bob.receiver.decide(AskDecision(await bob.waits(1, tid=tid), True, "", ""))
        assert bob.late == [("accept", "")]
        assert await bob.answer(2, tid=tid) == ("accept", "")
        await bob.waits(3, tid=b"u" * 16)

    play(bob, scene())


def test_he_is_shown_who_asked_for_it_and_whether_that_is_who_he_knows(bob: Asked) -> None:
    """By what is pinned for that name: its key, another one, or none."""

    async def scene() -> None:
        pin_peer(bob.store, bob.everyone.carol.card, bob.clock.wall())
        carol = bob.everyone.carol.card.fingerprint
        for serial, (asker, name) in enumerate(((b"", ""), (carol, "carol"), (b"x" * 32, "carol"), (carol, "dave"))):
            ask = b"a" * 32 if name else b""
            await bob.waits(serial, tid=bytes([serial]) * 16, asker=asker, asked_by=name, ask=ask)
        shown = [(item.asked_by, item.asker, item.asker_pinned) for item in bob.receiver.asking.items()]
        assert shown == [
            ("", b"", None), ("carol", carol, True), ("carol", b"x" * 32, False), ("dave", carol, None),
        ]

    play(bob, scene())


def test_a_no_is_of_one_handshake(bob: Asked) -> None:
    async def scene() -> None:
        tid = b"t" * 16
        await bob.receiver.decide(AskDecision(await bob.waits(1, tid=tid), False, "busy", ""))
        assert bob.late == [("refuse", "")]
        await bob.waits(2, tid=tid)

    play(bob, scene())


@pytest.mark.claims("D3")
def test_who_is_asked_to_prove_himself_waits_for_a_pin_and_the_proof_is_for_the_delivery(bob: Asked) -> None:
    async def scene() -> None:
        bob.configure(accept="all")
        assert await bob.answer(1, presence="authorised") == ("refuse", "not-enrolled")
        bob.person.enrol("4711", old=None)
        tid = b"a" * 16
        waiting = await bob.waits(2, tid=tid, presence="authorised")
        for pin, detail in (("", "pin-needed"), ("0815", "wrong-pin")):
            with pytest.raises(NotAuthorised) as refused:
                await bob.receiver.decide(AskDecision(waiting, True, "", pin))
            assert refused.value.detail == detail
        assert bob.late == []
        await bob.receiver.decide(AskDecision(waiting, True, "", "4711"))
        assert bob.late == [("accept", "")]
        bob.clock.advance(600.0)
        _, notify = bob.request(3, tid=tid, presence="authorised")
        answer = await bob.ask(notify)
        assert isinstance(answer, TransferResponse)
        resp = decode(answer.response, Resp)
        assert (resp.verdict, resp.presence, resp.presence_age) == ("accept", "authorised", 600)
        await bob.waits(4, tid=b"b" * 16, presence="authorised")

    play(bob, scene())


@pytest.mark.claims("D2")
def test_where_nobody_is_known_to_be_there_what_asks_for_somebody_is_refused_at_once(bob: Asked) -> None:
    async def scene() -> None:
        bob.configure(accept="all")
        assert await bob.answer(1, presence="present") == ("refuse", "absent")
        bob.person.say("here")
        assert await bob.answer(2, presence="present") == ("accept", "")
        bob.person.say("away")
        assert await bob.answer(3, presence="present") == ("refuse", "absent")
        assert await bob.answer(4, presence="authorised") == ("refuse", "absent")
        assert await bob.answer(5) == ("accept", "")

    play(bob, scene())


def test_what_cannot_be_let_in_although_it_was_accepted_is_told_to_both(bob: Asked) -> None:
    async def scene() -> None:
        waiting = await bob.waits(1)
        bob.configure(min_free=1 << 60)
        with pytest.raises(LocalIOError) as refused:
            await bob.receiver.decide(AskDecision(waiting, True, "", ""))
        assert refused.value.detail == "no-space"
        assert bob.late == [("refuse", "no-space")]

    play(bob, scene())


def test_an_answer_that_nobody_waits_for_any_more_is_told_as_that(bob: Asked) -> None:
    async def scene() -> None:
        first, second = await bob.waits(1), await bob.waits(2)
        bob.gone = True
        for each in (first, second):
            if each == second:
                await bob.ask(TransferEnd(bytes.fromhex(second), 31, "signal"))
            with pytest.raises(Interrupted) as late:
                await bob.receiver.decide(AskDecision(each, True, "", ""))
            assert late.value.detail == "ended"
        assert bob.receiver.asking.items() == []
        with pytest.raises(UsageError) as unknown:
            await bob.receiver.decide(AskDecision(first, True, "", ""))
        assert unknown.value.detail == "unknown-id"

    play(bob, scene())


@pytest.mark.attack("H16")
def test_it_waits_no_longer_than_either_end_and_then_says_so(bob: Asked) -> None:
    async def scene() -> None:
        bob.configure(ask_timeout=30.0)
        await bob.waits(1, wait=10)
        await bob.waits(2, wait=50)
        await bob.waits(3, wait=0)
        assert [item.until - item.since for item in bob.receiver.asking.items()] == [10.0, 30.0, 30.0]
        bob.configure(ask_timeout=0.01)
        await bob.waits(4)
        task = list(bob.receiver._transfers.values())[-1].asking
        assert task is not None
        await task
        assert bob.late == [("refuse", "unanswered")]

    play(bob, scene())


def test_a_yes_that_comes_after_its_time_is_told_as_that(bob: Asked) -> None:
    """Though the coordinator has not heard yet that nobody answered."""

    async def scene() -> None:
        bob.configure(ask_timeout=0.01)
        id = await bob.waits(1)
        question = bob.receiver.asking.find(id)
        await asyncio.wait([question.answer])
        with pytest.raises(UsageError) as late:
            await bob.receiver.decide(AskDecision(id, True, "", ""))
        assert late.value.detail == "unknown-id"

    play(bob, scene())


def test_a_rate_bounds_the_questions_and_not_the_answers(bob: Asked) -> None:
    async def scene() -> None:
        rule = Rule("few", "ask", rate=Rate(1, 1 / 3600))
        bob.receiver.config = structs.replace(bob.receiver.config, policy=(rule,))
        id = await bob.waits(1)
        assert await bob.answer(2) == ("refuse", "rate")
        await bob.receiver.decide(AskDecision(id, True, "", ""))
        assert bob.late == [("accept", "")]

    play(bob, scene())


@pytest.mark.attack("H14")
def test_no_more_wait_than_a_person_looks_through(bob: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        for serial in range(PENDING_PER_SENDER_MAX):
            await bob.waits(serial)
        assert await bob.answer(100) == ("refuse", "limit")
        first = bob.receiver.asking.items()[0].id
        await bob.receiver.decide(AskDecision(first, False, "", ""))
        await asyncio.sleep(0)
        await bob.waits(101)
        monkeypatch.setattr("zkc.client.asking.PENDING_PER_SENDER_MAX", PENDING_MAX)
        monkeypatch.setattr("zkc.client.asking.PENDING_MAX", PENDING_PER_SENDER_MAX)
        assert await bob.answer(102) == ("refuse", "limit"), "of all senders together"

    play(bob, scene())


def test_the_beginning_of_an_id_is_enough_where_it_is_one_s_alone(bob: Asked) -> None:
    async def scene() -> None:
        one, other = await bob.waits(1), await bob.waits(2)
        assert one[:24] == other[:24]
        for wrong, detail in ((one[:24], "ambiguous-id"), ("zz", "unknown-id"), ("", "unknown-id")):
            with pytest.raises(UsageError) as refused:
                await bob.receiver.decide(AskDecision(wrong, True, "", ""))
            assert refused.value.detail == detail
        assert (await bob.receiver.decide(AskDecision(other.upper(), False, "", ""))).id == other

    play(bob, scene())
