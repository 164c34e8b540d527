"""How ``zkc`` prints: data on stdout, everything for people on stderr, one JSON object per line for scripts.

Text that a peer chose goes through `zkc.rules.names.escape` before it is printed: `Out.table` does so for each cell;
who makes a line of text by himself does it himself. JSON is pure ASCII and needs no more.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple, TextIO

from zkc.errors import Interrupted, LocalIOError, ZkcError

VERSION: Final = 1
"""``"v"`` of every JSON object: changes when a key changes its meaning or goes."""

CELL_MAX: Final = 40
"""Characters of a name or a note in a table; `inbox show` and JSON have them whole."""


class StdoutClosedError(Exception):
    """The reader of our stdout went away: the command ends quietly with 141."""


class Style(NamedTuple):
    """What the options say about printing."""

    json: bool = False
    quiet: bool = False
    batch: bool = False
    progress: bool = False


class Out:
    """The two streams of one command. Only this class writes to them."""

    def __init__(self, style: Style, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self._stdout: Final = stdout or sys.stdout
        self._stderr: Final = stderr or sys.stderr
        self._payload = False
        self._open_line = False
        """Whether the payload has not ended with a line, so far."""
        self._above: Callable[[str], None] | None = None
        self.style: Final = style

    # --- data -------------------------------------------------------------------------------------------------------

    @property
    def json(self) -> bool:
        """Whether scripts read along."""
        return self.style.json

    def text(self, text: str) -> None:
        """A line of data (or several) on stdout, as it is."""
        self._on_stdout(text + "\n")

    def folded(self, head: str, text: str, margin: str) -> None:
        """``text`` of a peer, escaped, behind ``head``. A terminal gets no line longer than it is wide, and ``margin``
        before all but the first: what a peer wrote never begins where lines of ours do (attack F11)."""
        room = math.inf
        if _is_terminal(self._stdout):
            import shutil

            room = max(shutil.get_terminal_size().columns - len(head), 1)
        for piece in _pieces(text, room):
            self.text(head + piece)
            head = margin

    def event(self, noun: str, fields: Mapping[str, object] | None = None) -> None:
        """One JSON object with ``--json``; nothing without."""
        if self.json:
            line = json_line(noun, fields or {})
            if self._payload:
                self._on_stderr(line)
            else:
                self._on_stdout(line)

    def item(self, noun: str, fields: Mapping[str, object], text: str) -> None:
        """The same fact for a script (``noun`` with ``fields``) or, as ``text``, for a person."""
        if self.json:
            self.event(noun, fields)
        else:
            self.text(text)

    def table(
        self,
        noun: str,
        rows: Iterable[Mapping[str, object]],
        columns: Mapping[str, str],
        shown: Mapping[str, Callable[[Any], str]] | None = None,
        *,
        cut: Collection[str] = (),
    ) -> None:
        """``rows`` as one JSON object each, or as a table of ``columns`` (key -> title).

        ``shown`` tells by key how a value is written; the text of the keys in ``cut`` ends after `CELL_MAX` characters.
        No rows, no title: an empty list prints nothing.
        """
        if self.json:
            for row in rows:
                self.event(noun, row)
            return
        lines = [[_cell(row.get(key), (shown or {}).get(key), cut=key in cut) for key in columns] for row in rows]
        if not lines:
            return
        lines.insert(0, [title.upper() for title in columns.values()])
        widths = [max(_width(line[at]) for line in lines) for at in range(len(columns))]
        for line in lines:
            padded = (cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True))
            self.text("  ".join(padded).rstrip())

    def payload_on_stdout(self) -> None:
        """From now on stdout carries the payload, by `payload` alone; JSON goes to stderr."""
        self._payload = True

    def payload_descriptor(self) -> int:
        """Where `payload` writes; `LocalIOError` where stdout is closed."""
        if self._stdout is None:
            raise LocalIOError("standard output is closed", hint="give it a file or a pipe")
        return self._stdout.fileno()

    def payload(self, chunk: bytes | bytearray | memoryview) -> None:
        """Bytes of the payload, past every buffer: when this returns the reader's pipe has taken them."""
        descriptor, rest = self.payload_descriptor(), memoryview(chunk)
        self._open_line = bytes(rest[-1:]) != b"\n" if rest else self._open_line
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError as error:
            raise _stdout_failed(error) from error

    def flush(self) -> None:
        """To be called once at the end: what cannot be written must change the exit code."""
        if self._stdout is not None:
            try:
                self._stdout.flush()
            except OSError as error:
                raise _stdout_failed(error) from error

    # --- people -----------------------------------------------------------------------------------------------------

    @property
    def may_prompt(self) -> bool:
        """Whether a person sits there whom a command may ask."""
        return not self.style.batch and _is_terminal(sys.stdin) and _is_terminal(self._stderr)

    @property
    def shows_progress(self) -> bool:
        """Whether a person wants to see how far it is (with ``--json`` the objects tell it)."""
        return not self.style.quiet and not self.json and (self.style.progress or _is_terminal(self._stderr))

    @property
    def redraws(self) -> bool:
        """Whether stderr is a terminal on which a line can be drawn again."""
        return _is_terminal(self._stderr) and os.environ.get("TERM", "") not in {"", "dumb"}

    def print_above(self, printer: Callable[[str], None] | None) -> None:
        """While something is drawn on stderr: text for people goes by ``printer``; None: by itself again."""
        self._above = printer

    @property
    def has_screen(self) -> bool:
        """Whether stdout is a terminal on which a whole screen can be drawn again and again."""
        return not self.json and _is_terminal(self._stdout) and os.environ.get("TERM", "") not in {"", "dumb"}

    @property
    def stdout(self) -> TextIO | None:
        """For what draws a screen by itself (`zkc.ui.cli.coordinator_top`)."""
        return self._stdout

    @property
    def stderr(self) -> TextIO | None:
        """For what draws by itself (`zkc.ui.cli.progress`)."""
        return self._stderr

    def notice(self, text: str) -> None:
        """A line on stderr, unless ``--quiet``; an object with ``--json``, since stderr may carry the other objects."""
        if not self.style.quiet:
            self._on_stderr(json_line("notice", {"message": text}) if self.json else f"{one_line(text)}\n")

    def error(self, error: ZkcError, *, about: str = "") -> None:
        """The one line, or object, that a failure is. ``--quiet`` does not silence it. ``about`` a recipient among
        several."""
        if self.json:
            told: dict[str, object] = {"recipient": about} if about else {}
            told |= {"code": error.code, "reason": error.reason, "detail": error.detail}
            told["message"] = one_line(str(error))
            try:
                self.event("error", told)
            except LocalIOError:
                self._on_stderr(json_line("error", told))
        else:
            self._on_stderr(f"zkc: {about}{': ' if about else ''}{one_line(str(error))}\n")

    def ended(self, number: int) -> None:
        """With ``--json`` a signal's end is an object like any other error's; a person knows what he did."""
        message = f"{signal.Signals(number).name} ended the command"
        told = {"code": 128 + number, "reason": Interrupted.reason, "detail": "signal", "message": message}
        self.event("error", told)

    def trace(self, text: str) -> None:
        """Where an error arose, for ``--debug``."""
        self._on_stderr(text)

    # --- the streams ------------------------------------------------------------------------------------------------

    def _on_stdout(self, text: str) -> None:
        if self._stdout is None:
            raise LocalIOError("standard output is closed", hint="give it a file or a pipe")
        try:
            self._stdout.write(text)
            self._stdout.flush()
        except OSError as error:
            raise _stdout_failed(error) from error

    def _on_stderr(self, text: str) -> None:
        """Nobody is left to be told when stderr fails."""
        if self._stderr is not None:
            if self._open_line and _is_terminal(self._stdout) and _is_terminal(self._stderr):
                text = f"\n{text}"
            self._open_line = False
            try:
                if self._above is not None:
                    self._above(text)
                    return
                self._stderr.write(text)
                self._stderr.flush()
            except OSError:
                return


