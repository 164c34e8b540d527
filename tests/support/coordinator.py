"""A coordinator as a process, and the smallest client that speaks its protocol: one DEALER and the machines.

`Peer` has no loop and no thread: each call sends, then waits for what it needs. It can also send what no client would.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import zmq

from tests.support.program import environment
from tests.support.waiting import DEADLINE, wait_until
from zkc.constants import CARD_SECONDS
from zkc.coordinator import admin
from zkc.coordinator.control import Status
from zkc.crypto.invitations import invitation_curve_secret, parse_invitation
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import KemPrivateKey, suite_named
from zkc.net.monitor import EventKind, ThreadMonitor
from zkc.net.sockets import CurveKeys, connect_dealer, curve_public, generate_curve, to_raw, to_z85
from zkc.protocol import channel
from zkc.protocol import registration_client as registration
from zkc.protocol.registration import error_mac
from zkc.protocol.step import Send, step
from zkc.stores.home import Home
from zkc.testing import HeldPort
from zkc.wire.codec import decode, encode
from zkc.wire.frames import ControlKind, control_frame, split_control
from zkc.wire.messages import (
    Answer,
    ChannelMessage,
    Failure,
    Heartbeat,
    HelloInfo,
    InvitationText,
    Record,
    RegError,
    RegMessage,
    Request,
)

_NUMBERS = itertools.count(1)
RUN = """
import sys
from zkc.coordinator import admin
from zkc.errors import ZkcError
from zkc.stores.home import Home
try:
    admin.run(
        Home.resolve("coordinator", sys.argv[1]), {"coordinator.listen": sys.argv[2]},
        on_ready=lambda endpoint, fingerprint: print("ready", endpoint, fingerprint, flush=True),
    )
except ZkcError as error:
    print(error, file=sys.stderr)
    sys.exit(error.code)
