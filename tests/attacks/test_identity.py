"""The coordinator gives other keys than the true ones; two processes, or an old copy, of one client."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.again import Again
from tests.support.evil_fleet import EvilFleet, error_of
from zkc.client.principal import pin_peer
from zkc.crypto.cards import make_card, verify_card
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import suite_named
from zkc.protocol.trust import KeyChanged
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore

ROUNDS = 20
ROUNDS_OF_SOAK = 1000


@pytest.fixture
def watched(fleet: EvilFleet) -> Iterator[EvilFleet]:
    """The fleet; the true bob gets nothing while a test of this file is at work, and nobody comes to his data ports."""
    texts, connections = fleet.texts("bob"), fleet.data_connections("bob")
    yield fleet
    assert fleet.texts("bob") == texts
    assert fleet.data_connections("bob") <= connections


def mend(fleet: EvilFleet, name: str, other: str, fingerprint: str) -> None:
    """``name`` says that ``other`` has this key, while the coordinator says the truth."""
    fleet.evil.lie("truth")
    done = fleet.zkc(name, "verify", other, "--trust", fingerprint)
    assert done.code == 0, done


# --- the recipient's key ------------------------------------------------------------------------------------------


@pytest.mark.attack("H02", "P08")
@pytest.mark.parametrize("known", ["pinned", "verified"])
def test_another_key_than_the_known_one_stops_the_sender_and_no_option_overrides_it(
    watched: EvilFleet, known: str
) -> None:
    """The coordinator answers in bob's place with keys of its own, on a card and a certificate that verify."""
    true = watched.peer("alice", "bob")["fingerprint"]
    if known == "verified":
        assert watched.zkc("alice", "verify", "bob", "--confirm").code == 0
    watched.evil.lie("impersonate", name="bob")

    options: list[list[str]] = [[], ["--batch"], ["--batch", "--no-resume", "--quiet"]]
    errors = [error_of(watched.send("alice", "bob", "for bob alone", *words)) for words in options]
    for each in errors:
        assert (each["code"], each["reason"], each["detail"]) == (12, "identity", "identity")
    error = errors[0]
    report = watched.evil.report()
    assert report["seen"] == {"notified": 3}, "a key was made for somebody else"
    assert report["stolen"] == []
    # The person reads both keys, what to do, and with which command.
    assert true in error["message"]
    assert report["fingerprint"] in error["message"]
    assert "nothing was sent" in error["message"]
    assert "another channel" in error["message"]
    assert f"zkc verify bob --trust {report['fingerprint']}" in error["message"]
    assert watched.send("alice", "bob", "x", "--accept", "all").code == 2, "no such option"

    # What was known stays known, and the alarm is there to be looked into.
    row = watched.peer("alice", "bob")
    assert (row["fingerprint"], row["verified"], row["alarm"]) == (true, known == "verified", report["fingerprint"])
    asked = watched.zkc("alice", "verify", "bob")
    assert asked.code == 12
    assert watched.zkc("alice", "verify", "bob", "--confirm").code == 12
    assert watched.zkc("alice", "verify", "bob", "--trust", "00" * 32).code == 12, "a key that nobody has"
    mend(watched, "alice", "bob", true)
    row = watched.peer("alice", "bob")
    assert (row["fingerprint"], row["verified"], row["alarm"]) == (true, known == "verified", None)


@pytest.mark.attack("H02")
def test_a_command_that_names_the_new_key_mends_it(watched: EvilFleet) -> None:
    true = watched.peer("alice", "bob")["fingerprint"]
    watched.evil.lie("impersonate", name="bob")
    assert error_of(watched.send("alice", "bob", "not yet"))["code"] == 12
    new = watched.evil.report()["fingerprint"]
    assert watched.zkc("alice", "verify", "bob", "--trust", new).code == 0
    assert not watched.peer("alice", "bob")["verified"], "a new key was compared by nobody"
    assert watched.send("alice", "bob", "now").code == 0
    assert [bytes.fromhex(each) for each in watched.evil.report()["stolen"]] == [b"now"]
    # And back: for the holder of the new key the old one is a stranger's.
    watched.evil.lie("truth")
    error = error_of(watched.send("alice", "bob", "not back by itself"))
    assert (error["code"], error["detail"]) == (12, "identity")
    mend(watched, "alice", "bob", true)


