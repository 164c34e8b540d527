"""What both ends hold once a transfer's key is agreed, and the few derivations that both handshake sides share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zkc.constants import FILE_NAME_MAX, PREVIEW_BYTES, TERMS_VERSION
from zkc.crypto.cards import VerifiedCard
from zkc.crypto.primitives import (
    ZERO_NONCE,
    Secret,
    aead_open,
    aead_seal,
    check_mac,
    digest,
    expand,
    extract,
    mac,
)
from zkc.crypto.suites import KemPrivateKey, KemPublicKey, kem_decapsulate, kem_encapsulate, open_sealed, seal
from zkc.crypto.transcript import Transcript
from zkc.errors import PeerViolation, VersionMismatch
from zkc.wire.codec import decode, encode, version_of
from zkc.wire.messages import Conf, Endpoints, Manifest, Preview, Req, Resp, WrappedKey


@dataclass(frozen=True, repr=False)
class Session:
    """One transfer, agreed: K, its transcript, both ends, the terms that both have signed.

    K stays in one process's memory; it is handed over, never copied, never written down.
    """

    k: Secret
    th: bytes
    req: Req
    resp: Resp
    peer: VerifiedCard
    """The other end's card."""
    own_fingerprint: bytes
    endpoints: Endpoints | None
    """Where the other end listens; of a recipient without an address: it is to come to the sender. None at a recipient
    that listens."""
    opener: KemPrivateKey | None = None
    """The sender's permanent key, where it asked for an acknowledgement that is sealed to it."""


LEVELS: Final = ("online", "present", "authorised")
REFUSALS: Final = (22, 23, 24, 25, 30, 31, 33)
"""Codes of the contract with which a recipient may refuse; any other is told as policy."""


def read_req(encoded: bytes) -> Req:
    """REQ; `VersionMismatch` (``version``) for a later or earlier one, `PeerViolation` (``malformed``)."""
    _check_version("request", encoded)
    req: Req = decode(encoded, Req)
    return req


def read_resp(encoded: bytes) -> Resp:
    """RESP; the errors of `read_req`."""
    _check_version("answer", encoded)
    resp: Resp = decode(encoded, Resp)
    return resp


def _check_version(what: str, encoded: bytes) -> None:
    """An upgraded peer is told from an altered message: this is code 40, that an alarm."""
    version = version_of(encoded)
    if version != TERMS_VERSION:
        raise VersionMismatch(
            f"the {what} is of version {version}, and this zkc knows {TERMS_VERSION}", detail="version",
            hint="upgrade the older of the two",
        )


def make_preview(name: str, note: str, size: int | None) -> bytes:
    """What a recipient may judge by before it answers: the name whole, of the note the beginning. `PREVIEW_BYTES`."""
    short = _beginning(name), _beginning(note)
    # Behind both there is always more padding than 255 bytes, so that its own header is always of one length.
    room = PREVIEW_BYTES - len(encode(Preview(*short, size, bytes(256)))) + 256
    return encode(Preview(*short, size, bytes(room)))


def is_as_shown(manifest: Manifest, preview: Preview) -> bool:
    """Whether a sender sends what its preview said."""
    said = _beginning(manifest.name), _beginning(manifest.note), manifest.size
    return said == (preview.name, preview.note, preview.size)


def preview_at(xid: bytes, card_hash: bytes) -> bytes:
    """What a preview is bound to: this handshake, by this sender."""
    return digest(xid + card_hash)


def open_preview(key: KemPrivateKey, req: Req) -> Preview | None:
    """None where the sender has not pinned this recipient. `PeerViolation` (``forged``, ``malformed``)."""
    if not req.preview:
        return None
    opened = open_sealed(key, "xfer-preview", preview_at(req.xid, req.card_hash), req.preview)
    preview: Preview = decode(opened, Preview)
    return preview


def _beginning(text: str) -> str:
    """At most 255 bytes of it."""
    return text.encode()[:FILE_NAME_MAX].decode(errors="ignore")


def seal_endpoints(to: KemPublicKey, th: bytes, endpoints: Endpoints) -> bytes:
    """Where the sender listens, for the recipient alone: in KEY, or in CONFS."""
    return seal(to, "xfer-ep-s", th, encode(endpoints))


