"""Real transfers over a network that cuts, damages and overhears: the right file in the end, once."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import evil
from tests.support.evil_sender import EvilSender, Frames, Line, login
from tests.support.harmed_send import Harm, harmed_send
from tests.support.looking import family, inbox_of, log_of
from tests.support.proxy import TcpProxy
from tests.support.waiting import DEADLINE, wait_until
from zkc.protocol.session import Session
from zkc.testing import Fleet
from zkc.wire.messages import Done, Endpoints

MIB = 1 << 20
LONG = 4 * DEADLINE


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    config = {"transfer.listen": "tcp://127.0.0.1:0", "transfer.chunk": "64K", "log.level": "debug"}
    with Fleet("alice", "bob", client=config) as fleet:
        fleet.join("mallory")
        yield fleet


@pytest.fixture(autouse=True)
def once(fleet: Fleet) -> Iterator[None]:
    """Whatever happened: no partial item is left beside an item, and nobody met a defect."""
    yield
    items, partials = inbox_of(fleet.home("bob"))
    for item in (*items, *partials):
        fleet.client("bob")._inbox.remove(item.id)
    assert not any(event["event"] == "defect" for event in log_of(fleet, "bob"))


def arrived(fleet: Fleet, payload: bytes) -> None:
    """One item, with these bytes, and nothing else."""
    items, partials = inbox_of(fleet.home("bob"))
    assert (len(items), partials) == (1, [])
    with fleet.client("bob").receive() as item:
        assert item.read() == payload


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(os.urandom(27 * MIB + 5))
    return path


@pytest.mark.attack("P05")
def test_a_transfer_that_is_cut_a_hundred_times_without_a_coordinator_arrives(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Position and key are all that it takes."""
    log, source = tmp_path / "log", tmp_path / "large.bin"
    source.write_bytes(os.urandom(MIB) * 100)
    harm = Harm(cut=MIB // 8, cuts=100, hold=True, log=str(log))
    with harmed_send(fleet, "alice", harm, "bob", str(source), "--json", stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert b"requested" in process.stdout.readline()
        assert b"granted" in process.stdout.readline()
        pids = family(fleet.coordinator.process.pid)
        fleet.coordinator.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids[1:]))
        wait_until(lambda: fleet.zkc("bob", "status").code == 10)
        process.stdin.close()
        out = process.stdout.read()
        assert process.wait(LONG) == 0, out
    fleet.start_coordinator()
    for name in ("alice", "bob"):
        assert fleet.zkc(name, "status", "--wait", "60s").code == 0
    arrived(fleet, source.read_bytes())
    lines = log.read_text().split("\n")
    assert sum(line.startswith("connection") for line in lines) > 100
    frames = Counter(line for line in lines if line.startswith("frame"))
    assert max(frames.values()) == 1, "a key and a nonce for one frame each"
    assert len({line.split()[1] for line in frames}) == 1, "one handshake carried it all"


@pytest.mark.attack("D03")
@pytest.mark.parametrize("seed", range(3))
def test_bytes_that_are_turned_over_on_the_way_cost_connections_and_the_file_is_right(
    fleet: Fleet, source: Path, seed: int
) -> None:
    """In handshakes, headers, chunks and acknowledgements, wherever they fall."""
    harm = Harm(flips=12, seed=seed)
    with harmed_send(fleet, "alice", harm, "bob", str(source), "--json", stdout=subprocess.PIPE) as process:
        out, _ = process.communicate(timeout=LONG)
        assert process.returncode == 0, out
    arrived(fleet, source.read_bytes())


@pytest.mark.attack("P02")
def test_no_key_seals_two_frames_under_one_nonce_whatever_is_killed(fleet: Fleet, source: Path, tmp_path: Path) -> None:
    """Over kills of the sender, resumes by later commands, and links that are cut: every frame that was ever sealed."""
    log = tmp_path / "log"
    for kill in range(3):
        harm = Harm(cut=MIB, hold=True, log=str(log), seed=kill)
        before = len(log.read_text().split("\n")) if log.exists() else 0
        with harmed_send(fleet, "alice", harm, "bob", str(source), "--json", stdout=subprocess.PIPE) as process:
            wait_until(lambda: log.exists() and len(log.read_text().split("\n")) > before + 8)  # noqa: B023
            process.kill()
    harm = Harm(cut=MIB, cuts=10, log=str(log))
    with harmed_send(fleet, "alice", harm, "bob", str(source), "--json", stdout=subprocess.PIPE) as process:
        out, _ = process.communicate(timeout=LONG)
        assert process.returncode == 0, out
    arrived(fleet, source.read_bytes())
    frames = Counter(line for line in log.read_text().split("\n") if line.startswith("frame"))
    assert max(frames.values()) == 1
    assert len({line.split()[1] for line in frames}) >= 4, "each command had a key of its own"


@pytest.mark.attack("D02")
def test_a_token_that_was_overheard_opens_nothing_and_costs_at_most_a_connection(fleet: Fleet) -> None:
    """PLAIN goes in the clear: the thief has user and password of each attempt a moment after they were said."""
    with EvilSender(fleet.home("mallory")) as mallory, contextlib.ExitStack() as stack:
        session = mallory.agree("bob")
        assert session.endpoints is not None
        where = session.endpoints
        host = where.addresses[0]
        taps = {
            "data": stack.enter_context(TcpProxy((host, where.data_port))),
            "ack": stack.enter_context(TcpProxy((host, where.ack_port))),
        }
        through = Endpoints(["127.0.0.1"], taps["data"].port, taps["ack"].port, 0, "", b"")
        object.__setattr__(session, "endpoints", through)
        frames, payload, attempt = Frames(session), b"", 0
        for number in range(5):
            line, attempt = comes(session, attempt)
            with line:
                frames = frames.again(session, attempt)
                piece = frames.whole()
                line.send(*frames.opening(), frames.chunk(piece))
                line.acknowledged(frames.sent)
                payload += piece
                for socket, port in (("data", where.data_port), ("ack", where.ack_port)):
                    true = login(session, socket, attempt)  # type: ignore[arg-type]
                    assert true.user in taps[socket].recorded("up")
                    assert true.password in taps[socket].recorded("up")
                    with evil.RawPeer(host, port) as thief:
                        assert not thief.handshake_plain(true.user, true.password)
                if number == 4:
                    line.send(frames.last(b"end"))
                    assert isinstance(line.verdict(), Done), "the thief cost the true sender nothing"
                    line.send(frames.bye())
            for tap in taps.values():
                tap.cut()
            attempt += 1
    arrived(fleet, payload + b"end")


def comes(session: Session, attempt: int) -> tuple[Line, int]:
    """The true sender, with the first number that is let in: bob may not have seen the end of the one before."""
    while True:
        line = Line(session, attempt=attempt)
        if line.admitted() == (True, True):
            return line, attempt
        line.close()
        attempt += 1
