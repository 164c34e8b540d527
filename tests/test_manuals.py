"""The man pages have every command, option, exit code and key, and are pages that man shows without a word."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import tomli

from scripts.lib import manuals
from scripts.lib.roff import escape, markdown
from zkc.config import policy
from zkc.config.keys import keys_of
from zkc.errors import BY_CODE
from zkc.ids import VARIABLES
from zkc.ui.cli.door import BROKEN_PIPE, SIGNALLED
from zkc.ui.cli.options import Command, Group

PAGES = manuals.pages()
COMMANDS = dict(manuals.commands())
TOOLS = {
    "mandoc": lambda page: ["mandoc", "-T", "lint", "-W", "style", str(page)],
    "groff": lambda page: ["groff", "-man", "-ww", "-z", "-T", "utf8", str(page)],
}


def plain(text: str) -> str:
    """What a page says, in one line, without fonts and escapes."""
    text = re.sub(r"\\f[BIR]", "", text).replace(r"\&", "")
    for each in ("-", "'", "`", "^", "~", '"', "\\"):
        text = text.replace(escape(each), each)
    return " ".join(text.split())


def entries(name: str) -> list[str]:
    """The terms of a page's lists, each as it is written."""
    return re.findall(r"^\.TP\n(.*)$", PAGES[name], re.MULTILINE)


