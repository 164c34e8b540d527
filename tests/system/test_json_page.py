"""``docs/json.md`` against the program: every command with ``--json``, and every object that the page has."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import pytest

from tests.support.waiting import DEADLINE
from zkc.testing import Fleet
from zkc.ui.cli.main import COMMANDS
from zkc.ui.cli.options import Group

PAGE: Final = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
EVERY: Final = "Every command"
NOT_MADE: Final = {
    ("zkc coordinator audit", "evidence"): "it takes a coordinator that shows two key logs: attacks/test_two_faces",
}
"""Objects of the page that this fleet does not make, and why."""
NOT_RUN: Final = {"zkc ui": "it has no objects", "zkc events": "docs/events.md, system/test_events"}
"""Commands that are not run here, and why."""
TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)


# --- the page -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """One ``###`` of the page."""

    title: str
    values: Mapping[str, str]
    """Key -> what its value is."""

    @property
    def noun(self) -> str:
        return self.title.partition(" ")[0]

    def misfit(self, told: Mapping[str, Any]) -> str:
        """What of an object is not as the table has it; empty: nothing."""
        needed = {key for key, value in self.values.items() if not value.endswith(" or absent")}
        if missing := needed - told.keys():
            return f"without {sorted(missing)}"
        if more := told.keys() - self.values.keys() - {"v", "event"}:
            return f"with {sorted(more)}"
        wrong = [key for key in self.values if key in told and not fits(self.values[key], told[key])]
        return ", ".join(f"{key} is {told[key]!r}, not {self.values[key]}" for key in wrong)


def fits(value: str, told: object) -> bool:
    value, _, last = value.removesuffix(" or absent").partition(" or ")
    assert last in {"", "null"}, last
    if told is None and last == "null":
        return True
    match value:
        case "text":
            return isinstance(told, str)
        case "number":
            return is_number(told)
        case "true, false":
            return isinstance(told, bool)
        case "time":
            return isinstance(told, str) and TIME.fullmatch(told) is not None
        case "texts":
            return isinstance(told, list) and all(isinstance(each, str) for each in told)
        case "numbers":
            return isinstance(told, dict) and all(is_number(each) for each in told.values())
        case "null":
            return told is None
        case "any":
            return True
        case _:
            words = re.findall(r"`([^`]+)`", value)
            assert value == ", ".join(f"`{word}`" for word in words), value
            return told in words


def is_number(told: object) -> bool:
    return isinstance(told, int | float) and not isinstance(told, bool)


@dataclass
class Section:
    """One ``##`` of the page."""

    title: str
    tables: list[Table] = field(default_factory=list)
    like: list[str] = field(default_factory=list)
    """Sections to which it leads before its own tables: the command prints their objects too."""


def sections() -> dict[str, Section]:
    found: dict[str, Section] = {}
    for text in PAGE.split("\n## ")[1:]:
        title, _, rest = text.partition("\n")
        intro, *parts = rest.split("\n### ")
        section = found[title] = Section(title, like=re.findall(r"\[(zkc [^\]]+)\]", intro))
        for part in parts:
            rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", part, re.MULTILINE)
            assert len(dict(rows)) == len(rows), part
            section.tables.append(Table(part.partition("\n")[0], dict(rows)))
    return found


SECTIONS: Final = sections()


def test_every_command_is_on_the_page() -> None:
    leaves = set(commands(Group("zkc", COMMANDS), "zkc"))
    assert {each for each in SECTIONS if each != EVERY} == leaves - {"zkc ui"}
    assert NOT_RUN.keys() <= leaves


def commands(group: Group, name: str) -> Iterator[str]:
    with click.Context(group) as context:
        for word in group.list_commands(context):
            command = group.get_command(context, word)
            if isinstance(command, Group):
                yield from commands(command, f"{name} {word}")
            else:
                yield f"{name} {word}"


def test_what_is_no_object_of_the_page_is_found() -> None:
    table = Table("a", {"one": "text or null", "two": "number or absent", "three": "`x`, `y` or null"})
    assert table.misfit({"v": 1, "event": "a", "one": None, "three": "x"}) == ""
    assert "without" in table.misfit({"one": "", "two": 1})
    assert "with" in table.misfit({"one": "", "three": "y", "four": 1})
    assert table.misfit({"one": 1, "three": "z"}) == "one is 1, not text or null, three is 'z', not `x`, `y` or null"
    assert fits("time", "2026-01-31T12:00:00.000Z")
    assert not fits("time", "2026-01-31 12:00")
    assert not fits("number", True)
    assert not fits("numbers", {"a": "b"})


