"""What holds for every test: markers that select, a small disk, and nothing left behind when a worker ends."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import hypothesis
import pytest

from tests.support.postgres import Postgres, postgres_server

SESSION = "PYTEST_ZKC_SESSION"
"""In the environment of every process that a test of this worker starts, and of what that one starts."""


def pytest_configure() -> None:
    os.environ[SESSION] = secrets.token_hex(8)
    # The user's own zkc and terminal must not show through, nor that the shell which started us keeps SIGINT from
    # what runs in its background: the programs that tests start inherit all of it.
    for name in [name for name in os.environ if name.startswith("ZKC_") or name in {"NO_COLOR", "COLUMNS", "LINES"}]:
        del os.environ[name]
    os.environ["TERM"] = "xterm"
    # A machine that is busy is no failure.
    hypothesis.settings.register_profile(
        "zkc", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("zkc")
    signal.signal(signal.SIGINT, signal.default_int_handler)


_SLOW: Final = re.compile(r"^tests/(system|attacks|cli|tui)/")
"""Folders whose files take longest: begun last, one of them would keep one worker busy when the others have ended."""


EVERYTHING: Final = pytest.StashKey[list[pytest.Item]]()
"""All tests of the project, also those that are not to run; absent where only some were collected."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if [config.rootpath / each for each in config.args] == [config.rootpath / "tests"]:
        config.stash[EVERYTHING] = list(items)
    items.sort(key=lambda item: not _SLOW.search(item.nodeid))
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, one for all tests of a worker that ask for it."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Every process that a test started has ended and every zmq context is closed, whatever the tests did."""
    yield
    left = _processes()
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    contexts = _open_contexts()
    assert not left, f"processes left behind: {list(left.values())}"
    assert not contexts, f"zmq contexts left open: {contexts}"


def _processes() -> dict[int, str]:
    """Process id -> command of each process that carries our mark, but ourselves."""
    mark = f"{SESSION}={os.environ[SESSION]}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(folder.name) != os.getpid() and mark in (folder / "environ").read_bytes().split(b"\0"):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def _open_contexts() -> list[str]:
    zmq = sys.modules.get("zmq")
    if zmq is None:
        return []
    gc.collect()
    # pyzmq keeps one of its own, for the buffers of messages that it sends without a copy, until the process ends.
    garbage = sys.modules.get("zmq.utils.garbage")
    its_own = None if garbage is None else garbage.gc._context
    return [
        repr(thing) for thing in gc.get_objects()
        if isinstance(thing, zmq.Context) and not thing.closed and thing is not its_own
    ]