"""
"""A program that runs a coordinator in the home argv[1], listening on argv[2]."""


class RunningCoordinator:
    """``zkc coordinator run`` in a home of its own, whose program does ``before`` first. Use as a context manager."""

    def __init__(
        self, folder: Path, *, listen: str = "", env: dict[str, str] | None = None, before: str = ""
    ) -> None:
        self.home = Home.resolve("coordinator", str(folder))
        self._log = folder.parent / f"{folder.name}.log"
        self._port: HeldPort | None = None
        self._listen = listen
        self._env = env or {}
        self._program = before + RUN
        self.start()

    def start(self) -> None:
        """Start it (again); returns when it is ready."""
        self._port = self._port or HeldPort()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self._program, str(self.home.data), self._listen or self._port.endpoint],
                stdout=subprocess.PIPE, stderr=log,
                env=environment(self._env),
            )
        assert self.process.stdout is not None
        words = self.process.stdout.readline().decode().split()
        assert words[:1] == ["ready"], self.log_text()
        self.endpoint, self.fingerprint = words[1:]

    def __enter__(self) -> RunningCoordinator:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            status = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self._port is not None:
            self._port.close()
            self._port = None
        return status

    @property
    def status(self) -> Status:
        return admin.status(self.home, DEADLINE)

    @property
    def counters(self) -> dict[str, int]:
        return self.status.counters

    @property
    def child(self) -> int:
        """Process id of the process that serves."""
        return self.status.pid

    def kill_child(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the process that serves, and return once another one does."""
        old = self.child
        os.kill(old, how)
        wait_until(lambda: not _lives(old))
        assert self.child != old

    def invite(self, name: str, **choices: Any) -> InvitationText:
        return parse_invitation(admin.invite(self.home, name, **choices).invitation)

    def log_text(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def events(self, event: str) -> list[dict[str, Any]]:
        """The events of that name in its log so far."""
        *whole, _ = self.log_text().split("\n")
        lines = [json.loads(line) for line in whole if line.startswith("{")]
        return [line for line in lines if line["event"] == event]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class NoAnswerError(AssertionError):
    """Nothing came in time."""


class Wire:
    """One DEALER to a coordinator, with its own context."""

    def __init__(self, endpoint: str, server_key: bytes, secret: bytes) -> None:
        self._ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.monitors: list[ThreadMonitor] = []
        public = curve_public(to_z85(secret))
        self.socket = connect_dealer(
            self._ctx, endpoint, server_key, public, secret, watch=lambda s: self.monitors.append(ThreadMonitor(s))
        )
        self.socket.setsockopt(zmq.SNDTIMEO, int(DEADLINE * 1000))

    def close(self, linger: float = 0) -> None:
        """``linger``: how many seconds what was sent may take to leave."""
        for monitor in self.monitors:
            monitor.close()
        self.socket.close(linger=int(linger * 1000))
        self._ctx.term()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verdict(self, within: float = DEADLINE) -> EventKind:
        """How the handshake ended."""
        event = self.monitors[0].wait(
            {EventKind.HANDSHAKE_SUCCEEDED, EventKind.HANDSHAKE_FAILED_AUTH, EventKind.HANDSHAKE_FAILED_NO_DETAIL},
            within,
        )
        assert event is not None, "no verdict"
        return event.kind

    def wait_event(self, kind: EventKind, within: float = DEADLINE) -> None:
        assert self.monitors[0].wait({kind}, within) is not None, f"no {kind.name}"

    def send(self, frame: bytes) -> None:
        self.socket.send(frame)

    def receive(self, within: float = DEADLINE) -> bytes:
        if not self.socket.poll(int(within * 1000)):
            raise NoAnswerError
        return self.socket.recv()


Tap = Callable[[Literal["sending", "sent", "received"], Any, bytes], bytes]


def passing(_when: str, _message: Any, body: bytes) -> bytes:
    """A tap that changes nothing."""
    return body


class RefusedError(Exception):
    """The coordinator refused the registration; the MAC of its word was right."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail


@dataclass
class Newcomer:
    """Who answers an invitation: permanent keys that outlive a try that broke off."""

    invitation: InvitationText
    endpoint: str
    owner: IdentityKey | None = None
    request_apart: bool = False
    seal_to: Literal["permanent", "temporary"] = "permanent"
    identity: IdentityKey = field(default_factory=lambda: IdentityKey.from_seed(os.urandom(64)))
    curve: CurveKeys = field(default_factory=generate_curve)
    kept_card: bytes = b""

    def __post_init__(self) -> None:
        self.kem_key = suite_named(self.invitation.suite).generate()

    def machine(self) -> registration.Newcomer:
        return registration.Newcomer(
            self.invitation, self.identity, self.kem_key, to_raw(self.curve.public), int(time.time()) + CARD_SECONDS,
            kept_card=self.kept_card, owner=self.owner, request_apart=self.request_apart, seal_to=self.seal_to,
        )

    def connect(self) -> Wire:
        secret = invitation_curve_secret(self.invitation.secret).reveal()
        return Wire(self.endpoint, self.invitation.curve_key, secret)

    def register(self, tap: Tap = passing, within: float = DEADLINE) -> Member:
        """The whole registration; ``tap`` sees each message and may change it, or raise to break it off.

        `RefusedError` where the coordinator says no; `NoAnswerError` where it keeps silent.
        """
        new = self.machine()
        psk = registration.invitation_psk(self.invitation.secret)
        with self.connect() as wire:
            taken = registration.create_hello(new)
            while True:
                body = b""
                for effect in taken.effects:
                    if isinstance(effect, registration.KeepCard):
                        self.kept_card = effect.card
                        continue
                    assert isinstance(effect, Send)
                    body = tap("sending", effect.message, encode(effect.message))
                    wire.send(control_frame(ControlKind.REGISTRATION, body))
                    tap("sent", effect.message, body)
                if isinstance(taken.state, registration.Registered):
                    return Member(self, taken.state, self.endpoint)
                kind, received = split_control(wire.receive(within))
                assert kind is ControlKind.REGISTRATION
                message: Any = decode(received, RegMessage)
                if isinstance(message, RegError):
                    expected = error_mac(psk, body, message.code, message.detail)
                    assert message.mac == expected, "a refusal that anybody could have made"
                    raise RefusedError(message.code, message.detail)
                tap("received", message, received)
                taken = step(registration.TABLE, new, taken.state, message)


@dataclass
class Member:
    """A registered client, as its key store would have it."""

    newcomer: Newcomer
    registered: registration.Registered
    endpoint: str

    @property
    def name(self) -> str:
        return self.newcomer.invitation.name

    @property
    def uid(self) -> bytes:
        return self.registered.uid

    @property
    def kem_key(self) -> KemPrivateKey:
        return self.newcomer.kem_key

    def connect(self) -> Wire:
        return Wire(self.endpoint, self.newcomer.invitation.curve_key, to_raw(self.newcomer.curve.secret))

    def keys(self) -> channel.ClientKeys:
        suite = suite_named(self.newcomer.invitation.suite)
        return channel.ClientKeys(suite, self.uid, self.kem_key, suite.read_public(self.registered.perm_server))

    def open(self, role: Literal["daemon", "once"] = "daemon", instance: bytes = b"") -> Peer:
        """Connected, with a channel that a first record has confirmed."""
        peer = Peer(self, role, instance or os.urandom(16))
        peer.greet()
        peer.ask(Heartbeat())
        return peer


class Peer:
    """One process of a member: a connection and a channel. Use as a context manager."""

    def __init__(self, member: Member, role: Literal["daemon", "once"], instance: bytes) -> None:
        self.member = member
        self.role = role
        self.instance = instance
        self.wire = member.connect()
        self.channel: channel.Channel | None = None
        self.hello = b""
        self.asked: list[Request] = []
        """What the coordinator asked, and nobody has answered."""
        self._answers: dict[bytes, Answer | Failure] = {}

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.wire.close()

    def greet(self, versions: Sequence[int] = channel.VERSIONS) -> None:
        """C1 and S1."""
        info = HelloInfo(self.role, self.instance, list(versions), 1)
        taken = channel.create_hello(self.member.keys(), info, time.monotonic())
        (effect,) = taken.effects
        self.hello = control_frame(ControlKind.CHANNEL, encode(effect.message))
        self.wire.send(self.hello)
        while True:
            kind, body = split_control(self.wire.receive())
            if kind is ControlKind.CHANNEL:
                agreed = step(channel.TABLE, self.member.keys(), taken.state, decode(body, ChannelMessage))
                self.channel = agreed.state.channel
                return

    def seal(self, record: Any) -> bytes:
        assert self.channel is not None
        return self.channel.seal(encode(record))

    def send_request(self, body: Any, call: bytes = b"") -> bytes:
        """A request whose answer is not waited for; its id."""
        call = call or os.urandom(16)
        self.wire.send(self.seal(Request(call, body)))
        return call

    def ask(self, body: Any, within: float = DEADLINE) -> Any:
        """The coordinator's answer (a body, or a `Failure`)."""
        return self.answer_to(self.send_request(body), within)

    def answer_to(self, call: bytes, within: float = DEADLINE) -> Any:
        end = time.monotonic() + within
        while call not in self._answers:
            self._read(max(end - time.monotonic(), 0.0))
        answer = self._answers.pop(call)
        return answer.body if isinstance(answer, Answer) else answer

    def next_request(self, within: float = DEADLINE) -> Request:
        """What the coordinator asks of us; it is for the caller to answer."""
        end = time.monotonic() + within
        while not self.asked:
            self._read(max(end - time.monotonic(), 0.0))
        return self.asked.pop(0)

    def reply(self, request: Request, body: Any) -> None:
        self.wire.send(self.seal(Answer(request.id, body)))

    def refuse(self, request: Request, code: int, detail: str) -> None:
        self.wire.send(self.seal(Failure(request.id, code, detail)))

    def _read(self, within: float) -> None:
        kind, _ = split_control(frame := self.wire.receive(within))
        if kind is not ControlKind.RECORD:
            return
        assert self.channel is not None
        record: Any = decode(self.channel.open(frame), Record)
        if isinstance(record, Request):
            if record.id not in {known.id for known in self.asked}:
                self.asked.append(record)
        else:
            self._answers[record.id] = record


def join(coordinator: RunningCoordinator, name: str, **choices: Any) -> Member:
    """A newcomer, invited and registered."""
    return Newcomer(coordinator.invite(name), coordinator.endpoint, **choices).register()


@contextlib.contextmanager
def coordinator_in(folder: Path, **choices: Any) -> Iterator[RunningCoordinator]:
    with RunningCoordinator(folder / f"coordinator{next(_NUMBERS)}", **choices) as running:
        yield running
