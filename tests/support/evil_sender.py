"""A registered client that keeps no rule after its handshake: true keys, then any frames that it likes.

`EvilSender.agree` makes a handshake as every client does and answers with its session. `Line` connects to the sockets
of one transfer with any token; `Frames` makes honest frames and others, with the keys of a session.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, Literal

import zmq
from blake3 import blake3

from tests.support.evil import RawPeer, frame
from tests.support.waiting import DEADLINE, wait_until
from zkc.client.by_link import ByLink
from zkc.client.command_audit import CommandAudit
from zkc.client.grants import Grant, Wanted
from zkc.config import load
from zkc.crypto.chunks import StreamOpener, StreamSealer, token, xid_tag
from zkc.crypto.primitives import Secret
from zkc.crypto.receipts import manifest_digest
from zkc.env import SystemClock, SystemEntropy
from zkc.net.monitor import EventKind, ThreadMonitor
from zkc.net.sockets import Login
from zkc.protocol.session import Session
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore
from zkc.wire.codec import decode, encode
from zkc.wire.frames import DataHeader, Flag, Stream
from zkc.wire.messages import Ack, AckMessage, Done, Endpoints, Manifest, Start, Stop

_REFUSED = {
    EventKind.HANDSHAKE_FAILED_AUTH, EventKind.HANDSHAKE_FAILED_NO_DETAIL, EventKind.HANDSHAKE_FAILED_PROTOCOL,
    EventKind.DISCONNECTED,
}


def login(session: Session, socket: Literal["data", "ack"], attempt: int = 0) -> Login:
    """The true token of one connection."""
    return Login(f"{xid_tag(session.k).hex()}.{attempt}.{socket}".encode(), token(session.k, socket, attempt).encode())


class EvilSender:
    """A joined home without a daemon, in the hands of a program that is not zkc. Use as a context manager."""

    def __init__(self, home: Path) -> None:
        place = Home.resolve("client", str(home))
        self._store = KeyStore.open(place)
        self._entropy = SystemEntropy()
        config = load("client", place.config_file, {}).config
        notes = CommandAudit(place, config, SystemClock())
        self._access = ByLink(self._store, config, SystemClock(), self._entropy, notes)

    def __enter__(self) -> EvilSender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._access.close()
        self._store.close()

    def agree(self, recipient: str, *, tid: bytes = b"", fresh: bool = True) -> Session:
        """A handshake to its end: the recipient listens, and both hold the key."""
        granted = self.ask(recipient, tid=tid, fresh=fresh)
        assert isinstance(granted, Session)
        return granted

    def ask(self, recipient: str, *, tid: bytes = b"", fresh: bool = True) -> Grant:
        """A handshake, whatever comes of it."""
        tid = tid or self._entropy.bytes(16)
        return self.grant(Wanted(tid, recipient, "sender", "recipient-first", "aes-256-gcm", 255, fresh=fresh))

    def grant(self, wanted: Wanted) -> Grant:
        """A handshake about ``wanted``."""
        return self._access.grant(wanted, DEADLINE, _cannot_listen, _nobody_asked)


def _nobody_asked() -> None:
    raise AssertionError("a recipient asked a person")


def _cannot_listen(_coordinator: str) -> Endpoints:
    raise AssertionError("a recipient that listens asks its sender to")


class Frames:
    """The frames of one attempt of one transfer, true or not."""

    def __init__(
        self, session: Session, *, name: str = "evil.bin", note: str = "", size: int | None = None,
        kind: Literal["file", "stream", "message", "tree"] = "file", mode: int = 0o600, mtime_ns: int = 0,
        attempt: int = 0,
    ) -> None:
        self.attempt = attempt
        self.chunk_bytes = session.resp.chunk
        self.manifest = Manifest(kind, name, note, size, mode, mtime_ns)
        self.data = StreamSealer(session.k, Stream.DATA, attempt, session.req.cipher)
        self.names = StreamSealer(session.k, Stream.MANIFEST, attempt, session.req.cipher)
        self.hash = blake3()
        self.sent = 0

    def opening(self) -> list[bytearray]:
        """START, at what was sent before, and the manifest."""
        return [
            self.data.seal(encode(Start(self.attempt, self.sent)), Flag.START),
            self.names.seal(encode(self.manifest), Flag.LAST),
        ]

    def whole(self) -> bytes:
        """One chunk's worth of bytes, no two alike."""
        return os.urandom(self.chunk_bytes)

    def again(self, session: Session, attempt: int) -> Frames:
        """Those of a later attempt, which goes on where these have come to."""
        manifest = self.manifest
        later = Frames(session, attempt=attempt)
        later.manifest, later.hash, later.sent = manifest, self.hash.copy(), self.sent
        return later

    def chunk(self, data: bytes, flags: Flag = Flag.NONE) -> bytearray:
        """A chunk of any length, with any flags."""
        self.hash.update(data)
        self.sent += len(data)
        return self.data.seal(data, flags)

    def last(self, data: bytes = b"", *, total: int | None = None, digest: bytes | None = None) -> bytearray:
        """A last chunk whose end is true unless told otherwise."""
        self.hash.update(data)
        self.sent += len(data)
        claimed = self.sent if total is None else total
        trailer = claimed.to_bytes(8, "big") + (digest or self.hash.digest()) + manifest_digest(self.manifest)
        return self.data.seal(data + trailer, Flag.LAST)

    def bye(self) -> bytearray:
        return self.data.seal(b"", Flag.BYE)


