"""Following the coordinator's key log: every rule by which a client takes what it is told of the log, or is alarmed.

A client keeps the tree's frontier (`zkc.crypto.merkle`) and is given every entry behind it, so it knows the root of
each size itself: what it has followed once is never changed for it, and no entry under its own name is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from zkc.crypto.heads import card_leaves, verify_head
from zkc.crypto.merkle import Frontier, includes, leaf_hash
from zkc.crypto.signing import IdentityPublic
from zkc.errors import IdentityError, PeerViolation
from zkc.wire.codec import decode
from zkc.wire.messages import LogLeaf, LogPage, LogProof

_HINT = "compare fingerprints with your contacts over another channel (zkc verify); tell the coordinator's admin"


class LogAlarm(IdentityError):
    """The coordinator's key log is not what it was, or does not hold what it must."""

    def __init__(self, detail: str, why: str) -> None:
        super().__init__(f"the coordinator's key log is not to be trusted: {why}", detail=detail, hint=_HINT)


@dataclass(frozen=True, slots=True)
class LogState:
    """The log as far as a client has followed it."""

    frontier: Frontier
    head: bytes
    """The signed note of the newest head that fitted; empty before the first."""
    foreign: bytes = b""
    """H(card) of a card that was logged under this client's name and is not its own; empty: none was."""
    marked: bytes = b""
    """The root over as many entries as somebody wanted to know, where they passed by."""


@dataclass(frozen=True, slots=True)
class Whose:
    """Who follows."""

    coordinator: IdentityPublic
    name: str
    cards: frozenset[bytes]
    """H(card) of each that it has, had, or is about to have."""


def take_page(whose: Whose, state: LogState | None, page: LogPage, mark: int = 0) -> tuple[LogState, bool]:
    """What is known after ``page``, and whether the log ends there, under a head that fits. ``mark``: see `marked`.

    `LogAlarm`: ``log-proof`` (what is no head or no page), ``log-shrunk``, ``log-fork``.
    """
    try:
        head = verify_head(whose.coordinator, page.head)
        frontier = state.frontier if state is not None else Frontier(page.first, tuple(page.frontier))
    except (PeerViolation, ValueError) as error:
        raise LogAlarm("log-proof", f"its head does not verify ({error})") from None
    if state is not None and head.size < state.frontier.size:
        raise LogAlarm("log-shrunk", f"it had {state.frontier.size} entries, and now has {head.size}")
    if page.first != frontier.size or frontier.size + len(page.entries) > head.size:
        raise LogAlarm("log-proof", "these entries were not asked for")
    if state is None and (not page.entries or not _is_own(whose, page.entries[0])):
        raise LogAlarm("log-proof", "the card of this client is not in it")
    foreign, marked = (state.foreign, state.marked) if state is not None else (b"", b"")
    for entry in page.entries:
        frontier = frontier.add(leaf_hash(entry))
        marked = frontier.root if frontier.size == mark else marked
        foreign = _foreign(whose, entry) or foreign
    whole = frontier.size == head.size
    if whole and frontier.root != head.root:
        raise LogAlarm("log-fork", f"its first {head.size} entries are not those that this client was given before")
    if not whole and not page.entries:
        raise LogAlarm("log-proof", "entries are held back")
    note = page.head if whole else state.head if state is not None else b""
    return LogState(frontier, note, foreign, marked), whole


def check_proof(state: LogState, name: str, card_hash: bytes, proof: LogProof) -> None:
    """That a card is in the log as it was followed; `LogAlarm` (``log-proof``)."""
    frontier = state.frontier
    leaves = map(leaf_hash, card_leaves(name, card_hash))
    if not any(includes(frontier.root, frontier.size, proof.index, leaf, proof.path) for leaf in leaves):
        raise LogAlarm("log-proof", f"the card that it gave for {name} is not in it")


def _is_own(whose: Whose, entry: bytes) -> bool:
    return any(entry in card_leaves(whose.name, card) for card in whose.cards)


def _foreign(whose: Whose, entry: bytes) -> bytes:
    """H(card) where ``entry`` gives this client's name to another card."""
    try:
        leaf: LogLeaf = decode(entry, LogLeaf)
    except PeerViolation:
        return b""  # of a later version: it is hashed all the same
    return leaf.card_hash if leaf.name == whose.name and leaf.card_hash not in whose.cards else b""
