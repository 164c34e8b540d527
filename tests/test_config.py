from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import get_args

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from zkc.config import ClientConfig, CoordinatorConfig, load, save_client
from zkc.config.reading import FILE_MAX, VARIABLES, Role
from zkc.errors import LocalIOError, UsageError
from zkc.rules.endpoints import parse_port_range

ROOT = Path(__file__).parents[1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def _error(file: Path, content: str | bytes, role: Role = "client") -> str:
    """The one line that a file with this content gives, without the path at its beginning."""
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError) as caught:
        load(role, file, {})
    line = str(caught.value)
    assert line.startswith(str(file))
    assert line.isprintable()
    assert caught.value.detail == "config"
    return line.removeprefix(str(file))


# --- the files of config/ ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", get_args(Role))
def test_the_commented_file_has_every_key_and_equals_the_defaults(role: Role) -> None:
    path = ROOT / "config" / f"{role}.toml"
    shipped = load(role, path, {})
    assert shipped.config == load(role, None, {}).config
    assert all(origin.startswith(f"file {path}:") for origin in shipped.origins.values())
    assert list(shipped.origins) == [
        f"{section}.{key}" for section, table in tomli.loads(path.read_text()).items() for key in table
    ], "the file has the keys in another order than zkc/config.py"


@pytest.mark.parametrize("role", get_args(Role))
def test_each_key_of_the_commented_file_has_its_own_comment(role: Role) -> None:
    lines = (ROOT / "config" / f"{role}.toml").read_text().splitlines()
    for number, line in enumerate(lines):
        if "=" in line and not line.startswith("#"):
            assert lines[number - 1].startswith("# "), f"no comment before line {number + 1}"


@pytest.mark.parametrize("role", get_args(Role))
def test_each_value_is_shown_as_the_commented_file_writes_it(role: Role) -> None:
    path = ROOT / "config" / f"{role}.toml"
    shipped = tomli.loads(path.read_text())
    shown = {name: tomli.loads(f"value = {text}")["value"] for name, text, _ in load(role, path, {}).items()}
    assert load(role, None, {}, shown).config == load(role, None, {}).config
    for name, value in shown.items():
        section, key = name.split(".")
        if name not in {"transfer.patience", "invite.ttl"}:  # "60s" is shown as "1m"
            assert value == shipped[section][key]


def test_the_default_of_listen_lets_the_system_choose_its_ports() -> None:
    assert list(parse_port_range(ClientConfig().transfer.listen).ports) == []


# --- precedence ----------------------------------------------------------------------------------------------------


def test_an_option_goes_before_a_variable_before_the_file_before_the_default(file: Path) -> None:
    file.write_text('# mine\n[transfer]\ncipher = "idea"\nchunk = "1M"\npatience = "5m"\n')
    loaded = load(
        "client", file,
        {"ZKC_TRANSFER_CIPHER": "3des", "ZKC_TRANSFER_CHUNK": "2M"},
        {"transfer.cipher": "chacha20-poly1305", "transfer.key_source": None},
    )  # fmt: skip
    transfer = loaded.config.transfer
    assert (transfer.cipher, transfer.chunk, transfer.patience) == ("chacha20-poly1305", 2 << 20, 300.0)
    assert loaded.origins["transfer.cipher"] == "option"
    assert loaded.origins["transfer.chunk"] == "env ZKC_TRANSFER_CHUNK"
    assert loaded.origins["transfer.patience"] == f"file {file}:5"
    assert loaded.origins["transfer.key_source"] == "default"


def test_each_key_has_a_variable_and_lists_are_comma_separated() -> None:
    loaded = load(
        "coordinator", None,
        {"ZKC_TRANSFER_KEY_SOURCES": "sender, coordinator", "ZKC_LIMITS_CLIENTS": "7", "ZKC_INVITE_TTL": "1h"},
    )  # fmt: skip
    assert loaded.config.transfer.key_sources == ("sender", "coordinator")
    assert loaded.config.limits.clients == 7
    assert loaded.config.invite.ttl == 3600.0
    assert loaded.notices == ()


def test_options_are_text_or_what_toml_would_give() -> None:
    for listen in (["tcp://h:1", "tcp://h:2"], "tcp://h:1,tcp://h:2"):
        loaded = load("coordinator", None, {}, {"coordinator.listen": listen})
        assert loaded.config.coordinator.listen == ("tcp://h:1", "tcp://h:2")


