"""The Python API ends what it was told to end, in bounded time, and lets go of what nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
import select
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.items import receive
from tests.support.waiting import DEADLINE, until, wait_until
from zkc import api
from zkc.api import Client, SyncClient
from zkc.client.by_link import LoopThread
from zkc.errors import Interrupted, NobodyThere, UsageError
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox


class Endless:
    """`Sending` to somebody who never answers: only its bell ends it."""

    running: threading.Semaphore

    def __init__(self, *_: object, bell: Any, **__: object) -> None:
        self._bell = bell

    def run(self) -> Any:
        Endless.running.release()
        assert select.select([self._bell.fd], [], [], DEADLINE)[0], "nobody rang"
        raise Interrupted("the transfer was interrupted", detail="signal")


@pytest.fixture(autouse=True)
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    Endless.running = threading.Semaphore(0)
    monkeypatch.setattr(api, "Sending", Endless)
    monkeypatch.setattr(api, "open_access", lambda *_: contextlib.ExitStack())
    monkeypatch.setattr(api, "_THREADS", 4)


async def begun(count: int) -> None:
    for _ in range(count):
        await until(lambda: Endless.running.acquire(blocking=False))


def test_closing_ends_sends_that_take_every_thread(home: Home) -> None:
    async def scenario() -> None:
        client = Client(home.data)
        sends = [asyncio.create_task(client.send("bob", b"x")) for _ in range(7)]
        await begun(4)
        async with asyncio.timeout(DEADLINE):
            await client.close()
            done = await asyncio.gather(*sends, return_exceptions=True)
        assert {type(each) for each in done[:4]} == {Interrupted}
        assert {type(each) for each in done[4:]} <= {Interrupted, UsageError}
        with pytest.raises(UsageError, match="closed"):
            await client.send("bob", b"x")
        with pytest.raises(UsageError, match="closed"):
            await client.items()
        await client.close()

    asyncio.run(scenario())


def test_a_closed_client_says_so_of_each_method(home: Home) -> None:
    client = SyncClient(home.data)
    assert client.items() == []
    client.close()
    for method in (client.items, client.peers):
        with pytest.raises(UsageError, match="this client is closed"):
            method()


def test_a_cancelled_send_sends_no_more(home: Home) -> None:
    async def scenario() -> None:
        async with Client(home.data) as client:
            sends = [asyncio.create_task(client.send("bob", b"x")) for _ in range(5)]
            await begun(4)
            for send in reversed(sends):
                send.cancel()
            done = await asyncio.gather(*sends, return_exceptions=True)
            assert {type(each) for each in done} == {asyncio.CancelledError}
            assert not client._sync._calls, "their threads have ended"
            assert not Endless.running.acquire(blocking=False), "the fifth never began"

    asyncio.run(scenario())


def test_a_cancelled_wait_takes_nothing(home: Home) -> None:
    async def scenario() -> None:
        async with Client(home.data) as client:

            async def wait() -> None:
                async with client.receive(wait=10 * DEADLINE):
                    raise AssertionError("there is nothing")

            waiting = asyncio.create_task(wait())
            await until(lambda: client._sync._calls)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not client._sync._calls
            with Inbox.open(home) as inbox:
                receive(inbox)
            async with client.receive() as item:
                assert await item.read() == b"hello"
            assert await client.items() == []

    asyncio.run(scenario())


def test_a_claim_that_comes_when_nobody_waits_any_more_is_let_go(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with Inbox.open(home) as inbox:
        receive(inbox)
    hold, real = threading.Event(), SyncClient.take_in

    def slow(client: SyncClient, *words: Any, **options: Any) -> Any:
        claim = real(client, *words, **options)
        hold.wait(DEADLINE)
        return claim

    monkeypatch.setattr(SyncClient, "take_in", slow)
    monkeypatch.setattr(api, "_END_SECONDS", 0.01)

    async def scenario() -> None:
        async with Client(home.data) as client:

            async def take() -> None:
                async with client.receive():
                    raise AssertionError("cancelled before")

            taking = asyncio.create_task(take())
            await until(lambda: client._threads._threads)
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
            hold.set()
            monkeypatch.setattr(SyncClient, "take_in", real)
            async with client.receive(wait=DEADLINE) as item:
                assert await item.read() == b"hello"

    asyncio.run(scenario())


@pytest.fixture
def threads() -> Iterator[list[threading.Thread]]:
    started: list[threading.Thread] = []
    yield started
    for thread in started:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_closing_in_one_thread_ends_what_others_wait_for(home: Home, threads: list[threading.Thread]) -> None:
    ended: list[BaseException] = []

    def run(call: Any) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - shown below
            ended.append(error)

    client = SyncClient(home.data)
    calls = [lambda: client.send("bob", "hi"), lambda: client.receive(wait=10 * DEADLINE).__enter__()]
    threads += [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(client._calls) == 2)
    client.close()
    wait_until(lambda: len(ended) == 2)
    assert {type(error) for error in ended} == {Interrupted}
    client.close()


def test_receiving_matches_as_the_command_does(home: Home) -> None:
    with Inbox.open(home) as inbox:
        receive(inbox)
    with SyncClient(home.data) as client:
        for wish in ({"sender": "carol"}, {"name": "*.tar"}, {"app": "backup"}):
            with pytest.raises(NobodyThere) as caught, client.receive(**wish):
                pass
            assert caught.value.detail == "empty"
        with client.receive(sender="alice", name="a.*") as item:
            assert item.read() == b"hello"


def test_a_loop_of_its_own_ends_with_what_others_wait_for_on_it(threads: list[threading.Thread]) -> None:
    """Else a send that waits for its link would wait for ever."""
    loop, ended, begun = LoopThread(), [], threading.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    def run() -> None:
        try:
            loop.run(wait())
        except Exception as error:  # noqa: BLE001 - shown below
            ended.append(type(error).__name__)

    threads.append(threading.Thread(target=run))
    threads[0].start()
    begun.wait(DEADLINE)
    loop.close()
    wait_until(lambda: ended == ["CancelledError"])
