"""What a shell offers at TAB."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.program import environment, zkc
from tests.support.waiting import wait_until
from zkc.testing import Fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob", "bert") as running:
        running.client("alice").send("bob", b"hello", name="\x1b[2Jreport.txt")
        yield running


def offered(env: dict[str, str], *words: str) -> list[str]:
    """What bash is offered for the last of ``words``."""
    asked = {"COMP_WORDS": " ".join(("zkc", *words)), "COMP_CWORD": str(len(words)), "_ZKC_COMPLETE": "bash_complete"}
    done = zkc(env={**env, **asked})
    assert (done.code, done.err) == (0, "")
    return [line.partition(",")[2] for line in done.out.splitlines() if line]


def test_commands_options_and_words_of_options(tmp_path: Path) -> None:
    env = {"ZKC_HOME": str(tmp_path / "none")}
    assert {"send", "recv", "doctor"} <= set(offered(env, ""))
    assert offered(env, "sen") == ["send"]
    assert "--require" in offered(env, "send", "bob", "--re")
    assert {"show", "save", "rm"} <= set(offered(env, "inbox", ""))
    assert "--partial" in offered(env, "inbox", "list", "--")
    assert not (tmp_path / "none").exists()


def test_peers_and_ids_are_those_of_this_home(fleet: Fleet) -> None:
    env = fleet.environment("alice")
    assert offered(env, "send", "b") == ["bert", "bob"]
    assert offered(env, "send", "bob,b") == ["bob,bert"]
    assert offered({}, "--home", env["ZKC_HOME"], "verify", "bo") == ["bob"]
    at_bob = fleet.environment("bob")
    wait_until(lambda: offered(at_bob, "inbox", "show", ""))
    (item,) = fleet.zkc("bob", "inbox", "--json").events
    assert offered(at_bob, "inbox", "show", item["id"][:3]) == [item["id"]]
    assert offered(at_bob, "accept", "") == []


@pytest.mark.attack("F07")
def test_what_a_peer_wrote_moves_no_cursor_in_a_list_of_completions(fleet: Fleet) -> None:
    asked = {"COMP_WORDS": "zkc inbox show ", "COMP_CWORD": "3", "_ZKC_COMPLETE": "zsh_complete"}
    wait_until(lambda: "report.txt" in zkc(env={**fleet.environment("bob"), **asked}).out)
    assert "\x1b" not in zkc(env={**fleet.environment("bob"), **asked}).out


def test_without_a_home_a_daemon_or_sense_it_is_quick_and_silent(fleet: Fleet, tmp_path: Path) -> None:
    for home in (tmp_path / "none", Path("/dev/null")):
        assert offered({"ZKC_HOME": str(home)}, "send", "") == []
        assert offered({"ZKC_HOME": str(home)}, "inbox", "show", "") == []
        assert offered({"ZKC_HOME": str(home)}, "nonsense", "") == []
    asked = {"_ZKC_COMPLETE": "nonsense", "COMP_WORDS": "zkc", "COMP_CWORD": "x"}
    assert (zkc(env=asked).code, zkc(env=asked).out) == (0, "")


def test_each_shell_gets_a_script_that_asks_us() -> None:
    for shell in ("bash", "zsh", "fish"):
        done = zkc("completion", shell)
        assert (done.code, "_ZKC_COMPLETE" in done.out, f"{shell}_complete" in done.out) == (0, True, True)
        (told,) = zkc("completion", shell, "--json").objects
        assert (told["event"], told["shell"]) == ("completion", shell)
    assert zkc("completion", "tcsh").code == 2


def test_bash_itself_takes_it(tmp_path: Path) -> None:
    program = tmp_path / "zkc"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m zkc "$@"\n')
    program.chmod(0o755)
    words = zkc("completion", "bash").out + f"""
COMP_WORDS=(zkc doc); COMP_CWORD=1
_zkc_completion {program} doc zkc
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", words], env=environment({}), capture_output=True, text=True, check=True)
    assert done.stdout == "doctor\n"
