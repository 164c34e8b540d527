"""``zkc recv --live``: a stream from pipe to pipe, nothing of it on disk, and a code for each way in which it ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from blake3 import blake3

from tests.support.evil_sender import EvilSender, Frames, Line, damaged
from tests.support.looking import inbox_of, log_of, memory, payloads
from tests.support.waiting import DEADLINE, wait_until
from zkc.client.grants import Have
from zkc.crypto.receipts import verify_receipt
from zkc.testing import Done, Fleet
from zkc.wire.codec import decode
from zkc.wire.messages import Receipt, ReceiptBody, Stop

MIB: Final = 1 << 20
CONFIG: Final = {"transfer.listen": "tcp://127.0.0.1:0", "transfer.patience": "20s", "log.level": "debug"}
IMPATIENT: Final = {"ZKC_TRANSFER_PATIENCE": "3s"}
"""Of a reader whose sender does not come back."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob", client=CONFIG) as fleet:
        fleet.join("mallory")
        yield fleet


@pytest.fixture(autouse=True)
def no_defect(fleet: Fleet) -> Iterator[None]:
    """Whatever happened: no traceback in any log, and nothing of a stream is in bob's home."""
    yield
    for name in ("alice", "bob"):
        assert not [event for event in log_of(fleet, name) if event["event"] == "defect" or "exception" in event]
    assert inbox_of(fleet.home("bob")) == ([], [])
    assert payloads(fleet.home("bob")) == []