def json_line(noun: str, fields: Mapping[str, object]) -> str:
    """One object and its newline, in ASCII: no control character and no odd encoding of a terminal can spoil it."""
    import json

    return json.dumps({"v": VERSION, "event": noun, **fields}, separators=(",", ":")) + "\n"


def one_line(text: str) -> str:
    """``text`` on one line, nothing in it that a terminal obeys; its backslashes stay (they may be escapes already)."""
    if text.isprintable():
        return text
    from zkc.rules.names import escape

    return "\\".join(escape(part) for part in text.split("\\"))


def rfc3339(wall: float) -> str:
    """Seconds since 1970 as ``2026-01-31T12:00:00.000Z``: the times of all JSON."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def local_time(wall: float) -> str:
    """Seconds since 1970 as people here read it: ``2026-01-31 13:00``."""
    from datetime import datetime

    return datetime.fromtimestamp(wall).astimezone().strftime("%Y-%m-%d %H:%M")


def _cell(value: object, shown: Callable[[Any], str] | None, *, cut: bool) -> str:
    from zkc.rules.names import escape

    if value is None or value == "":
        return "-"
    if shown is not None:
        return escape(shown(value))
    text = ("yes" if value else "no") if isinstance(value, bool) else escape(str(value))
    return text[: CELL_MAX - 1] + "\N{HORIZONTAL ELLIPSIS}" if cut and len(text) > CELL_MAX else text


def _width(text: str) -> int:
    """Columns of a terminal; wide letters take two."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(letter) else 1 + (east_asian_width(letter) in "WF") for letter in text)


def _pieces(text: str, room: float) -> Iterable[str]:
    """``text`` in pieces that are no wider; at least one."""
    if _width(text) <= room:
        yield text
        return
    piece, used = "", 0
    for letter in text:
        wide = _width(letter)
        if used + wide > room:
            yield piece
            piece, used = "", 0
        piece, used = piece + letter, used + wide
    yield piece


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _stdout_failed(error: OSError) -> Exception:
    if isinstance(error, BrokenPipeError):
        return StdoutClosedError()
    why = os.strerror(error.errno) if error.errno else str(error)
    hint = "make room and run it again" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
    return LocalIOError(f"cannot write to standard output: {why}", hint=hint)
