"""From pipe to pipe, length unknown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scripts.bench import peers
from scripts.bench.fleet import Pair, pair
from scripts.bench.report import compared, in_turns, timed

OURS = "zkc send, zkc recv --live"
SPOOLED = "zkc send, inbox, zkc recv -o -"


def run(rounds: int, *, quick: bool) -> str:
    size = 1 << (26 if quick else 30)
    with peers.memory_folder() as folder, pair(folder) as ours, peers.sshd(folder) as ssh:
        source = peers.random_file(folder / "source", size)
        contest: dict[str, Callable[[], float]] = {
            OURS: lambda: _through(ours, source, live=True),
            SPOOLED: lambda: _through(ours, source, live=False),
            "bare PUSH/PULL, the limit": lambda: peers.push_pull_pipes(f"cat {source}", "cat > /dev/null"),
        }
        if ssh is not None:
            contest["ssh HOST cat, aes256-gcm"] = lambda: timed(lambda: peers.shell(
                f"cat {source} | {' '.join(ssh.command('cat'))} | cat > /dev/null"
            ))
        if (age := peers.age(folder)) is not None:
            contest["age, ncat, age -d"] = lambda: age.pipe(f"cat {source}", "cat > /dev/null")
        times = in_turns(contest, rounds)
        return f"## {size >> 20} MiB from pipe to pipe\n\n{compared(times, OURS, size)}\n\n{ours.memory()}"


def _through(ours: Pair, source: Path, *, live: bool) -> float:
    return ours.pipe(["cat", source], ["sh", "-c", "cat > /dev/null"], live=live)
