"""One home as its terminal's face sees and uses it. Everything here blocks: the face calls it in threads.

Lists come from the home's own stores and from its daemon; what is done is what the commands do.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from zkc.api import SyncClient
from zkc.client import control
from zkc.client.call import Call
from zkc.client.command_audit import CommandAudit
from zkc.client.events import Delivery, Event
from zkc.client.happenings import Happened
from zkc.client.principal import another_key_seen, load_main
from zkc.client.queueing import poke
from zkc.client.walking import Skipped
from zkc.config import ClientConfig
from zkc.constants import MESSAGE_TEXT_MAX
from zkc.crypto.receipts import open_receipt
from zkc.crypto.signing import safety_number
from zkc.env import Clock
from zkc.errors import (
    DaemonError,
    IdentityError,
    LocalIOError,
    PeerViolation,
    UnknownRecipient,
    UsageError,
    ZkcError,
)
from zkc.net.local_client import Answer, LocalClient
from zkc.rules.names import escape, safe_name
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.items import Item
from zkc.stores.key_rows import Pin, Pins
from zkc.stores.keystore import KeyStore
from zkc.stores.outbox import Outbox
from zkc.stores.receipts import sent
from zkc.stores.saving import save_item
from zkc.stores.trees import StoredTree
from zkc.ui.tui.rows import Row, ago, inbox_row, job_row, lines_of, pane, peer_row, pending_row, sent_row
from zkc.wire.codec import decode
from zkc.wire.messages import Peer, Receipt, ReceiptBody

Reply = TypeVar("Reply")
_ANSWER_SECONDS: Final = 5.0
_DECIDE_SECONDS: Final = 30.0
"""The daemon looks at the PIN, makes room and tells the coordinator before it answers."""
_SENT_SHOWN: Final = 500
_TREE_SHOWN: Final = 1_000
_SUBJECT_BYTES: Final = 200


class Desk:
    """Threads may share it; `close` ends what it still sends."""

    def __init__(self, folder: str | None, config: ClientConfig, clock: Clock) -> None:
        """``folder``: as ``--home`` names it; None: that of the environment."""
        self._home = home = Home.resolve("client", folder).check()
        self._config = config
        self._clock = clock
        self._client = SyncClient(folder)
        self._inbox = Inbox.open(home)
        self._store = KeyStore.open(home)
        self._outbox = Outbox(home)
        self._presences: dict[str, str] = {}
        self._subjects: dict[str, str] = {}
        self._one_reads = threading.Lock()
        """Two of this face's threads are no reason to say that another command has an item."""
        self.name: Final = load_main(self._store).name
        self._over = threading.Event()
        self._answer: Answer[Any] | None = None
        """The daemon's events, while they are followed."""

    def close(self) -> None:
        self.hang_up()
        self._client.close()
        self._inbox.close()
        self._store.close()

    # --- lists ------------------------------------------------------------------------------------------------------

    def status(self) -> control.StatusReply | None:
        """None: no daemon answers."""
        try:
            return self._daemon(control.AskStatus(), control.StatusReply)
        except DaemonError:
            return None

    def inbox(self) -> list[Row]:
        """Newest first."""
        pins, unseen = self._store.pinned(), self._inbox.unseen()
        return [self._row_of(item, pins, is_new=item.id in unseen) for item in reversed(self._inbox.items())]

    def _presence(self, item: Item) -> str:
        """What this client stated of its person when the item came: it is in the receipt, and never changes."""
        known = self._presences.get(item.id)
        if known is None:
            receipt = self._inbox.done(item.sender_fp, item.tid)
            known = ""
            if receipt is not None:
                with contextlib.suppress(PeerViolation):  # harmed on this disk: the item is to be seen all the same
                    signed: Receipt = decode(receipt, Receipt)
                    body: ReceiptBody = decode(signed.body, ReceiptBody)
                    known = body.presence
            self._presences[item.id] = known
        return known

    def pending(self) -> list[Row]:
        """Oldest first, as a person should answer them. Without a daemon nothing waits."""
        now = self._clock.wall()
        return [pending_row(item, now) for item in self._pending()]

    def require_of(self, id: str) -> str:
        """What presence the transfer ``id`` asks for."""
        return next((item.require for item in self._pending() if item.id == id), "online")

    def sent(self) -> list[Row]:
        """Newest first; a file that is no genuine receipt is passed over."""
        rows = []
        for path, name in sent(self._home, _SENT_SHOWN):
            with contextlib.suppress(PeerViolation, OSError):
                rows.append(sent_row(str(path), open_receipt(path.read_bytes()).body, name, self._clock.wall()))
        return rows

    def queue(self) -> list[Row]:
        """Oldest first."""
        jobs = self._outbox.jobs()
        far = (poke(self._home) if any(job.state == "sending" for job in jobs) else None) or {}
        return [job_row(job, far.get(job.id), self._clock.wall()) for job in jobs]

    def peers(self) -> list[Row]:
        """By name; without a link those whose keys are pinned."""
        listed: dict[str, Peer] = {}
        with contextlib.suppress(ZkcError):
            listed = {peer.name: peer for peer in self._client.peers()}
        pins = {pin.name: pin for pin in self._store.pins()}
        names = sorted((listed.keys() | pins.keys()) - {self.name})
        return [peer_row(name, listed.get(name), pins.get(name), self._clock.wall()) for name in names]

    def older(self, rows: Iterable[Row]) -> list[Row]:
        """The same lines by now: nothing is read anew."""
        now = self._clock.wall()
        return [row.older(now=now) if row.older is not None else row for row in rows]

    def names(self) -> list[str]:
        """Whom one may write to, as far as it is known without asking."""
        return [pin.name for pin in self._store.pins() if pin.name != self.name]

    # --- one of them ------------------------------------------------------------------------------------------------

    def read(self, id: str) -> str:
        """The reading pane for an item: what is known of it, its text or what is in its folder."""
        item = self._inbox.find(id)
        return pane(self._row_of(item, self._store.pinned()).detail, self._body(item))

    def see(self, id: str) -> Row:
        """The line of an item that a person has looked at now."""
        item = self._inbox.find(id)
        with contextlib.suppress(LocalIOError):  # a full disk, say: then it is new again the next time
            self._inbox.mark_seen(item.id)
        return self._row_of(item, self._store.pinned())

    def _row_of(self, item: Item, pins: Pins, *, is_new: bool = False) -> Row:
        pin = pins.get(item.sender)
        verified = pin is not None and pin.fingerprint == item.sender_fp and pin.verified is not None
        return inbox_row(
            item, self._presence(item), verified=verified, now=self._clock.wall(), subject=self._subject(item),
            is_new=is_new,
        )

    def _subject(self, item: Item) -> str:
        """The first line of a message; empty for all else."""
        if item.kind != "message":
            return ""
        known = self._subjects.get(item.id)
        if known is None:
            known = ""
            with contextlib.suppress(OSError), item.path.open("rb") as payload:
                lines = payload.read(_SUBJECT_BYTES).decode(errors="replace").splitlines()
                known = next((line.strip() for line in lines if line.strip()), "")
            self._subjects[item.id] = known
        return known

    def _body(self, item: Item) -> list[str]:
        if item.kind == "message":
            return lines_of(self._text(item))
        if item.kind != "tree":
            return []
        with StoredTree.opened(item) as tree:
            paths = [escape(path) for (path, _), _ in zip(tree.paths(), range(_TREE_SHOWN + 1), strict=False)]
        return paths if len(paths) <= _TREE_SHOWN else [*paths[:_TREE_SHOWN], "…"]

    def _text(self, item: Item) -> str:
        with self._one_reads:
            claim = self._inbox.take(item.id)
            if claim is None:
                raise LocalIOError(f"another command has item {item.id} right now", detail="busy", hint="try it again")
            with claim, claim.open() as payload:
                return payload.read(MESSAGE_TEXT_MAX).decode(errors="replace")

    def safety(self, name: str) -> tuple[str, bytes]:
        """What to compare with ``name``, over another channel, and the fingerprint that it is of. `IdentityError` while
        another key than the pinned one was seen."""
        pin = self._store.pin(name)
        if pin is None:
            raise UnknownRecipient(f"no key is pinned for {name}", detail="not-pinned", hint="send something first")
        if pin.alarm:
            raise another_key_seen(name, pin)
        return safety_number(load_main(self._store).fingerprint, pin.fingerprint), pin.fingerprint

    def receipt(self, path: str) -> str:
        """All that a receipt says."""
        opened = open_receipt(Path(path).read_bytes())
        body, pin = opened.body, self._store.pin(opened.card.name)
        own = pin is not None and pin.fingerprint == opened.card.fingerprint
        fields = (
            ("genuine", "yes, by the key pinned here" if own else "signed; by another key than is pinned here"),
            ("recipient", escape(body.recipient)), ("sender", escape(body.sender)), ("bytes", str(body.size)),
            ("digest", f"blake3:{body.digest.hex()}"), ("presence", f"{body.presence}, {body.presence_age} s old"),
            ("key made by", body.key_source), ("cipher", body.cipher), ("durable", "yes" if body.durable else "no"),
            ("received", ago(self._clock.wall() - body.ended / 1000)), ("transfer", body.xid.hex()),
            ("file", path),
        )
        return pane(fields)

    # --- what is done -----------------------------------------------------------------------------------------------

    def save(self, id: str, output: str) -> Path | None:
        """Into the folder or the file ``output``; where it is then. None: nothing was written."""
        item = self._inbox.find(id)
        path = Path(output).expanduser().absolute()
        return save_item(item, path / safe_name(item.name) if path.is_dir() else path, "rename")

    def remove(self, id: str) -> None:
        self._inbox.remove(self._inbox.find(id).id)

    def accept(self, id: str, pin: str) -> None:
        self._decide(control.AskDecision(id, True, "", pin))

    def refuse(self, id: str, reason: str) -> None:
        self._decide(control.AskDecision(id, False, reason, ""))

    def _decide(self, said: control.AskDecision) -> None:
        self._daemon(said, control.DecidedReply, _DECIDE_SECONDS)

    def cancel(self, id: str) -> None:
        """A job of the queue."""
        self._outbox.remove(self._outbox.find(id).id)
        poke(self._home)

    def retry(self, id: str) -> None:
        """A job of the queue, now."""
        self._outbox.retry(id, self._clock.wall())
        poke(self._home)

    def confirm(self, name: str, fingerprint: bytes) -> None:
        """A person has compared the safety number of this key: it is the same. `IdentityError` where another one is
        pinned by now, or was seen."""
        now = self._clock.wall()

        def compared(known: Pin | None) -> Pin | None:
            if known is None or known.fingerprint != fingerprint or known.alarm:
                raise IdentityError(
                    f"the key of {name} has changed while it was compared", detail="identity",
                    hint=f"look at it again: zkc verify {name}",
                )
            return replace(known, verified=now)

        self._store.update_pin(name, compared)
        CommandAudit(self._home, self._config, self._clock).note("verified", self.name, name)

    def send(
        self, call: Call, recipient: str, payload: str | Sequence[Path], note: str,
        on_event: Callable[[Event | Skipped], None],
    ) -> Delivery:
        """Text, or files and folders; ends early when ``call`` is told to."""
        what: Any = payload if isinstance(payload, str) else [Path(path) for path in payload]
        return self._client.send_in(call, recipient, what, note=note, on_event=on_event)

    def forward(
        self, call: Call, id: str, recipient: str, on_event: Callable[[Event | Skipped], None]
    ) -> Delivery:
        """An item of the inbox, as it came, under its name; it stays."""
        item = self._inbox.find(id)
        if item.kind == "message":
            return self.send(call, recipient, self._text(item), item.note, on_event)
        with tempfile.TemporaryDirectory(prefix="zkc-forward-", dir=self._home.data) as folder:
            path = save_item(item, Path(folder, safe_name(item.name)), "rename")
            if path is None:
                raise UsageError("it could not be taken out of the inbox")
            return self.send(call, recipient, [path], item.note, on_event)

    # --- events -----------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._over.is_set()

    def events(self) -> Iterator[Happened]:
        """What the daemon remembers, and then all that happens, until `hang_up`. `DaemonError`: it is not there, or has
        gone."""
        client: LocalClient[Any] = LocalClient(self._home.socket_path(), control.ControlReply)
        with contextlib.closing(client.ask(control.AskEvents(follow=True), within=None)) as answer:
            self._answer = answer
            while not self.closed and (reply := answer.next()) is not None:
                yield reply.happened

    def hang_up(self) -> None:
        """Follow no more; from another thread. Harmless when repeated."""
        self._over.set()
        if self._answer is not None:
            self._answer.hang_up()

    def pause(self, seconds: float) -> None:
        """Wait so long, or until `hang_up`."""
        self._over.wait(seconds)

    # --- the daemon -------------------------------------------------------------------------------------------------

    def _pending(self) -> list[control.PendingItem]:
        try:
            return self._daemon(control.AskPending(), control.PendingListReply).items
        except DaemonError:
            return []

    def _daemon(self, request: control.ControlRequest, kind: type[Reply], within: float = _ANSWER_SECONDS) -> Reply:
        client: LocalClient[Any] = LocalClient(self._home.socket_path(), control.ControlReply)
        reply = client.call(request, within=within)
        if not isinstance(reply, kind):
            raise DaemonError(f"the daemon answered with {type(reply).__name__}", detail="unexpected")
        return reply