# --- the run --------------------------------------------------------------------------------------------------------


class Run:
    """Commands, and what of the page their objects have shown."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet: Final = fleet
        self.seen: set[tuple[str, str]] = set()
        self.with_keys: set[tuple[str, str, str]] = set()
        self.ran: set[str] = set()

    def __call__(
        self, name: str, words: str, *, code: int = 0, stdin: bytes = b"", **env: str
    ) -> list[dict[str, Any]]:
        """``zkc WORDS --json`` in the home of ``name``; its objects, each as the page has it."""
        command = section_of(words)
        done = self.fleet.zkc(name, *words.split(), "--json", stdin=stdin, env=env)
        assert done.code == code, (words, done)
        return self.judge(command, (b"" if words.endswith(" -o -") else done.out) + done.err)

    def judge(self, command: str, printed: bytes) -> list[dict[str, Any]]:
        objects: list[dict[str, Any]] = [json.loads(line) for line in printed.splitlines()]
        self.ran.add(command)
        for told in objects:
            self.one(command, told)
        return objects

    def one(self, command: str, told: Mapping[str, Any]) -> None:
        assert told["v"] == 1
        named = [
            (title, table)
            for title in (command, *SECTIONS[command].like, EVERY) for table in SECTIONS[title].tables
            if table.noun == told["event"]
        ]
        assert named, (command, told)
        misfits = [table.misfit(told) for _, table in named]
        assert "" in misfits, (command, told, misfits)
        title, table = named[misfits.index("")]
        self.seen.add((title, table.title))
        self.with_keys |= {(title, table.title, key) for key in told}

    def until_ready(self, name: str, words: str) -> None:
        """A program that stays: its first object, and SIGTERM."""
        with self.started(name, words) as process:
            assert process.stdout is not None
            self.judge(section_of(words), process.stdout.readline())
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=DEADLINE)

    @contextlib.contextmanager
    def started(self, name: str, words: str) -> Iterator[subprocess.Popen[bytes]]:
        """``zkc WORDS --json``, running."""
        with self.fleet.popen(
            name, *words.split(), "--json", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def section_of(words: str) -> str:
    fitting = [title for title in SECTIONS if f"zkc {words} ".startswith(f"{title} ")]
    return max(fitting, key=len, default=EVERY)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with Fleet("alice", "bob") as fleet:
        yield Run(fleet)


def test_every_object_is_as_the_page_has_it(run: Run) -> None:
    """One story for all: what a command shows depends on those before it."""
    fleet = run.fleet
    tree, file = fleet.folder / "tree", fleet.folder / "report.pdf"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "link").symlink_to("..")
    (tree / "one.txt").write_bytes(b"one")
    file.write_bytes(b"report" * 50_000)

    # What stands by itself, beside the story; carol comes in it.
    with ThreadPoolExecutor(4) as beside:
        alone = [
            beside.submit(run, "coordinator", "coordinator top --once"),
            beside.submit(run.until_ready, "another", "coordinator run --listen tcp://127.0.0.1:0"),
            beside.submit(_administering, run),
            beside.submit(_carol_joins, run),
        ]
        _sending(run, tree, file)
        for each in alone:
            each.result()
    with ThreadPoolExecutor(3) as beside:
        alone = [beside.submit(_asking, run), beside.submit(_sharing, run), beside.submit(_at_bob, run)]
        _looking(run)
        for each in alone:
            each.result()
    _ending(run)

    missing = {(title, table.title) for title, section in SECTIONS.items() for table in section.tables} - run.seen
    assert missing == NOT_MADE.keys()
    keys = {
        (title, table.title, key)
        for title, section in SECTIONS.items() for table in section.tables for key in table.values
    }
    assert {each for each in keys - run.with_keys if each[:2] not in NOT_MADE} == set()
    assert SECTIONS.keys() - run.ran - {EVERY} == NOT_RUN.keys() - {"zkc ui"}


def _sending(run: Run, tree: Path, file: Path) -> None:
    run("alice", "--version")
    run("alice", "verify bob --confirm")
    run("alice", f"send bob {file} --receipt {run.fleet.folder}/file.receipt")
    run("alice", "send bob -m hello")
    run("alice", f"send bob {tree}")
    run("alice", f"send bob {tree} {file} --name both")
    (would,) = run("alice", "send bob --dry-run -m hello")[1:]
    assert not would["asks"]
    run("alice", "check bob --size 1M")
    told = run("alice", "send bob,nobody -m hello", code=20)
    assert [each["recipient"] for each in told if each["event"] == "error"] == ["nobody"]
    run("alice", f"receipt show {run.fleet.folder}/file.receipt")
    run("alice", f"receipt verify {run.fleet.folder}/file.receipt")


def _administering(run: Run) -> None:
    run("coordinator", "coordinator status")
    run("coordinator", "coordinator invite dave")
    run("coordinator", "coordinator invite --list")
    run("coordinator", "coordinator invite --cancel dave")
    run("coordinator", f"coordinator backup {run.fleet.folder}/backup.tar")
    run("restored", f"coordinator restore {run.fleet.folder}/backup.tar")


def _carol_joins(run: Run) -> None:
    """While she has no daemon a job for her waits; then she is a relay for a moment, and asks about each transfer."""
    (invite,) = run("coordinator", "coordinator invite carol")
    run("carol", "join --invite-file - --accept ask", stdin=invite["invitation"].encode())
    run("carol", "join --app backup")
    run("carol", "status", code=34)
    (job,) = run("alice", "send carol --queue -m later")
    run("alice", "outbox list")
    run("alice", f"outbox retry {job['id']}")
    run("alice", f"outbox cancel {job['id']}")
    run("carol", "rotate --no-passphrase")
    run.until_ready("carol", "relay --listen tcp://127.0.0.1:0")


def _asking(run: Run) -> None:
    """Carol's daemon asks; she accepts one and refuses the other."""
    with run.started("carol", "daemon") as daemon:
        assert daemon.stdout is not None
        run.judge("zkc daemon", daemon.stdout.readline())
        run.fleet.wait_linked("carol")
        for answer, code in (("accept", 0), ("refuse", 24)):
            with run.started("alice", "send carol -m hello --note hello") as sending:
                assert sending.stdout is not None
                asked = sending.stdout.readline() + sending.stdout.readline()
                assert b'"event":"pending"' in asked
                (waits,) = [each for each in run("carol", "inbox list") if each["state"] == "pending"]
                if answer == "accept":
                    run("carol", f"inbox show {waits['id']}")
                run("carol", f"{answer} {waits['id']}")
                out, err = sending.communicate(timeout=DEADLINE)
                assert sending.returncode == code, out
                run.judge("zkc send", asked + out + err)
        daemon.send_signal(signal.SIGTERM)
        daemon.communicate(timeout=DEADLINE)


