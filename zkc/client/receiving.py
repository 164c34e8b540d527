"""The recipient's transfers: from a notification to a thread that receives (Figures 14, 15, 16).

The handshake runs on the daemon's loop; the bytes of each transfer in a thread of their own (`zkc.client.inbox_sink`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog

from zkc.client.control import AskLive
from zkc.client.inbox_sink import InboxSink, deliver
from zkc.client.principal import Principal, known_about, note_alarm, pin_peer
from zkc.client.readers import Reader, Readers
from zkc.config import ClientConfig
from zkc.constants import ID_BYTES, STEP_SECONDS, TRANSFERS_MAX
from zkc.crypto.chunks import rendezvous
from zkc.crypto.primitives import digest
from zkc.env import Clock, Entropy
from zkc.errors import Interrupted, PeerViolation, PolicyRefused, ZkcError
from zkc.logs import Repeats
from zkc.net.addresses import told
from zkc.net.pipe import Bell, Bulk, Incoming
from zkc.net.sockets import DescriptorsTaken, PortsTaken, split_endpoint
from zkc.protocol import transfer_recipient as machine
from zkc.protocol.session import Session
from zkc.protocol.step import Step, erase, step
from zkc.protocol.trust import KeyChanged, judge_peer
from zkc.rules.endpoints import PortRange, parse_listen
from zkc.rules.policy import Asked, Standing, decide, least_size
from zkc.rules.rates import Window
from zkc.stores.files import translated
from zkc.stores.inbox import Inbox
from zkc.stores.keystore import KeyStore
from zkc.wire.codec import decode, encode
from zkc.wire.messages import (
    AnswerBody,
    ConfS,
    DeliverConfirmation,
    DeliverKey,
    DeliverSessionKey,
    Endpoints,
    Key,
    Notify,
    Ok,
    RelayAt,
    Req,
    RequestBody,
    TransferEnd,
    WantRelay,
    WrappedKey,
)

Ask = Callable[[RequestBody], Awaitable[AnswerBody]]
"""A request to the coordinator, and its answer; raises the errors of the contract."""
_XIDS_KEPT: Final = 4096
"""Finished xids that are remembered, so that a replayed request is refused (attack H06)."""
_CLOSED_KEPT: Final = 256
"""Refusals, and receipts given in place of a transfer, that are kept for a sender whose answer was lost."""
_JOIN_SECONDS: Final = 3.0
_TURN_SECONDS: Final = STEP_SECONDS - 5.0
"""How long a transfer waits for a port to become free: the sender hears of it before its own step has run out."""
_TURN_PAUSE: Final = 0.1
_ADDRESSES_SECONDS: Final = 2.0
"""How long this host's addresses are taken for the same: a sender that got one too many tries again for a minute."""
_YOU_LISTEN: Final = Endpoints([], 0, 0, 0, "", b"")
"""What a sender is told that is to be connected to."""
_SENDERS_KEPT: Final = 1024
"""Senders whose requests of the current second are counted, before those that are silent are forgotten."""


@dataclass(slots=True, eq=False)
class _Transfer:
    """One xid: its handshake's state, its sockets, and once agreed its thread."""

    context: machine.Recipient
    state: Any
    notify: Notify
    answers: dict[bytes, AnswerBody] = field(default_factory=dict)
    """By the digest of what was asked: the same again, whose answer was lost, gets the same answer."""
    incoming: Incoming | None = None
    reader: Reader | None = None
    """The process that takes it as a stream, with sockets of its own in place of ours."""
    turn: asyncio.Timeout | None = None
    """Its wait for a port."""
    timer: asyncio.TimerHandle | None = None
    agreed: bool = False
    """Both ends hold the key."""
    bell: Bell | None = None
    """Of its thread."""
    done: asyncio.Future[None] | None = None
    req: Req = field(init=False)

    def __post_init__(self) -> None:
        self.req = machine.read_request(self.notify)


