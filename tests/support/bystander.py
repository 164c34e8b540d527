"""Who must not notice what is done to others (attacks.md: "alive")."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

from tests.support.looking import inbox_of
from tests.support.waiting import DEADLINE, wait_until
from zkc.testing import Fleet

MIB = 1 << 20


@contextlib.contextmanager
def transfer_meanwhile(fleet: Fleet, sender: str = "alice", recipient: str = "bob") -> Iterator[None]:
    """A transfer of 2 MiB that flows before the block and goes on after it: all of it arrives."""
    name, payload = f"meanwhile-{os.urandom(4).hex()}", os.urandom(2 * MIB)
    with fleet.popen(sender, "send", recipient, "--name", name, stdin=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(payload[:MIB])
            process.stdin.flush()
            wait_until(lambda: [
                item for item in inbox_of(fleet.home(recipient))[1] if item.name == name and item.size
            ])
            yield
            assert process.poll() is None, "it ended in the middle"
            process.communicate(payload[MIB:], timeout=DEADLINE)
            assert process.returncode == 0
        finally:
            process.kill()
    with fleet.client(recipient).receive(sender=sender, name=name) as item:
        assert item.read() == payload
