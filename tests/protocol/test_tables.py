"""What is legal stands in the tables: every message in every state of every machine; every cell in a conversation."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import partial
from types import ModuleType
from typing import Any, Final

import pytest
from blake3 import blake3
from msgspec import Struct

from tests.support.parties import World, identity_of, newcomer
from tests.support.talks import RegistrationTalk, Talk, Turn, greeted, hello_info, only, terms
from zkc.constants import CHUNK_MIN
from zkc.crypto.ciphers import AeadCipher
from zkc.crypto.receipts import make_receipt
from zkc.errors import PeerViolation
from zkc.protocol import (
    channel,
    delivery,
    delivery_recipient,
    delivery_sender,
    registration_client,
    registration_coordinator,
    transfer_coordinator,
    transfer_recipient,
    transfer_sender,
)
from zkc.protocol import transfer_recipient as tr
from zkc.protocol.delivery_recipient import receipt_body
from zkc.protocol.session import Session
from zkc.protocol.step import Table, erase, step
from zkc.wire import messages
from zkc.wire.frames import Stream

DELIVERY: Final = (delivery_recipient, delivery_sender)
MACHINES: Final = (
    *DELIVERY, channel, registration_client, registration_coordinator, transfer_coordinator, transfer_recipient,
    transfer_sender,
)  # fmt: skip
MESSAGES: Final = tuple(
    each for _, each in inspect.getmembers(messages, inspect.isclass) if issubclass(each, messages.Message)
)
"""Every structure of the wire, whether it is a message by itself or stands inside one."""

each_machine = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.__name__.rpartition(".")[2])


def is_value(kind: type) -> bool:
    return is_dataclass(kind) or issubclass(kind, Struct)


def own_types(machine: ModuleType) -> list[type]:
    """States, effects, events and contexts that a machine defines."""
    return [
        each
        for _, each in inspect.getmembers(machine, inspect.isclass)
        if each.__module__ == machine.__name__ and is_value(each)
    ]


def blank(kind: type) -> Any:
    """An instance without content: the dispatcher looks at types alone."""
    if issubclass(kind, Struct):
        return kind(*[None] * len(kind.__struct_fields__))
    return None if kind is type(None) else kind.__new__(kind)


@pytest.mark.attack("C10")
@each_machine
def test_whatever_is_not_in_the_table_is_unexpected(machine: ModuleType) -> None:
    """The full table: every message and event of every machine in every state, one answer for all but the cells."""
    events = [kind for other in (*MACHINES, delivery) for kind in own_types(other)]
    refused = 0
    for state in own_types(machine):
        for kind in (*MESSAGES, *events, bytes, int, type(None)):
            if (state, kind) in machine.TABLE:
                continue
            with pytest.raises(PeerViolation) as caught:
                step(machine.TABLE, None, blank(state), blank(kind))
            assert caught.value.detail == "unexpected"
            refused += 1
    assert refused >= len(own_types(machine)) * len(MESSAGES) - len(machine.TABLE)


@pytest.mark.attack("C10")
@each_machine
def test_each_cell_is_the_step_for_its_state_and_message(machine: ModuleType) -> None:
    """The function that a cell names takes that state and that message, and belongs to the machine."""
    known = {**vars(machine)}
    for (state, kind), consume in machine.TABLE.items():
        assert consume.__module__ == machine.__name__
        assert consume.__name__.startswith(("consume_", "create_"))
        hints = typing.get_type_hints(consume, known)
        assert state in (hints["state"], *typing.get_args(hints["state"]))
        taken = hints.get("message") or hints["event"]
        assert kind in (taken, *typing.get_args(taken))
        assert consume.__doc__


def test_machines_that_hold_keys_can_be_erased() -> None:
    """`erase` takes every state that a table names."""
    for machine in MACHINES:
        for state, _ in machine.TABLE:
            assert is_value(state)
            erase(_with_nothing(state))


def _with_nothing(state: type) -> Any:
    if issubclass(state, Struct):
        return blank(state)
    value = state.__new__(state)
    for name in getattr(state, "__dataclass_fields__", {}):
        object.__setattr__(value, name, None)
    return value


class _Watched(dict[tuple[type, type], Any]):
    """A table that remembers which of its cells were asked for."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self.number = id(table)
        self.acted: set[tuple[int, type, type]] = set()

    def get(self, cell: tuple[type, type], default: Any = None) -> Any:
        self.acted.add((self.number, *cell))
        return super().get(cell, default)


