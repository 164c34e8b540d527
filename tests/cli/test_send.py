"""``zkc send`` between real processes: what arrives, what is told, and with which code it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.held_send import SIZE, held_send
from tests.support.looking import stopped
from tests.support.program import PATIENCE
from tests.support.waiting import wait_until
from zkc.constants import SMALL_MAX
from zkc.testing import Done, Fleet
from zkc.wire.codec import decode
from zkc.wire.messages import Receipt


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """alice sends, bob receives, carol is registered and offline."""
    # Each ending is logged, also where one is like another.
    with Fleet("alice", "bob", client={"log.level": "debug"}) as running:
        running.join("carol")
        yield running


Fleets = Callable[..., Fleet]


@pytest.fixture
def fleets() -> Iterator[Fleets]:
    """Makes fleets of a test's own, which end with it."""
    with ExitStack() as running:
        yield lambda *names, **options: running.enter_context(Fleet(*names, **options))


@pytest.fixture
def inbox(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, with bob's inbox empty before and after."""
    yield fleet
    while fleet.zkc("bob", "recv", "-o", "-").code == 0:
        pass


def taken(fleet: Fleet) -> bytes:
    return taken_by(fleet, "bob")


def taken_by(fleet: Fleet, name: str) -> bytes:
    done = fleet.zkc(name, "recv", "-o", "-")
    assert done.code == 0, done.err
    return done.out


def reason(done: Done) -> tuple[int, str, str]:
    error = done.events[-1]
    assert error["event"] == "error"
    assert error["code"] == done.code
    return done.code, error["reason"], error["detail"]


LATER = """
import pathlib, sys
from zkc.client.sending import Sending
from zkc.env import SystemClock
from zkc.net.pipe import sender
later = pathlib.Path(sys.argv.pop(1))
now, sleep = SystemClock.monotonic, Sending._sleep
def pause(sending, seconds):
    later.with_name("waits").touch()
    sleep(sending, seconds)
SystemClock.monotonic = lambda clock: now(clock) + 3600 * later.exists()
Sending._sleep = pause
sender.FIRST_WORD_SECONDS = 7200.0
from zkc.ui.cli.main import main
sys.exit(main())
"""
"""``zkc``, for which an hour goes by when the file that is its first word is made; beside it, ``waits`` is made when it
first waits for its recipient. So a --timeout ends when the test says so, and not before on a machine that is busy."""


def started(fleet: Fleet, later: Path, *words: str, **pipes: Any) -> subprocess.Popen[bytes]:
    """``zkc WORDS`` by alice, running, with `LATER`."""
    command = [sys.executable, "-c", LATER, str(later), *words]
    return subprocess.Popen(command, env=fleet.environment("alice"), **pipes)


# --- what arrives ---------------------------------------------------------------------------------------------------


@pytest.mark.claims("F1", "F2")
@pytest.mark.parametrize("size", [0, 1, 100_000, 10_000_000])
def test_piped_data_arrives_whole(size: int, inbox: Fleet) -> None:
    data = os.urandom(size)
    done = inbox.zkc("alice", "send", "bob", stdin=data)
    assert (done.code, done.out) == (0, b"")
    assert done.err.startswith(b"sent stdin to bob: ")
    assert b"key made by the sender, direct tcp://" in done.err
    assert done.err.count(b"\n") == 1
    assert taken(inbox) == data


def test_a_file_keeps_its_name_time_and_permissions(inbox: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "tool.sh"
    file.write_bytes(b"#!/bin/sh\n")
    file.chmod(0o755)
    os.utime(file, (1_500_000_000, 1_500_000_000))
    there = tmp_path / "there"
    there.mkdir()
    assert inbox.zkc("alice", "send", "bob", str(file), "--note", "für dich").code == 0
    (told,) = inbox.zkc("bob", "inbox", "--json").events
    assert (told["name"], told["note"], told["from"], told["kind"]) == ("tool.sh", "für dich", "alice", "file")
    assert inbox.zkc("bob", "recv", "-o", str(there)).code == 0
    assert (there / "tool.sh").stat().st_mtime == 1_500_000_000
    assert (there / "tool.sh").stat().st_mode & 0o700 == 0o700


def test_a_message_is_one(inbox: Fleet) -> None:
    assert inbox.zkc("alice", "send", "bob", "-m", "hello bob").code == 0
    (told,) = inbox.zkc("bob", "inbox", "--json").events
    assert (told["name"], told["kind"], told["bytes"]) == ("message", "message", 9)
    assert taken(inbox) == b"hello bob"


def test_dash_is_standard_input_and_name_names_it(inbox: Fleet) -> None:
    assert inbox.zkc("alice", "send", "bob", "-", "--name", "x.tar", stdin=b"x").code == 0
    assert inbox.zkc("bob", "inbox", "--json").events[0]["name"] == "x.tar"


def test_quiet_says_nothing(inbox: Fleet) -> None:
    done = inbox.zkc("alice", "send", "bob", "--quiet", stdin=b"x")
    assert (done.code, done.out, done.err) == (0, b"", b"")


# --- what is told ---------------------------------------------------------------------------------------------------


def test_the_objects_have_the_keys_of_the_contract(inbox: Fleet, tmp_path: Path) -> None:
    copy = tmp_path / "receipt"
    done = inbox.zkc("alice", "send", "bob", "--json", "--receipt", str(copy), stdin=b"x" * 3_000_000)
    assert (done.code, done.err) == (0, b"")
    told = {row["event"]: row for row in done.events}
    assert [row["event"] for row in done.events if row["event"] != "progress"] == ["requested", "granted", "delivered"]
    granted, delivered = told["granted"], told["delivered"]
    assert granted["path"].startswith("direct tcp://")
    assert (granted["key_source"], granted["presence"], granted["resumed_from"]) == ("sender", "online", 0)
    assert (delivered["recipient"], delivered["name"], delivered["bytes"]) == ("bob", "stdin", 3_000_000)
    assert delivered["digest"] == inbox.zkc("bob", "inbox", "--json").events[0]["digest"]
    assert delivered["transfer"] == inbox.zkc("bob", "inbox", "--json").events[0]["transfer"]
    assert delivered["key_source"] == "sender"
    assert 0 < delivered["seconds"] < PATIENCE
    assert Path(delivered["receipt"]).read_bytes() == copy.read_bytes()
    assert isinstance(decode(copy.read_bytes(), Receipt), Receipt)


def test_a_receipt_goes_to_standard_output_and_the_objects_to_stderr(inbox: Fleet) -> None:
    done = inbox.zkc("alice", "send", "bob", "--json", "--receipt", "-", stdin=b"x")
    told = [json.loads(line) for line in done.err.splitlines()]
    assert (done.code, told[-1]["event"]) == (0, "delivered")
    assert done.out == Path(told[-1]["receipt"]).read_bytes()


@pytest.mark.claims("E2")
def test_an_unsafe_cipher_is_named_where_it_was_used(fleets: Fleets) -> None:
    ciphers = {"transfer.ciphers": ["aes-256-gcm", "3des"]}
    fleet = fleets("alice", "bob", coordinator=ciphers, client=ciphers)
    assert b", 3des is unsafe, " in fleet.zkc("alice", "send", "bob", "--cipher", "3des", stdin=b"x").err
    assert b"unsafe" not in fleet.zkc("alice", "send", "bob", stdin=b"x").err


def test_a_dry_run_sends_nothing(inbox: Fleet) -> None:
    done = inbox.zkc("alice", "send", "bob", "--dry-run", "--json")
    assert (done.code, done.events[-1]["event"]) == (0, "accepted")
    assert inbox.zkc("bob", "inbox").out == b""
    assert inbox.zkc("alice", "send", "carol", "--dry-run").code == 21


# --- codes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nobody"], (20, "unknown-recipient", "unknown")), (["carol"], (21, "recipient-offline", "offline")),
        (["bob", "--key-source", "coordinator"], (25, "policy", "key-source")),
        (["bob", "--cipher", "3des"], (25, "policy", "cipher")),
        (["bob", "--cipher", "idea"], (25, "policy", "cipher")),
        (["carol", "--wait", "0.3s"], (21, "recipient-offline", "offline")),
    ],
)  # fmt: skip
def test_a_condition_that_is_not_met_ends_with_its_code(
    words: list[str], told: tuple[int, str, str], fleet: Fleet
) -> None:
    assert reason(fleet.zkc("alice", "send", *words, "-m", "x", "--json")) == told


