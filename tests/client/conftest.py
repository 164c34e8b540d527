from __future__ import annotations

from pathlib import Path

import pytest

from zkc.stores.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.resolve("client", str(tmp_path / "home")).prepare()
