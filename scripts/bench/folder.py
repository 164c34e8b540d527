"""Many small files: a folder of them to a verified receipt, and on to its place in the recipient's file system."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from scripts.bench import peers
from scripts.bench.fleet import Pair, pair
from scripts.bench.report import compared, in_turns, timed

RECEIPT = "zkc send FOLDER, to the receipt"
UNPACKED = "zkc send FOLDER, then zkc recv -o DIR"


def run(rounds: int, *, quick: bool) -> str:
    folders, size = (10 if quick else 100), 4096
    with peers.memory_folder() as folder, pair(folder) as ours, peers.sshd(folder) as ssh:
        source, target = _many(folder / "source", folders, size), folder / "target"
        contest: dict[str, Callable[[], float]] = {
            UNPACKED: lambda: _fresh(target, lambda: ours.send(source) + ours.save(target)),
            RECEIPT: lambda: _send(ours, source),
        }
        if ssh is not None:
            contest["tar, ssh, tar"] = lambda: _tar(ssh, source, target)
            contest["scp -r"] = lambda: _fresh(target, lambda: ssh.copy(source, target, "-r"))
            if shutil.which("rsync"):
                contest["rsync -a"] = lambda: _rsync(ssh, source, target)
        times = in_turns(contest, rounds)
        head = f"## {100 * folders:,} files of 4 KiB in {folders} folders"
        return f"{head}\n\n{compared(times, UNPACKED, 100 * folders * size)}\n\n{ours.memory()}"


def _many(place: Path, folders: int, size: int) -> Path:
    for at in range(folders):
        folder = place / f"{at:03}"
        folder.mkdir(parents=True)
        for number in range(100):
            (folder / f"{number:03}.dat").write_bytes(os.urandom(size))
    return place


def _fresh(target: Path, work: Callable[[], float]) -> float:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    return work()


def _send(ours: Pair, source: Path) -> float:
    took = ours.send(source)
    ours.clear()
    return took


def _tar(ssh: peers.Ssh, source: Path, target: Path) -> float:
    remote = " ".join(ssh.command("tar", "x", "-C", str(target)))
    command = f"tar c -C {source.parent} {source.name} | {remote}"
    return _fresh(target, lambda: timed(lambda: peers.shell(command)))


def _rsync(ssh: peers.Ssh, source: Path, target: Path) -> float:
    command = ("rsync", "-a", "-e", " ".join(ssh.command()[:-1]), source, f"{peers.HOST}:{target}")
    return _fresh(target, lambda: timed(lambda: peers.run(*command)))
