"""What happens at a daemon, for who follows it over the control socket. Imports no event loop."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

from zkc.client import control
from zkc.client.happenings import Happened
from zkc.errors import DaemonError, PeerViolation
from zkc.net.local_client import Answer, LocalClient
from zkc.net.local_frames import ANSWER_SECONDS, HungUp, bad_answer
from zkc.stores.home import Home


class Following:
    """One conversation with the daemon of ``home``, opened at once. `DaemonError`: none runs."""

    def __init__(self, home: Home, *, follow: bool) -> None:
        self._path = home.socket_path()
        client: LocalClient[Any] = LocalClient(self._path, control.ControlReply)
        self._answer: Answer[Any] = client.ask(control.AskEvents(follow), within=ANSWER_SECONDS)
        if follow:
            self._answer.wait_for_ever()

    def next(self) -> Happened | None:
        """The next event, as long as it takes; None: there is no other. `DaemonError` (``ended``): no daemon either."""
        try:
            reply = self._answer.next()
        except HungUp:
            raise DaemonError(
                "the daemon has ended, and its events with it", detail="ended", hint="follow the next one once it runs"
            ) from None
        if reply is None:
            return None
        if not isinstance(reply, control.HappenedReply):
            raise bad_answer(self._path, PeerViolation("malformed", type(reply).__name__))
        return reply.happened

    def hang_up(self) -> None:
        """Any thread: who waits in `next` learns that nothing comes."""
        self._answer.hang_up()

    def close(self) -> None:
        """Once no thread is in `next`."""
        self._answer.close()


def events(home: Home, *, follow: bool) -> Generator[Happened, None, None]:
    """All of them; see `Following`."""
    with contextlib.closing(Following(home, follow=follow)) as following:
        while (happened := following.next()) is not None:
            yield happened
