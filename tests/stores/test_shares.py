"""What of a share can be had, and what looks the same as nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.support.waiting import DEADLINE
from zkc.errors import PolicyRefused
from zkc.stores.home import Home
from zkc.stores.shares import Grantee, Share, change_shares, kind_of, load_shares, open_shared


@pytest.fixture
def share(tmp_path: Path) -> Share:
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_bytes(b"shared")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    os.mkfifo(root / "fifo")
    return Share("s", str(root), [Grantee("carol", "aa")])


def content(opened: tuple[int, str]) -> bytes:
    with open(opened[0], "rb") as file:
        return file.read()


@pytest.mark.parametrize("path", ["sub/file", "./sub//file", "{}/sub/file"])
def test_a_file_below_it(share: Share, path: str) -> None:
    assert content(open_shared(share, path.format(share.path))) == b"shared"


def test_a_share_of_one_file(share: Share) -> None:
    one = Share("f", f"{share.path}/sub/file", [])
    assert content(open_shared(one, "")) == content(open_shared(one, one.path)) == b"shared"
    with pytest.raises(PolicyRefused):
        open_shared(one, "x")


@pytest.mark.attack("F03")
@pytest.mark.parametrize(
    "path",
    [
        "link", "up/secret", "../secret", "sub/../../secret", "{}/../secret", "/etc/passwd", "none", "fifo", "up",
        "up/root", "a\0b", "{}x/secret", "sub/file/x", "..", "sub/..", "{}/..",
    ],
)
def test_all_else_is_refused_alike(share: Share, path: str) -> None:
    with pytest.raises(PolicyRefused) as refused:
        open_shared(share, path.format(share.path))
    assert (refused.value.detail, str(refused.value)) == ("share", "it is not shared with this asker")


@pytest.mark.attack("F03")
def test_a_folder_that_becomes_a_link_meanwhile_leads_nowhere(share: Share, tmp_path: Path) -> None:
    """Somebody swaps a folder for a link out and back, as fast as he can."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    folder, aside, over = Path(share.path) / "sub", Path(share.path) / "aside", threading.Event()

    def swap() -> None:
        while not over.is_set():
            folder.rename(aside)
            folder.symlink_to(outside)
            folder.unlink()
            aside.rename(folder)

    swapping = threading.Thread(target=swap)
    swapping.start()
    seen = set()
    try:
        for _ in range(2000):
            try:
                seen.add(content(open_shared(share, "sub/file")))
            except PolicyRefused:
                seen.add(b"")
    finally:
        over.set()
        swapping.join()
    assert seen <= {b"shared", b""}


@pytest.mark.attack("F03")
@pytest.mark.parametrize("path", ["", ".", "sub/file", "{}", "{}/sub/file"])
def test_a_share_in_whose_place_there_is_a_link_now_is_none(share: Share, tmp_path: Path, path: str) -> None:
    root, aside = Path(share.path), tmp_path / "aside"
    root.rename(aside)
    root.symlink_to(aside)
    with pytest.raises(PolicyRefused):
        open_shared(share, path.format(share.path))
    assert kind_of(share) == "gone"


def test_a_link_on_the_way_to_a_share_is_the_owners(share: Share, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(tmp_path)
    by_way = Share("s", str(tmp_path / "way" / "root"), [])
    assert content(open_shared(by_way, "sub/file")) == b"shared"
    os.close(open_shared(by_way, "")[0])


def test_no_change_of_the_shares_is_lost_to_another(home: Home) -> None:
    """What one process has read, no other changes before it has written."""
    change_shares(home, lambda _: [Share("secret", "/", [])])
    begun, second = threading.Event(), threading.Event()

    def slow(shares: list[Share]) -> list[Share]:
        begun.set()
        second.wait(0.2)  # without the lock the other is done by then
        return [*shares, Share("slow", "/", [])]

    def remove() -> None:
        change_shares(home, lambda shares: [each for each in shares if each.name != "secret"])
        second.set()

    adding = threading.Thread(target=change_shares, args=(home, slow))
    adding.start()
    assert begun.wait(DEADLINE)
    removing = threading.Thread(target=remove)
    removing.start()
    for thread in (adding, removing):
        thread.join(DEADLINE)
    assert [each.name for each in load_shares(home)] == ["slow"]


def test_a_grant_is_to_an_identity() -> None:
    share = Share("s", "/", [Grantee("carol", "aa")], ["bob"])
    assert share.allows("carol", b"\xaa", "bob")
    assert not share.allows("carol", b"\xab", "bob")
    assert not share.allows("dave", b"\xaa", "bob")
    assert not share.allows("carol", b"\xaa", "carol")
    assert Share("s", "/", [Grantee("carol", "aa")]).allows("carol", b"\xaa", "carol")


@pytest.mark.parametrize(
    ("path", "name"), [("", "root"), (".", "root"), ("sub", "sub"), ("sub/", "sub"), ("{}", "root")]
)
def test_a_folder_of_it(share: Share, path: str, name: str) -> None:
    descriptor, called = open_shared(share, path.format(share.path))
    try:
        is_it = os.path.samestat(os.fstat(descriptor), os.stat(Path(share.path, path.format(share.path))))
    finally:
        os.close(descriptor)
    assert (called, is_it) == (name, True)


def test_what_a_share_is(share: Share) -> None:
    kinds = {path: kind_of(Share("s", f"{share.path}/{path}", [])) for path in ("", "sub/file", "fifo", "none")}
    assert kinds == {"": "folder", "sub/file": "file", "fifo": "gone", "none": "gone"}
