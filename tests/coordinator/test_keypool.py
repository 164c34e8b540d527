"""The pool of prepared key pairs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.waiting import DEADLINE
from zkc.coordinator.keypool import KeyPool
from zkc.crypto.suites import SUITES, KemPrivateKey


@pytest.fixture
def pool() -> Iterator[KeyPool]:
    made = KeyPool(SUITES["x25519"], 4)
    yield made
    made.close()


@pytest.mark.claims("A2", "A8")
def test_pairs_are_made_ahead_and_each_is_handed_out_once(pool: KeyPool) -> None:
    assert pool.wait_full(DEADLINE)
    taken: list[KemPrivateKey] = []

    def take() -> None:
        taken.extend(pool.take() for _ in range(50))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({key.encode() for key in taken}) == 200
    assert pool.counts.taken == 200
    assert pool.wait_full(DEADLINE), "it is filled again"
    assert len(pool) == 4


def test_an_empty_pool_makes_one_on_the_spot() -> None:
    pool = KeyPool(SUITES["x25519"], 0)
    assert pool.take().public.raw
    assert (pool.counts.taken, pool.counts.made_late) == (1, 1)
    pool.close()


def test_what_nobody_took_is_wiped_at_the_end(pool: KeyPool) -> None:
    assert pool.wait_full(DEADLINE)
    left = list(pool._ready)
    pool.close()
    assert len(pool) == 0
    assert [repr(key.secret) for key in left] == ["Secret(wiped)"] * 4
    pool.close()
