"""The relay: a client that passes on ciphertext between others, as the coordinator says, and is told no key.

It says again and again that it is there; the coordinator tells it under which names two ends will come.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from zkc.client.auditing import DaemonAudit
from zkc.client.link import Link
from zkc.client.passphrase import passphrase
from zkc.client.principal import Keeper, load_main
from zkc.config import ClientConfig
from zkc.constants import RELAY_ANNOUNCE_SECONDS, RELAY_CONNECTIONS_MAX
from zkc.crypto.primitives import Secret
from zkc.env import Clock, Entropy
from zkc.errors import PeerViolation, PolicyRefused, ZkcError
from zkc.logs import Repeats
from zkc.net.addresses import told
from zkc.net.relay import RelayServer
from zkc.net.sockets import context, split_endpoint, tcp_endpoint
from zkc.rules.endpoints import Endpoint
from zkc.service import Manager
from zkc.stores.audit_file import AuditFile
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore
from zkc.wire.messages import AnswerBody, Notify, Ok, RelayHere, Rendezvous, RequestBody

DESCRIPTORS: Final = RELAY_CONNECTIONS_MAX + 256


@dataclass(frozen=True)
class Ready:
    """What a relay says of itself once it listens."""

    endpoint: str
    fingerprint: str


async def run(
    home: Home, config: ClientConfig, listen: Endpoint, *, clock: Clock, entropy: Entropy,
    on_ready: Callable[[Ready], None], master: Secret | None = None, manager: Manager | None = None,
) -> None:
    """Serve until a signal; raises the error with which the coordinator ends the registration."""
    manager = manager or Manager()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with (
        home.lock(), KeyStore.open(home, passphrase=passphrase, master=master) as store,
        AuditFile.open(home) as audit,
    ):
        store.unlock()
        relay = _Relay(store, config, audit, clock, entropy)
        try:
            on_ready(await relay.start(listen))
            manager.ready()
            alive = asyncio.create_task(manager.keep_alive())
            try:
                await relay.until_ended(stop)
            finally:
                alive.cancel()
        finally:
            manager.stopping()
            await relay.close()


class _Relay:
    """The parts of one running relay."""

    def __init__(
        self, store: KeyStore, config: ClientConfig, audit: AuditFile, clock: Clock, entropy: Entropy
    ) -> None:
        self._principal = principal = load_main(store)
        self._advertise: Sequence[str] = config.transfer.advertise
        self._log = structlog.get_logger("zkc.relay")
        self._repeats = Repeats(clock.monotonic)
        self._audit = DaemonAudit(audit, lambda: config, clock, self._log)
        self._server = RelayServer(clock.monotonic, self._heard)
        self._context = context(entropy)
        self._bound = "*", 0
        self._link = Link(
            self._context, principal, "daemon", clock=clock, entropy=entropy, handler=self._serve,
            keeper=Keeper(store), endpoints=config.coordinator.endpoints, identifier=config.coordinator.identifier,
            on_state=self._changed, on_problem=self._failed,
        )
        self._announcing: asyncio.Task[None] | None = None
        self._auditing: asyncio.Task[None] | None = None

    async def start(self, listen: Endpoint) -> Ready:
        host = listen.host.strip("[]")
        address, port = await self._server.start(host, listen.port)
        self._bound = host if host == "*" else address, port
        self._link.start()
        self._announcing = asyncio.create_task(self._announce())
        self._auditing = asyncio.create_task(self._audit.run())
        self._audit.note("started", self._principal.name)
        return Ready(await self._endpoint(), self._principal.fingerprint.hex())

    async def until_ended(self, stop: asyncio.Event) -> None:
        waiting: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        either: list[asyncio.Future[Any]] = [waiting, self._link.ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._link.ended.done() and not stop.is_set():
            raise self._link.ended.result()

    async def close(self) -> None:
        """Goodbye to the coordinator, an end to every connection."""
        self._log.info("ending", passed=self._server.passed)
        for task in (self._announcing, self._auditing):
            if task is not None:
                task.cancel()
        await self._link.close()
        await self._server.close()
        await self._audit.close()
        self._context.destroy(linger=200)

    async def _endpoint(self) -> str:
        """Where both ends reach it: as configured, else by the address that leads to the coordinator."""
        host, port = self._bound
        # In a thread: the coordinator's name may have to be looked up.
        addresses = await asyncio.to_thread(told, self._advertise, host, split_endpoint(self._link.endpoint)[0])
        return tcp_endpoint(addresses[0] if addresses else "127.0.0.1", port)

    async def _announce(self) -> None:
        refused = ""
        while True:
            with contextlib.suppress(ZkcError):
                await self._link.wait_linked(RELAY_ANNOUNCE_SECONDS)
                try:
                    await self._link.request(RelayHere(await self._endpoint()))
                    refused = ""
                except PolicyRefused as error:
                    if error.detail != refused:
                        self._log.warning("not-announced", detail=error.detail, error=str(error))
                        refused = error.detail
            await asyncio.sleep(RELAY_ANNOUNCE_SECONDS)

    async def _serve(self, body: RequestBody) -> AnswerBody:
        """What the coordinator asks: two ends will come. Nobody sends to a relay."""
        if isinstance(body, Rendezvous):
            ends = body.client, self._principal.name
            try:
                self._server.announce((body.data, body.acks), body.client)
            except PolicyRefused as error:
                self._audit.note("relay", *ends, code=error.code, detail=error.detail)
                raise
            self._audit.note("relay", *ends)
            return Ok()
        if isinstance(body, Notify):
            raise PolicyRefused("a relay receives nothing", detail="accept")
        raise PeerViolation("unexpected", type(body).__name__)

    def _heard(self, event: str, fields: dict[str, object]) -> None:
        self._repeats.tell(self._log, "info", event, tuple(fields.values()), **fields)

    def _changed(self, linked: bool) -> None:
        self._log.info("linked" if linked else "link-lost", coordinator=self._link.endpoint)

    def _failed(self, error: ZkcError) -> None:
        self._log.warning("no-link", reason=error.reason, detail=error.detail, error=str(error))