@pytest.mark.parametrize(
    "words",
    [[""], ["report.txt", ""], ["report.txt", "--id", ""], ["-m", "x", "--id", ""],
     ["photos/a", "--from", "carol", "--id", ""], ["report.txt", "./report.txt"]],
)
def test_a_variable_that_is_unset_names_nothing_and_a_file_is_named_once(
    fleet: Fleet, tmp_path: Path, words: list[str]
) -> None:
    """An empty path is not the current folder, and an empty key not one that every unset variable shares."""
    (tmp_path / "report.txt").write_text("report")
    done = fleet.zkc("alice", "send", "bob", *words, "--json", cwd=tmp_path)
    assert done.code == 2, done
    assert fleet.zkc("bob", "recv", "-o", "-").code == 22


def test_a_current_folder_that_was_removed_is_33(fleet: Fleet, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    words = ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", sys.executable, "-m", "zkc", "send", "bob", "."]
    env = fleet.environment("alice") | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(words, cwd=gone, env=env, capture_output=True, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (33, 1), done.stderr


def test_a_key_that_was_used_for_something_else_is_said_so(inbox: Fleet, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    first, again, other = (
        inbox.zkc("alice", "send", "bob", str(tmp_path / name), "--id", "nightly job") for name in ("one", "one", "two")
    )
    assert [done.code for done in (first, again, other)] == [0, 0, 0]
    assert [b"of another name" in done.err for done in (first, again, other)] == [False, False, True]
    assert inbox.zkc("bob", "recv", "-o", "-").out == b"one"
    assert inbox.zkc("bob", "recv", "-o", "-").code == 22


def test_a_timeout_while_it_waits_for_the_recipient_is_what_it_waited_for(fleet: Fleet, tmp_path: Path) -> None:
    words = ["send", "carol", "--wait", "60m", "--timeout", "30m", "--json"]
    later = tmp_path / "later"
    with started(fleet, later, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        wait_until((tmp_path / "waits").exists)
        later.touch()
        done = Done(process.wait(PATIENCE), process.stdout.read(), b"")
    assert reason(done) == (21, "recipient-offline", "offline")


def test_a_coordinator_of_another_version_is_40(fleet: Fleet) -> None:
    """Played by a client that offers only a later one: nothing is spoken in common, either way round."""
    later = "import sys; from zkc.protocol import channel; channel.VERSIONS = (2,); from zkc.ui.cli.main import main; "
    done = subprocess.run(
        [sys.executable, "-c", f"{later}sys.exit(main())", "send", "bob", "-m", "x", "--json"], capture_output=True,
        env=fleet.environment("carol"), timeout=PATIENCE, check=False,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, told["code"], told["reason"], told["detail"]) == (40, 40, "version", "version")


def test_the_key_source_must_be_allowed_at_the_coordinator_and_the_recipient_too(fleet: Fleet) -> None:
    env = {"ZKC_TRANSFER_KEY_SOURCES": "sender,coordinator"}
    done = fleet.zkc("alice", "send", "bob", "-m", "x", "--key-source", "coordinator", "--json", env=env)
    assert reason(done) == (25, "policy", "key-source")


def test_a_recipient_that_accepts_none_is_policy(fleets: Fleets) -> None:
    fleet = fleets("alice")
    assert fleet.zkc("bob", "join", "--accept", "none", env={"ZKC_INVITE": fleet.invite("bob")}).code == 0
    fleet.start_daemon("bob")
    assert reason(fleet.zkc("alice", "send", "bob", "-m", "x", "--json")) == (25, "policy", "accept")


def test_no_space_at_the_recipient_is_33(fleets: Fleets) -> None:
    fleet = fleets("alice", "bob", client={"inbox.min_free": "9000T"})
    done = fleet.zkc("alice", "send", "bob", "-m", "x", "--json")
    assert reason(done) == (33, "local-io", "no-space")
    assert done.events[-1]["message"].startswith("bob has no space left for it")


@pytest.mark.root
@pytest.mark.parametrize("before", [None, b"older", "a device"])
def test_of_a_receipt_that_cannot_be_copied_nothing_stays(
    before: bytes | str | None, inbox: Fleet, small_disk: Callable[[int], Path]
) -> None:
    """It was delivered all the same, and its receipt is kept; 33 says so."""
    copy = small_disk(1 << 16) / "receipt"
    if before == "a device":
        copy.symlink_to("/dev/full")
    elif isinstance(before, bytes):
        copy.write_bytes(before)
    with suppress(OSError):
        (copy.parent / "filler").write_bytes(bytes(1 << 17))
    done = inbox.zkc("alice", "send", "bob", "-m", "x", "--receipt", str(copy), "--json")
    assert (done.code, done.events[-1]["detail"]) == (33, "unwritable"), done
    assert "was delivered" in done.events[-1]["message"]
    assert os.path.lexists(copy) == (before == "a device")


def test_a_receipt_that_cannot_be_written_is_33_before_anything_is_sent(inbox: Fleet) -> None:
    done = inbox.zkc("alice", "send", "bob", "--receipt", "no/such/folder/r", "--json", stdin=b"x")
    assert reason(done) == (33, "local-io", "unwritable")
    assert inbox.zkc("bob", "inbox").out == b""


def put_away(receipts: Path) -> Path:
    """A link stands in place of the folder, which not even root writes through."""
    receipts.mkdir(0o700, exist_ok=True)
    kept = receipts.rename(receipts.with_name("receipts.kept"))
    receipts.symlink_to(kept)
    return kept


def put_back(receipts: Path, kept: Path) -> None:
    receipts.unlink()
    kept.rename(receipts)


def test_a_receipt_that_cannot_be_kept_is_33_before_anything_is_sent(inbox: Fleet) -> None:
    receipts = inbox.home("alice") / "receipts"
    kept = put_away(receipts)
    try:
        assert reason(inbox.zkc("alice", "send", "bob", "-m", "x", "--json")) == (33, "local-io", "permission")
        assert inbox.zkc("bob", "inbox").out == b""
    finally:
        put_back(receipts, kept)


def test_a_receipt_that_cannot_be_kept_after_the_delivery_is_33_and_says_that_it_was_delivered(inbox: Fleet) -> None:
    receipts = inbox.home("alice") / "receipts"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with inbox.popen("alice", "send", "bob", "--json", **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while json.loads(process.stdout.readline())["event"] != "granted":
            pass
        kept = put_away(receipts)
        try:
            process.stdin.write(b"once")
            process.stdin.close()
            last = json.loads(process.stdout.readlines()[-1])
            assert process.wait(PATIENCE) == 33
        finally:
            put_back(receipts, kept)
    assert (last["code"], last["detail"]) == (33, "permission")
    assert f"stdin was delivered to bob, but its receipt could not be kept in {receipts}" in last["message"]
    assert last["message"].endswith("do not send it again")
    assert taken(inbox) == b"once"


def test_a_file_that_changes_is_33_and_nothing_is_delivered(inbox: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "growing"
    file.write_bytes(bytes(SIZE))
    with held_send(inbox, "alice", "bob", str(file), "--json", stdout=subprocess.PIPE) as process:
        while json.loads(process.stdout.readline())["event"] != "granted":
            pass
        with file.open("ab") as growing:
            growing.write(b"more")
        out, _ = process.communicate(timeout=PATIENCE)
    assert reason(Done(process.returncode, out, b"")) == (33, "local-io", "source-changed")
    assert inbox.zkc("bob", "inbox").out == b""


@pytest.mark.parametrize("words", [[], ["-"]])
def test_on_a_terminal_it_reads_what_is_typed(words: list[str], inbox: Fleet) -> None:
    ours, theirs = pty.openpty()
    try:
        with inbox.popen("alice", "send", "bob", *words, stdin=theirs, stderr=subprocess.PIPE) as process:
            os.close(theirs)
            assert process.stderr is not None
            assert process.stderr.readline() == b"reading from the terminal; end with Ctrl-D\n"
            os.write(ours, b"typed\n\x04")
            assert process.communicate(timeout=PATIENCE)[1].startswith(b"sent stdin to bob")
            assert process.returncode == 0
    finally:
        os.close(ours)
    assert taken(inbox) == b"typed\n"


def test_a_script_on_a_terminal_does_not_read_from_it_unasked(fleet: Fleet) -> None:
    ours, theirs = pty.openpty()
    try:
        with fleet.popen("alice", "send", "bob", "--batch", stdin=theirs, stderr=subprocess.PIPE) as process:
            os.close(theirs)
            assert b"nothing to send" in process.communicate(timeout=PATIENCE)[1]
            assert process.returncode == 2
    finally:
        os.close(ours)


# --- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.attack("L07")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_data_flows_ends_it_with_its_code_and_the_recipient_is_told(
    number: signal.Signals, code: int, inbox: Fleet
) -> None:
    log = inbox.program("bob").log
    before = len(log.read_bytes())
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with inbox.popen("alice", "send", "bob", "--json", **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x" * 2_000_000)
        process.stdin.flush()
        while json.loads(process.stdout.readline())["event"] != "granted":
            pass
        process.send_signal(number)
        last = json.loads(process.stdout.read().splitlines()[-1])  # its stdin stays open: there is more to come
        assert process.wait(PATIENCE) == code
    assert (last["event"], last["code"], last["reason"], last["detail"]) == ("error", code, "interrupted", "signal")
    wait_until(lambda: b'"not-received"' in log.read_bytes()[before:])
    assert inbox.zkc("bob", "inbox").out == b""


@pytest.mark.attack("L07")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_waits_for_the_recipient_ends_it_with_its_code(
    number: signal.Signals, code: int, fleet: Fleet
) -> None:
    words = ["send", "carol", "--wait", "60s", "--json", "-m", "x"]
    with fleet.popen("alice", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"requested" in process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, json.loads(out)["code"], err) == (code, code, b"")


# --- a receipt that was lost ----------------------------------------------------------------------------------------


LOSES = """
import sys
from zkc.net.pipe import sender
from zkc.net.pipe.bell import LinkLost
from zkc.net.pipe.sender import Attempts, Told
class Losing(Attempts):
    def next(self, bell, told, **more):
        def lose(done):
            raise LinkLost("the link broke off", detail="link")
        return super().next(bell, Told(told.on_begun, told.on_flowing, told.on_progress, lose), **more)
sender.Attempts = Losing
from zkc.ui.cli.main import main
sys.exit(main())
"""
"""``zkc``, whose every link breaks off after the last byte, before the receipt is read."""


@pytest.mark.parametrize("sender", ["alice", "carol"])
def test_a_pipe_whose_receipt_was_lost_is_delivered_once(sender: str, inbox: Fleet) -> None:
    """alice through her daemon, carol by a link of her own."""
    done = subprocess.run(
        [sys.executable, "-c", LOSES, "send", "bob", "--json"], input=b"precious\n", capture_output=True,
        env=inbox.environment(sender), timeout=PATIENCE, check=False,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, told[-1]["event"], told[-1]["bytes"]) == (0, "delivered", 9), done
    (item,) = inbox.zkc("bob", "inbox", "--json").events
    assert (item["transfer"], item["digest"]) == (told[-1]["transfer"], told[-1]["digest"])
    assert taken(inbox) == b"precious\n"


# --- with and without a daemon --------------------------------------------------------------------------------------

HEAVY = {"zmq", "cryptography", "msgspec", "tomli"}


@pytest.mark.parametrize(
    ("size", "piped", "heavy"),
    [(1, False, False), (SMALL_MAX, True, False), (SMALL_MAX + 1, True, True), (SMALL_MAX + 1, False, False)],
)
def test_with_a_daemon_it_imports_little(size: int, piped: bool, heavy: bool, inbox: Fleet, tmp_path: Path) -> None:
    """What is small, and a file, is sent by the daemon, and the command needs nothing that encrypts or links (decisions
    0007, 0026)."""
    file = tmp_path / "file"
    file.write_bytes(bytes(size))
    command = [sys.executable, "-X", "importtime", "-m", "zkc", "send", "bob", *([] if piped else [str(file)])]
    done = subprocess.run(
        command, input=file.read_text() if piped else None, env=inbox.environment("alice"), capture_output=True,
        text=True, timeout=PATIENCE, check=True,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"asyncio", "platformdirs", "rich", "sqlalchemy", "sqlite3", "structlog", "segno"}
    assert imported & HEAVY == (HEAVY if heavy else set())


@pytest.mark.parametrize("word", ["status", "inbox"])
def test_what_asks_the_daemon_and_sends_nothing_loads_nothing_that_encrypts(word: str, inbox: Fleet) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "zkc", word], env=inbox.environment("bob"), capture_output=True,
        text=True, timeout=PATIENCE, check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "zkc.client.control" in imported
    assert not imported & {"cryptography", "zmq", "asyncio", "zkc.protocol.session"}


ASKS = """
import sys
from zkc.net import local_frames
dial, loaded = local_frames.dial, []
def telling(path, said, within):
    sock = dial(path, said, within)
    if b'"grant"' in said:
        loaded.append("zmq" in sys.modules)
    return sock
local_frames.dial = telling
from zkc.net import local_client
local_client.dial = telling
from zkc.ui.cli.main import main
code = main()
print(loaded, "zmq" in sys.modules, "zkc.stores.keystore" in sys.modules)
sys.exit(code)
"""
"""``zkc``, which tells whether libzmq was there when its daemon was asked, and at the end."""


def test_a_pipe_asks_the_daemon_before_it_loads_what_the_answer_is_for(inbox: Fleet) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKS, "send", "bob"], input=bytes(SMALL_MAX + 1), capture_output=True,
        env=inbox.environment("alice"), timeout=PATIENCE, check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"[False] True False\n"), done


def test_a_pipe_that_has_not_ended_is_sent_as_it_comes(inbox: Fleet) -> None:
    """It is not waited for until it is known to be small."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with inbox.popen("alice", "send", "bob", "--json", **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"first, ")
        process.stdin.flush()
        assert [json.loads(process.stdout.readline())["event"] for _ in range(2)] == ["requested", "granted"]
        process.stdin.write(b"second")
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
    assert taken(inbox) == b"first, second"


def test_a_dry_run_leaves_standard_input_to_others(fleet: Fleet) -> None:
    command = f"{sys.executable} -m zkc send bob --dry-run --quiet && cat"
    done = subprocess.run(
        ["sh", "-c", command], input=b"mine", env=fleet.environment("alice"), capture_output=True, check=True
    )
    assert done.stdout == b"mine"


def test_a_small_payload_is_sent_with_the_command_s_own_configuration(inbox: Fleet) -> None:
    env = {"ZKC_TRANSFER_CIPHER": "chacha20-poly1305", "ZKC_TRANSFER_CYPHER": "x"}
    done = inbox.zkc("alice", "send", "bob", "-m", "x", "--json", env=env)
    assert done.events[-1]["cipher"] == "chacha20-poly1305"
    assert b"the nearest is ZKC_TRANSFER_CIPHER" in done.err
    done = inbox.zkc("alice", "send", "bob", "-m", "x", "--json", env={"ZKC_TRANSFER_CIPHER": "rot13"})
    assert reason(done) == (2, "usage", "config")


@pytest.mark.attack("L07")
def test_what_a_killed_command_had_handed_over_is_not_sent(fleets: Fleets) -> None:
    fleet = fleets("alice")
    fleet.join("carol")
    with fleet.popen("alice", "send", "carol", "-m", "x", "--wait", "1h", "--json", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "requested"
        process.kill()
    fleet.start_daemon("carol")
    assert fleet.zkc("alice", "send", "carol", "-m", "marker", "--wait", "30s").code == 0
    assert taken_by(fleet, "carol") == b"marker"
    assert fleet.zkc("carol", "recv", "-o", "-").code == 22


def test_a_command_whose_daemon_ends_while_it_waits_goes_on_by_itself(fleets: Fleets) -> None:
    """It still has what it had handed over, and nothing of it had left."""
    fleet = fleets("alice")
    fleet.join("carol")
    for end in ("terminate", "kill"):
        words = "send", "carol", "-m", end, "--wait", "1h", "--json"
        with fleet.popen("alice", *words, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["event"] == "requested"
            getattr(fleet.program("alice"), end)()
            carol = fleet.start_daemon("carol")
            told = [json.loads(line)["event"] for line in process.stdout]
            assert (process.wait(PATIENCE), told[0], told[-1]) == (0, "granted", "delivered")
        assert taken_by(fleet, "carol") == end.encode()
        carol.terminate()
        fleet.start_daemon("alice")


@pytest.mark.attack("L06")
def test_without_a_daemon_it_links_by_itself_also_after_one_was_killed(fleets: Fleets) -> None:
    fleet = fleets("alice", "bob")
    fleet.program("alice").kill()
    assert reason(fleet.zkc("alice", "status", "--json")) == (34, "daemon", "not-running")
    assert fleet.zkc("alice", "send", "bob", stdin=b"by itself").code == 0
    assert taken(fleet) == b"by itself"
    # A sender of its own is not online.
    wait_until(lambda: not fleet.zkc("bob", "peers", "--json").events[0]["online"])
    fleet.start_daemon("alice")
    assert fleet.zkc("alice", "status", "--wait", "30s").code == 0


def test_without_a_link_it_is_10_at_once_with_and_without_a_daemon(fleets: Fleets) -> None:
    fleet = fleets("alice", "bob")
    fleet.program("bob").terminate()
    fleet.coordinator.terminate()
    wait_until(lambda: fleet.zkc("alice", "status").code == 10)
    for name in ("alice", "bob"):
        done = fleet.zkc(name, "send", "bob", "-m", "x", "--json")
        assert reason(done) == (10, "coordinator-unreachable", "refused")
        done = fleet.zkc(name, "send", "bob", "-m", "x", "--json", "--wait", "0.2s")
        assert reason(done)[0] == 10
    done = fleet.zkc("alice", "peers", "--json")
    assert done.code == 0
    # A coordinator that comes back is found by a command that waits, and by the daemon.
    with fleet.popen("alice", "send", "bob", "-m", "back", "--wait", "60s") as process:
        fleet.start_coordinator()
        fleet.start_daemon("bob")
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("words", [["--timeout", "1s"], ["--timeout", "1s", "--wait", "1s"]])
def test_a_timeout_while_the_coordinator_is_away_is_10_with_and_without_a_daemon(
    words: list[str], fleet: Fleet
) -> None:
    """It is there and says nothing: what the link fails at has not come out when the time is over."""
    with stopped(fleet.coordinator.process.pid):
        wait_until(lambda: fleet.zkc("alice", "status").code == 10)
        for name in ("alice", "carol"):
            assert reason(fleet.zkc(name, "send", "bob", "-m", "x", *words, "--json"))[0] == 10
    wait_until(lambda: fleet.zkc("bob", "status").code == 0)
    wait_until(lambda: fleet.zkc("alice", "send", "bob", "--dry-run").code == 0)


def test_an_own_daemon_that_stands_still_is_34_when_the_timeout_is_over(fleet: Fleet) -> None:
    with stopped(fleet.program("alice").process.pid):
        done = fleet.zkc("alice", "send", "bob", "-m", "x", "--timeout", "1s", "--json")
    assert reason(done) == (34, "daemon", "no-answer")
    wait_until(lambda: fleet.zkc("alice", "send", "bob", "--dry-run").code == 0)


def test_a_recipient_that_does_not_answer_is_30_and_one_that_dies_is_31(fleets: Fleets) -> None:
    fleet = fleets("alice", "bob")
    bob = fleet.program("bob").process
    bob.send_signal(signal.SIGSTOP)
    done = fleet.zkc("alice", "send", "bob", "-m", "x", "--timeout", "1s", "--json")
    assert reason(done) == (30, "timeout", "timeout")
    bob.send_signal(signal.SIGCONT)
    wait_until(lambda: fleet.zkc("alice", "send", "bob", "--dry-run").code == 0)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    impatient = fleet.environment("alice") | {"ZKC_TRANSFER_PATIENCE": "1s"}
    command = [sys.executable, "-m", "zkc", "send", "bob", "--json"]
    with subprocess.Popen(command, env=impatient, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x" * 2_000_000)
        process.stdin.flush()
        while json.loads(process.stdout.readline())["event"] != "granted":
            pass
        # It has flowed once the recipient has written it.
        wait_until(lambda: any(row["bytes"] for row in fleet.zkc("bob", "inbox", "--partial", "--json").events))
        fleet.program("bob").kill()
        process.stdin.close()
        last = json.loads(process.stdout.readlines()[-1])
        assert process.wait(PATIENCE) == 31
    assert last["reason"] == "interrupted"
    assert last["message"].startswith(("cannot reach bob", "the link to bob", "the transfer broke off"))


def test_a_recipient_whose_daemon_is_started_again_gets_the_file(fleets: Fleets, tmp_path: Path) -> None:
    """Ended by SIGTERM, with a word of farewell: the same as killed."""
    fleet = fleets("alice", "bob")
    (tmp_path / "big").write_bytes(bytes(SIZE))
    with held_send(fleet, "alice", "bob", str(tmp_path / "big"), "--json", stdout=subprocess.PIPE) as process:
        while json.loads(process.stdout.readline())["event"] != "granted":
            pass
        assert fleet.program("bob").terminate() == 0
        fleet.start_daemon("bob")
        process.stdin.close()
        lines = [json.loads(line) for line in process.stdout.readlines()]
        assert process.wait(PATIENCE) == 0, lines
    assert "granted" in {line["event"] for line in lines}, "it was over before bob's daemon ended"
    (item,) = fleet.zkc("bob", "inbox", "--partial", "--json").events
    assert (item["state"], item["bytes"]) == ("ready", SIZE)


def test_a_timeout_before_data_flowed_is_30(inbox: Fleet, tmp_path: Path) -> None:
    words, later = ["send", "bob", "--json", "--timeout", "30m"], tmp_path / "later"
    with started(inbox, later, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while json.loads(process.stdout.readline())["event"] != "granted":
            pass
        later.touch()
        process.stdin.write(b"x")  # wakes it: it sees first how late it is
        process.stdin.flush()
        last = json.loads(process.stdout.readlines()[-1])
        assert (process.wait(PATIENCE), last["reason"], last["detail"]) == (30, "timeout", "timeout")
    assert last["message"] == (
        "the transfer to bob timed out before the pipe gave anything to send; does what is before the pipe still run? "
        "else give it a longer timeout"
    )
    assert inbox.zkc("bob", "inbox").out == b""


def test_a_timeout_after_data_flowed_is_31(inbox: Fleet, tmp_path: Path) -> None:
    words, later = ["send", "bob", "--json", "--timeout", "30m"], tmp_path / "later"
    with started(inbox, later, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x" * 2_000_000)
        process.stdin.flush()
        wait_until(lambda: any(row["bytes"] for row in inbox.zkc("bob", "inbox", "--partial", "--json").events))
        later.touch()
        process.stdin.write(b"x")
        process.stdin.flush()
        last = json.loads(process.stdout.readlines()[-1])
        assert (process.wait(PATIENCE), last["reason"], last["detail"]) == (31, "interrupted", "timeout")
    assert inbox.zkc("bob", "inbox").out == b""
