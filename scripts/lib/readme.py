"""Every `zkc` command that a page names must exist: ``readme.py README.md``.

Looks at the lines of code blocks and at inline code that begin with ``zkc`` or pipe into it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from zkc.ui.cli.main import COMMANDS
from zkc.ui.cli.options import Group, root

CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
CALL = re.compile(r"(?:^|[|&;(`] *|\$ +)(?:[A-Z_]+=\S+ +)*zkc +([^|&;`\n]*)", re.MULTILINE)


def unknown_calls(page: str) -> list[str]:
    """The calls of ``zkc`` in ``page`` whose command, subcommand or long option does not exist."""
    wrong: list[str] = []
    for code in CODE.findall(page):
        wrong += [f"zkc {call}" for call in CALL.findall(code) if not _exists(call.split())]
    return wrong


def _exists(words: list[str]) -> bool:
    command: click.Command = root(COMMANDS)
    # With these: click keeps the help option of a command as the first context had it.
    context = click.Context(command, **command.context_settings)
    options = {option for parameter in command.params for option in parameter.opts}
    for at, word in enumerate(words):
        if word in {"--", "--exec", "#"}:
            break
        if word.startswith("--"):
            if word.partition("=")[0] not in options:
                return False
        elif isinstance(command, click.Group) and re.fullmatch("[a-z-]+", word) and not _is_value(words, at):
            found = command.get_command(context, word)
            if found is None:
                return False
            command = found
            options |= _options(command, context)
            if isinstance(command, Group) and command.default is not None:
                # `zkc inbox --partial` is `zkc inbox list --partial`.
                options |= _options(command.get_command(context, command.default), context)
    return True


def _options(command: click.Command | None, context: click.Context) -> set[str]:
    return {option for parameter in (command.get_params(context) if command else ()) for option in parameter.opts}


def _is_value(words: list[str], at: int) -> bool:
    return at > 0 and words[at - 1] == "--home"


def main(path: str) -> None:
    """Ends with 1 and a line for each call that does not exist."""
    try:
        page = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        sys.exit(f"there is no {path}")
    wrong = unknown_calls(page)
    for call in wrong:
        print(f"{path} names a command that does not exist: {call}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main(sys.argv[1])
