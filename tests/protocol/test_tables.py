"""What is legal stands in the tables: every message in every state of every machine; every cell in a conversation."""

from __future__ import annotations

import inspect
import typing
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any, Final

import pytest

from tests.support.parties import World, newcomer
from tests.support.talks import LIMITS, RegistrationTalk, Talk, hello_info, only, terms
from zkc.errors import PeerViolation
from zkc.protocol import (
    channel,
    registration_client,
    registration_coordinator,
    transfer_coordinator,
    transfer_recipient,
    transfer_sender,
)
from zkc.protocol import transfer_recipient as tr
from zkc.protocol.step import erase, step
from zkc.wire import messages

MACHINES: Final = (
    channel, registration_client, registration_coordinator, transfer_coordinator, transfer_recipient, transfer_sender,
)  # fmt: skip
MESSAGES: Final = tuple(
    each for _, each in inspect.getmembers(messages, inspect.isclass) if issubclass(each, messages.Message)
)
"""Every structure of the wire, whether it is a message by itself or stands inside one."""

each_machine = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.__name__.rpartition(".")[2])


def own_types(machine: ModuleType) -> list[type]:
    """States, effects, events and contexts that a machine defines."""
    return [
        each
        for _, each in inspect.getmembers(machine, inspect.isclass)
        if each.__module__ == machine.__name__ and is_dataclass(each)
    ]


def blank(kind: type) -> Any:
    """An instance without content: the dispatcher looks at types alone."""
    if issubclass(kind, messages.Message):
        return kind(*[None] * len(kind.__struct_fields__))
    return None if kind is type(None) else kind.__new__(kind)


@pytest.mark.attack("C10")
@each_machine
def test_whatever_is_not_in_the_table_is_unexpected(machine: ModuleType) -> None:
    """The full table: every message and event of every machine in every state, one answer for all but the cells."""
    events = [kind for other in MACHINES for kind in own_types(other)]
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
            assert is_dataclass(state)
            erase(_with_nothing(state))


def _with_nothing(state: type) -> Any:
    value = state.__new__(state)
    for name in getattr(state, "__dataclass_fields__", {}):
        object.__setattr__(value, name, None)
    return value


@pytest.mark.attack("C10")
def test_every_cell_of_every_table_acts_in_some_conversation(default_world: World) -> None:
    """No cell stands there for nothing."""
    talks: list[Talk] = []
    coordinator = default_world.coordinator
    for serial, apart in enumerate((False, True)):
        invitation = coordinator.invite("dave", serial=serial)
        new = newcomer(invitation, coordinator.suite, request_apart=apart)
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
    for talk in talks:
        talk.run()
    acted = {cell for talk in talks for cell in talk.cells}
    acted.add(_channel_cell(default_world))
    every = {(id(machine.TABLE), *cell) for machine in MACHINES for cell in machine.TABLE}
    assert acted == every, [cell[1:] for cell in every ^ acted]


def _channel_cell(world: World) -> tuple[int, type, type]:
    alice = world.alice
    sent = channel.create_hello(alice.client_keys, hello_info(), 0.0)
    answer = only(channel.consume_hello(alice.peer_keys, only(sent), LIMITS, 0.0))
    step(channel.TABLE, alice.client_keys, sent.state, answer)
    return id(channel.TABLE), type(sent.state), type(answer)
