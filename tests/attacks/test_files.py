"""Names, files and text that a peer chose: nothing outside the place that the user named, nothing followed or run."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import stat
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal
from unicodedata import category

import pyte
import pytest

from tests.support.evil_recipient import EvilRecipient
from tests.support.evil_sender import EvilSender, Frames, Line
from tests.support.looking import ending, inbox_of, log_of, memory, tree
from tests.support.waiting import DEADLINE
from zkc.constants import MESSAGE_TEXT_MAX
from zkc.rules.names import escape
from zkc.testing import Fleet
from zkc.wire.codec import encode
from zkc.wire.frames import Flag
from zkc.wire.messages import Done, Stop

NAMES: Final = (
    "../x", "../../x", "/etc/x", "a/../../x", "..\\x", "..\\..\\x", "C:x", "C:\\x", "\\\\host\\share\\x", "~/.bashrc",
    "~", "~root", "nul\0byte", "", ".", "..", "...", "/", "//", "x" * 256, "\u00e9" * 200, ("long" * 70) + ".tar.gz",
    "CON",
    "nul.txt", "COM1", "trailing.", "trailing ", ".bashrc", ".ssh/authorized_keys", "-rf", "--output=x", "a\nb", "a\rb",
    "\x1b[2Jx", "exe\u202etxt", "zero\u200bwidth", "\ufeffbom", "$(touch canary)", "`touch canary`", "; touch canary",
    "%s%n", "x\u2028y", "index.db", "files", "canary", "CANARY", "e\u0301", "\u00e9",
)
"""The corpus of names (F01, F02, F05, F07): each goes through every option that names a place."""
TERMINAL: Final = (
    "\x1b[2J\x1b[H", "\x1b]0;owned\x07", "\x1b]52;c;b3duZWQ=\x07", "\x1bP$q\"p\x1b\\", "\x1b[6n", "\x9b31m",
    "\x1b(0", "\x1b[?1049h", "\x1bc", "a\rb", "a\nb", "a\x08b", "\u202egnp.exe", "zero\u200bwidth", "\x07",
    "\x1b[99;1H", "\u2028",
)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    config = {"transfer.listen": "tcp://127.0.0.1:0", "transfer.chunk": "64K", "log.level": "debug"}
    with Fleet("bob", client=config) as fleet:
        fleet.join("mallory")
        fleet.join("eve")
        yield fleet


@pytest.fixture(scope="module")
def eve(fleet: Fleet) -> Iterator[EvilRecipient]:
    with EvilRecipient(fleet.home("eve")) as recipient:
        yield recipient


@pytest.fixture(scope="module")
def mallory(fleet: Fleet) -> Iterator[EvilSender]:
    with EvilSender(fleet.home("mallory")) as sender:
        yield sender


@pytest.fixture
def place(tmp_path: Path, fleet: Fleet) -> Iterator[Place]:
    yield Place(tmp_path)
    inbox = fleet.home("bob")
    for item in inbox_of(inbox)[0]:
        fleet.client("bob")._inbox.remove(item.id)


class Place:
    """A folder to save into, deep in others with something to lose; a home of the user beside it."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.folder = top / "a" / "b" / "into"
        self.user = top / "user"
        for folder in (self.folder, self.user / ".ssh"):
            folder.mkdir(parents=True)
        for path in (top / "x", top / "a" / "x", top / "a" / "b" / "x", self.user / ".bashrc"):
            path.write_text("to lose")
        self._before = tree(top, without=self.folder)

    def saved(self) -> list[str]:
        """What is in the folder; it is one level deep, of plain files, and nothing beside it has changed."""
        assert tree(self.top, without=self.folder) == self._before
        assert all(stat.S_ISREG(path.lstat().st_mode) for path in self.folder.iterdir())
        return sorted(path.name for path in self.folder.iterdir())


