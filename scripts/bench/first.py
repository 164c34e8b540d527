"""How long it takes until something arrives: the first byte of a pipe."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from scripts.bench import peers
from scripts.bench.fleet import Pair, pair
from scripts.bench.peers import SECONDS
from scripts.bench.report import compared, in_turns
from zkc.api import SyncClient

FULL: Final = bytes(1 << 17)
"""More than a command hands to its daemon whole: what `tar` has written before anybody has read."""
LINE: Final = b"hi\n"
OURS: Final = "zkc send bob < a full pipe"
_SAID: Final = """\
From the start of the command, or from the call of a `zkc.Client` in a process that runs, until the first byte leaves
`zkc recv --live -o -`, which waits for it."""


def run(rounds: int, *, quick: bool) -> str:
    with peers.memory_folder() as folder, pair(folder) as ours, peers.sshd(folder) as ssh:
        alice = ours.fleet.client("alice")
        contest: dict[str, Callable[[], float]] = {
            OURS: lambda: _by_command(ours, FULL),
            "zkc send bob < a pipe with a line, that stays open": lambda: _by_command(ours, LINE),
            "zkc send bob < a pipe with a line, that ends": lambda: _by_command(ours, LINE, ends=True),
            "zkc.Client, a full pipe": lambda: _by_client(ours, alice, FULL),
            "zkc.Client, a pipe with a line, that stays open": lambda: _by_client(ours, alice, LINE),
            "zkc.Client, three bytes": lambda: _of_bytes(ours, alice),
        }
        if ssh is not None:
            contest["ssh HOST cat < a full pipe"] = lambda: _by_ssh(ssh, FULL)
            contest["ssh HOST cat < a pipe with a line, that stays open"] = lambda: _by_ssh(ssh, LINE)
        times = in_turns(contest, rounds if quick else 3 * rounds)
        return f"## The first byte of a pipe\n\n{_SAID}\n\n{compared(times, OURS)}"


@dataclass(frozen=True)
class _Pipes:
    """The sender's, which has ``payload`` in it, and the recipient's."""

    payload: bytes
    source: int
    feed: int
    output: int
    drain: int

    def first_byte(self, send: Callable[[], object]) -> float:
        """Seconds from the start of ``send`` until there is something to read; then the pipe ends, and so does all."""
        with ThreadPoolExecutor(1) as pool:
            began = perf_counter()
            sending = pool.submit(send)
            left = len(self.payload) - len(self._read(1))
            took = perf_counter() - began
            os.close(self.feed)
            while left:
                left -= len(self._read(left))
            sending.result()
        return took

    def _read(self, most: int) -> bytes:
        if not select.select([self.output], [], [], SECONDS)[0]:
            raise TimeoutError("nothing arrives")
        return os.read(self.output, most)


@contextmanager
def _pipes(payload: bytes) -> Iterator[_Pipes]:
    """The sender's stays open until something has arrived."""
    source, feed = os.pipe()
    output, drain = os.pipe()
    fcntl.fcntl(feed, fcntl.F_SETPIPE_SZ, 2 * len(FULL))
    os.write(feed, payload)
    try:
        yield _Pipes(payload, source, feed, output, drain)
    finally:
        for descriptor in (source, output, drain):
            os.close(descriptor)


def _by_command(ours: Pair, payload: bytes, *, ends: bool = False) -> float:
    with _pipes(payload) as pipes, ours.live(pipes.drain):
        if ends:
            _end(pipes)
        return pipes.first_byte(lambda: ours.send(stdin=pipes.source))


def _end(pipes: _Pipes) -> None:
    """Its writer goes; the descriptor leads nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, pipes.feed)
    os.close(nowhere)


def _by_client(ours: Pair, alice: SyncClient, payload: bytes) -> float:
    with _pipes(payload) as pipes, ours.live(pipes.drain), os.fdopen(os.dup(pipes.source), "rb") as stream:
        return pipes.first_byte(lambda: alice.send("bob", stream))


def _of_bytes(ours: Pair, alice: SyncClient) -> float:
    with _pipes(LINE) as pipes, ours.live(pipes.drain):
        return pipes.first_byte(lambda: alice.send("bob", LINE))


def _by_ssh(ssh: peers.Ssh, payload: bytes) -> float:
    with _pipes(payload) as pipes:
        command = ssh.command("cat")
        return pipes.first_byte(
            lambda: subprocess.run(command, stdin=pipes.source, stdout=pipes.drain, check=True)
        )
