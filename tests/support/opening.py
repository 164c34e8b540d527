"""Opening by hand what the machines seal: with the keys that the document names, and with all others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.support.parties import Client, World
from tests.support.talks import Tap, TransferTalk, Turn, passing, terms
from tests.vectors.handshakes import unwrap
from zkc.crypto.suites import KemPrivateKey, kem_decapsulate, open_sealed, read_private
from zkc.errors import PeerViolation
from zkc.ids import KeyOrder, KeySource, Presence
from zkc.protocol import transfer_recipient as tr
from zkc.protocol.session import Session
from zkc.wire.codec import decode
from zkc.wire.messages import DeliverSessionKey, Key, TransferGrant, TransferKey, WrappedKey

Form = tuple[KeySource, KeyOrder]


def opens(key: KemPrivateKey, label: str, th: bytes, sealed: bytes) -> bytes | None:
    """What a seal holds; None where that key does not open it."""
    try:
        return open_sealed(key, label, th, sealed)
    except PeerViolation:
        return None


def shares(key: KemPrivateKey, label: str, th: bytes, ct: bytes) -> bytes | None:
    """The secret of an encapsulation; None where that key does not open it."""
    try:
        return kem_decapsulate(key, label, th, ct).reveal()
    except PeerViolation:
        return None


@dataclass
class Handshake:
    """One transfer handshake from alice to bob, with the one-time keys that both ends erase at its end."""

    world: World
    form: Form
    serial: int = 1
    cipher: str = "aes-256-gcm"
    presence: Presence = "online"
    decision: Any = None
    and_tap: Tap = passing
    one_time: dict[str, KemPrivateKey] = field(default_factory=dict)
    talk: TransferTalk = field(init=False)

    def __post_init__(self) -> None:
        asked = terms(
            "bob", serial=self.serial, key_source=self.form[0], key_order=self.form[1], cipher=self.cipher,
            presence=self.presence,
        )
        self.talk = self.world.transfer(asked, self._tap, self.decision)

    def _tap(self, turn: Turn) -> object:
        one_time = getattr(turn.state, "one_time", None)
        if one_time is not None:
            self.one_time.setdefault(turn.to, read_private(one_time.encode()))
        return self.and_tap(turn)

    def run(self) -> Handshake:
        self.talk.run()
        return self

    @property
    def sessions(self) -> tuple[Session, Session]:
        """Of both ends, which agree."""
        assert self.talk.agreed == (True, True)
        sender, recipient = self.talk.sessions
        assert sender.k.reveal() == recipient.k.reveal()
        return sender, recipient

    @property
    def key(self) -> Key:
        """KEY, of a sender's making."""
        (message,) = self.talk.messages(TransferKey)
        key: Key = decode(message.key, Key)
        return key

    @property
    def th(self) -> bytes:
        """The transcript after the recipient's answer, at which keys are sealed."""
        return next(each for each in self.talk.sides["recipient"].states if isinstance(each, tr.Responded)).th.value

    def unwrapped(self, end: str, owner: Client) -> bytes | None:
        """The coordinator's key as it went to one end, opened with a client's permanent key and that end's one-time
        key; None where it does not open."""
        (message,) = self.talk.messages(DeliverSessionKey if end == "recipient" else TransferGrant)
        keys = {f"{end}_permanent": owner.kem_key, f"{end}_one_time": self.one_time[end]}
        try:
            return unwrap({}, end[0].upper(), decode(message.wrapped, WrappedKey), self.th, keys, end)
        except PeerViolation:
            return None
