"""One connection to the coordinator, from the first SYN to the last byte: what `link` and `join` stand on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from zkc.errors import CoordinatorUnreachable, NotRegistered, ZkcError
from zkc.net.loopsocket import LoopSocket, Received, Sent
from zkc.net.monitor import AsyncMonitor, EventKind, SocketEvent
from zkc.net.sockets import Context, connect_dealer
from zkc.net.watch import DEALER_BOUNDS, Watch
from zkc.net.zap import OVERLOADED

DIAL_SECONDS: Final = 5.0
"""From the first SYN to the end of the CURVE handshake."""
STAGGER_SECONDS: Final = 0.5
"""The next address is dialled too where the one before has not been reached by then."""
_KINDS: Final = (
    EventKind.HANDSHAKE_SUCCEEDED, EventKind.HANDSHAKE_FAILED_AUTH, EventKind.HANDSHAKE_FAILED_NO_DETAIL,
    EventKind.HANDSHAKE_FAILED_PROTOCOL, EventKind.DISCONNECTED, EventKind.CLOSED, EventKind.CONNECT_RETRIED,
    EventKind.CONNECTED,
)


class Connection:
    """A DEALER that stands, or stood: `lost` is done when it is gone."""

    def __init__(
        self, ctx: Context, endpoint: str, server_key: bytes, public: bytes, secret: bytes,
        on_frame: Callable[[bytes], None], *, if_refused: str = "",
    ) -> None:
        """``if_refused``: what to do where the coordinator does not admit the key ``public``."""
        loop = asyncio.get_running_loop()
        self.endpoint = endpoint
        self._if_refused = if_refused
        self.lost: asyncio.Future[None] = loop.create_future()
        self._up: asyncio.Future[None] = loop.create_future()
        self._monitor: AsyncMonitor | None = None
        self._on_frame = on_frame
        # Whoever is cut off is told of as any connection that ends.
        self._watch = Watch(DEALER_BOUNDS, lambda _cut: None)
        self._answered = False
        """Whether something accepted the TCP connection."""

        def watch(sock: object) -> None:
            self._monitor = AsyncMonitor(sock, self._on_event, kinds=_KINDS)  # type: ignore[arg-type]

        try:
            dealer = connect_dealer(ctx, endpoint, server_key, public, secret, watch=watch)
        except BaseException:
            if self._monitor is not None:
                self._monitor.close()
            raise
        self._socket = LoopSocket(dealer, self._on_received)

    async def wait_up(self) -> None:
        """Returns when the CURVE handshake has succeeded.

        `CoordinatorUnreachable` (``refused``, ``handshake``, ``overloaded``, ``timeout``), `NotRegistered`
        (``refused-key``): hints that nothing authenticates.
        """
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                await asyncio.shield(self._up)
        except TimeoutError:
            raise CoordinatorUnreachable(
                f"no answer from the coordinator at {self.endpoint}", detail="timeout",
                hint="is the address right? where its port answers, the coordinator hangs, or another program is "
                "there: zkc doctor tells which",
            ) from None

    def send(self, frame: bytes) -> bool:
        """Whether the socket took it; a full queue means a coordinator that does not read."""
        return not self._socket.closed and self._socket.send(frame) is Sent.OK

    def close(self) -> None:
        """Again: nothing."""
        if self._monitor is not None:
            self._monitor.close()
        self._watch.close()
        self._socket.close()
        self._up.cancel()
        if not self.lost.done():
            self.lost.set_result(None)

    def _on_received(self, received: Received) -> None:
        self._watch.delivered(received.fd)
        self._on_frame(received.payload)

    def _on_event(self, event: SocketEvent) -> None:
        self._watch.on_event(event)
        if event.kind is EventKind.CONNECTED:
            self._answered = True
            return
        if event.kind is EventKind.HANDSHAKE_SUCCEEDED:
            if not self._up.done():
                self._up.set_result(None)
            return
        if not self._up.done():
            self._up.set_exception(self._failure(event))
            # Nobody may be waiting any more; the exception has then said its part.
            self._up.exception()
        if not self.lost.done():
            self.lost.set_result(None)

    def _failure(self, event: SocketEvent) -> ZkcError:
        if event.kind is EventKind.HANDSHAKE_FAILED_AUTH:
            if event.code == OVERLOADED:
                return CoordinatorUnreachable(
                    f"the coordinator at {self.endpoint} lets nobody in at the moment", detail="overloaded",
                    hint="try again later; its log says whether it is full (limits.clients) or cannot read its keys",
                )
            return NotRegistered(
                f"the coordinator at {self.endpoint} does not admit this client's key", detail="refused-key",
                hint=self._if_refused,
            )
        if self._answered:
            return CoordinatorUnreachable(
                f"what answers at {self.endpoint} has another key than this client's coordinator, or is ending",
                detail="handshake",
                hint="try it again; if that stays, is the address right? a coordinator that was set up anew is another "
                "one: its administrator has to restore the backup, or invite this client again (zkc join --force)",
            )
        return CoordinatorUnreachable(
            f"cannot reach the coordinator at {self.endpoint}", detail="refused",
            hint="is it running (zkc coordinator status)? zkc doctor looks at each step of the way",
        )


_FROM_FAR: Final = ("timeout", "refused", "handshake", "overloaded", "no-answer")
"""Details of `CoordinatorUnreachable`, by how near to a coordinator that serves each of them is."""


def nearness(error: Exception) -> int:
    """Of the failures of several addresses the one with the most tells why there is no link."""
    if isinstance(error, CoordinatorUnreachable) and error.detail in _FROM_FAR:
        return _FROM_FAR.index(error.detail)
    return len(_FROM_FAR)
