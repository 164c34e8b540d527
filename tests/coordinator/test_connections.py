"""Who was let in and has not said a word: the suspects of an abort (attack O01)."""

from __future__ import annotations

import time
from typing import Final

import pytest

from zkc.coordinator.connections import Connections

ALICE: Final = b"a" * 32, "u:alice"
MALLORY: Final = b"m" * 32, "u:mallory"


@pytest.mark.attack("O01")
def test_who_has_been_silent_for_longest_is_the_suspect() -> None:
    connections = Connections()
    for descriptor, peer in enumerate((MALLORY, ALICE)):
        connections.opened(descriptor)
        connections.admitted(*peer)
    assert connections.suspect == MALLORY
    assert connections.heard(1, 100, ALICE[1])
    assert connections.suspect == MALLORY
    assert connections.heard(0, 101, MALLORY[1])
    assert connections.suspect is None


@pytest.mark.attack("O01")
def test_one_word_clears_one_connection_of_a_peer() -> None:
    connections = Connections()
    for descriptor in range(2):
        connections.opened(descriptor)
        connections.admitted(*MALLORY)
    assert connections.heard(0, 100, MALLORY[1])
    assert not connections.heard(0, 100, MALLORY[1]), "it is the connection's second"
    assert connections.suspect == MALLORY
    assert connections.heard(1, 101, MALLORY[1])
    assert connections.suspect is None


@pytest.mark.attack("O01")
def test_who_left_without_a_word_is_no_suspect() -> None:
    connections = Connections()
    connections.opened(7)
    connections.heard(7, 100, ALICE[1])
    connections.opened(8)
    connections.admitted(*MALLORY)
    connections.closed(8)
    assert connections.suspect is None
    assert len(connections) == 1


def test_a_word_that_is_read_before_its_connection_is_told_of_is_a_word() -> None:
    connections = Connections()
    connections.admitted(*ALICE)
    connections.heard(7, 100, ALICE[1])
    connections.opened(7)
    connections.opened(8)
    connections.admitted(*MALLORY)
    connections.closed(8)
    assert connections.suspect is None


def test_ten_thousand_connections_that_end_at_once_cost_no_more_each_than_one() -> None:
    connections, many = Connections(), 20_000
    for descriptor in range(many):
        connections.opened(descriptor)
        connections.heard(descriptor, descriptor, ALICE[1])
    # The processor's time, which does not depend on what else the machine does: 10 ms; 4 s with a walk over all.
    began = time.thread_time()
    for descriptor in range(many):
        connections.closed(descriptor)
    assert time.thread_time() - began < 1.0
    assert len(connections) == 0


def test_a_descriptor_that_is_used_again_is_a_new_connection() -> None:
    connections = Connections()
    connections.admitted(*ALICE)
    assert connections.heard(7, 100, ALICE[1])
    connections.admitted(*MALLORY)
    assert connections.heard(7, 101, MALLORY[1])
    assert connections.suspect is None
