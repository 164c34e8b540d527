"""The tables of docs/claims.md and docs/security.md, from the markers of the tests.

A test says what it proves by ``@pytest.mark.claims("B3", 1, 5)`` (rows and claim numbers) and by
``@pytest.mark.attack("R01")``. A page keeps its prose; only what stands between ``<!-- tests: NAME -->`` and
``<!-- end -->`` is written here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.lib.asked import ASKED, FAMILIES
from scripts.lib.rows import BY_ID, CLAIMS, PARTS, ROWS

TOP: Final = Path(__file__).parents[2]
ATTACK: Final = re.compile(r"[RCHDFLKOXPZ]\d\d[a-z]?")
FRAME: Final = "<!-- tests: {name} -->"
END: Final = "<!-- end -->"

NEW_PAGES: Final = {
    "claims": f"""# What the seed document asks for, and which test proves it

zkc is built after WO 01/69843 A2. That document ends in 110 claims. Each is a line here: what it asks in short, the
tests that would fail if zkc did not do it, and the modules that do. Below it is the same by flows and alternatives of
the document, called rows: A3 is one. The *coordinator* is the document's message server computer, *sender* and
*recipient* are its clients. [seed.md](seed.md) leads from its figures to functions.

A test says what it proves by a marker, `@pytest.mark.claims("B3", 1, 17)`; the build fails where a row or a claim has
none.

{FRAME.format(name="claims")}
{END}
""",
    "security": f"""# Security

Each case is an attack that a test carries out.

{FRAME.format(name="attacks")}
{END}
""",
}


@dataclass(frozen=True)
class Marked:
    """One test function: where it is, what it says of itself, what it proves."""

    file: str
    name: str
    says: str
    claims: tuple[str | int, ...]
    attacks: tuple[str, ...]


class _Collector:
    """A pytest plugin that keeps what was collected."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = list(session.items)


def collect() -> list[Marked]:
    """Every marked test of the project, in the order of files; RuntimeError if one cannot be collected.

    In a process of its own: pytest inside pytest would exchange its hooks and our mark in the environment.
    """
    words = [sys.executable, __file__, "--collect"]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=TOP, env=ours
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    lists = [{name: tuple(value) if isinstance(value, list) else value for name, value in test.items()}
             for test in json.loads(done.stdout)]
    return [Marked(**test) for test in lists]


