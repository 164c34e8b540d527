"""A transfer from alice to bob between two threads, whichever of them listens."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import msgspec

from tests.support.parties import world
from tests.support.proxy import TcpProxy
from tests.support.relays import Relay
from tests.support.streams import WHAT, Kept, Memory
from tests.support.talks import terms
from tests.support.waiting import DEADLINE
from zkc.constants import CHUNK_MIN
from zkc.crypto.chunks import rendezvous
from zkc.net.pipe.bell import Bell
from zkc.net.pipe.doors import Doors, Listening
from zkc.net.pipe.outgoing import Outgoing, Source
from zkc.net.pipe.recipient import Bulk, Incoming
from zkc.net.pipe.sender import Attempts
from zkc.wire.messages import Endpoints

C: Final = CHUNK_MIN
HOST: Final = "127.0.0.1"
RV: Final = b"random, in truth"
FORMS: Final = ("recipient listens", "sender listens", "by a relay")


class Meeting:
    """A transfer from alice to bob in one of its forms. The way between them leads through proxies."""

    def __init__(self, form: str) -> None:
        talk = world("x25519").transfer(terms("bob"))
        talk.run()
        self.sender, self.recipient = talk.sessions
        resp = msgspec.structs.replace(self.sender.resp, chunk=C)
        self.sender, self.recipient = (dataclasses.replace(each, resp=resp) for each in talk.sessions)
        self.bulk, self.doors, self.bell, self.ring = Bulk(), Doors(), Bell(), Bell()
        self.here: Listening | None = None
        self.relay: Relay | None = None
        self.proxies: tuple[TcpProxy, ...]
        self.incoming: Incoming
        nowhere = Endpoints([], 0, 0, 0, "", b"")
        if form == "recipient listens":
            self.incoming = self.bulk.listen(HOST, None, "alice")
            assert self.incoming.listening is not None
            self.proxies = self._proxies(self.incoming.listening)
            self.sender = dataclasses.replace(self.sender, endpoints=self.where())
            self.recipient = dataclasses.replace(self.recipient, endpoints=None)
        elif form == "by a relay":
            self.relay, self.proxies = Relay(), ()
            self.relay.announce(rendezvous(RV, "data"), rendezvous(RV, "ack"))
            told = Endpoints([HOST], self.relay.port, self.relay.port, 0, "relay1", RV)
            self.incoming = self.bulk.by_relay(told, "alice")
            self.sender = dataclasses.replace(self.sender, endpoints=told)
            self.recipient = dataclasses.replace(self.recipient, endpoints=None)
        else:
            self.here = self.doors.bind(HOST, None, sends=True, peer="bob")
            self.proxies = self._proxies(self.here)
            self.incoming = self.bulk.dial()
            self.sender = dataclasses.replace(self.sender, endpoints=nowhere)
            self.recipient = dataclasses.replace(self.recipient, endpoints=self.where())
        self.incoming.admit(self.recipient)
        self.sink = Kept(self.recipient)
        self._pool = ThreadPoolExecutor(1)

    def _proxies(self, listening: Listening) -> tuple[TcpProxy, TcpProxy]:
        return TcpProxy((HOST, listening.data_port)), TcpProxy((HOST, listening.ack_port))

    def where(self) -> Endpoints:
        return Endpoints([HOST], self.proxies[0].port, self.proxies[1].port, 0, "", b"")

    def cut(self) -> int:
        if self.relay is not None:
            return self.relay.cut()
        return sum(proxy.cut() for proxy in self.proxies)

    def receive(self, patience: float = DEADLINE) -> Future[None]:
        return self._pool.submit(self.incoming.receive, self.recipient, self.sink, self.bell, patience)

    def attempts(self, data: bytes) -> Attempts:
        return self.attempts_at(Memory(data))

    def attempts_at(self, source: Source) -> Attempts:
        return Attempts(self.sender, WHAT, Outgoing(source), listening=self.here)

    def close(self) -> None:
        self.bell.ring()
        self._pool.shutdown()
        self.incoming.close()
        if self.here is not None:
            self.here.close()
        for proxy in self.proxies:
            proxy.close()
        if self.relay is not None:
            self.relay.__exit__()
        self.bulk.close()
        self.doors.close()
        self.bell.close()
        self.ring.close()


@contextlib.contextmanager
def silent(host: str, *ports: int) -> Iterator[None]:
    """Ports whose queues are full: who connects hears nothing, as from an address behind a firewall."""
    with contextlib.ExitStack() as closing:
        for port in ports:
            listening = closing.enter_context(socket.create_server((host, port), backlog=0))
            for _ in range(4):
                stranger = closing.enter_context(socket.socket())
                stranger.setblocking(False)
                stranger.connect_ex(listening.getsockname())
        yield
