"""The registered clients that are connected: their channels, who is online, and what is asked of them.

A client has one session for each of its processes: one daemon, any number of commands. Identity is ZAP's User-Id and
the channel, never a field and never the routing id; answers go where the newest valid record came from.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from zkc.constants import (
    CHANNELS_PER_CLIENT_MAX,
    CONTROL_MESSAGE_MAX,
    GOODBYE_SECONDS,
    HEARTBEAT_SECONDS,
    HELLOS_PER_SECOND_MAX,
    ID_BYTES,
    OFFLINE_SECONDS,
    REQUEST_SECONDS,
    SESSION_LINGER_SECONDS,
    UNCONFIRMED_CHANNELS_MAX,
)
from zkc.coordinator.certificates import certificate_of
from zkc.coordinator.core import Core, Wire
from zkc.coordinator.sessions import Client, Hello, OnReply, Session, Silence
from zkc.crypto.cards import verify_card
from zkc.crypto.primitives import digest
from zkc.crypto.suites import read_private
from zkc.errors import PeerViolation
from zkc.ids import PersonState
from zkc.net.loopsocket import Sent
from zkc.protocol.calls import Asked, Expired, Outgoing, Replied
from zkc.protocol.channel import TABLE, VERSIONS, Channel, Host, PeerKeys, Unheard
from zkc.protocol.step import Step, step
from zkc.protocol.transfer_coordinator import Party
from zkc.stores.keydb import ClientRow
from zkc.wire.codec import decode, encode
from zkc.wire.frames import ControlKind, control_frame, split_record
from zkc.wire.messages import (
    AnswerBody,
    AnswerInfo,
    Card,
    CardBody,
    ChannelMessage,
    HelloInfo,
    Replaced,
    RequestBody,
    Revoked,
)

OnRequest = Callable[["Session", Asked], None]

REASON_MAX: Final = 512
"""Characters of a reason that travels."""
_SEEN_FLUSH_SECONDS: Final = 5.0
SEEN_FLUSH_ROWS: Final = 128
"""Written down in one tick: 20 ms. When ten thousand go at once, the coordinator serves the others meanwhile."""
_SWEEP_SECONDS: Final = 0.5
_EXPIRE_SECONDS: Final = 600.0


class Clients:
    """All of them, and the way to ask one something."""

    def __init__(self, core: Core, on_request: OnRequest, on_first_channel: Callable[[bytes], None]) -> None:
        self._core = core
        self._on_request = on_request
        self._on_first_channel = on_first_channel
        self._by_uid: dict[bytes, Client] = {}
        self._by_name: dict[str, Client] = {}
        self._by_fd: dict[int, set[Session]] = {}
        self._asking: set[Session] = set()
        self._seen: dict[bytes, float] = {}
        self._flush_at = self._sweep_at = self._expire_at = 0.0

    # --- who is there -----------------------------------------------------------------------------------------------

    @property
    def online(self) -> list[bytes]:
        """The uids of the clients that are online."""
        return [client.uid for client in self._by_uid.values() if client.online]

    def people(self) -> Counter[PersonState]:
        """What the daemons of the clients that are online say of their persons, and how many do."""
        return Counter(
            client.daemon.person for client in self._by_uid.values() if client.online and client.daemon is not None
        )

    def is_online(self, uid: bytes) -> bool:
        client = self._by_uid.get(uid)
        return client is not None and client.online

    def person(self, uid: bytes) -> tuple[PersonState, int]:
        """What the daemon of that client says of its person, and how many seconds ago it was so."""
        client = self._by_uid.get(uid)
        if client is None or client.daemon is None or not client.online or client.daemon.person == "unknown":
            return "unknown", 0
        return client.daemon.person, max(int(self._core.clock.monotonic() - client.daemon.person_at), 0)

    def last_seen(self, row: ClientRow) -> float:
        """When that client was last seen, seconds since 1970; its row may not have heard of it yet."""
        if self.is_online(row.uid):
            return self._core.clock.wall()
        return self._seen.get(row.uid, row.last_seen)

    def named(self, name: str) -> Client | None:
        """The client of that name if anything of it is open here."""
        return self._by_name.get(name)

    # --- frames -----------------------------------------------------------------------------------------------------

    def on_hello(self, wire: Wire, uid: bytes, body: bytes) -> None:
        """C1 of the client that ZAP says ``uid`` is. A replayed one costs two seals and changes nothing."""
        core, now = self._core, self._core.clock.monotonic()
        client = self._load(uid)
        if client is None:
            core.count("channel.unregistered")
            core.hang_up(wire.fd, wire.inode)
            return
        if client.hellos.add(now) >= HELLOS_PER_SECOND_MAX:
            core.violated("channel", PeerViolation("limit", "too many greetings"), name=client.name)
            return
        try:
            keys, agreed = self._greeted(client, decode(body, ChannelMessage), now)
        except PeerViolation as violation:
            core.violated("channel", violation, name=client.name)
            return
        core.count("channel.hellos")
        hello: HelloInfo = agreed.state.hello
        if not set(hello.versions).isdisjoint(VERSIONS):
            channel: Channel = agreed.state.channel
            client.unconfirmed[channel.tag] = Hello(channel, hello, now, keys)
            if len(client.unconfirmed) > UNCONFIRMED_CHANNELS_MAX:
                client.unconfirmed.popitem(last=False)
        for effect in agreed.effects:
            core.send(control_frame(ControlKind.CHANNEL, encode(effect.message)), wire.routing_id)

    def _greeted(self, client: Client, message: ChannelMessage, now: float) -> tuple[PeerKeys, Step]:
        """C1 -> S1, and by which keys: a client that has not heard of its new ones greets with the former."""
        core, identity = self._core, self._core.identity
        general = (identity.general_key, *identity.former_general)
        limits = AnswerInfo(
            0, CONTROL_MESSAGE_MAX, int(HEARTBEAT_SECONDS * 1000), int(core.clock.wall()), identity.fingerprint
        )
        try:
            return client.keys, step(TABLE, Host(client.keys, limits, now, general), Unheard(), message)
        except PeerViolation:
            if client.former_keys is None:
                raise
        return client.former_keys, step(TABLE, Host(client.former_keys, limits, now, general), Unheard(), message)

    def on_record(self, wire: Wire, uid: bytes, frame: bytes) -> None:
        """A record of the client ``uid``; its channel is looked for among that client's alone."""
        core = self._core
        client = self._by_uid.get(uid)
        if client is None:
            core.count("record.no-channel")
            return
        tag = b""
        try:
            tag = split_record(frame)[1]
            session, hello = client.tags.get(tag), client.unconfirmed.get(tag)
            channel = session.channel if session is not None else hello.channel if hello is not None else None
            if channel is None:
                core.count("record.no-channel")
                return
            plaintext = channel.open(frame)
            if session is None and hello is not None:
                session = self._confirm(client, hello)
            if session is None:
                raise AssertionError("a channel of nobody")
            self._heard(session, wire)
            received = session.calls.receive(plaintext, None)
        except PeerViolation as violation:
            core.violated("record", violation, name=client.name)
            if violation.detail == "replay" and (replayed := client.tags.get(tag)) is not None:
                self._end(replayed)
            return
        core.count("records")
        self._on_call(session, received)

    def _on_call(self, session: Session, received: Asked | Replied | Outgoing[None] | None) -> None:
        match received:
            case Asked() if not session.ending:
                self._on_request(session, received)
            case Replied():
                on_reply = session.waiting.pop(received.id, None)
                if not session.waiting:
                    self._asking.discard(session)
                if on_reply is not None:
                    on_reply(received.body)
            case Outgoing():
                self._transmit(session, received.plaintext)
            case _:
                pass

    # --- asking and answering ---------------------------------------------------------------------------------------

    def ask(self, session: Session, body: RequestBody, within: float, on_reply: OnReply) -> None:
        """A request to the client, repeated until it is answered; ``on_reply`` is called once, after this has returned.

        After ``within`` seconds, or when the client goes away, it gets a `Silence`.
        """
        if session.ended or session.wire is None:
            asyncio.get_running_loop().call_soon(on_reply, "offline")
            return
        now = self._core.clock.monotonic()
        call = self._core.entropy.bytes(ID_BYTES)
        session.waiting[call] = on_reply
        self._asking.add(session)
        self._transmit(session, session.calls.request(call, body, now, now + within))

    def tell(self, session: Session, body: RequestBody) -> None:
        """A request whose answer matters to nobody."""
        self.ask(session, body, REQUEST_SECONDS, lambda _: None)

    def answer(self, session: Session, call: bytes, body: AnswerBody) -> None:
        """Our answer to the client's request ``call``, kept for when it asks again."""
        self._transmit(session, session.calls.answer(call, body).plaintext)

    def fail(self, session: Session, call: bytes, code: int, detail: str) -> None:
        """Our refusal of the client's request ``call``."""
        self._core.count(f"refused.{code}")
        self._transmit(session, session.calls.fail(call, code, detail).plaintext)

    def _transmit(self, session: Session, plaintext: bytes) -> None:
        """Seals and sends, if the client is there; what is lost is asked for again."""
        if session.wire is None or session.ended:
            return
        match self._core.send(session.channel.seal(plaintext), session.wire.routing_id):
            case Sent.GONE:
                # Later: whoever is sending is in the middle of something.
                asyncio.get_running_loop().call_soon(self._lost, session, session.wire)
            case Sent.FULL:
                self._core.count("send.full")
            case Sent.OK:
                pass

    # --- channels come and go ---------------------------------------------------------------------------------------

    def _confirm(self, client: Client, hello: Hello) -> Session:
        """C2: the first record of a channel has opened."""
        info, channel = hello.info, hello.channel
        session = client.sessions.get(info.instance)
        if session is not None and session.role == info.role and not session.ending:
            client.tags.pop(session.channel.tag, None)
            session.channel = channel
        else:
            if session is not None:
                self._end(session)
            self._make_room(client)
            session = Session(client, info.instance, info.role, channel, None, self._core.clock.monotonic())
            client.sessions[info.instance] = session
            if info.role == "daemon":
                self._replace_daemon(client, session)
        client.tags[channel.tag] = session
        # Last: a client without sessions and greetings is forgotten, and the old session may have been its only one.
        del client.unconfirmed[channel.tag]
        self._core.count("channel.confirmed")
        if client.former_keys is not None and hello.keys is client.keys:
            self._forget_former(client, session)
        self._on_first_channel(client.uid)
        return session

    def _make_room(self, client: Client) -> None:
        """The process of this client that has been silent for longest gives way."""
        if len(client.sessions) >= CHANNELS_PER_CLIENT_MAX:
            self._end(min((s for s in client.sessions.values() if s is not client.daemon), key=lambda s: s.heard))

    def _replace_daemon(self, client: Client, session: Session) -> None:
        """A second daemon ends the first, and says so to it (its person may have two homes with one registration)."""
        old, client.daemon = client.daemon, session
        if old is None:
            return
        if old.wire is None:
            self._end(old)
            return
        self._core.log.warning("daemon-replaced", name=client.name, uid=client.uid.hex())
        self._silence(old, "offline")
        self.ask(old, Replaced(), GOODBYE_SECONDS, lambda _: self._end(old))
        old.ending = True

    def _heard(self, session: Session, wire: Wire) -> None:
        """A valid record: from now on answers go where it came from."""
        session.heard = self._core.clock.monotonic()
        if session.wire == wire:
            return
        came = session.wire is None
        self._set_wire(session, wire)
        if came and session is session.client.daemon:
            self._core.log.info("online", name=session.client.name, uid=session.client.uid.hex())

    def _set_wire(self, session: Session, wire: Wire | None) -> None:
        if session.wire is not None and (there := self._by_fd.get(session.wire.fd)) is not None:
            there.discard(session)
            if not there:
                del self._by_fd[session.wire.fd]
        session.wire = wire
        if wire is not None:
            self._by_fd.setdefault(wire.fd, set()).add(session)

    def _lost(self, session: Session, wire: Wire) -> None:
        """Its connection is gone: what it was asked has failed; the channel is kept for when it comes back."""
        if session.ended or session.wire != wire:
            return
        self._set_wire(session, None)
        client = session.client
        if session is client.daemon:
            self._seen[client.uid] = self._core.clock.wall()
            self._core.log.info("offline", name=client.name, uid=client.uid.hex())
        self._silence(session, "offline")

    def _silence(self, session: Session, why: Silence) -> None:
        """Nothing that this session was asked will be answered."""
        self._asking.discard(session)
        session.calls.abandon()
        waiting, session.waiting = session.waiting, {}
        for on_reply in waiting.values():
            on_reply(why)

    def _end(self, session: Session) -> None:
        """The session and its channel are over; records of it are nothing any more."""
        if session.ended:
            return
        client = session.client
        if session.wire is not None:
            self._lost(session, session.wire)
        session.ended = True
        self._silence(session, "offline")
        client.tags.pop(session.channel.tag, None)
        if client.sessions.get(session.instance) is session:
            del client.sessions[session.instance]
        if client.daemon is session:
            client.daemon = None
        self._forget_if_idle(client)

    def _forget_if_idle(self, client: Client) -> None:
        if not client.sessions and not client.unconfirmed and not client.handshakes:
            self._by_uid.pop(client.uid, None)
            if self._by_name.get(client.name) is client:
                del self._by_name[client.name]

    def _load(self, uid: bytes) -> Client | None:
        client = self._by_uid.get(uid)
        if client is not None:
            return None if client.revoked else client
        row = self._core.db.client(uid)
        if row is None or row.revoked is not None:
            return None
        former = self._core.db.former_keys(uid, self._core.clock.wall())
        if former is None:
            client = Client(row, *self._keys_of(row, None))
        else:
            former_keys, former_party = self._keys_of(
                replace(
                    row, card=former.card, certificate=former.certificate,
                    perm_server_private=former.perm_server_private,
                ), None,
            )
            succeeded = verify_card(former.card, self._core.identity.suite).fingerprint != row.fingerprint
            client = Client(row, *self._keys_of(row, former_party), former_keys, succeeded)
        client.certified_by = self._core.identity.epoch
        self._by_uid[uid] = self._by_name[row.name] = client
        return client

    def _keys_of(self, row: ClientRow, former: Party | None) -> tuple[PeerKeys, Party]:
        suite = self._core.identity.suite
        # Verified before it was stored, and the row's MAC says that it is what was stored.
        body = decode(row.card, Card).body
        kem_key = suite.read_public(decode(body, CardBody).kem_key)
        return (
            PeerKeys(suite, row.uid, read_private(row.perm_server_private), kem_key),
            Party(row.name, row.card, certificate_of(self._core, row), kem_key, digest(body), former),
        )

    # --- the coordinator's own identity -----------------------------------------------------------------------------

    def party(self, client: Client) -> Party:
        """As a handshake that begins shows it to the other end, certified by the identity of now."""
        core = self._core
        if client.certified_by != core.identity.epoch:
            client.certified_by = core.identity.epoch
            client.row = replace(client.row, certificate=certificate_of(core, client.row))
            # One of before its keys rotated is not certified again: its client asks for the present one.
            client.party = replace(client.party, certificate=client.row.certificate, former=None)
        return client.party

    def tell_all(self, body: RequestBody) -> None:
        """Everybody who is there, as `tell`."""
        for client in list(self._by_uid.values()):
            for session in list(client.sessions.values()):
                self.tell(session, body)

    # --- new keys ---------------------------------------------------------------------------------------------------

    def rotated(self, client: Client, row: ClientRow) -> None:
        """The key database has new keys of this client. Its channels go on, and so do its handshakes; what it greets
        with next is of either, until a channel under the new ones stands."""
        if row.card_hash != client.row.card_hash:
            client.former_keys = client.keys
            client.keys, client.party = self._keys_of(row, replace(client.party, former=None))
            client.succeeded |= row.fingerprint != client.row.fingerprint
        client.row = row

    def _forget_former(self, client: Client, under: Session | None = None) -> None:
        """The session ``under`` has the new keys, or their time is over. Where the identity is another one too, the
        former keys may be in wrong hands: what else is open was opened with them, and ends."""
        self._core.db.forget_former(client.uid)
        if client.former_keys is not None:
            client.former_keys.perm_server.wipe()
            client.former_keys = None
        client.party = replace(client.party, former=None)
        for tag in [tag for tag, hello in client.unconfirmed.items() if hello.keys is not client.keys]:
            del client.unconfirmed[tag]
        others = [session for session in client.sessions.values() if session is not under] if client.succeeded else []
        client.succeeded = False
        for session in others:
            wire = session.wire
            self._end(session)
            if wire is not None:
                self._core.hang_up(wire.fd, wire.inode)

    def _expire_former(self) -> None:
        for uid in self._core.db.expire_former(self._core.clock.wall()):
            if (client := self._by_uid.get(uid)) is not None:
                self._forget_former(client)

    # --- what ends them ---------------------------------------------------------------------------------------------

    def goodbye(self, session: Session) -> None:
        """The process ends by itself: offline at once. What it asks again is still answered for a moment."""
        session.ending = True
        wire = session.wire
        if wire is not None and session is session.client.daemon:
            session.client.daemon = None
            self._seen[session.client.uid] = self._core.clock.wall()
            self._core.log.info("offline", name=session.client.name, uid=session.client.uid.hex(), goodbye=True)
        self._silence(session, "offline")
        asyncio.get_running_loop().call_later(GOODBYE_SECONDS, self._end, session)

    def revoke(self, uid: bytes, reason: str) -> None:
        """The registration has ended: its processes are told, then their channels and connections are closed."""
        client = self._by_uid.get(uid)
        if client is None:
            return
        client.revoked = True
        client.unconfirmed.clear()
        for session in list(client.sessions.values()):
            wire = session.wire
            if wire is None:
                self._end(session)
                continue
            self._silence(session, "offline")
            session.ending = True

            def over(_: object, session: Session = session, wire: Wire = wire) -> None:
                self._end(session)
                self._core.hang_up(wire.fd, wire.inode)

            self.ask(session, Revoked(reason[:REASON_MAX]), GOODBYE_SECONDS, over)
        client.daemon = None
        if self._by_name.get(client.name) is client:
            del self._by_name[client.name]
        # Until its sessions end, records of it are still opened: they may answer `Revoked`.
        self._forget_if_idle(client)

    def look(self, fd: int, inode: int) -> None:
        """A connection with descriptor ``fd`` has ended; ``inode`` is behind it now. Its sessions have lost it."""
        for session in list(self._by_fd.get(fd, ())):
            wire = session.wire
            if wire is not None and wire.inode != inode:
                self._lost(session, wire)

    def tick(self, now: float) -> None:
        """Repeats what is due, and ends what has been silent for too long."""
        for session in list(self._asking):
            for due in session.calls.tick(now):
                match due:
                    case Expired():
                        on_reply = session.waiting.pop(due.id, None)
                        if on_reply is not None:
                            on_reply("expired")
                    case Outgoing():
                        self._transmit(session, due.plaintext)
            if not session.waiting:
                self._asking.discard(session)
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_SECONDS
            self._sweep(now)
        if now >= self._expire_at:
            self._expire_at = now + _EXPIRE_SECONDS
            self._expire_former()
        if now >= self._flush_at:
            self._flush_at = now + _SEEN_FLUSH_SECONDS
            self._flush(SEEN_FLUSH_ROWS)
            if self._seen:
                self._flush_at = now

    def _sweep(self, now: float) -> None:
        for client in list(self._by_uid.values()):
            while client.unconfirmed and next(iter(client.unconfirmed.values())).since + REQUEST_SECONDS < now:
                client.unconfirmed.popitem(last=False)
            for session in list(client.sessions.values()):
                if session.role == "daemon" and session.wire is not None and now - session.heard > OFFLINE_SECONDS:
                    self._lost(session, session.wire)
                if session.wire is None and now - session.heard > SESSION_LINGER_SECONDS:
                    self._end(session)
            self._forget_if_idle(client)

    def _flush(self, most: int) -> None:
        """Writes down when clients were last seen, ``most`` of them."""
        if self._seen:
            some = dict(itertools.islice(self._seen.items(), most))
            self._core.db.touch_all(some)
            for uid in some:
                del self._seen[uid]

    def close(self) -> None:
        """Everybody online is last seen now."""
        wall = self._core.clock.wall()
        self._seen |= dict.fromkeys(self.online, wall)
        self._flush(len(self._seen))
