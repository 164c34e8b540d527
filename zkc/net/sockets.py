"""Every ZeroMQ socket of zkc, made with all of its options before it binds or connects.

An option that is set later applies to new pipes only, so no other module makes a socket that faces a network.
Server sides demand ZAP (`ZAP_ENFORCE_DOMAIN` and a domain that is not empty): without the first a missing handler
admits everybody, without the second libzmq skips ZAP. There is no NULL socket on TCP: it would take the bytes of
ZMTP 1.0 peers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import socket as sockets
import stat
import struct
import sys
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import zmq
from zmq.utils import z85

from zkc.constants import ASKED_MAX, CHUNK_MAX, CONTROL_MESSAGE_MAX
from zkc.env import Entropy, SystemEntropy
from zkc.errors import InternalError, LocalIOError, UsageError, VersionMismatch
from zkc.net.descriptors import descriptors
from zkc.rules.endpoints import parse_endpoint

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"
Socket: TypeAlias = "zmq.Socket[bytes]"
Watch: TypeAlias = "Callable[[Socket], object]"
"""Called with a new socket before it binds or connects: the time to open its monitor, or it misses the first events."""

LIBZMQ_MIN: Final = (4, 3, 5)
"""The oldest libzmq without the known memory faults in its decoders and its CURVE handshake."""
CONTROL_DOMAIN: Final = b"zkc"
"""ZAP domain of control sockets (CURVE)."""
BULK_DOMAIN: Final = b"xfer"
"""ZAP domain of bulk sockets (PLAIN)."""
CHUNK_OVERHEAD: Final = 256
"""Bytes of a bulk frame besides its chunk, at most: header, commitment, trailer, padding and tag, and room for a chunk
above the agreed size to arrive and be refused by name; libzmq itself only drops the connection, and says nothing."""
BULK_FRAME_MAX: Final = CHUNK_MAX + CHUNK_OVERHEAD
"""Bytes of one bulk frame, with the largest chunk."""

CONTROL_HANDSHAKE_MS: Final = 5000
BULK_HANDSHAKE_MS: Final = 2000
"""A peer that has not finished its handshake by then is dropped (libzmq's default is 30 s)."""

_BULK_BACKLOG: Final = 16
"""Connections that wait to be accepted; a transfer has one for each socket."""

CURVE_OVERHEAD: Final = 33
"""Bytes by which CURVE makes a frame longer: MAXMSGSIZE counts what is on the wire (measured)."""
ROUTER_RCVHWM: Final = 16
"""Whole messages that wait for a coordinator, of each peer."""
DEALER_RCVHWM: Final = 64
"""The same for a client."""
DATA_RCVHWM: Final = 4
"""Whole chunks that wait for a recipient."""
ACK_RCVHWM: Final = 16
"""Acknowledgements that wait for a sender."""

_READABLE: Final = int(zmq.POLLIN)
_WRITABLE: Final = int(zmq.POLLOUT)
_LOOPBACK_BUFFER: Final = 256 << 10
"""What the kernel takes of what goes to this very machine, bytes: as much as stays in a core's cache until the other
end has read it (docs/decisions/0015)."""
_ENDPOINT: Final = "an endpoint is tcp://HOST:PORT, with an address or a name of a machine"

_COMMON: Final[Mapping[int, int]] = {
    zmq.IPV6: 1,
    zmq.LINGER: 0,
    zmq.MAXMSGSIZE: CONTROL_MESSAGE_MAX + CURVE_OVERHEAD,
    zmq.HEARTBEAT_IVL: 15_000,
    zmq.HEARTBEAT_TIMEOUT: 45_000,
    zmq.HEARTBEAT_TTL: 60_000,
    zmq.TCP_KEEPALIVE: 1,
    zmq.ZAP_ENFORCE_DOMAIN: 1,
}
_ROUTER: Final[Mapping[int, int]] = {
    **_COMMON,
    zmq.ROUTER_MANDATORY: 1,
    # With a hand-over, a peer that claims another's routing id gets that one's answers (measured).
    zmq.ROUTER_HANDOVER: 0,
    # Queues are per peer: 16 messages of at most 64 KiB bound each to 1 MiB.
    zmq.SNDHWM: 16,
    zmq.RCVHWM: ROUTER_RCVHWM,
    zmq.BACKLOG: 4096,
    zmq.HANDSHAKE_IVL: CONTROL_HANDSHAKE_MS,
    zmq.SNDTIMEO: 0,
    zmq.TCP_MAXRT: 60_000,
    zmq.CURVE_SERVER: 1,
}
_DEALER: Final[Mapping[int, int]] = {
    **_COMMON,
    # Without it, sends before the connection stands succeed and may vanish.
    zmq.IMMEDIATE: 1,
    # One for each request that may be unanswered: an answer that found no room would be asked for again, 2 s later.
    zmq.SNDHWM: ASKED_MAX,
    zmq.RCVHWM: DEALER_RCVHWM,
    zmq.HANDSHAKE_IVL: CONTROL_HANDSHAKE_MS,
    zmq.RECONNECT_IVL_MAX: 30_000,
    zmq.TCP_MAXRT: 60_000,
}
_BULK: Final[Mapping[int, int]] = {
    **_COMMON,
    zmq.IMMEDIATE: 1,
    # libzmq's own reconnect would present the spent token and then hang in silence.
    zmq.RECONNECT_IVL: -1,
    zmq.HANDSHAKE_IVL: BULK_HANDSHAKE_MS,
    # A ping waits behind the chunks before it: on a slow line longer than any time-out. The acknowledgements tell
    # whether the other end lives.
    zmq.HEARTBEAT_IVL: 0,
}
_DATA_IN: Final[Mapping[int, int]] = {**_BULK, zmq.MAXMSGSIZE: BULK_FRAME_MAX, zmq.RCVHWM: DATA_RCVHWM}
_DATA_OUT: Final[Mapping[int, int]] = {**_BULK, zmq.SNDHWM: 4, zmq.RCVHWM: 1}
_ACKS: Final[Mapping[int, int]] = {
    **_BULK,
    zmq.SNDHWM: 16,
    zmq.RCVHWM: ACK_RCVHWM,
    # libzmq's own thread answers, also while a disk or a reader holds up the process: only one that stands still, or is
    # out of reach, is silent for so long.
    zmq.HEARTBEAT_IVL: 3_000,
    zmq.HEARTBEAT_TIMEOUT: 15_000,
    zmq.HEARTBEAT_TTL: 20_000,
}


class PortsTaken(LocalIOError):
    """Every port that bulk sockets may use here is taken (detail ``no-port``), until a transfer ends."""


# --- start ---------------------------------------------------------------------------------------------------------


def require_libzmq(version: tuple[int, int, int] | None = None, *, has_curve: bool | None = None) -> None:
    """`VersionMismatch` unless libzmq is at least `LIBZMQ_MIN` and has CURVE; arguments stand in for the loaded one."""
    have = zmq.zmq_version_info() if version is None else version
    if have < LIBZMQ_MIN:
        raise VersionMismatch(
            f"libzmq {'.'.join(map(str, have))} is too old",
            detail="libzmq",
            hint=f"zkc needs {'.'.join(map(str, LIBZMQ_MIN))} or newer: install a newer pyzmq",
        )
    if not (zmq.has("curve") if has_curve is None else has_curve):
        raise VersionMismatch("libzmq was built without CURVE", detail="libzmq", hint="install pyzmq from its wheel")


def seed_c_rng(entropy: Entropy | None = None) -> None:
    """Seed the C library's generator, from which libzmq takes the first routing id of each ROUTER.

    libzmq never seeds it, so the ids would be the same in every process, and a peer that claims one before it is
    given out makes libzmq abort.
    """
    seed = int.from_bytes((entropy or SystemEntropy()).bytes(4), "little")
    ctypes.CDLL(None).srand(ctypes.c_uint(seed))


def context(entropy: Entropy | None = None) -> Context:
    """A ZeroMQ context, on a libzmq that is new enough and with its generator seeded. Ends with `destroy(linger=0)`.

    `DescriptorsTaken`.
    """
    require_libzmq()
    seed_c_rng(entropy)
    with descriptors():
        made: Context = zmq.Context()
    made.set(zmq.BLOCKY, 0)
    return made


# --- CURVE keys ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """A CURVE key pair, each 40 characters of Z85."""

    public: bytes
    secret: bytes = field(repr=False)


def generate_curve() -> CurveKeys:
    """A new key pair, from libzmq (libsodium, or the system's generator)."""
    public, secret = zmq.curve_keypair()
    return CurveKeys(public, secret)


def curve_public(secret_z85: bytes) -> bytes:
    """The public key (Z85) of a secret one (Z85)."""
    return zmq.curve_public(to_z85(secret_z85))


def to_z85(key: bytes) -> bytes:
    """A CURVE key as 40 characters of Z85, from them or from the 32 bytes; `UsageError` (``bad-key``) otherwise."""
    if len(key) == 32:
        return z85.encode(key)
    to_raw(key)
    return key


def to_raw(key: bytes) -> bytes:
    """The 32 bytes of a CURVE key, from them or from 40 characters of Z85; `UsageError` (``bad-key``) otherwise."""
    if len(key) == 32:
        return key
    if len(key) == 40:
        with contextlib.suppress(KeyError, ValueError, IndexError, OverflowError, UnicodeDecodeError, struct.error):
            raw = z85.decode(key)
            if len(raw) == 32 and z85.encode(raw) == key:
                return raw
    raise UsageError("not a CURVE key", detail="bad-key", hint="a CURVE key is 32 bytes, or 40 characters of Z85")


# --- endpoints -----------------------------------------------------------------------------------------------------

def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Host (IPv6 without its brackets) and port of ``tcp://HOST:PORT``; `UsageError` (``bad-endpoint``) otherwise."""
    parsed = parse_endpoint(endpoint, listen=True)
    return parsed.host.strip("[]"), parsed.port


def tcp_endpoint(host: str, port: int) -> str:
    """``tcp://HOST:PORT`` with an IPv6 address in brackets; port 0 lets the system choose."""
    endpoint = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
    split_endpoint(endpoint)
    return endpoint


def plain_address(address: str) -> str:
    """``address`` without IPv6's mapping: sockets for both families name IPv4's 192.0.2.1 as ::ffff:192.0.2.1."""
    return address.removeprefix("::ffff:") if "." in address else address


def reach_locally(endpoint: str) -> str:
    """The endpoint at which this machine reaches a socket that is bound to ``endpoint``."""
    host, port = split_endpoint(endpoint)
    # [::] is bound for both families, and IPv4's loopback is there even where IPv6 is switched off.
    return tcp_endpoint("127.0.0.1" if host in ("*", "0.0.0.0", "::") else host, port)  # noqa: S104  (compared, not bound)


# --- control sockets -----------------------------------------------------------------------------------------------


def bind_router(
    ctx: Context,
    endpoints: Sequence[str],
    curve_secret_z85: bytes,
    zap_domain: bytes = CONTROL_DOMAIN,
    *,
    watch: Watch | None = None,
) -> tuple[Socket, list[str]]:
    """A CURVE server ROUTER on all of ``endpoints`` (wildcards, port 0 and IPv6 included), and where it was bound.

    Start the ZAP handler first. `UsageError` (``bad-endpoint``); `LocalIOError` (``address-in-use``, ``address``)
    when an endpoint cannot be bound: then none is.
    """
    if not zap_domain:
        raise InternalError("a CURVE server without a ZAP domain admits everybody")
    if not endpoints:
        raise UsageError("nothing to listen on", detail="bad-endpoint")
    for endpoint in endpoints:
        split_endpoint(endpoint)
    options: dict[int, int | bytes] = {
        **_ROUTER,
        zmq.CURVE_SECRETKEY: to_z85(curve_secret_z85),
        zmq.ZAP_DOMAIN: zap_domain,
    }
    with _made(ctx, zmq.ROUTER, options, watch) as sock:
        return sock, [tcp_endpoint(*_bind(sock, endpoint)) for endpoint in endpoints]


def connect_dealer(
    ctx: Context,
    endpoint: str,
    server_key: bytes,
    public: bytes,
    secret: bytes,
    *,
    watch: Watch | None = None,
    entropy: Entropy | None = None,
) -> Socket:
    """A CURVE client DEALER towards ``endpoint``; keys as 32 bytes or as Z85. It sets no routing id.

    Returns before the connection stands: the monitor tells. A socket that ZAP refused never connects again.
    """
    split_endpoint(endpoint)
    options: dict[int, int | bytes] = {
        **_DEALER,
        # libzmq's own jitter comes from a generator that is the same in every process; doubling has none at all.
        zmq.RECONNECT_IVL: int((entropy or SystemEntropy()).jitter(200, 1500)),
        zmq.CURVE_SERVERKEY: to_z85(server_key),
        zmq.CURVE_PUBLICKEY: to_z85(public),
        zmq.CURVE_SECRETKEY: to_z85(secret),
    }
    with _made(ctx, zmq.DEALER, options, watch) as sock:
        _connect(sock, endpoint)
        return sock


# --- bulk sockets --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Login:
    """PLAIN user and password of one bulk socket: a token for one attempt of one transfer, derived from its key."""

    user: bytes
    password: bytes = field(repr=False)


class BulkPorts:
    """The two listening sockets of one transfer, which stay while its connections come and go.

    libzmq gets copies of them (`serve_bulk`): so each connection has ZeroMQ sockets of its own, in which nothing is
    left of the one before, and the ports are never free in between.
    """

    def __init__(self, host: str, ports: range | None = None) -> None:
        """``ports`` None lets the system choose. `PortsTaken` when no two of ``ports`` are free; `DescriptorsTaken`;
        `LocalIOError` (``address``) when ``host`` is no address of this machine.
        """
        left = iter((0, 0) if ports is None else ports)
        self.data = _listening_of(host, left, ports)
        try:
            self.ack = _listening_of(host, left, ports)
        except BaseException:
            self.data.close()
            raise
        self.data_port: Final[int] = self.data.getsockname()[1]
        self.ack_port: Final[int] = self.ack.getsockname()[1]

    def close(self) -> None:
        """Again: nothing."""
        self.data.close()
        self.ack.close()


def serve_bulk(
    ctx: Context, ports: BulkPorts, zap_domain: bytes = BULK_DOMAIN, *, sends: bool = False, watch: Watch | None = None
) -> tuple[Socket, Socket]:
    """The listening end of one connection: the sockets for data and for acknowledgements. ``sends``: it has the bytes.

    Start the ZAP handler first. Each of the two has a ZAP domain of its own, ``zap_domain`` with ``.data`` and
    ``.ack``: a token opens one socket alone. `DescriptorsTaken`.
    """
    if not zap_domain:
        raise InternalError("PLAIN without a ZAP domain aborts the process")

    def server(socket: bytes) -> dict[int, int | bytes]:
        return {zmq.PLAIN_SERVER: 1, zmq.ZAP_DOMAIN: zap_domain + socket}

    with (
        _made(ctx, *_data(sends, server(b".data")), watch) as data,
        _made(ctx, *_acks(sends, server(b".ack")), watch) as acks,
    ):
        _take_over(data, ports.data)
        _take_over(acks, ports.ack)
        return data, acks


def connect_bulk(
    ctx: Context,
    host: str,
    data_port: int,
    ack_port: int,
    data_login: Login,
    ack_login: Login,
    *,
    sends: bool = True,
    watch: Watch | None = None,
) -> tuple[Socket, Socket]:
    """The connecting end of one transfer: the sockets for data and for acknowledgements, each with its own token.

    They connect once: after a loss close them and make new ones, with new tokens.
    """
    with (
        _made(ctx, *_data(sends, _login(data_login)), watch) as data,
        _made(ctx, *_acks(sends, _login(ack_login)), watch) as acks,
    ):
        _connect(data, tcp_endpoint(host, data_port))
        _connect(acks, tcp_endpoint(host, ack_port))
        return data, acks


def _data(sends: bool, more: Mapping[int, int | bytes]) -> tuple[int, dict[int, int | bytes]]:
    """Kind and options of an end's socket for data."""
    return (zmq.PUSH, {**_DATA_OUT, **more}) if sends else (zmq.PULL, {**_DATA_IN, **more})


def _acks(sends: bool, more: Mapping[int, int | bytes]) -> tuple[int, dict[int, int | bytes]]:
    """The same for acknowledgements, which go the other way."""
    return zmq.PULL if sends else zmq.PUSH, {**_ACKS, **more}


def _login(login: Login) -> dict[int, int | bytes]:
    return {zmq.PLAIN_USERNAME: login.user, zmq.PLAIN_PASSWORD: login.password}


# --- connections by descriptor -------------------------------------------------------------------------------------


def inode_of(fd: int) -> int:
    """Inode of the socket behind descriptor ``fd``: two connections that share a number differ in it. 0: no socket."""
    try:
        status = os.fstat(fd)
    except (OSError, OverflowError):
        return 0
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else 0


def own_endpoint(fd: int, inode: int) -> str | None:
    """Which of this machine's addresses has the TCP connection; None where it has ended."""
    with own_connection(fd, inode) as connection:
        if connection is None:
            return None
        host, port = connection.getsockname()[:2]
        return tcp_endpoint(plain_address(host), port)


def shutdown_connection(fd: int, inode: int) -> bool:
    """Shut down the TCP connection behind ``fd`` if it is still the one with ``inode``; whether it was.

    The one way to drop a single peer: libzmq has none. It sees the end of the stream and cleans up by itself.
    """
    with own_connection(fd, inode) as connection:
        if connection is None:
            return False
        with contextlib.suppress(OSError):
            connection.shutdown(sockets.SHUT_RDWR)
        return True


@contextlib.contextmanager
def own_connection(fd: int, inode: int) -> Iterator[sockets.socket | None]:
    """A duplicate of the TCP connection behind ``fd`` for the length of the block; None if it is no longer the one with
    ``inode``. libzmq may close and reuse ``fd`` meanwhile without harm."""
    try:
        mine = os.dup(fd)
    except (OSError, OverflowError):
        yield None
        return
    if not inode or inode_of(mine) != inode:
        os.close(mine)
        yield None
        return
    with sockets.socket(fileno=mine) as connection:
        yield connection if connection.family in (sockets.AF_INET, sockets.AF_INET6) else None


def is_readable(sock: Socket) -> bool:
    """Whether a message is there. Cheaper than the exception of a `recv` that finds none."""
    return bool(int(sock.getsockopt(zmq.EVENTS)) & _READABLE)


def is_writable(sock: Socket) -> bool:
    """Whether it takes a message now."""
    return bool(int(sock.getsockopt(zmq.EVENTS)) & _WRITABLE)


def unsent(fd: int, inode: int) -> int:
    """Bytes that the TCP connection has taken from us and that the other end's kernel has not; 0 where it has ended."""
    with own_connection(fd, inode) as connection:
        if connection is None:
            return 0
        return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def bound_loopback(fd: int, inode: int) -> None:
    """A small send buffer for a TCP connection that does not leave this machine. Any other is left to the kernel: on a
    way that takes long the buffer bounds the rate."""
    with own_connection(fd, inode) as connection, contextlib.suppress(OSError):
        if connection is not None and _is_loopback(plain_address(connection.getpeername()[0])):
            connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, _LOOPBACK_BUFFER)


