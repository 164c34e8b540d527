"""Transfers between real processes: latency, rate, throughput; the last as a ratio to bare PUSH/PULL in the same run.

``transfers.py [MIB]``: MIB of one large file, 256 by default. Figures are medians of interleaved rounds; quote ratios.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zmq

from zkc.testing import Fleet

ROUNDS = 5
SMALL = 1024
CHUNK = 512 * 1024
CONCURRENT = 8
MANY = 200

_BARE = """
import sys, zmq
context = zmq.Context()
pull = context.socket(zmq.PULL); pull.setsockopt(zmq.RCVHWM, 8)
print(pull.bind_to_random_port("tcp://127.0.0.1"), flush=True)
left = int(sys.argv[1])
with open(sys.argv[2], "wb") as target:
    while left:
        frame = pull.recv(copy=False)
        target.write(frame.buffer); left -= len(frame.buffer)
print("done", flush=True); pull.close(0); context.term()
"""


def main(mib: int) -> None:
    """One table on stdout."""
    with Fleet("alice", "bob") as fleet, tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        alice, bob = fleet.client("alice"), fleet.client("bob")
        large = Path(folder, "large")
        large.write_bytes(os.urandom(1 << 20) * mib)

        def send_large() -> None:
            alice.send("bob", large)
            with bob.receive():
                pass

        def bare() -> None:
            bare_push_pull(large, Path(folder, "bare"))

        payload = os.urandom(SMALL)
        alice.send("bob", payload)
        latency = [timed(lambda: alice.send("bob", payload)) for _ in range(50)]
        command = [timed(lambda: fleet.zkc("alice", "send", "bob", stdin=payload)) for _ in range(ROUNDS)]
        with ThreadPoolExecutor(CONCURRENT) as pool:
            rate = MANY / timed(lambda: list(pool.map(lambda _: alice.send("bob", payload), range(MANY))))
        rounds = [(timed(send_large), timed(bare)) for _ in range(ROUNDS)]
        print(f"1 KB, Python API, one after another        {statistics.median(latency) * 1e3:8.1f} ms")
        print(f"1 KB, zkc send until exit                  {statistics.median(command) * 1e3:8.1f} ms")
        print(f"1 KB, Python API, {CONCURRENT} at once                {rate:8.0f} /s")
        print(f"{mib} MiB file to verified receipt          {mib / statistics.median(r[0] for r in rounds):8.0f} MiB/s")
        print(f"the same, ratio to bare PUSH/PULL to a file {statistics.median(r[1] / r[0] for r in rounds):7.2f}")


def bare_push_pull(source: Path, target: Path) -> None:
    """The same bytes in the same chunks, without any of zkc: the limit."""
    size = source.stat().st_size
    with subprocess.Popen(
        [sys.executable, "-c", _BARE, str(size), str(target)], stdout=subprocess.PIPE, text=True
    ) as puller:
        if puller.stdout is None:
            raise RuntimeError("no output")
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        push = context.socket(zmq.PUSH)
        push.setsockopt(zmq.SNDHWM, 8)
        push.connect(f"tcp://127.0.0.1:{puller.stdout.readline().strip()}")
        with source.open("rb") as data:
            while chunk := data.read(CHUNK):
                push.send(chunk, copy=False)
        puller.stdout.readline()
        push.close()
        context.term()


def fast_folder() -> str | None:
    """Memory, where there is some: disks differ more than programs."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256)
