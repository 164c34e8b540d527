"""What the owner of a home lets others ask for: each share is granted to identities, by their fingerprints.

A name is resolved to the pinned fingerprint when the grant is written, never at a request (attack P09).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from zkc.errors import PolicyRefused
from zkc.ids import ShareKind
from zkc.stores import files
from zkc.stores.documents import read_document
from zkc.stores.home import Home

SHARES_MAX: Final = 128
_VERSION: Final = 2
NOTE_BYTES_MAX: Final = 256
RECIPIENTS_MAX: Final = 32
"""Of one share; and so many shares that all go into one answer."""
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Grantee(msgspec.Struct, frozen=True):
    """An identity that may ask, and the name that it had when it was granted."""

    name: str
    fingerprint: str
    """In hex digits."""


class Share(msgspec.Struct, frozen=True):
    name: str
    path: str
    """Absolute: a folder or a file."""
    to: list[Grantee]
    recipients: list[str] = []
    """For whom it may be asked for; empty: for the asker alone."""
    note: str = ""

    def may_ask(self, name: str, fingerprint: bytes) -> bool:
        return any((each.name, each.fingerprint) == (name, fingerprint.hex()) for each in self.to)

    def allows(self, name: str, fingerprint: bytes, recipient: str) -> bool:
        """Whether that asker may have it sent to ``recipient``."""
        return self.may_ask(name, fingerprint) and recipient in (self.recipients or [name])


class _Kept(msgspec.Struct, frozen=True):
    """``shares.json``."""

    version: int
    shares: list[Share]


def load_shares(home: Home) -> list[Share]:
    """By name. `LocalIOError` (``damaged``); `VersionMismatch` (``newer``)."""
    path = _path(home)
    if not os.path.lexists(path):
        return []
    # Version 1 was the list alone.
    kind: type[list[Share] | _Kept] = list[Share] | _Kept  # type: ignore[assignment]
    found = read_document(path, kind, _VERSION, "the list of shares", hint="remove it, and share again")
    return found if isinstance(found, list) else found.shares


def change_shares(
    home: Home, change: Callable[[list[Share]], list[Share]]
) -> tuple[list[Share], list[Share]]:
    """What there was, and what ``change`` has made of it, durable; of two processes one after the other."""
    with files.locked(home.data / ".shares.lock", "the list of shares"):
        before = load_shares(home)
        kept = _Kept(_VERSION, sorted(change(before), key=lambda each: each.name))
        files.write_private(_path(home), msgspec.json.encode(kept), replace=True)
    return before, kept.shares


def open_shared(share: Share, path: str) -> tuple[int, str]:
    """The file or folder ``path`` of a share, opened, and its name: what is sent is what this descriptor is of.

    No link is followed on the way, wherever it leads, and each folder is opened from the one before it: nothing that
    somebody swaps meanwhile leads out. `PolicyRefused` (``share``), the same for all that cannot be had.
    """
    refused = PolicyRefused("it is not shared with this asker", detail="share")
    root = Path(share.path)
    if path.startswith("/"):
        if path != share.path and not path.startswith(share.path.rstrip("/") + "/"):
            raise refused
        path = path[len(share.path.rstrip("/")) + 1 :]
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise refused
    folder = -1
    try:
        # The folder in which it is is the owner's word, and whoever may write there may exchange the share as a whole;
        # a link in its place was put there later, as `zkc share` keeps where links lead.
        folder = os.open(root if parts else root.parent, _FOLDER if parts else _FOLDER & ~os.O_NOFOLLOW)
        for part in parts[:-1]:
            below = os.open(part, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below
        found = os.open(parts[-1] if parts else root.name, _FILE, dir_fd=folder)
    except OSError:
        raise refused from None
    finally:
        if folder >= 0:
            os.close(folder)
    mode = os.fstat(found).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        os.close(found)
        raise refused
    return found, parts[-1] if parts else root.name


def kind_of(share: Share) -> ShareKind:
    """What there is to be had of it now."""
    try:
        mode = os.lstat(share.path).st_mode
    except OSError:
        return "gone"
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "gone"


def _path(home: Home) -> Path:
    return home.data / "shares.json"