# --- inside --------------------------------------------------------------------------------------------------------

def _is_loopback(address: str) -> bool:
    """Of an address as the kernel writes it."""
    return address.startswith("127.") or address == "::1"


def new_socket(ctx: Context, kind: int) -> Socket:
    """A bare socket; `DescriptorsTaken`."""
    with descriptors():
        return ctx.socket(kind)


@contextlib.contextmanager
def _made(ctx: Context, kind: int, options: Mapping[int, int | bytes], watch: Watch | None) -> Iterator[Socket]:
    """A socket with ``options`` and watched; closed again if the body fails."""
    sock = new_socket(ctx, kind)
    try:
        for option, value in options.items():
            sock.setsockopt(option, value)
        if watch is not None:
            watch(sock)
        yield sock
    except BaseException:
        sock.close(linger=0)
        raise


def listening_hint(number: int | None) -> str:
    """What mends that an address cannot be listened on, by the error's number."""
    if number == errno.EACCES:
        return "a port below 1024 takes a right of its own (CAP_NET_BIND_SERVICE); take one above"
    return "name an address of this machine, or * for all of them"


def _bind(sock: Socket, endpoint: str) -> tuple[str, int]:
    """Bind, and say where: the port that the system chose, the address behind a wildcard."""
    try:
        sock.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise LocalIOError(
                f"{endpoint} is in use by another program", detail="address-in-use",
                hint="end that program, or listen on another port",
            ) from None
        if error.errno == errno.EINVAL:
            raise UsageError(f"{endpoint!r} is not an endpoint", detail="bad-endpoint", hint=_ENDPOINT) from None
        raise LocalIOError(
            f"cannot listen on {endpoint}: {error.strerror}", detail="address",
            hint=listening_hint(error.errno),
        ) from None
    host, port = split_endpoint(sock.getsockopt_string(zmq.LAST_ENDPOINT))
    return plain_address(host), port


