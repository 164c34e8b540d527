"""What a person sees, as files in ``snapshots``: a change of the face shows in a diff that can be read.

To draw them anew: ``SNAPSHOTS=new pytest -n 0 tests/tui/test_snapshots.py``, and look at ``git diff``.

They are plain text, not the SVG of ``pytest-textual-snapshot``: that is one more dependency, its pictures change with
every version of Textual, and what changed in one can not be told from a diff. Colours mean nothing here by themselves
(`zkc.ui.tui.rows`); what they look like, ``docs/pictures`` shows.
"""

from __future__ import annotations

import asyncio
import os
import unicodedata
from difflib import unified_diff
from pathlib import Path

import pytest
from textual.pilot import Pilot

from tests.support.faces import screen
from tests.support.items import NOW
from tests.support.still import EVIL, StillDesk, item, pending, still_face
from tests.support.waiting import DEADLINE

FOLDER = Path(__file__).parent / "snapshots"
RENEW = os.environ.get("SNAPSHOTS") == "new"
SCENES: dict[str, tuple[str, ...]] = {
    "inbox": (), "pending": ("2",), "sent": ("3",), "queue": ("4",), "peers": ("5",), "transfers": ("6",),
    "reading": ("down",), "help": ("question_mark",), "compose": ("c", *"al"), "compose-nobody": ("c", "f2"),
    "reply": ("r", *"yes"), "forward": ("f",), "save": ("s",), "remove": ("d",), "accept": ("2", "a", *"1234"),
    "refuse": ("2", "x", *"no"),
}
"""By name: the keys that lead there."""
SIZES: list[tuple[str, tuple[int, int]]] = [
    *((name, (80, 24)) for name in SCENES),
    *((name, size) for size in ((20, 5), (40, 12), (120, 40)) for name in ("inbox", "compose", "accept")),
]


def drawn(desk: StillDesk, keys: tuple[str, ...], size: tuple[int, int]) -> str:
    async def scene() -> str:
        face = still_face(desk)
        async with face.run_test(size=size) as pilot:
            for key in keys:
                await settled(pilot)
                await pilot.press(key)
            await settled(pilot)
            return screen(face)

    return asyncio.run(asyncio.wait_for(scene(), DEADLINE))


async def settled(pilot: Pilot[None]) -> None:
    """Nothing is read any more; a question may wait for its answer."""
    face = pilot.app

    def busy() -> bool:
        asked = len(face.screen_stack) > 1
        return any(not each.is_finished and not (asked and each.group == "do") for each in face.workers)

    await pilot.pause()
    while busy():
        await pilot.pause(0.005)
    await pilot.pause()


def held(name: str, shown: str) -> None:
    path = FOLDER / f"{name}.txt"
    if RENEW:
        path.write_text(f"{shown}\n")
    wanted = path.read_text() if path.exists() else ""
    changed = "\n".join(unified_diff(wanted.splitlines(), shown.splitlines(), path.name, "what is seen", lineterm=""))
    assert not changed, f"{changed}\nIf that is as it should be, the top of this module says how to draw it anew."


@pytest.mark.claims("F3")
@pytest.mark.parametrize(("name", "size"), SIZES)
def test_the_face_looks_as_it_did(name: str, size: tuple[int, int]) -> None:
    held(f"{name}-{size[0]}x{size[1]}", drawn(StillDesk(), SCENES[name], size))


@pytest.mark.attack("F07")
@pytest.mark.parametrize(("name", "keys"), [("evil", ()), ("evil-pending", ("2",)), ("evil-accept", ("2", "a"))])
def test_what_a_peer_wrote_stays_in_its_place(name: str, keys: tuple[str, ...]) -> None:
    desk = StillDesk()
    desk.letters[0] = (item("a1", EVIL, EVIL, note=EVIL, kind="message", asked_by=EVIL, received=NOW), f"{EVIL}\n{EVIL}")
    desk.waiting[0] = pending("d4", EVIL, EVIL, note=EVIL)
    shown = drawn(desk, keys, (80, 24))
    assert not [each for each in shown if unicodedata.category(each).startswith("C") and each != "\n"]
    held(f"{name}-80x24", shown)
