"""``zkc recv`` and ``zkc inbox``: items leave the inbox whole or stay, and no name of a peer does any harm."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import PATIENCE, Done, environment, zkc
from tests.support.waiting import wait_until
from zkc.crypto.primitives import digest
from zkc.env import SystemEntropy
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.items import NewItem
from zkc.stores.keystore import KeyStore

HOSTILE = [
    "../x", "/etc/x", "a/../../x", "..\\x", "C:x", "~/.bashrc", "\0", "", ".", "..", "n" * 300, "CON", "dot. ",
    ".bashrc", "evil\x1b]52;c;QQ==\x07", "\u202egpj.exe", "a\nb", "-rf", "--help", "a\rb", "\x9b31m",
]  # fmt: skip

Put = Callable[..., str]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "out").mkdir()
    return Home.resolve("client", str(tmp_path / "bob")).prepare()


@pytest.fixture
def put(home: Home) -> Put:
    """Puts an item into bob's inbox and answers its id."""
    number = iter(range(1, 1000))

    def do(
        name: str = "a.txt", data: bytes = b"data", *, sender: str = "alice", app: str = "", kind: Any = "file",
        note: str = "",
    ) -> str:
        with Inbox.open(home) as inbox:
            tid = SystemEntropy().bytes(16)
            item = NewItem(sender, app, name, note, kind, "sender", tid, mode=0o777)
            partial = inbox.begin(b"f" * 32, tid, item)
            partial.write(data)
            return inbox.commit(partial, digest(data), b"receipt", 1_800_000_000.0 + next(number)).id

    return do


def run(home: Home, *words: str, **options: Any) -> Done:
    return zkc("--home", str(home.data), *words, cwd=options.pop("cwd", home.data.parent / "out"), **options)


def left(home: Home) -> list[str]:
    with Inbox.open(home) as inbox:
        return [item.name for item in inbox.items()]


def out(home: Home) -> dict[str, bytes]:
    """Every file below the folder in which the commands run."""
    top = home.data.parent / "out"
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


# --- recv -----------------------------------------------------------------------------------------------------------


def test_the_oldest_item_is_written_here_and_its_path_printed(home: Home, put: Put) -> None:
    put("one.txt", b"1")
    put("two.txt", b"2")
    done = run(home, "recv")
    assert (done.code, done.out) == (0, "one.txt\n")
    assert "from alice" in done.err
    assert "key made by the sender" in done.err
    assert (out(home), left(home)) == ({"one.txt": b"1"}, ["two.txt"])


@pytest.mark.attack("F05")
def test_a_printed_path_is_no_option_and_no_stdin_to_the_command_that_gets_it(home: Home, put: Put) -> None:
    put("-", b"first")
    put("-rf", b"second")
    assert run(home, "recv").out == "_-\n"
    assert run(home, "inbox", "save", put("-", b"third")).out == "_- (2)\n"
    assert run(home, "recv").out == "_-rf\n"
    assert out(home) == {"_-": b"first", "_- (2)": b"third", "_-rf": b"second"}


def test_an_empty_inbox_ends_at_once_with_22_empty(home: Home) -> None:
    done = run(home, "recv", "--json")
    assert (done.code, done.objects[0]["detail"]) == (22, "empty")


def test_an_item_that_comes_while_it_waits_is_taken(home: Home, put: Put) -> None:
    command = [sys.executable, "-m", "zkc", "recv", "--wait", "30s", "--home", str(home.data), "-o", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        put(data=b"late")
        assert process.communicate(timeout=PATIENCE)[0] == b"late"
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "a.txt"), (["--from", "carol"], "b.txt"), (["--name", "*.tar"], "c.tar"), (["--name", "?.txt"], "a.txt"),
        (["--from", "carol", "--name", "c*"], "c.tar"),
    ],
)  # fmt: skip
def test_it_takes_the_oldest_that_matches(words: list[str], name: str, home: Home, put: Put) -> None:
    put("a.txt")
    put("b.txt", sender="carol")
    put("c.tar", sender="carol", app="bob/backup")
    assert run(home, "recv", *words).out == f"{name}\n"
    assert name not in left(home)


