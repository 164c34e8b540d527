"""The man pages, ``manuals.py FOLDER``: from the objects that ``--help``, the configuration and the errors are made of.

``zkc(1)`` and a page for each command, ``zkc.toml(5)``, and of ``docs/`` ``zkc-protocol(7)``, ``zkc-policy(7)`` and
``zkc-errors(7)``. Who wants to change a page changes the option, the comment or the document that it is made of.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.lib.roff import bold, escape, head, inline, literal, markdown, page, paragraph, section, subsection, term
from zkc import __version__
from zkc.config import ClientConfig, CoordinatorConfig
from zkc.config.keys import Key, keys_of
from zkc.config.reading import Role
from zkc.config.toml import to_toml
from zkc.errors import BY_CODE
from zkc.ids import VARIABLES
from zkc.ui.cli.main import COMMANDS
from zkc.ui.cli.options import Command, Group, root

TOP: Final = Path(__file__).parents[2]
CONFIGS: Final[Mapping[Role, type[ClientConfig | CoordinatorConfig]]] = {
    "client": ClientConfig, "coordinator": CoordinatorConfig,
}
DOCUMENTS: Final = {
    "zkc-protocol": ("protocol.md", "the protocol zkc/1, for another implementation"),
    "zkc-policy": ("policy.md", "rules of who may send what to whom, in zkc.toml(5)"),
    "zkc-errors": ("errors.md", "exit codes, reasons and details of every failure of zkc"),
}
"""Pages of section 7: the file in ``docs/``, and what stands beside the name."""
FILES: Final = {
    "config.toml": "The configuration, see zkc.toml(5).",
    "keys.db": "The keys, pins and receipts; of a coordinator its identity and its key database.",
    "inbox/, outbox/": "What has arrived, and what waits to be sent.",
    "run/": "The control socket.",
}
SUCCESS: Final = "Done. For send: the recipient holds all of it on disk, verified, and its signed receipt was checked."
SIGNALS: Final = {
    130: "SIGINT ended the command before its work was done.",
    141: "Who read standard output went away.",
    143: "SIGTERM ended the command before its work was done.",
}


def pages() -> dict[str, str]:
    """Every page by its file's name, ``zkc-send.1`` and its like."""
    made = {f"{name}.1": _command(name, context) for name, context in commands()}
    made["zkc.1"] = _zkc()
    made["zkc.toml.5"] = _configuration()
    for name, (document, summary) in DOCUMENTS.items():
        made[f"{name}.7"] = _document(name, document, summary)
    return made


def commands() -> Iterator[tuple[str, click.Context]]:
    """``zkc-inbox-save`` and its like, each with the context in which its help is made."""

    def below(context: click.Context, name: str) -> Iterator[tuple[str, click.Context]]:
        for word, command in _inner(context):
            inner = _context(command, word, context)
            yield f"{name}-{word}", inner
            yield from below(inner, f"{name}-{word}")

    yield from below(top(), "zkc")


def _inner(context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """The commands of a group that its help lists."""
    if isinstance(group := context.command, Group):
        for word in group.list_commands(context):
            command = group.get_command(context, word)
            if command is not None and not command.hidden:
                yield word, command


def write(folder: Path) -> list[Path]:
    """All pages into ``folder``, as ``man1/zkc.1`` and its like; what else is there of ours goes."""
    for old in folder.glob("man*/zkc*"):
        old.unlink()
    made: list[Path] = []
    for name, text in sorted(pages().items()):
        path = folder / f"man{name[-1]}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
        made.append(path)
    return made


def top() -> click.Context:
    """That of ``zkc`` itself."""
    return _context(root(COMMANDS), "zkc")


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return click.Context(command, info_name=name, parent=parent, **command.context_settings)


def _begun(name: str, number: int, summary: str) -> list[str]:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)  # noqa: TID251 (no part of zkc)
    return head(name, number, summary, now.date().isoformat(), f"zkc {__version__}")


# --- section 1 ------------------------------------------------------------------------------------------------------


def _command(name: str, context: click.Context) -> str:
    command = context.command
    summary = command.get_short_help_str(limit=200).removesuffix(".")
    about = [*_begun(name, 1, summary[:1].lower() + summary[1:]), *_synopsis(context), *_examples(command)]
    about += [*section("Description"), *paragraph(escape(command.help or ""))]
    shown = _options(context)
    if shown:
        about += [*section("Options"), *shown]
    if isinstance(command, Group):
        about += [*section("Commands"), *_subcommands(context, name)]
    also = [_reference("zkc", 1), _reference("zkc.toml", 5)]
    if context.parent is not None and context.parent.parent is not None:
        also.append(_reference(name.rpartition("-")[0], 1))
    about += paragraph(f"The options of every command, and its exit codes, are in {_reference('zkc', 1)}.")
    return page([*about, *section("See also"), ",\n".join(also)])


