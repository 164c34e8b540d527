"""How the cost grows: with the size, and with the number of transfers at once into one daemon; time and memory."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.bench import peers, plots
from scripts.bench.fleet import Pair, pair
from scripts.bench.plots import Curve, Panel
from scripts.bench.report import in_turns, table, timed

LARGEST: Final = 1 << 33
SIZES: Final = (1 << 10, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 24, 1 << 28, 1 << 30, LARGEST)
AT_ONCE: Final = (1, 2, 4, 8, 16, 32, 64)
TOTAL: Final = 1 << 29
"""Bytes, in as many files as there are transfers at once."""
_RESERVE: Final = 1 << 30
"""Bytes that stay free."""

OURS: Final = "zkc send"
SCP: Final = "scp, aes256-gcm"
BARE: Final = "bare PUSH/PULL, the limit"
PROCESSES: Final = ("zkc send", "bob's daemon", "coordinator")

_SAID: Final = """\
From the start of `zkc send` to its end, with the receipt. Memory is resident memory at its highest (VmHWM), of
processes that were started for this point alone. Transfers at once are as many commands, each with the start of a
process of its own."""
_UNITS: Final = {float(1 << 10 * power): f"1 {unit}" for power, unit in enumerate(("B", "KiB", "MiB", "GiB"))}
_SIZES: Final = _UNITS | {float(1 << 33): "8 GiB", float(1 << 15): "32 KiB", float(1 << 25): "32 MiB"}
_MEMORY: Final = (float(1 << 23), float(1 << 29))
_BYTES: Final = {size * times: f"{times} {word[2:]}" for size, word in _UNITS.items() for times in (1, 4, 16, 64, 256)}
_SECONDS: Final = {
    0.01: "10 ms", 0.03: "30 ms", 0.1: "100 ms", 0.3: "300 ms", 1.0: "1 s", 3.0: "3 s", 10.0: "10 s", 30.0: "30 s",
    100.0: "100 s",
}


@dataclass(frozen=True)
class Point:
    """What was measured with a fleet of its own, whose memory nothing before has raised."""

    at: int
    seconds: Mapping[str, float]
    """Medians."""
    peaks: Mapping[str, int]
    note: str = ""


def run(rounds: int, *, quick: bool) -> str:
    sizes, counts, total = (SIZES[1:6:2], AT_ONCE[::3], 1 << 24) if quick else (SIZES, AT_ONCE, TOTAL)
    by_size = [point for size in sizes if (point := _sized(size, rounds if size < LARGEST else 1)) is not None]
    by_count = [_at_once(count, total, rounds) for count in counts]
    return "\n\n".join([
        "## How the cost grows", _SAID, "### With the size", _picture_of_sizes(by_size, quick=quick),
        table(_head("size", by_size), [_row(f"{_size(point.at)}{point.note}", point, point.at) for point in by_size]),
        f"### With the number of transfers at once into one daemon, {_size(total)} in all",
        _picture_of_counts(by_count, total, quick=quick),
        table(_head("at once", by_count), [_row(str(point.at), point, total) for point in by_count]),
    ])


# --- measured ---------------------------------------------------------------------------------------------------------


def _sized(size: int, rounds: int) -> Point | None:
    """None where there is no room for it."""
    with (
        peers.memory_folder() as folder, _place(folder, size) as place, pair(folder) as ours,
        peers.sshd(folder) as ssh,
    ):
        if place is None:
            return None
        source, target = peers.random_file(place / "source", size), folder / "target"
        os.sync()  # what is still written to a disk would slow whoever comes first
        contest: dict[str, Callable[[], float]] = {
            OURS: lambda: _send(ours, lambda: ours.send(source)),
            BARE: lambda: _to(target, lambda: peers.push_pull(source, target)),
        }
        if ssh is not None:
            contest[SCP] = lambda: _to(target, lambda: ssh.copy(source, target))
        return _point(size, ours, contest, rounds, "" if place == folder else " (read from a disk)")


def _at_once(count: int, total: int, rounds: int) -> Point:
    with (
        peers.memory_folder() as folder, pair(folder) as ours, peers.sshd(folder) as ssh,
        ThreadPoolExecutor(count) as pool,
    ):
        sources = [peers.random_file(folder / f"source{number}", total // count) for number in range(count)]
        contest: dict[str, Callable[[], float]] = {
            OURS: lambda: _send(ours, lambda: timed(lambda: list(pool.map(ours.send, sources)))),
        }
        if ssh is not None:
            target = folder / "target"
            target.mkdir()
            contest[SCP] = lambda: timed(lambda: list(pool.map(
                lambda source: ssh.copy(source, target / source.name), sources
            )))
        return _point(count, ours, contest, rounds)


def _point(
    at: int, ours: Pair, contest: Mapping[str, Callable[[], float]], rounds: int, note: str = ""
) -> Point:
    times = in_turns(contest, rounds)
    return Point(at, {name: statistics.median(each) for name, each in times.items()}, dict(ours.peaks), note)


@contextmanager
def _place(folder: Path, size: int) -> Iterator[Path | None]:
    """Where a file of that size is to lie: beside what arrives, in memory, or else on a disk; None: nowhere."""
    room = _room(folder)
    if 2 * size + _RESERVE <= room:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="zkc-bench-") as disk:
        fits = size + _RESERVE <= min(room, shutil.disk_usage(disk).free)
        yield Path(disk) if fits else None


def _room(folder: Path) -> int:
    """Bytes that fit into a folder that lies in memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return min(free, shutil.disk_usage(folder).free)


