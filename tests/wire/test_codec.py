"""C11: what a peer can send in place of a message costs nothing and means nothing."""

from __future__ import annotations

import math
import struct
import time
import tracemalloc
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.constants import CONTROL_MESSAGE_MAX
from zkc.errors import PeerViolation
from zkc.wire import messages
from zkc.wire.codec import decode, encode

TARGETS: Final[dict[str, Any]] = {
    "Record": messages.Record, "RegMessage": messages.RegMessage, "ChannelMessage": messages.ChannelMessage,
    "AckMessage": messages.AckMessage, "CardBody": messages.CardBody, "Card": messages.Card,
    "Endpoints": messages.Endpoints, "Manifest": messages.Manifest, "InvitationText": messages.InvitationText,
    "Resp": messages.Resp, "PeerPage": messages.PeerPage,
}
PEER: Final = messages.Peer("bob", "user", True, 7, bytes(32), "unknown", 0)
MANIFEST: Final = messages.Manifest("file", "a", "", 5, 0o644, 7)
CPU_SECONDS: Final = 1.0
"""Ten times what a hostile message may cost: the machine of a test run is shared."""


def pack(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


def refused(data: bytes, kind: Any) -> None:
    with pytest.raises(PeerViolation) as caught:
        decode(data, kind)
    assert caught.value.detail == "malformed"
    assert len(str(caught.value)) < 200


# --- hostile lengths, depths and amounts ----------------------------------------------------------------------------


def hostile() -> dict[str, bytes]:
    """Each within the bound of a control message; each says that it is something else than it is."""
    room = CONTROL_MESSAGE_MAX - 8
    deep, wide = 65_000, b"\xc0" * (room - 8)
    cases = {
        "empty": b"", "never used byte": b"\xc1", "one nil": b"\xc0",
        "arrays, deep": b"\x91" * deep, "arrays, deep, closed": b"\x91" * deep + b"\xc0",
        "arrays in the body, deep": b"\x93\xa1q\xc4\x10" + bytes(16) + b"\x91" * deep,
        "maps, deep": b"\x81\xc0" * (deep // 2), "maps as keys, deep": b"\x81" * deep,
        "arrays of arrays of nil": (b"\xdc\x00\xff" + b"\x90" * 255) * 200,
        "nils": b"\xdc" + len(wide).to_bytes(2, "big") + wide,
        "nils behind a tag": b"\xdc" + len(wide).to_bytes(2, "big") + b"\xa1q" + wide[1:],
        "nils in a list": b"\x93\xa9peer-page\xdc" + (60_000).to_bytes(2, "big") + b"\xc0" * 60_000 + b"\xc2",
        "empty maps in a list": b"\x93\xa9peer-page\xdc" + (60_000).to_bytes(2, "big") + b"\x80" * 60_000 + b"\xc2",
        "an ext": b"\xc7\x10\x05" + bytes(16), "a timestamp": b"\xd6\xff" + bytes(4),
        "a large ext": b"\xc9\xff\xff\xff\xff\x01" + bytes(100),
    }
    for length in (2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1):
        size = length.to_bytes(4, "big")
        for what, code in (("bin", b"\xc6"), ("str", b"\xdb"), ("array", b"\xdd"), ("map", b"\xdf"), ("ext", b"\xc9")):
            cases[f"{what} of {length}"] = code + size
            cases[f"{what} of {length}, some there"] = code + size + bytes(1000)
            cases[f"{what} of {length} behind a tag"] = b"\x93\xa1q" + code + size + bytes(1000)
            cases[f"{what} of {length} as an endpoint"] = b"\x94" + code + size + b"\xa1a" * 100
    return cases


HOSTILE: Final = hostile()


@pytest.mark.attack("C11")
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_message_is_refused_within_memory_and_time(case: str) -> None:
    """Against every message that may stand there: at most twice the bound of memory, no CPU to speak of."""
    data = HOSTILE[case]
    assert len(data) <= CONTROL_MESSAGE_MAX
    for kind in TARGETS.values():
        with pytest.raises(PeerViolation):
            decode(b"", kind)  # the decoder itself is made once
    for kind in TARGETS.values():
        tracemalloc.start()
        before = time.process_time()
        try:
            refused(data, kind)
            spent, (_, peak) = time.process_time() - before, tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2 * CONTROL_MESSAGE_MAX, kind
        assert spent < CPU_SECONDS, kind


@pytest.mark.attack("C11")
def test_depth_of_100_000_is_no_recursion() -> None:
    """Longer than a control message may be, for those who decode what came elsewhere."""
    for data in (b"\x91" * 100_000, b"\x81\xa0" * 100_000, (b"\x92\xa1q") * 100_000):
        for kind in TARGETS.values():
            refused(data, kind)


@pytest.mark.attack("C11")
def test_64_mib_of_nil_cost_no_memory() -> None:
    data = b"\xdd" + (64 * 1024 * 1024).to_bytes(4, "big") + b"\xc0" * (64 * 1024 * 1024)
    tracemalloc.start()
    try:
        for kind in TARGETS.values():
            refused(data, kind)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < CONTROL_MESSAGE_MAX


# --- one reading for each byte string ------------------------------------------------------------------------------


@pytest.mark.attack("C11")
@pytest.mark.parametrize(
    "number",
    [-1, -(2**31), -(2**63), 2**63, 2**64 - 1, 2**31 + 0.0, 5.0, math.nan, math.inf, -math.inf, -0.0, True, None],
)
def test_a_number_out_of_range_or_of_another_type_is_refused(number: object) -> None:
    if number is not None:
        refused(pack(["file", "a", "", number, 0o644, 7]), messages.Manifest)
    refused(pack(["file", "a", "", 5, number, 7]), messages.Manifest)
    refused(pack(["ack", 0, number, 1]), messages.AckMessage)
    refused(pack([number, 0]), messages.Start)


@pytest.mark.parametrize(
    "nan", [b"\xca\x7f\xc0\0\0", b"\xcb\x7f\xf8" + bytes(6), b"\xcb" + struct.pack(">d", -math.nan)]
)
def test_nan_is_no_value_anywhere(nan: bytes) -> None:
    for at in range(6):
        fields = [pack(f) for f in ("file", "a", "", 5, 0o644, 7)]
        fields[at] = nan
        refused(b"\x96" + b"".join(fields), messages.Manifest)


def wider(value: int) -> list[bytes]:
    """Every longer form of a small number."""
    sizes = {b"\xcc": 1, b"\xcd": 2, b"\xce": 4, b"\xcf": 8, b"\xd0": 1, b"\xd1": 2, b"\xd2": 4, b"\xd3": 8}
    return [code + value.to_bytes(size, "big") for code, size in sizes.items()]


@pytest.mark.attack("C11")
def test_a_longer_form_of_the_same_value_is_refused() -> None:
    """Numbers, strings, byte strings and arrays: one encoding each."""
    fields = [pack(f) for f in ("file", "a", "", 5, 0o644, 7)]
    assert decode(b"\x96" + b"".join(fields), messages.Manifest) == MANIFEST
    for form in wider(5):
        refused(b"\x96" + b"".join((*fields[:3], form, *fields[4:])), messages.Manifest)
    for name in (b"\xd9\1a", b"\xda\0\1a", b"\xdb\0\0\0\1a", b"\xc4\1a"):
        refused(b"\x96" + b"".join((fields[0], name, *fields[2:])), messages.Manifest)
    for head in (b"\xdc\0\6", b"\xdd\0\0\0\6"):
        refused(head + b"".join(fields), messages.Manifest)
    for xid in (b"\xc5\0\x10" + bytes(16), b"\xc6\0\0\0\x10" + bytes(16), b"\xb0" + bytes(16), b"\xd8\1" + bytes(16)):
        refused(b"\x92" + xid + b"\xc4\x20" + bytes(32), messages.Conf)


@pytest.mark.attack("C11")
@given(st.binary(min_size=1, max_size=8))
def test_trailing_bytes_are_refused(rest: bytes) -> None:
    refused(encode(MANIFEST) + rest, messages.Manifest)
    refused(encode(messages.Ack(1, 2, 3)) + rest, messages.AckMessage)
    refused(encode(messages.Request(bytes(16), messages.Heartbeat())) + rest, messages.Record)


@pytest.mark.attack("C11")
@pytest.mark.parametrize(
    "text",
    [b"\xff", b"\xc3", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xf8\x88\x80\x80\x80",
     b"a\x80"],
)
def test_bad_utf_8_is_refused(text: bytes) -> None:
    """Lone continuation, truncated, surrogate, above U+10FFFF, overlong, five bytes."""
    name = bytes((0xA0 | len(text),)) + text
    before, after = b"\x96" + pack("file"), pack("") + b"\x05\x05\x05"
    assert decode(before + pack("a") + after, messages.Manifest).name == "a"
    refused(before + name + after, messages.Manifest)
    refused(b"\x92" + name + b"\xc4\0", messages.RegMessage)


@pytest.mark.attack("C11")
def test_maps_are_no_messages_and_so_there_are_no_duplicate_keys() -> None:
    """C08 core: no field can be said twice."""
    fields = dict(zip(messages.Manifest.__struct_fields__, ("file", "a", "", 5, 0o644, 7), strict=True))
    refused(pack(fields), messages.Manifest)
    twice = b"\x87" + pack(fields)[1:] + pack("size") + pack(6)
    refused(twice, messages.Manifest)
    for kind in TARGETS.values():
        refused(b"\x82" + pack("id") + pack(1) + pack("id") + pack(2), kind)


def test_fields_too_many_or_too_few_are_refused() -> None:
    values = ["file", "a", "", 5, 0o644, 7]
    for wrong in (values[:-1], [*values, None], [*values, 7], []):
        refused(pack(wrong), messages.Manifest)
    refused(pack(["ack", 1, 2]), messages.AckMessage)
    refused(pack(["ack", 1, 2, 3, 4]), messages.AckMessage)
    refused(pack(["heartbeat", None]), messages.RequestBody)


@pytest.mark.attack("C10")
def test_an_unknown_or_missing_tag_is_refused() -> None:
    for tag in ("", "ACK", "ack ", "nack", "R0", 0, None, b"ack", ["ack"]):
        refused(pack([tag, 1, 2, 3]), messages.AckMessage)
    refused(pack([]), messages.AckMessage)


@pytest.mark.attack("H10")
def test_a_message_of_one_room_is_none_of_another() -> None:
    """H10 core: the unions share no tag but those of registration's own."""
    unions = (messages.RegMessage, messages.ChannelMessage, messages.Record, messages.AckMessage)
    tags = [{member.__struct_config__.tag for member in union.__args__} for union in unions]
    assert sum(map(len, tags)) == len(set.union(*tags))
    bodies = (messages.RequestBody, messages.AnswerBody)
    requests, answers = ({member.__struct_config__.tag for member in union.__args__} for union in bodies)
    assert not requests & answers
    hello = encode(messages.RegHello(bytes(16)))
    for union in unions[1:]:
        refused(hello, union)


def test_bounds_of_the_grammar_hold() -> None:
    """One above each bound of a repeated or long field is refused; the bound itself is taken."""
    page = messages.PeerPage([PEER] * 256, True)
    assert decode(encode(page), messages.PeerPage) == page
    refused(encode(messages.PeerPage([PEER] * 257, True)), messages.PeerPage)
    addresses = messages.Endpoints(["tcp://192.0.2.1"] * 16, 1, 2, 0, "", b"")
    assert decode(encode(addresses), messages.Endpoints) == addresses
    refused(encode(messages.Endpoints(["x"] * 17, 1, 2, 0, "", b"")), messages.Endpoints)
    refused(encode(messages.Endpoints(["x" * 65], 1, 2, 0, "", b"")), messages.Endpoints)
    refused(encode(messages.Endpoints([], 65536, 2, 0, "", b"")), messages.Endpoints)
    for kind in (0, 41, -1):
        refused(pack(["stop", kind, ""]), messages.AckMessage)
    for size in (0, 15, 17):
        refused(pack([bytes(size), bytes(32)]), messages.Conf)
    for size in (0, 31, 33):
        refused(pack([bytes(16), bytes(size)]), messages.Conf)
