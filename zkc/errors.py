"""Every way in which zkc can fail, and the number that each way ends with.

An exception *is* its exit code, its reason in JSON and its code on the wire; its docstring is its line in zkc(1)::

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
        if not self.hint:
            return self.message
        return f"{self.message}{'' if self.message.endswith('?') else ';'} {self.hint}"


class InternalError(ZkcError):
    """A defect of zkc, or of the zkc at the other end."""

    code, reason = 1, "internal"


class UsageError(ZkcError):
    """Wrong arguments or configuration; a malformed invitation. Nothing was done."""

    code, reason = 2, "usage"


class CoordinatorUnreachable(ZkcError):
    """No link to the coordinator, or something else answers there."""

    code, reason = 10, "coordinator-unreachable"


class NotRegistered(ZkcError):
    """The client is not registered, or was revoked; an invitation that is of no use; a name that is taken."""

    code, reason = 11, "not-registered"


class IdentityError(ZkcError):
    """A key changed or did not verify, and nothing was sent; a receipt that is not genuine."""

    code, reason = 12, "identity"


class UnknownRecipient(ZkcError):
    """Nobody of this name is registered."""

    code, reason = 20, "unknown-recipient"


class RecipientOffline(ZkcError):
    """The recipient is not online."""

    code, reason = 21, "recipient-offline"


class NobodyThere(ZkcError):
    """No person is present there; for recv: nothing is waiting."""

    code, reason = 22, "nobody-there"


class NotAuthorised(ZkcError):
    """The person there may not receive it, or did not prove it."""

    code, reason = 23, "not-authorised"


class Refused(ZkcError):
    """Refused by a person."""

    code, reason = 24, "refused"


class PolicyRefused(ZkcError):
    """Refused by policy or a limit, the coordinator's or an end's."""

    code, reason = 25, "policy"


class TimedOut(ZkcError):
    """No answer in time."""

    code, reason = 30, "timeout"


class Interrupted(ZkcError):
    """The transfer broke off; running it again goes on from there."""

    code, reason = 31, "interrupted"


class IntegrityError(ZkcError):
    """Data did not verify; nothing of it was delivered."""

    code, reason = 32, "integrity"


class LocalIOError(ZkcError):
    """No space, not readable, not writable, or the source changed while it was read."""

    code, reason = 33, "local-io"


class DaemonError(ZkcError):
    """The local daemon (or coordinator) does not run or does not answer; or one runs here already."""

    code, reason = 34, "daemon"


class VersionMismatch(ZkcError):
    """The other side speaks a version that this one does not."""

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
