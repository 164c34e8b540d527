"""What both ends of a bulk link share: the tokens, frames in and out, and what a failure is told as."""

from __future__ import annotations

from collections import deque
from typing import Final

import zmq

from zkc.crypto.chunks import Sealed, token, xid_tag
from zkc.crypto.primitives import Secret
from zkc.errors import IntegrityError, Interrupted, PeerViolation, PolicyRefused, ZkcError
from zkc.net.pipe.frames import message_of
from zkc.net.sockets import Login, Socket, is_readable
from zkc.protocol.delivery import NotOpened
from zkc.rules.refusals import refused_by

CONNECT_SECONDS: Final = 5.0
"""For each address: TCP and PLAIN on both sockets."""
REPEAT_SECONDS: Final = 5.0
"""How long nothing comes before a recipient says again how far it is."""
TELL_SECONDS: Final = 0.5
"""How long an end that gives up tries to tell the other one so."""
PARTING_SECONDS: Final = 1.0
"""How long the connection on which an end listens may outlive its other one: the last words are there."""
_ATTEMPT_DIGITS: Final = 9
"""Attempts are u32 on the wire; nobody makes so many connections."""
_STOP_CODES: Final = frozenset({22, 23, 24, 25, 30, 31, 32, 33})
"""With which an end may give a delivery up; any other code of a peer is told as an interruption."""


def login(k: Secret, socket: str, attempt: int) -> Login:
    """User and password of one connection, derived at both ends."""
    return Login(f"{xid_tag(k).hex()}.{attempt}.{socket}".encode(), token(k, socket, attempt).encode())


def attempt_of(user: bytes) -> int | None:
    """The attempt that a user's name claims; None where it is none of ours."""
    number = user.split(b".")[1:2]
    return int(number[0]) if number and number[0].isdigit() and len(number[0]) <= _ATTEMPT_DIGITS else None


def receive_frame(sock: Socket) -> zmq.Frame | None:
    """The next single-part message, None: none is there; a multipart one is no frame of ours: `NotOpened`."""
    # Mostly asked once too often: an exception would cost more than this.
    if not is_readable(sock):
        return None
    frame = sock.recv(zmq.DONTWAIT, copy=False)
    if frame.more:
        raise NotOpened("malformed", "a frame of several parts")
    return frame


def flush(sock: Socket, queue: deque[Sealed]) -> None:
    """As many frames as the socket takes now."""
    while queue:
        # Out of the queue first: a signal's exception may come once the socket has it, and nothing may go twice.
        frame = queue.popleft()
        try:
            sock.send(message_of(frame), zmq.DONTWAIT, copy=False)
        except zmq.Again:
            queue.appendleft(frame)
            return


def given_up(peer: str, code: int, detail: str) -> ZkcError:
    """The other end's STOP, as the user is told."""
    return refused_by(peer, code if code in _STOP_CODES else Interrupted.code, detail)


def broken_rule(what: str, violation: PeerViolation) -> ZkcError:
    """A rule broken by the other end, as the user is told: above a limit, or data that did not verify."""
    kind = PolicyRefused if violation.detail == "limit" else IntegrityError
    return kind(
        f"{what} ({violation})", detail=violation.detail,
        hint="run it again; if that happens again, a version is defective, or somebody in between alters the data",
    )
