"""``pictures.py FOLDER``: the terminal's face as SVG, over a fleet of real daemons on loopback."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import closing
from pathlib import Path

from textual.pilot import Pilot

from zkc.config import load
from zkc.env import SystemClock
from zkc.testing import Fleet
from zkc.ui.tui.app import Face
from zkc.ui.tui.desk import Desk
from zkc.ui.tui.run import changes

_LETTER = "Hi Bob,\n\nthe scans of June are on their way, 40 GB.\nCould you look at the third folder first?\n\nAlice"


async def draw(fleet: Fleet, folder: Path) -> None:
    home, clock = fleet.home("bob"), SystemClock()
    config = load("client", home / "config.toml", {}).config
    with closing(Desk(str(home), config, clock)) as desk:
        face = Face(desk, lambda: changes(desk, clock), time.monotonic)
        async with face.run_test(size=(80, 24)) as pilot:
            await settled(pilot)
            face.save_screenshot("ui-inbox.svg", str(folder))
            await pilot.press("5")
            await settled(pilot)
            face.save_screenshot("ui-peers.svg", str(folder))
            await pilot.press("c")
            await settled(pilot)
            face.save_screenshot("ui-compose.svg", str(folder))


async def settled(pilot: Pilot[None]) -> None:
    """Once nothing is read any more."""
    for _ in range(20):
        await pilot.pause(0.1)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with Fleet("alice", "bob", "carol", "lab-3") as fleet:
        assert fleet.zkc("bob", "verify", "alice", "--confirm").code == 0
        assert fleet.zkc("lab-3", "send", "bob", "--name", "run-0417.csv", stdin=b"1,2\n" * 80_000).code == 0
        assert fleet.zkc("carol", "send", "bob", "--name", "minutes.pdf", stdin=bytes(214_000)).code == 0
        assert fleet.zkc("alice", "send", "bob", "-m", _LETTER).code == 0
        asyncio.run(draw(fleet, folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
