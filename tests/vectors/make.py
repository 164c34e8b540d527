"""Makes the test vectors: one JSON file a topic, hexadecimal values, frozen once written.

``python -m tests.vectors.make`` writes the topics that have no file yet and leaves the others alone: a vector that
changed is a protocol that changed. To replace one on purpose, delete its file first.
To add a topic: a function that returns its vectors, a line in `TOPICS`, a check of the same name in `test_vectors.py`.

Every input is derived from its own name, so that another implementation can follow; outputs that are randomised
(seals, ML-DSA signatures) are frozen as they came out once, to be opened and verified.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import asdict

from tests.vectors import handshakes
from zkc.crypto.cards import (
    certify,
    make_card,
    make_coordinator_card,
    sign_coordinator_card,
)
from zkc.crypto.chunks import StreamSealer, token, xid_tag
from zkc.crypto.invitations import format_invitation, invitation_curve_secret, invitation_psk
from zkc.crypto.primitives import Secret, digest, expand, extract
from zkc.crypto.receipts import make_receipt, manifest_digest, name_digest
from zkc.crypto.signing import IdentityKey, safety_number
from zkc.crypto.suites import SUITES, kem_encapsulate, read_private, seal
from zkc.crypto.transcript import Transcript
from zkc.ids import CIPHERS
from zkc.wire.codec import decode, encode
from zkc.wire.frames import Flag, Stream
from zkc.wire.listing import header, packed
from zkc.wire.messages import Card, InvitationText, Manifest, ReceiptBody, TreeFile, TreeFolder, TreeLink

FOLDER: Final = Path(__file__).resolve().parent
Vectors = list[dict[str, Any]]


def known(name: str, n: int = 32) -> bytes:
    """n bytes that anybody can make again: SHA-256("zkc vector " name), repeated with a counter."""
    blocks = (digest(f"zkc vector {name} {i}".encode()) for i in range(-(-n // 32)))
    return b"".join(blocks)[:n]


def identity(name: str) -> IdentityKey:
    return IdentityKey.from_seed(known(f"identity {name}", 64))


def transcript() -> Vectors:
    """th0 for each pattern and suite, and th after some fields."""
    fields = [b"", b"abc", known("field", 100)]
    return [
        {
            "pattern": pattern, "suite": suite, "th0": start.value.hex(), "fields": [f.hex() for f in fields],
            "th": [start.absorb(*fields[: n + 1]).value.hex() for n in range(len(fields))],
        }
        for pattern in ("reg", "chan", "xfer", "ask") for suite in SUITES
        for start in [Transcript.start(pattern, suite)]  # type: ignore[arg-type]
    ]


def hkdf() -> Vectors:
    """Extract over two secrets, Expand under the names that crypto/ itself uses."""
    salt, one, other = known("salt"), known("ss1"), known("ss2")
    prk = extract(salt, Secret(one), Secret(other))
    names = ["xid-tag", "invite psk", "invite curve", "reg mac"]
    return [
        {
            "salt": salt.hex(), "secrets": [one.hex(), other.hex()], "prk": prk.reveal().hex(),
            "expanded": {name: expand(prk, name, 32).hex() for name in names},
        }
    ]


def tokens() -> Vectors:
    """What a transfer shows on the outside."""
    k = Secret(known("K"))
    return [
        {
            "k": k.reveal().hex(), "xid_tag": xid_tag(k).hex(), "socket": socket, "attempt": attempt,
            "token": token(k, socket, attempt),
        }
        for socket in ("data", "ack") for attempt in (0, 1, 2**32 - 1)
    ]


def streams() -> Vectors:
    """Frames of each stream under each cipher, the last one flagged."""
    k = Secret(known("K"))
    chunks = [known("chunk 0", 40), b"", known("chunk 2", 7)]
    vectors = []
    for cipher in CIPHERS:
        for stream, attempt in ((Stream.MANIFEST, 0), (Stream.DATA, 5), (Stream.ACK, 2**32 - 1)):
            sealer = StreamSealer(k, stream, attempt, cipher)
            frames = [sealer.seal(chunk, Flag.LAST if chunk is chunks[-1] else Flag.NONE) for chunk in chunks]
            vectors.append(
                {
                    "k": k.reveal().hex(), "cipher": cipher, "stream": stream.name.lower(), "attempt": attempt,
                    "chunks": [chunk.hex() for chunk in chunks], "frames": [frame.hex() for frame in frames],
                }
            )
    return vectors


def trees() -> Vectors:
    """Streams of kind ``tree``: their entries, and their bytes."""
    time = 1_700_000_000_123_456_789
    folder = [
        TreeFolder(0, b"", 0o755, time), TreeFile(1, b".a", 0o644, time, 3, None), TreeFolder(1, b"B", 0o700, -1),
        TreeFile(2, b"c", 0o755, time, 1 << 33, [1 << 32, 2, 10, 1]), TreeLink(1, b"\xff", time, b"../x"),
    ]
    several = [TreeFile(0, "\u00e9".encode(), 0, 0, 0, None), TreeFolder(0, b"f", 0o777, 0)]
    alone = [TreeFile(0, b"", 0o600, time, 1 << 40, [])]
    made = []
    for entries, contents in ((folder, b"abc" + b"xyz"), (several, b""), (alone, b"")):
        listing = b"".join(packed(entry) for entry in entries)
        made.append({
            "entries": [
                {name: value.hex() if isinstance(value, bytes) else value
                 for name, value in ({"tag": type(entry).__struct_config__.tag} | asdict(entry)).items()}
                for entry in entries
            ],
            "contents": contents.hex(), "stream": (header(len(listing)) + listing + contents).hex(),
        })
    return made


def seals() -> Vectors:
    """For each suite and each kind of key: a sealed value and an encapsulated secret, with the key that opens them."""
    vectors = []
    for name, suite in SUITES.items():
        for use, key in (("permanent", suite.generate()), ("one-time", suite.generate_one_time())):
            label, th, plaintext = "xfer-perm", known(f"th {name}"), known(f"plaintext {name}", 50)
            secret, encapsulated = kem_encapsulate(key.public, label, th)
            vectors.append(
                {
                    "suite": name, "use": use, "private": key.encode().hex(), "public": key.public.encode().hex(),
                    "label": label, "th": th.hex(), "plaintext": plaintext.hex(),
                    "sealed": seal(key.public, label, th, plaintext).hex(),
                    "encapsulated": encapsulated.hex(), "secret": secret.reveal().hex(),
                }
            )
    return vectors


def identities() -> Vectors:
    """Keys from their seeds, fingerprint, a live and a durable signature."""
    vectors = []
    for name in ("alice", "bob"):
        key, hashed = identity(name), known("hash")
        vectors.append(
            {
                "seed": key.secret.reveal().hex(), "ed25519": key.public.ed25519.hex(),
                "ml_dsa": key.public.ml_dsa.hex(), "fingerprint": key.public.fingerprint.hex(), "label": "xfer-req",
                "hash": hashed.hex(), "signature": key.sign("xfer-req", hashed).hex(), "durable_label": "card",
                "durable_signature": key.sign_durable("card", hashed).hex(),
            }
        )
    return vectors


def safety_numbers() -> Vectors:
    """Of some pairs."""
    alice, bob = identity("alice").public.fingerprint, identity("bob").public.fingerprint
    return [
        {"one": one.hex(), "other": other.hex(), "number": safety_number(one, other)}
        for one, other in ((alice, bob), (bob, alice), (alice, alice), (bytes(32), b"\xff" * 32))
    ]


def cards() -> Vectors:
    """A computer's card, an application's with its owner, a coordinator's; a certificate over each client's."""
    kem = read_private(b"\2" + known("kem private"))
    coordinator, uid, vectors = identity("coordinator"), known("uid", 16), Vectors()
    for name, kind, owner in (("alice", "computer", None), ("bob/backup", "application", identity("bob"))):
        card = make_card(
            name=name, kind=kind, uid=uid, identity=identity(name), kem_key=kem.public, epoch=7,  # type: ignore[arg-type]
            not_after=2_000_000_000, owner=owner,
        )
        hashed = digest(decode(card, Card).body)
        vectors.append(
            {
                "suite": "x25519", "name": name, "kind": kind, "uid": uid.hex(), "epoch": 7, "not_after": 2_000_000_000,
                "identity": identity(name).public.fingerprint.hex(), "kem_key": kem.public.encode().hex(),
                "owner": owner.public.fingerprint.hex() if owner else "", "card": card.hex(), "hash": hashed.hex(),
                "coordinator_seed": coordinator.secret.reveal().hex(),
                "certificate": certify(coordinator, name, uid, hashed, 7).hex(),
            }
        )
    return vectors


def coordinator_cards() -> Vectors:
    """What a coordinator answers to R0."""
    coordinator, general, curve = identity("coordinator"), read_private(b"\2" + known("kem private")), known("curve")
    card = make_coordinator_card(coordinator, general.public, curve, "x25519", 1)
    return [
        {
            "seed": coordinator.secret.reveal().hex(), "general_key": general.public.encode().hex(),
            "curve_key": curve.hex(), "suite": "x25519", "epoch": 1, "card": card.hex(),
            "fingerprint": coordinator.public.fingerprint.hex(),
            "signature": sign_coordinator_card(coordinator, card).hex(),
        }
    ]


def invitations() -> Vectors:
    """The line, its fields, and what is derived from its secret."""
    secret = known("invitation secret", 16)
    fields = InvitationText(
        ["tcp://192.0.2.7:7670", "tcp://[2001:db8::7]:7670"], identity("coordinator").public.fingerprint,
        known("curve"), "hybrid", known("invitation id", 16), "bob", "computer", secret,
    )
    return [
        {
            "fields": {k: v.hex() if isinstance(v, bytes) else v for k, v in msgspec.structs.asdict(fields).items()},
            "text": format_invitation(fields), "psk": invitation_psk(secret).reveal().hex(),
            "curve_secret": invitation_curve_secret(secret).reveal().hex(),
        }
    ]


def receipts() -> Vectors:
    """A receipt with its digests."""
    manifest = Manifest("file", "report.pdf", "as promised", 12345, 0o640, 1_700_000_000_000_000_000)
    alice, bob = identity("alice"), identity("bob")
    kem = read_private(b"\2" + known("kem private"))
    card = make_card(
        name="bob", kind="computer", uid=known("uid", 16), identity=bob, kem_key=kem.public, epoch=1,
        not_after=2_000_000_000,
    )
    body = ReceiptBody(
        known("tid", 16), known("xid", 16), known("th"), "alice", alice.public.fingerprint, "bob",
        bob.public.fingerprint, digest(decode(card, Card).body), name_digest(manifest.name), 12345,
        known("blake3"), manifest_digest(manifest), "sender", "aes-256-gcm", "online", 2, True,
        b"", "", 1_700_000_000_000, 1_700_000_001_234,
    )
    return [
        {
            "manifest": encode(manifest).hex(), "name": manifest.name, "name_digest": body.name_digest.hex(),
            "manifest_digest": body.manifest_digest.hex(), "body": encode(body).hex(),
            "seed": bob.secret.reveal().hex(), "receipt": make_receipt(bob, body, card).hex(), "card": card.hex(),
        }
    ]


TOPICS: Final[dict[str, Callable[[], Vectors]]] = {
    topic.__name__: topic
    for topic in (
        transcript, hkdf, tokens, streams, trees, seals, identities, safety_numbers, cards, coordinator_cards,
        invitations, receipts, handshakes.registrations, handshakes.channels, handshakes.transfers,
    )
}


def load(topic: str) -> Vectors:
    """The frozen vectors of a topic."""
    vectors: Vectors = json.loads((FOLDER / f"{topic}.json").read_text())["vectors"]
    return vectors


def main() -> None:
    for name, topic in TOPICS.items():
        path = FOLDER / f"{name}.json"
        if not path.exists():
            about = (topic.__doc__ or "").strip()
            path.write_text(json.dumps({"protocol": "zkc/1", "about": about, "vectors": topic()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