def _listening_of(host: str, left: Iterator[int], ports: range | None) -> sockets.socket:
    """A TCP socket that listens on the first free port of ``left``."""
    for port in left:
        try:
            with descriptors():
                return _listening(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise LocalIOError(
                    f"cannot listen on {tcp_endpoint(host, port)}: {error.strerror}", detail="address",
                    hint=listening_hint(error.errno),
                ) from None
    span = f"{ports[0]}-{ports[-1]}" if ports else "of the range (it is empty)"
    raise PortsTaken(
        f"no two free ports for a transfer: {span} are all in use",
        detail="no-port",
        hint="each transfer takes two: widen the range, or wait for one to end",
    )


def _listening(host: str, port: int) -> sockets.socket:
    is_dual = host in ("*", "::") and _has_both_families()
    address: tuple[object, ...]
    if host in ("*", "::"):
        family, address = (sockets.AF_INET6, ("::", port)) if is_dual else (sockets.AF_INET, ("0.0.0.0", port))  # noqa: S104 - was asked for
    else:
        (family, _, _, _, address), *_ = sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM)
    listening = sockets.socket(family, sockets.SOCK_STREAM)
    try:
        listening.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        if family == sockets.AF_INET6:
            listening.setsockopt(sockets.IPPROTO_IPV6, sockets.IPV6_V6ONLY, not is_dual)
        listening.bind(address)
        listening.listen(_BULK_BACKLOG)
        # Two of libzmq's sockets may see the same connection come: the second must not wait for another.
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


@functools.cache
def _has_both_families() -> bool:
    """Whether one socket listens for IPv4 and IPv6: asked of the kernel with a socket of its own."""
    return sockets.has_dualstack_ipv6()


def _take_over(sock: Socket, listening: sockets.socket) -> None:
    """Let libzmq accept on a copy of ``listening``, which it closes by itself."""
    with descriptors():
        copy = os.dup(listening.fileno())
    sock.setsockopt(zmq.USE_FD, copy)
    # Where it listens is decided: the endpoint says no more than which transport that is.
    sock.bind("tcp://*:*")


def _connect(sock: Socket, endpoint: str) -> None:
    try:
        sock.connect(endpoint)
    except zmq.ZMQError as error:
        if error.errno == errno.EINVAL:
            raise UsageError(f"{endpoint!r} is not an endpoint", detail="bad-endpoint", hint=_ENDPOINT) from None
        raise LocalIOError(
            f"cannot connect to {endpoint}: {error.strerror}", detail="address", hint=_ENDPOINT
        ) from None
