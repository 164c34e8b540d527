"""Ports for tests whose configuration names some."""

from __future__ import annotations

import contextlib
import socket


def two_ports() -> tuple[int, int]:
    """Two free ports one after the other."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as one:
            first = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError), socket.create_server(("127.0.0.1", first + 1)):
                return first, first + 1