@pytest.mark.attack("H02")
def test_an_alarm_stays_until_a_person_has_looked_into_it(fleet: EvilFleet) -> None:
    """Else a coordinator that lies once, and is honest again, leaves no trace."""
    true = fleet.peer("alice", "bob")["fingerprint"]
    fleet.evil.lie("impersonate", name="bob")
    assert error_of(fleet.send("alice", "bob", "once"))["code"] == 12
    seen = fleet.evil.report()["fingerprint"]
    fleet.evil.lie("truth")
    assert fleet.send("alice", "bob", "to the key that is pinned").code == 0
    assert fleet.peer("alice", "bob")["alarm"] == seen
    assert seen in error_of(fleet.zkc("alice", "verify", "bob", "--json"))["message"]
    mend(fleet, "alice", "bob", true)
    assert fleet.peer("alice", "bob")["alarm"] is None


@pytest.mark.attack("P08")
@pytest.mark.parametrize(
    ("on_card", "detail"), [("carol", "name"), ("bob", "identity")], ids=["her own card", "a card that says bob"]
)
def test_a_pinned_client_does_not_pass_for_another(watched: EvilFleet, on_card: str, detail: str) -> None:
    """carol plays along: the answer to a request for bob is made with her true keys."""
    true = watched.peer("alice", "bob")["fingerprint"]
    watched.evil.lie("impersonate", name="bob", home=str(watched.home("carol")), on_card=on_card)
    error = error_of(watched.send("alice", "bob", "for bob alone"))
    assert (error["code"], error["detail"]) == (12, detail)
    report = watched.evil.report()
    assert (report["seen"], report["stolen"]) == ({"notified": 1}, [])
    mend(watched, "alice", "bob", true)


@pytest.mark.attack("P08")
def test_one_key_under_two_names_is_an_alarm_at_first_contact_too(watched: EvilFleet) -> None:
    """alice has pinned bob and not erin, as whom bob's keys appear."""
    watched.join("erin")
    watched.start_daemon("erin")
    watched.evil.lie("impersonate", name="erin", home=str(watched.home("bob")), on_card="erin")
    error = error_of(watched.send("alice", "erin", "for erin alone"))
    assert (error["code"], error["detail"]) == (12, "two-names")
    report = watched.evil.report()
    assert (report["seen"], report["stolen"]) == ({"notified": 1}, [])
    assert not watched.peer("alice", "erin")["pinned"]


@pytest.mark.attack("P08")
def test_of_two_first_contacts_at_once_one_pins_and_the_other_is_an_alarm(tmp_path: Path) -> None:
    """Both were judged when nothing was pinned; the coordinator gave each of them another key."""
    suite = suite_named("x25519")
    first, second = (
        verify_card(
            make_card(
                name="bob", kind="computer", uid=bytes(16), identity=IdentityKey.from_seed(bytes([seed]) * 64),
                kem_key=suite.generate().public, epoch=1, not_after=1,
            ),
            suite,
        )
        for seed in (1, 2)
    )
    with KeyStore.open(Home.resolve("client", str(tmp_path / "home")).prepare()) as store:
        pin_peer(store, first, 1.0)
        with pytest.raises(KeyChanged):
            pin_peer(store, second, 2.0)
        pin = store.pin("bob")
        assert pin is not None
        assert (pin.fingerprint, pin.last_seen) == (first.fingerprint, 1.0)


# --- the sender's key ---------------------------------------------------------------------------------------------


@pytest.mark.attack("H02", "P08")
def test_a_recipient_that_accepts_everything_refuses_another_key_under_a_pinned_name(watched: EvilFleet) -> None:
    """bob has ``inbox.accept = "all"``, as by ``join --accept all``; the coordinator poses as alice."""
    true = watched.peer("bob", "alice")["fingerprint"]
    posed = watched.evil.command("pose", name="alice", to="bob")
    assert posed["answer"] == ["Failure", 12, "identity"]
    row = watched.peer("bob", "alice")
    assert (row["fingerprint"], row["alarm"]) == (true, posed["fingerprint"])
    mend(watched, "bob", "alice", true)


