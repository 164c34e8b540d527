"""The parties of `tests.support.parties`, for each suite."""

from __future__ import annotations

import pytest

from tests.support.parties import SUITE_NAMES, World, world


@pytest.fixture(scope="session", params=SUITE_NAMES)
def each_world(request: pytest.FixtureRequest) -> World:
    """Everyone, with each suite."""
    return world(request.param)


@pytest.fixture(scope="session", params=["hybrid", "x25519"])
def quick_world(request: pytest.FixtureRequest) -> World:
    """Everyone, with each suite whose keys are made at once: for what tries hundreds of damaged messages."""
    return world(request.param)


@pytest.fixture(scope="session")
def default_world() -> World:
    """Everyone, with the suite that is the default."""
    return world("hybrid")