def deliver(
    mallory: EvilSender, name: str, payload: bytes = b"payload", *, note: str = "", mode: int = 0o644,
    kind: Literal["file", "stream", "message"] = "file",
) -> bytes:
    """Its transfer id; bob's log tells of its end a little later."""
    session = mallory.agree("bob")
    frames = Frames(session, name=name, note=note, mode=mode, kind=kind, mtime_ns=1_700_000_000_000_000_000)
    with Line(session) as line:
        line.send(*frames.opening(), frames.last(payload))
        assert isinstance(line.verdict(), Done), repr(name)
        line.send(frames.bye())
    return session.req.xid


def recv(fleet: Fleet, place: Place, *words: str, cwd: Path | None = None) -> list[dict[str, Any]]:
    """Everything in the inbox, one after the other, in one command; the objects that it printed."""
    env = {"HOME": str(place.user)}
    done = fleet.zkc("bob", "recv", "--loop", "--wait", "0s", "--json", *words, env=env, cwd=cwd or place.folder)
    assert done.code == 22, done.err
    return [event for event in done.events if event["event"] == "recv"]


# --- places --------------------------------------------------------------------------------------------------------


@pytest.mark.attack("F01", "F02", "F05", "F14")
def test_no_name_leaves_the_folder_whatever_option_names_it(
    fleet: Fleet, mallory: EvilSender, place: Place
) -> None:
    for name in NAMES:
        deliver(mallory, name, name.encode())
    home_before = tree(fleet.home("bob") / "inbox")
    options: dict[str, Sequence[str]] = {
        "into the current folder": (), "a folder that exists": ("-o", str(place.folder)),
        "a folder by its slash": ("-o", f"{place.folder}/"), "overwrite": ("--conflict", "overwrite"),
        "skip": ("--conflict", "skip"), "a file": ("-o", "one"), "rename": ("--conflict", "rename"),
    }
    for what, words in options.items():
        told = recv(fleet, place, "--keep", *words)
        assert len(told) == len(NAMES), what
        for path in [event["path"] for event in told if event["path"] is not None]:
            assert (place.folder / path).resolve().parent == place.folder, what
        for name in place.saved():
            assert not name.startswith((".", "~")), (what, name)
            assert len(name.encode()) <= 255
            assert not any(category(character) in {"Cc", "Zl", "Zp"} for character in name), (what, name)
        assert not any(path.name == "canary" and not path.read_bytes() for path in place.folder.iterdir()), what
        for path in place.folder.iterdir():
            path.unlink()
    assert tree(fleet.home("bob") / "inbox") == home_before, "the inbox is as it was"
    assert len(fleet.zkc("bob", "inbox", "--json").events) == len(NAMES)


@pytest.mark.attack("F01")
def test_every_item_is_saved_under_a_name_of_its_own(fleet: Fleet, mallory: EvilSender, place: Place) -> None:
    for name in NAMES:
        deliver(mallory, name, name.encode())
    told = recv(fleet, place)
    assert len({event["path"] for event in told}) == len(NAMES)
    assert sorted(path.read_bytes() for path in place.folder.iterdir()) == sorted(name.encode() for name in NAMES)
    assert len(place.saved()) == len(NAMES)
    assert inbox_of(fleet.home("bob"))[0] == []


@pytest.mark.attack("F01")
def test_a_single_item_is_saved_the_same_way_by_inbox_save(fleet: Fleet, mallory: EvilSender, place: Place) -> None:
    deliver(mallory, "../../../x")
    (item,) = inbox_of(fleet.home("bob"))[0]
    for words in ([], ["-o", "."], ["-o", "./"], ["-o", "exactly"]):
        assert fleet.zkc("bob", "inbox", "save", item.id, *words, cwd=place.folder).code == 0
    assert len(place.saved()) == 4


