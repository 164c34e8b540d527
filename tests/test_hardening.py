"""What a program asks of the system for itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.program import PATIENCE

ASK = """
import resource, sys
from zkc.hardening import claim_descriptors
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
allowed = claim_descriptors(wanted)
print(allowed, *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


CRASH = """
import ctypes
from zkc.hardening import protect_memory
first = open("first", "ab")
protect_memory()
def crash(secret):
    ctypes.string_at(0)
crash("kept to itself")
"""


@pytest.mark.parametrize("has_stderr", [True, False])
def test_a_crash_tells_where_it_was_and_no_value(has_stderr: bool, tmp_path: Path) -> None:
    (tmp_path / "crash.py").write_text(CRASH, encoding="utf-8")
    # Without stderr the first file that is opened gets its number.
    line = 'exec "$0" crash.py' if has_stderr else 'exec "$0" crash.py 2>&-'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == -signal.SIGSEGV
    assert "kept to itself" not in done.stderr
    assert ("in crash" in done.stderr) is has_stderr
    assert (tmp_path / "first").read_bytes() == b""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "told"),
    [(64, 512, 256, "256 256 512"), (64, 512, 4096, "512 512 512"), (256, 512, 100, "256 256 512")],
    ids=["raised", "up to the hard limit", "never lowered"],
)
def test_open_files_are_claimed_as_far_as_the_system_gives_them(soft: int, hard: int, wanted: int, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, *map(str, (soft, hard, wanted))], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == told
