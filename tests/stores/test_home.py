"""Folders, their modes, the role of a home, its lock and its socket path."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.program import environment
from zkc.errors import DaemonError, LocalIOError, UsageError
from zkc.stores.home import Home

HOLD = """
import sys
from zkc.stores.home import Home
lock = Home.resolve("client", sys.argv[1]).prepare().lock()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.resolve("client", str(tmp_path / "home")).prepare()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def tree(path: Path) -> list[tuple[str, int, int]]:
    return sorted((str(found), found.lstat().st_mode, found.lstat().st_ino) for found in path.rglob("*"))


# --- where ------------------------------------------------------------------------------------------------------------


def test_the_option_comes_before_the_variable_and_the_variable_before_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"ZKC_HOME": str(tmp_path / "variable")}
    assert Home.resolve("client", str(tmp_path / "option"), environ).data == tmp_path / "option"
    assert Home.resolve("client", None, environ).data == tmp_path / "variable"
    assert Home.resolve("client", None, environ).config_file == tmp_path / "variable" / "config.toml"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    home = Home.resolve("coordinator", None, {})
    assert home.keys_db == tmp_path / "share/zkc/coordinator/keys.db"
    assert home.config_file == tmp_path / "config/zkc/coordinator/config.toml"
    assert Home.resolve("client", None, {"ZKC_HOME": ""}).data == tmp_path / "share/zkc/client"
    home.prepare()
    assert home.exists()


def test_an_empty_option_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        Home.resolve("client", "")


def test_a_relative_home_is_the_same_home_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = Home.resolve("client", "here")
    monkeypatch.chdir("/")
    assert home.prepare().data == tmp_path / "here"


def test_resolving_and_checking_create_nothing(tmp_path: Path) -> None:
    home = Home.resolve("coordinator", str(tmp_path / "home")).check()
    home.socket_path()
    assert not home.exists()
    assert tree(tmp_path) == []


def test_what_is_made_is_for_its_owner_alone_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        home = Home.resolve("client", str(tmp_path / "a" / "home")).prepare()
        with home.lock() as lock:
            home.prepare_socket(lock)
    finally:
        os.umask(before)
    assert mode(home.data) == 0o700
    for path in home.data.rglob("*"):
        assert mode(path) == (0o700 if path.is_dir() else 0o600)