def parts(name: str) -> dict[str, str]:
    """A page's sections."""
    _, *found = re.split(r'^\.SH "(.*)"$', PAGES[name], flags=re.MULTILINE)
    return {plain(title): text for title, text in zip(found[::2], found[1::2], strict=True)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("man")
    manuals.write(made)
    return made


# --- what they hold -------------------------------------------------------------------------------------------------


def test_every_command_has_a_page_and_each_group_lists_its_own() -> None:
    assert {f"{name}.1" for name in COMMANDS} | {"zkc.1"} == {name for name in PAGES if name.endswith(".1")}
    for name in COMMANDS:
        group = name.rpartition("-")[0]
        assert f"{name}(1)" in plain(parts(f"{group}.1")["COMMANDS"]), f"{group}(1) does not list {name}"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_page_says_of_its_command_what_help_says(name: str) -> None:
    context = COMMANDS[name]
    command, page = context.command, plain(PAGES[f"{name}.1"])
    assert command.help is not None
    assert plain(escape(command.help)) in page
    assert isinstance(command, Command | Group)
    assert plain(escape(command.example)) in page
    usage = context.get_usage().removeprefix("Usage: ")
    assert " ".join(usage.split()) in page
    shown = [option for option in command.get_params(context) if isinstance(option, click.Option)]
    for option in (option for option in shown if not option.hidden):
        names, text = option.get_help_record(context) or ("", "")
        for word in option.opts:
            assert any(word in re.split(r"[, ]+", plain(entry)) for entry in entries(f"{name}.1")), f"{name} {names}"
        assert plain(escape(text)) in page


def test_the_options_of_every_command_are_in_its_first_page() -> None:
    options = manuals.root(manuals.COMMANDS).params
    listed = [plain(entry).split()[0] for entry in entries("zkc.1")]
    assert [name for option in options for name in option.opts if name not in listed] == []


def test_every_exit_code_is_in_zkc_1() -> None:
    status = parts("zkc.1")["EXIT STATUS"]
    codes = {int(plain(entry)) for entry in re.findall(r"^\.TP\n(.*)$", status, re.MULTILINE)}
    assert codes == {0, *BY_CODE, *SIGNALLED, BROKEN_PIPE}
    assert all(f"{kind.reason}: {kind.__doc__}" in plain(status) for kind in BY_CODE.values())


def test_every_kind_of_error_says_what_it_means() -> None:
    own = [kind for kind in BY_CODE.values() if "__doc__" not in vars(kind) or not vars(kind)["__doc__"]]
    assert own == []


def test_every_variable_that_is_no_key_is_in_zkc_1() -> None:
    listed = {plain(entry) for entry in entries("zkc.1")}
    assert set(VARIABLES) <= listed


@pytest.mark.parametrize("role", list(manuals.CONFIGS))
def test_every_key_is_in_zkc_toml_5_with_kind_default_meaning_and_variable(role: manuals.Role) -> None:
    text = parts("zkc.toml.5")[f"KEYS OF A {role.upper()}"]
    keys = keys_of(manuals.CONFIGS[role])
    sections = dict(zip(*[iter(re.split(r'^\.SS "\[(.*)\]"$', text, flags=re.MULTILINE)[1:])] * 2, strict=True))
    assert {plain(section) for section in sections} == {key.section for key in keys.values()}
    shipped = (manuals.TOP / "config" / f"{role}.toml").read_text(encoding="utf-8")
    written = {f"{section}.{name}" for section, table in tomli.loads(shipped).items() for name in table}
    assert written == set(keys)
    for name, key in keys.items():
        _, _, told = sections[key.section].partition(rf"\fB{escape(key.name)}\fR")
        told = plain(told.partition("\n.TP\n")[0])
        assert key.reader.expects[1:] in told, name
        assert f"Variable: {key.variable}." in told, name
        default = manuals.to_toml(key.reader.show(key.default))
        assert f"Default: {default}." in told, name
        comment = manuals.read_comments(shipped)[1][name].replace("`", "")
        assert comment in told, name


def test_every_key_of_a_rule_is_in_zkc_policy_7() -> None:
    terms = {word for entry in entries("zkc-policy.7") for word in re.split(r", ", plain(entry))}
    assert set(policy._KEYS) <= terms


def test_the_specification_is_whole_in_zkc_protocol_7() -> None:
    text = (manuals.TOP / "docs" / "protocol.md").read_text(encoding="utf-8")
    titles = set(re.findall(r"^## (.*)$", text, re.MULTILINE))
    assert {plain(escape(title.upper())) for title in titles} <= set(parts("zkc-protocol.7"))
    names = set(re.findall(r"^\| ([A-Z_]{4,}) \|", text, re.MULTILINE))
    assert len(names) > 20
    assert names <= {plain(entry) for entry in entries("zkc-protocol.7")}


def test_what_a_page_refers_to_is_there() -> None:
    for name, text in PAGES.items():
        for other, number in re.findall(r"\b(zkc[a-z.-]*)\((\d)\)", plain(text)):
            assert f"{other}.{number}" in PAGES, f"{name} refers to {other}({number})"


# --- how they are written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_no_tool_has_anything_to_say_about_a_page(tool: str, folder: Path) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    command: Callable[[Path], list[str]] = TOOLS[tool]
    for page in sorted(folder.glob("man*/*")):
        done = subprocess.run(command(page), capture_output=True, text=True, check=False)
        assert (page.name, done.stdout + done.stderr, done.returncode) == (page.name, "", 0)


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_man_shows_a_page(folder: Path) -> None:
    done = subprocess.run(
        ["man", "-l", str(folder / "man1" / "zkc-send.1")], capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C", "MANPAGER": "cat"},
    )
    assert done.returncode == 0
    assert "--bwlimit RATE" in done.stdout


def test_what_looks_like_a_request_is_none() -> None:
    made = markdown("# t\n\n## A\n\n.so /etc/passwd\n\n```\n.so x\n'so \\y\n```\n\n- it's `\\fB` é\n  1. one\n")
    assert made == [
        '.SH "A"', ".PP", r"\&.so /etc/passwd", ".PP", ".RS 4", ".EX", r"\&.so x", r"\(aqso \ey", ".EE", ".RE",
        r".IP \(bu 2", r"it\(aqs \fB\efB\fR \[u00E9]", ".RS 4", ".IP 1. 4", "one", ".RE",
    ]


def test_what_roff_has_no_form_for_is_not_lost_in_silence() -> None:
    with pytest.raises(ValueError, match="blockquote"):
        markdown("> said\n")


def test_pages_that_are_no_more_do_not_stay(folder: Path) -> None:
    old = folder / "man1" / "zkc-old.1"
    old.write_text("")
    manuals.write(folder)
    assert not old.exists()
    assert (folder / "man5" / "zkc.toml.5").exists()


def test_a_fixed_date_gives_the_same_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert ' 1 1970-01-01 "zkc' in manuals.pages()["zkc.1"]