def open_endpoints(key: KemPrivateKey, th: bytes, sealed: bytes) -> Endpoints | None:
    """The same at the recipient; None where there is none. `PeerViolation` (``forged``, ``malformed``)."""
    if not sealed:
        return None
    endpoints: Endpoints = decode(open_sealed(key, "xfer-ep-s", th, sealed), Endpoints)
    if not (endpoints.addresses and endpoints.data_port and endpoints.ack_port) or endpoints.relay:
        raise PeerViolation("malformed", "a sender that listens nowhere")
    return endpoints


def seal_receipt(session: Session, receipt: bytes) -> bytes:
    """As it travels in DONE: alone, or sealed to the sender's permanent key (Figure 16, block 1603, names both)."""
    if session.req.acknowledgement == "session":
        return receipt
    return seal(session.peer.kem_key, "xfer-done", session.th, receipt)


def open_receipt(session: Session, sealed: bytes) -> bytes:
    """The same at the sender. `PeerViolation` (``forged``)."""
    if session.opener is None:
        return sealed
    return open_sealed(session.opener, "xfer-done", session.th, sealed)


def level_met(stated: str, required: str) -> bool:
    """Whether a presence level is at least the required one (claims D1 to D4)."""
    return LEVELS.index(stated) >= LEVELS.index(required)


def unmet_code(required: str) -> int:
    """The code for a level that was not reached: nobody there (22), or nobody who may (23)."""
    return 22 if required == "present" else 23


def refusal_code(stated: int) -> int:
    """The code that a recipient's refusal is told as: none of a defect, of an alarm or of no meaning."""
    return stated if stated in REFUSALS else 25


def session_key(th: Transcript, ss1: Secret, ss2: Secret) -> Secret:
    """K of a sender-made transfer: Extract(salt th after SIG "xfer-key", ss1 || ss2)."""
    return extract(th.value, ss1, ss2)


def confirmation(k: Secret, name: str, xid: bytes, *covered: bytes) -> bytes:
    """CONF, CONFR and CONFS: MACs under keys expanded from K, over the transcript."""
    return encode(Conf(xid, mac(expand(k, name, 32), *covered)))


def check_confirmation(k: Secret, name: str, xid: bytes, encoded: bytes, *covered: bytes) -> None:
    """`PeerViolation` (``forged``) where the other side does not hold K, or confirms another transfer."""
    conf: Conf = decode(encoded, Conf)
    if conf.xid != xid:
        raise PeerViolation("identity", "a confirmation of another transfer")
    check_mac(mac(expand(k, name, 32), *covered), conf.mac)


def wrap_session_key(
    k: Secret, xid: bytes, end: str, permanent: KemPublicKey, one_time: KemPublicKey, th_c: bytes
) -> bytes:
    """KEYR, KEYS: a coordinator-made key, under both keys of an end (Figures 9, 10: blocks 904, 1004)."""
    ss1, p1 = kem_encapsulate(permanent, f"ck-perm-{end}", th_c)
    ss2, p2 = kem_encapsulate(one_time, f"ck-eph-{end}", th_c)
    prk = extract(th_c, ss1, ss2)
    w = aead_seal(expand(prk, f"ck {end}", 32), ZERO_NONCE, k.reveal(), th_c + p1 + p2)
    for secret in (ss1, ss2, prk):
        secret.wipe()
    return encode(WrappedKey(xid, p1, p2, w))


def unwrap_session_key(
    encoded: bytes, xid: bytes, end: str, permanent: KemPrivateKey, one_time: KemPrivateKey, th_c: bytes
) -> Secret:
    """K's PRK out of KEYR or KEYS: Extract(salt th_c, K) (Figure 15, blocks 1501-1502)."""
    wrapped: WrappedKey = decode(encoded, WrappedKey)
    if wrapped.xid != xid:
        raise PeerViolation("identity", "a key of another transfer")
    ss1 = kem_decapsulate(permanent, f"ck-perm-{end}", th_c, wrapped.p1)
    ss2 = kem_decapsulate(one_time, f"ck-eph-{end}", th_c, wrapped.p2)
    prk = extract(th_c, ss1, ss2)
    k = Secret(aead_open(expand(prk, f"ck {end}", 32), ZERO_NONCE, wrapped.w, th_c + wrapped.p1 + wrapped.p2))
    root = extract(th_c, k)
    for secret in (ss1, ss2, prk, k):
        secret.wipe()
    return root
