"""Clients tell each other the newest head of the key log that they know, within the handshake of a transfer.

A coordinator that shows two clients two logs has signed two roots that do not go together: whoever is told a head asks
for the log up to there and compares. Two signed heads of one size and two roots prove it to anybody (attack H12, P10).
The log is one under all the identities that a coordinator has had, so heads are compared whoever signed them; whose
signature it is decides what a head that does not fit proves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from zkc.client.coordinators import Lineage, Successor, ask_coordinator
from zkc.client.keylog import Ask, follow
from zkc.client.principal import Principal
from zkc.crypto.evidence import encode_evidence
from zkc.crypto.heads import Head, claim_of, verify_head
from zkc.crypto.primitives import digest
from zkc.errors import CoordinatorUnreachable, PeerViolation, TimedOut, ZkcError
from zkc.protocol.keylog import LogAlarm, LogState
from zkc.stores import files
from zkc.stores.keystore import KeyStore
from zkc.wire.messages import LogHead, LogHeadAsk

K = TypeVar("K")
_KEPT: Final = 4096
EVIDENCE_MAX: Final = 16
"""Files of evidence for each registration: a coordinator and one peer may make up as many logs as they like, in the
name of as many identities."""


@dataclass(frozen=True)
class _Told:
    """A head that somebody knows."""

    peer: str
    note: bytes
    signer: bytes
    """Fingerprint of who signed it, as it says."""
    head: Head


class Gossip:
    """What one process has told and was told. Belongs to the loop of its links."""

    def __init__(self, store: KeyStore, on_alarm: Callable[[str, LogAlarm], None]) -> None:
        """``on_alarm``: hears under which of our names the log is not what somebody else was shown."""
        self._store = store
        self._on_alarm = on_alarm
        self._folder = store.folder / "evidence"
        self._told: OrderedDict[tuple[bytes, str], bytes] = OrderedDict()
        """(own uid, peer) -> the head that it was told last: each is told once."""
        self._heard: OrderedDict[tuple[bytes, Head], None] = OrderedDict()
        """(own uid, head) of those that were looked at: an alarm is given once."""
        self._doubted: OrderedDict[tuple[bytes, str], None] = OrderedDict()
        """(own uid, peer) of those who told one that nobody can check."""

    def head_for(self, principal: Principal, peer: str) -> bytes:
        """The signed note for ``peer``; empty where there is none that is news to it."""
        known = self._store.known_log(principal.registration.uid)
        if known is None or not known.head:
            return b""
        key = principal.registration.uid, peer
        if self._told.get(key) == known.head:
            return b""
        self._told[key] = known.head
        self._told.move_to_end(key)
        if len(self._told) > _KEPT:
            self._told.popitem(last=False)
        return known.head

    def forget(self, uid: bytes, peer: str) -> None:
        """What ``uid`` has told ``peer`` may not have arrived."""
        self._told.pop((uid, peer), None)

    async def hear(self, ask: Ask, principal: Principal, peer: str, note: bytes) -> None:
        """``peer`` knows of this head: an alarm (``log-fork``, ``log-shrunk``, ``log-signer``) where it is of another
        log than ours.

        The transfer goes on: its ends have pinned each other, and at first contact the log decides by itself. A smaller
        head is for the other end to look at, which is told ours. Errors of the link.
        """
        if not note:
            return
        uid, lineage = principal.registration.uid, Lineage.of(self._store, principal)
        try:
            signer, head = claim_of(note)
            known_signer = lineage.find(signer)
            if known_signer is not None:
                verify_head(known_signer, note)
        except PeerViolation:
            return  # made up: it accuses nobody
        if known_signer is not None and (uid, head) in self._heard:
            return
        known = self._store.known_log(uid)
        if known is None or head.size >= known.size:
            try:
                await self._compare(_Told(peer, note, signer, head), ask, principal, lineage)
            except LogAlarm as alarm:
                self._on_alarm(principal.name, alarm)
        if known_signer is not None:
            _remember(self._heard, (uid, head))

    async def _compare(self, told: _Told, ask: Ask, principal: Principal, lineage: Lineage) -> None:
        head = told.head
        try:
            state = await follow(ask, self._store, principal, head.size)
        except LogAlarm as alarm:
            # Signed by an identity that the coordinator has since a moment ago?
            successor = await _successor(ask, principal) if alarm.detail == "log-proof" else None
            if successor is None:
                raise
            principal, lineage = replace(principal, coordinator=successor.coordinator), lineage.became(successor)
            state = await follow(ask, self._store, principal, head.size)
        if state.marked == head.root:
            return
        shrunk = state.frontier.size < head.size
        if not shrunk and not state.marked:
            return  # another handshake has come further meanwhile: its end is told what is there now
        if lineage.find(told.signer) is None:
            successor = await _successor(ask, principal)
            lineage = lineage if successor is None else lineage.became(successor)
        signer = lineage.find(told.signer)
        if signer is None:
            self._doubt(principal, told)
            return
        try:
            verify_head(signer, told.note)
        except PeerViolation:
            return
        by = "" if signer == lineage.identities[-1] else f" (signed as {told.signer.hex()}, which it was before)"
        if shrunk:
            raise LogAlarm(
                "log-shrunk", f"{told.peer} was shown {head.size} entries{by}, and this client {state.frontier.size}"
            )
        evidence = await self._evidence(ask, told, state, lineage, principal.registration.uid)
        raise LogAlarm("log-fork", f"it has shown {told.peer} another log than this client{by}{evidence}")

    def _doubt(self, principal: Principal, told: _Told) -> None:
        """It does not fit, and nobody for whom the coordinator vouches has signed it. Said once of each peer, who may
        be the one that deceives."""
        key = principal.registration.uid, told.peer
        if key in self._doubted:
            return
        _remember(self._doubted, key)
        raise LogAlarm(
            "log-signer",
            f"{told.peer} says that it was shown another log, by an identity {told.signer.hex()} for which the"
            f" coordinator here does not vouch: it shows two, or {told.peer} made this up",
        )

    async def _evidence(self, ask: Ask, told: _Told, state: LogState, lineage: Lineage, uid: bytes) -> str:
        """Writes it, where the coordinator has signed both logs; in words where it is."""
        ours = state.head
        if state.frontier.size != told.head.size:
            try:
                answer = await ask(LogHeadAsk(told.head.size))
            except ZkcError:
                return ""  # one that does not sign has shown it all the same
            ours = answer.head if isinstance(answer, LogHead) else b""
        try:
            signed_as, own = claim_of(ours)
            signer = lineage.find(signed_as)
            if signer is None or own.size != told.head.size or own.root == told.head.root:
                return ""
            verify_head(signer, ours)
        except PeerViolation:
            return ""
        # Of each coordinator and each false root its own: no evidence takes the place of another.
        root = digest(lineage.identities[-1].fingerprint + told.head.root).hex()[:12]
        whose = uid.hex()[:8]
        path = self._folder / f"log-fork-{told.head.size}-{whose}-{root}.json"
        kept = set(self._folder.glob(f"log-fork-*-{whose}-*.json"))
        if path not in kept and len(kept) >= EVIDENCE_MAX:
            return f"; {len(kept)} pieces of evidence are in {self._folder} already, and this is not written"
        evidence = encode_evidence(lineage.card, told.note, ours, lineage.since(told.signer, signed_as))
        try:
            files.make_folder(self._folder)
            files.write_private(path, evidence, replace=True)
        except ZkcError:
            return "; the evidence could not be written"
        return f"; the evidence, signed by it: {path} (zkc coordinator audit --verify FILE)"


async def _successor(ask: Ask, principal: Principal) -> Successor | None:
    """What the coordinator has become since; None: nothing, or nothing that it can show."""
    try:
        return await ask_coordinator(ask, principal.coordinator)
    except (CoordinatorUnreachable, TimedOut):
        raise
    except (ZkcError, PeerViolation):
        return None


def _remember(seen: OrderedDict[K, None], key: K) -> None:
    seen[key] = None
    if len(seen) > _KEPT:
        seen.popitem(last=False)
