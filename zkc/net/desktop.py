"""The desktop of this machine's user over D-Bus: whether its sessions are in use (logind), and notifications.

Needs the package's extra ``desktop``. Where it, the bus or the service is missing, nothing is known and nothing shown.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from dbus_fast.aio import MessageBus

_LOGIN: Final = ("org.freedesktop.login1", "/org/freedesktop/login1")
_NOTICES: Final = ("org.freedesktop.Notifications", "/org/freedesktop/Notifications")
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_ANSWER_SECONDS: Final = 5.0


class NoBusError(Exception):
    """There is no such bus, nobody answers at it, or the answer is of another form."""


@dataclass(frozen=True, slots=True)
class Session:
    """One session of a user, as logind has it (org.freedesktop.login1)."""

    id: str
    terminal: bool
    """Of a terminal, in place of a desktop."""
    locked: bool
    idle: bool
    idle_since: float
    """Seconds since 1970: of a terminal when it was last used, of a desktop when ``idle`` last changed; 0: never."""


class Bus:
    """A connection to the ``session`` or the ``system`` bus, opened at its first use and again after it was lost."""

    def __init__(self, which: Literal["session", "system"]) -> None:
        self._which = which
        self._bus: MessageBus | None = None

    async def call(self, to: tuple[str, str], interface: str, member: str, signature: str, *body: Any) -> list[Any]:
        """What the method at the service and path ``to`` returns. `NoBusError`."""
        try:
            from dbus_fast import Message, MessageType  # noqa: PLC0415 - an extra of the package
            from dbus_fast.errors import DBusFastError  # noqa: PLC0415
        except ImportError:
            raise NoBusError("the extra zkc[desktop] is not installed") from None
        asked = Message(
            destination=to[0], path=to[1], interface=interface, member=member, signature=signature, body=list(body)
        )
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer = await (await self._connected()).call(asked)
        except (OSError, EOFError, TimeoutError, ValueError, DBusFastError) as error:
            self.close()
            raise NoBusError(f"{self._which} bus: {str(error) or type(error).__name__}") from None
        if answer.message_type is not MessageType.METHOD_RETURN:
            raise NoBusError(f"{to[0]}: {answer.error_name}")
        return list(answer.body)

    def close(self) -> None:
        if self._bus is not None:
            with contextlib.suppress(Exception):
                self._bus.disconnect()
            self._bus = None

    async def _connected(self) -> MessageBus:
        from dbus_fast import BusType  # noqa: PLC0415
        from dbus_fast.aio import MessageBus  # noqa: PLC0415

        if self._bus is None or not self._bus.connected:
            kind = BusType.SESSION if self._which == "session" else BusType.SYSTEM
            self._bus = await MessageBus(bus_type=kind).connect()
        return self._bus


async def user_sessions(bus: Bus, uid: int) -> list[Session]:
    """Those in which the user ``uid`` works. ``bus``: the system's. `NoBusError`."""
    (listed,) = await bus.call(_LOGIN, "org.freedesktop.login1.Manager", "ListSessions", "")
    found = []
    for id, owner, _name, _seat, path in listed:
        if owner != uid:
            continue
        interface = "org.freedesktop.login1.Session"
        (told,) = await bus.call((_LOGIN[0], path), _PROPERTIES, "GetAll", "s", interface)
        about = {name: variant.value for name, variant in told.items()}
        if about.get("Class") == "user":
            found.append(Session(
                id, about.get("Type") == "tty", bool(about.get("LockedHint")), bool(about.get("IdleHint")),
                about.get("IdleSinceHint", 0) / 1e6,
            ))
    return found


async def notify(bus: Bus, summary: str, body: str) -> None:
    """A notification (desktop-notifications 1.2, `Notify`). ``bus``: the session's. `NoBusError`.

    ``body`` is text: what would be markup in it is shown as it is.
    """
    from html import escape  # noqa: PLC0415 - no daemon without a desktop needs its tables

    words: tuple[Any, ...] = ("zkc", 0, "", summary, escape(body, quote=False), [], {}, -1)
    await bus.call(_NOTICES, "org.freedesktop.Notifications", "Notify", "susssasa{sv}i", *words)
