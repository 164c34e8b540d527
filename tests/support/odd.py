"""``zkc odd ...``: commands that do on demand what real ones do seldom. ``python -m tests.support.odd WORDS``."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import click

from zkc.errors import BY_CODE
from zkc.ui.cli import main as entry
from zkc.ui.cli.options import Command, Group, Invocation, pass_invocation
from zkc.ui.cli.progress import Progress

COMMAND = [sys.executable, "-m", "tests.support.odd"]
HOSTILE = "evil\x1b[31m\u202egpj.exe\nnext"


class _Steps:
    """A clock that goes on by a second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now

    def wall(self) -> float:
        return 0.0


@click.command("list", cls=Command)
@click.option("--all", "everything", is_flag=True)
@pass_invocation
def listed(call: Invocation, *, everything: bool) -> None:
    rows = [{"name": "bob", "size": 3, "there": True, "seen": None}, {"name": HOSTILE, "size": 70000, "there": False}]
    columns = {"name": "name", "size": "size", "there": "there", "seen": "last seen"}
    call.out.table("odd", rows if everything else rows[:1], columns, {"size": lambda size: f"{size}B"})


@click.command("say", cls=Command)
@click.option("--note", default="")
@click.argument("words", nargs=-1)
@pass_invocation
def say(call: Invocation, *, note: str, words: tuple[str, ...]) -> None:
    call.out.notice("a notice")
    call.out.item("said", {"note": note, "words": words}, f"note={note} words={' '.join(words)}")


@click.command("fail", cls=Command)
@click.argument("code", type=int)
@click.option("--payload", is_flag=True)
@pass_invocation
def fail(call: Invocation, *, code: int, payload: bool) -> None:
    if payload:
        call.out.payload_on_stdout()
        call.out.payload(b"payload")
    raise BY_CODE[code](f"alice: {HOSTILE} went wrong", detail="finer", hint="do this")


@click.command("defect", cls=Command)
@click.option("--file", "of_file", is_flag=True)
@pass_invocation
def defect(_call: Invocation, *, of_file: bool) -> None:
    if of_file:
        Path("not-there").read_bytes()
    raise ValueError(HOSTILE)


@click.command("wait", cls=Command)
@click.option("--loop", is_flag=True)
@pass_invocation
def wait(call: Invocation, *, loop: bool) -> None:
    async def for_ever() -> None:
        call.out.text("waiting")
        await asyncio.Event().wait()

    if loop:
        asyncio.run(for_ever())
    call.out.text("waiting")
    while True:
        signal.pause()


@click.command("flood", cls=Command)
@click.option("--payload", is_flag=True)
@pass_invocation
def flood(call: Invocation, *, payload: bool) -> None:
    while True:
        if payload:
            call.out.payload(bytes(65536))
        else:
            call.out.text("x" * 65536)


@click.command("progress", cls=Command)
@pass_invocation
def progress(call: Invocation) -> None:
    with Progress(call.out, "film.mkv", 4096, clock=_Steps()) as shown:
        for done in range(0, 4097, 1024):
            shown.update(done)
    call.out.text("prompts" if call.out.may_prompt else "does not prompt")


class _Odd(Group):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return {command.name: command for command in PARTS}.get(cmd_name)


PARTS = (listed, say, fail, defect, wait, flood, progress)
command = _Odd("odd", {str(part.name): __name__ for part in PARTS}, default="list")

if __name__ == "__main__":
    entry.COMMANDS["odd"] = "tests.support.odd"
    sys.exit(entry.main())
