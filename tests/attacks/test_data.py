"""The data plane against a peer that holds true keys and keeps no rule, and against strangers at its sockets."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from msgspec.structs import replace

from tests.support import evil
from tests.support.bystander import transfer_meanwhile
from tests.support.evil_recipient import Delivering, EvilRecipient, noise
from tests.support.evil_sender import EvilSender, Frames, Line, RawLine, damaged, foreign, login
from tests.support.looking import Watch, ending, inbox_of, log_of, memory, payloads
from tests.support.waiting import DEADLINE
from zkc.client.grants import Have
from zkc.constants import BAD_FRAMES_MAX, CHUNK_MIN, CONTROL_MESSAGE_MAX
from zkc.crypto.chunks import StreamSealer
from zkc.errors import IntegrityError, Interrupted, ZkcError
from zkc.net.sockets import BULK_FRAME_MAX, CURVE_OVERHEAD, Login
from zkc.protocol.delivery_recipient import Complete, Data, Started
from zkc.protocol.session import Session
from zkc.testing import Fleet
from zkc.wire.codec import decode, encode
from zkc.wire.frames import DATA_HEADER_BYTES, Flag, Stream
from zkc.wire.messages import Ack, Done, Receipt, Start, Stop

MIB = 1 << 20
CHUNK = CHUNK_MIN


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """alice is honest, bob receives, mallory and eve are in evil hands."""
    config = {
        "transfer.listen": "tcp://127.0.0.1:0", "transfer.chunk": "64K", "transfer.patience": "3s",
        "log.level": "debug",  # each ending, also where one is like another
    }
    with Fleet("alice", "bob", client=config) as fleet:
        fleet.join("mallory")
        fleet.join("eve")
        yield fleet


@pytest.fixture(scope="module")
def mallory(fleet: Fleet) -> Iterator[EvilSender]:
    with EvilSender(fleet.home("mallory")) as sender:
        yield sender


@pytest.fixture(autouse=True)
def empty_inbox(fleet: Fleet) -> Iterator[None]:
    """Each test begins with an empty inbox, and leaves bob as able as he was: alice's MiB arrives."""
    yield
    payload = os.urandom(MIB)
    fleet.client("alice").send("bob", payload, name="after")
    with fleet.client("bob").receive(sender="alice", name="after") as item:
        assert item.read() == payload
    items, partials = inbox_of(fleet.home("bob"))
    assert not [item for item in items if item.sender == "alice"]
    inbox = fleet.client("bob")._inbox
    for item in (*items, *partials):
        inbox.remove(item.id)
    assert not any(event["event"] == "defect" for event in log_of(fleet, "bob"))


def nothing_arrived(fleet: Fleet, session: Session, code: int, *, partial: int | None = None) -> None:
    """The transfer ended at bob with ``code``; no file of it can be read, and a partial one only where one belongs."""
    event = ending(fleet, "bob", session.req.xid)
    assert (event["event"], event["code"]) == ("not-received", code), event
    items, partials = inbox_of(fleet.home("bob"))
    assert not items
    assert not payloads(fleet.home("bob"))
    assert [item.size for item in partials] == ([] if partial is None else [partial])


def goes_on(fleet: Fleet, session: Session, frames: Frames, attempt: int = 1, before: bytes = b"") -> None:
    """The true sender comes with another attempt, and goes on where ``frames`` were: all of it arrives, once."""
    later = frames.again(session, attempt)
    with Line(session, attempt=attempt) as line:
        first = line.answer()
        assert isinstance(first, Ack), first
        assert first.position == later.sent == len(before)
        line.send(*later.opening(), later.last(b"the end"))
        assert isinstance(line.verdict(), Done)
        line.send(later.bye())
    assert ending(fleet, "bob", session.req.xid)["event"] == "received"
    with fleet.client("bob").receive(sender=session.req.sender) as item:
        assert item.read() == before + b"the end"
    assert inbox_of(fleet.home("bob")) == ([], [])


def costs_a_connection(fleet: Fleet, session: Session, *bad: bytes | bytearray, frames: Frames | None = None) -> None:
    """Behind a true opening: the recipient ends the connection without a word of failure, and the delivery goes on."""
    frames = frames or Frames(session)
    true = frames.again(session, 0)
    with Line(session) as line:
        line.send(*frames.opening())
        line.send(*bad)
        assert not any(isinstance(word, Stop | Done) for word in line.wait_gone())
    goes_on(fleet, session, true)


# --- strangers at the sockets ----------------------------------------------------------------------------------------


