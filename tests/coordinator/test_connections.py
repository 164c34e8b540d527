"""Who was let in and has not said a word: the suspects of an abort (attack O01)."""

from __future__ import annotations

import time
from typing import Final

import pytest

from zkc.constants import CONNECTIONS_PER_PEER_MAX, SILENT_SECONDS
from zkc.coordinator.connections import Connections

ALICE: Final = b"a" * 32, "u:alice"
MALLORY: Final = b"m" * 32, "u:mallory"


@pytest.mark.attack("O01")
def test_who_has_been_silent_for_longest_is_the_suspect() -> None:
    connections = Connections()
    for descriptor, peer in enumerate((MALLORY, ALICE)):
        connections.opened(descriptor, 100 + descriptor, 0.0)
        connections.admitted(*peer, 0.0)
    assert connections.suspect == MALLORY
    assert connections.heard(1, 100, ALICE[1])
    assert connections.suspect == MALLORY
    assert connections.heard(0, 101, MALLORY[1])
    assert connections.suspect is None


@pytest.mark.attack("O01")
def test_one_word_clears_one_connection_of_a_peer() -> None:
    connections = Connections()
    for descriptor in range(2):
        connections.opened(descriptor, 100 + descriptor, 0.0)
        connections.admitted(*MALLORY, 0.0)
    assert connections.heard(0, 100, MALLORY[1])
    assert not connections.heard(0, 100, MALLORY[1]), "it is the connection's second"
    assert connections.suspect == MALLORY
    assert connections.heard(1, 101, MALLORY[1])
    assert connections.suspect is None


@pytest.mark.attack("O01")
def test_who_left_without_a_word_is_no_suspect() -> None:
    connections = Connections()
    connections.opened(7, 100 + 7, 0.0)
    connections.heard(7, 100, ALICE[1])
    connections.opened(8, 100 + 8, 0.0)
    connections.admitted(*MALLORY, 0.0)
    connections.closed(8)
    assert connections.suspect is None
    assert len(connections) == 1


def test_a_word_that_is_read_before_its_connection_is_told_of_is_a_word() -> None:
    connections = Connections()
    connections.admitted(*ALICE, 0.0)
    connections.heard(7, 100, ALICE[1])
    connections.opened(7, 100 + 7, 0.0)
    connections.opened(8, 100 + 8, 0.0)
    connections.admitted(*MALLORY, 0.0)
    connections.closed(8)
    assert connections.suspect is None


def test_ten_thousand_connections_that_end_at_once_cost_no_more_each_than_one() -> None:
    connections, many = Connections(), 20_000
    for descriptor in range(many):
        connections.opened(descriptor, 100 + descriptor, 0.0)
        connections.heard(descriptor, descriptor, ALICE[1])
    # The processor's time, which does not depend on what else the machine does: 10 ms; 4 s with a walk over all.
    began = time.thread_time()
    for descriptor in range(many):
        connections.closed(descriptor)
    assert time.thread_time() - began < 1.0
    assert len(connections) == 0


def test_a_descriptor_that_is_used_again_is_a_new_connection() -> None:
    connections = Connections()
    connections.admitted(*ALICE, 0.0)
    assert connections.heard(7, 100, ALICE[1])
    connections.admitted(*MALLORY, 0.0)
    assert connections.heard(7, 101, MALLORY[1])
    assert connections.suspect is None


def test_a_peer_may_have_so_many_connections_and_no_more() -> None:
    """Those that speak and those just let in count together; who stayed silent is dropped, and counts no more."""
    connections, most = Connections(), CONNECTIONS_PER_PEER_MAX
    for descriptor in range(most):
        assert not connections.has_too_many(ALICE[1], 0.0)
        connections.opened(descriptor, 100 + descriptor, 0.0)
        connections.admitted(*ALICE, 0.0)
        if descriptor % 2:
            connections.heard(descriptor, 100 + descriptor, ALICE[1])
    assert connections.has_too_many(ALICE[1], 0.0)
    assert not connections.has_too_many(MALLORY[1], 0.0)
    assert not connections.has_too_many(ALICE[1], SILENT_SECONDS)
    for descriptor in range(most // 2):
        connections.heard(2 * descriptor, 100 + 2 * descriptor, ALICE[1])
    assert connections.has_too_many(ALICE[1], SILENT_SECONDS)
    connections.closed(0)
    assert not connections.has_too_many(ALICE[1], SILENT_SECONDS)


def test_who_says_nothing_is_named_once_its_time_is_over() -> None:
    connections = Connections()
    connections.opened(1, 101, 0.0)
    connections.opened(2, 102, 5.0)
    connections.opened(3, 103, 0.0)
    connections.heard(3, 103, ALICE[1])
    assert connections.silent_since(-1.0) == []
    assert connections.silent_since(0.0) == [(1, 101)]
    connections.closed(1)
    assert connections.silent_since(5.0) == [(2, 102)]
