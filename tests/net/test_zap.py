from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tests.net.conftest import Door, served
from tests.support.evil import KeyedPeer, RawPeer
from tests.support.waiting import DEADLINE, until
from zkc.errors import InternalError, PeerViolation
from zkc.net import zap
from zkc.net.loopsocket import LoopSocket, Received
from zkc.net.monitor import EventKind
from zkc.net.sockets import Context, bind_router, generate_curve, to_raw
from zkc.net.zap import AsyncZap, ThreadZap, ZapRequest, parse, reply

CURVE = [b"1.0", b"7", b"zkc", b"127.0.0.1", b"", b"CURVE", bytes(32)]
PLAIN = [b"1.0", b"8", b"xfer", b"::1", b"\0id", b"PLAIN", b"user", b"pass"]


VERDICTS = (EventKind.HANDSHAKE_SUCCEEDED, EventKind.HANDSHAKE_FAILED_AUTH)


def changed(frames: list[bytes], at: int, value: bytes) -> list[bytes]:
    return [*frames[:at], value, *frames[at + 1 :]]


# --- the grammar ---


def test_a_request_is_read_field_by_field() -> None:
    assert parse(CURVE) == ZapRequest(b"7", "zkc", "127.0.0.1", "CURVE", (bytes(32),))
    request = parse(PLAIN)
    assert (request.mechanism, request.address, request.credentials) == ("PLAIN", "::1", (b"user", b"pass"))
    assert parse(changed(PLAIN, 3, b"::ffff:192.0.2.1")).address == "192.0.2.1"


def test_credentials_are_not_shown() -> None:
    assert "pass" not in repr(parse(PLAIN))


@pytest.mark.parametrize(
    "frames",
    [
        [], CURVE[:5], changed(CURVE, 0, b"2.0"), changed(CURVE, 6, bytes(31)), [*CURVE, b""], CURVE[:6], PLAIN[:7],
        changed(CURVE, 5, b"GSSAPI"), changed(CURVE, 5, b"NULL"), changed(CURVE, 2, b"\xff"),
    ],
)  # fmt: skip
def test_a_malformed_request_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(PeerViolation):
        parse(frames)
    errors: list[Exception] = []
    answered = zap.answer(frames, lambda _: "everybody", errors.append)
    assert answered[2] == b"400"
    assert not errors


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_frames_get_an_answer_of_six_frames(frames: list[bytes]) -> None:
    answered = zap.answer(frames, lambda _: None, lambda _: None)
    assert len(answered) == 6
    assert answered[2] == b"400"
    assert answered[4] == b""


def test_a_reply_is_200_with_the_user_id_or_400_and_never_300() -> None:
    assert reply(parse(CURVE), "aa" * 16) == [b"1.0", b"7", b"200", b"", b"aa" * 16, b""]
    assert reply(parse(CURVE), None) == [b"1.0", b"7", b"400", b"", b"", b""]


@pytest.mark.parametrize("user_id", ["", "ü", "x" * 256])
def test_nobody_is_admitted_without_a_user_id_that_fits(user_id: str) -> None:
    errors: list[Exception] = []
    assert zap.answer(CURVE, lambda _: user_id, errors.append)[2] == b"400"
    assert len(errors) == 1


def test_an_error_while_admitting_refuses() -> None:
    errors: list[Exception] = []

    def admit(_: ZapRequest) -> str | None:
        raise OSError("the key database is gone")

    assert zap.answer(CURVE, admit, errors.append)[2] == b"400"
    assert zap.answer(CURVE, admit, errors.append, zap.OVERLOADED)[2] == b"500"
    assert [type(error) for error in errors] == [OSError, OSError]


def test_what_is_no_request_is_refused_whatever_a_failure_is_answered() -> None:
    assert zap.answer(CURVE[:5], lambda _: "everybody", pytest.fail, zap.OVERLOADED)[2] == b"400"