@pytest.mark.attack("P08")
@pytest.mark.parametrize("on_card", ["carol", "alice"], ids=["her own card", "a card that says alice"])
def test_a_pinned_sender_does_not_pass_for_another(watched: EvilFleet, on_card: str) -> None:
    true = watched.peer("bob", "alice")["fingerprint"]
    posed = watched.evil.command("pose", name="alice", to="bob", home=str(watched.home("carol")), on_card=on_card)
    assert posed["answer"][:2] == ["Failure", 12]
    mend(watched, "bob", "alice", true)


@pytest.mark.attack("P08")
def test_a_pinned_sender_under_a_second_name_is_refused(watched: EvilFleet) -> None:
    """alice's true keys, on a card of somebody whom bob does not know yet."""
    posed = watched.evil.command("pose", name="mallory", to="bob", home=str(watched.home("alice")), on_card="mallory")
    assert posed["answer"] == ["Failure", 12, "two-names"]


# --- one client twice ---------------------------------------------------------------------------------------------


@pytest.mark.attack("P07")
def test_an_older_copy_of_a_home_connects_and_receives(fleet: EvilFleet, tmp_path: Path) -> None:
    """Nothing that a channel needs counts up: a restored backup of a client is the client."""
    fleet.join("dave")
    shutil.copytree(fleet.home("dave"), tmp_path / "older")
    fleet.start_daemon("dave")
    for text in ("first", "second"):
        assert fleet.send("alice", "dave", text).code == 0
    assert fleet.program("dave").terminate() == 0
    shutil.rmtree(fleet.home("dave"))
    shutil.copytree(tmp_path / "older", fleet.home("dave"))
    fleet.start_daemon("dave")
    assert fleet.send("alice", "dave", "third").code == 0
    assert fleet.texts("dave") == [b"third"]
    assert fleet.send("dave", "alice", "back").code == 0
    assert fleet.program("dave").terminate() == 0


def twice_at_once(fleet: EvilFleet, name: str, rounds: int) -> None:
    """``name`` has a daemon, and two more processes with the same keys link at the same time, again and again."""
    fleet.join(name)
    copies = [fleet.home(f"{name}-{number}") for number in (1, 2)]
    for copy in copies:
        shutil.copytree(fleet.home(name), copy)
    fleet.start_daemon(name)
    with Again() as first, Again() as second:
        for number in range(rounds):
            first.start(copies[0], "peers", "--json")
            second.start(copies[1], *(["peers", "--json"] if number % 2 else ["send", "carol", "-m", "x", "--json"]))
            outcomes = [first.finish(), second.finish()]
            assert [done.code for done in outcomes] == [0, 0], (number, outcomes)
            # They linked, and the daemon is still the one that is told: what is sent arrives in its inbox.
            assert not any("not known" in str(done) for done in outcomes), outcomes
            fleet.client("bob").send(name, f"round {number}".encode(), timeout=60)
    assert fleet.texts(name) == [f"round {number}".encode() for number in range(rounds)]
    status = fleet.zkc(name, "status", "--json")
    assert (status.code, status.events[0]["linked"]) == (0, True)
    assert "link-lost" not in (fleet.folder / f"{name}.log").read_text(), "its daemon was locked out for a while"
    assert fleet.program(name).terminate() == 0


@pytest.mark.attack("P07")
def test_two_processes_of_one_client_at_once_lock_nobody_out(fleet: EvilFleet) -> None:
    twice_at_once(fleet, "frank", ROUNDS)


@pytest.mark.soak
@pytest.mark.attack("P07")
def test_a_thousand_times_two_processes_of_one_client_at_once_lock_nobody_out(fleet: EvilFleet) -> None:
    twice_at_once(fleet, "grace", ROUNDS_OF_SOAK)
