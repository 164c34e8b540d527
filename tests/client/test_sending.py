"""One delivery over several connections, handshakes and commands: what is tried when, and when it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from blake3 import blake3

from tests.support.env import FixedClock, SeededEntropy
from tests.support.parties import identity_of, world
from tests.support.ports import two_ports
from tests.support.talks import terms
from zkc.client.events import Delivery, Event, Granted, Options
from zkc.client.grants import Grant, Have, Listen, OnPending, Wanted
from zkc.client.sending import Sending
from zkc.client.sources import AnySource, FileSource, PipeSource
from zkc.config import ClientConfig
from zkc.config.keys import ClientTransferSection
from zkc.crypto.receipts import make_receipt
from zkc.errors import (
    CoordinatorUnreachable,
    IntegrityError,
    Interrupted,
    LocalIOError,
    PolicyRefused,
    RecipientOffline,
    TimedOut,
)
from zkc.hardening import claim_descriptors
from zkc.net.local_frames import NoAnswer
from zkc.net.pipe import sender
from zkc.net.pipe.bell import Bell, LinkLost
from zkc.net.pipe.outgoing import Outgoing
from zkc.net.pipe.sender import Told
from zkc.protocol.delivery_recipient import receipt_body
from zkc.protocol.delivery_sender import Delivered
from zkc.protocol.session import Session
from zkc.rules.refusals import refused_by
from zkc.stores.home import Home
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Card, Endpoints, Manifest, Receipt, ReceiptBody

DATA = b"precious\n"
PIPED = Manifest("stream", "stdin", "", None, 0o600, 0)


class NoPause(SeededEntropy):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.pauses: list[float] = []
        """The longest that each pause may be."""

    def jitter(self, low: float, high: float) -> float:
        self.pauses.append(high)
        return 0.0


@dataclasses.dataclass
class Connection:
    """One attempt of a session, as the script `Bob.link` sees it."""

    bob: Bob
    session: int
    """Its number: which handshake it was."""
    number: int
    """Of this connection, among all."""
    manifest: Manifest
    outgoing: Outgoing
    told: Told

    def begin(self, position: int = 0) -> Any:
        """The recipient stands at ``position``."""
        self.told.on_begun("direct 127.0.0.1:1", position)
        return self.outgoing.go_to(position)

    def send(self, position: int = 0) -> bytes:
        """Everything from ``position`` on goes out, and is taken over."""
        digest, outgoing, gone = self.begin(position), self.outgoing, b""
        self.told.on_flowing()
        while outgoing.read(4):
            digest.update(outgoing.chunk)
            gone += outgoing.chunk
            outgoing.sealed(position + len(gone), digest)
        outgoing.whole = position + len(gone), digest.digest()
        return gone

    def progress(self, position: int) -> None:
        self.told.on_progress(position)

    def deliver(self, position: int = 0) -> Delivered:
        """To the end: the receipt comes."""
        self.send(position)
        receipt, body = self.bob.receipt(self.session, self.manifest, *cast("Any", self.outgoing.whole))
        done = Delivered(receipt, body)
        self.told.on_receipt(done)
        return done


class Bob:
    """The coordinator and the recipient, as a script. ``answers``: what handshakes lead to, then new sessions."""

    def __init__(self) -> None:
        self.clock = FixedClock()
        self.answers: Iterator[Any] = iter(())
        self.asked: list[Wanted] = []
        self.sessions: list[tuple[Session, Session]] = []
        """The sender's and the recipient's, of each handshake."""
        self.connections: list[int] = []
        """By which session each was made."""
        self.link: Callable[[Connection], Delivered] = lambda connection: connection.deliver()
        self.shaking, self.connecting = 1.0, 0.1
        """Seconds that a handshake and a connection take."""

    def grant(self, wanted: Wanted, within: float | None, listen: Listen, on_pending: OnPending) -> Grant:
        self.asked.append(wanted)
        self.clock.advance(self.shaking)
        answer = next(self.answers, self.agree)
        if isinstance(answer, Exception):
            raise answer
        return cast("Grant", answer() if callable(answer) else answer)

    def agree(self) -> Session:
        asked = self.asked[-1]
        talk = world("x25519").transfer(
            dataclasses.replace(terms("bob", serial=100 + len(self.sessions)), tid=asked.tid, fresh=asked.fresh)
        )
        talk.run()
        self.sessions.append(talk.sessions)
        return self.sessions[-1][0]

    def receipt(self, session: int, manifest: Manifest, size: int, digest: bytes) -> tuple[bytes, ReceiptBody]:
        body = receipt_body(self.sessions[session][1], manifest, size, digest, 1.0, 2.0)
        return make_receipt(identity_of("bob"), body, world("x25519").bob.card.encoded), body

    def have(self, manifest: Manifest, data: bytes = DATA, session: int = -1, **changes: Any) -> Have:
        """He has it: the receipt of a handshake, the last one unless told otherwise."""
        _, body = self.receipt(session, manifest, len(data), blake3(data).digest())
        bob, alice = world("x25519").bob, world("x25519").alice
        receipt = make_receipt(identity_of("bob"), msgspec.structs.replace(body, **changes), bob.card.encoded)
        keys = bob.card.identity
        return Have(bob.fingerprint, keys.ed25519, keys.ml_dsa, receipt, alice.fingerprint)

    @property
    def fresh(self) -> list[bool]:
        """Of each request: whether the recipient is to begin with the first byte."""
        return [wanted.fresh for wanted in self.asked]


class Attempts:
    """In place of `zkc.net.pipe.sender.Attempts`: each connection is what the script makes of it."""

    bob: Bob

    def __init__(
        self, session: Session, manifest: Manifest, outgoing: Outgoing, clock: Any, pace: Any, listening: None
    ) -> None:
        self._index = next(i for i, (sender, _) in enumerate(self.bob.sessions) if sender is session)
        self._manifest, self._outgoing = manifest, outgoing

    def next(self, bell: Bell, told: Told, *, deadline: float | None = None) -> Delivered:
        assert self.bob.sessions[self._index][0].k.reveal(), "the key is still there"
        self.bob.connections.append(self._index)
        self.bob.clock.advance(self.bob.connecting)
        return self.bob.link(
            Connection(self.bob, self._index, len(self.bob.connections), self._manifest, self._outgoing, told)
        )


@pytest.fixture
def bob(monkeypatch: pytest.MonkeyPatch) -> Bob:
    made = Bob()
    monkeypatch.setattr(Attempts, "bob", made, raising=False)
    monkeypatch.setattr(sender, "Attempts", Attempts)
    return made


@pytest.fixture
def pipe() -> Iterator[PipeSource]:
    ours, theirs = os.pipe()
    os.write(theirs, DATA)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        yield PipeSource(stream)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "x"
    found.write_bytes(DATA)
    return found


Run = Callable[..., Delivery]


@pytest.fixture
def run(bob: Bob, home: Home) -> Iterator[Run]:
    """One command: sends a file, or a source as piped data. ``serial`` tells commands' entropy apart."""
    bell, serials = Bell(), itertools.count()

    def do(what: Path | AnySource, *, events: list[Event] | None = None, **options: Any) -> Delivery:
        source = FileSource(what) if isinstance(what, Path) else what
        manifest = source.manifest(None, "") if isinstance(source, FileSource) else PIPED
        with closing(source):
            one = Sending(
                home, ClientConfig(), bob, "bob", source, manifest, Options(**options), clock=bob.clock,
                entropy=NoPause(next(serials)), bell=bell, on_event=(events if events is not None else []).append,
            )
            done = one.run()
        assert isinstance(done, Delivery)
        return done

    yield do
    bell.close()


