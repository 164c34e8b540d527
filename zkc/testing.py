"""A coordinator and any number of clients, as real processes in a temporary folder, for other people's tests.

::

    from zkc.testing import Fleet

    def test_backup_arrives():
        with Fleet("alice", "bob") as fleet:
            fleet.client("alice").send("bob", b"hello")
            with fleet.client("bob").receive(wait=30) as item:
                assert item.read() == b"hello"

With pytest there is a fixture of the same (`zkc.pytest_plugin`): ``def test_it(zkc_fleet)`` calls
``zkc_fleet("alice", "bob")``. All traffic is on loopback; nothing is left behind, whatever a test does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, Literal, Self

import tomli

from zkc.client.control import AskStatus, ControlReply, StatusReply
from zkc.config.toml import to_toml
from zkc.env import SystemClock, SystemEntropy
from zkc.net.local_client import LocalClient
from zkc.net.local_frames import NoAnswer
from zkc.stores.files import write_private
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore

if TYPE_CHECKING:
    from zkc.api import SyncClient

READY_SECONDS: Final = 60.0
"""For each program to say that it is ready: ten times and more what a busy machine needs."""
END_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.01


@dataclass(frozen=True)
class Done:
    """What came of one command."""

    code: int
    out: bytes
    err: bytes

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout, or, where that carries the payload, on stderr."""
        for stream in (self.out, self.err):
            lines = stream.splitlines()
            if lines and all(line.startswith(b"{") for line in lines):
                return [json.loads(line) for line in lines]
        return []


