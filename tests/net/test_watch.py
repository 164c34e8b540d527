"""Messages without an end are cut off, honest peers never are, however slowly they are read (attacks O03, P06)."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final

import pytest
import zmq

from tests.net.conftest import Door
from tests.support.evil import KeyedPeer, RawPeer, send_long
from tests.support.looking import memory
from tests.support.waiting import DEADLINE, wait_until
from zkc.constants import CHUNK, CONTROL_MESSAGE_MAX
from zkc.net.monitor import EventKind, SocketEvent, ThreadMonitor
from zkc.net.sockets import DATA_RCVHWM, BulkPorts, Context, Socket, connect_bulk, inode_of, serve_bulk
from zkc.net.sockets import Login as BulkLogin
from zkc.net.watch import (
    BULK_BOUNDS,
    HEARTBEAT_BYTES,
    ROUTER_BOUNDS,
    UNREAD_BYTES,
    Ahead,
    Bounds,
    Cut,
    Progress,
    Watch,
    bytes_taken,
    data_bytes,
)
from zkc.net.zap import ThreadZap

MIB: Final = 1 << 20
ENDLESS: Final = 200 * MIB
"""On the wire; far more than any of these processes may take."""


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        with far:
            yield near, far


def ahead_of(sock: socket.socket, progress: Progress | None = None) -> Ahead:
    return Ahead(sock.fileno(), inode_of(sock.fileno()), progress or Progress(0), 0.0)


# --- what is measured ----------------------------------------------------------------------------------------------


def test_bytes_count_once_they_are_read_from_the_kernel(tcp: tuple[socket.socket, socket.socket]) -> None:
    """What waits in the kernel's buffer takes none of our memory."""
    near, far = tcp
    near.sendall(bytes(1000))
    wait_until(lambda: len(far.recv(2000, socket.MSG_PEEK)) == 1000)
    assert bytes_taken(far.fileno(), inode_of(far.fileno())) == (0, 1000)
    ahead = ahead_of(far)
    assert (ahead.look(0.0), ahead.settled) == (0, False), "libzmq may read them at any moment"
    far.recv(600)
    assert bytes_taken(far.fileno(), inode_of(far.fileno())) == (600, 400)
    far.recv(400)
    assert (ahead.look(0.0), ahead.settled) == (1000, True)


def test_another_connection_under_the_same_descriptor_is_not_the_one(tcp: tuple[socket.socket, socket.socket]) -> None:
    _, far = tcp
    assert bytes_taken(far.fileno(), inode_of(far.fileno()) + 1) is None
    assert bytes_taken(-1, 5) is None
    read, write = os.pipe()
    assert bytes_taken(read, os.fstat(read).st_ino) is None
    os.close(read)
    os.close(write)


def test_a_whole_message_sets_it_back(tcp: tuple[socket.socket, socket.socket]) -> None:
    """The look after the one that saw it knows where the next message begins, at the latest."""
    near, far = tcp
    progress = Progress(0)
    ahead = ahead_of(far, progress)

    def take(count: int) -> None:
        near.sendall(bytes(count))
        assert len(far.recv(count, socket.MSG_WAITALL)) == count

    take(500)
    assert ahead.look(0.0) == 500
    progress.delivered += 1
    assert ahead.look(0.0) == 0
    take(70)
    assert ahead.look(0.0) == 0, "these may have come before the message was delivered"
    take(30)
    assert ahead.look(0.0) == 30
    assert ahead.look(0.0) == 30


def test_heartbeats_of_days_are_not_held_against_a_silent_peer(tcp: tuple[socket.socket, socket.socket]) -> None:
    near, far = tcp
    ahead = ahead_of(far)
    near.sendall(bytes(1000))
    far.recv(1000, socket.MSG_WAITALL)
    assert ahead.look(10.0) == 1000 - 10 * HEARTBEAT_BYTES
    assert (ahead.look(86400.0) or 0) < 0


def test_a_connection_that_ended_is_gone(tcp: tuple[socket.socket, socket.socket]) -> None:
    _, far = tcp
    ahead = ahead_of(far)
    far.close()
    assert ahead.look(0.0) is None


