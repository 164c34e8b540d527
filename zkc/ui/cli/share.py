"""``zkc share``: what this home's owner lets others ask for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from zkc.errors import UnknownRecipient, UsageError
from zkc.ui.cli.kinds import offers
from zkc.ui.cli.options import Command, Invocation, nearest, pass_invocation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zkc.stores.keystore import KeyStore
    from zkc.stores.shares import Grantee, Share


@click.command(
    "share", cls=Command, example=(
        "zkc share\n"
        "zkc share builds /srv/builds --to carol --for carol,bob\n"
        "zkc share logs /var/log/shop --to @ops --note 'of the last week'\n"
        "zkc share --remove builds"
    ),
    help="Let the clients of --to ask this one to send PATH: a file, or a folder and any file or folder below it. "
    "Without words: list what is shared. A client is granted by the key that is pinned for it now: whoever has its "
    "name later, with another key, is not. A group of [groups] here, @NAME, stands for those who are in it now.",
    short_help="Let others ask for files of this client.",
)
@click.argument("name", required=False, shell_complete=offers("own_shares"))
@click.argument("path", required=False, shell_complete=offers("files"))
@click.option(
    "--to", metavar="NAME|@GROUP,...", multiple=True, shell_complete=offers("peers_and_groups"), help="Who may ask."
)
@click.option(
    "--for", "recipients", metavar="NAME|@GROUP,...", multiple=True, shell_complete=offers("peers_and_groups"),
    help="For whom it may be asked for [the asker alone].",
)
@click.option("--note", metavar="TEXT", default="", help="Told by zkc shares.")
@click.option("--remove", is_flag=True, help="Share NAME no longer; what is under way ends.")
@pass_invocation
def command(
    call: Invocation, *, name: str | None, path: str | None, to: tuple[str, ...], recipients: tuple[str, ...],
    note: str, remove: bool,
) -> None:
    """``share``, an object for each, with ``name``, ``path``, ``to``, ``for`` and ``note``."""
    from zkc.client.command_audit import CommandAudit
    from zkc.env import SystemClock
    from zkc.ids import check_name
    from zkc.rules.names import escape
    from zkc.stores.shares import RECIPIENTS_MAX, Share, change_shares, load_shares
    from zkc.ui.cli.homes import client_home, client_loaded, open_store

    home = client_home(call)
    loaded = client_loaded(call, home)
    notes = CommandAudit(home, loaded.config, SystemClock())
    if name is None:
        shares = load_shares(home)
    else:
        check_name(name, "share")
        if remove:
            if path is not None:
                raise UsageError("share: --remove takes NAME alone", hint="see zkc share --help")
            change = _without(name)
        else:
            if path is None or not to:
                raise UsageError("share: it takes NAME, PATH and --to", hint="see zkc share --help")
            real = _checked(path, note)
            with open_store(home) as store:
                granted = [_grantee(store, each) for each in _names(",".join(to), loaded.tables.groups, "--to")]
            whom = _names(",".join(recipients), loaded.tables.groups, "--for") if recipients else []
            if len(whom) > RECIPIENTS_MAX:
                raise UsageError("share: too many recipients", hint=f"at most {RECIPIENTS_MAX} of one share")
            change = _with(Share(name, real, granted, whom, note))
        if not home.exists():
            open_store(home).close()  # which says so
        before, shares = change_shares(home, change)
        for share in before if remove else shares:
            for who in share.to if share.name == name else ():
                notes.note("unshared" if remove else "shared", recipient=who.name)
    rows = [
        {
            "name": each.name, "path": each.path, "to": [who.name for who in each.to],
            "for": each.recipients or [who.name for who in each.to], "note": each.note,
        }
        for each in shares if name is None or each.name == name
    ]
    for row in rows:
        call.out.event("share", row)
    if not call.out.json:
        shown = {"to": ",".join, "for": ",".join, "path": escape, "note": escape}
        columns = {"name": "name", "path": "path", "to": "to", "for": "for", "note": "note"}
        call.out.table("share", rows, columns, shown)


def _checked(path: str, note: str) -> str:
    """Where ``path`` leads."""
    from zkc.rules.names import escape
    from zkc.stores.shares import NOTE_BYTES_MAX

    if not os.path.exists(path):
        raise UsageError(f"share: there is no {escape(path)}", hint="name a file or a folder that is there")
    real = os.path.realpath(path)
    for what, text in (("path", real), ("note", note)):
        if text.encode(errors="replace").decode() != text:
            raise UsageError(f"share: the {what} is no UTF-8", hint="give it another name, or other words")
    if len(note.encode()) > NOTE_BYTES_MAX:
        raise UsageError("share: the note is too long", hint=f"at most {NOTE_BYTES_MAX} bytes")
    return real


def _without(name: str) -> Callable[[list[Share]], list[Share]]:
    def change(shares: list[Share]) -> list[Share]:
        others = [each for each in shares if each.name != name]
        if others == shares:
            near = nearest(name, [each.name for each in shares])
            hint = f"did you mean {near}?" if near else "zkc share lists what is"
            raise UsageError(f"share: {name} is not shared here", hint=hint)
        return others

    return change


def _with(share: Share) -> Callable[[list[Share]], list[Share]]:
    from zkc.stores.shares import SHARES_MAX

    def change(shares: list[Share]) -> list[Share]:
        others = [each for each in shares if each.name != share.name]
        if len(others) >= SHARES_MAX:
            raise UsageError(f"share: there are {SHARES_MAX} shares, and no more may be", hint="zkc share lists them")
        return [*others, share]

    return change


def _names(words: str, groups: Mapping[str, object], option: str) -> list[str]:
    """Each once; a group stands for who is in it now, and has to name them: a pattern is no identity."""
    from zkc.ids import check_name, is_name
    from zkc.rules.names import escape

    names: list[str] = []
    for word in words.split(","):
        if not word.startswith("@"):
            names.append(check_name(word, option))
            continue
        members = groups.get(word[1:])
        if not isinstance(members, list):
            near = nearest(word[1:], groups)
            raise UsageError(
                f"share: {option}: there is no group {escape(word[:80])} in this home's configuration",
                hint=f"did you mean @{near}?" if near else "[groups] in its config.toml says which there are; a "
                "coordinator's are not known to its clients",
            )
        if unnamed := [each for each in members if not is_name(each)]:
            raise UsageError(
                f"share: {option}: {word} has the pattern {escape(unnamed[0])}, which names nobody",
                hint="name each client: whoever gets such a name later is none that you have granted anything",
            )
        names += members
    return list(dict.fromkeys(names))


def _grantee(store: KeyStore, name: str) -> Grantee:
    """``name`` by its pinned key; a coordinator alone cannot say whose a name is."""
    from zkc.stores.shares import Grantee

    pin = store.pin(name)
    if pin is None:
        raise UnknownRecipient(
            f"no key is pinned for {name}", detail="not-pinned", hint=f"zkc verify {name} pins it; then share again"
        )
    return Grantee(name, pin.fingerprint.hex())
