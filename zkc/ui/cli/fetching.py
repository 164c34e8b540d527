"""What the commands have in common that ask another client to send: ``get``, ``send --from``, ``shares``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from zkc.errors import PolicyRefused, RecipientOffline, UsageError, ZkcError

if TYPE_CHECKING:
    from zkc.client.events import Delivery
    from zkc.client.fetching import Asker
    from zkc.ui.cli.options import Invocation

_AGAIN_SECONDS: Final = 0.5


def check_words(sender: str, recipients: Sequence[str], paths: Sequence[str], *, other: bool) -> str:
    """The one path; `UsageError` for what cannot be asked for."""
    from zkc.ids import check_name

    check_name(sender, "--from")
    if len(recipients) != 1 or len(paths) != 1 or paths[0] == "-":
        raise UsageError("send: --from takes one recipient and one path", hint=f"zkc shares {sender} lists them")
    if other:
        raise UsageError(
            "send: with --from only --note, --wait, --timeout and --receipt can be given",
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


def fetch(
    call: Invocation, sender: str, recipient: str, path: str, note: str = "", *, wait: float | None = None,
    timeout: float | None = None, expect: Callable[[bytes, bytes], None] = lambda _fingerprint, _tid: None,
) -> Delivery:
    """Asks, shows what comes of it as ``zkc send`` does, and returns the delivery. ``expect``: see `Asker.fetch`."""
    from zkc.env import SystemClock
    from zkc.ids import check_name
    from zkc.ui.cli.homes import pause
    from zkc.ui.cli.send import Shown
    from zkc.ui.cli.signals import Signals
    from zkc.wire.messages import AskWhat

    check_name(recipient, "recipient")
    share, _, below = path.partition("/")
    what = AskWhat(check_name(share, "share"), below, note)
    clock = SystemClock()
    end = clock.monotonic() + (wait or 0.0)
    with Signals(), asker_of(call, sender) as asker, Shown(call.out, recipient) as shown:
        while True:
            try:
                done = asker.fetch(recipient, what, shown.event, timeout, expect)
            except PolicyRefused as error:
                if error.detail == "share":
                    _hint_share(asker, error, share)
                raise
            except RecipientOffline:
                if clock.monotonic() >= end:
                    raise
                pause(_AGAIN_SECONDS)
            else:
                shown.done(done)
                return done


def _hint_share(asker: Asker, error: PolicyRefused, share: str) -> None:
    """The nearest of what ``zkc shares`` lists, which may be none."""
    from zkc.ui.cli.meant import said
    from zkc.ui.cli.options import nearest

    with contextlib.suppress(ZkcError):
        names = [each.name for each in asker.shares()]
        if share not in names and (found := nearest(share, names)):
            said(error, found)
