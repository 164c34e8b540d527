"""What every store on disk does alike: private files and folders, publishing a finished file, errors as ours.

No function here follows a symbolic link in the last component of a path, and none removes what it did not make.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from shlex import quote
from typing import Final

from zkc.errors import LocalIOError, VersionMismatch

PRIVATE_FILE: Final = 0o600
PRIVATE_FOLDER: Final = 0o700

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_OTHER_KIND: Final = frozenset({errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP})
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_NO_RENAMEAT2: Final = frozenset({errno.EINVAL, errno.ENOSYS})

WHOSE: Final = "whose is it? ls -l tells"
AGAIN: Final = "run it again; if that does not help, the disk may be failing: the system's log says more"

_scratch_numbers: Final = count()


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Errors of the system inside the block become `LocalIOError`: "``doing``: what the system said".

    ``detail`` is ``no-space``, ``permission``, ``missing`` or ``io``.
    """
    try:
        yield
    except OSError as error:
        raise local_error(error, doing) from error


def local_error(error: OSError, doing: str) -> LocalIOError:
    """The `LocalIOError` for what the system answered to ``doing``."""
    said = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in NO_SPACE:
        return LocalIOError(f"{doing}: {said}", detail="no-space", hint="make room and run it again")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return LocalIOError(f"{doing}: {said}", detail="permission", hint=WHOSE)
    if error.errno == errno.ENOENT:
        return LocalIOError(f"{doing}: {said}", detail="missing", hint="did something remove it, or its folder?")
    if error.errno in _OTHER_KIND:
        return LocalIOError(f"{doing}: {said}", detail="io", hint="something else stands there: ls -l tells")
    return LocalIOError(f"{doing}: {said}", detail="io", hint=AGAIN)


def refused(path: Path, why: str, mend: str) -> LocalIOError:
    """A file or folder that zkc will not use as it is; ``mend`` is the command that puts it right."""
    return LocalIOError(f"{path}: {why}", detail="permission", hint=f"to mend it: {mend}")


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """One process at a time, by a lock on the file ``path``, which is made where there is none."""
    with translated(doing):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        with translated(doing):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- who may read and write (attacks K01, L02) ---------------------------------------------------------------------


def newer(what: str, path: Path) -> VersionMismatch:
    """``what`` ("the inbox") at ``path`` was written by a later zkc, and is left as it is."""
    return VersionMismatch(
        f"{what} {path} was written by a newer zkc", detail="newer",
        hint="install that zkc again, or restore a backup from before it",
    )


def check_folder(path: Path, *, private: bool) -> None:
    """Refuse a folder that is somebody else's, or where others can put or exchange files.

    ``private`` is for folders that zkc makes: no link in their place, and others cannot even look inside. The folder
    that a user names as home may be a link, and be readable.
    """
    with translated(f"folder {path}"):
        found = path.lstat() if private else path.stat()
    if stat.S_ISLNK(found.st_mode):
        raise refused(path, "a symbolic link stands where a folder of zkc belongs", f"rm {quote(str(path))}")
    if not stat.S_ISDIR(found.st_mode):
        # What a user named may be anything of his: only in a place of our own is it surely in the way.
        mend = f"mv {quote(str(path))} {quote(f'{path}.old')}" if private else "name a folder"
        raise refused(path, "is not a folder", mend)
    _check_owner(path, found)
    if private and found.st_mode & 0o077:
        raise refused(path, "others can look into or write to the folder", f"chmod 700 {quote(str(path))}")
    if found.st_mode & 0o022:
        raise refused(path, "others can write to the folder", f"chmod go-w {quote(str(path))}")


def make_folder(path: Path) -> None:
    """The private folder ``path``: made 0700, or the one that is there, checked (`check_folder`)."""
    if not os.path.lexists(path):
        with translated(f"folder {path}"), suppress(FileExistsError):
            path.mkdir(PRIVATE_FOLDER)
    check_folder(path, private=True)


