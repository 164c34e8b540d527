"""Who takes a transfer as a stream, from a daemon's side: one after the other, and what becomes of those that go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.parties import world
from tests.support.receivers import COORDINATOR, Bob, play, verdict
from tests.support.talks import terms
from tests.support.waiting import until
from zkc.client import control, readers
from zkc.client.handover import grant_of
from zkc.client.readers import BROKEN_SECONDS
from zkc.constants import CHUNK, LIVE_READERS_MAX
from zkc.errors import DaemonError, Interrupted, NobodyThere
from zkc.protocol import transfer_sender
from zkc.protocol.session import Session
from zkc.protocol.step import step
from zkc.stores.home import Home
from zkc.wire.codec import decode
from zkc.wire.messages import (
    AnswerBody,
    DeliverKey,
    Manifest,
    Notify,
    Resp,
    TransferConfirm,
    TransferEnd,
    TransferGrant,
    TransferKey,
    TransferRequest,
    TransferResponse,
)

WHAT = Manifest("stream", "stdin", "", None, 0o600, 0)


class Asking:
    """alice's side of one transfer to bob, step by step."""

    def __init__(self, bob: Bob, serial: int) -> None:
        self.bob = bob
        self._context = bob.alice.sender()
        made = transfer_sender.create_request(self._context, terms("bob", serial=serial))
        self._state: Any = made.state
        (effect,) = made.effects
        assert isinstance(effect.message, TransferRequest)
        self._request = effect.message
        self.xid: bytes = made.state.req.xid

    async def notify(self) -> Resp:
        """X2 and X3: bob's answer."""
        card, asked = self.bob.alice.card.encoded, self._request
        answer = await self.bob.ask(Notify(asked.request, asked.signature, card, self.bob.alice.certificate, "online"))
        assert isinstance(answer, TransferResponse)
        self._answer = answer
        resp: Resp = decode(answer.response, Resp)
        return resp

    async def key(self) -> AnswerBody:
        """X5 and X6."""
        answer, bob = self._answer, world("hybrid").bob
        grant = TransferGrant(answer.response, answer.signature, bob.card.encoded, bob.certificate, b"", b"")
        granted = step(transfer_sender.TABLE, self._context, self._state, grant).state
        sent = step(transfer_sender.TABLE, self._context, granted, transfer_sender.MakeKey())
        (effect,) = sent.effects
        assert isinstance(effect.message, TransferKey)
        return await self.bob.ask(DeliverKey(effect.message.key, effect.message.signature))

    async def end(self) -> None:
        await self.bob.ask(TransferEnd(self.xid, 31, "ended"))


class Reading:
    """A reader's connection to bob's daemon."""

    def __init__(self, bob: Bob, port: int, *, sender: str = "", within: float | None = None) -> None:
        self.bob = bob
        ask = control.AskLive("", sender, "", "127.0.0.1", port, port + 1, CHUNK, within)
        end = None if within is None else asyncio.get_running_loop().time() + within
        self.replies: AsyncGenerator[control.ControlReply, None] = bob.receiver.readers.serve(ask, "bob", end)
        self.next: asyncio.Task[control.ControlReply] | None = None

    async def wait(self) -> Reading:
        """It is registered; its next reply is awaited."""
        assert isinstance(await anext(self.replies), control.LiveReply)
        self.next = asyncio.ensure_future(anext(self.replies))
        await asyncio.sleep(0)
        return self

    async def session(self) -> Session:
        assert self.next is not None
        session = grant_of(await self.next)
        assert isinstance(session, Session)
        return session

    async def hang_up(self) -> None:
        """As the server of the control socket does for it."""
        if self.next is not None:
            self.next.cancel()
            await asyncio.wait([self.next])
        await self.replies.aclose()


@pytest.fixture
def bob(home: Home) -> Any:
    with ExitStack() as closing:
        yield Bob(home, world("hybrid"), closing)


async def agreed(bob: Bob, reader: Reading, serial: int) -> Session:
    """A whole handshake, whose session the reader has and is ready for."""
    asking = Asking(bob, serial)
    assert (await asking.notify()).live
    confirming = asyncio.ensure_future(asking.key())
    session = await reader.session()
    assert not confirming.done()
    bob.receiver.readers.ready(session.req.xid)
    assert isinstance(await confirming, TransferConfirm)
    return session


async def nobody_asked(_body: object) -> AnswerBody:
    raise AssertionError("the coordinator was asked something")


def test_the_one_that_waits_longest_is_the_first_and_without_one_it_is_the_inbox(bob: Bob) -> None:
    async def scene() -> None:
        first, second = await Reading(bob, 1000).wait(), await Reading(bob, 2000).wait()
        stranger = await Reading(bob, 3000, sender="carol").wait()
        lives = [(await Asking(bob, serial).notify()).live for serial in range(3)]
        assert lives == [True, True, False]
        taken = [(r.ask.data_port, r.waits) for r in bob.receiver.readers._readers]
        assert taken == [(1000, False), (2000, False), (3000, True)]
        for reader in (first, second, stranger):
            await reader.hang_up()

    play(bob, scene())


def test_conf_leaves_once_the_reader_is_ready_and_k_is_its_alone(bob: Bob) -> None:
    async def scene() -> None:
        reader = await Reading(bob, 1000).wait()
        session = await agreed(bob, reader, 1)
        assert session.k.reveal()
        (known,) = bob.receiver.readers._readers
        assert known.session is not None
        assert repr(known.session.k) == "Secret(wiped)"
        await reader.hang_up()

    play(bob, scene())


