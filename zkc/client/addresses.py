"""At which addresses others can reach this machine."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

ADDRESSES_MAX: Final = 16


def route_to(host: str) -> str | None:
    """The own address from which this machine would reach ``host`` (no packet is sent); None: no route."""
    with contextlib.suppress(OSError):
        for family, kind, proto, _, address in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, proto) as probe:
                probe.connect(address)
                found = str(probe.getsockname()[0])
                return found.partition("%")[0]
    return None


def own_addresses() -> list[str]:
    """Every address of this host that a name look-up of it gives; loopback last."""
    found: dict[str, None] = {}
    with contextlib.suppress(OSError):
        for *_, address in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
            found[str(address[0]).partition("%")[0]] = None
    for remote in ("192.0.2.1", "2001:db8::1"):
        routed = route_to(remote)
        if routed:
            found[routed] = None
    found["127.0.0.1"] = None
    return sorted(found, key=lambda address: address.startswith("127.") or address == "::1")


def advertised(listen_host: str, coordinator_host: str) -> list[str]:
    """What a recipient that listens on ``listen_host`` tells a sender: best first, at most 16.

    The address that leads to the coordinator comes first: whoever else is linked there most likely reaches it.
    """
    if listen_host != "*":
        return [listen_host.strip("[]")]
    first = route_to(coordinator_host)
    others = [address for address in own_addresses() if not address.startswith("127.") and address != "::1"]
    return list(dict.fromkeys([*([first] if first else []), *others]))[:ADDRESSES_MAX]
