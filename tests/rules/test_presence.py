"""What is known of a person becomes a level; what is not known is never taken for yes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.rules.presence import EXPLICIT, UNKNOWN, Evidence, Person, judge_person, stated_level

HERE, GONE, DONT_KNOW = (Evidence("terminal", state, 5.0) for state in ("present", "absent", "unknown"))  # type: ignore[arg-type]


@pytest.mark.claims("D2")
@pytest.mark.parametrize(
    ("evidence", "state"),
    [
        ([], "unknown"),
        ([DONT_KNOW], "unknown"),
        ([HERE], "present"),
        ([GONE], "absent"),
        ([HERE, DONT_KNOW], "present"),
        ([Evidence("terminal", "present", 700.0)], "absent"),
        ([Evidence("terminal", "present", 700.0), Evidence("session", "present", 1.0)], "present"),
        ([HERE, Evidence(EXPLICIT, "absent", 9000.0)], "absent"),
        ([GONE, Evidence(EXPLICIT, "present", 9000.0)], "present"),
        ([Evidence("terminal", "present", -1.0)], "unknown"),
    ],
)
def test_what_the_person_said_decides_then_the_newest_sign_of_life(evidence: list[Evidence], state: str) -> None:
    assert judge_person(evidence, 600.0).state == state


sources = st.builds(Evidence, st.sampled_from(["terminal", EXPLICIT]), st.just("unknown"), st.floats(0, 1e9))


@given(st.lists(sources))
def test_from_nothing_known_nothing_follows(evidence: list[Evidence]) -> None:
    person = judge_person(evidence, 1e9)
    assert person == UNKNOWN
    assert stated_level(person, None, 1e9) == ("online", 0)


@pytest.mark.claims("D3")
@pytest.mark.parametrize(
    ("person", "proved_ago", "level"),
    [
        (Person("present", 7.0), None, ("present", 7)),
        (Person("unknown", 0.0), None, ("online", 0)),
        (Person("absent", 3.0), None, ("online", 0)),
        (Person("present", 7.0), 30.0, ("authorised", 30)),
        (Person("unknown", 0.0), 30.0, ("authorised", 30)),
        (Person("absent", 3.0), 30.0, ("online", 0)),
        (Person("present", 7.0), 61.0, ("present", 7)),
        (Person("present", 7.0), -1.0, ("present", 7)),
    ],
)
def test_a_proof_counts_within_its_window_and_while_the_person_is_there(
    person: Person, proved_ago: float | None, level: tuple[str, int]
) -> None:
    assert stated_level(person, proved_ago, 60.0) == level
