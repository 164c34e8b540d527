"""The client daemon: presence, receiving, and the coordinator for every command of its home.

Starts, says ``ready``, links, serves until SIGTERM or SIGINT; SIGHUP reads the configuration again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from zkc import __version__, logs
from zkc.client import control
from zkc.client.auditing import DaemonAudit
from zkc.client.by_link import all_peers
from zkc.client.gossip import Gossip
from zkc.client.granting import grant_within
from zkc.client.grants import Grant, OnPending, Wanted
from zkc.client.handed import Handed
from zkc.client.hooks import Hooks
from zkc.client.housekeeping import Housekeeping
from zkc.client.lifesigns import Sessions, Source, terminal_activity
from zkc.client.link import Link
from zkc.client.log_watch import LogWatch
from zkc.client.passphrase import passphrase
from zkc.client.person import PersonHere
from zkc.client.principal import Keeper, Principal, load_main, load_principal
from zkc.client.queue import Queue
from zkc.client.receiving import Receiver
from zkc.client.renewal import Renewal, RenewalDuty
from zkc.client.sharing import Sharing
from zkc.client.small import as_told
from zkc.client.successions import look_up
from zkc.config import ClientConfig, check_not_gone
from zkc.constants import HEARTBEAT_SECONDS, ID_BYTES, REQUEST_SECONDS, TRANSFERS_MAX
from zkc.crypto.cards import uid_of
from zkc.crypto.primitives import Secret
from zkc.env import Clock, Entropy
from zkc.errors import (
    CoordinatorUnreachable,
    IdentityError,
    InternalError,
    LocalIOError,
    NotRegistered,
    PeerViolation,
    TimedOut,
    UnknownRecipient,
    UsageError,
    ZkcError,
)
from zkc.ids import PersonState
from zkc.net.desktop import Bus
from zkc.net.local import LocalServer, serve_local
from zkc.net.local_frames import ALIVE_SECONDS, Credentials
from zkc.net.pipe import Bulk
from zkc.net.sockets import context
from zkc.protocol.trust import KeyChanged
from zkc.rules.policy import locked_out
from zkc.rules.presence import UNKNOWN
from zkc.stores.audit_file import AuditFile
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.keystore import KeyStore
from zkc.wire.messages import (
    AnswerBody,
    AskFrom,
    Endpoints,
    Invitation,
    InviteApplication,
    Leave,
    LookAt,
    LookUp,
    Peer,
    PeerCard,
    PeerSeen,
    PersonIs,
    RequestBody,
)

_PERSON_NEWS_SECONDS: Final = 20.0
"""A sign of life of the person is told again only when it is newer by this."""
GRACE_SECONDS: Final = 5.0
"""Bound on the whole of a graceful end."""
DESCRIPTORS: Final = 32 * TRANSFERS_MAX
"""Open files that a daemon asks the system for. A transfer has two sockets, libzmq's and ours around them, its file and
its bell, and strangers connect to its ports as well; 1,024, which many systems allow at first, are soon too few."""


@dataclass(frozen=True)
class Ready:
    """What a daemon says of itself once its control socket serves."""

    endpoint: str
    fingerprint: str


async def run(
    home: Home, read_config: Callable[[], ClientConfig], *, clock: Clock, entropy: Entropy,
    on_ready: Callable[[Ready], None], master: Secret | None = None,
) -> None:
    """Serve until a signal or ``zkc leave``; raises the error with which the coordinator ends the registration.

    ``master``: what a passphrase has unlocked, where the caller has asked for it. ``read_config`` is asked at the start
    and at each SIGHUP; `UsageError` for a configuration with a mistake.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_Defects(clock))
    with (
        home.lock() as lock, KeyStore.open(home, passphrase=passphrase, master=master) as store,
        Inbox.open(home) as inbox, AuditFile.open(home) as audit,
    ):
        store.unlock()
        keeping = Housekeeping(home, inbox, clock)
        keeping.sweep()
        daemon = Daemon(home, store, inbox, audit, read_config, clock, entropy)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, daemon.reload)
        try:
            on_ready(await daemon.start(home.prepare_socket(lock)))
            # What stands now stays: the collector need not go through it again and again.
            gc.freeze()
            sweeping = asyncio.create_task(keeping.run())
            try:
                await daemon.until_ended(stop)
            finally:
                sweeping.cancel()
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_SECONDS):
                    await daemon.close()


