"""The client's home as a command finds it. Nothing here makes a folder: only ``join`` and ``daemon`` do."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from zkc.config import ClientConfig, Loaded, load
from zkc.errors import NotRegistered
from zkc.stores.files import check_file
from zkc.stores.home import Home
from zkc.ui.cli.options import Invocation, current_out
from zkc.ui.cli.passphrases import passphrase

if TYPE_CHECKING:
    from zkc.client.access import Access
    from zkc.env import Clock, Entropy
    from zkc.stores.inbox import Inbox
    from zkc.stores.keystore import KeyStore
    from zkc.ui.cli.output import Out


def client_home(call: Invocation) -> Home:
    """The client's home that is meant, checked. `UsageError` where it is a coordinator's."""
    return Home.resolve("client", call.options.home).check()


def client_config(call: Invocation, home: Home, options: Mapping[str, object] | None = None) -> ClientConfig:
    """Its configuration; what is odd in the environment is told. `UsageError` for a file that is wrong: asked of
    every command, also one that needs none of its values, lest a daemon's next start be the first to tell."""
    return client_loaded(call, home, options).config


def client_loaded(call: Invocation, home: Home, options: Mapping[str, object] | None = None) -> Loaded[ClientConfig]:
    """The same, with where each value came from, and the groups."""
    loaded = load("client", home.config_file, os.environ, options or {})
    for notice in loaded.notices:
        call.out.notice(notice)
    return loaded


def open_store(home: Home, out: Out | None = None) -> KeyStore:
    """Its keys; `NotRegistered` (``no-registration``) in a home in which nobody ever joined, where nothing is made.

    ``out``: of the command, where a thread may unlock them that is not its own.
    """
    from zkc.stores.keystore import KeyStore

    _check_keys(home)
    return KeyStore.open(home, passphrase=partial(passphrase, out))


@contextlib.contextmanager
def reached(home: Home, config: ClientConfig, clock: Clock, entropy: Entropy) -> Iterator[Access]:
    """The coordinator. The errors of `open_store`, and `NotRegistered`, come at once where there is no daemon. Where
    one should be, the keys stay closed, and what is wrong with them is told by the call that finds it gone."""
    from zkc.client.access import access_without_keys, open_access

    out = current_out()
    with contextlib.ExitStack() as stores:
        if os.path.lexists(home.socket_path()):
            _check_keys(home)
            check_file(home.keys_db)
            access = access_without_keys(
                home, lambda: stores.enter_context(open_store(home, out)), config, clock, entropy
            )
        else:
            access = open_access(home, stores.enter_context(open_store(home, out)), config, clock, entropy)
        with contextlib.closing(access):
            yield access


def _check_keys(home: Home) -> None:
    """`NotRegistered` where there are none; what this process holds is protected from here on (attack K07)."""
    from zkc.hardening import protect_memory

    protect_memory()
    if not os.path.lexists(home.keys_db):
        raise NotRegistered(
            f"nobody is registered in {home.data}", detail="no-registration", hint="zkc join, with an invitation"
        )


def open_inbox(home: Home) -> Inbox:
    """Its inbox; `NotRegistered` (``no-registration``) in a home in which nobody ever joined, where nothing is made.

    `LocalIOError` (``permission``) beside keys that others can read, though none is read here (attack K01): who only
    ever receives hears of it too.
    """
    from zkc.stores.inbox import Inbox

    if not home.exists():
        open_store(home).close()
    if os.path.lexists(home.keys_db):
        check_file(home.keys_db)
    return Inbox.open(home)


def pause(seconds: float) -> None:
    """Wait; a signal ends it."""
    select.select((), (), (), seconds)
