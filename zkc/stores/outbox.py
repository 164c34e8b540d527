"""Jobs that wait for delivery: one folder each in ``outbox/jobs``, with ``job.json``, and ``data`` where bytes were
taken over. A job is there once its folder has its name, and gone once it has not: a rename each.

Commands make, list, cancel and retry jobs; the daemon alone delivers them. Every change of one is made under one lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from zkc.errors import LocalIOError, PolicyRefused
from zkc.ids import KeySource, Presence
from zkc.stores import files
from zkc.stores.documents import read_document
from zkc.stores.home import Home
from zkc.stores.items import the_one

_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_NEW: Final = ".new-"
JobState = Literal["waiting", "sending", "failed"]


class Spool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes that were taken over: encrypted, under a key that goes with the job."""

    key: bytes
    kind: Literal["file", "stream", "message", "tree"]
    mode: int
    mtime_ns: int

    def __repr__(self) -> str:
        return f"Spool({self.kind}, ...)"


_JOB_VERSION: Final = 1


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One delivery to one recipient. Times in seconds since 1970, sizes in bytes."""

    id: str
    recipient: str
    name: str
    note: str
    made: float
    expires: float
    bytes: int | None
    paths: list[str] = []
    """By reference, absolute; empty: ``spool`` has the bytes."""
    exclude: list[str] = []
    spool: Spool | None = None
    key: str | None = None
    """`--id` of whoever asked for it; None: the job's own."""
    key_source: KeySource | None = None
    cipher: str | None = None
    bwlimit: int = 0
    compress: bool = False
    require: Presence = "online"
    state: JobState = "waiting"
    tries: int = 0
    next: float = 0.0
    """When the next try is due."""
    code: int = 0
    """Of what the last try ended with; with its finer word and its line."""
    detail: str = ""
    why: str = ""
    version: int = _JOB_VERSION
    """Of ``job.json``."""


class Outbox:
    """That of one home."""

    def __init__(self, home: Home) -> None:
        self._folder = home.outbox / "jobs"

    def jobs(self) -> list[Job]:
        """All, oldest first; what cannot be read is left out, and `damaged` has it. `VersionMismatch` (``newer``):
        one is a later zkc's."""
        found = [job for id in self._ids() if (job := self.job(id)) is not None]
        return sorted(found, key=lambda job: (job.made, job.id))

    def job(self, id: str) -> Job | None:
        """The job ``id``; None: there is none (any more), or it is damaged. `VersionMismatch` (``newer``)."""
        path = self._folder / id / "job.json"
        try:
            return read_document(path, Job, _JOB_VERSION, "the job", hint=f"zkc outbox cancel {id}")
        except LocalIOError:
            return None

    def damaged(self) -> list[str]:
        """Ids of jobs that cannot be read."""
        return [id for id in self._ids() if self.job(id) is None]

    def find(self, prefix: str) -> Job:
        """The one whose id begins so. `UsageError`: ``unknown-id``, ``ambiguous-id``."""
        jobs = [job for job in self.jobs() if prefix and job.id.startswith(prefix.lower())]
        return the_one(jobs, prefix, "no job {} is in the outbox")

    def data(self, job: Job) -> Path:
        """Where its spooled bytes are."""
        return self._folder / job.id / "data"

    def spooled_bytes(self) -> int:
        """What all spools take, those that are being made too."""
        total = 0
        for folder in (*self._ids(), *self._begun()):
            with contextlib.suppress(OSError):
                total += (self._folder / folder / "data").stat().st_size
        return total

    @contextlib.contextmanager
    def making(self, id: str) -> Iterator[Path]:
        """A folder for a new job's ``data``, before `add`; gone with whatever was not added."""
        folder = self._folder / f"{_NEW}{id}"
        with self._lock():  # `tidy` finds no folder that has no lock yet
            files.make_folder(folder)
            descriptor = files.open_folder(folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # who is killed from here on leaves it without one
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)

    def add(self, jobs: Sequence[Job], at_most: int) -> None:
        """``jobs``, whose folders `making` gave, all or none: durable when this returns. `PolicyRefused`: there would
        be more than ``at_most``."""
        with self._lock():
            if len(self._ids()) + len(jobs) > at_most:
                raise PolicyRefused(
                    f"more than {at_most} jobs would be in the outbox", detail="limit",
                    hint="zkc outbox lists them; outbox.max_jobs bounds them",
                )
            with files.translated("adding to the outbox"):
                for job in jobs:
                    path = self._folder / f"{_NEW}{job.id}" / "job.json"
                    files.write_private(path, msgspec.json.encode(job), replace=False)
                for job in jobs:
                    (self._folder / f"{_NEW}{job.id}").rename(self._folder / job.id)
                _sync(self._folder)

    def change(self, id: str, change: Callable[[Job], Job]) -> Job | None:
        """What ``change`` makes of it, durable; None: there is none any more."""
        with self._lock():
            job = self.job(id)
            if job is None:
                return None
            changed = change(job)
            if changed != job:
                files.write_private(self._folder / id / "job.json", msgspec.json.encode(changed), replace=True)
            return changed

    def retry(self, id: str, now: float) -> Job | None:
        """Try it now, also one that has failed; one that has expired gets as long again. None: there is none."""
        def again(job: Job) -> Job:
            if job.state == "sending":
                return job
            expires = job.expires if job.expires > now else now + (job.expires - job.made)
            return msgspec.structs.replace(
                job, state="waiting", next=0.0, code=0, detail="", why="", expires=expires
            )

        return self.change(id, again)

    def remove(self, id: str) -> bool:
        """Erase it. False: there is none."""
        with self._lock(), files.translated("removing from the outbox"):
            gone = self._folder / f".gone-{id}"
            try:
                (self._folder / id).rename(gone)
            except FileNotFoundError:
                return False
            _sync(self._folder)
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def tidy(self) -> None:
        """At a daemon's start: what was being sent waits again, and what was being made or removed is gone."""
        for id in self._ids():
            self.change(id, _not_sending)
        with contextlib.suppress(OSError, LocalIOError), self._lock():
            for path in self._folder.iterdir():
                if path.name.startswith(".gone-") or (path.name.startswith(_NEW) and _is_left(path)):
                    shutil.rmtree(path, ignore_errors=True)

    def _make_folder(self) -> None:
        files.make_folder(self._folder.parent)
        files.make_folder(self._folder)

    def _ids(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._folder) if _ID.fullmatch(name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise files.local_error(error, "reading the outbox") from None

    def _begun(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._folder) if name.startswith(_NEW)]
        except OSError:
            return []

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self._make_folder()
        with files.locked(self._folder / ".lock", "the outbox"):
            yield


def _not_sending(job: Job) -> Job:
    return msgspec.structs.replace(job, state="waiting") if job.state == "sending" else job


def _is_left(folder: Path) -> bool:
    """Whether nobody makes a job there any more."""
    descriptor = files.open_folder(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _sync(folder: Path) -> None:
    descriptor = files.open_folder(folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