def lost(*_: object) -> Delivered:
    """A connection that does not stand."""
    raise LinkLost("the link broke off", detail="link")


def broken(position: int) -> Callable[[Connection], Delivered]:
    """A connection that breaks off when the recipient has so much."""

    def link(connection: Connection) -> Delivered:
        connection.send(min(position, max(connection.number - 1, 0) * position))
        connection.progress(position)
        return lost()

    return link


def each(*links: Callable[[Connection], Delivered]) -> Callable[[Connection], Delivered]:
    """One script for each connection, the last one for all later."""
    return lambda connection: links[min(connection.number, len(links)) - 1](connection)


# --- connections and handshakes --------------------------------------------------------------------------------------


def test_what_is_delivered_is_told_with_its_receipt(bob: Bob, run: Run, path: Path) -> None:
    done = run(path)
    assert (done.bytes, done.digest) == (len(DATA), f"blake3:{blake3(DATA).digest().hex()}")
    assert done.receipt.exists()
    assert bob.fresh == [True]


def test_a_link_that_breaks_off_is_tried_again_on_the_same_session_first(bob: Bob, run: Run, path: Path) -> None:
    """No coordinator is asked: the key stands."""
    bob.link = each(broken(4), lost, lambda connection: connection.deliver(4))
    assert run(path).bytes == len(DATA)
    assert (bob.connections, len(bob.asked)) == ([0, 0, 0], 1)


def test_a_session_that_leads_to_nothing_for_two_seconds_is_followed_by_another_handshake(
    bob: Bob, run: Run, path: Path
) -> None:
    """Which says that the recipient is to go on with what it has."""
    bob.connecting = 0.9
    bob.link = each(broken(4), lost, lost, lost, lambda connection: connection.deliver(4))
    run(path)
    assert bob.connections == [0, 0, 0, 0, 1]
    assert bob.fresh == [True, False]
    assert len({wanted.tid for wanted in bob.asked}) == 1, "it is one delivery"


def test_a_connection_that_stands_again_counts_from_anew(bob: Bob, run: Run, path: Path) -> None:
    bob.connecting = 0.9
    bob.link = each(*(broken(at) for at in range(1, 9)), lambda connection: connection.deliver(8))
    run(path)
    assert bob.connections == [0] * 9


