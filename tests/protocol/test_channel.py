"""C1, S1, C2 and the records (KEM form of Noise KK)."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import msgspec
import pytest

from tests.support.link import flipped
from tests.support.parties import World
from tests.support.talks import greeted, hello_info, is_wiped, only, open_channel, secrets_in, snapshot
from zkc.constants import CHANNEL_RECORDS_MAX, CHANNEL_SECONDS_MAX, CONTROL_MESSAGE_MAX, VERSION
from zkc.crypto.suites import SUITES
from zkc.errors import PeerViolation
from zkc.protocol import channel as ch
from zkc.protocol.channel import Channel
from zkc.protocol.step import erase, step
from zkc.wire.codec import decode, encode
from zkc.wire.frames import RECORD_HEADER_BYTES, ControlKind, control_frame, split_control
from zkc.wire.messages import AnswerInfo, ChannelAnswer, ChannelHello, ChannelMessage


@pytest.fixture
def pair(default_world: World) -> tuple[Channel, Channel]:
    """A new channel of alice: her end, the coordinator's."""
    return open_channel(default_world.alice.client_keys, default_world.alice.peer_keys)


def violation(function: Callable[[], object]) -> str:
    """How the other side's words are refused."""
    with pytest.raises(PeerViolation) as caught:
        function()
    return caught.value.detail


# --- the way through -----------------------------------------------------------------------------------------------


@pytest.mark.claims("B1", "B2", 3, 19)
def test_both_ends_hold_the_same_channel_and_talk_both_ways(each_world: World) -> None:
    """Requests go under the permanent server key, notifications under the permanent client key, by one KEM each."""
    client, coordinator = open_channel(each_world.alice.client_keys, each_world.alice.peer_keys)
    assert client.id == coordinator.id
    for i in range(3):
        assert coordinator.open(client.seal(b"up %d" % i)) == b"up %d" % i
        assert client.open(coordinator.seal(b"down %d" % i)) == b"down %d" % i


@pytest.mark.claims("B2")
def test_without_the_permanent_client_key_the_answer_does_not_open(default_world: World) -> None:
    """Who stole the server key's public half, or bob, cannot become alice."""
    alice = default_world.alice
    impostor = dataclasses.replace(alice.client_keys, perm_client=default_world.suite.generate())
    sent = ch.create_hello(impostor, hello_info(), 0.0)
    answered = greeted(alice.peer_keys, only(sent))
    assert violation(lambda: ch.consume_answer(impostor, sent.state, only(answered))) == "forged"


@pytest.mark.claims("B1", 3, 19)
def test_without_the_permanent_server_key_the_hello_does_not_open(default_world: World) -> None:
    """Who answers at the coordinator's address needs the key that it made for this client alone."""
    alice = default_world.alice
    hello = only(ch.create_hello(alice.client_keys, hello_info(), 0.0))
    for other in (default_world.suite.generate(), default_world.bob.perm_server):
        impostor = dataclasses.replace(alice.peer_keys, perm_server=other)
        assert violation(lambda impostor=impostor: greeted(impostor, hello)) == "forged"


@pytest.mark.claims("B1")
def test_the_uid_travels_in_clear_or_under_the_general_key(each_world: World) -> None:
    """Figure 2, 201 and 202, name both; it is believed only if it is that of the connection."""
    alice, bob, general = each_world.alice, each_world.bob, each_world.coordinator.general_key
    clear = only(ch.create_hello(alice.client_keys, hello_info(), 0.0))
    assert clear.uid == alice.uid
    keys = dataclasses.replace(alice.client_keys, general=general.public)
    sent = ch.create_hello(keys, hello_info(), 0.0)
    sealed = only(sent)
    assert alice.uid not in encode(sealed)
    answered = greeted(alice.peer_keys, sealed, general=general)
    client = ch.consume_answer(keys, sent.state, only(answered)).state.channel
    assert answered.state.channel.open(client.seal(b"up")) == b"up"
    for peer, key, detail in (
        (bob.peer_keys, general, "identity"), (alice.peer_keys, bob.perm_server, "forged"),
        (alice.peer_keys, None, "identity"),
    ):
        refused = violation(lambda peer=peer, key=key: greeted(peer, sealed, general=key))
        assert refused == detail
    # Of a coordinator that has another identity since.
    later = ch.create_hello(keys, hello_info(), 0.0)
    answered = greeted(alice.peer_keys, only(later), general=bob.perm_server, former=(general,))
    assert ch.consume_answer(keys, later.state, only(answered)).state.info.version
    # In another form than it was sent: that is in the transcript.
    again = msgspec.structs.replace(sealed, uid=alice.uid)
    assert violation(lambda: greeted(alice.peer_keys, again, general=general)) == "forged"


