"""Two clients that nobody can connect to, and a relay between them: real processes, and what goes wrong with them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from blake3 import blake3

from tests.support.looking import inbox_of
from tests.support.ports import two_ports
from tests.support.proxy import TcpProxy
from tests.support.waiting import DEADLINE, wait_until
from zkc.testing import Fleet

MIB: Final = 1 << 20
OUTSIDE: Final = "127.0.0.2"
"""Where both ends reach the relay, by way of a proxy."""


class Relayed:
    """alice, bob and carol, none of whom can be connected to; ``relay1`` serves the first two."""

    def __init__(self) -> None:
        self.port = two_ports()[0]
        self.fleet = Fleet(
            "alice", "bob", "carol", "relay1", "relay2", daemons=False,
            coordinator={"relay.clients": ["relay1"], "relay.serves": ["alice", "bob"]},
            client={"transfer.listen": "off", "transfer.advertise": [OUTSIDE], "log.level": "debug"},
        )

    def __enter__(self) -> Relayed:
        self.fleet.__enter__()
        self.fleet.start_daemon("bob")
        self.start()
        self.proxy = TcpProxy(("127.0.0.1", self.port), listen=OUTSIDE, port=self.port)
        return self

    def __exit__(self, *what: Any) -> None:
        self.fleet.__exit__(*what)
        self.proxy.close()

    def start(self) -> None:
        self.fleet.start_relay("relay1", f"tcp://127.0.0.1:{self.port}")

    @contextlib.contextmanager
    def sending(self, *words: str, sender: str = "alice", env: dict[str, str] | None = None) -> Iterator[Any]:
        with subprocess.Popen(
            [sys.executable, "-m", "zkc", "send", "bob", "--json", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.fleet.environment(sender) | (env or {}),
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def begun(self, size: int) -> None:
        wait_until(lambda: any(item.size >= size for item in inbox_of(self.fleet.home("bob"))[1]))

    def arrived(self, content: bytes) -> None:
        with self.fleet.client("bob").receive(wait=DEADLINE) as item:
            assert item.item.digest == blake3(content).digest()
        assert inbox_of(self.fleet.home("bob")) == ([], [])


@pytest.fixture(scope="module")
def relayed() -> Iterator[Relayed]:
    with Relayed() as made:
        yield made


def a_file(folder: Path, size: int) -> tuple[Path, bytes]:
    path, content = folder / "secret-plan.bin", os.urandom(size)
    path.write_bytes(content)
    return path, content


def ended(process: Any, code: int = 0) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=4 * DEADLINE)
    assert process.returncode == code, (process.returncode, out, err)
    return [json.loads(line) for line in out.splitlines()]


def test_a_relay_brings_two_ends_together_and_sees_ciphertext_alone(relayed: Relayed, tmp_path: Path) -> None:
    """Neither names nor content; the path is told at the sender."""
    path, content = a_file(tmp_path, 4 * MIB)
    with relayed.sending(str(path), "--note", "burn after reading", "--wait", "30s") as process:
        events = ended(process)
    assert next(event for event in events if event["event"] == "granted")["path"] == "relay relay1"
    relayed.arrived(content)
    wait_until(lambda: ("relay", "bob", "relay1", 0) in [
        (each["kind"], each["from"], each["to"], each["code"])
        for each in relayed.fleet.zkc("relay1", "audit", "--json").events
    ])  # fmt: skip
    seen = relayed.proxy.recorded()
    assert len(seen) > len(content)
    pieces = (content[at : at + 16] for at in range(0, MIB, 999))
    for hidden in (b"secret-plan", b"burn after", b"alice", *pieces):
        assert hidden not in seen


def test_a_relay_that_is_killed_and_comes_back_costs_no_byte_and_no_daemon(relayed: Relayed, tmp_path: Path) -> None:
    """It has forgotten every meeting: the ends make a new one, as soon as it has said that it is there."""
    path, content = a_file(tmp_path, 48 * MIB)
    relayed.proxy.delay(0.002)
    with relayed.sending(str(path)) as process:
        relayed.begun(4 * MIB)
        relayed.fleet.program("relay1").kill()
        relayed.proxy.delay(0)
        relayed.start()
        events = ended(process)
    granted = [event for event in events if event["event"] == "granted"]
    assert granted[-1]["resumed_from"] >= 4 * MIB
    assert relayed.fleet.program("bob").process.poll() is None
    relayed.arrived(content)


def test_a_relay_that_does_not_come_back_ends_it_resumable(relayed: Relayed, tmp_path: Path) -> None:
    path, content = a_file(tmp_path, 48 * MIB)
    relayed.proxy.delay(0.002)
    with relayed.sending(str(path), env={"ZKC_TRANSFER_PATIENCE": "1s"}) as process:
        relayed.begun(4 * MIB)
        relayed.fleet.program("relay1").kill()
        error = ended(process, 31)[-1]
    assert (error["reason"], error["code"]) == ("interrupted", 31)
    relayed.proxy.delay(0)
    with relayed.sending(str(path)) as process:
        assert ended(process, 25)[-1]["detail"] == "no-relay"
    with relayed.sending(str(path), "--wait", "1m") as process:
        relayed.start()
        assert next(event for event in ended(process) if event["event"] == "granted")["resumed_from"] >= 4 * MIB
    relayed.arrived(content)


def test_who_is_not_served_is_told_so(relayed: Relayed) -> None:
    with relayed.sending("-m", "hello", sender="carol") as process:
        assert ended(process, 25)[-1]["detail"] == "unreachable"


@pytest.mark.attack("D11")
def test_strangers_at_a_relay_hold_up_nobody(relayed: Relayed, tmp_path: Path) -> None:
    """Garbage, half handshakes, and names by the thousand, none of which leads anywhere."""
    path, content = a_file(tmp_path, 8 * MIB)
    where = ("127.0.0.1", relayed.port)
    with contextlib.ExitStack() as strangers:
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x05", b"\x05\x01\x00", os.urandom(300)) * 50:
            strangers.enter_context(socket.create_connection(where)).sendall(said)
        with relayed.sending(str(path), "--wait", "30s") as process:
            for number in range(1000):
                with socket.create_connection(where) as guess, contextlib.suppress(OSError):
                    name = f"{number:032x}-s".encode()
                    guess.sendall(b"\x05\x01\x00\x05\x01\x00\x03" + bytes([len(name)]) + name + b"\x00\x01")
            ended(process)
    relayed.arrived(content)
    assert relayed.fleet.program("relay1").process.poll() is None


def test_a_client_that_is_not_named_as_a_relay_is_told_so_and_given_nothing(relayed: Relayed) -> None:
    program = relayed.fleet.start_relay("relay2")
    assert program.endpoint.startswith(f"tcp://{OUTSIDE}:")
    wait_until(lambda: "not-a-relay" in program.log.read_text())
    assert program.terminate() == 0


def test_nobody_can_send_to_a_relay(relayed: Relayed) -> None:
    done = relayed.fleet.zkc("alice", "send", "relay1", "-m", "hello", "--json")
    assert (done.code, done.events[-1]["detail"]) == (25, "accept")


def test_a_second_program_in_a_relays_home_is_refused(relayed: Relayed) -> None:
    assert relayed.fleet.zkc("relay1", "relay").code == 34
    assert relayed.fleet.zkc("relay1", "daemon").code == 34
