"""May this transfer be? One table, asked by the sender, the coordinator and the recipient before any key exists.

The three differ only in the `Rules` that they bring: what one does not judge stays at its default.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Literal

from zkc.errors import LocalIOError, PolicyRefused, ZkcError, error_for
from zkc.ids import KEY_ORDERS, KeyOrder, KeySource

SIZE_UNKNOWN: Final = 255
"""The size class of a stream whose length nobody knows."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a transfer asks for. ``least_bytes``: what is known of its size, at least (`least_size`, or the size)."""

    key_source: KeySource
    cipher: str
    least_bytes: int = 0
    key_order: KeyOrder = "recipient-first"
    """Means nothing where the sender makes the key."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What one party allows. 0 in a number: no bound.

    ``max_bytes`` of one transfer; ``min_free`` bytes stay free on the disk; ``at_once`` transfers or handshakes, and
    ``per_second`` requests, of one sender.
    """

    key_sources: Collection[str]
    ciphers: Collection[str]
    key_orders: Collection[str] = KEY_ORDERS
    accept: Literal["all", "ask", "none"] = "all"
    max_bytes: int = 0
    min_free: int = 0
    at_once: int = 0
    per_second: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How things stand, without the transfer in question: of its sender ``at_once`` under way and ``last_second``
    requests seen; ``free_bytes`` on the disk, None for who stores nothing; ``held_bytes`` of it are there already.
    """

    at_once: int = 0
    last_second: int = 0
    free_bytes: int | None = None
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not: a code of the contract, its finer word for the wire, a line for the own log and output, what to do."""

    code: int
    detail: str
    text: str
    hint: str

    def error(self) -> ZkcError:
        """The same as an exception."""
        return error_for(self.code, self.text, detail=self.detail, hint=self.hint)


@dataclass(frozen=True, slots=True)
class _Case:
    asked: Asked
    rules: Rules
    now: Standing


@dataclass(frozen=True, slots=True)
class _Row:
    refuses: Callable[[_Case], bool]
    code: int
    detail: str
    text: str
    hint: str = ""


# The first row that holds decides; what protects this side from a flood comes first.
_WHO_AND_HOW: Final = (
    _Row(
        lambda case: 0 < case.rules.per_second <= case.now.last_second,
        PolicyRefused.code, "limit", "more than {rules.per_second} requests a second from one sender",
    ),
    _Row(
        lambda case: 0 < case.rules.at_once <= case.now.at_once,
        PolicyRefused.code, "limit", "one sender has {rules.at_once} transfers under way already",
    ),
    _Row(
        lambda case: case.rules.accept == "none",
        PolicyRefused.code, "accept", "no transfers are accepted (inbox.accept)",
    ),
    _Row(
        lambda case: case.asked.key_source not in case.rules.key_sources,
        PolicyRefused.code, "key-source", "keys made by the {asked.key_source} are not allowed here",
        "transfer.key_sources must name '{asked.key_source}' at the coordinator and at both ends",
    ),
    _Row(
        lambda case: case.asked.key_source == "coordinator" and case.asked.key_order not in case.rules.key_orders,
        PolicyRefused.code, "key-order", "keys are not handed out {asked.key_order} here",
        "transfer.key_orders must name '{asked.key_order}' at the coordinator",
    ),
    _Row(
        lambda case: case.asked.cipher not in case.rules.ciphers,
        PolicyRefused.code, "cipher", "the cipher asked for is not allowed here",
        "transfer.ciphers must name it at the coordinator and at both ends",
    ),
)
_HOW_MUCH: Final = (
    _Row(
        lambda case: 0 < case.rules.max_bytes < case.asked.least_bytes,
        PolicyRefused.code, "limit", "larger than {rules.max_bytes} bytes (inbox.max_bytes)",
    ),
    _Row(
        lambda case: case.now.free_bytes is not None
        and case.now.free_bytes < case.rules.min_free + max(case.asked.least_bytes - case.now.held_bytes, 0),
        LocalIOError.code, "no-space", "not enough space: {rules.min_free} bytes stay free (inbox.min_free)",
    ),
)


def decide(asked: Asked, rules: Rules, standing: Standing) -> Refusal | None:
    """None where the transfer may be, else why not."""
    return _first(_WHO_AND_HOW + _HOW_MUCH, _Case(asked, rules, standing))


def decide_size(asked: Asked, rules: Rules, standing: Standing) -> Refusal | None:
    """The same by size alone, for a transfer that was let in: with its manifest's size, or what has come so far."""
    return _first(_HOW_MUCH, _Case(asked, rules, standing))


def _first(rows: tuple[_Row, ...], case: _Case) -> Refusal | None:
    for row in rows:
        if row.refuses(case):
            text, hint = (words.format(asked=case.asked, rules=case.rules) for words in (row.text, row.hint))
            return Refusal(row.code, row.detail, text, hint)
    return None


def size_class(size: int | None) -> int:
    """What the coordinator learns of a size in bytes: the least n with ``size <= 2**n``; None: `SIZE_UNKNOWN`."""
    return SIZE_UNKNOWN if size is None else max(size - 1, 0).bit_length()


def least_size(size_class: int) -> int:
    """The smallest size in bytes that has this class; 0 where it is not known."""
    return 0 if size_class in {0, SIZE_UNKNOWN} else (1 << (size_class - 1)) + 1
