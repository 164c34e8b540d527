"""Addresses as people write them: ``tcp://HOST:PORT``, and for transfers ``tcp://HOST:PORT-PORT``."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final, NamedTuple

from zkc.errors import UsageError

_PORT_MAX: Final = 65535
_ENDPOINT: Final = re.compile(
    r"tcp://(?P<host>\*|\[[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]{1,15})?\]|[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})?)"
    r":(?P<port>\d{1,5})(?:-(?P<last>\d{1,5}))?",
    re.ASCII,
)
_KEPT: Final = 256
"""Addresses that are read once: the same few again and again."""
_IPV4_LIKE: Final = re.compile(r"[\d.]+", re.ASCII)


class Endpoint(NamedTuple):
    """Where to connect to or to listen: ``host`` as libzmq takes it (IPv6 in brackets, ``*`` for every address)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://{self.host}:{self.port}"


class PortRange(NamedTuple):
    """Where transfers listen: ports ``first`` to ``last``, two for each transfer; ``first`` 0: the system chooses."""

    host: str
    first: int
    last: int

    @property
    def ports(self) -> range:
        """The ports in their order; empty where the system chooses."""
        return range(self.first, self.last + 1) if self.first else range(0)


@lru_cache(_KEPT)
def parse_endpoint(text: str, what: str = "endpoint", *, listen: bool = False) -> Endpoint:
    """``tcp://HOST:PORT``; only where one listens may HOST be ``*`` and PORT 0 (the system chooses one).

    ``what`` names the value in the `UsageError` that anything else raises.
    """
    match = _match(text, what, "tcp://HOST:PORT")
    port = int(match["port"])
    if match["last"] or port > _PORT_MAX or not (listen or (port and match["host"] != "*")):
        raise _bad(text, what, "tcp://HOST:PORT" if listen else "tcp://HOST:PORT, with a host and a port above 0")
    return Endpoint(match["host"], port)


@lru_cache(_KEPT)
def parse_port_range(text: str, what: str = "listen") -> PortRange:
    """``tcp://HOST:PORT[-PORT]`` with at least two ports; PORT alone is PORT and PORT+1, 0 lets the system choose.

    ``what`` names the value in the `UsageError` that anything else raises.
    """
    match = _match(text, what, "tcp://HOST:PORT[-PORT]")
    first = int(match["port"])
    if first == 0 and match["last"] is None:
        return PortRange(match["host"], 0, 0)
    last = first + 1 if match["last"] is None else int(match["last"])
    if not 0 < first < last <= _PORT_MAX:
        raise _bad(text, what, f"tcp://HOST:PORT[-PORT], two ports or more, none above {_PORT_MAX}")
    return PortRange(match["host"], first, last)


def parse_listen(text: str, what: str = "listen") -> PortRange | None:
    """Where transfers come in: what `parse_port_range` takes, or None for ``off``, where nobody can connect."""
    return None if text == "off" else parse_port_range(text, what)


def parse_metrics_listen(text: str, what: str = "metrics.listen") -> Endpoint | None:
    """Where metrics are told: ``HOST:PORT`` with an address (``localhost``, ``*`` for every one), PORT alone for
    127.0.0.1, or None for ``off``."""
    form = "HOST:PORT, HOST being an address"
    if text == "off":
        return None
    if text.isascii() and text.isdigit():
        text = f"127.0.0.1:{text}"
    endpoint = parse_endpoint(f"tcp://{text}", what, listen=True)
    if endpoint.host == "localhost":
        return Endpoint("127.0.0.1", endpoint.port)
    if endpoint.host[0] not in "*[" and not _IPV4_LIKE.fullmatch(endpoint.host):
        raise _bad(text, what, form)
    return endpoint


def _match(text: str, what: str, form: str) -> re.Match[str]:
    match = _ENDPOINT.fullmatch(text)
    if match is None or not _is_host(match["host"]):
        raise _bad(text, what, form)
    return match


@lru_cache(_KEPT)
def _is_host(host: str) -> bool:
    if host[0] != "[" and not _IPV4_LIKE.fullmatch(host):
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _bad(text: str, what: str, form: str) -> UsageError:
    return UsageError(f"{what}: {text[:80]!r} is not an address", detail="bad-endpoint", hint=f"write it like {form}")
