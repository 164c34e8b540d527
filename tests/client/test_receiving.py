"""The recipient's transfers, from the coordinator's side of a daemon: what is refused, and what comes again."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.items import stop
from tests.support.parties import world
from tests.support.receivers import Bob, agreed, play, verdict
from tests.support.talks import terms
from zkc.errors import PeerViolation
from zkc.logs import REPEAT_SECONDS
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.wire.messages import TransferEnd


@pytest.fixture
def closing() -> Any:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def bob(home: Home, closing: ExitStack) -> Bob:
    return Bob(home, world("hybrid"), closing)


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
