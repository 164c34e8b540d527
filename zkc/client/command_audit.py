"""What a command decides without the daemon goes into the client's audit log, each decision by itself.

A daemon may run meanwhile, and other commands: SQLite's lock makes them one writer at a time, and each appends to what
the others have written.
"""

from __future__ import annotations

from typing import Final

from zkc.config import ClientConfig
from zkc.crypto.audit import clean
from zkc.env import Clock
from zkc.errors import ZkcError
from zkc.stores.audit_file import AuditFile
from zkc.stores.home import Home
from zkc.stores.noting import PRUNE_STEP

_PRUNE_EVERY: Final = 100
"""Old entries go, too, where no daemon ever runs: with each so many, as many and more."""


class CommandAudit:
    """`zkc.stores.noting.Notes` of a command, or of a program."""

    def __init__(self, home: Home, config: ClientConfig, clock: Clock) -> None:
        self._home = home
        self._bounds = config.audit.kept, config.audit.entries
        self._clock = clock

    def note(
        self, event: str, sender: str = "", recipient: str = "", *, code: int = 0, detail: str = "", rule: str = ""
    ) -> None:
        """Written when this returns. A log that cannot be written is a warning on stderr, and stops nothing."""
        now = self._clock.wall()
        note = clean(now, event, sender, recipient, code=code, detail=detail, rule=rule)
        try:
            with AuditFile.open(self._home) as file:
                if file.audit([note]) % _PRUNE_EVERY == 0:
                    kept, at_most = self._bounds
                    file.prune_audit(now - kept, at_most, PRUNE_STEP)
        except ZkcError as error:
            # By itself this goes to stderr; a program that uses the API has it where it has its own.
            import logging  # noqa: PLC0415 - costs, and hardly ever is it needed

            logging.getLogger("zkc.audit").warning("zkc: not noted in the audit log: %s", error)
