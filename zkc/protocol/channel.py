"""The channel between a registered client and the coordinator: the KEM form of Noise KK, in one round trip.

docs/protocol.md 8. The pattern is KK of the Noise Protocol Framework (revision 34, 7.5: ``-> e, es, ss``, ``<- e, ee,
se``) with a KEM in the place of each exchange, as PQNoise does it; one KEM is HPKE's single-shot base mode (RFC 9180),
one derivation HKDF's (RFC 5869). In the seed document it is "encrypted under the permanent server key" and "under the
permanent client key" of Figures 1, 2 and 8 to 16.

 1. C1 -> uid, ct_s, e, AEAD{role, instance, versions, epoch}   someone has this client's permanent server key
 2. S1 <- ct_e, ct_c, AEAD{version, limits}                      the client knows: it is the coordinator, now
 3. C2 -> the first record                                       the coordinator knows: it is the client, now

Keys of both directions come from ss_s, ss_e and ss_c together: forward secrecy by e, authentication by the other two.
Before C2 nothing is done, counted as online or stored. A record's counter rises strictly; a repeat ends the channel.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

from zkc.constants import CHANNEL_RECORDS_MAX, CHANNEL_SECONDS_MAX, ID_BYTES, TAG_BYTES, VERSION
from zkc.crypto.primitives import (
    NONCE_BYTES,
    ZERO_NONCE,
    Secret,
    aead_open,
    aead_seal,
    counter_nonce,
    expand,
    extract,
)
from zkc.crypto.suites import KemPrivateKey, KemPublicKey, Suite, kem_decapsulate, kem_encapsulate, open_sealed, seal
from zkc.crypto.transcript import Transcript
from zkc.errors import PeerViolation
from zkc.protocol.step import Send, Step, Table
from zkc.wire.codec import decode, encode
from zkc.wire.frames import record_header, split_record
from zkc.wire.messages import AnswerInfo, ChannelAnswer, ChannelHello, HelloInfo

VERSIONS: Final = (VERSION,)
NO_COMMON_VERSION: Final = 0
_CHANNEL_ID: Final = 32


class Channel:
    """Both directions' keys and counters. An object, not a value: it is never copied and never stored.

    Records as in docs/protocol.md 8: AES-256-GCM under a nonce of iv XOR counter (RFC 8446, 5.3).
    """

    def __init__(self, prk: Secret, *, client: bool, now: float) -> None:
        self.id = expand(prk, "chan id", _CHANNEL_ID)
        self.tag = self.id[:TAG_BYTES]
        up, down = (_Direction(prk, name) for name in ("up", "down"))
        self._out, self._in = (up, down) if client else (down, up)
        self._born = now

    def seal(self, plaintext: bytes) -> bytes:
        """The next record, a whole control frame."""
        out = self._out
        header = record_header(self.tag, out.counter)
        nonce = counter_nonce(out.iv, out.counter)
        out.counter += 1
        return header + aead_seal(out.key, nonce, plaintext, self.id + out.name + header)

    def open(self, frame: bytes) -> bytes:
        """What a record carries. `PeerViolation`: ``replay`` (the channel has to end), ``forged``, ``malformed``."""
        into = self._in
        header, tag, counter, ciphertext = split_record(frame)
        if tag != self.tag:
            raise PeerViolation("unexpected", "a record of another channel")
        plaintext = aead_open(into.key, counter_nonce(into.iv, counter), ciphertext, self.id + into.name + header)
        if counter < into.counter:
            raise PeerViolation("replay", f"record {counter} after {into.counter - 1}")
        into.counter = counter + 1
        return plaintext

    def is_old(self, now: float) -> bool:
        """Whether its keys have served long enough; then the client makes a new channel."""
        return now - self._born > CHANNEL_SECONDS_MAX or self._out.counter + self._in.counter > CHANNEL_RECORDS_MAX

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("an owner of nonces is neither copied nor stored")


class _Direction:
    def __init__(self, prk: Secret, name: str) -> None:
        self.name = name.encode()
        self.key = expand(prk, f"chan {name} key", 32)
        self.iv = expand(prk, f"chan {name} iv", NONCE_BYTES)
        self.counter = 0


# --- states, and what each half knows ------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class ClientKeys:
    """What a registration left at the client."""

    suite: Suite
    uid: bytes
    perm_client: KemPrivateKey
    perm_server: KemPublicKey
    general: KemPublicKey | None = None
    """The coordinator's general key where the uid is to travel under it; None: it travels in clear (Figure 2, 201)."""


@dataclass(frozen=True, repr=False)
class HelloSent:
    th: Transcript
    ephemeral: KemPrivateKey
    ss_s: Secret
    now: float


@dataclass(frozen=True, repr=False)
class Established:
    """The client may send records; the coordinator believes it once the first of them has opened."""

    channel: Channel
    info: AnswerInfo


@dataclass(frozen=True, repr=False)
class PeerKeys:
    """What a registration left at the coordinator."""

    suite: Suite
    uid: bytes
    perm_server: KemPrivateKey
    perm_client: KemPublicKey


@dataclass(frozen=True, repr=False)
class Host:
    """The coordinator towards one client, at the moment at which its C1 has come."""

    keys: PeerKeys
    limits: AnswerInfo
    """What S1 tells; its version is chosen among the client's."""
    now: float
    """Monotonic seconds."""
    general: tuple[KemPrivateKey, ...] = ()
    """One of them opens a uid that was sealed, the present one or a former; none: only a uid in clear is taken."""


