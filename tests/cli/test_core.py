"""The rules that hold for every command: options, streams, errors, signals (docs/cli.md)."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import zkc as package
from tests.support.odd import COMMAND as ODD
from tests.support.program import PATIENCE, TOP, Done, environment, finished, zkc
from zkc.errors import BY_CODE


def odd(*words: str, env: dict[str, str] | None = None) -> Done:
    return finished([*ODD, *words], env=env)


# --- options --------------------------------------------------------------------------------------------------------


def test_version_is_one_line_on_stdout() -> None:
    done = zkc("--version")
    assert (done.code, done.out, done.err) == (0, f"zkc {package.__version__}\n", "")


@pytest.mark.parametrize("words", [["--json", "--version"], ["--version", "--json"]])
def test_version_is_an_object_with_json(words: list[str]) -> None:
    assert zkc(*words).objects == [{"v": 1, "event": "version", "version": package.__version__}]


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["config", "-h"], ["--json", "config", "--help"]])
def test_help_is_on_stdout_and_ends_with_0(words: list[str]) -> None:
    done = zkc(*words)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: zkc")


@pytest.mark.parametrize(
    "words", [["--json", "odd", "list"], ["odd", "--json", "list"], ["odd", "list", "--json"], ["odd", "--json"]]
)
def test_a_global_option_may_stand_anywhere(words: list[str]) -> None:
    assert odd(*words).objects == [{"v": 1, "event": "odd", "name": "bob", "size": 3, "there": True, "seen": None}]


def test_the_value_of_an_option_is_not_taken_for_a_global_option() -> None:
    assert odd("odd", "say", "--note", "--json").out == "note=--json words=\n"


def test_what_follows_two_dashes_is_not_an_option() -> None:
    assert odd("odd", "say", "--", "--json", "--home").out == "note= words=--json --home\n"


def test_a_group_without_a_subcommand_does_what_is_listed_first() -> None:
    assert odd("odd").out == odd("odd", "list").out
    assert odd("odd", "--all").out == odd("odd", "list", "--all").out
    assert odd("odd", "--home", "list", "--all").out == odd("odd", "list", "--all").out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "zkc: no command given; 'zkc --help' lists them"),
        (["confg"], "zkc: there is no command 'confg'; did you mean 'zkc config'?"),
        (["qqqq"], "zkc: there is no command 'qqqq'; 'zkc --help' lists them"),
        (["odd", "lisst"], "zkc: odd: there is no command 'lisst'; did you mean 'zkc odd list'?"),
        (["--josn"], "zkc: there is no option --josn; did you mean --json?"),
        (["odd", "say", "--ntoe", "x"], "zkc: odd say: there is no option --ntoe; did you mean --note?"),
        (["odd", "say", "--note"], "zkc: odd say: option '--note' requires an argument; see 'zkc odd say --help'"),
        (["--home", "", "odd"], "zkc: --home is empty; give it a folder, or leave it out"),
        (["odd", "list", "x"], "zkc: odd list: got unexpected extra argument (x); see 'zkc odd list --help'"),
    ],
)
def test_wrong_arguments_end_with_2_and_one_line_that_names_the_nearest(words: list[str], line: str) -> None:
    done = odd(*words)
    assert (done.code, done.out, done.err) == (2, "", line + "\n")


@pytest.mark.parametrize("words", [["--bad", "--json"], ["--json", "--bad"], ["odd", "say", "--bad", "--json"]])
def test_wrong_arguments_are_an_object_with_json_wherever_it_stands(words: list[str]) -> None:
    done = odd(*words)
    assert (done.code, done.err) == (2, "")
    assert [(told["event"], told["code"], told["reason"]) for told in done.objects] == [("error", 2, "usage")]


# --- errors ---------------------------------------------------------------------------------------------------------


def test_an_error_is_one_escaped_line_on_stderr() -> None:
    done = odd("odd", "fail", "21", "--quiet")
    assert (done.code, done.out) == (21, "")
    assert done.err == "zkc: alice: evil\\x1b[31m\\u202egpj.exe\\x0anext went wrong; do this\n"


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_each_error_of_the_contract_is_an_object_with_its_code_and_reason(code: int) -> None:
    done = odd("odd", "fail", str(code), "--json")
    assert (done.code, done.err) == (code, "")
    (told,) = done.objects
    assert told.pop("message").startswith("alice: ")
    assert told == {"v": 1, "event": "error", "code": code, "reason": BY_CODE[code].reason, "detail": "finer"}


def test_where_stdout_carries_the_payload_json_goes_to_stderr() -> None:
    done = odd("odd", "fail", "32", "--payload", "--json")
    assert (done.code, done.out) == (32, "payload")
    assert json.loads(done.err)["reason"] == "integrity"


def test_a_defect_ends_with_1_and_one_line_without_a_traceback() -> None:
    done = odd("odd", "defect")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith("zkc: a defect of zkc: ValueError: evil\\x1b")


def test_debug_shows_where_an_error_arose() -> None:
    assert "Traceback" in odd("--debug", "odd", "defect").err
    assert "Traceback" in odd("odd", "fail", "21", "--debug").err


def test_a_file_that_cannot_be_read_is_no_defect() -> None:
    done = odd("odd", "defect", "--file")
    hint = "did something remove it, or its folder?"
    assert (done.code, done.err) == (33, f"zkc: cannot use not-there: No such file or directory; {hint}\n")


# --- streams --------------------------------------------------------------------------------------------------------


def test_notices_go_to_stderr_and_quiet_silences_them() -> None:
    assert odd("odd", "say").err == "a notice\n"
    assert odd("odd", "say", "--quiet").err == ""
    assert odd("odd", "say").out == odd("odd", "say", "--quiet").out


def test_a_table_has_aligned_columns_and_escaped_cells() -> None:
    assert odd("odd", "list", "--all").out.splitlines() == [
        "NAME                               SIZE    THERE  LAST SEEN",
        "bob                                3B      yes    -",
        "evil\\x1b[31m\\u202egpj.exe\\x0anext  70000B  no     -",
    ]


def test_json_is_ascii_and_one_object_per_line() -> None:
    done = odd("odd", "list", "--all", "--json")
    assert done.out.isascii()
    assert len(done.objects) == 2
    assert "\x1b" not in done.out


@pytest.mark.parametrize("words", [["odd", "flood"], ["odd", "flood", "--payload"], ["odd", "flood", "--json"]])
def test_a_reader_that_goes_away_ends_it_quietly_with_141(words: list[str]) -> None:
    with subprocess.Popen([*ODD, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize("words", ["odd list", "odd list --json", "--help", "odd fail 21 --json"])
def test_stdout_that_cannot_be_written_is_an_error_and_never_0(words: str) -> None:
    done = finished(["sh", "-c", f"{sys.executable} -m tests.support.odd {words} >/dev/full"])
    assert done.code == (21 if "fail" in words else 33)
    if "--json" in words:
        assert json.loads(done.err)["code"] == done.code, "what stdout does not take, stderr does"
    else:
        assert done.err == "zkc: cannot write to standard output: No space left on device; make room and run it again\n"


def test_closed_streams_are_no_place_for_the_next_file() -> None:
    done = finished(["sh", "-c", f"{sys.executable} -m tests.support.odd odd list >&- <&-"])
    assert (done.code, done.err) == (33, "zkc: standard output is closed; give it a file or a pipe\n")
    assert finished(["sh", "-c", f"{sys.executable} -m tests.support.odd odd fail 21 <&- >&- 2>&-"]).code == 21


def test_no_progress_where_stderr_is_no_terminal_unless_asked_for() -> None:
    assert odd("odd", "progress").err == ""
    assert "film.mkv: 1.0K of 4.0K, 512B/s, 0:06 left\n" in odd("odd", "progress", "--progress").err
    assert odd("odd", "progress", "--progress", "--quiet").err == ""


def test_progress_is_objects_with_json() -> None:
    done = odd("odd", "progress", "--json")
    told = [json.loads(line) for line in done.out.splitlines()[:-1]]
    assert {"v": 1, "event": "progress", "bytes": 4096, "total": 4096} in told


def on_terminal(words: list[str], env: dict[str, str]) -> tuple[str, str]:
    """What a command shows on a terminal (stdin and stderr), and what it writes to stdout."""
    ours, theirs = pty.openpty()
    shown = b""
    try:
        process = subprocess.Popen(
            [*ODD, *words], stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, env=environment(env)
        )
        os.close(theirs)
        with process:
            assert process.stdout is not None
            while select.select([ours], [], [], PATIENCE)[0]:
                try:
                    part = os.read(ours, 65536)
                except OSError:  # the other end is closed
                    break
                shown += part
            return shown.decode(), process.stdout.read().decode()
    finally:
        os.close(ours)


def test_a_terminal_gets_a_bar_in_colours() -> None:
    shown, _ = on_terminal(["odd", "progress"], {"TERM": "xterm-256color"})
    assert "film.mkv" in shown
    assert "\x1b[38;5;" in shown or "\x1b[3" in shown


def test_no_color_is_honoured() -> None:
    shown, _ = on_terminal(["odd", "progress"], {"TERM": "xterm-256color", "NO_COLOR": "1"})
    assert "film.mkv" in shown
    assert "\x1b[3" not in shown


def test_a_dumb_terminal_gets_plain_lines() -> None:
    shown, _ = on_terminal(["odd", "progress"], {"TERM": "dumb"})
    assert "film.mkv: 1.0K of 4.0K, 512B/s, 0:06 left\r\n" in shown
    assert "\x1b" not in shown


def test_quiet_shows_nothing_on_a_terminal() -> None:
    assert on_terminal(["odd", "progress", "--quiet"], {"TERM": "xterm"})[0] == ""


def test_only_a_person_at_a_terminal_is_asked_and_never_with_batch() -> None:
    assert on_terminal(["odd", "progress"], {"TERM": "dumb"})[1] == "prompts\n"
    assert on_terminal(["odd", "progress", "--batch"], {"TERM": "dumb"})[1] == "does not prompt\n"
    assert odd("odd", "progress").out == "does not prompt\n"


# --- signals --------------------------------------------------------------------------------------------------------


@contextmanager
def waiting(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [*ODD, "odd", "wait", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"waiting\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("words", [[], ["--loop"]])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_a_signal_ends_says_nothing_and_returns_128_and_its_number(
    words: list[str], number: signal.Signals, code: int
) -> None:
    with waiting(*words) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out, err) == (code, b"", b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_for_a_script_a_signal_s_end_is_an_object_like_any_error(number: signal.Signals) -> None:
    with waiting("--json") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (128 + number, b"")
    assert json.loads(out) == {
        "v": 1, "event": "error", "code": 128 + number, "reason": "interrupted", "detail": "signal",
        "message": f"{number.name} ended the command",
    }


def test_a_signal_s_end_that_nobody_hears_of_keeps_its_code() -> None:
    with waiting("--json") as process:
        assert process.stdout is not None
        process.stdout.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143
        assert process.stderr is not None
        assert process.stderr.read() == b""


# --- cost and installation ------------------------------------------------------------------------------------------


def test_a_small_command_imports_little() -> None:
    done = finished([sys.executable, "-X", "importtime", "-m", "zkc", "--version"])
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.err.splitlines()}
    dear = {"asyncio", "cryptography", "msgspec", "platformdirs", "rich", "sqlalchemy", "sqlite3", "structlog", "zmq"}
    assert not imported & dear
    assert "click" in imported


def test_the_console_script_is_the_entry_that_these_tests_run() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"zkc": "zkc.ui.cli.main:main"}
