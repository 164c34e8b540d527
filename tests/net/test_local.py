from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.env import FixedClock
from tests.support.nobody import NOBODY, knock
from tests.support.waiting import DEADLINE, until
from zkc.constants import CONTROL_CONNECTIONS_MAX, CONTROL_REQUEST_MAX
from zkc.env import SystemClock
from zkc.errors import DaemonError, InternalError, LocalIOError, UnknownRecipient, ZkcError
from zkc.net.local import LocalServer, serve_local
from zkc.net.local_client import Kept, LocalClient, encode
from zkc.net.local_frames import (
    KEPT_SECONDS,
    Credentials,
    HungUp,
    NoAnswer,
    NotRunning,
    check_server,
    may_talk,
    read_answer,
)


class Count(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="count"):
    to: int


class Fail(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="fail"):
    how: str


class Hang(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="hang"):
    pass


class Number(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="number"):
    value: int


class Text(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="text"):
    text: str


Request = Count | Fail | Hang
Reply = Number | Text


class Stage:
    """A server whose handler counts, fails or hangs, and what became of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refused: list[tuple[str, Credentials]] = []
        self.hanging = 0
        self.cancelled = 0
        self.reported: list[dict[str, object]] = []
        self.server: LocalServer[Request, Reply]

    def whys(self) -> list[str]:
        return [why for why, _ in self.refused]

    async def handler(self, request: Request, peer: Credentials) -> AsyncGenerator[Reply, None]:
        assert (peer.uid, peer.pid) == (os.getuid(), os.getpid())
        match request:
            case Count(to):
                for value in range(to):
                    yield Number(value)
            case Fail("known"):
                raise UnknownRecipient("no client is named carol", detail="unknown", hint="see zkc peers")
            case Fail("late"):
                yield Number(1)
                raise UnknownRecipient("too late")
            case Fail("huge"):
                yield Text("x" * CONTROL_REQUEST_MAX)
            case Fail():
                raise RuntimeError("a defect")
            case Hang():
                yield Text("hanging")
                self.hanging += 1
                try:
                    await asyncio.Event().wait()
                finally:
                    self.hanging -= 1
                    self.cancelled += 1

    def client(self) -> LocalClient[Reply]:
        return LocalClient(self.path, Reply)

    async def call(self, request: Request, within: float | None = DEADLINE) -> Reply:
        return await asyncio.to_thread(self.client().call, request, within=within)


@contextlib.asynccontextmanager
async def stage(folder: Path, *, connections_max: int = 8, request_seconds: float = DEADLINE) -> AsyncIterator[Stage]:
    made = Stage(folder / "run" / "control.sock")
    made.path.parent.mkdir(0o700)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: made.reported.append(context))
    made.server = await serve_local(
        made.path,
        made.handler,
        Request,
        on_refused=lambda why, peer: made.refused.append((why, peer)),
        connections_max=connections_max,
        request_seconds=request_seconds,
    )
    try:
        yield made
    finally:
        await made.server.close()


def raw(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(DEADLINE)
    sock.connect(str(path))
    return sock


def is_closed(sock: socket.socket) -> bool:
    """Wait for the end of the stream; whether nothing came before."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def refusal(sock: socket.socket) -> str:
    """Read to the end of the stream: the finer word of the one failure in it."""
    with sock.makefile("rb") as stream:
        said = stream.read()
    assert struct.unpack(">I", said[:4]) == (len(said) - 4,)
    with pytest.raises(DaemonError) as told:
        read_answer(said[4:])
    return told.value.detail


# --- requests and replies ---


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_a_request_has_as_many_replies_as_the_handler_gives(tmp_path: Path, count: int) -> None:
    async def scene() -> None:
        async with stage(tmp_path) as on:
            from_sync = await asyncio.to_thread(lambda: list(on.client().stream(Count(count))))
            assert from_sync == [Number(value) for value in range(count)]

    asyncio.run(scene())


