"""What happens at a home's daemon, as it tells of it: plain values, the same for `zkc events`, programs and hooks.

Each is one kind of event, its tag the ``event`` of the JSON object, its fields the object's keys (`told`). Names of
peers, names of items and notes are the peer's text: escape them before printing. No event holds a key, a PIN, content.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

from msgspec.structs import fields

from zkc.errors import ZkcError
from zkc.ids import KeySource, PersonState, Presence
from zkc.wire.messages import Message

_WORDS: Final = {"sender": "from", "recipient": "to"}
TIMES: Final = frozenset({"received", "expires", "next"})
"""Fields in seconds since 1970, which JSON has as RFC 3339; 0: none."""


class Arrived(Message, frozen=True, tag="arrived", rename=_WORDS):
    """An item is in the inbox, whole. The keys are those of `zkc inbox --json`."""

    id: str
    """Of the item: `zkc inbox show ID`, `zkc recv`."""
    sender: str
    name: str
    bytes: int
    digest: str
    """`blake3:HEX` of the whole payload."""
    note: str
    key_source: KeySource
    received: float
    path: str
    """Its file or folder in the inbox."""
    app: str | None
    """The application that it was sent to; null: this client itself."""
    kind: Literal["file", "stream", "message", "tree"]
    transfer: str
    asked_by: str | None
    asker_fingerprint: str | None
    """By whose request it was sent, as its sender says; null: nobody's."""


class Asked(Message, frozen=True, tag="asked", rename=_WORDS):
    """A transfer waits for a person's answer. The keys are those of a pending item of `zkc inbox --json`."""

    id: str
    """For `zkc accept ID` and `zkc refuse ID`; that of the transfer."""
    sender: str
    name: str | None
    """Null: its sender has not pinned this client's key, and shows nothing."""
    bytes: int | None
    """Null: not told."""
    note: str
    key_source: KeySource
    received: float
    """Since when it waits."""
    app: str | None
    verified: bool
    """Whether a person here has compared the safety number of its sender."""
    require: Presence
    """What its sender wants to hold; for `authorised` the person proves himself."""
    expires: float
    """Until when it waits."""
    asked_by: str | None
    asker_fingerprint: str | None
    """By whose request it is sent, as its sender says; null: nobody's."""
    asker_pinned: bool | None
    """Whether that is the key which is pinned here for that name; null: none is."""


class Answered(Message, frozen=True, tag="answered", rename=_WORDS):
    """It waits no more."""

    id: str
    """That of the `asked` before."""
    sender: str
    answer: Literal["accepted", "refused", "unanswered", "gone"]
    """`gone`: its sender has given up, or this daemon ends."""


class Decision(Message, frozen=True, tag="decision", rename=_WORDS):
    """Something was decided, by policy or for another reason: what `zkc audit` has, with its keys."""

    kind: str
    """`incoming`, `outgoing`: a transfer; `received`: one that did not arrive; `share`, `proof`, ..."""
    sender: str | None
    recipient: str | None
    outcome: Literal["ok", "refused"]
    code: int
    """Of docs/errors.md; 0: granted."""
    detail: str
    rule: str
    """The rule of policy that decided, where one did."""
    withheld: int
    """How many refusals of the same kind came since the last one that was told: each is told once in ten seconds."""


class KeyNews(Message, frozen=True, tag="key"):
    """A key changed, moved on, or is in doubt."""

    kind: Literal["key-changed", "key-succeeded", "key-log-alarm", "coordinator-succeeded", "rotated"]
    """`key-changed`: another key than the pinned one was shown, and refused; `key-succeeded`: the former one vouches
    for the new one, which is pinned now; `key-log-alarm`: the coordinator's key log is not what it should be;
    `coordinator-succeeded`: the coordinator has a new identity; `rotated`: a registration here has new keys."""
    name: str | None
    """Whose; null: the coordinator's."""
    code: int
    detail: str
    withheld: int
    """As of `decision`."""


class PeerNews(Message, frozen=True, tag="presence"):
    """A peer, or its person, is there or gone, unlike when this daemon last heard of it. It hears when it asks: for
    `zkc peers` and `zkc wait`, and while a queued job waits for that peer."""

    name: str
    online: bool
    person: PersonState


