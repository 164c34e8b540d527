"""The recipient's transfers, from the coordinator's side of a daemon: whose turn it is, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from tests.support.env import FixedClock
from tests.support.items import stop
from tests.support.parties import World, world
from tests.support.talks import terms
from tests.support.waiting import DEADLINE, until
from zkc.client import receiving
from zkc.client.receiving import Receiver
from zkc.client.sending import _COMES_BACK
from zkc.config import ClientConfig
from zkc.env import SystemEntropy
from zkc.errors import PeerViolation, PolicyRefused
from zkc.logs import REPEAT_SECONDS
from zkc.net.pipe import Bell, Bulk, Incoming
from zkc.protocol import transfer_sender
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.keystore import KeyStore
from zkc.wire.codec import decode
from zkc.wire.messages import AnswerBody, Notify, RequestBody, Resp, TransferEnd, TransferRequest, TransferResponse

COORDINATOR = "tcp://127.0.0.1:7670"


async def no_relay(body: RequestBody) -> AnswerBody:
    """What the coordinator answers a recipient that asks it for one."""
    raise PolicyRefused("no relay is named", detail="unreachable")


class Bob:
    """bob's receiver, with stores and sockets of its own; alice's requests reach it one by one."""

    def __init__(self, home: Home, everyone: World, closing: ExitStack) -> None:
        bob = everyone.bob
        self.everyone = everyone
        self.alice = everyone.alice
        self.clock = FixedClock()
        self.store = closing.enter_context(KeyStore.open(home))
        self.inbox = closing.enter_context(Inbox.open(home))
        self.bulk = Bulk()
        self.principal: Any = SimpleNamespace(
            authority=bob.coordinator.authority, identity=bob.identity, kem_key=bob.kem_key, card=bob.card
        )
        self.receiver = Receiver(self.bulk, self.store, self.inbox, ClientConfig(), self.clock, SystemEntropy())

    def configure(self, **changes: object) -> None:
        """SIGHUP with other values in ``[inbox]``."""
        config = self.receiver.config
        self.receiver.config = structs.replace(config, inbox=structs.replace(config.inbox, **changes))

    def request(self, serial: int, **changes: Any) -> tuple[bytes, Notify]:
        """The xid and the notification of alice's ``serial``th transfer."""
        asked_for = replace(terms("bob", serial=serial), **changes)
        made = transfer_sender.create_request(self.alice.sender(), asked_for)
        (effect,) = made.effects
        asked = effect.message
        assert isinstance(asked, TransferRequest)
        card = self.alice.card.encoded
        return made.state.req.xid, Notify(asked.request, asked.signature, card, self.alice.certificate)

    async def ask(self, body: Any) -> AnswerBody:
        return await self.receiver.handle(self.principal, COORDINATOR, no_relay, body)

    async def answer(self, serial: int, **changes: Any) -> tuple[str, str]:
        """The verdict on alice's ``serial``th transfer, and its finer word."""
        return verdict(await self.ask(self.request(serial, **changes)[1]))


def verdict(answer: AnswerBody) -> tuple[str, str]:
    assert isinstance(answer, TransferResponse)
    resp: Resp = decode(answer.response, Resp)
    return resp.verdict, resp.detail


@pytest.fixture
def closing() -> Any:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def bob(home: Home, closing: ExitStack) -> Bob:
    return Bob(home, world("hybrid"), closing)


def play(bob: Bob, scene: Coroutine[Any, Any, None]) -> None:
    """``scene`` on a loop, and the end of the receiver."""

    async def whole() -> None:
        try:
            async with asyncio.timeout(5 * DEADLINE):
                await scene
        finally:
            await bob.receiver.close()
            await asyncio.to_thread(bob.bulk.close)

    asyncio.run(whole())