# --- a ROUTER under CURVE ------------------------------------------------------------------------------------------


class Watched:
    """A bound socket with its watch, fed by its monitor from a thread."""

    def __init__(self, bounds: Bounds) -> None:
        self.cuts: list[Cut] = []
        self.watch = Watch(bounds, self.cuts.append)
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def follow(self, monitor: ThreadMonitor, progress: Progress | None = None) -> None:
        def run() -> None:
            while not self._over.is_set():
                if monitor.socket.poll(20):
                    for event in monitor.drain():
                        self.watch.on_event(event, progress)
            monitor.close()

        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()

    def read(self, door: Door) -> bytes:
        """The next message of a ROUTER, of which the watch is told."""
        assert door.socket.poll(int(DEADLINE * 1000)), "nothing came"
        door.socket.recv()
        frame = door.socket.recv(copy=False)
        self.watch.delivered(int(frame.get(zmq.SRCFD)))
        return frame.bytes

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.watch.close()
        self.watch.close()


@contextlib.contextmanager
def watched(bounds: Bounds) -> Iterator[Watched]:
    made = Watched(bounds)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.attack("O03")
@pytest.mark.parametrize("spoken", [False, True])
def test_a_message_that_goes_on_and_on_ends_its_connection(door: Door, spoken: bool) -> None:
    """Whether or not the peer was heard before; within what a look's time brings."""
    with watched(ROUTER_BOUNDS) as router:
        router.follow(ThreadMonitor(door.socket))
        with KeyedPeer(door.endpoint, door.server.public, door.guest) as peer:
            if spoken:
                peer.send(b"hello")
                assert router.read(door) == b"hello"
            send_long(peer.socket, bytes(60_000), ENDLESS)
            peer.wait_dropped()
        wait_until(lambda: router.cuts)
        (cut,) = router.cuts
        assert ROUTER_BOUNDS.each < cut.ahead < ENDLESS // 2
        assert door.is_silent()


def test_a_full_queue_that_nobody_reads_is_nobody_s_fault(door: Door) -> None:
    """The longest messages, as many as go in: libzmq stops reading below the bound, and all of them arrive later."""
    with watched(ROUTER_BOUNDS) as router:
        router.follow(ThreadMonitor(door.socket))
        with KeyedPeer(door.endpoint, door.server.public, door.guest) as peer:
            message, sent = bytes(CONTROL_MESSAGE_MAX - 100), 0
            peer.socket.setsockopt(zmq.SNDTIMEO, 500)
            with contextlib.suppress(zmq.Again):
                while True:
                    peer.send(message)
                    sent += 1
            assert sent * len(message) > 4 * ROUTER_BOUNDS.each
            assert router.cuts == []
            for _ in range(sent):
                assert router.read(door) == message
        assert router.cuts == []


# --- bulk sockets under PLAIN --------------------------------------------------------------------------------------


class Pair:
    """The listening end of a transfer, each of its sockets watched."""

    def __init__(self, ctx: Context, bounds: Bounds = BULK_BOUNDS, chunk: int = CHUNK) -> None:
        self.watched = Watched(bounds)
        self.data, self.acks = Progress(data_bytes(chunk)), Progress(UNREAD_BYTES)

        def watch(sock: Socket) -> None:
            self.watched.follow(ThreadMonitor(sock), self.data if sock.type == zmq.PULL else self.acks)

        self.zap = ThreadZap(ctx, lambda _: "somebody")
        self.ports = BulkPorts("127.0.0.1")
        self.data_port, self.ack_port = self.ports.data_port, self.ports.ack_port
        self.pull, self.push = serve_bulk(ctx, self.ports, watch=watch)

    def close(self) -> None:
        self.watched.close()
        self.pull.close(linger=0)
        self.push.close(linger=0)
        self.ports.close()
        self.zap.close()


@pytest.fixture
def pair(ctx: Context) -> Iterator[Pair]:
    with contextlib.closing(Pair(ctx)) as made:
        yield made


