"""A third client asks one to send to another (claims B8), with real processes."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import pytest

from tests.support.waiting import DEADLINE, wait_until
from zkc.testing import Fleet

CONTENT = b"nightly" * 10_000


def pending(fleet: Fleet) -> list[dict[str, Any]]:
    return [item for item in fleet.zkc("bob", "inbox", "--json").events if item["state"] == "pending"]


@pytest.mark.claims("B8", 1, 2)
def test_carol_asks_alice_to_send_to_bob() -> None:
    with Fleet("alice", "bob", "carol") as fleet:
        folder = fleet.folder / "builds"
        folder.mkdir()
        (folder / "nightly.tar").write_bytes(CONTENT)
        (fleet.folder / "secret").write_bytes(b"secret")
        (folder / "out").symlink_to(fleet.folder / "secret")
        words = ("share", "builds", str(folder), "--to", "carol", "--for", "bob,carol", "--note", "each night")

        # A name alone is no identity.
        assert fleet.zkc("alice", *words).code == 20
        assert fleet.zkc("alice", "verify", "carol").code == 0
        assert fleet.zkc("alice", *words).code == 0
        listed = fleet.zkc("carol", "--json", "shares", "alice").events
        assert listed == [{
            "v": 1, "event": "share", "name": "builds", "kind": "folder", "note": "each night", "for": ["bob", "carol"],
        }]  # fmt: skip
        nothing = fleet.zkc("bob", "--json", "shares", "alice")
        assert (nothing.code, nothing.out) == (0, b"")

        # To bob: carol sees it happen, holds bob's receipt, and nothing of the data.
        sent = fleet.zkc("carol", "--json", "send", "--from", "alice", "bob", "builds/nightly.tar", "--note", "for you")
        assert sent.code == 0, sent.err
        kinds = [event["event"] for event in sent.events]
        assert kinds[:2] == ["requested", "granted"]
        assert kinds[-1] == "delivered"
        delivered = sent.events[-1]
        kept = fleet.zkc("carol", "--json", "receipt", "verify", delivered["receipt"])
        assert kept.code == 0
        assert kept.events[0]["asker"]
        assert not fleet.zkc("carol", "inbox").out
        with fleet.client("bob").receive() as item:
            assert (item.item.sender, item.item.note, item.read()) == ("alice", "for you", CONTENT)

        # To carol herself.
        got = fleet.zkc("carol", "get", "alice:builds/nightly.tar", "-o", "-")
        assert (got.code, got.out) == (0, CONTENT), got.err
        assert not fleet.zkc("carol", "inbox").out

        # Who asks for it himself is not asked, whatever he does with what others send.
        for accept in ("ask", "none"):
            fleet.configure("carol", {"inbox.accept": accept})
            fleet.program("carol").process.send_signal(signal.SIGHUP)
            told = {"ask": b"would ask", "none": b"takes no transfers"}[accept]
            wait_until(lambda told=told: told in (done := fleet.zkc("alice", "check", "carol")).out + done.err)
            got = fleet.zkc("carol", "get", "alice:builds/nightly.tar", "-o", "-")
            assert (got.code, got.out) == (0, CONTENT), got.err
        fleet.configure("carol", {"inbox.accept": "all"})
        fleet.program("carol").process.send_signal(signal.SIGHUP)
        wait_until(lambda: fleet.zkc("alice", "check", "carol").code == 0)

        # How it is sent is for alice to say: what cannot be asked of her is not dropped silently.
        for words in (("--require", "present"), ("--queue",), ("--expires", "1h"), ("--compress",)):
            assert fleet.zkc("carol", "send", "--from", "alice", "bob", "builds/nightly.tar", *words).code == 2

        # What is not to be had looks the same, whatever it is.
        answers = {
            fleet.zkc(who, "--json", "get", f"alice:{path}").out
            for who, path in (
                ("carol", "builds/out"), ("carol", "builds/../secret"), ("carol", "none"), ("bob", "builds/nightly.tar")
            )
        }
        assert len(answers) == 1
        assert b'"code":25' in answers.pop()
        assert fleet.zkc("carol", "send", "--from", "alice", "alice", "builds/nightly.tar").code == 25
        assert fleet.zkc("carol", "send", "--from", "nobody", "bob", "builds/x").code == 20
        assert fleet.zkc("carol", "send", "--from", "alice", "nobody", "builds/nightly.tar").code == 20

        # Rights follow who had them to a new identity, of each of the three.
        for name in ("carol", "bob", "alice"):
            assert fleet.zkc(name, "rotate", "--identity").code == 0
        got = fleet.zkc("carol", "get", "alice:builds/nightly.tar", "-o", "-")
        assert (got.code, got.out) == (0, CONTENT), got.err
        assert fleet.zkc("carol", "send", "--from", "alice", "bob", "builds/nightly.tar").code == 0

        # Taken back, and gone.
        assert fleet.zkc("alice", "share", "--remove", "builds").code == 0
        assert fleet.zkc("carol", "get", "alice:builds/nightly.tar").code == 25
        fleet.program("alice").terminate()
        assert fleet.zkc("carol", "get", "alice:builds/nightly.tar").code == 21

        # Noted by whom it was decided, without a path.
        noted = fleet.zkc("alice", "audit", "--json")
        told = [(each["kind"], each["from"], each["to"], each["code"]) for each in noted.events]
        for wanted in (
            ("shared", None, "carol", 0), ("share", "carol", "bob", 0), ("share", "carol", "carol", 25),
            ("unshared", None, "carol", 0),
        ):
            assert wanted in told
        assert b"nightly" not in noted.out
        wait_until(lambda: {("ask", "carol", 0), ("ask", "carol", 21)} <= {
            (each["kind"], each["from"], each["code"])
            for each in fleet.zkc("coordinator", "coordinator", "audit", "--json").events
        })  # fmt: skip
        fleet.program("carol").terminate()
        assert fleet.zkc("carol", "get", "alice:builds/nightly.tar").code == 34


@pytest.mark.claims("B8", 1, 2)
def test_who_asked_hears_that_a_person_is_asked_and_whose_answer_it_was() -> None:
    with Fleet("alice", "bob", "carol") as fleet:
        (fleet.folder / "nightly.tar").write_bytes(CONTENT)
        assert fleet.zkc("alice", "verify", "carol").code == 0
        assert fleet.zkc("alice", "share", "builds", str(fleet.folder), "--to", "carol", "--for", "bob").code == 0
        fleet.configure("bob", {"inbox.accept": "ask"})
        fleet.program("bob").process.send_signal(signal.SIGHUP)
        wait_until(lambda: b"would ask" in fleet.zkc("alice", "check", "bob").err)
        words = ("--json", "send", "--from", "alice", "bob", "builds/nightly.tar")
        with fleet.popen("carol", *words, stdout=subprocess.PIPE) as process:
            wait_until(lambda: pending(fleet))
            (item,) = pending(fleet)
            assert process.stdout is not None
            told = [json.loads(process.stdout.readline()) for _ in range(2)]
            assert [each["event"] for each in told] == ["requested", "pending"]
            assert fleet.zkc("bob", "refuse", item["id"]).code == 0
            error = json.loads(process.communicate(timeout=DEADLINE)[0].splitlines()[-1])
        assert (error["code"], "bob" in error["message"], "alice" in error["message"]) == (24, True, False)
