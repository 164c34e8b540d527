"""One delivery from request to receipt: tries, waits, retries; a plain blocking function.

The handshake comes from a `Granter` (this process's own link, or the daemon); the bytes are encrypted and pushed by the
process that owns them, here. `zkc send` calls it in its main thread, the Python API in a worker thread. Loads zmq
where something listens or is sent, and not before: a command has asked its daemon by then (decision 0007).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from msgspec.structs import replace

from zkc.client.events import Delivery, Event, Granted, Options, Pending, Progress, Requested, WouldAccept
from zkc.client.grants import Grant, Have, Listen, OnPending, OnRequest, Wanted
from zkc.client.happenings import Begun
from zkc.client.reporting import Reports
from zkc.client.sources import AnySource
from zkc.config import ClientConfig
from zkc.constants import ID_BYTES, STEP_SECONDS
from zkc.crypto.receipts import name_digest, verify_receipt
from zkc.crypto.signing import read_identity
from zkc.env import Clock, Entropy
from zkc.errors import (
    CoordinatorUnreachable,
    DaemonError,
    IntegrityError,
    Interrupted,
    LocalIOError,
    NobodyThere,
    NotAuthorised,
    PeerViolation,
    PolicyRefused,
    RecipientOffline,
    TimedOut,
    ZkcError,
)
from zkc.ids import check_name
from zkc.net.pipe.bell import Bell, LinkLost, interrupted
from zkc.net.pipe.outgoing import Outgoing
from zkc.protocol.delivery_sender import WRONG_RECEIPT, Delivered
from zkc.protocol.session import Session, make_preview
from zkc.rules.endpoints import parse_listen
from zkc.rules.policy import Asked, Standing, judge, size_class
from zkc.rules.rates import Pace
from zkc.stores.home import Home
from zkc.stores.receipts import check_receipts, find_receipt, has_receipt, receipt_path, save_receipt
from zkc.stores.under_way import UnderWay, key_of, of_key, of_source, tid_of
from zkc.wire.codec import decode
from zkc.wire.messages import Card, Endpoints, Manifest, Receipt, ReceiptBody

if TYPE_CHECKING:
    from zkc.net.pipe.doors import Doors, Listening
    from zkc.net.pipe.sender import Attempts

_PAUSE_FIRST: Final = 0.02
_PAUSE_MAX: Final = 2.0
_KEY_PAUSE: Final = 0.1
_LET_GO_SECONDS: Final = 1.0
"""How long a delivery of the same file is given to end: its command may have ended, and the daemon that sent it for
that command tells the recipient so first."""
_TURN_PAUSE: Final = 0.1
_TURN_SECONDS: Final = STEP_SECONDS - 5.0
"""How long a sender that is to listen waits for ports: the recipient waits for its step no longer than a minute."""
_DIRECT_SECONDS: Final = 2.0
"""How long the recipient is looked for at the end of a handshake that has led to it, before another one is made."""
_CONDITIONS: Final = (RecipientOffline, NobodyThere, NotAuthorised, CoordinatorUnreachable, DaemonError)
"""What ``--wait`` waits for, and what a transfer that broke off outlives for ``transfer.patience``."""

_COMES_BACK: Final = frozenset({"shutdown", "unknown-transfer", "reader-gone"})
"""A daemon or coordinator that was ended is often one that is started again, and another process may take what was for
one that has gone: like a lost link."""


class Granter(Protocol):
    """Who makes the handshake."""

    def grant(self, wanted: Wanted, within: float | None, listen: Listen, on_pending: OnPending) -> Grant:
        """One try, at most ``within`` seconds; raises the errors of the contract, and what ``listen`` raises."""


class Sending:
    """One delivery under way."""

    def __init__(
        self, home: Home, config: ClientConfig, granter: Granter, recipient: str, source: AnySource,
        manifest: Manifest, options: Options, *, clock: Clock, entropy: Entropy, bell: Bell,
        on_event: Callable[[Event], None] = lambda _: None, pace: Pace | None = None, asked: OnRequest | None = None,
        reports: Reports | None = None, begun: bool = False,
    ) -> None:
        """``pace``: shared with others, in place of one of its own. ``asked``: by whom, of a third-party request.
        ``reports``: where the events of this home's daemon hear of it. ``begun``: another process has begun it and
        ended, and this one goes on with the same patience."""
        self._home = home
        self._config = config
        self._granter = granter
        self._recipient = check_name(recipient, "recipient")
        self._source = source
        self._outgoing = Outgoing(source)
        self._manifest = manifest
        self._options = options
        self._clock = clock
        self._bell = bell
        self._on_event = on_event
        self._reports = reports or Reports()
        self._pace = pace or Pace(options.bwlimit or math.inf)
        transfer = config.transfer
        self._wanted = Wanted(
            tid=entropy.bytes(ID_BYTES), recipient=recipient, key_source=options.key_source or transfer.key_source,
            key_order=transfer.key_order, cipher=options.cipher or transfer.cipher,
            size_class=size_class(manifest.size), dry_run=options.dry_run,
            compression="zstd" if options.compress else "none", acknowledgement=transfer.acknowledgement,
            can_listen=parse_listen(transfer.listen) is not None,
            presence=options.require, wait=0 if options.timeout is None else math.ceil(options.timeout),
            preview=make_preview(manifest.name, manifest.note, manifest.size),
        )
        self._asked = asked
        if asked is not None:
            self._wanted = replace(
                self._wanted, tid=asked.tid, asker=asked.asker, asked_by=asked.asked_by, ask=asked.ask,
                pin=asked.recipient,
            )
        self._entropy = entropy
        self._began = clock.monotonic()
        self._timeout = None if options.timeout is None else self._began + options.timeout
        self._wait = None if options.wait is None else self._began + options.wait
        self._record: UnderWay | None = None
        """What a later command finds of this delivery."""
        self._tries: set[bytes] = set()
        """xid || th of every handshake: a receipt of something else is none."""
        self._session: Session | None = None
        """The newest handshake, and its connections."""
        self._attempts: Attempts | None = None
        self._doors: Doors | None = None
        self._listening: Listening | None = None
        """Where the recipient comes to, once one has asked for it; for all handshakes."""
        self._announced = False
        """Whether anybody was told of this handshake."""
        self._lost: float | None = None
        """Since when nothing has come through; None while something does."""
        self._patience: float | None = self._began + transfer.patience if begun else None
        """Until when a transfer that broke off is tried again: counted from the first loss after the farthest byte that
        ever arrived, so that what always breaks off at the same place ends."""
        self._farthest = 0
        self._next_pause = _PAUSE_FIRST
        """Before the next try: longer each time, until something arrives that never had before."""
        self._resumed = False
        """Whether the recipient had some of it before a handshake: in a file, of which a loss of power takes what was
        not synced."""
        self._anew = False
        """Whether that was not what was sent, and all of it is sent once more: no recipient gets it a third time."""
        self._path = ""
        self._receipt = Path()
        """Where it is kept, once it has come."""
        self._hears = False
        """Whether the bell alone ends what is under way."""
        self._flowed = begun
        self._unmet: ZkcError | None = None
        """The condition that was not met the last time that anybody said."""

    def run(self) -> Delivery | WouldAccept:
        """Blocks until delivered; every failure is a `ZkcError` with the contract's code."""
        manifest, wanted = self._manifest, self._wanted
        asked = Asked(
            wanted.key_source, wanted.cipher, manifest.size or 0, manifest.size, recipient=self._recipient,
            name=manifest.name,
        )
        verdict = judge(asked, self._config.sending_rules(), Standing(wall=self._clock.wall()))
        if verdict.refusal is not None:
            from zkc.client.command_audit import CommandAudit  # noqa: PLC0415 - costs, and most are not refused

            code, detail = verdict.refusal.code, verdict.refusal.detail
            notes = CommandAudit(self._home, self._config, self._clock)
            notes.note("outgoing", recipient=self._recipient, code=code, detail=detail, rule=verdict.rule)
            raise verdict.refusal.error()
        self._on_event(Requested(self._recipient, self._manifest.name, self._manifest.size))
        if self._options.dry_run:
            return self._until_done()
        check_receipts(self._home)
        forget, done = False, None
        try:
            known = self._identify()
            done = known or self._until_done()
            # A key is remembered: that is what it is for.
            forget = self._options.key is None
            if known is None and isinstance(done, Delivery):
                self._reports.delivered(done)
            return done
        except BaseException as error:
            self._reports.failed(error)
            raise
        finally:
            self._drop_session()
            self._close_doors()
            if self._record is not None:
                self._record.close(forget=forget or not self._record.begun, done=done is not None)

    def interrupt(self) -> bool:
        """From a signal handler: whether what is under way ends by itself, and tells its recipient. An exception could
        come between a frame that is sealed and its way out, and leave a gap that looks like an attack."""
        self._bell.ring()
        return self._hears

    def _identify(self) -> Delivery | None:
        """Which delivery this is: a new one, or one that an earlier command has begun; or even ended, with its key."""
        key, wanted, same = self._options.key, self._wanted, self._source.identity
        if self._asked is not None:
            return None  # its asker has chosen the id
        if key is None and not same:
            return None
        waited = 0.0
        while (record := self._open_record()) is None:
            if key is None and waited >= _LET_GO_SECONDS:
                return None  # another command sends the same file now: each delivers it once
            self._sleep(_KEY_PAUSE)
            waited += _KEY_PAUSE
            if self._left() == 0:
                raise TimedOut(f"another command is sending with the key {key!r}", detail="timeout")
        self._record = record
        if key is not None and (receipt := find_receipt(self._home, record.tid)) is not None:
            return self._kept(record.tid, receipt)
        self._tries |= record.tries
        goes_on = record.begun and self._source.again and self._options.resume
        self._wanted = replace(wanted, tid=record.tid, fresh=not goes_on)
        return None

    def _open_record(self) -> UnderWay | None:
        """What this command goes on with. Where its file had begun to go out under another key, or under none, and is
        not known to have arrived, it takes that delivery over."""
        home, key, same = self._home, self._options.key, self._source.identity
        tid, resume = self._wanted.tid, self._options.resume
        source = key_of(b"source", self._recipient.encode(), self._manifest.name.encode(), *same) if same else ""
        if key is None:
            return of_source(home, source, tid, self._clock, adopts=resume)
        own = tid_of(home, key, self._recipient, self._entropy)
        # Another key may take a file's delivery over, with its id: one that the key itself leads to would come again.
        first = tid if same and not has_receipt(home, own) else own
        return of_key(home, key_of(b"key", own), source, first, tid, self._clock, adopts=resume)

    def _kept(self, tid: bytes, receipt: bytes) -> Delivery:
        """What a command with the same key has delivered, by its receipt."""
        try:
            body: ReceiptBody = decode(decode(receipt, Receipt).body, ReceiptBody)
        except PeerViolation:
            raise LocalIOError(
                f"the receipt of this key, in {self._home.receipts}, is damaged", detail="damaged",
                hint="restore it from a backup; without it the recipient is asked",
            ) from None
        self._receipt = receipt_path(self._home, tid)
        return self._delivered(body)

    def _until_done(self) -> Delivery | WouldAccept:
        while True:
            try:
                return self._try()
            except LinkLost as lost:
                until = self._after_loss(lost)
            except Interrupted as ended:
                if ended.detail not in _COMES_BACK:
                    raise
                self._drop_session()
                until = self._after_loss(ended)
            except IntegrityError:
                if self._anew or not (self._resumed and self._source.again):
                    raise
                # What the recipient had of it is not what was sent: once more, from the first byte.
                self._anew = True
                self._start_anew()
                continue
            except (*_CONDITIONS, PolicyRefused) as condition:
                if isinstance(condition, PolicyRefused) and condition.detail != "no-relay":
                    raise
                self._unmet = condition
                until = self._may_wait(condition)
            except TimedOut as late:
                raise self._out_of_time(late) from None
            pause = self._next_pause
            self._next_pause = min(2 * pause, _PAUSE_MAX)
            self._sleep(min(self._entropy.jitter(pause / 2, pause), until - self._clock.monotonic()))

    def _start_anew(self) -> None:
        self._drop_session()
        self._wanted = replace(self._wanted, fresh=True)
        self._outgoing = Outgoing(self._source)

    def _try(self) -> Delivery | WouldAccept:
        """One connection; before it a handshake, unless one stands that may still lead to the recipient."""
        if self._attempts is None or self._is_silent():
            done = self._shake_hands()
            if done is not None:
                return done
        if self._attempts is None:
            raise ValueError("a handshake that led to nothing")
        from zkc.net.pipe.sender import Told  # noqa: PLC0415

        hearing = Told(self._on_begun, self._on_flowing, self._on_progress, self._on_receipt)
        self._hears = True
        try:
            delivered = self._attempts.next(self._bell, hearing, deadline=self._timeout)
        finally:
            self._hears = False
        return self._delivered(delivered.body)

    def _is_silent(self) -> bool:
        """Whether the newest handshake has led to nothing for so long that another one may do better."""
        return self._lost is not None and self._clock.monotonic() - self._lost > _DIRECT_SECONDS

    def _shake_hands(self) -> Delivery | WouldAccept | None:
        """A new handshake in the place of the one that there was; without the coordinator that one has to do."""
        try:
            granted = self._granter.grant(self._wanted, self._left(), self._listen, self._on_pending)
        except (*_CONDITIONS, PolicyRefused) as condition:
            if self._flowed and isinstance(condition, PolicyRefused) and condition.detail == "limit":
                # It was let in once: others have its place, or come too fast, and that passes.
                raise LinkLost(
                    f"the transfer broke off, and then: {condition.message}", detail="limit", hint=self._again
                ) from None
            if self._attempts is None or (isinstance(condition, PolicyRefused) and condition.detail != "no-relay"):
                raise
            return None
        if isinstance(granted, WouldAccept):
            return granted
        if isinstance(granted, Have):
            return self._had(granted)
        self._drop_session()
        self._unmet = None
        self._lost = None
        self._tries.add(granted.req.xid + granted.th)
        if self._record is not None:
            self._record.add(granted.req.xid, granted.th)
        self._session, self._announced = granted, False
        comes = granted.endpoints is not None and not granted.endpoints.addresses
        from zkc.net.pipe.sender import Attempts  # noqa: PLC0415

        self._attempts = Attempts(
            granted, self._manifest, self._outgoing, self._clock, self._pace, self._listening if comes else None
        )
        return None

    def _on_pending(self) -> None:
        self._on_event(Pending(self._recipient))

    def _listen(self, coordinator: str) -> Endpoints:
        """The recipient cannot be connected to, and comes here: bind, in turn with the other transfers to this home."""
        from zkc.net.addresses import told  # noqa: PLC0415
        from zkc.net.pipe.doors import Doors  # noqa: PLC0415
        from zkc.net.sockets import PortsTaken, split_endpoint  # noqa: PLC0415

        listen = parse_listen(self._config.transfer.listen)
        if listen is None:
            raise ValueError("a client that cannot listen said so")
        until = self._clock.monotonic() + _TURN_SECONDS
        if self._doors is None:
            self._doors = Doors()
        while self._listening is None:
            try:
                self._listening = self._doors.bind(
                    listen.host.strip("[]"), listen.ports or None, sends=True, peer=self._recipient
                )
            except PortsTaken:
                if self._clock.monotonic() >= until or self._left() == 0:
                    raise
                self._sleep(_TURN_PAUSE)
        return self._listening.at(told(self._config.transfer.advertise, listen.host, split_endpoint(coordinator)[0]))

    def _close_doors(self) -> None:
        if self._listening is not None:
            self._listening.close()
        if self._doors is not None:
            self._doors.close()

    def _drop_session(self) -> None:
        if self._listening is not None:
            self._listening.rest()
        if self._session is not None:
            self._session.k.wipe()
        self._session = self._attempts = None

    def _on_begun(self, path: str, position: int) -> None:
        self._lost = None
        self._wanted = replace(self._wanted, fresh=False)
        self._path = path
        if self._session is not None and not self._announced:
            req, resp = self._session.req, self._session.resp
            self._resumed = self._resumed or (position > 0 and not req.fresh)
            self._on_event(Granted(self._recipient, req.key_source, resp.presence, self._path, position))
            self._announced = True
            name, size = self._manifest.name, self._manifest.size
            self._reports.begin(
                Begun(req.xid.hex(), "out", req.sender, self._recipient, name, size, position, live=False),
                lambda: max(self._farthest, position),
            )

    def _on_flowing(self) -> None:
        self._flowed = True

    def _on_progress(self, position: int) -> None:
        if position > self._farthest:
            self._farthest, self._patience, self._next_pause = position, None, _PAUSE_FIRST
        self._on_event(Progress(position, self._manifest.size, *self._source.entry_at(position)))
        self._reports.moved()

    def _on_receipt(self, done: Delivered) -> None:
        self._keep(done.body, done.receipt)
        self._on_progress(done.body.size)

    def _left(self) -> float | None:
        return None if self._timeout is None else max(self._timeout - self._clock.monotonic(), 0.0)

    def _after_loss(self, lost: Interrupted) -> float:
        """Try again, as long as there is patience: until when."""
        now = self._clock.monotonic()
        self._lost = now if self._lost is None else self._lost
        if self._patience is None:
            self._patience = now + self._config.transfer.patience
        until = self._patience if self._timeout is None else min(self._patience, self._timeout)
        if now >= until:
            # Whoever was reached once is not behind a firewall now.
            hint = self._again if self._flowed or not lost.hint else lost.hint
            raise Interrupted(lost.message, detail=lost.detail, hint=hint) from None
        return until

    @property
    def _again(self) -> str:
        """What a person can do then."""
        if self._source.again:
            return "run the same command again: it goes on from there"
        if self._outgoing.whole is not None:
            return f"ask {self._recipient} whether it has arrived, before you run the whole pipe again"
        return "run the whole pipe again"

    def _may_wait(self, condition: ZkcError) -> float:
        """Raises, unless somebody asked to wait for it, or the transfer had begun and its patience is not over.

        Answers until when, in monotonic seconds.
        """
        now = self._clock.monotonic()
        until = self._wait if self._patience is None else self._patience
        if until is not None and self._timeout is not None:
            until = min(until, self._timeout)
        if until is None or now >= until:
            if self._flowed:
                raise Interrupted(
                    f"the transfer broke off, and then: {condition.message}", detail=condition.detail, hint=self._again
                ) from None
            raise condition
        return until

    def _out_of_time(self, late: TimedOut) -> ZkcError:
        """What it means that a step was not answered in time: by what it waited for, as far as that is known."""
        if self._flowed:
            return Interrupted(
                f"the transfer broke off, and then: {late.message}", detail=late.detail, hint=self._again
            )
        return self._unmet if self._unmet is not None and self._left() == 0 else late

    def _sleep(self, seconds: float) -> None:
        if self._bell.wait(seconds):
            raise interrupted(self._recipient, self._bell)

    def _check_earlier(self, have: Have) -> ReceiptBody:
        """A receipt of an earlier try of this delivery: it must be one of ours, and of this very data."""
        try:
            identity = read_identity(have.ed25519, have.ml_dsa)
            body = verify_receipt(identity, have.receipt)
            # What is kept is checked offline against the card in it, which at DONE is the one that was verified.
            card: Card = decode(decode(have.receipt, Receipt).card, Card)
            identity.verify_durable("card", body.card_hash, card.signature)
        except PeerViolation as violation:
            raise IntegrityError(
                f"the receipt of {self._recipient} did not verify ({violation})", detail="receipt", hint=WRONG_RECEIPT
            ) from None
        whole = self._outgoing.read_through(self._pause)
        ours = (
            body.xid + body.th in self._tries and body.tid == self._wanted.tid
            and body.sender_fingerprint == have.own_fingerprint and body.recipient_fingerprint == have.fingerprint
            and body.name_digest == name_digest(self._manifest.name)
        )
        # Of a pipe that did not go out whole nothing is known but what a key may stand for.
        same = (body.size, body.digest) == whole if whole is not None else self._options.key is not None
        if not (ours and same):
            raise IntegrityError(
                f"{self._recipient} returned a receipt for something else", detail="receipt", hint=WRONG_RECEIPT
            )
        return body

    def _pause(self) -> None:
        """While all of it is read again."""
        if self._bell.rung:
            raise interrupted(self._recipient, self._bell)
        if self._left() == 0:
            raise TimedOut(
                f"the transfer to {self._recipient} timed out while {self._manifest.name} was read", detail="timeout",
                hint="give it a longer timeout",
            )

    def _had(self, have: Have) -> Delivery:
        """An earlier try had delivered it."""
        body = self._check_earlier(have)
        self._keep(body, have.receipt)
        return self._delivered(body)

    def _keep(self, body: ReceiptBody, receipt: bytes) -> None:
        try:
            self._receipt = save_receipt(self._home, body.tid, receipt, self._manifest.name)
        except LocalIOError as error:
            raise LocalIOError(
                f"{self._manifest.name} was delivered to {self._recipient}, but its receipt could not be kept in "
                f"{self._home.receipts} ({error.message})", detail=error.detail, hint="do not send it again",
            ) from None

    def _delivered(self, body: ReceiptBody) -> Delivery:
        return Delivery(
            transfer=body.xid.hex(), recipient=self._recipient, name=self._manifest.name, bytes=body.size,
            digest=f"blake3:{body.digest.hex()}", seconds=self._clock.monotonic() - self._began, receipt=self._receipt,
            key_source=body.key_source, path=self._path, cipher=self._wanted.cipher,
        )
