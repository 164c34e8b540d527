"""Identifiers: what they are made of, and the grammar of names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, get_args

from zkc.errors import UsageError

Kind = Literal["computer", "user", "application"]
KeySource = Literal["sender", "coordinator"]
KeyOrder = Literal["recipient-first", "sender-first"]
Identifier = Literal["clear", "sealed"]
"""How a client says who it is: as it is, or under the coordinator's general key."""
Acknowledgement = Literal["session", "permanent"]
"""Under which key a recipient acknowledges: the session key, or under it, sealed to the sender's permanent key."""
Presence = Literal["online", "present", "authorised"]
PersonState = Literal["present", "absent", "unknown"]
Compression = Literal["none", "zstd"]
ShareKind = Literal["file", "folder", "gone"]
Suite = Literal["hybrid", "x25519", "rsa"]
SUITES: Final[tuple[Suite, ...]] = get_args(Suite)
KEY_ORDERS: Final[tuple[KeyOrder, ...]] = get_args(KeyOrder)
SAFE_CIPHERS: Final = ("aes-256-gcm", "chacha20-poly1305")
UNSAFE_CIPHERS: Final = ("3des", "idea")
"""The document's own two: off unless coordinator, sender and recipient each name them."""
CIPHERS: Final = (*SAFE_CIPHERS, *UNSAFE_CIPHERS)

VARIABLES: Final[Mapping[str, str]] = {
    "ZKC_HOME": "The folder with configuration, keys, inbox and sockets; --home goes before it.",
    "ZKC_INVITE": "The invitation, for zkc join.",
    "ZKC_PIN": "The PIN or code of the person here.",
    "ZKC_PASSPHRASE_FILE": "A file whose first line is the passphrase of the keys of this home.",
    # What `recv --exec` and hooks set for the command that they run, which may be zkc again.
    "ZKC_EVENT": "Set for a hook: arrived or asked.",
    "ZKC_ITEM": "Set for a hook: the id, for zkc inbox save, zkc accept and zkc refuse.",
    "ZKC_SENDER": "Set for a hook, and for the command of recv --exec: who sent it.",
    "ZKC_NAME": "The same: what it is called.",
    "ZKC_NOTE": "The same: the note beside it.",
    "ZKC_DIGEST": "The same: the digest of its content.",
    "ZKC_TRANSFER": "The same: the id of its transfer.",
    "ZKC_KEY_SOURCE": "The same: who made its key.",
    "ZKC_ASKED_BY": "The same: the client that asked the sender for it, if one did.",
}
"""Environment variables of zkc that are no keys of a configuration, with what zkc(1) says of them."""

_LABEL: Final = r"[a-z0-9][a-z0-9._-]{0,62}"
_NAME: Final = re.compile(rf"{_LABEL}(?:/{_LABEL})?", re.ASCII)


def is_name(text: str) -> bool:
    """Whether ``text`` is ``NAME`` or ``NAME/APP`` of the contract's grammar (ASCII, at most 127 characters)."""
    return _NAME.fullmatch(text) is not None


def check_name(text: str, what: str = "name") -> str:
    """``text`` if it is a name, else `UsageError`."""
    if not is_name(text):
        raise UsageError(
            f"{what} {text[:80]!r} is not a name",
            detail="bad-name",
            hint="names are lower-case letters, digits, '.', '_' and '-', at most 63 characters (NAME or NAME/APP)",
        )
    return text


def owner_of(name: str) -> str | None:
    """``bob`` for ``bob/backup``; None for a name that is no application's."""
    owner, slash, _ = name.partition("/")
    return owner if slash else None
