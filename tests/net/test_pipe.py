"""The bulk pipe between two threads: credit, the bell, lost links, and what a transfer may take of the process."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import msgspec
import pytest
import zmq
from blake3 import blake3

from tests.support.env import FixedClock
from tests.support.evil_sender import Frames, Line
from tests.support.parties import identity_of, world
from tests.support.talks import terms
from tests.support.waiting import DEADLINE, wait_until
from zkc.constants import CHUNK_MAX, CHUNK_MIN, TRANSFERS_MAX, WINDOW_BUDGET, WINDOW_MAX
from zkc.crypto.receipts import make_receipt
from zkc.env import SystemClock
from zkc.errors import Interrupted, LocalIOError, PolicyRefused, ZkcError
from zkc.net.pipe import Bell, Bulk, LinkLost, Listener, send
from zkc.net.pipe.budget import Budget, Share
from zkc.net.pipe.link import CONNECT_SECONDS
from zkc.net.pipe.recipient import ARRIVAL_SECONDS, FRAMES_A_TURN
from zkc.net.sockets import DescriptorsTaken, Login
from zkc.protocol.delivery import Stopped
from zkc.protocol.delivery_recipient import Announced, Complete, Data, DeliveryRecipient, Farewell, receipt_body
from zkc.protocol.delivery_sender import Delivered
from zkc.protocol.session import Session
from zkc.wire.codec import encode
from zkc.wire.frames import Flag
from zkc.wire.messages import Ack, Done, Endpoints, Manifest, Stop

C: Final = CHUNK_MIN
HOST: Final = "127.0.0.1"
WHAT: Final = Manifest("stream", "data.bin", "", None, 0o600, 0)


class Memory:
    """A source and a sink in memory. ``on_write`` sees what has come so far."""

    fd: int | None = None

    def __init__(self, session: Session, data: bytes = b"") -> None:
        self._session = session
        self._left = memoryview(data)
        self.got = bytearray()
        self.on_write: Callable[[int], object] = lambda _: None

    def read(self, n: int) -> bytes:
        data, self._left = bytes(self._left[:n]), self._left[n:]
        return data

    def check(self) -> None:
        """It does not change."""

    def announced(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def write(self, data: bytes) -> None:
        self.got += data
        self.on_write(len(self.got))

    def complete(self, size: int, digest: bytes) -> bytes:
        body = receipt_body(self._session, self.manifest, size, digest, 1.0, 2.0)
        return make_receipt(identity_of("bob"), body, world("x25519").bob.card.encoded)


class Pair:
    """A recipient that listens for one transfer from alice to bob, and what its sender knows."""

    def __init__(self, bulk: Bulk, chunk: int = C) -> None:
        talk = world("x25519").transfer(terms("bob"))
        talk.run()
        resp = msgspec.structs.replace(talk.sessions[0].resp, chunk=chunk)
        sender, self.recipient = (dataclasses.replace(session, resp=resp) for session in talk.sessions)
        self.listener: Listener = bulk.listen(HOST, None)
        self.listener.admit(self.recipient)
        where = Endpoints([HOST], self.listener.data_port, self.listener.ack_port, 0)
        self.sender = dataclasses.replace(sender, endpoints=where)
        self.sink = Memory(self.recipient)
        self.bell = Bell()
        self._pool = ThreadPoolExecutor(1)

    def receive(self, patience: float = DEADLINE, **options: Any) -> Future[None]:
        """The recipient, at work on a thread of its own; it closes its sockets at its end, as the programs do."""

        def run() -> None:
            try:
                self.listener.receive(self.recipient, self.sink, self.bell, patience, **options)
            finally:
                self.listener.close()

        return self._pool.submit(run)

    def close(self) -> None:
        self.bell.ring()
        self._pool.shutdown()
        self.listener.close()
        self.bell.close()


@pytest.fixture
def bulk() -> Iterator[Bulk]:
    made = Bulk()
    yield made
    made.close()


@pytest.fixture
def pair(bulk: Bulk) -> Iterator[Pair]:
    made = Pair(bulk)
    yield made
    made.close()


def error_of(ended: Future[Any]) -> ZkcError:
    error = ended.exception(DEADLINE)
    assert isinstance(error, ZkcError), error
    return error


def test_a_stream_of_several_windows_arrives_and_is_receipted(pair: Pair) -> None:
    data = random.Random(1).randbytes(WINDOW_MAX + 5)
    receiving = pair.receive()
    delivered = send(pair.sender, WHAT, Memory(pair.sender, data), Bell(), deadline=None)
    receiving.result(DEADLINE)
    assert isinstance(delivered, Delivered)
    assert pair.sink.got == data


# --- credit ----------------------------------------------------------------------------------------------------------


@pytest.mark.attack("D11")
def test_a_sender_that_ignores_its_credit_is_refused_with_a_limit(pair: Pair) -> None:
    """It has no connection for acknowledgements: what the first one would have given is all that it gets in."""
    budget = Share(Budget())
    budget.begin(C)
    frames = Frames(pair.sender)
    receiving = pair.receive()
    with Line(pair.sender, ack=Login(b"nobody", b"nothing")) as line:
        assert line.admitted() == (True, False)
        line.send(*frames.opening())
        chunk = frames.chunk(data := frames.whole())
        while not receiving.done():
            # The recipient may go between the poll and the send, which would wait for ever.
            with contextlib.suppress(zmq.Again):
                if line.push.poll(10, zmq.POLLOUT):
                    line.push.send(chunk, zmq.DONTWAIT)
                    chunk = frames.chunk(data)
        error = error_of(receiving)
    assert (type(error), error.detail) == (PolicyRefused, "limit")
    assert error.hint.startswith("run it again")
    assert len(pair.sink.got) == budget.credit(0)


def test_the_bell_is_heard_within_a_turn_of_a_sender_that_never_pauses(pair: Pair) -> None:
    at: list[int] = []

    def ring(size: int) -> None:
        if size >= 4 * 1024 * 1024 and not at:
            at.append(size)
            pair.bell.ring()

    pair.sink.on_write = ring
    receiving = pair.receive()
    with pytest.raises(Interrupted) as told:
        send(pair.sender, WHAT, Memory(pair.sender, bytes(64 * 1024 * 1024)), Bell(), deadline=None)
    assert told.value.detail == "shutdown"
    assert error_of(receiving).detail == "shutdown"
    assert len(pair.sink.got) - at[0] < FRAMES_A_TURN * C


def test_a_transfer_that_is_begun_anew_does_not_say_that_the_client_ends(pair: Pair) -> None:
    pair.sink.on_write = lambda _: pair.bell.ring(superseded=True)
    receiving = pair.receive()
    with pytest.raises(Interrupted) as told:
        send(pair.sender, WHAT, Memory(pair.sender, bytes(64 * 1024 * 1024)), Bell(), deadline=None)
    assert not isinstance(told.value, LinkLost)
    assert told.value.detail == "ended"
    assert "anew" in error_of(receiving).message


def test_the_last_word_of_a_recipient_that_gives_up_arrives_though_the_link_ends_behind_it(bulk: Bulk) -> None:
    """libzmq's connecting end drops what it has not read when its connection ends: so the sender is let go first."""
    for _ in range(20):
        pair = Pair(bulk)
        pair.receive()
        with Line(pair.sender) as line:
            line.send(b"no frame")
            assert isinstance(line.verdict(), Stop)
        pair.close()


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [CHUNK_MIN, 512 * 1024, CHUNK_MAX])
def test_every_place_gets_two_chunks_and_all_together_stay_within_the_budget(wanted: int) -> None:
    budget = Budget()
    untouched = budget.free
    shares = [Share(budget) for _ in range(TRANSFERS_MAX)]
    chunks = [share.offer(wanted) for share in shares]
    assert chunks[0] == wanted, "who is alone gets what is configured"
    assert all(CHUNK_MIN <= chunk <= wanted for chunk in chunks)
    assert 2 * sum(chunks) <= WINDOW_BUDGET
    given = []
    for share, chunk in zip(shares, chunks, strict=True):
        share.begin(chunk)
        given.append(share.credit(0))
        assert given[-1] >= 2 * chunk
        assert given[-1] % chunk == 0
    assert sum(given) <= WINDOW_BUDGET
    for share in (*shares, *shares):
        share.close()
    assert (budget.free, budget.active) == (untouched, 0)


