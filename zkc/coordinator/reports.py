"""What a supervisor and the process that serves tell each other: JSON lines over a socket, a key in shared memory."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

import msgspec
from msgspec import Struct

from zkc.decoders import json_decoder

SUSPECT_BYTES: Final = 128
_KEY_BYTES: Final = 32
_LINE_MAX: Final = 64 * 1024

Suspect = tuple[bytes, str]
"""CURVE key (32 bytes) and User-Id of a peer."""


class Orders(Struct, frozen=True):
    """Supervisor to process, once: where to live and what to do."""

    supervisor: int
    """Process id: whose child this has to be."""
    data: str
    config: str
    runtime: str
    """The three folders of `Home`."""
    options: dict[str, object]
    listen: list[str]
    alive_every: float
    """Seconds between two `Alive`; 0: nobody waits for them."""


class Started(Struct, frozen=True, tag="started"):
    """Process to supervisor: clients can connect."""

    endpoints: list[str]
    fingerprint: str


class Alive(Struct, frozen=True, tag="alive"):
    """Process to supervisor, again and again: the event loop turns."""


class Reloaded(Struct, frozen=True, tag="reloaded"):
    """Process to supervisor: what SIGHUP asks for is done."""


class Failed(Struct, frozen=True, tag="failed"):
    """Process to supervisor: a `ZkcError` ended it."""

    code: int
    message: str
    detail: str
    hint: str


def write_line(to: socket.socket, message: Struct) -> None:
    """Says it; a listener that has gone is none of the speaker's business."""
    with contextlib.suppress(OSError):
        to.sendall(msgspec.json.encode(message) + b"\n")


def read_line(source: socket.socket, kind: Any) -> Any:
    """The next line, as a ``kind`` (a Struct class or a union of tagged ones); None where the other side has gone."""
    line = bytearray()
    while not line.endswith(b"\n"):
        try:
            part = source.recv(1)
        except OSError:
            return None
        if not part or len(line) > _LINE_MAX:
            return None
        line += part
    try:
        return json_decoder(kind).decode(line)
    except msgspec.MsgspecError:
        return None


def pack_suspect(suspect: Suspect | None) -> bytes:
    """`SUSPECT_BYTES` that say whose doing an abort would be."""
    key, who = suspect or (b"", "")
    return (key + who.encode("ascii", "replace"))[:SUSPECT_BYTES].ljust(SUSPECT_BYTES, b"\0")


def unpack_suspect(record: bytes) -> Suspect | None:
    """What `pack_suspect` was given."""
    if not any(record):
        return None
    return record[:_KEY_BYTES], record[_KEY_BYTES:].rstrip(b"\0").decode("ascii", "replace")