def test_a_home_below_a_link_is_a_home(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(0o700)
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    assert Home.resolve("client", str(tmp_path / "home")).prepare().data == tmp_path / "disk"


# --- role -------------------------------------------------------------------------------------------------------------


def test_a_home_has_one_role(home: Home) -> None:
    other = Home.resolve("coordinator", str(home.data))
    for refuse in (other.prepare, other.check):
        with pytest.raises(UsageError) as caught:
            refuse()
        assert caught.value.detail == "role"
    assert home.prepare().check().exists()


def test_a_role_that_cannot_be_read_is_damage_and_not_another_role(home: Home) -> None:
    (home.data / "role").write_bytes(b"\xff\x00")
    with pytest.raises(LocalIOError) as caught:
        home.check()
    assert caught.value.detail == "damaged"


@pytest.mark.parametrize("below", ["", "/new"])
def test_a_file_in_place_of_the_home_is_told_and_left(tmp_path: Path, below: str) -> None:
    file = tmp_path / "home"
    file.write_text("mine")
    home = Home.resolve("client", f"{file}{below}")
    for refuse in (home.prepare, home.check):
        with pytest.raises(UsageError, match=f"{file} is not a folder"):
            refuse()
    assert file.read_text() == "mine"


# --- who may write ----------------------------------------------------------------------------------------------------


@pytest.mark.attack("K01")
@pytest.mark.parametrize("loose", [0o770, 0o707, 0o720, 0o1777])
def test_a_home_that_others_can_write_to_is_refused_with_the_command_that_mends_it(home: Home, loose: int) -> None:
    home.data.chmod(loose)
    with pytest.raises(LocalIOError) as caught:
        home.prepare()
    assert (caught.value.code, caught.value.detail) == (33, "permission")
    mend(str(caught.value))
    home.prepare()


@pytest.mark.attack("K01")
def test_a_home_that_others_can_only_read_is_fine(home: Home) -> None:
    home.data.chmod(0o755)
    home.prepare()


@pytest.mark.attack("K01")
@pytest.mark.root
@pytest.mark.root
def test_a_home_of_another_user_is_refused_with_the_command_that_mends_it(home: Home) -> None:
    os.chown(home.data, 12345, 12345)
    with pytest.raises(LocalIOError, match="belongs to another user") as caught:
        home.prepare()
    assert "runuser -u 12345 -- zkc" in str(caught.value), "which leaves a service its home"
    mend(str(caught.value))
    home.prepare()


def mend(line: str) -> None:
    """Do what the one line says."""
    assert "\n" not in line
    command = shlex.split(line.partition("to mend it: ")[2])
    assert command, line
    subprocess.run(command, check=True)


@pytest.mark.attack("L02")
@pytest.mark.parametrize("kind", ["file", "link", "dangling", "fifo", 0o777, 0o770, 0o705])
def test_a_run_folder_made_by_somebody_else_is_refused_and_nothing_is_deleted(
    home: Home, tmp_path: Path, kind: str | int
) -> None:
    run = home.data / "run"
    run.rmdir()
    plant(run, kind, tmp_path)
    before = tree(tmp_path)
    with pytest.raises(LocalIOError):
        home.lock()
    with pytest.raises(LocalIOError) as caught:
        home.prepare()
    assert caught.value.detail == "permission"
    assert tree(tmp_path) == before
    mend(str(caught.value))
    home.prepare().lock().release()


@pytest.mark.attack("L02")
@pytest.mark.parametrize("kind", ["file", "link", "dangling", "fifo", "folder", "loose socket"])
def test_whatever_else_stands_at_the_socket_path_is_refused_and_not_deleted(
    home: Home, tmp_path: Path, kind: str
) -> None:
    if kind == "loose socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(home.socket_path()))
        home.socket_path().chmod(0o777)
    else:
        plant(home.socket_path(), kind, tmp_path)
    with home.lock() as lock:
        before = tree(tmp_path)
        with pytest.raises(LocalIOError, match="is not a socket that zkc made") as caught:
            home.prepare_socket(lock)
        assert tree(tmp_path) == before
        mend(str(caught.value))
        home.prepare_socket(lock)


@pytest.mark.attack("L02")
@pytest.mark.parametrize("kind", ["file", "link", "dangling", "folder"])
def test_a_lock_that_is_no_file_of_ours_is_refused_and_not_deleted(home: Home, tmp_path: Path, kind: str) -> None:
    plant(home.lock_file, kind, tmp_path)
    if kind == "file":
        home.lock_file.chmod(0o666)
    before = tree(tmp_path)
    with pytest.raises(LocalIOError):
        home.lock()
    assert tree(tmp_path) == before


def plant(path: Path, kind: str | int, tmp_path: Path) -> None:
    match kind:
        case int():
            path.mkdir()
            path.chmod(kind)
        case "file":
            path.write_text("precious")
        case "link":
            (tmp_path / "elsewhere").mkdir(0o700)
            path.symlink_to(tmp_path / "elsewhere")
        case "dangling":
            path.symlink_to(tmp_path / "nowhere")
        case "fifo":
            os.mkfifo(path)
        case _:
            path.mkdir()
            (path / "precious").touch()


@pytest.mark.attack("L02", "L06")
def test_the_socket_of_a_dead_program_is_replaced_by_who_holds_the_lock_only(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(home.socket_path()))
    home.socket_path().chmod(0o600)
    lock = home.lock()
    assert not home.prepare_socket(lock).exists()
    lock.release()
    with pytest.raises(DaemonError):
        home.prepare_socket(lock)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder with a short path: pytest's own can be too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="zkc-") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        yield Path(name)


def test_a_socket_path_that_is_too_long_goes_to_the_runtime_folder(tmp_path: Path, runtime: Path) -> None:
    homes = [Home.resolve("client", str(tmp_path / ("long" * 30) / name)).prepare() for name in ("a", "b")]
    paths = []
    for home in homes:
        with home.lock() as lock:
            path = home.prepare_socket(lock)
        assert path.is_relative_to(runtime / "zkc")
        assert mode(path.parent) == mode(path.parent.parent) == 0o700
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
        paths.append(path)
    assert len(set(paths)) == 2


@pytest.mark.attack("L02")
def test_a_runtime_folder_that_others_can_write_to_is_not_used(tmp_path: Path, runtime: Path) -> None:
    runtime.chmod(0o777)
    path = Home.resolve("client", str(tmp_path / ("long" * 30))).socket_path()
    assert not path.is_relative_to(runtime)
    assert len(os.fsencode(path)) <= 107


# --- one at a time ----------------------------------------------------------------------------------------------------


@pytest.mark.attack("L03")
def test_a_second_program_is_refused_and_the_first_is_unaffected(home: Home) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home.data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment(),
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DaemonError) as caught:
            home.lock(tries=2)
        assert (caught.value.code, caught.value.detail) == (34, "already-running")
        assert str(holder.pid) in caught.value.message
        assert holder.poll() is None
        holder.communicate("", timeout=20)
    assert holder.returncode == 0


@pytest.mark.attack("L03", "L06")
def test_the_lock_of_a_killed_program_is_free_and_a_dying_one_is_waited_for(home: Home) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home.data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment(),
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.send_signal(signal.SIGKILL)  # dies while we wait
        home.lock().release()


def test_a_lock_on_a_file_that_was_removed_is_no_lock(home: Home) -> None:
    with home.lock():
        home.lock_file.unlink()
        with home.lock(), pytest.raises(DaemonError):
            home.lock(tries=0)


def test_asking_where_a_home_is_imports_nothing_heavy() -> None:
    code = (
        "import sys; from zkc.stores.home import Home; Home.resolve('client', '/nowhere').socket_path();"
        "print({'asyncio', 'structlog', 'sqlalchemy', 'zmq', 'platformdirs', 'sqlite3', 'msgspec'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout == "set()\n"
