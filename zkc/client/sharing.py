"""The daemon of a client that others ask to send something of its shares (claims B8).

Steps run on the daemon's loop; each delivery in a thread of its own, like what a command has handed over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from zkc.client.bus import EventBus
from zkc.client.call import Call
from zkc.client.events import Delivery, Event, Granted, Options, Pending, Progress
from zkc.client.grants import OnRequest
from zkc.client.handed import BusReports, Grants, ThreadGranter
from zkc.client.principal import Principal, known_about
from zkc.client.sending import Sending
from zkc.client.sources import shared_source
from zkc.client.successions import Request, follow, look_up
from zkc.client.walking import Skipped
from zkc.config import ClientConfig
from zkc.constants import ASKED_JOBS_MAX, ASKED_OPEN_MAX, ASKED_PENDING_MAX, NONCE_SECONDS
from zkc.crypto.cards import VerifiedCard
from zkc.env import Clock, Entropy
from zkc.errors import InternalError, Interrupted, PeerViolation, PolicyRefused, TimedOut, ZkcError
from zkc.protocol import fetching as machine
from zkc.protocol.step import step
from zkc.protocol.trust import KeyChanged, OwnerChanged
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore
from zkc.stores.noting import Notes
from zkc.stores.shares import Share, kind_of, load_shares, open_shared
from zkc.wire.codec import decode
from zkc.wire.messages import Ask0, AskBody, AskFrom, AskMore, AskReply, AskState, ShareLine, ShareList

_NONCE_BYTES: Final = 32
_NEWS_SECONDS: Final = 1.0
"""How long the answer to a question waits for the end; and how often a right is looked at again."""
_UNHEARD_SECONDS: Final = 60.0
"""How long a person is asked on behalf of one who no longer asks how far it is."""


@dataclass
class _Job:
    """One delivery on request."""

    state: machine.Sending
    share: Share
    recipient: str
    name: str
    size: int = -1
    watch: asyncio.Task[None] | None = None
    call: Call = field(default_factory=Call)
    sent: int = 0
    is_asked: bool = False
    """Whether a person at the recipient is, or was."""
    granted: Granted | None = None
    heard: float = 0.0
    """When the asker has asked for it, or how far it is; monotonic seconds."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    code: int = 0
    detail: str = ""
    receipt: bytes = b""
    cipher: str = ""
    key_source: Any = "sender"

    def news(self) -> AskState:
        granted, over = self.granted, self.over.is_set()
        return AskState(
            self.name, self.size, self.sent, granted.path[:512] if granted else "",
            granted.resumed_from if granted else 0, granted.key_source if granted else self.key_source, self.cipher,
            over, self.code, self.detail[:64], self.receipt,
            self.pending,
        )

    @property
    def pending(self) -> bool:
        """Whether it waits for a person's answer."""
        return self.is_asked and self.granted is None


@dataclass(frozen=True)
class _Open:
    """A nonce that waits for its signature, for one use."""

    until: float
    asked: bytes
    awaiting: machine.Awaiting
    reply: AskReply


