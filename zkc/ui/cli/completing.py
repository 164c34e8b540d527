"""What a shell offers at TAB: commands, options, peers, ids. Quick and silent: whatever goes wrong, it offers less."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import click
from click.shell_completion import CompletionItem, get_completion_class

from zkc.ui.cli.options import Invocation, root

VARIABLE: Final = "_ZKC_COMPLETE"
"""Set by the scripts of ``zkc completion``: what to answer."""
_DAEMON_SECONDS: Final = 0.5
_OFFERED_MAX: Final = 500
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def answer(commands: Mapping[str, str], instruction: str) -> int:
    """What the shell asked for in the environment (``bash_complete`` and its like), on stdout; 0 in any case."""
    shell, _, _ = instruction.partition("_")
    completion = get_completion_class(shell)
    if completion is not None:
        with contextlib.suppress(Exception), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            sys.stdout.write(completion(root(commands), {"obj": Invocation()}, "zkc", VARIABLE).complete() + "\n")
    return 0


def script(commands: Mapping[str, str], shell: str) -> str:
    """What the shell reads once, to ask `answer` from then on."""
    completion = get_completion_class(shell)
    if completion is None:
        raise ValueError(shell)
    return completion(root(commands), {}, "zkc", VARIABLE).source()


def peers(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names that are pinned here or that the daemon knows to be there; the last one after a comma."""
    before, comma, last = begun.rpartition(",")
    given = set(before.split(","))
    names = {*_tried(lambda: _pinned(context)), *_tried(lambda: _listed(context))}
    return [
        CompletionItem(f"{before}{comma}{name}") for name in sorted(names)
        if name.startswith(last) and name not in given
    ][:_OFFERED_MAX]


def items(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Ids of the inbox, newest first, with what they are."""
    return _ids(reversed(list(_tried(lambda: _inbox(context)))), begun)


def pending(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Ids of what waits for a person."""
    return _ids(_tried(lambda: _waiting(context)), begun)


def jobs(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Ids of the outbox."""
    return _ids(_tried(lambda: _queued(context)), begun)


def _ids(found: Iterable[tuple[str, str]], begun: str) -> list[CompletionItem]:
    from zkc.rules.names import escape

    matching = ((id, what) for id, what in found if id.startswith(begun))
    return [CompletionItem(id, help=escape(what)) for id, what in matching][:_OFFERED_MAX]


def _tried(look: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    with contextlib.suppress(Exception):
        yield from look()


def _home(context: click.Context) -> Any:
    from zkc.stores.home import Home

    call = context.find_object(Invocation) or Invocation()
    return Home.resolve("client", call.options.home).check()


def _pinned(context: click.Context) -> list[str]:
    from zkc.ui.cli.homes import open_store

    with open_store(_home(context)) as store:
        return [pin.name for pin in store.pins()]


def _ask(context: click.Context, request: Any) -> Iterator[Any]:
    from zkc.client.control import ControlReply
    from zkc.net.local_client import LocalClient

    client: LocalClient[Any] = LocalClient(_home(context).socket_path(), ControlReply)
    yield from client.stream(request, within=_DAEMON_SECONDS)


def _listed(context: click.Context) -> Iterator[str]:
    from zkc.client.control import AskPeers

    for reply in _ask(context, AskPeers()):
        yield from (peer.name for peer in reply.peers)


def _inbox(context: click.Context) -> list[tuple[str, str]]:
    from zkc.ui.cli.homes import open_inbox

    with open_inbox(_home(context)) as inbox:
        return [(item.id, f"{item.name} from {item.sender}") for item in inbox.items()]


def _waiting(context: click.Context) -> Iterator[tuple[str, str]]:
    from zkc.client.control import AskPending

    for reply in _ask(context, AskPending()):
        yield from ((item.id, f"{item.name or 'a transfer'} from {item.sender}") for item in reply.items)


def _queued(context: click.Context) -> list[tuple[str, str]]:
    from zkc.stores.outbox import Outbox

    return [(job.id, f"{job.name} to {job.recipient}") for job in Outbox(_home(context)).jobs()]