@pytest.mark.attack("F01")
@pytest.mark.parametrize("name", [b"\xff\xfe\xfd\xfc", b"\xc0\xae\xc0\xae", b"\xed\xa0\x80\x00"])
def test_a_name_that_is_no_utf8_ends_the_transfer(fleet: Fleet, mallory: EvilSender, place: Place, name: bytes) -> None:
    session = mallory.agree("bob")
    frames = Frames(session, name="NAME")
    start, _ = frames.opening()
    frames = Frames(session, name="NAME")
    manifest = frames.names.seal(encode(frames.manifest).replace(b"NAME", name), Flag.LAST)
    with Line(session) as line:
        line.send(start, manifest)
        stop = line.verdict()
    assert isinstance(stop, Stop)
    assert stop.code == 32
    assert inbox_of(fleet.home("bob"))[0] == []


@pytest.mark.attack("F02")
def test_what_is_on_disk_during_a_transfer_has_no_name_of_the_peer(
    fleet: Fleet, mallory: EvilSender, place: Place
) -> None:
    home = fleet.home("bob")
    before = set(tree(home))
    for name in ("../../evil", "/tmp/evil", ".evil", "evil\0"):
        session = mallory.agree("bob")
        frames = Frames(session, name=name, note=name)
        with Line(session) as line:
            line.send(*frames.opening(), frames.chunk(frames.whole()))
            line.acknowledged(frames.sent)
            new = [path for path in set(tree(home)) - before if not path.startswith("inbox/index.db")]
            (partial,) = inbox_of(home)[1]
            assert new == [f"inbox/partial/{partial.id}"]
            line.send(frames.chunk(b""))
            assert isinstance(line.verdict(), Stop)
        ending(fleet, "bob", session.req.xid)
        assert {path for path in set(tree(home)) - before if not path.startswith("inbox/index.db")} == set()
    place.saved()


@pytest.mark.attack("F02")
def test_no_id_reaches_another_file_than_an_item_s(fleet: Fleet, mallory: EvilSender, place: Place) -> None:
    deliver(mallory, "kept")
    home = fleet.home("bob")
    before = tree(home / "inbox")
    for id in ("../../keys.db", "..", ".", "/etc/passwd", "", "%", "'; drop table items; --", "index.db", "0" * 100):
        for command in ("rm", "show") if id.startswith(".") else ("rm",):
            done = fleet.zkc("bob", "inbox", command, id, cwd=place.folder)
            assert done.code == 2, (command, id, done)
    assert tree(home / "inbox") == before
    assert place.saved() == []


# --- links, pipes, what is there already ------------------------------------------------------------------------------


@pytest.mark.attack("F03", "F05")
@pytest.mark.parametrize("conflict", ["rename", "overwrite", "skip"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "link to a folder", "fifo", "hard link", "file"])
def test_what_stands_at_the_destination_is_neither_followed_nor_written_through(
    fleet: Fleet, mallory: EvilSender, tmp_path: Path, kind: str, conflict: str
) -> None:
    folder, victim, beyond = tmp_path / "into", tmp_path / "victim", tmp_path / "beyond"
    folder.mkdir()
    beyond.mkdir()
    victim.write_bytes(b"to lose")
    target = folder / "name"
    if kind == "fifo":
        os.mkfifo(target)
    elif kind == "hard link":
        target.hardlink_to(victim)
    elif kind == "file":
        target.write_bytes(b"to lose")
    else:
        target.symlink_to({"link": victim, "dangling link": tmp_path / "nowhere", "link to a folder": beyond}[kind])
    before = target.lstat()
    deliver(mallory, "name")
    done = fleet.zkc("bob", "recv", "--json", "--conflict", conflict, cwd=folder, timeout=DEADLINE)
    assert victim.read_bytes() == b"to lose"
    assert not (tmp_path / "nowhere").exists()
    assert list(beyond.iterdir()) == []
    if conflict == "overwrite":
        assert done.code == 0
        assert stat.S_ISREG(target.lstat().st_mode)
        assert target.read_bytes() == b"payload"
    else:
        assert (target.lstat().st_ino, target.lstat().st_mode) == (before.st_ino, before.st_mode)
        others = [path.read_bytes() for path in folder.iterdir() if path != target]
        assert others == ([b"payload"] if conflict == "rename" else [])
    for item in inbox_of(fleet.home("bob"))[0]:
        fleet.client("bob")._inbox.remove(item.id)


