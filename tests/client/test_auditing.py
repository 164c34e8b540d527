"""The daemon's audit log takes what its loop notes, and what its threads do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from tests.support.waiting import until
from zkc.client.auditing import DaemonAudit
from zkc.config import ClientConfig
from zkc.env import SystemClock
from zkc.stores.audit_file import AuditFile
from zkc.stores.home import Home


def test_what_a_thread_notes_is_written_and_what_comes_after_it_too(tmp_path: Path) -> None:
    async def scenario(file: AuditFile) -> None:
        audit = DaemonAudit(file, ClientConfig, SystemClock(), structlog.get_logger())
        await asyncio.to_thread(audit.note, "outbox", recipient="bob")
        await until(lambda: len(file.audit_entries()) == 1)
        audit.note("outbox", recipient="carol")
        await until(lambda: len(file.audit_entries()) == 2)

    with AuditFile.open(Home.resolve("client", str(tmp_path / "home")).prepare()) as file:
        asyncio.run(scenario(file))
        assert [entry.note.recipient for entry in file.audit_entries()] == ["bob", "carol"]
