"""The pages of docs/ say what the code does: tables of the specification, functions behind the figures, links."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import typing
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from packaging.requirements import Requirement

import zkc
from scripts.lib import fields, reference
from scripts.lib.readme import unknown_calls
from zkc import api, constants, errors, testing
from zkc.client import events, happenings, walking
from zkc.stores import items
from zkc.wire import messages

DOCS: Final = Path(__file__).parents[1] / "docs"
DECISIONS: Final = sorted((DOCS / "decisions").glob("*.md"))
BY_MODULE_TOO: Final = {1, 2, 3}
"""Figures that run over many functions: a module's docstring may name them for its functions."""


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


# --- the specification -----------------------------------------------------------------------------------------------


def test_the_tables_of_the_specification_are_current() -> None:
    text = page("protocol.md")
    assert fields.filled(text) == text, "docs/protocol.md is old: run scripts/docs"


def test_every_event_is_on_its_page_with_its_keys() -> None:
    text = page("events.md")
    assert fields.filled(text) == text, "docs/events.md is old: run scripts/docs"
    kinds = [happenings.tag_of(kind) for kind in typing.get_args(happenings.Happening)]
    assert len(kinds) == len(set(kinds))
    assert re.findall(r"^### (.+)$", text, re.MULTILINE) == kinds


def test_the_specification_has_every_message_once() -> None:
    named = fields.named(page("protocol.md"))
    assert sorted(named) == sorted(fields.classes())


def test_every_field_of_a_message_is_bounded() -> None:
    unbounded = [
        f"{name}.{field}"
        for name, kind in fields.classes().items()
        for field, hint in _hints(kind).items()
        if fields.kind_of(hint) in {"bytes", "str", "int", "list", "float", "Any"}
    ]
    assert not unbounded


def test_labels_and_derivations_of_the_code_stand_in_the_specification() -> None:
    """Every string that a key, seal or signature is bound to."""
    text = page("protocol.md")
    missing = sorted(label for label in labels() if f'"{label}"' not in text)
    assert not missing


def test_the_specification_lists_every_code_that_may_travel() -> None:
    rows = re.findall(r"^\| (\d+) \| `([a-z-]+)` \|$", fields.code_table(), re.MULTILINE)
    assert rows
    assert all(f"| {code} | `{reason}` |" in page("protocol.md") for code, reason in rows)


def _hints(kind: type[msgspec.Struct]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__struct_fields__}


BINDING: Final = {
    "seal": 1, "open_sealed": 1, "kem_encapsulate": 1, "kem_decapsulate": 1, "sign": 0, "sign_durable": 0, "verify": 0,
    "verify_durable": 0, "expand": 1, "message_mac": 1,
}
"""Function -> which of its arguments is the label."""


