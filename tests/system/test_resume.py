"""A transfer goes on after every interruption: cut links, killed programs, coordinators that are away."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from blake3 import blake3

from tests.support.held_send import HELD, SIZE, held_send
from tests.support.looking import inbox_of, payloads, stopped
from tests.support.ports import two_ports
from tests.support.proxy import TcpProxy
from tests.support.waiting import DEADLINE, wait_until
from zkc.testing import Fleet

MIB: Final = 1 << 20
BESIDE: Final = "127.0.0.2"
"""Where others reach bob, by way of two proxies."""


class Wire:
    """The two connections of bob's transfers, in the hands of the test."""

    def __init__(self, ports: tuple[int, int]) -> None:
        self.proxies = [TcpProxy(("127.0.0.1", port), listen=BESIDE, port=port) for port in ports]

    def cut(self) -> int:
        return sum(proxy.cut() for proxy in self.proxies)

    def slow(self, seconds: float) -> None:
        """How long each piece of at most 64 KiB is held."""
        for proxy in self.proxies:
            proxy.delay(seconds)

    def stall(self) -> None:
        """Nothing passes, and nothing is closed."""
        for proxy in self.proxies:
            proxy.stall()

    def go_on(self) -> None:
        for proxy in self.proxies:
            proxy.resume()

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    return two_ports()


@pytest.fixture(scope="module")
def fleet(ports: tuple[int, int]) -> Iterator[Fleet]:
    client = {
        "transfer.listen": f"tcp://127.0.0.1:{ports[0]}-{ports[1]}", "transfer.advertise": [BESIDE],
        "transfer.patience": "60s", "log.level": "debug",
    }
    with Fleet("alice", "bob", client=client) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def wire(ports: tuple[int, int]) -> Iterator[Wire]:
    made = Wire(ports)
    yield made
    made.close()


@contextlib.contextmanager
def sending(fleet: Fleet, *words: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = fleet.popen(
        "alice", "send", "bob", "--json", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[bytes], within: float = 4 * DEADLINE) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=within)
    assert process.returncode == 0, (process.returncode, out, err)
    return [json.loads(line) for line in out.splitlines()]


def arrived(fleet: Fleet, content: bytes) -> None:
    """Exactly once, byte for byte, and nothing else is there."""
    with fleet.client("bob").receive(wait=DEADLINE) as item:
        assert item.item.digest == blake3(content).digest()
        assert item.read() == content
    assert inbox_of(fleet.home("bob")) == ([], [])
    assert payloads(fleet.home("bob")) == []


def begun(fleet: Fleet, size: int) -> None:
    wait_until(lambda: any(item.size >= size for item in inbox_of(fleet.home("bob"))[1]))


def a_file(folder: Path, size: int) -> tuple[Path, bytes]:
    path, content = folder / "big.bin", os.urandom(size)
    path.write_bytes(content)
    return path, content


@contextlib.contextmanager
def feeding(path: Path | None) -> Iterator[int]:
    """What a command reads: the file's content by a pipe, or nothing."""
    if path is None:
        yield subprocess.DEVNULL
        return
    with path.open("rb") as file, subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) as feed:
        assert feed.stdout is not None
        yield feed.stdout.fileno()
        feed.kill()


@contextlib.contextmanager
def fed(fleet: Fleet, path: Path, *words: str, piped: bool) -> Iterator[subprocess.Popen[bytes]]:
    """`sending` of a file, or of its content by a pipe."""
    with (
        feeding(path if piped else None) as stdin,
        sending(fleet, *words, *([] if piped else [str(path)]), stdin=stdin) as process,
    ):
        yield process


def flowing(wire: Wire, process: subprocess.Popen[bytes], size: int = MIB) -> bool:
    """Once the newest connection has carried so many bytes; False where the command has ended instead."""
    def look() -> bool:
        data = wire.proxies[0]
        last = data.connections[-1:] if data.open_connections else []
        return process.poll() is not None or any(len(record.way("up")) > size for record in last)

    wait_until(look)
    return process.poll() is None


