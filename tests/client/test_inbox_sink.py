"""One delivery's way into the inbox: what it goes on with, and what of it stays when it ends early."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest
from blake3 import blake3
from msgspec.structs import replace

from tests.support.env import FixedClock
from tests.support.parties import world
from tests.support.talks import terms
from zkc.client.consent import Consent
from zkc.client.inbox_sink import InboxSink, deliver
from zkc.config import ClientConfig
from zkc.constants import SMALL_MAX
from zkc.errors import IntegrityError, Interrupted, LocalIOError, PolicyRefused, ZkcError
from zkc.net.descriptors import DescriptorsTaken
from zkc.net.pipe.bell import Bell, LinkLost
from zkc.protocol.session import make_preview
from zkc.rules.patterns import Patterns
from zkc.rules.policy import Rule
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.items import Item
from zkc.wire.codec import decode
from zkc.wire.messages import Manifest, Preview

WHAT = Manifest("file", "report.pdf", "a note", 9, 0o644, 0)
LARGE = SMALL_MAX + 1
"""Bytes of what is a partial item from its beginning on."""
PIPE = Manifest("stream", "stdin", "", None, 0o644, 0)


@pytest.fixture
def inbox(home: Home) -> Iterator[Inbox]:
    with Inbox.open(home) as opened:
        yield opened


@pytest.fixture
def bell() -> Iterator[Bell]:
    made = Bell()
    yield made
    made.close()


class Bob:
    """The sink of each handshake of one delivery from alice."""

    def __init__(self, inbox: Inbox, bell: Bell) -> None:
        self.inbox, self.bell = inbox, bell
        self.everyone = world("x25519")
        self._serials = iter(range(1, 100))

    def sink(
        self, *, fresh: bool = False, tid: bytes = b"t" * 16, consent: Consent | None = None,
        policy: tuple[Rule, ...] = (),
    ) -> InboxSink:
        serial = next(self._serials)
        talk = self.everyone.transfer(dataclasses.replace(terms("bob", serial=serial), tid=tid, fresh=fresh))
        talk.run()
        session = talk.sessions[1]
        return InboxSink(
            self.inbox, session, self.everyone.bob.recipient(), ClientConfig(policy=policy), FixedClock(),
            self.bell, consent or Consent(),
        )

    def partials(self) -> list[Item]:
        return self.inbox.partials()


@pytest.fixture
def bob(inbox: Inbox, bell: Bell) -> Bob:
    return Bob(inbox, bell)


class Ending:
    """In place of an `Incoming`: writes ``data``, and ends with an error."""

    def __init__(self, data: bytes, error: BaseException, what: Manifest | None) -> None:
        self._data, self._error, self._what = data, error, what

    def receive(self, session: Any, sink: InboxSink, bell: Bell, patience: float) -> None:
        sink.resume()
        if self._what is not None:
            sink.announced(self._what)
            sink.write(self._data)
        raise self._error


def end(bob: Bob, data: bytes, error: BaseException, what: Manifest | None = WHAT, **choices: Any) -> None:
    sink = bob.sink(**choices)
    with pytest.raises(type(error)):
        deliver(Ending(data, error, what), sink._session, sink, bob.bell, 1.0)  # type: ignore[arg-type]


LOST = LinkLost("lost", detail="link")


def test_a_later_handshake_goes_on_with_what_an_earlier_one_left(bob: Bob) -> None:
    """The digest is that of the whole, the bytes of before read again from the disk."""
    end(bob, b"prec", LOST)
    sink = bob.sink()
    position, digest = sink.resume()
    assert position == 4
    sink.announced(replace(WHAT, note="another note"))
    assert digest.digest() == blake3(b"prec").digest()
    assert [item.note for item in bob.partials()] == ["another note"]
    sink.write(b"ious\n")
    sink.complete(9, blake3(b"precious\n").digest())
    (item,) = bob.inbox.items()
    assert item.path.read_bytes() == b"precious\n"
    assert (sink.item_id, sink.size, bob.partials()) == (item.id, 9, [])


def test_what_is_small_is_no_partial_item_unless_it_is_cut_off(bob: Bob) -> None:
    sinks = [bob.sink(), bob.sink()]
    for sink in sinks:
        sink.resume()
        sink.announced(WHAT)
        sink.write(b"prec")
        assert bob.partials() == []
    for sink in sinks:
        sink.write(b"ious\n")
        sink.complete(9, blake3(b"precious\n").digest())
        sink.abandon(keep=True)
    (item,) = bob.inbox.items()
    assert (item.path.read_bytes(), bob.partials()) == (b"precious\n", [])
    assert [sink.item_id for sink in sinks] == [item.id, item.id]


def test_what_is_small_and_done_is_no_partial_item_when_its_commit_failed_too_late(
    bob: Bob, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Inbox.put

    def failing(*of: Any) -> None:
        put(*of)
        raise LocalIOError("a bad disk", detail="io")

    sink = bob.sink()
    sink.resume()
    sink.announced(WHAT)
    sink.write(b"precious\n")
    monkeypatch.setattr(Inbox, "put", failing)
    with pytest.raises(LocalIOError):
        sink.complete(9, blake3(b"precious\n").digest())
    sink.abandon(keep=True)
    assert (len(bob.inbox.items()), bob.partials()) == (1, [])


def test_a_handshake_that_begins_afresh_has_nothing_of_before(bob: Bob) -> None:
    end(bob, b"prec", LOST)
    sink = bob.sink(fresh=True)
    position, digest = sink.resume()
    assert (position, digest.digest()) == (0, blake3().digest())
    sink.announced(replace(WHAT, size=LARGE))
    assert [item.size for item in bob.partials()] == [0]
    sink.abandon(keep=False)


def test_another_delivery_has_nothing_of_this_one(bob: Bob) -> None:
    end(bob, b"prec", LOST)
    assert bob.sink(tid=b"u" * 16).resume()[0] == 0


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (LOST, True), (Interrupted("ends", detail="shutdown"), True), (LocalIOError("full", detail="no-space"), True),
        (LocalIOError("a bad disk", detail="io"), True), (DescriptorsTaken("none", detail="descriptors"), True),
        (LocalIOError("changed", detail="source-changed"), False), (IntegrityError("bad", detail="truncated"), False),
        (PolicyRefused("no", detail="limit"), False), (RuntimeError("a defect"), False),
    ],
    ids=lambda value: getattr(value, "detail", None) or repr(value),
)  # fmt: skip
def test_what_was_cut_off_stays_and_what_was_refused_does_not(bob: Bob, error: BaseException, kept: bool) -> None:
    """Also what an earlier handshake had written of it."""
    end(bob, b"pre", LOST)
    end(bob, b"c", error)
    assert [item.size for item in bob.partials()] == ([4] if kept else [])
    assert bob.inbox.items() == []


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (LOST, False), (DescriptorsTaken("none", detail="descriptors"), True),
        (LocalIOError("full", detail="no-space"), False),
    ],
    ids=lambda value: getattr(value, "detail", None) or repr(value),
)  # fmt: skip
def test_of_a_pipe_stays_what_its_sender_was_not_told_the_end_of(bob: Bob, error: ZkcError, kept: bool) -> None:
    """What it was told ends it, and then nobody has the rest."""
    end(bob, b"prec", error, what=PIPE)
    assert [item.size for item in bob.partials()] == ([4] if kept else [])


def test_of_what_stood_here_before_nothing_is_lost_by_what_ends_its_sender_at_once(bob: Bob) -> None:
    """Before it has said what it sends."""
    end(bob, b"prec", LOST)
    sink = bob.sink()
    sink.resume()
    sink.abandon(keep=sink.can_go_on(LocalIOError("the source cannot be read", detail="io")))
    assert [item.size for item in bob.partials()] == [4]


@pytest.mark.attack("D16")
@pytest.mark.parametrize("error", [LOST, Interrupted("given up", detail="signal")], ids=lambda error: error.detail)
def test_what_came_of_a_pipe_goes_with_the_command_that_read_it(bob: Bob, error: Interrupted) -> None:
    """Nobody else has the rest. The command has not ended where this end broke off, or it has not come yet."""
    pipe = Manifest("stream", "stdin", "", None, 0o600, 0)
    bob.bell.ring()
    end(bob, b"half", Interrupted("ends", detail="shutdown"), pipe)
    bob.bell.hush()
    end(bob, b"", error, None)
    assert [item.size for item in bob.partials()] == [4]
    end(bob, b" more", error, pipe)
    assert bob.partials() == []


class Full:
    """In place of an `Incoming`: the disk takes ``data``, and then nothing more."""

    def __init__(self, data: bytes, manifest: Manifest) -> None:
        self._data, self._manifest = data, manifest

    def receive(self, session: Any, sink: InboxSink, bell: Bell, patience: float) -> None:
        sink.resume()
        sink.announced(self._manifest)
        sink.write(self._data)
        assert sink._partial is not None
        sink._partial.write = self._nothing_more  # type: ignore[method-assign]
        sink.write(b"more")

    def _nothing_more(self, data: bytes | bytearray | memoryview) -> None:
        raise LocalIOError("full", detail="no-space")


@pytest.mark.attack("D16")
@pytest.mark.parametrize("size", [LARGE, None])
def test_what_found_no_room_stays_where_a_later_command_can_go_on_with_it(bob: Bob, size: int | None) -> None:
    """With a file it can; of a pipe nobody has the rest, and what is here would only take room."""
    sink = bob.sink()
    with pytest.raises(LocalIOError):
        deliver(Full(b"prec", replace(WHAT, size=size)), sink._session, sink, bob.bell, 1.0)  # type: ignore[arg-type]
    assert [item.size for item in bob.partials()] == ([4] if size else [])


@pytest.mark.attack("D16")
@pytest.mark.parametrize("size", [9, None])
def test_what_is_here_stays_where_the_rest_finds_no_room_at_once(
    bob: Bob, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    end(bob, b"prec", LOST)
    monkeypatch.setattr(Inbox, "free_bytes", lambda _: 0)
    sink = bob.sink()
    with pytest.raises(LocalIOError):
        deliver(Full(b"ious", replace(WHAT, size=size)), sink._session, sink, bob.bell, 1.0)  # type: ignore[arg-type]
    assert [item.size for item in bob.partials()] == ([4] if size else [])


class Whole:
    """In place of an `Incoming`: all of it comes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def receive(self, session: Any, sink: InboxSink, bell: Bell, patience: float) -> None:
        position, digest = sink.resume()
        sink.announced(WHAT)
        sink.write(self._data[position:])
        digest.update(self._data[position:])
        sink.complete(len(self._data), digest.digest())


