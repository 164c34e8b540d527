"""Requests and answers inside a channel, either way: each request is done once, however often it comes.

A request that gets no answer is repeated under its id; a repeat gets the stored answer. Works across a renewed channel:
``via`` says only where to send, and the newest valid record decides.

What is stored is bounded, and an asker may have more under way than that: once its answer has gone, a request that
comes again is a new one. So whoever answers must bear each of them twice: it changes nothing, or it is told apart by an
id of its own (of a transfer: `zkc.protocol.transfer_coordinator`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from zkc.constants import ANSWERS_KEPT_BYTES_MAX, ANSWERS_KEPT_MAX, ASKED_MAX, ASKED_NEW_MAX, RETRY_SECONDS
from zkc.errors import PeerViolation
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Answer, AnswerBody, Failure, Notify, Record, Request, RequestBody, TransferRequest

V = TypeVar("V")


@dataclass(frozen=True)
class Asked:
    """The peer asks; answer with `Calls.answer` or `Calls.fail` under ``id``."""

    id: bytes
    body: RequestBody


@dataclass(frozen=True, repr=False)
class Replied:
    """The peer's answer to our request."""

    id: bytes
    body: AnswerBody | Failure


@dataclass(frozen=True)
class Expired:
    """Nobody answered our request in time."""

    id: bytes


@dataclass(frozen=True, repr=False, slots=True)
class Outgoing(Generic[V]):
    """A plaintext to seal and send; ``via`` None: wherever the peer is now."""

    via: V | None
    plaintext: bytes


@dataclass(slots=True)
class _Pending:
    plaintext: bytes
    again: float
    deadline: float


class Calls(Generic[V]):
    """One peer's requests and ours. No I/O: plaintexts in, plaintexts and events out; ``now`` is monotonic seconds."""

    def __init__(self) -> None:
        self._pending: dict[bytes, _Pending] = {}
        self._asked: dict[bytes, V] = {}
        self._answers: OrderedDict[bytes, bytes] = OrderedDict()
        self._answer_bytes = 0

    def request(self, id: bytes, body: RequestBody, now: float, deadline: float) -> bytes:
        """A new request: its plaintext, now; repeated by `tick` until it is answered or ``deadline``."""
        plaintext = encode(Request(id, body))
        self._pending[id] = _Pending(plaintext, now + RETRY_SECONDS, deadline)
        return plaintext

    def forget(self, id: bytes) -> None:
        """Our request needs no answer any more."""
        self._pending.pop(id, None)

    def receive(self, plaintext: bytes, via: V) -> Asked | Replied | Outgoing[V] | None:
        """What one record means: a new request, an answer of ours, the stored answer to repeat, or nothing new."""
        record = decode(plaintext, Record)
        if isinstance(record, Request):
            stored = self._answers.get(record.id)
            if stored is not None:
                return Outgoing(via, stored)
            repeated = record.id in self._asked
            places = ASKED_NEW_MAX if isinstance(record.body, TransferRequest | Notify) else ASKED_MAX
            if not repeated and len(self._asked) >= places:
                raise PeerViolation("limit", "too many requests at once")
            self._asked[record.id] = via
            return None if repeated else Asked(record.id, record.body)
        if self._pending.pop(record.id, None) is None:
            return None
        return Replied(record.id, record.body if isinstance(record, Answer) else record)

    def answer(self, id: bytes, body: AnswerBody) -> Outgoing[V]:
        """Our answer to the peer's request ``id``."""
        return self._store(id, encode(Answer(id, body)))

    def fail(self, id: bytes, code: int, detail: str) -> Outgoing[V]:
        """Our refusal of the peer's request ``id``, with a code of the contract."""
        return self._store(id, encode(Failure(id, code, detail)))

    def tick(self, now: float) -> list[Outgoing[V] | Expired]:
        """What to repeat now, and which requests have run out of time."""
        due: list[Outgoing[V] | Expired] = []
        for id, pending in list(self._pending.items()):
            if now >= pending.deadline:
                del self._pending[id]
                due.append(Expired(id))
            elif now >= pending.again:
                pending.again = now + RETRY_SECONDS
                due.append(Outgoing(None, pending.plaintext))
        return due

    def resend(self, now: float) -> list[Outgoing[V]]:
        """Every request still open: for a link that has just come back."""
        for pending in self._pending.values():
            pending.again = now + RETRY_SECONDS
        return [Outgoing(None, pending.plaintext) for pending in self._pending.values()]

    def abandon(self) -> list[Expired]:
        """Every open request is given up (the peer is gone)."""
        gone = [Expired(id) for id in self._pending]
        self._pending.clear()
        return gone

    def _store(self, id: bytes, plaintext: bytes) -> Outgoing[V]:
        self._answers[id] = plaintext
        self._answer_bytes += len(plaintext)
        while len(self._answers) > ANSWERS_KEPT_MAX or self._answer_bytes > ANSWERS_KEPT_BYTES_MAX:
            self._answer_bytes -= len(self._answers.popitem(last=False)[1])
        return Outgoing(self._asked.pop(id, None), plaintext)
