"""A running coordinator (Figure 3, 321): one event loop around one ROUTER, its ZAP door, key database, control socket.

What comes in is sorted by two things alone: the User-Id that ZAP gave the connection (``i:`` an invitation, ``u:`` a
registered client) and the frame's kind. Whoever is neither never gets this far: not a byte of a stranger is parsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from zkc import logs
from zkc.config import CoordinatorConfig, Loaded, check_not_gone, load
from zkc.constants import KEYDB_SECONDS, SILENT_SECONDS, SILENT_SECONDS_FULL
from zkc.coordinator.banned import read_banned
from zkc.coordinator.clients import Clients
from zkc.coordinator.connections import Connections
from zkc.coordinator.control import (
    AskLoad,
    AskOnline,
    AskStatus,
    ControlReply,
    ControlRequest,
    Done,
    Load,
    LookAgain,
    Online,
    Status,
)
from zkc.coordinator.core import Core, Wire
from zkc.coordinator.identity import CoordinatorIdentity, identity_file, load_or_create
from zkc.coordinator.identity import load as load_identity
from zkc.coordinator.invitations import advertised
from zkc.coordinator.keypool import KeyPool
from zkc.coordinator.metrics import METRICS, Parts, samples
from zkc.coordinator.outbox import Outbox
from zkc.coordinator.registrations import Registrations
from zkc.coordinator.relays import Relays
from zkc.coordinator.reports import Suspect
from zkc.coordinator.services import Services
from zkc.coordinator.sessions import Session
from zkc.coordinator.transfers import Transfers
from zkc.crypto.merkle import Frontier
from zkc.crypto.suites import TALLY
from zkc.env import Clock, Entropy, SystemClock, SystemEntropy
from zkc.errors import DaemonError, InternalError, LocalIOError, PeerViolation, PolicyRefused, UsageError, ZkcError
from zkc.metrics.door import Door
from zkc.metrics.families import REASONS
from zkc.metrics.serving import serve_metrics
from zkc.net.local import LocalServer, serve_local
from zkc.net.local_frames import Credentials
from zkc.net.loopsocket import Dropped, LoopSocket, Received, Sent
from zkc.net.monitor import AsyncMonitor, EventKind, SocketEvent
from zkc.net.sockets import (
    CONTROL_DOMAIN,
    Context,
    Socket,
    bind_router,
    context,
    inode_of,
    shutdown_connection,
    split_endpoint,
    tcp_endpoint,
)
from zkc.net.watch import ROUTER_BOUNDS, Cut, Watch
from zkc.net.zap import AsyncZap, Overloaded, ZapRequest, self_test
from zkc.protocol.calls import Asked
from zkc.stores.backends import shown
from zkc.stores.home import Home, HomeLock
from zkc.stores.keydb import KeyDb
from zkc.stores.noting import BATCH_SECONDS, AuditWriter
from zkc.wire.frames import ControlKind, split_control
from zkc.wire.messages import CoordinatorRenewed

TICK_SECONDS: Final = 0.25
LOOK_SECONDS: Final = 1.0
"""How often the key database is asked whether another process wrote to it, where that one does not tell."""
SELF_TEST_SECONDS: Final = 60.0
"""How often the coordinator knocks at its own door with an unknown key (attack R10)."""
_LOOKS_AFTER_DISCONNECT: Final = (0.02, 0.2, 1.0)
"""Seconds: libzmq tells of a disconnection just before it closes the descriptor."""
_NO_SOCKET: Final = -1
"""No inode, and not the 0 of a message that was read when its connection had ended."""
_ONLINE_PAGE: Final = 4096
_LOAD_SECONDS: Final = 0.1, 3600.0
"""How often `Load` may be asked for: the shortest and the longest time between two."""

DESCRIPTORS_SPARE: Final = 64
"""Open files that are not connections: sockets, database, log."""


@dataclass(frozen=True)
class Ready:
    """Told once, when clients can connect."""

    endpoints: tuple[str, ...]
    """As configured, with the ports that are bound."""
    fingerprint: str


@dataclass
class Settings:
    """What a coordinator is started with."""

    home: Home
    options: Mapping[str, object] = field(default_factory=dict)
    """Of the command line: ``section.key`` -> value."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    listen: tuple[str, ...] = ()
    """Where an earlier process of the same supervisor was bound; goes before every other setting."""
    on_ready: Callable[[Ready], None] = lambda _ready: None
    on_suspect: Callable[[Suspect | None], None] = lambda _suspect: None
    """Told, before a connection is let in, whose doing it is if the process aborts now (attack O01)."""

    def load(self) -> Loaded[CoordinatorConfig]:
        return load("coordinator", self.home.config_file, self.environ, self.options)


