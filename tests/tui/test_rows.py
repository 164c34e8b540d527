"""The lists as values: what a peer chose is text and nothing else, in every cell and line."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from rich.cells import cell_len

from zkc.client.control import PendingItem
from zkc.stores.items import Item
from zkc.stores.key_rows import Pin
from zkc.stores.outbox import Job
from zkc.ui.tui.rows import (
    INBOX,
    PEERS,
    PENDING,
    QUEUE,
    SENT,
    Row,
    age,
    ago,
    cut,
    inbox_row,
    job_row,
    lines_of,
    pane,
    peer_row,
    pending_row,
    sent_row,
)
from zkc.wire.messages import Peer, ReceiptBody

EVIL = "a\x1b[2J\x1b]0;x\x07\r\n\u202eb\u200b[red]c\x9b1A"
NOW = 1_800_000_000.0


def test_a_cell_is_as_wide_as_it_should_be_whatever_the_letters() -> None:
    assert cut("message") == "message"
    for text in ("a" * 30, "\u4f60" * 30, "a" + "\u4f60" * 30, "\U0001f680 " * 20):
        assert cell_len(cut(text, 24)) in (23, 24)
        assert cut(text, 24).endswith("…")


def test_a_message_is_told_by_its_first_line_and_what_is_new_by_a_sign() -> None:
    row = inbox_row(item(name="message"), "", verified=False, now=NOW, subject="Hi Bob,\x1b[2J", is_new=True)
    assert row.cells[1:3] == ("· ●", "Hi Bob,\\x1b[2J")
    assert row.older is not None
    assert row.older(now=NOW + 60).is_new
    assert inbox_row(item(name="a.txt"), "", verified=True, now=NOW).cells[1:3] == ("✓", "a.txt")


def item(**changes: object) -> Item:
    values: dict[str, object] = {
        "id": "00112233aabbccdd", "sender": EVIL, "sender_fp": bytes(32), "app": EVIL, "name": EVIL, "note": EVIL,
        "size": 2048, "digest": bytes(32), "key_source": "sender", "kind": "file", "received": NOW - 90,
        "xid": bytes(16), "tid": bytes(16), "mode": 0o600, "mtime_ns": 0, "path": Path("x"), "asked_by": EVIL,
    }
    return Item(**(values | changes))  # type: ignore[arg-type]


def pending() -> PendingItem:
    return PendingItem(
        id="00", sender=EVIL, app=EVIL, require="authorised", verified=True, name=EVIL, note=EVIL, size=None,
        least_size=1 << 20, key_source="sender", since=NOW, until=NOW + 59, asked_by=EVIL,
    )


def receipt() -> ReceiptBody:
    return ReceiptBody(
        tid=bytes(16), xid=bytes(16), th=bytes(32), sender=EVIL, sender_fingerprint=bytes(32), recipient=EVIL,
        recipient_fingerprint=bytes(32), card_hash=bytes(32), name_digest=bytes(32), size=5, digest=bytes(32),
        manifest_digest=bytes(32), key_source="sender", cipher="chacha20", presence="present", presence_age=3,
        durable=True, asker=b"", asked_by="", began=0, ended=int((NOW - 7200) * 1000),
    )


def job(**changes: object) -> Job:
    values: dict[str, object] = {
        "id": "0" * 16, "recipient": EVIL, "name": EVIL, "note": EVIL, "made": NOW, "expires": NOW + 86400 * 7,
        "bytes": 200, "why": EVIL,
    }
    return Job(**(values | changes))  # type: ignore[arg-type]


def rows() -> list[tuple[tuple[str, ...], Row]]:
    peer = Peer(EVIL, "user", True, int(NOW) - 5, bytes(32), "present", 3)
    pin = Pin(EVIL, "user", bytes(32), b"", b"", 1, NOW, NOW)
    return [
        (INBOX, inbox_row(item(), "present", verified=True, now=NOW)), (PENDING, pending_row(pending(), NOW)),
        (SENT, sent_row("path", receipt(), EVIL, NOW)), (QUEUE, job_row(job(), 50, NOW)),
        (PEERS, peer_row(EVIL, peer, pin, NOW)), (PEERS, peer_row(EVIL, None, None, NOW)),
    ]


@pytest.mark.attack("F07")
def test_no_text_of_a_peer_reaches_the_screen_as_anything_but_letters() -> None:
    for columns, row in rows():
        assert len(row.cells) == len(columns)
        for text in (*row.cells, *(text for pair in row.detail for text in pair), pane(row.detail, lines_of(EVIL))):
            for line in text.split("\n"):
                assert not any(unicodedata.category(each).startswith("C") for each in line), repr(line)
                assert "\u202e" not in line


@pytest.mark.attack("F11")
def test_each_line_of_a_message_is_marked_as_one() -> None:
    assert lines_of("one\n\nid:          abc") == ["│ one", "│ ", "│ id:          abc"]


def test_what_is_verified_asked_changed_and_new_has_a_sign_and_a_word() -> None:
    known = inbox_row(item(sender="bob"), "", verified=False, now=NOW)
    assert known.cells[1] == "·"
    assert ("from", "bob (not verified)") in known.detail
    assert inbox_row(item(), "", verified=True, now=NOW).cells[1] == "✓"
    assert pending_row(pending(), NOW).cells[4:] == ("your PIN", "59 s")
    pin = Pin("bob", "user", b"1" * 32, b"", b"", 1, NOW, NOW, verified=NOW)
    assert peer_row("bob", None, pin, NOW).cells == ("bob", "✓", "?", "unknown", "just now")
    other = Peer("bob", "user", False, 0, b"2" * 32, "absent", 0)
    assert peer_row("bob", other, pin, NOW).cells[1:4] == ("! key", "no", "absent")
    assert peer_row("bob", other, None, NOW).cells[1] == "new"


def test_a_line_grows_older_without_being_read_anew() -> None:
    pin = Pin("bob", "user", b"1" * 32, b"", b"", 1, NOW, NOW, verified=NOW)

    def lines(now: float) -> list[Row]:
        return [
            inbox_row(item(), "present", verified=True, now=now), pending_row(pending(), now),
            sent_row("path", receipt(), "x", now), job_row(job(), 50, now), peer_row("bob", None, pin, now),
        ]

    later = [line.older(now=NOW + 7200) for line in lines(NOW) if line.older is not None]
    assert later == lines(NOW + 7200)
    assert all(line != before for line, before in zip(later, lines(NOW), strict=True))


def test_a_job_says_how_far_it_is() -> None:
    assert job_row(job(state="sending"), 50, NOW).cells[3:5] == ("sending", "25 %")
    assert job_row(job(bytes=None), 3 << 20, NOW).cells[2:5] == ("?", "waiting", "3.0M")
    assert job_row(job(), None, NOW).cells[4] == ""


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(-3, "now"), (0.5, "now"), (59, "59 s"), (61, "1 min"), (7199, "1 h"), (90000, "1 d")]
)
def test_times_are_short(seconds: float, wanted: str) -> None:
    assert age(seconds) == wanted
    assert ago(seconds) == ("just now" if wanted == "now" else f"{wanted} ago")


def test_what_is_too_long_for_a_cell_is_cut_where_it_can_be_seen() -> None:
    assert cut("abcdef", 4) == "abc…"
    assert cut("abcd", 4) == "abcd"
    assert pane([("a", "1"), ("b", "2"), ("c", "3")], ["body"]).split("\n") == [
        "a:           1", "b:           2", "", "body", "", "c:           3",
    ]
