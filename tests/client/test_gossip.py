"""Heads of the key log that clients tell each other: whoever signed two logs is caught, with evidence."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from tests.support.env import FixedClock
from tests.support.key_log import LogRows, key_log
from tests.support.parties import coordinator_of, identity_of
from tests.support.program import zkc
from zkc.client.gossip import EVIDENCE_MAX, Gossip
from zkc.client.log_watch import LogWatch
from zkc.client.principal import Principal
from zkc.constants import SUCCESSIONS_MAX
from zkc.crypto.cards import make_coordinator_card, read_coordinator_card, sign_coordinator_card
from zkc.crypto.evidence import Evidence, Proved, check_evidence
from zkc.crypto.signing import IdentityKey
from zkc.crypto.successions import Descent, descend, make_succession
from zkc.decoders import json_decoder
from zkc.errors import IdentityError, UnknownRecipient
from zkc.protocol.keylog import LogAlarm
from zkc.stores.home import Home
from zkc.stores.keydb import LogEntry
from zkc.stores.keystore import KeyStore
from zkc.wire.codec import decode, encode
from zkc.wire.messages import AskCoordinator, CoordinatorNow, LogAsk, LogHead, LogHeadAsk

BOSS = coordinator_of("x25519")
OWN = b"o" * 32
REIGNS = 4


@cache
def reign(number: int) -> IdentityKey:
    """The coordinator's identity after so many successions."""
    return BOSS.identity if number == 0 else identity_of(f"coordinator {number}")


@cache
def succession(number: int) -> bytes:
    """From `reign` number - 1 to this one."""
    return make_succession("", reign(number - 1), reign(number), number + 1)


def card_of(number: int) -> bytes:
    return make_coordinator_card(reign(number), BOSS.general_key.public, BOSS.curve_public, BOSS.suite.name, number + 1)


class Face(LogRows):
    """The log as a coordinator shows it to one client, who is its first entry.

    ``signs_as``: the `reign` whose identity signs the heads; ``admits``: the one that it says it has.
    """

    def __init__(self, *names: str, signs_as: int = 0, admits: int | None = None) -> None:
        super().__init__([])
        for name in names:
            self.add(name)
        self.signs = True
        self.admits = signs_as if admits is None else admits
        self.asked: list[object] = []
        self._log = key_log(self, reign(signs_as))

    def add(self, name: str) -> None:
        card = OWN if not self.rows else name.encode().ljust(32)
        self.rows.append(LogEntry(len(self.rows), 0.0, "registered", name, bytes(16), card, ""))

    async def ask(self, body: Any) -> Any:
        self.asked.append(body)
        session: Any = SimpleNamespace(client=SimpleNamespace(row=SimpleNamespace(log_index=0)))
        if isinstance(body, LogAsk):
            return self._log.page(session, b"", body)
        if isinstance(body, AskCoordinator):
            behind = [reign(number).public.fingerprint for number in range(REIGNS)].index(body.since)
            chain = [succession(number) for number in range(behind + 1, self.admits + 1)]
            card = card_of(self.admits)
            return CoordinatorNow(card, sign_coordinator_card(reign(self.admits), card), chain, False)
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

    def __init__(self, home: Home, store: KeyStore, face: Face, uid: bytes = bytes(16)) -> None:
        self.home, self.store, self.face, self.uid = home, store, face, uid
        self.alarms: list[tuple[str, LogAlarm]] = []
        self.start()
        self.rule(0)

    def start(self) -> None:
        """Her process, which remembers nothing of an earlier one."""
        self.gossip = Gossip(self.store, lambda name, alarm: self.alarms.append((name, alarm)))

    def rule(self, number: int) -> None:
        """The coordinator that she knows is of that `reign`."""
        card = card_of(number)
        registration: Any = SimpleNamespace(name="alice", uid=self.uid, coordinator_card=card)
        own: Any = SimpleNamespace(hash=OWN)
        self.principal = Principal(registration, own, read_coordinator_card(card), None)

    def follow(self, first: int, last: int) -> None:
        """She was told of the successions from the one `reign` to the other, in one go."""

        def longer(stored: bytes | None) -> bytes:
            known = None if stored is None else decode(stored, Descent)
            chain = [succession(number) for number in range(first + 1, last + 1)]
            return encode(descend(known, reign(first).public, chain))

        self.store.change_descent(bytes(16), longer)
        self.rule(last)

    def evidence(self) -> Proved:
        """What the one piece of evidence in her home proves."""
        (path,) = (self.home.data / "evidence").iterdir()
        return check_evidence(path.read_bytes())

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
    fingerprint = BOSS.identity.public.fingerprint
    assert check_evidence(path.read_bytes()) == Proved(fingerprint, [fingerprint, fingerprint], size)
    me.alarms.clear()
    me.hear(other.head(size))
    assert me.alarms == [], "once"
    me.alarm(Face("alice", "bob", "eve", *more).head(size))
    assert len(list((home.data / "evidence").iterdir())) == 2, "no evidence takes the place of another"


