"""``python -m tests.support.shifted SECONDS WORDS``: ``zkc WORDS`` on a machine whose date is wrong by so much."""

from __future__ import annotations

import sys
import time

from zkc.env import SystemClock
from zkc.ui.cli.main import main

if __name__ == "__main__":
    shift = float(sys.argv[1])
    SystemClock.wall = lambda _self: time.time() + shift  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))
