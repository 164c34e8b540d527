"""Metrics as the two programs declare them, and the samples that they give when somebody asks.

The programs keep their numbers anyway, and cheaply; they are read when a page is made. Labels are of fixed sets: no
name of a client, and no text that a peer chose, is ever one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, NamedTuple

from zkc.errors import BY_CODE

STEP_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds: from a handshake on one machine to a step that has run out of its time."""
REASONS: Final[Mapping[int, str]] = {0: "done", **{code: kind.reason for code, kind in BY_CODE.items()}}
OTHER: Final = "other"


class Durations:
    """How long something took, each time: as a histogram. Belongs to one thread."""

    __slots__ = ("_counts", "bounds", "total")

    def __init__(self, bounds: Sequence[float] = STEP_BOUNDS) -> None:
        self.bounds: Final = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0
        """Seconds, of all."""

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, how many took no longer), the last one without a bound."""
        bounds = [*map(str, self.bounds), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))


class Sample(NamedTuple):
    """One value of one metric."""

    metric: Metric
    value: float | Durations
    labels: tuple[str, ...] = ()
    """Values of the metric's labels, in their order."""


@dataclass(frozen=True)
class Metric:
    """One metric, by the name under which it is told."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()

    def of(self, value: float | Durations, *labels: str) -> Sample:
        return Sample(self, value, labels)

    def each(self, values: Mapping[str, float]) -> Iterator[Sample]:
        """A sample for each value of the one label."""
        return (self.of(value, label) for label, value in values.items())

    def by_code(self, counts: Mapping[int, float]) -> Iterator[Sample]:
        """A sample for each code of the contract, with its reason; a code that is none of it counts as 1."""
        found = dict.fromkeys(REASONS, 0.0)
        for code, count in counts.items():
            found[code if code in found else 1] += count
        return (self.of(count, str(code), REASONS[code]) for code, count in found.items())


def counter(name: str, help: str, *labels: str) -> Metric:  # noqa: A002  (as Prometheus calls it)
    return Metric(name, "counter", help, labels)


def gauge(name: str, help: str, *labels: str) -> Metric:  # noqa: A002
    return Metric(name, "gauge", help, labels)


def histogram(name: str, help: str, *labels: str) -> Metric:  # noqa: A002
    return Metric(name, "histogram", help, labels)


BUILD: Final = gauge("zkc_build_info", "Always 1; the labels say what runs.", "version", "role")
SCRAPES: Final = counter(
    "zkc_scrapes_total", "Connections to the metrics port, by what became of them.", "outcome"
)
PROCESS: Final = (
    gauge("process_virtual_memory_bytes", "Virtual memory size in bytes."),
    gauge("process_resident_memory_bytes", "Resident memory size in bytes."),
    gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds."),
    counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds."),
    gauge("process_open_fds", "Number of open file descriptors."),
    gauge("process_max_fds", "Maximum number of open file descriptors."),
)
"""What prometheus_client tells of the process by itself."""
COMMON: Final = (BUILD, SCRAPES)


def bounded(counts: Mapping[str, int], prefix: str, known: Iterable[str]) -> dict[str, float]:
    """What was counted as ``prefix`` and a word, for each ``known`` word; all others as `OTHER`."""
    found = {**dict.fromkeys(known, 0.0), OTHER: 0.0}
    for name, count in counts.items():
        if name.startswith(prefix):
            word = name.removeprefix(prefix)
            found[word if word in found else OTHER] += count
    return found
