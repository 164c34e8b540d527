"""A registered client that agrees to every transfer as it should, and then says what it likes on the acknowledgements.

It is a daemon of the real kind on a thread of the test, but for the delivery: that is a function of the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import zmq

from tests.support.waiting import DEADLINE, wait_until
from zkc.client.by_link import LoopThread
from zkc.client.daemon import Daemon
from zkc.client.transfers import Transfer
from zkc.config import load
from zkc.crypto.chunks import StreamSealer
from zkc.crypto.receipts import make_receipt
from zkc.crypto.signing import IdentityKey
from zkc.env import SystemClock, SystemEntropy
from zkc.net.pipe.bell import Bell
from zkc.net.pipe.recipient import Incoming
from zkc.protocol.delivery_recipient import Announced, Complete, DeliveryRecipient, Event, receipt_body
from zkc.protocol.session import Session
from zkc.stores.audit_file import AuditFile
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.keystore import KeyStore
from zkc.wire.codec import encode
from zkc.wire.frames import Stream
from zkc.wire.messages import Ack, Done, Manifest, ReceiptBody, Stop


class Delivering:
    """One transfer whose sender is at the door; the methods say what the test wants said."""

    def __init__(self, session: Session, listener: Incoming, identity: IdentityKey, card: bytes) -> None:
        self.session = session
        self.listener = listener
        self.identity = identity
        self.card = card
        self.expect(0)
        self.manifest: Manifest | None = None
        self.seen: list[Event] = []

    def expect(self, attempt: int) -> None:
        """What is said and opened from here on is of that attempt."""
        self.acks = StreamSealer(self.session.k, Stream.ACK, attempt, self.session.req.cipher)
        self.machine = DeliveryRecipient(self.session, attempt)

    def renew(self) -> None:
        """Drop the sender, and return once it has come again."""
        self.listener.listening.leave(self.machine.attempt)
        self.meet()

    def meet(self) -> None:
        """Return once the sender is here; what is said and opened from here on is of its attempt."""
        wait_until(lambda: self.listener.listening.door.attempt() is not None)
        self.expect(self.listener.listening.door.attempt() or 0)

    def say(self, message: Ack | Done | Stop) -> None:
        """One acknowledgement, sealed with the true key."""
        self.send(self.acks.seal(encode(message)))

    def send(self, *parts: bytes | bytearray) -> None:
        """Anything."""
        if self.listener.listening._pair[1].poll(int(DEADLINE * 1000), zmq.POLLOUT):
            with contextlib.suppress(zmq.Again):
                self.listener.listening._pair[1].send_multipart(parts, zmq.DONTWAIT)

    def take(self, *kinds: type[Event]) -> Event:
        """Frames of the sender, in order, up to the first event of these kinds."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            if self.listener.listening._pair[0].poll(100):
                event = self.machine.receive(self.listener.listening._pair[0].recv())
                self.seen.append(event)
                if isinstance(event, Announced):
                    self.manifest = event.manifest
                if isinstance(event, kinds):
                    return event
        raise AssertionError(f"the sender did not come to {kinds}")

    def wait_gone(self) -> None:
        """Return once the sender has left."""
        wait_until(lambda: not self.listener.listening._pair[1].poll(0, zmq.POLLOUT))

    def body(self, complete: Complete) -> ReceiptBody:
        """What an honest recipient would sign."""
        assert self.manifest is not None
        now = time.time()
        return receipt_body(self.session, self.manifest, complete.size, complete.digest, now, now)

    def receipt(self, body: ReceiptBody) -> bytes:
        return make_receipt(self.identity, body, self.card)


Behaviour = Callable[[Delivering], None]


class EvilRecipient:
    """A joined home, online; every delivery to it is handed to `behave`. Use as a context manager."""

    def __init__(self, home: Path) -> None:
        place = Home.resolve("client", str(home))
        self.behave: Behaviour = lambda _: None
        """What is done with the next deliveries."""
        self.errors: list[BaseException] = []
        self._store = KeyStore.open(place)
        self._inbox = Inbox.open(place)
        self._audit = AuditFile.open(place)
        self._lock = place.lock()
        self._loop = LoopThread()
        self._daemon = self._loop.run(self._start(place))

    async def _start(self, home: Home) -> Daemon:
        config = load("client", home.config_file, {}).config
        entropy = SystemEntropy()
        daemon = Daemon(home, self._store, self._inbox, self._audit, lambda: config, SystemClock(), entropy)
        self._deliveries = daemon._receiver._deliveries
        setattr(self._deliveries, "_receive", self._receive)  # noqa: B010  (for the program, not for mypy)
        await daemon.start(home.prepare_socket(self._lock))
        await daemon.main.wait_linked(DEADLINE)
        return daemon

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run(self._daemon.close())
        self._loop.close()
        self._inbox.close()
        self._audit.close()
        self._store.close()
        self._lock.release()

    async def _receive(
        self, transfer: Transfer, session: Session, listener: Incoming, bell: Bell, older: Sequence[Any] = ()
    ) -> None:
        context = transfer.context
        delivering = Delivering(session, listener, context.identity, context.card.encoded)
        try:
            await asyncio.get_running_loop().run_in_executor(self._deliveries._threads, self.behave, delivering)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.errors.append(error)
        finally:
            bell.close()
            self._deliveries._over(transfer)
            if transfer.done is not None:
                transfer.done.set_result(None)


def noise(n: int) -> bytes:
    """Bytes that are no frame."""
    return os.urandom(n)
