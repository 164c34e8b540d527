from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.errors import UsageError
from zkc.rules.units import SIZE_MAX, format_duration, format_size, parse_duration, parse_size, show_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("24h", 86400), ("7d", 604800), ("0", 0), ("15", 15), ("0.5s", 0.5), (" 2m ", 120)],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s", "1w", "1e3s", "inf", "nan", "1h30m", "٣s", "36501d", "9" * 99])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match=r"^patience: .*(90s|36500d)"):
        parse_duration(text, "patience")


@pytest.mark.parametrize(
    ("text", "size"),
    [("512K", 524288), ("20M", 20971520), ("4G", 4294967296), ("1t", 1 << 40), ("0", 0), ("17", 17), ("1.5k", 1536)],
)
def test_a_size_is_a_number_and_a_power_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "K", "-1", "1.5", "1KB", "1 K", "0x10", "1E", "٣K", "9999999999999999999", "9000000T"]
)
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"^chunk: "):
        parse_size(text, "chunk")


@given(st.integers(0, SIZE_MAX))
def test_a_size_that_was_formatted_reads_back_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.floats(0, 1e9))
def test_a_duration_that_was_formatted_reads_back_to_a_millisecond(seconds: float) -> None:
    assert math.isclose(parse_duration(format_duration(seconds)), seconds, rel_tol=0, abs_tol=0.001)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (90, "90s"), (120, "2m"), (86400, "1d"), (0.25, "0.25s")])
def test_a_duration_is_shown_in_the_largest_unit_without_a_fraction(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1.0K"), (1 << 20, "1.0M"), ((1 << 20) - 1, "1.0M"), (1 << 52, "4096.0T")],
)
def test_a_size_for_people_is_rounded(size: int, text: str) -> None:
    assert show_size(size) == text


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_a_usage_error(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            assert parse(text) >= 0
        except UsageError as error:
            assert "\n" not in str(error)
