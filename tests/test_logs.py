"""The log: no secret passes, whoever gives it away; no peer floods it, or moves a cursor."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from tests.support.env import FixedClock
from zkc import logs
from zkc.crypto.invitations import format_invitation
from zkc.crypto.primitives import Secret
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import SUITES
from zkc.wire.messages import InvitationText

SECRET = b"\x5a\xa5" * 16


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def logged(form: str = "json", level: str = "debug", **fields: Any) -> str:
    stream = io.StringIO()
    logs.configure(form, level, stream)
    logs.get_logger(client="bob").info("event", **fields)
    return stream.getvalue()


@pytest.mark.attack("R07")
@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_passes_by_name_type_or_look(form: str) -> None:
    invitation = format_invitation(
        InvitationText(["tcp://h:1"], bytes(32), bytes(32), "hybrid", bytes(16), "bob", "computer", SECRET[:16])
    )
    out = logged(
        form,
        psk=SECRET.hex(), curve_secret=SECRET.hex(), passphrase="open sesame", PIN="swordfish", token=[SECRET.hex()],
        value=Secret(SECRET), key=SUITES["x25519"].generate(), signing=IdentityKey.from_seed(SECRET * 2),
        raw=SECRET, array=bytearray(SECRET), view=memoryview(SECRET),
        nested={"private_key": SECRET.hex(), "deep": [{"seed": SECRET.hex(), "b": SECRET}]},
        said=f"the line was {invitation}", error=ValueError(invitation),
    )
    for hidden in (SECRET.hex(), repr(SECRET), "open sesame", "swordfish", invitation, SECRET.decode("latin-1")):
        assert hidden not in out
    assert "5aa5" not in out


def test_what_is_no_secret_passes() -> None:
    told = json.loads(logged(name="bob", fingerprint="ab" * 32, count=3, endpoints=["tcp://h:1"], key_id="00ff"))
    assert told["event"] == "event"
    assert told["level"] == "info"
    assert told["client"] == "bob"
    assert told["timestamp"].endswith("Z")
    assert (told["name"], told["fingerprint"], told["count"]) == ("bob", "ab" * 32, 3)
    assert (told["endpoints"], told["key_id"]) == (["tcp://h:1"], "00ff")


@pytest.mark.attack("F07")
@pytest.mark.parametrize("form", ["json", "console"])
def test_an_event_is_one_line_and_moves_no_cursor(form: str) -> None:
    out = logged(form, name="a\x1b[2J\r\nfake line\x9b\u202e")
    assert out.count("\n") == 1
    assert not set(out[:-1]) & {"\x1b", "\r", "\n", "\x9b", "\u202e"}


class Gone(io.StringIO):
    """A stream whose disk is full, or whose reader has gone."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_log_that_cannot_be_written_stops_nothing(form: str) -> None:
    for stream in (Gone(), io.StringIO()):
        logs.configure(form, "debug", stream)
        if not isinstance(stream, Gone):
            stream.close()
        logs.get_logger().error("event")


def test_a_level_withholds_what_is_below_it() -> None:
    assert logged(level="warning") == ""


def test_an_exception_is_told_without_its_locals() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    hidden = os.urandom(16).hex()
    try:
        raise ValueError("seen")
    except ValueError as error:
        logs.get_logger().error("failed", exc_info=error)
    assert "ValueError: seen" in stream.getvalue()
    assert hidden not in stream.getvalue()


def test_repeated_warnings_are_counted_and_not_written() -> None:
    clock = FixedClock()
    repeats = logs.Repeats(clock.monotonic, 10.0)
    assert [repeats.passes("a") for _ in range(4)] == [0, None, None, None]
    assert repeats.passes("b") == 0
    clock.advance(10.0)
    assert repeats.passes("a") == 3
    assert repeats.passes("a") is None


def test_the_kinds_of_warnings_remembered_are_bounded_and_so_are_the_warnings() -> None:
    """Whoever can make up kinds does not get a line for each of them."""
    clock = FixedClock()
    repeats = logs.Repeats(clock.monotonic, 10.0)
    passed = [repeats.passes(f"kind-{number}") for number in range(10_000)]
    assert sum(each is not None for each in passed) <= 257
    assert len(repeats._kinds) <= 257
    clock.advance(10.0)
    assert repeats.passes("kind-0") is not None
    assert repeats.passes("another") == 0


def test_what_a_peer_repeats_is_a_line_now_and_then_and_each_time_for_who_debugs() -> None:
    clock = FixedClock()
    repeats = logs.Repeats(clock.monotonic, 10.0)
    with capture_logs() as events:
        for number in range(3):
            for sender in ("alice", "eve"):
                repeats.tell(logs.get_logger(), "info", "refused", (sender, "limit"), sender=sender, number=number)
        clock.advance(10.0)
        repeats.tell(logs.get_logger(), "info", "refused", ("eve", "limit"), sender="eve", number=3)
    told = [event for event in events if event["log_level"] == "info"]
    assert [(event["sender"], event["number"], event.get("withheld")) for event in told] == [
        ("alice", 0, None), ("eve", 0, None), ("eve", 3, 2),
    ]
    assert [event["number"] for event in events if event["log_level"] == "debug"] == [1, 1, 2, 2]