@pytest.mark.attack("O03")
@pytest.mark.parametrize("part", [60_000, 300])
@pytest.mark.parametrize("port", ["data", "ack"])
def test_an_admitted_peer_s_endless_message_is_cut_off_at_either_bulk_socket(pair: Pair, port: str, part: int) -> None:
    """At the PUSH socket too, from which nobody ever reads."""
    before = memory(os.getpid(), "VmRSS")
    host, number = "127.0.0.1", pair.data_port if port == "data" else pair.ack_port
    with RawPeer(host, number) as peer:
        assert peer.handshake_plain(b"any", b"body", b"PUSH" if port == "data" else b"PULL")
        assert peer.send_endless(bytes(part), ENDLESS) < ENDLESS
    wait_until(lambda: pair.watched.cuts)
    assert [pair.data.cut, pair.acks.cut] == [*pair.watched.cuts, None][:: 1 if port == "data" else -1]
    assert memory(os.getpid(), "VmRSS") - before < 100 * MIB


@pytest.mark.attack("O03")
def test_together_they_are_bounded_and_whoever_is_furthest_ahead_goes(ctx: Context) -> None:
    """Many that are each below the bound of one: the last that it takes is let be, the longest is not."""
    bounds = Bounds(each=0, together=12 * MIB, noticed=MIB)
    with contextlib.closing(Pair(ctx, bounds, chunk=2 * MIB)) as pair, contextlib.ExitStack() as peers:
        for size in (2, 3, 5, 4):
            assert pair.watched.cuts == []
            peer = peers.enter_context(RawPeer("127.0.0.1", pair.data_port))
            assert peer.handshake_plain(b"any", b"body")
            peer.send_endless(bytes(60_000), size * MIB)
        wait_until(lambda: pair.watched.cuts)
        (cut,) = pair.watched.cuts
        # Some of it may still be with the kernel; no other has sent as much.
        assert 4 * MIB + 70_000 < cut.ahead < 5 * MIB + 70_000