def _zkc() -> str:
    context = top()
    command = context.command
    about = [*_begun("zkc", 1, "files, pipes and messages from computer to computer")]
    about += [*_synopsis(context), *_examples(command)]
    about += [*section("Description"), *paragraph(escape(command.help or ""))]
    about += paragraph(escape(
        "zkc coordinator run, on a machine that is always reachable, introduces clients to each other. zkc join "
        "registers a client there, and zkc daemon keeps it online and receives. The data of zkc send goes from one to "
        "the other directly."
    ))
    about += [*section("Commands"), *_subcommands(context, "zkc")]
    about += [*section("Options"), *paragraph("These may stand anywhere after \\fBzkc\\fR."), *_options(context)]
    about += section("Environment")
    for name, text in VARIABLES.items():
        about += term(bold(name), escape(text))
    about += term(
        bold("ZKC_SECTION_KEY"),
        f"The key of a section of the configuration, lists comma separated: {_reference('zkc.toml', 5)} has them all.",
    )
    about += section("Files")
    about += paragraph(escape(
        "Below ZKC_HOME, or --home; without it in the folders of the platform for configuration, data and sockets, in "
        "zkc/client or zkc/coordinator there."
    ))
    for name, text in FILES.items():
        about += term(bold(name), escape(text))
    about += [*section("Exit status"), *term(bold("0"), escape(SUCCESS))]
    codes = {code: f"{kind.reason}: {kind.__doc__}" for code, kind in BY_CODE.items()}
    for code, text in sorted({**codes, **SIGNALS}.items()):
        about += term(bold(str(code)), escape(text))
    about += paragraph(f"{_reference('zkc-errors', 7)} has the finer words that --json tells.".replace("--", r"\-\-"))
    also = [_reference("zkc.toml", 5), *(_reference(name, 7) for name in sorted(DOCUMENTS))]
    return page([*about, *section("See also"), ",\n".join(also)])


def _synopsis(context: click.Context) -> list[str]:
    """What ``--help`` has behind "Usage:"."""
    words = " ".join(context.command.collect_usage_pieces(context))
    return [*section("Synopsis"), f"{bold(context.command_path)} {escape(words)}".rstrip()]


def _examples(command: click.Command) -> list[str]:
    example = command.example if isinstance(command, Command | Group) else ""
    return [*section("Examples"), *literal(example)] if example else []


def _options(context: click.Context) -> list[str]:
    """The options that ``--help`` shows, in its words."""
    found: list[str] = []
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            names = ", ".join(bold(name) for name in (*parameter.opts, *parameter.secondary_opts))
            value = "" if parameter.is_flag else rf" \fI{escape(parameter.make_metavar(context))}\fR"
            found += term(names + value, escape(record[1]))
    return found


def _subcommands(context: click.Context, name: str) -> list[str]:
    found: list[str] = []
    for word, command in _inner(context):
        found += term(_reference(f"{name}-{word}", 1), escape(command.get_short_help_str(limit=200)))
    return found


def _reference(name: str, number: int) -> str:
    return f"{bold(name)}({number})"


# --- section 5 ------------------------------------------------------------------------------------------------------


def _configuration() -> str:
    about = _begun("zkc.toml", 5, "configuration of zkc")
    about += section("Description")
    about += paragraph(escape(
        "A client and a coordinator are each configured by the file config.toml of their home, in TOML. zkc config "
        "shows the values that count. All keys of both roles are below."
    ))
    for role, kind in CONFIGS.items():
        introduction, comments = read_comments(configuration_text(role))
        about += section(f"Keys of a {role}")
        for each in introduction:
            about += paragraph(inline(each))
        before = ""
        for name, key in keys_of(kind).items():
            if key.section != before:
                about += subsection(f"[{key.section}]")
                before = key.section
            about += term(bold(key.name), inline(comments[name]), *_facts(key))
    about += section("Policy")
    about += paragraph(
        rf"\fB[groups]\fR, \fB[[policy]]\fR and, of a coordinator, \fB[[visible]]\fR say who may send what to whom, "
        f"and who sees whom: {_reference('zkc-policy', 7)}."
    )
    also = [_reference("zkc", 1), _reference("zkc-config", 1), _reference("zkc-policy", 7)]
    return page([*about, *section("See also"), ",\n".join(also)])


def _facts(key: Key) -> Iterator[str]:
    """What the reader of the configuration takes, its default, its variable."""
    expects = key.reader.expects
    yield escape(f"{expects[:1].upper()}{expects[1:]}.")
    yield rf"Default: {bold(to_toml(key.reader.show(key.default)))}. Variable: {bold(key.variable)}."


def configuration_text(role: Role) -> str:
    """The file in ``config/`` with every key of that role."""
    return (TOP / "config" / f"{role}.toml").read_text(encoding="utf-8")


def read_comments(text: str) -> tuple[list[str], dict[str, str]]:
    """The paragraphs before the first section of a file in ``config/``, and the comment of each ``section.key``."""
    introduction: list[str] = []
    comments: dict[str, str] = {}
    block: list[str] = []
    name = ""
    for line in text.splitlines():
        if line.startswith("#"):
            block.append(line.removeprefix("#").strip())
            continue
        if header := re.fullmatch(r"\[(\w+)\]", line):
            name = header[1]
        elif key := re.match(r"(\w+) = ", line):
            comments[f"{name}.{key[1]}"] = " ".join(block)
        elif block and not name:
            introduction = [" ".join(part.split("\n")) for part in "\n".join(block).split("\n\n")]
        block = []
    return introduction, comments


# --- section 7 ------------------------------------------------------------------------------------------------------


def _document(name: str, document: str, summary: str) -> str:
    text = (TOP / "docs" / document).read_text(encoding="utf-8")
    _title, _, rest = text.partition("\n")
    about = [*_begun(name, 7, summary), *section("Description"), *markdown(rest)]
    return page([*about, *section("See also"), _reference("zkc", 1)])


def main(words: Sequence[str]) -> int:
    """Writes the pages into the folder that is named."""
    made = write(Path(words[0]))
    print(f"{len(made)} pages in {words[0]}: man -l {made[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
