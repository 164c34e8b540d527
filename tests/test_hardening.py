"""What a program asks of the system for itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASK = """
import resource, sys
from zkc.hardening import claim_descriptors
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
allowed = claim_descriptors(wanted)
print(allowed, *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


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
