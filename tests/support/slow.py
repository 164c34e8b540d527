"""A network of its own whose loopback carries only so many bits a second."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

CLONE_NEWNET: Final = 0x40000000
ETHERNET_MTU: Final = 1500
"""Loopback has 64 KiB: no such packet fits into the bucket of a slow link."""


class SlowLink:
    """What this thread, and whatever it starts from now on, has for a network: loopback, and nobody else on it."""

    def limit(self, bits: int, queue_ms: int) -> None:
        """From now on no more than so many bits a second in both directions together, behind a queue of so long."""
        shape = ["rate", f"{bits}bit", "burst", "4kb", "latency", f"{queue_ms}ms"]
        _run("tc", "qdisc", "replace", "dev", "lo", "root", "tbf", *shape)

    def release(self) -> None:
        """As fast as it will."""
        _run("tc", "qdisc", "del", "dev", "lo", "root")

    def carried(self) -> int:
        """Bytes so far, those of headers and of repetitions among them."""
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        (line,) = (line for line in lines if line.strip().startswith("lo:"))
        return int(line.split()[1])


@contextmanager
def slow_link() -> Iterator[SlowLink]:
    """For the block alone. Needs root, `ip` and `tc`."""
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} here (iproute2)")
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(libc.unshare(CLONE_NEWNET))
        try:
            _run("ip", "link", "set", "lo", "mtu", str(ETHERNET_MTU), "up")
            yield SlowLink()
        finally:
            _check(libc.setns(before, CLONE_NEWNET))
    finally:
        os.close(before)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "network namespace")
