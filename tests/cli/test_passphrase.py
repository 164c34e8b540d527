"""A passphrase over a client's keys: who has to give it, and what happens without."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.waiting import DEADLINE
from zkc.testing import Done, Fleet, Program

WORD = "correct horse battery"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """alice, whose home a passphrase locks, and bob, whose it does not."""
    with Fleet("bob") as running:
        yield running


@pytest.fixture(scope="module")
def word(fleet: Fleet) -> Path:
    return written(fleet, "word", WORD + "\n")


def written(fleet: Fleet, name: str, text: str) -> Path:
    path = fleet.folder / name
    path.write_text(text)
    path.chmod(0o600)
    return path


def error_of(done: Done) -> tuple[int, str]:
    event = [event for event in done.events if event["event"] == "error"][-1]
    return event["code"], event["detail"]


def on_terminal(fleet: Fleet, words: Sequence[str], answers: Sequence[tuple[str, str]]) -> tuple[int, str]:
    """``zkc WORDS`` by alice on a terminal, where each prompt gets its answer; exit status, and what is to be seen."""
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "zkc", *words], stdin=terminal, stdout=terminal, stderr=terminal,
        env=fleet.environment("alice"), close_fds=True,
    )
    os.close(terminal)
    seen, left = "", list(answers)
    while True:
        assert select.select([master], [], [], DEADLINE)[0], seen
        try:
            seen += os.read(master, 4096).decode()
        except OSError:  # the other end is closed
            break
        if left and seen.rpartition("\n")[2].endswith(left[0][0]):
            os.write(master, left.pop(0)[1].encode() + b"\n")
            seen += "\n"
    os.close(master)
    return process.wait(DEADLINE), seen


@pytest.mark.attack("K02")
def test_locked_keys_serve_who_gives_the_passphrase_and_nobody_else(fleet: Fleet, word: Path) -> None:
    wrong = written(fleet, "wrong", "incorrect horse")
    given, lied = {"ZKC_PASSPHRASE_FILE": str(word)}, {"ZKC_PASSPHRASE_FILE": str(wrong)}
    joined = fleet.zkc("alice", "join", "--passphrase", env=given | {"ZKC_INVITE": fleet.invite("alice")})
    assert joined.code == 0, joined

    # Without a daemon each command that needs a key needs the passphrase; the others do not.
    refusals = [fleet.zkc("alice", "send", "bob", "-m", "x", "--json", env=env) for env in ({}, lied)]
    assert [error_of(done) for done in refusals] == [(33, "locked")] * 2
    several = fleet.zkc("alice", "send", "bob,carol", "-m", "x")
    assert (several.code, several.err.count(b"passphrase"), several.err.count(b"defect")) == (33, 2, 0), several
    assert error_of(fleet.zkc("alice", "daemon", "--json", env=lied)) == (33, "locked")
    assert fleet.zkc("alice", "send", "bob", "-m", "by file", env=given).code == 0
    credentials = fleet.folder / "credentials"
    credentials.mkdir(mode=0o700)
    written(fleet, "credentials/zkc-passphrase", WORD)
    by_systemd = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert fleet.zkc("alice", "send", "bob", "-m", "by credential", env=by_systemd).code == 0
    assert fleet.zkc("alice", "inbox").code == 0
    word.chmod(0o644)
    assert error_of(fleet.zkc("alice", "send", "bob", "-m", "x", "--json", env=given)) == (33, "permission")
    word.chmod(0o600)

    # A daemon is asked once; then commands, a rotation and an application do without.
    command, log_file = [sys.executable, "-m", "zkc", "daemon"], fleet.folder / "a.log"
    program = Program(command, fleet.environment("alice") | given, log_file)
    try:
        program.wait_ready()
        assert fleet.zkc("alice", "status", "--wait", "60s").code == 0
        assert fleet.zkc("alice", "send", "bob", "-m", "by daemon").code == 0
        looked = fleet.zkc("alice", "doctor", "--json")
        kinds = ("keys", "curve")
        states = [each["state"] for each in looked.events if each.get("step", "").partition(" ")[0] in kinds]
        assert (looked.code, states) == (0, ["note", "note"]), looked
        assert fleet.zkc("alice", "rotate").code == 0
        assert fleet.zkc("bob", "send", "alice", "-m", "back").code == 0
        assert error_of(fleet.zkc("alice", "rotate", "--no-passphrase", "--json", env=given)) == (34, "already-running")
    finally:
        program.terminate()
    log = log_file.read_text()
    for shown in (*(done.err.decode() + done.out.decode() for done in refusals), log, joined.err.decode()):
        assert "horse" not in shown


@pytest.mark.attack("K02")
def test_a_person_is_asked_on_a_terminal_twice_for_a_new_one_and_sees_nothing_of_it(fleet: Fleet, word: Path) -> None:
    asked = ("Passphrase: ", WORD)
    code, seen = on_terminal(
        fleet, ["rotate", "--passphrase"],
        [asked, ("New passphrase: ", "second"), ("Repeat for confirmation: ", "other"),
         ("New passphrase: ", "second"), ("Repeat for confirmation: ", "second")],
    )
    assert code == 0, seen
    assert not [secret for secret in (WORD, "second") if secret in seen]
    code, seen = on_terminal(fleet, ["send", "bob", "-m", "x"], [asked])
    assert code == 33
    assert "not the passphrase" in seen
    code, seen = on_terminal(fleet, ["send", "bob", "-m", "x"], [("Passphrase: ", "second")])
    assert code == 0, seen
    code, seen = on_terminal(fleet, ["rotate", "--no-passphrase"], [("Passphrase: ", "second")])
    assert code == 0, seen
    assert fleet.zkc("alice", "send", "bob", "-m", "free").code == 0
    done = fleet.zkc("alice", "rotate", "--passphrase", "--json")
    assert json.loads(done.out)["code"] == 2, "nobody to ask, and no file"
