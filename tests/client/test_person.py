"""What a client knows of its person: what he said, what he typed, and his PIN."""

from __future__ import annotations

import asyncio
import os
import pty
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.env import FixedClock
from zkc.client import person
from zkc.client.lifesigns import terminal_activity
from zkc.client.person import PersonHere
from zkc.config.keys import ClientConfig, PersonSection
from zkc.crypto.pins import is_pin
from zkc.crypto.totp import code_at
from zkc.env import SystemEntropy
from zkc.errors import LocalIOError, NotAuthorised, UsageError


class Here:
    def __init__(self, folder: Path, **person: Any) -> None:
        self.clock = FixedClock()
        self.config = ClientConfig(person=PersonSection(**person))
        self.folder = folder
        self.restart()

    def restart(self) -> None:
        """Another process, with the same file."""
        self.person = PersonHere(self.folder, lambda: self.config, self.clock, SystemEntropy())


def test_what_he_said_holds_over_a_restart_and_here_ends_by_itself(tmp_path: Path) -> None:
    here = Here(tmp_path, here_for=3600.0)
    assert here.person.person().state == "unknown"
    here.person.say("here")
    here.restart()
    assert here.person.level() == ("present", 0)
    here.clock.advance(3601.0)
    assert (here.person.mode, here.person.person().state) == ("auto", "unknown")
    here.person.say("away")
    here.clock.advance(1e6)
    assert (here.person.mode, here.person.person().state) == ("away", "absent")
    assert (tmp_path / "person.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.attack("C16")
def test_a_clock_that_was_set_back_leaves_nobody_here_for_ever(tmp_path: Path) -> None:
    here = Here(tmp_path)
    here.person.say("here")
    here.clock.set_wall(here.clock.wall() - 86400.0)
    assert here.person.person().state == "unknown"


@pytest.mark.attack("C16")
def test_the_newest_sign_of_life_at_a_terminal_of_this_user_counts(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    try:
        path = Path(os.ttyname(follower))
        os.utime(path, (1_000_000.0, 1_000_000.0))
        seen = os.stat(path).st_atime
        alone = tmp_path / "pts"
        alone.mkdir()
        assert terminal_activity(seen + 60, (alone,)).state == "unknown"
        found = terminal_activity(seen + 60, (path.parent,))
        assert found.state == "present"
        assert found.age <= 60
        assert terminal_activity(0.0, (path.parent,)).state == "unknown", "all of it is of the future"
    finally:
        os.close(leader)
        os.close(follower)


@pytest.mark.claims("D3")
def test_a_pin_opens_the_window_and_is_kept_as_a_digest(tmp_path: Path) -> None:
    here = Here(tmp_path, window=60.0)
    here.person.enrol("4711-and-more", old=None)
    assert "4711" not in (tmp_path / "person.json").read_text()
    here.restart()
    assert here.person.enrolled
    asyncio.run(here.person.prove("4711-and-more"))
    assert here.person.level() == ("authorised", 0)
    here.clock.advance(61.0)
    assert here.person.level() == ("online", 0)


def test_a_proof_ends_with_its_pin(tmp_path: Path) -> None:
    here = Here(tmp_path, window=60.0)
    here.person.enrol("first", old=None)
    asyncio.run(here.person.prove("first"))
    daemon = here.person
    here.restart()
    here.person.enrol("second", old="first")
    assert daemon.level() == ("online", 0)


@pytest.mark.claims("D3")
def test_one_time_codes_are_enrolled_with_one_and_each_counts_once(tmp_path: Path) -> None:
    here = Here(tmp_path, window=60.0)
    secret = here.person.new_secret()

    def code(ahead: int = 0) -> str:
        return code_at(secret, int(here.clock.wall() // 30) + ahead)

    with pytest.raises(NotAuthorised):
        here.person.enrol_totp(secret, code="000000" if code() != "000000" else "000001", old=None)
    assert here.person.enrolled == ""
    here.person.enrol_totp(secret, code=code(), old=None)
    assert here.person.enrolled == "totp"
    with pytest.raises(NotAuthorised) as used:
        here.person.check(code())
    assert used.value.detail == "wrong-pin"
    here.clock.advance(30.0)
    here.restart()
    asyncio.run(here.person.prove(code()))
    assert here.person.level()[0] == "authorised"
    for again in (code(), code(-1)):
        with pytest.raises(NotAuthorised):
            here.person.check(again)
    here.person.enrol("a-pin-now", old=code(1))
    assert (here.person.enrolled, here.person.level()[0]) == ("pin", "online")


@pytest.mark.attack("K02")
def test_wrong_pins_are_counted_over_restarts_and_soon_have_to_wait(tmp_path: Path) -> None:
    here = Here(tmp_path)
    here.person.enrol("right", old=None)
    for _ in range(5):
        here.restart()
        with pytest.raises(NotAuthorised) as wrong:
            here.person.check("wrong")
        assert wrong.value.detail == "wrong-pin"
    for wait in (60.0, 120.0):
        here.restart()
        for pin in ("wrong", "right"):
            with pytest.raises(NotAuthorised) as late:
                here.person.check(pin)
            assert late.value.detail == "too-many"
            assert re.search(r"\d+ s", late.value.hint)
        here.clock.advance(wait)
        with pytest.raises(NotAuthorised) as wrong:
            here.person.check("wrong")
        assert wrong.value.detail == "wrong-pin"
    here.clock.advance(3600.0)
    here.person.check("right")
    here.person.check("right")


def test_whoever_changes_or_removes_a_pin_gives_it_first(tmp_path: Path) -> None:
    here = Here(tmp_path)
    with pytest.raises(UsageError) as bad:
        here.person.enrol("123", old=None)
    assert bad.value.detail == "bad-pin"
    here.person.enrol("first", old=None)
    for old in (None, "wrong"):
        with pytest.raises(NotAuthorised):
            here.person.enrol("second", old=old)
        with pytest.raises(NotAuthorised):
            here.person.remove(old)
    here.person.enrol("second", old="first")
    here.person.check("second")
    here.person.remove("second")
    with pytest.raises(NotAuthorised) as none:
        here.person.check("second")
    assert none.value.detail == "not-enrolled"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    here = Here(tmp_path)
    here.person.say("here")
    (tmp_path / "person.json").write_bytes(b"{")
    with pytest.raises(LocalIOError) as damaged:
        here.person.say("here")
    assert damaged.value.detail == "damaged"


def test_what_the_person_says_while_a_pin_is_looked_at_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, real = Here(tmp_path), is_pin
    here.person.enrol("2580", old=None)
    here.person.say("here")

    def slow(*words: Any) -> bool:
        here.person.say("away")
        return real(*words)

    monkeypatch.setattr("zkc.client.person.is_pin", slow)
    here.person.check("2580")
    assert (here.person.mode, here.person.person().state) == ("away", "absent")
    monkeypatch.setattr("zkc.client.person.is_pin", lambda *words: here.person._enrol() or real(*words))
    with pytest.raises(NotAuthorised):
        here.person.check("2580")
    assert here.person.enrolled == "", "what was removed meanwhile is not there again"


def test_a_code_counts_once_for_two_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, secret = Here(tmp_path), b"s" * 20
    here.person.enrol_totp(secret, code=None, old=None)
    code, real = code_at(secret, here.clock.wall()), person._step

    def at_once(*words: Any) -> int:
        step = real(*words)
        monkeypatch.setattr(person, "_step", real)
        here.person.check(code)
        return step

    monkeypatch.setattr(person, "_step", at_once)
    with pytest.raises(NotAuthorised):
        here.person.check(code)


def test_tries_of_several_processes_are_counted_together(tmp_path: Path) -> None:
    here = Here(tmp_path)
    here.person.enrol("2580", old=None)
    others = [PersonHere(tmp_path, lambda: here.config, here.clock, SystemEntropy()) for _ in range(12)]

    def guess(one: PersonHere) -> str:
        try:
            one.check("1111")
        except NotAuthorised as error:
            return error.detail
        return ""

    with ThreadPoolExecutor(12) as threads:
        told = sorted(threads.map(guess, others))
    assert told == ["too-many"] * 7 + ["wrong-pin"] * 5


def test_a_file_that_cannot_be_read_vouches_for_nobody_and_holds_up_nothing(tmp_path: Path) -> None:
    here = Here(tmp_path)
    here.person.enrol("2580", old=None)
    here.person.say("here")
    (tmp_path / "person.json").write_text("{")
    assert here.person.level() == ("online", 0)
    assert here.person.enrolled == ""
    with pytest.raises(LocalIOError):
        here.person.say("here")
    with pytest.raises(LocalIOError):
        here.person.enrol("1111", old=None)
