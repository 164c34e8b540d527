"""The benchmarks by name: each sets up its peers, runs them in turns, and writes its tables and plots."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Final

from scripts.bench.report import write

BENCHES: Final = ("file", "folder", "pipe", "small", "rate", "first", "growth", "handshake")
"""Each is a module with a function ``run``. Imported one by one: two of them need matplotlib."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="scripts/bench/run")
    parser.add_argument("names", nargs="*", choices=[*BENCHES, []], help="all, where none is named")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turns [5]")
    parser.add_argument("--quick", action="store_true", help="little data, nothing written: to see that it works")
    options = parser.parse_args()
    for name in options.names or BENCHES:
        section: str = import_module(f"scripts.bench.{name}").run(options.rounds, quick=options.quick)
        print(section, flush=True)
        if not options.quick:
            write(name, section)
