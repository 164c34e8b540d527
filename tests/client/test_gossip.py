"""Heads of the key log that clients tell each other: whoever signed two logs is caught, with evidence."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.key_log import LogRows, key_log
from tests.support.parties import coordinator_of
from tests.support.program import zkc
from zkc.client.gossip import Gossip
from zkc.crypto.evidence import check_evidence
from zkc.errors import IdentityError, UnknownRecipient
from zkc.protocol.keylog import LogAlarm
from zkc.stores.home import Home
from zkc.stores.keydb import LogEntry
from zkc.stores.keystore import KeyStore
from zkc.wire.messages import LogAsk, LogHead, LogHeadAsk

BOSS = coordinator_of("x25519")
OWN = b"o" * 32


class Face(LogRows):
    """The log as a coordinator shows it to one client, who is its first entry."""

    def __init__(self, *names: str) -> None:
        super().__init__([])
        for name in names:
            self.add(name)
        self.signs = True
        self.asked: list[object] = []
        self._log = key_log(self, BOSS.identity)

    def add(self, name: str) -> None:
        card = OWN if not self.rows else name.encode().ljust(32)
        self.rows.append(LogEntry(len(self.rows), 0.0, "registered", name, bytes(16), card, ""))

    async def ask(self, body: Any) -> Any:
        self.asked.append(body)
        session: Any = SimpleNamespace(client=SimpleNamespace(row=SimpleNamespace(log_index=0)))
        if isinstance(body, LogAsk):
            return self._log.page(session, b"", body)
        assert isinstance(body, LogHeadAsk)
        if not self.signs:
            raise UnknownRecipient("no", detail="unknown")
        return self._log.head_at(session, b"", body)

    def head(self, size: int) -> bytes:
        session: Any = SimpleNamespace()
        made = self._log.head_at(session, b"", LogHeadAsk(size))
        assert isinstance(made, LogHead)
        return made.head


class Me:
    """alice, by her face of the log."""

    def __init__(self, home: Home, store: KeyStore, face: Face) -> None:
        self.home, self.face = home, face
        self.alarms: list[tuple[str, LogAlarm]] = []
        self.gossip = Gossip(store, lambda name, alarm: self.alarms.append((name, alarm)))
        self.principal: Any = SimpleNamespace(
            name="alice", card=SimpleNamespace(hash=OWN), coordinator=SimpleNamespace(identity=BOSS.identity.public),
            registration=SimpleNamespace(uid=bytes(16), coordinator_card=BOSS.card),
        )

    def hear(self, note: bytes) -> None:
        asyncio.run(self.gossip.hear(self.face.ask, self.principal, "bob", note))

    def alarm(self, note: bytes) -> LogAlarm:
        """The one that a head gives."""
        self.alarms.clear()
        self.hear(note)
        ((name, alarm),) = self.alarms
        assert name == "alice"
        return alarm

    def head_for(self, peer: str) -> bytes:
        return self.gossip.head_for(self.principal, peer)


@pytest.fixture
def store(home: Home) -> Iterator[KeyStore]:
    with KeyStore.open(home) as opened:
        yield opened


def test_a_head_that_fits_is_looked_at_once_and_each_is_told_once(home: Home, store: KeyStore) -> None:
    me = Me(home, store, Face("alice", "bob", "carol"))
    assert me.head_for("bob") == b"", "nothing is known yet"
    me.hear(me.face.head(3))
    asked = len(me.face.asked)
    me.hear(me.face.head(3))
    me.hear(b"")
    assert len(me.face.asked) == asked
    told = me.head_for("bob")
    assert told
    assert (me.head_for("bob"), me.head_for("carol")) == (b"", told)
    me.gossip.forget(bytes(16), "bob")
    assert me.head_for("bob") == told
    me.face.add("dave")
    me.hear(me.face.head(4))
    assert me.head_for("bob") not in (b"", told)
    me.hear(me.face.head(2))  # who is behind compares for himself


@pytest.mark.attack("H12", "P10")
@pytest.mark.parametrize("followed", [True, False])
@pytest.mark.parametrize("more", [(), ("erin", "frank")])
def test_a_coordinator_with_two_faces_is_caught_and_named_with_evidence_that_anybody_can_check(
    home: Home, store: KeyStore, more: tuple[str, ...], followed: bool
) -> None:
    me = Me(home, store, Face("alice", "bob", "carol"))
    if followed:
        me.hear(me.face.head(3))
    other = Face("alice", "bob", "mallory")
    for name in more:
        me.face.add(name)
        other.add(name)
    size = 3 + len(more)
    alarm = me.alarm(other.head(size))
    assert alarm.detail == "log-fork"
    (path,) = (home.data / "evidence").iterdir()
    assert str(path) in str(alarm)
    assert check_evidence(path.read_bytes()) == (BOSS.identity.public.fingerprint, size)
    me.alarms.clear()
    me.hear(other.head(size))
    assert me.alarms == [], "once"
    me.alarm(Face("alice", "bob", "eve", *more).head(size))
    assert len(list((home.data / "evidence").iterdir())) == 2, "no evidence takes the place of another"


@pytest.mark.attack("H12")
def test_one_that_hides_entries_or_does_not_sign_is_an_alarm_too(home: Home, store: KeyStore) -> None:
    me = Me(home, store, Face("alice", "bob"))
    assert me.alarm(Face("alice", "bob", "carol").head(3)).detail == "log-shrunk"
    me.face.signs = False
    assert me.alarm(Face("alice", "mallory").head(2)).detail == "log-fork"
    assert not (home.data / "evidence").exists()


def test_what_no_coordinator_of_ours_has_signed_accuses_nobody(home: Home, store: KeyStore) -> None:
    me = Me(home, store, Face("alice", "bob"))
    note = Face("alice", "mallory").head(2)
    for other in (note[:-3], note.replace(b"\n2\n", b"\n3\n"), b"nonsense"):
        me.hear(other)
    assert (me.face.asked, me.alarms) == ([], [])


def test_evidence_that_proves_nothing_is_refused(home: Home, store: KeyStore) -> None:
    me = Me(home, store, Face("alice", "bob"))
    me.alarm(Face("alice", "mallory").head(2))
    (path,) = (home.data / "evidence").iterdir()
    data = path.read_bytes()
    for changed in (b"", b"{}", data[:-9], data.replace(b"log-fork", b"log-work"), data.replace(b"A", b"B", 1)):
        with pytest.raises(IdentityError) as refused:
            check_evidence(changed)
        assert refused.value.detail == "evidence"
    done = zkc("coordinator", "audit", "--verify", str(path), "--json")
    assert (done.code, done.objects[0]["coordinator"]) == (0, BOSS.identity.public.fingerprint.hex())
    path.write_bytes(data[:-9])
    assert zkc("coordinator", "audit", "--verify", str(path)).code == 12
    assert zkc("coordinator", "audit", str(path)).code == 2