def test_every_channel_has_new_keys(default_world: World) -> None:
    alice = default_world.alice
    channels = [open_channel(alice.client_keys, alice.peer_keys)[0] for _ in range(3)]
    assert len({channel.id for channel in channels}) == len({channel.tag for channel in channels}) == 3


def test_the_handshake_keys_are_erased_once_the_channel_stands(default_world: World) -> None:
    alice = default_world.alice
    sent = ch.create_hello(alice.client_keys, hello_info(), 0.0)
    ch.consume_answer(alice.client_keys, sent.state, only(greeted(alice.peer_keys, only(sent))))
    assert not [path for path, secret in secrets_in(sent.state) if not is_wiped(secret)]
    broken_off = ch.create_hello(alice.client_keys, hello_info(), 0.0).state
    erase(broken_off)
    assert not [path for path, secret in secrets_in(broken_off) if not is_wiped(secret)]


def test_role_versions_and_limits_arrive_as_they_were_sent(default_world: World) -> None:
    alice = default_world.alice
    sent = ch.create_hello(alice.client_keys, hello_info("once", instance=b"i" * 16), 5.0)
    answered = greeted(alice.peer_keys, only(sent), AnswerInfo(99, 1234, 5678, 9, bytes(32)))
    assert answered.state.hello == hello_info("once", instance=b"i" * 16)
    established = step(ch.TABLE, alice.client_keys, sent.state, only(answered)).state
    assert established.info == AnswerInfo(VERSION, 1234, 5678, 9, bytes(32))


# --- C01: who flips bytes ------------------------------------------------------------------------------------------


@pytest.mark.attack("C01", "P01")
def test_a_flipped_byte_of_c1_is_refused_and_changes_nothing(quick_world: World) -> None:
    """Every byte: of the encoding around the fields, the ciphertext of the KEM, what is sealed and its tag."""
    alice, peer = quick_world.alice, quick_world.alice.peer_keys
    hello = only(ch.create_hello(alice.client_keys, hello_info(), 0.0))
    encoded = encode(hello)
    before = snapshot(peer)
    for place in range(len(encoded)):
        damaged = flipped(encoded, place, 1 << place % 8)
        with pytest.raises(PeerViolation):
            greeted(peer, decode(damaged, ChannelHello))
    assert snapshot(peer) == before
    greeted(peer, hello)


@pytest.mark.attack("C01", "P01")
def test_a_flipped_byte_of_s1_is_refused_and_the_true_one_still_counts(quick_world: World) -> None:
    """Every byte, as of C1."""
    alice = quick_world.alice
    sent = ch.create_hello(alice.client_keys, hello_info(), 0.0)
    answer = only(greeted(alice.peer_keys, only(sent)))
    encoded, before = encode(answer), snapshot(sent.state)
    for place in range(len(encoded)):
        damaged = flipped(encoded, place, 1 << place % 8)
        with pytest.raises(PeerViolation):
            step(ch.TABLE, alice.client_keys, sent.state, decode(damaged, ChannelMessage))
    assert snapshot(sent.state) == before
    assert isinstance(step(ch.TABLE, alice.client_keys, sent.state, answer).state, ch.Established)


