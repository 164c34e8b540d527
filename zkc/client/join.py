"""Registering a home (Figures 1, 11, 12): the newcomer's machine over a real connection, and the stores around it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any, Final

import msgspec

from zkc.client.dial import Connection
from zkc.client.principal import Principal
from zkc.config import ClientConfig
from zkc.constants import BACKOFF_FIRST, REGISTRATION_SECONDS
from zkc.crypto.invitations import invitation_curve_secret, invitation_psk, parse_invitation
from zkc.crypto.signing import IdentityKey
from zkc.crypto.suites import read_private, suite_named
from zkc.env import Clock, Entropy
from zkc.errors import (
    CoordinatorUnreachable,
    IdentityError,
    LocalIOError,
    NotRegistered,
    PeerViolation,
    TimedOut,
    UsageError,
    ZkcError,
    error_for,
)
from zkc.ids import owner_of
from zkc.net.sockets import Context, context, curve_public, generate_curve, to_raw
from zkc.protocol import registration_client as machine
from zkc.protocol.registration import error_mac
from zkc.protocol.step import Send, Step, erase, step
from zkc.stores.key_rows import Registration
from zkc.stores.keystore import KeyStore
from zkc.wire.codec import decode, encode
from zkc.wire.frames import ControlKind, control_frame, split_control
from zkc.wire.messages import InvitationText, RegError, RegMessage

_ROUNDS: Final = 3
"""A registration that breaks off is begun anew, with new temporary keys, this often at each address in one command."""
_REFUSALS_MAX: Final = 2
"""A refused key ends it after one more try: the refusal is a hint that nothing authenticates."""


class RegistrationRefused(NotRegistered):
    """The coordinator itself, which proved that it holds the invitation, says that this one leads nowhere."""


class _Pending(msgspec.Struct, frozen=True, array_like=True):
    """What a try that broke off behind R5 leaves for the next: the coordinator may have registered this card."""

    identity: bytes
    kem: bytes
    curve: bytes
    card: bytes

    def __repr__(self) -> str:
        return "_Pending(…)"


@dataclass(frozen=True)
class Joined:
    """A registration that the coordinator has acknowledged."""

    name: str
    fingerprint: bytes
    endpoints: tuple[str, ...]


def read_invitation(text: str) -> InvitationText:
    """The invitation, checked against this program's suites. `UsageError` (``bad-invite``), `VersionMismatch`."""
    invitation = parse_invitation(text)
    try:
        suite_named(invitation.suite)
    except PeerViolation:
        raise UsageError(
            f"the invitation names the suite {invitation.suite!r}, which this version does not know",
            detail="bad-invite", hint="upgrade zkc",
        ) from None
    return invitation


def refuse_second_registration(store: KeyStore, *, force: bool) -> None:
    """`UsageError` (``already-registered``) for a join over an existing registration without ``--force``."""
    for registration in store.registrations():
        if owner_of(registration.name) is None and not force:
            raise UsageError(
                f"this home is registered as {registration.name} already", detail="already-registered",
                hint="zkc leave ends that registration; --force puts it aside, one that was revoked too",
            )


def join(
    store: KeyStore, invitation: InvitationText, config: ClientConfig, *, clock: Clock, entropy: Entropy,
    owner: Principal | None = None, force: bool = False,
) -> Joined:
    """`register`, for callers that block."""

    async def run() -> Joined:
        ctx = context(entropy)
        try:
            return await register(
                ctx, store, invitation, config, clock=clock, entropy=entropy, owner=owner, force=force
            )
        finally:
            ctx.destroy(linger=0)

    return asyncio.run(run())


async def register(
    ctx: Context, store: KeyStore, invitation: InvitationText, config: ClientConfig, *, clock: Clock, entropy: Entropy,
    owner: Principal | None = None, force: bool = False,
) -> Joined:
    """Register with ``invitation``; for an application ``owner`` vouches. Durable when it returns.

    `RegistrationRefused` (``invite-used``, ``expired``, ``name-taken``), `NotRegistered` (``refused-key``),
    `IdentityError` (another coordinator), `CoordinatorUnreachable`, `TimedOut`. ``force``: what the home has under that
    name, or under any where it is no application's, is put aside. A try that broke off can be repeated with the same
    invitation: it leaves nothing, but its keys once the coordinator may have registered them (not those of an
    application, whose invitation is made for one command).
    """
    pending = _permanent_keys(store, invitation, entropy)
    newcomer = machine.Newcomer(
        invitation=invitation,
        identity=IdentityKey.from_seed(pending.identity),
        kem_key=read_private(pending.kem),
        curve_public=to_raw(curve_public(pending.curve)),
        not_after=int(clock.wall() + config.keys.lifetime),
        kept_card=pending.card,
        owner=owner.identity if owner else None,
        request_apart=config.registration.request == "apart",
        identifier=config.registration.identifier,
        seal_to=config.registration.seal_to,
    )

    def keep(card: bytes) -> None:
        store.save_pending(invitation.invite_id, encode(_Pending(pending.identity, pending.kem, pending.curve, card)))

    try:
        registered = await _register(ctx, newcomer, keep, entropy)
    except BaseException as error:
        if owner is not None or isinstance(error, RegistrationRefused):
            with contextlib.suppress(LocalIOError):
                store.drop_pending(invitation.invite_id)
        raise
    endpoints = tuple(invitation.endpoints)
    store.complete(
        Registration(
            name=invitation.name, kind=invitation.kind, uid=registered.uid, identity_private=pending.identity,
            kem_private=pending.kem, curve_secret=pending.curve, card=registered.card,
            perm_server_public=registered.perm_server, coordinator_card=registered.coordinator_card,
            coordinator_fingerprint=invitation.fingerprint, endpoints=endpoints, suite=invitation.suite,
            owner=owner_of(invitation.name),
        ),
        invitation.invite_id,
        put_aside=clock.wall() if force else None,
    )
    return Joined(invitation.name, newcomer.identity.public.fingerprint, endpoints)