def test_no_room_is_no_error() -> None:
    def admit(_: ZapRequest) -> str | None:
        raise zap.Overloaded

    assert zap.answer(CURVE, admit, pytest.fail, zap.OVERLOADED)[2] == b"500"


# --- handlers ---


def test_a_known_key_is_admitted_as_its_user_and_an_unknown_one_is_refused(door: Door) -> None:
    with KeyedPeer(door.endpoint, door.server.public) as stranger:
        event = stranger.wait(DEADLINE, EventKind.HANDSHAKE_FAILED_AUTH, EventKind.HANDSHAKE_SUCCEEDED)
        assert (event.kind, event.code) == (EventKind.HANDSHAKE_FAILED_AUTH, 400)
    with KeyedPeer(door.endpoint, door.server.public, door.guest) as guest:
        guest.send(b"hello")
        assert door.socket.poll(int(DEADLINE * 1000))
        _, frame = door.socket.recv_multipart(copy=False)
        assert frame.get("User-Id") == "guest"
    assert [request.address for request in door.asked] == ["127.0.0.1", "127.0.0.1"]
    assert {request.domain for request in door.asked} == {"zkc"}


def test_a_client_with_another_server_key_learns_nothing_and_zap_is_not_asked(door: Door) -> None:
    with KeyedPeer(door.endpoint, generate_curve().public, door.guest) as lost:
        assert lost.verdict() is EventKind.HANDSHAKE_FAILED_NO_DETAIL
    assert not door.asked


def test_a_thread_handler_ends_when_it_is_closed_and_admits_nobody_after(ctx: Context) -> None:
    before = threading.active_count()
    handler = ThreadZap(ctx, lambda _: "anybody")
    assert threading.active_count() == before + 1
    handler.close()
    handler.close()
    assert threading.active_count() == before
    keys = generate_curve()
    router, (endpoint,) = bind_router(ctx, ["tcp://127.0.0.1:0"], keys.secret)
    with KeyedPeer(endpoint, keys.public) as peer:
        peer.monitor.wait({EventKind.CONNECTED}, DEADLINE)
        assert peer.monitor.wait({EventKind.HANDSHAKE_SUCCEEDED}, 0.2) is None
    router.close(linger=0)


def test_a_thread_handler_survives_errors_and_tells_of_them(ctx: Context) -> None:
    errors: list[Exception] = []
    answers: Iterator[str | None] = iter(("guest",))

    def admit(_: ZapRequest) -> str | None:
        if not errors:
            raise RuntimeError("first")
        return next(answers)

    keys = generate_curve()
    with ThreadZap(ctx, admit, errors.append):
        router, (endpoint,) = bind_router(ctx, ["tcp://127.0.0.1:0"], keys.secret)
        for wanted in (EventKind.HANDSHAKE_FAILED_AUTH, EventKind.HANDSHAKE_SUCCEEDED):
            with KeyedPeer(endpoint, keys.public) as peer:
                assert peer.verdict() is wanted
        router.close(linger=0)
    assert [str(error) for error in errors] == ["first"]


def test_a_thread_handler_ends_with_its_context() -> None:
    ctx: Context = zmq.Context()
    handler = ThreadZap(ctx, lambda _: None)
    ctx.term()
    handler.close()


def test_a_context_has_one_handler(ctx: Context) -> None:
    with ThreadZap(ctx, lambda _: None), pytest.raises(InternalError):
        ThreadZap(ctx, lambda _: None)


@pytest.mark.attack("D01", "C13")
def test_plain_peers_with_strange_credentials_are_refused(ctx: Context) -> None:
    with ThreadZap(ctx, lambda request: "ok" if request.credentials == (b"u", b"p") else None):
        pull, push, data, _ = served(ctx)
        with ExitStack() as stack:
            refused = []
            for user, password in ((b"", b""), (b"\0" * 255, b"\xff" * 255), (b"u", b""), (b"u", b"p" * 2)):
                refused.append(stack.enter_context(RawPeer("127.0.0.1", data)))
                assert not refused[-1].handshake_plain(user, password)
            for peer in refused:
                peer.wait_closed()
        with RawPeer("127.0.0.1", data) as peer:
            assert peer.handshake_plain(b"u", b"p")
            peer.send(b"\0\5hello")
            assert pull.poll(int(DEADLINE * 1000))
            assert pull.recv() == b"hello"
        pull.close(linger=0)
        push.close(linger=0)


