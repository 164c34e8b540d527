"""The ``zkc`` command: finds the one file that a command needs, runs it, and ends with the code of the contract.

This module imports nothing that costs: a signal that arrives while the rest is imported already ends with its own code.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final, NoReturn

COMMANDS: Final = {
    "coordinator": "zkc.ui.cli.coordinator",
    "join": "zkc.ui.cli.join",
    "leave": "zkc.ui.cli.leave",
    "daemon": "zkc.ui.cli.daemon",
    "status": "zkc.ui.cli.status",
    "send": "zkc.ui.cli.send",
    "recv": "zkc.ui.cli.recv",
    "get": "zkc.ui.cli.get",
    "shares": "zkc.ui.cli.shares",
    "share": "zkc.ui.cli.share",
    "inbox": "zkc.ui.cli.inbox",
    "accept": "zkc.ui.cli.accept",
    "refuse": "zkc.ui.cli.refuse",
    "presence": "zkc.ui.cli.presence",
    "person": "zkc.ui.cli.person",
    "wait": "zkc.ui.cli.wait",
    "check": "zkc.ui.cli.check",
    "outbox": "zkc.ui.cli.outbox",
    "reply": "zkc.ui.cli.reply",
    "ui": "zkc.ui.cli.ui",
    "doctor": "zkc.ui.cli.doctor",
    "completion": "zkc.ui.cli.completion",
    "peers": "zkc.ui.cli.peers",
    "verify": "zkc.ui.cli.verify",
    "rotate": "zkc.ui.cli.rotate",
    "receipt": "zkc.ui.cli.receipt",
    "audit": "zkc.ui.cli.audit",
    "events": "zkc.ui.cli.events",
    "relay": "zkc.ui.cli.relay",
    "config": "zkc.ui.cli.config",
    "policy": "zkc.ui.cli.policy",
}
"""Command -> module. Each module holds one object ``command``; it is imported only when it is called or listed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``zkc`` with ``argv`` (the process's own arguments by default) and returns its exit code."""
    # Imports make objects that stay: to search them for garbage after every 700, and once more at the end, takes a
    # tenth of a short command's time, and finds nothing.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    try:
        _open_standard_streams()
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminated)

        if asked := os.environ.get("_ZKC_COMPLETE"):
            from zkc.ui.cli.completing import answer

            return answer(COMMANDS, asked)
        from zkc.ui.cli.door import run

        return run(COMMANDS, sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1


def _terminated(signum: int, _frame: FrameType | None) -> NoReturn:
    """SystemExit, not an exception of our own: asyncio hands it on from wherever in the loop it is raised."""
    raise SystemExit(128 + signum)


def _open_standard_streams() -> None:
    """Closed descriptors 0 to 2 become /dev/null: the next file that is opened (keys.db) must not take their place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the locale cannot write is shown as \xNN, and ends nothing
            stream.reconfigure(errors="backslashreplace")
