"""``zkc policy``: which rule of this home's policy decides about a transfer, and why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from zkc.errors import UsageError
from zkc.ui.cli.config import home_of_either_role
from zkc.ui.cli.kinds import Size, Word, ciphers, offers, word
from zkc.ui.cli.options import Command, Group, Invocation, pass_invocation

if TYPE_CHECKING:
    from zkc.rules.policy import Rules
    from zkc.stores.home import Home


@click.command(
    "check", cls=Command, example=(
        "zkc policy check --from alice --to bob\n"
        "zkc policy check --from alice --to bob/backup --size 20M --name shop.sql\n"
        "zkc policy check --from alice --to bob --at 2026-11-27T22:30 --key-source coordinator"
    ),
    help="Say which rule decides about a transfer, and why: of a client's own policy, or in a coordinator's home of "
    "the coordinator's. Ends with 0 where it may be, or a person is asked, else with 25.",
    short_help="Say which rule decides about a transfer.",
)
@click.option("--from", "sender", required=True, metavar="NAME", shell_complete=offers("peers"), help="Who sends.")
@click.option("--to", "recipient", required=True, metavar="NAME", shell_complete=offers("peers"), help="Who receives.")
@click.option("--size", type=Size(), help="How much; without it the size is not known.")
@click.option("--name", metavar="TEXT", help="The name of what is sent.")
@click.option("--key-source", type=word("sender", "coordinator"), metavar="WHO", help="Who makes the key [sender].")
@click.option("--cipher", type=Word(ciphers), default="aes-256-gcm", metavar="CIPHER", help="The cipher [aes-256-gcm].")
@click.option("--at", "when", metavar="TIME", help="2026-11-27T22:30, in local time or with a zone [now].")
@pass_invocation
def _check(
    call: Invocation, *, sender: str, recipient: str, size: int | None, name: str | None, key_source: str | None,
    cipher: str, when: str | None,
) -> None:
    """``policy`` with ``mode``, ``rule``, ``why``, ``require``."""
    from zkc.config import load
    from zkc.ids import check_name
    from zkc.rules.policy import Asked, Standing, judge, least_size, match, most_size, size_class

    check_name(sender, "--from")
    check_name(recipient, "--to")
    home = home_of_either_role(call.options.home)
    loaded = load(home.role, home.config_file, os.environ)
    for notice in loaded.notices:
        call.out.notice(notice)
    rules = _rules(call, home, loaded.config, sender, recipient)
    least, most, known = size or 0, size, name
    if home.role == "coordinator":
        # It learns no more than the size as a power of two, and no name.
        known, sized = None, size_class(size)
        least, most = least_size(sized), most_size(sized)
    asked = Asked(
        "coordinator" if key_source == "coordinator" else "sender", cipher, least, most, sender, recipient, known
    )
    standing = Standing(wall=_time(when))
    verdict = judge(asked, rules, standing)
    told = {"mode": verdict.mode, "rule": verdict.rule, "why": verdict.why, "require": verdict.require}
    if call.out.json:
        call.out.event("policy", told)
    else:
        for rule in rules.policy:
            if rule.name == verdict.rule:
                break
            held, why = match(rule, asked, rules.side, standing)
            if not held:  # else a limit spoke first
                call.out.text(f"no   {rule.name}: {why}")
        level = f"; requires {verdict.require}" if verdict.require != "online" else ""
        call.out.text(f"{verdict.mode}  {verdict.rule or '(no rule)'}: {verdict.why}{level}")
    if verdict.refusal is not None:
        raise verdict.refusal.error()


def _rules(call: Invocation, home: Home, config: object, sender: str, recipient: str) -> Rules:
    """Those that judge it: a client's of what leaves it, where it is the sender, else of what comes in."""
    from zkc.client.principal import load_main
    from zkc.config import ClientConfig, CoordinatorConfig
    from zkc.ui.cli.homes import open_store

    if isinstance(config, CoordinatorConfig):
        return config.rules()
    if not isinstance(config, ClientConfig):
        raise TypeError
    with open_store(home) as store:
        own = load_main(store).name
    ends = sender.partition("/")[0], recipient.partition("/")[0]
    if own not in ends:
        call.out.notice(f"this is the policy of {own} alone; {sender} and {recipient} have their own, in their homes")
    is_own_sending = ends[0] == own != ends[1]
    return config.sending_rules() if is_own_sending else config.receiving_rules()


def _time(text: str | None) -> float:
    from datetime import datetime

    from zkc.env import SystemClock

    if text is None:
        return SystemClock().wall()
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(f"policy check: --at cannot be {text[:40]!r}", hint="write it as 2026-11-27T22:30") from None


command = Group(
    "policy", {"check": _check}, default="check", example=(
        "zkc policy check --from alice --to bob\n"
        "zkc policy check --from alice --to bob --size 20M"
    ),
    help="Ask this home's policy. Without a subcommand: check.", short_help="Say which rule of policy decides.",
)
