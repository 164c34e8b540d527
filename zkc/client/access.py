"""How a command or a program reaches the coordinator: through the daemon of its home, or by a link of its own.

Both ways give the same few blocking calls. The daemon's is taken where one answers, and then no event loop is imported.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from zkc.client import control
from zkc.client.grants import Grant, Wanted
from zkc.client.principal import load_main
from zkc.config import ClientConfig
from zkc.constants import STEP_SECONDS
from zkc.env import Clock, Entropy
from zkc.errors import DaemonError, TimedOut
from zkc.net.local_client import ANSWER_SECONDS, LocalClient, NoAnswer, NotRunning
from zkc.stores.home import Home
from zkc.stores.keystore import KeyStore
from zkc.wire.messages import Peer, PeerCard

_LINK_SECONDS: Final = 8.0 + 2 * ANSWER_SECONDS
"""For the daemon's answer to what it asks the coordinator: it waits for its link, then for the answer."""

_INSTANT: Final = 0.001
"""Seconds: a call is bounded by more than nothing."""


class Access(Protocol):
    """The coordinator, as a command sees it. Every call blocks and raises the errors of the contract."""

    def grant(self, wanted: Wanted, within: float | None) -> Grant:
        """One transfer handshake."""

    def peers(self) -> list[Peer]:
        """Every client that the coordinator tells of."""

    def card(self, name: str) -> PeerCard:
        """A peer's card and certificate."""

    def invite_application(self, app: str) -> str:
        """An invitation for ``NAME/app``, vouched for by this home's registration."""

    def leave(self) -> None:
        """End this home's registration at the coordinator; one that it does not know any more has ended."""

    def close(self) -> None:
        """Again: nothing."""


def open_access(
    home: Home, store: KeyStore, config: ClientConfig, clock: Clock, entropy: Entropy, *,
    within: float | None = None,
) -> Access:
    """The daemon where it runs, else a link of this process; ``within`` seconds bound the daemon's first answer too."""
    principal = load_main(store)
    client: LocalClient[control.ControlReply] = LocalClient(home.socket_path(), control.ControlReply)
    patience = ANSWER_SECONDS if within is None else max(min(within, ANSWER_SECONDS), _INSTANT)
    try:
        client.call(control.AskStatus(), within=patience)
    except NotRunning:
        from zkc.client.by_link import ByLink  # noqa: PLC0415 - asyncio costs, and with a daemon nothing needs it

        return ByLink(store, principal, config, clock, entropy)
    return ByDaemon(client)


class ByDaemon:
    """Through the control socket."""

    def __init__(self, client: LocalClient[control.ControlReply]) -> None:
        self._client = client

    def grant(self, wanted: Wanted, within: float | None) -> Grant:
        patience = 2 * STEP_SECONDS if within is None else max(within, _INSTANT)
        try:
            return control.grant_of(self._client.call(control.ask_grant(wanted), within=patience))
        except NoAnswer:
            if within is None:
                raise
            raise TimedOut(
                f"{wanted.recipient} did not answer this client's request in time", detail="timeout",
                hint="--timeout gives it more",
            ) from None

    def peers(self) -> list[Peer]:
        reply = self._client.call(control.AskPeers(), within=_LINK_SECONDS)
        return reply.peers if isinstance(reply, control.PeersReply) else _unexpected(reply)

    def card(self, name: str) -> PeerCard:
        reply = self._client.call(control.AskCard(name), within=_LINK_SECONDS)
        return reply.card if isinstance(reply, control.CardReply) else _unexpected(reply)

    def invite_application(self, app: str) -> str:
        reply = self._client.call(control.AskApplication(app), within=_LINK_SECONDS)
        return reply.text if isinstance(reply, control.InvitationReply) else _unexpected(reply)

    def leave(self) -> None:
        self._client.call(control.AskLeave(), within=_LINK_SECONDS)

    def close(self) -> None:
        """Nothing is open between calls."""


def _unexpected(reply: object) -> Any:
    raise DaemonError(
        f"the daemon answered with {type(reply).__name__}", detail="bad-answer", hint="after an upgrade, start it again"
    )
