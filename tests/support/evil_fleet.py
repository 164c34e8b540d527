"""A fleet of real processes whose coordinator lies on command, watched from outside."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from tests.support.evil_coordinator import EvilCoordinator
from tests.support.program import TOP
from tests.support.proxy import TcpProxy
from zkc.coordinator import admin
from zkc.net.sockets import split_endpoint
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore
from zkc.testing import Done, Fleet, Program

LOOPBACK: Final = "127.0.0.1"
_PORTS_EACH: Final = 96
_LISTENING: Final = "0A"


class EvilFleet(Fleet):
    """Clients as `zkc.testing.Fleet` has them; all their control traffic passes a proxy, and then a lying coordinator.

    Each daemon receives at ports of its own range, so that `data_connections` tells whether they were ever used.
    ``both``: configuration of the coordinator and of the clients.
    """

    def __init__(self, *names: str, folder: Path, both: Mapping[str, object] | None = None) -> None:
        # Keys of the coordinator's making are allowed everywhere: what keeps them out is that nobody asked for them.
        both = {"transfer.key_sources": ["sender", "coordinator"]} | dict(both or {})
        super().__init__(*names, folder=folder, coordinator=both, client=both | {"inbox.accept": "all"})
        self._control = folder / "evil.sock"
        self._ports: dict[str, range] = {}
        self.proxy: TcpProxy
        self.evil: EvilCoordinator

    def close(self) -> None:
        with contextlib.suppress(AttributeError, OSError, AssertionError):
            self.evil.lie("truth")
        super().close()
        for part in ("evil", "proxy"):
            with contextlib.suppress(AttributeError):
                getattr(self, part).close()

    def environment(self, name: str) -> dict[str, str]:
        return super().environment(name) | {"PYTHONPATH": str(TOP)}

    def start_coordinator(self) -> Program:
        program = self._spawn_coordinator()
        self.proxy = TcpProxy(split_endpoint(program.endpoint))
        return program

    def restart_coordinator(self) -> None:
        """Another process for one that was killed, behind the same proxy."""
        self._programs["coordinator"].kill()
        self.evil.close()
        self.proxy.target = split_endpoint(self._spawn_coordinator().endpoint)

    def _spawn_coordinator(self) -> Program:
        command = [
            sys.executable, "-m", "tests.support.evil_coordinator", "--home", str(self.home("coordinator")),
            "--control", str(self._control),
        ]
        log = self.folder / "coordinator.log"
        program = self._programs["coordinator"] = Program(command, self.environment("coordinator"), log)
        program.wait_ready()
        self.evil = EvilCoordinator(self._control)
        return program

    def invite(self, name: str, kind: Literal["computer", "user"] = "computer") -> str:
        home = Home.resolve("coordinator", str(self.home("coordinator")))
        return admin.invite(home, name, kind, endpoints=[self.proxy.endpoint]).invitation

    def join(self, name: str, kind: Literal["computer", "user"] = "computer") -> None:
        ports = self._ports[name] = _free_range()
        self._client_config["transfer.listen"] = f"tcp://{LOOPBACK}:{ports[0]}-{ports[-1]}"
        super().join(name, kind)

    # --- what is seen from outside ------------------------------------------------------------------------------------

    def send(self, name: str, recipient: str, text: str, *words: str) -> Done:
        """``zkc send`` of a message, to its end."""
        return self.zkc(name, "send", recipient, "-m", text, "--json", "--timeout", "30s", *words)

    def texts(self, name: str) -> list[bytes]:
        """The payloads in the inbox, oldest first."""
        return [Path(item.path).read_bytes() for item in self.client(name).items()]

    def peer(self, name: str, other: str) -> dict[str, Any]:
        """What ``name`` knows of ``other``."""
        return next(row for row in self.zkc(name, "peers", "--json").events if row["name"] == other)

    def pin(self, name: str, other: str) -> tuple[str, str] | None:
        """Key and alarm that ``name`` has on its disk for ``other``."""
        with KeyStore.open(Home.resolve("client", str(self.home(name)))) as store:
            pin = store.pin(other)
        return None if pin is None else (pin.fingerprint.hex(), pin.alarm.hex())

    def wire_marks(self) -> list[tuple[int, int]]:
        """How much each connection before the coordinator has carried so far."""
        return [(len(each.up), len(each.down)) for each in list(self.proxy.connections)]

    def wire_since(self, marks: list[tuple[int, int]]) -> bytes:
        """What they, and newer ones, have carried since."""
        connections = list(self.proxy.connections)
        marks = marks + [(0, 0)] * (len(connections) - len(marks))
        return b"".join(
            bytes(each.up[up:]) + bytes(each.down[down:]) for each, (up, down) in zip(connections, marks, strict=True)
        )

    def data_connections(self, name: str) -> set[tuple[str, str]]:
        """Every TCP connection, standing or just ended, with one of the ports at which ``name`` receives.

        An ended one is seen for a minute (TIME_WAIT), so a single look afterwards is enough.
        """
        ports = {f"{port:04X}" for port in self._ports[name]}
        found = set()
        for table in ("tcp", "tcp6"):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                local, remote, state = line.split()[1:4]
                if state != _LISTENING and ports & {local.rpartition(":")[2], remote.rpartition(":")[2]}:
                    found.add((local, remote))
        return found


@functools.cache
def _starts() -> Iterator[int]:
    """Where ranges begin: below the system's own ports, each worker elsewhere."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    room = range(12000, min(lowest, 32000) - _PORTS_EACH, _PORTS_EACH)
    first = os.getpid() % len(room)
    return iter([*room[first:], *room[:first]])


_RESERVED: Final[list[socket.socket]] = []
"""Held to the end of the process: the first port of a range that was handed out tells other processes that it is."""


def _free_range() -> range:
    """Ports that nobody has: each range is handed out once, to one process."""
    for start in _starts():
        with contextlib.ExitStack() as taken, contextlib.suppress(OSError):
            reservation = taken.enter_context(socket.create_server((LOOPBACK, start)))
            ports = range(start + 1, start + _PORTS_EACH)
            for port in ports:
                taken.enter_context(socket.create_server((LOOPBACK, port)))
            _RESERVED.append(reservation.dup())
            return ports
    raise RuntimeError("no free ports")


def error_of(done: Done) -> dict[str, Any]:
    """The error object with which a command ended, told as the contract has it: one object, its code, no traceback."""
    assert b"Traceback" not in done.out + done.err, done
    events = done.events
    assert [event["event"] for event in events].count("error") == 1, done
    assert not any(event["event"] in ("granted", "progress", "delivered") for event in events), done
    error = events[-1]
    assert error["event"] == "error", done
    assert error["code"] == done.code, done
    return error
