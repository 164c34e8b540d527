"""One delivery on its way into the inbox: what is announced, written, completed or given up (Figure 16).

All of it happens in the transfer's thread, and nothing on the daemon's loop.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from blake3 import blake3

from zkc.client.consent import Consent
from zkc.client.judging import check_manifest
from zkc.config import ClientConfig
from zkc.constants import SMALL_MAX
from zkc.crypto.receipts import make_receipt
from zkc.crypto.stream_cipher import Buffer
from zkc.env import Clock
from zkc.errors import Interrupted, LocalIOError, PolicyRefused
from zkc.ids import owner_of
from zkc.net.descriptors import DescriptorsTaken
from zkc.net.pipe.bell import Bell
from zkc.net.pipe.recipient import Incoming
from zkc.protocol.delivery_recipient import receipt_body
from zkc.protocol.session import Session
from zkc.protocol.transfer_recipient import Recipient
from zkc.rules.policy import Asked, Standing, decide_size
from zkc.rules.trees import ListingReader
from zkc.stores.inbox import Inbox
from zkc.stores.items import Item, NewItem
from zkc.stores.partials import Partial
from zkc.wire.messages import Manifest

_READ: Final = 4 * 1024 * 1024
"""Bytes of a partial item that are hashed between two looks at the bell."""
_NOBODY_ASKED: Final = Consent()


def deliver(incoming: Incoming, session: Session, sink: InboxSink, bell: Bell, patience: float) -> None:
    """Receive one transfer to its end. What was cut off, or met a disk or a process that takes no more, stays as a
    partial item if its sender can go on with it; what was refused does not."""
    try:
        incoming.receive(session, sink, bell, patience)
    except BaseException as error:
        sink.abandon(keep=sink.can_go_on(error))
        raise


class InboxSink:
    """`zkc.net.pipe.recipient.Sink` into the inbox."""

    def __init__(
        self, inbox: Inbox, session: Session, recipient: Recipient, config: ClientConfig, clock: Clock, bell: Bell,
        consent: Consent = _NOBODY_ASKED, on_announced: Callable[[Manifest, int], None] = lambda _manifest, _here: None,
    ) -> None:
        """``on_announced``: hears, in the transfer's thread, what comes, and how many bytes of it are here already."""
        self._inbox = inbox
        self._session = session
        self._recipient = recipient
        self._config = config
        self._clock = clock
        self._bell = bell
        self._consent = consent
        self._on_announced = on_announced
        self._began = clock.wall()
        self._manifest: Manifest | None = None
        self._partial: Partial | None = None
        self._small: tuple[NewItem, bytearray] | None = None
        """What is small, in place of a partial item, which it becomes when it is cut off."""
        self._digest = blake3()
        self._listing: ListingReader | None = None
        """Of a tree: judged before the bytes that say it are written."""
        self._until_check = 0
        self._unreadable = False
        """Whether what earlier attempts wrote cannot be read again."""
        self.size = 0
        self.item_id = ""
        self.item: Item | None = None
        """Once it is in the inbox."""

    def resume(self) -> tuple[int, blake3]:
        req = self._session.req
        if not req.fresh:
            self._partial = self._inbox.resume(self._session.peer.fingerprint, req.tid)
        return (self._partial.position if self._partial else 0), self._digest

    def announced(self, manifest: Manifest) -> None:
        rules, wall, consent = self._config.receiving_rules(), self._clock.wall(), self._consent
        size, before = -1 if manifest.size is None else manifest.size, self._partial and self._partial.entry
        if consent.shown is None and before and (before.name, before.announced) != (manifest.name, size):
            consent = Consent()  # what is here was let in as something else
        check_manifest(manifest, self._session, rules, wall, consent)
        self._manifest = manifest
        self._listing = ListingReader(manifest.size) if manifest.kind == "tree" else None
        req, here = self._session.req, self._partial.position if self._partial else 0
        entry = NewItem(
            sender=req.sender, app=(req.recipient if owner_of(req.recipient) else ""), name=manifest.name,
            note=manifest.note, kind=manifest.kind, key_source=req.key_source, xid=req.xid, mode=manifest.mode,
            mtime_ns=manifest.mtime_ns, asked_by=req.asked_by, asker=req.asker, announced=size,
        )
        self._check_space(manifest.size or 0, Standing(free_bytes=self._inbox.free_bytes(), held_bytes=here))
        if self._partial is not None:
            self._partial.announce(entry)
            self._read_again(self._partial, here)
        elif manifest.size is not None and manifest.size <= SMALL_MAX:
            self._small = entry, bytearray()
        else:
            self._partial = self._inbox.begin(self._session.peer.fingerprint, req.tid, entry)
        self.size = here
        self._on_announced(manifest, here)

    def _read_again(self, partial: Partial, end: int) -> None:
        """The digest is of the whole: it takes what earlier attempts have written."""
        position = 0
        while position < end:
            if self._bell.rung:
                raise self._bell.reason
            try:
                data = partial.read(position, min(_READ, end - position))
                if not data:
                    raise LocalIOError("a partial item of the inbox became shorter while it was read", detail="io")
            except LocalIOError:
                self._unreadable = True
                raise
            self._digest.update(data)
            self._judge(data)
            position += len(data)

    def write(self, data: Buffer) -> None:
        self._judge(data)
        self.size += len(data)
        if self._small is not None:
            self._small[1].extend(data)
            return
        if self._partial is None:
            raise PolicyRefused("data before its manifest", detail="limit")
        self._until_check -= len(data)
        if self._until_check < 0:
            # The bound holds within 16 MiB, without a system call for every chunk.
            self._check_space(len(data))
            self._until_check = 16 * 1024 * 1024
        self._partial.write(data)

    def _judge(self, data: Buffer) -> None:
        if self._listing is not None and not self._listing.complete:
            self._listing.judge(data)
            # Holes take no room here, and may where they are read: they count for the bound that a person has set.
            self._check_space(self._listing.file_bytes, Standing())

    def complete(self, size: int, digest: bytes) -> bytes:
        """File, rename, folder, one transaction with the receipt; then DONE (Figure 16, blocks 1603-1604)."""
        if self._manifest is None:
            raise PolicyRefused("an end before the beginning", detail="limit")
        now = self._clock.wall()
        body = receipt_body(self._session, self._manifest, size, digest, self._began, now)
        receipt = make_receipt(self._recipient.identity, body, self._recipient.card.encoded)
        if self._small is not None:
            sender_fp, tid = self._session.peer.fingerprint, self._session.req.tid
            item = self._inbox.put(sender_fp, tid, *self._small, digest, receipt, now)
        elif self._partial is not None:
            item = self._inbox.commit(self._partial, digest, receipt, now)
        else:
            raise PolicyRefused("an end before the beginning", detail="limit")
        self.item, self.item_id = item, item.id
        self._partial = self._small = None
        return receipt

    def can_go_on(self, error: BaseException) -> bool:
        """Whether a later handshake can go on with what is here, after ``error``."""
        # Nobody but the command that read a pipe has the rest of it.
        is_piped = self._manifest is not None and self._manifest.size is None
        if isinstance(error, DescriptorsTaken) or (isinstance(error, Interrupted) and self._bell.rung):
            return True  # this end broke it off, and the command that sends may come again
        spoilt = self._unreadable or getattr(error, "detail", "") == "source-changed"
        return isinstance(error, Interrupted | LocalIOError) and not (is_piped or spoilt)

    def abandon(self, *, keep: bool) -> None:
        if self._small is not None and keep:
            with suppress(LocalIOError):  # whoever sends it sends it whole
                self._set_aside(*self._small)
        self._small = None
        if self._partial is not None:
            self._partial.close(discard=not keep)
            self._partial = None

    def _set_aside(self, entry: NewItem, data: bytearray) -> None:
        """A partial item after all, unless it is done: a commit that failed may have come through."""
        delivery = self._session.peer.fingerprint, self._session.req.tid
        if self._inbox.done(*delivery) is None:
            self._partial = self._inbox.begin(*delivery, entry)
            self._partial.write(data)

    def _check_space(self, coming: int, standing: Standing | None = None) -> None:
        asked = Asked(self._session.req.key_source, self._session.req.cipher, coming)
        standing = standing or Standing(free_bytes=self._inbox.free_bytes())
        refusal = decide_size(asked, self._config.receiving_rules(), standing)
        if refusal is not None:
            raise refusal.error()