def test_a_limit_that_is_met_after_data_flowed_is_waited_for_and_one_before_is_the_end(
    bob: Bob, run: Run, path: Path
) -> None:
    """Whoever else is there has the ports meanwhile; a limit that the data itself meets is another thing."""
    full = PolicyRefused("no port became free in time", detail="limit")
    bob.connecting = 3.0
    bob.answers = iter([bob.agree, full, full])
    bob.link = each(broken(4), lost, lambda connection: connection.deliver(4))
    run(path)
    assert len(bob.asked) == 4
    bob.answers = itertools.chain([bob.agree], itertools.repeat(full))
    bob.link = lambda connection: broken(4)(connection) if connection.number == 5 else lost()
    with pytest.raises(Interrupted, match="broke off, and then: no port") as caught:
        run(path)
    assert caught.value.detail == "limit"
    bob.answers = iter([full])
    with pytest.raises(PolicyRefused):
        run(path, resume=False)


def test_the_old_session_is_kept_while_the_coordinator_is_away(bob: Bob, run: Run, path: Path) -> None:
    """It may still lead to the recipient; only what is followed by another, or is over, is wiped."""
    away = [CoordinatorUnreachable("gone", detail="unreachable"), RecipientOffline("gone", detail="offline")]
    bob.answers = iter([bob.agree, *away * 3])
    bob.connecting = 2.5
    bob.link = each(broken(4), *[lost] * 6, lambda connection: connection.deliver(4))
    run(path)
    assert set(bob.connections) == {0}
    assert len(bob.asked) > 2, "it was asked for meanwhile"
    with pytest.raises(ValueError, match="wiped"):
        bob.sessions[0][0].k.reveal()


def test_a_session_that_is_followed_by_another_is_wiped(bob: Bob, run: Run, path: Path) -> None:
    bob.connecting = 3.0

    def end(connection: Connection) -> Delivered:
        with pytest.raises(ValueError, match="wiped"):
            bob.sessions[0][0].k.reveal()
        return connection.deliver(4)

    bob.link = each(broken(4), lost, end)
    run(path)
    assert bob.connections == [0, 0, 1]


def test_a_first_handshake_that_leads_to_nothing_is_the_condition_itself(bob: Bob, run: Run, path: Path) -> None:
    for condition in (RecipientOffline("gone", detail="offline"), CoordinatorUnreachable("gone", detail="x")):
        bob.answers = iter([condition])
        with pytest.raises(type(condition)):
            run(path)
    assert (len(bob.asked), bob.connections) == (2, [])


def test_a_recipient_that_was_never_reached_is_asked_to_begin_at_the_first_byte(
    bob: Bob, run: Run, path: Path
) -> None:
    bob.connecting = 3.0
    bob.link = each(lost, lost, lambda connection: connection.deliver())
    run(path)
    assert bob.fresh == [True, True]


@pytest.mark.parametrize("detail", ["shutdown", "unknown-transfer"])
def test_a_recipient_whose_daemon_was_ended_is_asked_for_another_handshake_at_once(
    detail: str, bob: Bob, run: Run, path: Path
) -> None:
    """It said that it ends: nobody listens at its ports any more."""

    def ends(connection: Connection) -> Delivered:
        broken_off = broken(4)
        with pytest.raises(LinkLost):
            broken_off(connection)
        raise refused_by("bob", 31, detail)

    bob.answers = iter([bob.agree, RecipientOffline("gone", detail="offline")])
    bob.link = each(ends, lambda connection: connection.deliver(4))
    run(path)
    assert (bob.connections, bob.fresh) == ([0, 1], [True, False, False])


def test_a_refusal_is_an_end(bob: Bob, run: Run, path: Path) -> None:
    def refuse(connection: Connection) -> Delivered:
        raise PolicyRefused("no", detail="policy")

    bob.link = refuse
    with pytest.raises(PolicyRefused):
        run(path)
    assert bob.connections == [0]


def test_where_it_goes_on_is_told_once_for_each_way(bob: Bob, run: Run, path: Path) -> None:
    events: list[Event] = []
    bob.link = each(broken(4), broken(4), lambda connection: connection.deliver(4))
    run(path, events=events)
    assert [event.resumed_from for event in events if isinstance(event, Granted)] == [0]


# --- when it ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "tries"), [(0, 6), (1, 30)])
def test_what_breaks_off_at_the_same_place_again_and_again_ends(
    step: int, tries: int, bob: Bob, run: Run, path: Path
) -> None:
    """Patience is 60 s and each try takes 12; it begins anew only where a try came farther than all before."""
    bob.shaking, bob.connecting = 0.0, 12.0

    def link(connection: Connection) -> Delivered:
        connection.begin()
        for position in (10, 50, 90 + step * min(connection.number, tries - 5)):
            connection.progress(position)
        return lost()

    bob.link = link
    with pytest.raises(Interrupted) as caught:
        run(path)
    assert (caught.value.detail, len(bob.connections)) == ("link", tries)
    assert caught.value.hint == "run the same command again: it goes on from there"


