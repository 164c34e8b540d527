"""What the commands have in common that ask another client to send: ``get``, ``send --from``, ``shares``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from zkc.errors import PolicyRefused, RecipientOffline, TimedOut, UsageError, ZkcError

if TYPE_CHECKING:
    from zkc.client.events import Delivery
    from zkc.client.fetching import Asker
    from zkc.ui.cli.options import Invocation
    from zkc.wire.messages import AskWhat

_AGAIN_SECONDS: Final = 0.5


def check_words(sender: str, paths: Sequence[str], *, other: bool) -> str:
    """The one path; `UsageError` for what cannot be asked for."""
    from zkc.ids import check_name

    check_name(sender, "--from")
    if len(paths) != 1 or paths[0] == "-":
        raise UsageError("send: --from takes one path", hint=f"zkc shares {sender} lists them")
    if other:
        raise UsageError(
            "send: with --from only --note, --exclude, --wait, --timeout and --receipt can be given",
            hint=f"how it is sent is for {sender} to say",
        )
    return paths[0]


@contextlib.contextmanager
def asker_of(call: Invocation, sender: str) -> Iterator[Asker]:
    """The home's registration, over a link of this process: it may ask beside a daemon."""
    from zkc.client.by_link import ByLink
    from zkc.client.command_audit import CommandAudit
    from zkc.client.fetching import Asker
    from zkc.client.principal import load_main
    from zkc.env import SystemClock, SystemEntropy
    from zkc.ui.cli.homes import client_config, client_home, open_store

    home = client_home(call)
    clock, entropy = SystemClock(), SystemEntropy()
    with open_store(home) as store:
        config = client_config(call, home)
        notes = CommandAudit(home, config, clock)
        with contextlib.closing(ByLink(store, config, clock, entropy, notes)) as link:
            link.card(sender)  # it is in the key log; a pin moves to a new identity; the coordinator's may be new, too
            yield Asker(home, store, load_main(store), link.ask, link.card, sender, clock, entropy)


def wish(path: str, note: str = "", exclude: Sequence[str] = ()) -> AskWhat:
    """SHARE or SHARE/PATH, below SHARE however many slashes there are; `UsageError` for what does not fit into a
    request."""
    from zkc.constants import ASK_WHAT_MAX, EXCLUDES_MAX
    from zkc.errors import PeerViolation
    from zkc.ids import check_name
    from zkc.wire.codec import decode, encode
    from zkc.wire.messages import AskWhat

    share, _, below = path.partition("/")
    below = "/".join(part for part in below.split("/") if part not in ("", "."))
    what = AskWhat(check_name(share, "share"), below, note, list(exclude))
    try:
        encoded = encode(what)
        decode(encoded, AskWhat)
    except (PeerViolation, UnicodeEncodeError):
        encoded = b""
    if not 0 < len(encoded) <= ASK_WHAT_MAX:
        raise UsageError(
            "path, note and --exclude are too long for a request, or no UTF-8",
            hint=f"{ASK_WHAT_MAX} bytes in all, and {EXCLUDES_MAX} times --exclude",
        )
    if any(not each.strip("/") for each in exclude):
        raise UsageError("--exclude is empty", hint="give it a name, a path in the folder, or a glob")
    return what


def fetch(
    call: Invocation, sender: str, recipient: str, what: AskWhat, *, wait: float | None = None,
    timeout: float | None = None, expect: Callable[[bytes, bytes], None] = lambda _fingerprint, _tid: None,
) -> Delivery:
    """Asks, shows what comes of it as ``zkc send`` does, and returns the delivery. ``expect``: see `Asker.fetch`."""
    from zkc.env import SystemClock
    from zkc.ids import check_name
    from zkc.ui.cli.homes import pause
    from zkc.ui.cli.send import Shown
    from zkc.ui.cli.signals import Signals

    check_name(recipient, "recipient")
    clock = SystemClock()
    end = clock.monotonic() + (wait or 0.0)
    with Signals(), asker_of(call, sender) as asker, Shown(call.out, recipient) as shown:
        while True:
            try:
                done = asker.fetch(recipient, what, shown.event, timeout, expect)
            except PolicyRefused as error:
                if error.detail == "share":
                    _hint_share(asker, error, what.share)
                raise
            except RecipientOffline:
                if clock.monotonic() >= end:
                    raise
                pause(_AGAIN_SECONDS)
            else:
                shown.done(done)
                return done


def fetch_each(
    call: Invocation, sender: str, copies: Mapping[str, Path | None], what: AskWhat, *, wait: float | None,
    timeout: float | None,
) -> int:
    """For one recipient after the other, each with a delivery of its own; the highest exit code."""
    from zkc.env import SystemClock
    from zkc.ui.cli.meant import add_hint_about
    from zkc.ui.cli.send import copy_receipt

    clock, worst = SystemClock(), 0
    end = None if timeout is None else clock.monotonic() + timeout
    for name, copy in copies.items():
        try:
            left = None if end is None else end - clock.monotonic()
            if left is not None and left <= 0:
                raise TimedOut(f"nothing was asked of {sender} for {name}: the time was over", detail="timeout")
            copy_receipt(fetch(call, sender, name, what, wait=wait, timeout=left), copy)
        except ZkcError as error:
            add_hint_about(click.get_current_context(), error, name)
            call.out.error(error, about=name)
            worst = max(worst, error.code)
    return worst


def _hint_share(asker: Asker, error: PolicyRefused, share: str) -> None:
    """The nearest of what ``zkc shares`` lists, which may be none."""
    from zkc.ids import is_name
    from zkc.ui.cli.meant import said
    from zkc.ui.cli.options import nearest

    with contextlib.suppress(ZkcError):
        names = [each.name for each in asker.shares() if is_name(each.name)]
        if share not in names and (found := nearest(share, names)):
            said(error, found)
