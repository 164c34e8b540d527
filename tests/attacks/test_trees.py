"""Trees that no honest sender makes: nothing of them is an item, nothing is outside, nothing grows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rules.test_trees import MALFORMED
from tests.support.evil_sender import EvilSender, Frames, Line
from tests.support.looking import ending, inbox_of, memory, tree
from tests.support.trees import file, folder, link, nested, stream
from zkc.testing import Fleet
from zkc.wire.listing import header
from zkc.wire.messages import Done, Stop

MIB = 1 << 20


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    config = {"transfer.listen": "tcp://127.0.0.1:0", "transfer.chunk": "64K", "log.level": "debug"}
    with Fleet("bob", client=config) as fleet:
        fleet.join("mallory")
        yield fleet


@pytest.fixture(scope="module")
def mallory(fleet: Fleet) -> Iterator[EvilSender]:
    with EvilSender(fleet.home("mallory")) as sender:
        yield sender


def deliver(
    mallory: EvilSender, data: bytes, *, size: int | None, name: str = "many"
) -> tuple[Done | Stop | None, bytes]:
    """Bob's last word, and the transfer's id."""
    session = mallory.agree("bob")
    frames = Frames(session, name=name, size=size, kind="tree")
    with Line(session) as line:
        line.send(*frames.opening())
        at = 0
        while len(data) - at > frames.chunk_bytes:
            line.send(frames.chunk(data[at : at + frames.chunk_bytes]))
            at += frames.chunk_bytes
        line.send(frames.last(data[at:]))
        word = line.verdict()
        if isinstance(word, Done):
            line.send(frames.bye())
        return word, session.req.xid


@pytest.mark.attack("F01", "F04", "F06", "F08", "F12", "F14")
@pytest.mark.parametrize("what", MALFORMED)
def test_a_tree_that_no_honest_sender_makes_is_refused_and_leaves_nothing(
    fleet: Fleet, mallory: EvilSender, what: str
) -> None:
    """With a daemon that accepts all: refused as what does not verify, before an item of it exists."""
    data = MALFORMED[what]
    word, xid = deliver(mallory, data, size=len(data))
    assert isinstance(word, Stop)
    assert word.code == 32
    assert ending(fleet, "bob", xid)["event"] == "not-received"
    assert inbox_of(fleet.home("bob")) == ([], [])


@pytest.mark.attack("F06")
def test_a_tree_says_its_size_and_keeps_to_it(fleet: Fleet, mallory: EvilSender) -> None:
    """No size; more than it said; contents for a file that its listing has not."""
    data = stream(folder(0, ""), file(1, "a", 3), contents=b"abc")
    for size, sent in ((None, data), (len(data), data + b"d"), (len(data) + 1, data + b"d"), (len(data), data[:-1])):
        word, xid = deliver(mallory, sent, size=size)
        assert isinstance(word, Stop), size
        assert ending(fleet, "bob", xid)["event"] == "not-received"
    assert inbox_of(fleet.home("bob")) == ([], [])


@pytest.mark.attack("F10")
def test_a_listing_beyond_its_bounds_is_a_limit_before_memory(fleet: Fleet, mallory: EvilSender) -> None:
    """4 GiB of it, 10,000 folders deep, 600,000 entries: 25, and the daemon is no larger than before."""
    pid = fleet.program("bob").process.pid
    before = memory(pid, "VmHWM")
    million = stream(folder(0, ""), *(file(1, f"{number:07}") for number in range(600_000)))
    side_by_side = stream(*(file(0, f"{number:07}") for number in range(100_000)))
    for data in (header(1 << 32) + bytes(1 << 20), nested(10_000), side_by_side, million):
        word, xid = deliver(mallory, data, size=max(len(data), 1 << 33) if data[:4] == b"\0\0\0\1" else len(data))
        assert isinstance(word, Stop)
        assert (word.code, word.detail) == (25, "limit")
        assert ending(fleet, "bob", xid)["event"] == "not-received"
    assert memory(pid, "VmHWM") - before < 32 * MIB
    assert memory(pid, "VmHWM") < 150 * MIB
    assert inbox_of(fleet.home("bob")) == ([], [])


@pytest.mark.attack("F03", "F04", "F05", "F12", "F14")
def test_what_a_tree_links_to_is_not_touched_whatever_option_names_its_place(
    fleet: Fleet, mallory: EvilSender, tmp_path: Path
) -> None:
    """Links out of it, at the top too, beside files of the same names; then saved over itself, by every option."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    entries = (
        link(0, "abs", str(victim)), folder(0, "dir"), file(1, "file", 4), link(1, "up", "../../victim"),
        link(0, "etc", "/etc"), file(0, "file", 4), link(0, "self", "self"), link(0, "to", str(victim / "file")),
    )
    before = tree(victim)
    data = stream(*entries, contents=b"evilevil")
    word, _ = deliver(mallory, data, size=len(data), name="../victim")
    assert isinstance(word, Done)
    into = tmp_path / "into"
    into.mkdir()
    for words in (
        (), ("-o", str(into)), ("-o", f"{into}/"), ("-o", str(into / "exactly")), ("--conflict", "overwrite"),
        ("--conflict", "skip"), ("--conflict", "overwrite", "-o", str(into / "exactly")), ("-o", "dir"),
    ):
        done = fleet.zkc("bob", "recv", "--keep", "--json", *words, cwd=into)
        assert done.code == 0, done.err
        assert tree(victim) == before, words
    assert sorted(os.listdir(tmp_path)) == ["into", "victim"]
    assert os.readlink(into / "abs") == str(victim)
    fleet.client("bob")._inbox.remove(inbox_of(fleet.home("bob"))[0][0].id)
