"""Where a transfer is received: whose turn it is, and who makes room."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from tests.support.parties import world
from tests.support.receivers import Bob, agreed, play, verdict
from tests.support.waiting import until
from zkc.client import places
from zkc.client.sending import _COMES_BACK
from zkc.client.transfers import Transfer
from zkc.errors import PeerViolation
from zkc.net.pipe.bell import Bell
from zkc.net.pipe.recipient import Incoming
from zkc.stores.home import Home
from zkc.wire.messages import TransferEnd


@pytest.fixture
def closing() -> Any:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def bob(home: Home, closing: ExitStack) -> Bob:
    return Bob(home, world("hybrid"), closing)


def test_who_waits_for_a_port_gets_it_in_the_order_of_coming(bob: Bob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "TRANSFERS_MAX", 1)

    async def scene() -> None:
        requests = [bob.request(serial) for serial in range(5)]
        asked = [asyncio.create_task(bob.ask(notify)) for _, notify in requests]
        for number, (xid, _) in enumerate(requests):
            assert verdict(await asked[number]) == ("accept", "")
            assert not any(task.done() for task in asked[number + 1 :])
            await bob.ask(TransferEnd(xid, 31, "ended"))

    play(bob, scene())


def test_who_gives_up_in_the_line_is_answered_at_once(bob: Bob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "TRANSFERS_MAX", 1)

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
    monkeypatch.setattr(places, "TRANSFERS_MAX", 0)
    monkeypatch.setattr(places, "_TURN_SECONDS", 0.2)

    async def scene() -> None:
        answers = await asyncio.gather(*(bob.answer(serial) for serial in range(3)))
        assert answers == [("refuse", "limit")] * 3

    play(bob, scene())


def test_transfers_that_wait_are_one_line_of_the_log_and_so_are_their_refusals(
    bob: Bob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "TRANSFERS_MAX", 0)
    monkeypatch.setattr(places, "_TURN_SECONDS", 0.2)

    async def scene() -> None:
        await asyncio.gather(*(bob.answer(serial) for serial in range(20)))

    with capture_logs() as events:
        play(bob, scene())
    told = [event["event"] for event in events if event["log_level"] != "debug"]
    assert told == ["transfer-waits", "refused"]


def test_who_makes_room_for_others_is_told_what_a_sender_comes_back_from(bob: Bob, closing: ExitStack) -> None:
    """And not that it has begun anew, which nobody comes back from: of two that are away the one that is so longer."""
    away: list[Bell] = []
    for serial, since in ((1, bob.clock.now - 1), (2, bob.clock.now - 2), (3, bob.clock.now + 1)):
        away.append(closing.enter_context(contextlib.closing(Bell())))
        transfer = agreed(bob, serial, tid=bytes([serial]) * 16)
        transfer.bell, transfer.incoming = away[-1], cast("Incoming", SimpleNamespace(lost_since=since))

    def make_room(tid: bytes) -> None:
        _, notify = bob.request(9, tid=tid)
        context, state = bob.everyone.bob.recipient(), cast("Any", None)
        bob.receiver._judge._places.make_room(Transfer(context, state, bob.alice.card, notify))

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
