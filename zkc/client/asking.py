"""Transfers that wait for a person: what is asked, until when, what was answered. Held in the daemon's memory."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Final

from zkc.client.control import PendingItem
from zkc.client.transfers import Transfer
from zkc.errors import UsageError

_PREFIX: Final = re.compile(r"[0-9a-f]{1,32}", re.ASCII)


@dataclass(frozen=True)
class Answer:
    """What the person said. ``reason``: for the log here."""

    accept: bool
    reason: str
    proved: bool = False
    """He proved that he may receive."""


@dataclass(eq=False)
class Question:
    """One transfer that waits."""

    item: PendingItem
    transfer: Transfer
    answer: asyncio.Future[Answer]


class Asking:
    """All of them, by id. Belongs to the daemon's loop."""

    def __init__(self) -> None:
        self._questions: dict[str, Question] = {}

    def count(self, sender: str) -> int:
        """How many of ``sender``'s wait."""
        return sum(question.item.sender == sender for question in self._questions.values())

    def items(self) -> list[PendingItem]:
        """Oldest first."""
        return [question.item for question in self._questions.values()]

    def add(self, item: PendingItem, transfer: Transfer) -> Question:
        question = Question(item, transfer, asyncio.get_running_loop().create_future())
        self._questions[item.id] = question
        return question

    def remove(self, question: Question) -> None:
        """Harmless when repeated."""
        self._questions.pop(question.item.id, None)

    def find(self, prefix: str) -> Question:
        """The one that still waits whose id begins so. `UsageError`: ``unknown-id``, ``ambiguous-id``."""
        wanted = prefix.lower()
        known = self._questions.items() if _PREFIX.fullmatch(wanted) else ()
        found = [question for id, question in known if id.startswith(wanted) and not question.answer.done()]
        if not found:
            raise UsageError(
                f"no transfer {prefix[:40]!r} waits for an answer", detail="unknown-id", hint="see zkc inbox"
            )
        if len(found) > 1:
            raise UsageError(
                f"{prefix!r} is the beginning of several ids", detail="ambiguous-id", hint="give more of its digits"
            )
        return found[0]
