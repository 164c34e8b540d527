"""The daemon's events: numbered, remembered, followed without a gap, and never more of them than there is room for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import Any, get_args

import msgspec
import pytest

from tests.support.env import FixedClock
from tests.support.waiting import DEADLINE, until
from zkc.client import bus as module
from zkc.client.bus import EventBus
from zkc.client.happenings import (
    Begun,
    Decision,
    Happened,
    Happening,
    KeyNews,
    Lost,
    OwnPerson,
    PeerNews,
    Progress,
    Started,
    ended,
    tag_of,
)
from zkc.client.noted import NotedEvents
from zkc.constants import FOLLOWERS_MAX
from zkc.decoders import json_decoder
from zkc.errors import DaemonError, Interrupted
from zkc.logs import Repeats
from zkc.ui.cli.events import line_of, object_of
from zkc.wire.messages import Peer


def number(n: int) -> Started:
    return Started("bob", str(n))


def numbers(happened: list[Happened]) -> list[int]:
    return [int(each.what.version) for each in happened if isinstance(each.what, Started)]


def begun(transfer: str = "ab") -> Begun:
    return Begun(transfer, "in", "alice", "bob", "report.pdf", 100, 0, live=False)


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, DEADLINE))


@contextlib.asynccontextmanager
async def followed(bus: EventBus) -> AsyncIterator[Any]:
    """Somebody who follows, and has read what is remembered of ``bus``: the next `Started`."""
    async with contextlib.aclosing(bus.events(follow=True)) as events:
        bus.publish(number(0))
        while (await anext(events)).what != number(0):
            pass
        yield events


async def remembered(bus: EventBus) -> list[Happened]:
    return [each async for each in bus.events(follow=False)]


def test_who_follows_gets_what_is_remembered_and_what_comes_without_a_gap() -> None:
    async def scene() -> None:
        bus = EventBus(FixedClock())
        for n in range(1, 4):
            bus.publish(number(n))
        events = bus.events(follow=True)
        got = [await anext(events) for _ in range(2)]
        bus.publish(number(4))
        got += [await anext(events) for _ in range(2)]
        late = asyncio.create_task(anext(events))
        await until(lambda: bus.followed)
        bus.publish(number(5))
        got.append(await late)
        assert numbers(got) == [1, 2, 3, 4, 5]
        assert [each.seq for each in got] == [1, 2, 3, 4, 5]
        assert numbers(await remembered(bus)) == [1, 2, 3, 4, 5]
        await events.aclose()
        assert not bus.followed

    play(scene())


@pytest.mark.attack("H14")
def test_who_does_not_read_is_told_how_much_is_lost_and_nothing_grows() -> None:
    async def scene() -> None:
        bus = EventBus(FixedClock(), kept=8)
        async with followed(bus) as events:
            for n in range(1, 1001):
                bus.publish(number(n))
            assert len(bus._kept) == 8
            lost = await anext(events)
            assert (lost.seq, lost.what) == (0, Lost(992))
            assert numbers([await anext(events) for _ in range(8)]) == list(range(993, 1001))
            # One that was in the middle of it when they went.
            bus.publish(number(1001))
            bus.publish(number(1002))
            assert numbers([await anext(events)]) == [1001]
            for n in range(1003, 1013):
                bus.publish(number(n))
            assert (await anext(events)).what == Lost(3)
            assert numbers([await anext(events)]) == [1005]
        assert (await remembered(bus))[0].seq == 1006

    play(scene())


def test_progress_is_measured_only_while_somebody_follows_and_only_the_newest_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.001)
    asked = 0

    def how_far() -> int:
        nonlocal asked
        asked += 1
        return asked

    async def scene() -> None:
        bus = EventBus(FixedClock())
        bus.begin(begun(), how_far)
        assert bus._measuring is None
        async with followed(bus) as events:
            await until(lambda: asked > 3)
            (follower,) = bus._followers
            assert list(follower.progress) == ["ab"]
            first, second = await anext(events), await anext(events)
            assert isinstance(first.what, Progress)
            assert isinstance(second.what, Progress)
            assert 3 < first.what.bytes < second.what.bytes
            assert (first.seq, first.what.total) == (0, 100)
            bus.publish(ended(begun(), 100))
            # Nothing of it comes after its end.
            assert follower.progress == {}
            bus.publish(Progress("ab", 7, 100))
            assert (await anext(events)).what == ended(begun(), 100)
            assert follower.progress == {}
            assert bus._measuring is not None
            await bus._measuring
        assert not bus.is_under_way("ab")

    play(scene())
    assert asked > 3


def test_what_another_thread_publishes_is_heard_in_the_loop() -> None:
    async def scene() -> None:
        bus = EventBus(FixedClock())
        bus.start()
        heard: list[tuple[Happening, int]] = []
        bus.hear(lambda what: heard.append((what, threading.get_ident())))
        await asyncio.to_thread(bus.publish, number(1))
        await until(lambda: heard)
        assert heard == [(number(1), threading.get_ident())]

    play(scene())


def test_so_many_follow_and_no_more() -> None:
    async def scene() -> None:
        bus = EventBus(FixedClock())
        async with contextlib.AsyncExitStack() as all_of_them:
            for _ in range(FOLLOWERS_MAX):
                await all_of_them.enter_async_context(followed(bus))
            with pytest.raises(DaemonError) as refused:
                await anext(bus.events(follow=True))
            assert refused.value.detail == "too-many"
        assert not bus.followed
        async with followed(bus):
            assert bus.followed

    play(scene())


def test_a_peer_is_news_when_it_is_not_as_it_was() -> None:
    def peer(*, online: bool, person: Any = "unknown") -> Peer:
        return Peer("bob", "computer", online, 0, bytes(32), person, 0)

    bus = EventBus(FixedClock())
    for seen in (peer(online=False), peer(online=False), peer(online=True), peer(online=True, person="present")):
        bus.saw([seen])
    for state in ("unknown", "unknown", "present"):
        bus.person(state)
    assert [each.what for each in bus._kept] == [
        PeerNews("bob", True, "unknown"), PeerNews("bob", True, "present"), OwnPerson("unknown"), OwnPerson("present"),
    ]


class Noted:
    def __init__(self) -> None:
        self.kinds: list[str] = []

    def note(self, event: str, *_: str, **__: object) -> None:
        self.kinds.append(event)


@pytest.mark.attack("H14")
def test_what_is_noted_is_published_and_refusals_without_end_push_nothing_out() -> None:
    clock, noted = FixedClock(), Noted()
    bus = EventBus(clock)
    notes = NotedEvents(noted, bus, "bob", Repeats(clock.monotonic))
    notes.note("incoming", "alice", "bob", rule="all")
    for _ in range(5000):
        notes.note("incoming", "mallory", "bob", code=25, detail="rule", rule="nobody")
    notes.note("key-changed", "bob/backup", "alice", code=12, detail="key-changed")
    notes.note("key-changed", "alice", "bob", code=12, detail="key-changed")
    notes.note("key-log-alarm", "bob", code=12, detail="log-fork")
    notes.note("answered", "alice", "bob")
    notes.note("received", "alice", "bob")
    assert len(noted.kinds) == 1 + 5000 + 5
    assert [each.what for each in bus._kept] == [
        Decision("incoming", "alice", "bob", "ok", 0, "", "all", 0),
        Decision("incoming", "mallory", "bob", "refused", 25, "rule", "nobody", 0),
        KeyNews("key-changed", "alice", 12, "key-changed", 0), KeyNews("key-changed", "alice", 12, "key-changed", 0),
        KeyNews("key-log-alarm", None, 12, "log-fork", 0),
    ]


# --- how it is shown ----------------------------------------------------------------------------------------------

HOSTILE = "\x1b[2J\nzkc: \u202eall is well"


def example(kind: type[msgspec.Struct]) -> Any:
    """One of each kind, every text of it hostile."""
    values: dict[type, Any] = {str: HOSTILE, int: 5, float: 1.5, bool: True}
    made = {}
    for field in msgspec.structs.fields(kind):
        choices = get_args(field.type) or (field.type,)
        made[field.name] = next((values[each] for each in choices if each in values), choices[0])
    return kind(**made)


@pytest.mark.attack("F07")
@pytest.mark.parametrize("kind", get_args(Happening), ids=tag_of)
def test_every_event_is_one_line_that_moves_no_cursor_and_one_object(kind: type[msgspec.Struct]) -> None:
    happened = Happened(3, 0.0, example(kind))
    assert json_decoder(Happened).decode(msgspec.json.encode(happened)) == happened
    line = line_of(happened)
    assert line.isprintable()
    assert line.startswith(f"1970-01-01T00:00:00.000Z  {tag_of(kind)}")
    noun, keys = object_of(happened)
    assert noun == tag_of(kind)
    assert (keys["seq"], keys["time"]) == (3, "1970-01-01T00:00:00.000Z")
    assert {"sender", "v", "event"}.isdisjoint(keys)
    if "recipient" in kind.__struct_fields__:
        assert ("to" in keys) == (noun != "delivered")
    assert all(keys[each] == "1970-01-01T00:00:01.500Z" for each in ("received", "next", "expires") if each in keys)


def test_an_end_says_why() -> None:
    broken = ended(begun(), 5, Interrupted("gone", detail="lost"))
    assert (broken.code, broken.reason, broken.detail, broken.bytes) == (31, "interrupted", "lost", 5)
    assert "failed 31 interrupted lost" in line_of(Happened(1, 0.0, broken))