class Live:
    """``zkc recv --live`` by bob, which waits for a transfer by now."""

    def __init__(
        self, fleet: Fleet, *words: str, stdout: int = subprocess.PIPE, name: str = "bob",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.process = fleet.popen(name, "recv", "--live", *words, env=env, stdout=stdout, stderr=subprocess.PIPE)
        assert self.process.stderr is not None
        self.errors = self.process.stderr
        self.said = b""
        while b"waiting" not in self.said:
            line = self.errors.readline()
            assert line, self.said
            self.said += line

    def read(self, n: int = -1) -> bytes:
        """So many bytes of its stdout, or all."""
        assert self.process.stdout is not None
        return self.process.stdout.read(n)

    def end(self) -> Done:
        """Its end, once its stdout was read."""
        out = self.read() if self.process.stdout is not None and not self.process.stdout.closed else b""
        said = self.said + self.errors.read()
        return Done(self.process.wait(DEADLINE), out, said)


@contextlib.contextmanager
def live(fleet: Fleet, *words: str, **options: Any) -> Iterator[Live]:
    reader = Live(fleet, *words, **options)
    try:
        yield reader
    finally:
        reader.process.kill()
        reader.process.wait()
        for stream in (reader.process.stdout, reader.errors):
            if stream is not None:
                stream.close()


class Pipe:
    """``zkc send bob`` by alice, whose stdin is fed by a thread, or held open."""

    def __init__(self, fleet: Fleet, *words: str) -> None:
        pipe = subprocess.PIPE
        self.process = fleet.popen("alice", "send", "bob", *words, "--json", stdin=pipe, stdout=pipe, stderr=pipe)

    def feed(self, payload: bytes, *, whole: bool = True) -> None:
        """``payload`` into it, in the background; ``whole``: and no more."""

        def write() -> None:
            stdin = self.process.stdin
            assert stdin is not None
            with contextlib.suppress(BrokenPipeError):
                stdin.write(payload)
                stdin.flush()
                if whole:
                    stdin.close()

        threading.Thread(target=write, daemon=True).start()

    def end(self) -> Done:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        out, err = self.process.stdout.read(), self.process.stderr.read()
        return Done(self.process.wait(DEADLINE), out, err)


@contextlib.contextmanager
def sending(fleet: Fleet, *words: str) -> Iterator[Pipe]:
    pipe = Pipe(fleet, *words)
    try:
        yield pipe
    finally:
        pipe.process.kill()
        pipe.process.wait()
        for stream in (pipe.process.stdin, pipe.process.stdout, pipe.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def delivered(done: Done, payload: bytes) -> ReceiptBody:
    """It ended with 0 and a receipt of this very payload; what the receipt says."""
    assert done.code == 0, done
    event = done.events[-1]
    assert (event["event"], event["bytes"], event["digest"]) == (
        "delivered", len(payload), f"blake3:{blake3(payload).hexdigest()}"
    )
    body: ReceiptBody = decode(decode(Path(event["receipt"]).read_bytes(), Receipt).body, ReceiptBody)
    return body


def broke_off(done: Done) -> dict[str, Any]:
    assert done.code == 31, done
    event = done.events[-1]
    assert (event["event"], event["reason"]) == ("error", "interrupted")
    return event


def regular_files(pid: int) -> set[str]:
    """Files that a process has open for writing, beside its standard streams."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            flags = Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().split("flags:")[1].split()[0]
            if fd.is_file() and int(flags, 8) & os.O_ACCMODE and int(fd.name) > 2:
                found.add(os.readlink(fd))
    return found


# --- it arrives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 50_000_000])
def test_a_pipe_arrives_in_a_pipe_and_its_receipt_says_that_it_is_not_durable(fleet: Fleet, size: int) -> None:
    payload = os.urandom(size)
    with live(fleet, "--json") as reader, sending(fleet, "--name", "stream") as pipe:
        pipe.feed(payload)
        taken, sent = reader.end(), pipe.end()
    assert (taken.code, taken.out == payload) == (0, True)
    assert delivered(sent, payload).durable is False
    waiting, event = Done(0, b"", taken.err).events
    assert waiting["event"] == "waiting"
    assert (event["event"], event["from"], event["name"], event["bytes"], event["path"]) == (
        "recv", "alice", "stream", size, None
    )
    assert event["digest"] == f"blake3:{blake3(payload).hexdigest()}"


def test_a_file_arrives_in_a_pipe(fleet: Fleet, tmp_path: Path) -> None:
    payload = os.urandom(3 * MIB + 1)
    (tmp_path / "source.bin").write_bytes(payload)
    with live(fleet) as reader, sending(fleet, str(tmp_path / "source.bin")) as pipe:
        assert reader.end().out == payload
        assert delivered(pipe.end(), payload).durable is False


def test_a_coordinator_made_key_opens_a_stream_too(tmp_path: Path) -> None:
    sources = {"transfer.key_sources": ["sender", "coordinator"]}
    for order in ("recipient-first", "sender-first"):
        config = CONFIG | sources | {"transfer.key_order": order}
        with (
            Fleet("alice", "bob", folder=tmp_path / order, client=config, coordinator=sources) as fleet,
            live(fleet) as reader, sending(fleet, "--key-source", "coordinator") as pipe,
        ):
            pipe.feed(b"by order")
            assert reader.end().out == b"by order"
            assert delivered(pipe.end(), b"by order").key_source == "coordinator"


def test_nothing_of_a_stream_is_on_disk_and_memory_stays_small(fleet: Fleet) -> None:
    """In the middle of it too: no file of bob's processes but those that were open before, and the index does not grow
    by what passes."""
    payload = os.urandom(64 * MIB)
    home = fleet.home("bob")

    def files() -> set[str]:
        return {str(path) for path in home.rglob("*")}

    def size() -> int:
        return sum(path.stat().st_size for path in home.rglob("*") if path.is_file())

    with live(fleet) as reader, sending(fleet) as pipe:
        names, bytes_before = files(), size()
        daemon = regular_files(fleet.program("bob").process.pid)
        pipe.feed(payload)
        got = reader.read(40 * MIB)
        assert files() == names
        assert regular_files(reader.process.pid) == set()
        assert regular_files(fleet.program("bob").process.pid) == daemon
        peak = memory(reader.process.pid, "VmHWM")
        assert got + reader.end().out == payload
        delivered(pipe.end(), payload)
    assert peak < 150 * MIB
    assert files() == names
    assert size() - bytes_before < MIB


def test_two_readers_take_two_transfers_in_the_order_of_coming_and_the_third_goes_to_the_inbox(fleet: Fleet) -> None:
    with live(fleet) as first, live(fleet) as second:
        for number, reader in enumerate((first, second)):
            with sending(fleet) as pipe:
                pipe.feed(b"%d" % number)
                delivered(pipe.end(), b"%d" % number)
            assert reader.end().out == b"%d" % number
    with sending(fleet) as pipe:
        pipe.feed(b"kept")
        assert delivered(pipe.end(), b"kept").durable is True
    assert fleet.zkc("bob", "recv", "-o", "-").out == b"kept"


def test_a_loop_takes_one_after_the_other_and_sigterm_ends_it_with_0(fleet: Fleet) -> None:
    with live(fleet, "--loop") as reader:
        for number in range(3):
            with sending(fleet) as pipe:
                pipe.feed(b"part %d\n" % number)
                delivered(pipe.end(), b"part %d\n" % number)
            assert reader.read(7) == b"part %d\n" % number
            while reader.said.count(b"waiting") < number + 2:
                reader.said += reader.errors.readline()
        reader.process.send_signal(signal.SIGTERM)
        assert reader.end().code == 0


def test_only_what_matches_is_taken(fleet: Fleet) -> None:
    """--app takes what comes to the application, and a plain one what comes to the client; --from one sender's."""
    with live(fleet, "--app", "sink") as sink, live(fleet, "--from", "mallory") as other:
        with sending(fleet) as pipe:
            pipe.feed(b"for bob")
            assert delivered(pipe.end(), b"for bob").durable is True
        done = fleet.zkc("alice", "send", "bob/sink", "--json", stdin=b"for the sink")
        assert delivered(done, b"for the sink").recipient == "bob/sink"
        assert sink.end().out == b"for the sink"
        other.process.send_signal(signal.SIGINT)
        ended = other.end()
        assert (ended.code, ended.out) == (130, b"")
    assert fleet.zkc("bob", "recv", "-o", "-").out == b"for bob"


def test_a_name_that_does_not_match_goes_to_the_inbox_of_a_pipe_too(fleet: Fleet, tmp_path: Path) -> None:
    """The reader judges on the manifest, before the sender of a pipe has read of it; then it waits on. ``waiting`` is
    said once."""
    (tmp_path / "note.txt").write_bytes(b"a file")
    with live(fleet, "--name", "*.tar") as reader:
        for words, payload in ((("--name", "x.zip"), os.urandom(3 * MIB)), ((str(tmp_path / "note.txt"),), b"a file")):
            with sending(fleet, *words) as pipe:
                pipe.feed(payload)
                assert delivered(pipe.end(), payload).durable is True
            assert fleet.zkc("bob", "recv", "-o", "-").out == payload
        with sending(fleet, "--name", "x.tar") as pipe:
            pipe.feed(b"a tar" * MIB)
            assert reader.read() == b"a tar" * MIB
            assert delivered(pipe.end(), b"a tar" * MIB).durable is False
        done = reader.end()
    assert (done.code, done.err.count(b"waiting")) == (0, 1)


def test_a_dry_run_takes_no_reader_away(fleet: Fleet) -> None:
    with live(fleet) as reader:
        assert fleet.zkc("alice", "send", "bob", "--dry-run").code == 0
        with sending(fleet) as pipe:
            pipe.feed(b"real")
            assert delivered(pipe.end(), b"real").durable is False
        assert reader.end().out == b"real"


def test_a_delivery_that_is_done_is_answered_with_its_receipt(fleet: Fleet) -> None:
    with EvilSender(fleet.home("mallory")) as mallory:
        with live(fleet) as reader:
            session = mallory.agree("bob")
            assert session.resp.live
            with Line(session) as line:
                assert line.admitted() == (True, True)
                frames = Frames(session)
                line.send(*frames.opening(), frames.last(b"once"))
                receipt = line.verdict()
                line.send(frames.bye())
            assert reader.end().out == b"once"
        again = mallory.ask("bob", tid=session.req.tid)
        assert isinstance(again, Have)
        assert receipt is not None
        assert not isinstance(receipt, Stop)
        assert again.receipt == receipt.receipt
        assert verify_receipt(session.peer.identity, again.receipt).durable is False


# --- it waits ------------------------------------------------------------------------------------------------------


def test_wait_bounds_the_wait_for_a_transfer_to_begin_and_not_the_transfer(fleet: Fleet) -> None:
    none = fleet.zkc("bob", "recv", "--live", "--wait", "0.2s", "--json")
    assert (none.code, none.events[-1]["detail"], none.out) == (22, "empty", b"")
    with live(fleet, "--wait", "1.5s") as reader, sending(fleet) as pipe:
        pipe.feed(b"x" * 3 * MIB, whole=False)
        assert reader.read(1) == b"x"
        with pytest.raises(subprocess.TimeoutExpired):
            reader.process.wait(2.0)
        pipe.feed(b"y")
        assert len(reader.end().out) == 3 * MIB
        delivered(pipe.end(), b"x" * 3 * MIB + b"y")


def test_it_waits_once_senders_find_it_online(tmp_path: Path) -> None:
    """``waiting`` is not said before: not for an application that was registered a moment ago, nor while the
    coordinator is away."""
    with Fleet("alice", "bob", folder=tmp_path / "fleet", client=CONFIG) as fleet:
        with live(fleet, "--app", "new") as reader:
            done = fleet.zkc("alice", "send", "bob/new", "--json", stdin=b"at once")
            assert delivered(done, b"at once").durable is False
            assert reader.end().out == b"at once"
        fleet.coordinator.terminate()
        none = fleet.zkc("bob", "recv", "--live", "--wait", "1s", "--json")
        assert (none.code, none.events[-1]["reason"]) == (10, "coordinator-unreachable")
        assert b"waiting" not in none.err
        reader_process = fleet.popen("bob", "recv", "--live", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        fleet.start_coordinator()
        with reader_process as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stderr.readline() == b"waiting\n"
            fleet.wait_linked("alice")
            delivered(fleet.zkc("alice", "send", "bob", "--json", stdin=b"later"), b"later")
            assert process.stdout.read() == b"later"


def test_without_a_daemon_it_is_34(fleet: Fleet) -> None:
    done = fleet.zkc("mallory", "recv", "--live", "--wait", "1s", "--json")
    assert (done.code, done.events[-1]["detail"]) == (34, "not-running")


@pytest.mark.parametrize("words", [["-o", "file"], ["--keep"], ["--exec", "cat"]])
def test_what_a_stream_cannot_do_is_a_usage_error(fleet: Fleet, words: list[str]) -> None:
    done = fleet.zkc("bob", "recv", "--live", *words)
    assert done.code == 2, done


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_one_that_waits_and_its_place_is_free(fleet: Fleet, number: int, code: int) -> None:
    with live(fleet) as reader:
        reader.process.send_signal(number)
        assert reader.end().code == code
    with sending(fleet) as pipe:
        pipe.feed(b"kept")
        assert delivered(pipe.end(), b"kept").durable is True
    assert fleet.zkc("bob", "recv", "-o", "-").out == b"kept"


# --- its reader stands still ---------------------------------------------------------------------------------------


def stand_still(reader: Live, pipe: Pipe) -> None:
    """Return once the sender takes no more: everything between the two is full."""
    stdin = pipe.process.stdin
    assert stdin is not None
    os.set_blocking(stdin.fileno(), False)
    piece = bytes(1 << 16)

    def is_full() -> bool:
        try:
            while True:
                os.write(stdin.fileno(), piece)
        except BlockingIOError:
            return not select.select([], [stdin], [], 0.5)[1]

    os.write(stdin.fileno(), piece)
    # Begun: a sender that is slow to start takes nothing either.
    assert select.select([reader.process.stdout], [], [], DEADLINE)[0]
    wait_until(is_full)


@pytest.mark.attack("D18")
def test_a_reader_that_stands_still_stops_the_sender_and_goes_on(fleet: Fleet) -> None:
    """No memory, no time-out: the heartbeats of bob's daemon go on, and so do other transfers to it."""
    with live(fleet) as reader, sending(fleet) as pipe:
        stand_still(reader, pipe)
        held = memory(reader.process.pid), memory(pipe.process.pid)
        assert max(held) < 150 * MIB
        assert fleet.zkc("alice", "send", "bob", "-m", "meanwhile").code == 0
        assert pipe.process.poll() is None
        stdin = pipe.process.stdin
        assert stdin is not None
        stdin.close()
        taken = reader.end()
        event = pipe.end().events[-1]
    assert taken.code == 0
    assert (event["event"], event["bytes"]) == ("delivered", len(taken.out))
    assert not taken.out.strip(b"\0")
    assert fleet.zkc("bob", "recv", "-o", "-").out == b"meanwhile"


@pytest.mark.soak
@pytest.mark.attack("D18")
def test_a_reader_may_stand_still_for_longer_than_a_link_without_heartbeats_lives(fleet: Fleet) -> None:
    with live(fleet) as reader, sending(fleet) as pipe:
        stand_still(reader, pipe)
        with pytest.raises(subprocess.TimeoutExpired):
            pipe.process.wait(80)
        stdin = pipe.process.stdin
        assert stdin is not None
        stdin.close()
        assert reader.end().code == 0
        assert pipe.end().code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_one_whose_reader_stands_still_and_the_sender_is_told(
    fleet: Fleet, number: int, code: int
) -> None:
    with live(fleet) as reader, sending(fleet) as pipe:
        stand_still(reader, pipe)
        reader.process.send_signal(number)
        assert reader.process.wait(DEADLINE) == code
        assert broke_off(pipe.end())["detail"] == "signal"


def test_a_signal_in_full_flow_is_never_taken_for_an_attack(fleet: Fleet) -> None:
    """Ten times, since it meets the reader at any of its steps."""
    for _ in range(10):
        with live(fleet) as reader, sending(fleet) as pipe:
            pipe.feed(bytes(200 * MIB))
            assert reader.read(MIB) == bytes(MIB)
            drain = threading.Thread(target=reader.read)
            drain.start()
            reader.process.send_signal(signal.SIGTERM)
            assert reader.process.wait(DEADLINE) == 143
            drain.join()
            broke_off(pipe.end())


def test_a_reader_that_goes_away_ends_both(fleet: Fleet) -> None:
    """The broken pipe is 141, quietly; the sender hears 31."""
    with live(fleet) as reader, sending(fleet) as pipe:
        pipe.feed(bytes(8 * MIB), whole=False)
        assert reader.read(1) == b"\0"
        assert reader.process.stdout is not None
        reader.process.stdout.close()
        assert reader.process.wait(DEADLINE) == 141
        assert reader.errors.read() == b""
        broke_off(pipe.end())


# --- it breaks off -------------------------------------------------------------------------------------------------


def test_a_killed_reader_ends_a_piped_send_with_31(fleet: Fleet) -> None:
    with live(fleet) as reader, sending(fleet) as pipe:
        pipe.feed(bytes(4 * MIB), whole=False)
        assert reader.read(MIB) == bytes(MIB)
        reader.process.kill()
        broke_off(pipe.end())


def test_a_killed_reader_ends_a_file_s_send_with_31_and_nothing_comes_to_the_inbox_until_it_is_run_again(
    fleet: Fleet, tmp_path: Path
) -> None:
    """What was sent to a live reader is never on disk: not by the sender's own retry either."""
    with (tmp_path / "large").open("wb") as file:
        file.truncate(200 * MIB)
    with live(fleet) as reader, sending(fleet, str(tmp_path / "large")) as pipe:
        assert reader.read(MIB) == bytes(MIB)
        reader.process.kill()
        assert broke_off(pipe.end())["detail"] == "broken-stream"
    assert inbox_of(fleet.home("bob")) == ([], [])
    again = fleet.zkc("alice", "send", "bob", str(tmp_path / "large"), "--json")
    assert delivered(again, bytes(200 * MIB)).durable is True
    assert fleet.zkc("bob", "recv", "-o", "-").code == 0


def test_the_retry_of_a_file_goes_to_the_next_reader_from_its_first_byte(fleet: Fleet, tmp_path: Path) -> None:
    payload = os.urandom(20 * MIB)
    (tmp_path / "file").write_bytes(payload)
    with live(fleet) as first, live(fleet) as second, sending(fleet, str(tmp_path / "file")) as pipe:
        assert first.read(MIB) == payload[:MIB]
        first.process.kill()
        assert second.end().out == payload
        assert delivered(pipe.end(), payload).durable is False


def test_a_killed_sender_is_31_for_the_reader_and_every_byte_before_was_its(fleet: Fleet) -> None:
    payload = os.urandom(8 * MIB)
    with live(fleet, "--json", "--loop", env=IMPATIENT) as reader, sending(fleet) as pipe:
        pipe.feed(payload, whole=False)
        first = reader.read(MIB)
        pipe.process.kill()
        done = reader.end()
    assert done.code == 31
    assert Done(0, b"", done.err).events[-1]["reason"] == "interrupted"
    assert payload.startswith(first + done.out)


def test_a_sender_that_agrees_and_does_not_come_ends_no_reader(fleet: Fleet) -> None:
    """Nothing was taken, so the reader waits on: for anybody, that sender's next try too."""
    with live(fleet, "--json", env=IMPATIENT) as reader, EvilSender(fleet.home("mallory")) as mallory:
        session = mallory.agree("bob")
        with Line(session) as line:
            assert line.admitted() == (True, True)  # and gone without a word
        wait_until(lambda: sum(
            event.get("request") == "AskLive" and event["pid"] == reader.process.pid for event in log_of(fleet, "bob")
        ) == 2)
        with sending(fleet) as pipe:
            pipe.feed(b"the next")
            assert delivered(pipe.end(), b"the next").durable is False
        assert reader.end().out == b"the next"


def test_an_interrupted_sender_is_31_for_the_reader(fleet: Fleet) -> None:
    with live(fleet) as reader, sending(fleet) as pipe:
        pipe.feed(bytes(4 * MIB), whole=False)
        assert reader.read(3 * MIB) == bytes(3 * MIB)  # the rest is no whole chunk: the sender stands still
        pipe.process.send_signal(signal.SIGTERM)
        assert pipe.process.wait(DEADLINE) == 143
        assert reader.end().code == 31


@pytest.mark.attack("D01", "D03")
def test_nothing_of_a_damaged_chunk_is_written(fleet: Fleet) -> None:
    """It costs the connection; and where nobody comes back, the stream has broken off."""
    with live(fleet, "--json", env=IMPATIENT) as reader, EvilSender(fleet.home("mallory")) as mallory:
        session = mallory.agree("bob")
        with Line(session) as line:
            assert line.admitted() == (True, True)
            frames = Frames(session)
            good, bad = frames.whole(), frames.whole()
            line.send(*frames.opening(), frames.chunk(good), damaged(frames.chunk(bad), -1))
            assert line.verdict() is None
        done = reader.end()
    assert (done.code, done.out == good) == (31, True)


@pytest.mark.attack("D01", "D04")
def test_an_end_whose_totals_do_not_fit_is_32(fleet: Fleet) -> None:
    with live(fleet, "--json") as reader, EvilSender(fleet.home("mallory")) as mallory:
        session = mallory.agree("bob")
        with Line(session) as line:
            assert line.admitted() == (True, True)
            frames = Frames(session)
            good = frames.whole()
            line.send(*frames.opening(), frames.chunk(good), frames.last(total=3))
            word = line.verdict()
        done = reader.end()
    assert isinstance(word, Stop)
    assert word.code == 32
    assert (done.code, done.out == good) == (32, True)
    assert Done(0, b"", done.err).events[-1]["detail"] == "truncated"


@pytest.mark.attack("D04")
def test_a_stream_without_its_end_is_never_0(fleet: Fleet) -> None:
    """A farewell in place of the end is 32, a lost link 31."""
    for with_farewell in (True, False):
        with live(fleet, env=IMPATIENT) as reader, EvilSender(fleet.home("mallory")) as mallory:
            session = mallory.agree("bob")
            with Line(session) as line:
                assert line.admitted() == (True, True)
                frames = Frames(session)
                chunk = frames.whole()
                line.send(*frames.opening(), frames.chunk(chunk))
                line.acknowledged(len(chunk))
                if with_farewell:
                    line.send(frames.bye())
                    assert isinstance(line.verdict(), Stop)
            done = reader.end()
        assert (done.code, done.out == chunk) == (32 if with_farewell else 31, True)


def test_a_daemon_that_ends_in_the_middle_is_31_for_both(fleet: Fleet) -> None:
    for ending in ("kill", "terminate"):
        with live(fleet, "--json") as reader, sending(fleet) as pipe:
            pipe.feed(bytes(4 * MIB), whole=False)
            assert reader.read(1) == b"\0"
            getattr(fleet.program("bob"), ending)()
            assert reader.end().code == 31
            broke_off(pipe.end())
        fleet.start_daemon("bob")