@pytest.mark.attack("D01", "O03")
def test_together_strangers_go_before_whoever_was_let_in(ctx: Context) -> None:
    """A peer that was let in may be ahead by a whole queue, and is not the one who makes it too much for all."""
    cuts: list[Cut] = []
    with contextlib.ExitStack() as closing:
        watch = closing.enter_context(contextlib.closing(Watch(Bounds(each=0, together=4 * MIB), cuts.append)))
        server = closing.enter_context(socket.create_server(("127.0.0.1", 0)))

        def ahead(size: int, *, admitted: bool) -> Progress:
            near = closing.enter_context(socket.create_connection(server.getsockname()))
            far = closing.enter_context(server.accept()[0])
            progress = Progress(8 * MIB, admitted=admitted)
            watch.opened(far.fileno(), inode_of(far.fileno()), progress)
            with contextlib.suppress(OSError):  # cut off in the middle
                for _ in range(size // 4096):
                    near.sendall(bytes(4096))
                    far.recv(4096, socket.MSG_WAITALL)
            return progress

        honest, *others = ahead(3 * MIB, admitted=True), ahead(MIB // 2, admitted=False), ahead(MIB, admitted=False)
        wait_until(lambda: cuts)
        assert honest.cut is None
        assert [bool(each.cut) for each in others] == [False, True]
        assert not others[1].is_broken(), "it was not beyond the bound of one"


def test_a_transfer_that_is_read_slowly_goes_on(ctx: Context, pair: Pair) -> None:
    """Chunks of the agreed size, with the reader away for a while: its queue is full and nobody is cut off."""
    push, pull = connect_bulk(
        ctx, "127.0.0.1", pair.data_port, pair.ack_port, BulkLogin(b"a", b"b"), BulkLogin(b"c", b"d")
    )
    try:
        chunk, sent = bytes(CHUNK + 100), 0
        push.setsockopt(zmq.SNDTIMEO, 500)
        for _ in range(2):
            with contextlib.suppress(zmq.Again):
                while True:
                    push.send(chunk)
                    sent += 1
            for _ in range(3):
                assert pair.pull.poll(int(DEADLINE * 1000))
                assert len(pair.pull.recv()) == len(chunk)
                pair.data.delivered += 1
        assert sent > DATA_RCVHWM
        assert pair.watched.cuts == []
    finally:
        push.close(linger=0)
        pull.close(linger=0)


def test_a_watch_that_is_closed_leaves_neither_thread_nor_descriptor(
    tcp: tuple[socket.socket, socket.socket],
) -> None:
    near, far = tcp
    before = set(os.listdir("/proc/self/fd")), threading.active_count()
    watch = Watch(ROUTER_BOUNDS, lambda _: None)
    assert threading.active_count() == before[1], "it begins with the first connection"
    watch.opened(far.fileno(), inode_of(far.fileno()))
    near.sendall(b"x")
    watch.closed(far.fileno())
    watch.closed(far.fileno())
    watch.close()
    watch.close()
    assert (set(os.listdir("/proc/self/fd")), threading.active_count()) == before
    watch.opened(far.fileno(), inode_of(far.fileno()))
    assert threading.active_count() == before[1]


def test_a_connection_that_ended_before_the_watch_began_takes_no_bell_with_it() -> None:
    """Its number is the bell's by then; a watch that loses its bell never ends, nor does whoever closes it."""
    with socket.create_server(("127.0.0.1", 0)) as ended:
        number, inode = ended.fileno(), inode_of(ended.fileno())
    watch = Watch(ROUTER_BOUNDS, lambda _: None)
    watch.opened(number, inode)
    assert inode_of(number) == 0
    assert os.fstat(number), "the lowest free number, and so the next one given"
    watch.closed(number)
    closing = threading.Thread(target=watch.close, daemon=True)
    closing.start()
    closing.join(DEADLINE)
    assert not closing.is_alive()


@pytest.mark.attack("P06")
def test_the_end_of_one_connection_ends_no_watch_over_the_next_with_its_number() -> None:
    """One watch serves all transfers of a process, and a thread that is busy tells late that its connection ended."""
    cuts: list[Cut] = []
    with (
        contextlib.closing(Watch(BULK_BOUNDS, cuts.append)) as watch,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        first, second = Progress(MIB), Progress(MIB)
        with socket.create_connection(server.getsockname()), server.accept()[0] as ended:
            number, inode = ended.fileno(), inode_of(ended.fileno())
            watch.on_event(SocketEvent(EventKind.ACCEPTED, "", number, inode), first)
        with socket.create_connection(server.getsockname()) as near, server.accept()[0] as far:
            assert far.fileno() == number, "the lowest free numbers are given first"
            watch.on_event(SocketEvent(EventKind.ACCEPTED, "", number, inode_of(number)), second)
            watch.on_event(SocketEvent(EventKind.DISCONNECTED, "", number), first)
            with contextlib.suppress(OSError):  # cut off in the middle
                for _ in range(2 * MIB // 4096):
                    near.sendall(bytes(4096))
                    far.recv(4096, socket.MSG_WAITALL)
            wait_until(lambda: cuts)
            assert second.cut == cuts[0]
            watch.on_event(SocketEvent(EventKind.DISCONNECTED, "", number), second)
            assert not watch._connections


def test_without_a_descriptor_to_spare_it_begins_with_a_later_connection(
    tcp: tuple[socket.socket, socket.socket],
) -> None:
    """A process that has run out of them serves on; nothing fails here."""
    _, far = tcp
    watch, before = Watch(ROUTER_BOUNDS, lambda _: None), threading.active_count()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        watch.opened(far.fileno(), inode_of(far.fileno()))
        assert threading.active_count() == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    watch.opened(far.fileno(), inode_of(far.fileno()))
    assert threading.active_count() == before + 1
    watch.close()


def test_ten_thousand_connections_that_deliver_cost_no_more_than_a_look_at_each(
    tcp: tuple[socket.socket, socket.socket],
) -> None:
    """The processor's time, which does not depend on what else the machine does."""
    _, far = tcp
    quiet, busy = ahead_of(far), [ahead_of(far, Progress(0)) for _ in range(10_000)]
    for each in busy:
        each.progress.delivered += 1
    began = time.thread_time()
    assert all(each.look(0.0) == 0 for each in busy)
    assert time.thread_time() - began < 0.1
    began = time.thread_time()
    for _ in range(10_000):
        quiet.look(0.0)
    assert time.thread_time() - began < 1.0
