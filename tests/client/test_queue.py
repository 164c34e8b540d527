"""When a job is tried again: whoever was missing is looked for, and nobody else is knocked for."""

from __future__ import annotations

import pytest

from zkc.client.queue import has_come, may_pass
from zkc.errors import (
    IdentityError,
    LocalIOError,
    NobodyThere,
    PolicyRefused,
    RecipientOffline,
    Refused,
    TimedOut,
    ZkcError,
)
from zkc.ids import PersonState
from zkc.stores.outbox import Job
from zkc.wire.messages import Peer


@pytest.mark.parametrize(
    ("code", "online", "person", "wanted"),
    [
        (21, True, "unknown", True), (21, False, "present", False), (22, True, "present", True),
        (22, True, "absent", False), (22, True, "unknown", False), (22, False, "present", False),
    ],
)
def test_who_was_missing_has_come(code: int, online: bool, person: PersonState, wanted: bool) -> None:
    job = Job("0" * 16, "bob", "a", "", 0.0, 1.0, 1, code=code)
    assert has_come(job, Peer("bob", "user", online, 0, bytes(32), person, 0)) is wanted
    assert not has_come(job, None)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (RecipientOffline(""), True), (NobodyThere(""), True), (TimedOut(""), True),
        (PolicyRefused("", detail="limit"), True), (PolicyRefused("", detail="rate"), True),
        (LocalIOError("", detail="no-space"), True),
        (PolicyRefused("", detail="rule"), False), (PolicyRefused("", detail="accept"), False), (Refused(""), False),
        (LocalIOError("", detail="unreadable"), False), (IdentityError(""), False),
    ],
)
def test_what_may_pass_is_tried_again_and_a_decision_is_not(error: ZkcError, wanted: bool) -> None:
    assert may_pass(error) is wanted