def _sharing(run: Run) -> None:
    run("alice", f"share builds {run.fleet.folder}/tree --to bob --note nightly")
    run("bob", "shares alice")
    run("bob", "get alice:builds/one.txt")
    run("alice", "share --remove builds")


def _at_bob(run: Run) -> None:
    """His inbox: a file, a message, a folder, several paths; what alice shares comes to his inbox for a moment."""
    items = run("bob", "inbox list --partial")[:4]
    assert [each["kind"] for each in items] == ["file", "message", "tree", "tree"]
    for item in items[1:3]:
        run("bob", f"inbox show {item['id']}")
    run("bob", f"inbox save {items[3]['id']}")
    (got,) = run("bob", "recv --name report.pdf -o -")
    assert got["path"] is None
    run("bob", "recv --name both -o bobs/")
    run("bob", f"reply {items[2]['id']} -m thanks")
    run("bob", f"inbox rm {items[2]['id']}")
    with run.started("bob", "recv --live") as reading:
        assert reading.stderr is not None
        waiting = reading.stderr.readline()
        run("alice", "send bob", stdin=b"a stream")
        out, err = reading.communicate(timeout=DEADLINE)
        assert (reading.returncode, out) == (0, b"a stream")
        run.judge("zkc recv", waiting + err)


def _looking(run: Run) -> None:
    run("alice", "peers list")
    run("alice", "status")
    run("bob", "presence here")
    run("alice", "wait bob --present")
    run("alice", "policy check --from bob --to carol")
    run("alice", "audit")
    run("alice", "audit --verify")
    run("alice", "config")
    run("alice", "doctor bob")
    run("alice", "completion bash")
    run("alice", "rotate")
    run("alice", "person enrol", ZKC_PIN="1234")
    run("alice", "person status")
    run("alice", "person remove", ZKC_PIN="1234")
    run("alice", "person enrol --totp")


def _ending(run: Run) -> None:
    run("bob", "peers forget alice")
    run("carol", "leave")
    run("coordinator", "coordinator revoke bob --reason lost")
    run("coordinator", "coordinator clients")
    run("coordinator", "coordinator rotate")
    run("coordinator", "coordinator audit")