def check_file(path: Path) -> None:
    """Refuse a file that others can read or write, that is somebody else's, or that is not the file itself."""
    with translated(f"file {path}"):
        found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        place = os.path.realpath(path)
        raise refused(path, "is a symbolic link", f"mv {quote(place)} {quote(str(path))}")
    if not stat.S_ISREG(found.st_mode):
        raise refused(path, "is not a regular file", f"mv {quote(str(path))} {quote(f'{path}.old')}")
    _check_owner(path, found)
    if found.st_mode & 0o077:
        raise refused(path, "others can read or write it", f"chmod 600 {quote(str(path))}")


def check_credential(path: Path) -> None:
    """As `check_file`; but systemd's may be root's, and shows what its access list allows this user as the group's."""
    with translated(f"file {path}"):
        found = path.lstat()
    if not (stat.S_ISREG(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o037):
        check_file(path)


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        error = refused(path, "belongs to another user", f"chown {os.geteuid()} {quote(str(path))}")
        if os.geteuid() == 0:  # before the home of a service is taken from it
            error.hint = f"run it as its owner (runuser -u {_name_of(found.st_uid)} -- zkc ...), or, {error.hint}"
        raise error


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# --- whole files or none -------------------------------------------------------------------------------------------


def open_folder(path: Path, *, follow: bool = False) -> int:
    """A descriptor of the folder: what is done through it stays in that folder, whatever becomes of the path."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with translated(f"folder {path}"):
        return os.open(path, flags if follow else flags | os.O_NOFOLLOW)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """All of ``data``; `OSError` where the system takes less."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left):]


def unlink(folder: int, name: str) -> None:
    """Remove the file of ours ``name``; harmless where it is gone. `LocalIOError`."""
    with translated(f"removing {name}"), suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def publish(source_folder: int, source: str, folder: int, name: str) -> None:
    """Give the finished file ``source`` its ``name``, replacing nothing: `FileExistsError` where the name is taken.

    link + unlink: the one way to "rename without replacing" that Python has without a foreign call, atomic on each
    local file system. A crash between the two leaves a second name in ``source_folder``, where only unfinished files
    live. File systems without hard links (FAT) have renameat2 instead; loading ctypes costs only there.
    """
    try:
        os.link(source, name, src_dir_fd=source_folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        _rename_noreplace(source_folder, source, folder, name)
        return
    os.unlink(source, dir_fd=source_folder)


def _rename_noreplace(source_folder: int, source: str, folder: int, name: str) -> None:
    _renameat2(source_folder, source, folder, name, _RENAME_NOREPLACE)


def publish_any(source_folder: int, source: str, folder: int, name: str) -> None:
    """As `publish`, for a file, a folder or a link; on a file system without renameat2 a folder's name exists empty
    for an instant."""
    try:
        _rename_noreplace(source_folder, source, folder, name)
    except OSError as error:
        if error.errno not in _NO_RENAMEAT2:
            raise
        if not stat.S_ISDIR(os.stat(source, dir_fd=source_folder, follow_symlinks=False).st_mode):
            publish(source_folder, source, folder, name)
            return
        os.mkdir(name, PRIVATE_FOLDER, dir_fd=folder)  # FileExistsError
        os.rename(source, name, src_dir_fd=source_folder, dst_dir_fd=folder)


def exchange(source_folder: int, source: str, folder: int, name: str) -> None:
    """Let two names change places, whatever they name, in one step; in two on a file system without renameat2."""
    try:
        _renameat2(source_folder, source, folder, name, _RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in _NO_RENAMEAT2:
            raise
        aside = scratch_name("aside")
        os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=source_folder)
        os.rename(source, name, src_dir_fd=source_folder, dst_dir_fd=folder)
        os.rename(aside, source, src_dir_fd=source_folder, dst_dir_fd=source_folder)


def _renameat2(source_folder: int, source: str, folder: int, name: str, flag: int) -> None:
    import ctypes  # noqa: PLC0415 - where there are no hard links, and for folders

    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(source), os.fsencode(name)
    if libc.renameat2(source_folder, paths[0], folder, paths[1], ctypes.c_uint(flag)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def sync_all(descriptor: int) -> None:
    """All that was written to the file system of this file or folder is on disk when this returns: for many files."""
    import ctypes  # noqa: PLC0415 - for folders alone

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def remove_tree(folder: int, name: str) -> None:
    """Remove whatever ``name`` is, a folder with all that is in it; no link is followed. Harmless where it is gone."""
    opened: list[tuple[int, str, list[str]]] = []
    parent = folder
    try:
        while True:
            inside = _removed_or_opened(parent, name)
            if inside is not None:
                opened.append((inside, name, os.listdir(inside)))
            while opened and not opened[-1][2]:
                inside, name, _ = opened.pop()
                os.close(inside)
                os.rmdir(name, dir_fd=opened[-1][0] if opened else folder)
            if not opened:
                return
            parent, name = opened[-1][0], opened[-1][2].pop()
    finally:
        for inside, _, _ in opened:
            os.close(inside)


def _removed_or_opened(folder: int, name: str) -> int | None:
    """A folder, open and writable for its owner; what is none is gone."""
    try:
        os.unlink(name, dir_fd=folder)
        return None
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in {errno.EISDIR, errno.EPERM}:
            raise
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    place = os.open(name, flags | os.O_PATH, dir_fd=folder)
    try:
        if os.fstat(place).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(f"/proc/self/fd/{place}", PRIVATE_FOLDER)  # the one way to a folder that cannot be read
    finally:
        os.close(place)
    return os.open(name, flags | os.O_RDONLY, dir_fd=folder)


def scratch_name(stem: str) -> str:
    """A name for an unfinished file that no other running process uses."""
    return f".{stem}.{os.getpid()}.{next(_scratch_numbers)}"


def kept_mode(sent: int) -> int:
    """What may be kept of permissions that a peer sent, before the umask: of group and others nothing that the
    owner has not; never set-user-id, set-group-id or sticky (attack F05)."""
    owner = sent & stat.S_IRWXU
    return sent & (owner | owner >> 3 | owner >> 6)


def write_private(path: Path, data: bytes, *, replace: bool) -> bool:
    """The file ``path``, 0600, with exactly ``data``, durable when this returns; old or new at every instant.

    Without ``replace`` a file that is there stays as it is, and the answer is False. Errors: `LocalIOError`.
    """
    folder = open_folder(path.parent)
    scratch = scratch_name(path.name)
    try:
        with translated(f"writing {path}"):
            try:
                _write_scratch(folder, scratch, data)
                if replace:
                    os.rename(scratch, path.name, src_dir_fd=folder, dst_dir_fd=folder)
                else:
                    publish(folder, scratch, folder, path.name)
            except BaseException as error:
                with suppress(FileNotFoundError):
                    os.unlink(scratch, dir_fd=folder)
                if isinstance(error, FileExistsError):
                    return False
                raise
            os.fsync(folder)
            return True
    finally:
        os.close(folder)


def _write_scratch(folder: int, scratch: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(scratch, flags, PRIVATE_FILE, dir_fd=folder)
    except FileExistsError:  # of a process of this number that was killed
        os.unlink(scratch, dir_fd=folder)
        descriptor = os.open(scratch, flags, PRIVATE_FILE, dir_fd=folder)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_private(path: Path, limit: int = 1 << 20, check: Callable[[Path], None] = check_file) -> bytes:
    """The content of a private file (``check``); `LocalIOError`, also where it is longer than ``limit`` bytes."""
    check(path)
    with translated(f"reading {path}"):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise LocalIOError(
            f"{path} is longer than anything zkc writes there", detail="damaged", hint="restore it from a backup"
        )
    return data
