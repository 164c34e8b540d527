"""What a daemon does for the commands of its home, request by request (`zkc.client.control`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any, Final

import structlog

from zkc import __version__
from zkc.client import control, inquiries
from zkc.client.bus import EventBus
from zkc.client.handed import Grants, Handed
from zkc.client.handover import reply_of, wanted_of
from zkc.client.happenings import Begun, ended
from zkc.client.links import Links
from zkc.client.person import PersonHere
from zkc.client.person_news import PersonNews
from zkc.client.queue import Queue
from zkc.client.receiving import Receiver
from zkc.client.renewal import RenewalDuty
from zkc.client.small import as_told
from zkc.client.successions import look_up
from zkc.constants import ID_BYTES, SENDERS_HEARD_MAX
from zkc.env import Clock, Entropy
from zkc.errors import DaemonError, InternalError, Interrupted, TimedOut
from zkc.net.local_frames import ALIVE_SECONDS, Credentials
from zkc.stores.keystore import KeyStore
from zkc.stores.noting import Notes
from zkc.wire.messages import Endpoints


class Commands:
    """Belongs to the daemon's loop. ``grant`` is one transfer handshake over the home's own link, ``reload`` what
    SIGHUP does."""

    def __init__(
        self, links: Links, store: KeyStore, receiver: Receiver, person: PersonHere, news: PersonNews, queue: Queue,
        handed: Handed, renewing: RenewalDuty, grant: Grants, reload: Callable[[], None], clock: Clock,
        entropy: Entropy, notes: Notes, bus: EventBus,
    ) -> None:
        self._links = links
        self._store = store
        self._receiver = receiver
        self._person = person
        self._news = news
        self._queue = queue
        self._handed = handed
        self._renewing = renewing
        self._granted = grant
        self._reload = reload
        self._clock = clock
        self._entropy = entropy
        self._audit = notes
        self._bus = bus
        self._senders = 0
        """Commands that say how far they are."""
        self._log = structlog.get_logger("zkc.daemon")
        self._listening: dict[bytes, asyncio.Future[Endpoints]] = {}
        """What grants under way may wait for: where the command that asked for it listens."""
        self.left: Final = asyncio.Event()
        """``zkc leave`` has done its work."""
        self.metrics = ""
        """``HOST:PORT`` where they are told; empty: nowhere."""

    async def serve(
        self, request: control.ControlRequest, peer: Credentials
    ) -> AsyncGenerator[control.ControlReply, None]:
        """The replies to one request of the local process ``peer``; what it raises is the command's answer too."""
        self._log.debug("command", request=type(request).__name__, pid=peer.pid)
        streams: dict[type, Callable[[Any], AsyncGenerator[control.ControlReply, None]]] = {
            control.AskGrant: self._grant, control.AskSend: self._send, control.AskLive: self._live,
            control.AskPeers: self._peers, control.AskEvents: self._events, control.AskSending: self._sending,
            control.AskReport: self._report,
        }
        stream = streams.get(type(request))
        if stream is None:
            yield await self._answer(request)
            return
        async with contextlib.aclosing(stream(request)) as replies:
            async for reply in replies:
                yield reply

    async def _answer(self, request: control.ControlRequest) -> control.ControlReply:
        readers = self._receiver.readers
        match request:
            case control.AskStatus():
                return self._status()
            case control.AskReload():
                self._reload()
            case control.AskPending():
                return control.PendingListReply(self._receiver.asking.items())
            case control.AskDecision():
                return control.DecidedReply(await self._receiver.decide(request))
            case control.AskPerson():
                return await self._person_of(request)
            case control.AskLeave():
                await self._links.leave()
                self.left.set()
            case control.AskRotate():
                return control.RotatedReply(await self._renewing.renew_all(identity=request.identity))
            case control.AskListening():
                self._take_listening(request)
            case control.AskOutbox():
                self._queue.poke()
                return control.OutboxReply(self._queue.sent())
            case control.AskExpect():
                self._receiver.asking.expect(request.sender, request.tid, wanted=request.wanted)
            case control.AskLiveReady():
                return readers.ready(request.xid)
            case control.AskLivePass():
                readers.pass_on(request.xid, unwanted=request.unwanted)
            case control.AskLiveReceipt():
                return await readers.receipt(request)
            case _:
                return await self._of_coordinator(request)
        return control.DoneReply()

    async def _of_coordinator(self, request: control.ControlRequest) -> control.ControlReply:
        link = self._links.main
        await link.wait_linked(link.patience)
        if isinstance(request, control.AskCard):
            ask = partial(link.request, about=request.name)
            return control.CardReply(
                await look_up(ask, self._store, link.principal, request.name, self._clock.wall(), self._audit)
            )
        if isinstance(request, control.AskSeen):
            peer = await inquiries.seen(link.request, request.name)
            self._bus.saw([peer])
            return control.SeenReply(peer)
        if isinstance(request, control.AskApplication):
            return control.InvitationReply(await inquiries.application_invitation(link.request, request.app))
        raise InternalError(f"nothing here answers {type(request).__name__}", detail="unexpected")

    async def _peers(self, _request: control.AskPeers) -> AsyncGenerator[control.ControlReply, None]:
        link = self._links.main
        await link.wait_linked(link.patience)
        peers = await inquiries.all_peers(link.request)
        self._bus.saw(peers)
        for reply in control.replies_of(peers):
            yield reply

    async def _events(self, request: control.AskEvents) -> AsyncGenerator[control.ControlReply, None]:
        async with contextlib.aclosing(self._bus.events(follow=request.follow)) as events:
            async for happened in events:
                yield control.HappenedReply(happened)

    async def _sending(self, request: control.AskSending) -> AsyncGenerator[control.ControlReply, None]:
        """For as long as the command sends; one that is gone before it has said how it ended has broken off."""
        if self._senders >= SENDERS_HEARD_MAX:
            raise DaemonError("enough commands say how far they are", detail="too-many", hint="nothing is lost by it")
        begun, wanted = request.begun, asyncio.Event()
        self._senders += 1
        self._bus.begin(begun, wanted.set)
        try:
            yield control.DoneReply()
            while True:
                await wanted.wait()
                wanted.clear()
                yield control.MeasureReply()
        finally:
            self._senders -= 1
            if self._bus.is_under_way(begun.transfer):
                self._bus.publish(ended(begun, None, Interrupted("the command has gone", detail="signal")))

    async def _report(self, request: control.AskReport) -> AsyncGenerator[control.ControlReply, None]:
        for each in request.what:
            if isinstance(each, Begun):
                self._bus.begin(each)
            else:
                self._bus.publish(each)
        yield control.DoneReply()

    async def _grant(self, request: control.AskGrant) -> AsyncGenerator[control.ControlReply, None]:
        """The grant; before it, where the recipient comes to the command, the question where that is."""
        loop = asyncio.get_running_loop()
        ticket = self._entropy.bytes(ID_BYTES)
        wanted: asyncio.Future[str] = loop.create_future()
        told: asyncio.Future[Endpoints] = loop.create_future()

        def listen(coordinator: str) -> asyncio.Future[Endpoints]:
            if not wanted.done():  # a handshake that begins anew asks again
                wanted.set_result(coordinator)
            return told

        pending: asyncio.Future[None] = loop.create_future()

        def ask() -> None:
            if not pending.done():  # the same
                pending.set_result(None)

        granting = asyncio.create_task(
            self._granted(wanted_of(request), request.within, listen, ask)
        )
        granting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        self._listening[ticket] = told
        untold: set[asyncio.Future[Any]] = {pending, wanted}
        try:
            while not granting.done():
                await asyncio.wait(
                    {granting, *untold}, timeout=ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if pending in untold and pending.done():
                    untold.discard(pending)
                    yield control.PendingReply()
                if wanted in untold and wanted.done() and not granting.done():
                    untold.discard(wanted)
                    yield control.MustListen(ticket, wanted.result())
                elif not granting.done():
                    yield control.WaitReply()
            yield reply_of(granting.result(), self._links.principal.coordinator.suite.name)
        finally:
            del self._listening[ticket]
            granting.cancel()

    async def _send(self, request: control.AskSend) -> AsyncGenerator[control.ControlReply, None]:
        async with contextlib.aclosing(self._handed.send(request.job)) as events:
            async for event in events:
                yield control.EventReply(*as_told(event))

    async def _live(self, request: control.AskLive) -> AsyncGenerator[control.ControlReply, None]:
        owner = self._links.principal.name
        recipient = f"{owner}/{request.app}" if request.app else owner
        end = None if request.within is None else asyncio.get_running_loop().time() + request.within
        await self._links.until_linked(recipient, end)
        async with contextlib.aclosing(self._receiver.readers.serve(request, recipient, end)) as replies:
            async for reply in replies:
                yield reply

    async def _person_of(self, request: control.AskPerson) -> control.PersonReply:
        here = self._person
        if request.pin:
            await self._receiver.prove(request.pin)
        if request.mode is not None:
            here.say(request.mode)
            self._news.tell_anew()
        person, level = here.person(), here.level()[0]
        return control.PersonReply(person.state, int(person.age), person.source, here.mode, level)

    def _take_listening(self, request: control.AskListening) -> None:
        told = self._listening.get(request.ticket)
        if told is None or told.done():
            raise TimedOut("the handshake is over", detail="expired", hint="run the same command again")
        told.set_result(request.endpoints)

    def _status(self) -> control.StatusReply:
        link = self._links.main
        problem = None if link.linked else link.problem
        received = self._receiver.received
        return control.StatusReply(
            client=self._links.principal.name,
            linked=link.linked,
            coordinator=link.endpoint,
            fingerprint=link.principal.fingerprint.hex(),
            presence=self._person.level()[0] if link.linked else "offline",
            listen=self._receiver.config.transfer.listen,
            apps=self._links.applications,
            deliveries=received["deliveries"],
            bytes=received["bytes"],
            problem=str(problem) if problem else "",
            problem_code=problem.code if problem else 0,
            version=__version__,
            metrics=self.metrics,
        )