class Line:
    """A connection to each socket of one transfer, made by hand. Use as a context manager."""

    def __init__(
        self, session: Session, *, data: Login | Literal["true"] | None = "true",
        ack: Login | Literal["true"] | None = "true", attempt: int = 0,
    ) -> None:
        assert session.endpoints is not None
        self._session = session
        self._opener = StreamOpener(session.k, Stream.ACK, attempt, session.req.cipher)
        self._ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.host = session.endpoints.addresses[0]
        self.data_port, self.ack_port = session.endpoints.data_port, session.endpoints.ack_port
        tokens = [
            login(session, kind, attempt) if given == "true" else given
            for kind, given in (("data", data), ("ack", ack))
        ]
        self._monitors: list[ThreadMonitor] = []
        self._gone = False
        self.push = self._connect(zmq.PUSH, self.data_port, tokens[0])
        self.pull = self._connect(zmq.PULL, self.ack_port, tokens[1])

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gone without a word; what was sent is still delivered to the kernel."""
        for monitor in self._monitors:
            monitor.close()
        self.push.close(linger=2000)
        self.pull.close(linger=0)
        self._ctx.term()

    def _connect(self, kind: int, port: int, login: Login | None) -> zmq.Socket[bytes]:
        sock = self._ctx.socket(kind)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.IMMEDIATE, 1)
        sock.setsockopt(zmq.RECONNECT_IVL, -1)
        if login is not None:
            sock.setsockopt(zmq.PLAIN_USERNAME, login.user)
            sock.setsockopt(zmq.PLAIN_PASSWORD, login.password)
        self._monitors.append(ThreadMonitor(sock))
        sock.connect(f"tcp://{self.host}:{port}")
        return sock

    def admitted(self) -> tuple[bool, bool]:
        """Whether the data and the acknowledgement connection were let in."""
        first, second = (self._verdict(monitor) for monitor in self._monitors)
        return first, second

    def _verdict(self, monitor: ThreadMonitor) -> bool:
        event = monitor.wait({EventKind.HANDSHAKE_SUCCEEDED, *_REFUSED}, DEADLINE)
        assert event is not None, "neither let in nor refused"
        return event.kind is EventKind.HANDSHAKE_SUCCEEDED

    def send(self, *frames: bytes | bytearray) -> None:
        """Each frame as a message of one part. What the recipient no longer takes is nothing."""
        for one in frames:
            self.send_parts(one)

    def send_parts(self, *parts: bytes | bytearray) -> None:
        wait_until(lambda: self.push.poll(10, zmq.POLLOUT) or self.gone())
        with contextlib.suppress(zmq.Again):
            self.push.send_multipart(parts, zmq.DONTWAIT)

    def answer(self, within: float = DEADLINE) -> Ack | Done | Stop | None:
        """The recipient's next word, opened; None if there is none in time."""
        if not self.pull.poll(int(within * 1000)):
            return None
        got = self.pull.recv()
        message: Any = decode(self._opener.open(DataHeader.unpack(got), got), AckMessage)
        return message  # type: ignore[no-any-return]

    def verdict(self, within: float = DEADLINE) -> Done | Stop | None:
        """The recipient's last word: DONE or STOP; None if it left without one."""
        end, gone = time.monotonic() + within, False
        while (left := end - time.monotonic()) > 0:
            # Its two connections end apart: a last word can still be on its way.
            message = self.answer(min(left, 3.0 if gone else 0.25))
            if isinstance(message, Done | Stop):
                return message
            if message is None and gone:
                return None
            gone = gone or (message is None and self.gone())
        raise AssertionError(f"no last word within {within:g} s")

    def wait_gone(self) -> list[Ack | Done | Stop]:
        """Return once the recipient has ended a connection, with what it had said by then."""
        wait_until(self.gone)
        said: list[Ack | Done | Stop] = []
        while (message := self.answer(0.0)) is not None:
            said.append(message)
        return said

    def acknowledged(self, position: int) -> None:
        """Return once the recipient has taken over so many bytes."""
        while True:
            message = self.answer()
            assert isinstance(message, Ack), message
            if message.position >= position:
                return

    def gone(self) -> bool:
        """Whether the recipient has closed one of the connections."""
        events = [event for monitor in self._monitors for event in monitor.drain()]
        self._gone = self._gone or any(event.kind is EventKind.DISCONNECTED for event in events)
        return self._gone


class RawLine:
    """The data connection of one transfer as bytes on TCP: several frames in one write arrive as one."""

    def __init__(self, session: Session) -> None:
        assert session.endpoints is not None
        self.line = Line(session, data=Login(b"nobody", b"nothing"))
        assert self.line.admitted() == (False, True)
        self.peer = RawPeer(session.endpoints.addresses[0], session.endpoints.data_port)
        true = login(session, "data")
        assert self.peer.handshake_plain(true.user, true.password)

    def __enter__(self) -> RawLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.peer.close()
        self.line.close()

    def send(self, *frames: bytes | bytearray) -> bool:
        """All of these at once."""
        return self.peer.send(b"".join(frame(bytes(one)) for one in frames))

    def verdict(self) -> Done | Stop | None:
        return self.line.verdict()


def foreign(session: Session) -> Secret:
    """A key that is not the transfer's."""
    return Secret(blake3(session.k.reveal()).digest())


def damaged(data: bytes | bytearray, at: int, mask: int = 0x01) -> bytes:
    """``data`` with bits of one byte turned over."""
    out = bytearray(data)
    out[at] ^= mask
    return bytes(out)
