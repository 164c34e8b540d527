"""Every way in which zkc can fail, and the number that each way ends with.

An exception *is* its exit code, its reason in JSON and its code on the wire::

    ZkcError
    ├── InternalError            1   a defect of zkc
    ├── UsageError               2   arguments, configuration, malformed invitation
    ├── CoordinatorUnreachable  10   no link
    ├── NotRegistered           11   not (or no longer) registered; invitation of no use
    ├── IdentityError           12   a key changed or did not verify
    ├── UnknownRecipient        20
    ├── RecipientOffline        21
    ├── NobodyThere             22   nobody present; nothing waiting
    ├── NotAuthorised           23
    ├── Refused                 24   by a person
    ├── PolicyRefused           25   by policy or limit
    ├── TimedOut                30
    ├── Interrupted             31   broke off; running it again helps
    ├── IntegrityError          32   data did not verify
    ├── LocalIOError            33   space, permission, source changed
    ├── DaemonError             34   local daemon or coordinator not running, or running twice
    └── VersionMismatch         40

    PeerViolation               --   the other side broke a rule; never shown as it is: the shells translate it
"""

from __future__ import annotations

from typing import ClassVar, Final


class ZkcError(Exception):
    """One failure, told in one line.

    ``message`` says what failed, at which step and with whom; ``hint`` says what to do; ``detail`` is the
    finer word of ``docs/errors.md`` (empty where there is none).
    """

    code: ClassVar[int] = 1
    reason: ClassVar[str] = "internal"

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class InternalError(ZkcError):
    code, reason = 1, "internal"


class UsageError(ZkcError):
    code, reason = 2, "usage"


class CoordinatorUnreachable(ZkcError):
    code, reason = 10, "coordinator-unreachable"


class NotRegistered(ZkcError):
    code, reason = 11, "not-registered"


class IdentityError(ZkcError):
    code, reason = 12, "identity"


class UnknownRecipient(ZkcError):
    code, reason = 20, "unknown-recipient"


class RecipientOffline(ZkcError):
    code, reason = 21, "recipient-offline"


class NobodyThere(ZkcError):
    code, reason = 22, "nobody-there"


class NotAuthorised(ZkcError):
    code, reason = 23, "not-authorised"


class Refused(ZkcError):
    code, reason = 24, "refused"


class PolicyRefused(ZkcError):
    code, reason = 25, "policy"


class TimedOut(ZkcError):
    code, reason = 30, "timeout"


class Interrupted(ZkcError):
    code, reason = 31, "interrupted"


class IntegrityError(ZkcError):
    code, reason = 32, "integrity"


class LocalIOError(ZkcError):
    code, reason = 33, "local-io"


class DaemonError(ZkcError):
    code, reason = 34, "daemon"


class VersionMismatch(ZkcError):
    code, reason = 40, "version"


BY_CODE: Final[dict[int, type[ZkcError]]] = {
    kind.code: kind
    for kind in (
        InternalError, UsageError, CoordinatorUnreachable, NotRegistered, IdentityError, UnknownRecipient,
        RecipientOffline, NobodyThere, NotAuthorised, Refused, PolicyRefused, TimedOut, Interrupted,
        IntegrityError, LocalIOError, DaemonError, VersionMismatch,
    )
}


def error_for(code: int, message: str, *, detail: str = "", hint: str = "") -> ZkcError:
    """The exception for a contract code that a peer sent; a code that is none of the contract is internal."""
    return BY_CODE.get(code, InternalError)(message, detail=detail, hint=hint)


class PeerViolation(Exception):
    """The other side sent what no honest peer sends: malformed, out of order, replayed, not verifying.

    ``detail`` is one word (``malformed``, ``unexpected``, ``replay``, ``bad-key``, ``limit``, ...). It is one
    answer for all causes towards the peer; the shell that called decides what it means for the user.
    """

    def __init__(self, detail: str, why: str = "") -> None:
        super().__init__(f"{detail}: {why}" if why else detail)
        self.detail = detail
