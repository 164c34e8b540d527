"""Runs ``zkc`` as a process, the way a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[2]
PATIENCE = 60
"""Seconds; a command that takes longer hangs."""


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our own (tests/conftest.py has cleaned it), with the checkout importable."""
    return os.environ | {"PYTHONPATH": str(TOP)} | dict(changes or {})


def zkc(*words: str, env: Mapping[str, str] | None = None, stdin: str = "", cwd: Path | None = None) -> Done:
    """``zkc WORDS`` to its end."""
    return finished([sys.executable, "-m", "zkc", *words], env=env, stdin=stdin, cwd=cwd)


def finished(
    command: list[str], *, env: Mapping[str, str] | None = None, stdin: str = "", cwd: Path | None = None
) -> Done:
    """``command`` to its end."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, encoding="utf-8", errors="surrogateescape", check=False,
        timeout=PATIENCE, env=environment(env), cwd=cwd,
    )
    return Done(done.returncode, done.stdout, done.stderr)
