"""What a coordinator tells Prometheus: read from what its parts count and hold. docs/metrics.md explains each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zkc.coordinator.transfers import STEPS
from zkc.crypto.suites import TALLY
from zkc.metrics.families import Metric, Sample, bounded, counter, gauge, histogram

if TYPE_CHECKING:
    from zkc.coordinator.clients import Clients
    from zkc.coordinator.connections import Connections
    from zkc.coordinator.core import Core
    from zkc.coordinator.outbox import Outbox
    from zkc.coordinator.registrations import Registrations
    from zkc.coordinator.transfers import Transfers

DOOR: Final = ("admitted", "refused", "banned", "full", "crowding")
REGISTRATIONS: Final = ("done", "refused", "expired", "broken-off")
POLICY: Final = ("limit", "key-source", "key-order", "cipher", "rule")
RULES: Final = (
    "bad-key", "epoch", "forged", "identity", "limit", "malformed", "owner", "replay", "truncated", "unexpected",
    "version",
)
"""Rules of the protocol that a peer may break; each is a word of `PeerViolation`."""
ERRORS: Final = ("message", "duty", "failed", "defect", "metrics")
PEOPLE: Final = ("present", "absent", "unknown")

_CONNECTIONS = gauge("zkc_coordinator_connections", "TCP connections that are open.")
_CONNECTIONS_MAX = gauge("zkc_coordinator_connections_max", "How many there may be (limits.clients, or descriptors).")
_ACCEPTED = counter("zkc_coordinator_connections_accepted_total", "TCP connections that were accepted.")
_CLOSED = counter("zkc_coordinator_connections_closed_total", "TCP connections that have ended.")
_SILENT = counter(
    "zkc_coordinator_connections_silent_total", "Connections that were given up since nothing was said over them."
)
_DOOR = counter(
    "zkc_coordinator_admissions_total", "Keys that came to the door, by whether they were let in.", "outcome"
)
_CLIENTS = gauge("zkc_coordinator_clients", "Clients that are registered and not revoked.")
_ONLINE = gauge("zkc_coordinator_clients_online", "Clients whose daemon is linked.")
_PEOPLE = gauge(
    "zkc_coordinator_clients_online_persons", "Clients that are online, by what they say of their person.", "state"
)
_CHANNELS = counter("zkc_coordinator_channels_total", "Channels that clients have opened.")
_MESSAGES = counter("zkc_coordinator_messages_total", "Messages that have come from clients.")
_RECORDS = counter("zkc_coordinator_records_total", "Records of channels among them that opened.")
_FULL = counter(
    "zkc_coordinator_sends_dropped_total", "Messages to clients that were dropped since their queue was full."
)
_OUTBOX = gauge("zkc_coordinator_send_queue_bytes", "What waits for the sockets of clients.")
_REGISTERING = gauge("zkc_coordinator_registrations_open", "Registrations under way.")
_REGISTRATIONS_BEGUN = counter("zkc_coordinator_registrations_begun_total", "Registrations that have begun.")
_REGISTRATIONS = counter(
    "zkc_coordinator_registrations_total", "Registrations that have ended, by what they ended with.", "outcome"
)
_REGISTRATION_SECONDS = histogram(
    "zkc_coordinator_registration_seconds", "From a newcomer's first message to its registration."
)
_HANDSHAKES = gauge("zkc_coordinator_handshakes_open", "Transfer handshakes under way.")
_HANDSHAKES_BEGUN = counter("zkc_coordinator_handshakes_begun_total", "Transfer handshakes that got to a recipient.")
_HANDSHAKES_ENDED = counter(
    "zkc_coordinator_handshakes_total",
    "Transfer handshakes that were asked for and have ended, by the contract's code and its reason; 0, done: both ends"
    " have their key.", "code", "reason",
)
_HANDSHAKE_SECONDS = histogram(
    "zkc_coordinator_handshake_seconds", "From a request to the key at both ends, where it came to that."
)
_STEP_SECONDS = histogram(
    "zkc_coordinator_handshake_step_seconds", "How long a handshake waited for a step that came.", "step"
)
_POLICY = counter(
    "zkc_coordinator_policy_refused_total", "Requests that this coordinator's own policy refused, by detail.", "reason"
)
_REFUSED = counter(
    "zkc_coordinator_requests_refused_total", "Requests of any kind that were answered with an error.", "code", "reason"
)
_VIOLATIONS = counter(
    "zkc_coordinator_violations_total", "Messages that no honest peer sends, by what is wrong with them.", "rule"
)
_AUDIT = gauge("zkc_coordinator_audit_entries", "Number of the audit log's last entry.")
_AUDIT_WAITING = gauge("zkc_coordinator_audit_waiting", "Entries that are not written yet.")
_AUDIT_LOST = counter("zkc_coordinator_audit_lost_total", "Entries that could neither be written nor kept.")
_KEY_LOG = gauge("zkc_coordinator_key_log_entries", "Entries of the key log.")
_KEYS_READY = gauge("zkc_coordinator_key_pool_ready", "Key pairs made ahead.")
_KEYS_TAKEN = counter("zkc_coordinator_key_pool_taken_total", "Key pairs that were taken from those.")
_KEYS_LATE = counter("zkc_coordinator_key_pool_late_total", "Key pairs that had to be made while somebody waited.")
_KEM = counter("zkc_coordinator_kem_operations_total", "Key encapsulations, made and opened.")
_ERRORS = counter(
    "zkc_coordinator_errors_total", "What went wrong here and is in the log, by where.", "where"
)

METRICS: Final[tuple[Metric, ...]] = (
    _CONNECTIONS, _CONNECTIONS_MAX, _ACCEPTED, _CLOSED, _SILENT, _DOOR, _CLIENTS, _ONLINE, _PEOPLE, _CHANNELS,
    _MESSAGES, _RECORDS, _FULL, _OUTBOX, _REGISTERING, _REGISTRATIONS_BEGUN, _REGISTRATIONS, _REGISTRATION_SECONDS,
    _HANDSHAKES, _HANDSHAKES_BEGUN, _HANDSHAKES_ENDED, _HANDSHAKE_SECONDS, _STEP_SECONDS, _POLICY, _REFUSED,
    _VIOLATIONS, _AUDIT, _AUDIT_WAITING, _AUDIT_LOST, _KEY_LOG, _KEYS_READY, _KEYS_TAKEN, _KEYS_LATE, _KEM, _ERRORS,
)
_COUNTED: Final = {
    "connections.accepted": _ACCEPTED, "connections.closed": _CLOSED, "connections.silent": _SILENT,
    "channel.confirmed": _CHANNELS, "messages": _MESSAGES, "records": _RECORDS, "send.full": _FULL,
    "reg.begun": _REGISTRATIONS_BEGUN, "transfers.begun": _HANDSHAKES_BEGUN,
}
"""What `Core.count` counts, as it is."""


@dataclass(frozen=True)
class Parts:
    """Of a running coordinator."""

    core: Core
    clients: Clients
    registrations: Registrations
    transfers: Transfers
    connections: Connections
    outbox: Outbox
    room: Callable[[], int]
    """How many connections there may be."""


def samples(parts: Parts) -> Iterator[Sample]:
    """Of now. `LocalIOError`, where the key database cannot be read."""
    core = parts.core
    counters, durations = core.counters, core.durations
    for name, metric in _COUNTED.items():
        yield metric.of(counters[name])
    yield _CONNECTIONS.of(len(parts.connections))
    yield _CONNECTIONS_MAX.of(parts.room())
    yield _CLIENTS.of(core.db.live_clients())
    people = parts.clients.people()
    yield _ONLINE.of(len(parts.clients.online))
    yield from _PEOPLE.each({state: people[state] for state in PEOPLE})
    yield _OUTBOX.of(parts.outbox.size)
    yield _REGISTERING.of(len(parts.registrations))
    yield _REGISTRATION_SECONDS.of(durations["registration"])
    yield _HANDSHAKES.of(len(parts.transfers))
    yield _HANDSHAKE_SECONDS.of(durations["handshake"])
    for step in sorted(set(STEPS.values())):
        yield _STEP_SECONDS.of(durations[step], step)
    yield from _labelled(core)
    yield _AUDIT.of(core.db.audit_size())
    yield _AUDIT_WAITING.of(core.audit.waiting)
    yield _AUDIT_LOST.of(core.audit.dropped)
    yield _KEY_LOG.of(core.db.log_size())
    yield _KEYS_READY.of(len(core.pool))
    yield _KEYS_TAKEN.of(core.pool.counts.taken)
    yield _KEYS_LATE.of(core.pool.counts.made_late)
    yield _KEM.of(TALLY.operations)


def _labelled(core: Core) -> Iterator[Sample]:
    counters = core.counters
    yield from _DOOR.each({outcome: counters[f"zap.{outcome}"] for outcome in DOOR})
    yield from _REGISTRATIONS.each({outcome: counters[f"reg.{outcome}"] for outcome in REGISTRATIONS})
    ended = Counter({code: count for (event, code), count in core.audit.counts.items() if event == "transfer"})
    yield from _HANDSHAKES_ENDED.by_code(ended)
    yield from _POLICY.each(bounded(counters, "policy.", POLICY))
    refused = {
        int(name.removeprefix("refused.")): count for name, count in counters.items() if name.startswith("refused.")
    }
    yield from _REFUSED.by_code(refused)
    yield from _VIOLATIONS.each(bounded(counters, "violations.", RULES))
    yield from _ERRORS.each({where: counters[f"errors.{where}"] for where in ERRORS})
