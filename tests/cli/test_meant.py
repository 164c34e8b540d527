"""Who mistypes a name or an id is told the nearest that there is."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.program import Done, zkc
from tests.support.waiting import wait_until
from zkc.testing import Fleet
from zkc.ui.cli.meant import nearest_id
from zkc.ui.cli.options import nearest


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """alice and bob know each other; carol is hidden from alice by the coordinator's rules."""
    with Fleet("alice", "bob", "carol") as running:
        running.client("alice").send("bob", b"hello", name="report.txt")
        config = running.home("coordinator") / "config.toml"
        config.write_text('[[visible]]\nwho = ["alice"]\nwhom = ["carol"]\nmode = "refuse"\n')
        running.coordinator.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "carol" not in [each["name"] for each in peers(running, "alice")])
        yield running


def peers(fleet: Fleet, name: str) -> list[dict[str, object]]:
    return list(fleet.zkc(name, "peers", "--json").events)


def told(fleet: Fleet, name: str, *words: str) -> Done:
    return zkc(*words, env=fleet.environment(name))


@pytest.mark.parametrize(
    "words",
    [
        ["send", "bobb", "-m", "x"], ["wait", "bbo"], ["verify", "bobb"],
        ["peers", "forget", "bobb"], ["shares", "bobb"], ["get", "bobb:builds"],
        ["send", "alice", "--from", "bobb", "builds"],
        ["share", "builds", "/", "--to", "bobb"],
    ],
)
def test_a_recipient_that_nobody_is_has_the_nearest_as_hint(fleet: Fleet, words: list[str]) -> None:
    done = told(fleet, "alice", *words)
    assert done.code == 20
    assert "did you mean bob?" in done.err


def test_each_of_several_recipients_has_its_own(fleet: Fleet) -> None:
    done = told(fleet, "alice", "send", "bobb,bob,qqqq", "-m", "x")
    lines = {line.split(": ")[1]: line for line in done.err.splitlines() if line.startswith("zkc: ")}
    assert done.code == 20
    assert "did you mean bob?" in lines["bobb"]
    assert "did you mean" not in lines["qqqq"]


def test_scripts_have_the_hint_in_the_message(fleet: Fleet) -> None:
    (error,) = [each for each in told(fleet, "alice", "check", "bobb", "--json").objects if each["event"] == "error"]
    assert (error["code"], error["detail"]) == (20, "unknown")
    assert "did you mean bob?" in error["message"]


def test_a_name_that_the_coordinator_hides_is_no_hint(fleet: Fleet) -> None:
    assert "did you mean carol?" in told(fleet, "bob", "check", "carl").err
    done = told(fleet, "alice", "check", "carl")
    assert (done.code, "carol" in done.err) == (20, False)


def test_a_name_like_none_keeps_the_hint_that_there_was(fleet: Fleet) -> None:
    assert told(fleet, "alice", "check", "qqqq").err == (
        "zkc: there is no qqqq at this coordinator; zkc peers lists who is there\n"
    )


def test_an_id_of_the_inbox_has_the_nearest(fleet: Fleet) -> None:
    wait_until(lambda: fleet.zkc("bob", "inbox", "--json").events)
    item = fleet.zkc("bob", "inbox", "--json").events[0]
    other = "0" if item["id"][5] != "0" else "1"
    wrong = item["id"][:5] + other + item["id"][6:8]
    for words in (["inbox", "show", wrong], ["inbox", "rm", wrong.upper()]):
        done = told(fleet, "bob", *words)
        assert (done.code, f"did you mean {item['id']}?" in done.err) == (2, True), words
    assert "did you mean" not in told(fleet, "bob", "inbox", "show", "zz").err


def test_a_job_of_the_outbox_has_the_nearest(fleet: Fleet) -> None:
    (job,) = fleet.zkc("bob", "send", "dora", "-m", "x", "--queue", "--json").events
    wrong = ("0" if job["id"][0] != "0" else "1") + job["id"][1:6]
    assert f"did you mean {job['id']}?" in told(fleet, "bob", "outbox", "retry", wrong).err
    assert fleet.zkc("bob", "outbox", "cancel", job["id"]).code == 0


def test_a_share_has_the_nearest_of_those_that_one_may_ask_for(fleet: Fleet, tmp_path: Path) -> None:
    for name, whom in (("builds", "bob"), ("bulks", "carol")):
        fleet.zkc("alice", "verify", whom)
        fleet.zkc("alice", "share", name, str(tmp_path), "--to", whom)
    assert "did you mean builds?" in told(fleet, "bob", "get", "alice:bulds/x").err
    assert "did you mean builds?" in told(fleet, "alice", "share", "--remove", "bilds").err
    assert "did you mean" not in told(fleet, "bob", "get", "alice:qqqq/x").err


def test_a_name_that_somebody_has_is_not_what_else_was_meant(fleet: Fleet, tmp_path: Path) -> None:
    done = fleet.zkc("bob", "share", "x", str(tmp_path), "--to", "carol", "--for", "carol,alice")
    assert done.code == 20
    assert b"no key is pinned for carol; zkc verify carol pins it" in done.err


def test_a_group_that_is_none_has_the_nearest(fleet: Fleet) -> None:
    (fleet.home("carol") / "config.toml").write_text('[groups]\nfleet = ["bob"]\n')
    done = told(fleet, "carol", "share", "x", "/", "--to", "@flet")
    assert (done.code, "did you mean @fleet?" in done.err) == (2, True)


def test_nothing_from_a_sender_that_nobody_is_has_the_nearest(fleet: Fleet) -> None:
    done = told(fleet, "bob", "recv", "--from", "alcie")
    assert (done.code, "did you mean alice?" in done.err) == (22, True), done.err
    assert "did you mean" not in told(fleet, "bob", "recv", "--from", "carol").err


def test_a_coordinator_names_the_nearest_of_its_clients_and_invitations(fleet: Fleet) -> None:
    fleet.invite("erwin")
    done = told(fleet, "coordinator", "coordinator", "invite", "--cancel", "ervin")
    assert (done.code, "did you mean erwin?" in done.err) == (11, True)
    done = told(fleet, "coordinator", "coordinator", "revoke", "carl")
    assert (done.code, "did you mean carol?" in done.err) == (11, True)


def test_where_no_daemon_runs_it_is_the_pinned_names(fleet: Fleet) -> None:
    fleet.program("alice").terminate()
    try:
        done = told(fleet, "alice", "check", "bobb")
    finally:
        fleet.start_daemon("alice")
        fleet.wait_linked("alice")
    assert (done.code, "did you mean bob?" in done.err) == (20, True)


def test_what_a_policy_names_that_is_none_has_the_nearest(tmp_path: Path) -> None:
    done = zkc("policy", "check", "--from", "a", "--to", "b", "--cipher", "aes", env={"ZKC_HOME": str(tmp_path)})
    assert (done.code, done.err) == (
        2, "zkc: policy check: --cipher knows no 'aes'; it takes aes-256-gcm, chacha20-poly1305, 3des, idea\n"
    )


def test_the_nearest_of_ids_is_by_its_beginning() -> None:
    ids = ["3f9a00112233", "3f9b44556677", "91c000112233"]
    assert nearest_id("3f9a01", ids) == "3f9a00112233"
    assert nearest_id("81c0", ids) == "91c000112233"
    assert nearest_id("0000", ids) is None
    assert nearest("x" * 100_000, ["x" * 70]) == "x" * 70