class Engine:
    """One coordinator. `run` returns when `stop` was called, and raises what made it impossible to go on."""

    def __init__(
        self, settings: Settings, lock: HomeLock, *, clock: Clock | None = None, entropy: Entropy | None = None
    ) -> None:
        self._settings = settings
        self._lock = lock
        self._clock = clock or SystemClock()
        self._entropy = entropy or SystemEntropy()
        self._loaded = settings.load()
        self._had_config = settings.home.config_file.exists()
        self._keydb_url = settings.home.keydb_url(self._loaded.config.coordinator.keydb)
        """In use until the end, whatever the configuration says by then."""
        self._log = logs.get_logger()
        self._stopping = asyncio.Event()
        self._broken: BaseException | None = None
        self._banned = read_banned(settings.home.data)
        self._connections = Connections()
        self._suspect: Suspect | None = None
        self._bound: tuple[str, ...] = ()
        self._repeats = logs.Repeats(self._clock.monotonic)
        self._started = False
        self._knocking = False
        """Whether a refusal may be our own test's, which is nothing to log."""
        self._metrics: Door | None = None
        self._began = self._clock.monotonic()
        self._version = 0
        self._identity_stamp = 0, 0
        """Which file of the identity was read last; a rotation puts another in its place."""
        self._key_log = Frontier()
        self._clients_known = 0
        self._trouble = ""
        """What was wrong with the key database at the last look."""

    def stop(self) -> None:
        """End soon: what is known is written down, connections are closed."""
        self._stopping.set()

    def reload(self) -> None:
        """Reads the configuration again (SIGHUP); what needs a restart stays as it is, and is named in the log."""
        if not self._started:
            return
        try:
            check_not_gone(self._settings.home.config_file, was_there=self._had_config)
            loaded = self._settings.load()
        except ZkcError as error:
            self._log.error("configuration-kept", why=str(error))
            return
        old, new = self._loaded.config, loaded.config
        for key in ("listen", "keydb", "suite", "key_pool"):
            if getattr(old.coordinator, key) != getattr(new.coordinator, key):
                self._log.warning("restart-needed", key=f"coordinator.{key}")
        if old.metrics != new.metrics:
            self._log.warning("restart-needed", key="metrics.listen")
        self._loaded = loaded
        self._core.config = new
        self._had_config = self._settings.home.config_file.exists()
        self._banned = read_banned(self._settings.home.data)
        logs.configure(new.log.format, new.log.level)
        for notice in loaded.notices:
            self._log.warning("configuration-notice", notice=notice)
        self._log.info("configuration-read")
        self._core.audit.note("policy-reloaded")

    # --- from start to end ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        home, config = self._settings.home, self._loaded.config
        for notice in self._loaded.notices:
            self._log.warning("configuration-notice", notice=notice)
        identity = load_or_create(home.data, config.coordinator.suite, self._entropy)
        self._check_suite(identity)
        async with contextlib.AsyncExitStack() as closing:
            db = KeyDb.open(self._keydb_url, identity.mac_key, create=True, patience=KEYDB_SECONDS, alone=True)
            closing.callback(db.close)
            db.check_log()
            pool = KeyPool(identity.suite, config.coordinator.key_pool)
            closing.callback(pool.close)
            ctx = context(self._entropy)
            closing.callback(ctx.destroy, linger=0)
            self._make_parts(identity, db, pool, config)
            closing.callback(self._close_parts)
            # The door before the house: without a ZAP handler nobody is admitted.
            zap = AsyncZap(ctx, loop, self._admit)
            closing.callback(zap.close)
            self._listen(ctx, identity, closing)
            await self._test_door(ctx, identity)
            server: LocalServer[ControlRequest, ControlReply] = await serve_local(
                home.prepare_socket(self._lock), self._answer_control, ControlRequest, on_refused=self._refused_local
            )
            closing.push_async_callback(server.close)
            await self._open_metrics(closing)
            fingerprint = identity.fingerprint.hex()
            self._log.info("ready", endpoints=list(self._bound), fingerprint=fingerprint, suite=identity.suite.name)
            self._core.audit.note("started")
            self._settings.on_ready(Ready(self._bound, fingerprint))
            # What stands now stays: the collector need not go through it again and again.
            gc.freeze()
            await self._until_stopped(ctx, identity)
        self._log.info("stopped")
        if self._broken is not None:
            raise self._broken

    async def _until_stopped(self, ctx: Context, identity: CoordinatorIdentity) -> None:
        ticking = asyncio.create_task(self._keep_ticking())
        testing = asyncio.create_task(self._keep_testing(ctx, identity))
        stopped = asyncio.create_task(self._stopping.wait())
        tasks = (ticking, testing, stopped)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                self._broken = outcome

    def _check_suite(self, identity: CoordinatorIdentity) -> None:
        """The suite is part of every invitation: fixed at the first start."""
        wanted, origin = self._loaded.config.coordinator.suite, self._loaded.origins["coordinator.suite"]
        if origin != "default" and wanted != identity.suite.name:
            raise UsageError(
                f"this coordinator's suite is {identity.suite.name}, not {wanted} ({origin})", detail="suite",
                hint="it is fixed at the first start: take the setting away, or begin with another home",
            )

    def _make_parts(
        self, identity: CoordinatorIdentity, db: KeyDb, pool: KeyPool, config: CoordinatorConfig
    ) -> None:
        self._core = core = Core(
            identity, db, pool, self._clock, self._entropy, config, self._log, self._send, shutdown_connection,
            self._repeats, AuditWriter(db, self._clock, _soon, self._audit_bounds),
        )
        self._registrations = Registrations(core)
        self._clients = Clients(core, self._on_request, self._registrations.first_channel)
        self._transfers = Transfers(core, self._clients)
        relays = Relays(core, self._clients, self._transfers)
        self._services = Services(core, self._clients, self._transfers, relays, self._read_log)
        self._version, self._key_log = db.version(), db.log_frontier(db.log_size())
        self._started = True

    def _audit_bounds(self) -> tuple[float, int]:
        section = self._core.config.audit
        return section.kept, section.entries

    def _on_request(self, session: Session, asked: Asked) -> None:
        self._services.on_request(session, asked)

    def _close_parts(self) -> None:
        self._transfers.close()
        self._registrations.close()
        self._clients.close()
        try:
            self._core.audit.close()
        except ZkcError as error:
            self._log.error("audit-not-written", why=str(error))

    def _listen(self, ctx: Context, identity: CoordinatorIdentity, closing: contextlib.AsyncExitStack) -> None:
        """Binds the ROUTER, and says where."""
        loop = asyncio.get_running_loop()
        self._watch = Watch(ROUTER_BOUNDS, lambda cut: loop.call_soon_threadsafe(self._on_cut, cut), clock=self._clock)
        closing.callback(self._watch.close)
        wanted = self._settings.listen or self._loaded.config.coordinator.listen

        def watch(sock: Socket) -> None:
            closing.callback(AsyncMonitor(sock, self._on_socket_event).close)

        router, bound = bind_router(ctx, wanted, identity.curve.secret, CONTROL_DOMAIN, watch=watch)
        self._router = LoopSocket(router, self._on_message, on_dropped=self._on_dropped)
        closing.callback(self._router.close)
        self._outbox = Outbox(self._router.send)
        closing.callback(self._outbox.close)
        self._reachable = bound[0]
        # The host as it was written ("*" stays "*"), the port as it was bound.
        self._bound = tuple(
            tcp_endpoint(split_endpoint(asked)[0], split_endpoint(got)[1])
            for asked, got in zip(wanted, bound, strict=True)
        )
        self._core.endpoints = advertised(self._bound)

    async def _open_metrics(self, closing: contextlib.AsyncExitStack) -> None:
        """Where the configuration says so. A process that takes over from one that aborted goes on without, if need be:
        clients matter more."""
        parts = Parts(
            self._core, self._clients, self._registrations, self._transfers, self._connections, self._outbox, self._room
        )
        try:
            self._metrics = await serve_metrics(
                self._core.config.metrics.listen, "coordinator", METRICS, partial(samples, parts), self._clock,
                self._log, self._repeats,
            )
        except ZkcError as error:
            if not self._settings.listen:
                raise
            self._core.count("errors.metrics")
            self._log.error("metrics-off", why=str(error))
        if self._metrics is not None:
            closing.callback(self._metrics.close)

    async def _keep_ticking(self) -> None:
        look_at = 0.0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self._clock.monotonic()
            duties = [partial(each.tick, now) for each in (self._registrations, self._transfers, self._clients)]
            duties.append(partial(self._core.audit.tick))
            duties.append(partial(self._drop_silent, now))
            if now >= look_at:
                look_at = now + LOOK_SECONDS
                duties += [partial(self._look_again), partial(self._look_at_identity)]
            for duty in duties:
                try:
                    duty()
                except DaemonError:  # another coordinator has the key database: what it writes there is unseen here
                    raise
                except ZkcError as error:  # a full disk, a database that is held: the next time it may do
                    self._core.count("errors.duty")
                    self._core.warn("duty", "duty-failed", why=str(error))

    async def _keep_testing(self, ctx: Context, identity: CoordinatorIdentity) -> None:
        """A coordinator whose door does not shut must not go on (its supervisor starts another)."""
        while True:
            await asyncio.sleep(SELF_TEST_SECONDS)
            await self._test_door(ctx, identity)

    async def _test_door(self, ctx: Context, identity: CoordinatorIdentity) -> None:
        self._knocking = True
        try:
            await self_test(ctx, self._reachable, identity.curve.public)
        finally:
            self._knocking = False

    # --- the door ---------------------------------------------------------------------------------------------------

    def _admit(self, request: ZapRequest) -> str | None:
        """Who this CURVE key belongs to, as the key database has it at this moment.

        `Overloaded` where there is no room; a stranger does not learn of it.
        """
        core = self._core
        if request.domain != CONTROL_DOMAIN.decode() or request.mechanism != "CURVE":
            return None
        key = request.credentials[0]
        if key in self._banned:
            core.count("zap.banned")
            core.warn("zap.banned", "barred-key-refused", key_id=key.hex(), address=request.address)
            core.audit.note("connection", self._name(key), code=PolicyRefused.code, detail="barred")
            return None
        who = self._who(key)
        if who is None:
            core.count("zap.refused")
            if not self._knocking:
                core.warn("zap.refused", "connection-refused", address=request.address, full=False)
            return None
        if len(self._connections) > self._room():
            core.count("zap.full")
            core.warn("zap.full", "connection-refused", address=request.address, full=True)
            raise Overloaded
        now = self._clock.monotonic()
        if self._connections.has_too_many(who, now):
            core.count("zap.crowding")
            core.warn("zap.crowding", "connection-refused", address=request.address, user=who, full=False)
            core.audit.note("connection", self._name(key), code=PolicyRefused.code, detail="limit")
            raise Overloaded
        core.count("zap.admitted")
        self._connections.admitted(key, who, now)
        self._tell_suspect()
        return who

    def _drop_silent(self, now: float) -> None:
        """Connections of which nobody says a word hold no place: neither of a stranger, nor of one who was let in."""
        patience = SILENT_SECONDS if len(self._connections) <= self._room() else SILENT_SECONDS_FULL
        for descriptor, inode in self._connections.silent_since(now - patience):
            self._core.count("connections.silent")
            shutdown_connection(descriptor, inode)

    def _tell_suspect(self) -> None:
        """Where it is still found after an abort."""
        suspect = self._connections.suspect
        if suspect != self._suspect:
            self._suspect = suspect
            self._settings.on_suspect(suspect)

    def _room(self) -> int:
        """How many connections there may be: out of descriptors, libzmq spins (attack O07)."""
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return min(self._core.config.limits.clients, descriptors - DESCRIPTORS_SPARE)

    def _name(self, key: bytes) -> str:
        """Whose key it is, for the audit log; empty for an invitation's."""
        client = self._core.db.client_with_key(key)
        return "" if client is None else client.name

    def _who(self, key: bytes) -> str | None:
        client = self._core.db.client_with_key(key)
        if client is not None:
            return f"u:{client.uid.hex()}"
        former = self._core.db.former_with_key(key, self._clock.wall())
        if former is not None:
            return f"u:{former.uid.hex()}"
        row = self._core.db.invitation_with_key(key)
        if row is not None and not row.retired and self._clock.wall() < row.expires:
            return f"i:{row.invite_id.hex()}"
        return None

    # --- messages ---------------------------------------------------------------------------------------------------

    def _on_message(self, received: Received) -> None:
        core = self._core
        wire = Wire(received.routing_id, received.fd, received.inode)
        core.count("messages")
        self._watch.delivered(wire.fd)
        if self._connections.heard(wire.fd, wire.inode, received.user_id):
            self._tell_suspect()
        if received.claimed:
            # Clients set no routing id: one that does wants to be somebody else (attack C09).
            core.violated("router", PeerViolation("identity", "a routing id of the peer's own"), user=received.user_id)
            shutdown_connection(wire.fd, wire.inode)
            return
        self._dispatch(received, wire)
        if not wire.inode:
            # Read after its connection had ended: nothing will tell of that end again.
            self._look(wire.fd, ())

    def _dispatch(self, received: Received, wire: Wire) -> None:
        core = self._core
        sort, _, owner = received.user_id.partition(":")
        try:
            kind, body = split_control(received.payload)
            match sort, kind:
                case "i", ControlKind.REGISTRATION:
                    self._registrations.on_message(wire, bytes.fromhex(owner), body)
                case "u", ControlKind.CHANNEL:
                    self._clients.on_hello(wire, bytes.fromhex(owner), body)
                case "u", ControlKind.RECORD:
                    self._clients.on_record(wire, bytes.fromhex(owner), received.payload)
                case _:
                    raise PeerViolation("unexpected", f"{kind.name} from {sort or 'nobody'}")
        except PeerViolation as violation:
            core.violated("frame", violation, user=received.user_id)
        except ZkcError as error:
            core.count("errors.message")
            core.warn("failed", "message-failed", user=received.user_id, why=str(error))

    def _on_dropped(self, dropped: Dropped) -> None:
        """A message of several parts: no client of ours sends one."""
        self._core.violated("router", PeerViolation("malformed", f"{dropped.parts} parts"), user=dropped.user_id)
        shutdown_connection(dropped.fd, dropped.inode)

    def _on_cut(self, cut: Cut) -> None:
        """A message that went on and on: its connection was shut down."""
        violation = PeerViolation("limit", f"{cut.ahead} bytes and more of a message without an end")
        self._core.violated("router", violation, user=self._connections.user_of(cut.fd, cut.inode))

    def _on_socket_event(self, event: SocketEvent) -> None:
        self._watch.on_event(event)
        if event.kind is EventKind.ACCEPTED:
            self._connections.opened(event.fd, event.inode, self._clock.monotonic())
            self._core.count("connections.accepted")
        elif event.kind is EventKind.DISCONNECTED:
            self._connections.closed(event.fd)
            self._tell_suspect()
            self._core.count("connections.closed")
            self._look(event.fd, _LOOKS_AFTER_DISCONNECT)

    def _look(self, fd: int, delays: tuple[float, ...]) -> None:
        """Whose connection was it? The one whose inode is no longer behind the descriptor.

        What it said last may be read after it is gone, and begin something: it is looked at again in any case.
        """
        inode = inode_of(fd) or _NO_SOCKET
        self._clients.look(fd, inode)
        self._registrations.look(fd, inode)
        if delays:
            asyncio.get_running_loop().call_later(delays[0], self._look, fd, delays[1:])

    def _send(self, frame: bytes, routing_id: bytes) -> Sent:
        return self._outbox.send(frame, routing_id)

    # --- what others wrote ------------------------------------------------------------------------------------------

    def _look_again(self) -> None:
        """Acts on what another process wrote to the key database: revocations."""
        version = self._core.db.version()
        if version != self._version:
            self._check_key_log()
        self._read_log()
        self._version = version

    def _check_key_log(self) -> None:
        """`DaemonError`, where a server went back to an earlier state (a restored dump, a replica that lagged behind):
        who is linked here may be nobody there, and a revocation be missed."""
        db, known = self._core.db, self._key_log
        if db.log_size() < max(known.size, db.log_written) or db.log_frontier(known.size) != known:
            raise DaemonError(
                f"the key database {shown(self._keydb_url)} went back to an earlier state", detail="went-back",
                hint="start it again; docs/operations.md says what is lost",
            )

    def _look_at_identity(self) -> None:
        """Takes over a new identity, and tells everybody who is there to ask for it."""
        home = self._settings.home.data
        found = identity_file(home).stat()
        stamp = found.st_ino, found.st_mtime_ns
        if stamp == self._identity_stamp:
            return
        identity = load_identity(home)
        self._identity_stamp = stamp
        if identity.epoch > self._core.identity.epoch:
            self._core.identity = identity
            self._log.info("identity-rotated", epoch=identity.epoch, fingerprint=identity.fingerprint.hex())
            self._clients.tell_all(CoordinatorRenewed())

    def _read_log(self) -> None:
        """Ends the registrations that the log says were revoked since it was last read."""
        db = self._core.db
        size = self._key_log.size
        while entries := db.log_entries(size):
            for entry in entries:
                size = entry.log_index + 1
                if entry.event == "revoked":
                    self._end_registration(entry.uid, entry.name, entry.reason)
        if size != self._key_log.size:
            self._key_log = db.log_frontier(size)

    def _end_registration(self, uid: bytes, name: str, reason: str) -> None:
        self._log.info("revoked", name=name, uid=uid.hex(), reason=reason)
        self._transfers.drop(uid)
        self._clients.revoke(uid, reason)

    # --- the control socket -----------------------------------------------------------------------------------------

    async def _answer_control(self, request: ControlRequest, _peer: Credentials) -> AsyncGenerator[ControlReply, None]:
        match request:
            case AskStatus():
                yield self._status()
            case AskOnline():
                online = self._clients.online
                for start in range(0, len(online), _ONLINE_PAGE):
                    yield Online(online[start : start + _ONLINE_PAGE])
            case AskLoad(every=every):
                least, most = _LOAD_SECONDS
                while True:
                    yield self._load()
                    await asyncio.sleep(min(max(every, least), most))
            case LookAgain():
                self._look_again()
                self._look_at_identity()
                self._banned = read_banned(self._settings.home.data)
                yield Done()

    def _status(self) -> Status:
        core = self._core
        counters = {
            **core.counters,
            "kem.ops": TALLY.operations,
            "reg.bytes": core.counters["reg.bytes"],
            "registrations.open": len(self._registrations),
            "transfers.open": len(self._transfers),
            "connections.open": len(self._connections),
            "outbox.bytes": self._outbox.size,
            "keypool.ready": len(core.pool),
            "keypool.taken": core.pool.counts.taken,
            "keypool.made_late": core.pool.counts.made_late,
        }
        return Status(
            list(self._bound), core.identity.fingerprint.hex(), self._registered(), len(self._clients.online),
            shown(self._keydb_url) + self._trouble, core.identity.suite.name, os.getpid(),
            counters, self._metrics.address if self._metrics is not None else "",
        )

    def _registered(self) -> int:
        """How many clients are; those of the last look, where the key database does not say."""
        self._trouble = ""
        try:
            self._clients_known = self._core.db.live_clients()
        except LocalIOError as error:
            self._trouble = f" ({error.detail})"
        return self._clients_known

    def _load(self) -> Load:
        core, now = self._core, self._clock.monotonic()
        ended: Counter[str] = Counter()
        for (event, code), count in core.audit.counts.items():
            if event == "transfer":
                ended[REASONS.get(code, REASONS[1])] += count
        policy = {name.removeprefix("policy."): n for name, n in core.counters.items() if name.startswith("policy.")}
        return Load(
            now, now - self._began, self._registered(), len(self._clients.online), len(self._connections),
            len(self._registrations), core.counters["reg.done"], len(self._transfers), ended, policy,
            core.counters["messages"],
        )

    def _refused_local(self, why: str, peer: Credentials) -> None:
        self._core.warn(f"local.{why}", "control-refused", why=why, uid=peer.uid, pid=peer.pid)

    def _on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Whatever a handler did, the coordinator goes on; the log says where it went wrong."""
        error = context.get("exception")
        if self._started:
            self._core.count("errors.failed" if isinstance(error, ZkcError) else "errors.defect")
        what = str(context.get("message", ""))
        if self._repeats.passes(f"defect.{what}.{type(error).__name__}") is None:
            return
        if isinstance(error, ZkcError):
            self._log.error("failed", what=what, why=str(error))
            return
        self._log.error(
            "defect", what=what, **({"exc_info": error} if isinstance(error, BaseException) else {})
        )


def _soon(what: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(BATCH_SECONDS, what)


def defect(error: Exception) -> InternalError:
    """An exception that no part translated."""
    return InternalError(f"a defect of zkc: {type(error).__name__}: {error}", hint="see the log; please report it")