@pytest.mark.attack("F03")
def test_a_file_that_the_user_names_is_not_followed_either(
    fleet: Fleet, mallory: EvilSender, tmp_path: Path
) -> None:
    victim, link, pipe = tmp_path / "victim", tmp_path / "link", tmp_path / "pipe"
    victim.write_bytes(b"to lose")
    link.symlink_to(victim)
    os.mkfifo(pipe)
    for target, code in ((link, 0), (pipe, 2)):
        deliver(mallory, "x")
        assert fleet.zkc("bob", "recv", "-o", str(target), timeout=DEADLINE).code == code
    assert victim.read_bytes() == b"to lose"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "link (2)", "pipe", "victim"]


@pytest.mark.attack("F03")
def test_an_inbox_folder_that_becomes_a_link_while_the_daemon_runs_leads_nowhere(
    fleet: Fleet, mallory: EvilSender, tmp_path: Path
) -> None:
    inbox = fleet.home("bob") / "inbox"
    for part in ("partial", "files"):
        (inbox / part).rename(inbox / f"{part}.moved")
        (inbox / part).symlink_to(tmp_path)
    try:
        with contextlib.suppress(AssertionError):
            deliver(mallory, "x")
        assert list(tmp_path.iterdir()) == []
    finally:
        for part in ("partial", "files"):
            (inbox / part).unlink()
            (inbox / f"{part}.moved").rename(inbox / part)
    deliver(mallory, "y")
    for item in inbox_of(fleet.home("bob"))[0]:
        fleet.client("bob")._inbox.remove(item.id)


@pytest.mark.attack("F03")
@pytest.mark.parametrize("part", ["inbox", "inbox/partial", "inbox/files", "inbox/index.db"])
def test_a_daemon_does_not_start_where_a_link_stands_in_its_inbox(fleet: Fleet, tmp_path: Path, part: str) -> None:
    if not fleet.home("carol").exists():
        fleet.join("carol")
        fleet.start_daemon("carol").terminate()
    path = fleet.home("carol") / part
    kept = path.with_name("kept")
    path.rename(kept)
    elsewhere = tmp_path / "elsewhere"
    if kept.is_dir():
        elsewhere.mkdir(mode=0o700)
    else:
        elsewhere.write_bytes(b"")
        elsewhere.chmod(0o600)
    path.symlink_to(elsewhere)
    try:
        done = fleet.zkc("carol", "daemon", timeout=DEADLINE)
        assert done.code == 33, done
        assert b"link" in done.err
        assert tree(tmp_path) == {"elsewhere": tree(tmp_path)["elsewhere"]}
        assert path.is_symlink()
    finally:
        path.unlink()
        kept.rename(path)


# --- what a saved file may be ---------------------------------------------------------------------------------------


@pytest.mark.attack("F05")
@pytest.mark.parametrize(
    ("sent", "umask", "saved"),
    [
        (0o644, 0o022, 0o644), (0o755, 0o027, 0o750), (0o6777, 0o022, 0o755), (0o4711, 0o077, 0o700),
        (0o1600, 0o022, 0o600), (0o444, 0o022, 0o444), (0o17777, 0o022, 0o755), (0o660, 0o000, 0o660),
    ],
)
def test_a_saved_file_has_the_owner_s_bits_and_the_umask_and_no_others(
    fleet: Fleet, mallory: EvilSender, place: Place, sent: int, umask: int, saved: int
) -> None:
    deliver(mallory, "program", mode=sent)
    (item,) = inbox_of(fleet.home("bob"))[0]
    assert stat.S_IMODE(item.path.stat().st_mode) == 0o600
    before = os.umask(umask)
    try:
        assert fleet.zkc("bob", "recv", cwd=place.folder).code == 0
    finally:
        os.umask(before)
    path = place.folder / "program"
    assert stat.S_IMODE(path.stat().st_mode) == saved, oct(path.stat().st_mode)
    assert (path.stat().st_uid, path.stat().st_gid) == (os.geteuid(), os.getegid())
    assert os.listxattr(path) == []


