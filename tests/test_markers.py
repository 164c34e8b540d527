"""The markers say what exists, and the pages made from them are current."""

from __future__ import annotations

import importlib
from typing import Final

import pytest

from scripts.lib import tables
from scripts.lib.rows import BY_ID, CLAIMS, PARTS, ROWS


@pytest.fixture(scope="module")
def marked() -> list[tables.Marked]:
    return tables.collect()


def test_a_claims_marker_names_rows_and_claims_that_exist(marked: list[tables.Marked]) -> None:
    for test in marked:
        unknown = [word for word in test.claims if word not in BY_ID and word not in CLAIMS]
        assert not unknown, f"{test.file}::{test.name}: {unknown}"


def test_an_attack_marker_names_cases_by_letter_and_number(marked: list[tables.Marked]) -> None:
    for test in marked:
        assert all(tables.ATTACK.fullmatch(case) for case in test.attacks), f"{test.file}::{test.name}"


@pytest.mark.parametrize("name", sorted({name for row in ROWS for name in row.by}))
def test_what_a_row_names_as_done_by_exists(name: str) -> None:
    module, _, inside = name.partition(":")
    found = importlib.import_module(f"zkc.{module}")
    assert not inside or hasattr(found, inside)


def test_a_row_that_a_test_proves_names_who_does_it(marked: list[tables.Marked]) -> None:
    proved = {word for test in marked for word in test.claims}
    assert all(row.by for row in ROWS if row.id in proved)


LATER: Final = {"D2", "D3", "F3", "F4"}
"""Rows whose turn comes later: none has a test yet. A row that has one leaves this list."""


def test_every_row_and_claim_has_a_test_but_those_of_later(marked: list[tables.Marked]) -> None:
    proved = {word for test in marked for word in test.claims}
    assert {row.id for row in ROWS} - proved == LATER
    assert set(CLAIMS) - proved <= {claim for row in ROWS if row.id in LATER for claim in row.claims}


def test_the_pages_made_from_the_markers_are_current(marked: list[tables.Marked]) -> None:
    for path, wanted in tables.pages(marked).items():
        if path.exists():
            assert path.read_text(encoding="utf-8") == wanted, f"{path.name} is old: run scripts/docs"


def test_every_claim_of_the_document_is_asked_for_by_a_row() -> None:
    assert set(CLAIMS) == {claim for row in ROWS for claim in row.claims}
    assert {row.id[0] for row in ROWS} == set(PARTS)


def test_a_table_names_row_test_and_function() -> None:
    test = tables.Marked("tests/a/test_b.py", "test_c", "", ("B3", 5), ("R01",))
    rows = tables.claims_table([test])
    by = "`zkc.protocol.transfer_coordinator:consume_answer`<br>"
    assert f"| 1, 5, 17, 26-28, 32, 39-40, 49, 110 | [test_c](../tests/a/test_b.py) | {by}" in rows
    assert f"| 5 | B3 | [test_c](../tests/a/test_b.py) | {by}" in rows
    assert "| R01 | [test_c](../tests/a/test_b.py) | c |" in tables.attacks_table([test])


def test_a_page_keeps_its_prose_around_a_table() -> None:
    page = "# Title\n<!-- tests: x -->\nold\n<!-- end -->\nlast words\n"
    assert tables.filled(page, "x", "new") == "# Title\n<!-- tests: x -->\n\nnew\n\n<!-- end -->\nlast words\n"
    with pytest.raises(ValueError, match="no frame"):
        tables.filled("# Title\n", "x", "new")
