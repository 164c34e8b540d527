"""What a payload is: where its bytes come from, and what the recipient is told of it."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from zkc.client.sources import AnySource, FileSource, PipeSource, source_of
from zkc.constants import MESSAGE_TEXT_MAX, NOTE_MAX
from zkc.errors import LocalIOError, UsageError, ZkcError


def read(source: AnySource, n: int) -> bytes:
    """One read."""
    into = bytearray(n)
    return bytes(into[: source.readinto(memoryview(into))])


@pytest.mark.parametrize(
    ("payload", "kind", "name", "size"),
    [
        ("h\u00e9llo", "message", "message", 6), ("\udce9", "message", "message", 1), (b"hello", "stream", "stdin", 5),
        (bytearray(b""), "stream", "stdin", 0), (memoryview(b"abc"), "stream", "stdin", 3),
    ],
)  # fmt: skip
def test_text_is_a_message_and_bytes_are_a_stream(payload: Any, kind: str, name: str, size: int) -> None:
    source, manifest = source_of(payload, None, "a note")
    assert (manifest.kind, manifest.name, manifest.size, manifest.note) == (kind, name, size, "a note")
    assert len(read(source, 100)) == size
    assert source_of(payload, "other", "")[1].name == "other"


def test_a_path_is_a_file_and_an_open_stream_is_piped(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"hello")
    source, manifest = source_of(tmp_path / "x.txt", None, "")
    with closing(source):
        assert (manifest.kind, manifest.name, manifest.size) == ("file", "x.txt", 5)
    with (tmp_path / "x.txt").open("rb") as stream:
        source, manifest = source_of(stream, None, "")
        assert (manifest.kind, manifest.name, manifest.size) == ("stream", "stdin", None)
        assert read(source, 100) == b"hello"


@pytest.mark.parametrize(
    ("payload", "note", "error"),
    [(object(), "", UsageError), (b"", "\u00e9" * NOTE_MAX, UsageError), ("\ud800", "", UsageError),
     ("x" * (MESSAGE_TEXT_MAX + 1), "", UsageError), (Path("missing"), "", LocalIOError)],
)
def test_what_cannot_be_sent_is_told(payload: Any, note: str, error: type[ZkcError], tmp_path: Path) -> None:
    with pytest.raises(error) as told:
        source_of(tmp_path / payload if isinstance(payload, Path) else payload, None, note)
    assert told.value.hint or told.value.detail == "payload"


def test_a_file_whose_name_cannot_be_sent_is_not_left_open(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ZkcError):
        source_of(tmp_path / "x", "a/b", "")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_claims_to_be_empty_and_is_not_has_no_size() -> None:
    source, manifest = source_of(Path("/proc/version"), None, "")
    with closing(source):
        assert (manifest.kind, manifest.name, manifest.size) == ("file", "version", None)
        text = Path("/proc/version").read_bytes()
        assert not source.again, "nothing tells whether it is the same when it is read again"
        assert source.identity == ()
        assert read(source, len(text) + 1) == text
        assert read(source, 1) == b""
        source.check()


class Odd(FileSource):
    """A file that gives another number of bytes than it claims, as those of /sys do: played by an ordinary one."""

    def __init__(self, path: Path, more: int) -> None:
        super().__init__(path)
        assert self._size is not None
        self._size -= more


def read_whole(source: FileSource) -> None:
    while read(source, 100):
        pass
    source.check()


@pytest.mark.parametrize("more", [-1, 1])
def test_a_file_that_gives_another_number_of_bytes_than_it_claims_is_the_sender_s_own_error(
    more: int, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"hello")
    with closing(Odd(tmp_path / "x", more)) as source, pytest.raises(LocalIOError) as caught:
        read_whole(source)
    assert (caught.value.detail, caught.value.hint) == ("source-changed", "pipe it in instead")
    assert f"claims {5 - more} bytes and gave 5" in caught.value.message


def test_a_file_is_read_again_from_any_position(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello")
    with closing(FileSource(tmp_path / "x")) as source:
        assert source.again
        read_whole(source)
        for position in (3, 0, 5, 4):
            source.seek(position)
            assert read(source, 100) == b"hello"[position:]
            assert read(source, 1) == b""
            source.check()


def test_a_file_that_changes_while_it_is_sent_is_noticed_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello")
    with closing(FileSource(tmp_path / "x")) as source:
        read(source, 3)
        (tmp_path / "x").write_bytes(b"other")
        os.utime(tmp_path / "x", (1, 1))
        with pytest.raises(LocalIOError) as caught:
            read_whole(source)
    assert caught.value.detail == "source-changed"


def test_the_same_file_has_the_same_identity_by_whatever_path_and_another_has_not(tmp_path: Path) -> None:
    """Real path, size and time of change; a copy is another file."""
    path = tmp_path / "x"
    path.write_bytes(b"hello")
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "copy").write_bytes(b"hello")

    def identity(name: str) -> tuple[bytes, ...]:
        with closing(FileSource(tmp_path / name)) as source:
            return source.identity

    first = identity("x")
    assert first
    assert identity("link") == identity("../" + tmp_path.name + "/x") == first
    assert identity("copy") != first
    os.utime(path, ns=(1, 1))
    assert identity("x") != first
    path.write_bytes(b"hello!")
    os.utime(path, ns=(1, 1))
    assert identity("x") not in (first, identity("copy"))


def test_a_pipe_is_read_once_and_has_no_identity() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"hello")
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        source = PipeSource(stream)
        assert (source.again, source.identity) == (False, ())
        assert read(source, 100) == b"hello"
        with pytest.raises(ValueError, match="once"):
            source.seek(0)