class OwnPerson(Message, frozen=True, tag="person"):
    """What is known of the person at this client is not what it was."""

    person: PersonState


class Begun(Message, frozen=True, tag="begun", rename=_WORDS):
    """Bytes of a transfer flow, in or out."""

    transfer: str
    """Its id: of a delivery that breaks off and goes on, each link has its own."""
    direction: Literal["in", "out"]
    sender: str
    recipient: str
    name: str | None
    """Null: a process takes it straight from the wire (`recv --live`), and this daemon does not see it."""
    total: int | None
    """Bytes; null while nobody knows."""
    resumed_from: int
    """Bytes that the recipient had already."""
    live: bool
    """Whether a process takes it, in place of the inbox."""


class Progress(Message, frozen=True, tag="progress"):
    """How far it is; at most two a second of each transfer, only while somebody follows, and not remembered."""

    transfer: str
    bytes: int
    total: int | None


class Ended(Message, frozen=True, tag="ended", rename=_WORDS):
    """A transfer that had `begun` is over."""

    transfer: str
    direction: Literal["in", "out"]
    sender: str
    recipient: str
    name: str | None
    bytes: int | None
    """Null: not known here."""
    code: int
    """0: the recipient holds all of it, verified."""
    reason: str
    detail: str


class Delivered(Message, frozen=True, tag="delivered"):
    """The recipient holds what was sent, and its receipt was checked. The keys are those of `zkc send --json`."""

    transfer: str
    recipient: str
    name: str
    bytes: int
    digest: str
    seconds: float
    receipt: str
    """Path of the kept receipt."""
    key_source: KeySource


class OutboxNews(Message, frozen=True, tag="outbox", rename={"recipient": "to"}):
    """A job of `zkc send --queue` is new, or not what it was. The keys are those of `zkc outbox --json`."""

    id: str
    state: Literal["waiting", "sending", "failed", "delivered", "cancelled"]
    """The last two: it is not in the outbox any more."""
    recipient: str
    name: str
    bytes: int | None
    tries: int
    next: float
    """When the next try is due."""
    expires: float
    code: int
    """Of what the last try ended with; with its finer word and its line."""
    detail: str
    why: str


class LinkNews(Message, frozen=True, tag="link"):
    """The link of a registration of this home to the coordinator stands, or does not."""

    client: str
    linked: bool
    coordinator: str
    code: int
    """Why not; 0: it does, or was closed in order."""
    reason: str
    detail: str


class Started(Message, frozen=True, tag="started"):
    """The daemon runs: the first event of each, whose number is 1."""

    client: str
    version: str


class Lost(Message, frozen=True, tag="lost"):
    """The follower was too slow: so many events before the next one are gone."""

    lost: int


Happening: TypeAlias = (
    Arrived | Asked | Answered | Decision | KeyNews | PeerNews | OwnPerson | Begun | Progress | Ended | Delivered
    | OutboxNews | LinkNews | Started | Lost
)


class Happened(Message, frozen=True):
    """One event, and when it was."""

    seq: int
    """Its running number at this daemon; 0: it is not remembered (`Progress`, `Lost`)."""
    at: float
    """Seconds since 1970."""
    what: Happening


def tag_of(kind: type[Message]) -> str:
    """The ``event`` of an object of this kind."""
    return str(kind.__struct_config__.tag)


def ended(begun: Begun, size: int | None, error: ZkcError | None = None) -> Ended:
    """``begun`` is over; ``error``: why it is not whole."""
    code, reason, detail = (0, "", "") if error is None else (error.code, error.reason, error.detail)
    return Ended(
        begun.transfer, begun.direction, begun.sender, begun.recipient, begun.name, size, code, reason, detail
    )


def told(what: Happening) -> tuple[str, dict[str, Any]]:
    """``event`` and keys of its object, but for ``seq`` and ``time``. Times as they are: see `TIMES`."""
    return tag_of(type(what)), {field.encode_name: getattr(what, field.name) for field in fields(what)}
