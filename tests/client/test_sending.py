"""One delivery over several tries: what a lost link means for it, and when it ends."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from blake3 import blake3

from tests.support.env import FixedClock, SeededEntropy
from tests.support.parties import identity_of, world
from tests.support.talks import terms
from zkc.client import sending
from zkc.client.events import Delivery, Options, WouldAccept
from zkc.client.grants import Grant, Have, Wanted
from zkc.client.sending import Sending
from zkc.client.sources import AnySource, FileSource, PipeSource
from zkc.config import ClientConfig
from zkc.crypto.receipts import make_receipt
from zkc.errors import IntegrityError, Interrupted, RecipientOffline
from zkc.net.local_frames import NoAnswer
from zkc.net.pipe import Bell, LinkLost
from zkc.protocol.delivery_recipient import receipt_body
from zkc.protocol.session import Session
from zkc.rules.refusals import refused_by
from zkc.stores.home import Home
from zkc.wire.codec import decode, encode
from zkc.wire.messages import Card, Manifest, Receipt

DATA = b"precious\n"
DIGEST = blake3(DATA).digest()
PIPED = Manifest("stream", "stdin", "", None, 0o600, 0)
NOT_YET = WouldAccept("online")


class NoPause(SeededEntropy):
    def jitter(self, low: float, high: float) -> float:
        return 0.0


class Bob:
    """The coordinator and the recipient, as a script: ``answers`` to dry runs; every other request gets a session."""

    def __init__(self) -> None:
        self.clock = FixedClock()
        self.answers: Iterator[Any] = itertools.repeat(NOT_YET)
        self.asked: list[bool] = []
        self.sessions: list[tuple[Session, Session]] = []
        """The sender's and the recipient's, of each try."""
        self.manifests: list[Manifest] = []
        self.seconds = 10.0
        """What a handshake takes."""

    def grant(self, wanted: Wanted, within: float | None) -> Grant:
        self.asked.append(wanted.dry_run)
        self.clock.advance(self.seconds)
        if wanted.dry_run:
            answer = next(self.answers)
            if isinstance(answer, Exception):
                raise answer
            return cast("Grant", answer() if callable(answer) else answer)
        return self.agree()

    def agree(self) -> Grant:
        talk = world("x25519").transfer(terms("bob", serial=100 + len(self.sessions)))
        talk.run()
        self.sessions.append(talk.sessions)
        return self.sessions[-1][0]

    def have(self, data: bytes = DATA) -> Have:
        """He has it: the receipt of the last try."""
        body = receipt_body(self.sessions[-1][1], self.manifests[-1], len(data), blake3(data).digest(), 1.0, 2.0)
        bob = world("x25519").bob
        keys, receipt = bob.card.identity, make_receipt(identity_of("bob"), body, bob.card.encoded)
        return Have(bob.fingerprint, keys.ed25519, keys.ml_dsa, receipt)


@pytest.fixture
def bob() -> Bob:
    return Bob()


@pytest.fixture
def pipe() -> Iterator[PipeSource]:
    ours, theirs = os.pipe()
    os.write(theirs, DATA)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        yield PipeSource(stream)


def _raise(error: Exception) -> Grant:
    raise error


Run = Callable[..., Delivery]


@pytest.fixture
def run(bob: Bob, home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Sends ``source``; ``lose(number, on_progress)`` says how far each try comes and raises `LinkLost`."""
    bell = Bell()

    def do(
        source: AnySource, lose: Callable[[int, Callable[[int], None]], None], manifest: Manifest = PIPED
    ) -> Delivery:
        def send(session: Session, told: Manifest, source: AnySource, *_: Any, on_progress: Any, **more: Any) -> Any:
            bob.manifests.append(told)
            more["on_connected"]("tcp://127.0.0.1:1")
            more["on_flowing"]()
            while source.read(100):
                pass
            lose(len(bob.sessions), on_progress)
            raise AssertionError("every try is lost")

        monkeypatch.setattr(sending, "send", send)
        one = Sending(
            home, ClientConfig(), bob, "bob", source, manifest, Options(), clock=bob.clock, entropy=NoPause(),
            bell=bell,
        )
        done = one.run()
        assert isinstance(done, Delivery)
        return done

    yield do
    bell.close()