def test_who_waits_for_a_port_gets_it_in_the_order_of_coming(bob: Bob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "TRANSFERS_MAX", 1)

    async def scene() -> None:
        requests = [bob.request(serial) for serial in range(5)]
        asked = [asyncio.create_task(bob.ask(notify)) for _, notify in requests]
        for number, (xid, _) in enumerate(requests):
            assert verdict(await asked[number]) == ("accept", "")
            assert not any(task.done() for task in asked[number + 1 :])
            await bob.ask(TransferEnd(xid, 31, "ended"))

    play(bob, scene())


def test_who_gives_up_in_the_line_is_answered_at_once(bob: Bob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "TRANSFERS_MAX", 1)

    async def scene() -> None:
        requests = [bob.request(serial) for serial in range(4)]
        asked = [asyncio.create_task(bob.ask(notify)) for _, notify in requests]
        await until(lambda: asked[0].done() and len(bob.receiver._transfers) == len(asked))
        for number in (2, 1):  # in the middle, and at the head
            await bob.ask(TransferEnd(requests[number][0], 31, "ended"))
            with pytest.raises(PeerViolation, match="ended meanwhile"):
                await asked[number]
        assert not asked[3].done()
        await bob.ask(TransferEnd(requests[0][0], 31, "ended"))
        assert verdict(await asked[3]) == ("accept", "")

    play(bob, scene())


def test_who_waits_in_vain_is_refused_in_time(bob: Bob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "TRANSFERS_MAX", 0)
    monkeypatch.setattr(receiving, "_TURN_SECONDS", 0.2)

    async def scene() -> None:
        answers = await asyncio.gather(*(bob.answer(serial) for serial in range(3)))
        assert answers == [("refuse", "limit")] * 3

    play(bob, scene())


def test_the_rate_of_one_sender_is_the_configurations_also_once_it_is_read_again(bob: Bob) -> None:
    """What it asks beyond is refused as ``limit``, before anything else is looked at."""

    async def scene() -> None:
        serials = iter(range(1000))
        for per_second in (5, 50, 2):
            bob.configure(accept="none", per_second=per_second)
            bob.clock.advance(1.0)
            answers = [await bob.answer(next(serials)) for _ in range(per_second + 10)]
            assert answers == [("refuse", "accept")] * per_second + [("refuse", "limit")] * 10

    play(bob, scene())


def agreed(bob: Bob, serial: int, **changes: Any) -> receiving._Transfer:
    """A transfer of alice's whose handshake is over, and which waits for her to come back."""
    talk = bob.everyone.transfer(replace(terms("bob", serial=serial), **changes))
    talk.run()
    side = talk.sides["recipient"]
    (notify,) = talk.messages(Notify)
    transfer = receiving._Transfer(side.context, side.state, notify)
    transfer.agreed = True
    bob.receiver._transfers[transfer.req.xid] = transfer
    return transfer


def test_what_a_delivery_has_left_here_is_no_other_transfer_of_its_sender(bob: Bob) -> None:
    """With a bound of one it could else go on only once its older transfer has no patience any more."""

    async def scene() -> None:
        bob.configure(per_sender=1)
        tid = b"t" * 16
        agreed(bob, 1, tid=tid)
        assert await bob.answer(2) == ("refuse", "limit")
        assert await bob.answer(3, tid=tid) == ("accept", "")
        assert await bob.answer(4, tid=tid) == ("refuse", "limit"), "handshakes under way count"

    play(bob, scene())