def test_an_own_daemon_that_does_not_answer_is_waited_for_like_a_recipient_that_is_offline(
    bob: Bob, run: Run, path: Path
) -> None:
    silent: Any = NoAnswer("no answer", detail="no-answer")
    bob.shaking = 10.0

    def ends(connection: Connection) -> Delivered:
        connection.send()
        raise refused_by("bob", 31, "shutdown")

    bob.link = ends
    bob.answers = itertools.chain([bob.agree], itertools.repeat(silent))
    with pytest.raises(Interrupted) as caught:
        run(path)
    assert (caught.value.code, caught.value.detail, len(bob.asked)) == (31, "no-answer", 7)
    with pytest.raises(NoAnswer):
        run(path)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Each one that is made from now on is above 1023, the highest that select takes."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as taken:
        taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        assert claim_descriptors(2048) >= 2048
        while True:
            descriptor = os.open(os.devnull, os.O_RDONLY)
            taken.callback(os.close, descriptor)
            if descriptor > 1023:
                break
        yield


@pytest.mark.usefixtures("many_descriptors")
def test_a_program_of_thousands_of_descriptors_tries_again_like_any_other(bob: Bob, run: Run, path: Path) -> None:
    bob.link = each(lost, lambda connection: connection.deliver())
    assert run(path).bytes == len(DATA)


def test_what_a_link_says_to_do_outlives_the_patience(bob: Bob, run: Run, path: Path) -> None:
    def link(connection: Connection) -> Delivered:
        raise LinkLost("cannot reach bob", detail="link", hint="look at the firewall")

    bob.link, bob.connecting = link, 5.0
    with pytest.raises(Interrupted) as caught:
        run(path)
    assert (caught.value.message, caught.value.hint) == ("cannot reach bob", "look at the firewall")
    assert not isinstance(caught.value, LinkLost)


def test_the_timeout_ends_it_before_the_patience(bob: Bob, run: Run, path: Path) -> None:
    bob.link, bob.connecting = broken(4), 1.0
    began = bob.clock.monotonic()
    with pytest.raises(Interrupted):
        run(path, timeout=20.0)
    assert bob.clock.monotonic() - began < 25


def test_pauses_grow_while_nothing_arrives_and_begin_anew_with_what_does(bob: Bob, home: Home, path: Path) -> None:
    entropy, bell = NoPause(), Bell()
    ends = [broken(2)] * 4 + [broken(3)] * 3
    bob.link = each(*ends, lambda connection: connection.deliver(3))
    with closing(FileSource(path)) as source:
        Sending(
            home, ClientConfig(), bob, "bob", source, source.manifest(None, ""), Options(), clock=bob.clock,
            entropy=entropy, bell=bell,
        ).run()
    bell.close()
    assert entropy.pauses == [0.02, 0.04, 0.08, 0.16, 0.02, 0.04, 0.08]


def test_the_bell_ends_the_wait_between_two_tries(bob: Bob, home: Home, path: Path) -> None:
    bell = Bell()

    def link(connection: Connection) -> Delivered:
        bell.ring()
        return lost()

    bob.link = link
    with closing(FileSource(path)) as source:
        one = Sending(
            home, ClientConfig(), bob, "bob", source, source.manifest(None, ""), Options(), clock=bob.clock,
            entropy=NoPause(), bell=bell,
        )
        with pytest.raises(Interrupted) as caught:
            one.run()
    bell.close()
    assert (caught.value.detail, bob.connections) == ("signal", [0])


# --- pipes -----------------------------------------------------------------------------------------------------------


def test_a_pipe_goes_on_after_a_lost_link(bob: Bob, pipe: PipeSource, run: Run) -> None:
    """What the recipient had not taken over is kept."""
    bob.connecting = 3.0
    bob.link = each(broken(4), lost, lambda connection: connection.deliver(4))
    done = run(pipe)
    assert (done.bytes, done.digest) == (len(DATA), f"blake3:{blake3(DATA).digest().hex()}")
    assert bob.fresh == [True, False]


def test_a_pipe_of_which_the_recipient_has_lost_some_ends_with_31(bob: Bob, pipe: PipeSource, run: Run) -> None:
    def took(connection: Connection) -> Delivered:
        connection.send()
        connection.outgoing.taken(len(DATA))
        return lost()

    bob.link = each(took, lambda connection: connection.deliver(4))
    with pytest.raises(Interrupted) as caught:
        run(pipe)
    assert (caught.value.code, caught.value.detail, caught.value.hint) == (31, "pipe", "run the whole pipe again")


def test_a_pipe_that_had_arrived_is_delivered_though_the_receipt_was_lost(
    bob: Bob, pipe: PipeSource, run: Run
) -> None:
    """Also where the connection that took it does not come back: the next handshake is answered with the receipt."""
    bob.connecting = 3.0
    bob.link = each(broken(len(DATA)), lost)
    bob.answers = iter([bob.agree, lambda: bob.have(PIPED)])
    done = run(pipe)
    assert (done.bytes, done.digest) == (len(DATA), f"blake3:{blake3(DATA).digest().hex()}")
    assert done.receipt.exists()


