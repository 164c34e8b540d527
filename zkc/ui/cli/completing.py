"""What a shell offers at TAB: commands, options, files, peers, ids, shares. Quick and silent: whatever goes wrong, it
offers less, and what takes too long is not offered."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    split_arg_string,
)

from zkc.ui.cli.options import Invocation, Options, root

VARIABLE: Final = "_ZKC_COMPLETE"
"""Set by the scripts of ``zkc completion``: what to answer."""
_DAEMON_SECONDS: Final = 0.5
_WHOLE_SECONDS: Final = 2.0
"""After which nothing is offered: who types does not wait longer."""
_OFFERED_MAX: Final = 500
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


class _Bash(BashComplete):
    """With the whole line in place of bash's words, which end at a colon; and no blank after what goes on."""

    source_template = """\
%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}" type value before=
    local word="${line##*[[:space:]]}"
    # What stands before a colon is a word of its own for readline, and stays.
    if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then before="${word%%"${word##*:}"}"; fi
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                if [[ $value == *[:/] ]]; then compopt -o nospace; fi
                COMPREPLY+=("${value#"$before"}") ;;
        esac
    done < <(env COMP_WORDS="$line" COMP_CWORD= %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        if os.environ["COMP_CWORD"]:
            return super().get_completion_args()
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        begun = words.pop() if words and not line[-1:].isspace() else ""
        return words[1:], begun


class _Zsh(ZshComplete):
    """With no blank after what goes on; what stands before ``=`` stays."""

    source_template = ZshComplete.source_template.replace(
        "        compadd -U -V unsorted -a completions\n",
        "        local -a open=(${(M)completions:#*[:/]}) whole=(${completions:#*[:/]})\n"
        "        (( ! $#open )) || compadd -U -S '' -V unsorted -a open\n"
        "        (( ! $#whole )) || compadd $how -V unsorted -a whole\n",
    ).replace(
        "    for type key descr in",
        "    local -a how=(-U)  # which forgets what compset has put aside\n"
        "    if [[ $PREFIX == -*=* ]]; then compset -P '*='; how=(); fi\n\n"
        "    for type key descr in",
    )


class _Fish(FishComplete):
    """With the option before ``=``, which is one word with its value there."""

    def format_completion(self, item: CompletionItem[Any]) -> str:
        option, equals, _ = os.environ["COMP_CWORD"].partition("=")
        if equals and option.startswith("-") and item.type == "plain":
            item.value = f"{option}={item.value}"
        return super().format_completion(item)


_SHELLS: Final[Mapping[str, type[ShellComplete]]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


def answer(commands: Mapping[str, str], instruction: str) -> int:
    """What the shell asked for in the environment (``bash_complete`` and its like), on stdout; 0 in any case."""
    shell, _, _ = instruction.partition("_")
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, _WHOLE_SECONDS)
    with contextlib.suppress(Exception), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        sys.stdout.write(_made(commands, shell, {"obj": Invocation(Options(batch=True))}).complete() + "\n")
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    return 0


def script(commands: Mapping[str, str], shell: str) -> str:
    """What the shell reads once, to ask `answer` from then on."""
    return _made(commands, shell, {}).source()


def _made(commands: Mapping[str, str], shell: str, attributes: dict[str, Any]) -> ShellComplete:
    return _SHELLS[shell](root(commands), attributes, "zkc", VARIABLE)


def files(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """What the shell itself offers where a file is named."""
    return [CompletionItem(begun, type="file")]


def folders(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The same for a folder."""
    return [CompletionItem(begun, type="dir")]