def test_an_asyncio_handler_admits_refuses_and_reports(ctx: Context) -> None:
    keys, guest, troublesome = generate_curve(), generate_curve(), generate_curve()
    reported: list[dict[str, object]] = []
    got: list[Received] = []

    def admit(request: ZapRequest) -> str | None:
        if request.credentials == (to_raw(troublesome.public),):
            raise KeyError("trouble")
        return "guest" if request.credentials == (to_raw(guest.public),) else None

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        handler = AsyncZap(ctx, loop, admit)
        sock, (endpoint,) = bind_router(ctx, ["tcp://127.0.0.1:0"], keys.secret)
        router = LoopSocket(sock, got.append)
        with (
            KeyedPeer(endpoint, keys.public, guest) as welcome,
            KeyedPeer(endpoint, keys.public) as stranger,
            KeyedPeer(endpoint, keys.public, troublesome) as trouble,
        ):
            peers = (welcome, stranger, trouble)
            events = await asyncio.gather(*(asyncio.to_thread(peer.wait, DEADLINE, *VERDICTS) for peer in peers))
            welcome.send(b"hello")
            await until(lambda: got)
        assert [(event.kind, event.code) for event in events] == [
            (EventKind.HANDSHAKE_SUCCEEDED, 0),
            (EventKind.HANDSHAKE_FAILED_AUTH, 400),
            (EventKind.HANDSHAKE_FAILED_AUTH, 500),
        ]
        router.close()
        handler.close()
        handler.close()

    asyncio.run(scene())
    assert (got[0].user_id, got[0].payload) == ("guest", b"hello")
    assert got[0].fd > 0
    assert len(reported) == 1


# --- the self test ---


@pytest.mark.attack("R10")
def test_the_self_test_passes_where_a_bad_key_is_refused(ctx: Context) -> None:
    async def scene() -> None:
        handler = AsyncZap(ctx, asyncio.get_running_loop(), lambda _: None)
        keys = generate_curve()
        router, (endpoint,) = bind_router(ctx, ["tcp://*:0"], keys.secret)
        await zap.self_test(ctx, endpoint, keys.public)
        router.close(linger=0)
        handler.close()

    asyncio.run(scene())


@pytest.mark.attack("R10")
def test_the_self_test_raises_where_everybody_is_let_in(ctx: Context) -> None:
    async def scene() -> None:
        handler = AsyncZap(ctx, asyncio.get_running_loop(), lambda _: "anybody")
        keys = generate_curve()
        router, (endpoint,) = bind_router(ctx, ["tcp://127.0.0.1:0"], keys.secret)
        with pytest.raises(InternalError, match="succeeded"):
            await zap.self_test(ctx, endpoint, keys.public)
        router.close(linger=0)
        handler.close()

    asyncio.run(scene())


@pytest.mark.attack("R10")
@pytest.mark.parametrize("server_key", ["right", "wrong"])
def test_the_self_test_raises_where_no_handler_answers(ctx: Context, server_key: str) -> None:
    async def scene() -> None:
        keys = generate_curve()
        router, (endpoint,) = bind_router(ctx, ["tcp://127.0.0.1:0"], keys.secret)
        public = keys.public if server_key == "right" else generate_curve().public
        with pytest.raises(InternalError) as caught:
            await zap.self_test(ctx, endpoint, public, within=0.3)
        assert caught.value.detail == "zap"
        router.close(linger=0)

    asyncio.run(scene())
