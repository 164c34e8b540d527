"""Which commands and options there are, what is refused, and what commands do in a home in which nobody ever joined."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.support.program import zkc
from zkc.errors import UsageError
from zkc.ui.cli.main import COMMANDS
from zkc.ui.cli.options import Command, Group, Invocation, root


def every_command() -> Iterator[tuple[str, click.Command]]:
    """``inbox save`` and its like, with the command itself."""
    top = root(COMMANDS)
    context = click.Context(top)
    for name in top.list_commands(context):
        command = top.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, Group):
            for inner in command.list_commands(context):
                below = command.get_command(context, inner)
                assert below is not None
                yield f"{name} {inner}", below


ALL = dict(every_command())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.mark.parametrize("name", sorted(ALL))
def test_help_begins_with_an_example_of_that_command(name: str) -> None:
    lines = zkc(*name.split(), "--help").out.splitlines()
    assert lines[0].startswith(f"Usage: zkc {name} ")
    assert lines[2] in {"Example:", "Examples:"}
    assert f"zkc {name.removesuffix(' list')}" in lines[3]


def test_help_of_zkc_begins_with_examples() -> None:
    lines = zkc("--help").out.splitlines()
    assert lines[2] == "Examples:"
    assert lines[3].startswith("  zkc join ")


@pytest.mark.parametrize("name", ["zkc", *sorted(ALL)])
def test_every_example_is_a_call_of_its_command_that_the_command_line_takes(name: str) -> None:
    command = root(COMMANDS) if name == "zkc" else ALL[name]
    assert isinstance(command, Command | Group)
    for line in command.example.splitlines():
        found = [taken_by(words) for words in calls_in(line)]
        assert found, f"no call of zkc in {line!r}"
        if name != "zkc":
            expected = name.removesuffix(" list")
            assert any(f"{path} ".startswith(f"{expected} ") for path in found), f"{line!r} calls {found}"


@pytest.mark.parametrize("line", ["zkc send", "zkc send bob --wiat 1h", "true | zkc check bob --size 4X", "zkc shw"])
def test_a_call_that_the_command_line_does_not_take_is_no_example(line: str) -> None:
    (words,) = calls_in(line)
    with pytest.raises((click.UsageError, UsageError)):
        taken_by(words)


def calls_in(line: str) -> list[list[str]]:
    """The words behind each ``zkc`` of a line of shell."""
    lexer = shlex.shlex(re.sub(r'"?\$\((.*?)\)"?', r"; \1", line), posix=True, punctuation_chars="<>|&;")
    lexer.whitespace_split = True
    calls: list[list[str]] = []
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;"):
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                del words[0]
            if words and words[0] in {"eval", "ssh"}:
                words = words[words.index("zkc"):] if "zkc" in words else []
            if words and words[0] == "zkc":
                end = next((at for at, each in enumerate(words) if each in {"<", ">"}), len(words))
                calls.append(words[1:end])
            words = []
        else:
            words.append(word)
    return calls


def taken_by(words: list[str]) -> str:
    """``inbox save``, the command whose words these are; parsed as ever, but not run."""
    context = root(COMMANDS).make_context("zkc", list(words), obj=Invocation())
    path: list[str] = []
    while isinstance(context.command, Group):
        rest = [*context._protected_args, *context.args]
        name, command, rest = context.command.resolve_command(context, rest)
        assert name is not None
        assert command is not None
        path.append(name)
        context = command.make_context(name, rest, parent=context)
    return " ".join(path).removesuffix(" list")


def test_every_command_of_this_version_is_listed_with_one_line() -> None:
    help_text = zkc("--help").out
    for name in COMMANDS:
        (line,) = [line for line in help_text.splitlines() if line.startswith(f"  {name} ")]
        assert not line.endswith("...")


def test_no_summary_of_a_subcommand_is_cut() -> None:
    for name in ("coordinator", "inbox", "peers"):
        lines = zkc(name, "--help").out.splitlines()
        assert [line for line in lines if line.startswith("  ") and line.endswith("...")] == []


def test_a_wrong_value_of_an_option_names_the_option(home: Path) -> None:
    done = zkc("join", "--listen", "7700", env={"ZKC_HOME": str(home), "ZKC_INVITE": "x"})
    assert done.err.startswith("zkc: --listen: transfer.listen cannot be ")


def test_where_no_coordinator_runs_it_says_how_to_start_one(home: Path) -> None:
    assert zkc("coordinator", "status", env={"ZKC_HOME": str(home)}).err.endswith("start it: zkc coordinator run\n")


@pytest.mark.parametrize(
    "words",
    [
        ["send", "bob", "-", "two"], ["send", "Bob", "-m", "x"],
        ["send", "bob", "-m", "x", "file"], ["send", "bob", "--cipher", "aes", "-m", "x"],
        ["send", "bob", "--key-source", "me", "-m", "x"], ["send", "bob", "--wait", "soon", "-m", "x"],
        ["send", "bob", "-m", "x", "--name", "a/b"], ["send", "bob", "-m", "x" * 65537],
        ["send", "bob", "-m", "x", "--name", ""], ["send", "bob", "-m", "x", "--note", "n" * 4097],
        ["send", "bob", "-m", "x", "--receipt", "/tmp"],
        ["recv", "--conflict", "ask"], ["recv", "-o", "x", "--exec", "true"], ["recv", "--exec"],
        ["recv", "--from", "Bob"], ["recv", "-o", ""], ["join"], ["join", "--app", "backup", "--accept", "all"],
        ["verify", "bob", "--trust", "1234"], ["coordinator", "invite"], ["coordinator", "invite", "bob", "--list"],
        ["coordinator", "invite", "--list", "--ttl", "1h"], ["coordinator", "invite", "bob", "--kind", "robot"],
        ["coordinator", "invite", "bob", "--ttl", "400d"], ["coordinator", "invite", "bob", "--ttl", "0.5s"],
        ["coordinator", "run", "--listen", "7670"], ["peers", "forget"], ["inbox", "rm"],
        ["inbox", "save", "1", "-o", "-"],
    ],
)  # fmt: skip
def test_wrong_arguments_end_with_2_one_line_and_nothing_on_disk(words: list[str], home: Path) -> None:
    done = zkc(*words, env={"ZKC_HOME": str(home)})
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert not home.exists() or words[:2] == ["coordinator", "run"]


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["--cipher", "aes256gcm"], "aes-256-gcm"), (["--cipher", "chacha20"], "chacha20-poly1305"),
        (["--cipher", "des"], "3des"), (["--key-source", "sendr"], "sender"),
    ],
)
def test_an_unknown_word_is_told_the_nearest(words: list[str], nearest: str) -> None:
    assert f"the nearest is {nearest}\n" in zkc("send", "bob", "-m", "x", *words).err


@pytest.mark.parametrize(
    ("words", "code", "detail"),
    [
        (["status"], 34, "not-running"), (["status", "--wait", "0.2s"], 34, "not-running"),
        (["send", "bob", "-m", "x"], 11, "no-registration"),
        (["send", "bob,carol", "gone"], 11, "no-registration"), (["recv"], 11, "no-registration"),
        (["recv", "--app", "backup"], 11, "no-registration"), (["inbox"], 11, "no-registration"),
        (["peers"], 11, "no-registration"), (["verify", "bob"], 11, "no-registration"),
        (["leave"], 11, "no-registration"), (["daemon"], 11, "no-registration"),
        (["join", "--app", "backup"], 11, "no-registration"), (["coordinator", "status"], 34, "not-running"),
        (["coordinator", "status", "--wait", "0.2s"], 34, "not-running"),
        (["coordinator", "invite", "bob", "--endpoint", "tcp://127.0.0.1:7670"], 34, "not-running"),
        (["coordinator", "clients"], 34, "not-running"), (["coordinator", "revoke", "bob"], 34, "not-running"),
    ],
)  # fmt: skip
def test_in_an_empty_home_each_command_says_so_and_makes_nothing(
    words: list[str], code: int, detail: str, home: Path
) -> None:
    done = zkc(*words, "--json", env={"ZKC_HOME": str(home)})
    assert (done.code, done.objects[-1]["detail"]) == (code, detail)
    assert not home.exists()


def test_status_without_a_daemon_is_an_object_before_the_error(home: Path) -> None:
    status, error = zkc("status", "--json", env={"ZKC_HOME": str(home)}).objects
    assert (status["event"], status["daemon"], status["linked"], error["event"]) == ("status", False, False, "error")


@pytest.mark.parametrize(
    ("role", "words"), [("coordinator", ["status"]), ("coordinator", ["recv"]), ("client", ["coordinator", "status"])]
)
def test_a_home_of_the_other_role_is_a_usage_error(role: str, words: list[str], home: Path) -> None:
    home.mkdir(0o700)
    (home / "role").write_text(f"{role}\n")
    (home / "role").chmod(0o600)
    done = zkc(*words, "--json", env={"ZKC_HOME": str(home)})
    assert (done.code, done.objects[-1]["detail"]) == (2, "role")


@pytest.mark.parametrize(
    "words", [["status"], ["send", "bob", "-m", "x"], ["recv"], ["join"], ["daemon"], ["coordinator", "run"]]
)
def test_a_home_that_is_a_file_is_a_usage_error(words: list[str], home: Path) -> None:
    home.write_text("mine")
    done = zkc("--home", str(home), *words)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"zkc: the home {home} is not a folder; name another with --home or ZKC_HOME\n"
    assert home.read_text() == "mine"


def test_a_path_that_cannot_be_read_is_33(home: Path) -> None:
    assert zkc("send", "bob", "not-there", env={"ZKC_HOME": str(home)}).code == 33
    assert zkc("join", "--invite-file", "not-there", env={"ZKC_HOME": str(home)}).code == 33


@pytest.mark.parametrize("text", ["", "zkc1-", "zkc1-AAAA", "hello", "zkc1-" + "A" * 100000])
def test_a_malformed_invitation_is_2_and_makes_nothing(text: str, home: Path) -> None:
    done = zkc("join", "--invite-file", "-", "--json", stdin=text, env={"ZKC_HOME": str(home)})
    assert (done.code, done.objects[-1]["detail"]) == (2, "bad-invite")
    assert not home.exists()


def test_an_invitation_is_never_an_argument(home: Path) -> None:
    done = zkc("join", "zkc1-SECRET", env={"ZKC_HOME": str(home)})
    assert done.code == 2
