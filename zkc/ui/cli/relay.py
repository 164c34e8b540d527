"""``zkc relay``: a blind forwarder for clients of which neither can connect to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zkc.ui.cli.options import Command, Invocation, pass_invocation

if TYPE_CHECKING:
    from zkc.client.relay import Ready

_LISTEN = "tcp://*:7671"


@click.command(
    "relay", cls=Command, example="zkc relay --listen tcp://192.0.2.7:7671",
    help="Pass on ciphertext between clients of which neither can connect to the other. Joined like a client "
    "('zkc join'), and named in the coordinator's [relay]. Says 'ready' on stdout, logs on stderr, ends on SIGTERM.",
    short_help="Forward ciphertext for clients that cannot reach each other.",
)
@click.option("--listen", metavar="ENDPOINT", default=_LISTEN, help=f"Where both ends connect [{_LISTEN}].")
@pass_invocation
def command(call: Invocation, *, listen: str) -> None:
    """``ready`` with ``endpoint`` (where both ends connect) and ``fingerprint`` (this client's)."""
    import asyncio
    import os

    from zkc import logs
    from zkc.client.relay import DESCRIPTORS, run
    from zkc.env import SystemClock, SystemEntropy
    from zkc.hardening import claim_descriptors, protect_memory
    from zkc.rules.endpoints import parse_endpoint
    from zkc.service import Manager
    from zkc.ui.cli.homes import client_config, client_home, open_store

    where = parse_endpoint(listen, "relay: --listen", listen=True)
    manager = Manager.of(os.environ)
    protect_memory()
    claim_descriptors(DESCRIPTORS)
    home = client_home(call)
    with open_store(home) as store:
        store.unlock()
        master = store.master
    home.prepare()
    config = client_config(call, home, {"log.level": "debug"} if call.options.debug else {})
    logs.configure(config.log.format, config.log.level)

    def ready(of: Ready) -> None:
        told = {"endpoint": of.endpoint, "fingerprint": of.fingerprint}
        call.out.item("ready", told, f"ready {of.endpoint} {of.fingerprint}")

    asyncio.run(
        run(
            home, config, where, clock=SystemClock(), entropy=SystemEntropy(), on_ready=ready, master=master,
            manager=manager,
        )
    )