class Sharing:
    """All requests of others to this home. Belongs to the daemon's loop."""

    def __init__(
        self, home: Home, store: KeyStore, config: Callable[[], ClientConfig], grant: Grants, clock: Clock,
        entropy: Entropy, notes: Notes, bus: EventBus,
    ) -> None:
        self._home = home
        self._notes = notes
        self._bus = bus
        self._store = store
        self._config = config
        self._grant = grant
        self._clock = clock
        self._entropy = entropy
        self._log = structlog.get_logger("zkc.sharing")
        self._open: OrderedDict[tuple[str, bytes], _Open] = OrderedDict()
        """By asker and qid."""
        self._jobs: OrderedDict[tuple[str, bytes], _Job] = OrderedDict()
        self._threads = ThreadPoolExecutor(ASKED_JOBS_MAX + ASKED_PENDING_MAX, thread_name_prefix="zkc-asked")
        self.delivered: Final[Counter[str]] = Counter()
        """Deliveries and bytes since the start."""

    async def handle(self, principal: Principal, ask: Request, message: AskFrom) -> AskReply:
        """One step; the error of the contract for what is refused. ``ask`` asks the coordinator something."""
        try:
            return await self._handle(principal, ask, message)
        except (KeyChanged, OwnerChanged) as changed:
            if not await follow(ask, self._store, principal, changed, self._clock.wall(), self._notes):
                raise
        return await self._handle(principal, ask, message)

    async def _handle(self, principal: Principal, ask: Request, message: AskFrom) -> AskReply:
        body = decode(message.body, AskBody)
        key = message.asker, body.qid
        party = machine.Party(
            principal.authority, principal.identity, principal.kem_key, principal.card,
            known_about(self._store, message.asker),
        )
        if isinstance(body, AskMore):
            return await self._more(party, key)
        if isinstance(body, Ask0):
            return self._challenge(party, key, message)
        waiting = self._open.pop(key, None)  # one use, whatever comes of it
        if waiting is None:
            if key in self._jobs:
                raise PeerViolation("replay", "this was asked before")
            raise Interrupted("no nonce of that waits", detail="unknown-request")
        if self._clock.monotonic() > waiting.until:
            raise TimedOut("the nonce is too old", detail="expired")
        asked: machine.Judging = step(machine.SENDER, party, waiting.awaiting, message).state
        recipient = asked.ask.recipient
        if known_about(self._store, recipient).fingerprint not in (b"", asked.ask.fingerprint):
            with contextlib.suppress(ZkcError):  # it may have a new identity, for which the pinned one vouches
                await look_up(ask, self._store, principal, recipient, self._clock.wall(), self._notes)
        return self._judge(party, key, asked)

    def close(self) -> None:
        """Every delivery is told to end, and does so in bounded time."""
        for job in self._jobs.values():
            job.call.end()
            if job.watch is not None:
                job.watch.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _challenge(self, party: machine.Party, key: tuple[str, bytes], message: AskFrom) -> AskReply:
        ask0, asker, _ = machine.read_ask0(party, message)
        if not ask0.recipient:
            lines = [
                ShareLine(each.name, each.note, each.recipients or [asker.name], kind_of(each))
                for each in load_shares(self._home)
                if any(each.may_ask(asker.name, known) for known in self._known_as(asker))
            ]
            return machine.answer_shares(party, message, _fitting(lines))
        waiting = self._open.get(key)
        if waiting is not None and self._clock.monotonic() <= waiting.until:
            if waiting.asked == message.body:
                return waiting.reply  # which was lost
            raise PeerViolation("replay", "something else was asked under this id")
        if key in self._jobs:
            raise PeerViolation("replay", "this was asked before")
        taken = step(machine.SENDER, party, machine.Idle(self._entropy.bytes(_NONCE_BYTES)), message)
        own = [each for each in self._open if each[0] == key[0]]
        if len(own) >= ASKED_OPEN_MAX // 4:
            del self._open[own[0]]  # no asker takes the room of others
        if len(self._open) >= ASKED_OPEN_MAX:
            self._open.popitem(last=False)
        reply: AskReply = taken.effects[0].message
        self._open[key] = _Open(self._clock.monotonic() + NONCE_SECONDS, message.body, taken.state, reply)
        return reply

    def _judge(self, party: machine.Party, key: tuple[str, bytes], asked: machine.Judging) -> AskReply:
        """T3 -> T4; where it may be had, the delivery begins."""
        begun = None
        try:
            begun = self._allowed(asked)
            verdict = machine.Verdict(0, "")
        except ZkcError as error:
            verdict = machine.Verdict(error.code, error.detail)
        self._log.info(
            "asked", asker=asked.ask.asker, recipient=asked.ask.recipient, share=asked.what.share,
            code=verdict.code, detail=verdict.detail,
        )
        self._notes.note("share", asked.ask.asker, asked.ask.recipient, code=verdict.code, detail=verdict.detail)
        taken = step(machine.SENDER, party, asked, verdict)
        if begun is not None:
            job, descriptor = begun
            job.state = taken.state
            self._begin(key, job, descriptor, asked)
        reply: AskReply = taken.effects[0].message
        return reply

    def _allowed(self, asked: machine.Judging) -> tuple[_Job, int]:
        """What is to be sent, and its descriptor: what is below it is looked at in the delivery's own thread."""
        ask, what = asked.ask, asked.what
        self._find_place(ask.asker, ask.recipient)
        share = self._share(what.share, asked, ask.recipient)
        known = known_about(self._store, ask.recipient)
        if known.fingerprint not in (b"", ask.fingerprint):
            raise PolicyRefused("another recipient is pinned here", detail="recipient")
        descriptor, name = open_shared(share, what.path)
        sending = machine.Sending(asked.th, ask.qid, asked.asker)
        return _Job(sending, share, ask.recipient, name, heard=self._clock.monotonic()), descriptor

    def _find_place(self, asker: str, recipient: str) -> None:
        """`PolicyRefused` (``too-many``). What waits for a person takes the place of no other delivery: it may do so
        for long."""
        running = [(each, job) for (each, _), job in self._jobs.items() if not job.over.is_set()]
        pending = [job.recipient for _, job in running if job.pending]
        if (
            len(running) - len(pending) >= ASKED_JOBS_MAX or len(pending) >= ASKED_PENDING_MAX
            or pending.count(recipient) >= ASKED_JOBS_MAX // 2
            or sum(each == asker for each, _ in running) >= ASKED_JOBS_MAX // 2
        ):
            raise PolicyRefused("too many deliveries on request", detail="too-many")

    def _share(self, name: str, asked: machine.Judging, recipient: str) -> Share:
        """Missing and not for this asker: the same."""
        asker = asked.asker
        for share in load_shares(self._home):
            allowed = (share.allows(asker.name, known, recipient) for known in self._known_as(asker))
            if share.name == name and any(allowed):
                return share
        raise PolicyRefused("it is not shared with this asker", detail="share")

    def _known_as(self, asker: VerifiedCard) -> tuple[bytes, ...]:
        """Its fingerprint, and those that vouched for it one after the other: what was shared with them is so with it.
        """
        return asker.fingerprint, *self._store.former(asker.name)

    def _begin(self, key: tuple[str, bytes], job: _Job, descriptor: int, asked: machine.Judging) -> None:
        for old in [old for old, each in self._jobs.items() if each.over.is_set()]:
            if len(self._jobs) < ASKED_OPEN_MAX:
                break
            del self._jobs[old]
        self._jobs[key] = job
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._threads, self._run, loop, job, descriptor, asked)
        running.add_done_callback(lambda ended: self._ended(job, ended))
        job.watch = asyncio.create_task(self._watch(job, asked))

    def _run(
        self, loop: asyncio.AbstractEventLoop, job: _Job, descriptor: int, asked: machine.Judging
    ) -> tuple[bytes, str, int]:
        """In a thread: the receipt, the cipher, and how many bytes there were."""
        ask, what = asked.ask, asked.what
        request = OnRequest(ask.tid, asked.asker.fingerprint, asked.asker.name, asked.hash, ask.fingerprint)

        def told(event: Event) -> None:
            if isinstance(event, Pending):
                job.is_asked = True
            if isinstance(event, Granted):
                job.granted = event
                self._look_again(job, asked)
            if isinstance(event, Progress):
                job.sent = event.bytes

        skipped: list[Skipped] = []
        source, manifest = shared_source(
            Path(job.share.path, what.path), descriptor, job.name, what.note, what.exclude, skipped.append,
            job.call.check,
        )
        with contextlib.closing(source), job.call.bell() as bell:
            if skipped:
                self._log.info("asked-skipped", share=job.share.name, entries=len(skipped))
            job.size = -1 if manifest.size is None else manifest.size
            done = Sending(
                self._home, self._config(), ThreadGranter(self._grant, loop, job.call), ask.recipient, source,
                manifest, Options(), clock=self._clock, entropy=self._entropy, bell=bell, on_event=told,
                asked=request, reports=BusReports(self._bus),
            ).run()
        if not isinstance(done, Delivery):
            raise InternalError("a delivery ended as a dry run")
        return done.receipt.read_bytes(), done.cipher, done.bytes

    async def _watch(self, job: _Job, asked: machine.Judging) -> None:
        """Its right, as long as it is under way: while files are looked for and while a person is asked, too. And
        whether somebody still wants it, as long as a person is asked."""
        while not job.over.is_set():
            await asyncio.sleep(_NEWS_SECONDS)
            self._look_again(job, asked)
            if job.pending and self._clock.monotonic() - job.heard > _UNHEARD_SECONDS:
                job.call.end(Interrupted("who asked for it has gone", detail="asker-gone"))

    def _look_again(self, job: _Job, asked: machine.Judging) -> None:
        """A right that was taken back ends what is under way by it."""
        try:
            is_there = self._share(job.share.name, asked, job.recipient).path == job.share.path
        except ZkcError:
            is_there = False
        if not is_there:
            job.call.end(PolicyRefused("the share was withdrawn", detail="withdrawn"))

    def _ended(self, job: _Job, ended: asyncio.Future[tuple[bytes, str, int]]) -> None:
        error = None if ended.cancelled() else ended.exception()
        reason = None if error is None else job.call.reason
        error = reason or error
        if ended.cancelled():
            job.code, job.detail = 31, "shutdown"
        elif isinstance(error, ZkcError):
            job.code, job.detail = error.code, error.detail
        elif error is not None:
            job.code, job.detail = 1, ""
            self._log.error("defect", exc_info=error)
        else:
            job.receipt, job.cipher, size = ended.result()
            self.delivered["deliveries"] += 1
            self.delivered["bytes"] += size
        if reason is not None:
            self._notes.note("share", job.state.asker.name, job.recipient, code=job.code, detail=job.detail)
        self._log.info("asked-ended", recipient=job.recipient, code=job.code, detail=job.detail)
        job.over.set()
        if job.watch is not None:
            job.watch.cancel()

    async def _more(self, party: machine.Party, key: tuple[str, bytes]) -> AskReply:
        job = self._jobs.get(key)
        if job is None:
            raise Interrupted("nothing of that is under way", detail="unknown-request")
        job.heard = self._clock.monotonic()
        try:
            async with asyncio.timeout(_NEWS_SECONDS):
                await job.over.wait()
        except TimeoutError:
            pass
        reply: AskReply = step(machine.SENDER, party, job.state, job.news()).effects[0].message
        return reply


def _fitting(lines: list[ShareLine]) -> ShareList:
    """As many as go into one answer; where that is tight with the beginning of each note and the first recipient."""
    short = [ShareLine(each.name, each.note[:32], each.recipients[:1], each.kind) for each in lines]
    whole = sum(len(each.note.encode()) + len(each.name) + 8 + 72 * len(each.recipients) for each in lines)
    return ShareList(lines if whole < 16_000 else short[:128])
