"""What a client's daemon tells Prometheus: read from what its parts count and hold. docs/metrics.md explains each.

Whether a person is there is not told: whoever reaches the port reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zkc.metrics.families import Durations, Metric, Sample, bounded, counter, gauge, histogram

if TYPE_CHECKING:
    from zkc.client.links import Links
    from zkc.client.log_watch import LogWatch
    from zkc.client.queue import Queue
    from zkc.client.receiving import Receiver
    from zkc.stores.audit_file import AuditFile
    from zkc.stores.noting import AuditWriter

REFUSED: Final = (
    "accept", "rule", "limit", "cipher", "key-source", "no-space", "nobody-asked", "unanswered", "absent",
    "not-enrolled", "no-relay", "unreachable", "no-port", "person",
)
"""Why a transfer to this home was refused; ``person`` stands for a person's no."""
ERRORS: Final = ("failed", "defect")
JOBS: Final = ("waiting", "sending", "failed")
_NO: Final = "24."

_LINKS = gauge("zkc_daemon_links", "Registrations of this home, by whether they are linked.", "state")
_EXPIRY = gauge(
    "zkc_daemon_keys_expiry_timestamp_seconds", "When the first of this home's keys expires, seconds since 1970."
)
_UNDER_WAY = gauge("zkc_daemon_transfers_open", "Transfers to this home under way.")
_INCOMING = counter(
    "zkc_daemon_incoming_total",
    "Transfers to this home that were judged, by the contract's code and its reason; 0, done: let in.",
    "code", "reason",
)
_REFUSED = counter("zkc_daemon_incoming_refused_total", "Transfers that were refused here, by detail.", "reason")
_PENDING = gauge("zkc_daemon_pending", "Transfers that wait for a person.")
_ANSWERED = counter(
    "zkc_daemon_answered_total", "What came of those, by code and reason; 0, done: accepted.", "code", "reason"
)
_DELIVERIES = counter(
    "zkc_daemon_deliveries_total",
    "Transfers to this home whose data was to come, by what they ended with; 0, done: delivered.", "code", "reason",
)
_RECEIVED = counter("zkc_daemon_received_bytes_total", "Bytes of what was delivered to this home.")
_OUTGOING = counter(
    "zkc_daemon_outgoing_total",
    "Handshakes for what this home sends, its commands too, by what they ended with; 0, done: granted.",
    "code", "reason",
)
_GRANT_SECONDS = histogram(
    "zkc_daemon_grant_seconds", "From a request to a key at both ends, for what this home sends."
)
_SENT = counter("zkc_daemon_sent_total", "Deliveries that the daemon itself has made.")
_SENT_BYTES = counter("zkc_daemon_sent_bytes_total", "Bytes of what the daemon itself has delivered.")
_JOBS = gauge("zkc_daemon_outbox_jobs", "Jobs in the outbox, by state.", "state")
_OUTBOX = counter(
    "zkc_daemon_outbox_total", "Jobs that are over, by what they ended with; 0, done: delivered.", "code", "reason"
)
_KEY_CHANGES = counter("zkc_daemon_key_changes_total", "Transfers that were stopped since a peer has another key.")
_LOG_ALARMS = counter("zkc_daemon_key_log_alarms_total", "Alarms of the coordinator's key log.")
_REQUESTS = counter(
    "zkc_daemon_requests_refused_total", "What the coordinator asked and was answered with an error.", "code", "reason"
)
_AUDIT = gauge("zkc_daemon_audit_entries", "Number of the last entry of the audit log that the daemon wrote.")
_AUDIT_WAITING = gauge("zkc_daemon_audit_waiting", "Entries that are not written yet.")
_AUDIT_LOST = counter("zkc_daemon_audit_lost_total", "Entries that could neither be written nor kept.")
_KEY_LOG = gauge("zkc_daemon_key_log_entries", "Entries of the coordinator's key log, when it was last read.")
_ERRORS = counter("zkc_daemon_errors_total", "What went wrong here and is in the log, by kind.", "where")

METRICS: Final[tuple[Metric, ...]] = (
    _LINKS, _EXPIRY, _UNDER_WAY, _INCOMING, _REFUSED, _PENDING, _ANSWERED, _DELIVERIES, _RECEIVED, _OUTGOING,
    _GRANT_SECONDS, _SENT, _SENT_BYTES, _JOBS, _OUTBOX, _KEY_CHANGES, _LOG_ALARMS, _REQUESTS, _AUDIT, _AUDIT_WAITING,
    _AUDIT_LOST, _KEY_LOG, _ERRORS,
)
_NOTED: Final = {
    "incoming": _INCOMING, "answered": _ANSWERED, "received": _DELIVERIES, "outgoing": _OUTGOING, "outbox": _OUTBOX,
    "request": _REQUESTS,
}
"""What the audit log has an entry for, by its event."""


@dataclass(frozen=True)
class Parts:
    """Of a running daemon."""

    links: Links
    receiver: Receiver
    queue: Queue
    delivered: tuple[Counter[str], ...]
    """Deliveries and bytes of each part that sends."""
    audit: AuditWriter
    audit_file: AuditFile
    watch: LogWatch
    grants: Durations
    errors: Counter[str]


def samples(parts: Parts) -> Iterator[Sample]:
    """Of now. Reads no disk."""
    links, receiver, counts = parts.links.all(), parts.receiver, parts.audit.counts.copy()
    linked = sum(link.linked for link in links)
    yield from _LINKS.each({"linked": linked, "unlinked": len(links) - linked})
    yield _EXPIRY.of(min(link.principal.card.body.not_after for link in links))
    yield _UNDER_WAY.of(receiver.under_way)
    yield _PENDING.of(len(receiver.asking))
    for event, metric in _NOTED.items():
        yield from metric.by_code({code: count for (noted, code), count in counts.items() if noted == event})
    yield from _REFUSED.each(_refusals(receiver.refused))
    yield _RECEIVED.of(receiver.received["bytes"])
    yield _GRANT_SECONDS.of(parts.grants)
    yield _SENT.of(sum(each["deliveries"] for each in parts.delivered))
    yield _SENT_BYTES.of(sum(each["bytes"] for each in parts.delivered))
    yield from _JOBS.each({state: parts.queue.states.get(state, 0) for state in JOBS})
    yield _KEY_CHANGES.of(_of_event(counts, "key-changed"))
    yield _LOG_ALARMS.of(_of_event(counts, "key-log-alarm"))
    yield _AUDIT.of(parts.audit_file.last)
    yield _AUDIT_WAITING.of(parts.audit.waiting)
    yield _AUDIT_LOST.of(parts.audit.dropped)
    yield _KEY_LOG.of(parts.watch.size)
    yield from _ERRORS.each({where: parts.errors[where] for where in ERRORS})


def _refusals(refused: Counter[str]) -> dict[str, float]:
    """By detail; a person gives none that is told here."""
    found = Counter[str]()
    for word, count in refused.items():
        found["person" if word.startswith(_NO) and word != f"{_NO}nobody-asked" else word.partition(".")[2]] += count
    return bounded(found, "", REFUSED)


def _of_event(counts: Counter[tuple[str, int]], event: str) -> int:
    return sum(count for (noted, _), count in counts.items() if noted == event)
