"""``docs/errors.md`` lists every code, reason and detail that the code uses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from zkc.errors import BY_CODE

TOP = Path(__file__).parents[1]
PAGE = (TOP / "docs" / "errors.md").read_text(encoding="utf-8")
POSITIONAL = {
    "Decline", "Failure", "LogAlarm", "PeerViolation", "Refusal", "RegError", "TransferEnd", "_Row", "_alarm",
    "_finish",
    "_tell_sender", "fail", "stop",
}
"""Calls that take the detail, or a violation's word, by position."""
WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")


def words_in_code() -> Iterator[tuple[str, str]]:
    for path in sorted((TOP / "zkc").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                given = [word.value for word in node.keywords if word.arg == "detail"]
                given += node.args if name in POSITIONAL else []
                for value in given:
                    for part in (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,):
                        word = part.value if isinstance(part, ast.Constant) else None
                        if isinstance(word, str) and WORD.fullmatch(word):
                            yield word, f"{path}:{node.lineno}"


def test_every_detail_of_the_code_is_listed() -> None:
    found = list(words_in_code())
    listed = set(re.findall(r"`([a-z-]+)`", PAGE))
    assert len({word for word, _ in found}) > 60
    assert [f"{word} ({place})" for word, place in found if word not in listed] == []


def test_every_detail_that_is_listed_is_in_the_code() -> None:
    known = {word for word, _ in words_in_code()}
    assert [word for word in re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE) if word not in known] == []


def test_every_code_and_reason_is_a_heading() -> None:
    headings = " ".join(line for line in PAGE.splitlines() if line.startswith("## "))
    assert [code for code, kind in BY_CODE.items() if f"{code} {kind.reason}" not in headings] == []
