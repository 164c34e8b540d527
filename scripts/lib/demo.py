"""The whole flow with real processes: ``demo.py ZKC FOLDER``. Ends with 0 if bob has what alice sent, byte for byte.

What is sent is standard input, or FOLDER as a tar where standard input is a terminal or empty. Standard library only,
so that it can watch a program that lives in another environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 60
"""Seconds for any single step."""
BEGAN = time.monotonic()


def main(zkc: str, folder: str) -> None:
    """Start, register, send, receive, compare, end."""
    payload, what = read_payload(Path(folder))
    with tempfile.TemporaryDirectory(prefix="zkc-demo-") as work, contextlib.ExitStack() as running:
        demo = Demo(zkc, Path(work))
        ready = demo.start(running, "coordinator", "coordinator", "run", "--listen", "tcp://127.0.0.1:0")
        tell("a coordinator starts", ready)
        for name in ("alice", "bob"):
            invitation = demo.run("coordinator", "coordinator", "invite", name)
            demo.run(name, "join", "--invite-file", "-", "--accept", "all", stdin=invitation)
            tell(f"{name} is invited and registers: temporary keys, then permanent ones; the temporary ones are erased")
            tell(f"{name}'s daemon starts", demo.start(running, name, "daemon"))
            demo.run(name, "status", "--wait", f"{PATIENCE}s")
        tell(f"alice sends {what}")
        for line in demo.run("alice", "send", "bob", "--json", stdin=payload).splitlines():
            event = json.loads(line)
            if event["event"] == "granted":
                tell("bob agrees", f"key made by the {event['key_source']}; {event['path']}")
            elif event["event"] == "delivered":
                what = f"{event['bytes']} bytes, {event['digest'][:23]}…, signed receipt, {event['seconds']:.3f} s"
                tell("bob acknowledges", what)
        received = demo.run("bob", "recv", "-o", "-", "--wait", f"{PATIENCE}s")
        if received != payload:
            sys.exit("what bob received is NOT what alice sent")
        tell("bob reads it", f"sha256 {hashlib.sha256(received).hexdigest()[:16]}… on both sides")
    tell("all processes have ended, the folder is removed")


class Demo:
    """``zkc`` in the homes of a temporary folder."""

    def __init__(self, zkc: str, folder: Path) -> None:
        self._zkc = zkc
        self._folder = folder
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("ZKC_")}

    def run(self, home: str, *words: str, stdin: bytes = b"") -> bytes:
        """A command to its end; what it wrote to stdout."""
        done = subprocess.run(
            self._command(home, words), input=stdin, capture_output=True, timeout=PATIENCE, check=False,
            cwd=self._folder, env=self._environment,
        )
        if done.returncode:
            told = done.stderr.decode(errors="replace")
            sys.exit(f"{home}: zkc {' '.join(words)} ended with {done.returncode}: {told}")
        return done.stdout

    def start(self, running: contextlib.ExitStack, home: str, *words: str) -> str:
        """A program that runs until ``running`` ends; its ready line."""
        return running.enter_context(self._program(home, words))

    @contextlib.contextmanager
    def _program(self, home: str, words: tuple[str, ...]) -> Iterator[str]:
        log = self._folder / f"{home}.log"
        with log.open("wb") as errors, subprocess.Popen(
            self._command(home, words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            cwd=self._folder, env=self._environment,
        ) as process:
            hung = threading.Timer(PATIENCE, process.kill)
            hung.start()
            try:
                line = process.stdout.readline().decode().strip() if process.stdout else ""
                hung.cancel()
                if not line.startswith("ready "):
                    sys.exit(f"{home}: zkc {' '.join(words)} did not start: {log.read_text(errors='replace')}")
                yield line
                process.terminate()
                if process.wait(PATIENCE) != 0:
                    sys.exit(f"{home}: zkc {' '.join(words)} ended with {process.returncode} on SIGTERM")
            finally:
                hung.cancel()
                if process.poll() is None:
                    process.kill()

    def _command(self, home: str, words: tuple[str, ...]) -> list[str]:
        return [self._zkc, "--home", str(self._folder / home), *words]


def read_payload(folder: Path) -> tuple[bytes, str]:
    """Standard input where there is something to read, else ``folder`` as a tar."""
    mode = os.fstat(0).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISREG(mode):
        payload = sys.stdin.buffer.read()
        if payload:
            return payload, f"{len(payload)} bytes from standard input through a pipe"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(folder, arcname=folder.name)
    return packed.getvalue(), f"the folder {folder.name} as a tar of {packed.tell()} bytes through a pipe"


def tell(step: str, detail: str = "") -> None:
    """One line of what happened, with the time since the start."""
    print(f"{time.monotonic() - BEGAN:6.2f} s  {step}" + (f": {detail}" if detail else ""), flush=True)


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]), sys.argv[2])
