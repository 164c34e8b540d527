"""Where the bytes of a transfer come from: a file, files and folders, a pipe, or memory."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from zkc.client.small import OnDisk, Small
from zkc.client.spool import SpoolSource
from zkc.client.trees import TreeSource, walk
from zkc.client.walking import Root, Skipped, is_excluded, is_sparse, joint_name, name_of, nothing_left, roots_of
from zkc.constants import MESSAGE_TEXT_MAX, NOTE_MAX
from zkc.errors import DaemonError, LocalIOError, UsageError
from zkc.rules.names import own_name
from zkc.stores.pipes import widen_pipe
from zkc.wire.messages import Manifest

OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class _One:
    """One thing, of which no part has a name."""

    def entry_at(self, position: int) -> tuple[str, int, int]:
        """The file that the byte at ``position`` belongs to, as a person knows it, how many bytes of it are before that
        one, and how many it has; an empty name where there is only one."""
        return "", 0, 0


class FileSource(_One):
    """A regular file, read from its beginning; noticed if it changes meanwhile.

    One that claims to be empty and is not, as those of /proc do, has no size and is sent like a pipe.
    """

    fd: int | None = None

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        """``descriptor``: of ``path``, opened already; closed with this."""
        self._path = path
        try:
            # Non-blocking, so that a FIFO without a writer does not hang the open; regular files do not care.
            self._fd = os.open(path, OPEN_FLAGS) if descriptor is None else descriptor
        except OSError as error:
            raise LocalIOError(
                f"cannot read {path}: {error.strerror}", detail="unreadable", hint="check path and permissions"
            ) from None
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise UsageError(f"{path} is no regular file", detail="not-a-file", hint="pipe it in instead")
            self._look()
        except BaseException:
            os.close(self._fd)
            raise

    def _look(self) -> None:
        self._stat = os.fstat(self._fd)
        self._size = self._stat.st_size or (None if self._read_at(memoryview(bytearray(1)), 0) else 0)
        self._position = 0
        self.again = self._size is not None

    @property
    def identity(self) -> tuple[bytes, ...]:
        """What is the same when the same file is sent again by another command; empty where nothing tells."""
        if not self.again:
            return ()
        return _file_identity(os.path.realpath(self._path), self._stat.st_size, self._stat.st_mtime_ns)

    def manifest(self, name: str | None, note: str) -> Manifest:
        status = self._stat
        return Manifest(
            "file", _named(name, self._path.name), note, self._size, stat.S_IMODE(status.st_mode),
            max(status.st_mtime_ns, 0),
        )

    def readinto(self, into: memoryview) -> int:
        count = self._read_at(into, self._position)
        self._position += count
        if self._size is not None and self._position > self._size:
            self.check()
        return count

    def _read_at(self, into: memoryview, position: int) -> int:
        try:
            return os.preadv(self._fd, [into], position)
        except OSError as error:
            raise LocalIOError(
                f"cannot read {self._path}: {error.strerror}", detail="unreadable",
                hint="the system gives no more of it: check the disk, or send a copy",
            ) from None

    def seek(self, position: int) -> None:
        self._position = position

    def check(self) -> None:
        now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns):
            raise LocalIOError(
                f"{self._path} changed while it was sent", detail="source-changed", hint="send it again"
            )
        if self._size is not None and self._position != self._size:
            raise LocalIOError(
                f"{self._path} claims {self._size} bytes and gave {self._position}", detail="source-changed",
                hint="pipe it in instead",
            )

    def close(self) -> None:
        os.close(self._fd)


class PipeSource(_One):
    """Standard input, or any stream with a descriptor; of unknown length, read once.

    ``head`` is what somebody has read of it already: it comes first.
    """

    again = False
    identity: tuple[bytes, ...] = ()

    def __init__(self, stream: BinaryIO, head: bytes = b"") -> None:
        self._stream = stream
        self._head = memoryview(head)
        self.fd: int | None = None if head else stream.fileno()
        widen_pipe(stream.fileno())

    def readinto(self, into: memoryview) -> int:
        if self._head:
            part, self._head = self._head[: len(into)], self._head[len(into) :]
            self.fd = None if self._head else self._stream.fileno()
            into[: len(part)] = part
            return len(part)
        try:
            return os.readv(self._stream.fileno(), [into])
        except OSError as error:
            raise LocalIOError(
                f"cannot read the piped data: {error.strerror}", detail="unreadable", hint="run the whole pipe again"
            ) from None

    def seek(self, position: int) -> None:
        raise ValueError("a pipe is read once")

    def check(self) -> None:
        """A pipe is whatever comes."""

    def close(self) -> None:
        """The stream belongs to the caller."""


class BytesSource(_One):
    """Bytes in memory."""

    fd: int | None = None
    again = True

    def __init__(self, data: bytes, identity: tuple[bytes, ...] = ()) -> None:
        self._data = memoryview(data)
        self.identity = identity
        self._position = 0

    def readinto(self, into: memoryview) -> int:
        part = self._data[self._position : self._position + len(into)]
        into[: len(part)] = part
        self._position += len(part)
        return len(part)

    def seek(self, position: int) -> None:
        self._position = position

    def check(self) -> None:
        """Memory does not change."""

    def close(self) -> None:
        """Nothing is open."""


AnySource = FileSource | TreeSource | PipeSource | BytesSource | SpoolSource
Paths = Sequence[str | os.PathLike[str]]
Payload = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO | Paths


def source_of(
    payload: Payload, name: str | None, note: str, head: bytes = b"", *, exclude: Sequence[str] = (),
    on_skip: Callable[[Skipped], None] = lambda _: None,
) -> tuple[AnySource, Manifest]:
    """Where the bytes of ``payload`` come from, and what the recipient is told of them. The caller closes the source.

    Text is a message, a path is a file or a folder, a list is of such paths, all else is a stream, of which ``head``
    was read already. ``exclude`` are globs of what stays behind of paths, ``on_skip`` hears of what cannot be sent.
    `UsageError` (``payload``, ``not-a-file``, ``bad-name``, ``limit``, ``collision``, ``excluded``), `LocalIOError`.
    """
    note = _note(note)
    if isinstance(payload, str):
        text = _message(payload)
        return BytesSource(text), Manifest("message", _named(name, "message"), note, len(text), 0o600, 0)
    if isinstance(payload, bytes | bytearray | memoryview):
        data = bytes(payload)
        return BytesSource(data), Manifest("stream", _named(name, "stdin"), note, len(data), 0o600, 0)
    if isinstance(payload, os.PathLike):
        payload = [payload]
    if isinstance(payload, list | tuple):
        if not payload or any(os.fspath(path) in ("", b"") for path in payload):
            raise UsageError("no path to send", detail="payload")
        paths = [Path(path) for path in payload]
        if len(paths) > 1 or os.path.isdir(paths[0]):  # not Path's, which raises where its parent may not be searched
            return _tree(paths, name, note, exclude, on_skip)
        if exclude and is_excluded(name_of(paths[0]), exclude):
            raise nothing_left()
        if is_sparse(paths[0]):
            return _tree(paths, name, note, (), on_skip)
        file = FileSource(paths[0])
        try:
            return file, file.manifest(name, note)
        except BaseException:
            file.close()
            raise
    if isinstance(payload, Sequence) or not hasattr(payload, "fileno"):
        raise UsageError(
            "a payload is bytes, text, a path, a list of paths, or a binary stream with a descriptor", detail="payload"
        )
    return PipeSource(payload, head), Manifest("stream", _named(name, "stdin"), note, None, 0o600, 0)


def shared_source(
    path: Path, descriptor: int, name: str, note: str, exclude: Sequence[str], on_skip: Callable[[Skipped], None],
    on_folder: Callable[[], None],
) -> tuple[FileSource | TreeSource, Manifest]:
    """The same of a file or a folder that is open: ``descriptor`` is closed with the source, and where there is none.

    ``path`` stands in messages alone; ``on_folder`` is called in each folder, and ends the walk with what it raises.
    """
    try:
        named, status = own_name(name), os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            tree = walk([Root(path, b"", descriptor)], exclude, on_skip, on_folder)
            mode, mtime_ns = stat.S_IMODE(status.st_mode), max(status.st_mtime_ns, 0)
            return TreeSource(tree, descriptor), Manifest("tree", named, note, tree.size, mode, mtime_ns)
        if exclude and is_excluded(name, exclude):
            raise nothing_left()
    except BaseException:
        os.close(descriptor)
        raise
    file = FileSource(path, descriptor)
    return file, file.manifest(named, note)


def small_source(small: Small, name: str | None, note: str) -> tuple[BytesSource, Manifest]:
    """The same of a payload that is here whole: what a command has handed over. `UsageError` (``bad-name``)."""
    size = None if small.kind == "stream" else len(small.data)
    named = _named(name, small.name)
    same = _file_identity(small.path, len(small.data), small.modified_ns) if small.path else ()
    return BytesSource(small.data, same), Manifest(small.kind, named, _note(note), size, small.mode, small.modified_ns)


def handed_file(file: OnDisk, name: str | None, note: str) -> tuple[FileSource, Manifest]:
    """The same of a file that a command has named. `DaemonError` (``not-here``) where this process sees another one
    there, or none; `UsageError` (``bad-name``)."""
    named, note = _named(name, file.name), _note(note)
    descriptor = -1
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(file.path, OPEN_FLAGS | os.O_NOFOLLOW)
    status = os.fstat(descriptor) if descriptor >= 0 else None
    if status is None or (status.st_dev, status.st_ino) != (file.device, file.inode):
        if status is not None:
            os.close(descriptor)
        raise DaemonError(f"the daemon does not see {file.path}", detail="not-here")
    source = FileSource(Path(file.path), descriptor)
    return source, source.manifest(named, note)


def _file_identity(path: str, size: int, modified_ns: int) -> tuple[bytes, ...]:
    return os.fsencode(path), b"%d %d" % (size, modified_ns)


def _tree(
    paths: Sequence[Path], name: str | None, note: str, exclude: Sequence[str], on_skip: Callable[[Skipped], None]
) -> tuple[AnySource, Manifest]:
    """One folder, or sparse file, is the tree itself, and has its name; several paths are at the top of it under their
    own."""
    if len(paths) > 1:
        roots, mode, mtime_ns = roots_of(paths), stat.S_IRWXU, 0
        called = _named(name, joint_name(roots))
    else:
        called = _named(name, name_of(paths[0]))
        status = paths[0].stat()
        roots, mode, mtime_ns = [Root(paths[0], b"")], stat.S_IMODE(status.st_mode), max(status.st_mtime_ns, 0)
    tree = walk(roots, exclude, on_skip)
    return TreeSource(tree), Manifest("tree", called, note, tree.size, mode, mtime_ns)


def _named(name: str | None, otherwise: str) -> str:
    return own_name(otherwise if name is None else name)


def _note(note: str) -> str:
    note = _encoded(note, "the note").decode(errors="replace")
    if len(note.encode()) > NOTE_MAX:
        raise UsageError("the note is too long", hint=f"at most {NOTE_MAX} bytes")
    return note


def _message(payload: str) -> bytes:
    text = _encoded(payload, "the message")
    if len(text) > MESSAGE_TEXT_MAX:
        raise UsageError(
            "the message is too long", detail="limit", hint=f"at most {MESSAGE_TEXT_MAX} bytes; send it as bytes"
        )
    return text


def _encoded(text: str, what: str) -> bytes:
    """UTF-8; what the command line had in another encoding comes out as it was given."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise UsageError(f"{what} is no text that UTF-8 can write", detail="payload") from None