@pytest.mark.attack("D16")
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("nth", [1, 2], ids=["of the file", "of the folder"])
def test_what_could_not_be_synced_stays_and_is_delivered_later(
    bob: Bob, monkeypatch: pytest.MonkeyPatch, number: int, nth: int
) -> None:
    def once() -> None:
        sink = bob.sink()
        deliver(Whole(b"precious\n"), sink._session, sink, bob.bell, 1.0)  # type: ignore[arg-type]

    real, calls = os.fsync, iter(range(1, 100))

    def fail(descriptor: int) -> None:
        if next(calls) == nth:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LocalIOError):
        once()
    monkeypatch.undo()
    assert [item.size for item in bob.partials()] == [9]
    assert bob.inbox.items() == []
    once()
    assert bob.partials() == []
    assert [item.path.read_bytes() for item in bob.inbox.items()] == [b"precious\n"]


@pytest.mark.attack("D16")
def test_what_cannot_be_read_again_goes_so_that_its_sender_can_begin_anew(
    bob: Bob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    end(bob, b"prec", LOST)
    monkeypatch.setattr(os, "pread", bad)
    end(bob, b"ious", LocalIOError("not reached"))
    monkeypatch.undo()
    assert bob.partials() == []


def test_reading_again_ends_with_the_bell(bob: Bob) -> None:
    end(bob, b"prec", LOST)
    sink = bob.sink()
    sink.resume()
    bob.bell.ring()
    with pytest.raises(Interrupted) as caught:
        sink.announced(WHAT)
    assert caught.value.detail == "shutdown"
    sink.abandon(keep=True)
    assert [item.size for item in bob.partials()] == [4]


def test_one_that_another_handshake_writes_is_busy(bob: Bob) -> None:
    first = bob.sink()
    first.resume()
    first.announced(replace(WHAT, size=LARGE))
    with pytest.raises(ZkcError) as caught:
        bob.sink().resume()
    assert caught.value.detail == "busy"
    first.abandon(keep=False)


def test_only_what_is_missing_must_have_room(bob: Bob, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of which most is here needs no more than the rest."""
    free = ClientConfig().receiving_rules().min_free
    end(bob, b"precious", LOST)
    monkeypatch.setattr(Inbox, "free_bytes", lambda _: free + 5)
    sink = bob.sink()
    sink.resume()
    sink.announced(WHAT)
    sink.abandon(keep=True)
    other = bob.sink(tid=b"u" * 16)
    other.resume()
    with pytest.raises(LocalIOError) as caught:
        other.announced(WHAT)
    assert caught.value.detail == "no-space"


@pytest.mark.attack("F06")
@pytest.mark.parametrize("changes", [{"name": "other.bin"}, {"note": "other"}, {"size": 6}, {"size": None}])
def test_what_is_not_what_the_person_was_shown_is_refused_before_its_first_byte(
    bob: Bob, changes: dict[str, object]
) -> None:
    manifest = Manifest("file", "data.bin", "a note", LARGE, 0o644, 0)
    shown = decode(make_preview(manifest.name, manifest.note, manifest.size), Preview)
    bob.sink(consent=Consent(True, shown), tid=b"a" * 16).announced(manifest)
    with pytest.raises(PolicyRefused) as refused:
        bob.sink(consent=Consent(True, shown), tid=b"b" * 16).announced(replace(manifest, **changes))
    assert refused.value.detail == "not-as-shown"
    assert [item.tid for item in bob.partials()] == [b"a" * 16]


def test_own_policy_judges_again_by_the_name_that_the_manifest_says_before_its_first_byte(bob: Bob) -> None:
    images = Rule("images", names=Patterns(["*.iso"]))
    manifest = Manifest("file", "Data.ISO", "", LARGE, 0o644, 0)
    other = replace(manifest, name="data.exe")
    bob.sink(policy=(images, Rule("rest", "refuse"))).announced(manifest)
    for rest, consent, expected in (
        (Rule("rest", "refuse"), Consent(True), (25, "rule")),
        (Rule("rest", require="authorised"), Consent(True), (23, "rule")),
        (Rule("rest", "ask"), Consent(), (24, "nobody-asked")),
    ):
        with pytest.raises(ZkcError) as refused:
            bob.sink(policy=(images, rest), consent=consent, tid=b"b" * 16).announced(other)
        assert (refused.value.code, refused.value.detail) == expected
    bob.sink(policy=(images, Rule("rest", "ask")), consent=Consent(True), tid=b"c" * 16).announced(other)
    assert sorted(item.tid for item in bob.partials()) == [b"c" * 16, b"t" * 16]


@pytest.mark.attack("F06")
def test_what_was_let_in_as_one_thing_does_not_go_on_as_another_that_a_person_is_asked_about(bob: Bob) -> None:
    policy = Rule("texts", names=Patterns(["*.txt"])), Rule("rest", "ask")
    end(bob, b"prec", LOST, replace(WHAT, name="a.txt"), policy=policy)
    held = Consent(True)  # what `Asking.consent` says of a delivery of which a part is here
    same = bob.sink(policy=policy, consent=held)
    same.resume()
    same.announced(replace(WHAT, name="a.txt"))
    same.abandon(keep=True)
    for changes, rules in (
        ({"name": "a.exe"}, policy), ({"name": "a.txt", "size": 1 << 30}, (Rule("all", "ask"),)),
        ({"name": "a.txt", "size": None}, (Rule("all", "ask"),)),
    ):
        other = bob.sink(policy=rules, consent=held)
        assert other.resume()[0] == 4
        with pytest.raises(ZkcError) as refused:
            other.announced(replace(WHAT, **changes))
        assert (refused.value.code, refused.value.detail) == (24, "nobody-asked")
        other.abandon(keep=True)
