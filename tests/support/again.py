"""``zkc`` again and again in one process: for tests of hundreds of commands, most of whose time would be imports.

Each command has its own home, descriptors 1 and 2 and exit code, as in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.program import environment
from zkc.testing import Done


class Again:
    """One such process. Use as a context manager; a command that crashes it ends with the process's own code."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.again"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment(env),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def zkc(self, home: Path, *words: str) -> Done:
        """``zkc WORDS`` in that home, to its end."""
        self.start(home, *words)
        return self.finish()

    def start(self, home: Path, *words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(home), words]).encode() + b"\n")
        self._process.stdin.flush()

    def finish(self) -> Done:
        """What came of the command that was started."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return Done(self._process.wait(), b"", b"")
        code, out, err = json.loads(line)
        return Done(code, bytes.fromhex(out), bytes.fromhex(err))


def _serve() -> None:
    from zkc.ui.cli.main import main

    answers = os.fdopen(os.dup(1), "wb")
    for line in sys.stdin.buffer:
        home, words = json.loads(line)
        os.environ["ZKC_HOME"] = home
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            for number, file in ((1, out), (2, err)):
                os.dup2(file.fileno(), number)
            code = main(words)
            sys.stdout.flush()
            sys.stderr.flush()
            told = []
            for file in (out, err):
                file.seek(0)
                told.append(file.read().hex())
        answers.write(json.dumps([code, *told]).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
