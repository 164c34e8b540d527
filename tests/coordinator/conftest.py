"""One running coordinator for the tests of a module that do not hurt it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.coordinator import RunningCoordinator, coordinator_in


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCoordinator]:
    with coordinator_in(tmp_path_factory.mktemp("running")) as coordinator:
        yield coordinator

