"""Where a client or a coordinator lives on disk, who may look into it, and that it runs once.

``ZKC_HOME`` (or ``--home``) puts everything below one folder; without it the platform's folders are used, with
``zkc/client`` or ``zkc/coordinator`` in them. `Home.resolve` only computes paths; `Home.prepare` makes and checks.
This module is on the path of every command: it imports little.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from shlex import quote
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self, get_args

from zkc.errors import DaemonError, LocalIOError, UsageError
from zkc.stores import files

Role = Literal["client", "coordinator"]

LAYOUT: Final = 1
"""Which files a home has, and what is in those that do not say their own version. A later one is named in ``role``,
after the role: "client 2"."""
SOCKET_PATH_MAX: Final = 107
"""Bytes: sun_path of AF_UNIX holds 108 with its NUL."""
LOCK_TRIES: Final = 40
LOCK_PAUSE_SECONDS: Final = 0.05
"""Together 2 s: what a program that ends may still need for its goodbye (`constants.GOODBYE_SECONDS`)."""

_RUNS: Final[dict[Role, str]] = {"client": "daemon", "coordinator": "coordinator"}


class Home(NamedTuple):
    """The folders of one client or one coordinator."""

    role: Role
    data: Path
    """Keys, inbox, receipts, and ``run/lock``: what must be one and the same for all processes of this home."""
    config_folder: Path
    runtime: Path
    """Where the control socket is, unless its path is too long there."""

    @classmethod
    def resolve(cls, role: Role, folder: str | None = None, environ: Mapping[str, str] = os.environ) -> Self:
        """The home that ``--home`` (``folder``), else ``ZKC_HOME``, else the platform names. Changes nothing.

        Errors: `UsageError` for an empty ``folder``.
        """
        if folder == "":
            raise UsageError("the home has an empty name", hint="name a folder")
        chosen = folder or environ.get("ZKC_HOME")
        if chosen:
            data = Path(chosen).resolve()
            return cls(role, data, data, data / "run")
        import platformdirs  # noqa: PLC0415 - costs, and a command with ZKC_HOME does without

        return cls(
            role,
            Path(platformdirs.user_data_dir("zkc", appauthor=False), role).resolve(),
            Path(platformdirs.user_config_dir("zkc", appauthor=False), role).resolve(),
            _user_runtime(environ) / role,
        )

    @property
    def config_file(self) -> Path:
        return self.config_folder / "config.toml"

    @property
    def keys_db(self) -> Path:
        return self.data / "keys.db"

    def keydb_url(self, configured: str) -> str:
        """Of a coordinator's key database: the one that is ``configured``, or that of the file in this home."""
        return configured or f"sqlite:///{self.keys_db}"

    @property
    def audit_db(self) -> Path:
        return self.data / "audit.db"

    @property
    def inbox(self) -> Path:
        return self.data / "inbox"

    @property
    def outbox(self) -> Path:
        return self.data / "outbox"

    @property
    def receipts(self) -> Path:
        return self.data / "receipts"

    @property
    def lock_file(self) -> Path:
        return self.data / "run" / "lock"

    @property
    def _role_file(self) -> Path:
        return self.data / "role"

    def exists(self) -> bool:
        """Whether something was ever kept here."""
        return os.path.lexists(self._role_file)

    def prepare(self) -> Self:
        """Make what is missing, 0700, and check all of it (attacks K01, L02); the first call settles the home's role.

        Errors: `UsageError` (a file is there; ``role``: it is the other program's home), `LocalIOError`,
        `VersionMismatch` (``newer``).
        """
        for folder in dict.fromkeys((self.data, self.config_folder)):
            _check_place(folder)
            with files.translated(f"folder {folder}"):
                folder.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    folder.mkdir(files.PRIVATE_FOLDER)
            files.check_folder(folder, private=False)
        if not self.exists():
            files.write_private(self._role_file, f"{self.role}\n".encode(), replace=False)
        self._check_role()
        files.make_folder(self.lock_file.parent)
        return self

    def clear(self, lock: HomeLock) -> None:
        """Take back `prepare` and the key store: what was begun here came to nothing."""
        lock.check_held()
        for path in (*self.data.glob(f"{self.keys_db.name}*"), self._role_file):
            path.unlink(missing_ok=True)

    def check(self) -> Self:
        """Check what is there and make nothing. An empty or missing home is fine. Errors: as `prepare`."""
        for folder in dict.fromkeys((self.data, self.config_folder)):
            _check_place(folder)
            if os.path.lexists(folder):
                files.check_folder(folder, private=False)
        if self.exists():
            self._check_role()
        return self

    def _check_role(self) -> None:
        text = files.read_private(self._role_file).decode("ascii", "replace").strip()
        found, _, layout = text.partition(" ")
        if found in get_args(Role) and layout.isascii() and layout.isdigit() and int(layout) > LAYOUT:
            raise files.newer("the home", self.data)
        if found not in get_args(Role) or layout:
            raise LocalIOError(
                f"{self._role_file} does not say whose home this is", detail="damaged",
                hint=f"it holds one word: {' or '.join(get_args(Role))}",
            )
        if found != self.role:
            raise UsageError(
                f"{self.data} is the home of a {found}, not of a {self.role}", detail="role",
                hint="give the other program a home of its own with --home or ZKC_HOME",
            )

    def lock(self, tries: int = LOCK_TRIES) -> HomeLock:
        """The right to be this home's one running program, until released or dead (attack L03).

        Waits at most 2 s for a program that is just ending.
        Errors: `DaemonError` (``already-running``), `LocalIOError`.
        """
        files.make_folder(self.lock_file.parent)
        for left in range(tries, -1, -1):
            descriptor = _try_lock(self.lock_file)
            if descriptor is not None:
                return HomeLock(descriptor)
            if left:
                select.select((), (), (), LOCK_PAUSE_SECONDS)
        runs, holder = _RUNS[self.role], _holder(self.lock_file)
        raise DaemonError(
            f"a {runs} is already running in {self.data}{holder}", detail="already-running",
            hint=f"end that {runs} first",
        )

    def held_by(self) -> int | None:
        """The process that holds this home's lock, 0 where its number is not known; None: nobody. Changes nothing."""
        with suppress(OSError):
            descriptor = os.open(self.lock_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                # Shared: of two who ask at once neither takes the other for a daemon.
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _holder_number(self.lock_file)
            finally:
                os.close(descriptor)
        return None

    def socket_path(self) -> Path:
        """Where the control socket is, or would be: at most 107 bytes. Changes nothing.

        Errors: `LocalIOError` where no folder is short enough.
        """
        for folder in self._socket_folders():
            path = folder / "control.sock"
            if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
                return path
        raise LocalIOError(
            f"{self.data}: no path for the control socket is short enough", hint="choose a home with a shorter path"
        )

    def _socket_folders(self) -> tuple[Path, ...]:
        if len(os.fsencode(self.runtime)) + len("/control.sock") <= SOCKET_PATH_MAX:
            return (self.runtime,)
        import hashlib  # noqa: PLC0415 - only for a path that is too long

        own = hashlib.sha256(os.fsencode(self.data.resolve())).hexdigest()[:16]
        return _user_runtime(os.environ) / own, _shared_runtime() / own

    def prepare_socket(self, lock: HomeLock) -> Path:
        """`socket_path`, ready to bind: its folder made and checked, a dead program's socket removed.

        Only who holds the lock may ask: so no living program answers on what is removed. Anything but a socket of
        ours that others cannot write to is left as it is, and refused (attack L02). Errors: `LocalIOError`.
        """
        lock.check_held()
        path = self.socket_path()
        if path.parent.parent != self.data:
            files.make_folder(path.parent.parent)
        files.make_folder(path.parent)
        with files.translated(f"control socket {path}"):
            try:
                found = path.lstat()
            except FileNotFoundError:
                return path
            ours = stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
            if not ours:
                mend = f"mv {quote(str(path))} {quote(f'{path}.old')}"
                raise files.refused(path, "is not a socket that zkc made", mend)
            path.unlink()
        return path


def _check_place(folder: Path) -> None:
    """`UsageError` where what stands at ``folder``, or above it, is a file."""
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    if not there.is_dir():
        why = "is not a folder" if there == folder else f"cannot be made: {there} is not a folder"
        raise UsageError(f"the home {folder} {why}", hint="name another with --home or ZKC_HOME")


class HomeLock:
    """Held while the object lives and is not released; the system releases it when the process dies."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def check_held(self) -> None:
        """`DaemonError` after `release`."""
        if self._descriptor is None:
            raise DaemonError("the lock of this home was released")

    def fileno(self) -> int:
        """The descriptor, for a child that is to hold the lock too."""
        self.check_held()
        assert self._descriptor is not None
        return self._descriptor

    def release(self) -> None:
        """Harmless when repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _try_lock(path: Path) -> int | None:
    """The locked file's descriptor; None while another process has it."""
    with files.translated(f"lock {path}"):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        if path.is_symlink():
            files.check_file(path)
        descriptor = os.open(path, flags, files.PRIVATE_FILE)
        try:
            files.check_file(path)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever cleaned the folder between open and flock made this a lock on a file that nobody else sees.
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                with suppress(OSError):  # the number is for people; a full disk keeps nobody from starting
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
        except BlockingIOError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None


def _holder(path: Path) -> str:
    number = _holder_number(path)
    return f" (process {number})" if number else ""


def _holder_number(path: Path) -> int:
    """0 where it is not known."""
    try:
        return int(path.read_bytes()[:20])
    except (OSError, ValueError):
        return 0


def _user_runtime(environ: Mapping[str, str]) -> Path:
    """``zkc`` in the user's runtime folder, where there is one that is really his.

    Not asked of platformdirs, which warns on stderr and falls back to a name of its own.
    """
    for base in (environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.geteuid()}"):
        with suppress(OSError):
            found = Path(base).stat()
            if (
                Path(base).is_absolute() and stat.S_ISDIR(found.st_mode)
                and found.st_uid == os.geteuid() and not found.st_mode & 0o022
            ):
                return Path(base, "zkc")
    return _shared_runtime()


def _shared_runtime() -> Path:
    # A fixed name in a folder for all: `make_folder` refuses it if somebody else was there first.
    return Path("/tmp", f"zkc-{os.geteuid()}")  # noqa: S108
