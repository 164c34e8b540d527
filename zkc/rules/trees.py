"""What a listing may say: judged entry by entry as its bytes come, with memory for one path (attacks F01, F08, F10).

A name is one component and its place is a depth, so no entry can be absolute or lead upwards, and only
a folder can have something in it. Siblings stand in the order of their folded names (`names.folded`): two that are
alike, or that some file system takes for one, stand side by side, and cannot be in order.
"""

from __future__ import annotations

from typing import Final

from zkc.constants import (
    LISTING_HEADER_BYTES,
    LISTING_MAX,
    TREE_DEPTH_MAX,
    TREE_ENTRIES_MAX,
    TREE_PATH_MAX,
    TREE_TOPS_MAX,
)
from zkc.errors import PeerViolation, PolicyRefused
from zkc.rules.names import escape, folded, is_component
from zkc.wire.codec import decode
from zkc.wire.listing import LENGTH_BYTES, data_bytes
from zkc.wire.messages import TreeEntry, TreeFile, TreeFolder, TreeLink

_EMPTY: Final = b""
_PART: Final = 64 * 1024


class ListingReader:
    """Takes the bytes of a tree's stream from the first on, and gives its entries.

    `PeerViolation` (``malformed``) for what no honest sender makes, `PolicyRefused` (``limit``) for too much.
    """

    def __init__(self, size: int | None) -> None:
        """``size``: bytes of the whole stream, as the manifest says."""
        if size is None or size < LISTING_HEADER_BYTES:
            raise PeerViolation("malformed", "a tree without a size")
        self._size = size
        self._pending = bytearray()
        self._left: int | None = None
        self._entries = 0
        self._tops = 0
        self._data = 0
        self.file_bytes = 0
        """Sum of the files' sizes, their holes included."""
        self._keys: list[bytes] = []
        """Folded names: of the open folders from the top down, and behind them of the last entry."""
        self._path = [0]
        """Bytes of the path to what is in each open folder."""
        self._is_rooted = False
        self.length = LISTING_HEADER_BYTES
        """Bytes before the first content, once the header is here."""
        self.complete = False
        """Whether all of the listing has come: what follows is content."""

    def judge(self, data: bytes | bytearray | memoryview) -> None:
        """The same as `feed` for one who wants no entries: in parts, so that there are never many."""
        view, at = memoryview(data), 0
        while at < len(view) and not self.complete:
            self.feed(view[at : at + _PART])
            at += _PART

    def feed(self, data: bytes | bytearray | memoryview) -> list[TreeEntry]:
        """The entries that are whole with ``data``; content that is behind the listing in it is passed over."""
        view = memoryview(data)
        if self._left is None:
            missing = LISTING_HEADER_BYTES - len(self._pending)
            self._pending += view[:missing]
            if len(self._pending) < LISTING_HEADER_BYTES:
                return []
            view = view[missing:]
            self._left = self._begin(int.from_bytes(self._pending, "big"))
            self._pending.clear()
        self._pending += view[: self._left]
        self._left -= min(len(view), self._left)
        found: list[TreeEntry] = []
        begin, end = 0, len(self._pending)
        with memoryview(self._pending) as pending:
            while (body := begin + LENGTH_BYTES) <= end:
                after = body + int.from_bytes(pending[begin:body], "big")
                if after > end:
                    break
                entry: TreeEntry = decode(bytes(pending[body:after]), TreeEntry)
                self._judge(entry)
                found.append(entry)
                begin = after
        del self._pending[:begin]
        if not self._left and not self.complete:
            self._end()
        return found

    def _begin(self, length: int) -> int:
        if length > LISTING_MAX:
            raise _too_much(f"a listing of {length} bytes, {LISTING_MAX} at most")
        if LISTING_HEADER_BYTES + length > self._size:
            raise PeerViolation("malformed", "a listing longer than its stream")
        self.length = LISTING_HEADER_BYTES + length
        return length

    def _end(self) -> None:
        if self._pending:
            raise PeerViolation("malformed", "a listing that ends inside an entry")
        if not self._entries:
            raise PeerViolation("malformed", "a listing of nothing")
        if self.length + self._data != self._size:
            raise PeerViolation("malformed", "a listing of files that are together not as long as the stream")
        self.complete = True

    def _judge(self, entry: TreeEntry) -> None:
        self._entries += 1
        if self._entries > TREE_ENTRIES_MAX:
            raise _too_much(f"more than {TREE_ENTRIES_MAX} files and folders")
        self._tops += entry.depth == 0
        if self._tops > TREE_TOPS_MAX:
            raise _too_much(f"more than {TREE_TOPS_MAX} files and folders side by side")
        if entry.depth > TREE_DEPTH_MAX:
            raise _too_much(f"more than {TREE_DEPTH_MAX} folders in folders")
        if entry.name == _EMPTY:
            self._judge_root(entry)
            return
        if not is_component(entry.name):
            raise PeerViolation("malformed", "a name that is not the name of one file")
        depth = entry.depth
        if depth >= len(self._path) or depth < self._is_rooted:
            raise PeerViolation("malformed", "an entry that is in no folder")
        length = self._path[depth] + len(entry.name)
        if length > TREE_PATH_MAX:
            raise _too_much(f"a path of more than {TREE_PATH_MAX} bytes")
        key = folded(entry.name)
        if len(self._keys) > depth and key <= self._keys[depth]:
            raise PeerViolation("malformed", f"not in order, or one name twice: '{_shown(entry.name)}'")
        del self._keys[depth:], self._path[depth + 1 :]
        self._keys.append(key)
        if isinstance(entry, TreeFolder):
            self._path.append(length + 1)
        elif isinstance(entry, TreeFile):
            self._add_file(entry)

    def _add_file(self, file: TreeFile) -> None:
        _judge_runs(file)
        self._data += data_bytes(file)
        self.file_bytes += file.size
        if self._data > self._size:
            raise PeerViolation("malformed", "a listing of more than the stream has")

    def _judge_root(self, entry: TreeEntry) -> None:
        if self._entries > 1 or entry.depth or isinstance(entry, TreeLink):
            raise PeerViolation("malformed", "an entry without a name")
        self._is_rooted = True
        self._keys.append(_EMPTY)
        if isinstance(entry, TreeFolder):
            self._path.append(0)
        else:
            self._add_file(entry)


def _judge_runs(file: TreeFile) -> None:
    """One way to say where the data is: holes between runs, no empty run, no end beyond the file's."""
    if file.runs is None:
        return
    if len(file.runs) % 2 or not all(file.runs[1:]):
        raise PeerViolation("malformed", "runs of a sparse file that are none")
    if sum(file.runs) > file.size or file.runs == [0, file.size] or not file.size:
        raise PeerViolation("malformed", "runs that do not fit their file")


def _too_much(what: str) -> PolicyRefused:
    return PolicyRefused(f"the folder has {what}", detail="limit", hint="send it in parts, or as a tar through a pipe")


def _shown(name: bytes) -> str:
    return escape(name[:40].decode(errors="surrogateescape"))
