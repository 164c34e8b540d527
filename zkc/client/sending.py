"""One delivery from request to receipt: tries, waits, retries; a plain blocking function.

The handshake comes from a `Granter` (this process's own link, or the daemon); the bytes are encrypted and pushed by the
process that owns them, here. `zkc send` calls it in its main thread, the Python API in a worker thread.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from zkc.client.grants import Grant, Have, Wanted, WouldAccept
from zkc.client.sources import AnySource, FileSource
from zkc.config import ClientConfig
from zkc.constants import ID_BYTES
from zkc.crypto.receipts import verify_receipt
from zkc.crypto.signing import read_identity
from zkc.env import Clock, Entropy
from zkc.errors import (
    CoordinatorUnreachable,
    DaemonError,
    IntegrityError,
    Interrupted,
    LocalIOError,
    PeerViolation,
    RecipientOffline,
    TimedOut,
    ZkcError,
)
from zkc.ids import KeySource, check_name
from zkc.net.pipe import Bell, LinkLost, send
from zkc.protocol.delivery_sender import WRONG_RECEIPT, check_receipt
from zkc.protocol.session import Session
from zkc.rules.policy import Asked, Standing, decide, size_class
from zkc.stores.home import Home
from zkc.stores.receipts import check_receipts, save_receipt
from zkc.wire.messages import Manifest, ReceiptBody

_PAUSE_FIRST: Final = 0.1
_PAUSE_MAX: Final = 2.0
_CONDITIONS: Final = (RecipientOffline, CoordinatorUnreachable, DaemonError)
"""What ``--wait`` waits for, and what a transfer that broke off outlives for ``transfer.patience``."""

_COMES_BACK: Final = frozenset({"shutdown", "unknown-transfer", "reader-gone"})
"""A daemon or coordinator that was ended is often one that is started again, and another process may take what was for
one that has gone: like a lost link."""


class Granter(Protocol):
    """Who makes the handshake."""

    def grant(self, wanted: Wanted, within: float | None) -> Grant:
        """One try, at most ``within`` seconds; raises the errors of the contract."""


@dataclass(frozen=True)
class Options:
    """How to send. Durations in seconds; None: not given."""

    wait: float | None = None
    timeout: float | None = None
    key_source: KeySource | None = None
    cipher: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Requested:
    recipient: str
    name: str
    size: int | None


@dataclass(frozen=True)
class Granted:
    recipient: str
    key_source: KeySource
    presence: str
    path: str


@dataclass(frozen=True)
class Progress:
    bytes: int
    total: int | None


@dataclass(frozen=True)
class Delivery:
    """Delivered: the recipient holds it durably, and signed that it does."""

    transfer: str
    recipient: str
    name: str
    bytes: int
    digest: str
    seconds: float
    receipt: Path
    key_source: KeySource
    path: str


Event = Requested | Granted | Progress


@dataclass
class _Try:
    """One handshake that was agreed, and what went out under it."""

    session: Session
    manifest: Manifest
    finished: tuple[int, bytes] | None = None
    """Size and BLAKE3 of the stream, where all of it went out and only the receipt was missed."""

    def is_of(self, body: ReceiptBody) -> bool:
        return (self.session.req.xid, self.session.th) == (body.xid, body.th)


class Sending:
    """One delivery under way."""

    def __init__(
        self, home: Home, config: ClientConfig, granter: Granter, recipient: str, source: AnySource,
        manifest: Manifest, options: Options, *, clock: Clock, entropy: Entropy, bell: Bell,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._home = home
        self._config = config
        self._granter = granter
        self._recipient = check_name(recipient, "recipient")
        self._source = source
        self._manifest = manifest
        self._clock = clock
        self._bell = bell
        self._on_event = on_event
        transfer = config.transfer
        self._wanted = Wanted(
            tid=entropy.bytes(ID_BYTES), recipient=recipient, key_source=options.key_source or transfer.key_source,
            key_order=transfer.key_order, cipher=options.cipher or transfer.cipher,
            size_class=size_class(manifest.size), dry_run=options.dry_run,
        )
        self._entropy = entropy
        self._began = clock.monotonic()
        self._timeout = None if options.timeout is None else self._began + options.timeout
        self._wait = None if options.wait is None else self._began + options.wait
        self._patience: float | None = None
        """Until when a transfer that broke off is tried again: counted from the first loss after the farthest byte that
        ever arrived, so that what always breaks off at the same place ends."""
        self._farthest = 0
        self._tried: list[_Try] = []
        self._only_ask = False
        """A pipe went out whole and cannot again: only whether it has arrived is still asked."""
        self._path = ""
        self._receipt = Path()
        """Where it is kept, once it has come."""
        self._flowed = False
        self._unmet: ZkcError | None = None
        """The condition that was not met the last time that anybody said."""

    def run(self) -> Delivery | WouldAccept:
        """Blocks until delivered; every failure is a `ZkcError` with the contract's code."""
        refusal = decide(
            Asked(self._wanted.key_source, self._wanted.cipher), self._config.sending_rules(), Standing()
        )
        if refusal is not None:
            raise refusal.error()
        if not self._wanted.dry_run:
            check_receipts(self._home)
        self._on_event(Requested(self._recipient, self._manifest.name, self._manifest.size))
        pause = _PAUSE_FIRST
        while True:
            try:
                done = self._ask() if self._only_ask else self._try()
                if done is not None:
                    return done
                until = self._after_no()
            except LinkLost as lost:
                until = self._after_loss(lost, lost.finished)
            except Interrupted as ended:
                if ended.detail not in _COMES_BACK:
                    raise
                until = self._after_loss(ended)
            except _CONDITIONS as condition:
                self._unmet = condition
                until = self._may_wait(condition)
            except TimedOut as late:
                raise self._out_of_time(late) from None
            self._sleep(min(self._entropy.jitter(pause / 2, pause), until - self._clock.monotonic()))
            pause = min(2 * pause, _PAUSE_MAX)

    def _try(self) -> Delivery | WouldAccept:
        granted = self._granter.grant(self._wanted, self._left())
        if isinstance(granted, WouldAccept):
            return granted
        if isinstance(granted, Have):
            return self._had(granted)
        self._unmet = None
        this = _Try(granted, self._manifest)
        self._tried.append(this)
        try:
            delivered = send(
                granted, self._manifest, self._source, self._bell, deadline=self._timeout,
                on_connected=lambda endpoint: self._on_connected(granted, endpoint), on_flowing=self._on_flowing,
                on_progress=self._on_progress, on_receipt=lambda done: self._keep(done.body, done.receipt),
                clock=self._clock,
            )
        except LinkLost as lost:
            this.finished = lost.finished
            raise
        finally:
            granted.k.wipe()
        return self._delivered(delivered.body)

    def _ask(self) -> Delivery | None:
        """Whether what went out has arrived; None: not, or not yet, for the recipient may be writing it down."""
        answer = self._granter.grant(replace(self._wanted, dry_run=True), self._left())
        if isinstance(answer, Have):
            return self._had(answer)
        if isinstance(answer, Session):
            answer.k.wipe()
        return None

    def _on_connected(self, session: Session, endpoint: str) -> None:
        self._path = f"direct {endpoint}"
        self._on_event(Granted(self._recipient, session.req.key_source, session.resp.presence, self._path))

    def _on_flowing(self) -> None:
        self._flowed = True

    def _on_progress(self, position: int) -> None:
        if position > self._farthest:
            self._farthest, self._patience = position, None
        self._on_event(Progress(position, self._manifest.size))

    def _left(self) -> float | None:
        return None if self._timeout is None else max(self._timeout - self._clock.monotonic(), 0.0)

    def _after_loss(self, lost: Interrupted, finished: tuple[int, bytes] | None = None) -> float:
        """Try again from the first byte, as long as there is patience and the source can be read again: until when."""
        now = self._clock.monotonic()
        if self._patience is None:
            self._patience = now + self._config.transfer.patience
        if not self._source.rewind():
            if finished is None and not self._only_ask:
                raise Interrupted(
                    f"{lost.message}; piped data cannot be read again", detail="pipe", hint="run the whole pipe again"
                ) from None
            self._only_ask = True
        elif isinstance(self._source, FileSource):
            self._manifest = self._source.manifest(self._manifest.name, self._manifest.note)
        until = self._patience if self._timeout is None else min(self._patience, self._timeout)
        if now >= until:
            hint = self._again if self._only_ask else lost.hint or self._again
            raise Interrupted(lost.message, detail=lost.detail, hint=hint) from None
        return until

    def _after_no(self) -> float:
        """The recipient does not have what was sent whole: until when it is asked again. `Interrupted` after that."""
        until = self._clock.monotonic() if self._patience is None else self._patience
        if self._timeout is not None:
            until = min(until, self._timeout)
        if self._clock.monotonic() >= until:
            raise Interrupted(
                f"the link to {self._recipient} broke off, the data did not arrive, and a pipe cannot be read again",
                detail="pipe", hint="run the whole pipe again",
            )
        return until

    @property
    def _again(self) -> str:
        """What a person can do who does not know whether it has arrived."""
        if self._only_ask:
            return f"ask {self._recipient} whether it has arrived, before you run the whole pipe again"
        return "run the same command again"

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
        if select.select([self._bell.fd], [], [], max(seconds, 0.0))[0]:
            raise Interrupted(f"the transfer to {self._recipient} was interrupted", detail="signal")

    def _check_earlier(self, have: Have) -> ReceiptBody:
        """A receipt of an earlier try of this delivery: it must be one of ours, and of this very data."""
        try:
            body = verify_receipt(read_identity(have.ed25519, have.ml_dsa), have.receipt)
        except PeerViolation as violation:
            raise IntegrityError(
                f"the receipt of {self._recipient} did not verify ({violation})", detail="receipt", hint=WRONG_RECEIPT
            ) from None
        this = next((tried for tried in self._tried if tried.is_of(body)), None)
        if this is None or this.finished is None or this.session.peer.fingerprint != have.fingerprint:
            raise IntegrityError(
                f"{self._recipient} returned a receipt for something else", detail="receipt", hint=WRONG_RECEIPT
            )
        return check_receipt(this.session, have.receipt, this.manifest, *this.finished)

    def _had(self, have: Have) -> Delivery:
        """An earlier try had delivered it."""
        body = self._check_earlier(have)
        self._keep(body, have.receipt)
        return self._delivered(body)

    def _keep(self, body: ReceiptBody, receipt: bytes) -> None:
        try:
            self._receipt = save_receipt(self._home, body.tid, receipt)
        except LocalIOError as error:
            raise LocalIOError(
                f"{self._manifest.name} was delivered to {self._recipient}, but its receipt could not be kept in "
                f"{self._home.receipts} ({error.message})", detail=error.detail, hint="do not send it again",
            ) from None

    def _delivered(self, body: ReceiptBody) -> Delivery:
        return Delivery(
            transfer=body.xid.hex(), recipient=self._recipient, name=self._manifest.name, bytes=body.size,
            digest=f"blake3:{body.digest.hex()}", seconds=self._clock.monotonic() - self._began, receipt=self._receipt,
            key_source=body.key_source, path=self._path,
        )
