"""The client daemon: presence, receiving, and the coordinator for every command of its home.

Starts, says ``ready``, links, serves until SIGTERM or SIGINT; SIGHUP reads the configuration again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from zkc import __version__, logs
from zkc.client import control
from zkc.client.auditing import DaemonAudit
from zkc.client.bus import EventBus
from zkc.client.commands import Commands
from zkc.client.gossip import Gossip
from zkc.client.granting import grant_within
from zkc.client.grants import Grant, OnPending, Wanted
from zkc.client.handed import Handed
from zkc.client.happenings import Started
from zkc.client.hooks import Hooks
from zkc.client.housekeeping import Housekeeping
from zkc.client.inquiries import seen
from zkc.client.lifesigns import Sessions, Source, terminal_activity
from zkc.client.link import Link
from zkc.client.links import Links
from zkc.client.log_watch import LogWatch
from zkc.client.metrics import METRICS, Parts, samples
from zkc.client.noted import NotedEvents
from zkc.client.passphrase import passphrase
from zkc.client.person import PersonHere
from zkc.client.person_news import PersonNews
from zkc.client.principal import load_main
from zkc.client.queue import Queue
from zkc.client.receiving import Receiver
from zkc.client.renewal import Renewal, RenewalDuty
from zkc.client.sharing import Sharing
from zkc.config import ClientConfig, check_not_gone
from zkc.constants import REQUEST_SECONDS, TRANSFERS_MAX
from zkc.crypto.primitives import Secret
from zkc.env import Clock, Entropy
from zkc.errors import (
    LocalIOError,
    UsageError,
    ZkcError,
)
from zkc.metrics.door import Door
from zkc.metrics.families import Durations
from zkc.metrics.serving import serve_metrics
from zkc.net.desktop import Bus
from zkc.net.local import LocalServer, serve_local
from zkc.net.local_frames import Credentials
from zkc.net.pipe.recipient import Bulk
from zkc.net.sockets import context
from zkc.protocol.session import Session
from zkc.rules.policy import locked_out
from zkc.service import Manager
from zkc.stores.audit_file import AuditFile
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.keystore import KeyStore
from zkc.stores.noting import Notes
from zkc.stores.outbox import Outbox
from zkc.wire.messages import AnswerBody, AskFrom, Endpoints, Peer, RequestBody

_DUTY_SECONDS: Final = 5.0
"""Before a duty that has failed is taken up again."""
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
    on_ready: Callable[[Ready], None], master: Secret | None = None, manager: Manager | None = None,
) -> None:
    """Serve until a signal or ``zkc leave``; raises the error with which the coordinator ends the registration.

    ``master``: what a passphrase has unlocked, where the caller has asked for it. ``read_config`` is asked at the start
    and at each SIGHUP; `UsageError` for a configuration with a mistake. ``manager``: what started this as a service.
    """
    manager = manager or Manager()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    defects = Defects(clock)
    loop.set_exception_handler(defects)
    with (
        home.lock() as lock, KeyStore.open(home, passphrase=passphrase, master=master) as store,
        Inbox.open(home) as inbox, AuditFile.open(home) as audit,
    ):
        store.unlock()
        Outbox(home).jobs()  # of a later version: told now, and not again and again by the queue
        keeping = Housekeeping(home, inbox, clock)
        keeping.sweep()
        daemon = Daemon(home, store, inbox, audit, read_config, clock, entropy, defects)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)


        def reload() -> None:
            manager.reloading()
            daemon.reload()
            manager.ready()

        loop.add_signal_handler(signal.SIGHUP, reload)
        try:
            on_ready(await daemon.start(home.prepare_socket(lock)))
            manager.ready()
            # What stands now stays: the collector need not go through it again and again.
            gc.freeze()
            gc.set_threshold(700)  # not that of a command's start: deliveries that have ended hold chunks
            besides = [asyncio.create_task(keeping.run()), asyncio.create_task(manager.keep_alive())]
            try:
                await daemon.until_ended(stop)
            finally:
                for task in besides:
                    task.cancel()
        finally:
            manager.stopping()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_SECONDS):
                    await daemon.close()


class Defects:
    """The loop's exception handler: whatever a task or a callback did, the daemon goes on, and the log says what."""

    def __init__(self, clock: Clock) -> None:
        self._log = structlog.get_logger("zkc.daemon")
        self._repeats = logs.Repeats(clock.monotonic)
        self.counts: Final[Counter[str]] = Counter()
        """``failed``, and ``defect``, since the start."""

    def __call__(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error, what = context.get("exception"), str(context.get("message", ""))
        self.counts["failed" if isinstance(error, ZkcError) else "defect"] += 1
        withheld = self._repeats.passes(f"{what}.{type(error).__name__}")
        if withheld is None:
            return
        if isinstance(error, ZkcError):
            self._log.error("failed", what=what, error=str(error), withheld=withheld)
        elif isinstance(error, BaseException):
            self._log.error("defect", what=what, withheld=withheld, exc_info=error)
        else:
            self._log.error("defect", what=what, withheld=withheld)


async def keep_up(duty: Callable[[], Coroutine[Any, Any, None]], log: Any, repeats: logs.Repeats) -> None:
    """``duty`` for as long as the daemon lives: what ends it is logged, and it begins again."""
    name = getattr(duty, "__qualname__", "a duty")
    while True:
        try:
            return await duty()
        except Exception as error:  # noqa: BLE001 - nobody waits for it who would be told
            told: dict[str, Any] = {"error": str(error)} if isinstance(error, ZkcError) else {"exc_info": error}
            repeats.tell(log, "error", "duty-failed", (name, type(error)), duty=name, **told)
        await asyncio.sleep(_DUTY_SECONDS)


class Daemon:
    """The parts of one running daemon, connected."""

    def __init__(
        self, home: Home, store: KeyStore, inbox: Inbox, audit: AuditFile, read_config: Callable[[], ClientConfig],
        clock: Clock, entropy: Entropy, defects: Defects | None = None,
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
        self._context = context(entropy)
        self._bulk = Bulk()
        self._sessions = Sessions(clock, Bus("system"))
        sources: dict[str, Source] = {"terminal": terminal_activity, "session": self._sessions}
        self._person = PersonHere(home.data, lambda: self._config, clock, entropy, sources)
        self._hooks = Hooks(lambda: self._config, self._repeats, Bus("session"))
        self._audit_file = audit
        self._defects = defects or Defects(clock)
        self._grant_seconds = Durations()
        self._metrics: Door | None = None
        self._bus = EventBus(clock)
        self._bus.hear(self._hooks.hear)
        self._audit = DaemonAudit(audit, lambda: self._config, clock, self._log)
        notes = NotedEvents(self._audit, self._bus, load_main(store).name, logs.Repeats(clock.monotonic))
        self._notes: Notes = notes
        self._watch = LogWatch(store, notes, clock)
        self._gossip = Gossip(store, self._watch.alarm)
        self._receiver = Receiver(
            self._bulk, store, inbox, config, self._person, self._bus, clock, entropy, notes, self._gossip
        )
        self._handed = Handed(home, self._granted, clock, entropy, self._bus)
        self._sharing = Sharing(home, store, lambda: self._config, self._granted, clock, entropy, notes, self._bus)
        self._renewing = RenewalDuty(
            Renewal(store, lambda: self._config.keys.lifetime, clock, entropy, notes), self._log, entropy
        )
        self._links = Links(
            self._context, store, lambda: self._config, clock, entropy, notes, self._repeats, self._asked,
            self._on_linked, self._bus,
        )
        self._news = PersonNews(self._links.all, self._person, lambda: self._config, clock, self._bus)
        self._queue = Queue(
            home, lambda: self._config, self._granted, self._seen, clock, entropy, notes, self._bus,
        )
        self._commands = Commands(
            self._links, store, self._receiver, self._person, self._news, self._queue, self._handed, self._renewing,
            self._granted, self.reload, clock, entropy, notes, self._bus,
        )
        self._server: LocalServer[control.ControlRequest, control.ControlReply] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def main(self) -> Link:
        """The link of the home's own registration."""
        return self._links.main

    async def start(self, socket_path: Path) -> Ready:
        """Begin to link and to serve commands at ``socket_path``."""
        duties = (
            self._sweep, self._news.run, self._audit.run, self._queue.run,
            partial(self._sessions.run, lambda: "session" in self._config.person.sources),
        )
        self._tasks = [asyncio.create_task(keep_up(duty, self._log, self._repeats)) for duty in duties]
        self._bus.start()
        self._bus.publish(Started(self._links.principal.name, __version__))
        self._notes.note("started", self._links.principal.name)
        # Before anything is linked: a port that is taken ends it.
        await self._open_metrics()
        self._links.open()
        self._renewing.start(self._links.all)
        self._server = await serve_local(
            socket_path, self._commands.serve, control.ControlRequest, on_refused=self._refused
        )
        return Ready(self.main.endpoint, self._links.principal.fingerprint.hex())

    async def _open_metrics(self) -> None:
        sent = self._handed.delivered, self._queue.delivered, self._sharing.delivered
        parts = Parts(
            self._links, self._receiver, self._queue, sent, self._audit.writer, self._audit_file, self._watch,
            self._grant_seconds, self._defects.counts,
        )
        self._metrics = await serve_metrics(
            self._config.metrics.listen, "client", METRICS, lambda: samples(parts), self._clock, self._log,
            self._repeats,
        )
        if self._metrics is not None:
            self._commands.metrics = self._metrics.address

    async def until_ended(self, stop: asyncio.Event) -> None:
        """Until ``stop`` or ``zkc leave``; raises what the coordinator ended the registration with."""
        ended, why = self.main.ended, "signal"
        ends = stop, self._commands.left
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(event.wait()) for event in ends]
        try:
            await asyncio.wait([*waits, ended], return_when=asyncio.FIRST_COMPLETED)
            if self._links.leaving:
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
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            await self._server.close()
        if self._metrics is not None:
            self._metrics.close()
        self._bus.close()
        self._handed.close()
        self._renewing.close()
        self._watch.close()
        self._sharing.close()
        try:
            await asyncio.gather(
                self._receiver.close(), self._queue.close(), self._hooks.close(), self._links.close()
            )
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
            if config.metrics != self._config.metrics:
                self._log.warning("restart-needed", key="metrics.listen")
            self._config = self._receiver.config = config
            self._had_config = self._config_file.exists()
            if notice := locked_out(config.policy):
                self._log.warning("configuration-notice", notice=notice)
            self._log.info("configuration-read")
            self._notes.note("policy-reloaded", self._links.principal.name)
        self._links.open()
        self._renewing.wake()

    def _on_linked(self, link: Link) -> None:
        self._renewing.wake()
        asyncio.get_running_loop().call_soon(self._news.tell_anew)
        self._watch.begin(link)

    async def _asked(self, link: Link, body: RequestBody) -> AnswerBody:
        if isinstance(body, AskFrom) and link is self.main:
            return await self._sharing.handle(link.principal, link.request, body)
        return await self._receiver.handle(link.principal, link.endpoint, link.request, body)

    def _refused(self, why: str, peer: Credentials) -> None:
        self._repeats.tell(
            self._log, "warning", "control-refused", (why, peer.uid), why=why, uid=peer.uid, pid=peer.pid
        )

    async def _granted(
        self, wanted: Wanted, within: float | None, listen: Callable[[str], Awaitable[Endpoints]],
        on_pending: OnPending,
    ) -> Grant:
        began = self._clock.monotonic()
        granted = await grant_within(
            within, self.main, self._store, wanted, self._clock, self._entropy, listen, on_pending, self._notes,
            self._gossip,
        )
        if isinstance(granted, Session):
            self._grant_seconds.add(self._clock.monotonic() - began)
        return granted

    async def _seen(self, name: str) -> Peer:
        peer = await seen(self.main.request, name)
        self._bus.saw([peer])
        return peer
