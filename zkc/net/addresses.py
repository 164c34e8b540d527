"""At which addresses others can reach this host."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Final

ADVERTISED_MAX: Final = 16


class _SockAddr(ctypes.Structure):
    _fields_ = (("family", ctypes.c_uint16), ("data", ctypes.c_ubyte * 26))


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = (
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_SockAddr)),
)


def host_addresses() -> list[str]:
    """Every IPv4 and IPv6 address of this host that another can name, IPv4 first, loopback last.

    Without link-local ones, which mean something only together with an interface.
    """
    found = {ipaddress.ip_address(text) for text in _interface_addresses()}
    found |= {ipaddress.ip_address("127.0.0.1")}
    usable = [address for address in found if not address.is_link_local]
    return [str(each) for each in sorted(usable, key=lambda each: (each.is_loopback, each.version, int(each)))]


def advertised(listen_host: str, coordinator_host: str) -> list[str]:
    """What an end that listens on ``listen_host`` tells the other one: best first, at most 16, no loopback.

    The address that leads to the coordinator comes first: whoever else is linked there most likely reaches it.
    """
    if listen_host != "*":
        return [_looked_up(listen_host.strip("[]"))]
    first = _route_to(coordinator_host)
    others = [address for address in host_addresses() if not ipaddress.ip_address(address).is_loopback]
    return list(dict.fromkeys([*([first] if first else []), *others]))[:ADVERTISED_MAX]


def told(advertise: Sequence[str], listen_host: str, coordinator_host: str) -> list[str]:
    """``advertise`` as it was configured, at most 16; else `advertised`."""
    return list(advertise)[:ADVERTISED_MAX] or advertised(listen_host, coordinator_host)


@functools.lru_cache(256)
def is_address(text: str) -> bool:
    """Whether it is an IP address. Of what a peer tells nothing else is used: a name would be looked up for it."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _looked_up(host: str) -> str:
    """The address that a listening end takes of ``host``; ``host`` itself where it has none."""
    if not is_address(host):
        with contextlib.suppress(OSError):
            (_, _, _, _, address), *_ = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            return str(address[0])
    return host


def _route_to(host: str) -> str | None:
    """The own address from which this machine would reach ``host`` (no packet is sent); None: no route."""
    with contextlib.suppress(OSError):
        for family, kind, proto, _, address in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, proto) as probe:
                probe.connect(address)
                found = str(probe.getsockname()[0])
                return found.partition("%")[0]
    return None


def _interface_addresses() -> Iterator[str]:
    """By getifaddrs: the standard library has no call for all of them."""
    libc = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        entry: Any = first  # a pointer is false where it is NULL, which its type does not tell
        while entry:
            address = entry.contents.address
            if address:
                data = bytes(address.contents.data)
                if address.contents.family == socket.AF_INET:
                    yield socket.inet_ntop(socket.AF_INET, data[2:6])
                elif address.contents.family == socket.AF_INET6:
                    yield socket.inet_ntop(socket.AF_INET6, data[6:22])
            entry = entry.contents.next
    finally:
        libc.freeifaddrs(first)
