"""The coordinator by a link of this process: what `zkc.client.access` takes where no daemon answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from zkc.client import inquiries
from zkc.client.gossip import Gossip
from zkc.client.granting import grant_within
from zkc.client.grants import Grant, Listen, OnPending, Wanted
from zkc.client.link import Link
from zkc.client.principal import Keeper, Principal, load_main, load_principal
from zkc.client.renewal import Renewal
from zkc.client.successions import look_up
from zkc.config import ClientConfig
from zkc.env import Clock, Entropy
from zkc.errors import Interrupted, NotRegistered, PeerViolation, UsageError
from zkc.net.sockets import Context, context
from zkc.protocol.keylog import LogAlarm
from zkc.rules.refusals import COORDINATOR
from zkc.stores.keystore import KeyStore
from zkc.stores.noting import Notes
from zkc.wire.messages import (
    AnswerBody,
    Leave,
    Peer,
    PeerCard,
    RequestBody,
)

T = TypeVar("T")
_CANCEL_SECONDS: Final = 1.0
"""How long what a loop still runs may take to end with it."""


class LoopThread:
    """An event loop in a thread of its own, for callers that block."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="zkc-loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What ``coroutine`` returns or raises; where the caller is interrupted, it is cancelled."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Other threads whose coroutines still run get `concurrent.futures.CancelledError`."""
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_CANCEL_SECONDS)


class ByLink:
    """By a link of this process, role ``once``: it may ask, and is not counted as online."""

    def __init__(
        self, store: KeyStore, config: ClientConfig, clock: Clock, entropy: Entropy, notes: Notes
    ) -> None:
        """`LocalIOError` (``locked``), `NotRegistered`."""
        store.unlock()
        self._store = store
        self._principal = load_main(store)
        self._coordinator = config.coordinator
        self._renewal = Renewal(store, lambda: config.keys.lifetime, clock, entropy, notes)
        self._clock = clock
        self._entropy = entropy
        self._notes = notes
        self._gossip = Gossip(store, self._alarm)
        self._loop: LoopThread | None = LoopThread()
        self._context: Context = context(entropy)
        self._link: Link | None = None

    def grant(self, wanted: Wanted, within: float | None, listen: Listen, on_pending: OnPending) -> Grant:
        async def ask() -> Grant:
            return await grant_within(
                within, self._started(), self._store, wanted, self._clock, self._entropy,
                lambda coordinator: asyncio.to_thread(listen, coordinator), on_pending, self._notes, self._gossip,
            )

        return self._run(ask())

    def peers(self) -> list[Peer]:
        return self._run(inquiries.all_peers(self._request))

    def card(self, name: str) -> PeerCard:
        async def ask() -> PeerCard:
            link = self._started()
            await link.wait_linked(link.patience)  # the coordinator may have another identity
            request = partial(link.request, about=name)
            return await look_up(request, self._store, link.principal, name, self._clock.wall(), self._notes)

        return self._run(ask())

    def seen(self, name: str) -> Peer:
        return self._run(inquiries.seen(self._request, name))

    def ask(self, body: RequestBody, within: float, about: str) -> AnswerBody:
        """Any request, of a command that has a conversation with another client."""

        async def asked() -> AnswerBody:
            link = self._started()
            await link.wait_linked(link.patience)
            return await link.request(body, within, about=about)

        return self._run(asked())

    def invite_application(self, app: str) -> str:
        return self._run(inquiries.application_invitation(self._request, app))

    def rotate(self, *, identity: bool) -> list[bytes]:
        async def renew() -> list[bytes]:
            own = load_main(self._store)
            cards = []
            for registration in self._store.registrations():
                link = self._link_for(load_principal(registration))
                link.start()
                try:
                    await link.wait_linked(link.patience)
                    renewed = await self._renewal.renew(link, own.identity, identity=identity)
                finally:
                    await link.close()
                if renewed.registration.owner is None:
                    own = self._principal = renewed
                cards.append(renewed.card.encoded)
            return cards

        return self._run(renew())

    def leave(self) -> None:
        # Refused as nobody's: an earlier leave has got so far, or it was revoked. If the refusal is a lie, the
        # registration stays there without anybody who has its keys.
        with suppress(NotRegistered):
            self._run(self._request(Leave()))

    def close(self) -> None:
        if self._loop is not None:
            if self._link is not None:
                self._loop.run(self._link.close())
            self._loop.close()
            self._loop = None
            self._context.destroy(linger=200)

    def _alarm(self, name: str, alarm: LogAlarm) -> None:
        self._notes.note("key-log-alarm", name, code=alarm.code, detail=alarm.detail)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            coroutine.close()
            raise UsageError("this client is closed")
        try:
            return self._loop.run(coroutine)
        except CancelledError:
            raise Interrupted("this client was closed", detail="signal") from None

    async def _request(self, body: RequestBody, about: str = COORDINATOR) -> AnswerBody:
        link = self._started()
        await link.wait_linked(link.patience)
        return await link.request(body, about=about)

    def _started(self) -> Link:
        if self._link is None:
            self._link = self._link_for(self._principal)
            self._link.start()
        return self._link

    def _link_for(self, principal: Principal) -> Link:
        return Link(
            self._context, principal, "once", clock=self._clock, entropy=self._entropy, handler=_refuse,
            keeper=Keeper(self._store), endpoints=self._coordinator.endpoints,
            identifier=self._coordinator.identifier,
        )


async def _refuse(body: RequestBody) -> AnswerBody:
    raise PeerViolation("unexpected", "a command takes no requests")
