"""Metrics of a running program, where its configuration switches them on (``metrics.listen``)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from zkc import __version__
from zkc.env import Clock
from zkc.errors import UsageError
from zkc.logs import Repeats
from zkc.metrics.door import OUTCOMES, Door
from zkc.metrics.families import BUILD, COMMON, SCRAPES, Metric, Sample
from zkc.rules.endpoints import Endpoint, parse_metrics_listen

Role = Literal["coordinator", "client"]


async def serve_metrics(
    listen: str, role: Role, metrics: Sequence[Metric], read: Callable[[], Iterable[Sample]], clock: Clock, log: Any,
    repeats: Repeats,
) -> Door | None:
    """The open door, on the running loop; None where ``listen`` is ``off``.

    `UsageError` (``extra``) where prometheus_client is missing; `LocalIOError` (``address-in-use``, ``address``).
    """
    where = parse_metrics_listen(listen)
    if where is None:
        return None
    try:
        from zkc.metrics import exposition  # noqa: PLC0415 - an extra of the package
    except ImportError:
        raise UsageError(
            f"metrics.listen is {listen}, and prometheus-client is not installed", detail="extra",
            hint="install it: pip install 'zkc[metrics]'",
        ) from None

    def told() -> Iterator[Sample]:
        yield BUILD.of(1, __version__, role)
        yield from SCRAPES.each({outcome: door.outcomes[outcome] for outcome in OUTCOMES})
        yield from read()

    def failed(error: Exception) -> None:
        repeats.tell(log, "error", "metrics-failed", (type(error).__name__,), why=str(error))

    page = exposition.Exposition((*COMMON, *metrics), told).page
    door = Door(page, exposition.CONTENT_TYPE, clock, failed)
    await door.open(where)
    log.info("metrics", address=door.address)
    if not _is_loopback(where):
        log.warning("metrics-open", address=door.address, why="whoever reaches this address may read them")
    return door


def _is_loopback(where: Endpoint) -> bool:
    return where.host != "*" and ipaddress.ip_address(where.host.strip("[]")).is_loopback