@pytest.mark.attack("P05")
@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
def test_a_transfer_whose_links_are_cut_again_and_again_arrives_once(
    fleet: Fleet, wire: Wire, tmp_path: Path, piped: bool
) -> None:
    """Each time from where the recipient stands, with no coordinator; a pipe from what its sender has kept."""
    path, content = a_file(tmp_path, 128 * MIB)
    wire.slow(0.001)
    cuts = 0
    with fed(fleet, path, piped=piped) as process:
        assert flowing(wire, process)
        fleet.coordinator.kill()
        while cuts < 100 and flowing(wire, process, MIB // 4):
            cuts += wire.cut() > 0
        wire.slow(0)
        events = ended(process)
    fleet.start_coordinator()
    for name in ("alice", "bob"):
        fleet.wait_linked(name)
    assert cuts >= 50
    assert events[-1]["event"] == "delivered"
    arrived(fleet, content)


@pytest.mark.attack("D10")
def test_the_same_command_goes_on_where_the_killed_one_was(fleet: Fleet, wire: Wire, tmp_path: Path) -> None:
    path, content = a_file(tmp_path, 64 * MIB)
    positions = [0]
    for _ in range(3):
        wire.slow(0.002)
        with sending(fleet, str(path)) as process:
            begun(fleet, positions[-1] + 8 * MIB)
            process.kill()
        positions.append(inbox_of(fleet.home("bob"))[1][0].size)
    wire.slow(0)
    with sending(fleet, str(path)) as process:
        events = ended(process)
    granted = next(event for event in events if event["event"] == "granted")
    assert granted["resumed_from"] >= positions[-1] >= 24 * MIB
    arrived(fleet, content)


@pytest.mark.attack("D10")
def test_another_id_goes_on_where_the_killed_command_was_and_each_id_delivers_once(
    fleet: Fleet, wire: Wire, tmp_path: Path
) -> None:
    path, content = a_file(tmp_path, 16 * MIB)
    ids: list[list[str]] = [[], ["--id", "first"], ["--id", "second"]]
    positions = [0]
    for words in ids:
        wire.slow(0.002)
        with sending(fleet, *words, str(path)) as process:
            begun(fleet, positions[-1] + 2 * MIB)
            process.kill()
        (partly,) = inbox_of(fleet.home("bob"))[1]
        positions.append(partly.size)
    wire.slow(0)
    transfers = set()
    for words, resumed in ((ids[1], True), (ids[2], False), (ids[1], None)):
        with sending(fleet, *words, str(path)) as process:
            events = ended(process)
        granted = [event["resumed_from"] for event in events if event["event"] == "granted"]
        assert [position >= positions[-1] for position in granted] == ([] if resumed is None else [resumed])
        transfers.add(events[-1]["transfer"])
    assert len(transfers) == 2
    with fleet.client("bob").receive(wait=DEADLINE) as item:
        assert item.read() == content
    arrived(fleet, content)


@pytest.mark.attack("D10")
@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
def test_a_running_command_goes_on_once_its_killed_recipient_is_back(
    fleet: Fleet, wire: Wire, tmp_path: Path, piped: bool
) -> None:
    path, content = a_file(tmp_path, 64 * MIB)
    wire.slow(0.002)
    with fed(fleet, path, piped=piped) as process:
        for part in (1, 2):
            begun(fleet, part * 12 * MIB)
            fleet.program("bob").kill()
            fleet.start_daemon("bob")
        wire.slow(0)
        events = ended(process)
    granted = [event["resumed_from"] for event in events if event["event"] == "granted"]
    assert granted[0] == 0
    assert granted[-1] >= 24 * MIB
    arrived(fleet, content)


@pytest.mark.attack("D10")
def test_a_running_command_goes_on_by_itself_once_its_own_daemon_was_killed(
    fleet: Fleet, wire: Wire, tmp_path: Path
) -> None:
    """The daemon that it had named the file to (decision 0026)."""
    path, content = a_file(tmp_path, 64 * MIB)
    wire.slow(0.002)
    with sending(fleet, str(path)) as process:
        begun(fleet, 12 * MIB)
        fleet.program("alice").kill()
        wire.slow(0)
        events = ended(process)
    fleet.start_daemon("alice")
    assert [event["event"] for event in events].count("requested") == 1
    granted = [event["resumed_from"] for event in events if event["event"] == "granted"]
    assert granted[0] == 0
    assert granted[-1] >= 12 * MIB
    arrived(fleet, content)


def test_no_resume_starts_at_the_first_byte(fleet: Fleet, wire: Wire, tmp_path: Path) -> None:
    path, content = a_file(tmp_path, 16 * MIB)
    wire.slow(0.005)
    with sending(fleet, str(path)) as process:
        begun(fleet, 4 * MIB)
        process.kill()
    wire.slow(0)
    with sending(fleet, "--no-resume", str(path)) as process:
        events = ended(process)
    assert [event["resumed_from"] for event in events if event["event"] == "granted"] == [0]
    arrived(fleet, content)


def test_a_file_that_changes_while_the_daemon_sends_it_is_33(fleet: Fleet, wire: Wire, tmp_path: Path) -> None:
    path, _ = a_file(tmp_path, 16 * MIB)
    wire.slow(0.005)
    with sending(fleet, str(path)) as process:
        begun(fleet, MIB)
        with path.open("ab") as file:
            file.write(b"more")
        wire.slow(0)
        out, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 33
    assert json.loads(out.splitlines()[-1])["detail"] == "source-changed"
    assert not inbox_of(fleet.home("bob"))[0]
    assert fleet.zkc("alice", "send", "bob", str(path)).code == 0
    arrived(fleet, path.read_bytes())


def test_a_source_that_has_changed_since_is_sent_anew(fleet: Fleet, wire: Wire, tmp_path: Path) -> None:
    path, _ = a_file(tmp_path, 16 * MIB)
    wire.slow(0.005)
    with sending(fleet, str(path)) as process:
        begun(fleet, 4 * MIB)
        process.kill()
    wire.slow(0)
    _, content = a_file(tmp_path, 16 * MIB)
    with sending(fleet, str(path)) as process:
        events = ended(process)
    assert [event["resumed_from"] for event in events if event["event"] == "granted"] == [0]
    arrived(fleet, content)


@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
def test_a_key_never_delivers_twice(fleet: Fleet, tmp_path: Path, piped: bool) -> None:
    """A repeat returns the first receipt, whatever else it would send."""
    path, content = a_file(tmp_path, MIB)
    seen = []
    for _ in range(2):
        with fed(fleet, path, "--id", f"nightly-{piped}", piped=piped) as process:
            seen.append(ended(process)[-1])
    assert seen[0]["transfer"] == seen[1]["transfer"]
    assert seen[0]["digest"] == seen[1]["digest"]
    arrived(fleet, content)


@pytest.mark.attack("P03")
@pytest.mark.parametrize("words", [[], ["--id", "lost"]], ids=["file", "key"])
def test_a_sender_killed_while_its_acknowledgement_is_under_way_delivers_once(
    fleet: Fleet, wire: Wire, tmp_path: Path, words: list[str]
) -> None:
    """The recipient has it and has said so, to nobody: the same command is told, and sends nothing."""
    path, content = a_file(tmp_path, SIZE)
    process = held_send(fleet, "alice", "bob", *words, str(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        begun(fleet, HELD)
        wire.proxies[1].stall()
        process.stdin.close()
        wait_until(lambda: inbox_of(fleet.home("bob"))[0])
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
        wire.go_on()
    with sending(fleet, *words, str(path)) as again:
        events = ended(again)
    assert [event["event"] for event in events] == ["requested", "delivered"]
    arrived(fleet, content)


@pytest.mark.attack("D18")
def test_a_recipient_that_stands_still_is_31_after_the_patience_and_goes_on_later(
    fleet: Fleet, wire: Wire, tmp_path: Path
) -> None:
    """Its kernel still answers; its pings tell. What its sender holds meanwhile is bounded."""
    path, content = a_file(tmp_path, 64 * MIB)
    bob = fleet.program("bob").process
    wire.slow(0.002)
    with sending(fleet, str(path), env={"ZKC_TRANSFER_PATIENCE": "2s"}) as process:
        begun(fleet, 8 * MIB)
        with stopped(bob.pid):
            out, _ = process.communicate(timeout=4 * DEADLINE)
    assert process.returncode == 31, out
    wire.slow(0)
    # To the coordinator it was gone too.
    with sending(fleet, str(path), "--wait", "60s") as process:
        events = ended(process)
    granted = next(event for event in events if event["event"] == "granted")
    assert granted["resumed_from"] >= 8 * MIB
    arrived(fleet, content)


@pytest.mark.attack("D12")
def test_a_recipient_may_start_after_its_sender_and_one_that_never_does_is_offline(fleet: Fleet) -> None:
    """``--wait`` says for how long; never is it told as sent."""
    fleet.program("bob").terminate()
    with sending(fleet, "-m", "late", "--wait", "0s") as process:
        out, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 21, out
    with sending(fleet, "-m", "late", "--wait", "60s") as process:
        assert process.stdout is not None
        assert b"requested" in process.stdout.readline()
        fleet.start_daemon("bob")
        assert ended(process)[-1]["event"] == "delivered"
    arrived(fleet, b"late")


def test_a_link_that_is_silent_for_longer_than_pings_are_waited_for_is_made_anew(
    fleet: Fleet, wire: Wire, tmp_path: Path
) -> None:
    """Nothing is reset: the bytes just do not come any more. Once they do, the transfer goes on from where it was."""
    path, content = a_file(tmp_path, 32 * MIB)
    wire.slow(0.002)
    with sending(fleet, str(path)) as process:
        begun(fleet, 4 * MIB)
        seen = len(wire.proxies[0].connections)
        wire.stall()
        wait_until(lambda: len(wire.proxies[0].connections) > seen or process.poll() is not None)
        wire.go_on()
        wire.slow(0)
        events = ended(process)
    assert events[-1]["event"] == "delivered"
    arrived(fleet, content)
