"""How a command or a program reaches the coordinator: through the daemon of its home, or by a link of its own.

Both ways give the same few blocking calls. Which one is taken is decided for each call, since daemons come and go.
Where one answers no event loop is imported.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from zkc.client import control
from zkc.client.grants import Grant, Listen, OnPending, Wanted
from zkc.client.handover import ask_grant, grant_of
from zkc.config import ClientConfig
from zkc.env import Clock, Entropy
from zkc.errors import DaemonError, Interrupted
from zkc.net.local_client import Kept, LocalClient
from zkc.net.local_frames import ANSWER_SECONDS, NotRunning
from zkc.stores.home import Home
from zkc.wire.messages import Peer, PeerCard

if TYPE_CHECKING:
    from zkc.stores.keystore import KeyStore

T = TypeVar("T")
_LINK_SECONDS: Final = 60.0 + 2 * ANSWER_SECONDS
"""For the daemon's answer to what it asks the coordinator: it waits for its link (`Link.patience`, of as many addresses
as an invitation has room for), then for the answer. A daemon that stands still is found out before."""

_GRACE_SECONDS: Final = 1.0
"""What a daemon has for an answer at least, and for one that leaves when the time is over."""


class Access(Protocol):
    """The coordinator, as a command sees it. Every call blocks and raises the errors of the contract."""

    def grant(self, wanted: Wanted, within: float | None, listen: Listen, on_pending: OnPending) -> Grant:
        """One transfer handshake."""

    def peers(self) -> list[Peer]:
        """Every client that the coordinator tells of."""

    def card(self, name: str) -> PeerCard:
        """A peer's card and certificate; where successions lead there, its key is pinned from now on."""

    def seen(self, name: str) -> Peer:
        """Whether a client is there, and its person."""

    def invite_application(self, app: str) -> str:
        """An invitation for ``NAME/app``, vouched for by this home's registration."""

    def rotate(self, *, identity: bool) -> list[bytes]:
        """New permanent keys, and with ``identity`` new identities, for every registration of this home; their new
        cards, encoded."""

    def leave(self) -> None:
        """End this home's registration at the coordinator; one that it does not know any more has ended."""

    def close(self) -> None:
        """Again: nothing."""


def open_access(
    home: Home, store: KeyStore, config: ClientConfig, clock: Clock, entropy: Entropy, kept: Kept | None = None
) -> Access:
    """The daemon where it runs, else a link of this process. Asks nobody yet; `NotRegistered`. ``kept``: for one who
    asks again and again."""
    from zkc.client.principal import load_main  # noqa: PLC0415

    load_main(store)
    return access_without_keys(home, lambda: store, config, clock, entropy, kept)


def access_without_keys(
    home: Home, open_store: Callable[[], KeyStore], config: ClientConfig, clock: Clock, entropy: Entropy,
    kept: Kept | None = None,
) -> Access:
    """The same for who needs no keys where a daemon answers: ``open_store`` is called only if none does, and only then
    comes of it what is wrong with them, or `NotRegistered`."""

    def link() -> Access:
        # asyncio costs, and with a daemon nothing needs it
        from zkc.client.by_link import ByLink  # noqa: PLC0415
        from zkc.client.command_audit import CommandAudit  # noqa: PLC0415

        return ByLink(open_store(), config, clock, entropy, CommandAudit(home, config, clock))

    return _Either(ByDaemon(LocalClient(home.socket_path(), control.ControlReply, kept)), link)


