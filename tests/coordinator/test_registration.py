"""Registration over real sockets: whole, broken off anywhere, refused, and by fifty at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.support.coordinator import (
    Newcomer,
    NoAnswerError,
    RefusedError,
    RunningCoordinator,
    Wire,
    coordinator_in,
    join,
)
from tests.support.waiting import DEADLINE, wait_until
from zkc.constants import REGISTRATION_SECONDS
from zkc.coordinator import admin
from zkc.coordinator.identity import load as load_identity
from zkc.crypto.invitations import invitation_curve_secret, parse_invitation
from zkc.net.monitor import EventKind
from zkc.net.sockets import generate_curve, to_raw
from zkc.protocol import registration_client as registration
from zkc.protocol.registration_client import Registered
from zkc.stores.keydb import KeyDb
from zkc.wire.codec import decode, encode
from zkc.wire.frames import ControlKind, control_frame
from zkc.wire.messages import (
    Card,
    CardBody,
    Heartbeat,
    Invitation,
    InviteApplication,
    Ok,
    RegHello,
    RegName,
    RegPermClient,
)

SILENCE = 0.5
"""Seconds in which an answer would long have come."""
STEPS = ["R0", "R0c", "R1", "R2", "R3", "R4", "R5", "R6"]


class BreakOffError(Exception):
    """The test ends a conversation here."""


def tag(message: Any) -> str:
    return str(type(message).__struct_config__.tag)


def live(running: RunningCoordinator, name: str) -> list[admin.ClientInfo]:
    return [client for client in admin.clients(running.home) if client.name == name and client.revoked is None]


# --- whole ----------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("seal_to", ["permanent", "temporary"])
def test_a_newcomer_registers_in_every_form_that_the_document_names(
    running: RunningCoordinator, apart: bool, seal_to: Any
) -> None:
    name = f"whole-{apart}-{seal_to}".lower()
    member = join(running, name, request_apart=apart, seal_to=seal_to)
    (row,) = live(running, name)
    assert row.fingerprint == member.newcomer.identity.public.fingerprint.hex()
    with member.open() as peer:
        assert peer.ask(Heartbeat()) == Ok()


@pytest.mark.parametrize("suite", ["x25519", "rsa"])
def test_every_suite_registers_and_opens_a_channel(tmp_path: Path, suite: str) -> None:
    env = {"ZKC_COORDINATOR_SUITE": suite, "ZKC_COORDINATOR_KEY_POOL": "2"}
    with coordinator_in(tmp_path, env=env) as coordinator:
        assert coordinator.status.suite == suite
        with join(coordinator, "bob").open() as peer:
            assert peer.ask(Heartbeat()) == Ok()


def test_an_application_registers_with_an_invitation_that_its_owner_asked_for(running: RunningCoordinator) -> None:
    owner = join(running, "appowner")
    with owner.open() as peer:
        answer = peer.ask(InviteApplication("backup"))
        assert isinstance(answer, Invitation)
        member = Newcomer(
            parse_invitation(answer.text), running.endpoint, owner=owner.newcomer.identity
        ).register()
        assert member.name == "appowner/backup"
        with member.open() as application:
            refusal = application.ask(InviteApplication("inner"))
            assert (refusal.code, refusal.detail) == (2, "bad-name")
            assert (taken := peer.ask(InviteApplication("backup"))).code == 11
            assert taken.detail == "name-taken"


def test_an_application_that_its_owner_did_not_countersign_is_refused(running: RunningCoordinator) -> None:
    owner, stranger = join(running, "owner2"), join(running, "stranger2")
    with owner.open() as peer:
        text = parse_invitation(peer.ask(InviteApplication("tool")).text)
    with pytest.raises(RefusedError) as refused:
        Newcomer(text, running.endpoint, owner=stranger.newcomer.identity).register()
    assert (refused.value.code, refused.value.detail) == (12, "identity")
    assert live(running, "owner2/tool") == []


# --- broken off ----------------------------------------------------------------------


@pytest.mark.parametrize("where", STEPS)
def test_a_registration_that_broke_off_anywhere_is_finished_by_a_retry(running: RunningCoordinator, where: str) -> None:
    newcomer = Newcomer(running.invite(f"broken-{where.lower()}"), running.endpoint)

    def tap(when: str, message: Any, body: bytes) -> bytes:
        if tag(message) == where and when != "sending":
            raise BreakOffError
        return body

    with pytest.raises(BreakOffError):
        newcomer.register(tap)
    # Its temporary keys went with its connection.
    wait_until(lambda: running.counters["registrations.open"] == 0)
    first = newcomer.kept_card
    member = newcomer.register()
    assert not first or first == member.registered.card
    assert len(live(running, member.name)) == 1
    with member.open() as peer:
        assert peer.ask(Heartbeat()) == Ok()


def test_a_first_message_that_is_read_when_its_connection_has_ended_leaves_nothing_open(
    running: RunningCoordinator,
) -> None:
    newcomers = [Newcomer(running.invite(f"gone{number}"), running.endpoint) for number in range(5)]
    wires = [newcomer.connect() for newcomer in newcomers]
    for wire in wires:
        wire.verdict()
    begun, child = running.counters.get("reg.begun", 0), running.child
    os.kill(child, signal.SIGSTOP)
    try:
        for newcomer, wire in zip(newcomers, wires, strict=True):
            (hello,) = registration.create_hello(newcomer.machine()).effects
            wire.send(control_frame(ControlKind.REGISTRATION, encode(hello.message)))
            wire.close(linger=DEADLINE)
    finally:
        os.kill(child, signal.SIGCONT)
    wait_until(lambda: running.counters.get("reg.begun") == begun + len(newcomers))
    wait_until(lambda: running.counters["registrations.open"] == 0, within=REGISTRATION_SECONDS / 2)


@pytest.mark.claims("A5", "A6", "A7")
@pytest.mark.attack("R06", "P04")
def test_a_coordinator_killed_at_any_step_registers_a_retry_once_with_the_same_uid(tmp_path: Path) -> None:
    with coordinator_in(tmp_path) as coordinator:
        for where in STEPS:
            newcomer = Newcomer(coordinator.invite(f"killed-{where.lower()}"), coordinator.endpoint)
            uids: set[bytes] = set()

            def tap(when: str, message: Any, body: bytes, where: str = where) -> bytes:
                if when == "sent" and tag(message) == where == "R5":
                    # Between commit and R6, as far as the newcomer can tell: stored, and it has heard nothing.
                    wait_until(lambda: live(coordinator, f"killed-{where.lower()}"))
                if when != "sending" and tag(message) == where:
                    coordinator.kill_child()
                    raise BreakOffError
                return body

            with pytest.raises(BreakOffError):
                newcomer.register(tap)
            if newcomer.kept_card:
                uids.add(decode_uid(newcomer.kept_card))
            member = newcomer.register()
            uids.add(member.uid)
            assert len(uids) == 1
            assert len(live(coordinator, member.name)) == 1
            states = {row.state for row in admin.list_invitations(coordinator.home) if row.name == member.name}
            assert states == {"used"}
        assert coordinator.events("registered")[-1]["log_index"] == len(STEPS) - 1
        assert not (coordinator.home.data / "banned").exists()


def decode_uid(card: bytes) -> bytes:
    body: CardBody = decode(decode(card, Card).body, CardBody)
    return body.uid


def test_a_retry_on_the_same_connection_starts_anew_at_r0(running: RunningCoordinator) -> None:
    newcomer = Newcomer(running.invite("twice-r0"), running.endpoint)
    with newcomer.connect() as wire:
        for _ in range(2):
            hello = RegHello(newcomer.invitation.invite_id)
            wire.send(control_frame(ControlKind.REGISTRATION, encode(hello)))
            wire.receive()


# --- refused ----------------------------------------------------------------------


@pytest.mark.attack("R03")
def test_of_fifty_newcomers_with_one_invitation_exactly_one_registers(running: RunningCoordinator) -> None:
    invitation = running.invite("fifty")
    outcomes: list[str] = []
    together = threading.Barrier(50)

    def attempt() -> None:
        newcomer = Newcomer(invitation, running.endpoint)
        together.wait()
        try:
            newcomer.register()
            outcomes.append("registered")
        except RefusedError as refused:
            outcomes.append(f"{refused.code} {refused.detail}")

    threads = [threading.Thread(target=attempt) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == {"registered": 1, "11 invite-used": 49}
    assert len(live(running, "fifty")) == 1
    assert len([event for event in running.events("registered") if event["name"] == "fifty"]) == 1
    url, mac_key = f"sqlite:///{running.home.data / 'keys.db'}", load_identity(running.home.data).mac_key
    with closing(KeyDb.open(url, mac_key, create=False)) as db:
        assert [entry.name for entry in db.log_entries(limit=10_000)].count("fifty") == 1


def test_another_card_on_a_used_invitation_is_refused_and_reported(running: RunningCoordinator) -> None:
    invitation = running.invite("other-card")
    Newcomer(invitation, running.endpoint).register()
    thief = Newcomer(invitation, running.endpoint)
    with pytest.raises(RefusedError) as refused:
        thief.register()
    assert (refused.value.code, refused.value.detail) == (11, "invite-used")
    (event,) = [event for event in running.events("used-invitation-offered") if event["name"] == "other-card"]
    assert event["level"] == "warning"
    assert event["fingerprint"] == thief.identity.public.fingerprint.hex()


def test_a_used_invitation_admits_nobody_once_its_client_has_a_channel(running: RunningCoordinator) -> None:
    member = join(running, "retired")
    with member.newcomer.connect() as wire:
        assert wire.verdict() is EventKind.HANDSHAKE_SUCCEEDED
    member.open().close()
    with member.newcomer.connect() as wire:
        assert wire.verdict() is EventKind.HANDSHAKE_FAILED_AUTH


@pytest.mark.attack("R04")
def test_not_a_byte_of_an_invitation_of_no_use_is_read(running: RunningCoordinator) -> None:
    expired = running.invite("expired", ttl=0.0)
    cancelled = running.invite("cancelled")
    admin.cancel(running.home, "cancelled")
    before = running.counters["reg.bytes"]
    secrets = [invitation_curve_secret(each.secret).reveal() for each in (expired, cancelled)]
    for secret in (*secrets, to_raw(generate_curve().secret)):
        with Wire(running.endpoint, expired.curve_key, secret) as wire:
            assert wire.verdict() is EventKind.HANDSHAKE_FAILED_AUTH
            wire.socket.setsockopt(zmq.SNDTIMEO, 0)
            with pytest.raises(zmq.Again):
                wire.send(control_frame(ControlKind.REGISTRATION, encode(RegHello(expired.invite_id))))
    assert running.counters["reg.bytes"] == before


@pytest.mark.attack("R05")
def test_a_wrong_mac_is_refused_in_silence_before_any_public_key_work(running: RunningCoordinator) -> None:
    newcomer = Newcomer(running.invite("wrong-mac"), running.endpoint)

    def tap(when: str, message: Any, body: bytes) -> bytes:
        if when == "sending" and isinstance(message, RegName):
            return encode(RegName(message.invite_id, message.sealed_name, os.urandom(32)))
        return body

    before = running.counters["kem.ops"]
    with pytest.raises(NoAnswerError):
        newcomer.register(tap, SILENCE)
    assert running.counters["kem.ops"] == before
    wait_until(lambda: running.counters["registrations.open"] == 0)
    newcomer.register()


def test_what_goes_wrong_after_the_mac_is_told_with_a_mac_of_its_own(running: RunningCoordinator) -> None:
    newcomer = Newcomer(running.invite("flipped"), running.endpoint)

    def tap(when: str, message: Any, body: bytes) -> bytes:
        if when == "sending" and isinstance(message, RegPermClient):
            return encode(RegPermClient(message.sealed_to, message.sealed_card, os.urandom(32)))
        return body

    with pytest.raises(RefusedError) as refused:
        newcomer.register(tap)
    assert (refused.value.code, refused.value.detail) == (12, "forged")
    assert live(running, "flipped") == []
    assert isinstance(newcomer.register().registered, Registered)


def test_an_invitation_that_expires_on_the_way_registers_nobody(running: RunningCoordinator) -> None:
    invitation = running.invite("late", ttl=1.0)
    newcomer = Newcomer(invitation, running.endpoint)
    (row,) = [row for row in admin.list_invitations(running.home) if row.name == "late"]

    def tap(when: str, message: Any, body: bytes) -> bytes:
        if when == "sending" and isinstance(message, RegPermClient):
            wait_until(lambda: time.time() > row.expires)
        return body

    with pytest.raises(RefusedError) as refused:
        newcomer.register(tap)
    assert (refused.value.code, refused.value.detail) == (11, "expired")
    assert live(running, "late") == []


def test_a_newcomer_is_heard_in_registration_alone(running: RunningCoordinator) -> None:
    newcomer = Newcomer(running.invite("only-r"), running.endpoint)
    before = running.counters.get("violations.unexpected", 0)
    with newcomer.connect() as wire:
        wire.send(control_frame(ControlKind.CHANNEL, b"x"))
        wire.send(control_frame(ControlKind.RECORD, bytes(64)))
        wait_until(lambda: running.counters.get("violations.unexpected", 0) >= before + 2)
