"""New permanent keys for a registration of this home: made, kept, told to the coordinator, and only then in use.

They are in the key store before ROT1 leaves, so that a process that dies at any moment leaves the former keys or the
new ones, and the next one goes on from there with the same card.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from zkc.client.link import Link
from zkc.client.principal import Principal, load_principal
from zkc.crypto.cards import verify_card
from zkc.crypto.signing import IdentityKey
from zkc.crypto.successions import make_succession
from zkc.crypto.suites import read_private
from zkc.env import Clock, Entropy
from zkc.errors import IdentityError, InternalError, PeerViolation, ZkcError
from zkc.net.sockets import curve_public, generate_curve, to_raw
from zkc.protocol import rotation
from zkc.stores.key_rows import Renewed
from zkc.stores.keystore import KeyStore
from zkc.stores.noting import Notes
from zkc.wire.messages import Rotated

LOOK_SECONDS: Final = 600.0
"""How often a daemon looks at its cards' ends."""
_IN_ONE_GO: Final = 2
"""What another process had begun may not be enough: its owner may have a new identity since."""
_NEVER: Final = frozenset({"epoch", "owner", "bad-key", "identities"})
"""What a coordinator says that will not take these keys, however often it is asked. Anything else leaves open whether
it has them: they are kept."""
LEFT: Final = 0.25
"""Of a card's life, when its daemon renews it."""


def is_due(not_after: float, lifetime: float, left: float, now: float) -> bool:
    """Whether no more than the share ``left`` of its life is left of a card; times in seconds since 1970."""
    return now >= not_after - left * lifetime


class Renewal:
    """What it takes to renew a registration's keys, over a link of it."""

    def __init__(
        self, store: KeyStore, lifetime: Callable[[], float], clock: Clock, entropy: Entropy, notes: Notes
    ) -> None:
        """``lifetime``: of the next card, in seconds."""
        self._store = store
        self._lifetime = lifetime
        self._clock = clock
        self._entropy = entropy
        self._notes = notes

    def is_due(self, principal: Principal, owner: IdentityKey, left: float) -> bool:
        """Whether it is time, or was begun before, or the owner of this application has a new identity."""
        if self._store.renewed(principal.name) is not None:
            return True
        if principal.card.owner_fingerprint not in {None, owner.public.fingerprint}:
            return True
        return is_due(principal.card.body.not_after, self._lifetime(), left, self._clock.wall())

    async def renew(self, link: Link, owner: IdentityKey, *, identity: bool = False) -> Principal:
        """The registration with its new keys, which ``link`` has taken over. ``owner`` signs an application's card.
        ``identity``: with a new one, too.

        `IdentityError` (``epoch``): another copy of this registration has renewed its keys. Errors of `Link.request`.
        """
        present = link.principal
        registration = present.registration
        kept = self._store.begin_renewal(self._next(present, owner, identity=identity))
        renewal = rotation.Renewal(
            IdentityKey.from_seed(kept.identity_private), verify_card(kept.card, present.coordinator.suite),
            read_private(kept.kem_private), to_raw(curve_public(kept.curve_secret)), kept.succession,
        )
        try:
            answer = await link.request(rotation.create_rotate(renewal))
            if not isinstance(answer, Rotated):
                raise InternalError(f"the coordinator answered with {type(answer).__name__}", detail="unexpected")
            perm_server = rotation.consume_rotated(present.authority, renewal, answer)
        except ZkcError as error:
            if error.detail in _NEVER:
                self._store.drop_renewal(kept)
                self._notes.note("rotated", present.name, code=error.code, detail=error.detail)
            raise _outrun(present.name) if error.detail == "epoch" else error from None
        except PeerViolation as violation:
            raise IdentityError(
                f"the coordinator's answer to the new keys of {present.name} did not verify ({violation})",
                detail=violation.detail, hint="run it again",
            ) from None
        renewed = replace(
            registration, identity_private=kept.identity_private, kem_private=kept.kem_private,
            curve_secret=kept.curve_secret, card=kept.card, perm_server_public=perm_server,
        )
        self._store.complete_renewal(kept, renewed, present.card.hash)
        principal = load_principal(renewed)
        self._notes.note("rotated", present.name, detail="identity" if kept.succession else "")
        await link.adopt(principal)
        if identity and not kept.succession:
            # That was what somebody else had begun.
            return await self.renew(link, owner, identity=identity)
        return principal

    def _next(self, present: Principal, owner: IdentityKey, *, identity: bool) -> Renewed:
        registration, kem_key = present.registration, present.coordinator.suite.generate()
        seed = self._entropy.bytes(64) if identity else registration.identity_private
        key = IdentityKey.from_seed(seed)
        succession = b""
        if identity:
            succession = make_succession(registration.name, present.identity, key, present.card.body.epoch + 1)
        card = rotation.next_card(
            present.card, key, kem_key.public, int(self._clock.wall() + self._lifetime()),
            owner if registration.owner is not None else None,
        )
        return Renewed(
            registration.name, registration.uid, registration.card, card, seed, kem_key.encode(),
            to_raw(generate_curve().secret), succession,
        )


def _outrun(name: str) -> IdentityError:
    return IdentityError(
        f"another copy of {name} has renewed its keys: this home is an older one, and is of no more use",
        detail="epoch", hint=f"go on with the other; if there is none: zkc coordinator revoke {name}",
    )


class RenewalDuty:
    """A daemon's: the keys of its home, one registration after the other, when it is time or somebody asks."""

    def __init__(self, renewal: Renewal, log: Any, entropy: Entropy) -> None:
        self._renewal = renewal
        self._log = log
        self._left = entropy.jitter(0.8, 1.0) * LEFT
        """Not all of a site's daemons on one day."""
        self._links: Callable[[], list[Link]] = list
        self._wanted = asyncio.Event()
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self, links: Callable[[], list[Link]]) -> None:
        """``links``: those of the home at the moment, its own registration's first."""
        self._links = links
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Look now: a link stands, or the configuration is another."""
        self._wanted.set()

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def renew_all(self, *, identity: bool) -> list[bytes]:
        """New keys for every registration; their cards. Errors of `Renewal.renew`."""
        cards = []
        for link in self._links():
            await link.wait_linked(link.patience)
            cards.append((await self._renew(link, identity=identity)).card.encoded)
        return cards

    @property
    def _owner(self) -> IdentityKey:
        return self._links()[0].principal.identity

    async def _renew(self, link: Link, *, identity: bool = False) -> Principal:
        async with self._turn:
            principal = await self._renewal.renew(link, self._owner, identity=identity)
        body = principal.card.body
        self._log.info("keys-renewed", client=principal.name, epoch=body.epoch, not_after=body.not_after)
        return principal

    async def _run(self) -> None:
        while True:
            self._wanted.clear()
            for link in self._links():
                try:
                    for _ in range(_IN_ONE_GO):
                        if link.linked and self._renewal.is_due(link.principal, self._owner, self._left):
                            await self._renew(link)
                except ZkcError as error:
                    self._log.warning(
                        "keys-not-renewed", client=link.principal.name, reason=error.reason, detail=error.detail,
                        error=str(error),
                    )
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wanted.wait()
            except TimeoutError:
                pass
