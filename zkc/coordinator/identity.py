"""The coordinator's identity: what every invitation names and every client pins, made at the first start.

It lies in a file of its own, apart from the key database, so whoever steals the database has not got it. The file is a
first line that says what it is, a MessagePack structure, and SHA-256 over both: a flipped byte is refused, never used.
"""

from __future__ import annotations

import fcntl
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta, Struct

from zkc.constants import SUCCESSIONS_MAX
from zkc.crypto.cards import make_coordinator_card, sign_coordinator_card
from zkc.crypto.primitives import Secret, digest, expand, extract
from zkc.crypto.signing import IdentityKey
from zkc.crypto.successions import make_succession
from zkc.crypto.suites import KemPrivateKey, Suite, read_private, suite_named
from zkc.env import Entropy
from zkc.errors import DaemonError, LocalIOError, PeerViolation
from zkc.net.sockets import CurveKeys, curve_public, generate_curve, to_raw, to_z85
from zkc.protocol.trust import COORDINATOR_NAME
from zkc.stores import files
from zkc.wire.codec import decode, encode

FILE_NAME: Final = "identity.key"
_MAGIC: Final = b"zkc coordinator identity 1\n"
_MAGIC_ROTATED: Final = b"zkc coordinator identity 2\n"
"""Of one that has taken another's place."""
_ANY_MAGIC: Final = re.compile(rb"zkc coordinator identity [1-9]\d*\n")
_CHECKSUM: Final = 32
_SEED: Final = 64


class _Stored(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    suite: str
    seed: Annotated[bytes, Meta(min_length=_SEED, max_length=_SEED)]
    general_key: bytes
    curve_secret: Annotated[bytes, Meta(min_length=32, max_length=32)]
    epoch: int

    def __repr__(self) -> str:
        return "_Stored(…)"


class _Rotated(_Stored, frozen=True, array_like=True, forbid_unknown_fields=True):
    mac_key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    """The first identity's, under which the rows stand."""
    successions: list[bytes]
    former_general: list[bytes]
    """The newest first."""


@dataclass(frozen=True, repr=False)
class CoordinatorIdentity:
    """Signing identity, general KEM key, CURVE key and suite, and the card that tells their public halves."""

    signing: IdentityKey
    general_key: KemPrivateKey
    curve: CurveKeys
    suite: Suite
    card: bytes
    card_signature: bytes
    mac_key: bytes
    """Of the key database's rows, 32 bytes."""
    epoch: int
    successions: tuple[bytes, ...]
    """From the first identity to this one."""
    former_general: tuple[KemPrivateKey, ...]
    """General keys of former identities, the newest first, as far back as a client may come from: it seals its uid to
    the one that it knows."""

    def __repr__(self) -> str:
        return f"CoordinatorIdentity({self.fingerprint.hex()[:16]}, …)"

    @property
    def fingerprint(self) -> bytes:
        return self.signing.public.fingerprint

    @property
    def curve_public(self) -> bytes:
        """32 bytes, as invitations carry it."""
        return to_raw(self.curve.public)


def identity_file(home: Path) -> Path:
    return home / FILE_NAME


def load(home: Path) -> CoordinatorIdentity:
    """The identity kept in ``home``.

    `DaemonError` (``not-running``) where no coordinator ever ran; `LocalIOError`: ``damaged``, ``permission``, ``io``;
    `VersionMismatch` (``newer``).
    """
    path = identity_file(home)
    if not path.exists() and not path.is_symlink():
        raise DaemonError(
            f"no coordinator has run in {home} yet", detail="not-running", hint="start it: zkc coordinator run"
        )
    return _read(path)


def load_or_create(home: Path, suite: str, entropy: Entropy) -> CoordinatorIdentity:
    """The identity kept in ``home``; at the first start made with ``suite``, durable before it is used.

    Errors: as `load`; `LocalIOError` (``missing``) where a key database is there and its identity is not.
    """
    path = identity_file(home)
    if path.exists() or path.is_symlink():
        return _read(path)
    if (home / "keys.db").exists():
        raise LocalIOError(
            f"{path} is missing, and {home / 'keys.db'} cannot be read without it", detail="missing",
            hint="restore both from a backup",
        )
    made = _Stored(
        suite, entropy.bytes(_SEED), suite_named(suite).generate().encode(), to_raw(generate_curve().secret), 1
    )
    body = _MAGIC + encode(made)
    # Of two first starts at once one wins, and both read what it wrote.
    files.write_private(path, body + digest(body), replace=False)
    return _read(path)


def rotate(home: Path, entropy: Entropy) -> CoordinatorIdentity:
    """A new identity in ``home``, for which the present one vouches: one file in the place of another, durable.

    The CURVE key stays, since clients that come back after long dial with it; and so does the key of the database's
    MACs. Of two processes at once one waits for the other. Errors: as `load`.
    """
    folder = files.open_folder(home)
    try:
        with files.translated(f"folder {home}"):
            fcntl.flock(folder, fcntl.LOCK_EX)
        old = load(home)
        seed = entropy.bytes(_SEED)
        epoch = old.epoch + 1
        step = make_succession(COORDINATOR_NAME, old.signing, IdentityKey.from_seed(seed), epoch)
        made = _Rotated(
            old.suite.name, seed, old.suite.generate().encode(), to_raw(old.curve.secret), epoch, old.mac_key,
            [*old.successions, step],
            [key.encode() for key in (old.general_key, *old.former_general)][:SUCCESSIONS_MAX],
        )
        body = _MAGIC_ROTATED + encode(made)
        files.write_private(identity_file(home), body + digest(body), replace=True)
        return load(home)
    finally:
        os.close(folder)


def _read(path: Path) -> CoordinatorIdentity:
    data = files.read_private(path)
    body, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
    try:
        kind = {_MAGIC: _Stored, _MAGIC_ROTATED: _Rotated}.get(body[: len(_MAGIC)])
        if digest(body) != checksum:
            raise ValueError("checksum")
        if kind is None:
            raise files.newer("the coordinator's identity", path) if _ANY_MAGIC.match(body) else ValueError("magic")
        return _identity(decode(body[len(_MAGIC) :], kind))
    except (ValueError, PeerViolation):
        raise LocalIOError(
            f"the coordinator's identity {path} is damaged", detail="damaged", hint="restore it from a backup"
        ) from None


def _identity(stored: _Stored) -> CoordinatorIdentity:
    signing = IdentityKey.from_seed(stored.seed)
    general = read_private(stored.general_key)
    secret = to_z85(stored.curve_secret)
    curve = CurveKeys(curve_public(secret), secret)
    suite = suite_named(stored.suite)
    card = make_coordinator_card(signing, general.public, to_raw(curve.public), suite.name, stored.epoch)
    if isinstance(stored, _Rotated):
        mac_key, successions = stored.mac_key, tuple(stored.successions)
        former = tuple(map(read_private, stored.former_general))
    else:
        mac_key, successions = expand(extract(b"zkc/1 key database", Secret(stored.seed)), "row mac", 32), ()
        former = ()
    signature = sign_coordinator_card(signing, card)
    return CoordinatorIdentity(
        signing, general, curve, suite, card, signature, mac_key, stored.epoch, successions, former
    )
