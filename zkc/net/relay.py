"""A blind forwarder: two connections that name the same meeting are made one.

Both ends of a transfer come as clients of a SOCKS5 proxy (RFC 1928: no authentication, CONNECT, a domain name). The
name is a rendezvous that the coordinator has announced, with ``-s`` (the sender's end) or ``-r``. Of each side the
newest counts: a later one ends what stood. Only when both are there does either get its answer, and only then do
bytes flow, which this module passes on as they come and does not look at. Names that nobody announced get nothing.

Of each direction one read is in flight: it is read again once the other end has taken that. The more is held for slow
ends in all, the less is read at once, so that memory is bounded and nobody ever waits for somebody else's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from zkc.constants import (
    RELAY_BUFFER_BYTES,
    RELAY_BUFFER_LEAST,
    RELAY_BUFFERS_BYTES,
    RELAY_CONNECTIONS_MAX,
    RELAY_CONNECTIONS_PER_ADDRESS_MAX,
    RELAY_LONE_SECONDS,
    RELAY_MEETINGS_MAX,
    RELAY_MEETINGS_PER_CLIENT_MAX,
    RELAY_UNUSED_SECONDS,
)
from zkc.errors import LocalIOError, PolicyRefused
from zkc.net.sockets import plain_address, tcp_endpoint

HANDSHAKE_SECONDS: Final = 5.0
"""From the connection to the end of its request."""
_PARTING_SECONDS: Final = 10.0
"""How long what was sent last may take to leave."""
_REQUEST_MAX: Final = 2 + 255 + 4 + 1 + 255 + 2
_GREETING: Final = b"\x05\x00"
_JOINED: Final = b"\x05\x00\x00\x01" + bytes(6)
_REFUSED: Final = b"\x05\x02\x00\x01" + bytes(6)

Side = Literal["s", "r"]
OnEvent = Callable[[str, dict[str, object]], None]
"""What the log hears: an event and its fields."""


@dataclass(eq=False)
class _Meeting:
    """One rendezvous: of data, or of acknowledgements."""

    client: str
    """On whose account it is."""
    used: float
    ends: dict[Side, _End] = field(default_factory=dict)


class RelayServer:
    """Belongs to the running loop; `start` it, `close` it."""

    def __init__(
        self, monotonic: Callable[[], float], on_event: OnEvent = lambda _event, _fields: None,
        budget: int = RELAY_BUFFERS_BYTES,
    ) -> None:
        """``budget``: bytes that it may hold for slow ends, before each is read in the smallest pieces."""
        self._monotonic = monotonic
        self.on_event: Final = on_event
        self._meetings: dict[str, _Meeting] = {}
        self._accounts: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()
        self._ends: set[_End] = set()
        self._server: asyncio.Server | None = None
        self._buffer = memoryview(bytearray(RELAY_BUFFER_BYTES))
        """For every read: each is passed on before the next."""
        self._budget = budget
        self.held = 0
        """Bytes that ends have not taken yet."""
        self.passed = 0
        """Bytes, in both directions."""

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; the address and port that are bound. `LocalIOError` (``address-in-use``, ``address``)."""
        try:
            everywhere = host in ("*", "::")
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _End(self), None if everywhere else host, port, backlog=256,
            )
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise LocalIOError(
                f"cannot listen on {tcp_endpoint(host, port)}: {error.strerror or error}",
                detail="address-in-use" if taken else "address", hint="listen on another address or port",
            ) from None
        where = self._server.sockets[0].getsockname()
        return plain_address(where[0]), where[1]

    async def close(self) -> None:
        """End everything; again: nothing."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            while self._ends:
                for end in list(self._ends):
                    end.abort()
                await asyncio.sleep(0)
            await server.wait_closed()

    def announce(self, rendezvous: tuple[bytes, bytes], client: str) -> None:
        """From now on two ends may meet under each of these names. `PolicyRefused` (``limit``) for too many."""
        self._forget_unused()
        names = [name.hex() for name in rendezvous]
        new = [name for name in names if name not in self._meetings]
        if (
            len(self._meetings) + len(new) > RELAY_MEETINGS_MAX
            or self._accounts[client] + len(new) > RELAY_MEETINGS_PER_CLIENT_MAX
        ):
            raise PolicyRefused("too many transfers by this relay", detail="limit")
        for name in new:
            self._meetings[name] = _Meeting(client, self._monotonic())
            self._accounts[client] += 1

    # --- for the connections ----------------------------------------------------------------------------------------

    def read(self, size: int) -> bytes:
        """So many bytes of what `buffer` gave, which is the next read's again."""
        return bytes(self._buffer[:size])

    def buffer(self) -> memoryview:
        """Where to the next read goes: a sixteenth of what is left, so that something is always left for others."""
        return self._buffer[: max(min((self._budget - self.held) // 16, len(self._buffer)), RELAY_BUFFER_LEAST)]

    def came(self, end: _End, address: str) -> bool:
        """Whether there is room for another connection from there."""
        if self._server is None:
            return False
        if len(self._ends) >= RELAY_CONNECTIONS_MAX or self._addresses[address] >= RELAY_CONNECTIONS_PER_ADDRESS_MAX:
            self.on_event("relay-full", {"address": address})
            return False
        self._ends.add(end)
        self._addresses[address] += 1
        return True

    def went(self, end: _End, address: str) -> None:
        if end in self._ends:
            self._ends.discard(end)
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]

    def meet(self, end: _End, asked: str) -> bool:
        """``end`` asks for NAME-s or NAME-r; whether there is such a meeting."""
        name, _, side = asked.rpartition("-")
        meeting = self._meetings.get(name)
        if meeting is None or side not in ("s", "r"):
            return False
        mine: Side = "s" if side == "s" else "r"
        older = meeting.ends.get(mine)
        meeting.ends[mine] = end
        end.stand(meeting, mine)
        if older is not None:
            older.abort()
        other = meeting.ends.get("r" if mine == "s" else "s")
        if other is not None and other.waits:
            self.on_event("spliced", {"client": meeting.client})
            end.join(other)
            other.join(end)
        return True

    def leave(self, end: _End, meeting: _Meeting, side: Side) -> None:
        if meeting.ends.get(side) is end:
            del meeting.ends[side]
        meeting.used = self._monotonic()

    def _forget_unused(self) -> None:
        now = self._monotonic()
        for name, meeting in list(self._meetings.items()):
            if not meeting.ends and now - meeting.used > RELAY_UNUSED_SECONDS:
                del self._meetings[name]
                self._accounts[meeting.client] -= 1
                if not self._accounts[meeting.client]:
                    del self._accounts[meeting.client]


class _End(asyncio.BufferedProtocol):
    """One connection: greeting, request, waiting for the other end, joined to it."""

    def __init__(self, relay: RelayServer) -> None:
        self._relay = relay
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._address = ""
        self._heard = bytearray()
        self._greeted = False
        self._place: tuple[_Meeting, Side] | None = None
        self._other: _End | None = None
        self._held = 0
        """Bytes that are not all written yet."""
        self._ended = False

    @property
    def waits(self) -> bool:
        """Whether it has asked for a meeting and is alone."""
        return self._place is not None and self._other is None

    # --- what asyncio tells -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._address = plain_address(str((transport.get_extra_info("peername") or ("?",))[0]))
        if not self._relay.came(self, self._address):
            transport.abort()
            return
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        transport.set_write_buffer_limits(high=0)
        self._expect_within(HANDSHAKE_SECONDS)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._relay.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        data = self._relay.read(nbytes)
        if self._other is not None:
            self._relay.passed += len(data)
            self._other.write(data)
            return
        self._heard += data
        if self._place is not None or len(self._heard) > _REQUEST_MAX or not self._handshake():
            self.abort()

    def eof_received(self) -> bool:
        """Whether the way back goes on: until it ends too, so that no last word is lost, or for a while."""
        other, self._ended = self._other, True
        if other is None or other.has_ended:
            return False
        other.end_writing()
        self._expect_within(_PARTING_SECONDS)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._relay.went(self, self._address)
        self._let_go()
        if self._place is not None:
            self._relay.leave(self, *self._place)
        if self._other is not None:
            other, self._other = self._other, None
            other.finish()

    def pause_writing(self) -> None:
        """What is joined to a slow reader is not read either."""
        if self._other is not None:
            self._other.pause(True)

    def resume_writing(self) -> None:
        self._let_go()
        if self._other is not None:
            self._other.pause(False)

    # --- what the other end and the relay ask -----------------------------------------------------------------------

    def stand(self, meeting: _Meeting, side: Side) -> None:
        self._place = meeting, side

    def join(self, other: _End) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._other = other
        self.write(_JOINED)

    def write(self, data: bytes) -> None:
        if self._transport is None:
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size():
            self._held += len(data)
            self._relay.held += len(data)

    def pause(self, paused: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            with contextlib.suppress(RuntimeError):
                (self._transport.pause_reading if paused else self._transport.resume_reading)()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes from it."""
        return self._ended

    def end_writing(self) -> None:
        if self._transport is not None and self._transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):
                self._transport.write_eof()

    def finish(self) -> None:
        """The other end has gone: what it said last still leaves, in bounded time."""
        self._other = None
        if self._transport is not None:
            self._transport.close()
            self._expect_within(_PARTING_SECONDS)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        self._relay.held -= self._held
        self._held = 0

    def _expect_within(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def _handshake(self) -> bool:
        """As much of SOCKS5 as has come; whether it is what libzmq says, and leads to a meeting."""
        heard = self._heard
        if not self._greeted:
            if not b"\x05".startswith(heard[:1]):
                return False
            if len(heard) < 2 or len(heard) < 2 + heard[1]:
                return True
            if 0 not in heard[2 : 2 + heard[1]]:
                return False
            del heard[: 2 + heard[1]]
            self._greeted = True
            self.write(_GREETING)
        if not b"\x05\x01\x00\x03".startswith(heard[:4]):
            return False
        if len(heard) < 5 or len(heard) < 7 + heard[4]:
            return True
        name, rest = bytes(heard[5 : 5 + heard[4]]), heard[7 + heard[4] :]
        heard.clear()
        if rest:
            return False
        self._expect_within(RELAY_LONE_SECONDS)
        if self._relay.meet(self, name.decode("ascii", "replace")):
            return True
        self._relay.on_event("unknown-meeting", {"address": self._address})
        self.write(_REFUSED)
        return False
