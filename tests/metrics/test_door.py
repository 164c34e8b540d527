"""The metrics port: one page, for whoever asks; and nobody who does not ask, or does not read, is in anybody's way."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import DEADLINE, until
from zkc.env import SystemClock
from zkc.errors import LocalIOError
from zkc.metrics.door import CONNECTIONS_MAX, PAGE_SECONDS, REQUEST_MAX, Door, _Connection
from zkc.rules.endpoints import Endpoint

ASK = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"


class Clock:
    """Stands still until it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0


class Opened:
    """A door that is open, and what it was told of."""

    def __init__(self, page: Callable[[], bytes], **bounds: Any) -> None:
        self.clock = Clock()
        self.failures: list[Exception] = []
        self.door = Door(page, "text/plain", self.clock, self.failures.append, **bounds)

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.door.address.rpartition(":")
        return await asyncio.open_connection(host.strip("[]"), int(port), **options)

    async def ask(self, request: bytes = ASK) -> bytes:
        """All that is answered."""
        reader, writer = await self.connect()
        try:
            writer.write(request)
            async with asyncio.timeout(DEADLINE):
                return await reader.read()
        finally:
            writer.close()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the other end has ended it, in whatever way."""
    said = bytearray()
    async with asyncio.timeout(DEADLINE):
        with suppress(ConnectionError):
            while more := await reader.read(1024):
                said += more
    return bytes(said)


@pytest.fixture(autouse=True)
def nothing_is_left_to_a_later_test() -> Iterator[None]:
    """asyncio of Python 3.11 leaves a connection open whose server closes between its accept and its first turn
    (`Server._attach`): it ends here, and not as a warning in whatever test the collector runs next."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@asynccontextmanager
async def opened(
    page: Callable[[], bytes] = lambda: b"the page\n", host: str = "127.0.0.1", **bounds: Any
) -> AsyncIterator[Opened]:
    of = Opened(page, **bounds)
    await of.door.open(Endpoint(host, 0))
    try:
        yield of
    finally:
        of.door.close()
        await asyncio.sleep(0)  # what was put out is closed in the next turn


def test_who_was_accepted_while_it_closed_is_put_out() -> None:
    async def body() -> None:
        async with opened() as of:
            of.door.close()
            ours, theirs = socket.socketpair()
            await asyncio.get_running_loop().create_connection(lambda: _Connection(of.door), sock=theirs)
            ours.setblocking(False)
            async with asyncio.timeout(DEADLINE):
                assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""
            ours.close()
            assert not of.door._open
            assert not of.door.outcomes, "it was let in, and put out for its silence"

    asyncio.run(body())


def test_the_page_is_told_and_the_connection_ends() -> None:
    async def body() -> None:
        async with opened() as of:
            head, _, page = (await of.ask()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n")
            assert page == b"the page\n"
            assert (await of.ask(ASK.replace(b"metrics", b"metrics?name[]=a"))).endswith(b"the page\n")
            assert (await of.ask(ASK.replace(b"GET", b"HEAD"))).endswith(b"\r\n\r\n")
            await until(lambda: of.door.outcomes == {"served": 3})

    asyncio.run(body())


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"), (b"GET /metrics/../etc/passwd HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"400"), (b"GET /metrics", b"400"), (b"\x16\x03\x01\x02\x00", b"400"),
        (b"GET /metrics HTTP/2.0", b"400"), (b"GET  /metrics HTTP/1.1", b"400"),
    ],
)
def test_anything_else_is_refused_without_a_page(request_line: bytes, status: bytes) -> None:
    async def body() -> None:
        async with opened() as of:
            said = await of.ask(request_line + b"\r\n\r\n")
            assert said.startswith(b"HTTP/1.1 " + status)
            assert b"the page" not in said
            await until(lambda: of.door.outcomes == {"bad-request": 1})

    asyncio.run(body())


