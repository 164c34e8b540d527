"""Transfers that wait for a person: what he is shown, until when, what he said. Held in the daemon's memory.

A yes counts for its delivery, not for one handshake: what is interrupted goes on without another question.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Literal

from zkc.client.bus import EventBus
from zkc.client.consent import Consent
from zkc.client.control import PendingItem
from zkc.client.happenings import Answered, Asked
from zkc.client.transfers import Transfer
from zkc.constants import PENDING_MAX, PENDING_PER_SENDER_MAX
from zkc.env import Clock
from zkc.errors import Interrupted, PeerViolation
from zkc.ids import Presence, owner_of
from zkc.protocol.session import open_preview
from zkc.rules.policy import least_size
from zkc.stores.inbox import Inbox
from zkc.stores.items import the_one
from zkc.stores.keystore import KeyStore
from zkc.wire.messages import Preview

_PREFIX: Final = re.compile(r"[0-9a-f]{1,32}", re.ASCII)
_AGREED_KEPT: Final = 4096
"""Deliveries that a person has agreed to and that are remembered; of older ones he is asked again."""


@dataclass(frozen=True)
class Answer:
    """What the person said. ``reason``: for the log here."""

    accept: bool
    reason: str
    level: Presence
    """He was there to say so, or proved too that he may receive."""


@dataclass(frozen=True)
class Agreement:
    """A yes."""

    preview: Preview | None
    """What he was shown; None: who sends, and nothing else."""
    level: Presence
    at: float
    """When, monotonic seconds."""
    own_wish: bool = False
    """He has asked for it himself."""


class Question:
    """One transfer that waits."""

    def __init__(self, transfer: Transfer, item: PendingItem, preview: Preview | None) -> None:
        loop = asyncio.get_running_loop()
        self.transfer: Final = transfer
        self.item: Final = item
        self.preview: Final = preview
        self.answer: Final[asyncio.Future[Answer]] = loop.create_future()
        self.outcome: Final[asyncio.Future[None]] = loop.create_future()
        """Whether the answer reached the sender's coordinator; whoever gave it is told why not."""
        self.outcome.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        self.over = False
        """Whether it was told that it waits no more."""

    def close(self) -> None:
        """Nobody waits for an answer any more. After the outcome: nothing."""
        if not self.outcome.done():
            sender = self.item.sender
            self.outcome.set_exception(Interrupted(
                f"{sender} no longer waits for the answer", detail="ended", hint=f"ask {sender} to send it again"
            ))


