"""docs/commands.md and docs/configuration.md, from what ``--help`` and the configuration are made of. ``--check``: only
says what is old. The man pages (`scripts.lib.manuals`) are the same in another form.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import click

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.lib.manuals import CONFIGS, SIGNALS, SUCCESS, TOP, commands, configuration_text, read_comments, top
from zkc.config.keys import keys_of
from zkc.config.toml import to_toml
from zkc.errors import BY_CODE
from zkc.ids import VARIABLES
from zkc.ui.cli.options import Command, Group

MADE: Final = "<!-- Written by scripts/docs: change the option or the comment that it is made of. -->"


def pages() -> dict[str, str]:
    """Each page by its file's name in docs/."""
    return {"commands.md": _lines(_commands()), "configuration.md": _lines(_configuration())}


def _lines(parts: Iterator[str]) -> str:
    return "\n".join(parts).rstrip() + "\n"


# --- commands -------------------------------------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    yield from ("# Commands", "", MADE, "", *_about(top().command), "These options may stand anywhere after `zkc`.", "")
    yield from _options(top())
    yield from ("## Environment", "", "| variable | |", "|---|---|")
    for name, text in VARIABLES.items():
        yield f"| `{name}` | {_cell(text)} |"
    yield from ("", "Each key of the [configuration](configuration.md) has a variable, too.", "")
    yield from ("## Exit status", "", "| code | reason | |", "|---|---|---|", f"| 0 | | {_cell(SUCCESS)} |")
    for code, kind in sorted(BY_CODE.items()):
        yield f"| {code} | `{kind.reason}` | {_cell(kind.__doc__ or '')} |"
    for code, text in SIGNALS.items():
        yield f"| {code} | | {_cell(text)} |"
    yield from ("", "[Errors](errors.md) has the finer words that `--json` tells, and [JSON](json.md) all objects.", "")
    for _, context in commands():
        yield from _command(context)


def _command(context: click.Context) -> Iterator[str]:
    command = context.command
    yield from (f"## {context.command_path}", "")
    words = " ".join(command.collect_usage_pieces(context))
    yield from ("```text", f"{context.command_path} {words}".rstrip(), "```", "", *_about(command))
    if isinstance(command, Group) and command.default is not None:
        yield from (f"Without one of its commands: `{context.command_path} {command.default}`.", "")
    yield from _options(context)


def _about(command: click.Command) -> Iterator[str]:
    for part in (command.help or "").split("\n\n"):
        yield from (_prose(part), "")
    if isinstance(command, Command | Group) and command.example:
        yield from ("```text", command.example.strip("\n"), "```", "")


def _options(context: click.Context) -> Iterator[str]:
    rows: list[str] = []
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            rows.append(f"| `{_cell(record[0])}` | {_cell(record[1])} |")
    if rows:
        yield from ("| option | |", "|---|---|", *rows, "")


# --- configuration --------------------------------------------------------------------------------------------------


_CONFIGURED: Final = (
    "A client and a coordinator are each configured by the file `config.toml` of their home. `zkc config "
    "--show-origin` shows the values that count, and where each came from: an option before a variable, that "
    "before the file, that before the default. Who may send what to whom is on a page of its own, "
    "[policy](policy.md)."
)


def _configuration() -> Iterator[str]:
    yield from ("# Configuration", "", MADE, "", _CONFIGURED, "")
    for role, kind in CONFIGS.items():
        yield ""
        introduction, comments = read_comments(configuration_text(role))
        yield from (f"## A {role}", "")
        for each in introduction:
            yield from (_prose(each), "")
        before = ""
        for name, key in keys_of(kind).items():
            if key.section != before:
                yield from ("", f"### [{key.section}] of a {role}", "")
                before = key.section
            default = f"`{key.name} = {to_toml(key.reader.show(key.default))}`"
            yield f"- {default}: {_prose(comments[name])} {_sentence(key.reader.expects)} `{key.variable}`"


# --- text -----------------------------------------------------------------------------------------------------------


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _prose(text: str) -> str:
    """A paragraph in one line, with what Markdown would take for markup as it is."""
    return " ".join(text.replace("\b", "").split()).replace("<", r"\<").replace("*", r"\*")


def _cell(text: str) -> str:
    return _prose(text).replace("|", r"\|")


def main(words: Sequence[str]) -> int:
    """Writes what is old, or with ``--check`` only says so; 1 if that is anything."""
    made: Mapping[str, str] = pages()
    old = []
    for name, text in made.items():
        path = TOP / "docs" / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            old.append(name)
            if "--check" not in words:
                path.write_text(text, encoding="utf-8")
    for name in old:
        print(f"docs/{name} {'is old: run scripts/docs' if '--check' in words else 'written'}")
    return 1 if old and "--check" in words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