def test_an_empty_variable_is_not_set() -> None:
    loaded = load("client", None, {"ZKC_TRANSFER_CIPHER": ""})
    assert loaded.origins["transfer.cipher"] == "default"


def test_no_file_gives_the_defaults(file: Path) -> None:
    assert load("client", file, {}).config == ClientConfig()
    assert load("coordinator", file, {}).config == CoordinatorConfig()


def test_a_wrong_variable_is_named_with_its_key() -> None:
    with pytest.raises(UsageError) as caught:
        load("client", None, {"ZKC_INBOX_PER_SENDER": "many"})
    assert str(caught.value) == (
        'variable ZKC_INBOX_PER_SENDER: inbox.per_sender cannot be "many"; expected a whole number from 1 to 4096'
    )


def test_a_variable_that_is_neither_a_key_nor_known_gives_a_notice_with_the_nearest() -> None:
    environ = dict.fromkeys([*VARIABLES, "ZKC_LIMITS_CLIENTS", "ZKC_LOG_FORMAT", "HOME"], "")
    loaded = load("client", None, environ | {"ZKC_TRANSFER_CHIPER": "x", "ZKC_HOEM\x1b": "/"})
    assert loaded.notices == (
        "ZKC_HOEM\\x1b is not a variable of zkc; the nearest is ZKC_HOME",
        "ZKC_TRANSFER_CHIPER is not a variable of zkc; the nearest is ZKC_TRANSFER_CIPHER",
    )


def test_every_value_is_listed_with_its_origin() -> None:
    rows = {name: (value, origin) for name, value, origin in load("client", None, {"ZKC_TRANSFER_CHUNK": "1M"}).items()}
    assert rows["transfer.chunk"] == ('"1M"', "env ZKC_TRANSFER_CHUNK")
    assert rows["transfer.key_sources"] == ('["sender"]', "default")
    assert rows["inbox.per_sender"] == ("64", "default")


# --- what is wrong in a file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('[transfer]\nchiper = "x"\n', ":2: transfer.chiper is not a key; the nearest is transfer.cipher"),
        ('[transfr]\ncipher = "x"\n', ":2: transfr.cipher is not a key; the nearest is transfer.cipher"),
        ('\ncipher = "x"\n', ":2: cipher is not a key; the nearest is transfer.cipher"),
        ("[inbx]\n", ":1: there is no section [inbx]; the nearest is [inbox]"),
        ('[metrics]\nlisten_on = "9464"\n', ":2: metrics.listen_on is not a key; the nearest is metrics.listen"),
        ("[log]\nlevel.x = 1\n[inbox]\n", ":2: log.level cannot be a table; expected one of"),
        ("\n\ninbox = 3\n", ":3: inbox is a section; write it as [inbox], its keys below it"),
        ("[[inbox]]\n", ":1: inbox is a section; write it as [inbox], its keys below it"),
        ('["tran\\nsfer"]\n"\\u001b" = 1\n', ":2: tran\\x0asfer.\\x1b is not a key; the nearest is transfer."),
        ('[""]\n"" = 1\n', ":2: . is not a key; the nearest is "),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_key(file: Path, content: str, line: str) -> None:
    assert _error(file, content).startswith(line)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("[transfer]\ncipher = 3\n", ":2: transfer.cipher cannot be 3; expected one of \"aes-256-gcm\", \"chacha"),
        ("[transfer]\nciphers = [\n 'idea',\n 'x']\n", ':2: transfer.ciphers cannot be ["idea", "x"]; expected a list'),
        ("[transfer]\nkey_sources = []\n", ":2: transfer.key_sources cannot be []; expected a list that is not empty"),
        ("[transfer]\nkey_sources = 'sender'\n", ':2: transfer.key_sources cannot be "sender"; expected a list'),
        ("[transfer]\nchunk = '3M'\n", ':2: transfer.chunk cannot be "3M"; expected a size from "64K" to "2M"'),
        ("[transfer]\npatience = 5\n", ':2: transfer.patience cannot be 5; expected a duration from "1s" to "7d"'),
        ("[transfer]\npatience = 'ages'\n", ':2: transfer.patience cannot be "ages"; expected a duration'),
        ("[transfer]\nlisten = 'tcp://h:1-1'\n", ':2: transfer.listen cannot be "tcp://h:1-1"; expected "tcp://HOST'),
        ("[inbox]\nper_sender = true\n", ":2: inbox.per_sender cannot be true; expected a whole number from 1 to 4096"),
        ("[inbox]\nper_sender = 1.5\n", ":2: inbox.per_sender cannot be 1.5; expected a whole number"),
        ("[inbox]\nper_sender = 0\n", ":2: inbox.per_sender cannot be 0; expected a whole number"),
        ("inbox = { accept = 'some' }\n", ':1: inbox.accept cannot be "some"; expected one of "all", "ask", "none"'),
        ("\ntransfer.chunk = '1'\n", ':2: transfer.chunk cannot be "1"; expected a size'),
        ("[coordinator]\nendpoints=['http://h']\n", ':2: coordinator.endpoints cannot be ["http://h"]; expected a'),
        ("[log]\nlevel = '\\u001b[2J'\n", ':2: log.level cannot be "\\\\u001b[2J"; expected one of'),
        ('[log]\nlevel = "\\u001b[2J\u202e"\n', ':2: log.level cannot be "\\u001b[2J\\u202e"; expected one of'),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_what_is_expected(file: Path, content: str, line: str) -> None:
    assert _error(file, content).startswith(line)


