"""The steps of a transfer's handshake (docs/protocol.md, section 11), and whose work each is, from its stamps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scripts.bench.stamps import Stamp

WAY: Final = "way"
OUTSIDE: Final = "outside"
ASKED: Final = "before X1"
OPENED: Final = "12: step 1"
DELIVERED: Final = "12: steps 2 to 7"
Mark = tuple[str, str, str]
"""A step of the protocol, a party, and the function of its machine that has a part in it."""

_ASK: Final[tuple[Mark, ...]] = (
    ("X1", "S", "create_request"), ("X1", "C", "consume_request"), ("X2", "R", "consume_notification"),
    ("X3", "R", "create_response"), ("X3", "C", "consume_answer"),
)
BY_SENDER: Final[tuple[Mark, ...]] = (
    *_ASK, ("X4", "S", "consume_grant"), ("X5", "S", "create_key"), ("X5", "C", "consume_key"),
    ("X5", "R", "consume_key"), ("X6", "C", "consume_confirmation"), ("X6", "S", "consume_confirmation"),
)
RECIPIENT_FIRST: Final[tuple[Mark, ...]] = (
    *_ASK, ("G1", "R", "consume_session_key"), ("G2", "C", "consume_recipient_confirmation"),
    ("G3", "S", "consume_grant"), ("G4", "S", "create_sender_confirmation"),
    ("G4", "C", "consume_sender_confirmation"), ("G4", "R", "consume_sender_confirmation"),
    ("G4", "C", "consume_recipient_word"), ("G4", "S", "consume_stored"),
)
SENDER_FIRST: Final[tuple[Mark, ...]] = (
    *_ASK, ("G1'", "S", "consume_grant"), ("G2'", "S", "create_sender_confirmation"),
    ("G2'", "C", "consume_sender_confirmation"), ("G3'", "R", "consume_session_key"),
    ("G4'", "C", "consume_recipient_word"), ("G4'", "S", "consume_confirmation"),
)
WHAT: Final = {
    "X1": ("S → C", "REQ: made, signed"),
    "X2": ("C → R", "REQ, card and certificate of S: verified"),
    "X3": ("R → C", "RESP: policy asked, ports bound, one-time key made, signed"),
    "X4": ("C → S", "RESP, card and certificate of R: verified"),
    "X5": ("S → C → R", "KEY: R pinned, K made, signed; opened"),
    "X6": ("R → C → S", "CONF: checked"),
    "G1": ("C → R", "KEYR: opened"),
    "G2": ("R → C", "CONFR: checked; K wrapped for S"),
    "G3": ("C → S", "RESP, card and certificate of R, KEYS, CONFR: verified, opened"),
    "G4": ("S → C → R → C → S", "CONFS: made, checked; ok"),
    "G1'": ("C → S", "RESP, card and certificate of R, KEYS: verified, opened"),
    "G2'": ("S → C", "CONFS: made; K wrapped for R"),
    "G3'": ("C → R", "KEYR, CONFS: opened, checked"),
    "G4'": ("R → C → S", "CONFR: checked"),
}


@dataclass(frozen=True)
class Part:
    """A piece of a transfer's time: of which step, at whom or where, how long."""

    step: str
    owner: str
    length: float


def parts_of(marks: Sequence[Mark], noted: Sequence[Stamp], began: int, opened: int, ended: int) -> list[Part]:
    """From the call to its end, without a gap, in nanoseconds."""
    if [(stamp.party, stamp.function) for stamp in noted] != [mark[1:] for mark in marks]:
        raise RuntimeError(f"another handshake than expected: {noted}")
    parts = [Part(ASKED, OUTSIDE, noted[0].began - began)]
    at, holder = noted[0].began, noted[0].party
    for (step, party, _), stamp in zip(marks, noted, strict=True):
        if party != holder:
            parts.append(Part(step, WAY, stamp.began - at))
            at, holder = stamp.began, party
        # With what it did since its last function, such as to ask its policy and to bind ports.
        parts.append(Part(step, party, stamp.ended - at))
        at = stamp.ended
    return [*parts, Part(OPENED, OUTSIDE, opened - at), Part(DELIVERED, OUTSIDE, ended - opened)]
