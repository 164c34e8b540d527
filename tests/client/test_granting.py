"""What a grant that is not given is told as."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from zkc.client import granting
from zkc.errors import (
    CoordinatorUnreachable,
    IdentityError,
    LocalIOError,
    NotRegistered,
    PeerViolation,
    TimedOut,
    ZkcError,
)
from zkc.protocol.step import Send
from zkc.protocol.trust import KeyChanged
from zkc.rules.refusals import refused_by
from zkc.wire.messages import LookUp


@pytest.mark.parametrize(
    "later", [TimedOut("no answer"), LocalIOError("busy"), PeerViolation("malformed"), None],
    ids=["silence", "disk", "nonsense", "nothing"],
)  # fmt: skip
def test_a_look_that_fails_does_not_hide_the_refusal(later: Exception | None) -> None:
    with pytest.raises(IdentityError) as caught:
        asyncio.run(_asked(later))
    assert (caught.value.code, caught.value.detail) == (12, "identity")
    assert "bob does not accept" in caught.value.message


def test_a_look_that_finds_another_key_says_so() -> None:
    with pytest.raises(KeyChanged):
        asyncio.run(_asked(KeyChanged("bob", b"a" * 32, b"b" * 32)))


@pytest.mark.parametrize(
    ("linked", "problem", "kind"),
    [(False, None, CoordinatorUnreachable), (False, NotRegistered("revoked"), NotRegistered), (True, None, TimedOut)],
)  # fmt: skip
def test_a_grant_that_does_not_come_in_time_is_told_by_what_it_waited_for(
    linked: bool, problem: ZkcError | None, kind: type[ZkcError]
) -> None:
    async def hang(_patience: float) -> None:
        await asyncio.Event().wait()

    nothing: Any = None
    wanted: Any = SimpleNamespace(recipient="bob")
    link: Any = SimpleNamespace(
        linked=linked, problem=problem, endpoint="tcp://127.0.0.1:1", patience=1.0, wait_linked=hang,
        principal=SimpleNamespace(name="alice"),
    )
    noted: list[tuple[Any, ...]] = []
    notes: Any = SimpleNamespace(note=lambda *ends, code, detail: noted.append((*ends, code, detail)))
    with pytest.raises(kind):
        asyncio.run(
            granting.grant_within(0.0, link, nothing, wanted, nothing, nothing, nothing, nothing, notes, nothing)
        )
    # A link that is not there decides nothing.
    assert [each[:4] for each in noted] == (
        [] if kind is CoordinatorUnreachable else [("outgoing", "alice", "bob", kind.code)]
    )


async def _asked(later: Exception | None) -> object:
    async def request(body: object, *_: object, about: str = "") -> object:
        if not isinstance(body, LookUp):
            raise refused_by(about, 12, "identity")
        if later is not None:
            raise later
        return None

    link: Any = SimpleNamespace(request=request)
    store: Any = None
    return await granting._ask(link, store, (Send(object()),), "bob")


@pytest.mark.attack("C16")
@pytest.mark.parametrize(
    ("ahead", "detail", "word"),
    [
        (0.0, "expired", "expired"), (299.0, "expired", "expired"), (301.0, "clock", "5 min ahead"),
        (-86400.0, "clock", "1,440 min behind"),
    ],
)  # fmt: skip
def test_a_card_that_has_expired_is_told_from_a_clock_that_is_wrong(ahead: float, detail: str, word: str) -> None:
    error = granting.blamed(IdentityError("its card has expired", detail="expired"), "bob", ahead)
    assert error.detail == detail
    assert word in error.message
    other = IdentityError("another key", detail="identity")
    assert granting.blamed(other, "bob", ahead) is other
