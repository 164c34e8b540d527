from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import socket
from dataclasses import dataclass

import pytest
import zmq

from tests.net.conftest import Door, served
from tests.support.evil import KeyedPeer
from tests.support.waiting import DEADLINE
from zkc.env import SystemEntropy
from zkc.errors import InternalError, LocalIOError, UsageError, VersionMismatch
from zkc.net import sockets
from zkc.net.descriptors import DescriptorsTaken
from zkc.net.loopsocket import _source
from zkc.net.monitor import EventKind, ThreadMonitor
from zkc.net.sockets import BulkPorts, Context, Login, PortsTaken, Socket
from zkc.net.zap import ThreadZap, ZapRequest


@dataclass(frozen=True)
class FixedEntropy:
    seed: bytes

    def bytes(self, n: int) -> bytes:
        return self.seed[:n]

    def jitter(self, low: float, high: float) -> float:
        return high


def by_user(request: ZapRequest) -> str | None:
    return request.credentials[0].decode() if request.credentials[1] == b"token" else None


def login(user: str, password: bytes = b"token") -> Login:
    return Login(user.encode(), password)


# --- start ---


@pytest.mark.attack("O12")
@pytest.mark.parametrize("version", [(2, 2, 0), (4, 2, 5), (4, 3, 4)])
def test_an_old_libzmq_is_refused_at_start(version: tuple[int, int, int]) -> None:
    with pytest.raises(VersionMismatch, match=r"4\.3\.5") as caught:
        sockets.require_libzmq(version)
    assert (caught.value.code, caught.value.detail) == (40, "libzmq")


@pytest.mark.attack("O12")
def test_no_context_is_made_on_an_old_libzmq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 4))
    with pytest.raises(VersionMismatch):
        sockets.context()


def test_a_libzmq_without_curve_is_refused() -> None:
    with pytest.raises(VersionMismatch, match="CURVE"):
        sockets.require_libzmq((4, 3, 5), has_curve=False)


@pytest.mark.parametrize("version", [(4, 3, 5), (4, 4, 0), (5, 0, 0), None])
def test_a_new_libzmq_is_taken(version: tuple[int, int, int] | None) -> None:
    sockets.require_libzmq(version)


NUMBERS = itertools.count()


def first_routing_id(ctx: Context) -> bytes:
    """The id that a ROUTER of this moment gives its first peer."""
    router, dealer = ctx.socket(zmq.ROUTER), ctx.socket(zmq.DEALER)
    address = f"inproc://ids-{next(NUMBERS)}"
    router.bind(address)
    dealer.connect(address)
    dealer.send(b"")
    routing_id, _ = router.recv_multipart()
    dealer.close(linger=0)
    router.close(linger=0)
    return routing_id


@pytest.mark.attack("O01")
def test_routing_ids_follow_the_seed_that_we_give(ctx: Context) -> None:
    """The seed reaches the generator that libzmq uses; from the system's entropy it is different each time."""
    seen = []
    for seed in (b"aaaa", b"aaaa", b"bbbb"):
        sockets.seed_c_rng(FixedEntropy(seed))
        seen.append(first_routing_id(ctx))
    assert seen[0] == seen[1] != seen[2]
    random = set()
    for _ in range(3):
        sockets.seed_c_rng(SystemEntropy())
        random.add(first_routing_id(ctx))
    assert len(random) == 3


# --- keys and endpoints ---


def test_curve_keys_go_from_raw_to_z85_and_back() -> None:
    keys = sockets.generate_curve()
    raw = sockets.to_raw(keys.public)
    assert len(raw) == 32
    assert sockets.to_z85(raw) == sockets.to_z85(keys.public) == keys.public
    assert sockets.to_raw(raw) == raw
    assert sockets.curve_public(keys.secret) == keys.public
    assert keys.secret.decode() not in repr(keys)


