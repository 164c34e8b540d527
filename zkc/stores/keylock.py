"""What a passphrase does to the rows of a client's key store: private keys are sealed, each for itself.

The cipher is imported where it is used: few homes have a passphrase, and a command that opens no key starts without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from zkc.env import Entropy
from zkc.errors import LocalIOError, PeerViolation
from zkc.stores.sealed_tables import Row

if TYPE_CHECKING:
    from zkc.crypto.primitives import Secret

_MARK: Final = b"zkc sealed 1\n"
"""Stands before what is sealed; no private key by itself begins so."""
LOCK: Final = ("salt", "memory", "passes", "lanes", "wrapped")
"""Columns of the table ``lock``, as `zkc.crypto.passphrase.Lock` has them."""
PRIVATE: Final = frozenset({"identity_private", "kem_private", "curve_secret", "blob"})
"""Columns that are sealed, in whatever table they stand."""
_WHOSE: Final = frozenset({"uid", "invite_id"})
"""And the column beside them that says whose they are: sealed keys of two rows do not change places."""


def is_sealed(stored: object) -> bool:
    return isinstance(stored, bytes) and stored.startswith(_MARK)


def locked(why: str) -> LocalIOError:
    return LocalIOError(
        why, detail="locked", hint="give it on a terminal, or in a file that ZKC_PASSPHRASE_FILE names"
    )


def unlocked(lock: Row, passphrase: Callable[[], bytes] | None) -> Secret:
    """The key that ``passphrase`` opens. `LocalIOError` (``locked``): a wrong one, which is always told alike."""
    from zkc.crypto.passphrase import Lock, open_lock  # noqa: PLC0415 - see above

    if passphrase is None:
        raise locked("the keys of this home are locked by a passphrase")
    try:
        return open_lock(Lock(*lock), passphrase())  # type: ignore[arg-type] # verified: of the types that were written
    except PeerViolation:
        raise locked("this is not the passphrase of this home") from None


def made(passphrase: bytes, master: Secret | None, entropy: Entropy) -> tuple[Row, Secret]:
    """The row of a lock that ``passphrase`` opens, and what it opens: ``master``, or a new key."""
    from zkc.crypto.passphrase import SALT_BYTES, make_lock  # noqa: PLC0415
    from zkc.crypto.primitives import Secret  # noqa: PLC0415

    master = master or Secret(entropy.bytes(32))
    lock = make_lock(passphrase, master, entropy.bytes(SALT_BYTES))
    return [getattr(lock, column) for column in LOCK], master


def opened(columns: Sequence[str], row: Row, master: Secret | None) -> Row:
    """``row`` with its private keys as they are; as it is, without ``master``. `PeerViolation` (``forged``)."""
    if master is None:
        return row
    from zkc.crypto.passphrase import open_key  # noqa: PLC0415

    found = list(row)
    for index, about in _private(columns, row):
        stored = row[index]
        if isinstance(stored, bytes) and is_sealed(stored):
            found[index] = open_key(master, stored[len(_MARK) :], about)
    return found


def closed(columns: Sequence[str], row: Row, master: Secret | None, entropy: Entropy) -> Row:
    """``row`` as it is stored, sealed under ``master`` if there is one."""
    if master is None:
        return row
    from zkc.crypto.passphrase import seal_key  # noqa: PLC0415
    from zkc.crypto.primitives import NONCE_BYTES  # noqa: PLC0415

    stored = list(row)
    for index, about in _private(columns, row):
        private = row[index]
        if isinstance(private, bytes) and not is_sealed(private):
            stored[index] = _MARK + seal_key(master, private, entropy.bytes(NONCE_BYTES), about)
    return stored


def _private(columns: Sequence[str], row: Row) -> Iterator[tuple[int, bytes]]:
    """Where private keys stand in a row, and what is sealed with each: which it is, and whose."""
    owner = next(row[index] for index, column in enumerate(columns) if column in _WHOSE)
    for index, column in enumerate(columns):
        if column in PRIVATE and isinstance(owner, bytes):
            yield index, column.encode() + b"\0" + owner
