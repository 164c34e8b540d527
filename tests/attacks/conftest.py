"""A fleet with a lying coordinator, and the bystander who must never notice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.support.evil_fleet import EvilFleet


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvilFleet]:
    """alice, bob and carol, each with a daemon; alice has pinned bob and carol, both have pinned her."""
    folder = tmp_path_factory.mktemp("evil")
    with EvilFleet("alice", "bob", "carol", folder=folder) as fleet:
        for recipient in ("bob", "carol"):
            done = fleet.send("alice", recipient, "hello")
            assert done.code == 0, done
        yield fleet
    shutil.rmtree(folder)


@pytest.fixture
def fleet(running: EvilFleet) -> Iterator[EvilFleet]:
    """`running` with nothing but the truth told so far; after the lies of the test, bob still delivers to carol."""
    running.evil.lie("truth")
    yield running
    running.evil.lie("truth")
    before = len(running.texts("carol"))
    running.client("bob").send("carol", b"of a bystander", timeout=60)
    assert running.texts("carol")[before:] == [b"of a bystander"]