def test_a_request_without_an_end_is_not_kept() -> None:
    async def body() -> None:
        async with opened() as of:
            reader, writer = await of.connect()
            writer.write(b"GET /nothing" + b"x" * (2 * REQUEST_MAX))
            await rest(reader)
            writer.close()
            await until(lambda: of.door.outcomes == {"bad-request": 1})

    asyncio.run(body())


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\nHost: "])
def test_who_says_nothing_or_half_a_thing_is_put_out(said: bytes) -> None:
    async def body() -> None:
        async with opened(seconds=0.05) as of:
            reader, writer = await of.connect()
            writer.write(said)
            assert await rest(reader) == b""
            writer.close()
            await until(lambda: of.door.outcomes == {"too-slow": 1})

    asyncio.run(body())


def test_who_never_reads_is_put_out_and_others_are_served_meanwhile() -> None:
    """Of a page that no buffer of the system takes whole."""
    async def body() -> None:
        async with opened(lambda: b"x" * (32 << 20), seconds=1.0) as of:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            host, _, port = of.door.address.rpartition(":")
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (host, int(port)))
            await loop.sock_sendall(sock, ASK)
            await until(lambda: of.door._made is not None)
            assert len(await of.ask(ASK.replace(b"GET", b"HEAD"))) < 200
            await until(lambda: of.door.outcomes == {"served": 1, "too-slow": 1})
            sock.close()

    asyncio.run(body())


def test_of_too_many_the_oldest_gives_way_to_who_comes() -> None:
    async def body() -> None:
        async with opened() as of:
            silent = [await of.connect() for _ in range(5 * CONNECTIONS_MAX)]
            assert (await of.ask()).endswith(b"the page\n")
            assert len(of.door._open) <= CONNECTIONS_MAX
            await until(lambda: of.door.outcomes["served"] == 1)
            assert of.door.outcomes["gave-way"] >= 4 * CONNECTIONS_MAX
            for _, writer in silent:
                writer.close()

    asyncio.run(body())


def test_a_page_is_made_once_a_second_however_often_it_is_asked_for() -> None:
    made: list[int] = []

    def page() -> bytes:
        made.append(1)
        return str(len(made)).encode()

    async def body() -> None:
        async with opened(page) as of:
            assert {(await of.ask())[-1:] for _ in range(20)} == {b"1"}
            of.clock.now += PAGE_SECONDS
            assert {(await of.ask())[-1:] for _ in range(20)} == {b"2"}

    asyncio.run(body())


def test_a_page_that_cannot_be_made_is_told_as_that_and_tried_anew() -> None:
    fail = True

    def page() -> bytes:
        if fail:
            raise OSError("secret words")
        return b"the page"

    async def body() -> None:
        nonlocal fail
        async with opened(page) as of:
            said = await of.ask()
            assert said.startswith(b"HTTP/1.1 500")
            assert b"secret" not in said
            assert [str(each) for each in of.failures] == ["secret words"]
            fail = False
            assert (await of.ask()).endswith(b"the page")

    asyncio.run(body())


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "*"])
def test_it_listens_where_it_is_told(host: str) -> None:
    async def body() -> None:
        async with opened(host=host) as of:
            assert of.door.address.startswith(f"{host}:")
            port = int(of.door.address.rpartition(":")[2])
            reached = []
            for each in ("127.0.0.1", "::1"):
                try:
                    _, writer = await asyncio.open_connection(each, port)
                except OSError:
                    continue
                writer.close()
                reached.append(each)
            assert reached == {"127.0.0.1": ["127.0.0.1"], "[::1]": ["::1"], "*": ["127.0.0.1", "::1"]}[host]

    if "::1" not in Path("/proc/net/if_inet6").read_text().replace("0" * 31 + "1", "::1"):
        pytest.skip("no IPv6 here")
    asyncio.run(body())


def test_a_port_that_is_taken_and_an_address_of_elsewhere_are_named() -> None:
    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            for host, detail in (("127.0.0.1", "address-in-use"), ("192.0.2.1", "address")):
                door = Door(lambda: b"", "text/plain", SystemClock(), lambda _: None)
                with pytest.raises(LocalIOError, match=f"metrics.listen: .*{host}:{port}") as caught:
                    await door.open(Endpoint(host, port))
                assert caught.value.detail == detail

    asyncio.run(body())
