"""Messages without an end on the bulk sockets, by a peer that was let in with a true token (attack P06)."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Final

import pytest
import zmq

from tests.support.bystander import transfer_meanwhile
from tests.support.evil import RawPeer, send_long
from tests.support.evil_recipient import Delivering, EvilRecipient
from tests.support.evil_sender import EvilSender, Frames, RawLine, login
from tests.support.looking import ending, memory
from tests.support.waiting import DEADLINE, wait_until
from zkc.testing import Fleet

MIB: Final = 1 << 20
PROCESS_MAX: Final = 150 * 1000**2
"""Bytes: what any process of zkc may take at most, whatever is done to it."""
CONFIG: Final = {"transfer.listen": "tcp://127.0.0.1:0", "transfer.patience": "3s", "log.level": "debug"}


def on_the_wire(part: int) -> int:
    """Bytes, far more than fit: small parts cost libzmq up to 32 times theirs."""
    return (300 if part > 1000 else 30) * MIB


@pytest.mark.attack("P06")
@pytest.mark.parametrize("part", [60_000, 300, 0])
@pytest.mark.parametrize("port", ["data", "ack"])
def test_a_sender_s_message_without_end_costs_its_transfer_alone(port: str, part: int) -> None:
    with Fleet("alice", "bob", client=CONFIG) as fleet:
        fleet.join("mallory")
        with EvilSender(fleet.home("mallory")) as mallory, transfer_meanwhile(fleet):
            session = mallory.agree("bob")
            assert session.endpoints is not None
            if port == "data":
                with RawLine(session) as line:
                    line.send(*Frames(session).opening())
                    sent = line.peer.send_endless(bytes(part), on_the_wire(part))
            else:
                address, data, ack = session.endpoints.addresses[0], login(session, "data"), login(session, "ack")
                with (
                    RawPeer(address, session.endpoints.data_port) as other,
                    RawPeer(address, session.endpoints.ack_port) as peer,
                ):
                    assert other.handshake_plain(data.user, data.password, b"PUSH")
                    assert peer.handshake_plain(ack.user, ack.password, b"PULL")
                    sent = peer.send_endless(bytes(part), on_the_wire(part))
            assert sent < on_the_wire(part)
            event = ending(fleet, "bob", session.req.xid)
            assert (event["code"], event["detail"]) == (25, "limit"), event
            assert memory(fleet.program("bob").process.pid, "VmHWM") < PROCESS_MAX


@pytest.mark.attack("P06")
@pytest.mark.parametrize("part", [60_000, 300, 0])
def test_a_recipient_s_message_without_end_costs_its_transfer_alone(part: int) -> None:
    tops: list[int] = []

    def behave(delivering: Delivering) -> None:
        push = delivering.listener.listening._pair[1]
        assert push.poll(int(DEADLINE * 1000), zmq.POLLOUT)
        send_long(push, bytes(part), on_the_wire(part))
        delivering.wait_gone()

    with Fleet("alice", "mallory", client=CONFIG) as fleet:
        fleet.program("mallory").terminate()
        with EvilRecipient(fleet.home("mallory")) as mallory:
            mallory.behave = behave
            with fleet.popen(
                "alice", "send", "mallory", "--name", "x", "--json", stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as sending:

                def has_ended() -> bool:
                    with contextlib.suppress(AssertionError):  # it has just ended
                        tops.append(memory(sending.pid, "VmHWM"))
                    return sending.poll() is not None

                try:
                    wait_until(has_ended)
                finally:
                    sending.kill()
            assert sending.returncode == 25
            assert max(tops) < PROCESS_MAX
