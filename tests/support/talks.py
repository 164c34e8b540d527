"""Conversations: two or three machines over a link in memory, and a tap on it for whoever tries something.

Each message is encoded, recorded and decoded on its way, as between processes. A `Talk` performs the effects of a step
as the programs do, in their order; what an effect means stands in one function for each kind of conversation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Final

import msgspec

from zkc.constants import CHUNK_MIN
from zkc.crypto.primitives import Secret
from zkc.crypto.suites import KemPrivateKey, Suite
from zkc.ids import Acknowledgement, Compression, KeyOrder, KeySource, Presence
from zkc.protocol import channel as ch
from zkc.protocol import registration_client as rc
from zkc.protocol import registration_coordinator as rs
from zkc.protocol import transfer_coordinator as tc
from zkc.protocol import transfer_recipient as tr
from zkc.protocol import transfer_sender as ts
from zkc.protocol.session import Session
from zkc.protocol.step import Send, Step, Table, step
from zkc.wire.codec import decode, encode
from zkc.wire.messages import (
    AnswerBody,
    AnswerInfo,
    ChannelAnswer,
    ChannelHello,
    ChannelMessage,
    Endpoints,
    HelloInfo,
    Message,
    RegMessage,
    RequestBody,
    TransferAnswer,
    TransferResponse,
)

GRAMMARS: Final = {"reg": RegMessage, "chan": ChannelMessage, "xfer": RequestBody | AnswerBody}
LIMITS: Final = AnswerInfo(0, 65536, 3000, 1_800_000_000, bytes(32))
HERE: Final = Endpoints(["tcp://127.0.0.1"], 40001, 40002, 0, "", b"")
THERE: Final = Endpoints(["127.0.0.1", "::1"], 40003, 40004, 0, "", b"")
"""Where a sender listens that is asked to."""


@dataclass(frozen=True)
class Turn:
    """A message that is about to be consumed."""

    to: str
    table: Table
    context: Any
    state: Any
    message: Any


Tap = Callable[[Turn], Any]
"""Sees each message before it is consumed; what it returns is consumed in its place, None: nothing is."""


def passing(turn: Turn) -> Any:
    """The tap that does nothing."""
    return turn.message


@dataclass
class Side:
    """One machine of a conversation."""

    table: Table
    context: Any
    state: Any
    states: list[Any] = field(default_factory=list)
    """Every state that it has been in."""

    def __post_init__(self) -> None:
        self.states.append(self.state)


class Talk:
    """One conversation. ``wire`` is what an observer of all links sees, in order: (to whom, message)."""

    def __init__(self, pattern: str, sides: dict[str, Side], tap: Tap = passing) -> None:
        self.grammar = GRAMMARS[pattern]
        self.sides = sides
        self.tap = tap
        self.wire: list[tuple[str, bytes]] = []
        self.cells: set[tuple[int, type, type]] = set()
        """Every cell of a table that has acted: (id of the table, state, message)."""
        self._queue: deque[tuple[str, Any]] = deque()

    def run(self) -> None:
        """Until nobody has anything to say. What a machine raises comes out here."""
        self.begin()
        while self._queue:
            to, message = self._queue.popleft()
            side = self.sides[to]
            heard = self.tap(Turn(to, side.table, side.context, side.state, message))
            if heard is not None:
                self.feed(to, heard)

    def begin(self) -> None:
        """The first word."""
        raise NotImplementedError

    def perform(self, who: str, effect: Any) -> None:
        """One effect of ``who``'s step."""
        raise NotImplementedError

    def arrived(self, who: str) -> None:
        """``who`` is in a new state, whose effects are performed."""

    def feed(self, who: str, message: Any) -> None:
        """``who`` consumes a message or an event."""
        side = self.sides[who]
        before = side.state
        self.take(who, step(side.table, side.context, before, message))
        self.cells.add((id(side.table), type(before), type(message)))

    def take(self, who: str, after: Step) -> None:
        """``who`` has taken a step: its new state, then its effects, in their order."""
        side = self.sides[who]
        side.state = after.state
        side.states.append(after.state)
        for effect in after.effects:
            self.perform(who, effect)
        self.arrived(who)

    def say(self, to: str, message: Any) -> None:
        """A message sets out: encoded, recorded, decoded."""
        encoded = encode(message)
        self.wire.append((to, encoded))
        self._queue.append((to, decode(encoded, self.grammar)))

    def state(self, who: str) -> Any:
        return self.sides[who].state

    def messages(self, *kinds: type) -> list[Any]:
        """What has been on the wire, of these kinds."""
        decoded = (decode(encoded, self.grammar) for _, encoded in self.wire)
        return [message for message in decoded if isinstance(message, kinds)]