@dataclass(frozen=True)
class Unheard:
    """The coordinator keeps nothing of a client that has not greeted."""


@dataclass(frozen=True, repr=False)
class Unconfirmed:
    """S1 has been made; `channel` counts for nothing before its first record has opened."""

    channel: Channel
    hello: HelloInfo


# --- create, consume -----------------------------------------------------------------------------------------------


def create_hello(keys: ClientKeys, info: HelloInfo, now: float) -> Step:
    """C1, to the permanent server key (Figure 13, block 1301, and wherever a client encrypts to the coordinator)."""
    th = Transcript.start("chan", keys.suite.name)
    uid = keys.uid if keys.general is None else seal(keys.general, "chan-uid", th.value, keys.uid)
    th = th.absorb(uid)
    ss_s, ct_s = kem_encapsulate(keys.perm_server, "chan-s", th.value)
    th = th.absorb(ct_s)
    prk = extract(th.value, ss_s)
    ephemeral = keys.suite.generate_one_time()
    public = ephemeral.public.encode()
    th = th.absorb(public)
    sealed = aead_seal(expand(prk, "chan c1", 32), ZERO_NONCE, encode(info), th.value)
    prk.wipe()
    return Step(
        HelloSent(th.absorb(sealed), ephemeral, ss_s, now), (Send(ChannelHello(uid, ct_s, public, sealed)),)
    )


def consume_hello(host: Host, state: Unheard, message: ChannelHello) -> Step:
    """C1 -> S1, from and to the permanent keys (Figures 8 and 9, blocks 802 and 902 to open, 803 and 904 to seal).

    A replayed C1 costs two seals and changes nothing.
    """
    keys = host.keys
    th = Transcript.start("chan", keys.suite.name)
    uid = message.uid
    if len(uid) != ID_BYTES and host.general:
        uid = _opened_uid(host.general, th.value, uid)
    if uid != keys.uid:
        raise PeerViolation("identity", "the uid is not that of the connection")
    th = th.absorb(message.uid)
    ss_s = kem_decapsulate(keys.perm_server, "chan-s", th.value, message.ct_s)
    th = th.absorb(message.ct_s)
    first = extract(th.value, ss_s)
    th = th.absorb(message.ephemeral_key)
    opened = aead_open(expand(first, "chan c1", 32), ZERO_NONCE, message.sealed, th.value)
    hello: HelloInfo = decode(opened, HelloInfo)
    th = th.absorb(message.sealed)
    ss_e, ct_e = kem_encapsulate(keys.suite.read_one_time(message.ephemeral_key), "chan-e", th.value)
    th = th.absorb(ct_e)
    ss_c, ct_c = kem_encapsulate(keys.perm_client, "chan-c", th.value)
    th = th.absorb(ct_c)
    prk = extract(th.value, ss_s, ss_e, ss_c)
    common = [version for version in VERSIONS if version in hello.versions]
    version = max(common, default=NO_COMMON_VERSION)
    limits = host.limits
    info = AnswerInfo(version, limits.control_max, limits.heartbeat_ms, limits.time, limits.coordinator)
    sealed = aead_seal(expand(prk, "chan s1", 32), ZERO_NONCE, encode(info), th.value)
    channel = Channel(prk, client=False, now=host.now)
    for secret in (ss_s, first, ss_e, ss_c, prk):
        secret.wipe()
    return Step(Unconfirmed(channel, hello), (Send(ChannelAnswer(ct_e, ct_c, sealed)),))


def _opened_uid(general: tuple[KemPrivateKey, ...], th: bytes, sealed: bytes) -> bytes:
    """By the key to which a client sealed it that may not have heard of a newer one."""
    for key in general:
        with contextlib.suppress(PeerViolation):
            return open_sealed(key, "chan-uid", th, sealed)
    raise PeerViolation("forged", "the uid is sealed to no key of ours")


def consume_answer(keys: ClientKeys, state: HelloSent, message: ChannelAnswer) -> Step:
    """S1, to the permanent client key -> the channel (Figures 14 and 15, blocks 1402 and 1502)."""
    ss_e = kem_decapsulate(state.ephemeral, "chan-e", state.th.value, message.ct_e)
    th = state.th.absorb(message.ct_e)
    ss_c = kem_decapsulate(keys.perm_client, "chan-c", th.value, message.ct_c)
    th = th.absorb(message.ct_c)
    prk = extract(th.value, state.ss_s, ss_e, ss_c)
    opened = aead_open(expand(prk, "chan s1", 32), ZERO_NONCE, message.sealed, th.value)
    info: AnswerInfo = decode(opened, AnswerInfo)
    if info.version not in VERSIONS:
        raise PeerViolation("version", "the coordinator speaks none of our versions")
    channel = Channel(prk, client=True, now=state.now)
    for secret in (state.ephemeral, state.ss_s, ss_e, ss_c, prk):
        secret.wipe()
    return Step(Established(channel, info))


TABLE: Final[Table] = {
    (Unheard, ChannelHello): consume_hello,
    (HelloSent, ChannelAnswer): consume_answer,
}
