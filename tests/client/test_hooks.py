"""Hooks: which command runs, what it learns, and what bounds it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from tests.support.env import FixedClock
from tests.support.waiting import DEADLINE, until, wait_until
from zkc.client.happenings import Arrived, Asked
from zkc.client.hooks import Hooks
from zkc.config.keys import ClientConfig, HooksSection
from zkc.logs import Repeats
from zkc.net.desktop import Bus

TELL = """
import json, os, sys
with open(sys.argv[1], "a") as out:
    json.dump([sys.argv[1:], dict(os.environ)], out)
os.rename(out.name, out.name + ".done")
"""


class Desk:
    """Hooks, and the log of what they do."""

    def __init__(self, **hooks: Any) -> None:
        self.config = ClientConfig(hooks=HooksSection(notify="none", **hooks))
        self.hooks = Hooks(lambda: self.config, Repeats(FixedClock().monotonic), Bus("session"))


def item(name: str = "report.pdf", note: str = "") -> Arrived:
    return Arrived(
        "0123456789abcdef", "alice", name, 5, f"blake3:{'01' * 32}", note, "sender", 0.0, "/nowhere", None, "file",
        b"x".hex() * 16, None, None,
    )


def pending() -> Asked:
    return Asked("ab" * 16, "alice", None, None, "", "sender", 0.0, None, True, "online", 60.0, None, None, None)


def play(desk: Desk, scene: Coroutine[Any, Any, None]) -> list[Any]:
    """``scene``, the end of the hooks, and what they logged."""

    async def whole() -> None:
        try:
            await asyncio.wait_for(scene, DEADLINE)
        finally:
            await desk.hooks.close()

    structlog.reset_defaults()
    with capture_logs() as told:
        desk.hooks._log = structlog.get_logger()
        asyncio.run(whole())
    return [each for each in told if each["event"].startswith("hook")]


@pytest.mark.attack("F07")
def test_the_words_are_the_command_and_what_arrived_is_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZKC_PIN", "4711")
    out = tmp_path / "out; touch $HOME"
    desk = Desk(arrived=(sys.executable, "-c", TELL, str(out), "$(id)"))

    async def scene() -> None:
        desk.hooks.hear(item("../../etc/passwd", "$(reboot)\0\x1b[2J"))
        await until(Path(f"{out}.done").exists)

    play(desk, scene())
    words, environment = json.loads(Path(f"{out}.done").read_text())
    assert words == [str(out), "$(id)"]
    told = {name: value for name, value in environment.items() if name.startswith("ZKC_") and name != "ZKC_HOME"}
    assert told == {
        "ZKC_EVENT": "arrived", "ZKC_ITEM": "0123456789abcdef", "ZKC_SENDER": "alice", "ZKC_NAME": told["ZKC_NAME"],
        "ZKC_NOTE": "$(reboot)\x1b[2J", "ZKC_DIGEST": f"blake3:{'01' * 32}", "ZKC_TRANSFER": b"x".hex() * 16,
        "ZKC_KEY_SOURCE": "sender", "ZKC_ASKED_BY": "",
    }
    assert "/" not in told["ZKC_NAME"]


def test_a_notification_says_who_asked_for_it_and_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    async def notify(_bus: Bus, summary: str, _text: str) -> None:
        shown.append(summary)

    monkeypatch.setattr("zkc.client.hooks.notify", notify)
    desk = Desk()
    desk.config = ClientConfig(hooks=HooksSection(notify="all"))

    async def scene() -> None:
        desk.hooks.hear(item())
        desk.hooks.hear(msgspec.structs.replace(item(), asked_by="carol"))
        desk.hooks.hear(msgspec.structs.replace(item(), asked_by="\x1b[2J"))  # of a damaged index
        desk.hooks.hear(msgspec.structs.replace(pending(), asked_by="carol"))
        await until(lambda: len(shown) == 4)

    play(desk, scene())
    assert sorted(shown) == sorted([
        "report.pdf from alice", "report.pdf from alice, asked by carol", "report.pdf from alice, asked by \\x1b[2J",
        "alice asks to send a transfer, asked by carol: zkc accept abababab",
    ])  # fmt: skip


def test_a_person_that_is_asked_has_a_command_of_his_own(tmp_path: Path) -> None:
    desk = Desk(asked=(sys.executable, "-c", TELL, str(tmp_path / "out")))

    async def scene() -> None:
        desk.hooks.hear(item())
        desk.hooks.hear(pending())
        await until((tmp_path / "out.done").exists)

    play(desk, scene())
    _, environment = json.loads((tmp_path / "out.done").read_text())
    assert (environment["ZKC_EVENT"], environment["ZKC_ITEM"], environment["ZKC_NAME"]) == ("asked", "ab" * 16, "")


def test_a_command_that_fails_or_is_none_is_in_the_log(tmp_path: Path) -> None:
    for words, about in (
        ((sys.executable, "-c", "raise SystemExit(3)"), {"status": 3}),
        ((str(tmp_path / "none"),), {"why": "No such file or directory"}),
    ):
        desk = Desk(arrived=words)

        async def scene(desk: Desk = desk) -> None:
            desk.hooks.hear(item())
            await until(lambda: not desk.hooks._tasks)

        (told,) = play(desk, scene())
        assert told["event"] == "hook-failed"
        assert about.items() <= told.items()


def test_a_command_that_does_not_end_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    script = f"sleep 1000 & echo $! >{started}.new; mv {started}.new {started}; wait"
    desk = Desk(arrived=("/bin/sh", "-c", script))

    async def scene() -> None:
        desk.hooks.hear(item())
        await until(started.exists)

    play(desk, scene())  # its end is the daemon's
    wait_until(lambda: _ends(int(started.read_text())))

    async def late() -> None:
        desk.hooks.hear(item())
        await until(lambda: not desk.hooks._tasks)

    desk = Desk(arrived=("/bin/sleep", "1000"), timeout=0.01)
    (told,) = play(desk, late())
    assert (told["event"], told["why"]) == ("hook-failed", "timeout")


def _ends(pid: int) -> bool:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text()
        return text.rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.mark.attack("H14")
def test_a_thousand_arrivals_run_four_commands_and_are_dropped_beyond_what_may_wait(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    desk = Desk(arrived=("/bin/sh", "-c", f"echo $$ >{tmp_path}/$$; read line <{gate}"))

    async def scene() -> None:
        for _ in range(1000):
            desk.hooks.hear(item())
        await until(lambda: len(list(tmp_path.iterdir())) == 1 + 4)
        assert len(desk.hooks._tasks) == 256

    told = play(desk, scene())
    assert {each["event"] for each in told} == {"hook-dropped"}
    assert len(list(tmp_path.iterdir())) == 1 + 4
