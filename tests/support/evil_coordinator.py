"""A coordinator that holds the true keys and lies.

``python -m tests.support.evil_coordinator --home DIR --control PATH``: the engine is the real one; between it and the
clients stands a `Lie`, through whose hands every message of a registration, a channel's handshake and a transfer
passes: it may pass it on, alter it, hold it back, exchange it for another, or answer it in somebody's place. Tests say
over the control socket (a JSON object a line, one answer each; see `EvilCoordinator`) which lie is told, and ask what
was seen.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgspec
from blake3 import blake3

from tests.support.key_log import ManyFaces
from zkc import logs
from zkc.client.principal import Principal, load_main
from zkc.constants import CARD_SECONDS, CHUNK, STEP_SECONDS
from zkc.coordinator import engine as engine_module
from zkc.coordinator import services as services_module
from zkc.coordinator.clients import Clients, OnReply, Session
from zkc.coordinator.core import Core, Wire
from zkc.coordinator.engine import Engine, Ready, Settings
from zkc.coordinator.identity import CoordinatorIdentity
from zkc.coordinator.registrations import Registrations
from zkc.crypto.cards import certify, make_card, verify_card
from zkc.crypto.receipts import make_receipt
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import kem_encapsulate
from zkc.crypto.transcript import Transcript
from zkc.errors import ZkcError
from zkc.net.loopsocket import Sent
from zkc.net.pipe.bell import Bell
from zkc.net.pipe.recipient import Bulk, Incoming
from zkc.protocol import transfer_recipient as recipient
from zkc.protocol import transfer_sender as sender
from zkc.protocol.delivery_recipient import receipt_body
from zkc.protocol.session import Session as Agreement
from zkc.protocol.step import step
from zkc.protocol.trust import Authority, Known
from zkc.stores.home import Home
from zkc.stores.keydb import KeyDb
from zkc.stores.keystore import KeyStore
from zkc.wire import messages
from zkc.wire.codec import decode, encode
from zkc.wire.frames import ControlKind, control_frame, split_control
from zkc.wire.messages import (
    ChannelMessage,
    Conf,
    CoordinatorNow,
    CoordinatorRenewed,
    DeliverKey,
    Endpoints,
    Failure,
    Key,
    Manifest,
    Notify,
    Ok,
    PeerCard,
    RegMessage,
    TransferConfirm,
    TransferGrant,
    TransferResponse,
)

LOOPBACK: Final = "127.0.0.1"


@dataclass
class Mail:
    """One message of the coordinator to a client, before it leaves."""

    to: str
    body: Any
    go: Callable[[Any], None]
    """Send it, or something else in its place; may be called at any time, and again."""
    reply: Callable[[Any], None] | None = None
    """For a request: the client's answer, said by somebody else."""

    @property
    def kind(self) -> str:
        return type(self.body).__name__


# --- the lies -----------------------------------------------------------------------------------------------------


class Lie:
    """The truth: everything passes as it came."""

    def __init__(self, evil: Evil) -> None:
        self.evil = evil

    def hold(self, mail: Mail) -> None:
        mail.go(mail.body)

    def heard(self, kind: str) -> None:
        """A newcomer's message of that type came, and nothing has been done about it yet."""

    def report(self) -> dict[str, Any]:
        """What came of it, for the test."""
        return {}

    def close(self) -> None:
        """Nothing of it goes on."""


