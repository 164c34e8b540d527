"""Alice's shares, from the coordinator's side of her daemon: nonces, places, and who no longer asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.env import FixedClock
from tests.support.parties import Client, World, registered, world
from tests.support.waiting import DEADLINE, until
from zkc.client import sharing
from zkc.client.bus import EventBus
from zkc.client.principal import pin_peer
from zkc.client.sharing import Sharing
from zkc.config import ClientConfig
from zkc.constants import ASKED_JOBS_MAX
from zkc.env import SystemEntropy
from zkc.errors import Interrupted, PeerViolation, PolicyRefused
from zkc.protocol import fetching as machine
from zkc.protocol.step import step
from zkc.protocol.trust import Known
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore
from zkc.stores.shares import Grantee, Share, change_shares
from zkc.wire.messages import AskFrom, AskReply, AskState, AskStep, AskWhat


class Alice:
    """Her sharing, with stores of her own. Bob asks a person, who does not answer; whoever else it is for is slow."""

    def __init__(self, home: Home, store: KeyStore, world: World, folder: Path) -> None:
        self.clock, self.world = FixedClock(), world
        self.dave, self.erin = (registered(world.coordinator, name, "user") for name in ("dave", "erin"))
        everyone = [world.bob, world.carol, self.dave, self.erin]
        for each in everyone:
            pin_peer(store, each.card, self.clock.wall())
        (folder / "file").write_bytes(b"content")
        to = [Grantee(each.name, each.fingerprint.hex()) for each in everyone]
        share = Share("builds", str(folder), to, [each.name for each in everyone])
        change_shares(home, lambda _: [share])
        alice = world.alice
        self.party = machine.Party(alice.coordinator.authority, alice.identity, alice.kem_key, alice.card, Known())
        self.principal: Any = SimpleNamespace(**vars(self.party), name="alice")
        self.notes: list[tuple[Any, ...]] = []
        notes: Any = SimpleNamespace(note=lambda *told, **more: self.notes.append((*told, more.get("detail", ""))))
        self.under_way: list[str] = []
        self.sharing = Sharing(
            home, store, ClientConfig, self._grant, self.clock, SystemEntropy(), notes, EventBus(self.clock)
        )
        self._qid = 0

    async def _grant(self, wanted: Any, _within: object, _listen: object, on_pending: Callable[[], None]) -> Any:
        self.under_way.append(wanted.recipient)
        try:
            if wanted.recipient == "bob":
                on_pending()
            await asyncio.Event().wait()
        finally:
            self.under_way.remove(wanted.recipient)

    async def step(self, asker: Client, message: AskStep) -> AskReply:
        body = AskFrom(asker.name, message.body, message.signature, asker.card.encoded, asker.certificate)
        told = await self.sharing.handle(self.principal, self.ask, body)
        alice = self.world.alice
        return AskReply(told.body, told.signature, alice.card.encoded, alice.certificate)

    async def ask(self, _body: object) -> Any:
        raise PeerViolation("unexpected")

    def first(self, asker: Client, recipient: Client) -> tuple[machine.Party, Any]:
        self._qid += 1
        q = machine.Party(asker.coordinator.authority, asker.identity, asker.kem_key, asker.card, Known())
        return q, machine.create_ask0(q, self._qid.to_bytes(16), "alice", recipient.name)

    def third(self, q: machine.Party, challenged: Any, recipient: Client) -> Any:
        tid = self._qid.to_bytes(16, "little")
        wish = machine.Wish(recipient.card.fingerprint, tid, AskWhat("builds", "file", "", []))
        return step(machine.ASKER, q, challenged, wish)

    async def get(self, asker: Client, recipient: Client) -> Callable[[], Awaitable[AskState]]:
        """Asked for and granted; how far it is."""
        q, first = self.first(asker, recipient)
        challenged = step(machine.ASKER, q, first.state, await self.step(asker, first.effects[0].message)).state
        third = self.third(q, challenged, recipient)
        running = step(machine.ASKER, q, third.state, await self.step(asker, third.effects[0].message)).state

        async def more() -> AskState:
            told = step(machine.ASKER, q, running, await self.step(asker, machine.create_more(q, running)))
            state: AskState = told.effects[0].state
            return state

        return more


@pytest.fixture
def alice(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Alice]:
    monkeypatch.setattr(sharing, "_NEWS_SECONDS", 0.05)
    folder = tmp_path / "shared"
    folder.mkdir()
    with KeyStore.open(home) as store:
        yield Alice(home, store, world("x25519"), folder)


def play(alice: Alice, scene: Awaitable[None]) -> None:
    async def whole() -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                await scene
        finally:
            alice.sharing.close()
            await until(lambda: all(job.over.is_set() for job in alice.sharing._jobs.values()))

    asyncio.run(whole())


def test_what_waits_for_a_person_takes_no_place_of_another_delivery(alice: Alice) -> None:
    async def scene() -> None:
        bob, carol, dave, erin = alice.world.bob, alice.world.carol, alice.dave, alice.erin
        asked = [await alice.get(carol, bob) for _ in range(ASKED_JOBS_MAX // 2)]
        for more in asked:
            await until(lambda: alice.under_way == ["bob"] * len(asked))
            assert (await more()).pending
        with pytest.raises(PolicyRefused) as refused:
            await alice.get(carol, carol)
        assert refused.value.detail == "too-many", "of one asker all count"
        with pytest.raises(PolicyRefused) as refused:
            await alice.get(erin, bob)
        assert refused.value.detail == "too-many", "so many questions at one recipient"
        assert "inbox.max_bytes" not in refused.value.hint
        for asker in (dave, erin):
            for _ in range(ASKED_JOBS_MAX // 2):
                await alice.get(asker, asker)
        with pytest.raises(PolicyRefused) as refused:
            await alice.get(bob, dave)
        assert refused.value.detail == "too-many"

    play(alice, scene())


def test_a_question_is_taken_back_when_who_asked_for_it_has_gone(alice: Alice) -> None:
    async def scene() -> None:
        gone, stays = [await alice.get(alice.world.carol, alice.world.bob) for _ in range(2)]
        slow = await alice.get(alice.dave, alice.dave)
        await until(lambda: len(alice.under_way) == 3)
        for more in (gone, stays):
            assert (await more()).pending
        alice.clock.advance(50.0)
        assert not (await stays()).over
        alice.clock.advance(50.0)
        await until(lambda: alice.under_way.count("bob") == 1)
        ended = await gone()
        assert (ended.over, ended.code, ended.detail) == (True, 31, "asker-gone")
        assert not (await stays()).over
        assert not (await slow()).over, "what no person is asked for goes on"
        await until(lambda: ("share", "carol", "bob", "asker-gone") in alice.notes)

    play(alice, scene())


def test_a_first_step_that_comes_again_gets_its_answer_again_and_uses_no_nonce_up(alice: Alice) -> None:
    async def scene() -> None:
        carol, bob, dave = alice.world.carol, alice.world.bob, alice.dave
        q, first = alice.first(carol, bob)
        message = first.effects[0].message
        answer = await alice.step(carol, message)
        assert await alice.step(carol, message) == answer
        other = machine.create_ask0(q, first.state.ask0.qid, "alice", "dave").effects[0].message
        with pytest.raises(PeerViolation, match="something else"):
            await alice.step(carol, other)
        third = alice.third(q, step(machine.ASKER, q, first.state, answer).state, bob)
        told = await alice.step(carol, third.effects[0].message)
        assert isinstance(step(machine.ASKER, q, third.state, told).state, machine.Running)
        for again in (message, third.effects[0].message):
            with pytest.raises(PeerViolation, match="before"):
                await alice.step(carol, again)

        # A signature for which no nonce waits, by its type.
        q, first = alice.first(carol, dave)
        answer = await alice.step(carol, first.effects[0].message)
        third = alice.third(q, step(machine.ASKER, q, first.state, answer).state, dave)
        alice.sharing._open.clear()
        with pytest.raises(Interrupted) as lost:
            await alice.step(carol, third.effects[0].message)
        assert lost.value.detail == "unknown-request"

    play(alice, scene())
