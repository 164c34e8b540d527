"""Times as tables, and the tables' place in docs/benchmarks.md."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter, strftime
from typing import Final

PAGE: Final = Path(__file__).parents[2] / "docs" / "benchmarks.md"
_HEAD: Final = """# Benchmarks

Made by `scripts/bench/run`. What is compared ran in turns, within minutes, on one machine; times are medians, and a
ratio is the median of the rounds' ratios. Quote ratios: the machines are shared, and their seconds differ from day to
day.
"""


def in_turns(contest: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each measured of itself, one of each in every round: what slows the machine for a while slows all."""
    for work in contest.values():
        work()  # imports, page cache
    turns = [{name: work() for name, work in contest.items()} for _ in range(rounds)]
    return {name: [turn[name] for turn in turns] for name in contest}


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    began = perf_counter()
    work()
    return perf_counter() - began


def ratios(times: Mapping[str, Sequence[float]], ours: str) -> dict[str, float]:
    """For each, the median over the rounds of its time divided by that of ``ours``: above 1, ours is quicker."""
    return {
        name: statistics.median(theirs / own for theirs, own in zip(other, times[ours], strict=True))
        for name, other in times.items()
    }


def compared(times: Mapping[str, Sequence[float]], ours: str, size: int = 0) -> str:
    """A table of medians and ratios; ``size`` in bytes: rates too."""
    rows = []
    for name, ratio in ratios(times, ours).items():
        median = statistics.median(times[name])
        rate = [f"{size / median / 1e9:.2f} GB/s"] if size else []
        rows.append([name, f"{median * 1e3:,.0f} ms", *rate, "" if name == ours else f"{ratio:.2f}"])
    return table(["", "median", *(["rate"] if size else []), f"its time / that of {ours}"], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(name: str, section: str) -> None:
    """Put ``section`` in the place of the one of that name, or at the end of the page."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->\n"
    said = f"{begin}{section}\n\nMeasured {strftime('%Y-%m-%d')} on {machine()}.\n{end}"
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else _HEAD
    before, found, rest = page.partition(begin)
    PAGE.write_text(
        before + said + rest.partition(end)[2] if found else f"{page.rstrip()}\n\n{said}", encoding="utf-8"
    )


def machine() -> str:
    """What it was measured on, in a few words."""
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine(),
    )
    cores = sum(line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines())
    return f"{cores} cores of {model}, Python {platform.python_version()}"
