"""What a listing may say: each rule refused by itself, and the same answer however its bytes come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trees import encoded, file, folder, link, nested, stream
from zkc.constants import LISTING_MAX, TREE_DEPTH_MAX, TREE_ENTRIES_MAX
from zkc.errors import PeerViolation, PolicyRefused
from zkc.rules import trees
from zkc.rules.names import folded, is_component
from zkc.rules.trees import ListingReader
from zkc.wire.listing import header
from zkc.wire.messages import TreeEntry

ENTRIES = (
    folder(0, ""), file(1, ".dot", 3), folder(1, "a"), folder(2, "b"), file(3, "c", 4), file(2, "d"), link(1, "e"),
    file(1, "\u00e9"), file(1, "sparse", 100, [10, 5, 20, 1]), file(1, b"\xff"),
)
CONTENTS = b"x" * (3 + 4 + 5 + 1)


def read(data: bytes, size: int | None = None) -> list[TreeEntry]:
    reader = ListingReader(len(data) if size is None else size)
    found = reader.feed(data)
    assert reader.complete
    return found


WHOLE = stream(*ENTRIES, contents=CONTENTS)


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_a_listing_is_read_alike_however_its_bytes_come(cuts: list[int]) -> None:
    """Whole, byte by byte, or cut anywhere: the same entries, none before its last byte, and no content is read."""
    reader, found, at = ListingReader(len(WHOLE)), [], 0
    for cut in [*sorted(cuts), len(WHOLE)]:
        found += reader.feed(WHOLE[at:cut])
        at = cut
    assert found == read(WHOLE)
    assert reader.complete
    assert reader.length == len(WHOLE) - len(CONTENTS)


def test_a_listing_is_read_alike_byte_by_byte_and_judged_alike_in_parts() -> None:
    reader = ListingReader(len(WHOLE))
    found = [entry for at in range(len(WHOLE)) for entry in reader.feed(WHOLE[at : at + 1])]
    assert found == read(WHOLE)
    judge = ListingReader(len(WHOLE))
    judge.judge(WHOLE)
    assert judge.complete


MALFORMED = {
    "F01 up": stream(folder(0, "a"), file(1, "..")),
    "F01 here": stream(folder(0, "a"), file(1, ".")),
    "F01 a path": stream(folder(0, "a"), file(1, "b/c")),
    "F01 an absolute path": stream(file(0, "/etc/passwd")),
    "F01 NUL": stream(folder(0, "a"), file(1, "b\0")),
    "F01 no name": stream(folder(0, "a"), file(1, "")),
    "F01 no name at the top, but not first": stream(file(0, "a"), folder(0, "")),
    "F01 a link as the tree": stream(link(0, "")),
    "F04 a file in a link": stream(link(0, "a"), file(1, "b")),
    "F04 a file in a file": stream(file(0, "a"), file(1, "b")),
    "F04 a file in a folder that has ended": stream(folder(0, "a"), file(0, "b"), file(1, "c")),
    "F04 a link, then a folder of its name": stream(link(0, "a"), folder(0, "a"), file(1, "b")),
    "F04 a level is left out": stream(folder(0, "a"), file(2, "b")),
    "F04 beside the one folder": stream(folder(0, ""), file(0, "b")),
    "F04 beside the one file": stream(file(0, ""), file(0, "b")),
    "F04 in the one file": stream(file(0, ""), file(1, "b")),
    "F08 twice": stream(file(0, "a"), file(0, "a")),
    "F08 case": stream(file(0, "A"), file(0, "a")),
    "F08 case beyond ASCII": stream(file(0, "stra\u00dfe"), file(0, "STRASSE")),
    "F08 composed": stream(file(0, "\u00e9"), file(0, "e\u0301")),
    "F08 composed and case": stream(file(0, "\u00c9"), file(0, "e\u0301")),
    "F08 not in order, where a twin could hide": stream(file(0, "a"), file(0, "b"), file(0, "A")),
    "F06 content of nothing": stream(file(0, "a", 3), contents=b"abcd"),
    "F06 content that is missing": stream(file(0, "a", 3), contents=b"ab"),
    "F06 more than the stream": stream(file(0, "a", 1 << 62), file(0, "b", 1 << 62)),
    "F06 an empty listing": stream(),
    "F06 longer than its stream": header(100) + b"\x00\x01a",
    "F06 ends in an entry": header(3) + b"\x00\x09a",
    "runs beyond the end": stream(file(0, "a", 10, [5, 6]), contents=b"x" * 6),
    "runs of nothing": stream(file(0, "a", 10, [5, 0])),
    "a hole of nothing": stream(file(0, "a", 10, [0, 1, 0, 1]), contents=b"xx"),
    "half a run": stream(file(0, "a", 10, [5])),
    "a run that is all": stream(file(0, "a", 2, [0, 2]), contents=b"xx"),
    "runs of an empty file": stream(file(0, "a", 0, [])),
    "not canonical": stream(b"\xcc\x00"),
    "something behind it": stream(encoded(file(0, "a")) + b"\xc0"),
    "setuid": stream(encoded(file(0, "a", mode=0o777)).replace(b"\xcd\x01\xff", b"\xcd\x0f\xff")),
}


@pytest.mark.attack("F01", "F04", "F06", "F08", "F12")
@pytest.mark.parametrize("what", MALFORMED)
def test_what_no_honest_sender_lists_is_refused(what: str) -> None:
    """Each by its own rule, at the entry that breaks it."""
    data = MALFORMED[what]
    reader = ListingReader(len(data))
    with pytest.raises(PeerViolation) as told:
        reader.feed(data)
    assert told.value.detail == "malformed"
    assert not reader.complete


def test_the_table_breaks_one_rule_each() -> None:
    """The neighbours of what is refused are let pass: so each row is refused for what it says."""
    for data in (
        stream(folder(0, "a"), file(1, "..c"), file(1, "b"), file(1, "d\\e")), stream(link(0, "a"), file(0, "b")),
        stream(folder(0, "a"), file(1, "c"), file(0, "b")), stream(folder(0, "")),
        stream(file(0, "", 2), contents=b"xx"),
        stream(file(0, "a", 10, []), file(0, "b", 10, [5, 5]), contents=b"x" * 5),
        stream(file(0, "A"), file(0, "b"), file(0, "C")),
    ):
        assert read(data)


@pytest.mark.attack("F10")
def test_too_much_is_a_limit_and_told_before_it_is_held() -> None:
    """By the header, the depth or the count: nothing grows until then."""
    with pytest.raises(PolicyRefused, match="listing of 4294967296 bytes") as told:
        ListingReader(1 << 33).feed(header(1 << 32))
    assert told.value.detail == "limit"
    with pytest.raises(PolicyRefused, match="listing of"):
        ListingReader(1 << 33).feed(header(LISTING_MAX + 1))
    with pytest.raises(PolicyRefused, match="folders in folders"):
        read(nested(10_000))
    assert len(read(nested(TREE_DEPTH_MAX + 1))) == TREE_DEPTH_MAX + 1
    with pytest.raises(PolicyRefused, match="path of more than"):
        read(stream(*(folder(at, "n" * 255) for at in range(17))))


@pytest.mark.attack("F10")
def test_a_million_entries_are_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, whatever they are; the bound itself is let pass."""
    monkeypatch.setattr(trees, "TREE_ENTRIES_MAX", 1000)
    monkeypatch.setattr(trees, "TREE_TOPS_MAX", 500)
    assert TREE_ENTRIES_MAX >= 100_000
    names = [f"{number:07}" for number in range(1001)]
    assert len(read(stream(folder(0, ""), *(file(1, name) for name in names[:999])))) == 1000
    with pytest.raises(PolicyRefused, match="more than 1000 files"):
        read(stream(folder(0, ""), *(file(1, name) for name in names)))
    assert len(read(stream(*(file(0, name) for name in names[:500])))) == 500
    with pytest.raises(PolicyRefused, match="more than 500 files and folders side by side"):
        read(stream(*(file(0, name) for name in names)))


@pytest.mark.parametrize("size", [None, 0, 7])
def test_a_tree_has_a_size_that_is_told_before(size: int | None) -> None:
    with pytest.raises(PeerViolation):
        ListingReader(size)


@given(st.text(max_size=8), st.text(max_size=8))
def test_folding_knows_case_and_composition(one: str, other: str) -> None:
    """What is the same to a file system that ignores either has one key; a key's key is itself."""
    import unicodedata

    def key(text: str) -> bytes:
        return folded(text.encode(errors="surrogatepass"))

    assert key(one) == key(unicodedata.normalize("NFD", one)) == key(unicodedata.normalize("NFC", one))
    assert key(one) == folded(key(one))
    if one.casefold() == other.casefold():
        assert key(one) == key(other)


@pytest.mark.attack("F01")
@pytest.mark.parametrize(
    ("name", "good"),
    [(b"", False), (b".", False), (b"..", False), (b"/", False), (b"a/", False), (b"a\0", False), (b"n" * 256, False),
     (b"...", True), (b".a", True), (b"n" * 255, True), (b"\xff", True), (b"a\\b", True), (b"C:", True)],
)
def test_a_component_names_one_thing_in_its_folder(name: bytes, good: bool) -> None:
    assert is_component(name) is good
