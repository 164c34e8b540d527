"""What a shell offers at TAB."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from scripts.lib import manuals
from tests.support.program import environment, finished, zkc
from tests.support.waiting import wait_until
from zkc.testing import Fleet
from zkc.ui.cli import completing, fetching
from zkc.ui.cli.options import Invocation

COMMANDS = {name: context.command for name, context in manuals.commands()}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob", "bert") as running:
        running.client("alice").send("bob", b"hello", name="\x1b[2Jreport.txt")
        yield running


def answered(env: dict[str, str], *words: str) -> list[str]:
    """What bash is told of the last of ``words``: ``plain,bob``, or ``file,``."""
    asked = {"COMP_WORDS": " ".join(("zkc", *words)), "COMP_CWORD": "", "_ZKC_COMPLETE": "bash_complete"}
    done = zkc(env={**env, **asked})
    assert (done.code, done.err) == (0, "")
    return [line for line in done.out.splitlines() if line]


def offered(env: dict[str, str], *words: str) -> list[str]:
    """What bash is offered for the last of ``words``."""
    return [line.partition(",")[2] for line in answered(env, *words)]


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


def test_shares_are_those_that_the_other_client_lets_this_one_ask_for(fleet: Fleet, tmp_path: Path) -> None:
    """bert may ask alice for two shares, bob for one of them; names of peers are offered before the colon."""
    (tmp_path / "x").write_text("x")
    for name in ("bob", "bert"):
        fleet.zkc("alice", "verify", name)
    fleet.zkc("alice", "share", "builds", str(tmp_path), "--to", "bob,bert")
    fleet.zkc("alice", "share", "books", str(tmp_path / "x"), "--to", "bert")
    at_alice, at_bob, at_bert = (fleet.environment(name) for name in ("alice", "bob", "bert"))
    assert offered(at_bob, "get", "al") == ["alice:"]
    assert offered(at_bob, "get", "alice:") == ["alice:builds/"]
    assert offered(at_bert, "get", "alice:b") == ["alice:books", "alice:builds/"]
    assert offered(at_bert, "get", "alice:bu") == ["alice:builds/"]
    assert offered(at_bert, "send", "bert", "--from", "alice", "bo") == ["books"]
    assert offered(at_bob, "get", "nobody:") == []
    assert offered(at_alice, "share", "--remove", "bu") == ["builds"]
    assert offered(at_alice, "share", "n", "p", "--to", "bo") == ["bob"]
    (fleet.home("alice") / "config.toml").write_text('[groups]\nops = ["bob"]\n')
    assert offered(at_alice, "share", "n", "p", "--for", "bob,@") == ["bob,@ops"]


def test_jobs_and_applications_are_those_of_this_home(fleet: Fleet) -> None:
    env = fleet.environment("bob")
    assert fleet.zkc("bob", "join", "--app", "backup").code == 0
    assert offered(env, "recv", "--app", "") == ["backup"]
    (job,) = fleet.zkc("bob", "send", "nobody-yet", "-m", "x", "--queue", "--json").events
    assert offered(env, "outbox", "cancel", "") == [job["id"]]
    assert offered(env, "outbox", "retry", job["id"][:4]) == [job["id"]]
    assert fleet.zkc("bob", "outbox", "cancel", job["id"]).code == 0


def test_values_that_are_fixed_are_offered(tmp_path: Path) -> None:
    env = {"ZKC_HOME": str(tmp_path / "none")}
    assert offered(env, "send", "bob", "--require", "") == ["online", "present", "authorised"]
    assert offered(env, "send", "bob", "--require=pre") == ["present"]
    assert offered(env, "send", "bob", "--cipher", "a") == ["aes-256-gcm"]
    assert offered(env, "join", "--accept", "a") == ["all", "ask"]
    assert offered(env, "presence", "a") == ["away", "auto"]
    assert offered(env, "completion", "") == ["bash", "zsh", "fish"]


def test_where_a_file_or_a_folder_is_named_the_shell_offers_its_own(tmp_path: Path) -> None:
    env = {"ZKC_HOME": str(tmp_path / "none")}
    for words in (
        ("send", "bob", "re"), ("recv", "-o", "re"), ("send", "bob", "--receipt", "re"), ("receipt", "show", "re"),
        ("join", "--invite-file", "re"), ("share", "builds", "re"), ("inbox", "save", "3f", "-o", "re"),
    ):
        assert answered(env, *words) == ["file,re"], words
    assert answered(env, "--home", "x") == ["dir,x"]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_where_a_file_or_a_name_is_wanted_something_is_offered(name: str) -> None:
    """What a person would have to look up otherwise; `offers` of a command that comes later is not forgotten."""
    told = COMMANDS[name].params
    wanted = ("FILE", "PATH", "DIR", "CLIENT", "APP", "NAME|")
    silent = [
        each.opts[0] for each in told if each._custom_shell_complete is None
        and ((each.metavar or "").startswith(wanted) or each.name in {"file", "path", "paths"})
    ]
    assert silent == []


def test_a_coordinator_offers_its_clients_and_open_invitations(fleet: Fleet) -> None:
    env = fleet.environment("coordinator")
    assert offered(env, "coordinator", "revoke", "b") == ["bert", "bob", "bob/backup"]
    fleet.invite("carol")
    assert offered(env, "coordinator", "invite", "--cancel", "") == ["carol"]


@pytest.mark.attack("F07")
def test_what_a_peer_wrote_moves_no_cursor_in_a_list_of_completions(fleet: Fleet) -> None:
    asked = {"COMP_WORDS": "zkc inbox show ", "COMP_CWORD": "3", "_ZKC_COMPLETE": "zsh_complete"}
    wait_until(lambda: "report.txt" in zkc(env={**fleet.environment("bob"), **asked}).out)
    assert "\x1b" not in zkc(env={**fleet.environment("bob"), **asked}).out


@pytest.mark.attack("F07")
def test_a_name_that_is_none_becomes_no_word_of_a_line_of_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a coordinator that tells of such clients, and a client that tells of such shares."""
    hostile = ("bob", "$(reboot)", "b;reboot", "b\nplain,x", "b c", "\x1b[2J")
    told = SimpleNamespace(
        peers=[SimpleNamespace(name=name) for name in hostile], shares=lambda: shares
    )
    shares = [SimpleNamespace(name=name, kind="folder") for name in hostile]
    monkeypatch.setattr(completing, "_ask", lambda *_: [told])
    monkeypatch.setattr(fetching, "asker_of", lambda *_: contextlib.nullcontext(told))
    context = click.Context(COMMANDS["zkc-get"], obj=Invocation())
    parameter = context.command.params[0]
    assert [item.value for item in completing.peers(context, parameter, "")] == ["bob"]
    assert [item.value for item in completing.fetchable(context, parameter, "alice:")] == ["alice:bob/"]


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


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """``zkc`` on the PATH of a shell."""
    path = tmp_path / "bin" / "zkc"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m zkc "$@"\n')
    path.chmod(0o755)
    return path