def _send(ours: Pair, work: Callable[[], float]) -> float:
    took = work()
    ours.clear()
    return took


def _to(target: Path, work: Callable[[], float]) -> float:
    took = work()
    target.unlink()
    return took


# --- told -------------------------------------------------------------------------------------------------------------


def _picture_of_sizes(points: Sequence[Point], *, quick: bool) -> str:
    held = Curve("the file itself", [(point.at, point.at) for point in points], reference=True)
    figure = plots.panels([_times(points), _memory(points, held)], "size of the file (log scale)", _SIZES)
    return plots.save(
        figure, "growth-size", "Time and memory over the size of a file: time grows with it, beside scp and bare "
        "PUSH/PULL; memory does not", quick=quick,
    )


def _picture_of_counts(points: Sequence[Point], total: int, *, quick: bool) -> str:
    once = Curve("zkc send of all in one", [(point.at, points[0].seconds[OURS]) for point in points], reference=True)
    figure = plots.panels(
        [_times(points, once), _memory(points)], f"transfers at once, {_size(total)} in all (log scale)",
        {float(count): str(count) for count in AT_ONCE},
    )
    return plots.save(
        figure, "growth-count", "Time and memory over the number of transfers at once into one daemon, beside scp",
        quick=quick,
    )


def _times(points: Sequence[Point], *more: Curve) -> Panel:
    curves = [
        Curve(name, [(point.at, point.seconds[name]) for point in points], reference=name != OURS)
        for name in points[0].seconds
    ]
    return Panel("Time", "time to the receipt (log scale)", [*curves, *more], _SECONDS)


def _memory(points: Sequence[Point], *more: Curve) -> Panel:
    curves = [Curve(name, [(point.at, point.peaks[name]) for point in points]) for name in PROCESSES]
    return Panel("Memory", "resident memory at its highest (log scale)", [*curves, *more], _BYTES, _MEMORY)


def _head(what: str, points: Sequence[Point]) -> list[str]:
    return [what, *points[0].seconds, f"rate of {OURS}", *(f"memory: {name}" for name in PROCESSES)]


def _row(what: str, point: Point, size: int) -> list[str]:
    times = [f"{seconds * 1e3:,.0f} ms" for seconds in point.seconds.values()]
    peaks = [f"{point.peaks[name] / 2**20:.0f} MiB" for name in PROCESSES]
    rate = size / point.seconds[OURS]
    return [what, *times, f"{rate / 1e9:.2f} GB/s" if rate > 1e8 else f"{rate / 1e6:.2f} MB/s", *peaks]


def _size(size: int) -> str:
    power = min(3, (size.bit_length() - 1) // 10)
    return f"{size >> 10 * power:,} {('B', 'KiB', 'MiB', 'GiB')[power]}"
