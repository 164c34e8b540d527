"""The markers say what exists, and the pages made from them are current."""

from __future__ import annotations

import importlib

import pytest

from scripts.lib import tables
from scripts.lib.asked import ASKED, FAMILIES
from scripts.lib.rows import BY_ID, CLAIMS, PARTS, ROWS
from tests.conftest import EVERYTHING


@pytest.fixture(scope="module")
def marked(request: pytest.FixtureRequest) -> list[tables.Marked]:
    """Of this session, where it has all tests: to collect them once more takes ten seconds."""
    everything = request.config.stash.get(EVERYTHING, None)
    return tables.collect() if everything is None else tables.marked_of(everything)


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


def test_every_row_and_every_claim_has_a_test_or_says_why_it_waits(marked: list[tables.Marked]) -> None:
    assert tables.gaps(marked) == []


def test_a_row_or_claim_without_a_test_is_told() -> None:
    """Also a claim in a marker beside no row that asks for it."""
    everything = (*(row.id for row in ROWS), *CLAIMS)
    assert tables.gaps([tables.Marked("f", "t", "", everything, ())]) == []
    for missing in ("B3", 110):
        told = tables.gaps([tables.Marked("f", "t", "", tuple(word for word in everything if word != missing), ())])
        assert f" {missing} has no test" in told[0]
    (told,) = tables.gaps([tables.Marked("f", "t", "", everything, ()), tables.Marked("f", "u", "", ("B5", 81), ())])
    assert told == "f::u: no row beside it in the marker asks for claim 81"


def test_what_each_claim_asks_is_said_in_the_order_of_the_document() -> None:
    assert list(ASKED) == list(CLAIMS) == [claim for family in FAMILIES for claim in family]


def test_the_pages_made_from_the_markers_are_current(marked: list[tables.Marked]) -> None:
    for path, wanted in tables.pages(marked).items():
        if path.exists():
            assert path.read_text(encoding="utf-8") == wanted, f"{path.name} is old: run scripts/docs"


def test_every_claim_of_the_document_is_asked_for_by_a_row() -> None:
    assert set(CLAIMS) == {claim for row in ROWS for claim in row.claims}
    assert {row.id[0] for row in ROWS} == set(PARTS)


def test_a_table_names_claim_row_test_and_module() -> None:
    test = tables.Marked("tests/a/test_b.py", "test_c_d", "", ("B3", 5), ("R01",))
    rows = tables.claims_table([test])
    assert f"| 5 | {ASKED[5]} | B3 | [c d](../tests/a/test_b.py) | `zkc.protocol.transfer_coordinator`<br>" in rows
    by = "`zkc.protocol.transfer_coordinator:consume_answer`<br>"
    assert f"| 1, 5, 17, 26-28, 32, 39-40, 49, 110 | [c d](../tests/a/test_b.py) | {by}" in rows
    assert "| R01 | [test_c_d](../tests/a/test_b.py) | c d |" in tables.attacks_table([test])


def test_a_page_keeps_its_prose_around_a_table() -> None:
    page = "# Title\n<!-- tests: x -->\nold\n<!-- end -->\nlast words\n"
    assert tables.filled(page, "x", "new") == "# Title\n<!-- tests: x -->\n\nnew\n\n<!-- end -->\nlast words\n"
    with pytest.raises(ValueError, match="no frame"):
        tables.filled("# Title\n", "x", "new")