def whole(number: int, on_progress: Callable[[int], None]) -> None:
    """Every byte went out, and the receipt did not come."""
    raise LinkLost("the link broke off", detail="link", finished=(len(DATA), DIGEST))


def ends(number: int, on_progress: Callable[[int], None]) -> None:
    """The recipient's daemon is ended, with a word of farewell."""
    on_progress(5)
    raise refused_by("bob", 31, "shutdown")


def half(number: int, on_progress: Callable[[int], None]) -> None:
    on_progress(5)
    raise LinkLost("the link broke off", detail="link")


def test_a_pipe_that_had_arrived_is_delivered_though_the_receipt_was_lost(
    bob: Bob, pipe: PipeSource, run: Run
) -> None:
    bob.answers = iter([bob.have])
    done = run(pipe, whole)
    assert (done.bytes, done.digest) == (len(DATA), f"blake3:{DIGEST.hex()}")
    assert done.receipt.exists()
    assert bob.asked == [False, True], "what cannot be sent again is only asked for"


def test_a_recipient_that_is_still_writing_it_down_is_asked_again(bob: Bob, pipe: PipeSource, run: Run) -> None:
    bob.answers = iter([NOT_YET, RecipientOffline("gone", detail="offline"), NOT_YET, bob.have])
    assert run(pipe, whole).bytes == len(DATA)
    assert bob.asked == [False, True, True, True, True]


def test_a_pipe_that_did_not_arrive_ends_with_31_after_the_patience(bob: Bob, pipe: PipeSource, run: Run) -> None:
    with pytest.raises(Interrupted) as caught:
        run(pipe, whole)
    assert (caught.value.code, caught.value.detail, caught.value.hint) == (31, "pipe", "run the whole pipe again")
    assert bob.asked == [False] + 6 * [True]


def test_who_does_not_learn_whether_it_arrived_is_told_to_ask_first(bob: Bob, pipe: PipeSource, run: Run) -> None:
    bob.answers = itertools.repeat(RecipientOffline("gone", detail="offline"))
    with pytest.raises(Interrupted) as caught:
        run(pipe, whole)
    assert (caught.value.detail, caught.value.hint) == (
        "offline", "ask bob whether it has arrived, before you run the whole pipe again"
    )


def test_a_pipe_that_broke_off_in_the_middle_ends_with_31_at_once(bob: Bob, pipe: PipeSource, run: Run) -> None:
    with pytest.raises(Interrupted) as caught:
        run(pipe, half)
    assert (caught.value.code, caught.value.detail, bob.asked) == (31, "pipe", [False])


@pytest.mark.parametrize("data", [DATA[:-1], b"another\n", b""])
def test_a_receipt_of_other_data_than_went_out_is_none(data: bytes, bob: Bob, pipe: PipeSource, run: Run) -> None:
    bob.answers = iter([lambda: bob.have(data)])
    with pytest.raises(IntegrityError) as caught:
        run(pipe, whole)
    assert caught.value.detail == "receipt"


def test_a_receipt_that_comes_with_another_card_is_none(bob: Bob, pipe: PipeSource, run: Run) -> None:
    """As at DONE: what is kept has to be checked offline against the card in it."""

    def have() -> Have:
        true = bob.have()
        receipt = decode(true.receipt, Receipt)
        card = msgspec.structs.replace(decode(receipt.card, Card), signature=b"none")
        return replace(true, receipt=encode(msgspec.structs.replace(receipt, card=encode(card))))

    bob.answers = iter([have])
    with pytest.raises(IntegrityError, match="another card") as caught:
        run(pipe, whole)
    assert caught.value.detail == "receipt"


