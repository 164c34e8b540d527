"""Two clients and a coordinator, processes of one program: ``smoke.py ZKC``. Ends with 0 if bytes arrived whole.

Standard library only, so that it can watch a program that lives in another environment.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 30
"""Seconds for any single step."""
PAYLOAD = os.urandom(300_000)


def main(zkc: str) -> None:
    """Register, send, receive, compare."""
    with tempfile.TemporaryDirectory(prefix="zkc-smoke-") as folder, contextlib.ExitStack() as running:
        homes = {name: Path(folder, name) for name in ("coordinator", "alice", "bob")}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ZKC_")}

        def run(home: str, *words: str, stdin: bytes = b"") -> bytes:
            done = subprocess.run(
                [zkc, "--home", str(homes[home]), *words], input=stdin, capture_output=True, timeout=PATIENCE,
                check=False, cwd=folder, env=environment,
            )
            print(f"{home}: zkc {' '.join(words)} -> {done.returncode} {done.stderr.decode(errors='replace').strip()}")
            if done.returncode:
                sys.exit(1)
            return done.stdout

        def start(home: str, *words: str) -> None:
            ready = running.enter_context(program([zkc, "--home", str(homes[home]), *words], folder, environment))
            print(f"{home}: zkc {' '.join(words)} -> {ready}")

        start("coordinator", "coordinator", "run", "--listen", "tcp://127.0.0.1:0")
        for name in ("alice", "bob"):
            invitation = run("coordinator", "coordinator", "invite", name)
            run(name, "join", "--invite-file", "-", "--accept", "all", stdin=invitation)
            start(name, "daemon")
            run(name, "status", "--wait", f"{PATIENCE}s")
        run("alice", "send", "bob", stdin=PAYLOAD)
        if run("bob", "recv", "-o", "-", "--wait", f"{PATIENCE}s") != PAYLOAD:
            sys.exit("what bob received is not what alice sent")
    print(f"{len(PAYLOAD)} bytes arrived whole")


@contextlib.contextmanager
def program(command: list[str], folder: str, environment: dict[str, str]) -> Iterator[str]:
    """A program that runs until the block ends; gives its ready line."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment) as process:
        hung = threading.Timer(PATIENCE, process.kill)
        hung.start()
        try:
            line = process.stdout.readline().strip() if process.stdout else ""
            if not line.startswith("ready "):
                sys.exit(f"{' '.join(command)} said {line!r} in place of its ready line")
            hung.cancel()
            yield line
            process.terminate()
            if process.wait(PATIENCE) != 0:
                sys.exit(f"{' '.join(command)} ended with {process.returncode} on SIGTERM")
        finally:
            hung.cancel()
            if process.poll() is None:
                process.kill()


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))