def labels() -> set[str]:
    """The constant labels with which crypto/ and protocol/ call the functions of `BINDING`."""
    found: set[str] = set()
    for room in ("crypto", "protocol"):
        for path in sorted((DOCS.parent / "zkc" / room).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    found |= _label_of(node)
    return found


def _label_of(call: ast.Call) -> set[str]:
    at = BINDING.get(getattr(call.func, "id", "") or getattr(call.func, "attr", ""))
    match call.args[at : at + 1] if at is not None else []:
        case [ast.Constant(value=str(label))]:
            return {label}
        case _:
            return set()


def test_the_search_for_labels_finds_them() -> None:
    assert {"xfer-req", "reg-perm-client", "chan-e", "reg k5", "cert", "xid-tag", "receipt"} <= labels()


# --- figures --------------------------------------------------------------------------------------------------------

ROW: Final = re.compile(r"^\| (\d+) \| ([^|]*) \| ([^|]*) \| `([\w.]+)(?::([\w.]+))?` \|$", re.MULTILINE)
COMPONENT: Final = re.compile(r"^\| 3[\w, ]+ \| [^|]* \| `([\w.]+)` \|$", re.MULTILINE)


def figures_named(docstring: str) -> set[int]:
    """``Figures 2, 8 to 10`` names 2, 8, 9, 10; block numbers are taken for figures, which harms nothing."""
    named: set[int] = set()
    for words in re.findall(r"[Ff]igures? (\d+(?:(?:, | and | to |-)\d+)*)", docstring):
        for part in re.split(r", | and ", words):
            first, _, last = re.sub(r" to ", "-", part).partition("-")
            named |= set(range(int(first), int(last or first) + 1))
    return named


@pytest.mark.parametrize(
    ("figure", "where", "what"), [(int(row[0]), row[3], row[4]) for row in ROW.findall(page("seed.md"))]
)
def test_a_function_of_the_page_exists_and_names_its_figure(figure: int, where: str, what: str) -> None:
    module = importlib.import_module(where)
    found: Any = module
    for word in what.split(".") if what else []:
        found = getattr(found, word)
    docstring = found.__doc__ or ""
    if figure in BY_MODULE_TOO:
        docstring += module.__doc__ or ""
    assert figure in figures_named(docstring)


@pytest.mark.claims("F1", "F2")
def test_every_figure_has_a_function_or_component() -> None:
    text = page("seed.md")
    assert {int(row[0]) for row in ROW.findall(text)} == set(range(1, 17)) - {3}
    components = COMPONENT.findall(text)
    assert components
    assert all(importlib.util.find_spec(name) is not None for name in components)


def test_figures_are_read_out_of_a_docstring() -> None:
    assert figures_named("(Figures 2, 8 to 10): it") == {2, 8, 9, 10}
    assert figures_named("Figure 14, blocks 1403-1405; Figure 2, 203") >= {14, 2}
    assert figures_named("Figures 13 and 15") == {13, 15}


# --- the Python API ---------------------------------------------------------------------------------------------------

CLIENTS: Final = (zkc.SyncClient, zkc.Client)
ONLY_ITS: Final = {"end_calls", "send_in", "take_in", "next_in", "follow_in"}
"""Methods of `zkc.SyncClient` that are there for `zkc.Client`: the page says of them that they are nobody's."""


def public(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_") and callable(value)}


def test_every_name_of_the_api_is_on_the_page() -> None:
    text = page("python.md")
    assert [name for name in zkc.__all__ if f"`zkc.{name}" not in text] == []
    for kind in (*CLIENTS, api.ReceivedItem, api.AsyncReceivedItem, testing.Fleet):
        assert [name for name in public(kind) if not re.search(rf"`[^`]*\b{name}\b[^`]*`", text)] == [], kind
    assert "zkc_fleet" in text


def test_every_method_of_the_clients_is_explained() -> None:
    text = page("python.md")
    assert public(zkc.SyncClient).keys() - ONLY_ITS == public(zkc.Client).keys()
    for name in public(zkc.Client):
        (own,) = re.findall(rf"^### {name}\n(.*?)^(?:##|###) ", text, re.MULTILINE | re.DOTALL)
        parameters = inspect.signature(getattr(zkc.SyncClient, name)).parameters
        assert [each for each in parameters if each != "self" and not re.search(rf"`[^`]*\b{each}\b", own)] == [], name
        assert re.search(rf"^\| `[^`]*client\.{name}\(", text, re.MULTILINE), name


@pytest.mark.parametrize("kind", [items.Item, events.Delivery, messages.Peer, happenings.Happened])
def test_every_attribute_of_a_value_is_on_the_page(kind: Any) -> None:
    (own,) = re.findall(rf"^### {kind.__name__}\n(.*?)^(?:##|###) ", page("python.md"), re.MULTILINE | re.DOTALL)
    assert f"`{kind.__module__}.{kind.__name__}`" in own
    told = re.findall(r"^\| `(\w+)` \|", own, re.MULTILINE)
    extra = [name for name, value in vars(kind).items() if isinstance(value, property)]
    assert told == [*typing.get_type_hints(kind), *extra]


def test_every_event_and_error_is_on_the_page() -> None:
    text = page("python.md")
    kinds = [*typing.get_args(events.Event), walking.Skipped, *typing.get_args(happenings.Happening)]
    assert [kind.__name__ for kind in kinds if f"`{kind.__name__}`" not in text] == []
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.MULTILINE)
    assert rows == [(str(code), kind.__name__) for code, kind in errors.BY_CODE.items()]


def test_an_example_in_python_is_run_or_says_why_not() -> None:
    text = page("python.md")
    marked = re.findall(r"<!-- (?:python: (?:alice|bob)|not run: [^>]+) -->\n```python\n(.*?)```", text, re.DOTALL)
    assert len(marked) == text.count("```python") > 8
    for code in marked:
        compile(code, "docs/python.md", "exec")


# --- operations -----------------------------------------------------------------------------------------------------


def test_files_and_units_that_the_page_on_operations_names_exist() -> None:
    named = set(re.findall(r"(?:`|\s)(config/[\w./@-]*[\w/])", page("operations.md")))
    assert named >= {"config/systemd/", "config/Containerfile", "config/client.toml"}
    assert [each for each in named if not (DOCS.parent / each).exists()] == []
    units = set(re.findall(r"^\| `([\w@-]+\.service)` \|", page("operations.md"), re.MULTILINE))
    assert units == {path.name for path in (DOCS.parent / "config" / "systemd").iterdir()}


def test_what_to_watch_for_in_the_logs_is_what_programs_say() -> None:
    (line,) = re.findall(r"^- In the logs these want a person: (.*)$", page("operations.md"), re.MULTILINE)
    source = "".join(path.read_text(encoding="utf-8") for path in (DOCS.parent / "zkc").rglob("*.py"))
    events = re.findall(r"`([a-z-]+)`", line)
    assert len(events) > 4
    assert [event for event in events if f'"{event}"' not in source] == []


def test_a_plain_installation_has_as_many_packages_as_the_page_says() -> None:
    """Give or take what its dependencies need from one version to the next."""
    (told,) = re.findall(r"A plain installation has every command: (\d+) packages", page("operations.md"))
    found: set[str] = set()
    todo = ["zkc"]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            needs = [Requirement(each) for each in importlib.metadata.requires(name) or ()]
            needed = [each for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})]
            todo += [re.sub(r"[-_.]+", "-", each.name).lower() for each in needed]
    assert abs(len(found) - int(told)) <= 3, sorted(found)


