"""When each step of a transfer's handshake began and ended, at all three parties, on one clock.

zkc measures nothing of this itself. Its machines keep what is legal in one table each, so a process that is started
with `environment` has the functions of these tables, when it begins, exchanged for such as call them and note the time
before and after: some microseconds for each step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from time import monotonic_ns
from typing import Any, Final

VARIABLE: Final = "BENCH_STAMPS"
_MACHINES: Final = {"S": "transfer_sender", "C": "transfer_coordinator", "R": "transfer_recipient"}
_HOOK: Final = Path(__file__).with_name("hook")
_TOP: Final = Path(__file__).parents[2]


@dataclass(frozen=True)
class Stamp:
    """A party did something: S, C or R, the function of its machine, and nanoseconds that all processes share."""

    party: str
    function: str
    began: int
    ended: int


def environment(folder: Path) -> dict[str, str]:
    """For processes that are to leave their stamps in ``folder``."""
    path = [str(_HOOK), str(_TOP), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {VARIABLE: str(folder), "PYTHONPATH": os.pathsep.join(path)}


def install(folder: str) -> None:
    """Note the steps of this process in a file of ``folder``."""
    lines = _Lines(Path(folder))
    for party, name in _MACHINES.items():
        machine: Any = import_module(f"zkc.protocol.{name}")
        for event, consume in machine.TABLE.items():
            machine.TABLE[event] = lines.stamped(party, consume)
        if party == "S":  # which answers nothing, and so stands in no table
            machine.create_request = lines.stamped(party, machine.create_request)


class _Lines:
    """A file, made at the first stamp: most processes have none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = -1

    def stamped(self, party: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*given: Any) -> Any:
            began = monotonic_ns()
            done = function(*given)
            self._note(Stamp(party, function.__name__, began, monotonic_ns()))
            return done

        return call

    def _note(self, stamp: Stamp) -> None:
        if self._file < 0:
            self._file = os.open(self._folder / str(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(self._file, f"{stamp.party} {stamp.function} {stamp.began} {stamp.ended}\n".encode())


def read(folder: Path) -> list[Stamp]:
    """All stamps of all processes, in their order."""
    return sorted(_all(folder), key=lambda stamp: stamp.began)


def _all(folder: Path) -> Iterator[Stamp]:
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            party, function, began, ended = line.split()
            yield Stamp(party, function, int(began), int(ended))
