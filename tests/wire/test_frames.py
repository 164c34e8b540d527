from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkc.constants import CONTROL_MESSAGE_MAX, VERSION
from zkc.errors import PeerViolation
from zkc.wire.frames import (
    DATA_HEADER_BYTES,
    RECORD_HEADER_BYTES,
    ControlKind,
    DataHeader,
    Flag,
    Stream,
    control_frame,
    record_header,
    split_control,
    split_record,
)

HEADERS = st.builds(
    DataHeader,
    stream=st.sampled_from(Stream),
    flags=st.integers(0, 15).map(Flag),
    attempt=st.integers(0, 2**32 - 1),
    index=st.integers(0, 2**64 - 1),
    xid_tag=st.binary(min_size=16, max_size=16),
)


def detail(function, *arguments: object) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(PeerViolation) as caught:
        function(*arguments)
    return caught.value.detail


# --- control frames -------------------------------------------------------------------------------------------------


@given(st.sampled_from(ControlKind), st.binary(max_size=300))
def test_a_control_frame_splits_into_what_it_was_made_of(kind: ControlKind, body: bytes) -> None:
    frame = control_frame(kind, body)
    assert frame[:2] == bytes((VERSION, kind))
    assert split_control(frame) == (kind, body)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_control_frame_or_refused(frame: bytes) -> None:
    """What splits is made again by its own parts: there is one reading."""
    try:
        kind, body = split_control(frame)
    except PeerViolation as error:
        assert error.detail in {"malformed", "version"}
    else:
        assert control_frame(kind, body) == frame


def test_a_control_frame_has_its_limit() -> None:
    whole = control_frame(ControlKind.RECORD, bytes(CONTROL_MESSAGE_MAX - 2))
    assert split_control(whole)[0] is ControlKind.RECORD
    assert detail(split_control, whole + b"\0") == "limit"
    assert detail(split_control, bytes(64 * 1024 * 1024)) == "limit"


@pytest.mark.attack("C02")
@pytest.mark.parametrize("version", [0, 2, 127, 255])
def test_another_version_is_refused_as_such(version: int) -> None:
    assert detail(split_control, bytes((version, ControlKind.CHANNEL)) + b"body") == "version"


@pytest.mark.parametrize("kind", [0, 4, 128, 255])
def test_an_unknown_kind_of_control_frame_is_refused(kind: int) -> None:
    assert detail(split_control, bytes((VERSION, kind)) + b"body") == "malformed"


@pytest.mark.parametrize("frame", [b"", b"\1"])
def test_a_control_frame_without_its_two_bytes_is_refused(frame: bytes) -> None:
    assert detail(split_control, frame) == "malformed"


# --- records --------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=8, max_size=8), st.integers(0, 2**64 - 1), st.binary(max_size=100))
def test_a_record_splits_into_what_it_was_made_of(tag: bytes, counter: int, ciphertext: bytes) -> None:
    header = record_header(tag, counter)
    assert len(header) == RECORD_HEADER_BYTES == 18
    assert split_record(header + ciphertext) == (header, tag, counter, ciphertext)
    assert split_control(header + ciphertext)[0] is ControlKind.RECORD


@pytest.mark.parametrize("size", range(18))
def test_a_record_without_its_header_is_refused(size: int) -> None:
    assert detail(split_record, record_header(bytes(8), 1)[:size]) == "malformed"


# --- data frames ----------------------------------------------------------------------------------------------------


@given(HEADERS, st.binary(max_size=40))
def test_a_data_header_unpacks_to_what_it_was_made_of(header: DataHeader, rest: bytes) -> None:
    packed = header.pack()
    assert len(packed) == DATA_HEADER_BYTES == 31
    assert DataHeader.unpack(packed + rest) == header
    assert DataHeader.unpack(memoryview(packed + rest)) == header


@given(st.binary(max_size=48))
def test_any_bytes_are_a_data_header_or_refused(frame: bytes) -> None:
    try:
        header = DataHeader.unpack(frame)
    except PeerViolation as error:
        assert error.detail in {"malformed", "version"}
    else:
        assert header.pack() == frame[:DATA_HEADER_BYTES]


@given(HEADERS, st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_version_stream_and_flags_are_known_ones(header: DataHeader, version: int, stream: int, flags: int) -> None:
    frame = bytes((version, stream, flags)) + header.pack()[3:]
    if version != VERSION:
        assert detail(DataHeader.unpack, frame) == "version"
    elif stream not in {1, 2, 3} or flags > 15:
        assert detail(DataHeader.unpack, frame) == "malformed"
    else:
        assert DataHeader.unpack(frame).pack() == frame


def test_integers_are_big_endian_and_stand_where_the_specification_says() -> None:
    header = DataHeader(Stream.ACK, Flag.LAST | Flag.BYE, 0x01020304, 0x1112131415161718, bytes(range(16)))
    assert header.pack().hex() == "010305" + "01020304" + "1112131415161718" + bytes(range(16)).hex()


@pytest.mark.parametrize("size", range(DATA_HEADER_BYTES))
def test_a_data_frame_without_its_header_is_refused(size: int) -> None:
    packed = DataHeader(Stream.DATA, Flag.NONE, 0, 0, bytes(16)).pack()
    assert detail(DataHeader.unpack, packed[:size]) == "malformed"