async def _register(
    ctx: Context, newcomer: machine.Newcomer, keep: Callable[[bytes], None], entropy: Entropy
) -> machine.Registered:
    problem: ZkcError = TimedOut(
        "the registration was not finished in time", hint="run the same command again: the invitation still holds"
    )
    refusals = 0
    try:
        async with asyncio.timeout(REGISTRATION_SECONDS):
            for before in range(_ROUNDS):
                if before:
                    longest = BACKOFF_FIRST * 2**before
                    await asyncio.sleep(entropy.jitter(longest / 2, longest))
                for endpoint in newcomer.invitation.endpoints:
                    try:
                        return await _Conversation(ctx, newcomer, endpoint, keep).run()
                    except RegistrationRefused:
                        raise
                    except CoordinatorUnreachable as error:
                        problem = error
                    except NotRegistered as error:
                        problem = error
                        refusals += 1
                        if refusals == _REFUSALS_MAX:
                            raise
    except TimeoutError:
        pass
    raise problem


class _Conversation:
    """One try: the machine on one connection."""

    def __init__(
        self, ctx: Context, newcomer: machine.Newcomer, endpoint: str, keep: Callable[[bytes], None]
    ) -> None:
        self._newcomer = newcomer
        self._keep = keep
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()
        invitation = newcomer.invitation
        secret = invitation_curve_secret(invitation.secret).reveal()
        self._connection = Connection(
            ctx, endpoint, invitation.curve_key, curve_public(secret), secret, self._frames.put_nowait,
            if_refused="the invitation was used, cancelled or has expired: ask for a new one",
        )
        self._sent: list[bytes] = []
        """Bodies of the last step's messages: what an error may answer."""
        self._state: object = None

    async def run(self) -> machine.Registered:
        try:
            await self._connection.wait_up()
            self._perform(machine.create_hello(self._newcomer))
            while not isinstance(self._state, machine.Registered):
                self._consume(await self._next_frame())
            return self._state
        finally:
            self._connection.close()
            if self._state is not None:
                erase(self._state)

    async def _next_frame(self) -> bytes:
        frame = asyncio.ensure_future(self._frames.get())
        waiting: set[asyncio.Future[Any]] = {frame, self._connection.lost}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if frame.done():
            return frame.result()
        frame.cancel()
        raise CoordinatorUnreachable(
            f"the registration at {self._connection.endpoint} broke off", detail="broke-off",
            hint="run the same command again: the invitation still holds",
        )

    def _consume(self, frame: bytes) -> None:
        try:
            kind, body = split_control(frame)
            if kind is not ControlKind.REGISTRATION:
                raise PeerViolation("unexpected", "not a message of the registration")
            message = decode(body, RegMessage)
            if isinstance(message, RegError):
                raise self._told(message)
            self._perform(step(machine.TABLE, self._newcomer, self._state, message))
        except PeerViolation as violation:
            raise IdentityError(
                f"the coordinator at {self._connection.endpoint} is not the one that the invitation names,"
                " or has another identity since"
                if violation.detail == "identity"
                else f"the coordinator's answer did not verify ({violation})",
                detail=violation.detail, hint="ask whoever invited you for a new invitation",
            ) from None

    def _told(self, message: RegError) -> ZkcError:
        """An error of the coordinator; it proves that it holds the invitation, else it is a violation."""
        psk = invitation_psk(self._newcomer.invitation.secret)
        if not any(
            compare_digest(error_mac(psk, sent, message.code, message.detail), message.mac)
            for sent in self._sent
        ):
            raise PeerViolation("forged", "an error that does not prove that it knows the invitation")
        name = self._newcomer.invitation.name
        what = _REFUSALS.get(message.detail, "the coordinator refused the registration")
        text, hint = f"{name}: {what}", "ask for a new invitation"
        if owner_of(name) is not None and message.detail == "name-taken":
            hint = f"its registration ends with: zkc coordinator revoke {name}"
        if message.code == NotRegistered.code:
            return RegistrationRefused(text, detail=message.detail, hint=hint)
        return error_for(message.code, text, detail=message.detail, hint=hint)

    def _perform(self, result: Step) -> None:
        self._state = result.state
        self._sent = []
        for effect in result.effects:
            if isinstance(effect, machine.KeepCard):
                self._keep(effect.card)
            elif isinstance(effect, Send):
                body = encode(effect.message)
                self._sent.append(body)
                self._connection.send(control_frame(ControlKind.REGISTRATION, body))
            else:
                raise TypeError(f"unexpected effect {effect!r}")


_REFUSALS: Final = {
    "invite-used": "this invitation has been used by somebody else",
    "invite-unknown": "the coordinator does not know this invitation",
    "expired": "this invitation has expired, or one of the two clocks is wrong",
    "name-taken": "the name is taken",
    "owner-gone": "the owner of the application is no longer registered",
}


def _permanent_keys(store: KeyStore, invitation: InvitationText, entropy: Entropy) -> _Pending:
    """Those of an earlier try with this invitation that got as far as R5, or new ones, which are not kept before."""
    kept = store.pending(invitation.invite_id)
    if kept is not None:
        with contextlib.suppress(PeerViolation):
            found: _Pending = decode(kept, _Pending)
            return found
    return _Pending(
        entropy.bytes(64), suite_named(invitation.suite).generate().encode(), to_raw(generate_curve().secret), b""
    )

