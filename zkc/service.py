"""What the service manager is told, where one started this program (systemd's ``Type=notify``, ``WatchdogSec=``).

Each word is one datagram to the socket that ``NOTIFY_SOCKET`` names. Without that variable nothing happens, and
whatever goes wrong with the socket is no reason for the program to fail.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

from zkc.env import Clock, SystemClock

SEND_SECONDS: Final = 1.0
"""How long a manager that does not read holds up a program's start or end."""
_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@dataclass(frozen=True)
class Manager:
    """The service manager that started this program, or none: then each word is said to nobody."""

    address: str = ""
    """A path, or ``@`` and a name of Linux's abstract sockets."""
    alive_every: float = 0.0
    """Seconds between two signs of life that it waits for, half of what it bears; 0: it waits for none."""
    clock: Clock = field(default_factory=SystemClock)

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Self:
        """As ``environ`` says; its variables are taken out of it: what this program starts is not the service."""
        address, usec, process = (environ.pop(name, "") for name in _VARIABLES)
        if not address.startswith(("/", "@")):
            return cls()
        is_ours = process in {"", str(os.getpid())}
        return cls(address, int(usec) / 2e6 if is_ours and usec.isascii() and usec.isdigit() else 0.0)

    def ready(self) -> None:
        """It serves; also: what was asked for with SIGHUP is done."""
        self._say("READY=1")

    def reloading(self) -> None:
        """SIGHUP has come. `ready` follows."""
        self._say(f"RELOADING=1\nMONOTONIC_USEC={int(self.clock.monotonic() * 1_000_000)}")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def alive(self) -> None:
        """Its event loop turns. Never waits: the next sign is soon to come."""
        self._say("WATCHDOG=1", patience=0.0)

    async def keep_alive(self) -> None:
        """Say so for ever, from the event loop that is meant."""
        await every(self.alive_every, self.alive)

    def _say(self, words: str, patience: float = SEND_SECONDS) -> None:
        if not self.address:
            return
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(patience)
            sock.sendto(words.encode(), address)


async def every(seconds: float, say: Callable[[], None]) -> None:
    """``say`` again and again until cancelled; never where ``seconds`` is 0. It stops with the loop that it runs on."""
    import asyncio  # noqa: PLC0415 - the coordinator's supervisor has no loop, and does without

    while seconds:
        say()
        await asyncio.sleep(seconds)