def _collect_here() -> list[Marked]:
    collector, said = _Collector(), io.StringIO()
    with contextlib.chdir(TOP), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        words = ["--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
        if pytest.main(words, plugins=[collector]) != pytest.ExitCode.OK:
            raise RuntimeError(said.getvalue())
    return marked_of(collector.items)


def marked_of(items: Iterable[pytest.Item]) -> list[Marked]:
    """Those of ``items`` that prove something, in the order of files."""
    found: dict[tuple[str, str], Marked] = {}
    for item in items:
        marked = _marked(item)
        if marked.claims or marked.attacks:
            key = (marked.file, marked.name)
            known = found.get(key)
            found[key] = marked if known is None else _both(known, marked)
    return sorted(found.values(), key=lambda marked: (marked.file, marked.name))


def _marked(item: pytest.Item) -> Marked:
    function = getattr(item, "function", None)
    claims = [word for mark in item.iter_markers("claims") for word in mark.args]
    attacks = [word for mark in item.iter_markers("attack") for word in mark.args]
    return Marked(
        file=item.path.relative_to(TOP).as_posix(),
        name=getattr(item, "originalname", item.name),
        says=_summary(getattr(function, "__doc__", None) or ""),
        claims=tuple(dict.fromkeys(claims)),
        attacks=tuple(dict.fromkeys(attacks)),
    )


def _both(one: Marked, other: Marked) -> Marked:
    """Two parameters of one test."""
    return Marked(
        one.file, one.name, one.says, tuple(dict.fromkeys(one.claims + other.claims)),
        tuple(dict.fromkeys(one.attacks + other.attacks)),
    )


def _summary(docstring: str) -> str:
    return " ".join(docstring.strip().partition("\n\n")[0].split()).removesuffix(".")


def claims_table(tests: Sequence[Marked]) -> str:
    """Claim -> row -> tests -> modules, a table for each family of claims; then row -> tests -> functions, by part."""
    parts = ["## Claim by claim"]
    for family, title in FAMILIES.items():
        lines = [f"### {title}", "", "| claim | what it asks | row | tests | modules |", "|---|---|---|---|---|"]
        for claim in family:
            proving = [test for test in tests if claim in test.claims]
            rows = [row for row in ROWS if claim in row.claims and any(row.id in test.claims for test in proving)]
            modules = dict.fromkeys(name.partition(":")[0] for row in rows for name in row.by)
            lines.append(
                f"| {claim} | {ASKED[claim]} | {', '.join(row.id for row in rows)} | {_links(proving)} "
                f"| {_code(modules)} |"
            )
        parts.append("\n".join(lines))
    parts.append("## Row by row")
    for part, title in PARTS.items():
        lines = [f"### {part}. {title}", "", "| row | what | claims | tests | done by |", "|---|---|---|---|---|"]
        for row in (row for row in ROWS if row.id[0] == part):
            shown = _links(test for test in tests if row.id in test.claims)
            lines.append(f"| {row.id} | {row.what} | {_ranges(row.claims)} | {shown} | {_code(row.by)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def gaps(tests: Sequence[Marked]) -> list[str]:
    """What is not proved, and what is marked as something that it cannot prove."""
    proved = {word for test in tests for word in test.claims}
    found = [f"claim {claim} has no test" for claim in CLAIMS if claim not in proved]
    found += [f"row {row.id} has no test" for row in ROWS if row.id not in proved]
    for test in tests:
        asked_by_its_rows = {claim for word in test.claims if word in BY_ID for claim in BY_ID[str(word)].claims}
        lone = [str(word) for word in test.claims if isinstance(word, int) and word not in asked_by_its_rows]
        if lone:
            found.append(f"{test.file}::{test.name}: no row beside it in the marker asks for claim {', '.join(lone)}")
    return found


def attacks_table(tests: Sequence[Marked]) -> str:
    """Case -> test -> what it does."""
    lines = ["| case | test | what is tried, and what must come of it |", "|---|---|---|"]
    for case in sorted({case for test in tests for case in test.attacks}):
        lines += [
            f"| {case} | [{test.name}](../{test.file}) | {test.says or _words(test.name)} |"
            for test in tests
            if case in test.attacks
        ]
    return "\n".join(lines)


def _links(tests: Iterable[Marked]) -> str:
    return "<br>".join(f"[{_words(test.name)}](../{test.file})" for test in tests)


def _words(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def _code(names: Iterable[str]) -> str:
    return "<br>".join(f"`zkc.{name}`" for name in names)


def _ranges(numbers: Sequence[int]) -> str:
    """``1, 5-7``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def filled(page: str, name: str, table: str) -> str:
    """``page`` with ``table`` in the frame called ``name``; ValueError if it has no such frame."""
    begin = FRAME.format(name=name)
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"the page has no frame {begin} ... {END}")
    return f"{before}{begin}\n\n{table}\n\n{END}{after}"


def pages(tests: Sequence[Marked]) -> dict[Path, str]:
    """Path -> what it should hold now."""
    wanted = {}
    for page, name, table in (("claims", "claims", claims_table(tests)), ("security", "attacks", attacks_table(tests))):
        path = TOP / "docs" / f"{page}.md"
        wanted[path] = filled(path.read_text(encoding="utf-8") if path.exists() else NEW_PAGES[page], name, table)
    return wanted


def main(words: Sequence[str]) -> int:
    """Writes the pages; with ``--check`` tells which are old. 1 for one, and where a row or claim has no test."""
    if "--collect" in words:
        print(json.dumps([asdict(test) for test in _collect_here()]))
        return 0
    tests = collect()
    missing = gaps(tests)
    code = 1 if missing else 0
    for line in missing:
        print(line)
    for path, wanted in pages(tests).items():
        if path.exists() and path.read_text(encoding="utf-8") == wanted:
            continue
        if "--check" in words:
            print(f"{os.path.relpath(path)} is old: run scripts/docs")
            code = 1
        else:
            path.write_text(wanted, encoding="utf-8")
            print(f"{os.path.relpath(path)} written")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