def test_who_makes_room_for_others_is_told_what_a_sender_comes_back_from(bob: Bob, closing: ExitStack) -> None:
    """And not that it has begun anew, which nobody comes back from: of two that are away the one that is so longer."""
    away: list[Bell] = []
    for serial, since in ((1, bob.clock.now - 1), (2, bob.clock.now - 2), (3, bob.clock.now + 1)):
        away.append(closing.enter_context(contextlib.closing(Bell())))
        transfer = agreed(bob, serial, tid=bytes([serial]) * 16)
        transfer.bell, transfer.incoming = away[-1], cast("Incoming", SimpleNamespace(lost_since=since))

    def make_room(tid: bytes) -> None:
        _, notify = bob.request(9, tid=tid)
        sender = SimpleNamespace(sender=bob.alice.card)
        bob.receiver._make_room(receiving._Transfer(None, sender, notify))  # type: ignore[arg-type]

    async def scene() -> None:
        make_room(b"t" * 16)
        assert [bell.rung for bell in away] == [False, True, False]
        assert away[1].reason.detail in _COMES_BACK
        assert "anew" not in away[1].reason.message
        make_room(bytes([3]) * 16)
        assert [bell.rung for bell in away] == [False, True, True]
        assert (away[2].reason.detail, away[2].reason.message) == ("ended", "alice has begun this delivery anew")
        bob.receiver._transfers.clear()

    play(bob, scene())


@pytest.mark.attack("D16")
def test_what_is_here_already_needs_no_room_again(bob: Bob, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery that goes on is not refused for bytes that it does not bring."""
    free = bob.receiver.config.receiving_rules().min_free
    monkeypatch.setattr(Inbox, "free_bytes", lambda _: free + 600)
    tid = terms("bob").tid
    stop(bob.inbox, tid, bytes(500), sender_fp=bob.alice.identity.public.fingerprint)

    async def scene() -> None:
        large = {"tid": tid, "size_class": 11}  # more than 1024 bytes
        assert await bob.answer(1, **large) == ("accept", "")
        assert await bob.answer(2, **large, fresh=True) == ("refuse", "no-space")
        assert await bob.answer(3, size_class=11) == ("refuse", "no-space")

    play(bob, scene())


def test_a_sender_that_is_refused_again_and_again_is_one_line_of_the_log(bob: Bob) -> None:
    async def scene() -> None:
        bob.configure(accept="none", per_second=2)
        for serial in range(20):
            await bob.answer(serial)
        bob.clock.advance(REPEAT_SECONDS)
        await bob.answer(20)

    with capture_logs() as events:
        play(bob, scene())
    told = [event for event in events if event["log_level"] != "debug"]
    assert [(event["event"], event["sender"], event["reason"], event.get("withheld")) for event in told] == [
        ("refused", "alice", "accept", None), ("refused", "alice", "limit", None), ("refused", "alice", "accept", 1),
    ]


def test_transfers_that_wait_are_one_line_of_the_log_and_so_are_their_refusals(
    bob: Bob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "TRANSFERS_MAX", 0)
    monkeypatch.setattr(receiving, "_TURN_SECONDS", 0.2)

    async def scene() -> None:
        await asyncio.gather(*(bob.answer(serial) for serial in range(20)))

    with capture_logs() as events:
        play(bob, scene())
    told = [event["event"] for event in events if event["log_level"] != "debug"]
    assert told == ["transfer-waits", "refused"]


def test_a_request_that_comes_again_gets_the_answer_that_it_got(bob: Bob) -> None:
    """Of many transfers at once a channel keeps few answers: a lost one is no replay, and nobody's alarm."""

    async def scenario() -> None:
        _, accepted = bob.request(1)
        first = await bob.ask(accepted)
        assert verdict(first) == ("accept", "")
        assert await bob.ask(accepted) is first
        bob.configure(accept="none")
        _, declined = bob.request(2)
        first = await bob.ask(declined)
        assert verdict(first) == ("refuse", "accept")
        bob.configure(accept="all")
        assert await bob.ask(declined) is first

    play(bob, scenario())


def test_a_handshake_that_has_ended_answers_no_more(bob: Bob) -> None:
    async def scenario() -> None:
        xid, asked = bob.request(1)
        await bob.ask(asked)
        await bob.ask(TransferEnd(xid, 30, ""))
        with pytest.raises(PeerViolation, match="answered"):
            await bob.ask(asked)

    play(bob, scenario())