class _Defects:
    """The loop's exception handler: whatever a task or a callback did, the daemon goes on, and the log says what."""

    def __init__(self, clock: Clock) -> None:
        self._log = structlog.get_logger("zkc.daemon")
        self._repeats = logs.Repeats(clock.monotonic)

    def __call__(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error, what = context.get("exception"), str(context.get("message", ""))
        withheld = self._repeats.passes(f"{what}.{type(error).__name__}")
        if withheld is None:
            return
        if isinstance(error, ZkcError):
            self._log.error("failed", what=what, error=str(error), withheld=withheld)
        elif isinstance(error, BaseException):
            self._log.error("defect", what=what, withheld=withheld, exc_info=error)
        else:
            self._log.error("defect", what=what, withheld=withheld)


class Daemon:
    """The parts of one running daemon, connected."""

    def __init__(
        self, home: Home, store: KeyStore, inbox: Inbox, audit: AuditFile, read_config: Callable[[], ClientConfig],
        clock: Clock, entropy: Entropy,
    ) -> None:
        self._store = store
        self._inbox = inbox
        self._read_config = read_config
        self._config_file = home.config_file
        self._had_config = home.config_file.exists()
        self._config = config = read_config()
        self._clock = clock
        self._entropy = entropy
        self._log = structlog.get_logger("zkc.daemon")
        self._repeats = logs.Repeats(clock.monotonic)
        self._principal = load_main(store)
        self._context = context(entropy)
        self._bulk = Bulk()
        self._sessions = Sessions(clock, Bus("system"))
        sources: dict[str, Source] = {"terminal": terminal_activity, "session": self._sessions}
        self._person = PersonHere(home.data, lambda: self._config, clock, entropy, sources)
        self._hooks = Hooks(lambda: self._config, self._repeats, Bus("session"))
        self._audit = DaemonAudit(audit, lambda: self._config, clock, self._log)
        self._watch = LogWatch(store, self._audit, clock)
        self._gossip = Gossip(store, self._watch.alarm)
        self._receiver = Receiver(
            self._bulk, store, inbox, config, self._person, self._hooks, clock, entropy, self._audit, self._gossip
        )
        self._handed = Handed(home, self._granted, clock, entropy)
        self._queue = Queue(home, lambda: self._config, self._granted, self._seen, clock, entropy, self._audit)
        self._sharing = Sharing(home, store, lambda: self._config, self._granted, clock, entropy, self._audit)
        self._links: dict[str, Link] = {}
        self._closing: set[asyncio.Task[None]] = set()
        """Links of registrations that are gone, saying goodbye."""
        self._looks: dict[str, asyncio.Task[None]] = {}
        """Applications about which the coordinator is being asked."""
        self._server: LocalServer[control.ControlRequest, control.ControlReply] | None = None
        self._listening: dict[bytes, asyncio.Future[Endpoints]] = {}
        """What grants under way may wait for: where the command that asked for it listens."""
        self._renewal = Renewal(store, lambda: self._config.keys.lifetime, clock, entropy, self._audit)
        self._renewing = RenewalDuty(self._renewal, self._log, entropy)
        self._leaving = False
        self._left = asyncio.Event()
        self._told_person: tuple[PersonState, float] | None = None
        """What the coordinator knows of the person, and since when."""
        self._telling: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._queueing: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._auditing: asyncio.Task[None] | None = None

    @property
    def main(self) -> Link:
        """The link of the home's own registration."""
        return self._links[self._principal.name]

    async def start(self, socket_path: Path) -> Ready:
        """Begin to link and to serve commands at ``socket_path``."""
        self._sweeping = asyncio.create_task(self._sweep())
        self._telling = asyncio.create_task(self._keep_telling())
        self._auditing = asyncio.create_task(self._audit.run())
        self._audit.note("started", self._principal.name)
        self._queueing = asyncio.create_task(self._queue.run())
        self._watching = asyncio.create_task(self._sessions.run(lambda: "session" in self._config.person.sources))
        self._open_links()
        self._renewing.start(lambda: list(self._links.values()))
        self._server = await serve_local(socket_path, self._serve, control.ControlRequest, on_refused=self._refused)
        return Ready(self.main.endpoint, self._principal.fingerprint.hex())

    async def until_ended(self, stop: asyncio.Event) -> None:
        """Until ``stop`` or ``zkc leave``; raises what the coordinator ended the registration with."""
        ended, why = self.main.ended, "signal"
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(event.wait()) for event in (stop, self._left)]
        try:
            await asyncio.wait([*waits, ended], return_when=asyncio.FIRST_COMPLETED)
            if self._leaving:
                why = "left"
                # The coordinator's farewell may come before the command has its answer.
                await asyncio.wait(waits, timeout=REQUEST_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                return
            if ended.done() and not stop.is_set():
                why = ended.result().detail
                raise ended.result()
        finally:
            self._log.info("ending", why=why)
            for wait in waits:
                wait.cancel()

    async def _sweep(self) -> None:
        """Give room back that pipes have taken whose commands do not come: for each there was the patience to do so,
        from this daemon's start at the earliest."""
        while True:
            patience = self._config.transfer.patience
            await asyncio.sleep(patience)
            with contextlib.suppress(LocalIOError):  # held by another process: the next time
                await asyncio.to_thread(self._inbox.drop_pipes, self._clock.wall() - patience)

    async def close(self) -> None:
        """Goodbye to the coordinator, an end to every transfer; in bounded time."""
        for task in (self._sweeping, self._telling, self._watching, self._queueing, self._auditing):
            if task is not None:
                task.cancel()
        if self._server is not None:
            await self._server.close()
        self._handed.close()
        self._renewing.close()
        self._watch.close()
        self._sharing.close()
        for look in self._looks.values():
            look.cancel()
        leaving = asyncio.gather(*self._closing, return_exceptions=True)
        links = (link.close() for link in self._links.values())
        try:
            await asyncio.gather(self._receiver.close(), self._queue.close(), self._hooks.close(), leaving, *links)
        finally:
            await self._audit.close()
        self._context.destroy(linger=200)
        await asyncio.to_thread(self._bulk.close)

    def reload(self) -> None:
        """SIGHUP: configuration and registrations again. A configuration with a mistake, or none where there was one,
        changes nothing."""
        try:
            check_not_gone(self._config_file, was_there=self._had_config)
            config = self._read_config()
        except UsageError as error:
            self._log.error("configuration-kept", error=str(error))
        else:
            if config.log != self._config.log:
                logs.configure(config.log.format, config.log.level)
            if config.coordinator != self._config.coordinator:
                self._log.warning("restart-needed", key="coordinator.endpoints")
            self._config = self._receiver.config = config
            self._had_config = self._config_file.exists()
            if notice := locked_out(config.policy):
                self._log.warning("configuration-notice", notice=notice)
            self._log.info("configuration-read")
            self._audit.note("policy-reloaded", self._principal.name)
        self._open_links()

    def _open_links(self) -> None:
        """A link for each registration that has none; none for one that is gone."""
        registered = {registration.name: registration for registration in self._store.registrations()}
        for name in [name for name in self._links if name not in registered and name != self._principal.name]:
            self._spawn_close(self._links.pop(name))
        for name, registration in registered.items():
            known = self._links.get(name)
            if known is not None and known.principal.registration.uid != registration.uid:
                # An application that was registered anew.
                self._spawn_close(self._links.pop(name))
                known = None
            if known is None:
                self._links[name] = self._open_link(load_principal(registration))
            elif known.principal.registration != registration:
                # A command has renewed its keys, before this daemon was there to do it.
                self._adopt(known, load_principal(registration))
        self._renewing.wake()

    def _adopt(self, link: Link, principal: Principal) -> None:
        task = asyncio.create_task(link.adopt(principal))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _open_link(self, principal: Principal) -> Link:
        log = self._log.bind(client=principal.name)
        is_main = principal.name == self._principal.name

        async def handle(body: RequestBody) -> AnswerBody:
            log.debug("step", step=type(body).__name__)
            try:
                try:
                    return await self._asked(link, body, is_main=is_main)
                except IdentityError as error:
                    # Signed by an identity that the coordinator has since a moment ago?
                    if error.detail not in {"bad-certificate", "log-proof"} or not await link.learn():
                        raise
                return await self._asked(link, body, is_main=is_main)
            except (ZkcError, PeerViolation) as error:
                name = type(body).__name__
                about = principal.name, name, type(error), error.detail
                self._repeats.tell(log, "warning", "handshake-refused", about, step=name, error=str(error))
                if not isinstance(error, KeyChanged):  # which has a note of its own
                    code = error.code if isinstance(error, ZkcError) else IdentityError.code
                    self._audit.note("request", "", principal.name, code=code, detail=error.detail)
                raise

        def state(linked: bool) -> None:
            why = link.problem
            if linked:
                log.info("linked", coordinator=link.endpoint)
                self._renewing.wake()
                self._told_person = None
                asyncio.get_running_loop().call_soon(self._tell_person)
                self._watch.begin(link)
                if is_main:
                    self._look_into_all()
            elif why is None:
                log.info("link-closed", coordinator=link.endpoint)
            else:
                log.warning(
                    "link-lost", coordinator=link.endpoint, reason=why.reason, detail=why.detail, error=str(why)
                )

        def problem(error: ZkcError) -> None:
            log.warning("no-link", reason=error.reason, detail=error.detail, error=str(error))
            self._look_into_all()

        def renewed(of: Principal) -> None:
            log.info("coordinator-identity", fingerprint=of.registration.coordinator_fingerprint.hex())
            self._audit.note("coordinator-succeeded", of.name)

        def over(ended: asyncio.Future[ZkcError]) -> None:
            if ended.cancelled():
                return
            self._audit.note(
                "registration-ended", principal.name, code=ended.result().code, detail=ended.result().detail
            )
            if not is_main:
                log.warning("registration-ended", detail=ended.result().detail, error=str(ended.result()))
                if isinstance(ended.result(), NotRegistered):
                    self._put_aside(principal)

        link = Link(
            self._context, principal, "daemon", clock=self._clock, entropy=self._entropy, handler=handle,
            keeper=Keeper(self._store, renewed), endpoints=self._config.coordinator.endpoints,
            identifier=self._config.coordinator.identifier, on_state=state, on_problem=problem,
        )
        link.ended.add_done_callback(over)
        link.start()
        return link

    async def _asked(self, link: Link, body: RequestBody, *, is_main: bool) -> AnswerBody:
        if isinstance(body, AskFrom) and is_main:
            return await self._sharing.handle(link.principal, link.request, body)
        return await self._receiver.handle(link.principal, link.endpoint, link.request, body)

    def _spawn_close(self, link: Link) -> None:
        task = asyncio.create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _refused(self, why: str, peer: Credentials) -> None:
        self._repeats.tell(
            self._log, "warning", "control-refused", (why, peer.uid), why=why, uid=peer.uid, pid=peer.pid
        )

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
            self._audit.note("registration-ended", principal.name, code=NotRegistered.code, detail="revoked")
            self._put_aside(principal)

    def _put_aside(self, principal: Principal) -> None:
        """``zkc leave`` removes them itself."""
        if not self._leaving and self._store.revoked(principal.registration, self._clock.wall()):
            self._open_links()

    # --- commands ---------------------------------------------------------------------------------------------------

    async def _serve(
        self, request: control.ControlRequest, peer: Credentials
    ) -> AsyncGenerator[control.ControlReply, None]:
        self._log.debug("command", request=type(request).__name__, pid=peer.pid)
        streams: dict[type, Callable[[Any], AsyncGenerator[control.ControlReply, None]]] = {
            control.AskGrant: self._grant, control.AskSend: self._send, control.AskLive: self._live,
            control.AskPeers: self._peers,
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
                self.reload()
            case control.AskPending():
                return control.PendingListReply(self._receiver.asking.items())
            case control.AskDecision():
                return control.DecidedReply(await self._receiver.decide(request))
            case control.AskPerson():
                return await self._person_of(request)
            case control.AskLeave():
                await self._leave(self.main)
                self._left.set()
            case control.AskRotate():
                return control.RotatedReply(await self._renewing.renew_all(identity=request.identity))
            case control.AskListening():
                self._take_listening(request)
            case control.AskOutbox():
                self._queue.poke()
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
        link = self.main
        await link.wait_linked(link.patience)
        if isinstance(request, control.AskCard):
            ask = partial(link.request, about=request.name)
            return control.CardReply(
                await look_up(ask, self._store, link.principal, request.name, self._clock.wall(), self._audit)
            )
        if isinstance(request, control.AskSeen):
            return control.SeenReply(await self._seen(request.name))
        if isinstance(request, control.AskApplication):
            invitation = await link.request(InviteApplication(request.app))
            if isinstance(invitation, Invitation):
                return control.InvitationReply(invitation.text)
        raise InternalError("the coordinator answered something else than what was asked", detail="unexpected")

    async def _seen(self, name: str) -> Peer:
        seen = await self.main.request(LookAt(name), about=name)
        if not isinstance(seen, PeerSeen):
            raise InternalError("the coordinator answered something else than what was asked", detail="unexpected")
        return seen.peer

    async def _peers(self, _request: control.AskPeers) -> AsyncGenerator[control.ControlReply, None]:
        link = self.main
        await link.wait_linked(link.patience)
        for reply in control.replies_of(await all_peers(link.request)):
            yield reply

    async def _grant(self, request: control.AskGrant) -> AsyncGenerator[control.ControlReply, None]:
        """The grant; before it, where the recipient comes to the command, the question where that is."""
        loop = asyncio.get_running_loop()
        ticket = self._entropy.bytes(ID_BYTES)
        wanted: asyncio.Future[str] = loop.create_future()
        told: asyncio.Future[Endpoints] = loop.create_future()

        def listen(coordinator: str) -> asyncio.Future[Endpoints]:
            wanted.set_result(coordinator)
            return told

        pending: asyncio.Future[None] = loop.create_future()
        granting = asyncio.create_task(
            self._granted(control.wanted_of(request), request.within, listen, lambda: pending.set_result(None))
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
            yield control.reply_of(granting.result(), self._principal.coordinator.suite.name)
        finally:
            del self._listening[ticket]
            granting.cancel()

    async def _send(self, request: control.AskSend) -> AsyncGenerator[control.ControlReply, None]:
        async with contextlib.aclosing(self._handed.send(request.job)) as events:
            async for event in events:
                yield control.EventReply(*as_told(event))

    async def _live(self, request: control.AskLive) -> AsyncGenerator[control.ControlReply, None]:
        recipient = f"{self._principal.name}/{request.app}" if request.app else self._principal.name
        end = None if request.within is None else asyncio.get_running_loop().time() + request.within
        await self._until_linked(recipient, end)
        async with contextlib.aclosing(self._receiver.readers.serve(request, recipient, end)) as replies:
            async for reply in replies:
                yield reply

    async def _until_linked(self, name: str, end: float | None) -> None:
        """Until senders find that registration online, or the loop's time is ``end``: what keeps it from linking."""
        loop = asyncio.get_running_loop()
        while not (link := self._link_of(name)).linked:
            try:
                await link.wait_linked(link.patience if end is None else min(max(end - loop.time(), 0), link.patience))
            except CoordinatorUnreachable:
                if link.ended.done() or (end is not None and loop.time() >= end):
                    raise

    def _link_of(self, name: str) -> Link:
        link = self._links.get(name)
        if link is None:
            raise NotRegistered(f"{name} is not registered here", detail="no-registration", hint="zkc join does that")
        return link

    async def _leave(self, link: Link) -> None:
        """End the registration at the coordinator; where that refuses it as nobody's, see `ByLink.leave`."""
        self._leaving = True
        try:
            await link.wait_linked(link.patience)
            await link.request(Leave())
        except NotRegistered:
            pass
        except BaseException:
            self._leaving = False
            raise

    async def _granted(
        self, wanted: Wanted, within: float | None, listen: Callable[[str], Awaitable[Endpoints]],
        on_pending: OnPending,
    ) -> Grant:
        return await grant_within(
            within, self.main, self._store, wanted, self._clock, self._entropy, listen, on_pending, self._audit,
            self._gossip,
        )

    async def _person_of(self, request: control.AskPerson) -> control.PersonReply:
        here = self._person
        if request.pin:
            await self._receiver.prove(request.pin)
        if request.mode is not None:
            here.say(request.mode)
            self._told_person = None
            self._tell_person()
        person, level = here.person(), here.level()[0]
        return control.PersonReply(person.state, int(person.age), person.source, here.mode, level)

    async def _keep_telling(self) -> None:
        """What is known of the person, to the coordinator, while it changes."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._tell_person()

    def _tell_person(self) -> None:
        """Of every registration here: an application's person is its owner's."""
        told = self._config.person.tell == "coordinator"
        person = self._person.person() if told else UNKNOWN
        since = self._clock.monotonic() - person.age
        before = self._told_person
        # What was told stays known there: only another state, or a sign of life that is newer by some seconds, is news.
        if before is not None and before[0] == person.state and abs(before[1] - since) < _PERSON_NEWS_SECONDS:
            return
        self._told_person = person.state, since
        for link in self._links.values():
            link.tell(PersonIs(person.state, int(person.age)))

    def _take_listening(self, request: control.AskListening) -> None:
        told = self._listening.get(request.ticket)
        if told is None or told.done():
            raise TimedOut("the handshake is over", detail="expired", hint="run the same command again")
        told.set_result(request.endpoints)

    def _status(self) -> control.StatusReply:
        link = self.main
        problem = None if link.linked else link.problem
        received = self._receiver.received
        return control.StatusReply(
            client=self._principal.name,
            linked=link.linked,
            coordinator=link.endpoint,
            fingerprint=link.principal.fingerprint.hex(),
            presence=self._person.level()[0] if link.linked else "offline",
            listen=self._config.transfer.listen,
            apps=sorted(name for name in self._links if name != self._principal.name),
            deliveries=received["deliveries"],
            bytes=received["bytes"],
            problem=str(problem) if problem else "",
            problem_code=problem.code if problem else 0,
            version=__version__,
        )
