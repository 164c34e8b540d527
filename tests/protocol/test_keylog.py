"""A client follows the key log: what it takes, and every way in which it is alarmed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zkc.crypto.heads import Head, log_leaf, sign_head
from zkc.crypto.merkle import Frontier, inclusion_path, leaf_hash, new_nodes
from zkc.crypto.signing import IdentityKey
from zkc.protocol.keylog import LogAlarm, LogState, Whose, check_proof, take_page
from zkc.wire.messages import LogPage, LogProof

KEY = IdentityKey.from_seed(bytes(range(64)))
OTHER = IdentityKey.from_seed(bytes(64))
OWN, CARD = "bob", b"\1" * 32
WHOSE = Whose(KEY.public, OWN, frozenset({CARD}))


def entry(name: str, card: bytes = CARD, event: str = "registered") -> bytes:
    return log_leaf(event, name, card, "")


OLDER = [entry(f"old{n}") for n in range(5)]
LOG = [*OLDER, entry(OWN), *(entry(f"new{n}") for n in range(8))]


def tree(entries: list[bytes]) -> Frontier:
    made = Frontier()
    for each in entries:
        made = made.add(leaf_hash(each))
    return made


def page(entries: list[bytes], first: int, count: int, *, fresh: bool = False, key: IdentityKey = KEY) -> LogPage:
    """As a coordinator whose log is ``entries`` answers."""
    frontier = list(tree(entries[:first]).hashes) if fresh else []
    return LogPage(sign_head(key, Head(len(entries), tree(entries).root)), first, frontier,
                   entries[first : first + count])


def followed(entries: list[bytes]) -> LogState:
    state, whole = take_page(WHOSE, None, page(entries, len(OLDER), len(entries), fresh=True))
    assert whole
    return state


def alarm_of(state: LogState | None, told: LogPage) -> str:
    with pytest.raises(LogAlarm) as raised:
        take_page(WHOSE, state, told)
    assert raised.value.code == 12
    return raised.value.detail


def test_a_log_is_followed_page_by_page_from_the_own_registration_on() -> None:
    state, whole = take_page(WHOSE, None, page(LOG, 5, 3, fresh=True))
    assert not whole
    while not whole:
        state, whole = take_page(WHOSE, state, page(LOG, state.frontier.size, 3))
    assert (state.frontier, state.foreign) == (tree(LOG), b"")
    again = page(LOG, len(LOG), 9)
    assert take_page(WHOSE, state, again) == (LogState(tree(LOG), again.head), True)


@pytest.mark.attack("K05")
def test_a_log_that_has_become_shorter_is_an_alarm() -> None:
    assert alarm_of(followed(LOG), page(LOG[:-1], len(LOG), 9)) == "log-shrunk"


@settings(max_examples=20)
@given(place=st.integers(0, len(LOG) - 1), more=st.integers(0, 5))
def test_a_log_in_which_anything_was_changed_is_an_alarm(place: int, more: int) -> None:
    """Whether it has grown since or not: another entry at any place, before the own registration too."""
    forked = [*LOG, *(entry(f"more{n}") for n in range(more))]
    forked[place] = entry("mallory")
    assert alarm_of(followed(LOG), page(forked, len(LOG), 9)) == "log-fork"


def test_heads_and_pages_that_do_not_verify_are_alarms() -> None:
    state = followed(LOG)
    longer = [*LOG, entry("x"), entry("y")]
    good = page(longer, len(LOG), 9)
    assert take_page(WHOSE, state, good)[1]
    bad = [
        page(longer, len(LOG), 9, key=OTHER),
        msgspec.structs.replace(good, head=good.head[:-3]),
        msgspec.structs.replace(good, first=len(LOG) + 1),
        msgspec.structs.replace(good, entries=[]),
        msgspec.structs.replace(good, entries=[*good.entries, entry("z")]),
    ]
    assert [alarm_of(state, each) for each in bad] == ["log-proof"] * len(bad)
    assert alarm_of(state, msgspec.structs.replace(good, entries=good.entries[::-1])) == "log-fork"
    begun = page(LOG, 5, 9, fresh=True)
    worse = [
        msgspec.structs.replace(begun, frontier=[]),
        msgspec.structs.replace(begun, entries=[]),
        page(LOG, 6, 9, fresh=True),
        page(LOG, 4, 9, fresh=True),
    ]
    assert [alarm_of(None, each) for each in worse] == ["log-proof"] * len(worse)
    assert alarm_of(None, msgspec.structs.replace(begun, frontier=[bytes(32)] * 2)) == "log-fork"


@pytest.mark.attack("H01")
def test_another_card_under_the_own_name_is_noticed_and_stays_so() -> None:
    false = b"\2" * 32
    longer = [*LOG, entry(OWN, false), entry("x")]
    state, whole = take_page(WHOSE, followed(LOG), page(longer, len(LOG), 9))
    assert whole
    assert state.foreign == false
    longer.append(entry(OWN, CARD, "revoked"))
    assert take_page(WHOSE, state, page(longer, state.frontier.size, 9))[0].foreign == false


@pytest.mark.attack("H13")
def test_new_keys_of_the_own_registration_are_no_alarm_and_of_a_peer_are_proved() -> None:
    """Those that it has, had since it looked, or has told nobody but the coordinator; who comes later begins there."""
    cards = [CARD, b"\2" * 32, b"\3" * 32]
    whose = Whose(KEY.public, OWN, frozenset(cards))
    later = entry("new0", bytes(32), "succeeded"), entry(OWN, cards[2], "succeeded")
    log = [*LOG, entry(OWN, cards[1], "rotated"), *later]
    state, whole = take_page(whose, followed(LOG), page(log, len(LOG), 9))
    assert whole
    assert state.foreign == b""
    begun, whole = take_page(whose, None, page(log, len(LOG), 9, fresh=True))
    assert whole
    assert begun.frontier == state.frontier
    nodes: dict[tuple[int, int], bytes] = {}
    for index, each in enumerate(log):
        nodes |= new_nodes(index, leaf_hash(each), nodes.__getitem__)
    for index, name, card in ((len(LOG) + 1, "new0", bytes(32)), (len(LOG), OWN, cards[1])):
        path = inclusion_path(index, len(log), lambda level, position: nodes[level, position])
        check_proof(state, name, card, LogProof(index, path))
    revoked = [*log, entry("new0", CARD, "revoked")]
    assert take_page(whose, state, page(revoked, len(log), 9))[0].foreign == b""


def test_only_a_card_that_is_in_the_log_is_proved() -> None:
    nodes: dict[tuple[int, int], bytes] = {}
    for index, each in enumerate(LOG):
        nodes |= new_nodes(index, leaf_hash(each), nodes.__getitem__)
    state = followed(LOG)
    proof = LogProof(6, inclusion_path(6, len(LOG), lambda level, position: nodes[level, position]))
    check_proof(state, "new0", CARD, proof)
    for name, card, given_proof in (
        ("new1", CARD, proof), ("new0", bytes(32), proof), ("new0", CARD, LogProof(7, proof.path)),
        ("new0", CARD, LogProof(6, [])), ("new0", CARD, LogProof(6, [bytes(32)] * 4)),
    ):
        with pytest.raises(LogAlarm, match="not in it"):
            check_proof(state, name, card, given_proof)
