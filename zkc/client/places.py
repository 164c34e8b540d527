"""Where a transfer is received: a pair of ports in its turn, or a relay; and who makes room for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from zkc.client.transfers import Transfer, Transfers, anew
from zkc.config import ClientConfig
from zkc.constants import ID_BYTES, STEP_SECONDS, TRANSFERS_MAX
from zkc.crypto.chunks import rendezvous
from zkc.env import Clock, Entropy
from zkc.errors import Interrupted, PeerViolation, PolicyRefused
from zkc.net.addresses import told
from zkc.net.descriptors import DescriptorsTaken
from zkc.net.pipe.recipient import Bulk, Incoming
from zkc.net.sockets import PortsTaken, split_endpoint
from zkc.rules.endpoints import PortRange
from zkc.wire.messages import AnswerBody, Endpoints, RelayAt, RequestBody, WantRelay

Ask = Callable[[RequestBody], Awaitable[AnswerBody]]
"""A request to the coordinator, and its answer; raises the errors of the contract."""
Tell = Callable[..., None]
"""`zkc.logs.Repeats.tell` to one log: level, event, what of it is the same, and fields."""
_TURN_SECONDS: Final = STEP_SECONDS - 5.0
"""How long a transfer waits for a port to become free: the sender hears of it before its own step has run out."""
_TURN_PAUSE: Final = 0.1
_ADDRESSES_SECONDS: Final = 2.0
"""How long this host's addresses are taken for the same: a sender that got one too many tries again for a minute."""


class Places:
    """For all transfers to one home. Belongs to the daemon's loop."""

    def __init__(
        self, bulk: Bulk, transfers: Transfers, config: Callable[[], ClientConfig], clock: Clock, entropy: Entropy,
        tell: Tell,
    ) -> None:
        """``config``: what it is now."""
        self._bulk = bulk
        self._transfers = transfers
        self._config = config
        self._clock = clock
        self._entropy = entropy
        self._tell = tell
        self._line = asyncio.Lock()
        """Who waits for a port stands in line: first come, first served, and only one asks for it."""
        self._known_addresses: tuple[tuple[tuple[str, ...], str, str], float, list[str]] = ((), "", ""), 0.0, []
        """For whom, until when, which: see `addresses`."""

    async def bind(self, transfer: Transfer, listen: PortRange | None, relay: Endpoints | None) -> Incoming:
        """A thread, and a pair of ports where this end listens; when all are taken, the transfer waits for its turn."""
        req = transfer.req
        is_told = False

        def tell(why: str) -> None:
            nonlocal is_told
            if not is_told:
                is_told = True
                self._tell(
                    "warning", "transfer-waits", (req.sender,), **transfer.ids, why=why,
                    listen=self._config().transfer.listen, seconds=_TURN_SECONDS,
                )

        if self._line.locked():
            tell("others wait for a port")
        try:
            async with asyncio.timeout(_TURN_SECONDS) as transfer.turn, self._line:
                while True:
                    self._transfers.check_wanted(transfer)
                    try:
                        if sum(each.incoming is not None for each in self._transfers.values()) < TRANSFERS_MAX:
                            if relay is not None:
                                return self._bulk.by_relay(relay, req.sender)
                            if listen is None:
                                return self._bulk.dial()
                            return self._bulk.listen(listen.host.strip("[]"), listen.ports or None, req.sender)
                        tell(f"{TRANSFERS_MAX} transfers are under way")
                    except (PortsTaken, DescriptorsTaken) as error:
                        tell(error.message)
                    self.make_room(transfer)
                    # Asked again and again: a port is free some time after its socket was closed, and nothing tells
                    # when.
                    await asyncio.sleep(_TURN_PAUSE)
        except TimeoutError:
            self._transfers.check_wanted(transfer)
            raise PolicyRefused("no port became free in time", detail="limit") from None
        finally:
            transfer.turn = None

    def make_room(self, wanted: Transfer) -> None:
        """Those of this very delivery have to, whose sender asks for another; else of those whose sender has gone the
        one that is longest away.

        What has come of it stays; its sender makes a new handshake when it is back.
        """
        older = [other.bell for other in self._transfers.older(wanted) if other.bell is not None]
        for bell in older:
            bell.ring(anew(wanted.req.sender))
        if older:
            return
        now = self._clock.monotonic()
        away = [
            (other.incoming.lost_since, other.req.sender, other.bell) for other in self._transfers.values()
            if other.bell is not None and other.incoming is not None and other.incoming.lost_since is not None
        ]
        for since, sender, bell in sorted(away, key=lambda each: each[0])[:1]:
            if since <= now:
                # A sender that is back at this very moment hears what it comes back from.
                bell.ring(Interrupted(f"{sender} is away, and another transfer has its place", detail="shutdown"))

    async def find_relay(self, transfer: Transfer, ask: Ask) -> Endpoints:
        """Neither end can be connected to: which relay the coordinator gives. `PolicyRefused`."""
        req, rv = transfer.req, self._entropy.bytes(ID_BYTES)
        try:
            found = await ask(WantRelay(req.xid, rendezvous(rv, "data"), rendezvous(rv, "ack")))
        except PolicyRefused as refused:
            self._tell("info", "refused", (req.sender, refused.detail), **transfer.ids, reason=refused.detail)
            raise
        if not isinstance(found, RelayAt):
            raise PeerViolation("unexpected", type(found).__name__)
        host, port = split_endpoint(found.endpoint)
        return Endpoints([host], port, port, 0, found.name, rv)

    async def addresses(self, listen_host: str, coordinator_host: str) -> list[str]:
        """Where senders reach this host; looked up again after `_ADDRESSES_SECONDS`."""
        asked, now = (self._config().transfer.advertise, listen_host, coordinator_host), self._clock.monotonic()
        known, until, addresses = self._known_addresses
        if known != asked or now >= until:
            # In a thread: the coordinator's name may have to be looked up.
            addresses = await asyncio.to_thread(told, *asked)
            self._known_addresses = asked, now + _ADDRESSES_SECONDS, addresses
        return addresses
