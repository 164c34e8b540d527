"""``zkc completion``: what a shell reads to complete commands, options, peers and ids."""

from __future__ import annotations

import click

from zkc.ui.cli.kinds import word
from zkc.ui.cli.options import Command, Invocation, pass_invocation


@click.command(
    "completion", cls=Command, example=(
        'eval "$(zkc completion bash)"\n'
        "zkc completion fish > ~/.config/fish/completions/zkc.fish"
    ),
    help="Print what bash (4.4 or newer), zsh or fish read to complete commands, options, names of peers and ids: for "
    "bash and zsh with eval in ~/.bashrc or ~/.zshrc, for fish in ~/.config/fish/completions/zkc.fish.",
    short_help="Completion for bash, zsh and fish.",
)
@click.argument("shell", type=word("bash", "zsh", "fish"), metavar="bash|zsh|fish")
@pass_invocation
def command(call: Invocation, *, shell: str) -> None:
    """``completion`` with ``shell`` and ``script``."""
    from zkc.ui.cli.completing import script
    from zkc.ui.cli.main import COMMANDS

    text = script(COMMANDS, shell).strip("\n")
    call.out.item("completion", {"shell": shell, "script": text}, text)