# --- registration ---------------------------------------------------------------------------------------------------


@dataclass
class MemoryRegister:
    """The key database's part of one registration, in memory: what is reserved stays the same at every try."""

    suite: Suite
    uid: bytes
    reserved: KemPrivateKey | None = None
    committed: list[rs.Commit] = field(default_factory=list)

    def pair(self) -> KemPrivateKey:
        """A temporary pair, as the pool has them."""
        return self.suite.generate()

    def reserve(self) -> rs.Reserved:
        if self.reserved is None:
            self.reserved = self.suite.generate()
        return rs.Reserved(self.uid, self.reserved)

    def commit(self, commit: rs.Commit) -> rs.Committed:
        if not self.committed:
            self.committed.append(commit)
        return rs.Committed(self.committed[0].certificate, 7)


class RegistrationTalk(Talk):
    """R0 to R6 between a newcomer and the coordinator."""

    def __init__(
        self, newcomer: rc.Newcomer, registrar: rs.Registrar, register: MemoryRegister, tap: Tap = passing
    ) -> None:
        first = rc.create_hello(newcomer)
        sides = {
            "client": Side(rc.TABLE, newcomer, first.state),
            "coordinator": Side(rs.TABLE, registrar, rs.Nothing()),
        }
        super().__init__("reg", sides, tap)
        self.register = register
        self.kept_card = b""
        self.order: list[str] = []
        """What was done in which order: kept, sent, reserved, committed."""
        self._first = first

    def begin(self) -> None:
        for effect in self._first.effects:
            self.perform("client", effect)

    def perform(self, who: str, effect: Any) -> None:
        match effect:
            case Send(message):
                self.order.append(type(message).__name__)
                self.say("coordinator" if who == "client" else "client", message)
            case rc.KeepCard(card):
                self.order.append("kept")
                self.kept_card = card
            case rs.MakePair():
                self.feed(who, rs.PairMade(self.register.pair()))
            case rs.Reserve():
                self.order.append("reserved")
                self.feed(who, self.register.reserve())
            case rs.Commit():
                self.order.append("committed")
                self.feed(who, self.register.commit(effect))
            case _:
                raise AssertionError(f"unexpected effect {effect!r}")


# --- channel --------------------------------------------------------------------------------------------------------


def hello_info(role: str = "daemon", **changes: Any) -> HelloInfo:
    return HelloInfo(role, changes.get("instance", bytes(16)), changes.get("versions", list(ch.VERSIONS)), 1)


def open_channel(client: ch.ClientKeys, peer: ch.PeerKeys, now: float = 0.0) -> tuple[ch.Channel, ch.Channel]:
    """Both ends of a new channel, the client's first; its first record has not been sent."""
    sent = ch.create_hello(client, hello_info(), now)
    hello: ChannelHello = only(sent)
    answered = greeted(peer, hello, now=now)
    answer: ChannelAnswer = only(answered)
    established = ch.consume_answer(client, sent.state, answer).state
    return established.channel, answered.state.channel


def greeted(
    peer: ch.PeerKeys, hello: ChannelHello, limits: AnswerInfo = LIMITS, now: float = 0.0,
    general: KemPrivateKey | None = None, former: tuple[KemPrivateKey, ...] = (),
) -> Step:
    """The coordinator's step for C1."""
    keys = (general, *former) if general else ()
    return step(ch.TABLE, ch.Host(peer, limits, now, keys), ch.Unheard(), hello)


def only(after: Step) -> Any:
    """The one message that a step sends."""
    (effect,) = after.effects
    return effect.message


# --- transfer -------------------------------------------------------------------------------------------------------