@pytest.mark.claims("F1", "F2")
@pytest.mark.attack("C10")
def test_every_cell_of_every_table_acts_in_some_conversation(default_world: World) -> None:
    """No cell stands there for nothing."""
    talks: list[Talk] = []
    coordinator = default_world.coordinator
    for serial, (apart, identifier) in enumerate(((False, "sealed"), (True, "clear"))):
        invitation = coordinator.invite("dave", serial=serial)
        new = newcomer(invitation, coordinator.suite, request_apart=apart, identifier=identifier)
        talks.append(RegistrationTalk(new, coordinator.registrar(invitation), coordinator.register(invitation)))
    for source, order in (
        ("sender", "recipient-first"),
        ("coordinator", "recipient-first"),
        ("coordinator", "sender-first"),
    ):
        talks += [
            default_world.transfer(terms("bob", key_source=source, key_order=order), decision=decision)
            for decision in (None, tr.Decline(25, "policy"), tr.AlreadyHave(b"receipt"))
        ]
        talks.append(default_world.transfer(terms("bob", key_source=source, key_order=order), asks=True))
    for talk in talks:
        talk.run()
    acted = {cell for talk in talks for cell in talk.cells}
    acted |= _channel_cells(default_world) | _repeated_cells(default_world) | _delivery_cells(default_world)
    every = {(id(machine.TABLE), *cell) for machine in MACHINES for cell in machine.TABLE}
    assert acted == every, [cell[1:] for cell in every ^ acted]


def _channel_cells(world: World) -> set[tuple[int, type, type]]:
    alice = world.alice
    sent = channel.create_hello(alice.client_keys, hello_info(), 0.0)
    answer = only(greeted(alice.peer_keys, only(sent)))
    step(channel.TABLE, alice.client_keys, sent.state, answer)
    return {(id(channel.TABLE), channel.Unheard, type(only(sent))), (id(channel.TABLE), type(sent.state), type(answer))}


def _repeated_cells(world: World) -> set[tuple[int, type, type]]:
    """The coordinator hears the sender's last message again in every state, and takes it where the table does."""
    cells: set[tuple[int, type, type]] = set()
    for source, order in (
        ("sender", "recipient-first"), ("coordinator", "recipient-first"), ("coordinator", "sender-first"),
    ):  # fmt: skip
        talk = world.transfer(terms("bob", key_source=source, key_order=order))
        talk.tap = partial(_once_more, talk, [], cells)
        talk.run()
        assert talk.agreed == (True, True)
    return cells


def _once_more(talk: Talk, heard: list[Any], cells: set[tuple[int, type, type]], turn: Turn) -> Any:
    """A tap: while another is about to hear something, the coordinator hears the sender's last message again."""
    side = talk.sides["coordinator"]
    if turn.to != "coordinator":
        if (type(side.state), type(heard[-1])) in side.table:
            assert step(side.table, side.context, side.state, heard[-1]).state is side.state
            cells.add((id(side.table), type(side.state), type(heard[-1])))
    elif isinstance(turn.message, messages.TransferRequest | messages.TransferKey | messages.TransferConfirmKey):
        heard.append(turn.message)
    return turn.message