class Alter(Lie):
    """Changes messages of one type: ``message`` (and ``to``) say which, ``fields`` what stands in them.

    A field's value is ``{"hex": …}``, ``{"flip": [place, mask]}`` (a place below 0 counts from the end),
    ``{"from": [type, field]}`` (of the newest message of that type that passed) or ``{"inner": [grammar, fields]}`` for
    the fields of a message inside; ``as``: the type that the message is made into.
    """

    def __init__(self, evil: Evil, message: str, fields: Mapping[str, Any], to: str = "", **more: str) -> None:
        super().__init__(evil)
        self.message, self.fields, self.to = message, fields, to
        self.made_into = more.get("as", "")
        self.altered = 0

    def hold(self, mail: Mail) -> None:
        if mail.kind != self.message or (self.to and mail.to != self.to):
            mail.go(mail.body)
            return
        self.altered += 1
        if self.made_into:
            kind = getattr(messages, self.made_into)
            mail.go(kind(**{name: self._value(b"", value) for name, value in self.fields.items()}))
        else:
            mail.go(self._changed(mail.body, self.fields))

    def report(self) -> dict[str, Any]:
        return {"altered": self.altered}

    def _changed(self, message: Any, fields: Mapping[str, Any]) -> Any:
        return msgspec.structs.replace(
            message, **{name: self._value(getattr(message, name), value) for name, value in fields.items()}
        )

    def _value(self, old: Any, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((how, what),) = value.items()
        if how == "hex":
            return bytes.fromhex(what)
        if how == "from":
            return getattr(self.evil.newest(what[0]), what[1])
        if how == "inner":
            return encode(self._changed(decode(old, getattr(messages, what[0])), what[1]))
        place, mask = what
        damaged = bytearray(old)
        damaged[place] ^= mask
        return bytes(damaged)


class Swap(Lie):
    """Holds the first message of type ``message`` until there is a second, and gives each to the other's receiver.

    ``rewrite``: with the transfer id that the receiver expects written into it.
    """

    def __init__(self, evil: Evil, message: str, field: str = "", grammar: str = "", *, rewrite: bool = False) -> None:
        super().__init__(evil)
        self.message, self.field, self.grammar, self.rewrite = message, field, grammar, rewrite
        self.held: list[Mail] = []
        self.swapped = 0

    def hold(self, mail: Mail) -> None:
        if mail.kind != self.message:
            mail.go(mail.body)
            return
        self.held.append(mail)
        if len(self.held) == 2:
            first, second = self.held
            self.held = []
            self.swapped += 1
            first.go(self._for(first, second.body))
            second.go(self._for(second, first.body))

    def report(self) -> dict[str, Any]:
        return {"swapped": self.swapped, "held": len(self.held)}

    def _for(self, mail: Mail, body: Any) -> Any:
        if not self.rewrite:
            return body
        grammar = getattr(messages, self.grammar)
        expected = decode(getattr(mail.body, self.field), grammar).xid
        inner = msgspec.structs.replace(decode(getattr(body, self.field), grammar), xid=expected)
        return msgspec.structs.replace(body, **{self.field: encode(inner)})


class Double(Lie):
    """Every message goes out twice, requests under a new id; what the second one is answered is kept."""

    def __init__(self, evil: Evil) -> None:
        super().__init__(evil)
        self.second: list[list[str]] = []

    def hold(self, mail: Mail) -> None:
        mail.go(mail.body)
        if mail.reply is None:
            mail.go(mail.body)
            return
        answer = asyncio.ensure_future(self.evil.ask(mail.to, mail.body))
        answer.add_done_callback(lambda done: self.second.append([mail.kind, *told(done.result())]))

    def report(self) -> dict[str, Any]:
        return {"second": self.second}


class Garble(Lie):
    """Before each message of type ``message`` go an earlier one of that type, if there is one, and copies of the
    message itself: each byte of each field in steps of ``step``, with a bit turned over."""

    def __init__(self, evil: Evil, message: str, step: int = 1) -> None:
        super().__init__(evil)
        self.message, self.step = message, step
        self.garbled = 0

    def hold(self, mail: Mail) -> None:
        if mail.kind == self.message:
            for other in (*self._earlier(mail.body), *self._damaged(mail.body)):
                self.garbled += 1
                mail.go(other)
        mail.go(mail.body)

    def report(self) -> dict[str, Any]:
        return {"garbled": self.garbled}

    def _earlier(self, true: Any) -> list[Any]:
        return [body for _, body in self.evil.records if type(body) is type(true) and body is not true][-1:]

    def _damaged(self, true: Any) -> Iterator[Any]:
        for name in true.__struct_fields__:
            data = getattr(true, name)
            for place in range(0, len(data), self.step):
                damaged = bytearray(data)
                damaged[place] ^= 1 << place % 8
                yield msgspec.structs.replace(true, **{name: bytes(damaged)})


class Stutter(Lie):
    """Every record goes out twice, byte for byte; the truth in all else."""


class Replace(Lie):
    """In place of each message of type ``message`` goes the recorded one with number ``record``."""

    def __init__(self, evil: Evil, message: str, record: int) -> None:
        super().__init__(evil)
        self.message, self.record = message, record
        self.replaced = 0

    def hold(self, mail: Mail) -> None:
        if mail.kind == self.message:
            self.replaced += 1
            mail.go(self.evil.records[self.record][1])
        else:
            mail.go(mail.body)

    def report(self) -> dict[str, Any]:
        return {"replaced": self.replaced}


class Withhold(Lie):
    """Messages of type ``message`` go nowhere."""

    def __init__(self, evil: Evil, message: str) -> None:
        super().__init__(evil)
        self.message = message
        self.withheld = 0

    def hold(self, mail: Mail) -> None:
        if mail.kind == self.message:
            self.withheld += 1
        else:
            mail.go(mail.body)

    def report(self) -> dict[str, Any]:
        return {"withheld": self.withheld}


class Die(Lie):
    """kill -9: when the first message of type ``heard`` has come, or before the first of type ``unsent`` leaves."""

    def __init__(self, evil: Evil, heard: str = "", unsent: str = "") -> None:
        super().__init__(evil)
        self.when = heard
        self.unsent = unsent

    def heard(self, kind: str) -> None:
        if kind == self.when:
            os.kill(os.getpid(), signal.SIGKILL)

    def hold(self, mail: Mail) -> None:
        if mail.kind == self.unsent:
            os.kill(os.getpid(), signal.SIGKILL)
        mail.go(mail.body)


class ConfirmForOthers(Lie):
    """The key never reaches the recipient; its confirmation is made up."""

    def __init__(self, evil: Evil) -> None:
        super().__init__(evil)
        self.forged = 0

    def hold(self, mail: Mail) -> None:
        if isinstance(mail.body, DeliverKey) and mail.reply is not None:
            self.forged += 1
            key: Key = decode(mail.body.key, Key)
            mail.reply(TransferConfirm(encode(Conf(key.xid, os.urandom(32)))))
        else:
            mail.go(mail.body)

    def report(self) -> dict[str, Any]:
        return {"forged": self.forged}


class OwnKey(Lie):
    """In place of the sender's key the recipient gets one that the coordinator made and therefore knows."""

    def __init__(self, evil: Evil) -> None:
        super().__init__(evil)
        self.answers: list[list[Any]] = []

    def hold(self, mail: Mail) -> None:
        if not isinstance(mail.body, DeliverKey) or mail.reply is None:
            mail.go(mail.body)
            return
        reply = mail.reply

        def answered(done: asyncio.Future[Any]) -> None:
            self.answers.append(told(done.result()))
            reply(done.result())

        asyncio.ensure_future(self.evil.ask(mail.to, self._made())).add_done_callback(answered)

    def report(self) -> dict[str, Any]:
        return {"answers": self.answers}

    def _made(self) -> DeliverKey:
        """All right but for the signature, which is somebody's."""
        suite, notify, grant = self.evil.identity.suite, self.evil.newest("Notify"), self.evil.newest("TransferGrant")
        resp: messages.Resp = decode(grant.response, messages.Resp)
        th = Transcript.start("xfer", suite.name).absorb(
            notify.request, notify.signature, grant.response, grant.signature
        )
        _, ct1 = kem_encapsulate(verify_card(grant.card, suite).kem_key, "xfer-perm", th.value)
        _, ct2 = kem_encapsulate(suite.read_one_time(resp.recipient_one_time_key), "xfer-eph", th.value)
        key = encode(Key(resp.xid, ct1, ct2, b""))
        return DeliverKey(key, IdentityKey.from_seed(os.urandom(64)).sign("xfer-key", th.absorb(key).value))


@dataclass
class Persona:
    """Somebody whom the coordinator plays: keys, and a card that it certifies itself."""

    identity: IdentityKey
    kem_key: Any
    card: bytes
    certificate: bytes

    @classmethod
    def make(cls, evil: Evil, name: str, home: str = "", on_card: str = "") -> Persona:
        """With the keys of the client in ``home`` (who plays along), else with new ones; its card says ``on_card``."""
        authority = evil.identity
        if home:
            principal = principal_in(Path(home))
            identity, kem_key = principal.identity, principal.kem_key
        else:
            identity, kem_key = IdentityKey.from_seed(os.urandom(64)), authority.suite.generate()
        card = make_card(
            name=on_card or name, kind="computer", uid=os.urandom(16), identity=identity, kem_key=kem_key.public,
            epoch=1, not_after=int(time.time()) + CARD_SECONDS,
        )
        verified = verify_card(card, authority.suite)
        certificate = certify(authority.signing, on_card or name, verified.body.uid, verified.hash, verified.body.epoch)
        return cls(identity, kem_key, card, certificate)


class Impersonate(Lie):
    """The coordinator answers in the place of the recipient ``name``, and takes the data if it gets that far.

    ``logged``: with a card that it has put into its key log, and proves to be there.
    """

    def __init__(
        self, evil: Evil, name: str, home: str = "", on_card: str = "", *, logged: bool = False
    ) -> None:
        super().__init__(evil)
        self.name = name
        self.persona = Persona.make(evil, name, home, on_card)
        if logged:
            self._log_card()
        self.bulk = Bulk()
        self.talks: dict[bytes, tuple[Any, Any, Incoming]] = {}
        self.seen: Counter[str] = Counter()
        self.stolen: list[str] = []
        self.threads: list[threading.Thread] = []
        self.bell = Bell()

    def hold(self, mail: Mail) -> None:
        if isinstance(mail.body, TransferGrant) and self._is_mine(mail.body):
            mail.go(msgspec.structs.replace(
                mail.body, card=self.persona.card, certificate=self.persona.certificate
            ))
        elif isinstance(mail.body, PeerCard) and self._named(mail.body) == self.name:
            mail.go(PeerCard(self.persona.card, self.persona.certificate, 1))
        elif mail.to == self.name and mail.reply is not None and isinstance(mail.body, Notify):
            mail.reply(self._notified(mail.body))
        elif mail.to == self.name and mail.reply is not None and isinstance(mail.body, DeliverKey):
            mail.reply(self._key(mail.body))
        else:
            mail.go(mail.body)

    def report(self) -> dict[str, Any]:
        for thread in self.threads:
            thread.join()
        fingerprint = self.persona.identity.public.fingerprint.hex()
        return {"seen": dict(self.seen), "stolen": self.stolen, "fingerprint": fingerprint}

    def close(self) -> None:
        self.bell.ring()
        for thread in self.threads:
            thread.join()
        for _, _, listener in self.talks.values():
            listener.close()
        self.bulk.close()
        self.bell.close()

    def _log_card(self) -> None:
        """The entry of a registration; from then on the database says that it is the one of that name."""
        db, card = self.evil.database, verify_card(self.persona.card, self.evil.identity.suite)
        honest, row = db.client_named, db.client_named(self.name)
        assert row is not None
        false = replace(row, card=card.encoded, card_hash=card.hash, certificate=self.persona.certificate)
        with db._backend.writing() as connection:
            false = replace(false, log_index=db._append(connection, "registered", false, time.time()))
        setattr(db, "client_named", lambda name: false if name == self.name else honest(name))  # noqa: B010

    def _named(self, body: PeerCard) -> str:
        return verify_card(body.card, self.evil.identity.suite).name

    def _is_mine(self, grant: TransferGrant) -> bool:
        xid: bytes = decode(grant.response, messages.Resp).xid
        return xid in self.talks

    def _notified(self, body: Notify) -> Any:
        self.seen["notified"] += 1
        evil = self.evil
        card = verify_card(self.persona.card, evil.identity.suite)
        # The machine insists on being asked for by the name on its card; this liar does not care.
        req = recipient.read_request(body)
        context = recipient.Recipient(
            Authority(evil.identity.signing.public, evil.identity.suite), self.persona.identity, self.persona.kem_key,
            card, Known(),
        )
        th = Transcript.start("xfer", evil.identity.suite.name).absorb(body.request, body.signature)
        state = recipient.Notified(th, req, verify_card(body.card, evil.identity.suite))
        listener = self.bulk.listen(LOOPBACK, None)
        where = Endpoints([LOOPBACK], listener.listening.data_port, listener.listening.ack_port, 0, "", b"")
        answered = step(recipient.TABLE, context, state, recipient.Accept(where, CHUNK, 0))
        self.talks[req.xid] = context, answered.state, listener
        return answered.effects[0].message

    def _key(self, body: DeliverKey) -> Any:
        self.seen["keys"] += 1
        xid: bytes = decode(body.key, Key).xid
        context, state, listener = self.talks[xid]
        agreed = step(recipient.TABLE, context, state, body)
        session: Agreement = agreed.state.session
        listener.admit(session)
        thread = threading.Thread(target=self._steal, args=(listener, session))
        self.threads.append(thread)
        thread.start()
        return agreed.effects[0].message

    def _steal(self, listener: Incoming, session: Agreement) -> None:
        sink = _Loot(self.persona, session)
        with contextlib.suppress(ZkcError):
            listener.receive(session, sink, self.bell, STEP_SECONDS)
            self.stolen.append(sink.data.hex())


class TwoFaces(Impersonate):
    """As `Impersonate`, but before the clients ``to`` alone: they are shown a key log of their own, in which ``name``
    was given to the false card, and everybody else the true one. The faces stay when the lie ends."""

    def __init__(self, evil: Evil, name: str, to: list[str]) -> None:
        super().__init__(evil, name)
        self.to = to
        card_hash = verify_card(self.persona.card, evil.identity.suite).hash
        assert evil.log is not None
        evil.log.show(
            lambda true: [replace(each, card_hash=card_hash) if each.name == name else each for each in true], to
        )

    def hold(self, mail: Mail) -> None:
        if self._is_for_them(mail):
            super().hold(mail)
        else:
            mail.go(mail.body)

    def _is_for_them(self, mail: Mail) -> bool:
        if isinstance(mail.body, Notify):
            return recipient.read_request(mail.body).sender in self.to
        if isinstance(mail.body, DeliverKey):
            return decode(mail.body.key, Key).xid in self.talks
        return mail.to in self.to


class Hide(Lie):
    """The clients ``to`` are shown no more than the first ``size`` entries of the key log; that stays."""

    def __init__(self, evil: Evil, size: int, to: list[str]) -> None:
        super().__init__(evil)
        assert evil.log is not None
        evil.log.show(lambda true: true[:size], to)


class KeepBehind(Lie):
    """The clients ``to`` are told nothing of a new identity of the coordinator: before them it has the one of now, and
    signs a key log in which ``name`` was given to another card. All that stays."""

    def __init__(self, evil: Evil, name: str, to: list[str]) -> None:
        super().__init__(evil)
        self.to, self.former = to, evil.identity
        evil.kept_behind.update(dict.fromkeys(to, self.former))
        assert evil.log is not None
        evil.log.show(
            lambda true: [replace(each, card_hash=bytes(32)) if each.name == name else each for each in true], to,
            self.former.signing,
        )

    def hold(self, mail: Mail) -> None:
        if mail.to not in self.to:
            mail.go(mail.body)
        elif isinstance(mail.body, CoordinatorRenewed) and mail.reply is not None:
            mail.reply(Ok())
        elif isinstance(mail.body, CoordinatorNow):
            mail.go(CoordinatorNow(self.former.card, self.former.card_signature, [], False))
        elif isinstance(mail.body, (Notify, PeerCard, TransferGrant)):
            card = verify_card(mail.body.card, self.former.suite)
            body = card.body
            certificate = certify(self.former.signing, body.name, body.uid, card.hash, body.epoch)
            mail.go(msgspec.structs.replace(mail.body, certificate=certificate))
        else:
            mail.go(mail.body)


@dataclass
class _Loot:
    """Where stolen bytes go."""

    persona: Persona
    session: Agreement
    data: bytearray = field(default_factory=bytearray)
    manifest: Manifest | None = None

    def resume(self) -> tuple[int, blake3]:
        return 0, blake3()

    def announced(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def write(self, data: bytes) -> None:
        self.data += data

    def complete(self, size: int, digest: bytes) -> bytes:
        assert self.manifest is not None
        now = time.time()
        body = receipt_body(self.session, self.manifest, size, digest, now, now)
        return make_receipt(self.persona.identity, body, self.persona.card)


LIES: Final[dict[str, Callable[..., Lie]]] = {
    "truth": Lie,
    "alter": Alter,
    "swap": Swap,
    "double": Double,
    "garble": Garble,
    "stutter": Stutter,
    "replace": Replace,
    "withhold": Withhold,
    "die": Die,
    "confirm-for-others": ConfirmForOthers,
    "own-key": OwnKey,
    "impersonate": Impersonate,
    "two-faces": TwoFaces,
    "hide": Hide,
    "keep-behind": KeepBehind,
}


# --- the process --------------------------------------------------------------------------------------------------


class Evil:
    """What the lies have in common: the engine, and a record of all that passed."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.clients: LyingClients | None = None
        self.log: ManyFaces | None = None
        self.kept_behind: dict[str, CoordinatorIdentity] = {}
        """Clients before whom the coordinator still has an identity of before."""
        self.lie: Lie = Lie(self)
        self.records: list[tuple[str, Any]] = []
        """(to whom, message), in order, as the truth would have it."""
        self.heard: list[tuple[str, str]] = []
        self.greetings: list[tuple[str, str]] = []
        """Type and encoding, in hex, of each message that newcomers sent."""
        self.plaintexts: list[bytes] = []
        """Every record of every channel, either way, opened."""

    @property
    def identity(self) -> CoordinatorIdentity:
        assert self.engine is not None
        return self.engine._core.identity

    @property
    def database(self) -> KeyDb:
        assert self.engine is not None
        return self.engine._core.db

    def newest(self, kind: str) -> Any:
        return next(body for _, body in reversed(self.records) if type(body).__name__ == kind)

    def passing(self, mail: Mail) -> None:
        self.records.append((mail.to, mail.body))
        self.lie.hold(mail)

    async def ask(self, name: str, body: Any) -> Any:
        """A request to the daemon of ``name``, past every lie; its answer."""
        assert self.clients is not None
        client = self.clients.named(name)
        if client is None or client.daemon is None:
            return "offline"
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        Clients.ask(self.clients, client.daemon, body, STEP_SECONDS, answer.set_result)
        return await answer

    # --- what tests ask for ----------------------------------------------------------------------------------------

    async def command(self, name: str, words: dict[str, Any]) -> dict[str, Any]:
        handlers: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "lie": self._lie, "report": self._report, "records": self._records, "replay": self._replay,
            "pose": self._pose, "plaintexts": self._plaintexts, "heard": self._heard, "greetings": self._greetings,
        }
        return await handlers[name](**words)

    async def _lie(self, lie: str, choices: dict[str, Any]) -> dict[str, Any]:
        self.lie.close()
        self.lie = LIES[lie](self, **choices)
        return {}

    async def _report(self) -> dict[str, Any]:
        return await asyncio.to_thread(self.lie.report)

    async def _records(self) -> dict[str, Any]:
        return {"records": [[to, type(body).__name__, encode(body).hex()] for to, body in self.records]}

    async def _greetings(self) -> dict[str, Any]:
        return {"greetings": self.greetings}

    async def _heard(self) -> dict[str, Any]:
        return {"heard": self.heard}

    async def _plaintexts(self) -> dict[str, Any]:
        return {"plaintexts": [each.hex() for each in self.plaintexts]}

    async def _replay(self, record: int, to: str) -> dict[str, Any]:
        """A recorded request once more, to the daemon of ``to``."""
        return {"answer": told(await self.ask(to, self.records[record][1]))}

    async def _pose(self, name: str, to: str, home: str = "", on_card: str = "") -> dict[str, Any]:
        """Asks ``to`` to receive something from ``name``, whom the coordinator plays; the answer."""
        persona = Persona.make(self, name, home, on_card)
        card = verify_card(persona.card, self.identity.suite)
        # Whatever stands on the card, the request says that it is of ``name``.
        card = msgspec.structs.replace(card, body=msgspec.structs.replace(card.body, name=name))
        context = sender.Sender(
            Authority(self.identity.signing.public, self.identity.suite), persona.identity, persona.kem_key, card,
            Known(), time.time(),
        )
        terms = sender.Terms(
            os.urandom(16), os.urandom(16), to, "sender", "recipient-first", "aes-256-gcm", 10, fresh=True
        )
        (effect,) = sender.create_request(context, terms).effects
        request = effect.message
        notice = Notify(request.request, request.signature, persona.card, persona.certificate, "online")
        answer = await self.ask(to, notice)
        fingerprint = persona.identity.public.fingerprint.hex()
        return {"answer": told(answer), "fingerprint": fingerprint}


def told(answer: Any) -> list[Any]:
    """An answer as JSON can say it: its type, of a failure the code and detail, of a response the verdict."""
    if isinstance(answer, Failure):
        return ["Failure", answer.code, answer.detail]
    if isinstance(answer, TransferResponse):
        return ["TransferResponse", decode(answer.response, messages.Resp).verdict]
    return [answer if isinstance(answer, str) else type(answer).__name__]


class LyingClients(Clients):
    """The way to the clients, with the lie on it."""

    evil: Evil

    def ask(self, session: Session, body: Any, within: float, on_reply: OnReply) -> None:
        honest = super().ask

        def reply(answer: Any) -> None:
            asyncio.get_running_loop().call_soon(on_reply, answer)

        self.evil.passing(
            Mail(session.client.name, body, lambda other: honest(session, other, within, on_reply), reply)
        )

    def answer(self, session: Session, call: bytes, body: Any) -> None:
        honest = super().answer
        self.evil.passing(Mail(session.client.name, body, lambda other: honest(session, call, other)))

    def on_hello(self, wire: Wire, uid: bytes, body: bytes) -> None:
        self.evil.greetings.append((uid.hex(), body.hex()))
        honest = self._core
        client = self._by_uid.get(uid)
        identity = self.evil.kept_behind.get(client.name if client else "", honest.identity)
        self._core = replace(
            honest, identity=identity, send=lambda frame, routing_id: self._greet(honest, uid, frame, routing_id)
        )
        try:
            super().on_hello(wire, uid, body)
        finally:
            self._core = honest

    def _greet(self, honest: Core, uid: bytes, frame: bytes, routing_id: bytes) -> Sent:
        def go(other: Any) -> None:
            honest.send(control_frame(ControlKind.CHANNEL, encode(other)), routing_id)

        self.evil.passing(Mail(self._by_uid[uid].name, decode(split_control(frame)[1], ChannelMessage), go))
        return Sent.OK

    def _transmit(self, session: Session, plaintext: bytes) -> None:
        self.evil.plaintexts.append(plaintext)
        if isinstance(self.evil.lie, Stutter) and session.wire is not None:
            record = session.channel.seal(plaintext)
            for _ in range(2):
                self._core.send(record, session.wire.routing_id)
        else:
            super()._transmit(session, plaintext)

    def _on_call(self, session: Session, received: Any) -> None:
        if getattr(received, "body", None) is not None:
            self.evil.plaintexts.append(encode(received.body))
        super()._on_call(session, received)


class LyingRegistrations(Registrations):
    """The registrations, with the lie on what newcomers are told."""

    evil: Evil

    def on_message(self, wire: Wire, invite_id: bytes, body: bytes) -> None:
        kind = type(decode(body, RegMessage)).__name__
        self.evil.heard.append((kind, body.hex()))
        self.evil.lie.heard(kind)
        super().on_message(wire, invite_id, body)

    def _send(self, wire: Wire, message: Any) -> None:
        honest = super()._send
        name = self._open[wire.routing_id].registrar.name
        self.evil.passing(Mail(name, message, lambda other: honest(wire, other)))


def principal_in(home: Path) -> Principal:
    """The keys of the client in ``home``."""
    with KeyStore.open(Home.resolve("client", str(home))) as store:
        return load_main(store)


async def serve(evil: Evil, home: Home, options: Mapping[str, object], control: str) -> None:
    def ready(ready: Ready) -> None:
        print("ready", ready.endpoints[0], ready.fingerprint, flush=True)  # noqa: T201  (as the real one does)

    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            words = json.loads(line)
            try:
                answer = await evil.command(words.pop("command"), words)
            except Exception as error:  # noqa: BLE001  (the test is told)
                answer = {"error": repr(error)}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    evil.engine = engine = Engine(Settings(home, options, on_ready=ready), home.prepare().lock())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, engine.stop)
    server = await asyncio.start_unix_server(attend, control, limit=1 << 24)
    try:
        await engine.run()
    finally:
        evil.lie.close()
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", required=True)
    parser.add_argument("--control", required=True)
    parser.add_argument("--listen", default="tcp://127.0.0.1:0")
    parser.add_argument("--lie", choices=[name for name in LIES if name in ("truth", "double", "confirm-for-others")])
    chosen = parser.parse_args()
    logs.configure("json", "info")
    evil = Evil()
    if chosen.lie:
        evil.lie = LIES[chosen.lie](evil)

    class Ours(LyingClients):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.evil = evil
            evil.clients = self

    class OurRegistrations(LyingRegistrations):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.evil = evil

    class OurLog(ManyFaces):
        def __init__(self, core: Core) -> None:
            super().__init__(core)
            evil.log = self

    setattr(services_module, "KeyLog", OurLog)  # noqa: B010
    setattr(engine_module, "Clients", Ours)  # noqa: B010  (its own parts, exchanged)
    setattr(engine_module, "Registrations", OurRegistrations)  # noqa: B010
    home = Home.resolve("coordinator", chosen.home)
    asyncio.run(serve(evil, home, {"coordinator.listen": [chosen.listen]}, chosen.control))


class EvilCoordinator:
    """The test's end of the control socket."""

    def __init__(self, control: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(STEP_SECONDS)
        self._socket.connect(str(control))
        self._file = self._socket.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def command(self, command: str, **words: Any) -> dict[str, Any]:
        self._socket.sendall(json.dumps({"command": command, **words}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(self._file.readline())
        assert "error" not in answer, answer
        return answer

    def lie(self, lie: str, **choices: Any) -> None:
        """From now on; ``truth`` ends it."""
        self.command("lie", lie=lie, choices=choices)

    def report(self) -> dict[str, Any]:
        return self.command("report")

    @property
    def records(self) -> list[tuple[str, str, bytes]]:
        """(to whom, type, encoded) of every message that the coordinator had to give."""
        return [(to, kind, bytes.fromhex(data)) for to, kind, data in self.command("records")["records"]]

    @property
    def heard(self) -> list[str]:
        """The type of each message that newcomers sent so far."""
        return [kind for kind, _ in self.said]

    @property
    def said(self) -> list[tuple[str, bytes]]:
        """(type, encoded) of every message that newcomers sent so far."""
        return [(kind, bytes.fromhex(data)) for kind, data in self.command("heard")["heard"]]

    @property
    def greetings(self) -> list[tuple[bytes, bytes]]:
        """(uid of the client, encoded C1) of every greeting so far."""
        return [(bytes.fromhex(uid), bytes.fromhex(data)) for uid, data in self.command("greetings")["greetings"]]

    @property
    def plaintexts(self) -> list[bytes]:
        """All that passed inside the channels, opened."""
        return [bytes.fromhex(each) for each in self.command("plaintexts")["plaintexts"]]


if __name__ == "__main__":
    main()