class Receiver:
    """All transfers to one home. Belongs to the daemon's loop."""

    def __init__(
        self, bulk: Bulk, store: KeyStore, inbox: Inbox, config: ClientConfig, clock: Clock, entropy: Entropy
    ) -> None:
        self._bulk = bulk
        self._store = store
        self._inbox = inbox
        self.config = config
        """Replaced as a whole when the configuration is read again."""
        self._clock = clock
        self.readers: Final = Readers(inbox, clock)
        self._entropy = entropy
        self._transfers: dict[bytes, _Transfer] = {}
        self._finished: OrderedDict[bytes, None] = OrderedDict()
        self._closed: OrderedDict[bytes, AnswerBody] = OrderedDict()
        """Answers that ended their handshake, by the digest of what was asked."""
        self._requests: dict[str, Window] = {}
        self._line = asyncio.Lock()
        """Who waits for a port stands in line: first come, first served, and only one asks for it."""
        self._known_addresses: tuple[tuple[tuple[str, ...], str, str], float, list[str]] = ((), "", ""), 0.0, []
        """For whom, until when, which: see `_addresses`."""
        self._threads = ThreadPoolExecutor(TRANSFERS_MAX, thread_name_prefix="zkc-receive")
        self._log = structlog.get_logger("zkc.receiving")
        self._repeats = Repeats(clock.monotonic)
        self.received: Counter[str] = Counter()
        """Deliveries and bytes since the start, for ``zkc status``."""

    async def handle(self, principal: Principal, endpoint: str, ask: Ask, body: RequestBody) -> AnswerBody:
        """One request of the coordinator to ``principal``, whose link leads to ``endpoint``; ``ask`` asks it something.

        One that comes again gets the answer that it got, for as long as its handshake or its transfer lives: the
        channel keeps answers too (`zkc.protocol.calls`), but not as many as there may be transfers at once.
        """
        if isinstance(body, TransferEnd):
            self._end_handshake(body.xid)
            return Ok()
        xid, asked = _xid_of(body), digest(encode(body))
        known = self._transfers.get(xid)
        given = self._closed.get(asked) if known is None else known.answers.get(asked)
        if given is not None:
            return given
        if isinstance(body, Notify):
            answer = await self._notified(principal, endpoint, ask, body)
        else:
            answer = await self._advance(xid, body)
        transfer = self._transfers.get(xid)
        if transfer is not None:
            transfer.answers[asked] = answer
        else:
            self._closed[asked] = answer
            if len(self._closed) > _CLOSED_KEPT:
                self._closed.popitem(last=False)
        return answer

    async def close(self) -> None:
        """End every transfer: senders are told; what was being written stays as partial items."""
        running = [transfer.done for transfer in self._transfers.values() if transfer.done is not None]
        for transfer in list(self._transfers.values()):
            if transfer.bell is not None:
                transfer.bell.ring()
            elif transfer.reader is not None and transfer.agreed:
                transfer.reader.send_away(Interrupted("the daemon here ended", detail="shutdown"))
            else:
                self._end_handshake(transfer.req.xid)
        if running:
            await asyncio.wait(running, timeout=_JOIN_SECONDS)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- handshake --------------------------------------------------------------------------------------------------

    async def _notified(self, principal: Principal, endpoint: str, ask: Ask, message: Notify) -> AnswerBody:
        """X2: verify who sends, judge, bind, answer (Figure 14)."""
        req = machine.read_request(message)
        if req.xid in self._finished or req.xid in self._transfers:
            raise PeerViolation("replay", "this transfer's request has been answered")
        context = machine.Recipient(
            principal.authority, principal.identity, principal.kem_key, principal.card,
            known_about(self._store, req.sender),
        )
        try:
            notified: Step = step(machine.TABLE, context, machine.Idle(), message)
            card = notified.state.sender
            # Once more, now that the key is known: is it pinned under another name?
            judge_peer(card, known_about(self._store, req.sender, card.fingerprint), None)
        except KeyChanged as alarm:
            note_alarm(self._store, req.sender, alarm.seen)
            self._tell("warning", "key-changed", (req.sender,), peer=req.sender, seen=alarm.seen.hex())
            raise
        transfer = _Transfer(context, notified.state, message)
        self._transfers[req.xid] = transfer
        try:
            verdict = await self._judge(transfer, endpoint, ask)
        except BaseException:
            self._end_handshake(req.xid)
            raise
        return self._perform(transfer, step(machine.TABLE, context, transfer.state, verdict))

    async def _judge(
        self, transfer: _Transfer, endpoint: str, ask: Ask
    ) -> machine.Accept | machine.Decline | machine.AlreadyHave:
        sender, req = transfer.state.sender, transfer.req
        await self.readers.settle(sender.fingerprint, req.tid)
        receipt = self._inbox.done(sender.fingerprint, req.tid)
        if receipt is not None:
            return machine.AlreadyHave(receipt)
        rules = self.config.receiving_rules()
        asked = Asked(req.key_source, req.cipher, least_size(req.size_class))
        transfer.reader = self.readers.take(req, sender.fingerprint)
        standing = self._standing(transfer, sender.fingerprint)
        refusal = decide(asked, rules, standing if transfer.reader is None else replace(standing, free_bytes=None))
        if refusal is not None:
            return self._decline(req, refusal.code, detail=refusal.detail)
        if transfer.reader is not None:
            return await self._to_reader(transfer, transfer.reader.ask, endpoint, rules.max_bytes)
        if self.readers.broke_off(sender.fingerprint, req.tid):
            return self._decline(req, Interrupted.code, detail="broken-stream")
        listen = parse_listen(self.config.transfer.listen)
        relay = None
        try:
            if listen is None and not req.can_listen:
                relay = await self._find_relay(transfer, ask)
            incoming = transfer.incoming = await self._bind(transfer, listen, relay)
        except PolicyRefused as error:
            return machine.Decline(error.code, error.detail)
        where = relay or _YOU_LISTEN
        if listen is not None and incoming.listening is not None:
            where = incoming.listening.at(await self._addresses(listen.host, split_endpoint(endpoint)[0]))
        try:
            self._check_wanted(transfer)
        except PeerViolation:
            incoming.close()
            raise
        return machine.Accept(where, incoming.offer_chunk(self.config.transfer.chunk), rules.max_bytes)

    async def _find_relay(self, transfer: _Transfer, ask: Ask) -> Endpoints:
        """Neither end can be connected to: which relay the coordinator gives. `PolicyRefused`."""
        req, rv = transfer.req, self._entropy.bytes(ID_BYTES)
        try:
            found = await ask(WantRelay(req.xid, rendezvous(rv, "data"), rendezvous(rv, "ack")))
        except PolicyRefused as refused:
            self._tell("info", "refused", (req.sender, refused.detail), **_ids_of(req), reason=refused.detail)
            raise
        if not isinstance(found, RelayAt):
            raise PeerViolation("unexpected", type(found).__name__)
        host, port = split_endpoint(found.endpoint)
        return Endpoints([host], port, port, 0, found.name, rv)

    async def _addresses(self, listen_host: str, coordinator_host: str) -> list[str]:
        """Where senders reach this host; looked up again after `_ADDRESSES_SECONDS`."""
        asked, now = (self.config.transfer.advertise, listen_host, coordinator_host), self._clock.monotonic()
        known, until, addresses = self._known_addresses
        if known != asked or now >= until:
            # In a thread: the coordinator's name may have to be looked up.
            addresses = await asyncio.to_thread(told, *asked)
            self._known_addresses = asked, now + _ADDRESSES_SECONDS, addresses
        return addresses

    async def _to_reader(
        self, transfer: _Transfer, ask: AskLive, endpoint: str, max_bytes: int
    ) -> machine.Accept:
        """Straight to a process that waits for it, at its sockets."""
        addresses = await self._addresses(ask.host, split_endpoint(endpoint)[0])
        self._check_wanted(transfer)
        where = Endpoints(addresses, ask.data_port, ask.ack_port, 0, "", b"")
        return machine.Accept(where, ask.chunk, max_bytes, live=True)

    def _decline(self, req: Req, code: int, *, detail: str) -> machine.Decline:
        self._tell("info", "refused", (req.sender, detail), **_ids_of(req), reason=detail)
        return machine.Decline(code, detail)

    def _check_wanted(self, transfer: _Transfer) -> None:
        """`PeerViolation` where a transfer was ended while something was waited for."""
        if self._transfers.get(transfer.req.xid) is not transfer:
            raise PeerViolation("unexpected", "the transfer was ended meanwhile")

    async def _bind(self, transfer: _Transfer, listen: PortRange | None, relay: Endpoints | None) -> Incoming:
        """A thread, and a pair of ports where this end listens; when all are taken, the transfer waits for its turn."""
        req = transfer.req
        is_told = False

        def tell(why: str) -> None:
            nonlocal is_told
            if not is_told:
                is_told = True
                self._tell(
                    "warning", "transfer-waits", (req.sender,), **_ids_of(req), why=why,
                    listen=self.config.transfer.listen, seconds=_TURN_SECONDS,
                )

        if self._line.locked():
            tell("others wait for a port")
        try:
            async with asyncio.timeout(_TURN_SECONDS) as transfer.turn, self._line:
                while True:
                    self._check_wanted(transfer)
                    try:
                        if sum(each.incoming is not None for each in self._transfers.values()) < TRANSFERS_MAX:
                            if relay is not None:
                                return self._bulk.by_relay(relay, req.sender)
                            if listen is None:
                                return self._bulk.dial()
                            return self._bulk.listen(listen.host.strip("[]"), listen.ports or None, req.sender)
                        tell(f"{TRANSFERS_MAX} transfers are under way")
                    except (PortsTaken, DescriptorsTaken) as error:
                        tell(error.message)
                    self._make_room(transfer)
                    # Asked again and again: a port is free some time after its socket was closed, and nothing tells
                    # when.
                    await asyncio.sleep(_TURN_PAUSE)
        except TimeoutError:
            self._check_wanted(transfer)
            why = "no port became free in time"
            self._tell("warning", "refused", (req.sender, "limit"), **_ids_of(req), reason="limit", why=why)
            raise PolicyRefused(why, detail="limit") from None
        finally:
            transfer.turn = None

    def _make_room(self, wanted: _Transfer) -> None:
        """Those of this very delivery have to, whose sender asks for another; else of those whose sender has gone the
        one that is longest away.

        What has come of it stays; its sender makes a new handshake when it is back.
        """
        older = [other.bell for other in self._older(wanted, wanted.state.sender.fingerprint) if other.bell is not None]
        for bell in older:
            bell.ring(_anew(wanted.req.sender))
        if older:
            return
        now = self._clock.monotonic()
        away = [
            (other.incoming.lost_since, other.req.sender, other.bell) for other in self._transfers.values()
            if other.bell is not None and other.incoming is not None and other.incoming.lost_since is not None
        ]
        for since, sender, bell in sorted(away, key=lambda each: each[0])[:1]:
            if since <= now:
                # A sender that is back at this very moment hears what it comes back from.
                bell.ring(Interrupted(f"{sender} is away, and another transfer has its place", detail="shutdown"))

    async def _advance(self, xid: bytes, message: Any) -> AnswerBody:
        """X5, or G1 and G4: the key (Figure 15)."""
        transfer = self._transfers.get(xid)
        if transfer is None:
            raise PeerViolation("unexpected", "no handshake of this transfer")
        answer = self._perform(transfer, step(machine.TABLE, transfer.context, transfer.state, message))
        if transfer.agreed and transfer.reader is not None:
            # CONF leaves once the reader has K, and its door lets the sender in.
            await self._hand_over(transfer, transfer.reader)
        return answer

    def _perform(self, transfer: _Transfer, result: Step) -> AnswerBody:
        transfer.state = result.state
        if isinstance(result.state, machine.Closed):
            self._forget(transfer)
        elif isinstance(result.state, machine.Agreed):
            self._agreed(transfer, result.state.session)
        else:
            self._await_next(transfer)
        (effect,) = result.effects
        answer: AnswerBody = effect.message
        return answer

    def _await_next(self, transfer: _Transfer) -> None:
        if transfer.timer is not None:
            transfer.timer.cancel()
        loop = asyncio.get_running_loop()
        transfer.timer = loop.call_later(STEP_SECONDS, self._end_handshake, transfer.req.xid)

    def _end_handshake(self, xid: bytes) -> None:
        """Give up a handshake that is not agreed: its keys and sockets go."""
        transfer = self._transfers.get(xid)
        if transfer is not None and not transfer.agreed:
            erase(transfer.state)
            self._forget(transfer)

    def _forget(self, transfer: _Transfer) -> None:
        xid = transfer.req.xid
        self._transfers.pop(xid, None)
        self._finished[xid] = None
        if len(self._finished) > _XIDS_KEPT:
            self._finished.popitem(last=False)
        if transfer.turn is not None:
            transfer.turn.reschedule(asyncio.get_running_loop().time())
        if transfer.timer is not None:
            transfer.timer.cancel()
        if transfer.incoming is not None:
            transfer.incoming.close()
        if transfer.reader is not None and not transfer.agreed:
            transfer.reader.release()

    def _tell(self, level: str, event: str, about: tuple[object, ...], **ids: object) -> None:
        """To the log, but no oftener than it can bear: a peer causes it."""
        self._repeats.tell(self._log, level, event, about, **ids)

    def _standing(self, transfer: _Transfer, sender_fp: bytes) -> Standing:
        req, now = transfer.req, self._clock.monotonic()
        if len(self._requests) > _SENDERS_KEPT:
            self._requests = {name: seen for name, seen in self._requests.items() if not seen.is_over(now)}
        seen = self._requests.setdefault(req.sender, Window()).add(now)
        # What this very delivery has left here ends when it is agreed anew. Handshakes of it count: there may be many.
        older = self._older(transfer, sender_fp)
        at_once = sum(
            other.req.sender == req.sender and not (other.incoming is not None and other.incoming.finished)
            for other in self._transfers.values() if other is not transfer and other not in older
        )
        held = 0 if req.fresh else self._inbox.held_bytes(sender_fp, req.tid)
        return Standing(at_once, seen, self._inbox.free_bytes(), held)

    # --- delivery ---------------------------------------------------------------------------------------------------

    def _agreed(self, transfer: _Transfer, session: Session) -> None:
        """Both ends hold the key: open the door, and receive in a thread."""
        pin_peer(self._store, session.peer, self._clock.wall())
        older = self._end_older(transfer, session)
        if transfer.reader is not None:
            transfer.agreed = True
        elif transfer.incoming is not None:
            with translated("receiving"):
                bell = Bell()
            transfer.incoming.admit(session)
            transfer.agreed, transfer.bell = True, bell
            transfer.done = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(self._receive(transfer, session, transfer.incoming, bell, older))
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        else:
            raise PolicyRefused("there is no place for this transfer", detail="limit")
        if transfer.timer is not None:
            # Not before: until here its end is what ends a handshake that goes wrong.
            transfer.timer.cancel()

    def _end_older(self, transfer: _Transfer, session: Session) -> list[asyncio.Future[None]]:
        """The sender has come back with a new handshake: an older one has no sender any more. What to wait for."""
        ending = []
        for other in self._older(transfer, session.peer.fingerprint):
            if other.bell is not None:
                other.bell.ring(_anew(session.req.sender))
                if other.done is not None:
                    ending.append(other.done)
            elif other.reader is not None:
                other.reader.send_away(_anew(session.req.sender))
        return ending

    def _older(self, transfer: _Transfer, sender_fp: bytes) -> list[_Transfer]:
        """Those of the same delivery that were agreed before."""
        return [
            other for other in self._transfers.values()
            if other is not transfer and other.agreed and other.req.tid == transfer.req.tid
            and other.state.session.peer.fingerprint == sender_fp
        ]

    async def _hand_over(self, transfer: _Transfer, reader: Reader) -> None:
        session = transfer.state.session
        watch = asyncio.create_task(self._watch(transfer, reader, session))
        watch.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await self.readers.hand_over(reader, session, transfer.context)

    async def _watch(self, transfer: _Transfer, reader: Reader, session: Session) -> None:
        """Until the reader's end: the place in the books is its own."""
        req = session.req
        log = self._log.bind(**_ids_of(req), tid=req.tid.hex())
        await asyncio.wait([reader.ended])
        session.k.wipe()
        if reader.size is not None:
            self.received["deliveries"] += 1
            self.received["bytes"] += reader.size
            log.info("received", bytes=reader.size, key_source=req.key_source, live=True)
        elif not reader.passed_on:
            self._repeats.tell(
                log, "warning", "not-received", (req.sender, "live"), reason="interrupted", live=True,
                error="the process that took it has gone",
            )
        self._forget(transfer)

    async def _receive(
        self, transfer: _Transfer, session: Session, incoming: Incoming, bell: Bell,
        older: Sequence[asyncio.Future[None]] = (),
    ) -> None:
        req = session.req
        log = self._log.bind(**_ids_of(req), tid=req.tid.hex())
        sink = InboxSink(self._inbox, session, transfer.context, self.config, self._clock, bell)
        try:
            if older:
                # Their partial item is what this one goes on with.
                await asyncio.wait(older, timeout=_JOIN_SECONDS)
            await asyncio.get_running_loop().run_in_executor(
                self._threads, deliver, incoming, session, sink, bell, self.config.transfer.patience
            )
            self.received["deliveries"] += 1
            self.received["bytes"] += sink.size
            log.info("received", bytes=sink.size, key_source=req.key_source, item=sink.item_id)
        except ZkcError as error:
            self._repeats.tell(
                log, "warning", "not-received", (req.sender, error.reason, error.detail), code=error.code,
                reason=error.reason, detail=error.detail, error=error.message,
            )
        except Exception:
            log.exception("defect")
        finally:
            session.k.wipe()
            bell.close()
            self._forget(transfer)
            if transfer.done is not None and not transfer.done.done():
                transfer.done.set_result(None)


def _anew(sender: str) -> Interrupted:
    """What ends a transfer in whose place another one has been made: nobody has to come back from it."""
    return Interrupted(f"{sender} has begun this delivery anew", detail="ended")


def _xid_of(body: RequestBody) -> bytes:
    """Which handshake a request belongs to. `PeerViolation` for what is no step of one."""
    xid: bytes
    match body:
        case Notify():
            xid = machine.read_request(body).xid
        case DeliverKey():
            xid = decode(body.key, Key).xid
        case DeliverSessionKey():
            xid = decode(body.wrapped, WrappedKey).xid
        case DeliverConfirmation():
            xid = decode(body.confirmation, ConfS).xid
        case _:
            raise PeerViolation("unexpected", type(body).__name__)
    return xid


def _ids_of(req: Req) -> dict[str, str]:
    """What tells a transfer apart in the log."""
    return {"sender": req.sender, "recipient": req.recipient, "xid": req.xid.hex()}
