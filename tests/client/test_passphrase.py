"""Whose file a passphrase is read from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zkc.client.passphrase import given
from zkc.errors import LocalIOError


def credential(folder: Path, mode: int) -> dict[str, str]:
    path = folder / "zkc-passphrase"
    path.write_bytes(b"sesame\n")
    path.chmod(mode)
    return {"CREDENTIALS_DIRECTORY": str(folder)}


@pytest.mark.attack("K02")
@pytest.mark.root
@pytest.mark.root
@pytest.mark.parametrize(("mode", "is_taken"), [(0o400, True), (0o440, True), (0o444, False), (0o460, False)], ids=str)
def test_a_credential_of_roots_is_taken_where_no_others_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, mode: int, is_taken: bool
) -> None:
    """systemd 257 keeps it so, with an access list for the user of the unit; its mode shows that as the group's."""
    environ = credential(tmp_path, mode)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if is_taken:
        assert given(environ) == b"sesame"
        with pytest.raises(LocalIOError, match="another user"):
            given({"ZKC_PASSPHRASE_FILE": str(tmp_path / "zkc-passphrase")})
    else:
        with pytest.raises(LocalIOError):
            given(environ)


@pytest.mark.attack("K02")
@pytest.mark.root
@pytest.mark.root
def test_a_credential_of_somebody_elses_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = credential(tmp_path, 0o440)
    os.chown(tmp_path / "zkc-passphrase", 12345, 12345)
    monkeypatch.setattr(os, "geteuid", lambda: 23456)
    with pytest.raises(LocalIOError, match="another user"):
        given(environ)