@pytest.mark.parametrize("bad", [b"", b"x" * 31, b"x" * 41, b"~" * 40, b'"' * 40, b"\xff" * 40, b"#" * 40])
def test_what_is_no_curve_key_is_a_usage_error(bad: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        sockets.to_z85(bad)
    assert caught.value.detail == "bad-key"


@pytest.mark.parametrize(
    ("endpoint", "parts"),
    [
        ("tcp://*:0", ("*", 0)),
        ("tcp://127.0.0.1:7670", ("127.0.0.1", 7670)),
        ("tcp://[::1]:65535", ("::1", 65535)),
    ],
)
def test_endpoints_are_read(endpoint: str, parts: tuple[str, int]) -> None:
    assert sockets.split_endpoint(endpoint) == parts


@pytest.mark.parametrize(
    "bad",
    [
        "", "tcp://", "tcp://host", "tcp://host:", "tcp://host:65536", "tcp://host:x", "tcp://::1:5", "udp://host:5",
        "ipc:///tmp/x", "inproc://x", "tcp://a b:5", "tcp://host:5\n", "tcp://eth0;host:5",
    ],
)  # fmt: skip
def test_only_tcp_endpoints_are_taken(ctx: Context, bad: str) -> None:
    keys = sockets.generate_curve()
    with pytest.raises(UsageError):
        sockets.bind_router(ctx, [bad], keys.secret)
    with pytest.raises(UsageError):
        sockets.connect_dealer(ctx, bad, keys.public, keys.public, keys.secret)


# --- control sockets ---


def test_a_router_binds_every_endpoint_and_says_where(ctx: Context) -> None:
    keys = sockets.generate_curve()
    wanted = ["tcp://127.0.0.1:0", "tcp://*:0"]
    if socket.has_ipv6:
        wanted.append("tcp://[::1]:0")
    router, bound = sockets.bind_router(ctx, wanted, keys.secret)
    ports = {sockets.split_endpoint(endpoint)[1] for endpoint in bound}
    assert len(ports) == len(wanted)
    assert 0 not in ports
    assert bound[0].startswith("tcp://127.0.0.1:")
    for endpoint in bound:
        host, port = sockets.split_endpoint(sockets.reach_locally(endpoint))
        socket.create_connection((host, port), timeout=DEADLINE).close()
    router.close(linger=0)


def test_a_taken_port_says_so_and_binds_nothing(ctx: Context) -> None:
    keys = sockets.generate_curve()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(LocalIOError) as caught:
            sockets.bind_router(ctx, ["tcp://127.0.0.1:0", taken], keys.secret)
    assert caught.value.detail == "address-in-use"
    assert taken in str(caught.value)


def test_an_address_of_another_machine_says_so(ctx: Context) -> None:
    with pytest.raises(LocalIOError) as caught:
        sockets.bind_router(ctx, ["tcp://192.0.2.1:0"], sockets.generate_curve().secret)
    assert caught.value.detail == "address"


@pytest.mark.parametrize(("number", "word"), [(errno.EACCES, "CAP_NET_BIND_SERVICE"), (errno.EADDRNOTAVAIL, "address")])
def test_what_cannot_be_listened_on_is_told_by_what_would_mend_it(number: int, word: str) -> None:
    assert word in sockets.listening_hint(number)


def test_a_server_socket_without_a_zap_domain_is_never_made(ctx: Context) -> None:
    with pytest.raises(InternalError):
        sockets.bind_router(ctx, ["tcp://127.0.0.1:0"], sockets.generate_curve().secret, b"")
    with contextlib.closing(BulkPorts("127.0.0.1")) as ports, pytest.raises(InternalError):
        sockets.serve_bulk(ctx, ports, b"")


def test_an_ipv4_address_is_shown_as_one() -> None:
    assert sockets.plain_address("::ffff:192.0.2.1") == sockets.plain_address("192.0.2.1") == "192.0.2.1"
    assert sockets.plain_address("::1") == "::1"


ALWAYS: dict[int, object] = {
    zmq.IPV6: 1,
    zmq.LINGER: 0,
    zmq.TCP_KEEPALIVE: 1,
    zmq.ZAP_ENFORCE_DOMAIN: 1,
}


def test_every_option_stands_before_the_socket_faces_the_network(ctx: Context) -> None:
    """The values of the baseline table, read at the last moment before bind or connect."""
    seen: list[dict[int, object]] = []

    def look(expected: dict[int, object]) -> sockets.Watch:
        def watch(sock: Socket) -> None:
            assert sock.getsockopt(zmq.LAST_ENDPOINT) in (b"", b"\0")
            wanted: dict[int, object] = {**ALWAYS, **expected}
            assert {option: sock.getsockopt(option) for option in wanted} == wanted
            seen.append(wanted)

        return watch

    keys = sockets.generate_curve()
    router, (endpoint,) = sockets.bind_router(
        ctx,
        ["tcp://127.0.0.1:0"],
        keys.secret,
        watch=look(
            {
                zmq.MAXMSGSIZE: 65536 + 33, zmq.SNDHWM: 16, zmq.RCVHWM: 16, zmq.BACKLOG: 4096, zmq.HANDSHAKE_IVL: 5000,
                zmq.SNDTIMEO: 0, zmq.CURVE_SERVER: 1, zmq.ZAP_DOMAIN: b"zkc", zmq.HEARTBEAT_IVL: 15_000,
            }
        ),
    )  # fmt: skip
    dealer = sockets.connect_dealer(
        ctx,
        endpoint,
        keys.public,
        keys.public,
        keys.secret,
        entropy=FixedEntropy(b""),
        watch=look(
            {
                zmq.MAXMSGSIZE: 65536 + 33, zmq.IMMEDIATE: 1, zmq.SNDHWM: 512, zmq.RCVHWM: 64, zmq.RECONNECT_IVL: 1500,
                zmq.RECONNECT_IVL_MAX: 30_000, zmq.ROUTING_ID: b"", zmq.HEARTBEAT_IVL: 15_000,
            }
        ),
    )  # fmt: skip
    bulk: dict[int, object] = {zmq.IMMEDIATE: 1, zmq.RECONNECT_IVL: -1, zmq.HANDSHAKE_IVL: 2000}
    server: dict[int, object] = {**bulk, zmq.PLAIN_SERVER: 1}
    with ThreadZap(ctx, lambda _: None):
        pull, push, data, ack = served(ctx, watch=look(server))
        out, back = sockets.connect_bulk(ctx, "127.0.0.1", data, ack, login("a"), login("b"), watch=look(bulk))
    assert (pull.getsockopt(zmq.ZAP_DOMAIN), push.getsockopt(zmq.ZAP_DOMAIN)) == (b"xfer.data", b"xfer.ack")
    assert pull.getsockopt(zmq.MAXMSGSIZE) == sockets.BULK_FRAME_MAX
    assert pull.getsockopt(zmq.RCVHWM) == out.getsockopt(zmq.SNDHWM) == 4
    # A ping behind chunks waits for them; the acknowledgements' own are answered at once.
    assert {sock.getsockopt(zmq.HEARTBEAT_IVL) for sock in (pull, out)} == {0}
    assert {sock.getsockopt(zmq.HEARTBEAT_IVL) for sock in (push, back)} == {3_000}
    assert {sock.getsockopt(zmq.HEARTBEAT_TIMEOUT) for sock in (push, back)} == {15_000}
    assert len(seen) == 6
    for sock in (router, dealer, pull, push, out, back):
        sock.close(linger=0)


def test_a_dealer_sends_nothing_into_the_void(ctx: Context) -> None:
    """Before the connection stands a send fails at once, instead of vanishing."""
    keys = sockets.generate_curve()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dealer = sockets.connect_dealer(
            ctx, f"tcp://127.0.0.1:{silent.getsockname()[1]}", keys.public, keys.public, keys.secret
        )
        with pytest.raises(zmq.Again):
            dealer.send(b"x", zmq.DONTWAIT)
        dealer.close(linger=0)


def test_a_router_says_when_nobody_has_that_routing_id(door: Door) -> None:
    with pytest.raises(zmq.ZMQError) as caught:
        door.socket.send_multipart([b"nobody", b"x"], zmq.DONTWAIT)
    assert caught.value.errno == zmq.EHOSTUNREACH


@pytest.mark.attack("C11")
def test_a_frame_above_the_limit_drops_its_sender_only(door: Door) -> None:
    with (
        KeyedPeer(door.endpoint, door.server.public, door.guest) as big,
        KeyedPeer(door.endpoint, door.server.public, door.guest) as other,
    ):
        assert big.verdict() is other.verdict() is EventKind.HANDSHAKE_SUCCEEDED
        big.send(bytes(65537))
        big.wait_dropped()
        other.send(bytes(65536))
        assert len(door.receive()[1]) == 65536
        assert door.is_silent()


# --- bulk sockets ---


def test_bulk_bytes_go_one_way_and_acknowledgements_the_other(ctx: Context) -> None:
    with ThreadZap(ctx, by_user):
        pull, push, data, ack = served(ctx)
        out, back = sockets.connect_bulk(ctx, "127.0.0.1", data, ack, login("data"), login("ack"))
        for sender, receiver in ((out, pull), (push, back)):
            assert sender.poll(int(DEADLINE * 1000), zmq.POLLOUT)
            sender.send(b"x" * 1000)
            assert receiver.poll(int(DEADLINE * 1000))
            assert len(receiver.recv()) == 1000
        for sock in (pull, push, out, back):
            sock.close(linger=0)


@pytest.mark.attack("D01")
@pytest.mark.parametrize("bad", ["data", "ack"])
def test_a_wrong_token_opens_neither_bulk_socket(ctx: Context, bad: str) -> None:
    monitors: list[ThreadMonitor] = []
    with ThreadZap(ctx, by_user):
        pull, push, data, ack = served(ctx)
        out, back = sockets.connect_bulk(
            ctx,
            "127.0.0.1",
            data,
            ack,
            login("data", b"wrong" if bad == "data" else b"token"),
            login("ack", b"wrong" if bad == "ack" else b"token"),
            watch=lambda sock: monitors.append(ThreadMonitor(sock)),
        )
        verdicts = {
            name: monitor.wait({EventKind.HANDSHAKE_SUCCEEDED, EventKind.HANDSHAKE_FAILED_AUTH}, DEADLINE)
            for name, monitor in zip(("data", "ack"), monitors, strict=True)
        }
        for name, verdict in verdicts.items():
            assert verdict is not None
            wanted = EventKind.HANDSHAKE_FAILED_AUTH if name == bad else EventKind.HANDSHAKE_SUCCEEDED
            assert verdict.kind is wanted
        for monitor in monitors:
            monitor.close()
        for sock in (pull, push, out, back):
            sock.close(linger=0)


def free_ports(count: int) -> range:
    """A run of ports that are free at this moment."""
    for start in range(20_000, 60_000, count):
        held: list[socket.socket] = []
        try:
            for port in range(start, start + count):
                held.append(socket.create_server(("127.0.0.1", port)))  # noqa: PERF401  (those before the failure count)
            return range(start, start + count)
        except OSError:
            continue
        finally:
            for one in held:
                one.close()
    raise AssertionError("no free ports")


def test_bulk_ports_come_from_the_range_until_it_is_exhausted_and_again_when_free() -> None:
    """They are free at once when they are let go."""
    ports = free_ports(5)
    pairs = [BulkPorts("127.0.0.1", ports) for _ in range(2)]
    assert [(pair.data_port, pair.ack_port) for pair in pairs] == [(ports[0], ports[1]), (ports[2], ports[3])]
    with pytest.raises(PortsTaken) as caught:
        BulkPorts("127.0.0.1", ports)
    assert caught.value.detail == "no-port"
    assert f"{ports[0]}-{ports[-1]}" in str(caught.value)
    pairs[0].close()
    pairs[0].close()
    again = BulkPorts("127.0.0.1", ports)
    assert (again.data_port, again.ack_port) == (ports[0], ports[1])
    for pair in (again, pairs[1]):
        pair.close()


def test_an_empty_port_range_is_exhausted() -> None:
    with pytest.raises(PortsTaken):
        BulkPorts("127.0.0.1", range(0))


def test_one_free_port_is_not_enough_and_is_free_again() -> None:
    """A range with room for half a pair keeps nothing of it."""
    (port,) = free_ports(1)
    for _ in range(2):
        with pytest.raises(PortsTaken):
            BulkPorts("127.0.0.1", range(port, port + 1))


def test_bulk_ports_at_an_address_of_another_machine_say_so() -> None:
    with pytest.raises(LocalIOError) as caught:
        BulkPorts("192.0.2.1")
    assert caught.value.detail == "address"
    assert "192.0.2.1" in str(caught.value)


def test_a_process_without_descriptors_says_so(ctx: Context) -> None:
    """Whether the listening sockets cannot be made or libzmq's copies of them."""
    warm = served(ctx)  # what libzmq opens once for each context
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    with contextlib.closing(BulkPorts("127.0.0.1")) as ports:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.dup(0))
            for make in (lambda: BulkPorts("127.0.0.1"), lambda: sockets.serve_bulk(ctx, ports)):
                with pytest.raises(DescriptorsTaken) as caught:
                    make()
                assert caught.value.detail == "descriptors"
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for sock in (*sockets.serve_bulk(ctx, ports), *warm[:2]):
            sock.close(linger=0)