@pytest.mark.attack("F05")
def test_the_inbox_is_for_its_owner_alone_and_a_dot_needs_the_user_s_own_word(
    fleet: Fleet, mallory: EvilSender, place: Place
) -> None:
    for _ in range(2):
        deliver(mallory, ".bashrc", mode=0o777)
    inbox = fleet.home("bob") / "inbox"
    for path in (inbox, *inbox.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert fleet.zkc("bob", "recv", cwd=place.folder).code == 0
    assert place.saved() == ["_.bashrc"]
    assert fleet.zkc("bob", "recv", "-o", ".bashrc", cwd=place.folder).code == 0
    assert place.saved() == [".bashrc", "_.bashrc"]


@pytest.mark.attack("F05", "F12")
def test_an_existing_file_is_overwritten_only_when_asked_and_an_archive_stays_a_file(
    fleet: Fleet, mallory: EvilSender, place: Place
) -> None:
    deliver(mallory, "photos.tar", b"first")
    deliver(mallory, "photos.tar", b"second")
    recv(fleet, place)
    assert place.saved() == ["photos (2).tar", "photos.tar"]
    assert (place.folder / "photos.tar").read_bytes() == b"first"
    deliver(mallory, "photos.tar", b"third")
    recv(fleet, place, "--conflict", "overwrite")
    assert (place.folder / "photos.tar").read_bytes() == b"third"
    assert place.saved() == ["photos (2).tar", "photos.tar"]


# --- text -----------------------------------------------------------------------------------------------------------


class Terminal:
    """A terminal emulator whose state is compared before and after."""

    def __init__(self) -> None:
        self._screen = pyte.HistoryScreen(400, 200)
        self._stream = pyte.ByteStream(self._screen)
        self._stream.feed(b"before\r\n")
        self._state = self._now()

    def show(self, output: bytes) -> str:
        """Feed ``output``; nothing but text has come of it. What is on the screen."""
        self._stream.feed(output.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
        assert self._now() == self._state
        assert self._screen.display[0].startswith("before")
        assert self._screen.cursor.y == 1 + output.count(b"\n"), "a line more, or one less"
        return "\n".join(line.rstrip() for line in self._screen.display)

    def _now(self) -> tuple[object, ...]:
        screen = self._screen
        return (
            screen.title, screen.icon_name, frozenset(screen.mode), screen.margins, screen.charset, screen.cursor.x,
            screen.cursor.attrs, screen.cursor.hidden,
        )


def on_terminal(fleet: Fleet, name: str, *words: str, cwd: Path, code: int = 0, columns: int = 400) -> bytes:
    """What ``zkc WORDS`` writes to a terminal; it ends with ``code``."""
    master, slave = pty.openpty()
    output = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(master, 4096):
                output.extend(piece)

    reader = threading.Thread(target=read)
    env = fleet.environment(name) | {"TERM": "dumb", "COLUMNS": str(columns), "NO_COLOR": "1"}
    with subprocess.Popen(
        [*_zkc(), *words], stdin=slave, stdout=slave, stderr=slave, env=env, cwd=cwd, start_new_session=True
    ) as process:
        os.close(slave)
        reader.start()
        try:
            assert process.wait(DEADLINE) == code
        finally:
            process.kill()
            reader.join()
            os.close(master)
    return bytes(output)


def _zkc() -> Sequence[str]:
    from zkc import testing

    return testing._ZKC


def received_at_bob(fleet: Fleet) -> list[dict[str, Any]]:
    return [event for event in log_of(fleet, "bob") if event["event"] == "received"]


@pytest.mark.attack("F07")
def test_no_text_of_a_peer_moves_a_terminal_or_begins_a_line(fleet: Fleet, mallory: EvilSender, place: Place) -> None:
    xids = [deliver(mallory, f"n{text}", note=f"note {text}") for text in TERMINAL]
    listed = fleet.zkc("bob", "inbox")
    assert listed.code == 0
    shown = Terminal().show(listed.out + listed.err)
    assert "\\x1b[2J" in shown
    assert listed.out.count(b"\n") in range(len(TERMINAL), len(TERMINAL) + 3), "a row for each"
    Terminal().show(on_terminal(fleet, "bob", "inbox", cwd=place.folder))
    first = inbox_of(fleet.home("bob"))[0][0]
    Terminal().show(on_terminal(fleet, "bob", "inbox", "show", first.id, cwd=place.folder))
    Terminal().show(on_terminal(fleet, "bob", "recv", "--keep", cwd=place.folder))
    removed = on_terminal(fleet, "bob", "inbox", "rm", first.id, cwd=place.folder)
    Terminal().show(removed)
    received = fleet.zkc("bob", "recv", "--loop", "--wait", "0s", cwd=place.folder)
    Terminal().show(received.out + received.err)
    assert received.out.count(b"\n") == len(TERMINAL) - 1
    place.saved()
    # The log: one object for each event, however many newlines a name has.
    ours = {ending(fleet, "bob", xid)["xid"] for xid in xids}
    raw = fleet.program("bob").log.read_bytes()
    assert all(json.loads(line) for line in raw.splitlines())
    assert sum(event["xid"] in ours for event in received_at_bob(fleet)) == len(TERMINAL)
    assert not any(byte in raw for byte in (b"\x1b", b"\x07", b"\x9b"))


@pytest.mark.attack("F07")
@pytest.mark.parametrize("texts", [TERMINAL[:5], TERMINAL[5:]], ids=["escapes", "others"])
def test_no_reason_that_a_recipient_gives_moves_a_terminal_or_begins_a_line(
    fleet: Fleet, eve: EvilRecipient, place: Place, texts: Sequence[str]
) -> None:
    reason = "".join(texts)
    eve.behave = lambda delivering: delivering.say(Stop(33, reason))
    shown = Terminal().show(on_terminal(fleet, "bob", "send", "eve", "-m", "x", cwd=place.folder, code=33))
    assert escape(texts[0]) in shown
    done = fleet.zkc("bob", "send", "eve", "-m", "x", "--json")
    assert done.code == 33
    assert done.events[-1]["detail"] == reason
    assert done.out.count(b"\n") == len(done.events)
    assert not any(byte in done.out + done.err for byte in (b"\x1b", b"\x07", b"\r"))
    assert not eve.errors


@pytest.mark.attack("F07")
def test_json_carries_any_text_and_stays_one_object_a_line(fleet: Fleet, mallory: EvilSender, place: Place) -> None:
    for text in TERMINAL:
        deliver(mallory, f"n{text}", note=text)
    out = fleet.zkc("bob", "inbox", "--json").out
    objects = [json.loads(line) for line in out.split(b"\n") if line]
    assert [(each["name"], each["note"]) for each in objects] == [(f"n{text}", text) for text in TERMINAL]
    assert not any(byte in out for byte in (b"\x1b", b"\x07", b"\r"))
    told = recv(fleet, place)
    assert [each["name"] for each in told] == [f"n{text}" for text in TERMINAL]


@pytest.mark.attack("F07", "F11")
def test_a_message_is_shown_escaped(fleet: Fleet, mallory: EvilSender, place: Place) -> None:
    text = "first\n" + "".join(TERMINAL) + "\nPassword: "
    deliver(mallory, "message", text.encode(), kind="message")
    (item,) = inbox_of(fleet.home("bob"))[0]
    Terminal().show(on_terminal(fleet, "bob", "inbox", "show", item.id, cwd=place.folder))
    done = fleet.zkc("bob", "inbox", "show", item.id, "--json")
    assert json.loads(done.out)["text"] == text


@pytest.mark.attack("F11")
@pytest.mark.parametrize("told", [True, False], ids=["announced", "not announced"])
def test_a_message_of_a_gibibyte_is_refused_and_leaves_nothing(
    fleet: Fleet, mallory: EvilSender, place: Place, told: bool
) -> None:
    """Before its first byte where it says how long it is, else with the first byte too many: 25, and nothing of it on
    disk or in memory. The longest that there may be is shown whole."""
    before = memory(fleet.program("bob").process.pid, "VmHWM")
    session = mallory.agree("bob")
    frames = Frames(session, kind="message", size=1 << 30 if told else None)
    with Line(session) as line:
        line.send(*frames.opening())
        line.send(*(frames.chunk(b"x" * min(frames.chunk_bytes, MESSAGE_TEXT_MAX)) for _ in range(2)))
        word = line.verdict()
    assert isinstance(word, Stop)
    assert (word.code, word.detail) == (25, "limit")
    end = ending(fleet, "bob", session.req.xid)
    assert (end["event"], end["code"], end["detail"]) == ("not-received", 25, "limit")
    assert inbox_of(fleet.home("bob")) == ([], [])
    assert memory(fleet.program("bob").process.pid, "VmHWM") - before < 16 << 20
    longest = ("line\n" * MESSAGE_TEXT_MAX)[:MESSAGE_TEXT_MAX]
    deliver(mallory, "message", longest.encode(), kind="message")
    (item,) = inbox_of(fleet.home("bob"))[0]
    assert json.loads(fleet.zkc("bob", "inbox", "show", item.id, "--json").out)["text"] == longest
    assert place.saved() == []


@pytest.mark.attack("F11")
def test_no_text_of_a_peer_begins_where_a_prompt_does(fleet: Fleet, mallory: EvilSender, place: Place) -> None:
    """Not by a line of its own, and not by what is so long that the terminal would break it: each line of a message
    is behind a bar, and what else is long behind a margin. No command that shows it asks for anything."""
    fakes = ("Invitation: ", "PIN: ", "[sudo] password for bob: ", "bob@host:~$ ", "id:  0123", "accept? [y/N] ")
    width = 72
    wrapped = "".join(fake.rjust(2 * width + len(fake) - (len(fake) % width)) for fake in fakes)
    aimed = [" " * columns + fake for fake in fakes for columns in (width, width - 2, width - 13)]
    text = "\n".join([*fakes, wrapped, *aimed, "\u4e2d" * width + fakes[0]])
    note = ("n" * (width - 13) + fakes[2]) + "n" * width + fakes[1]
    deliver(mallory, "x" * 200, text.encode(), kind="message", note=note)
    (item,) = inbox_of(fleet.home("bob"))[0]
    shown = on_terminal(fleet, "bob", "inbox", "show", item.id, cwd=place.folder, columns=width)
    screen = pyte.HistoryScreen(width, 1000)
    pyte.ByteStream(screen).feed(shown)
    lines = [line.rstrip() for line in screen.display]
    head, body = lines[: lines.index("")], lines[lines.index("") + 1 : screen.cursor.y]
    keys = {line.partition(":")[0] for line in head if not line.startswith(" " * 13)}
    assert keys == {
        "id", "state", "from", "name", "kind", "bytes", "digest", "note", "transfer", "key_source", "received", "path"
    }
    assert [line for line in body if not line.startswith("|")] == []
    assert "".join(line[2:] for line in body).replace(" ", "").startswith("".join(fakes).replace(" ", ""))
    assert (screen.cursor.x, lines[screen.cursor.y]) == (0, ""), "it ended its line"


@pytest.mark.attack("F07")
def test_what_a_command_is_run_with_has_no_name_that_is_a_path(
    fleet: Fleet, mallory: EvilSender, place: Place
) -> None:
    deliver(mallory, "../../x\n; touch canary", note="\x1b[2J")
    script = 'printf "%s" "$ZKC_NAME" > seen; cat > payload'
    done = fleet.zkc("bob", "recv", "--exec", "sh", "-c", script, cwd=place.folder)
    assert done.code == 0, done
    Terminal().show(done.out + done.err)
    seen = (place.folder / "seen").read_text()
    assert "/" not in seen
    assert "\n" not in seen
    assert place.saved() == ["payload", "seen"]
