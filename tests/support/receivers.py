"""bob's receiver, and alice's requests to it, from the coordinator's side of his daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from msgspec import structs

from tests.support.env import FixedClock
from tests.support.parties import World
from tests.support.talks import terms
from tests.support.waiting import DEADLINE
from zkc.client.bus import EventBus
from zkc.client.gossip import Gossip
from zkc.client.person import PersonHere
from zkc.client.principal import pin_peer
from zkc.client.receiving import Receiver
from zkc.client.transfers import Transfer
from zkc.config import ClientConfig
from zkc.env import SystemEntropy
from zkc.errors import PolicyRefused
from zkc.net.pipe.recipient import Bulk
from zkc.protocol import transfer_sender
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.keystore import KeyStore
from zkc.wire.codec import decode
from zkc.wire.messages import AnswerBody, Notify, RequestBody, Resp, TransferRequest, TransferResponse

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
        # Known to each other: nobody has to be asked whether her card is in the key log.
        pin_peer(self.store, everyone.alice.card, self.clock.wall())
        self.inbox = closing.enter_context(Inbox.open(home))
        self.bulk = Bulk()
        self.principal: Any = SimpleNamespace(
            authority=bob.coordinator.authority, identity=bob.identity, kem_key=bob.kem_key, card=bob.card,
            registration=SimpleNamespace(uid=bob.card.body.uid),
        )
        self.notes: list[tuple[str, ...]] = []
        """What was noted: event, sender, recipient."""
        notes: Any = SimpleNamespace(note=lambda *told, **_: self.notes.append(told))
        self.person = PersonHere(home.data, lambda: self.receiver.config, self.clock, SystemEntropy())
        self.bus = EventBus(self.clock)
        self.receiver = Receiver(
            self.bulk, self.store, self.inbox, ClientConfig(), self.person, self.bus, self.clock, SystemEntropy(),
            notes, Gossip(self.store, lambda _name, _alarm: None),
        )

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
        return made.state.req.xid, Notify(asked.request, asked.signature, card, self.alice.certificate, "online")

    async def ask(self, body: Any) -> AnswerBody:
        return await self.receiver.handle(self.principal, COORDINATOR, no_relay, body)

    async def answer(self, serial: int, **changes: Any) -> tuple[str, str]:
        """The verdict on alice's ``serial``th transfer, and its finer word."""
        return verdict(await self.ask(self.request(serial, **changes)[1]))


def verdict(answer: AnswerBody) -> tuple[str, str]:
    assert isinstance(answer, TransferResponse)
    resp: Resp = decode(answer.response, Resp)
    return resp.verdict, resp.detail


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


def agreed(bob: Bob, serial: int, **changes: Any) -> Transfer:
    """A transfer of alice's whose handshake is over, and which waits for her to come back."""
    talk = bob.everyone.transfer(replace(terms("bob", serial=serial), **changes))
    talk.run()
    side = talk.sides["recipient"]
    (notify,) = talk.messages(Notify)
    transfer = Transfer(side.context, side.state, bob.alice.card, notify)
    transfer.agreed = True
    bob.receiver._transfers[transfer.req.xid] = transfer
    return transfer
