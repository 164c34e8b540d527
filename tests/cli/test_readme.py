"""The check that a page names only commands that exist."""

from __future__ import annotations

import pytest

from scripts.lib.readme import unknown_calls


@pytest.mark.parametrize(
    "code",
    [
        "`zkc config --show-origin`", "```\n$ ZKC_HOME=x zkc config | head\n```", "`zkc --home bob config`", "`zkc`",
        "`zkc inbox --partial`",
    ],
)
def test_commands_that_exist_pass(code: str) -> None:
    assert unknown_calls(f"Say:\n{code}\n") == []


@pytest.mark.parametrize("code", ["`zkc teleport`", "```\necho hi | zkc confg\n```", "`zkc config --colour`"])
def test_commands_and_options_that_do_not_exist_are_found(code: str) -> None:
    assert len(unknown_calls(f"Say:\n{code}\n")) == 1
