"""A tree as tar: what other programs unpack is what was sent. (zkc itself unpacks none.)"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.stores.test_unpacking import arrived, sent
from tests.support.trees import TIME, file, folder, link, looks, make_folder, stream
from zkc.stores.inbox import Inbox
from zkc.stores.items import Item
from zkc.stores.tars import bytes_of
from zkc.stores.trees import StoredTree


def tarred(item: Item) -> bytes:
    with StoredTree.opened(item) as tree:
        return b"".join(bytes_of(tree))


def test_tar_unpacks_what_was_sent(inbox: Inbox, tmp_path: Path) -> None:
    """Contents, permissions, times to the nanosecond, links, holes, names of any bytes."""
    place = make_folder(tmp_path / "many")
    (tmp_path / "out").mkdir()
    data = tarred(sent(inbox, place))
    assert len(data) % 512 == 0
    done = subprocess.run(["tar", "x", "-C", tmp_path / "out"], input=data, capture_output=True, check=True)
    assert b"error" not in done.stderr.lower()
    assert looks(tmp_path / "out" / "many") == looks(place)
    assert (tmp_path / "out" / "many" / "sparse.img").stat().st_blocks * 512 < 1 << 20


@pytest.mark.attack("F01", "F05")
def test_names_at_the_top_are_safe_in_it_too(inbox: Inbox) -> None:
    """Of the one folder, or of several things; a time before 1970 keeps its sign."""
    early = file(0, "early")
    entries = stream(folder(0, ".ssh"), link(1, "l", "/etc"), type(early)(0, b"early", 0o600, -1_500_000_000, 0, None))
    for item, wanted in (
        (arrived(inbox, entries), ["_.ssh", "_.ssh/l", "early"]),
        (arrived(inbox, stream(folder(0, ""), file(1, ".a")), "../.x"), ["_.._.x", "_.._.x/.a"]),
    ):
        with tarfile.open(fileobj=io.BytesIO(tarred(item))) as archive:
            members = archive.getmembers()
        assert [member.name for member in members] == wanted
        assert members[0].mtime == pytest.approx(TIME / 1e9)
    with tarfile.open(fileobj=io.BytesIO(tarred(arrived(inbox, entries)))) as archive:
        assert archive.getmember("early").mtime == -1.5


def test_one_sparse_file_is_its_bytes(inbox: Inbox) -> None:
    """No tar: holes are zeros, at the beginning, between runs and at the end."""
    data = stream(file(0, "", 5_000_000, [3_000_000, 4, 10, 2]), contents=b"dataxx")
    wanted = bytes(3_000_000) + b"data" + bytes(10) + b"xx" + bytes(5_000_000 - 3_000_016)
    assert tarred(arrived(inbox, data)) == wanted
