"""What a registration that fails leaves behind, and how often one is tried."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from tests.support.coordinator import RunningCoordinator, coordinator_in
from tests.support.parties import coordinator_of, identity_of
from zkc.client import join as module
from zkc.client.join import RegistrationRefused, join, refuse_second_registration
from zkc.config import ClientConfig
from zkc.env import SystemClock, SystemEntropy
from zkc.errors import CoordinatorUnreachable, NotRegistered, UsageError, ZkcError
from zkc.stores.home import Home, HomeLock
from zkc.stores.keystore import KeyStore
from zkc.ui.cli import join as command
from zkc.ui.cli.options import Invocation, Options
from zkc.wire.messages import InvitationText

REFUSED_KEY = NotRegistered("refused", detail="refused-key")
NOBODY = CoordinatorUnreachable("nobody", detail="refused")


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCoordinator]:
    with coordinator_in(tmp_path_factory.mktemp("coordinator")) as running:
        yield running


@pytest.fixture
def store(home: Home) -> Iterator[KeyStore]:
    with KeyStore.open(home) as opened:
        yield opened


class Entropy:
    """Real, but without pauses, which are counted."""

    def __init__(self) -> None:
        self.pauses: list[tuple[float, float]] = []

    def bytes(self, n: int) -> bytes:
        return SystemEntropy().bytes(n)

    def jitter(self, low: float, high: float) -> float:
        self.pauses.append((low, high))
        return 0.0


def registered(store: KeyStore, invitation: InvitationText, **more: Any) -> module.Joined:
    entropy = more.pop("entropy", None) or Entropy()
    return join(store, invitation, ClientConfig(), clock=SystemClock(), entropy=entropy, **more)


def pending(store: KeyStore) -> int:
    """How many sets of private keys wait for a registration that is not finished."""
    return len(store._tables.rows("pending"))


def test_keys_of_a_registration_that_the_coordinator_refused_are_gone(
    coordinator: RunningCoordinator, home: Home, store: KeyStore, tmp_path: Path
) -> None:
    first, second = coordinator.invite("taken"), coordinator.invite("taken")
    with KeyStore.open(Home.resolve("client", str(tmp_path / "other")).prepare()) as other:
        registered(other, first)
        assert pending(other) == 0
    with pytest.raises(RegistrationRefused) as caught:
        registered(store, second)
    assert (caught.value.code, caught.value.detail) == (11, "name-taken")
    assert (pending(store), store.registrations()) == (0, [])


BROKEN_OFF: Final = pytest.mark.parametrize(
    "error", [REFUSED_KEY, NOBODY, KeyboardInterrupt()], ids=["refused-key", "nobody", "ctrl-c"]
)


@BROKEN_OFF
def test_one_that_broke_off_before_its_card_left_leaves_no_key(
    error: BaseException, store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried(monkeypatch, error)
    with pytest.raises(type(error)):
        registered(store, coordinator_of("x25519").invite("bob"))
    assert pending(store) == 0


@BROKEN_OFF
def test_keys_of_one_that_broke_off_after_its_card_left_wait_for_the_next_try(
    error: BaseException, store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation = coordinator_of("x25519").invite("bob")
    tried(monkeypatch, error, card=b"the card")
    kept = []
    for _ in range(2):
        with pytest.raises(type(error)):
            registered(store, invitation)
        kept.append(store.pending(invitation.invite_id))
    assert kept[0] is not None
    assert kept[0] == kept[1]


def test_an_applications_invitation_is_for_one_command_and_so_are_its_keys(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried(monkeypatch, NOBODY, card=b"the card")
    owner: Any = SimpleNamespace(identity=identity_of("bob"))
    with pytest.raises(CoordinatorUnreachable):
        registered(store, coordinator_of("x25519").invite("bob/backup", "application"), owner=owner)
    assert pending(store) == 0


@pytest.mark.parametrize(
    ("errors", "tries", "pauses"),
    [
        ([REFUSED_KEY], 2, 0), ([NOBODY], 6, 2), ([NOBODY, REFUSED_KEY, NOBODY, REFUSED_KEY], 4, 1),
        ([RegistrationRefused("used", detail="invite-used")], 1, 0),
    ],
)  # fmt: skip
def test_addresses_are_tried_in_rounds_with_pauses_and_a_refused_key_once_more(
    errors: list[ZkcError], tries: int, pauses: int, store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation = coordinator_of("x25519").invite("bob")
    invitation.endpoints.append("tcp://127.0.0.1:1")
    asked = tried(monkeypatch, *errors)
    entropy = Entropy()
    with pytest.raises(type(errors[-1])):
        registered(store, invitation, entropy=entropy)
    assert asked == (invitation.endpoints * 3)[:tries]
    assert len(entropy.pauses) == pauses
    assert all(0 < low < high for low, high in entropy.pauses)


def tried(monkeypatch: pytest.MonkeyPatch, *errors: BaseException, card: bytes = b"") -> list[str]:
    """Every try ends with the next error, the last one again and again; the addresses that were tried.

    ``card``: each has got as far as R5, with this card.
    """
    asked: list[str] = []

    class Conversation:
        def __init__(self, _ctx: object, _newcomer: object, endpoint: str, keep: Callable[[bytes], None]) -> None:
            asked.append(endpoint)
            if card:
                keep(card)

        async def run(self) -> object:
            raise errors[min(len(asked), len(errors)) - 1]

    monkeypatch.setattr(module, "_Conversation", Conversation)
    return asked


# --- two at once ----------------------------------------------------------------------------------------------------


def test_of_two_joins_at_once_the_second_sees_the_first_under_the_lock(
    coordinator: RunningCoordinator, home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = coordinator.invite("dave"), tmp_path / "invitation"
    second.write_text(_text(coordinator, "erin"))
    real = Home.lock

    def lock(this: Home, *tries: int) -> HomeLock:
        with KeyStore.open(this) as store:
            registered(store, first)
        return real(this, *tries)

    monkeypatch.setattr(Home, "lock", lock)
    call = Invocation(Options(home=str(home.data), batch=True))
    with pytest.raises(UsageError) as caught:
        command._join(call, str(second), None, None, force=False)
    assert caught.value.detail == "already-registered"
    with KeyStore.open(home) as store:
        assert [each.name for each in store.registrations()] == ["dave"]
        refuse_second_registration(store, force=True)
    with closing(sqlite3.connect(coordinator.home.data / "keys.db")) as keys:
        assert keys.execute("SELECT count(*) FROM clients WHERE name = 'erin'").fetchone() == (0,)


def _text(coordinator: RunningCoordinator, name: str) -> str:
    from zkc.coordinator import admin

    return admin.invite(coordinator.home, name).invitation