def test_a_handshake_that_comes_to_nothing_gives_its_reader_back(bob: Bob) -> None:
    async def scene() -> None:
        reader = await Reading(bob, 1000).wait()
        asking = Asking(bob, 1)
        assert (await asking.notify()).live
        await asking.end()
        await agreed(bob, reader, 2)
        await reader.hang_up()

    play(bob, scene())


def test_a_wait_that_is_over_ends_only_one_that_no_handshake_has(bob: Bob) -> None:
    async def scene() -> None:
        reader = await Reading(bob, 1000, within=0.1).wait()
        asking = Asking(bob, 1)
        assert (await asking.notify()).live
        assert reader.next is not None
        assert not (await asyncio.wait([reader.next], timeout=0.3))[0]
        await asking.end()
        with pytest.raises(NobodyThere) as raised:
            await reader.next
        assert raised.value.detail == "empty"
        assert not (await Asking(bob, 2).notify()).live

    play(bob, scene())


def test_a_reader_that_goes_before_the_key_has_taken_nothing_and_the_sender_may_come_again(bob: Bob) -> None:
    async def scene() -> None:
        reader = await Reading(bob, 1000).wait()
        asking = Asking(bob, 1)
        assert (await asking.notify()).live
        await reader.hang_up()
        with pytest.raises(Interrupted) as raised:
            await asking.key()
        assert raised.value.detail == "reader-gone"
        await until(lambda: not bob.receiver._transfers)
        assert not bob.receiver.readers.broke_off(bob.alice.card.fingerprint, b"t" * 12 + bytes((0, 0, 0, 1)))

    play(bob, scene())


def test_a_reader_that_does_not_open_its_door_in_time_is_sent_away(bob: Bob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "READY_SECONDS", 0.1)

    async def scene() -> None:
        reader = await Reading(bob, 1000).wait()
        asking = Asking(bob, 1)
        assert (await asking.notify()).live
        confirming = asyncio.ensure_future(asking.key())
        session = await reader.session()
        with pytest.raises(Interrupted):
            await confirming
        with pytest.raises(Interrupted):
            bob.receiver.readers.ready(session.req.xid)
        with pytest.raises(Interrupted):
            await anext(reader.replies)

    play(bob, scene())


def test_what_broke_off_is_refused_once_and_then_comes_to_the_inbox(bob: Bob) -> None:
    async def scene() -> None:
        reader = await Reading(bob, 1000).wait()
        session = await agreed(bob, reader, 1)
        await reader.hang_up()
        for fresh_xid, expected in ((2, ("refuse", "broken-stream")), (3, ("accept", ""))):
            xid = b"x" * 12 + fresh_xid.to_bytes(4, "big")
            made = transfer_sender.create_request(
                bob.alice.sender(),
                transfer_sender.Terms(
                    xid, session.req.tid, "bob", "sender", "recipient-first", "aes-256-gcm", 255, fresh=False
                ),
            )
            (effect,) = made.effects
            asked = effect.message
            card = bob.alice.card.encoded
            notice = Notify(asked.request, asked.signature, card, bob.alice.certificate, "online")
            answer = await bob.receiver.handle(bob.principal, COORDINATOR, nobody_asked, notice)
            assert verdict(answer) == expected

    play(bob, scene())


def test_what_a_reader_passes_on_is_not_broken_and_comes_to_it_again_unless_it_is_unwanted(bob: Bob) -> None:
    async def scene() -> None:
        for serial, unwanted in enumerate((False, True)):
            reader = await Reading(bob, 1000).wait()
            session = await agreed(bob, reader, serial)
            bob.receiver.readers.pass_on(session.req.xid, unwanted=unwanted)
            await reader.hang_up()
            fingerprint = session.peer.fingerprint
            assert not bob.receiver.readers.broke_off(fingerprint, session.req.tid)
            again = await Reading(bob, 1000).wait()
            assert (bob.receiver.readers.take(session.req, fingerprint) is None) == unwanted
            await again.hang_up()

    play(bob, scene())


def test_a_broken_stream_is_forgotten_after_a_minute(bob: Bob) -> None:
    async def scene() -> None:
        reader = await Reading(bob, 1000).wait()
        session = await agreed(bob, reader, 1)
        await reader.hang_up()
        bob.clock.advance(BROKEN_SECONDS)
        assert not bob.receiver.readers.broke_off(session.peer.fingerprint, session.req.tid)

    play(bob, scene())


def test_what_was_taken_is_done_from_its_receipt_on(bob: Bob) -> None:
    """Also where the reader dies before the sender has it: the sender asks again, and is given that receipt."""

    async def scene() -> None:
        reader = await Reading(bob, 1000).wait()
        session = await agreed(bob, reader, 1)
        ask = control.AskLiveReceipt(session.req.xid, WHAT, 3, bytes(32))
        reply = await bob.receiver.readers.receipt(ask)
        await reader.hang_up()
        assert bob.inbox.done(session.peer.fingerprint, session.req.tid) == reply.receipt
        assert not bob.receiver.readers.broke_off(session.peer.fingerprint, session.req.tid)
        assert bob.inbox.items() == []
        with pytest.raises(Interrupted):
            await bob.receiver.readers.receipt(ask)

    play(bob, scene())
    assert bob.receiver.received == {"deliveries": 1, "bytes": 3}


def test_readers_are_bounded(bob: Bob) -> None:
    async def scene() -> None:
        waiting = [await Reading(bob, 1000).wait() for _ in range(LIVE_READERS_MAX)]
        with pytest.raises(DaemonError) as raised:
            await Reading(bob, 1000).wait()
        assert raised.value.detail == "too-many"
        for reader in waiting:
            await reader.hang_up()
        await (await Reading(bob, 1000).wait()).hang_up()

    play(bob, scene())
