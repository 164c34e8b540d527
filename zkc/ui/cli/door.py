"""The one door through which every command is left: what went wrong becomes one line (or object) and an exit code."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import click

from zkc.errors import InternalError, LocalIOError, UsageError, ZkcError
from zkc.ui.cli.options import Invocation, nearest, root, spot
from zkc.ui.cli.output import StdoutClosedError

BROKEN_PIPE: Final = 141
"""What a shell reports for a program that SIGPIPE ended."""
SIGNALLED: Final = frozenset({128 + signal.SIGINT, 128 + signal.SIGTERM})
FOREIGN_WORDS: Final = frozenset({"--", "--exec"})
"""What stands behind these is not ours."""


def run(commands: Mapping[str, str], argv: Sequence[str]) -> int:
    """Runs the command that ``argv`` names; ``commands`` maps names to modules. Returns the exit code."""
    call = Invocation()
    try:
        try:
            code = _invoke(commands, argv, call)
            call.out.flush()
        except ZkcError as error:
            return _failed(call, argv, error, error)
        except click.ClickException as error:
            return _failed(call, argv, _usage(error), error)
        except (click.Abort, KeyboardInterrupt, SystemExit) as ended:
            return _ended(call, argv, ended)
        except OSError as error:
            return _failed(call, argv, _local(error), error)
        except StdoutClosedError:
            raise
        except Exception as error:  # noqa: BLE001 (the last door: a defect is one line too)
            return _failed(call, argv, _defect(error), error)
    except StdoutClosedError:
        _forget_stdout()
        return BROKEN_PIPE
    return code


def _invoke(commands: Mapping[str, str], argv: Sequence[str], call: Invocation) -> int:
    command = root(commands)
    try:
        with command.make_context("zkc", list(argv), obj=call) as context:
            code = command.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    return code if isinstance(code, int) else 0


def _failed(call: Invocation, argv: Sequence[str], told: ZkcError, cause: Exception) -> int:
    """Tells of the failure and returns its code."""
    call.guess(_our_words(argv))
    try:
        if call.options.debug:
            import traceback

            call.out.trace("".join(traceback.format_exception(cause)))
        call.out.error(told)
        call.out.flush()
    except LocalIOError:  # stdout cannot be written, which may be what is told
        _forget_stdout()
    return told.code


def _ended(call: Invocation, argv: Sequence[str], ended: BaseException) -> int:
    """The code of a command that a signal ended, or that had no other end and takes it for a 0."""
    code = 128 + signal.SIGINT  # Ctrl-C, for click also the end of input at a prompt
    if isinstance(ended, SystemExit):
        code = ended.code if isinstance(ended.code, int) else 1
    if code in SIGNALLED:
        call.guess(_our_words(argv))
        try:
            call.out.ended(code - 128)
        except (LocalIOError, StdoutClosedError):
            _forget_stdout()
    return code


def _our_words(argv: Sequence[str]) -> Sequence[str]:
    end = next((at for at, word in enumerate(argv) if word in FOREIGN_WORDS), len(argv))
    return argv[:end]


def _usage(error: click.ClickException) -> ZkcError:
    """click's message in our words."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    where = spot(context) if context is not None else ""
    hint = f"see '{context.command_path if context is not None else 'zkc'} --help'"
    if isinstance(error, click.NoSuchOption):
        names = [name for option in context.command.get_params(context) for name in option.opts] if context else []
        meant = nearest(error.option_name.lstrip("-"), [name[2:] for name in names if name.startswith("--")])
        return UsageError(
            f"{where}there is no option {error.option_name}", hint=f"did you mean --{meant}?" if meant else hint
        )
    # Given as an argument, an invitation stands in the shell's history by now; it need not stand here as well.
    text = re.sub(r"zkc\d{1,3}-[\w=-]+", "(an invitation)", " ".join(error.format_message().split()).removesuffix("."))
    return UsageError(f"{where}{text[:1].lower()}{text[1:]}", hint=hint)


def _local(error: OSError) -> ZkcError:
    """What the file system or its limits refused is no defect of ours; what else an OSError says is."""
    limits = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO}
    if error.filename is None and error.errno not in limits:
        return _defect(error)
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return LocalIOError(f"{error.strerror or error}")
    from zkc.stores.files import local_error

    return local_error(error, f"cannot use {os.fsdecode(error.filename)}")


def _defect(error: Exception) -> ZkcError:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return InternalError(f"a defect of zkc: {text}", hint="--debug shows where; please report it")


def _forget_stdout() -> None:
    """The interpreter flushes stdout once more when it ends, and must not fail then."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