def test_a_receipt_of_a_try_that_did_not_send_everything_is_none(bob: Bob, run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    source = FileSource(tmp_path / "x")
    real, bob.agree = bob.agree, lambda: real() if not bob.sessions else bob.have()  # type: ignore[method-assign]
    with pytest.raises(IntegrityError, match="something else"):
        run(source, half, source.manifest(None, ""))
    source.close()


def test_a_file_that_had_arrived_is_judged_by_what_went_out_and_not_read_again(
    bob: Bob, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(DATA)
    source = FileSource(tmp_path / "x")
    real, bob.agree = bob.agree, lambda: real() if not bob.sessions else bob.have()  # type: ignore[method-assign]

    def lose(number: int, on_progress: Callable[[int], None]) -> None:
        (tmp_path / "x").write_bytes(b"changed since")
        whole(number, on_progress)

    assert run(source, lose, source.manifest(None, "")).digest == f"blake3:{DIGEST.hex()}"
    source.close()


@pytest.mark.parametrize(("step", "tries"), [(0, 6), (1, 30)])
def test_what_breaks_off_at_the_same_place_again_and_again_ends(
    step: int, tries: int, bob: Bob, run: Run, tmp_path: Path
) -> None:
    """Patience is 60 s and each try takes 12; it begins anew only where a try came farther than all before."""
    (tmp_path / "x").write_bytes(DATA)
    source = FileSource(tmp_path / "x")
    bob.seconds = 12.0

    def lose(number: int, on_progress: Callable[[int], None]) -> None:
        for position in (10, 50, 90 + step * min(number, tries - 5)):
            on_progress(position)
        raise LinkLost("the link broke off", detail="link")

    with pytest.raises(Interrupted) as caught:
        run(source, lose, source.manifest(None, ""))
    assert (caught.value.detail, len(bob.sessions)) == ("link", tries)
    source.close()


def test_a_recipient_whose_daemon_was_ended_is_waited_for_like_one_that_was_killed(
    bob: Bob, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(DATA)
    source = FileSource(tmp_path / "x")
    real = bob.agree
    later = iter([real, RecipientOffline("gone", detail="offline"), refused_by("bob", 31, "unknown-transfer")])

    def agree() -> Grant:
        now = next(later, bob.have)
        if isinstance(now, Exception):
            raise now
        return now()

    bob.agree = agree  # type: ignore[method-assign]
    with pytest.raises(IntegrityError, match="something else"):
        # He comes back, and says that he has it all: what nobody believes of a try that did not send everything.
        run(source, ends, source.manifest(None, ""))
    assert len(bob.asked) == 4
    source.close()


def test_an_own_daemon_that_does_not_answer_is_waited_for_like_a_recipient_that_is_offline(
    bob: Bob, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(DATA)
    source = FileSource(tmp_path / "x")
    real = bob.agree
    silent: Any = NoAnswer("no answer", detail="no-answer")
    bob.agree = lambda: real() if not bob.sessions else _raise(silent)  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as caught:
        run(source, ends, source.manifest(None, ""))
    assert (caught.value.code, caught.value.detail, len(bob.asked)) == (31, "no-answer", 7)
    with pytest.raises(NoAnswer):
        run(source, ends, source.manifest(None, ""))
    source.close()


def test_a_recipient_that_ends_and_stays_away_is_31_after_the_patience(bob: Bob, run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    source = FileSource(tmp_path / "x")
    with pytest.raises(Interrupted) as caught:
        run(source, ends, source.manifest(None, ""))
    assert (caught.value.detail, caught.value.hint) == ("shutdown", "run the same command again")
    assert len(bob.sessions) == 7, "one try, and more for 60 seconds of 10 each"
    source.close()


def test_what_a_link_says_to_do_outlives_the_patience(bob: Bob, run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    source = FileSource(tmp_path / "x")

    def lose(*_: object) -> None:
        raise LinkLost("cannot reach bob", detail="link", hint="look at the firewall")

    with pytest.raises(Interrupted) as caught:
        run(source, lose, source.manifest(None, ""))
    assert (caught.value.message, caught.value.hint) == ("cannot reach bob", "look at the firewall")
    source.close()


def test_a_pipe_whose_recipient_ends_says_so(bob: Bob, pipe: PipeSource, run: Run) -> None:
    with pytest.raises(Interrupted) as caught:
        run(pipe, ends)
    assert (caught.value.code, caught.value.detail, bob.asked) == (31, "pipe", [False])
    assert "the daemon of bob ended; piped data" in caught.value.message