@pytest.mark.parametrize("whole", [True, False])
def test_who_does_not_learn_whether_a_pipe_arrived_is_told_to_ask_first(
    whole: bool, bob: Bob, pipe: PipeSource, run: Run
) -> None:
    def link(connection: Connection) -> Delivered:
        connection.send()
        connection.outgoing.whole = connection.outgoing.whole if whole else None
        return lost()

    bob.link, bob.connecting = each(link, lost), 5.0
    with pytest.raises(Interrupted) as caught:
        run(pipe)
    asks = "ask bob whether it has arrived, before you run the whole pipe again"
    assert caught.value.hint == (asks if whole else "run the whole pipe again")


@pytest.mark.attack("D17")
@pytest.mark.parametrize("data", [DATA[:-1], b"another\n", b""])
def test_a_receipt_of_other_data_than_went_out_is_none(data: bytes, bob: Bob, pipe: PipeSource, run: Run) -> None:
    bob.connecting = 3.0
    bob.link = each(broken(len(DATA)), lost)
    bob.answers = iter([bob.agree, lambda: bob.have(PIPED, data)])
    with pytest.raises(IntegrityError) as caught:
        run(pipe)
    assert caught.value.detail == "receipt"


@pytest.mark.attack("D17")
def test_a_receipt_for_a_pipe_that_did_not_go_out_whole_is_none(bob: Bob, pipe: PipeSource, run: Run) -> None:
    """Nothing is known of its end: nothing can be held against the receipt."""

    def link(connection: Connection) -> Delivered:
        connection.begin()
        return lost()

    bob.link, bob.connecting = each(link, lost), 3.0
    bob.answers = iter([bob.agree, lambda: bob.have(PIPED)])
    with pytest.raises(IntegrityError, match="something else"):
        run(pipe)


# --- another command goes on -----------------------------------------------------------------------------------------


def killed(bob: Bob, run: Run, what: Path | AnySource, position: int = 4, **options: Any) -> None:
    """A command that ended when the recipient had ``position`` bytes."""
    bob.link, bob.connecting = broken(position), 30.0
    with pytest.raises(Interrupted):
        run(what, **options)
    bob.connecting = 0.1


def test_the_next_command_with_the_same_file_goes_on_with_the_same_delivery(bob: Bob, run: Run, path: Path) -> None:
    killed(bob, run, path)
    first, asked = bob.asked[0].tid, len(bob.asked)
    bob.link = lambda connection: connection.deliver(4)
    events: list[Event] = []
    assert run(path, events=events).bytes == len(DATA)
    assert (bob.asked[asked].tid, bob.asked[asked].fresh) == (first, False)
    assert [event.resumed_from for event in events if isinstance(event, Granted)] == [4]
    bob.link = lambda connection: connection.deliver()
    run(path)
    assert bob.asked[-1].tid != first, "that one is done: the same file again is another delivery"
    assert bob.asked[-1].fresh


@pytest.mark.parametrize("change", ["content", "time", "another name"])
def test_another_file_is_another_delivery(change: str, bob: Bob, run: Run, path: Path, tmp_path: Path) -> None:
    killed(bob, run, path)
    if change == "content":
        path.write_bytes(DATA + b"more")
    elif change == "time":
        os.utime(path, (1, 1))
    elif change == "another name":
        path = path.rename(tmp_path / "y")
    bob.link = lambda connection: connection.deliver()
    run(path)
    assert bob.asked[-1].tid != bob.asked[0].tid
    assert bob.asked[-1].fresh


def test_no_resume_starts_from_the_first_byte_under_another_id(bob: Bob, run: Run, path: Path) -> None:
    killed(bob, run, path)
    bob.link = lambda connection: connection.deliver()
    run(path, resume=False)
    assert bob.asked[-1].fresh
    assert bob.asked[-1].tid != bob.asked[0].tid


@pytest.mark.attack("P06")
def test_what_does_not_verify_after_a_resume_is_sent_anew_once(bob: Bob, run: Run, path: Path) -> None:
    """What the recipient had of it is not what was sent: its disk, or another version of the file."""

    def wrong(connection: Connection) -> Delivered:
        connection.send(4)
        raise IntegrityError("the totals do not fit", detail="truncated")

    killed(bob, run, path)
    asked, made = len(bob.asked), len(bob.connections)
    bob.link = lambda connection: (
        wrong(connection) if connection.number == made + 1 else connection.deliver()
    )
    assert run(path).bytes == len(DATA)
    assert bob.fresh[asked:] == [False, True]
    assert {wanted.tid for wanted in bob.asked} == {bob.asked[0].tid}