class Asking:
    """All of them, by id. Belongs to the daemon's loop."""

    def __init__(self, store: KeyStore, inbox: Inbox, clock: Clock, bus: EventBus) -> None:
        self._store = store
        self._inbox = inbox
        self._clock = clock
        self._bus = bus
        self._questions: dict[str, Question] = {}
        self._agreed: OrderedDict[tuple[bytes, bytes], Agreement] = OrderedDict()
        """By delivery."""

    def consent(self, transfer: Transfer) -> Consent:
        """Whether a person said yes to this delivery before; a part of it that is here was let in, too."""
        key = _delivery_of(transfer)
        if (agreed := self._agreed.get(key)) is not None:
            return Consent(True, agreed.preview)
        return Consent(not transfer.req.fresh and self._inbox.held_bytes(*key) > 0)

    def agreement(self, transfer: Transfer) -> Agreement | None:
        """A person's yes to this delivery."""
        return self._agreed.get(_delivery_of(transfer))

    def agree(self, question: Question, level: Presence) -> None:
        """He said yes, at this level."""
        yes = Agreement(question.preview, level, self._clock.monotonic())
        self._agree(_delivery_of(question.transfer), yes)

    def expect(self, sender_fp: bytes, tid: bytes, *, wanted: bool) -> None:
        """Somebody here has asked the sender for this delivery himself, or wants it no more. It shows nothing of who he
        is."""
        if not wanted:
            self._agreed.pop((sender_fp, tid), None)
            return
        self._agree((sender_fp, tid), Agreement(None, "online", self._clock.monotonic(), own_wish=True))

    def _agree(self, delivery: tuple[bytes, bytes], yes: Agreement) -> None:
        self._agreed[delivery] = yes
        if len(self._agreed) > _AGREED_KEPT:
            self._agreed.popitem(last=False)

    def is_full(self, sender: str) -> bool:
        """Whether as many wait as may, of ``sender`` or in all (attack H14)."""
        of_sender = sum(question.item.sender == sender for question in self._questions.values())
        return of_sender >= PENDING_PER_SENDER_MAX or len(self._questions) >= PENDING_MAX

    def __len__(self) -> int:
        return len(self._questions)

    def items(self) -> list[PendingItem]:
        """Oldest first."""
        return [question.item for question in self._questions.values()]

    def ask(self, transfer: Transfer, ask_timeout: float) -> Question:
        """A person is asked, for ``ask_timeout`` seconds, or as long as the sender waits if that is less."""
        req, now = transfer.req, self._clock.wall()
        pinned = self._store.pinned()
        pin, asker = pinned.get(req.sender), pinned.get(req.asked_by)
        preview = preview_of(transfer)
        item = PendingItem(
            id=req.xid.hex(), sender=req.sender, app=req.recipient if owner_of(req.recipient) else "",
            require=transfer.required, verified=pin is not None and pin.verified is not None,
            name=preview.name if preview else None, note=preview.note if preview else "",
            size=preview.size if preview else None, least_size=least_size(req.size_class),
            key_source=req.key_source, since=now, until=now + min(ask_timeout, req.wait or math.inf),
            asked_by=req.asked_by, asker=req.asker,
            asker_pinned=None if asker is None else req.asker in (asker.fingerprint, *self._store.former(req.asked_by)),
        )
        question = self._questions[item.id] = Question(transfer, item, preview)
        self._bus.publish(Asked(
            item.id, item.sender, item.name, item.size, item.note, item.key_source, item.since, item.app or None,
            item.verified, item.require, item.until, item.asked_by or None, item.asker.hex() or None,
            item.asker_pinned,
        ))
        return question

    async def wait(self, question: Question) -> Answer | None:
        """His answer; None: the time for it is over."""
        try:
            async with asyncio.timeout(question.item.until - question.item.since):
                answer = await asyncio.shield(question.answer)
        except TimeoutError:
            if not question.answer.done():
                question.answer.cancel()  # nobody finds it any more
                self._over(question, "unanswered")
                return None
            answer = question.answer.result()  # at the same moment
        self._over(question, "accepted" if answer.accept else "refused")
        return answer

    def remove(self, question: Question) -> None:
        """It is over, with or without an answer."""
        self._questions.pop(question.item.id, None)
        self._over(question, "gone")
        question.close()

    def _over(self, question: Question, how: Literal["accepted", "refused", "unanswered", "gone"]) -> None:
        if not question.over:
            question.over = True
            self._bus.publish(Answered(question.item.id, question.item.sender, how))

    def find(self, prefix: str) -> Question:
        """The one that still waits whose id begins so. `UsageError`: ``unknown-id``, ``ambiguous-id``."""
        wanted = prefix.lower()
        known = self._questions.items() if _PREFIX.fullmatch(wanted) else ()
        found = [question for id, question in known if id.startswith(wanted) and not question.answer.done()]
        return the_one(found, prefix, "no transfer {} waits for an answer")


def _delivery_of(transfer: Transfer) -> tuple[bytes, bytes]:
    return transfer.sender.fingerprint, transfer.req.tid


def preview_of(transfer: Transfer) -> Preview | None:
    """What its sender shows of it before the key; None: nothing, or nothing that can be read here."""
    try:
        return open_preview(transfer.context.kem_key, transfer.req)
    except PeerViolation:
        # Made for a permanent key that this client has no more: like a first contact.
        return None
