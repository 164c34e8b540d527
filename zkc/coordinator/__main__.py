"""The process that serves: ``python -m zkc.coordinator REPORT SUSPECT LOCK``, started by `zkc.coordinator.supervisor`.

The arguments are inherited descriptors: the socket over which the supervisor tells what to do and is told what
happened, a file in memory that names the peer whose doing an abort would be, and the home's lock.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from zkc import logs
from zkc.coordinator.engine import DESCRIPTORS_SPARE, Engine, Ready, Settings, defect
from zkc.coordinator.reports import (
    Alive,
    Failed,
    Orders,
    Reloaded,
    Started,
    Suspect,
    pack_suspect,
    read_line,
    write_line,
)
from zkc.errors import LocalIOError, ZkcError
from zkc.hardening import claim_descriptors, protect_memory
from zkc.service import every
from zkc.stores.home import Home, HomeLock

_PR_SET_PDEATHSIG: Final = 1
_DESCRIPTORS_MIN: Final = 256


def main(arguments: list[str]) -> int:
    report = socket.socket(fileno=int(arguments[0]))
    suspect, lock = int(arguments[1]), HomeLock(int(arguments[2]))
    orders = read_line(report, Orders)
    if orders is None or not _die_with_parent(orders.supervisor):
        return 1
    try:
        protect_memory()
        home = Home("coordinator", Path(orders.data), Path(orders.config), Path(orders.runtime))
        settings = Settings(
            home, orders.options, listen=tuple(orders.listen),
            on_ready=lambda ready: _tell_ready(report, ready),
            on_suspect=lambda who: _note(suspect, who),
        )
        config = settings.load().config
        logs.configure(config.log.format, config.log.level)
        _claim_descriptors(config.limits.clients)
        asyncio.run(_serve(settings, lock, report, orders.alive_every))
    except ZkcError as error:
        write_line(report, Failed(error.code, error.message, error.detail, error.hint))
        return error.code
    except Exception as error:  # noqa: BLE001  (the last door of the process: told, logged, ended)
        logs.get_logger().error("defect", exc_info=error)
        told = defect(error)
        write_line(report, Failed(told.code, told.message, told.detail, told.hint))
        return told.code
    return 0


async def _serve(settings: Settings, lock: HomeLock, report: socket.socket, alive_every: float) -> None:
    engine = Engine(settings, lock)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, engine.stop)


    def reload() -> None:
        engine.reload()
        write_line(report, Reloaded())

    loop.add_signal_handler(signal.SIGHUP, reload)
    saying = asyncio.create_task(every(alive_every, lambda: write_line(report, Alive())))
    try:
        await engine.run()
    finally:
        saying.cancel()


def _tell_ready(report: socket.socket, ready: Ready) -> None:
    write_line(report, Started(list(ready.endpoints), ready.fingerprint))


def _note(descriptor: int, suspect: Suspect | None) -> None:
    """Leaves word where the supervisor finds it after an abort. Never waits for anybody."""
    os.pwrite(descriptor, pack_suspect(suspect), 0)


def _die_with_parent(supervisor: int) -> bool:
    """The kernel ends this process with its supervisor; whether that one still lives."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    return os.getppid() == supervisor


def _claim_descriptors(clients: int) -> None:
    """As many descriptors as the system gives; refuses to start where they would never do (attack O07)."""
    wanted = clients + DESCRIPTORS_SPARE
    allowed = claim_descriptors(wanted)
    if allowed < _DESCRIPTORS_MIN and allowed < wanted:
        raise LocalIOError(
            f"at most {allowed} open files are allowed (RLIMIT_NOFILE), a coordinator needs {_DESCRIPTORS_MIN}",
            detail="descriptors", hint="raise it: ulimit -Hn, or LimitNOFILE= of its service",
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