def test_a_call_has_one_reply(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage(tmp_path) as on:
            assert await asyncio.to_thread(lambda: on.client().call(Count(1))) == Number(0)
            for wrong in (0, 2):
                with pytest.raises(DaemonError):
                    await asyncio.to_thread(on.client().call, Count(wrong))

    asyncio.run(scene())


@pytest.mark.parametrize("failing", [False, True])
def test_one_connection_carries_one_request_after_the_other(tmp_path: Path, failing: bool) -> None:
    """A failure ends it, and the next request gets another one."""

    async def scene() -> None:
        async with stage(tmp_path, connections_max=1) as on:
            kept = Kept(SystemClock())
            client: LocalClient[Reply] = LocalClient(on.path, Reply, kept)
            assert await asyncio.to_thread(client.call, Count(1)) == Number(0)
            (first,) = on.server._connections
            if failing:
                with pytest.raises(UnknownRecipient):
                    await asyncio.to_thread(client.call, Fail("known"))
                assert kept.take() is None
                await until(lambda: not on.server._connections)
            assert await asyncio.to_thread(client.call, Count(1)) == Number(0)
            assert (on.server._connections == {first}) is not failing
            kept.close()
            assert not on.refused

    asyncio.run(scene())


def test_a_connection_is_kept_no_longer_than_the_other_end_and_its_owner_do(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage(tmp_path, request_seconds=0.2) as on:
            clock = FixedClock()
            kept = Kept(clock)
            client: LocalClient[Reply] = LocalClient(on.path, Reply, kept)

            async def used() -> bool:
                """Whether a connection is kept after a request."""
                assert await asyncio.to_thread(client.call, Count(1)) == Number(0)
                return bool(on.server._connections)

            assert await used()
            ((_, idle),) = kept._idle
            assert await asyncio.to_thread(idle.recv, 1, socket.MSG_PEEK) == b"", "the other end has closed it"
            assert kept.take() is None
            assert await used()
            clock.now += KEPT_SECONDS + 1
            assert kept.take() is None, "it is too old"
            assert await used()
            kept.close()
            assert kept.take() is None
            assert await asyncio.to_thread(client.call, Count(1)) == Number(0)
            await until(lambda: not on.server._connections)
            assert not on.refused

    asyncio.run(scene())


def test_what_was_not_read_to_its_end_is_not_kept(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage(tmp_path) as on:
            kept = Kept(SystemClock())
            client: LocalClient[Reply] = LocalClient(on.path, Reply, kept)
            with contextlib.closing(client.stream(Hang(), within=DEADLINE)) as replies:
                assert await asyncio.to_thread(next, replies) == Text("hanging")
            assert kept.take() is None
            await until(lambda: on.cancelled == 1)

    asyncio.run(scene())


def test_a_failure_arrives_as_the_error_that_was_raised(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage(tmp_path) as on:

            def ask(request: Request) -> ZkcError:
                with pytest.raises(ZkcError) as caught:
                    on.client().call(request)
                return caught.value

            known = await asyncio.to_thread(ask, Fail("known"))
            assert isinstance(known, UnknownRecipient)
            assert (known.message, known.detail, known.hint) == ("no client is named carol", "unknown", "see zkc peers")
            assert isinstance(await asyncio.to_thread(ask, Fail("late")), UnknownRecipient)
            assert isinstance(await asyncio.to_thread(ask, Fail("huge")), InternalError)
            assert not on.reported
            assert isinstance(await asyncio.to_thread(ask, Fail("defect")), InternalError)
            assert len(on.reported) == 1

    asyncio.run(scene())


def test_a_client_that_hangs_up_cancels_its_handler(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage(tmp_path) as on:

            def look_and_leave() -> None:
                with contextlib.closing(on.client().stream(Hang())) as replies:
                    assert next(replies) == Text("hanging")

            await asyncio.to_thread(look_and_leave)
            await until(lambda: on.cancelled == 1)
            assert not on.refused

    asyncio.run(scene())


def test_a_silent_server_is_a_failure_in_time(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage(tmp_path) as on:
            with pytest.raises(DaemonError) as caught:
                await asyncio.to_thread(lambda: list(on.client().stream(Hang(), within=0.1)))
            assert caught.value.detail == "no-answer"

    asyncio.run(scene())


def test_closing_ends_every_connection_and_leaves_no_socket(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage(tmp_path) as on:
            asking = asyncio.create_task(on.call(Hang(), within=None))
            await until(lambda: on.hanging)
            await on.server.close()
            with pytest.raises(DaemonError) as caught:
                await asking
            assert caught.value.detail == "no-answer"
            assert isinstance(caught.value, HungUp)
            assert on.cancelled == 1
            assert not on.path.exists()
            with pytest.raises(DaemonError) as caught:
                await on.call(Count(1))
            assert caught.value.detail == "not-running"

    asyncio.run(scene())


@pytest.mark.attack("L06")
def test_nothing_running_is_told(tmp_path: Path) -> None:
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    for path in (tmp_path / "absent.sock", tmp_path / "no" / "folder.sock", stale):
        with pytest.raises(NotRunning) as caught:
            LocalClient[Reply](path, Reply).call(Count(1))
        assert (caught.value.code, caught.value.detail) == (34, "not-running")


def test_one_that_stands_still_is_told_from_none_also_when_its_queue_is_full(tmp_path: Path) -> None:
    """It would be a mistake to start a second one, or to link beside it."""
    path = tmp_path / "stuck.sock"
    with socket.socket(socket.AF_UNIX) as stuck, contextlib.ExitStack() as waiting:
        stuck.bind(str(path))
        stuck.listen(0)
        for _ in range(3):
            with pytest.raises(NoAnswer) as caught:
                LocalClient[Reply](path, Reply).call(Count(1), within=0.05)
            assert caught.value.detail == "no-answer"
            one = waiting.enter_context(socket.socket(socket.AF_UNIX))
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(str(path))


@pytest.mark.parametrize(
    "answer",
    [
        b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1\7", b"\0\0\0\2\0\xff", b"\0\0\0\3\1ab", b"\0\0\0\3\2[]",
        b"\0\0\0\3\2{}", b"\0\0\0\x08\0" + msgspec.json.encode(["x", 1]),
    ],
)  # fmt: skip
def test_an_answer_of_another_form_is_a_daemon_error(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "s"

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(CONTROL_REQUEST_MAX)
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def scene() -> None:
        async with await asyncio.start_unix_server(speak, path):
            with pytest.raises(DaemonError) as caught:
                await asyncio.to_thread(lambda: LocalClient[Reply](path, Reply).call(Count(1)))
            assert caught.value.detail == "bad-answer"

    asyncio.run(scene())


def test_the_client_of_a_command_imports_neither_asyncio_nor_zmq() -> None:
    script = "import sys, zkc.net.local_client; print(sorted({'asyncio', 'zmq', 'structlog'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# --- who may talk ---


@pytest.mark.attack("L01")
def test_only_the_same_user_and_root_may_talk() -> None:
    assert may_talk(1000, 1000)
    assert may_talk(0, 1000)
    assert not may_talk(1001, 1000)
    assert not may_talk(65534, 0)


@pytest.mark.attack("L01")
def test_a_server_of_another_user_is_not_told_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    check_server(Path("s"), Credentials(1, 1000))
    check_server(Path("s"), Credentials(1, 0))
    with pytest.raises(DaemonError) as caught:
        check_server(Path("s"), Credentials(1, 1001))
    assert caught.value.detail == "permission"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder whose own mode lets anybody in. What lies above it may be closed: others start from inside."""
    with tempfile.TemporaryDirectory(prefix="zkc-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.attack("L01")
@pytest.mark.parametrize("guard", ["mode", "credentials"])
def test_another_user_is_refused_by_mode_and_by_credentials(
    open_folder: Path, guard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root plays another user for real; anybody else is taken for one by a server that believes to be another."""

    async def scene() -> None:
        async with stage(open_folder) as on:
            if guard == "credentials":
                on.path.parent.chmod(0o755)
                on.path.chmod(0o666)
            if os.getuid() == 0:
                outcome = await asyncio.to_thread(knock, on.path, b"\0")
                stranger = NOBODY
            elif guard == "credentials":
                monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
                with raw(on.path) as sock:
                    outcome = "closed" if await asyncio.to_thread(is_closed, sock) else "answered"
                stranger = os.getuid()
            else:
                assert stat.S_IMODE(on.path.parent.stat().st_mode) == 0o700
                return
            assert outcome == {"mode": "denied", "credentials": "closed"}[guard]
            if guard == "credentials":
                assert [(why, peer.uid) for why, peer in on.refused] == [("foreign-uid", stranger)]
            else:
                assert not on.refused

    asyncio.run(scene())


# --- the path ---


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_socket_and_folder_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    async def scene() -> None:
        before = os.umask(umask)
        try:
            async with stage(tmp_path) as on:
                assert stat.S_IMODE(on.path.lstat().st_mode) == 0o600
                assert stat.S_IMODE(on.path.parent.lstat().st_mode) == 0o700
                assert os.umask(umask) == umask
        finally:
            os.umask(before)

    asyncio.run(scene())


def as_file(path: Path) -> None:
    path.write_text("precious")


def as_folder(path: Path) -> None:
    path.mkdir()
    (path / "precious").write_text("precious")


def as_link(path: Path) -> None:
    (path.parent / "target").write_text("precious")
    path.symlink_to(path.parent / "target")


def as_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def as_link_to_dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        os.fchmod(dead.fileno(), 0o600)
        dead.bind(str(path.parent / "target"))
    path.symlink_to(path.parent / "target")


def as_fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def as_loose_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    path.chmod(0o777)


def as_foreign_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        os.fchmod(dead.fileno(), 0o600)
        dead.bind(str(path))
    os.chown(path, 65534, 65534)


PLACED = [as_file, as_folder, as_link, as_dangling_link, as_link_to_dead_socket, as_fifo, as_loose_socket]
if os.getuid() == 0:
    PLACED.append(as_foreign_socket)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_ino, path.lstat().st_mode) for path in sorted(folder.rglob("*"))}


async def serve_nothing(path: Path) -> LocalServer[Request, Reply]:
    async def handler(_: Request, __: Credentials) -> AsyncGenerator[Reply, None]:
        yield Number(0)

    return await serve_local(path, handler, Request)


@pytest.mark.attack("L02")
@pytest.mark.parametrize("place", PLACED)
def test_what_stands_at_the_path_is_refused_and_not_touched(tmp_path: Path, place: Callable[[Path], None]) -> None:
    folder = tmp_path / "run"
    folder.mkdir(0o700)
    place(folder / "control.sock")
    before = snapshot(tmp_path)
    with pytest.raises(LocalIOError) as caught:
        asyncio.run(serve_nothing(folder / "control.sock"))
    assert caught.value.detail == "socket"
    assert snapshot(tmp_path) == before


@pytest.mark.attack("L03")
def test_a_second_server_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage(tmp_path) as on:
            with pytest.raises(LocalIOError) as caught:
                await serve_nothing(on.path)
            assert caught.value.detail == "socket"
            assert await on.call(Count(1)) == Number(0)

    asyncio.run(scene())


def test_closing_leaves_a_socket_that_another_has_put_there(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage(tmp_path) as on:
            on.path.unlink()
            other = await serve_nothing(on.path)
            await on.server.close()
            assert await on.call(Count(1)) == Number(0)
            await other.close()
            assert not on.path.exists()

    asyncio.run(scene())


def test_a_path_that_is_too_long_says_so(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 200)
    with pytest.raises(DaemonError) as caught:
        asyncio.run(serve_nothing(path))
    assert caught.value.detail == "path-too-long"
    with pytest.raises(DaemonError) as caught:
        LocalClient[Reply](path, Reply).call(Count(1))
    assert caught.value.detail == "path-too-long"


# --- bad clients ---

WHOLE = encode(Count(1))


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@pytest.mark.attack("L04")
@pytest.mark.parametrize(
    ("said", "why"),
    [
        (framed(b"\xff"), "malformed"),
        (framed(WHOLE + b"x"), "malformed"),
        (framed(msgspec.json.encode(["count", "ten"])), "malformed"),
        (framed(msgspec.json.encode(["unknown"])), "malformed"),
        (framed(b"[" * 100_000), "malformed"),
        (struct.pack(">I", 0), "malformed"),
        (framed(encode(Hang())) + b"more", "malformed"),
        (struct.pack(">I", CONTROL_REQUEST_MAX + 1), "limit"),
        (b"\xff\xff\xff\xff" + bytes(100_000), "limit"),
        (b"GET / HTTP/1.1\r\n\r\n", "limit"),
    ],
)
def test_what_is_no_request_closes_its_connection_only(tmp_path: Path, said: bytes, why: str) -> None:
    async def scene() -> None:
        async with stage(tmp_path) as on:
            with raw(on.path) as sock, contextlib.suppress(BrokenPipeError):
                await asyncio.to_thread(sock.sendall, said)
                await until(lambda: on.refused)
                while await asyncio.to_thread(lambda: not is_closed(sock)):
                    pass
            assert on.whys() == [why]
            assert await on.call(Count(1)) == Number(0)
            assert not on.reported

    asyncio.run(scene())


@pytest.mark.attack("L04")
def test_half_a_request_is_closed_when_it_is_overdue_or_broken_off(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage(tmp_path, request_seconds=0.2) as on:
            halves = [b"\0", struct.pack(">I", 100), framed(WHOLE)[:-1]]
            for half in halves:
                with raw(on.path) as sock:
                    sock.sendall(half)
                    assert await asyncio.to_thread(is_closed, sock)
            assert on.whys() == ["half-request"] * len(halves)
            with raw(on.path) as sock:
                sock.sendall(halves[1])
            await until(lambda: len(on.refused) == len(halves) + 1)
            with raw(on.path) as silent:
                assert await asyncio.to_thread(is_closed, silent)
            assert on.whys() == ["half-request"] * (len(halves) + 1)
            assert await on.call(Count(1)) == Number(0)

    asyncio.run(scene())


@pytest.mark.attack("L04")
def test_hundreds_of_connections_meet_the_limit_and_a_client_is_served_after(tmp_path: Path) -> None:
    """Those above the limit are closed at once; the others stay, and a new one gets in when one of them ends."""

    async def scene() -> None:
        async with stage(tmp_path, connections_max=CONTROL_CONNECTIONS_MAX) as on:
            surplus = 100
            held = [await asyncio.to_thread(raw, on.path) for _ in range(CONTROL_CONNECTIONS_MAX + surplus)]
            await until(lambda: len(on.refused) == surplus)
            assert set(on.whys()) == {"too-many"}
            for sock in held[CONTROL_CONNECTIONS_MAX:]:
                assert await asyncio.to_thread(refusal, sock) == "too-many"
            with pytest.raises(DaemonError) as told:
                await on.call(Count(1))
            assert (told.value.detail, told.value.hint) == ("too-many", "run it again")
            held[0].sendall(framed(WHOLE))
            assert await asyncio.to_thread(held[0].recv, 1)
            for sock in held:
                sock.close()

            served: list[Reply] = []

            async def ask() -> None:
                while not served:
                    with contextlib.suppress(DaemonError):
                        served.append(await on.call(Count(1)))

            async with asyncio.timeout(DEADLINE):
                await ask()
            assert served == [Number(0)]

    asyncio.run(scene())
