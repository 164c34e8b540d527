"""A sender with true keys whose small frames stand for a great deal."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.evil_sender import EvilSender, Frames, Line
from tests.support.looking import ending, inbox_of, memory, payloads
from zkc.client.grants import Wanted
from zkc.protocol.session import Session
from zkc.testing import Fleet
from zkc.wire.frames import Flag
from zkc.wire.messages import Ack, Stop
from zkc.wire.packing import Packer

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    client = {"transfer.listen": "tcp://127.0.0.1:0", "inbox.max_bytes": "64M", "log.level": "debug"}
    with Fleet("bob", client=client) as fleet:
        fleet.join("mallory")
        yield fleet


@pytest.fixture(scope="module")
def mallory(fleet: Fleet) -> Iterator[EvilSender]:
    with EvilSender(fleet.home("mallory")) as sender:
        yield sender


def agree(mallory: EvilSender) -> Session:
    session = mallory.grant(
        Wanted(os.urandom(16), "bob", "sender", "recipient-first", "aes-256-gcm", 10, compression="zstd")
    )
    assert isinstance(session, Session)
    return session


@pytest.mark.attack("F13")
@pytest.mark.parametrize("how", ["many chunks", "one chunk"])
def test_a_thousand_bytes_that_unpack_to_ten_gigabytes_stop_at_what_was_declared(
    fleet: Fleet, mallory: EvilSender, how: str
) -> None:
    """Nothing is written, no memory is taken, and bob goes on."""
    session = agree(mallory)
    frames = Frames(session, size=1000)
    whole = session.resp.chunk if how == "many chunks" else GIB
    bomb = Packer().pack(bytes(whole))
    assert bomb is not None
    before = memory(fleet.program("bob").process.pid)
    with Line(session) as line:
        assert isinstance(line.answer(), Ack), "both connections stand: his last word is heard"
        line.send(*frames.opening(), *(frames.chunk(bomb, Flag.ZSTD) for _ in range(10 * GIB // whole)))
        stop = line.verdict()
    assert isinstance(stop, Stop)
    assert stop.code == (32 if how == "many chunks" else 25)
    assert ending(fleet, "bob", session.req.xid)["code"] == stop.code
    assert memory(fleet.program("bob").process.pid) - before < 64 * MIB
    assert inbox_of(fleet.home("bob")) == ([], [])
    assert payloads(fleet.home("bob")) == []


@pytest.mark.attack("F13")
def test_what_declares_no_size_is_held_to_the_bounds_of_the_recipient(fleet: Fleet, mallory: EvilSender) -> None:
    """Of credit each byte counts that is written, and not the frame that it came in; and where bob is so quick that his
    credit is never used up, `inbox.max_bytes` ends it."""
    session = agree(mallory)
    frames = Frames(session, kind="stream")
    bomb = Packer().pack(bytes(session.resp.chunk))
    assert bomb is not None
    with Line(session) as line:
        line.send(*frames.opening(), *(frames.chunk(bomb, Flag.ZSTD) for _ in range(10 * GIB // session.resp.chunk)))
        stop = line.verdict()
    assert isinstance(stop, Stop)
    assert (stop.code, stop.detail) == (25, "limit")
    assert inbox_of(fleet.home("bob"))[0] == []
