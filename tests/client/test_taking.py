"""Which item is taken, and how one is waited for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.env import FixedClock
from tests.support.items import entry, receive
from zkc.client.taking import PAUSE_SECONDS, Wish, matches, take
from zkc.errors import NobodyThere
from zkc.stores import inbox as inbox_module
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox


@pytest.mark.parametrize(
    ("wish", "wanted"),
    [
        (Wish(), True), (Wish(sender="alice"), True), (Wish(sender="bob"), False), (Wish(name="*.txt"), True),
        (Wish(name="A.TXT"), False), (Wish(name="?.tar"), False), (Wish(app="backup"), True), (Wish(app="bob"), False),
        (Wish("alice", "a*", "backup"), True), (Wish("alice", "b*", "backup"), False),
    ],
)  # fmt: skip
def test_an_item_matches_by_sender_name_and_application(wish: Wish, wanted: bool, home: Home) -> None:
    with Inbox.open(home) as inbox:
        item = receive(inbox, what=entry(app="bob/backup"))
    assert matches(item, wish) == wanted
    assert not matches(replace(item, app=""), Wish(app="backup"))


def test_who_waits_reads_the_inbox_when_it_has_changed_and_now_and_then(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    real = Inbox.take_first
    monkeypatch.setattr(Inbox, "take_first", lambda *asked: looked.append(1) or real(*asked))
    clock = FixedClock()

    def pause(seconds: float) -> None:
        clock.advance(seconds)

    with Inbox.open(home) as inbox:
        with pytest.raises(NobodyThere) as caught:
            take(inbox, Wish(), 10.0, clock=clock, pause=pause)
        assert (caught.value.detail, clock.now) == ("empty", pytest.approx(1010.0))
        assert len(looked) <= 10.0 / PAUSE_SECONDS / 20 + 2
        looked.clear()

        def arrive(_: float) -> None:
            receive(inbox)

        with take(inbox, Wish(), 10.0, clock=clock, pause=arrive) as claim:
            assert claim.item.name == "a.txt"
        assert len(looked) == 2


def test_what_somebody_waits_for_himself_is_left_to_him(home: Home) -> None:
    with Inbox.open(home) as inbox:
        item = receive(inbox)
        clock = FixedClock()
        with inbox.wanted.waiting(item.sender_fp, item.tid):
            with pytest.raises(NobodyThere):
                take(inbox, Wish("alice"), 0.0, clock=clock, pause=clock.advance)
            take(inbox, Wish("alice", transfer=item.transfer), 0.0, clock=clock, pause=clock.advance).close()
        take(inbox, Wish("alice"), 0.0, clock=clock, pause=clock.advance).close()


def test_what_was_taken_before_is_not_taken_again(home: Home) -> None:
    with Inbox.open(home) as inbox:
        first, second = (receive(inbox, tid=bytes([number]) * 16) for number in range(2))
        with take(inbox, Wish(), 0.0, clock=FixedClock(), pause=lambda _: None, but={first.id}) as claim:
            assert claim.item == second


def test_taking_one_after_the_other_reads_a_page_for_each_and_not_the_whole_inbox(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    real = inbox_module.item_of
    monkeypatch.setattr(inbox_module, "item_of", lambda *row: read.append(1) or real(*row))
    monkeypatch.setattr(inbox_module, "_PAGE", 4)
    statements: list[str] = []
    with Inbox.open(home) as inbox:
        inbox._db._reader.set_trace_callback(statements.append)
        put = [receive(inbox, tid=bytes([number]) * 16).id for number in range(30)]
        read.clear()
        taken = []
        for _ in put:
            with take(inbox, Wish(), 0.0, clock=FixedClock(), pause=lambda _: None) as claim:
                taken.append(claim.item.id)
                claim.finish()
        assert taken == put
        # Of what it looks at first, and of what it takes.
        assert len(read) <= 2 * len(put)
        assert all("LIMIT 4" in each for each in statements if "FROM items WHERE seq" in each)


@pytest.mark.parametrize("count", [3, 4, 5, 8, 9])
def test_what_matches_on_the_last_page_is_found(home: Home, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(inbox_module, "_PAGE", 4)
    with Inbox.open(home) as inbox:
        for number in range(count):
            last = receive(inbox, tid=bytes([number]) * 16, what=entry(f"{number}.txt"))
        wish = Wish(name=last.name)
        with take(inbox, wish, 0.0, clock=FixedClock(), pause=lambda _: None) as claim:
            assert claim.item == last
        with pytest.raises(NobodyThere):
            take(inbox, Wish(name="none"), 0.0, clock=FixedClock(), pause=lambda _: None)