@pytest.mark.attack("C01", "P01")
def test_a_flipped_byte_of_c2_confirms_nothing_and_the_true_one_still_opens(
    pair: tuple[Channel, Channel],
) -> None:
    """Every byte: of the control frame, the header, the ciphertext and its tag."""
    client, coordinator = pair
    frame = client.seal(b"the first record")
    for place in range(len(frame)):
        damaged = flipped(frame, place, 1 << place % 8)

        def received(damaged: bytes = damaged) -> bytes:
            kind, _ = split_control(damaged)
            if kind is not ControlKind.RECORD:
                raise PeerViolation("unexpected")
            return coordinator.open(damaged)

        assert violation(received) in {"forged", "unexpected", "version", "malformed"}
    assert coordinator.open(frame) == b"the first record"


def wrong(message: ChannelHello | ChannelAnswer) -> dict[str, Any]:
    """Where and how -> the message with one ciphertext of it exchanged for what does not open."""
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return {
        f"{name}: {how}": type(message)(**(fields | {name: bad}))
        for name in fields if name.startswith(("ct_", "sealed"))
        for value in [fields[name]]
        for how, bad in {
            "empty": b"", "cut": value[:-1], "longer": value + b"\0", "first byte": flipped(value, 0),
            "last byte": flipped(value, len(value) - 1), "zeros": bytes(len(value)),
        }.items()
    }


@pytest.mark.attack("C01")
def test_whatever_is_wrong_with_a_ciphertext_the_refusal_is_the_same(quick_world: World) -> None:
    """No oracle: one word for each cause, without the library's own."""
    alice = quick_world.alice
    sent = ch.create_hello(alice.client_keys, hello_info(), 0.0)
    hello = only(sent)
    answer = only(greeted(alice.peer_keys, hello))
    said = {violation(lambda bad=bad: greeted(alice.peer_keys, bad)) for bad in wrong(hello).values()}
    said |= {
        violation(lambda bad=bad: ch.consume_answer(alice.client_keys, sent.state, bad))
        for bad in wrong(answer).values()
    }
    assert said == {"forged"}


ROUNDS = 31


@pytest.mark.attack("C01")
def test_whatever_is_wrong_with_a_ciphertext_the_refusal_takes_no_longer(default_world: World) -> None:
    """No oracle by time: what is refused is refused in the time of a true message, or sooner. Medians of tries that
    take turns, so that whatever else the machine does meets all of them."""
    alice = default_world.alice
    sent = ch.create_hello(alice.client_keys, hello_info(), 0.0)
    hello = only(sent)
    answer = only(greeted(alice.peer_keys, hello))
    client, coordinator = open_channel(alice.client_keys, alice.peer_keys)
    frame = client.seal(b"record")
    tries: dict[str, dict[str, Callable[[], object]]] = {
        "C1": {"true": lambda: greeted(alice.peer_keys, hello)} | {
            what: partial(greeted, alice.peer_keys, bad) for what, bad in wrong(hello).items()
        },
        # The true S1 can be taken but once; to make it costs as much.
        "S1": {"true": lambda: greeted(alice.peer_keys, hello)} | {
            what: partial(ch.consume_answer, alice.client_keys, sent.state, bad) for what, bad in wrong(answer).items()
        },
        "C2": {"true": lambda: coordinator.open(client.seal(b"record"))} | {
            f"byte {place}": partial(coordinator.open, flipped(frame, place))
            for place in (0, 2, 10, RECORD_HEADER_BYTES, len(frame) - 1)
        },
    }
    for message, causes in tries.items():
        took: dict[str, list[float]] = {what: [] for what in causes}
        for _ in range(ROUNDS):
            for what, attempt in causes.items():
                began = time.perf_counter()
                with nullcontext() if what == "true" else pytest.raises(PeerViolation):
                    attempt()
                took[what].append(time.perf_counter() - began)
        medians = {what: statistics.median(each) for what, each in took.items()}
        assert max(medians.values()) < 5 * medians["true"] + 0.005, (message, medians)


def test_a_uid_that_is_not_the_connections_is_refused(default_world: World) -> None:
    """ZAP's User-Id decides whose keys are tried; bob's C1 on alice's connection opens nothing."""
    hello = only(ch.create_hello(default_world.bob.client_keys, hello_info(), 0.0))
    assert violation(lambda: greeted(default_world.alice.peer_keys, hello)) == "identity"


