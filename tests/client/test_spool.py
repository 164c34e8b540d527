"""Bytes that wait: they come back as they were, from any position, and not at all once one is changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zkc.client.sources import BytesSource
from zkc.client.spool import KEY_BYTES, SpoolSource, spool
from zkc.crypto.primitives import Secret
from zkc.errors import LocalIOError, PolicyRefused

KEY = bytes(range(KEY_BYTES))
MIB = 1 << 20


def read(source: SpoolSource, step: int = 100_000) -> bytes:
    got, into = b"", memoryview(bytearray(step))
    while count := source.readinto(into):
        got += bytes(into[:count])
    return got


def spooled(folder: Path, data: bytes) -> Path:
    assert spool(BytesSource(data), folder / "data", Secret(KEY), len(data)) == len(data)
    return folder / "data"


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 77])
def test_what_was_spooled_comes_back_from_any_position_and_is_not_there_in_clear(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = spooled(tmp_path, data)
    source = SpoolSource(path, Secret(KEY))
    assert read(source) == data
    for position in {0, 1, size // 2, max(size - 1, 0), size}:
        if position <= size:
            source.seek(position)
            assert read(source) == data[position:]
    source.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert size < 32 or data[:32] not in path.read_bytes()


def test_another_key_a_changed_byte_or_a_missing_end_is_damage(tmp_path: Path) -> None:
    path = spooled(tmp_path, os.urandom(2 * MIB + 5))
    whole = path.read_bytes()

    def damaged(key: bytes = KEY) -> bool:
        source = SpoolSource(path, Secret(key))
        try:
            read(source)
        except LocalIOError as error:
            return error.detail == "damaged"
        finally:
            source.close()
        return False

    assert not damaged()
    assert damaged(bytes(KEY_BYTES))
    for changed in (
        whole[:-1], whole[: MIB + 79], whole + b"x", b"", whole[:50] + b"\x00" + whole[51:],
        whole[: 2 * MIB] + bytes([whole[2 * MIB] ^ 1]) + whole[2 * MIB + 1 :],
    ):
        path.write_bytes(changed)
        assert damaged()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused) as refused:
        spool(BytesSource(bytes(3 * MIB)), tmp_path / "data", Secret(KEY), 2 * MIB)
    assert refused.value.detail == "limit"