@pytest.mark.attack("H12", "P10")
def test_a_coordinator_that_makes_up_one_log_after_the_other_fills_neither_disk_nor_log(
    home: Home, store: KeyStore
) -> None:
    me = Me(home, store, Face("alice", "bob"))
    notes: Any = SimpleNamespace(note=lambda *_, **__: None)
    watch = LogWatch(store, notes, FixedClock())
    with capture_logs() as logs:
        for number in range(EVIDENCE_MAX + 4):
            watch.alarm("alice", me.alarm(Face("alice", f"mallory{number}").head(2)))
        watch.alarm("alice", LogAlarm("log-shrunk", "that is something else"))
    assert len(list((home.data / "evidence").iterdir())) == EVIDENCE_MAX
    assert f"{EVIDENCE_MAX} pieces of evidence" in str(me.alarms[0][1])
    errors = [each["detail"] for each in logs if each["log_level"] == "error"]
    assert errors == ["log-fork", "log-shrunk"]
    me.start()
    # What was written is written again, and another registration has room of its own.
    assert "audit --verify" in str(me.alarm(Face("alice", "mallory0").head(2)))
    other = Me(home, store, Face("alice", "bob"), uid=b"o" * 16)
    assert "audit --verify" in str(other.alarm(Face("alice", "mallory99").head(2)))


@pytest.mark.attack("H12")
def test_one_that_hides_entries_or_does_not_sign_is_an_alarm_too(home: Home, store: KeyStore) -> None:
    me = Me(home, store, Face("alice", "bob"))
    assert me.alarm(Face("alice", "bob", "carol").head(3)).detail == "log-shrunk"
    me.face.signs = False
    me.face.add("dave")
    me.hear(me.face.head(3))
    assert me.alarm(Face("alice", "bob", "dave", "erin").head(4)).detail == "log-shrunk"
    assert not (home.data / "evidence").exists()
    # Of what it has shown it has signed the end, whatever it says now.
    assert me.alarm(Face("alice", "mallory", "dave").head(3)).detail == "log-fork"
    assert me.evidence().size == 3


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


# --- over a succession of the coordinator's own identity ----------------------------------------------------------


@pytest.mark.parametrize(
    ("knows", "since", "face", "told"),
    [
        pytest.param(1, 0, {"signs_as": 1}, 0, id="a former one"),
        pytest.param(3, 0, {"signs_as": 3}, 1, id="one between two that she knew"),
        pytest.param(1, 1, {"signs_as": 1}, 0, id="one from before she came"),
        pytest.param(0, 0, {"signs_as": 1}, 1, id="the next one, which has signed what she is shown too"),
        pytest.param(0, 0, {"signs_as": 0, "admits": 1}, 1, id="the next one, of which she was not told"),
        pytest.param(0, 0, {"signs_as": 0}, 1, id="one that the coordinator denies"),
    ],
)
def test_a_head_that_fits_is_no_alarm_whichever_identity_has_signed_it(
    home: Home, store: KeyStore, knows: int, since: int, face: dict[str, int], told: int
) -> None:
    me = Me(home, store, Face("alice", "bob", "carol", **face))
    me.rule(knows)
    if since < knows:
        me.follow(since, knows)
    me.hear(Face("alice", "bob", "carol", signs_as=told).head(3))
    assert me.alarms == []
    known = store.known_log(bytes(16))
    assert known is not None
    assert known.size == 3, "it was looked at"


