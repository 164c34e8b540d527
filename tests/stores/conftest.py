"""A client's home and its inbox; a disk that is soon full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.items import SetClock
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(bytes)``: a folder on a tmpfs of that size. Needs root."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", folder], check=True)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.resolve("client", str(tmp_path / "home")).prepare()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def inbox(home: Home, clock: SetClock) -> Iterator[Inbox]:
    with Inbox.open(home, clock=clock) as opened:
        yield opened