def test_what_does_not_verify_from_the_first_byte_on_is_an_end(bob: Bob, run: Run, path: Path) -> None:
    def wrong(connection: Connection) -> Delivered:
        connection.send()
        raise IntegrityError("the totals do not fit", detail="truncated")

    bob.link = wrong
    with pytest.raises(IntegrityError):
        run(path)
    assert len(bob.asked) == 1
    killed(bob, run, path)
    asked = len(bob.asked)

    def again(connection: Connection) -> Delivered:
        connection.send(0 if len(bob.asked) > asked + 1 else 4)
        raise IntegrityError("the totals do not fit", detail="truncated")

    bob.link = again
    with pytest.raises(IntegrityError):
        run(path)
    assert len(bob.asked) == asked + 2


def test_a_link_that_breaks_off_in_one_command_is_no_resume(bob: Bob, run: Run, path: Path) -> None:
    """What went wrong after it is nobody's old partial item."""

    def wrong(connection: Connection) -> Delivered:
        connection.send(4)
        raise IntegrityError("the totals do not fit", detail="truncated")

    bob.link = each(broken(4), wrong)
    with pytest.raises(IntegrityError):
        run(path)
    assert len(bob.asked) == 1


@pytest.mark.attack("D14")
def test_what_does_not_verify_after_another_handshake_of_one_command_is_sent_anew_once(
    bob: Bob, run: Run, path: Path
) -> None:
    """The recipient's disk has lost some of it meanwhile. Who does it again and again gets it twice, and no more."""

    def wrong(connection: Connection) -> Delivered:
        connection.send(4)
        raise IntegrityError("the totals do not fit", detail="truncated")

    bob.connecting = 3.0
    bob.link = each(broken(4), lost, wrong, lambda connection: connection.deliver())
    assert run(path).bytes == len(DATA)
    assert bob.fresh == [True, False, True]
    asked, made = len(bob.asked), len(bob.connections)
    links = [broken(4), lost, wrong]
    bob.link = lambda connection: links[(connection.number - made - 1) % 3](connection)
    with pytest.raises(IntegrityError):
        run(path)
    assert bob.fresh[asked:] == [True, False, True, False]


def test_a_delivery_that_was_done_is_answered_with_its_receipt(bob: Bob, run: Run, path: Path) -> None:
    """The command was killed before the receipt came; the file is read again and held against it."""
    killed(bob, run, path, len(DATA))
    manifest, made = FileSource(path).manifest(None, ""), len(bob.connections)
    bob.answers = iter([lambda: bob.have(manifest)])
    done = run(path)
    assert (done.bytes, done.digest) == (len(DATA), f"blake3:{blake3(DATA).digest().hex()}")
    assert done.receipt.exists()
    assert len(bob.connections) == made


