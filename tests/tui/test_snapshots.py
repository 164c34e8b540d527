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
from collections.abc import Iterable
from difflib import unified_diff
from pathlib import Path

import pytest
from textual.pilot import Pilot

from tests.support.faces import screen
from tests.support.still import EVIL, StillDesk, item, pending, still_face
from tests.support.waiting import DEADLINE
from zkc.ui.tui.dialogs import Draft

FOLDER = Path(__file__).parent / "snapshots"
RENEW = os.environ.get("SNAPSHOTS") == "new"
SCENES: dict[str, tuple[str, ...]] = {
    "inbox": ("1",), "pending": ("2",), "sent": ("3",), "queue": ("4",), "peers": ("5",), "transfers": ("6",),
    "another": ("1", "j"), "reading": ("1", "k", "enter"), "help": ("question_mark",), "compose": ("c", "a"),
    "nobody": ("c", "tab", "x", "f2"), "reply": ("r", "y"), "forward": ("f",), "save": ("s",),
    "remove": ("d",), "verify": ("5", "v"), "receipt": ("3", "p"), "find": ("slash",),
    "accept": ("2", "a", "1", "2"), "refuse": ("2", "x", "n"),
}
"""By name: the keys that lead there from the one before; what lies over the lists, Escape takes away."""
OTHERWISE = ("inbox", "reading", "compose", "accept")
"""What is looked at in other sizes too."""


def drawn(desk: StillDesk, scenes: Iterable[str], size: tuple[int, int]) -> dict[str, str]:
    async def play() -> dict[str, str]:
        face, shown = still_face(desk), {}
        async with face.run_test(size=size) as pilot:
            await settled(pilot)
            for name in scenes:
                for key in SCENES[name]:
                    await pilot.press(key)
                    await settled(pilot)
                shown[name] = screen(face)
                if len(face.screen_stack) > 1:
                    await pilot.press("escape")
                face._draft = Draft()
        return shown

    return asyncio.run(asyncio.wait_for(play(), DEADLINE))


async def settled(pilot: Pilot[None]) -> None:
    """Nothing is read any more; a question may wait for its answer."""
    face = pilot.app

    def busy() -> bool:
        asked = len(face.screen_stack) > 1
        return any(not each.is_finished and not (asked and each.group == "do") for each in face.workers)

    while busy():
        await pilot.pause(0.005)
    await pilot.pause()


def held(size: tuple[int, int], shown: dict[str, str], before: str = "") -> None:
    changed = []
    for name, now in shown.items():
        path = FOLDER / f"{before}{name}-{size[0]}x{size[1]}.txt"
        if RENEW:
            path.write_text(f"{now}\n")
        wanted = path.read_text().removesuffix("\n") if path.exists() else ""
        changed += unified_diff(wanted.split("\n"), now.split("\n"), path.name, "what is seen", lineterm="")
    told = "\n".join(changed)
    assert not told, f"{told}\nIf that is as it should be, the top of this module says how to draw it anew."


@pytest.mark.claims("F3")
@pytest.mark.parametrize(
    ("size", "scenes"),
    [((80, 24), tuple(SCENES)), ((20, 5), OTHERWISE), ((40, 12), OTHERWISE), ((120, 40), OTHERWISE)],
)
def test_it_looks_as_it_did(size: tuple[int, int], scenes: tuple[str, ...]) -> None:
    held(size, drawn(StillDesk(), scenes, size))


@pytest.mark.attack("F07")
def test_what_a_peer_wrote_stays_in_its_place() -> None:
    desk, size = StillDesk(), (80, 24)
    letter = item("a1", EVIL, EVIL, note=EVIL, kind="message", asked_by=EVIL)
    desk.letters[0] = (letter, f"{EVIL}\n{EVIL}")
    desk.waiting[0] = pending("d4", EVIL, EVIL, note=EVIL)
    shown = drawn(desk, ("inbox", "reading", "forward", "reply", "accept"), size)
    for text in shown.values():
        assert not [each for each in text if unicodedata.category(each).startswith("C") and each != "\n"]
    held(size, shown, "evil-")


def test_every_snapshot_is_one_of_a_scene() -> None:
    names = {path.name.removeprefix("evil-").rpartition("-")[0] for path in FOLDER.glob("*.txt")}
    assert names <= SCENES.keys()
