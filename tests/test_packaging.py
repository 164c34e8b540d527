"""What is installed elsewhere works there: the wheel, without rights or desktop, and the container's recipe."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import tomli

from scripts.lib import manuals
from scripts.lib.readme import unknown_calls
from tests.conftest import SESSION
from tests.support.waiting import DEADLINE
from zkc import testing
from zkc.testing import Fleet

TOP = Path(__file__).parents[1]
RECIPE = TOP / "config" / "Containerfile"
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38


# --- the recipe -----------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the recipe with what follows it, continued lines joined."""
    text = re.sub(r"^#.*\n", "", RECIPE.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Name -> its instructions, after those of the stage that it begins from."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            found[name] = list(found.get(base, [("FROM", base)]))
        else:
            found[name].append((word, rest))
    return found


def copied() -> list[str]:
    """What comes from the checkout."""
    return [each for word, rest in stages()["build"] if word == "COPY" for each in rest.split()[:-1]]


def last(stage: str, word: str) -> str:
    return [rest for each, rest in stages()[stage] if each == word][-1]


def test_the_container_is_built_of_files_that_exist() -> None:
    assert copied()
    assert [each for each in copied() if not (TOP / each).exists()] == []
    taken = [each for _, rest in instructions() for each in re.findall(r"\bfrom=(\w+)", rest)]
    assert taken
    assert [each for each in taken if each not in stages()] == []


def test_the_container_begins_with_a_python_that_zkc_runs_on() -> None:
    (image,) = {rest for own in stages().values() for word, rest in own if word == "FROM"}
    version = re.fullmatch(r"docker\.io/library/python:(\d+\.\d+)-slim", image)
    assert version is not None
    project = tomli.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Programming Language :: Python :: {version[1]}" in project["classifiers"]


@pytest.mark.parametrize(("stage", "status"), [("coordinator", "zkc coordinator status"), ("daemon", "zkc status")])
def test_the_container_runs_commands_that_exist_as_somebody_without_rights(stage: str, status: str) -> None:
    program = [*json.loads(last(stage, "ENTRYPOINT")), *json.loads(last(stage, "CMD"))]
    health = json.loads(last(stage, "HEALTHCHECK").partition("CMD ")[2])
    assert " ".join(health) == status
    for words in (program, health):
        assert words[0] == "zkc"
        assert unknown_calls(f"`{' '.join(words)}`") == []
    assert int(last(stage, "USER").partition(":")[0]) > 0
    home = last(stage, "ENV").removeprefix("ZKC_HOME=")
    assert last(stage, "VOLUME") == home
    made = last(stage, "RUN")
    assert f"--home-dir {home} " in made
    assert f"--uid {last(stage, 'USER').partition(':')[0]} " in made
    assert f"chmod 700 {home}" in made, "a home that others can look into is refused"


def test_a_recipe_with_a_command_that_does_not_exist_would_be_found() -> None:
    assert unknown_calls("`zkc coordinator fly`") != []


# --- the wheel ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, built of what the container's recipe copies, and nothing of the checkout.

    What zkc depends on comes from the environment of the tests (scripts/check installs that too).
    """
    folder = tmp_path_factory.mktemp("wheel")
    source, venv = folder / "source", folder / "venv"
    source.mkdir()
    for each in copied():
        if (TOP / each).is_dir():
            shutil.copytree(TOP / each, source / each, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(TOP / each, source / each)
    python = [sys.executable, "-P", "-m"]
    for command in (
        [*python, "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)],
        [*python, "venv", "--without-pip", str(venv)],
    ):
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
    (wheel,) = folder.glob("zkc-*.whl")
    subprocess.run(
        [
            *python, "pip", "--python", str(venv / "bin" / "python"), "install", "--quiet", "--no-deps", "--no-index",
            "--disable-pip-version-check", str(wheel),
        ],
        check=True, capture_output=True, cwd=folder,
    )
    (packages,) = (venv / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    shutil.rmtree(source)
    return venv


def give_up_rights() -> None:
    """From here on this process, and whatever it starts, has no capability, be it root or not."""
    libc = ctypes.CDLL(None)
    for number in range(64):
        libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0)


WITHOUT_RIGHTS = (
    "import os, sys\n"
    "from tests.test_packaging import give_up_rights\n"
    "give_up_rights()\n"
    "del os.environ['PYTHONPATH']\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)


@pytest.mark.claims("F4")
def test_the_wheel_sends_and_receives_without_rights_desktop_or_terminal(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coordinator, two daemons and every command from the installed wheel, with an environment that has nothing."""
    for name in set(os.environ) - {SESSION}:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(TOP))
    command = (sys.executable, "-P", "-c", WITHOUT_RIGHTS, str(installed / "bin" / "zkc"))
    monkeypatch.setattr(testing, "_ZKC", command)
    with Fleet("bob", folder=tmp_path / "fleet") as fleet:
        invited = fleet.zkc("coordinator", "coordinator", "invite", "alice")
        assert invited.code == 0, invited.err
        joined = fleet.zkc("alice", "join", "--invite-file", "-", stdin=invited.out)
        assert joined.code == 0, joined.err
        fleet.start_daemon("alice")
        sent = fleet.zkc("alice", "send", "bob", "--name", "word", "--json", stdin=b"from a wheel")
        assert sent.code == 0, sent.err
        receipt = next(each["receipt"] for each in sent.events if each["event"] == "delivered")
        assert fleet.zkc("alice", "receipt", "verify", receipt).code == 0
        received = fleet.zkc("bob", "recv", "-o", "-", "--wait", f"{DEADLINE:g}s")
        assert (received.code, received.out) == (0, b"from a wheel")
        for name in ("coordinator", "alice", "bob"):
            process = Path(f"/proc/{fleet.program(name).process.pid}")
            assert str(installed) in (process / "cmdline").read_text()
            (rights,) = re.findall(r"^CapEff:\s*(\w+)$", (process / "status").read_text(), re.MULTILINE)
            assert int(rights, 16) == 0


def test_the_wheel_has_the_man_pages(installed: Path) -> None:
    made = {f"man{name[-1]}/{name}" for name in manuals.pages()}
    folder = installed / "share" / "man"
    assert {str(page.relative_to(folder)) for page in folder.glob("*/*")} == made


def test_the_wheel_is_used_from_where_it_was_installed(installed: Path) -> None:
    where = "import zkc, zmq; print(zkc.__file__)"
    done = subprocess.run(
        [str(installed / "bin" / "python"), "-P", "-c", where], capture_output=True, text=True, check=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.startswith(str(installed))
