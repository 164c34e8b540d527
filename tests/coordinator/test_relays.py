"""Which relay a recipient is given, and whether it is given one."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from zkc.config.keys import CoordinatorConfig, RelaySection
from zkc.coordinator.relays import Relays
from zkc.errors import PeerViolation, PolicyRefused, UsageError
from zkc.wire.messages import Failure, Ok, RelayAt, RelayHere, Rendezvous, WantRelay

XID, DATA, ACKS = (bytes([n]) * 16 for n in range(1, 4))


def session(name: str) -> Any:
    """A client's daemon, linked."""
    client = SimpleNamespace(name=name)
    client.daemon = SimpleNamespace(client=client, wire=object(), ended=False)
    return client.daemon


class House:
    """A coordinator around `Relays`: what is asked of relays, what recipients are told."""

    def __init__(self, *clients: str, serves: tuple[str, ...] = ()) -> None:
        self.asked: list[tuple[Any, Rendezvous, Callable[[Any], None]]] = []
        self.told: list[Any] = []
        self.alice, self.bob = session("alice"), session("bob")
        core: Any = SimpleNamespace(
            config=CoordinatorConfig(relay=RelaySection(clients, serves)), log=structlog.get_logger(),
            audit=SimpleNamespace(note=lambda *_, **__: None),
        )
        doing: Any = SimpleNamespace(
            ask=lambda relay, body, _within, reply: self.asked.append((relay, body, reply)),
            answer=lambda _session, _call, body: self.told.append(body),
            fail=lambda _session, _call, code, detail: self.told.append((code, detail)),
        )
        transfers: Any = SimpleNamespace(
            ends=lambda xid, of: {"alice", "bob"} if (xid, of) == (XID, self.bob) else None
        )
        self.relays = Relays(core, doing, transfers)

    def announce(self, of: Any, endpoint: str = "tcp://192.0.2.1:7671") -> Any:
        return self.relays.announce(of, b"", RelayHere(endpoint))

    def want(self, xid: bytes = XID, by: Any = None) -> None:
        self.relays.want(by or self.bob, b"", WantRelay(xid, DATA, ACKS))


def test_a_relay_hears_of_a_meeting_before_its_recipient_hears_of_the_relay() -> None:
    house, relay = House("relay1"), session("relay1")
    assert house.announce(relay) == Ok()
    house.want()
    (asked, told, reply), = house.asked
    assert (asked, told) == (relay, Rendezvous(DATA, ACKS, "bob"))
    assert not house.told
    reply(Ok())
    assert house.told == [RelayAt("relay1", "tcp://192.0.2.1:7671")]


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Failure(b"i" * 16, 25, "limit"), (25, "limit")), (Failure(b"i" * 16, 1, ""), (25, "no-relay")),
        ("offline", (25, "no-relay")), ("expired", (25, "no-relay")),
    ],
)
def test_a_relay_that_does_not_agree_is_none(reply: Any, told: Any) -> None:
    house = House("relay1")
    house.announce(session("relay1"))
    house.want()
    house.asked[0][2](reply)
    assert house.told == [told]


def test_only_a_daemon_that_is_named_is_a_relay() -> None:
    house = House("relay1")
    command = session("relay1")
    command.client.daemon = None
    for other in (session("mallory"), command):
        with pytest.raises(PolicyRefused) as refused:
            house.announce(other)
        assert refused.value.detail == "not-a-relay"


@pytest.mark.parametrize("endpoint", ["", "tcp://*:1", "tcp://h:0", "ipc:///tmp/x", "tcp://h:1-2"])
def test_a_relay_says_where_one_can_connect(endpoint: str) -> None:
    with pytest.raises(UsageError):
        House("relay1").announce(session("relay1"), endpoint)


def test_a_relay_that_has_gone_or_is_no_longer_named_is_not_given() -> None:
    house = House("relay1", "relay2")
    first, second = session("relay1"), session("relay2")
    house.announce(first)
    house.announce(second)
    first.wire = None
    house.want()
    assert house.asked[0][0] is second
    second.client.daemon = None
    with pytest.raises(PolicyRefused) as refused:
        house.want()
    assert refused.value.detail == "no-relay"


def test_relays_take_turns() -> None:
    house = House("relay1", "relay2")
    house.announce(session("relay1"))
    house.announce(session("relay2"))
    for _ in range(4):
        house.want()
    assert sorted(asked.client.name for asked, _, _ in house.asked) == ["relay1", "relay1", "relay2", "relay2"]


@pytest.mark.parametrize(
    ("serves", "served"), [((), True), (("alice", "bob"), True), (("bob",), False), (("x",), False)]
)
def test_both_ends_must_be_served(serves: tuple[str, ...], served: bool) -> None:
    house = House("relay1", serves=serves)
    house.announce(session("relay1"))
    if served:
        house.want()
    else:
        with pytest.raises(PolicyRefused) as refused:
            house.want()
        assert refused.value.detail == "unreachable"


def test_where_no_relay_is_named_there_is_none_to_wait_for() -> None:
    with pytest.raises(PolicyRefused) as refused:
        House().want()
    assert refused.value.detail == "unreachable"


@pytest.mark.parametrize("who", ["another transfer", "its sender"])
def test_only_the_recipient_of_a_handshake_under_way_is_given_one(who: str) -> None:
    house = House("relay1")
    house.announce(session("relay1"))
    with pytest.raises(PeerViolation):
        house.want(*((bytes(16), house.bob) if who == "another transfer" else (XID, house.alice)))
    assert not house.asked
