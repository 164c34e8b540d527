"""A small payload on its way to the daemon: what counts as one, and what happens when the daemon does not answer."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.waiting import DEADLINE
from zkc.client import control, small
from zkc.client.events import Delivery, Granted, Options, Requested
from zkc.client.small import GIVEN_BACK, OnDisk, Small, Undone, as_told, hand_over, look_at
from zkc.constants import HOLES_MIN, SMALL_MAX
from zkc.env import SystemClock
from zkc.errors import DaemonError, Interrupted, LocalIOError, RecipientOffline
from zkc.net.local_client import decode, encode
from zkc.net.local_frames import LENGTH, NoAnswer, pack_end, pack_failure, pack_reply
from zkc.stores.home import Home

CLOCK = SystemClock()
MESSAGE = Small("message", "message", b"\0\xffhi")
DELIVERY = Delivery("00", "bob", "message", 4, "blake3:00", 0.1, Path("/r"), "sender", "direct", "aes-256-gcm")


# --- what is small -------------------------------------------------------------------------------------------------


def test_a_message_is_what_it_is_in_bytes() -> None:
    """Words of a command line in another encoding come out as they were given; what no encoding gives is not small."""
    assert look_at("für \udcff", CLOCK) == (Small("message", "message", b"f\xc3\xbcr \xff"), b"")
    assert look_at("\ud800", CLOCK) == (None, b"")


@pytest.mark.parametrize("size", [0, 1, SMALL_MAX])
def test_a_small_file_is_read_whole_with_its_mode_and_time(tmp_path: Path, size: int) -> None:
    file = tmp_path / "tool"
    file.write_bytes(b"x" * size)
    file.chmod(0o750)
    os.utime(file, ns=(5, 7_000_000_001))
    small = Small("file", "tool", b"x" * size, 0o750, 7_000_000_001, str(file.resolve()))
    assert look_at(file, CLOCK) == (small, b"")


def test_what_is_no_small_file_is_left_to_whoever_says_what_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # A file of /proc claims to be empty.
    holes = tmp_path / "holes"
    with holes.open("wb") as file:
        file.truncate(HOLES_MIN)
    # A file of /proc claims to be empty.
    for path in (holes, pipe, tmp_path, tmp_path / "absent", Path("/proc/self/status")):
        assert look_at(path, CLOCK) == (None, b"")


def test_a_larger_file_is_told_by_its_real_path_and_which_it_is(tmp_path: Path) -> None:
    large, link = tmp_path / "large", tmp_path / "link"
    large.write_bytes(bytes(SMALL_MAX + 1))
    link.symlink_to(large)
    status = large.stat()
    assert look_at(link, CLOCK) == (OnDisk("link", str(large.resolve()), status.st_dev, status.st_ino), b"")


@pytest.mark.parametrize("written", [b"", b"hi", bytes(SMALL_MAX)], ids=len)
@pytest.mark.parametrize("ended", [True, False])
def test_a_pipe_is_small_once_it_has_ended(written: bytes, ended: bool) -> None:
    """One that goes on is not waited for; what was read of it comes back, to be sent first."""
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as feed:
        feed.write(written)  # a pipe holds as much before somebody reads
        if ended:
            feed.close()
        assert look_at(stream, CLOCK) == ((Small("stream", "stdin", written) if ended else None), written)


def test_a_pipe_is_read_one_byte_beyond_what_is_small_and_no_farther(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(SMALL_MAX) + b"rest")
    with (tmp_path / "file").open("rb") as stream:
        assert look_at(stream, CLOCK) == (None, bytes(SMALL_MAX) + b"r")
        assert os.read(stream.fileno(), 9) == b"est"


# --- handing over --------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A registered client's home, as far as a command looks into it."""
    made = Home.resolve("client", str(tmp_path / "home")).prepare()
    made.keys_db.touch(0o600)
    return made


Daemon = Callable[[socket.socket], object]


@contextlib.contextmanager
def served(home: Home, answer: Daemon) -> Iterator[list[bytes]]:
    """A daemon that reads one request, does ``answer`` and closes; the requests that it got."""
    requests: list[bytes] = []

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            (length,) = LENGTH.unpack(connection.recv(LENGTH.size, socket.MSG_WAITALL))
            requests.append(connection.recv(length, socket.MSG_WAITALL))
            answer(connection)

    with home.lock() as lock, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(home.prepare_socket(lock)))
        listening.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield requests
        finally:
            thread.join(DEADLINE)


def told(*events: small.Told) -> bytes:
    return b"".join(pack_reply(encode(control.EventReply(*as_told(event)))) for event in events)


REQUESTED, GRANTED = Requested("bob", "message", 4), Granted("bob", "sender", "online", "direct", 0)


def hand(home: Home, events: list[object], options: Options | None = None) -> object:
    return hand_over(home, "bob", MESSAGE, None, "für dich", options or Options(), {}, events.append)


def test_the_daemon_gets_the_whole_job_and_the_command_every_event(home: Home) -> None:
    events: list[object] = []
    answer = told(REQUESTED, small.Waiting(), GRANTED, DELIVERY) + pack_end()
    with served(home, lambda connection: connection.sendall(answer)) as requests:
        assert hand(home, events, Options(wait=1.0, key_source="sender")) == DELIVERY
    assert events == [REQUESTED, GRANTED]
    (ask,) = (decode(request, control.ControlRequest) for request in requests)
    assert ask == control.AskSend(
        control.Job(
            "bob", MESSAGE, None, None, "für dich", Options(wait=1.0, key_source="sender"), os.fspath(home.config_file),
            {},
        )
    )