def test_a_key_database_that_is_refused_is_not_repeated_since_it_may_hold_a_password(file: Path) -> None:
    line = _error(file, "[coordinator]\nkeydb = 'mysql://zkc:hunter2@db/zkc'\n", "coordinator")
    assert line == ':2: coordinator.keydb cannot be what it is; expected "", "sqlite:///PATH" or "postgresql://USER@HOST/DATABASE"'


@pytest.mark.parametrize("url", ["sqlite:///", "sqlite:", "/var/x.db", "sqlite:////x\x1b[2J", "sqlite:////x\U000e0100", "postgresql://"])
def test_a_key_database_is_embedded_a_printable_path_or_on_a_server(url: str) -> None:
    with pytest.raises(UsageError, match="coordinator.keydb"):
        load("coordinator", None, {}, {"coordinator.keydb": url})
    for good in ("sqlite:////x.db", "postgresql:///zkc", "postgresql://zkc@db.example:5432/zkc?sslmode=verify-ca"):
        assert load("coordinator", None, {}, {"coordinator.keydb": good}).config.coordinator.keydb == good


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("[log]\n\nlevel = \n", ":3: this is not TOML: "),
        ("[log\n", ":1: this is not TOML: "),
        ("[log]\nlevel = 'info'\nlevel = 'debug'\n", ":3: this is not TOML: "),
        ("[log]\n[log]\n", ":2: this is not TOML: "),
        ("\n\nx = '\x1b'\n", ":3: this is not TOML: "),
        (b"[log]\n# \xff\n", ":2: cannot be read: it is not UTF-8"),
        (b"\x00\x01", ":1: this is not TOML: "),
        ("x = " + "[" * 5000, ":"),
    ],
)
def test_malformed_toml_is_named_with_its_line(file: Path, content: str | bytes, line: str) -> None:
    assert _error(file, content).startswith(line)


def test_a_key_is_not_looked_for_inside_a_text_of_many_lines(file: Path) -> None:
    file.write_text('coordinator.endpoints = [\n  # [log]\n  "tcp://h:1",\n]\n\n[log]\r\n\'level\' = "debug"\n')
    loaded = load("client", file, {})
    assert loaded.origins["coordinator.endpoints"] == f"file {file}:1"
    assert loaded.origins["log.level"] == f"file {file}:7"
    assert _error(file, '[log]\nformat = """\\\n[inbox]\naccept = "x"\n"""\n').startswith(":2: log.format cannot be")


def test_a_folder_in_the_place_of_the_file_is_one_clear_line(file: Path) -> None:
    file.mkdir()
    with pytest.raises(UsageError) as caught:
        load("client", file, {})
    assert str(caught.value) == f"{file}: cannot be read: it is a folder"


def test_a_fifo_in_the_place_of_the_file_does_not_hold_zkc(file: Path) -> None:
    os.mkfifo(file)
    with pytest.raises(UsageError, match="it is no regular file"):
        load("client", file, {})


