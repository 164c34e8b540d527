"""The addresses of this host, by getifaddrs: the standard library has no call for all of them."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
from collections.abc import Iterator
from typing import Any


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


def _interface_addresses() -> Iterator[str]:
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