def test_the_object_has_the_keys_of_the_contract(home: Home, put: Put) -> None:
    item = put("a.txt", b"data", note="for you")
    (told,) = run(home, "recv", "--json").objects
    wanted = {
        "v": 1, "event": "recv", "id": item, "state": "ready", "from": "alice", "name": "a.txt", "bytes": 4,
        "digest": f"blake3:{digest(b'data').hex()}", "note": "for you", "key_source": "sender",
        "received": "2027-01-15T08:00:01.000Z", "path": "a.txt",
    }  # fmt: skip
    assert {key: told[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("output", "file"),
    [
        ("there", "there/a.txt"), ("there/", "there/a.txt"), ("new/", "new/a.txt"), ("new.txt", "new.txt"),
        (".hidden", ".hidden"),
    ],
)
def test_where_it_is_written(output: str, file: str, home: Home, put: Put) -> None:
    (home.data.parent / "out" / "there").mkdir()
    put()
    assert run(home, "recv", "-o", output).out == f"{file}\n"
    assert out(home) == {file: b"data"}


@pytest.mark.parametrize("conflict", ["rename", "overwrite", "skip"])
@pytest.mark.parametrize("place", ["fifo", "link", "/dev/null", "/dev/stdout", "/dev/fd/1"])
@pytest.mark.parametrize("words", [["recv"], ["inbox", "save"]])
def test_a_device_or_a_pipe_is_neither_replaced_nor_stepped_around(
    words: list[str], place: str, conflict: str, home: Home, put: Put
) -> None:
    item, out = put(), home.data.parent / "out"
    os.mkfifo(out / "fifo")
    (out / "link").symlink_to("fifo")
    before, devices = os.lstat(out / place), set(os.listdir("/dev"))
    more = [item] if words == ["inbox", "save"] else []
    done = run(home, *words, *more, "-o", place, "--conflict", conflict)
    assert done.code == 2, done
    assert f"{place} is not a regular file" in done.err
    assert os.path.samestat(before, os.lstat(out / place))
    assert set(os.listdir("/dev")) == devices
    assert sorted(os.listdir(out)) == ["fifo", "link"]
    with Inbox.open(home) as inbox:
        assert [each.id for each in inbox.items()] == [item]


@pytest.mark.parametrize("words", [["recv", "-o", "no/such/file"], ["recv", "-o", "file/"]])
def test_a_place_that_cannot_be_written_is_33_and_the_item_stays(words: list[str], home: Home, put: Put) -> None:
    put()
    (home.data.parent / "out" / "file").write_bytes(b"")
    assert run(home, *words).code == 33
    assert left(home) == ["a.txt"]


@pytest.mark.parametrize(
    ("conflict", "files", "stays"),
    [
        ("rename", {"a.txt": b"mine", "a (2).txt": b"data"}, False), ("overwrite", {"a.txt": b"data"}, False),
        ("skip", {"a.txt": b"mine"}, True),
    ],
)
def test_what_exists_follows_conflict(
    conflict: str, files: dict[str, bytes], stays: bool, home: Home, put: Put
) -> None:
    (home.data.parent / "out" / "a.txt").write_bytes(b"mine")
    put()
    assert run(home, "recv", "--conflict", conflict).code == 0
    assert (out(home), left(home)) == (files, ["a.txt"] if stays else [])


def test_payload_on_stdout_is_exact_and_objects_are_on_stderr(home: Home, put: Put) -> None:
    data = bytes(set(range(128)) - {13}) * 20000  # the test reads text, in which a carriage return would be a newline
    put(data=data)
    done = run(home, "recv", "-o", "-", "--json")
    assert done.out.encode() == data
    assert json.loads(done.err)["path"] is None
    assert left(home) == []


def test_a_reader_that_goes_away_is_141_and_the_item_stays(home: Home, put: Put) -> None:
    put(data=bytes(5_000_000))
    command = [sys.executable, "-m", "zkc", "recv", "-o", "-", "--home", str(home.data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
    assert left(home) == ["a.txt"]


def test_keep_leaves_it_there(home: Home, put: Put) -> None:
    put()
    assert run(home, "recv", "--keep").code == 0
    assert (out(home), left(home)) == ({"a.txt": b"data"}, ["a.txt"])


@pytest.mark.parametrize("words", [[], ["--keep"]])
def test_loop_takes_each_item_once_until_the_wait_is_over(words: list[str], home: Home, put: Put) -> None:
    put("a")
    put("b")
    done = run(home, "recv", "--loop", "--wait", "0.2s", *words)
    assert (done.code, done.out) == (22, "a\nb\n")


@pytest.mark.attack("L07")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("words", "code"), [(["--loop"], 0), (["--wait", "60s"], None)])
def test_a_signal_ends_a_loop_with_0_and_a_wait_with_its_own_code(
    words: list[str], code: int | None, number: signal.Signals, home: Home, put: Put
) -> None:
    put()
    command = [sys.executable, "-m", "zkc", "recv", *words, "--home", str(home.data), "--name", "*.txt", "--json"]
    env, cwd = environment(), home.data.parent / "out"
    if code is None:
        command += ["--from", "nobody"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=cwd) as process:
        assert process.stdout is not None
        if code == 0:
            assert json.loads(process.stdout.readline())["path"] == "a.txt"
        else:
            wait_until(lambda: _has_open(process.pid, "index.db"))
        process.send_signal(number)
        told = [json.loads(line) for line in process.communicate(timeout=PATIENCE)[0].splitlines()]
        assert process.returncode == (128 + number if code is None else code)
    errors = [(event["event"], event["code"], event["reason"], event["detail"]) for event in told]
    assert errors == ([("error", 128 + number, "interrupted", "signal")] if code is None else [])


def _has_open(pid: int, name: str) -> bool:
    """Whether the process has a file of that name open by now."""
    with contextlib.suppress(FileNotFoundError):  # closed again while we looked
        return any(os.path.basename(os.readlink(each)) == name for each in Path(f"/proc/{pid}/fd").iterdir())
    return False


# --- recv --exec ----------------------------------------------------------------------------------------------------


def test_exec_gets_the_payload_and_what_is_known_of_it(home: Home, put: Put) -> None:
    put("../a b", b"payload", note="hello\0there")
    done = run(home, "recv", "--exec", "sh", "-c", "cat; echo; env | grep ^ZKC_ | sort; echo $0", "--json")
    lines = done.out.splitlines()
    told = dict(line.split("=", 1) for line in lines[1:-1])
    assert (done.code, lines[0], lines[-1]) == (0, "payload", "--json")
    assert told["ZKC_SENDER"] == "alice"
    assert told["ZKC_NAME"] == "_.._a b"
    assert told["ZKC_NOTE"] == "hellothere"
    assert told["ZKC_DIGEST"] == f"blake3:{digest(b'payload').hex()}"
    assert told["ZKC_KEY_SOURCE"] == "sender"
    assert len(bytes.fromhex(told["ZKC_TRANSFER"])) == 16
    assert left(home) == []


@pytest.mark.parametrize("words", [["false"], ["sh", "-c", "kill -9 $$"], ["no-such-command"], ["/etc"]])
def test_exec_that_does_not_end_with_0_is_33_and_the_item_stays(words: list[str], home: Home, put: Put) -> None:
    put()
    done = run(home, "recv", "--json", "--exec", *words)
    assert (done.code, done.objects[-1]["detail"]) == (33, "command")
    assert left(home) == ["a.txt"]


def test_exec_goes_through_no_shell(home: Home, put: Put) -> None:
    put()
    assert run(home, "recv", "--exec", "echo", "$HOME; `id`").out == "$HOME; `id`\n"


def test_two_readers_never_take_one_item(home: Home, put: Put) -> None:
    for number in range(4):
        put(f"{number}", str(number).encode())
    command = [sys.executable, "-m", "zkc", "recv", "--loop", "--wait", "0.1s", "-o", "-", "--home", str(home.data)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [subprocess.Popen(command, env=environment(), **pipes) for _ in "ab"]
    together = b"".join(process.communicate(timeout=PATIENCE)[0] for process in running)
    assert sorted(together) == sorted(b"0123")


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.attack("F01", "F05", "F07")
@pytest.mark.parametrize("words", [["recv"], ["recv", "-o", "in/"], ["recv", "-o", "in"], ["inbox", "save"]])
def test_no_name_of_a_peer_leaves_the_folder_or_reaches_the_terminal(words: list[str], home: Home, put: Put) -> None:
    (home.data.parent / "out" / "in").mkdir()
    for name in HOSTILE:
        item = put(name, note=name, kind="message")
        done = run(home, *words, *([item] if words[0] == "inbox" else []))
        assert done.code == 0, done.err
        shown = done.out + done.err
        assert shown.replace("\n", "").isprintable()
        assert done.out.count("\n") == 1
    written = out(home)
    assert len(written) == len(HOSTILE)
    assert {path.name for path in home.data.parent.iterdir()} == {"bob", "out"}
    for file in written:
        assert not Path(file).name.startswith((".", "~"))
        assert os.stat(home.data.parent / "out" / file).st_mode & 0o7022 == 0


@pytest.mark.attack("F07")
def test_lists_and_details_escape_what_a_peer_wrote(home: Home, put: Put) -> None:
    for name in HOSTILE:
        put(name, name.encode() + b"\x1b[2J\xff", note=name, kind="message")
    rows = run(home, "inbox").out
    assert rows.replace("\n", "").isprintable()
    assert rows.count("\n") == len(HOSTILE) + 1
    with Inbox.open(home) as inbox:
        ids = [item.id for item in inbox.items()]
    for item in ids[::4]:
        assert run(home, "inbox", "show", item).out.replace("\n", "").isprintable()
    assert len(run(home, "inbox", "--json").objects) == len(HOSTILE)


# --- inbox ----------------------------------------------------------------------------------------------------------


def test_an_empty_inbox_prints_nothing(home: Home) -> None:
    done = run(home, "inbox")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_inbox_is_inbox_list_and_an_object_for_each(home: Home, put: Put) -> None:
    ids = [put("a"), put("b")]
    assert run(home, "inbox").out == run(home, "inbox", "list").out
    told = run(home, "inbox", "--json").objects
    assert [(row["event"], row["id"], row["state"]) for row in told] == [("inbox", item, "ready") for item in ids]
    assert [Path(row["path"]).read_bytes() for row in told] == [b"data", b"data"]


def test_the_list_says_who_made_the_key_and_has_room_for_all(home: Home, put: Put) -> None:
    item = put("n" * 200, note="m" * 3000)
    title, row = run(home, "inbox").out.splitlines()
    assert "KEY MADE BY" in title
    assert row[title.index("KEY MADE BY") :].startswith("sender ")
    assert ("n" * 39 + "\u2026", "m" * 39 + "\u2026", len(row) < 160) == (row.split()[2], row.split()[-1], True)
    assert "n" * 200 in run(home, "inbox", "show", item).out
    (told,) = run(home, "inbox", "--json").objects
    assert (told["name"], told["note"]) == ("n" * 200, "m" * 3000)


@pytest.mark.attack("K01")
@pytest.mark.parametrize("words", [["inbox"], ["recv"]])
def test_keys_that_others_can_read_are_told_of_where_none_is_read(words: list[str], home: Home, put: Put) -> None:
    put()
    KeyStore.open(home).close()
    assert run(home, "inbox").code == 0
    home.keys_db.chmod(0o640)
    done = run(home, *words, "--json")
    assert (done.code, done.objects[0]["detail"]) == (33, "permission")
    assert "chmod 600" in done.objects[0]["message"]
    assert left(home) == ["a.txt"]


@pytest.mark.parametrize("words", [["inbox"], ["recv", "-o", "-"], ["status"], ["peers", "forget", "bob"]])
def test_what_is_odd_in_the_environment_or_wrong_in_the_file_is_told(words: list[str], home: Home, put: Put) -> None:
    put()
    done = run(home, *words, env={"ZKC_TRANSFER_PATIENC": "3s"})
    assert done.err.startswith("ZKC_TRANSFER_PATIENC is not a variable of zkc; the nearest is ZKC_TRANSFER_PATIENCE\n")
    assert "is not a variable" not in run(home, "inbox", env={"ZKC_TRANSFER_PATIENCE": "3s"}).err
    home.config_file.write_text("[inbox\n")
    done = run(home, *words, "--json")
    assert (done.code, done.objects[0]["detail"]) == (2, "config")


def test_partial_items_are_listed_only_when_asked_for(home: Home) -> None:
    with Inbox.open(home) as inbox:
        item = NewItem("alice", "", "film", "", "file", "sender", b"x" * 16)
        partial = inbox.begin(b"f" * 32, b"t" * 16, item)
        partial.write(b"half")
        assert run(home, "inbox", "--json").out == ""
        (told,) = run(home, "inbox", "--partial", "--json").objects
        partial.close(discard=True)
    assert (told["id"], told["state"], told["bytes"], told["digest"]) == (partial.id, "partial", 4, None)


def test_show_prints_a_message(home: Home, put: Put) -> None:
    item = put("message", b"two\nlines", kind="message")
    assert run(home, "inbox", "show", item[:6]).out.endswith("\n\n| two\n| lines\n")
    assert run(home, "inbox", "show", item, "--json").objects[0]["text"] == "two\nlines"
    assert left(home) == ["message"]


def test_save_keeps_the_item_and_rm_removes_it(home: Home, put: Put) -> None:
    item = put()
    assert run(home, "inbox", "save", item, "-o", "b.txt").out == "b.txt\n"
    assert (out(home), left(home)) == ({"b.txt": b"data"}, ["a.txt"])
    assert run(home, "inbox", "rm", item).code == 0
    assert left(home) == []


@pytest.mark.parametrize("words", [["show"], ["save"], ["rm"]])
@pytest.mark.parametrize("id", ["ffffffffffffffff", "../index.db", "", "%"])
def test_an_unknown_id_is_a_usage_error(words: list[str], id: str, home: Home, put: Put) -> None:
    put()
    done = run(home, "inbox", *words, id, "--json")
    assert (done.code, done.objects[0]["detail"]) == (2, "unknown-id")


def test_a_home_that_others_can_write_to_is_refused(home: Home, put: Put) -> None:
    put()
    home.inbox.chmod(0o777)
    done = run(home, "recv", "--json")
    assert (done.code, done.objects[0]["detail"]) == (33, "permission")
    assert "chmod 700" in done.objects[0]["message"]
