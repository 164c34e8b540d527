"""Is a person there, and may he receive? Evidence in, a level out. What is not known is never taken for yes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zkc.ids import PersonState, Presence

EXPLICIT: Final = "said"
"""The source of what the person said himself: it counts before all others."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one source knows: that a person was there, or was not, ``age`` seconds ago."""

    source: str
    state: PersonState
    age: float


@dataclass(frozen=True, slots=True)
class Person:
    """What all of them together say."""

    state: PersonState
    age: float
    source: str = ""


UNKNOWN: Final = Person("unknown", 0.0)


def judge_person(evidence: Sequence[Evidence], present_within: float) -> Person:
    """What the person said decides; else the newest sign of life, if it is of the last ``present_within`` seconds; an
    older one says that nobody is there. Where no source knows anything: unknown."""
    known = [each for each in evidence if each.state != "unknown" and each.age >= 0]
    said = [each for each in known if each.source == EXPLICIT]
    if said:
        newest = min(said, key=lambda each: each.age)
        return Person(newest.state, newest.age, newest.source)
    if not known:
        return UNKNOWN
    newest = min(known, key=lambda each: each.age)
    if newest.state == "present" and newest.age > present_within:
        return Person("absent", newest.age, newest.source)
    return Person(newest.state, newest.age, newest.source)


def stated_level(person: Person, proved_ago: float | None, window: float) -> tuple[Presence, int]:
    """The level that a client vouches for, and the age in seconds of what it rests on (claims D1 to D3).

    ``proved_ago``: seconds since the person proved that he may receive; None: never. A proof counts for ``window``
    seconds, and not longer than the person is there.
    """
    if proved_ago is not None and 0 <= proved_ago <= window and person.state != "absent":
        return "authorised", int(proved_ago)
    if person.state == "present":
        return "present", int(person.age)
    return "online", 0