@pytest.mark.attack("D01")
def test_a_connection_with_another_token_than_its_own_is_refused(fleet: Fleet, mallory: EvilSender) -> None:
    first, other = mallory.agree("bob"), mallory.agree("bob")
    wrong = Login(login(first, "data").user, b"0" * 32)
    tokens = {
        "none": None, "wrong password": wrong, "of another transfer": login(other, "data"),
        "of the other socket": login(first, "ack"),
        "of another attempt": Login(login(first, "data", 1).user, login(first, "data").password),
    }
    for what, token in tokens.items():
        with Line(first, data=token, ack=token if what != "of the other socket" else login(first, "data")) as line:
            assert line.admitted() == (False, False), what
    frames = Frames(first)
    with Line(first) as line:
        assert line.admitted() == (True, True)
        with Line(first) as second:
            assert second.admitted() == (False, False), "a token that was used"
        line.send(*frames.opening(), frames.last(b"hello"))
        assert isinstance(line.verdict(), Done), "a refused stranger costs the true sender nothing"
        line.send(frames.bye())
    assert ending(fleet, "bob", first.req.xid)["event"] == "received"


@pytest.mark.attack("D01")
def test_what_a_stranger_pushes_takes_no_memory_and_a_bystander_goes_on(fleet: Fleet, mallory: EvilSender) -> None:
    session = mallory.agree("bob")
    assert session.endpoints is not None
    pid = fleet.program("bob").process.pid
    host, port = session.endpoints.addresses[0], session.endpoints.data_port
    junk = [
        evil.greeting(mechanism=b"NULL") + evil.ready(b"PUSH"), evil.greeting(mechanism=b"PLAIN"),
        evil.greeting((1, 0)), b"GET / HTTP/1.1\r\n\r\n",
    ]
    before = memory(pid)
    for beginning in junk:
        with evil.RawPeer(host, port) as stranger:
            stranger.send(beginning)
            stranger.send_endless(os.urandom(60_000), 32 * MIB)
    fleet.client("alice").send("bob", os.urandom(MIB), name="meanwhile")
    with fleet.client("bob").receive(sender="alice", name="meanwhile"):
        pass
    assert memory(pid) - before < 16 * MIB
    frames = Frames(session)
    with Line(session) as line:
        line.send(*frames.opening(), frames.last(b"hello"))
        assert isinstance(line.verdict(), Done)
        line.send(frames.bye())


@pytest.mark.attack("C13", "D01")
def test_what_speaks_no_plain_is_disconnected_from_both_ports_and_never_heard(
    fleet: Fleet, mallory: EvilSender
) -> None:
    session = mallory.agree("bob")
    assert session.endpoints is not None
    frames = Frames(session)
    first, last = frames.whole(), frames.whole()
    with Line(session) as line, transfer_meanwhile(fleet):
        line.send(*frames.opening(), frames.chunk(first))
        line.acknowledged(CHUNK)
        for junk in evil.JUNK.values():
            for port in (session.endpoints.data_port, session.endpoints.ack_port):
                evil.throw((session.endpoints.addresses[0], port), junk)
        line.send(frames.last(last))
        assert isinstance(line.verdict(), Done)
        line.send(frames.bye())
    with fleet.client("bob").receive(sender="mallory") as item:
        assert item.read() == first + last


@pytest.mark.attack("D01", "D02")
def test_strangers_that_come_and_go_do_not_end_a_transfer_that_flows(fleet: Fleet, mallory: EvilSender) -> None:
    session = mallory.agree("bob")
    assert session.endpoints is not None
    frames = Frames(session)
    payload = [frames.whole() for _ in range(3)]
    with Line(session) as line:
        line.send(*frames.opening())
        for chunk in payload[:2]:
            line.send(frames.chunk(chunk))
            line.acknowledged(frames.sent)
            for port in (session.endpoints.data_port, session.endpoints.ack_port):
                with evil.RawPeer(session.endpoints.addresses[0], port) as stranger:
                    stranger.send(evil.greeting((1, 0)))
                    stranger.wait_closed()
                with evil.RawPeer(session.endpoints.addresses[0], port):
                    pass
            with Line(session, data=Login(b"x", b"y"), ack=Login(b"x", b"y")) as refused:
                assert refused.admitted() == (False, False)
        line.send(frames.last(payload[2]))
        assert isinstance(line.verdict(), Done)
        line.send(frames.bye())
    assert ending(fleet, "bob", session.req.xid)["event"] == "received"
    with fleet.client("bob").receive(sender="mallory") as item:
        assert item.read() == b"".join(payload)


