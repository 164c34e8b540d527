"""What every command of ``zkc`` understands, and the kinds of click command that make it so.

The global options are parameters of each command and group, not words fished out of the arguments: ``--note --json``
stays a note, and what follows ``--`` stays a path.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, wraps
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

import click

from zkc import __version__
from zkc.errors import UsageError, ZkcError
from zkc.ui.cli.output import Out, Style

P = ParamSpec("P")
R = TypeVar("R")

CONTEXT: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Options(NamedTuple):
    """The options that may stand anywhere after ``zkc``."""

    json: bool = False
    home: str | None = None
    quiet: bool = False
    debug: bool = False
    batch: bool = False
    progress: bool = False


class Invocation:
    """One call of ``zkc``: its options, complete once all arguments are parsed, and the way to print."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.parsed = False
        """Whether a command runs, so that `options` are complete."""

    @cached_property
    def out(self) -> Out:
        """Made at its first use, when the options are known."""
        told = self.options
        return Out(Style(json=told.json, quiet=told.quiet, batch=told.batch, progress=told.progress))

    def guess(self, words: Sequence[str]) -> None:
        """Looks in ``words`` for how to tell of an error, if parsing ended before it reached those options."""
        if not self.parsed:
            told = self.options
            self.options = told._replace(json=told.json or "--json" in words, debug=told.debug or "--debug" in words)
            self.__dict__.pop("out", None)


def pass_invocation(command: Callable[Concatenate[Invocation, P], R]) -> Callable[P, R]:
    """For the function behind a command: its first argument is the `Invocation`."""

    @wraps(command)
    def with_invocation(*args: P.args, **kwargs: P.kwargs) -> R:
        context = click.get_current_context()
        call = _invocation(context)
        call.parsed = True
        try:
            return command(call, *args, **kwargs)
        except ZkcError as error:
            from zkc.ui.cli.meant import add_hint

            add_hint(context, error)
            raise

    return with_invocation


def current_out() -> Out:
    """Of the command that runs."""
    return _invocation(click.get_current_context()).out