def test_as_many_pairs_as_there_are_places_can_be_bound(bulk: Bulk) -> None:
    """libzmq's own bound on sockets lies below; and where the bound is met, the next transfer waits for its turn."""
    listeners: list[Listener] = []

    def binds() -> bool:
        try:
            listeners.append(bulk.listen(HOST, None))
        except DescriptorsTaken:
            return False
        return True

    try:
        while len(listeners) < 2 * TRANSFERS_MAX and binds():
            pass
        assert TRANSFERS_MAX <= len(listeners) < 2 * TRANSFERS_MAX
        listeners.pop().close()
        wait_until(binds)
    finally:
        for listener in listeners:
            listener.close()


def test_what_is_under_way_never_exceeds_the_budget_whoever_sends_or_sits_on_his_credit() -> None:
    """Random progress of transfers that come and go: credit never shrinks, and its sum is bounded at every moment."""
    for seed in range(20):
        rng = random.Random(seed)
        budget = Budget()
        running: list[tuple[Share, int]] = []
        state: dict[int, tuple[int, int]] = {}
        for _ in range(3000):
            if len(running) < TRANSFERS_MAX and rng.random() < 0.1:
                share = Share(budget)
                chunk = share.offer(rng.choice([CHUNK_MIN, 512 * 1024, CHUNK_MAX]))
                share.begin(chunk)
                running.append((share, chunk))
                state[id(share)] = 0, share.credit(0)
            elif running and rng.random() < 0.03:
                share, _ = running.pop(rng.randrange(len(running)))
                share.close()
                del state[id(share)]
            elif running:
                share, chunk = rng.choice(running)
                received, limit = state[id(share)]
                received += rng.randrange((limit - received) // chunk + 1) * chunk
                credit = share.credit(received)
                assert 2 * chunk <= credit <= max(WINDOW_MAX, limit - received)
                assert received + credit >= limit
                state[id(share)] = received, received + credit
            assert sum(limit - received for received, limit in state.values()) <= WINDOW_BUDGET


def test_one_transfer_alone_comes_to_the_whole_window() -> None:
    share = Share(Budget())
    share.begin(share.offer(512 * 1024))
    received, credit = 0, share.credit(0)
    for _ in range(64):
        received += credit // 2
        credit = share.credit(received)
    assert credit >= WINDOW_MAX * 7 // 8


# --- the receipt -----------------------------------------------------------------------------------------------------


def last_word(pair: Pair) -> Farewell | Stopped:
    """A recipient that takes everything, sends its receipt, and hears what the sender says to it."""
    machine, listener = DeliveryRecipient(pair.recipient), pair.listener
    assert listener._push.poll(int(DEADLINE * 1000), zmq.POLLOUT)
    listener._push.send(machine.ack(0, 8 * C))
    while listener._pull.poll(int(DEADLINE * 1000)):
        event = machine.receive(listener._pull.recv())
        if isinstance(event, Announced):
            pair.sink.announced(event.manifest)
        elif isinstance(event, Complete):
            listener._push.send(machine.done(pair.sink.complete(event.size, event.digest)))
        elif isinstance(event, Farewell | Stopped):
            return event
    raise AssertionError("it said nothing more")


def test_a_receipt_is_kept_before_the_recipient_hears_that_it_came(pair: Pair) -> None:
    """Store first, send second: where it cannot be kept, BYE has not left."""

    def full(delivered: Delivered) -> None:
        assert delivered.body.size == 3 * C
        raise LocalIOError("no space", detail="no-space")

    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(last_word, pair)
        with pytest.raises(LocalIOError):
            send(pair.sender, WHAT, Memory(pair.sender, bytes(3 * C)), Bell(), on_receipt=full)
        assert heard.result(DEADLINE) == Stopped(33, "no-space")


# --- links that are lost ---------------------------------------------------------------------------------------------


def vanishing(pair: Pair, last: type[Data | Complete]) -> None:
    """A recipient that takes everything up to an event and is gone without a word."""
    machine = DeliveryRecipient(pair.recipient)
    listener = pair.listener
    assert listener._push.poll(int(DEADLINE * 1000), zmq.POLLOUT)
    listener._push.send(machine.ack(0, 8 * C))
    while listener._pull.poll(int(DEADLINE * 1000)):
        if isinstance(machine.receive(listener._pull.recv()), last):
            break
    listener.close()


@pytest.mark.parametrize("last", [Data, Complete])
def test_a_link_that_is_lost_tells_whether_only_the_receipt_was_missing(pair: Pair, last: type) -> None:
    data = random.Random(2).randbytes(3 * C + 1 if last is Complete else 64 * C)
    with ThreadPoolExecutor(1) as pool:
        vanished = pool.submit(vanishing, pair, last)
        with pytest.raises(LinkLost) as lost:
            send(pair.sender, WHAT, Memory(pair.sender, data), Bell(), deadline=None)
        vanished.result(DEADLINE)
    whole = (len(data), blake3(data).digest()) if last is Complete else None
    assert lost.value.finished == whole


def test_a_link_that_never_was_is_not_finished(pair: Pair) -> None:
    assert LinkLost("x").finished is None
    nowhere = dataclasses.replace(pair.sender, endpoints=Endpoints(["bob.example"], 1, 2, 0))
    with pytest.raises(LinkLost) as lost:
        send(nowhere, WHAT, Memory(pair.sender, b"x"), Bell(), deadline=None)
    assert lost.value.finished is None
    assert lost.value.message == "cannot reach bob at bob.example"
    assert lost.value.hint.startswith("transfer.listen at bob must name an address")


def test_the_bell_ends_connecting_at_once(pair: Pair) -> None:
    """Sixteen addresses where somebody takes the connection and says nothing would take sixteen times as long."""
    bell = Bell()
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        nobody = dataclasses.replace(pair.sender, endpoints=Endpoints([HOST] * 16, port, port, 0))
        ring = threading.Timer(0.1, bell.ring)
        ring.start()
        began = SystemClock().monotonic()
        with pytest.raises(Interrupted) as caught:
            send(nobody, WHAT, Memory(pair.sender, b"x"), bell, deadline=None)
        ring.join()
    assert (type(caught.value), caught.value.detail) == (Interrupted, "signal")
    assert caught.value.message == "the transfer to bob was interrupted"
    assert SystemClock().monotonic() - began < 12 * CONNECT_SECONDS
    bell.close()


class Jumping:
    """A clock that has moved on by ``step`` seconds at each look."""

    def __init__(self, step: float) -> None:
        self._step = step
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += self._step
        return self._now

    def wall(self) -> float:
        return 0.0


def test_a_sender_that_never_comes_is_not_waited_for_as_long_as_patience_goes(pair: Pair) -> None:
    """A sender tries each address once: after that its two ports are free again, however long the patience is."""
    error = error_of(pair.receive(7 * 86400.0, clock=Jumping(ARRIVAL_SECONDS + 1)))
    assert isinstance(error, LinkLost)
    assert "did not begin" in error.message


def test_a_sender_that_begins_and_sends_no_manifest_does_not_hold_its_place(pair: Pair) -> None:
    clock = FixedClock()
    receiving = pair.receive(clock=clock)
    with Line(pair.sender) as line:
        assert isinstance(line.answer(), Ack)
        line.send(Frames(pair.sender).opening()[0])
        clock.advance(ARRIVAL_SECONDS + 1)
        with socket.create_connection((HOST, pair.listener.data_port)):  # wakes it
            assert "did not begin" in error_of(receiving).message


def test_a_stream_that_has_begun_may_be_silent_for_days(pair: Pair) -> None:
    clock = FixedClock()
    receiving = pair.receive(clock=clock)
    frames = Frames(pair.sender)
    with Line(pair.sender) as line:
        line.send(*frames.opening())
        wait_until(lambda: hasattr(pair.sink, "manifest"))
        clock.advance(7 * 86400.0)
        line.send(frames.last(b"the end"))
        assert isinstance(line.verdict(), Done)
        line.send(frames.bye())
        receiving.result(DEADLINE)
    assert pair.sink.got == b"the end"


class Refusing:
    """`zmq.Socket.send` of a socket that was ready when it was asked, and takes nothing the first ``times``."""

    def __init__(self, sock: Any, times: int) -> None:
        self._send = sock.send
        self._left = times
        self.refused: list[bytes] = []

    def __call__(self, word: bytes, flags: int = 0) -> None:
        if self._left:
            self._left -= 1
            self.refused.append(bytes(word))
            raise zmq.Again
        self._send(word, flags)


def test_a_word_that_the_socket_does_not_take_is_kept_and_sent_later(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sealed and numbered: another in its place would leave a gap, and the sender would hear nothing more."""
    refusing = Refusing(pair.listener._push, 3)
    monkeypatch.setattr(pair.listener._push, "send", refusing)
    data = random.Random(3).randbytes(8 * C)
    receiving = pair.receive()
    assert isinstance(send(pair.sender, WHAT, Memory(pair.sender, data), Bell(), deadline=None), Delivered)
    receiving.result(DEADLINE)
    assert pair.sink.got == data
    assert (len(refusing.refused), len(set(refusing.refused))) == (3, 1)


def test_a_sender_that_leaves_before_the_first_word_is_a_lost_link(pair: Pair) -> None:
    """Nobody is there to take that word."""
    receiving = pair.receive()
    with Line(pair.sender, ack=Login(b"nobody", b"nothing")) as line:
        assert line.admitted() == (True, False)
    assert isinstance(error_of(receiving), LinkLost)


def test_a_sender_that_leaves_between_the_look_and_the_first_word_is_a_lost_link(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket was ready when it was asked, and takes nothing a moment later."""
    share, push, given = pair.listener._share, pair.listener._push, []
    credit = share.credit

    def leave(received: int) -> int:
        given.append(received)
        if len(given) == 2:  # the first is agreed before anybody comes, the second goes with the word
            line.close()
            wait_until(lambda: not push.getsockopt(zmq.EVENTS) & zmq.POLLOUT)
        return credit(received)

    with Line(pair.sender) as line:
        assert line.admitted() == (True, True)
        monkeypatch.setattr(share, "credit", leave)
        assert isinstance(error_of(pair.receive()), LinkLost)
    assert len(given) == 2


def test_who_gives_up_after_the_receipt_takes_nothing_back(pair: Pair) -> None:
    """It left without having read it; what it sent is durable here all the same."""
    frames = Frames(pair.sender)
    receiving = pair.receive()
    with Line(pair.sender) as line:
        data = frames.whole()
        line.send(*frames.opening(), frames.chunk(data), frames.last(b"!"))
        assert isinstance(line.verdict(), Done)
        line.send(frames.data.seal(encode(Stop(31, "signal")), Flag.STOP))
        receiving.result(DEADLINE)
    assert pair.sink.got == data + b"!"


def test_what_the_sink_raises_ends_the_transfer_and_is_told(pair: Pair) -> None:
    def full(_: int) -> None:
        raise LocalIOError("no space", detail="no-space")

    pair.sink.on_write = full
    receiving = pair.receive()
    with pytest.raises(LocalIOError) as told:
        send(pair.sender, WHAT, Memory(pair.sender, bytes(8 * C)), Bell(), deadline=None)
    assert (told.value.detail, error_of(receiving).detail) == ("no-space", "no-space")
