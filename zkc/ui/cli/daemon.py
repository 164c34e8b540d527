"""``zkc daemon``: the client daemon, in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zkc.ui.cli.options import Command, Invocation, pass_invocation

if TYPE_CHECKING:
    from zkc.client.daemon import Ready
    from zkc.config import ClientConfig


@click.command(
    "daemon", cls=Command, example="zkc daemon\nzkc --home /srv/zkc daemon --debug",
    help="Run the client daemon in the foreground: be online, receive into the inbox, and link for the commands of "
    "this home. Says 'ready' on stdout, logs on stderr, ends on SIGTERM; SIGHUP reads the configuration again.",
    short_help="Be online and receive.",
)
@pass_invocation
def command(call: Invocation) -> None:
    """``ready`` with ``endpoint`` (the coordinator's) and ``fingerprint`` (this client's)."""
    import asyncio
    import os

    from zkc import logs
    from zkc.client.daemon import DESCRIPTORS, run
    from zkc.config import load
    from zkc.env import SystemClock, SystemEntropy
    from zkc.hardening import claim_descriptors, protect_memory
    from zkc.service import Manager
    from zkc.ui.cli.homes import client_config, client_home, open_store

    manager = Manager.of(os.environ)
    protect_memory()
    claim_descriptors(DESCRIPTORS)
    home = client_home(call)
    with open_store(home) as store:
        store.unlock()
        master = store.master
    home.prepare()
    options = {"log.level": "debug"} if call.options.debug else {}
    log = client_config(call, home, options).log
    logs.configure(log.format, log.level)

    def read_config() -> ClientConfig:
        return load("client", home.config_file, os.environ, options).config

    def ready(of: Ready) -> None:
        told = {"endpoint": of.endpoint, "fingerprint": of.fingerprint}
        call.out.item("ready", told, f"ready {of.endpoint} {of.fingerprint}")

    asyncio.run(
        run(
            home, read_config, clock=SystemClock(), entropy=SystemEntropy(), on_ready=ready, master=master,
            manager=manager,
        )
    )