def peers(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names that are pinned here or that the daemon knows to be there; the last one after a comma."""
    before, comma, last = begun.rpartition(",")
    given = set(before.split(","))
    names = {*_tried(lambda: pinned(context)), *_tried(lambda: _listed(context))}
    return [
        CompletionItem(f"{before}{comma}{name}") for name in sorted(names)
        if name.startswith(last) and name not in given
    ][:_OFFERED_MAX]


def peers_and_groups(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The same, and ``@NAME`` for the groups of this home's configuration."""
    if not begun.rpartition(",")[2].startswith("@"):
        return peers(context, parameter, begun)
    before, comma, last = begun.rpartition(",")
    found = _words((f"@{name}" for name in _tried(lambda: _groups(context))), last)
    return [CompletionItem(f"{before}{comma}{each.value}") for each in found]


def items(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Ids of the inbox, newest first, with what they are."""
    return _ids(reversed(list(_tried(lambda: _inbox(context)))), begun)


def pending(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Ids of what waits for a person."""
    return _ids(_tried(lambda: _waiting(context)), begun)


def jobs(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Ids of the outbox."""
    return _ids(_tried(lambda: _queued(context)), begun)


def applications(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names of this home's applications, as ``--app`` takes them."""
    return _words(_tried(lambda: _registered(context)), begun)


def own_shares(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names of what this home shares."""
    return _words(_tried(lambda: _shared_here(context)), begun)


def fetchable(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """``CLIENT:SHARE``: first the names of peers, behind the colon what ``zkc shares`` lists."""
    client, colon, share = begun.partition(":")
    if not colon:
        known = peers(context, _parameter, begun) if "," not in begun else []
        return [CompletionItem(f"{each.value}:") for each in known]
    return [
        CompletionItem(f"{client}:{each.value}") for each in _words(_tried(lambda: _shared_by(context, client)), share)
    ]


def sendable(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """A file; with ``--from CLIENT`` what that one shares."""
    client = context.params.get("sender")
    if not client:
        return files(context, _parameter, begun)
    return _words(_tried(lambda: _shared_by(context, client)), begun)


def clients(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names that are registered at the coordinator of this home."""
    return _words(_tried(lambda: _clients(context)), begun)


def invited(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names for which there are open invitations at the coordinator of this home."""
    return _words(_tried(lambda: _invited(context)), begun)


def _words(found: Iterable[str], begun: str) -> list[CompletionItem]:
    return [CompletionItem(each) for each in sorted({*found}) if each.startswith(begun)][:_OFFERED_MAX]


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


def pinned(context: click.Context) -> list[str]:
    """Names of those whose keys are pinned here."""
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
        yield from _names(peer.name for peer in reply.peers)


def _names(told: Iterable[str]) -> Iterator[str]:
    """Those that are names: what somebody else told becomes words of a line of shell."""
    from zkc.ids import is_name

    return filter(is_name, told)


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


def _groups(context: click.Context) -> list[str]:
    from zkc.config import load

    return list(load("client", _home(context).config_file, os.environ).tables.groups)


def _registered(context: click.Context) -> list[str]:
    from zkc.ui.cli.homes import open_store

    with open_store(_home(context)) as store:
        names = [each.name.partition("/")[2] for each in store.registrations()]
    return [name for name in names if name]


def _shared_here(context: click.Context) -> list[str]:
    from zkc.stores.shares import load_shares

    return [share.name for share in load_shares(_home(context))]


def _shared_by(context: click.Context, client: str) -> list[str]:
    """Asked over a link of this process, but only beside a daemon: without one there may be no way to anybody."""
    from zkc.client.control import AskStatus

    call = context.find_object(Invocation)
    if call is None or not list(_ask(context, AskStatus())):
        return []
    from zkc.ids import check_name
    from zkc.ui.cli.fetching import asker_of

    with asker_of(call, check_name(client)) as asker:
        kinds = {share.name: share.kind for share in asker.shares()}
    return [f"{name}/" if kinds[name] == "folder" else name for name in _names(kinds)]


def _clients(context: click.Context) -> list[str]:
    from zkc.coordinator.admin import clients

    return [each.name for each in clients(_coordinator(context)) if each.revoked is None]


def _invited(context: click.Context) -> list[str]:
    from zkc.coordinator.admin import list_invitations

    return [each.name for each in list_invitations(_coordinator(context)) if each.state == "open"]


def _coordinator(context: click.Context) -> Any:
    from zkc.stores.home import Home

    call = context.find_object(Invocation) or Invocation()
    return Home.resolve("coordinator", call.options.home).check()
