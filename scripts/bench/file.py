"""A large file to a verified receipt."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scripts.bench import peers
from scripts.bench.fleet import pair
from scripts.bench.report import compared, in_turns, timed

OURS = "zkc send FILE"


def run(rounds: int, *, quick: bool) -> str:
    size = 1 << (26 if quick else 30)
    with (
        peers.memory_folder() as folder, pair(folder) as ours, peers.sshd(folder) as ssh,
        peers.wormhole(folder) as wormhole,
    ):
        source, target = peers.random_file(folder / "source", size), folder / "target"
        contest: dict[str, Callable[[], float]] = {OURS: lambda: ours.send(source)}
        contest["bare PUSH/PULL, the limit"] = lambda: peers.push_pull(source, target)
        contest["CURVE PUSH/PULL"] = lambda: peers.push_pull(source, target, curve=True)
        contest["cp"] = lambda: _cp(source, target)
        if ssh is not None:
            contest["scp, aes256-gcm"] = lambda: ssh.copy(source, target)
        if (age := peers.age(folder)) is not None:
            contest["age, ncat, age -d"] = lambda: age.pipe(f"cat {source}", f"cat > {target}")
        if wormhole is not None:
            contest["magic-wormhole"] = lambda: wormhole.copy(source, target)

        def on_equal_terms(work: Callable[[], float]) -> float:
            ours.clear()
            peers.warm_memory(target, 2 * size)
            return work()

        times = in_turns({name: partial(on_equal_terms, work) for name, work in contest.items()}, rounds)
        return f"## {size >> 20} MiB file, to a verified receipt\n\n{compared(times, OURS, size)}\n\n{ours.memory()}"


def _cp(source: Path, target: Path) -> float:
    target.unlink(missing_ok=True)
    return timed(lambda: shutil.copyfile(source, target))
