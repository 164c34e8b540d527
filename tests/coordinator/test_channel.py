"""Channels over real sockets: who is online, what a replay does, whose word counts, and how a registration ends."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.support.coordinator import Member, Newcomer, NoAnswerError, Peer, RunningCoordinator, coordinator_in, join
from tests.support.evil import KeyedPeer
from tests.support.waiting import DEADLINE, wait_until
from zkc.constants import CONNECTIONS_PER_PEER_MAX, SILENT_SECONDS, TERMS_VERSION
from zkc.coordinator import admin
from zkc.crypto.invitations import invitation_curve_secret, parse_invitation
from zkc.net.monitor import EventKind
from zkc.net.sockets import CurveKeys, curve_public, generate_curve, to_z85
from zkc.wire.codec import encode
from zkc.wire.frames import ControlKind, control_frame
from zkc.wire.messages import (
    ChannelHello,
    DeliverKey,
    Failure,
    Goodbye,
    Heartbeat,
    InviteApplication,
    Leave,
    ListPeers,
    LookUp,
    Notify,
    Ok,
    PeerCard,
    PeerPage,
    RegHello,
    Replaced,
    Req,
    Request,
    Revoked,
    TransferRequest,
)

SILENCE = 0.5


def online(running: RunningCoordinator, name: str) -> bool:
    return any(client.online for client in admin.clients(running.home) if client.name == name)


def violations(running: RunningCoordinator, detail: str) -> int:
    return running.counters.get(f"violations.{detail}", 0)


# --- presence ----------------------------------------------------------------------


def test_a_daemon_is_online_from_its_first_record_on_and_offline_when_it_says_goodbye(
    running: RunningCoordinator,
) -> None:
    member = join(running, "presence")
    with Peer(member, "daemon", os.urandom(16)) as peer:
        peer.greet()
        assert not online(running, "presence")
        assert peer.ask(Heartbeat()) == Ok()
        assert online(running, "presence")
        assert peer.ask(Goodbye()) == Ok()
        assert not online(running, "presence")


def test_a_daemon_whose_connection_breaks_is_offline_at_once(running: RunningCoordinator) -> None:
    """Before another that has been silent for longer: it is not the missed heartbeats that end it."""
    with join(running, "breaks-not").open():
        peer = join(running, "breaks").open()
        assert online(running, "breaks")
        peer.close()
        wait_until(lambda: not online(running, "breaks"))
        gone = [event["name"] for event in running.events("offline") if event["name"].startswith("breaks")]
    assert gone[0] == "breaks"


def test_a_daemon_that_falls_silent_is_offline_after_three_misses(running: RunningCoordinator) -> None:
    with join(running, "silent").open():
        assert online(running, "silent")
        wait_until(lambda: not online(running, "silent"))


def test_a_daemon_that_comes_back_on_a_new_connection_keeps_its_channel(running: RunningCoordinator) -> None:
    member = join(running, "comesback")
    with member.open() as peer:
        call = peer.send_request(LookUp("comesback"))
        assert isinstance(peer.answer_to(call), PeerCard)
        peer.wire.close()
        peer.wire = member.connect()
        wait_until(lambda: not online(running, "comesback"))
        # A repeat under the same id gets the stored answer, over the same channel.
        peer.send_request(LookUp("nobody"), call)
        assert isinstance(peer.answer_to(call), PeerCard)
        assert online(running, "comesback")


def test_a_command_is_no_daemon(running: RunningCoordinator) -> None:
    with join(running, "onlyonce").open("once") as peer:
        assert peer.ask(Heartbeat()) == Ok()
        assert not online(running, "onlyonce")


def test_a_second_daemon_ends_the_first_and_says_so(running: RunningCoordinator) -> None:
    member = join(running, "twodaemons")
    with member.open() as first, member.open() as second:
        request = first.next_request()
        assert request.body == Replaced()
        first.reply(request, Ok())
        assert second.ask(Heartbeat()) == Ok()
        assert online(running, "twodaemons")
        with pytest.raises(NoAnswerError):
            first.ask(Heartbeat(), SILENCE)
    assert any(event["name"] == "twodaemons" for event in running.events("daemon-replaced"))


def test_a_renewed_channel_of_the_same_daemon_replaces_nobody(running: RunningCoordinator) -> None:
    member = join(running, "renews")
    with member.open() as peer:
        call = peer.send_request(LookUp("renews"))
        peer.answer_to(call)
        peer.greet()
        peer.send_request(LookUp("nobody"), call)
        assert isinstance(peer.answer_to(call), PeerCard)
        assert online(running, "renews")
        assert peer.asked == []


def test_a_daemon_that_has_said_goodbye_may_begin_again(running: RunningCoordinator) -> None:
    """A new channel of the same process, while the old one is still kept for a repeat of its goodbye."""
    with join(running, "again").open() as peer:
        assert peer.ask(Goodbye()) == Ok()
        peer.greet()
        assert peer.ask(Heartbeat()) == Ok()
        assert online(running, "again")
        assert peer.ask(Heartbeat()) == Ok()


def test_a_version_that_the_coordinator_does_not_speak_opens_nothing(running: RunningCoordinator) -> None:
    member = join(running, "newer")
    with Peer(member, "once", os.urandom(16)) as peer:
        with pytest.raises(Exception, match="version"):
            peer.greet(versions=(99,))
        assert not online(running, "newer")


# --- the door ----------------------------------------------------------------------


def knock(running: RunningCoordinator, member: Member, keys: CurveKeys) -> int:
    """What becomes of a connection with ``keys``: the status of a refusal, 0 for one that is let in."""
    with KeyedPeer(running.endpoint, member.newcomer.invitation.curve_key, keys) as peer:
        return peer.wait(DEADLINE, EventKind.HANDSHAKE_SUCCEEDED, EventKind.HANDSHAKE_FAILED_AUTH).code


def test_a_full_coordinator_tells_those_whom_it_would_let_in_and_no_stranger(tmp_path: Path) -> None:
    with coordinator_in(tmp_path, env={"ZKC_LIMITS_CLIENTS": "1"}) as coordinator:
        alice, bob = join(coordinator, "alice"), join(coordinator, "bob")
        wait_until(lambda: coordinator.counters["connections.open"] == 0)
        with alice.open():
            assert knock(coordinator, bob, bob.newcomer.curve) == 500
            wait_until(lambda: coordinator.counters["connections.open"] == 1)
            assert knock(coordinator, bob, generate_curve()) == 400
        wait_until(lambda: coordinator.counters["connections.open"] == 0)
        assert knock(coordinator, bob, bob.newcomer.curve) == 0


def test_one_key_cannot_fill_the_coordinator(tmp_path: Path) -> None:
    with coordinator_in(tmp_path, env={"ZKC_LIMITS_CLIENTS": "200"}) as coordinator, ExitStack() as closing:
        bob, mallory = join(coordinator, "bob"), coordinator.invite("mallory")
        secret = to_z85(invitation_curve_secret(mallory.secret).reveal())
        ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        closing.callback(ctx.destroy, linger=0)
        peers = [ctx.socket(zmq.DEALER) for _ in range(CONNECTIONS_PER_PEER_MAX + 20)]
        for peer in peers:
            peer.curve_serverkey, peer.curve_publickey = to_z85(mallory.curve_key), curve_public(secret)
            peer.curve_secretkey = secret
            peer.connect(coordinator.endpoint)
            peer.send(control_frame(ControlKind.REGISTRATION, encode(RegHello(mallory.invite_id))))
        wait_until(lambda: coordinator.counters.get("zap.crowding", 0) > 0)
        assert coordinator.counters["connections.open"] <= CONNECTIONS_PER_PEER_MAX + 20 + 2
        with bob.open() as honest:
            assert honest.ask(Heartbeat()) == Ok()


def test_a_connection_that_says_nothing_is_dropped(running: RunningCoordinator) -> None:
    """Let in or not, it holds a place that somebody else could have."""
    mallory = running.invite("says-nothing")
    secret = to_z85(invitation_curve_secret(mallory.secret).reveal())
    keys = CurveKeys(curve_public(secret), secret)
    with KeyedPeer(running.endpoint, mallory.curve_key, keys) as peer:
        assert peer.verdict() is EventKind.HANDSHAKE_SUCCEEDED
        assert peer.wait(10 * SILENT_SECONDS, EventKind.DISCONNECTED)


def test_a_client_whose_row_cannot_be_read_is_not_called_unknown(tmp_path: Path) -> None:
    with coordinator_in(tmp_path) as coordinator:
        alice, bob = join(coordinator, "alice"), join(coordinator, "bob")
        with closing(sqlite3.connect(coordinator.home.keys_db)) as db, db:
            db.execute("UPDATE clients SET reason = 'x' WHERE name = 'alice'")
        assert knock(coordinator, alice, alice.newcomer.curve) == 500
        assert knock(coordinator, bob, bob.newcomer.curve) == 0
        assert knock(coordinator, bob, generate_curve()) == 400


# --- replays and lies ----------------------------------------------------------------------


@pytest.mark.attack("C03", "C07")
def test_a_replayed_c1_changes_nothing(running: RunningCoordinator) -> None:
    member = join(running, "replayed")
    with member.open() as peer:
        assert peer.ask(Goodbye()) == Ok()
        hello = peer.hello
    before = running.counters["channel.confirmed"]
    # The attacker stands where only the client can: under its CURVE key. He still has not got the channel's keys.
    with member.connect() as wire:
        for _ in range(8):
            wire.send(hello)
            wire.receive()
        assert not online(running, "replayed")
        assert running.counters["channel.confirmed"] == before
    with member.open() as peer:
        assert peer.ask(Heartbeat()) == Ok()


@pytest.mark.attack("C03")
def test_a_c1_replayed_after_a_restart_changes_nothing(tmp_path: Any) -> None:
    with coordinator_in(tmp_path) as coordinator:
        member = join(coordinator, "bob")
        with member.open() as peer:
            hello = peer.hello
        coordinator.kill_child()
        with member.connect() as wire:
            wire.send(hello)
            wire.receive()
            assert not online(coordinator, "bob")


@pytest.mark.attack("C04")
def test_a_replayed_record_closes_its_channel_and_does_nothing(running: RunningCoordinator) -> None:
    member = join(running, "recordreplay")
    with member.open() as peer:
        frame = peer.seal(Request(os.urandom(16), Heartbeat()))
        peer.wire.send(frame)
        before = violations(running, "replay")
        peer.wire.send(frame)
        wait_until(lambda: violations(running, "replay") == before + 1)
        assert not online(running, "recordreplay")
        with pytest.raises(NoAnswerError):
            peer.ask(Heartbeat(), SILENCE)
        peer.greet()
        assert peer.ask(Heartbeat()) == Ok()


@pytest.mark.attack("C04")
def test_a_record_reflected_or_damaged_is_nothing(running: RunningCoordinator) -> None:
    """Dropped, and the channel goes on: else whoever can inject a byte could end it (docs/decisions/0001)."""
    member = join(running, "reflected")
    with member.open() as peer:
        peer.send_request(Heartbeat())
        ours = peer.wire.receive()
        before = violations(running, "forged")
        peer.wire.send(ours)
        damaged = bytearray(peer.seal(Request(os.urandom(16), Heartbeat())))
        damaged[-1] ^= 1
        peer.wire.send(bytes(damaged))
        wait_until(lambda: violations(running, "forged") == before + 2)
        assert peer.ask(Heartbeat()) == Ok()


@pytest.mark.attack("C06")
def test_a_record_of_an_older_channel_is_nothing(running: RunningCoordinator) -> None:
    member = join(running, "older")
    with member.open() as peer:
        old = peer.seal(Request(os.urandom(16), Leave()))
        peer.greet()
        assert peer.ask(Heartbeat()) == Ok()
        before = running.counters.get("record.no-channel", 0)
        peer.wire.send(old)
        wait_until(lambda: running.counters.get("record.no-channel", 0) == before + 1)
        assert peer.ask(Heartbeat()) == Ok()


@pytest.mark.attack("C09")
def test_a_client_cannot_speak_for_another(running: RunningCoordinator) -> None:
    mallory, victim = join(running, "mallory"), join(running, "victim")
    with mallory.open() as peer, victim.open() as theirs:
        # Another's uid in C1.
        before = violations(running, "identity")
        hello = ChannelHello(victim.uid, b"x", b"x", b"x")
        peer.wire.send(control_frame(ControlKind.CHANNEL, encode(hello)))
        wait_until(lambda: violations(running, "identity") == before + 1)
        # Another's record.
        stray = running.counters.get("record.no-channel", 0)
        peer.wire.send(theirs.seal(Request(os.urandom(16), Leave())))
        wait_until(lambda: running.counters.get("record.no-channel", 0) == stray + 1)
        # Another's name in a request.
        request = request_from(victim, "victim")
        refusal = peer.ask(request)
        assert (refusal.code, refusal.detail) == (12, "identity")
        assert theirs.ask(Heartbeat()) == Ok()
    assert [client.revoked for client in admin.clients(running.home) if client.name == "victim"] == [None]


@pytest.mark.attack("C09")
def test_a_client_that_claims_a_routing_id_is_dropped_and_the_owner_unaffected(running: RunningCoordinator) -> None:
    mallory, victim = join(running, "claimer"), join(running, "claimed")
    with victim.open() as theirs:
        server_key = mallory.newcomer.invitation.curve_key
        with KeyedPeer(running.endpoint, server_key, mallory.newcomer.curve, routing_id=b"bob") as evil:
            assert evil.verdict() is EventKind.HANDSHAKE_SUCCEEDED
            evil.send(control_frame(ControlKind.RECORD, bytes(64)))
            evil.wait_dropped()
        assert theirs.ask(Heartbeat()) == Ok()


def request_from(member: Member, sender: str) -> TransferRequest:
    req = Req(
        TERMS_VERSION, os.urandom(16), os.urandom(16), sender, "victim", b"", "sender", "recipient-first",
        "aes-256-gcm", "none", "session", "online", 0, 255, False, False, member.registered.uid * 2, b"", b"",
        b"", "", b"", b"",
    )
    return TransferRequest(encode(req), bytes(64))


@pytest.mark.attack("C10")
def test_what_only_the_coordinator_may_ask_is_refused(running: RunningCoordinator) -> None:
    with join(running, "upsidedown").open() as peer:
        for body in (Notify(b"", bytes(64), b"", b"", "online"), DeliverKey(b"", bytes(64)), Revoked(""), Replaced()):
            refusal = peer.ask(body)
            assert isinstance(refusal, Failure)
            assert refusal.detail == "unexpected"
        assert peer.ask(Heartbeat()) == Ok()


def test_unconfirmed_channels_of_a_client_are_bounded_the_oldest_goes(running: RunningCoordinator) -> None:
    member = join(running, "unconfirmed")
    instance = os.urandom(16)
    with Peer(member, "once", instance) as peer:
        peer.greet()
        first = peer.channel
        assert first is not None
        for _ in range(4):
            peer.greet()
        before = running.counters.get("record.no-channel", 0)
        peer.wire.send(first.seal(encode(Request(os.urandom(16), Heartbeat()))))
        wait_until(lambda: running.counters.get("record.no-channel", 0) == before + 1)
        assert peer.ask(Heartbeat()) == Ok()


def test_a_message_of_several_parts_ends_the_connection(running: RunningCoordinator) -> None:
    member = join(running, "multipart")
    with member.open() as peer:
        peer.wire.socket.send_multipart([b"a", b"b", b"c"])
        peer.wire.wait_event(EventKind.DISCONNECTED)


def test_frames_of_no_kind_are_counted_and_answered_by_silence(running: RunningCoordinator) -> None:
    with join(running, "noise").open() as peer:
        before = running.counters.get("messages", 0)
        for frame in (b"", b"\x01", b"\x01\x09", b"\x02\x03" + bytes(40), os.urandom(300), b"\x01\x03short"):
            peer.wire.send(frame)
        wait_until(lambda: running.counters["messages"] >= before + 6)
        assert peer.ask(Heartbeat()) == Ok()


# --- what a client may ask ----------------------------------------------------------------------


def test_peers_and_cards_are_told(running: RunningCoordinator) -> None:
    one, other = join(running, "peer-one"), join(running, "peer-two")
    with one.open() as peer, other.open():
        page = peer.ask(ListPeers("peer-on"))
        assert isinstance(page, PeerPage)
        shown = {each.name: each for each in page.peers}
        assert shown["peer-one"].online
        assert shown["peer-two"].fingerprint == other.newcomer.identity.public.fingerprint
        card = peer.ask(LookUp("peer-two"))
        assert isinstance(card, PeerCard)
        assert (card.card, card.certificate) == (other.registered.card, other.registered.certificate)
        assert time.time() - DEADLINE < card.registered <= time.time()
        unknown = peer.ask(LookUp("nobody-at-all"))
        assert (unknown.code, unknown.detail) == (20, "unknown")


# --- the end of a registration ----------------------------------------------------------------------


def test_a_revocation_reaches_an_open_connection_and_closes_it(running: RunningCoordinator) -> None:
    member = join(running, "revoked")
    with member.open() as daemon, member.open("once") as command:
        assert admin.revoke(running.home, "revoked", "lost laptop") == ["revoked"]
        for peer in (daemon, command):
            request = peer.next_request()
            assert request.body == Revoked("lost laptop")
            peer.reply(request, Ok())
            peer.wire.wait_event(EventKind.DISCONNECTED)
        assert not online(running, "revoked")
    with member.connect() as wire:
        assert wire.verdict() is EventKind.HANDSHAKE_FAILED_AUTH
    # The name is free again.
    join(running, "revoked").open().close()


def test_a_revocation_written_behind_the_coordinators_back_counts_too(running: RunningCoordinator) -> None:
    member = join(running, "unasked")
    with member.open() as peer:
        with admin._opened(running.home) as (_, db):
            db.revoke("unasked", "", time.time())
        assert peer.next_request().body == Revoked("")
        # It does not answer: its connection is closed all the same.
        peer.wire.wait_event(EventKind.DISCONNECTED)


def test_a_client_that_leaves_is_gone_with_its_applications(running: RunningCoordinator) -> None:
    owner = join(running, "leaver")
    with owner.open() as peer:
        text = peer.ask(InviteApplication("app")).text
        application = Newcomer(parse_invitation(text), running.endpoint, owner=owner.newcomer.identity).register()
        with application.open() as its:
            assert peer.ask(Leave()) == Ok()
            assert its.next_request().body == Revoked("left")
    gone = {client.name: client.revoked for client in admin.clients(running.home) if "leaver" in client.name}
    assert set(gone) == {"leaver", "leaver/app"}
    assert all(gone.values())