def said(program: Path, command: list[str], env: dict[str, str]) -> str:
    path = {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(program.parent)}
    done = subprocess.run(command, env=environment({**env, **path}), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def in_bash(program: Path, env: dict[str, str], line: str) -> list[str]:
    """What bash puts in the place of the last word of ``line``, and ``nospace`` where it goes on."""
    words = zkc("completion", "bash").out + f"""
compopt() {{ printf '%s\\n' "$2"; }}
COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
COMP_LINE={shlex.quote(line + "and what follows")}; COMP_POINT={len(line)}
_zkc_completion {program}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    return said(program, ["bash", "-c", words], env).split()


def test_bash_itself_takes_it(fleet: Fleet, program: Path) -> None:
    assert in_bash(program, {}, "zkc doc") == ["doctor"]
    assert in_bash(program, {}, "zkc send bob --require=pre") == ["present"]
    assert in_bash(program, {}, "zkc send bob 're po") == ["default"]
    assert in_bash(program, fleet.environment("bob"), "zkc get al") == ["nospace", "alice:"]


def test_bash_replaces_only_what_follows_a_colon(fleet: Fleet, program: Path, tmp_path: Path) -> None:
    fleet.zkc("alice", "verify", "bob")
    fleet.zkc("alice", "share", "colon", str(tmp_path), "--to", "bob")
    assert in_bash(program, fleet.environment("bob"), "zkc get alice:col") == ["nospace", "colon/"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_itself_takes_it(fleet: Fleet, program: Path) -> None:
    words = f"""
compdef() {{ }}
compadd() {{ print -r -- "$@" ${{(P)@[-1]}} }}
compset() {{ print -r -- compset "$@" }}
_describe() {{ print -r -- described ${{(P)3}} }}
{zkc("completion", "zsh").out}
words=(zkc get al); CURRENT=3; PREFIX=al
_zkc_completion
words=(zkc send bob --require=pre); CURRENT=4; PREFIX=--require=pre
_zkc_completion
PREFIX=doc
words=(zkc doc); CURRENT=2
_zkc_completion
"""
    env = fleet.environment("bob")
    assert said(program, ["zsh", "-fc", words], env).splitlines() == [
        "-U -S  -V unsorted -a open alice:", "compset -P *=", "-V unsorted -a whole present",
        "described doctor:Find out what does not work, and why.",
    ]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_itself_takes_it(fleet: Fleet, program: Path) -> None:
    script = program.parent / "zkc.fish"
    script.write_text(zkc("completion", "fish").out)
    lines = ("zkc get al", "zkc doc", "zkc send b --require=p")
    asked = [f"source {script}", *(f"complete -C '{line}'" for line in lines)]
    told = said(program, ["fish", "-c", "; ".join(asked)], fleet.environment("bob")).splitlines()
    assert [line.partition("\t")[0] for line in told] == ["alice:", "doctor", "--require=present"]


# --- quick, whatever happens -----------------------------------------------------------------------------------------


def test_a_name_is_offered_without_what_costs(fleet: Fleet) -> None:
    """Neither asyncio nor the coordinator's half: a shell waits for it at each TAB."""
    asked = {"COMP_WORDS": "zkc send b", "COMP_CWORD": "", "_ZKC_COMPLETE": "bash_complete"}
    done = finished(
        [sys.executable, "-X", "importtime", "-m", "zkc"], env={**fleet.environment("bob"), **asked}
    )
    assert "plain,bert" in done.out
    imported = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert not imported & {"asyncio", "rich", "sqlalchemy", "structlog", "zmq", "zkc.coordinator"}


def test_what_takes_too_long_is_not_offered_and_nothing_is_said(tmp_path: Path) -> None:
    """A daemon that accepts and is silent, and a file that is never ready to be read: both are given up."""
    held = (
        "import sys, time, zkc.ui.cli.completing as it, zkc.ui.cli.main as main\n"
        "it._WHOLE_SECONDS = 0.2\n"
        "it.files = lambda *_: time.sleep(600)\n"
        "sys.exit(main.main([]))\n"
    )
    asked = {"COMP_WORDS": "zkc receipt show x", "COMP_CWORD": "", "_ZKC_COMPLETE": "bash_complete"}
    done = finished([sys.executable, "-c", held], env={"ZKC_HOME": str(tmp_path), **asked})
    assert (done.code, done.out, done.err) == (0, "", "")


def test_shares_are_not_asked_for_without_a_daemon(fleet: Fleet, tmp_path: Path) -> None:
    """Of the home of a client that has joined, whose daemon does not run: no link is made for it."""
    home = tmp_path / "home"
    shutil.copytree(fleet.home("bob"), home, ignore=shutil.ignore_patterns("run"))
    asked = {"COMP_WORDS": "zkc get alice:", "COMP_CWORD": "", "_ZKC_COMPLETE": "bash_complete"}
    env = {**fleet.environment("bob"), "ZKC_HOME": str(home), **asked}
    done = finished([sys.executable, "-X", "importtime", "-m", "zkc"], env=env)
    imported = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert done.out.strip() == ""
    assert "zkc.client.control" in imported
    assert "asyncio" not in imported
