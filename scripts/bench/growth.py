"""How the cost grows: with the size, and with the number of transfers at once into one daemon."""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.bench import peers
from scripts.bench.fleet import Pair, pair
from scripts.bench.report import table, timed

SIZES = (1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 28, 1 << 30, 1 << 33)
AT_ONCE = (1, 2, 4, 8, 16, 32, 64)
TOTAL = 1 << 29
"""Bytes, in as many files as there are transfers at once."""


def run(rounds: int, *, quick: bool) -> str:
    sizes, total = (SIZES[:4], 1 << 24) if quick else (SIZES, TOTAL)
    with peers.memory_folder() as folder, pair(folder) as ours:
        by_size = [_sized(ours, folder, size, rounds if size < 1 << 33 else 1) for size in sizes]
        by_count = [_at_once(ours, folder, count, total, rounds) for count in AT_ONCE]
        return "\n\n".join([
            "## How the cost grows", table(["size", "median", "rate"], by_size),
            table(["transfers at once", f"{total >> 20} MiB in all", "rate"], by_count), ours.memory(),
        ])


def _sized(ours: Pair, folder: Path, size: int, rounds: int) -> list[str]:
    source = peers.random_file(folder / "source", size)
    times = []
    for _ in range(rounds):
        times.append(ours.send(source))
        ours.clear()
    source.unlink()
    return _row(f"{size:,}", statistics.median(times), size)


def _at_once(ours: Pair, folder: Path, count: int, total: int, rounds: int) -> list[str]:
    sources = [peers.random_file(folder / f"source{number}", total // count) for number in range(count)]
    times = []
    with ThreadPoolExecutor(count) as pool:
        for _ in range(rounds):
            times.append(timed(lambda: list(pool.map(ours.send, sources))))
            ours.clear()
    for source in sources:
        source.unlink()
    return _row(str(count), statistics.median(times), total)


def _row(what: str, seconds: float, size: int) -> list[str]:
    return [what, f"{seconds * 1e3:,.0f} ms", f"{size / seconds / 1e9:.3f} GB/s"]
