"""Clients tell each other the newest head of the key log that they know, within the handshake of a transfer.

A coordinator that shows two clients two logs has signed two roots that do not go together: whoever is told a head asks
for the log up to there and compares. Two signed heads of one size and two roots prove it to anybody (attack H12, P10).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from zkc.client.keylog import Ask, follow
from zkc.client.principal import Principal
from zkc.crypto.evidence import encode_evidence
from zkc.crypto.heads import Head, verify_head
from zkc.crypto.primitives import digest
from zkc.errors import PeerViolation, ZkcError
from zkc.protocol.keylog import LogAlarm
from zkc.stores import files
from zkc.stores.keystore import KeyStore
from zkc.wire.messages import LogHead, LogHeadAsk

_KEPT: Final = 4096


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
        """``peer`` knows of this head: an alarm (``log-fork``, ``log-shrunk``) where it is of another log than ours.

        The transfer goes on: its ends have pinned each other, and at first contact the log decides by itself. A smaller
        head is for the other end to look at, which is told ours. Errors of the link.
        """
        if not note:
            return
        try:
            head = verify_head(principal.coordinator.identity, note)
        except PeerViolation:
            return  # of an identity that the coordinator had before or has since, or made up: it accuses nobody
        seen = principal.registration.uid, head
        if seen in self._heard:
            return
        known = self._store.known_log(principal.registration.uid)
        if known is None or head.size >= known.size:
            try:
                await self._compare(ask, principal, peer, head, note)
            except LogAlarm as alarm:
                self._on_alarm(principal.name, alarm)
        self._heard[seen] = None
        if len(self._heard) > _KEPT:
            self._heard.popitem(last=False)

    async def _compare(self, ask: Ask, principal: Principal, peer: str, head: Head, note: bytes) -> None:
        state = await follow(ask, self._store, principal, head.size)
        if state.marked == head.root:
            return
        if state.frontier.size < head.size:
            raise LogAlarm(
                "log-shrunk", f"{peer} was shown {head.size} entries, and this client {state.frontier.size}"
            )
        if not state.marked:
            return  # another handshake has come further meanwhile: its end is told what is there now
        evidence = ""
        with suppress(ZkcError):  # one that does not sign has shown it all the same
            own = await ask(LogHeadAsk(head.size))
            if isinstance(own, LogHead):
                evidence = self._keep(principal, note, own.head, head)
        raise LogAlarm("log-fork", f"it has shown {peer} another log than this client{evidence}")

    def _keep(self, principal: Principal, theirs: bytes, ours: bytes, head: Head) -> str:
        """Writes the evidence, where the coordinator has signed both; in words where it is."""
        try:
            own = verify_head(principal.coordinator.identity, ours)
        except PeerViolation:
            return ""
        if own.size != head.size or own.root == head.root:
            return ""
        # Of each coordinator and each false root its own: no evidence takes the place of another.
        root = digest(principal.coordinator.identity.fingerprint + head.root).hex()[:12]
        path = self._folder / f"log-fork-{head.size}-{root}.json"
        try:
            files.make_folder(self._folder)
            files.write_private(
                path, encode_evidence(principal.registration.coordinator_card, theirs, ours), replace=True
            )
        except ZkcError:
            return "; the evidence could not be written"
        return f"; the evidence, signed by it: {path} (zkc coordinator audit --verify FILE)"