def nearest(word: str, known: Iterable[str], alike: float = 0.6) -> str | None:
    """The one of ``known`` that ``word`` was most likely meant to be; None where none is so much ``alike`` (of 1)."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word[:80], list(known), n=1, cutoff=alike)), None)


def spot(context: click.Context) -> str:
    """``inbox show: ``, the command that a usage error is about, to stand before its message."""
    path = context.command_path.partition(" ")[2]
    return f"{path}: " if path else ""


def _told(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value == "" and parameter.name == "home" and not context.resilient_parsing:
        raise UsageError(f"{spot(context)}--home is empty", hint="give it a folder, or leave it out")
    if value and parameter.name:
        call = _invocation(context)
        call.options = call.options._replace(**{parameter.name: value})


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        out = _invocation(context).out
        out.item("version", {"version": __version__}, f"zkc {__version__}")
        context.exit()


def _help(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        _invocation(context).out.text(context.get_help())
        context.exit()


def _invocation(context: click.Context) -> Invocation:
    call = context.find_object(Invocation)
    if call is None:
        raise TypeError("a command of zkc is run by zkc.ui.cli.door")
    return call


GLOBAL_FLAGS: Final = {
    "--json": "One JSON object per line, for scripts.",
    "--quiet": "No progress and no notices; errors only.",
    "--debug": "Log every step (daemon, coordinator run); show where an error arose.",
    "--batch": "Never prompt, not even on a terminal.",
    "--progress": "Show progress even when stderr is not a terminal.",
}


def _folders(context: click.Context, parameter: click.Parameter, begun: str) -> Any:
    from zkc.ui.cli import completing

    return completing.folders(context, parameter, begun)


def _globals(*, hidden: bool) -> list[click.Parameter]:
    flags: list[click.Parameter] = [
        click.Option([name], is_flag=True, help=text, expose_value=False, callback=_told, hidden=hidden, is_eager=True)
        for name, text in GLOBAL_FLAGS.items()
    ]
    home = click.Option(
        ["--home"], metavar="DIR", expose_value=False, callback=_told, hidden=hidden, is_eager=True,
        shell_complete=_folders,
        help="Configuration, keys and sockets are below DIR (else ZKC_HOME, else the user's folders).",
    )
    return [home, *flags]


class Command(click.Command):
    """A command that takes the global options too; its help begins with ``example``, one command a line."""

    def __init__(self, name: str | None, *, example: str = "", **attributes: Any) -> None:
        attributes["params"] = [*(attributes.get("params") or []), *_globals(hidden=True)]
        attributes.setdefault("context_settings", CONTEXT)
        attributes.setdefault("epilog", "Options of every command: see zkc --help.")
        super().__init__(name, **attributes)
        self.example: Final = example

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _show_example(self.example, formatter)
        super().format_help_text(ctx, formatter)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _named(ctx):
            return super().parse_args(ctx, args)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        return _own_help(super().get_help_option(ctx))


class Group(click.Group):
    """Commands by name, each in a module of its own that is imported when it is needed.

    Without a subcommand, or with an option where one would stand, it does ``default``; with ``takes_words`` also where
    another word stands there. ``modules`` maps a name to the module whose ``command`` it is, or to the command itself.
    """

    def __init__(
        self, name: str, modules: Mapping[str, str | click.Command], *, default: str | None = None,
        takes_words: bool = False, example: str = "", **attributes: Any,
    ) -> None:
        attributes["params"] = [*(attributes.get("params") or []), *_globals(hidden=name != "zkc")]
        attributes.setdefault("context_settings", CONTEXT)
        super().__init__(name, no_args_is_help=False, **attributes)
        self.modules: Final = modules
        self.default: Final = default
        self._takes_words = takes_words
        self.example: Final = example

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _show_example(self.example, formatter)
        super().format_help_text(ctx, formatter)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = self.modules.get(cmd_name)
        if module is None or isinstance(module, click.Command):
            return module
        command = importlib.import_module(module).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.command is not a command")
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.default is not None:
            at = self._first_word(ctx, args)
            there = at < len(args)
            other = there and (args[at].startswith("-") or (self._takes_words and args[at] not in self.modules))
            # While a shell completes, the word that is not there yet may be any.
            if other or not (there or ctx.resilient_parsing):
                args = [*args[:at], self.default, *args[at:]]
        with _named(ctx):
            return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None:
            meant = nearest(name, self.modules)
            hint = f"did you mean '{ctx.command_path} {meant}'?" if meant else f"'{ctx.command_path} --help' lists them"
            raise UsageError(f"{spot(ctx)}there is no command {name!r}", hint=hint)
        return name, command, args[1:]

    def invoke(self, ctx: click.Context) -> Any:
        if not ctx.args and not ctx._protected_args:  # noqa: SLF001 (click has no public name for it)
            raise UsageError(f"{spot(ctx)}no command given", hint=f"'{ctx.command_path} --help' lists them")
        return super().invoke(ctx)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        return _own_help(super().get_help_option(ctx))

    def _first_word(self, ctx: click.Context, args: Sequence[str]) -> int:
        """Where the first word of ``args`` stands that is neither an option of this group nor the value of one."""
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        own = {name: option for option in options for name in option.opts}
        at = 0
        while at < len(args) and (option := own.get(args[at].partition("=")[0])) is not None:
            at += 1 if option.is_flag or "=" in args[at] else 2
        return min(at, len(args))


def _show_example(example: str, formatter: click.HelpFormatter) -> None:
    if example:
        lines = example.splitlines()
        with formatter.section("Example" if len(lines) == 1 else "Examples"):
            for line in lines:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def root(modules: Mapping[str, str]) -> Group:
    """The ``zkc`` command over ``modules`` (name -> module)."""
    version = click.Option(
        ["--version"], is_flag=True, expose_value=False, callback=_version,
        help="Show the version and exit.",
    )
    return Group(
        "zkc", modules, params=[version],
        example=(
            "zkc join --invite-file alice.invite\n"
            "zkc daemon\n"
            "zkc send bob report.pdf\n"
            "tar c photos | zkc send bob --name photos.tar\n"
            "zkc recv -o downloads/"
        ),
        help="Sends files, pipes and messages straight to another computer, end-to-end encrypted, with a receipt.",
        epilog="These options may stand anywhere after 'zkc'. Each command has its own --help.",
    )


@contextmanager
def _named(context: click.Context) -> Iterator[None]:
    """click leaves some errors of parsing without the command in which they arose."""
    try:
        yield
    except click.UsageError as error:
        error.ctx = error.ctx or context
        raise


def _own_help(option: click.Option | None) -> click.Option | None:
    if option is not None:
        option.callback = _help
    return option
