"""``zkc config``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.program import zkc
from zkc.config import load


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(0o700)
    return folder


def test_every_key_is_shown_with_its_default(home: Path) -> None:
    done = zkc("config", "--home", str(home))
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [f"{key} = {value}" for key, value, _ in load("client", None, {}).items()]


def test_it_changes_nothing_on_disk(home: Path) -> None:
    zkc("config", "--home", str(home))
    assert list(home.iterdir()) == []


def test_an_origin_is_default_or_file_and_line_or_variable(home: Path) -> None:
    (home / "config.toml").write_text('[transfer]\npatience = "90s"\nkey_sources = ["sender"]\n')
    done = zkc("config", "--json", env={"ZKC_HOME": str(home), "ZKC_TRANSFER_KEY_SOURCES": "sender,coordinator"})
    told = {row["key"]: (row["value"], row["origin"]) for row in done.objects}
    assert told["transfer.patience"] == ("90s", f"file {home}/config.toml:2")
    assert told["transfer.key_sources"] == (["sender", "coordinator"], "env ZKC_TRANSFER_KEY_SOURCES")
    assert told["log.level"] == ("info", "default")


def test_origins_are_a_column_for_people(home: Path) -> None:
    lines = zkc("config", "--show-origin", "--home", str(home)).out.splitlines()
    assert lines[0].split() == ["KEY", "VALUE", "ORIGIN"]
    assert lines[-1].split() == ["log.level", '"info"', "default"]


def test_the_option_goes_before_the_variable(home: Path, tmp_path: Path) -> None:
    (home / "config.toml").write_text('[log]\nlevel = "debug"\n')
    done = zkc("config", "--home", str(home), env={"ZKC_HOME": str(tmp_path / "other")})
    assert 'log.level = "debug"' in done.out


def test_a_coordinators_home_shows_a_coordinators_keys(home: Path) -> None:
    (home / "role").write_text("coordinator\n")
    (home / "role").chmod(0o600)
    assert "invite.ttl" in zkc("config", "--home", str(home)).out


def test_a_wrong_key_is_a_usage_error_that_names_file_line_and_the_nearest(home: Path) -> None:
    (home / "config.toml").write_text("[transfer]\n\nchnk = 1\n")
    done = zkc("config", "--home", str(home))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"zkc: {home}/config.toml:3: transfer.chnk is not a key; the nearest is transfer.chunk")


def test_a_variable_that_is_no_key_gives_a_notice(home: Path) -> None:
    done = zkc("config", "--home", str(home), env={"ZKC_TRANSFER_CHUNKS": "1M"})
    assert done.code == 0
    assert done.err == "ZKC_TRANSFER_CHUNKS is not a variable of zkc; the nearest is ZKC_TRANSFER_CHUNK\n"