@pytest.mark.attack("H12", "H13", "P10")
@pytest.mark.parametrize(
    ("knows", "face", "told", "signers"),
    [
        pytest.param(1, {"signs_as": 1}, 0, (0, 1), id="a former one"),
        pytest.param(3, {"signs_as": 3}, 1, (1, 3), id="one between two that she knew"),
        pytest.param(3, {"signs_as": 3}, 3, (3, 3), id="the present one"),
        pytest.param(0, {"signs_as": 1}, 1, (1, 1), id="the next one, which has signed what she is shown too"),
        pytest.param(0, {"signs_as": 1}, 0, (0, 1), id="hers, when she is shown what the next one has signed"),
        pytest.param(0, {"signs_as": 0, "admits": 2}, 2, (2, 0), id="the next one, of which she was not told"),
    ],
)
def test_two_logs_signed_by_identities_of_one_coordinator_are_evidence_against_it(
    home: Home, store: KeyStore, knows: int, face: dict[str, int], told: int, signers: tuple[int, int]
) -> None:
    me = Me(home, store, Face("alice", "bob", "carol", **face))
    if knows:
        me.follow(0, 1)
        me.follow(1, knows)
    alarm = me.alarm(Face("alice", "mallory", "carol", signs_as=told).head(3))
    assert alarm.detail == "log-fork"
    present = reign(max(signers)).public.fingerprint
    assert me.evidence() == Proved(present, [reign(each).public.fingerprint for each in signers], 3)
    (path,) = (home.data / "evidence").iterdir()
    (said,) = zkc("coordinator", "audit", "--verify", str(path), "--json").objects
    assert (said["coordinator"], said["size"]) == (present.hex(), 3)
    assert said["signers"] == [reign(each).public.fingerprint.hex() for each in signers]

    whole = json_decoder(Evidence).decode(path.read_bytes())
    assert (whole.descent is None) is (signers[0] == signers[1]), "it has what is needed, and no more"
    if whole.descent is not None:
        other = Descent(whole.descent.ed25519, whole.descent.ml_dsa, whole.descent.successions[:-1])
        for wrong in (None, other, msgspec.structs.replace(whole.descent, ed25519=reign(3).public.ed25519)):
            with pytest.raises(IdentityError):
                check_evidence(msgspec.json.encode(msgspec.structs.replace(whole, descent=wrong)))
        with pytest.raises(IdentityError):  # somebody else's coordinator
            check_evidence(msgspec.json.encode(msgspec.structs.replace(whole, coordinator=card_of(0))))


@pytest.mark.attack("H12", "H13")
def test_entries_that_are_hidden_from_who_was_not_told_of_the_new_identity_are_an_alarm(
    home: Home, store: KeyStore
) -> None:
    me = Me(home, store, Face("alice", "bob", admits=1))
    assert me.alarm(Face("alice", "bob", "carol", signs_as=1).head(3)).detail == "log-shrunk"
    me.face.admits = 0
    assert me.alarm(Face("alice", "bob", "carol", "dave", signs_as=1).head(4)).detail == "log-signer"


@pytest.mark.attack("H12", "H13")
@pytest.mark.parametrize("other", [("mallory",), ("bob", "carol")])
def test_another_log_by_an_identity_that_the_coordinator_denies_is_told_once_and_proves_nothing(
    home: Home, store: KeyStore, other: tuple[str, ...]
) -> None:
    """It shows two identities, and withholds the succession from one; or the peer has made it up."""
    me = Me(home, store, Face("alice", "bob"))
    note = Face("alice", *other, signs_as=1).head(1 + len(other))
    alarm = me.alarm(note)
    assert alarm.detail == "log-signer"
    assert "bob says" in str(alarm)
    assert reign(1).public.fingerprint.hex() in str(alarm)
    assert not (home.data / "evidence").exists()
    me.alarms.clear()
    me.hear(note)
    me.hear(Face("alice", "eve", *other, signs_as=2).head(2 + len(other)))
    assert me.alarms == [], "a peer that makes them up says it once"


def test_a_forged_head_of_a_former_or_next_identity_accuses_nobody(home: Home, store: KeyStore) -> None:
    me = Me(home, store, Face("alice", "bob", signs_as=1))
    me.follow(0, 1)
    for number in (0, 2):
        me.face.admits = number or 1
        note = Face("alice", "mallory", signs_as=number).head(2)
        me.hear(note[:-20] + bytes([note[-20] ^ 1]) + note[-19:])
    assert me.alarms == []


def test_what_is_known_of_a_coordinators_descent_grows_by_each_step_and_is_kept_for_the_last_sixteen() -> None:
    keys = [identity_of(f"ruler {number}") for number in range(SUCCESSIONS_MAX + 3)]
    steps = [make_succession("", *keys[at : at + 2], at + 2) for at in range(len(keys) - 1)]
    known = descend(None, keys[0].public, steps[:2])
    known = descend(known, keys[2].public, steps[2:3])
    assert known.identities() == [each.public for each in keys[:4]]
    assert descend(known, keys[1].public, steps[1:3]) == known, "another process was told of it too"
    assert descend(known, keys[3].public, steps[1:4]).identities() == [each.public for each in keys[:5]], "in the order"
    for at in range(3, len(steps)):
        known = descend(known, keys[at].public, steps[at : at + 1])
    assert known.identities() == [each.public for each in keys[-SUCCESSIONS_MAX - 1 :]]
    assert known.since(3).identities() == known.identities()[3:]
    elsewhere = descend(known, identity_of("somebody").public, [])
    assert elsewhere.identities() == [identity_of("somebody").public]
