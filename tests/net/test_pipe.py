"""The bulk pipe between two threads: credit, the bell, links that break off, and what it may take of the process."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Final, Self

import msgspec
import pytest
import zmq
from blake3 import blake3

from tests.support.env import FixedClock
from tests.support.evil_sender import Frames, Line, damaged
from tests.support.parties import world
from tests.support.proxy import TcpProxy
from tests.support.streams import WHAT, Kept, Memory, Slow, persist
from tests.support.talks import terms
from tests.support.waiting import DEADLINE, wait_until
from zkc.constants import BAD_FRAMES_MAX, CHUNK_MAX, CHUNK_MIN, TRANSFERS_MAX, WINDOW_BUDGET, WINDOW_MAX
from zkc.crypto.chunks import StreamSealer
from zkc.crypto.ciphers import AeadCipher
from zkc.env import SystemClock
from zkc.errors import IntegrityError, Interrupted, LocalIOError, PolicyRefused, ZkcError
from zkc.net.descriptors import DescriptorsTaken
from zkc.net.pipe.bell import Bell, LinkLost
from zkc.net.pipe.budget import Budget, Share
from zkc.net.pipe.doors import Door
from zkc.net.pipe.link import CONNECT_SECONDS, login
from zkc.net.pipe.outgoing import Outgoing, Source
from zkc.net.pipe.recipient import ARRIVAL_SECONDS, FAREWELL_SECONDS, FRAMES_A_TURN, Bulk, Incoming
from zkc.net.pipe.sender import FLUSH_SECONDS, Attempts, Told
from zkc.net.sockets import Login
from zkc.protocol.delivery import Stopped
from zkc.protocol.delivery_recipient import Announced, Complete, Data, DeliveryRecipient, Farewell
from zkc.protocol.delivery_sender import Delivered
from zkc.protocol.session import Session
from zkc.wire.codec import encode
from zkc.wire.frames import DataHeader, Flag, Stream
from zkc.wire.messages import Ack, Done, Endpoints, Stop

C: Final = CHUNK_MIN
MIB: Final = 1024 * 1024
HOST: Final = "127.0.0.1"


class Pair:
    """A recipient that listens for one transfer from alice to bob, and what its sender knows."""

    def __init__(self, bulk: Bulk, chunk: int = C) -> None:
        talk = world("x25519").transfer(terms("bob"))
        talk.run()
        resp = msgspec.structs.replace(talk.sessions[0].resp, chunk=chunk)
        sender, self.recipient = (dataclasses.replace(session, resp=resp) for session in talk.sessions)
        self.listener: Incoming = bulk.listen(HOST, None)
        self.listener.admit(self.recipient)
        where = Endpoints([HOST], self.listener.listening.data_port, self.listener.listening.ack_port, 0, "", b"")
        self.sender = dataclasses.replace(sender, endpoints=where)
        self.sink = Kept(self.recipient)
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

    def attempts(self, source: Source, clock: Any = None) -> Attempts:
        """The sender's attempts at this transfer."""
        return Attempts(self.sender, WHAT, Outgoing(source), clock)

    def send(self, data: bytes, **told: Any) -> Delivered:
        """One attempt."""
        return self.attempts(Memory(data)).next(Bell(), Told(**told))

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
    delivered = pair.send(data)
    receiving.result(DEADLINE)
    assert delivered.body.digest == blake3(data).digest()
    assert pair.sink.got == data


