"""A client's home and its inbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.items import SetClock
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox


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
