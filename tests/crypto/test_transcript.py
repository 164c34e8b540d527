from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.crypto.transcript import Transcript

FIELDS = st.lists(st.binary(max_size=40), max_size=5)


@pytest.mark.parametrize("pattern", ["reg", "chan", "xfer"])
@pytest.mark.parametrize("suite", ["hybrid", "x25519", "rsa"])
def test_th0_names_protocol_pattern_and_suite(pattern: str, suite: str) -> None:
    expected = sha256(b"zkc/1\0" + pattern.encode() + b"\0" + suite.encode()).digest()
    assert Transcript.start(pattern, suite).value == expected  # type: ignore[arg-type]


def test_th0_differs_between_patterns_and_suites() -> None:
    """C02, H10 core: a message made for one conversation proves nothing in another, nor under another suite."""
    starts = {
        Transcript.start(pattern, suite).value  # type: ignore[arg-type]
        for pattern in ("reg", "chan", "xfer") for suite in ("hybrid", "x25519", "rsa")
    }
    assert len(starts) == 9


def test_a_field_is_absorbed_behind_its_length() -> None:
    start = Transcript.start("chan", "hybrid")
    expected = sha256(start.value + b"\0\0\0\3" + b"abc").digest()
    assert start.absorb(b"abc").value == expected


@given(FIELDS)
def test_fields_at_once_or_one_by_one_are_the_same(fields: list[bytes]) -> None:
    at_once = one_by_one = Transcript.start("xfer", "x25519")
    at_once = at_once.absorb(*fields)
    for field in fields:
        one_by_one = one_by_one.absorb(field)
    assert at_once == one_by_one


@given(FIELDS, FIELDS)
def test_other_fields_give_another_transcript(one: list[bytes], other: list[bytes]) -> None:
    """No bytes can move from one field into the next, and an empty field counts."""
    start = Transcript.start("reg", "rsa")
    assert (start.absorb(*one) == start.absorb(*other)) is (one == other)


def test_absorbing_leaves_the_old_value_alone() -> None:
    """A machine verifies into a new transcript and keeps the old one when that fails."""
    start = Transcript.start("reg", "hybrid")
    before = start.value
    start.absorb(b"rejected")
    assert start.value == before
