"""A refusal of somebody else says who, what and what to do, whatever the code and the word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from zkc.errors import BY_CODE
from zkc.rules import refusals
from zkc.rules.refusals import COORDINATOR, refused_by

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")


def words_of(code: int) -> list[str]:
    """The details that ``docs/errors.md`` lists for a code."""
    section = re.search(rf"^## .*\b{code} .*?(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(r"^\| `([a-z-]+)` \|", section.group(0), re.MULTILINE) if section else []


@pytest.mark.parametrize("who", ["bob", COORDINATOR])
@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_code_and_word_has_a_sentence(code: int, who: str) -> None:
    for detail in ["", "something-new", *words_of(code)]:
        told = refused_by(who, code, detail)
        assert (told.code, told.detail) == (code, detail)
        assert who in str(told) or "coordinator" in str(told)
        assert "{" not in str(told)
        assert "the coordinator or the coordinator" not in str(told)
        assert not re.search("(?<!join )--", told.hint), "programs are told it too: no option of a command line"


def test_a_full_disk_says_whose_and_what_to_do() -> None:
    assert str(refused_by("bob", 33, "no-space")) == (
        "bob has no space left for it (inbox.min_free there); ask bob to make room, and send it again"
    )


def test_a_code_of_no_meaning_is_a_defect() -> None:
    assert refused_by("bob", 77, "x").code == 1


def test_each_sentence_is_of_a_word_that_the_page_lists() -> None:
    listed = {(code, word) for code in BY_CODE for word in ["", *words_of(code)]}
    assert set(refusals._SENTENCES) <= listed