@pytest.mark.parametrize("host", ["*", "::"])
def test_a_wildcard_listens_for_both_families(host: str) -> None:
    with contextlib.closing(BulkPorts(host)) as ports:
        for address in ("127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])):
            for port in (ports.data_port, ports.ack_port):
                socket.create_connection((address, port), timeout=DEADLINE).close()


@pytest.mark.attack("D02")
def test_a_pair_that_is_made_anew_listens_on_the_same_ports_and_has_nothing_of_the_one_before(ctx: Context) -> None:
    """The ports are never free in between, and a frame of the old connection is read by nobody."""
    ports = BulkPorts("127.0.0.1")
    with contextlib.closing(ports), ThreadZap(ctx, by_user):
        for word in (b"first", b"second"):
            pull, push = sockets.serve_bulk(ctx, ports)
            out, back = sockets.connect_bulk(
                ctx, "127.0.0.1", ports.data_port, ports.ack_port, login("data"), login("ack")
            )
            assert out.poll(int(DEADLINE * 1000), zmq.POLLOUT)
            out.send(word)
            assert pull.poll(int(DEADLINE * 1000))
            if word == b"second":
                assert pull.recv() == b"second"
            for sock in (pull, push, out, back):
                sock.close(linger=0)
            with pytest.raises(OSError, match="in use"):
                socket.create_server(("127.0.0.1", ports.data_port), reuse_port=False).close()


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Login(b"user", b"secret"))