class TransferTalk(Talk):
    """X1 to X6, or G1 to G4, between sender, coordinator and recipient."""

    def __init__(
        self,
        sender: ts.Sender,
        broker: tc.Broker,
        recipient: tr.Recipient,
        terms: ts.Terms,
        *,
        decision: Any = None,
        asks: bool = False,
        tap: Tap = passing,
    ) -> None:
        """``asks``: the recipient asks a person first, who decides once the sender has asked again."""
        first = ts.create_request(sender, terms)
        sides = {
            "sender": Side(ts.TABLE, sender, first.state),
            "coordinator": Side(tc.TABLE, broker, tc.Idle()),
            "recipient": Side(tr.TABLE, recipient, tr.Idle()),
        }
        super().__init__("xfer", sides, tap)
        self.decision = decision or tr.Accept(HERE, CHUNK_MIN, 0)
        self.failure: tc.FailSender | None = None
        self.refusal: TransferResponse | None = None
        """What the coordinator passes to the sender."""
        self._asks = asks
        self._late: TransferAnswer | None = None
        self._first = first

    def begin(self) -> None:
        for effect in self._first.effects:
            self.perform("sender", effect)

    def perform(self, who: str, effect: Any) -> None:
        match effect:
            case Send(TransferResponse(response, signature)) if self._asks:
                self._late = TransferAnswer(self.sides["recipient"].states[1].req.xid, response, signature)
            case Send(message):
                self.say("coordinator", message)
            case tc.AskRecipient(body):
                self.say("recipient", body)
            case tc.AnswerSender(body):
                self.say("sender", body)
            case tc.FailSender():
                self.failure = effect
            case tc.RefuseSender(body, code, detail):
                self.failure = tc.FailSender(code, detail)
                self.refusal = body
                self.say("sender", body)
            case _:
                raise AssertionError(f"unexpected effect {effect!r}")

    def arrived(self, who: str) -> None:
        state = self.state(who)
        if isinstance(state, tr.Notified):
            is_first = sum(isinstance(each, tr.Notified) for each in self.sides[who].states) == 1
            self.feed(who, tr.AskPerson() if self._asks and is_first else self.decision)
        elif isinstance(state, tc.PersonAsked):
            if self._late is not None and sum(each is state for each in self.sides[who].states) == 2:
                self.say("coordinator", self._late)
        elif isinstance(state, ts.Granted | ts.KeyOpened):
            granted = state if isinstance(state, ts.Granted) else state.granted
            self.feed(who, ts.MakeKey(THERE if granted.must_listen else None))

    @property
    def sessions(self) -> tuple[Session, Session]:
        """What sender and recipient hold at the end."""
        return self.state("sender").session, self.state("recipient").session

    @property
    def agreed(self) -> tuple[bool, bool]:
        """Whether sender and recipient hold the key, each confirmed by the other."""
        return isinstance(self.state("sender"), ts.Agreed), isinstance(self.state("recipient"), tr.Agreed)


def terms(
    recipient: str,
    *,
    serial: int = 1,
    key_source: KeySource = "sender",
    key_order: KeyOrder = "recipient-first",
    cipher: str = "aes-256-gcm",
    compression: Compression = "none",
    presence: Presence = "online",
    acknowledgement: Acknowledgement = "session",
) -> ts.Terms:
    """What to ask for; ``serial`` tells transfers apart."""
    xid, tid = b"x" * 12 + serial.to_bytes(4, "big"), b"t" * 12 + serial.to_bytes(4, "big")
    return ts.Terms(
        xid, tid, recipient, key_source, key_order, cipher, 255, fresh=False, compression=compression,
        presence=presence, acknowledgement=acknowledgement,
    )


# --- looking into states --------------------------------------------------------------------------------------------


def secrets_in(value: Any, path: str = "") -> Iterator[tuple[str, Secret]]:
    """Every secret that can be reached from a state: (where, secret)."""
    if isinstance(value, Secret):
        yield path, value
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield from secrets_in(each, f"{path}[{i}]")
    for name in _names(value):
        yield from secrets_in(getattr(value, name), f"{path}.{name}")


def is_wiped(secret: Secret) -> bool:
    """Whether nothing of it is left."""
    return repr(secret) == "Secret(wiped)"


def snapshot(value: Any) -> Any:
    """All that a state consists of, secrets revealed: to be compared with another snapshot."""
    if isinstance(value, Secret):
        return ("secret", b"" if is_wiped(value) else value.reveal())
    if isinstance(value, Message):
        return (type(value).__name__, encode(value))
    held = tuple((name, snapshot(getattr(value, name))) for name in _names(value) if name != "native")
    return (type(value).__name__, held) if held else value


def _names(value: Any) -> tuple[str, ...]:
    """Of what a value holds; none where it is no dataclass and no Struct."""
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    return tuple(each.name for each in fields(value)) if is_dataclass(value) and not isinstance(value, type) else ()


def spans(message: msgspec.Struct) -> dict[str, tuple[int, int]]:
    """Where each field of a message stands in its encoding; what is before the first is the frame around them."""
    lengths = [(name, len(msgspec.msgpack.encode(getattr(message, name)))) for name in message.__struct_fields__]
    at = len(encode(message)) - sum(length for _, length in lengths)
    found = {"": (0, at)}
    for name, length in lengths:
        found[name] = (at, at + length)
        at += length
    return found