# --- C02: lower versions, other suites ------------------------------------------------------------------------------


@pytest.mark.attack("C02")
@pytest.mark.parametrize("version", [0, VERSION + 1, 255])
def test_another_version_byte_is_refused_on_every_frame(pair: tuple[Channel, Channel], version: int) -> None:
    client, coordinator = pair
    frame = client.seal(b"x")
    lowered = bytes((version,)) + frame[1:]
    assert violation(lambda: split_control(lowered)) == "version"
    assert violation(lambda: coordinator.open(lowered)) == "forged"


@pytest.mark.attack("C02")
def test_without_a_common_version_there_is_no_channel(default_world: World) -> None:
    """Versions travel inside C1's seal; the answer names none, and the client stops."""
    alice = default_world.alice
    sent = ch.create_hello(alice.client_keys, hello_info(versions=[7]), 0.0)
    answered = greeted(alice.peer_keys, only(sent))
    assert violation(lambda: ch.consume_answer(alice.client_keys, sent.state, only(answered))) == "version"


@pytest.mark.attack("C02")
def test_the_suite_is_in_the_transcript(default_world: World) -> None:
    """Two ends that name the suite differently agree on nothing, though every key fits."""
    alice = default_world.alice
    renamed = dataclasses.replace(SUITES["hybrid"], name="x25519")
    hello = only(ch.create_hello(dataclasses.replace(alice.client_keys, suite=renamed), hello_info(), 0.0))
    assert violation(lambda: greeted(alice.peer_keys, hello)) == "forged"


# --- C03, C07: replayed handshakes ----------------------------------------------------------------------------------


@pytest.mark.attack("C03", "C07")
def test_a_replayed_c1_makes_a_channel_that_nobody_can_confirm(default_world: World) -> None:
    """The attacker holds C1 and every record of the true channel: none of them opens in the new one, 31 years later
    by the clock of the machine (in memory alone: no test turns a coordinator's clock)."""
    alice = default_world.alice
    sent = ch.create_hello(alice.client_keys, hello_info(), 0.0)
    hello = only(sent)
    answered = greeted(alice.peer_keys, hello)
    client = ch.consume_answer(alice.client_keys, sent.state, only(answered)).state.channel
    records = [client.seal(b"record") for _ in range(3)]
    before = snapshot(alice.peer_keys)
    replayed = greeted(alice.peer_keys, hello, now=1e9)
    assert isinstance(replayed.state, ch.Unconfirmed)
    assert replayed.state.channel.id != answered.state.channel.id
    for record in records:
        assert violation(lambda record=record: replayed.state.channel.open(record)) == "unexpected"
    assert snapshot(alice.peer_keys) == before


@pytest.mark.attack("C03")
def test_an_older_s1_is_refused(default_world: World) -> None:
    alice = default_world.alice
    first = ch.create_hello(alice.client_keys, hello_info(), 0.0)
    older = only(greeted(alice.peer_keys, only(first)))
    second = ch.create_hello(alice.client_keys, hello_info(), 0.0)
    assert violation(lambda: ch.consume_answer(alice.client_keys, second.state, older)) == "forged"


def test_a_second_s1_does_nothing(default_world: World) -> None:
    alice = default_world.alice
    sent = ch.create_hello(alice.client_keys, hello_info(), 0.0)
    answer = only(greeted(alice.peer_keys, only(sent)))
    established = step(ch.TABLE, alice.client_keys, sent.state, answer).state
    assert violation(lambda: step(ch.TABLE, alice.client_keys, established, answer)) == "unexpected"


# --- C04 to C06: records --------------------------------------------------------------------------------------------


@pytest.mark.attack("C04")
def test_a_replayed_record_ends_the_channel(pair: tuple[Channel, Channel]) -> None:
    client, coordinator = pair
    frame = client.seal(b"once")
    coordinator.open(frame)
    assert violation(lambda: coordinator.open(frame)) == "replay"


