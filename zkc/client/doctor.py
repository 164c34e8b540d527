"""Every step from this home to a recipient, one by one: which are in order, and what is wrong with one that is not.

`examine` goes as far as it can: a step that needs one that failed is not tried. Nothing is changed, and nothing sent.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from zkc import __version__
from zkc.client.access import Access, open_access
from zkc.client.control import AskStatus, ControlReply, StatusReply
from zkc.client.events import Place, WouldAccept
from zkc.client.findings import Finding, Look, Note, looked, skipped
from zkc.client.granting import blamed
from zkc.client.grants import Wanted
from zkc.client.principal import known_about, load_main
from zkc.client.ways import Greeted, Way
from zkc.config import ClientConfig
from zkc.constants import CLOCKS_APART_SECONDS, ID_BYTES
from zkc.crypto.cards import VerifiedCard
from zkc.crypto.merkle import Frontier
from zkc.env import Clock, Entropy
from zkc.errors import (
    DaemonError,
    IdentityError,
    InternalError,
    Interrupted,
    LocalIOError,
    RecipientOffline,
)
from zkc.net.local_client import LocalClient
from zkc.net.local_frames import NotRunning
from zkc.protocol.keylog import LogAlarm
from zkc.protocol.trust import judge_peer, verify_peer
from zkc.rules.endpoints import parse_listen
from zkc.rules.units import show_apart, show_size
from zkc.stores.home import Home
from zkc.stores.inbox import Inbox
from zkc.stores.keystore import KeyStore
from zkc.wire.messages import Endpoints, Peer

_ANSWER_SECONDS: Final = 3.0
_EXPIRES_SOON: Final = 14 * 86400.0
_SIZE_UNKNOWN: Final = 255
_NOT_GREETED: Final = Note("not known: the keys are locked")


class Examination:
    """One home, as `examine` goes through it."""

    def __init__(
        self, home: Home, read_config: Callable[[], ClientConfig], open_store: Callable[[], KeyStore], clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._home = home
        self._read_config = read_config
        self._open_store = open_store
        self._clock = clock
        self._entropy = entropy
        self._closing = contextlib.ExitStack()
        self._failed = False
        self._greeted: Greeted | None = None
        """By the coordinator, over the first address that led there."""

    def examine(self, name: str = "") -> Iterator[Finding]:
        """Each finding as it is made. ``name``: how far it is to that recipient, too."""
        with self._closing:
            yield self._step("configuration", self._configuration)
            yield self._step("keys", self._keys)
            if self._failed:
                return  # without either nothing else means anything
            yield from self._here()
            yield from self._ways()
            yield from self._dates()
            yield from self._at_coordinator()
            if name:
                yield from self._to(name)

    # --- this home --------------------------------------------------------------------------------------------------

    def _here(self) -> Iterator[Finding]:
        yield looked("daemon", self._daemon)
        yield looked("room", self._room)
        yield looked("listen", self._listen)

    def _configuration(self) -> str:
        self._config = self._read_config()
        there = self._home.config_file.exists()
        return str(self._home.config_file) if there else "all defaults: there is no config.toml"

    def _keys(self) -> str | Note:
        self._store = self._closing.enter_context(self._open_store())
        locked = self._locked()
        self._principal = principal = load_main(self._store)
        self._access: Access = self._closing.enter_context(
            contextlib.closing(open_access(self._home, self._store, self._config, self._clock, self._entropy))
        )
        about = f"{principal.name}, fingerprint {principal.fingerprint.hex()[:16]}, to be read by this user alone"
        if locked is not None:
            return Note(f"{about}; {locked.message}", f"a daemon that runs has them; {locked.hint}")
        return about

    def _locked(self) -> LocalIOError | None:
        """Why the private keys cannot be read, where a passphrase locks them."""
        try:
            self._store.unlock()
        except LocalIOError as error:
            if error.detail != "locked":
                raise
            return error
        return None

    def _daemon(self) -> str | Note:
        client: LocalClient[ControlReply] = LocalClient(self._home.socket_path(), ControlReply)
        try:
            reply = client.call(AskStatus(), within=_ANSWER_SECONDS)
        except NotRunning:
            return Note("none runs here: this client can send, and nothing reaches it", "start it: zkc daemon")
        if not isinstance(reply, StatusReply):
            raise DaemonError("the daemon answers something else", detail="bad-answer", hint="start it again")
        if reply.version != __version__:
            raise DaemonError(
                f"the daemon is of zkc {reply.version}, and this is {__version__}", detail="bad-answer",
                hint="start it again, to run what is installed",
            )
        named = self._config.coordinator.endpoints or self._principal.registration.endpoints
        if reply.coordinator in named:
            if reply.linked:
                return f"linked to {reply.coordinator}"
            return Note(f"it runs and has no link ({reply.problem or 'not yet'})", "what follows shows why")
        former = f"it goes by {reply.coordinator}, which the configuration does not name any more"
        if reply.linked:
            return Note(f"linked; {former}", "start it again")
        raise DaemonError(f"no link: {former}", detail="restart-needed", hint="start it again")

    def _room(self) -> str:
        with Inbox.open(self._home) as inbox:
            free, least = inbox.free_bytes(), self._config.inbox.min_free
        if free <= least:
            raise LocalIOError(
                f"{show_size(free)} are free at the inbox, and inbox.min_free keeps {show_size(least)} free",
                detail="no-space", hint="make room: nothing can be received",
            )
        return f"{show_size(free)} free at the inbox"

    def _listen(self) -> str | Note:
        listen = parse_listen(self._config.transfer.listen)
        if listen is None:
            return Note("transfer.listen is off", "this client receives from those who can be connected to")
        host = "" if listen.host == "*" else listen.host
        try:
            with contextlib.ExitStack() as stack:
                for family, kind, _, _, address in socket.getaddrinfo(
                    host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                ):
                    stack.enter_context(socket.socket(family, kind)).bind(address)
        except OSError as error:
            raise LocalIOError(
                f"transfer.listen: {self._config.transfer.listen} is not an address of this machine ({error.strerror})",
                detail="address", hint="see config.toml",
            ) from None
        return self._config.transfer.listen

    # --- the way to the coordinator ---------------------------------------------------------------------------------

    def _ways(self) -> Iterator[Finding]:
        """All addresses; what is wrong with one counts where no other leads there."""
        settings, principal = self._config.coordinator, self._principal
        ways = [
            Way(endpoint, principal, settings.identifier, self._clock, self._entropy)
            for endpoint in settings.endpoints or principal.registration.endpoints
        ]
        found = [list(way.walk()) for way in ways]
        self._failed = all(way[-1].state in {"wrong", "skipped"} for way in found)
        for finding in (each for way in found for each in way):
            is_other = finding.state == "wrong" and not self._failed
            yield replace(finding, state="note", error=None) if is_other else finding
        self._greeted = next((way.greeted for way in ways if way.greeted is not None), None)

    def _dates(self) -> Iterator[Finding]:
        yield skipped("clock") if self._failed else looked("clock", self._clocks)
        yield looked("card", self._own_card)

    def _clocks(self) -> str | Note:
        if self._greeted is None:
            return _NOT_GREETED
        ahead = self._greeted.clock_ahead
        if abs(ahead) > CLOCKS_APART_SECONDS:
            raise IdentityError(
                f"this clock is {show_apart(ahead)} the coordinator's", detail="clock",
                hint="set the one that is wrong: by it cards expire, and rules of policy with times apply",
            )
        return f"within {math.ceil(abs(ahead))} s of the coordinator's"

    @property
    def _clock_ahead(self) -> float:
        """Seconds, as far as is known."""
        return 0.0 if self._greeted is None else self._greeted.clock_ahead

    def _own_card(self) -> str | Note:
        """By the coordinator's clock, where that is known: whoever sends to this client judges by his own."""
        now = self._clock.wall() - self._clock_ahead
        name, not_after = self._principal.name, self._principal.card.body.not_after
        left = not_after - now
        until = f"{datetime.fromtimestamp(not_after, UTC):%Y-%m-%d}"
        if left <= 0:
            unless = "" if self._greeted is not None else ", unless the clock of this machine is wrong"
            raise IdentityError(
                f"the card of {name} has expired ({until}){unless}: nobody sends to it any more", detail="expired",
                hint="zkc rotate makes a new one; a daemon that is linked does so in time by itself",
            )
        if left < _EXPIRES_SOON:
            return Note(f"it expires in {left / 86400:.0f} days ({until})", "zkc rotate; a daemon does so itself")
        return f"until {until}"

    # --- what the coordinator says ----------------------------------------------------------------------------------

    def _at_coordinator(self) -> Iterator[Finding]:
        yield self._step("identity", self._identity)
        yield self._step("registration", self._registration)
        if not self._failed:
            yield looked("key log", self._key_log)

    def _identity(self) -> str | Note:
        """Of the coordinator: the one that is pinned, or one for which that vouches."""
        if self._greeted is None:
            return _NOT_GREETED
        said = self._greeted.coordinator
        if said == self._principal.coordinator.identity.fingerprint:
            return f"coordinator {said.hex()[:16]}, as pinned"
        self._card(self._principal.name)  # whoever asks for it learns of the new one, or refuses it
        if said != self._principal.coordinator.identity.fingerprint:
            raise IdentityError(
                f"the coordinator says that it is {said.hex()[:16]}, and shows nothing by which the pinned one vouches"
                " for that",
                detail="identity", hint="run it again; if it stays so, ask its administrator for the fingerprint",
            )
        return f"coordinator {said.hex()[:16]}, for which the one that was pinned vouches"

    def _registration(self) -> str:
        card = self._card(self._principal.name)
        if card.hash != self._principal.card.hash:
            raise IdentityError(
                f"the coordinator has another card of {card.name} than this home", detail="identity",
                hint="was a backup of keys.db restored, or the client joined elsewhere? See zkc join --force",
            )
        return f"{card.name}, certified by the coordinator"

    def _key_log(self) -> str | Note:
        known = self._store.known_log(self._principal.registration.uid)
        evidence = sorted((self._store.folder / "evidence").glob("log-fork-*.json"))
        if evidence:
            raise LogAlarm("log-fork", f"two were signed, as zkc coordinator audit --verify {evidence[-1]} shows")
        if known is None:
            return Note("not followed yet", "a daemon follows it, and a first contact does")
        if known.foreign:
            raise LogAlarm("log-own", f"it gives the name {self._principal.name} to another key")
        return f"{known.size} entries followed, head {Frontier(known.size, known.frontier).root.hex()[:16]}"

    def _card(self, name: str) -> VerifiedCard:
        answer = self._access.card(name)
        self._principal = load_main(self._store)  # its coordinator may have another identity since
        return verify_peer(self._principal.authority, name, answer.card, answer.certificate)

    # --- the recipient ----------------------------------------------------------------------------------------------

    def _to(self, name: str) -> Iterator[Finding]:
        yield self._step(f"key of {name}", lambda: self._key_of(name))
        yield self._step(f"presence of {name}", lambda: self._presence_of(name))
        yield self._step("policy", lambda: self._policy(name))
        yield self._step("session key", self._session_key)
        if self._failed:
            return
        places = self._answer.places
        if not places and not self._answer.asks:
            yield Finding("path", "note", f"{name} does not listen: it connects to this client")
        for place in places:
            yield from _ports_of(place)
        if places and all(place.data_problem or place.acks_problem for place in places):
            yield looked("path", lambda: _no_path(name))

    def _key_of(self, name: str) -> str | Note:
        card = self._card(name)
        known = known_about(self._store, name, card.fingerprint)
        try:
            judge_peer(card, known, self._clock.wall())
        except IdentityError as error:
            raise blamed(error, name, self._clock_ahead) from None
        pin = self._store.pinned().get(name)
        if pin is None:
            return Note(f"fingerprint {card.fingerprint.hex()[:16]}, not pinned yet", f"compare: zkc verify {name}")
        if pin.verified is None:
            return Note("pinned, not verified by a person", f"compare: zkc verify {name}")
        return "pinned and verified"

    def _presence_of(self, name: str) -> str:
        peer: Peer = self._access.seen(name)
        if not peer.online:
            raise RecipientOffline(f"{name} is offline", detail="offline", hint="no daemon of it is linked")
        return f"online; person: {peer.person}"

    def _policy(self, name: str) -> str | Note:
        transfer = self._config.transfer
        wanted = Wanted(
            self._entropy.bytes(ID_BYTES), name, transfer.key_source, transfer.key_order, transfer.cipher,
            _SIZE_UNKNOWN, dry_run=True, reach=True, can_listen=parse_listen(transfer.listen) is not None,
        )
        answer = self._access.grant(wanted, None, _nowhere, lambda: None)
        if not isinstance(answer, WouldAccept):
            raise InternalError("a dry run ended as a transfer")
        self._answer = answer
        if answer.asks:
            return Note(f"a person at {name} is asked first", "so the way of the data cannot be looked at")
        return f"{name} would accept"

    def _session_key(self) -> str | Note:
        """All three allow it, and the recipient's signed answer has verified; none is made for a look."""
        transfer = self._config.transfer
        agreed = f"made by the {transfer.key_source}, {transfer.cipher}"
        return Note(f"not agreed before that person has accepted: {agreed}") if self._answer.asks else agreed

    # --- findings ---------------------------------------------------------------------------------------------------

    def _step(self, step: str, look: Look) -> Finding:
        """What all that follows needs."""
        if self._failed:
            return skipped(step)
        finding = looked(step, look)
        self._failed = finding.state == "wrong"
        return finding


def _ports_of(place: Place) -> Iterator[Finding]:
    by = f" by relay {place.relay}" if place.relay else ""
    for step, where, problem in (
        ("path", place.data, place.data_problem), ("acknowledgement", place.acks, place.acks_problem)
    ):
        yield Finding(f"{step} {where}{by}", "note" if problem else "ok", problem or "its port answers")


def _no_path(name: str) -> str:
    raise Interrupted(
        f"none of the addresses of {name} can be reached from here", detail="link",
        hint="let its ports in there (transfer.listen), or name other addresses (transfer.advertise)",
    )


def _nowhere(_coordinator: str) -> Endpoints:
    raise InternalError("a dry run does not listen")
