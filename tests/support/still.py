"""A home for the terminal's face in which nothing moves: no daemon, no files, and a clock that stands."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.items import DAY, NOW, SetClock
from zkc.client.control import PendingItem, StatusReply
from zkc.client.happenings import Begun, Ended, Progress
from zkc.stores.items import Item
from zkc.stores.key_rows import Pin
from zkc.stores.outbox import Job
from zkc.ui.tui.app import Change, Face
from zkc.ui.tui.desk import Desk
from zkc.ui.tui.rows import Row, inbox_row, job_row, lines_of, pane, peer_row, pending_row, sent_row
from zkc.wire.messages import Peer, ReceiptBody

LETTER = "Hi Bob,\n\nthe scans of June are on their way, 40 GB.\nCould you look at the third folder first?\n\nAlice"
EVIL = (
    "\x1b[2J\x1b]0;title\x07\r\nid: 1\u202etxt.exe\u2066\u200b [bold]\\ "
    "\U0001f469\u200d\U0001f680 \u4f60\u597d e\u0301 " + "long" * 60
)


class StillDesk(Desk):
    """What the face asks a home for, from values."""

    def __init__(self) -> None:  # nothing is opened that would have to be closed
        self.clock = SetClock()
        self.name = "bob"
        self._over = threading.Event()
        self._answer = None
        self.told = False
        """Whether all of `transfers` is."""
        self.letters = [
            (item("a1", "alice", "message", kind="message", size=len(LETTER), received=NOW - 40), LETTER),
            (item("b2", "carol", "minutes.pdf", note="of Monday", size=214_000, received=NOW - 3 * 3600), ""),
            (item("c3", "lab-3", "run-0417-of-the-second-spectrometer.csv", size=3 << 30, received=NOW - 12 * DAY), ""),
        ]
        self.new = {letter.id for letter, _ in self.letters[:2]}
        self.waiting = [pending("d4", "carol", "payroll.xlsx"), pending("e5", "dave", None, require="online")]

    def status(self) -> StatusReply:
        return StatusReply(
            "bob", True, "tcp://zkc.example.org:7411", "", "present", "", [], 3, 4096, "", 0, "1.0.0"
        )

    def inbox(self) -> list[Row]:
        return [self._line(each, text) for each, text in self.letters]

    def see(self, id: str) -> Row:
        self.new.discard(id)
        return next(self._line(*letter) for letter in self.letters if letter[0].id == id)

    def _line(self, each: Item, text: str) -> Row:
        return _inbox_row(each, text.partition("\n")[0], each.id in self.new)

    def read(self, id: str) -> str:
        each, text = next(letter for letter in self.letters if letter[0].id == id)
        return pane(self._line(each, text).detail, lines_of(text) if text else [])

    def pending(self) -> list[Row]:
        return [pending_row(each, NOW) for each in self.waiting]

    def require_of(self, id: str) -> str:
        return next(each.require for each in self.waiting if each.id == id)

    def sent(self) -> list[Row]:
        bodies = [receipt("alice", 40, NOW - 60), receipt("carol", 5 << 20, NOW - 2 * DAY)]
        names = ["message", "thesis.tar.gz"]
        return [
            sent_row(f"/home/bob/.local/share/zkc/receipts/{at}.receipt", body, name, NOW)
            for at, (body, name) in enumerate(zip(bodies, names, strict=True))
        ]

    def queue(self) -> list[Row]:
        return [
            job_row(job("f6", "carol", "disk.img", state="sending", bytes=4 << 30), 1 << 30, NOW),
            job_row(job("a7", "dave", "notes.txt", bytes=900, tries=2, next=NOW + 30, why="offline"), None, NOW),
        ]

    def peers(self) -> list[Row]:
        pinned = Pin("alice", "user", b"a" * 32, b"", b"", 1, NOW, NOW, verified=NOW)
        changed = Pin("carol", "user", b"c" * 32, b"", b"", 1, NOW, NOW - DAY)
        return [
            peer_row("alice", Peer("alice", "user", True, int(NOW), b"a" * 32, "present", 3), pinned, NOW),
            peer_row("carol", Peer("carol", "user", False, int(NOW - DAY), b"x" * 32, "absent", 0), changed, NOW),
            peer_row("lab-3", Peer("lab-3", "computer", True, int(NOW), b"l" * 32, "unknown", 0), None, NOW),
        ]

    def safety(self, name: str) -> tuple[str, bytes]:
        return " ".join(f"{number * 8641 % 100_000:05}" for number in range(1, 13)), b"k" * 32

    def receipt(self, path: str) -> str:
        return pane((("genuine", "yes, by the key pinned here"), ("file", path)))

    def names(self) -> list[str]:
        return ["alice", "carol"]

    def transfers(self) -> Iterator[Change]:
        """As the daemon tells of them, ten seconds after each other."""
        for what in (
            begun("x1", "in", "lab-3", "spectra.h5", 10 << 30), Progress("x1", 4 << 30, 10 << 30),
            begun("x2", "out", "carol", "disk.img", 4 << 30), Progress("x2", 1 << 30, 4 << 30),
            begun("x3", "in", "alice", "report.pdf", 1000), ended("x3", 1000),
            begun("x4", "in", "alice", "draft.pdf", 1000), ended("x4", 100, 31, "interrupted", "signal"),
        ):
            yield Change(flow=what)
            self.clock.now += 10
        self.told = True


def still_face(desk: StillDesk) -> Face:
    face = Face(desk, desk.transfers, desk.clock.monotonic)
    face.animation_level = "none"
    return face


def item(id: str, sender: str, name: str, **more: Any) -> Item:
    values: dict[str, Any] = {
        "id": id * 8, "sender": sender, "sender_fp": bytes(32), "app": "", "name": name, "note": "", "size": 0,
        "digest": bytes(32), "key_source": "sender", "kind": "file", "received": NOW, "xid": bytes(16),
        "tid": bytes(16), "mode": 0o600, "mtime_ns": 0, "path": Path("x"),
    }
    return Item(**(values | more))


def pending(id: str, sender: str, name: str | None, **more: Any) -> PendingItem:
    values: dict[str, Any] = {
        "id": id * 4, "sender": sender, "app": "", "require": "authorised", "verified": False, "name": name, "note": "",
        "size": None if name is None else 48_000, "least_size": 1 << 20, "key_source": "sender", "since": NOW,
        "until": NOW + 90,
    }
    return PendingItem(**(values | more))


def receipt(recipient: str, size: int, ended: float) -> ReceiptBody:
    return ReceiptBody(
        tid=bytes(16), xid=bytes(16), th=bytes(32), sender="bob", sender_fingerprint=bytes(32), recipient=recipient,
        recipient_fingerprint=bytes(32), card_hash=bytes(32), name_digest=bytes(32), size=size, digest=bytes(32),
        manifest_digest=bytes(32), key_source="sender", cipher="chacha20", presence="present", presence_age=3,
        durable=True, asker=b"", asked_by="", began=0, ended=int(ended * 1000),
    )


def job(id: str, recipient: str, name: str, **more: Any) -> Job:
    values: dict[str, Any] = {
        "id": id * 8, "recipient": recipient, "name": name, "note": "", "made": NOW, "expires": NOW + 7 * DAY,
    }
    return Job(**(values | more))


def begun(id: str, direction: Any, peer: str, name: str, total: int, resumed_from: int = 0) -> Begun:
    ends = (peer, "bob") if direction == "in" else ("bob", peer)
    return Begun(id, direction, *ends, name, total, resumed_from, False)


def ended(id: str, size: int, code: int = 0, reason: str = "", detail: str = "") -> Ended:
    return Ended(id, "in", "alice", "bob", None, size, code, reason, detail)


def _inbox_row(each: Item, subject: str, is_new: bool) -> Row:
    known = each.sender == "alice"
    presence = "present" if known else "online"
    return inbox_row(each, presence, verified=known, now=NOW, subject=subject, is_new=is_new)
