"""``zkc send --queue``: a delivery becomes a job of the outbox; its bytes are named, or taken over."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from zkc.client.control import AskOutbox, ControlReply, OutboxReply
from zkc.client.events import Options
from zkc.client.sources import source_of
from zkc.client.spool import KEY_BYTES, spool
from zkc.config import ClientConfig
from zkc.crypto.primitives import Secret
from zkc.env import Clock, Entropy
from zkc.errors import DaemonError
from zkc.net.local_client import LocalClient
from zkc.stores.home import Home
from zkc.stores.outbox import Job, Outbox, Spool


def enqueue(
    home: Home, config: ClientConfig, recipients: Sequence[str], payload: str | list[Path] | BinaryIO,
    name: str | None, note: str, exclude: Sequence[str], options: Options, clock: Clock, entropy: Entropy, *,
    copy: bool, expires: float | None,
) -> list[Job]:
    """A job for each of ``recipients``, all or none, durable. Paths are looked at, and read when they are sent, unless
    ``copy``.

    Errors: those of `source_of`; `PolicyRefused` (``limit``), `LocalIOError`.
    """
    outbox, now = Outbox(home), clock.wall()
    paths = [Path(os.path.abspath(path)) for path in payload] if isinstance(payload, list) else []
    source, manifest = source_of(paths or payload, name, note, exclude=exclude)
    with contextlib.ExitStack() as made, contextlib.closing(source):
        ids = [entropy.bytes(8).hex() for _ in recipients]
        folders = [made.enter_context(outbox.making(id)) for id in ids]
        size, spooled = manifest.size, None
        if copy or not paths:
            key = Secret(entropy.bytes(KEY_BYTES))
            size = spool(source, folders[0] / "data", key, config.outbox.max_bytes - outbox.spooled_bytes())
            spooled = Spool(key.reveal(), manifest.kind, manifest.mode, manifest.mtime_ns)
            key.wipe()
            for other in folders[1:]:
                os.link(folders[0] / "data", other / "data")
        jobs = [
            Job(
                id=id, recipient=recipient, name=manifest.name, note=manifest.note, made=now,
                expires=now + (config.outbox.expires if expires is None else expires), bytes=size,
                paths=[] if spooled else [str(path) for path in paths], exclude=list(exclude), spool=spooled,
                key=options.key, key_source=options.key_source, cipher=options.cipher, bwlimit=int(options.bwlimit),
                compress=options.compress, require=options.require,
            )
            for id, recipient in zip(ids, recipients, strict=True)
        ]
        outbox.add(jobs, config.outbox.max_jobs)
    return jobs


def poke(home: Home) -> dict[str, int] | None:
    """The daemon looks at the outbox now, and says how many bytes of which jobs it has sent. None: no daemon runs, or
    it does not answer; it will look when it does."""
    client: LocalClient[OutboxReply] = LocalClient(home.socket_path(), ControlReply)
    try:
        return client.call(AskOutbox(), within=3.0).sent
    except DaemonError:
        return None
