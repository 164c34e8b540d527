"""Complete transfers of 1 KB through the Python API: new keys, acknowledgement and receipt each."""

from __future__ import annotations

import os
import statistics
from concurrent.futures import ThreadPoolExecutor

from scripts.bench import peers
from scripts.bench.fleet import pair
from scripts.bench.report import table, timed

AT_ONCE = (1, 4, 16, 32)


def run(rounds: int, *, quick: bool) -> str:
    count = 32 if quick else 512
    rows = []
    with peers.memory_folder() as folder, pair(folder) as ours:
        alice, payload = ours.fleet.client("alice"), os.urandom(1024)
        alice.send("bob", payload)
        for at_once in AT_ONCE:
            with ThreadPoolExecutor(at_once) as pool:
                def batch(pool: ThreadPoolExecutor = pool) -> None:
                    list(pool.map(lambda _: alice.send("bob", payload), range(count)))

                rates = [count / timed(batch) for _ in range(rounds)]
            ours.clear()
            median = statistics.median(rates)
            rows.append([str(at_once), f"{median:.0f}", f"{at_once / median * 1e3:.1f} ms"])
    return "## Transfers of 1 KB through `zkc.Client`\n\n" + table(["at once", "a second", "each takes"], rows)
