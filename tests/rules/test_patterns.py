from __future__ import annotations

from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from zkc.rules.patterns import Patterns, matches

TEXTS = st.text("ab/.", max_size=12)


@given(st.text("ab/.*?", max_size=8), TEXTS)
def test_a_pattern_means_what_it_means_to_a_shell(pattern: str, text: str) -> None:
    assert matches(pattern, text) == fnmatchcase(text, pattern)
    assert Patterns([pattern]).match(text) == fnmatchcase(text, pattern)


@given(st.lists(st.text("ab*?", max_size=5), max_size=4), TEXTS)
def test_one_of_several_is_enough_and_the_second_time_it_is_the_same(patterns: list[str], text: str) -> None:
    several = Patterns(patterns)
    assert several.match(text) == several.match(text) == any(matches(each, text) for each in patterns)


def test_a_pattern_that_would_hold_a_matcher_up_does_not() -> None:
    assert not matches("*a" * 60 + "*b", "a" * 120)