class _Either:
    """By the daemon that runs at the moment of the call, else by a link that is made when it is first needed."""

    def __init__(self, daemon: ByDaemon, make_link: Callable[[], Access]) -> None:
        self._daemon = daemon
        self._make_link = make_link
        self._link: Access | None = None
        self._closed = False
        self._mutex = threading.Lock()

    def grant(self, wanted: Wanted, within: float | None, listen: Listen, on_pending: OnPending) -> Grant:
        return self._ask(lambda way: way.grant(wanted, within, listen, on_pending))

    def peers(self) -> list[Peer]:
        return self._ask(lambda way: way.peers())

    def card(self, name: str) -> PeerCard:
        return self._ask(lambda way: way.card(name))

    def seen(self, name: str) -> Peer:
        return self._ask(lambda way: way.seen(name))

    def invite_application(self, app: str) -> str:
        return self._ask(lambda way: way.invite_application(app))

    def rotate(self, *, identity: bool) -> list[bytes]:
        return self._ask(lambda way: way.rotate(identity=identity))

    def leave(self) -> None:
        self._ask(lambda way: way.leave())

    def close(self) -> None:
        with self._mutex:
            self._closed = True
            if self._link is not None:
                self._link.close()

    def _ask(self, call: Callable[[Access], T]) -> T:
        try:
            return call(self._daemon)
        except NotRunning:  # nobody took the connection, so nothing was asked yet
            return call(self._own_link())

    def _own_link(self) -> Access:
        with self._mutex:
            if self._closed:
                raise Interrupted("this client was closed", detail="signal")
            if self._link is None:
                self._link = self._make_link()
            return self._link


class ByDaemon:
    """Through the control socket. `NotRunning` before anything was asked, where no daemon is there."""

    def __init__(self, client: LocalClient[control.ControlReply]) -> None:
        self._client = client

    def grant(self, wanted: Wanted, within: float | None, listen: Listen, on_pending: OnPending) -> Grant:
        """The answer, and before it the question where to listen, if there is one: answered on a call of its own."""
        # A daemon that lives says so at once and then every second or two: only one that stands still is silent.
        silence = ANSWER_SECONDS if within is None else min(within + _GRACE_SECONDS, ANSWER_SECONDS)
        grant: Grant | None = None
        with contextlib.closing(self._client.ask(ask_grant(wanted, within), within=silence)) as answer:
            if not wanted.dry_run:
                # While others work: what the answer leads to, libzmq with it, takes a command longer than they take.
                import zkc.net.pipe.sender  # noqa: F401, PLC0415

            while (reply := answer.next()) is not None:
                if isinstance(reply, control.MustListen):
                    where = listen(reply.coordinator)
                    self._client.call(control.AskListening(reply.ticket, where), within=silence)
                elif isinstance(reply, control.PendingReply):
                    on_pending()
                elif not isinstance(reply, control.WaitReply):
                    grant = grant_of(reply)
        if grant is None:
            raise _bad_answer(None)
        return grant

    def peers(self) -> list[Peer]:
        self._check_alive()
        peers: list[Peer] = []
        with contextlib.closing(self._client.stream(control.AskPeers(), within=_LINK_SECONDS)) as replies:
            for reply in replies:
                if not isinstance(reply, control.PeersReply):
                    raise _bad_answer(reply)
                peers += reply.peers
        return peers

    def card(self, name: str) -> PeerCard:
        reply = self._call(control.AskCard(name))
        return reply.card if isinstance(reply, control.CardReply) else _unexpected(reply)

    def seen(self, name: str) -> Peer:
        reply = self._call(control.AskSeen(name))
        return reply.peer if isinstance(reply, control.SeenReply) else _unexpected(reply)

    def invite_application(self, app: str) -> str:
        reply = self._call(control.AskApplication(app))
        return reply.text if isinstance(reply, control.InvitationReply) else _unexpected(reply)

    def rotate(self, *, identity: bool) -> list[bytes]:
        reply = self._call(control.AskRotate(identity))
        return reply.cards if isinstance(reply, control.RotatedReply) else _unexpected(reply)

    def leave(self) -> None:
        self._call(control.AskLeave())

    def close(self) -> None:
        """Nothing is open between calls."""

    def _call(self, request: control.ControlRequest) -> control.ControlReply:
        self._check_alive()
        return self._client.call(request, within=_LINK_SECONDS)

    def _check_alive(self) -> None:
        """`NoAnswer`: a daemon that stands still is not waited for as long as the coordinator is."""
        self._client.call(control.AskStatus())


def _unexpected(reply: object) -> Any:
    raise _bad_answer(reply)


def _bad_answer(reply: object) -> DaemonError:
    return DaemonError(
        f"the daemon answered with {type(reply).__name__}", detail="bad-answer", hint="after an upgrade, start it again"
    )