def test_a_long_stream_is_sealed_into_as_few_messages_as_there_is_credit_for(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what goes out in memory that was used before arrives as well as the first."""
    made: list[zmq.Frame] = []

    def make(data: bytes, **how: Any) -> zmq.Frame:
        made.append(zmq.Frame(data, **how))
        return made[-1]

    monkeypatch.setattr("zkc.net.pipe.frames.zmq", SimpleNamespace(Frame=make))
    data = random.Random(3).randbytes(4 * WINDOW_MAX)
    receiving = pair.receive()
    pair.send(data)
    receiving.result(DEADLINE)
    assert pair.sink.got == data
    assert 0 < len(made) <= WINDOW_MAX // C


# --- credit ----------------------------------------------------------------------------------------------------------


@pytest.mark.attack("D11")
def test_a_sender_that_ignores_its_credit_is_refused_with_a_limit(bulk: Bulk) -> None:
    """It sends without a pause: what it may have sent is what was given before the turn began."""
    pair = Pair(bulk, MIB)
    given: list[int] = []
    credit = pair.listener.share.credit

    def give(received: int) -> int:
        given.append(received + credit(received))
        return given[-1] - received

    pair.listener.share.credit = give  # type: ignore[method-assign]
    # The next frame is here before the recipient looks for it: so it reads on for a whole turn.
    pair.sink.on_write = lambda _: pair.listener.listening._pair[0].poll(int(DEADLINE * 1000))
    frames = Frames(pair.sender)
    receiving = pair.receive()
    with Line(pair.sender) as line:
        assert line.admitted() == (True, True)
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
    assert len(pair.sink.got) == given[-1]
    pair.close()


@pytest.mark.attack("D02")
def test_nothing_is_said_and_nothing_read_before_both_connections_of_an_attempt_stand(pair: Pair) -> None:
    """Who has one token has neither a word of the recipient nor its ear."""
    frames = Frames(pair.sender)
    receiving = pair.receive()
    nobody = Login(b"nobody", b"nothing")
    with Line(pair.sender, ack=nobody) as line:
        assert line.admitted() == (True, False)
        line.send(*frames.opening(), frames.chunk(frames.whole()))
        assert pair.listener.listening.door.attempt() is None
        with Line(pair.sender, data=nobody) as other:
            assert other.admitted() == (False, True)
            other.acknowledged(C)
            line.send(frames.last())
            assert isinstance(other.verdict(), Done)
            line.send(frames.bye())
            receiving.result(DEADLINE)
    assert len(pair.sink.got) == C


def test_the_bell_is_heard_within_a_turn_of_a_sender_that_never_pauses(pair: Pair) -> None:
    at: list[int] = []

    def ring(size: int) -> None:
        if size >= 4 * 1024 * 1024 and not at:
            at.append(size)
            pair.bell.ring()

    pair.sink.on_write = ring
    receiving = pair.receive()
    with pytest.raises(Interrupted) as told:
        pair.send(bytes(64 * 1024 * 1024))
    assert told.value.detail == "shutdown"
    assert error_of(receiving).detail == "shutdown"
    assert len(pair.sink.got) - at[0] < FRAMES_A_TURN * C


def test_a_sender_is_told_what_keeps_its_recipient_from_beginning(pair: Pair) -> None:
    """And not that it cannot be reached."""

    def busy() -> tuple[int, Any]:
        raise LocalIOError("another one writes it", detail="busy")

    pair.sink.resume = busy  # type: ignore[method-assign]
    receiving = pair.receive()
    with pytest.raises(LocalIOError) as told:
        pair.send(b"data")
    assert told.value.detail == "busy"
    assert error_of(receiving).message == "another one writes it"
    assert not pair.sink.manifests


@pytest.mark.parametrize("detail", ["ended", "shutdown"])
def test_both_ends_hear_why_a_bell_was_rung_first(pair: Pair, detail: str) -> None:
    def ring(_: int) -> None:
        pair.bell.ring(Interrupted("a reason", detail=detail))
        pair.bell.ring(Interrupted("another one", detail="signal"))

    pair.sink.on_write = ring
    receiving = pair.receive()
    with pytest.raises(Interrupted) as told:
        pair.send(bytes(64 * 1024 * 1024))
    assert not isinstance(told.value, LinkLost)
    assert told.value.detail == detail
    assert error_of(receiving).message == "a reason"


def test_the_last_word_of_a_recipient_that_gives_up_arrives_though_the_link_ends_behind_it(bulk: Bulk) -> None:
    """libzmq's connecting end drops what it has not read when its connection ends: so the sender is let go first."""
    for _ in range(20):
        pair = Pair(bulk)
        pair.receive()
        frames = Frames(pair.sender)
        with Line(pair.sender) as line:
            line.send(*frames.opening(), frames.chunk(b""))
            assert line.verdict() == Stop(32, "truncated")
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
    """libzmq's own bound on sockets lies below."""
    with contextlib.ExitStack() as closing:
        for _ in range(TRANSFERS_MAX):
            closing.callback(bulk.listen(HOST, None).close)


def test_where_no_more_sockets_can_be_made_the_next_pair_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkc.net.pipe.recipient.TRANSFERS_MAX", 1)
    listeners: list[Incoming] = []
    bulk = Bulk()

    def binds() -> bool:
        try:
            listeners.append(bulk.listen(HOST, None))
        except DescriptorsTaken:
            return False
        return True

    try:
        while len(listeners) < TRANSFERS_MAX and binds():
            pass
        assert 1 <= len(listeners) < TRANSFERS_MAX
        listeners.pop().close()
        wait_until(binds)
    finally:
        for listener in listeners:
            listener.close()
        bulk.close()


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
    assert listener.listening._pair[1].poll(int(DEADLINE * 1000), zmq.POLLOUT)
    listener.listening._pair[1].send(machine.ack(0, 8 * C))
    while listener.listening._pair[0].poll(int(DEADLINE * 1000)):
        event = machine.receive(listener.listening._pair[0].recv())
        if isinstance(event, Announced):
            pair.sink.announced(event.manifest)
        elif isinstance(event, Complete):
            listener.listening._pair[1].send(machine.done(pair.sink.complete(event.size, event.digest)))
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
            pair.send(bytes(3 * C), on_receipt=full)
        assert heard.result(DEADLINE) == Stopped(33, "no-space")


# --- links that are lost ---------------------------------------------------------------------------------------------


def vanishing(pair: Pair, last: type[Data | Complete]) -> None:
    """A recipient that takes everything up to an event and is gone without a word."""
    machine = DeliveryRecipient(pair.recipient)
    listener = pair.listener
    assert listener.listening._pair[1].poll(int(DEADLINE * 1000), zmq.POLLOUT)
    listener.listening._pair[1].send(machine.ack(0, 8 * C))
    while listener.listening._pair[0].poll(int(DEADLINE * 1000)):
        if isinstance(machine.receive(listener.listening._pair[0].recv()), last):
            break
    listener.close()


@pytest.mark.parametrize("last", [Data, Complete])
def test_a_link_that_is_lost_leaves_it_known_whether_only_the_receipt_was_missing(pair: Pair, last: type) -> None:
    data = random.Random(2).randbytes(3 * C + 1 if last is Complete else 64 * C)
    attempts = pair.attempts(Memory(data))
    with ThreadPoolExecutor(1) as pool:
        vanished = pool.submit(vanishing, pair, last)
        with pytest.raises(LinkLost):
            attempts.next(Bell(), Told())
        vanished.result(DEADLINE)
    assert attempts.outgoing.whole == ((len(data), blake3(data).digest()) if last is Complete else None)
    assert attempts.number == 1


def test_a_recipient_without_an_address_is_a_link_that_never_was(pair: Pair) -> None:
    nowhere = dataclasses.replace(pair.sender, endpoints=Endpoints(["bob.example"], 1, 2, 0, "", b""))
    attempts = Attempts(nowhere, WHAT, Outgoing(Memory(b"x")))
    for number in (1, 2):
        with pytest.raises(LinkLost) as lost:
            attempts.next(Bell(), Told())
        assert attempts.number == number, "a number is never used twice"
    assert lost.value.message == "cannot reach bob at bob.example"
    assert lost.value.hint.startswith("transfer.listen at bob must name an address")


def test_the_bell_ends_connecting_at_once(pair: Pair) -> None:
    """Sixteen addresses where somebody takes the connection and says nothing would take sixteen times as long."""
    bell = Bell()
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        nobody = dataclasses.replace(pair.sender, endpoints=Endpoints([HOST] * 16, port, port, 0, "", b""))
        ring = threading.Timer(0.1, bell.ring)
        ring.start()
        began = SystemClock().monotonic()
        with pytest.raises(Interrupted) as caught:
            Attempts(nobody, WHAT, Outgoing(Memory(b"x"))).next(bell, Told())
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


class Reading(Memory):
    """A file that is read slowly: each read takes ten seconds."""

    def __init__(self, data: bytes, clock: FixedClock) -> None:
        super().__init__(data)
        self._clock = clock

    def readinto(self, into: memoryview) -> int:
        self._clock.advance(10.0)
        return super().readinto(into)


def test_a_deadline_ends_the_reading_of_what_the_recipient_has(pair: Pair) -> None:
    data, clock, bell = bytes(8 * MIB), FixedClock(), Bell()
    pair.sink.got += data
    pair.receive()
    source, began = Reading(data, clock), clock.monotonic()
    with pytest.raises(Interrupted) as caught:
        pair.attempts(source, clock).next(bell, Told(), deadline=began + 15.0)
    assert (type(caught.value), caught.value.detail) == (Interrupted, "timeout")
    assert clock.monotonic() - began == 20.0
    bell.close()


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
        with socket.create_connection((HOST, pair.listener.listening.data_port)):  # wakes it
            assert "did not begin" in error_of(receiving).message


def test_a_stream_that_has_begun_may_be_silent_for_days(pair: Pair) -> None:
    clock = FixedClock()
    receiving = pair.receive(clock=clock)
    frames = Frames(pair.sender)
    with Line(pair.sender) as line:
        line.send(*frames.opening())
        wait_until(lambda: pair.sink.manifests)
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
    refusing = Refusing(pair.listener.listening._pair[1], 3)
    monkeypatch.setattr(pair.listener.listening._pair[1], "send", refusing)
    data = random.Random(3).randbytes(8 * C)
    receiving = pair.receive()
    assert isinstance(pair.send(data), Delivered)
    receiving.result(DEADLINE)
    assert pair.sink.got == data
    assert (len(refusing.refused), len(set(refusing.refused))) == (3, 1)


def test_a_sender_that_leaves_before_the_first_word_is_a_lost_link_after_the_patience(pair: Pair) -> None:
    """Nobody is there to take that word."""
    receiving = pair.receive(0.5)
    with Line(pair.sender, ack=Login(b"nobody", b"nothing")) as line:
        assert line.admitted() == (True, False)
    assert isinstance(error_of(receiving), LinkLost)


def test_a_word_that_no_connection_took_is_said_anew_to_the_next(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket was ready when it was asked, and the sender left a moment later."""
    share, push, given = pair.listener.share, pair.listener.listening._pair[1], []
    credit = share.credit

    def leave(received: int) -> int:
        given.append(received)
        if len(given) == 2:  # the first is agreed with the welcome, the second goes with the word
            line.close()
            wait_until(lambda: not push.getsockopt(zmq.EVENTS) & zmq.POLLOUT)
            left.set()
        return credit(received)

    left = threading.Event()
    with Line(pair.sender) as line:
        assert line.admitted() == (True, True)
        monkeypatch.setattr(share, "credit", leave)
        receiving = pair.receive()
        assert left.wait(DEADLINE)
    delivered, _ = persist(pair.attempts(Memory(b"hello")))
    receiving.result(DEADLINE)
    assert delivered.body.size == 5


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
        pair.send(bytes(8 * C))
    assert (told.value.detail, error_of(receiving).detail) == ("no-space", "no-space")


# --- over several connections ----------------------------------------------------------------------------------------


class Cut:
    """A transfer through proxies that break both of its connections on command."""

    def __init__(self, pair: Pair) -> None:
        here = pair.listener.listening
        self.data, self.ack = (TcpProxy((HOST, port)) for port in (here.data_port, here.ack_port))
        there = Endpoints([HOST], self.data.port, self.ack.port, 0, "", b"")
        pair.sender = dataclasses.replace(pair.sender, endpoints=there)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.data.close()
        self.ack.close()

    def cut(self) -> None:
        for proxy in (self.data, self.ack):
            proxy.cut()


@pytest.mark.attack("P05")
@pytest.mark.parametrize("again", [True, False], ids=["file", "pipe"])
def test_a_transfer_that_is_cut_again_and_again_goes_on_where_it_was(pair: Pair, again: bool) -> None:
    """At thirty places of 8 MiB, in the middle of chunks and between them; each byte is written once."""
    data = random.Random(4).randbytes(8 * MIB + 17)
    places = sorted(random.Random(5).sample(range(len(data)), 30))
    attempts = pair.attempts(Memory(data, again=again))
    kept: list[int] = []
    with Cut(pair) as line:
        attempts = Attempts(pair.sender, WHAT, attempts.outgoing)

        def cut(got: int) -> None:
            kept.append(sum(map(len, attempts.outgoing._kept)))
            while places and got > places[0]:
                while places and got > places[0]:
                    places.pop(0)
                line.cut()

        pair.sink.on_write = cut
        receiving = pair.receive()
        delivered, lost = persist(attempts)
        receiving.result(DEADLINE)
        assert len(line.data.connections) > 15
    assert pair.sink.got == data
    assert (delivered.body.size, delivered.body.digest) == (len(data), blake3(data).digest())
    assert lost >= 15
    assert pair.sink.completed == len(pair.sink.manifests) == 1
    assert max(kept) <= WINDOW_MAX


@pytest.mark.attack("P02")
@pytest.mark.parametrize("rollover", [2 * C, 5 * C])
def test_numbers_of_attempts_only_rise_also_over_rollovers(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, rollover: int
) -> None:
    """No key and index is used for two frames, whatever was cut off."""
    monkeypatch.setattr(AeadCipher, "rollover_bytes", rollover)
    used: list[tuple[bytes, Stream, int, int]] = []
    real = StreamSealer.seal

    def seal(sealer: StreamSealer, data: Any, flags: Flag = Flag.NONE) -> bytearray:
        frame = real(sealer, data, flags)
        header = DataHeader.unpack(frame)
        used.append((header.xid_tag, header.stream, header.attempt, header.index))
        return frame

    monkeypatch.setattr(StreamSealer, "seal", seal)
    data = random.Random(6).randbytes(24 * C + 1)
    with Cut(pair) as line:
        places = [3 * C, 9 * C, 10 * C, 17 * C]

        def cut(got: int) -> None:
            if places and got >= places[0]:
                places.pop(0)
                line.cut()

        pair.sink.on_write = cut
        receiving = pair.receive()
        persist(pair.attempts(Memory(data)))
        receiving.result(DEADLINE)
    assert pair.sink.got == data
    assert len(set(used)) == len(used)
    assert max(attempt for _, _, attempt, _ in used) >= 24 * C // rollover


@pytest.mark.claims("B5")
@pytest.mark.parametrize("again", [True, False], ids=["file", "pipe"])
def test_a_receipt_that_was_lost_comes_again_and_the_delivery_is_one(pair: Pair, again: bool) -> None:
    """The connections break after the last chunk, before DONE: the next attempt hears it first."""
    data = random.Random(7).randbytes(3 * C + 5)
    with Cut(pair) as line:

        def cut() -> None:
            line.cut()
            wait_until(lambda: not line.data.open_connections and not line.ack.open_connections)

        pair.sink.on_complete = cut
        receiving = pair.receive()
        delivered, lost = persist(pair.attempts(Memory(data, again=again)))
        receiving.result(DEADLINE)
    assert lost
    assert delivered.body.digest == blake3(data).digest()
    assert (pair.sink.got, pair.sink.completed) == (data, 1)


def test_a_recipient_that_is_done_waits_for_a_farewell_and_not_for_ever(pair: Pair) -> None:
    """A sender that has vanished after its last chunk holds no place for longer than that."""
    clock = FixedClock()
    receiving = pair.receive(clock=clock)
    frames = Frames(pair.sender)
    with Line(pair.sender) as line:
        line.send(*frames.opening(), frames.last(b"all"))
        assert isinstance(line.verdict(), Done)
    clock.advance(FAREWELL_SECONDS + 1)
    with contextlib.suppress(ConnectionRefusedError):  # wakes it, unless it has woken and gone
        socket.create_connection((HOST, pair.listener.listening.data_port)).close()
    receiving.result(DEADLINE)
    assert pair.sink.completed == 1


def test_a_new_attempt_ends_the_half_dead_connection_that_the_recipient_still_sees(pair: Pair) -> None:
    """Its end was never seen: the sender came back from elsewhere, with a later attempt."""
    receiving = pair.receive()
    frames = honest(pair.sender)
    with Line(pair.sender) as dead:
        first = frames.whole()
        dead.send(*frames.opening(), frames.chunk(first))
        dead.acknowledged(C)
        attempts = pair.attempts(Memory(first + b"the rest"))
        attempts.number = 1
        delivered, lost = persist(attempts)
        receiving.result(DEADLINE)
        assert all(isinstance(word, Ack) for word in dead.wait_gone())
    assert (pair.sink.got, delivered.body.size) == (first + b"the rest", C + 8)
    assert lost >= 1, "the first to come is refused, and makes the pair be renewed"


def test_a_transfer_stays_patient_only_while_nobody_is_there(pair: Pair) -> None:
    """Patience counts from the end of a connection, and ends where the next one brings the manifest."""
    clock = FixedClock()
    receiving = pair.receive(100.0, clock=clock)
    frames = Frames(pair.sender)
    for attempt in range(3):
        with Line(pair.sender, attempt=attempt) as line:
            line.send(*frames.opening(), frames.chunk(frames.whole()))
            line.acknowledged(frames.sent)
            clock.advance(1000.0)
            line.send(frames.chunk(frames.whole()))
            line.acknowledged(frames.sent)
        wait_until(lambda: pair.listener.listening.door._least == attempt + 1)  # noqa: B023
        clock.advance(90.0)
        frames = frames.again(pair.sender, attempt + 1)
    clock.advance(11.0)
    with socket.create_connection((HOST, pair.listener.listening.data_port)):  # wakes it
        error = error_of(receiving)
    assert isinstance(error, LinkLost)
    assert f"broke off at {6 * C} bytes" in error.message


@pytest.mark.attack("F06")
def test_a_later_connection_with_another_manifest_ends_the_delivery(pair: Pair) -> None:
    receiving = pair.receive()
    frames = Frames(pair.sender)
    with Line(pair.sender) as line:
        line.send(*frames.opening(), frames.chunk(frames.whole()))
        line.acknowledged(C)
    later = frames.again(pair.sender, 1)
    later.manifest = msgspec.structs.replace(frames.manifest, name="other")
    wait_until(lambda: pair.listener.listening.door._least == 1)
    with Line(pair.sender, attempt=1) as line:
        line.send(*later.opening())
        assert line.verdict() == Stop(32, "unexpected")
    assert isinstance(error_of(receiving), IntegrityError)
    assert len(pair.sink.manifests) == 1


# --- who is let in ---------------------------------------------------------------------------------------------------


@pytest.fixture
def door(pair: Pair) -> Iterator[Door]:
    made = Door()
    made.expect(pair.recipient.k)
    yield made
    made.close()


Knock = Callable[[str, int], bool]


@pytest.fixture
def knock(pair: Pair, door: Door) -> Knock:
    """Whether the true token of a socket and an attempt opens."""

    def do(socket: str, attempt: int) -> bool:
        true = login(pair.sender.k, socket, attempt)
        return door.admit(socket, (true.user, true.password)) is not None

    return do


@pytest.mark.attack("D01", "D02")
def test_each_token_opens_once_and_its_own_socket(pair: Pair, door: Door, knock: Knock) -> None:
    data, ack = (login(pair.sender.k, socket, 0) for socket in ("data", "ack"))
    assert door.admit("data", (ack.user, ack.password)) is None
    assert door.admit("data", (data.user, ack.password)) is None
    assert door.admit("data", (data.user, b"")) is None
    assert knock("data", 0)
    assert not knock("data", 0)
    assert door.attempt() is None
    assert knock("ack", 0)
    assert not knock("ack", 0)
    assert door.attempt() == 0
    assert not door.stale


@pytest.mark.attack("D02")
def test_a_token_of_an_earlier_attempt_never_opens_again(door: Door, knock: Knock) -> None:
    assert knock("data", 3)
    for attempt in range(3):
        assert not knock("data", attempt)
        assert not knock("ack", attempt)
    assert not door.stale
    door.renew(0)
    for attempt in range(4):
        assert not knock("data", attempt), "what was let in once is over, whether or not it came to anything"
        assert not knock("ack", attempt)
    assert knock("data", 4)
    door.renew(9)
    assert not knock("data", 8)
    assert knock("ack", 9)


@pytest.mark.attack("D02")
def test_a_token_of_a_later_attempt_is_refused_and_makes_the_pair_be_renewed(door: Door, knock: Knock) -> None:
    """Nothing of two attempts is ever mixed, not even one connection of each."""
    assert knock("data", 0)
    assert not knock("ack", 1)
    assert door.stale
    assert door.attempt() is None
    door.renew(1)
    assert not door.stale
    assert knock("ack", 1)
    assert knock("data", 1)
    assert door.attempt() == 1


@pytest.mark.attack("D01")
@pytest.mark.parametrize(
    "user", [b"", b"x", b"%s", b"%s.", b"%s..data", b"%s.-1.data", b"%s.0.data.", b"%s.00.data", b"%s.1e3.data",
             b"%s.99999999999.data", b"\xff.0.data", "%s.\u00b2.data".encode(), b"%s.0.ack"],
)  # fmt: skip
def test_a_name_that_is_none_of_ours_opens_nothing(pair: Pair, door: Door, user: bytes) -> None:
    true = login(pair.sender.k, "data", 0)
    named = user.replace(b"%s", true.user.split(b".")[0])
    assert door.admit("data", (named, true.password)) is None
    assert not door.stale
    assert door.admit("data", (true.user, true.password))


def test_nobody_comes_in_before_the_key_is_agreed_or_after_the_end(pair: Pair) -> None:
    true = login(pair.sender.k, "data", 0)
    early = Door()
    assert early.admit("data", (true.user, true.password)) is None
    early.expect(pair.recipient.k)
    early.close()
    assert early.admit("data", (true.user, true.password)) is None


# --- frames that do not open -----------------------------------------------------------------------------------------


def honest(session: Session) -> Frames:
    """Frames of what the sender sends in these tests."""
    return Frames(session, name=WHAT.name, kind="stream")


def forged_frames(frames: Frames) -> list[tuple[bytes, ...]]:
    """What somebody in between can make of a true one, or without any."""
    true = bytes(frames.chunk(frames.whole()))
    return [
        (b"",), (b"noise",), (damaged(true, 0),), (damaged(true, 20),), (damaged(true, len(true) - 1),), (true[:-1],),
        (true, b""), (bytes(len(true)),),
    ]


@pytest.mark.attack("D03")
@pytest.mark.parametrize("which", range(8))
def test_a_forged_frame_costs_a_connection_and_no_delivery(pair: Pair, which: int) -> None:
    receiving = pair.receive()
    frames = honest(pair.sender)
    first = frames.whole()
    with Line(pair.sender) as line:
        line.send(*frames.opening(), frames.chunk(first))
        line.acknowledged(C)
        line.send_parts(*forged_frames(frames)[which])
        assert all(isinstance(word, Ack) for word in line.wait_gone()), "it is a lost link, and not the end"
    attempts = pair.attempts(Memory(first + b"the rest"))
    attempts.number = 1
    persist(attempts)
    receiving.result(DEADLINE)
    assert pair.sink.got == first + b"the rest"


@pytest.mark.attack("D03")
def test_the_sixteenth_forged_frame_ends_the_delivery_with_32(pair: Pair) -> None:
    receiving = pair.receive()
    for attempt in range(BAD_FRAMES_MAX):
        wait_until(lambda: pair.listener.listening.door._least == attempt)  # noqa: B023
        assert not receiving.done()
        with Line(pair.sender, attempt=attempt) as line:
            line.send(b"noise")
            if attempt < BAD_FRAMES_MAX - 1:
                assert not any(isinstance(word, Stop) for word in line.wait_gone())
            else:
                assert line.verdict() == Stop(32, "malformed")
    error = error_of(receiving)
    assert (type(error), error.code) == (IntegrityError, 32)


@pytest.mark.attack("D03", "D17")
def test_forged_acknowledgements_cost_the_sender_connections_and_the_sixteenth_the_delivery(pair: Pair) -> None:
    attempts, listener = pair.attempts(Memory(bytes(C))), pair.listener
    for number in range(BAD_FRAMES_MAX):
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(attempts.next, Bell(), Told())
            assert listener.listening._pair[1].poll(int(DEADLINE * 1000), zmq.POLLOUT)
            if number % 2:
                listener.listening._pair[1].send_multipart([b"two", b"parts"])
            else:
                listener.listening._pair[1].send(b"noise")
            error = error_of(sending)
        assert isinstance(error, LinkLost if number < BAD_FRAMES_MAX - 1 else IntegrityError), number
        listener.listening.leave(number)
    assert (error.code, attempts.number) == (32, BAD_FRAMES_MAX)


def test_a_position_beyond_what_was_sent_is_a_lie_and_told(pair: Pair) -> None:
    """Also of a source that would give more: of a pipe nothing but what was sealed can be there."""
    for again in (True, False):
        attempts, listener = pair.attempts(Memory(bytes(4 * C), again=again)), pair.listener
        attempts.number = 0 if again else 1
        machine = DeliveryRecipient(pair.recipient, attempts.number, received=4 * C + 1 if again else 1)
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(attempts.next, Bell(), Told())
            assert listener.listening._pair[1].poll(int(DEADLINE * 1000), zmq.POLLOUT)
            listener.listening._pair[1].send(machine.ack(machine.received, 8 * C))
            assert listener.listening._pair[0].poll(int(DEADLINE * 1000))
            assert machine.receive(listener.listening._pair[0].recv()) == Stopped(32, "position")
            error = error_of(sending)
        assert (type(error), error.detail) == (IntegrityError, "position")
        listener.listening.leave(0)


def test_a_recipient_that_breaks_a_rule_hears_that_the_sender_gives_up(pair: Pair) -> None:
    """It would wait for a sender that does not come back, for as long as its patience goes."""
    machine, listener = DeliveryRecipient(pair.recipient, 0), pair.listener.listening
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(pair.attempts(Memory(bytes(4 * C))).next, Bell(), Told())
        assert listener._pair[1].poll(int(DEADLINE * 1000), zmq.POLLOUT)
        listener._pair[1].send(machine.ack(0, 2 * C))
        listener._pair[1].send(machine.ack(1 << 40, 2 * C))
        error = error_of(sending)
        event: Any = None
        while not isinstance(event, Stopped):
            assert listener._pair[0].poll(int(DEADLINE * 1000)), "it left without a word"
            event = machine.receive(listener._pair[0].recv())
    assert event == Stopped(error.code, error.detail) == Stopped(32, "unexpected")


# --- streams that pause ----------------------------------------------------------------------------------------------


def test_what_a_stream_gave_before_it_paused_arrives_while_it_pauses(pair: Pair) -> None:
    """As chunks of their own, however short; so also what it gave just before its connection broke."""
    with Cut(pair) as line, ThreadPoolExecutor(1) as pool, Slow() as source:
        receiving = pair.receive()
        sending = pool.submit(persist, pair.attempts(source))
        sent = b""
        for number, piece in enumerate((b"one", b"two" * C, b"", b"three", b"x", b"y" * (C + 1))):
            source.give(piece)
            sent += piece
            wait_until(lambda: pair.sink.got == sent)  # noqa: B023
            if number % 2:
                line.cut()
        source.end()
        delivered, lost = sending.result(DEADLINE)
        receiving.result(DEADLINE)
    assert lost
    assert delivered.body.digest == blake3(sent).digest()
    assert pair.sink.got == sent


def test_a_stream_that_never_pauses_for_long_does_not_wait_until_it_fills_a_chunk(pair: Pair) -> None:
    """A measurement every few milliseconds is to arrive now, and not with the rest of the hour."""
    with ThreadPoolExecutor(1) as pool, Slow() as source:
        receiving = pair.receive()
        sending = pool.submit(persist, pair.attempts(source))
        sent = 0
        while not pair.sink.got:
            assert sent < 3000
            source.give(b"x")
            sent += 1
            select.select((), (), (), FLUSH_SECONDS / 10)
        source.end()
        assert sending.result(DEADLINE)[0].body.size == sent
        receiving.result(DEADLINE)


def test_a_pair_that_cannot_be_made_anew_ends_the_transfer_with_the_reason(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process has no descriptor left between two connections."""

    def none_left() -> None:
        raise DescriptorsTaken("no socket can be made", detail="descriptors")

    receiving = pair.receive()
    frames = Frames(pair.sender)
    with Line(pair.sender) as line:
        line.send(*frames.opening(), frames.chunk(frames.whole()))
        line.acknowledged(C)
        monkeypatch.setattr(pair.listener.listening, "_open", none_left)
    error = error_of(receiving)
    assert (type(error), error.detail) == (DescriptorsTaken, "descriptors")
