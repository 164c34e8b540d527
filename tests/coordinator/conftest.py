"""One running coordinator for the tests of a module that do not hurt it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.coordinator import RunningCoordinator, coordinator_in
from tests.support.waiting import DEADLINE
from zkc.coordinator import admin


@pytest.fixture(scope="session", autouse=True)
def patient() -> Iterator[None]:
    """A coordinator that is busy is waited for: for `admin` nobody is online where it does not answer in time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admin, "_ANSWER_SECONDS", DEADLINE)
        yield


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCoordinator]:
    with coordinator_in(tmp_path_factory.mktemp("running")) as coordinator:
        yield coordinator

