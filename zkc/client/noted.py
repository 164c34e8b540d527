"""What a daemon notes in its audit log is published as an event too, unless one of its own tells more."""

from __future__ import annotations

from typing import Any, Final, get_args, get_type_hints

from zkc.client.bus import EventBus
from zkc.client.happenings import Decision, KeyNews
from zkc.ids import owner_of
from zkc.logs import Repeats
from zkc.stores.noting import Notes

_KEYS: Final = frozenset(get_args(get_type_hints(KeyNews)["kind"]))
_TOLD_BY_OTHERS: Final = frozenset({"asked", "answered", "outbox", "started"})


class NotedEvents:
    """`Notes`, of which others are written. Any thread. ``own``: the name of the home's own registration."""

    def __init__(self, notes: Notes, bus: EventBus, own: str, repeats: Repeats) -> None:
        self._notes = notes
        self._bus = bus
        self._own = own
        self._repeats = repeats

    def note(
        self, event: str, sender: str = "", recipient: str = "", *, code: int = 0, detail: str = "", rule: str = ""
    ) -> None:
        """`Notes.note`. What a peer can cause as often as it likes, a refusal, is published once in ten seconds."""
        self._notes.note(event, sender, recipient, code=code, detail=detail, rule=rule)
        if event in _TOLD_BY_OTHERS or (event == "received" and not code):
            return
        withheld = self._repeats.passes(f"{event} {sender} {recipient} {code} {detail} {rule}") if code else 0
        if withheld is None:
            return
        if event in _KEYS:
            kind: Any = event
            self._bus.publish(KeyNews(kind, self._whose(event, sender, recipient), code, detail, withheld))
        else:
            outcome: Any = "refused" if code else "ok"
            self._bus.publish(
                Decision(event, sender or None, recipient or None, outcome, code, detail, rule, withheld)
            )

    def _whose(self, event: str, sender: str, recipient: str) -> str | None:
        """Of a peer's key: the end that is not here."""
        if event in {"key-log-alarm", "coordinator-succeeded"}:
            return None
        if event == "rotated":
            return sender
        return recipient if self._own in (sender, owner_of(sender)) else sender
