"""What the coordinator is told of the person at this home, while it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from zkc.client.bus import EventBus
from zkc.client.link import Link
from zkc.client.person import PersonHere
from zkc.config import ClientConfig
from zkc.constants import HEARTBEAT_SECONDS
from zkc.env import Clock
from zkc.ids import PersonState
from zkc.rules.presence import UNKNOWN
from zkc.wire.messages import PersonIs

_NEWS_SECONDS: Final = 20.0
"""A sign of life is told again only when it is newer by this."""


class PersonNews:
    """To every registration of the home: an application's person is its owner's. Belongs to the running loop."""

    def __init__(
        self, links: Callable[[], Iterable[Link]], person: PersonHere, config: Callable[[], ClientConfig], clock: Clock,
        bus: EventBus,
    ) -> None:
        self._links = links
        self._person = person
        self._config = config
        self._clock = clock
        self._bus = bus
        self._told: tuple[PersonState, float] | None = None
        """What the coordinator knows, and since when."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._tell()

    def tell_anew(self) -> None:
        """Whatever was told before: there is a new channel, or the person has said something."""
        self._told = None
        self._tell()

    def _tell(self) -> None:
        here = self._person.person()
        self._bus.person(here.state)
        person = here if self._config().person.tell == "coordinator" else UNKNOWN
        since, before = self._clock.monotonic() - person.age, self._told
        # What was told stays known there: only another state, or a sign of life that is newer by some seconds, is news.
        if before is not None and before[0] == person.state and abs(before[1] - since) < _NEWS_SECONDS:
            return
        self._told = person.state, since
        for link in self._links():
            link.tell(PersonIs(person.state, int(person.age)))
