"""``zkc reply``: an answer to whom an item of the inbox came from."""

from __future__ import annotations

from typing import Any, Final

import click

from zkc.errors import IdentityError
from zkc.ui.cli import send
from zkc.ui.cli.kinds import offers
from zkc.ui.cli.options import Command, Invocation, pass_invocation

_NOT_HERE: Final = {"recipient", "sender"}


@pass_invocation
def _reply(call: Invocation, /, *, id: str, **words: Any) -> Any:
    """The events of ``send``."""
    from zkc.ui.cli.homes import client_config, client_home, open_inbox, open_store

    home = client_home(call)
    client_config(call, home)
    with open_inbox(home) as inbox:
        item = inbox.find(id)
    with open_store(home) as store:
        pin = store.pin(item.sender)
        known = () if pin is None else (pin.fingerprint, *store.former(item.sender))
    if item.sender_fp not in known:
        raise IdentityError(
            f"the key that sent this is not the one that is pinned for {item.sender} now; nothing was sent",
            detail="identity", hint=f"zkc verify {item.sender}; zkc send {item.sender} sends it all the same",
        )
    sending: Any = send.command.callback
    return sending(recipient=item.sender, sender=None, **words)


command = Command(
    "reply", callback=_reply,
    params=[
        click.Argument(["id"], shell_complete=offers("items")),
        *(each for each in send.command.params if each.name not in _NOT_HERE and each.expose_value),
    ],
    example="zkc reply 3f9a -m 'thank you'\nzkc reply 3f9a answer.pdf",
    help="Send a message, files or standard input to whom the item ID of the inbox came from: to the very key that "
    "sent it. Takes what zkc send takes.",
    short_help="Answer whoever sent an item.",
)
