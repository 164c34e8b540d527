"""Signs of life: what the sessions of a desktop say."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.env import FixedClock
from zkc.client.lifesigns import Sessions
from zkc.client.person import PersonHere
from zkc.config.keys import ClientConfig, PersonSection
from zkc.env import SystemEntropy
from zkc.net.desktop import Bus, Session


class Desk:
    """A clock, and what the person's client makes of the sessions."""

    def __init__(self, folder: Path) -> None:
        self.clock = FixedClock()
        self.sessions = Sessions(self.clock, Bus("system"))
        config = ClientConfig(person=PersonSection(sources=("session",), present_within=600.0))
        self.person = PersonHere(
            folder, lambda: config, self.clock, SystemEntropy(), {"session": self.sessions}
        )

    def shows(self, *sessions: Session) -> tuple[str, float]:
        self.sessions.take(sessions)
        person = self.person.person()
        return person.state, person.age

    def session(
        self, id: str = "1", *, terminal: bool = False, locked: bool = False, idle: bool = False, ago: float = 30.0
    ) -> Session:
        return Session(id, terminal, locked, idle, self.clock.wall() - ago)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.mark.claims("D2")
def test_a_desktop_in_use_an_idle_one_and_a_terminal(desk: Desk) -> None:
    assert desk.shows(desk.session(ago=7000.0)) == ("present", 0.0), "in use since it was last idle"
    assert desk.shows(desk.session(idle=True, ago=300.0)) == ("present", 300.0)
    assert desk.shows(desk.session(idle=True, ago=700.0)) == ("absent", 700.0)
    assert desk.shows(desk.session(terminal=True, ago=50.0)) == ("present", 50.0)
    assert desk.shows() == ("unknown", 0.0)


@pytest.mark.claims("D2")
def test_who_locks_has_left_until_another_session_is_used(desk: Desk) -> None:
    assert desk.shows(desk.session(locked=True)) == ("absent", 0.0)
    desk.clock.advance(100.0)
    locked = desk.session(locked=True)
    assert desk.shows(locked) == ("absent", 100.0), "since it was first seen so"
    assert desk.shows(locked, desk.session("2", terminal=True, ago=200.0)) == ("absent", 100.0)
    assert desk.shows(locked, desk.session("2", terminal=True, ago=20.0)) == ("present", 20.0)
    assert desk.shows(desk.session()) == ("present", 0.0)
    assert desk.shows(desk.session(locked=True)) == ("absent", 0.0), "locked once more"


@pytest.mark.attack("C16")
def test_what_never_tells_or_is_of_the_future_or_old_is_not_known(desk: Desk) -> None:
    assert desk.shows(Session("1", False, False, False, 0.0)) == ("unknown", 0.0)
    assert desk.shows(desk.session(ago=-60.0)) == ("unknown", 0.0)
    assert desk.shows(desk.session()) == ("present", 0.0)
    desk.clock.advance(31.0)
    assert desk.person.person().state == "unknown", "nobody has looked for three turns"


def test_without_a_bus_nothing_is_known_and_why_is_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    assert desk.shows(desk.session()) == ("present", 0.0)
    asyncio.run(desk.sessions.look())
    assert desk.person.person().state == "unknown"
    assert desk.sessions.problem