# --- the site -------------------------------------------------------------------------------------------------------


def test_pages_made_of_options_and_keys_are_current() -> None:
    old = [name for name, text in reference.pages().items() if page(name) != text]
    assert not old, "run scripts/docs"


def test_the_first_page_leads_to_every_other() -> None:
    named = set(re.findall(r"\]\(([\w./-]+\.md)\)", page("index.md")))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if path.parent.name != "decisions"}
    assert pages - named <= {"index.md", "plan.md"}


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.stem)
def test_every_command_that_a_page_names_exists(path: Path) -> None:
    assert unknown_calls(path.read_text(encoding="utf-8")) == []


# --- all pages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_is_one_short_page(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 40
    assert lines[0].startswith(f"# {path.name[:4]}: ")


def test_decisions_are_numbered_without_gaps() -> None:
    assert [path.name[:4] for path in DECISIONS] == [f"{n:04}" for n in range(1, len(DECISIONS) + 1)]


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.name)
def test_a_link_between_pages_leads_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        file = path if not target else (path.parent / target).resolve()
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}#{anchor}"


def test_every_number_of_the_protocol_has_its_unit_and_reason() -> None:
    body = ast.parse(Path(constants.__file__).read_text(encoding="utf-8")).body
    for node, after in pairwise([*body, ast.Pass()]):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(after, ast.Expr), f"{ast.unparse(node.target)} says nothing of itself"