def test_the_configuration_goes_along_and_no_secret_does(home: Home) -> None:
    environ = {"ZKC_INVITE": "secret", "ZKC_PIN": "1234", "PATH": "/", "ZKC_TRANSFER_CIPHER": "x", "ZKC_ODD": "y"}
    with served(home, lambda connection: connection.sendall(told(DELIVERY) + pack_end())) as requests:
        hand_over(home, "bob", MESSAGE, None, "", Options(), environ, lambda _: None)
    _, job = json.loads(requests[0])
    assert job["variables"] == {"ZKC_TRANSFER_CIPHER": "x", "ZKC_ODD": "y"}


def test_a_failure_of_the_delivery_is_the_command_s(home: Home) -> None:
    answer = told(REQUESTED) + pack_failure(RecipientOffline("bob is offline", detail="offline"))
    with served(home, lambda connection: connection.sendall(answer)), pytest.raises(RecipientOffline):
        hand(home, [])


def test_without_a_daemon_or_a_registration_the_command_does_it_itself(home: Home) -> None:
    assert hand(home, []) == Undone()
    home.keys_db.unlink()
    assert hand(home, []) == Undone()


@pytest.mark.attack("K01")
def test_beside_keys_that_others_can_read_nothing_is_handed_over(home: Home) -> None:
    home.keys_db.chmod(0o640)
    with pytest.raises(LocalIOError) as caught:
        hand(home, [])
    assert caught.value.detail == "permission"


def test_what_does_not_fit_into_a_request_or_is_no_text_the_command_sends_itself(home: Home) -> None:
    for name in ("x" * 300_000, "\udcff"):
        assert hand_over(home, "bob", MESSAGE, name, "", Options(), {}, lambda _: None) == Undone()


def test_a_daemon_that_ends_before_anything_left_is_done_without_and_after_that_it_is_31(home: Home) -> None:
    """It tells of the grant before a byte leaves: so nothing is sent twice."""
    with served(home, lambda connection: connection.sendall(told(REQUESTED))):
        assert hand(home, []) == Undone()
    begun = told(REQUESTED, GRANTED)
    with served(home, lambda connection: connection.sendall(begun)), pytest.raises(Interrupted) as caught:
        hand(home, [])
    assert caught.value.detail == "daemon"


def test_a_file_whose_daemon_ended_is_gone_on_with_by_the_command(home: Home) -> None:
    """Not where it only gives no answer: it may still send."""
    file = OnDisk("film", "/srv/film", 1, 2)

    def hand_file(options: Options | None = None) -> object:
        return hand_over(home, "bob", file, None, "", options or Options(), {}, lambda _: None)

    for told_of, begun in ((told(REQUESTED), False), (told(REQUESTED, GRANTED), True)):
        with served(home, lambda connection, told_of=told_of: connection.sendall(told_of)):
            assert hand_file() == Undone(begun=begun)
    for detail in GIVEN_BACK:
        answer = told(REQUESTED) + pack_failure(DaemonError("no", detail=detail))
        with served(home, lambda connection, answer=answer: connection.sendall(answer)):
            assert hand_file() == Undone()
    held = threading.Event()

    def stand_still(connection: socket.socket) -> None:
        connection.sendall(told(REQUESTED, GRANTED))
        held.wait(DEADLINE)

    with served(home, stand_still), contextlib.ExitStack() as ending:
        ending.callback(held.set)
        with pytest.raises(Interrupted) as caught:
            hand_file(Options(timeout=0.01))
        assert caught.value.detail == "daemon"


def test_a_daemon_that_stands_still_is_34_and_is_waited_for_by_who_waits(home: Home) -> None:
    held = threading.Event()
    for wait in (None, 60.0):
        with served(home, lambda _: held.wait(DEADLINE)), contextlib.ExitStack() as ending:
            ending.callback(held.set)
            if wait is None:
                with pytest.raises(NoAnswer):
                    hand(home, [], Options(timeout=0.01))
            else:
                assert hand(home, [], Options(wait=wait, timeout=0.01)) == Undone()
        held.clear()


def test_what_a_later_daemon_tells_besides_is_passed_over(home: Home) -> None:
    events: list[object] = []
    name, fields = as_told(GRANTED)
    later = pack_reply(encode(control.EventReply(name, fields | {"colour": "red"})))
    with served(home, lambda connection: connection.sendall(later + told(DELIVERY) + pack_end())):
        assert hand(home, events) == DELIVERY
    assert events == [GRANTED]


@pytest.mark.parametrize(
    "body",
    [
        b"[]", b"{}", b"\xff", b'["event","Nothing",{}]', b'["event","Granted",{}]',
        b'["event","Delivery",{"receipt":1}]', b'["event","Notice",["x"]]',
    ],
)
def test_an_event_of_another_form_is_a_daemon_error(home: Home, body: bytes) -> None:
    with (
        served(home, lambda connection: connection.sendall(pack_reply(body) + pack_end())),
        pytest.raises(DaemonError) as caught,
    ):
        hand(home, [])
    assert caught.value.detail == "bad-answer"


def test_an_answer_without_an_end_is_none(home: Home) -> None:
    with served(home, lambda connection: connection.sendall(pack_end())), pytest.raises(DaemonError) as caught:
        hand(home, [])
    assert caught.value.detail == "bad-answer"