def test_a_deadline_ends_the_reading_of_what_a_receipt_is_held_against(
    bob: Bob, run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(bob, run, path, len(DATA))
    read = FileSource.readinto

    def slowly(source: FileSource, into: memoryview) -> int:
        bob.clock.advance(10.0)
        return read(source, into)

    monkeypatch.setattr(FileSource, "readinto", slowly)
    manifest = FileSource(path).manifest(None, "")
    bob.answers = iter([lambda: bob.have(manifest)])
    with pytest.raises(TimedOut) as caught:
        run(path, timeout=10.0)
    assert caught.value.message == "the transfer to bob timed out while x was read"


@pytest.mark.attack("D17")
@pytest.mark.parametrize(
    "change", [{"xid": bytes(16)}, {"th": bytes(32)}, {"tid": bytes(16)}, {"size": 1}, {"digest": bytes(32)},
               {"sender_fingerprint": bytes(16)}, {"recipient_fingerprint": bytes(16)}, {"name_digest": bytes(32)}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_receipt_that_fits_no_handshake_of_this_delivery_is_none(
    change: dict[str, Any], bob: Bob, run: Run, path: Path
) -> None:
    """Signed by the true recipient all the same."""
    killed(bob, run, path, len(DATA))
    manifest = FileSource(path).manifest(None, "")
    bob.answers = iter([lambda: bob.have(manifest, **change)])
    with pytest.raises(IntegrityError) as caught:
        run(path, resume=True)
    assert caught.value.detail == "receipt"


@pytest.mark.attack("D17")
def test_a_receipt_for_a_file_that_now_holds_other_bytes_is_none(bob: Bob, run: Run, path: Path) -> None:
    """Same path, size and time."""
    killed(bob, run, path, len(DATA))
    status = path.stat()
    path.write_bytes(bytes(len(DATA)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    manifest = FileSource(path).manifest(None, "")
    bob.answers = iter([lambda: bob.have(manifest)])
    with pytest.raises(IntegrityError, match="something else"):
        run(path)


@pytest.mark.attack("D17")
def test_a_receipt_without_a_handshake_of_ours_is_none(bob: Bob, run: Run, path: Path) -> None:
    """A recipient that "has" what was never sent to it."""
    run(path)
    manifest = FileSource(path).manifest(None, "")
    bob.answers = iter([lambda: bob.have(manifest, tid=bob.asked[-1].tid)])
    with pytest.raises(IntegrityError, match="something else"):
        run(path)


@pytest.mark.attack("D17")
def test_a_receipt_that_comes_with_another_card_is_none(bob: Bob, pipe: PipeSource, run: Run) -> None:
    """As at DONE: what is kept has to be checked offline against the card in it."""

    def have() -> Have:
        true = bob.have(PIPED)
        receipt = decode(true.receipt, Receipt)
        card = msgspec.structs.replace(decode(receipt.card, Card), signature=b"none")
        return dataclasses.replace(true, receipt=encode(msgspec.structs.replace(receipt, card=encode(card))))

    bob.connecting = 3.0
    bob.link = each(broken(len(DATA)), lost)
    bob.answers = iter([bob.agree, have])
    with pytest.raises(IntegrityError, match="did not verify") as caught:
        run(pipe)
    assert caught.value.detail == "receipt"


# --- the same key never delivers twice -------------------------------------------------------------------------------


def test_a_key_delivers_once_and_then_answers_with_the_first_receipt(
    bob: Bob, run: Run, path: Path, pipe: PipeSource
) -> None:
    """Whatever is sent under it."""
    first = run(path, key="order 7")
    assert len(bob.asked) == 1
    for what in (path, pipe):
        again = run(what, key="order 7")
        assert (again.transfer, again.bytes, again.digest, again.receipt) == (
            first.transfer, first.bytes, first.digest, first.receipt
        )
    assert len(bob.asked) == 1, "nobody was asked"
    assert run(path, key="order 8").transfer != first.transfer


def test_a_key_names_the_same_delivery_in_every_command(bob: Bob, run: Run, path: Path, pipe: PipeSource) -> None:
    killed(bob, run, path, key="order 7")
    asked = len(bob.asked)
    bob.link = lambda connection: connection.deliver(4)
    run(path, key="order 7")
    assert {wanted.tid for wanted in bob.asked} == {bob.asked[0].tid}
    assert not bob.asked[asked].fresh


def test_a_pipe_under_a_key_is_sent_from_its_first_byte_and_believes_the_receipt_of_the_key(
    bob: Bob, run: Run, pipe: PipeSource
) -> None:
    """What an earlier command piped in is gone; that it arrived is what the key is for."""
    killed(bob, run, pipe, len(DATA), key="order 7")
    asked = len(bob.asked)
    bob.answers = iter([lambda: bob.have(PIPED)])
    with os.fdopen(os.open("/dev/null", os.O_RDONLY), "rb") as nothing:
        assert run(PipeSource(nothing), key="order 7").bytes == len(DATA)
    assert bob.asked[asked].fresh
    assert bob.asked[asked].tid == bob.asked[0].tid


def test_two_commands_with_one_key_do_not_send_at_once(bob: Bob, run: Run, path: Path) -> None:
    """The second waits for the first, and then has its receipt."""

    def link(connection: Connection) -> Delivered:
        with pytest.raises(TimedOut, match="another command is sending with the key 'order 7'"):
            run(path, key="order 7", timeout=0.0)
        return connection.deliver()

    bob.link = link
    run(path, key="order 7")
    assert len(bob.asked) == 1


def test_two_commands_with_one_file_each_deliver_it(bob: Bob, run: Run, path: Path) -> None:
    inner: list[Delivery] = []

    def link(connection: Connection) -> Delivered:
        bob.link = lambda other: other.deliver()
        inner.append(run(path))
        return connection.deliver()

    bob.link = link
    outer = run(path)
    assert inner[0].transfer != outer.transfer
    assert len({wanted.tid for wanted in bob.asked}) == 2


def test_a_damaged_receipt_of_a_key_says_so_and_sends_nothing(bob: Bob, run: Run, path: Path) -> None:
    done = run(path, key="order 7")
    done.receipt.write_bytes(b"junk")
    with pytest.raises(LocalIOError) as caught:
        run(path, key="order 7")
    assert caught.value.detail == "damaged"
    assert len(bob.asked) == 1


# --- a file that has begun to go out under another key ----------------------------------------------------------------


KEYS = [(None, "order 8"), ("order 7", None), ("order 7", "order 8")]


@pytest.mark.parametrize(("first", "then"), KEYS)
def test_a_file_goes_on_under_another_key_or_none_and_both_commands_deliver_it_once(
    first: str | None, then: str | None, bob: Bob, run: Run, path: Path
) -> None:
    """The second takes over what the first has begun; the first, repeated, delivers what it was asked to."""
    killed(bob, run, path, key=first)
    tid, asked = bob.asked[0].tid, len(bob.asked)
    bob.link = lambda connection: connection.deliver(4)
    taken = run(path, key=then)
    assert (bob.asked[asked].tid, bob.asked[asked].fresh) == (tid, False)
    bob.link = lambda connection: connection.deliver()
    own = run(path, key=first)
    assert bob.asked[-1].tid != tid
    assert bob.asked[-1].fresh
    asked = len(bob.asked)
    for key, done in ((first, own), (then, taken)):
        if key is not None:
            assert run(path, key=key).transfer == done.transfer, "the first receipt of each key"
    assert len(bob.asked) == asked


def test_what_several_commands_begin_in_turn_is_one_delivery_for_whoever_ends_it(
    bob: Bob, run: Run, path: Path
) -> None:
    for key in ("order 7", "order 8", None, "order 7", None, "order 8"):
        killed(bob, run, path, key=key)
    bob.link = lambda connection: connection.deliver(4)
    run(path, key="order 7")
    assert {wanted.tid for wanted in bob.asked} == {bob.asked[0].tid}
    asked = len(bob.asked)
    bob.link = lambda connection: connection.deliver()
    run(path, key="order 8")
    run(path)
    assert len({wanted.tid for wanted in bob.asked}) == 3
    assert all(bob.fresh[asked:])


@pytest.mark.attack("P03")
@pytest.mark.parametrize(("first", "then"), KEYS)
def test_what_had_arrived_under_another_key_is_the_delivery_of_whom_it_is_told(
    first: str | None, then: str | None, bob: Bob, run: Run, path: Path
) -> None:
    """The first command was killed before the receipt came: as many items as commands that ended with 0."""
    killed(bob, run, path, len(DATA), key=first)
    made = len(bob.connections)
    bob.answers = iter([lambda: bob.have(FileSource(path).manifest(None, ""))])
    run(path, key=then)
    assert len(bob.connections) == made
    bob.link = lambda connection: connection.deliver()
    run(path, key=first)
    assert bob.asked[-1].tid != bob.asked[0].tid


@pytest.mark.parametrize("first", ["order 7", None])
def test_what_another_command_sends_now_is_not_taken_over(first: str | None, bob: Bob, run: Run, path: Path) -> None:
    killed(bob, run, path, key=first)
    asked = len(bob.asked)

    def link(connection: Connection) -> Delivered:
        bob.link = lambda other: other.deliver()
        run(path, key="order 8")
        return connection.deliver(4)

    bob.link = link
    run(path, key=first)
    mine, other = bob.asked[asked:]
    assert (mine.tid, mine.fresh) == (bob.asked[0].tid, False)
    assert (other.tid != mine.tid, other.fresh) == (True, True)


@pytest.mark.parametrize("then", ["order 8", None])
def test_no_resume_leaves_what_another_key_has_begun(then: str | None, bob: Bob, run: Run, path: Path) -> None:
    killed(bob, run, path, key="order 7")
    bob.link = lambda connection: connection.deliver()
    run(path, key=then, resume=False)
    assert bob.asked[-1].tid != bob.asked[0].tid
    bob.link = lambda connection: connection.deliver(4)
    run(path, key="order 7")
    assert (bob.asked[-1].tid, bob.asked[-1].fresh) == (bob.asked[0].tid, False)


def test_a_key_that_has_begun_is_answered_with_its_own_receipt_only(bob: Bob, run: Run, path: Path) -> None:
    """It keeps its delivery when its file has changed, and another command sends the new one."""
    killed(bob, run, path, key="order 7")
    path.write_bytes(DATA * 2)
    bob.link = lambda connection: connection.deliver()
    run(path)
    assert bob.asked[-1].tid != bob.asked[0].tid
    run(path, key="order 7")
    assert bob.asked[-1].tid == bob.asked[0].tid


# --- a recipient that comes ------------------------------------------------------------------------------------------


def test_a_sender_that_is_to_listen_waits_for_its_ports(
    bob: Bob, home: Home, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every transfer of this home does; each handshake of one command then has the same ones."""
    bell, (first, last) = Bell(), two_ports()
    with socket.create_server(("127.0.0.1", last)) as other, closing(FileSource(path)) as source:
        listen = ClientTransferSection(listen=f"tcp://127.0.0.1:{first}-{last}", advertise=("192.0.2.7",))
        config = ClientConfig(transfer=listen)
        one = Sending(
            home, config, bob, "bob", source, source.manifest(None, ""), Options(), clock=bob.clock,
            entropy=NoPause(1), bell=bell,
        )
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            other.close()

        monkeypatch.setattr(one, "_sleep", pause)
        where = one._listen("tcp://127.0.0.1:1")
        assert len(pauses) == 1
        assert one._listen("tcp://127.0.0.1:1") == where
        assert where == Endpoints(["192.0.2.7"], first, last, 0, "", b"")
        one._close_doors()
    bell.close()


def test_ports_that_do_not_become_free_end_the_command(bob: Bob, home: Home, path: Path) -> None:
    bell, (first, last) = Bell(), two_ports()
    with socket.create_server(("127.0.0.1", last)), closing(FileSource(path)) as source:
        config = ClientConfig(transfer=ClientTransferSection(listen=f"tcp://127.0.0.1:{first}-{last}"))
        one = Sending(
            home, config, bob, "bob", source, source.manifest(None, ""), Options(timeout=0.0), clock=bob.clock,
            entropy=NoPause(1), bell=bell,
        )
        with pytest.raises(LocalIOError) as full:
            one._listen("tcp://127.0.0.1:1")
        assert full.value.detail == "no-port"
        one._close_doors()
    bell.close()
