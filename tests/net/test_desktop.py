"""The desktop over D-Bus: a bus of the test's own, with the two services that a desktop has."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from tests.support.waiting import DEADLINE
from zkc.net.desktop import Bus, NoBusError, Session, notify, user_sessions

pytestmark = pytest.mark.skipif(
    shutil.which("dbus-daemon") is None, reason="needs dbus-daemon (Debian: dbus-daemon), from no Python package"
)


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    config = tmp_path / "bus.conf"
    rules = "".join(f'<allow {each}="*"/>' for each in ("send_destination", "receive_sender", "own", "user"))
    config.write_text(
        f"<busconfig><type>session</type><listen>unix:path={tmp_path}/bus</listen>"
        f'<policy context="default">{rules}</policy></busconfig>'
    )
    process = subprocess.Popen(
        ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = process.stdout.readline().strip()
    for kind in ("SESSION", "SYSTEM"):
        monkeypatch.setenv(f"DBUS_{kind}_BUS_ADDRESS", told)
    yield told
    process.terminate()
    process.wait(DEADLINE)
    process.stdout.close()


Answer = Callable[[Message], "Message | None"]


async def serve(name: str, answer: Answer) -> MessageBus:
    bus = await MessageBus(bus_type=BusType.SESSION).connect()
    bus.add_message_handler(lambda asked: answer(asked) if asked.message_type is MessageType.METHOD_CALL else None)
    await bus.request_name(name)
    return bus


def run(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, DEADLINE))


def login(asked: Message) -> Message | None:
    """logind of three sessions, of whom one is somebody else's and one a greeter's."""
    if asked.member == "ListSessions":
        rows = [[id, uid, "name", "seat0", f"/s/{id}"] for id, uid in (("c1", 7), ("2", 7), ("3", 8))]
        return Message.new_method_return(asked, "a(susso)", [rows])
    if asked.member == "GetAll":
        assert asked.path in {"/s/c1", "/s/2"}
        about = {
            "Class": Variant("s", "greeter" if asked.path == "/s/c1" else "user"), "Type": Variant("s", "wayland"),
            "LockedHint": Variant("b", True), "IdleHint": Variant("b", False),
            "IdleSinceHint": Variant("t", 1_700_000_000_500_000),
        }
        return Message.new_method_return(asked, "a{sv}", [about])
    return None


@pytest.mark.usefixtures("address")
def test_the_sessions_of_a_user_are_read_and_no_others() -> None:
    async def scene() -> None:
        service = await serve("org.freedesktop.login1", login)
        bus = Bus("system")
        for _ in range(2):  # the connection is kept, and made anew
            assert await user_sessions(bus, 7) == [Session("2", False, True, False, 1_700_000_000.5)]
            bus.close()
        service.disconnect()

    run(scene())


@pytest.mark.attack("F07")
@pytest.mark.usefixtures("address")
def test_a_notification_shows_the_text_of_a_peer_as_text() -> None:
    shown: list[Any] = []

    def desktop(asked: Message) -> Message | None:
        if asked.member != "Notify":
            return None
        shown.append(asked.body)
        return Message.new_method_return(asked, "u", [1])

    async def scene() -> None:
        service = await serve("org.freedesktop.Notifications", desktop)
        bus = Bus("session")
        await notify(bus, "alice", "<b>now</b> & <a href='x'>here</a>")
        bus.close()
        service.disconnect()

    run(scene())
    ((app, _, _, summary, body, actions, _, _),) = shown
    assert (app, summary, actions) == ("zkc", "alice", [])
    assert body == "&lt;b&gt;now&lt;/b&gt; &amp; &lt;a href='x'&gt;here&lt;/a&gt;"


@pytest.mark.usefixtures("address")
def test_a_service_that_is_not_there_or_refuses_is_named() -> None:
    async def scene() -> None:
        bus = Bus("session")
        with pytest.raises(NoBusError, match=r"login1"):
            await user_sessions(bus, 7)

        def broken(asked: Message) -> Message | None:
            return Message.new_error(asked, "org.example.No", "no") if asked.member == "Notify" else None

        service = await serve("org.freedesktop.Notifications", broken)
        with pytest.raises(NoBusError, match=r"org\.example\.No"):
            await notify(bus, "alice", "")
        bus.close()
        service.disconnect()

    run(scene())


def test_a_bus_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for address in (f"unix:path={tmp_path}/none", "nonsense", ""):
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
        with pytest.raises(NoBusError, match="session bus"):
            asyncio.run(notify(Bus("session"), "alice", ""))
