"""The pytest fixture `zkc_fleet`: fleets for tests, ended with the test. Loaded by pytest where zkc is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from zkc.testing import Fleet


@pytest.fixture
def zkc_fleet() -> Iterator[Callable[..., Fleet]]:
    """Makes fleets that end with the test: ``zkc_fleet("alice", "bob")`` takes what `Fleet` takes."""
    from zkc.testing import Fleet

    with contextlib.ExitStack() as fleets:

        def make(*names: str, **options: Any) -> Fleet:
            return fleets.enter_context(Fleet(*names, **options))

        yield make