class Program:
    """A long-running ``zkc`` process: ``coordinator run`` or ``daemon``."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log: Final = log
        self._errors: IO[bytes] = log.open("ab")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors, env=dict(environment)
        )
        self.endpoint = self.fingerprint = ""

    def wait_ready(self) -> Self:
        """Until its ready line; `RuntimeError` with its log if it ends before."""
        stdout = self.process.stdout
        if stdout is None:
            raise RuntimeError("its output is not ours")
        with _deadline(self.process, READY_SECONDS):
            words = stdout.readline().decode().split()
        if words[:1] != ["ready"]:
            self.kill()
            raise RuntimeError(f"it did not become ready: {self.log.read_text(errors='replace')[-2000:]}")
        self.endpoint, self.fingerprint = words[1], words[2]
        return self

    def terminate(self) -> int:
        """SIGTERM and its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL and its exit status."""
        return self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._errors.close()
        return code


class HeldPort:
    """A port of loopback that stays its program's while that is ended and started again: bound until `close`, and not
    listening, so that no other program is given it, and who connects meanwhile is refused."""

    def __init__(self) -> None:
        self._socket: Final = socket.socket()
        # What listens there says the same of itself: so it may bind beside this one.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.endpoint: Final = f"tcp://127.0.0.1:{self._socket.getsockname()[1]}"

    def close(self) -> None:
        self._socket.close()


class Fleet:
    """One coordinator and the clients of the given names, joined, with their daemons running and linked.

    ``coordinator`` and ``client`` are configuration values for their ``config.toml``, as ``{"section.key": value}``.
    """

    def __init__(
        self, *names: str, folder: Path | None = None, coordinator: Mapping[str, object] | None = None,
        client: Mapping[str, object] | None = None, daemons: bool = True,
    ) -> None:
        self._names = names or ("alice", "bob")
        self._made = folder is None
        self.folder: Final = folder or Path(tempfile.mkdtemp(prefix="zkc-fleet-"))
        self._coordinator_config = dict(coordinator or {})
        self._client_config = dict(client or {})
        self._daemons = daemons
        self._programs: dict[str, Program] = {}
        self._clients: dict[str, SyncClient] = {}
        self._making = threading.Lock()
        self._port: HeldPort | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process and remove the folder. Again: nothing."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        # Daemons first: their goodbye needs the coordinator.
        names = sorted(self._programs, key=lambda name: name == "coordinator")
        daemons = [self._programs[name] for name in names if name != "coordinator"]
        with ThreadPoolExecutor(len(daemons) or 1) as pool:
            list(pool.map(Program.terminate, daemons))
        if "coordinator" in self._programs:
            self._programs["coordinator"].terminate()
        self._programs.clear()
        if self._port is not None:
            self._port.close()
        if self._made:
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- parts ------------------------------------------------------------------------------------------------------

    def home(self, name: str) -> Path:
        """The home of a client, or of the ``coordinator``."""
        return self.folder / name

    def client(self, name: str) -> SyncClient:
        """The Python API on that client's home; closed with the fleet. Any thread."""
        with self._making:
            if name not in self._clients:
                from zkc.api import SyncClient

                self._clients[name] = SyncClient(self.home(name))
            return self._clients[name]

    def program(self, name: str) -> Program:
        """The running daemon of a client, or the ``coordinator``."""
        return self._programs[name]

    @property
    def coordinator(self) -> Program:
        return self._programs["coordinator"]

    def zkc(
        self, name: str, *words: str, stdin: bytes = b"", timeout: float = READY_SECONDS,
        env: Mapping[str, str] | None = None, cwd: Path | None = None,
    ) -> Done:
        """``zkc WORDS`` in that home, to its end."""
        done = subprocess.run(
            [*_ZKC, *words], input=stdin, capture_output=True, timeout=timeout, check=False,
            env=self.environment(name) | dict(env or {}), cwd=cwd or self.folder,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def popen(
        self, name: str, *words: str, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """``zkc WORDS`` in that home, running; the caller ends it."""
        own = self.environment(name) | dict(env or {})
        return subprocess.Popen([*_ZKC, *words], env=own, cwd=self.folder, **options)

    def environment(self, name: str) -> dict[str, str]:
        """That of a process of this client: ours without any ``ZKC_`` variable, and its home."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("ZKC_")}
        return own | {"ZKC_HOME": str(self.home(name))}

    # --- what can be done to them -----------------------------------------------------------------------------------

    def invite(self, name: str, kind: Literal["computer", "user"] = "computer") -> str:
        """An invitation for ``name``."""
        from zkc.coordinator import admin

        return admin.invite(Home.resolve("coordinator", str(self.home("coordinator"))), name, kind).invitation

    def join(self, name: str, kind: Literal["computer", "user"] = "computer") -> None:
        """Register a client's home; it has no daemon yet."""
        from zkc.client.join import join, read_invitation
        from zkc.config import load, save_client

        home = Home.resolve("client", str(self.home(name))).prepare()
        self.configure(name, self._client_config)
        config = load("client", home.config_file, {}).config
        with KeyStore.open(home) as store:
            joined = join(
                store, read_invitation(self.invite(name, kind)), config, clock=SystemClock(), entropy=SystemEntropy()
            )
        save_client(home.config_file, {"coordinator.endpoints": list(joined.endpoints)})

    def start_daemon(self, name: str) -> Program:
        """Start it and wait until it is linked."""
        program = self._spawn(name, "daemon").wait_ready()
        self.wait_linked(name)
        return program

    def start_relay(self, name: str, listen: str = "tcp://127.0.0.1:0") -> Program:
        """Start a client's home as a relay; the coordinator hears of it as soon as it is linked."""
        return self._spawn(name, "relay", "--listen", listen).wait_ready()

    def wait_linked(self, name: str) -> None:
        """Until the client's daemon has its link; `RuntimeError` after `READY_SECONDS`."""
        clock = SystemClock()
        end = clock.monotonic() + READY_SECONDS
        client: LocalClient[ControlReply] = LocalClient(
            Home.resolve("client", str(self.home(name))).socket_path(), ControlReply
        )
        while clock.monotonic() < end:
            with contextlib.suppress(NoAnswer):  # busy, and asked again
                reply = client.call(AskStatus())
                if isinstance(reply, StatusReply) and reply.linked:
                    return
            threading.Event().wait(_POLL_SECONDS)
        raise RuntimeError(f"{name} did not link: {self._programs[name].log.read_text(errors='replace')[-2000:]}")

    def start_coordinator(self) -> Program:
        """Start it, after the first time at the same port as before."""
        self._port = self._port or HeldPort()
        return self._spawn("coordinator", "coordinator", "run", "--listen", self._port.endpoint).wait_ready()

    def configure(self, name: str, values: Mapping[str, object]) -> None:
        """Put configuration values into a home's ``config.toml``; a running program reads them on SIGHUP."""
        if not values:
            return
        folder = self.home(name)
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / "config.toml"
        sections: dict[str, dict[str, object]] = tomli.loads(path.read_text()) if path.exists() else {}
        for key, value in values.items():
            section, _, word = key.partition(".")
            sections.setdefault(section, {})[word] = value
        lines = [
            f"[{section}]\n" + "".join(f"{word} = {to_toml(value)}\n" for word, value in words.items())
            for section, words in sections.items()
        ]
        write_private(path, "\n".join(lines).encode(), replace=True)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.configure("coordinator", self._coordinator_config)
        self.start_coordinator()
        for name in self._names:
            self.join(name)
        if self._daemons:
            with ThreadPoolExecutor(len(self._names)) as pool:
                list(pool.map(self.start_daemon, self._names))

    def _spawn(self, name: str, *words: str) -> Program:
        if name in self._programs:
            self._programs[name].kill()
        log = self.folder / f"{name}.log"
        program = self._programs[name] = Program([*_ZKC, *words], self.environment(name), log)
        return program


_ZKC: Final = (sys.executable, "-m", "zkc")


@contextlib.contextmanager
def _deadline(process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    """Kills ``process`` if the block takes longer, which ends a read of its output."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
