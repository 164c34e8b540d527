"""The terminal's face without a terminal: keys go in, and what stands on the screen is text."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from textual.pilot import Pilot

from tests.support.waiting import DEADLINE
from zkc.ui.tui.app import Face


def screen(face: Face) -> str:
    """What stands on it, line by line."""
    strips = face.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


async def until(pilot: Pilot[Any], happens: Callable[[str], object]) -> str:
    """The screen, once ``happens`` says that it is so."""
    assert isinstance(pilot.app, Face)
    end = time.monotonic() + DEADLINE
    while not happens(shown := screen(pilot.app)):
        assert time.monotonic() < end, f"did not happen in time:\n{shown}"
        await pilot.pause(0.02)
    return shown


async def write(pilot: Pilot[Any], text: str) -> None:
    """A person types ``text``."""
    await pilot.press(*({" ": "space", "\n": "enter", ".": "full_stop", "/": "slash"}.get(each, each) for each in text))
