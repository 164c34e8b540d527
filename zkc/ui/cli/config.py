"""``zkc config``: each value of the configuration, and where it came from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from zkc.errors import UsageError
from zkc.ui.cli.options import Command, Invocation, pass_invocation

if TYPE_CHECKING:
    from zkc.stores.home import Home


@click.command(
    "config", cls=Command, example=(
        "zkc config\n"
        "zkc config --show-origin\n"
        "ZKC_TRANSFER_CHUNK=1M zkc config --json"
    ),
    help="Show each value of the configuration, defaults included.",
)
@click.option("--show-origin", is_flag=True, help="Show where each value came from: file and line, variable, default.")
@pass_invocation
def command(call: Invocation, *, show_origin: bool) -> None:
    """Text is what a configuration file would say, with dotted keys; an object holds ``key``, ``value``, ``origin``."""
    import json

    from zkc.config import load

    home = home_of_either_role(call.options.home)
    loaded = load(home.role, home.config_file, os.environ)
    for notice in loaded.notices:
        call.out.notice(notice)
    rows = [{"key": key, "value": value, "origin": origin} for key, value, origin in loaded.items()]
    if call.out.json:
        for row in rows:
            # The values that zkc has are written alike in TOML and in JSON.
            call.out.event("config", {**row, "value": json.loads(row["value"])})
    elif show_origin:
        call.out.table("config", rows, {"key": "key", "value": "value", "origin": "origin"})
    else:
        for row in rows:
            call.out.text(f"{row['key']} = {row['value']}")


def home_of_either_role(folder: str | None) -> Home:
    """The home that is meant, whichever role it has; a client's where there is none yet."""
    from zkc.stores.home import Home

    home = Home.resolve("client", folder)
    try:
        home.check()
    except UsageError as error:
        if error.detail != "role":
            raise
        return Home.resolve("coordinator", folder).check()
    coordinator = Home.resolve("coordinator", folder)
    return coordinator if coordinator.exists() and not home.exists() else home