def test_a_file_that_cannot_be_opened_is_one_clear_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.symlink_to(file)
    with pytest.raises(UsageError, match=r"config.toml: cannot be read: Too many levels of symbolic links$"):
        load("client", file, {})

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")  # as root no mode refuses

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match=r"config.toml: cannot be read: Permission denied$"):
        load("client", file, {})


def test_a_file_of_any_length_is_not_read(file: Path) -> None:
    assert _error(file, "#" * (FILE_MAX + 1)) == ": cannot be read: it is larger than 256K"


@given(st.text(st.sampled_from("[]\"'.=\n #{},x1") | st.characters(codec="utf-8"), max_size=60))
def test_any_file_is_a_configuration_or_one_clear_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text(text, newline="")
    try:
        load("client", file, {})
    except UsageError as error:
        assert str(error).isprintable()
        assert str(error).startswith(str(file))


# --- writing -------------------------------------------------------------------------------------------------------


def test_join_writes_only_what_differs_from_the_defaults_and_keeps_what_was_there(file: Path) -> None:
    file.write_text('[log]\nlevel = "debug"\nformat = "auto"\n[transfer]\npatience = "5m"\n')
    save_client(file, {"coordinator.endpoints": ["tcp://h:1", "tcp://[::1]:2"], "transfer.patience": "1m"})
    assert tomli.loads(file.read_text()) == {
        "coordinator": {"endpoints": ["tcp://h:1", "tcp://[::1]:2"]},
        "log": {"level": "debug"},
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(file.parent) == [file.name]
    save_client(file, {"coordinator.endpoints": [], "log.level": "info"})
    assert load("client", file, {}).config == ClientConfig()


def test_what_was_written_reads_back(file: Path) -> None:
    changes = {"transfer.listen": "tcp://*:7000-7009", "inbox.accept": "none", "inbox.max_bytes": "3G"}
    save_client(file, changes)
    config = load("client", file, {}).config
    assert config.transfer.listen == "tcp://*:7000-7009"
    assert (config.inbox.accept, config.inbox.max_bytes) == ("none", 3 << 30)


def test_a_file_that_is_a_link_stays_one(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "dotfiles.toml"
    file.symlink_to(target)
    save_client(file, {"log.level": "debug"})
    assert file.is_symlink()
    assert load("client", target, {}).config.log.level == "debug"


def test_a_wrong_value_or_file_is_not_written(file: Path) -> None:
    with pytest.raises(UsageError, match=r"inbox\.accept"):
        save_client(file, {"inbox.accept": "some"})
    assert not file.exists()
    file.write_text("[lgo]\n")
    with pytest.raises(UsageError, match=r"\[log\]"):
        save_client(file, {"inbox.accept": "none"})
    assert file.read_text() == "[lgo]\n"


def test_a_folder_that_cannot_be_written_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('[log]\nlevel = "debug"\n')

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LocalIOError, match="writing .*: No space left on device"):
        save_client(file, {"inbox.accept": "none"})
    assert file.read_text() == '[log]\nlevel = "debug"\n'
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("sqlite:////srv/a:b@c?d/keys.db", "sqlite:////srv/a:b@c?d/keys.db"),
        ("postgresql:///zkc", "postgresql:///zkc"),
        ("postgresql://zkc@db.lan:5433/zkc", "postgresql://zkc@db.lan:5433/zkc"),
        ("postgresql://zkc:hunter2@db.lan/zkc", "postgresql://zkc:***@db.lan/zkc"),
        ("postgresql://zkc@[::1]:5433/zkc", "postgresql://zkc@[::1]:5433/zkc"),
        ("postgresql://zkc:hunter?2@db.lan/zkc", "postgresql://***"),
        ("postgresql://zkc:hunter2", "postgresql://***"),
        ("postgresql://db.lan/zkc?password=hunter2", "postgresql://db.lan/zkc?***"),
        ("postgresql://zkc:hunter2@db.lan/zkc?user=a@b&password=hunter2", "postgresql://zkc:***@db.lan/zkc?***"),
    ],
)
def test_of_the_key_databases_url_no_password_is_shown(url: str, shown: str) -> None:
    items = {key: value for key, value, _ in load("coordinator", None, {}, {"coordinator.keydb": url}).items()}
    assert items["coordinator.keydb"] == f'"{shown}"'
