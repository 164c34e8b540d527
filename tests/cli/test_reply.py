"""``zkc reply``: to the very key that sent an item, or to nobody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from zkc.testing import Fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("alice", "bob") as running:
        assert running.zkc("alice", "send", "bob", "-m", "how are you?").code == 0
        yield running


def test_an_answer_goes_to_whom_the_item_came_from(fleet: Fleet) -> None:
    (item,) = fleet.zkc("bob", "inbox", "--json").events
    assert fleet.zkc("bob", "reply", item["id"][:6], "-m", "fine").code == 0
    assert fleet.zkc("bob", "reply", item["id"][:6], "--name", "log", stdin=b"piped").code == 0
    told = fleet.zkc("alice", "inbox", "--json").events
    assert [(each["from"], each["name"]) for each in told] == [("bob", "message"), ("bob", "log")]
    assert fleet.zkc("bob", "inbox", "--json").events == [item], "it stays"
    assert fleet.zkc("bob", "reply", "ffff", "-m", "x").code == 2
    assert fleet.zkc("bob", "reply", item["id"], "--from", "alice", "x").code == 2


def test_no_other_key_of_that_name_gets_it_but_one_that_the_first_vouches_for(fleet: Fleet) -> None:
    (item,) = fleet.zkc("bob", "inbox", "--json").events
    assert fleet.zkc("alice", "rotate", "--identity").code == 0
    assert fleet.zkc("bob", "send", "alice", "-m", "now its key is another").code == 0
    assert fleet.zkc("bob", "reply", item["id"], "-m", "the same alice").code == 0
    assert fleet.zkc("bob", "peers", "forget", "alice").code == 0
    refused = fleet.zkc("bob", "reply", item["id"], "-m", "who?", "--json")
    assert (refused.code, refused.events[-1]["detail"]) == (12, "identity")
    assert fleet.zkc("alice", "inbox", "--json").events[-1]["name"] == "message"
    assert len(fleet.zkc("alice", "inbox", "--json").events) == 4