@pytest.mark.attack("D01", "O03", "P06")
def test_a_stranger_s_endless_command_costs_nobody_but_the_stranger(fleet: Fleet, mallory: EvilSender) -> None:
    """As long as either socket takes it, at both ports, while data flows."""
    session = mallory.agree("bob")
    assert session.endpoints is not None
    host, ports = session.endpoints.addresses[0], (session.endpoints.data_port, session.endpoints.ack_port)
    sizes = CONTROL_MESSAGE_MAX + CURVE_OVERHEAD, BULK_FRAME_MAX

    frames = Frames(session)
    first, last = frames.whole(), frames.whole()
    with Line(session) as line, transfer_meanwhile(fleet), contextlib.ExitStack() as closing:
        line.send(*frames.opening(), frames.chunk(first))
        line.acknowledged(CHUNK)
        strangers = [closing.enter_context(evil.RawPeer(host, port)) for port in ports for _ in sizes]
        for stranger, size in zip(strangers, 2 * sizes, strict=True):
            endless = evil.raw_frame(evil.LONG | evil.COMMAND, size, bytes(size - 1))
            stranger.send(evil.greeting(mechanism=b"PLAIN") + endless)
        for stranger in strangers:
            stranger.wait_closed()
        line.send(frames.last(last))
        assert isinstance(line.verdict(), Done)
        line.send(frames.bye())
    assert ending(fleet, "bob", session.req.xid)["event"] == "received"
    with fleet.client("bob").receive(sender="mallory") as item:
        assert item.read() == first + last


@pytest.mark.attack("D02")
def test_whoever_races_with_a_stolen_token_brings_no_byte_into_a_file(fleet: Fleet, mallory: EvilSender) -> None:
    session = mallory.agree("bob")
    true, thief = Frames(session), Frames(session)
    thief.data = StreamSealer(foreign(session), Stream.DATA, 0, session.req.cipher)
    with Line(session) as stolen:
        assert stolen.admitted() == (True, True)
        with Line(session) as late:
            assert late.admitted() == (False, False)
        stolen.send(thief.data.seal(encode(Start(0, 0)), Flag.START), thief.chunk(true.whole()))
        assert not any(isinstance(word, Stop) for word in stolen.wait_gone())
    with Line(session) as again:
        assert again.admitted() == (False, False), "neither token opens a second time"
    goes_on(fleet, session, true)


# --- the stream itself ---------------------------------------------------------------------------------------------