def _delivery_cells(world: World) -> set[tuple[int, type, type]]:
    """Both machines of a delivery: to its end, and given up at each point on the way by either end."""
    talk = world.transfer(terms("bob"))
    talk.run()
    watched = [_Watched(machine.TABLE) for machine in DELIVERY]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AeadCipher, "rollover_bytes", 2 * CHUNK_MIN)
        for machine, table in zip(DELIVERY, watched, strict=True):
            patched.setattr(machine, "TABLE", table)
        for giver in ("sender", "recipient"):
            stop_at = 0
            while _Delivery(*talk.sessions).run(giver, stop_at):
                stop_at += 1
        for cell, consume in delivery_recipient.TABLE.items():
            if consume is delivery_recipient.consume_wrong_end:
                _Delivery(*talk.sessions).run_to_wrong_end(*cell)
        _Delivery(*talk.sessions).run_again_after_the_end()
        for end in (_Delivery(*talk.sessions).sender, _Delivery(*talk.sessions).recipient):
            with pytest.raises(PeerViolation):
                end.receive(b"noise")
            end.stop(32, "malformed")
    return set().union(*(table.acted for table in watched))


class _Delivery:
    """One delivery of three chunks and a byte, over one rollover."""

    def __init__(self, sender: Session, recipient: Session) -> None:
        self.sessions = sender, recipient
        self.manifest = messages.Manifest("stream", "data.bin", "", None, 0o644, 0)
        self.data = bytes(3 * CHUNK_MIN + 1)
        self.sender = delivery_sender.DeliverySender(sender, self.manifest)
        self.recipient = delivery_recipient.DeliveryRecipient(recipient)

    def run(self, giver: str, stop_at: int) -> bool:
        """At the ``stop_at``-th point ``giver`` gives up; False: there is no such point."""
        for at, _ in enumerate(self._points()):
            if at == stop_at:
                if giver == "sender":
                    self.recipient.receive(self.sender.stop(31, "signal"))
                else:
                    word = self.recipient.stop(31, "shutdown")
                    if not isinstance(self.sender.state, delivery_sender.Finished):
                        self.sender.receive(word)
                return True
        return False

    def run_to_wrong_end(self, state: type, said: type) -> None:
        """The sender says ``said`` where the recipient is in ``state``."""
        flags = {form: flag for (stream, flag), form in delivery_recipient._FORMS.items() if stream is Stream.DATA}
        next(None for _ in self._points() if type(self.recipient.state) is state)
        frame = self.sender._line.data.seal(b"", flags[said])
        with pytest.raises(PeerViolation) as caught:
            self.recipient.receive(frame)
        assert caught.value.detail == "truncated"

    def run_again_after_the_end(self) -> None:
        """The connection ends between the last chunk and DONE, which is the first word of the next one."""
        next(None for _ in self._points() if isinstance(self.recipient.state, delivery_recipient.Whole))
        sender, recipient = self.sessions
        again = delivery_sender.DeliverySender(sender, self.manifest, 2, self.sender.whole)
        whole = delivery_recipient.DeliveryRecipient(recipient, 2, received=len(self.data), whole=True)
        again.receive(whole.done(self._receipt()))
        whole.receive(again.bye())

    def _points(self) -> Iterator[None]:
        """The whole conversation, with a stop wherever either end may give up."""
        sender, recipient = self.sender, self.recipient
        yield
        for credit in (CHUNK_MIN, 8 * CHUNK_MIN):
            sender.receive(recipient.ack(0, credit))
            yield
        start, manifest = sender.start()
        recipient.receive(start)
        sender.receive(recipient.ack(0, 8 * CHUNK_MIN))
        yield
        recipient.receive(manifest)
        yield
        for at in range(0, len(self.data), CHUNK_MIN):
            piece = self.data[at : at + CHUNK_MIN]
            last = len(piece) < CHUNK_MIN
            frames = sender.chunk(piece, last=last)
            if last:  # an acknowledgement that was under way
                sender.receive(recipient.ack(recipient.received, 8 * CHUNK_MIN))
            for frame in frames:
                recipient.receive(frame)
            if not last:
                sender.receive(recipient.ack(recipient.received, 8 * CHUNK_MIN))
            yield
        sender.receive(recipient.done(self._receipt()))
        yield
        recipient.receive(sender.bye())

    def _receipt(self) -> bytes:
        sender, recipient = self.sessions
        hashed = blake3(self.data).digest()
        body = receipt_body(recipient, self.manifest, len(self.data), hashed, 1.0, 2.0)
        return make_receipt(identity_of("bob"), body, sender.peer.encoded)
