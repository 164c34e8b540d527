"""The pool of prepared key pairs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.waiting import DEADLINE, wait_until
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
        for _ in range(50):
            key = pool.take()
            if key is None:
                pool.order(taken.append)
            else:
                taken.append(key)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(taken) == 200)
    assert len({key.encode() for key in taken}) == 200
    assert pool.counts.taken == 200
    assert pool.wait_full(DEADLINE), "it is filled again"
    assert len(pool) == 4


def test_an_empty_pool_has_none_and_makes_what_is_ordered_in_its_thread() -> None:
    pool = KeyPool(SUITES["x25519"], 0)
    assert pool.take() is None
    came: list[tuple[KemPrivateKey, str]] = []
    for _ in range(2):
        pool.order(lambda key: came.append((key, threading.current_thread().name)))
    wait_until(lambda: len(came) == 2)
    assert [thread for _, thread in came] == ["zkc-keypool"] * 2
    assert came[0][0].encode() != came[1][0].encode()
    assert (pool.counts.taken, pool.counts.made_late) == (2, 2)
    assert pool.take() is None
    pool.close()


def test_what_nobody_took_is_wiped_at_the_end(pool: KeyPool) -> None:
    assert pool.wait_full(DEADLINE)
    left = list(pool._ready)
    pool.close()
    assert len(pool) == 0
    assert [repr(key.secret) for key in left] == ["Secret(wiped)"] * 4
    pool.close()
