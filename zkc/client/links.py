"""The links of a home's daemon: one for each of its registrations, opened, renewed, put aside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import structlog

from zkc.client.bus import EventBus
from zkc.client.happenings import LinkNews
from zkc.client.link import Link
from zkc.client.principal import Keeper, Principal, load_main, load_principal, note_alarm
from zkc.config import ClientConfig
from zkc.crypto.cards import uid_of
from zkc.env import Clock, Entropy
from zkc.errors import (
    CoordinatorUnreachable,
    IdentityError,
    NotRegistered,
    PeerViolation,
    UnknownRecipient,
    ZkcError,
)
from zkc.logs import Repeats
from zkc.net.sockets import Context
from zkc.protocol.trust import KeyChanged
from zkc.stores.keystore import KeyStore
from zkc.stores.noting import Notes
from zkc.wire.messages import AnswerBody, Leave, LookUp, PeerCard, RequestBody


class Links:
    """Belongs to the running loop. ``handle`` answers what the coordinator asks over a link; ``on_linked``: there is a
    channel (again)."""

    def __init__(
        self, context: Context, store: KeyStore, config: Callable[[], ClientConfig], clock: Clock, entropy: Entropy,
        notes: Notes, repeats: Repeats, handle: Callable[[Link, RequestBody], Awaitable[AnswerBody]],
        on_linked: Callable[[Link], None], bus: EventBus,
    ) -> None:
        self.principal: Final = load_main(store)
        """The home's own registration, as it was at the start."""
        self._context = context
        self._store = store
        self._config = config
        self._clock = clock
        self._entropy = entropy
        self._notes = notes
        self._repeats = repeats
        self._handle = handle
        self._on_linked = on_linked
        self._bus = bus
        self._log = structlog.get_logger("zkc.daemon")
        self._links: dict[str, Link] = {}
        self._closing: set[asyncio.Task[None]] = set()
        """Links of registrations that are gone, saying goodbye."""
        self._looks: dict[str, asyncio.Task[None]] = {}
        """Applications about which the coordinator is being asked."""
        self.leaving = False
        """``zkc leave`` is under way."""

    @property
    def main(self) -> Link:
        """The link of the home's own registration."""
        return self._links[self.principal.name]

    @property
    def applications(self) -> list[str]:
        return sorted(name for name in self._links if name != self.principal.name)

    def all(self) -> list[Link]:
        return list(self._links.values())

    def of(self, name: str) -> Link:
        """`NotRegistered` (``no-registration``)."""
        link = self._links.get(name)
        if link is None:
            raise NotRegistered(f"{name} is not registered here", detail="no-registration", hint="zkc join does that")
        return link

    async def until_linked(self, name: str, end: float | None) -> None:
        """Until senders find that registration online, or the loop's time is ``end``: what keeps it from linking."""
        loop = asyncio.get_running_loop()
        while not (link := self.of(name)).linked:
            try:
                await link.wait_linked(link.patience if end is None else min(max(end - loop.time(), 0), link.patience))
            except CoordinatorUnreachable:
                if link.ended.done() or (end is not None and loop.time() >= end):
                    raise

    async def leave(self) -> None:
        """End the home's registration at the coordinator; where that refuses it as nobody's, see `ByLink.leave`."""
        self.leaving = True
        try:
            await self.main.wait_linked(self.main.patience)
            await self.main.request(Leave())
        except NotRegistered:
            pass
        except BaseException:
            self.leaving = False
            raise

    async def close(self) -> None:
        """Goodbye on every link."""
        for look in self._looks.values():
            look.cancel()
        await asyncio.gather(*self._closing, *(link.close() for link in self.all()), return_exceptions=True)

    # --- registrations come and go ----------------------------------------------------------------------------------

    def open(self) -> None:
        """A link for each registration that has none; none for one that is gone."""
        registered = {registration.name: registration for registration in self._store.registrations()}
        for name in [name for name in self._links if name not in registered and name != self.principal.name]:
            self._spawn(self._links.pop(name).close())
        for name, registration in registered.items():
            known = self._links.get(name)
            if known is not None and known.principal.registration.uid != registration.uid:
                # An application that was registered anew.
                self._spawn(self._links.pop(name).close())
                known = None
            if known is None:
                self._links[name] = self._open(load_principal(registration))
            elif known.principal.registration != registration:
                # A command has renewed its keys, before this daemon was there to do it.
                self._spawn(known.adopt(load_principal(registration)))

    def _spawn(self, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(doing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _open(self, principal: Principal) -> Link:
        log = self._log.bind(client=principal.name)
        is_main = principal.name == self.principal.name

        async def handle(body: RequestBody) -> AnswerBody:
            log.debug("step", step=type(body).__name__)
            principal = link.principal
            try:
                return await link.learning(lambda: self._handle(link, body))
            except (ZkcError, PeerViolation) as error:
                name = type(body).__name__
                about = principal.name, name, type(error), error.detail
                self._repeats.tell(log, "warning", "handshake-refused", about, step=name, error=str(error))
                if isinstance(error, KeyChanged):
                    self._key_changed(principal, error, log)
                else:
                    code = error.code if isinstance(error, ZkcError) else IdentityError.code
                    self._notes.note("request", "", principal.name, code=code, detail=error.detail)
                raise

        def tell(linked: bool, why: ZkcError | None) -> None:
            code, reason, detail = (0, "", "") if why is None else (why.code, why.reason, why.detail)
            self._bus.publish(LinkNews(principal.name, linked, link.endpoint, code, reason, detail))

        def state(linked: bool) -> None:
            why = link.problem
            tell(linked, None if linked else why)
            if linked:
                log.info("linked", coordinator=link.endpoint)
                self._on_linked(link)
                if is_main:
                    self._look_into_all()
            elif why is None:
                log.info("link-closed", coordinator=link.endpoint)
            else:
                log.warning(
                    "link-lost", coordinator=link.endpoint, reason=why.reason, detail=why.detail, error=str(why)
                )

        def problem(error: ZkcError) -> None:
            tell(False, error)
            log.warning("no-link", reason=error.reason, detail=error.detail, error=str(error))
            self._look_into_all()

        def renewed(of: Principal) -> None:
            log.info("coordinator-identity", fingerprint=of.registration.coordinator_fingerprint.hex())
            self._notes.note("coordinator-succeeded", of.name)

        def over(ended: asyncio.Future[ZkcError]) -> None:
            if ended.cancelled():
                return
            self._notes.note(
                "registration-ended", principal.name, code=ended.result().code, detail=ended.result().detail
            )
            if not is_main:
                log.warning("registration-ended", detail=ended.result().detail, error=str(ended.result()))
                if isinstance(ended.result(), NotRegistered):
                    self._put_aside(principal)

        coordinator = self._config().coordinator
        link = Link(
            self._context, principal, "daemon", clock=self._clock, entropy=self._entropy, handler=handle,
            keeper=Keeper(self._store, renewed), endpoints=coordinator.endpoints, identifier=coordinator.identifier,
            on_state=state, on_problem=problem,
        )
        link.ended.add_done_callback(over)
        link.start()
        return link

    def _key_changed(self, principal: Principal, changed: KeyChanged, log: Any) -> None:
        """Whoever asks ``principal`` for something with another key than the pinned one, whatever it is: an alarm."""
        about = changed.name, principal.name
        self._repeats.tell(log, "warning", "key-changed", about, peer=changed.name, seen=changed.seen.hex())
        self._notes.note("key-changed", *about, code=changed.code, detail=changed.detail)
        note_alarm(self._store, changed.name, changed.seen)

    # --- applications that the coordinator no longer knows ----------------------------------------------------------

    def _look_into_all(self) -> None:
        """Where an application's key is refused, its owner's channel tells whether that is true."""
        if not self.main.linked:
            return
        for name, link in self._links.items():
            refused = isinstance(link.problem, NotRegistered) and not link.ended.done()
            if refused and link is not self.main and name not in self._looks:
                self._looks[name] = asyncio.create_task(self._look_into(link.principal))

    async def _look_into(self, principal: Principal) -> None:
        """Nothing authenticates that a key is refused. What the coordinator says of the name, here it does."""
        try:
            found = await self.main.request(LookUp(principal.name))
        except UnknownRecipient:
            is_gone = True
        except ZkcError:
            return  # asked again with the next link
        else:
            is_gone = isinstance(found, PeerCard) and uid_of(found.card) != principal.registration.uid
        finally:
            del self._looks[principal.name]
        if is_gone:
            self._log.warning("registration-ended", client=principal.name, detail="revoked")
            self._notes.note("registration-ended", principal.name, code=NotRegistered.code, detail="revoked")
            self._put_aside(principal)

    def _put_aside(self, principal: Principal) -> None:
        """``zkc leave`` removes them itself."""
        if not self.leaving and self._store.revoked(principal.registration, self._clock.wall()):
            self.open()
