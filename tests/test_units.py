"""The units of config/systemd/: systemd takes them, they allow little, and zkc works with what they allow."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import sandbox
from zkc import testing
from zkc.client.passphrase import CREDENTIAL
from zkc.testing import Fleet

TOP = Path(__file__).parents[1]
UNITS = sorted((TOP / "config" / "systemd").glob("*.service"))
SYSTEM_UNITS = [unit for unit in UNITS if unit.stem != "zkc"]
PAGE = TOP / "docs" / "operations.md"
SLACK = 0.3
"""By how much versions of systemd differ in what they make of the same unit."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


def installed(unit: Path, folder: Path) -> Path:
    """The unit as an instance of a name, where its program is."""
    text = unit.read_text(encoding="utf-8")
    program = Path(sys.executable).with_name("zkc")
    changed = re.sub(r"^ExecStart=\S+", f"ExecStart={program}", text, count=1, flags=re.MULTILINE)
    assert changed != text
    to = folder / unit.name.replace("@", "@bob")
    to.write_text(changed, encoding="utf-8")
    return to


def analyze(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "SYSTEMD_COLORS": "0", "LC_ALL": "C"}
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *words], capture_output=True, text=True, check=False, env=env, cwd=folder
    )


def test_there_is_a_unit_for_each_program() -> None:
    assert [unit.name for unit in UNITS] == ["zkc-coordinator.service", "zkc.service", "zkc@.service"]


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_the_unit_without_a_word(unit: Path, tmp_path: Path) -> None:
    whose = "--user" if unit.stem == "zkc" else "--system"
    done = analyze("verify", whose, "--man=no", str(installed(unit, tmp_path)), folder=tmp_path)
    said = [line for line in (done.stdout + done.stderr).splitlines() if unit.stem.strip("@") in line]
    assert (done.returncode, said) == (0, [])


@needs_systemd
def test_systemd_would_find_a_mistake_in_a_unit(tmp_path: Path) -> None:
    """The other test can fail."""
    unit = tmp_path / "zkc-coordinator.service"
    unit.write_text("[Service]\nType=notified\nExecStart=/bin/true\n", encoding="utf-8")
    done = analyze("verify", "--man=no", str(unit), folder=tmp_path)
    assert "zkc-coordinator" in done.stdout + done.stderr


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_as_little_exposed_as_the_page_says(unit: Path, tmp_path: Path) -> None:
    row = re.compile(rf"^\| `{re.escape(unit.name)}` \|.*\| (\d+\.\d) \|$", re.MULTILINE)
    (told,) = row.findall(PAGE.read_text(encoding="utf-8"))
    whose = "--user" if unit.stem == "zkc" else "--system"
    done = analyze("security", whose, "--offline=yes", str(installed(unit, tmp_path)), folder=tmp_path)
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) <= float(told) + SLACK


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_asks_for_what_zkc_says_and_for_nothing_that_it_does_not(unit: Path) -> None:
    text, told = unit.read_text(encoding="utf-8"), sandbox.settings(unit)
    assert told["Type"] == ["notify"]
    assert told["ExecReload"] == ["/bin/sh -c 'kill -HUP $MAINPID'"], "a minimal Debian has no program kill"
    assert float(told["WatchdogSec"][0]) >= 30
    (start,) = told["ExecStart"]
    assert start.split(maxsplit=1)[1] in {"daemon", "coordinator run"}
    if start.endswith("daemon"):
        assert f"LoadCredential={CREDENTIAL}:" in text


@pytest.mark.parametrize("unit", SYSTEM_UNITS, ids=lambda unit: unit.name)
def test_a_system_unit_keeps_its_home_where_it_may_write(unit: Path) -> None:
    told = sandbox.settings(unit)
    (state,) = told["StateDirectory"]
    assert told["Environment"] == [f"ZKC_HOME=/var/lib/{state}"]
    assert told["StateDirectoryMode"] == ["0700"]
    assert told["ProtectSystem"] == ["strict"]


@pytest.mark.skipif(bool(sandbox.missing()), reason=f"no {sandbox.missing()} here")
def test_coordinator_and_daemons_work_with_the_system_calls_that_their_units_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes, with the kernel refusing everything else: transfers, folders, a reload, new keys."""
    units = {(unit.stem, tuple(sandbox.settings(unit)["SystemCallFilter"])) for unit in UNITS}
    assert len({filters for _, filters in units}) == 1
    command = (sys.executable, str(Path(sandbox.__file__)), str(UNITS[0]), sys.executable, "-m", "zkc")
    monkeypatch.setattr(testing, "_ZKC", command)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one").write_bytes(os.urandom(1 << 20))
    with Fleet("alice", "bob", folder=tmp_path / "fleet") as fleet:
        monkeypatch.undo()
        for words in (["-m", "hello"], [str(tmp_path / "photos")]):
            assert fleet.zkc("alice", "send", "bob", *words).code == 0
        assert fleet.zkc("bob", "recv", "-o", f"{tmp_path}/got/", "--from", "alice", "--name", "photos").code == 0
        assert (tmp_path / "got/photos/one").read_bytes() == (tmp_path / "photos/one").read_bytes()
        assert fleet.zkc("alice", "rotate").code == 0
        log = fleet.program("alice").log.read_text()
    assert "defect" not in log
    assert "failed" not in log


@pytest.mark.skipif(bool(sandbox.missing()), reason=f"no {sandbox.missing()} here")
def test_what_a_unit_does_not_allow_is_refused() -> None:
    """The sandbox of the tests is one."""
    tries = (
        "import mmap, os, socket\n"
        "for number, act in enumerate((\n"
        "    lambda: os.chroot('/'), lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM),\n"
        "    lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),\n"
        ")):\n"
        "    try:\n"
        "        act()\n"
        "    except PermissionError:\n"
        "        print(number)\n"
        "socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()\n"
        "mmap.mmap(-1, 4096).close()\n"
    )
    done = subprocess.run(
        [sys.executable, sandbox.__file__, str(UNITS[0]), sys.executable, "-c", tries], capture_output=True, text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "1", "2"]