@pytest.mark.attack("D03", "P01")
def test_a_chunk_with_one_bit_turned_over_costs_a_connection_and_the_file_is_right(
    fleet: Fleet, mallory: EvilSender
) -> None:
    """Each byte of the header, commitment, ciphertext and tag; none of it is ever written."""
    length = DATA_HEADER_BYTES + CHUNK + 16
    session = mallory.agree("bob")
    frames, written = Frames(session), b""
    places = [*range(0, DATA_HEADER_BYTES, 3), DATA_HEADER_BYTES, length // 2, length - 1]
    for attempt, place in enumerate(places[: BAD_FRAMES_MAX - 1]):
        with Line(session, attempt=attempt) as line:
            true = frames.whole()
            line.send(*frames.opening(), frames.chunk(true))
            line.acknowledged(frames.sent)
            written += true
            later = frames.again(session, attempt + 1)
            line.send(damaged(frames.chunk(frames.whole()), place))
            assert not any(isinstance(word, Stop) for word in line.wait_gone()), place
        frames = later
    goes_on(fleet, session, frames, frames.attempt, written)


@pytest.mark.attack("D03")
def test_sixteen_damaged_chunks_end_the_transfer(fleet: Fleet, mallory: EvilSender) -> None:
    session = mallory.agree("bob")
    frames = Frames(session)
    for attempt in range(BAD_FRAMES_MAX):
        later = frames.again(session, attempt + 1)
        with Line(session, attempt=attempt) as line:
            line.send(*frames.opening(), damaged(frames.chunk(frames.whole()), -1))
            if attempt < BAD_FRAMES_MAX - 1:
                assert not any(isinstance(word, Stop) for word in line.wait_gone())
            else:
                assert line.verdict() == Stop(32, "forged")
        frames = later
    nothing_arrived(fleet, session, 32)


@pytest.mark.attack("D04")
@pytest.mark.parametrize("chunks", [1, 3], ids=["at a chunk boundary", "without its last chunk"])
def test_a_stream_that_just_stops_is_no_item_and_its_partial_is_kept(
    fleet: Fleet, mallory: EvilSender, chunks: int
) -> None:
    session = mallory.agree("bob")
    frames = Frames(session, size=4 * CHUNK)
    with Line(session) as line:
        line.send(*frames.opening(), *(frames.chunk(frames.whole()) for _ in range(chunks)))
        line.acknowledged(chunks * CHUNK)
    nothing_arrived(fleet, session, 31, partial=chunks * CHUNK)


@pytest.mark.attack("D04")
def test_a_stream_that_stops_before_its_first_chunk_leaves_nothing_to_read(fleet: Fleet, mallory: EvilSender) -> None:
    session = mallory.agree("bob")
    with Line(session) as line:
        line.send(*Frames(session).opening())
        line.acknowledged(0)
    event = ending(fleet, "bob", session.req.xid)
    assert (event["event"], event["code"]) == ("not-received", 31)
    assert not payloads(fleet.home("bob"))


@pytest.mark.attack("D02", "D04")
def test_nothing_is_read_from_whoever_has_one_connection_of_the_two(fleet: Fleet, mallory: EvilSender) -> None:
    session = mallory.agree("bob")
    frames = Frames(session)
    with Line(session, ack=Login(b"nobody", b"nothing")) as line:
        assert line.admitted() == (True, False)
        line.send(*frames.opening(), frames.chunk(frames.whole()))
        nothing_arrived(fleet, session, 31)


def early_last(frames: Frames) -> list[bytearray]:
    return [frames.chunk(frames.whole(), Flag.LAST), frames.chunk(frames.whole())]


def early_last_with_the_end_of_the_whole(frames: Frames) -> list[bytearray]:
    return [frames.last(frames.whole(), total=2 * CHUNK)]


def early_last_below_the_announced_size(frames: Frames) -> list[bytearray]:
    return [frames.last(frames.whole())]


def last_without_an_end(frames: Frames) -> list[bytearray]:
    return [frames.chunk(frames.whole()), frames.chunk(b"short", Flag.LAST)]


def last_with_another_digest(frames: Frames) -> list[bytearray]:
    return [frames.chunk(frames.whole()), frames.last(frames.whole(), digest=bytes(32))]


def last_that_says_more(frames: Frames) -> list[bytearray]:
    return [frames.chunk(frames.whole()), frames.last(frames.whole(), total=1 << 63)]


def empty_chunk_before_the_last(frames: Frames) -> list[bytearray]:
    return [frames.chunk(frames.whole()), frames.chunk(b""), frames.last(frames.whole())]


def a_farewell_before_the_end(frames: Frames) -> list[bytearray]:
    return [frames.chunk(frames.whole()), frames.bye()]


def a_second_start(frames: Frames) -> list[bytearray]:
    return [frames.chunk(frames.whole()), frames.data.seal(encode(Start(0, CHUNK)), Flag.START)]


def a_second_manifest(frames: Frames) -> list[bytearray]:
    return [frames.chunk(frames.whole()), frames.names.seal(encode(frames.manifest), Flag.LAST)]


WRONG_ENDS = [
    early_last, early_last_with_the_end_of_the_whole, early_last_below_the_announced_size, last_without_an_end,
    last_with_another_digest, last_that_says_more, empty_chunk_before_the_last, a_farewell_before_the_end,
    a_second_start, a_second_manifest,
]


@pytest.mark.attack("D04")
@pytest.mark.parametrize("variant", WRONG_ENDS, ids=lambda variant: variant.__name__)
def test_a_wrong_or_early_end_is_never_an_item(
    fleet: Fleet, mallory: EvilSender, variant: Callable[[Frames], list[bytearray]]
) -> None:
    session = mallory.agree("bob")
    frames = Frames(session, size=2 * CHUNK)
    with Line(session) as line:
        line.send(*frames.opening(), *variant(frames))
        stop = line.verdict()
    assert isinstance(stop, Stop)
    assert stop.code == 32
    nothing_arrived(fleet, session, 32)


@pytest.mark.attack("D04")
@pytest.mark.parametrize("what", ["flags that do not go together", "a last flag that the nonce has not"])
def test_an_end_that_somebody_in_between_made_is_none(fleet: Fleet, mallory: EvilSender, what: str) -> None:
    session = mallory.agree("bob")
    frames = Frames(session)
    before = frames.again(session, 0)
    opening = frames.opening()
    if what.startswith("flags"):
        bad = frames.chunk(frames.whole(), Flag.LAST | Flag.BYE)
    else:
        bad = frames.chunk(frames.whole())
        bad[2] |= Flag.LAST
    with Line(session) as line:
        line.send(*opening, bad)
        assert not any(isinstance(word, Stop | Done) for word in line.wait_gone())
    goes_on(fleet, session, before)


def test_chunks_of_any_size_and_an_empty_last_one_are_a_file(fleet: Fleet, mallory: EvilSender) -> None:
    session = mallory.agree("bob")
    frames = Frames(session, size=CHUNK + 3)
    data = os.urandom(CHUNK + 3)
    with Line(session) as line:
        line.send(*frames.opening(), *(frames.chunk(piece) for piece in (data[:1], data[1:3], data[3:])), frames.last())
        assert isinstance(line.verdict(), Done)
        line.send(frames.bye())
    with fleet.client("bob").receive(sender="mallory") as item:
        assert item.read() == data


@pytest.mark.attack("D04")
@pytest.mark.parametrize("extra", ["a chunk", "a second end"])
def test_anything_after_the_end_makes_the_whole_worthless(fleet: Fleet, mallory: EvilSender, extra: str) -> None:
    session = mallory.agree("bob")
    frames = Frames(session)
    with RawLine(session) as line:
        line.send(*frames.opening(), frames.chunk(b"begun"))
        line.line.acknowledged(5)
        end = frames.last(b"whole")
        more = frames.chunk(b"more") if extra == "a chunk" else frames.last(b"more")
        line.send(end, more)
        stop = line.verdict()
    assert isinstance(stop, Stop)
    assert stop.code == 32
    nothing_arrived(fleet, session, 32)
    assert ending(fleet, "bob", session.req.xid)["detail"] == "truncated"


@pytest.mark.attack("D04")
def test_what_comes_after_the_receipt_is_told_and_changes_nothing(fleet: Fleet, mallory: EvilSender) -> None:
    session = mallory.agree("bob")
    frames = Frames(session)
    with Line(session) as line:
        line.send(*frames.opening(), frames.last(b"whole"))
        assert isinstance(line.verdict(), Done)
        line.send(frames.chunk(b"more"))
        stop = line.verdict()
    assert isinstance(stop, Stop)
    assert stop.code == 32
    with fleet.client("bob").receive(sender="mallory") as item:
        assert item.read() == b"whole"


@pytest.mark.attack("D05")
@pytest.mark.parametrize("how", ["twice", "reordered", "replayed from an earlier attempt", "from its own beginning"])
def test_a_chunk_out_of_its_place_is_never_written_and_costs_a_connection(
    fleet: Fleet, mallory: EvilSender, how: str
) -> None:
    session = mallory.agree("bob")
    frames = Frames(session)
    opening = frames.opening()
    head = frames.whole()
    first = frames.chunk(head)
    after_first = frames.again(session, 1)
    second = frames.chunk(frames.whole())
    earlier = Frames(session, attempt=1)
    earlier.opening()
    sent = {
        "twice": [first, first],
        "reordered": [second, first],
        "replayed from an earlier attempt": [first, earlier.chunk(frames.whole())],
        "from its own beginning": [first, opening[0]],
    }
    with Line(session) as line:
        line.send(*opening, *sent[how], frames.last(b"end"))
        assert not any(isinstance(word, Stop | Done) for word in line.wait_gone())
    if how == "reordered":
        goes_on(fleet, session, Frames(session))
    else:
        goes_on(fleet, session, after_first, 1, head)


@pytest.mark.attack("D05")
def test_a_delivery_that_is_done_is_not_written_again(fleet: Fleet, mallory: EvilSender) -> None:
    tid = os.urandom(16)
    session = mallory.agree("bob", tid=tid)
    frames = Frames(session)
    with Line(session) as line:
        line.send(*frames.opening(), frames.last(b"once"))
        assert isinstance(line.verdict(), Done)
        line.send(frames.bye())
    again = mallory.ask("bob", tid=tid)
    assert isinstance(again, Have), "the answer is the receipt, and no key for another stream"
    items, _ = inbox_of(fleet.home("bob"))
    assert [item.size for item in items] == [4]
    assert len(payloads(fleet.home("bob"))) == 1


@pytest.mark.attack("D06")
@pytest.mark.parametrize("disguised", [False, True], ids=["as it was", "with the tag of this one"])
def test_a_chunk_of_another_transfer_is_refused(fleet: Fleet, mallory: EvilSender, disguised: bool) -> None:
    session, other = mallory.agree("bob"), mallory.agree("bob")
    here, there = Frames(session), Frames(other)
    there.opening()
    foreign_chunk = there.chunk(here.whole())
    opening = here.opening()
    if disguised:
        tag = slice(DATA_HEADER_BYTES - 16, DATA_HEADER_BYTES)
        foreign_chunk[tag] = opening[0][tag]
    with Line(session) as line:
        line.send(*opening, foreign_chunk)
        assert not any(isinstance(word, Stop) for word in line.wait_gone())
    goes_on(fleet, session, Frames(session))


@pytest.mark.attack("D08")
def test_a_tampered_chunk_never_reaches_any_file(fleet: Fleet, mallory: EvilSender, tmp_path: Path) -> None:
    """Not even for a moment: nothing is written to any payload after the last true chunk, and nothing cut off."""
    session = mallory.agree("bob")
    frames = Frames(session)
    true, tampered = frames.whole(), frames.whole()
    inbox = fleet.home("bob") / "inbox"
    with Line(session) as line, Watch(inbox / "partial", inbox / "files") as watch:
        line.send(*frames.opening(), frames.chunk(true))
        line.acknowledged(CHUNK)
        (partial,) = inbox_of(fleet.home("bob"))[1]
        witness = tmp_path / "witness"
        witness.hardlink_to(partial.path)
        assert watch.written() >= {partial.id}
        # GCM is a stream cipher: a flipped bit of ciphertext is that bit of plaintext, all else would read as sent.
        later = frames.again(session, 1)
        line.send(damaged(frames.chunk(tampered), DATA_HEADER_BYTES + CHUNK - 1))
        assert not any(isinstance(word, Stop) for word in line.wait_gone())
        assert watch.written() == set()
    assert witness.read_bytes() == true
    goes_on(fleet, session, later, 1, true)
    assert witness.read_bytes() == true + b"the end"


@pytest.mark.attack("D09")
@pytest.mark.parametrize(
    "what", ["a damaged commitment", "a true frame under another commitment", "another key under the true one", "none"]
)
def test_a_first_frame_that_is_not_committed_to_the_key_is_refused(
    fleet: Fleet, mallory: EvilSender, what: str
) -> None:
    session = mallory.agree("bob")
    frames = Frames(session)
    true, manifest = frames.opening()
    other, lying = Frames(session), Frames(session)
    other.data = StreamSealer(foreign(session), Stream.DATA, 0, session.req.cipher)
    lying.data._commitment = other.data._commitment
    header = slice(0, DATA_HEADER_BYTES + 32)
    start = {
        "a damaged commitment": damaged(true, DATA_HEADER_BYTES + 31),
        "a true frame under another commitment": bytes(lying.opening()[0]),
        "another key under the true one": bytes(true[header]) + bytes(other.opening()[0][header.stop :]),
        "none": bytes(true[:DATA_HEADER_BYTES]) + bytes(true[header.stop :]),
    }[what]
    with Line(session) as line:
        line.send(start, manifest, frames.chunk(frames.whole()))
        assert not any(isinstance(word, Stop) for word in line.wait_gone())
    goes_on(fleet, session, Frames(session))


@pytest.mark.attack("D11")
def test_a_chunk_one_byte_above_the_agreed_size_is_a_limit(fleet: Fleet, mallory: EvilSender) -> None:
    session = mallory.agree("bob")
    frames = Frames(session)
    with Line(session) as line:
        line.send(*frames.opening(), frames.chunk(frames.whole() + b"x"))
        stop = line.verdict()
    assert stop == Stop(25, "limit")
    nothing_arrived(fleet, session, 25)


@pytest.mark.attack("D11")
def test_a_frame_above_what_any_chunk_takes_ends_its_connection(fleet: Fleet, mallory: EvilSender) -> None:
    session = mallory.agree("bob")
    frames = Frames(session, size=2 * CHUNK)
    with Line(session) as line:
        line.send(*frames.opening(), frames.chunk(frames.whole()))
        line.acknowledged(CHUNK)  # libzmq may drop what is not read when the connection ends
        line.send(bytes(BULK_FRAME_MAX + 1))
        ending(fleet, "bob", session.req.xid)
    nothing_arrived(fleet, session, 31, partial=CHUNK)


@pytest.mark.parametrize(
    "parts",
    [
        (b"",), (b"\x01",), (b"\x01" * DATA_HEADER_BYTES,), (bytes(200),), (b"\xff" * 70_000,), (b"one", b"two"),
        (b"",) * 50,
    ],
    ids=["empty", "one byte", "a header", "zeros", "ones", "two parts", "many parts"],
)
def test_what_is_no_frame_costs_only_its_own_connection(
    fleet: Fleet, mallory: EvilSender, parts: tuple[bytes, ...]
) -> None:
    session, healthy = mallory.agree("bob"), mallory.agree("bob")
    frames, other = Frames(session), Frames(healthy)
    with Line(session) as line, Line(healthy) as bystander:
        bystander.send(*other.opening())
        line.send(*frames.opening())
        line.send_parts(*parts)
        assert not any(isinstance(word, Stop) for word in line.wait_gone())
        bystander.send(other.last(b"mine"))
        assert isinstance(bystander.verdict(), Done)
        bystander.send(other.bye())
    with fleet.client("bob").receive(sender="mallory") as item:
        assert item.read() == b"mine"
    goes_on(fleet, session, Frames(session))


def test_a_manifest_of_numbers_that_no_file_has_is_no_defect_of_the_recipient(
    fleet: Fleet, mallory: EvilSender
) -> None:
    for choice in ({"mtime_ns": (1 << 64) - 1}, {"mode": (1 << 32) - 1}, {"note": "n" * 4096}):
        session = mallory.agree("bob")
        frames = Frames(session, **choice)  # type: ignore[arg-type]
        with Line(session) as line:
            line.send(*frames.opening(), frames.last(b"x"))
            assert isinstance(line.verdict(), Done | Stop), choice
            line.send(frames.bye())
        assert ending(fleet, "bob", session.req.xid)["event"] != "defect"


def test_a_size_that_no_disk_holds_is_refused_before_the_first_byte(fleet: Fleet, mallory: EvilSender) -> None:
    session = mallory.agree("bob")
    frames = Frames(session, size=(1 << 63) - 1)
    with Line(session) as line:
        line.send(*frames.opening())
        assert line.verdict() == Stop(33, "no-space")
    nothing_arrived(fleet, session, 33)


# --- a recipient that lies -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eve(fleet: Fleet) -> Iterator[EvilRecipient]:
    with EvilRecipient(fleet.home("eve")) as recipient:
        yield recipient


def send_to(
    eve: EvilRecipient, fleet: Fleet, behave: Callable[[Delivering], None], payload: bytes = b"x" * 3 * CHUNK
) -> ZkcError:
    """What alice's honest transfer to an evil recipient ends with."""
    def till_it_has_gone(delivering: Delivering) -> None:
        behave(delivering)
        delivering.wait_gone()  # what was said last is on its way until then

    eve.behave = till_it_has_gone
    with pytest.raises(ZkcError) as caught:
        fleet.client("alice").send("eve", payload, timeout=DEADLINE)
    assert not eve.errors, eve.errors
    return caught.value


def whole(delivering: Delivering) -> Complete:
    """Take all that the sender has, as an honest recipient."""
    delivering.say(Ack(0, 0, 8 * CHUNK))
    complete = delivering.take(Complete)
    assert isinstance(complete, Complete)
    return complete


@pytest.mark.attack("D17")
def test_a_receipt_before_the_end_of_the_file_is_refused(fleet: Fleet, eve: EvilRecipient) -> None:
    def early(delivering: Delivering) -> None:
        delivering.say(Ack(0, 0, CHUNK))
        delivering.take(Data)
        # True of every byte that was sent so far.
        body = delivering.body(Complete(b"", CHUNK, blake3(b"x" * CHUNK).digest()))
        delivering.say(Done(delivering.receipt(body)))

    assert isinstance(send_to(eve, fleet, early), IntegrityError)


@pytest.mark.attack("D17")
@pytest.mark.parametrize(
    "field", ["digest", "size", "xid", "tid", "th", "durable", "key_source", "sender_fingerprint", "manifest_digest"]
)
def test_a_receipt_of_something_else_is_refused(fleet: Fleet, eve: EvilRecipient, field: str) -> None:
    def lie(delivering: Delivering) -> None:
        body = delivering.body(whole(delivering))
        value = getattr(body, field)
        other: object = "coordinator"
        if isinstance(value, bytes):
            other = damaged(value, 0)
        elif isinstance(value, bool):
            other = not value
        elif isinstance(value, int):
            other = value - 1
        delivering.say(Done(delivering.receipt(replace(body, **{field: other}))))

    error = send_to(eve, fleet, lie)
    assert isinstance(error, IntegrityError)
    assert error.detail == "receipt"


@pytest.mark.attack("D17")
def test_a_receipt_of_an_earlier_transfer_of_the_same_bytes_is_refused(fleet: Fleet, eve: EvilRecipient) -> None:
    kept: list[bytes] = []

    def honest(delivering: Delivering) -> None:
        kept[:] = [delivering.receipt(delivering.body(whole(delivering)))]
        delivering.say(Done(kept[0]))
        delivering.wait_gone()

    def again(delivering: Delivering) -> None:
        whole(delivering)
        delivering.say(Done(kept[0]))

    eve.behave = honest
    fleet.client("alice").send("eve", b"the same bytes", timeout=DEADLINE)
    assert isinstance(send_to(eve, fleet, again, b"the same bytes"), IntegrityError)


@pytest.mark.attack("D17")
def test_a_receipt_with_a_damaged_signature_is_refused(fleet: Fleet, eve: EvilRecipient) -> None:
    def forge(delivering: Delivering) -> None:
        receipt: Receipt = decode(delivering.receipt(delivering.body(whole(delivering))), Receipt)
        delivering.say(Done(encode(replace(receipt, signature=damaged(receipt.signature, 3)))))

    assert isinstance(send_to(eve, fleet, forge), IntegrityError)


@pytest.mark.parametrize(
    "parts", [(b"",), (noise(100),), (noise(60_000),), (b"a", b"b")], ids=["empty", "noise", "long noise", "two parts"]
)
def test_acknowledgements_that_are_none_are_a_lost_link_and_end_with_the_patience(
    fleet: Fleet, eve: EvilRecipient, parts: tuple[bytes, ...]
) -> None:
    """Anybody in between can make them: each costs a connection; `tests/net/test_pipe.py` has the sixteenth."""

    def babble(delivering: Delivering) -> None:
        delivering.send(*parts)

    error = send_to(eve, fleet, babble)
    assert (type(error), error.code) == (Interrupted, 31)


def test_an_acknowledgement_of_more_than_was_sent_is_refused(fleet: Fleet, eve: EvilRecipient) -> None:
    def boast(delivering: Delivering) -> None:
        delivering.say(Ack(0, 0, CHUNK))
        delivering.take(Started)
        delivering.say(Ack(0, 1 << 40, CHUNK))
        delivering.wait_gone()

    assert isinstance(send_to(eve, fleet, boast), IntegrityError)


@pytest.mark.attack("D17")
def test_a_recipient_that_claims_to_have_what_it_was_not_sent_is_asked_anew_once_and_no_more(
    fleet: Fleet, eve: EvilRecipient, tmp_path: Path
) -> None:
    """In its first word to each handshake. Of a delivery that begins it has nothing; of one that goes on it may have
    lost what it had."""
    fresh: list[bool] = []

    def boast(position: int) -> Callable[[Delivering], None]:
        def behave(delivering: Delivering) -> None:
            fresh.append(delivering.session.req.fresh)
            delivering.say(Ack(0, position, CHUNK))
            delivering.wait_gone()

        return behave

    def asked(name: str, position: int) -> list[bool]:
        fresh.clear()
        path, eve.behave = tmp_path / name, boast(position)
        if not path.exists():
            path.write_bytes(bytes(3 * CHUNK))
        with pytest.raises(IntegrityError) as caught:
            fleet.client("alice").send("eve", path, timeout=DEADLINE)
        assert not eve.errors, eve.errors
        assert caught.value.detail == "position"
        return list(fresh)

    assert asked("one", 10**12) == [True]
    assert asked("other", CHUNK) == [True], "within the file, and a lie all the same"
    assert asked("one", 10**12) == [False, True]


def test_an_acknowledgement_frame_above_any_limit_only_loses_the_link(fleet: Fleet, eve: EvilRecipient) -> None:
    def bulge(delivering: Delivering) -> None:
        delivering.send(bytes(128 * 1024))
        delivering.wait_gone()

    assert isinstance(send_to(eve, fleet, bulge), Interrupted)


def test_credit_without_bound_buys_no_memory_of_the_sender(fleet: Fleet, eve: EvilRecipient) -> None:
    reading, read, measured = (threading.Event() for _ in range(3))

    def greedy(delivering: Delivering) -> None:
        delivering.say(Ack(0, 0, most := (1 << 32) - 1))
        assert reading.wait(DEADLINE)
        while not isinstance(complete := delivering.take(Data, Complete), Complete):
            delivering.say(Ack(0, delivering.machine.received, most))
        read.set()
        assert measured.wait(DEADLINE)
        delivering.say(Done(delivering.receipt(delivering.body(complete))))
        delivering.wait_gone()

    eve.behave = greedy
    source = fleet.folder / "big"
    with source.open("wb") as file:
        file.truncate(96 * MIB)
    sender = fleet.popen("alice", "send", "eve", str(source), "--json", stdout=subprocess.PIPE)
    try:
        assert sender.stdout is not None
        assert b"requested" in sender.stdout.readline()
        assert b"granted" in sender.stdout.readline()
        before = memory(sender.pid, "VmHWM")
        reading.set()
        assert read.wait(60), "it still waits for its receipt"
        assert memory(sender.pid, "VmHWM") - before < 48 * MIB
        measured.set()
        out, _ = sender.communicate(timeout=60)
        assert sender.returncode == 0, (out, eve.errors)
    finally:
        sender.kill()
        sender.communicate()
        source.unlink()