@pytest.mark.attack("C04")
def test_a_reordered_record_ends_the_channel(pair: tuple[Channel, Channel]) -> None:
    client, coordinator = pair
    first, second = client.seal(b"1"), client.seal(b"2")
    assert coordinator.open(second) == b"2"
    assert violation(lambda: coordinator.open(first)) == "replay"


@pytest.mark.attack("C04")
def test_a_record_reflected_to_its_maker_does_not_open(pair: tuple[Channel, Channel]) -> None:
    client, coordinator = pair
    assert violation(lambda: client.open(client.seal(b"up"))) == "forged"
    assert violation(lambda: coordinator.open(coordinator.seal(b"down"))) == "forged"


@pytest.mark.attack("C05")
@pytest.mark.parametrize("deleted", [1, 2, 100])
def test_records_may_be_missing_but_each_is_known_by_its_number(pair: tuple[Channel, Channel], deleted: int) -> None:
    """Gaps are allowed: a request that was deleted is asked again. What was deleted cannot come later."""
    client, coordinator = pair
    missing = [client.seal(b"deleted %d" % i) for i in range(deleted)]
    assert coordinator.open(client.seal(b"next")) == b"next"
    assert violation(lambda: coordinator.open(missing[-1])) == "replay"
    assert coordinator.open(client.seal(b"after")) == b"after"


@pytest.mark.attack("C06")
def test_a_record_of_an_older_channel_is_refused(default_world: World) -> None:
    """Even with the tag of the newer one: the channel's whole id is in the associated data."""
    alice = default_world.alice
    old, _ = open_channel(alice.client_keys, alice.peer_keys)
    _, new = open_channel(alice.client_keys, alice.peer_keys)
    frame = old.seal(b"old")
    assert violation(lambda: new.open(frame)) == "unexpected"
    assert violation(lambda: new.open(frame[:2] + new.tag + frame[10:])) == "forged"


@pytest.mark.attack("C11")
@pytest.mark.parametrize("length", [0, 1, 2, RECORD_HEADER_BYTES - 1, RECORD_HEADER_BYTES, RECORD_HEADER_BYTES + 15])
def test_a_short_record_is_refused(pair: tuple[Channel, Channel], length: int) -> None:
    client, coordinator = pair
    frame = client.seal(b"whole")
    assert violation(lambda: coordinator.open(frame[:length])) in {"malformed", "forged"}
    assert coordinator.open(frame) == b"whole"


def test_the_highest_counter_is_a_number_like_any_other(pair: tuple[Channel, Channel]) -> None:
    client, coordinator = pair
    client._out.counter = 2**64 - 1
    assert coordinator.open(client.seal(b"last")) == b"last"


# --- the life of a channel ------------------------------------------------------------------------------------------


def test_a_channel_is_old_after_an_hour_or_a_million_records(default_world: World) -> None:
    client, coordinator = open_channel(default_world.alice.client_keys, default_world.alice.peer_keys, now=50.0)
    assert not client.is_old(50.0 + CHANNEL_SECONDS_MAX)
    assert client.is_old(50.1 + CHANNEL_SECONDS_MAX)
    assert not coordinator.is_old(50.0)
    client._out.counter = coordinator._in.counter = CHANNEL_RECORDS_MAX + 1
    assert client.is_old(50.0)
    assert coordinator.is_old(50.0)


def test_an_owner_of_counters_is_neither_copied_nor_stored(pair: tuple[Channel, Channel]) -> None:
    for away in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            away(pair[0])


def test_every_handshake_message_fits_in_a_control_message(each_world: World) -> None:
    alice = each_world.alice
    sent = ch.create_hello(alice.client_keys, hello_info(versions=list(range(1, 17))), 0.0)
    answered = greeted(alice.peer_keys, only(sent))
    for message in (only(sent), only(answered)):
        assert len(control_frame(ControlKind.CHANNEL, encode(message))) <= CONTROL_MESSAGE_MAX // 8
    assert isinstance(only(answered), ChannelAnswer)
