"""A link of 256 kbit/s, on which a chunk takes longer than most deadlines are."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Final

import pytest
from blake3 import blake3

from tests.support.looking import inbox_of, log_of
from tests.support.slow import slow_link
from tests.support.waiting import wait_until
from zkc.testing import Done, Fleet

BITS: Final = 256_000
"""A second."""
QUEUE_MS: Final = 400
"""What such a link holds back for whoever sends faster than it carries."""
KIB: Final = 1024
LONG: Final = 3 << 20
BESIDE_BYTES: Final = 256 * KIB
"""More than two handshakes, a message and the clients' heartbeats take."""


@pytest.mark.root
@pytest.mark.attack("D13")
@pytest.mark.parametrize(
    ("chunk", "size"), [
        pytest.param("512K", 96 * KIB, id="a file of one chunk"),
        # Half a minute a chunk: longer than any of the pipe's own deadlines but the patience.
        pytest.param("1M", LONG, id="chunks of a MiB", marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
def test_a_transfer_over_a_slow_link_is_one_transfer_and_leaves_room_beside_it(
    tmp_path: Path, chunk: str, size: int
) -> None:
    """No deadline takes it for a broken one, and nothing of it is sent twice; a message gets through meanwhile."""
    source, content = tmp_path / "large", os.urandom(size)
    source.write_bytes(content)
    client = {"transfer.listen": "tcp://127.0.0.1:0", "transfer.chunk": chunk, "log.level": "debug"}
    with slow_link() as link, Fleet("alice", "bob", client=client) as fleet:
        before = link.carried()
        link.limit(BITS, QUEUE_MS)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with fleet.popen("alice", "send", "bob", str(source), "--json", **pipes) as large:
            try:
                wait_until(lambda: inbox_of(fleet.home("bob"))[1])
                beside = fleet.zkc("alice", "send", "bob", "-m", "beside", "--json")
                # Of a link that is full each gets its share: the shorter file may be there first.
                assert size < LONG or large.poll() is None
                out, err = large.communicate(timeout=20 * 8 * size / BITS)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    large.kill()
        done = Done(large.returncode, out, err)
        carried = link.carried() - before
        link.release()
        assert (beside.code, done.code) == (0, 0), (beside, done)
        assert done.events[-1]["seconds"] > 0.8 * 8 * size / BITS, "the link was not slow"
        assert [event["event"] for event in done.events].count("granted") == 1
        assert carried < 1.15 * size + BESIDE_BYTES, "some of it was sent twice"
        items = {item.kind: item.digest for item in inbox_of(fleet.home("bob"))[0]}
        assert items == {"message": blake3(b"beside").digest(), "file": blake3(content).digest()}
        for name in ("alice", "bob", "coordinator"):
            assert not [event for event in log_of(fleet, name) if event["event"] in {"not-received", "defect"}]
