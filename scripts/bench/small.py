"""Three bytes: what a command costs from its start to its end, receipt included."""

from __future__ import annotations

from collections.abc import Callable

from scripts.bench import peers
from scripts.bench.fleet import pair
from scripts.bench.report import compared, in_turns

OURS = "zkc send bob < hi"


def run(rounds: int, *, quick: bool) -> str:
    with (
        peers.memory_folder() as folder, pair(folder) as ours, peers.sshd(folder) as ssh,
        peers.wormhole(folder) as wormhole,
    ):
        source = folder / "hi"
        source.write_bytes(b"hi\n")
        contest: dict[str, Callable[[], float]] = {OURS: lambda: ours.send(stdin=source)}
        if ssh is not None:
            contest["scp of 3 bytes"] = lambda: ssh.copy(source, folder / "target")
        if wormhole is not None:
            contest["magic-wormhole of 3 bytes"] = lambda: wormhole.copy(source, folder / "target")
        return f"## Three bytes, until the command ends\n\n{compared(in_turns(contest, 3 * rounds), OURS)}"
