"""Every command and every Python line of docs/, typed by somebody who reads it: real processes, in a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pages import RUN, Block, Call, follow, read

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(
    page for page in DOCS.rglob("*.md")
    if any((block.language in RUN or block.note) and not block.does_nothing() for block in read(page)[1])
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_happens(page: Path, tmp_path: Path) -> None:
    follow(page, tmp_path)


def test_the_tutorial_and_each_recipe_are_followed() -> None:
    assert {DOCS / "tutorial.md", *(DOCS / "recipes").iterdir()} <= set(PAGES)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_what_is_not_run_says_why(page: Path) -> None:
    silent = [
        block.line for block in read(page)[1]
        if not block.note and block.language in RUN - {"console"}
    ]
    assert not silent, f"{page.name}: lines {silent} are neither run nor say why not"


# --- the reader itself ----------------------------------------------------------------------------------------------


def page_of(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_a_dialogue_is_read() -> None:
    block = Block(10, "console", "a$ cat \\\n  x\none\n…\nb$ sleep 9\n^C\n")
    assert list(block.calls()) == [
        Call(11, "a", "cat \\\n  x", ["one", "…"]), Call(15, "b", "sleep 9"), Call(16, "b", "^C"),
    ]


@pytest.mark.parametrize(
    ("dialogue", "why"),
    [
        ("a$ echo one\ntwo", "says:\none\n\nand not:\ntwo"), ("a$ false", "ended with 1"), ("a$ echo x", "says:\nx"),
        ("a$ (exit 3)\na$ echo $?\n4", "says:\n3"), ("a$ exit", "has ended"),
        ("a$ printf '1\\n2\\n'\n2\n1", "says:\n1\n2"), ("a$ echo 1 | cat\n2", "says:\n1"),
    ],
)
def test_another_answer_or_a_failure_is_told(dialogue: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as caught:
        follow(page_of(tmp_path, f"```console\n{dialogue}\n```\n"), tmp_path)
    assert why in str(caught.value)


def test_a_line_of_one_program_of_a_pipe_may_come_among_those_of_the_other(tmp_path: Path) -> None:
    told = "0123456789abcdef"
    text = f"```console\na$ echo one | {{ cat; echo two; echo id fedcba9876543210; }}\nid {told}\none\ntwo\n```\n"
    follow(page_of(tmp_path, text), tmp_path)


def test_files_programs_and_cron_are_done(tmp_path: Path) -> None:
    text = """
```console
a$ mkdir bin
```

<!-- file: a ~/bin/say -->
```sh
#!/bin/sh
echo "$WORD" >> said
```

```console
a$ chmod +x bin/say
```

<!-- cron: a -->
```text
# every night
WORD=two
5 2 * * 1-5 ~/bin/say
```

<!-- python: a -->
```python
from pathlib import Path
assert Path("said").read_text() == "two\\n"
```

```console
a$ WORD=three ~/bin/say
a$ cat said
two
t…e
```
"""
    follow(page_of(tmp_path, text), tmp_path)
    assert (tmp_path / "home" / "said").read_text() == "two\nthree\n"


@pytest.mark.parametrize(
    "text",
    [
        "<!-- cron: a -->\n```text\n* * * * * echo x\n```\n",
        "<!-- python: a -->\n```python\nraise SystemExit(3)\n```\n",
        "```sh\nls\n```\n",
    ],
    ids=["cron would mail", "a program that fails", "a block that says nothing of itself"],
)
def test_what_else_goes_wrong_is_told(text: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        follow(page_of(tmp_path, text), tmp_path)


def test_ids_of_a_page_stand_for_those_that_are_here(tmp_path: Path) -> None:
    told, real = "0123456789abcdef", "fedcba9876543210"
    text = f"```console\na$ echo id {real}\nid {told}\na$ echo the one with 0123 > said\n```\n"
    follow(page_of(tmp_path, text), tmp_path)
    assert (tmp_path / "home" / "said").read_text() == f"the one with {real}\n"
