"""``zkc coordinator audit``: what a coordinator decided, without what was sent."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

from tests.support.program import environment
from tests.support.waiting import DEADLINE, wait_until
from zkc.testing import Fleet


def test_decisions_are_told_verified_and_hold_nothing_of_a_payload() -> None:
    with Fleet("alice", "bob") as fleet:
        secret = fleet.home("alice").parent / "merger-plan-7731.txt"
        secret.write_bytes(b"the-content-4711 " * 20_000)
        assert fleet.zkc("alice", "send", "bob", str(secret)).code == 0
        assert fleet.zkc("alice", "send", "nobody-here", str(secret)).code == 20

        def kinds() -> list[tuple[str, str, str | None, int]]:
            done = fleet.zkc("coordinator", "coordinator", "audit", "--json")
            assert done.code == 0, done
            return [(each["kind"], each["from"] or "", each["to"], each["code"]) for each in done.events]

        wait_until(lambda: ("transfer", "alice", "bob", 0) in kinds())
        assert ("registered", "alice", None, 0) in kinds()
        assert ("invited", "", "bob", 0) in kinds()
        noted = fleet.zkc("coordinator", "coordinator", "audit", "--verify", "--json").events[0]
        assert fleet.zkc("coordinator", "coordinator", "revoke", "bob").code == 0
        assert ("revoked", "bob", None, 0) in kinds()
        later = ("audit", "--verify", "--head", noted["head"], "--json")
        again = fleet.zkc("coordinator", "coordinator", *later).events[0]
        assert again["seq"] > noted["seq"]

        data = fleet.home("coordinator")
        for path in data.rglob("*"):
            if path.is_file():
                held = path.read_bytes()
                assert b"merger-plan" not in held, path
                assert b"the-content" not in held, path

        with closing(sqlite3.connect(next(data.rglob("keys.db")))) as raw, raw:
            raw.execute("UPDATE audit SET recipient = 'carol' WHERE seq = 1")
        broken = fleet.zkc("coordinator", "coordinator", "audit", "--verify", "--json")
        assert (broken.code, broken.events[-1]["detail"]) == (12, "audit-chain")


def test_following_tells_of_what_comes_and_ends_by_a_signal() -> None:
    """Also of what another process writes."""
    with Fleet("alice") as fleet:
        home = str(fleet.home("coordinator"))
        words = [sys.executable, "-m", "zkc", "--home", home, "coordinator", "audit", "--follow", "--json"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment({})) as following:
            assert following.stdout is not None
            assert fleet.zkc("coordinator", "coordinator", "invite", "late").code == 0
            assert any(b'"to":"late"' in line for line in following.stdout)
            following.send_signal(signal.SIGINT)
            assert following.wait(DEADLINE) == 130