# --- connections by descriptor ---


def test_a_connection_is_shut_down_by_its_descriptor_and_others_stay(door: Door) -> None:
    with (
        KeyedPeer(door.endpoint, door.server.public, door.guest) as victim,
        KeyedPeer(door.endpoint, door.server.public, door.guest) as bystander,
    ):
        assert victim.verdict() is bystander.verdict() is EventKind.HANDSHAKE_SUCCEEDED
        victim.send(b"hello")
        assert door.socket.poll(int(DEADLINE * 1000))
        _, frame = door.socket.recv_multipart(copy=False)
        fd = _source(frame)
        inode = sockets.inode_of(fd)
        assert inode
        assert not sockets.shutdown_connection(fd, inode + 1)
        assert sockets.shutdown_connection(fd, inode)
        victim.wait_dropped()
        bystander.send(b"still here")
        assert door.receive()[1] == b"still here"


def test_only_a_tcp_connection_with_that_inode_is_shut_down() -> None:
    left, right = socket.socketpair()
    with left, right, socket.create_server(("127.0.0.1", 0)) as listener:
        assert not sockets.shutdown_connection(left.fileno(), sockets.inode_of(left.fileno()))
        left.send(b"x")
        assert right.recv(1) == b"x"
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        fd, inode = server.fileno(), sockets.inode_of(server.fileno())
        server.close()
        reused = os.dup(left.fileno())
        assert not sockets.shutdown_connection(fd, inode)
        os.close(reused)
        assert not sockets.shutdown_connection(-1, inode)
        assert not sockets.shutdown_connection(1 << 40, inode)
        client.close()


def test_a_connection_within_this_machine_has_a_small_send_buffer() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as client,
    ):
        asked = client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        sockets.bound_loopback(client.fileno(), sockets.inode_of(client.fileno()) + 1)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == asked
        sockets.bound_loopback(client.fileno(), sockets.inode_of(client.fileno()))
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 << 10)
            small = other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == small
        # One that is not connected has no other end to be near to.
        sockets.bound_loopback(listening.fileno(), sockets.inode_of(listening.fileno()))


def test_what_is_no_socket_has_no_inode(tmp_path: os.PathLike[str]) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert sockets.inode_of(fd) == 0
    os.close(fd)
    assert sockets.inode_of(fd) == 0
