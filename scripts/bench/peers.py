"""The programs that zkc is measured beside, each on loopback with keys of its own, and what is there of them."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any, Final

from scripts.bench.report import timed

HOST: Final = "127.0.0.1"
_SHARED: Final = "/dev/shm"
SECONDS: Final = 60.0
_BARE: Final = Path(__file__).with_name("bare.py")
_SHELL: Final = ("bash", "-o", "pipefail", "-c")


@contextmanager
def memory_folder() -> Iterator[Path]:
    """In memory, where there is some: disks differ more than programs."""
    shared = _SHARED if os.access(_SHARED, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="zkc-bench-", dir=shared) as folder:
        yield Path(folder)


def warm_memory(path: Path, size: int) -> None:
    """``size`` bytes of memory have just been used, and are free, where ``path`` is in memory: it is gone after this.

    A host may take from its guest what has been free for a while, and give it back page by page: on such a machine a
    GiB that was written there took up to 3 s more than one that went where another had just been.
    """
    if path.is_relative_to(_SHARED):
        with path.open("wb") as file:
            for _ in range(0, size, 1 << 20):
                file.write(bytes(1 << 20))
    path.unlink(missing_ok=True)


def random_file(path: Path, size: int) -> Path:
    """``size`` bytes that nothing compresses."""
    block = os.urandom(min(size, 1 << 24))
    with path.open("wb") as file:
        for at in range(0, size, len(block) or 1):
            file.write(block[: size - at])
    return path


def free_port() -> int:
    """For a program that cannot choose one by itself."""
    with closing(socket.create_server((HOST, 0))) as server:
        port: int = server.getsockname()[1]
        return port


def await_port(port: int) -> None:
    end = monotonic() + SECONDS
    while True:
        with suppress(OSError), closing(socket.create_connection((HOST, port))):
            return
        if monotonic() > end:
            raise TimeoutError(f"nobody listens at port {port}")
        Event().wait(0.01)


@contextmanager
def server(command: Sequence[str], *ports: int) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the background, once it listens; ended afterwards."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet) as program:
        try:
            for port in ports:
                await_port(port)
            yield program
        finally:
            program.terminate()


def run(*command: str | Path, **options: object) -> None:
    """To its end, which must be 0."""
    subprocess.run([str(word) for word in command], check=True, capture_output="stdout" not in options, **options)  # type: ignore[call-overload]


def shell(line: str) -> None:
    """A line of programs, to the end of all, which must be 0."""
    run(*_SHELL, line)


def _ended(process: subprocess.Popen[Any]) -> None:
    if process.wait(SECONDS):
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}")


# --- ssh --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ssh:
    """An sshd of our own, and the options with which ssh and scp reach it."""

    port: int
    options: tuple[str, ...]

    def copy(self, source: Path, target: Path, *more: str) -> float:
        """Seconds of ``scp``, with ``more`` options."""
        return timed(lambda: run("scp", "-q", "-P", str(self.port), *more, *self.options, source, f"{HOST}:{target}"))

    def command(self, *words: str) -> list[str]:
        return ["ssh", "-p", str(self.port), *self.options, HOST, *words]


@contextmanager
def sshd(folder: Path) -> Iterator[Ssh | None]:
    """None where there is no sshd."""
    program = shutil.which("sshd")
    if program is None:
        yield None
        return
    for name in ("host", "user"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    shutil.copy(folder / "user.pub", folder / "authorized")
    port = free_port()
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress {HOST}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "UsePAM no\nStrictModes no\nPidFile none\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        "MaxStartups 256\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    options = (
        "-F", "/dev/null", "-i", str(folder / "user"), "-c", "aes256-gcm@openssh.com", "-o", "BatchMode=yes",
        "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
    )
    with server([program, "-D", "-e", "-f", str(config)], port):
        yield Ssh(port, options)


# --- age over ncat ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Age:
    """A key pair of age; its pipe is ``age | ncat`` to ``ncat | age -d``."""

    key_file: Path
    recipient: str

    def pipe(self, feed: str, drain: str) -> float:
        """Seconds from a shell command's output to another's input."""
        port = free_port()
        receive = f"ncat -l {HOST} {port} | age -d -i {self.key_file} | {drain}"
        with subprocess.Popen([*_SHELL, receive], stdin=subprocess.DEVNULL) as receiver:
            _await_listener(port)

            def both() -> None:
                shell(f"{feed} | age -r {self.recipient} | ncat --send-only {HOST} {port}")
                _ended(receiver)

            return timed(both)


def _await_listener(port: int) -> None:
    """Without a connection, which ncat would take for the one that it waits for."""
    end = monotonic() + SECONDS
    while f":{port:04X} 00000000:0000 0A" not in Path("/proc/net/tcp").read_text():
        if monotonic() > end:
            raise TimeoutError(f"nobody listens at port {port}")
        Event().wait(0.005)


def age(folder: Path) -> Age | None:
    """None where age or ncat is missing."""
    if not shutil.which("age") or not shutil.which("ncat"):
        return None
    key_file = folder / "age.key"
    run("age-keygen", "-o", key_file)
    public = next(line for line in key_file.read_text().splitlines() if "public key" in line)
    return Age(key_file, public.rpartition(" ")[2])


# --- magic-wormhole ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wormhole:
    """Both of its servers on this machine."""

    options: tuple[str, ...]

    def copy(self, source: Path, target: Path) -> float:
        """Seconds until sender and receiver have ended, both started together with the code known."""
        target.unlink(missing_ok=True)
        code = f"{os.getpid()}-{os.urandom(4).hex()}"
        receive = ["wormhole", *self.options, "receive", "--accept-file", "--hide-progress", "-o", str(target), code]

        def both() -> None:
            with subprocess.Popen(
                receive, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as receiver:
                run("wormhole", *self.options, "send", "--hide-progress", "--code", code, source)
                if receiver.wait(SECONDS):
                    raise RuntimeError("wormhole receive failed")

        return timed(both)


@contextmanager
def wormhole(folder: Path) -> Iterator[Wormhole | None]:
    """None where it is not installed."""
    if not shutil.which("wormhole") or not shutil.which("twist"):
        yield None
        return
    mailbox, transit = free_port(), free_port()
    with ExitStack() as servers:
        servers.enter_context(server(
            ["twist", "wormhole-mailbox", f"--port=tcp:{mailbox}:interface={HOST}",
             f"--channel-db={folder / 'mailbox.db'}", f"--usage-db={folder / 'usage.db'}"], mailbox,
        ))
        servers.enter_context(server(["twist", "transitrelay", f"--port=tcp:{transit}:interface={HOST}"], transit))
        yield Wormhole(("--relay-url", f"ws://{HOST}:{mailbox}/v1", "--transit-helper", f"tcp:{HOST}:{transit}"))


# --- ZeroMQ without zkc -----------------------------------------------------------------------------------------------


def push_pull(source: Path, target: Path, *, curve: bool = False) -> float:
    """The same bytes in the same chunks through one PUSH and one PULL, without any of zkc: the limit.

    Seconds of the pushing process, which ends once the pulling one, which waits before, has all of it in the file.
    """
    target.unlink(missing_ok=True)
    mode = "curve" if curve else "null"
    with _pulling([sys.executable, _BARE, "pull", mode, target]) as (_, where):
        return timed(lambda: run(sys.executable, _BARE, "push", mode, source, *where))


def push_pull_pipes(feed: str, drain: str) -> float:
    """Seconds from a shell command's output to another's input, by the same."""
    command = shlex.join([sys.executable, str(_BARE)])
    with _pulling([*_SHELL, f"{command} pull null - | {drain}"]) as (puller, where):

        def both() -> None:
            shell(f"{feed} | {command} push null - {shlex.join(where)}")
            _ended(puller)

        return timed(both)


@contextmanager
def _pulling(command: Sequence[str | Path]) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The pulling process, and where it listens."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as puller:
        if puller.stderr is None:
            raise RuntimeError("no stderr")
        try:
            yield puller, puller.stderr.readline().split()
        except BaseException:
            puller.kill()
            raise
