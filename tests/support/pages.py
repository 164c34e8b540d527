"""Runs the pages of docs/ as their reader would: what stands behind a prompt is typed into a shell, in a terminal.

A block of the language ``console`` is a dialogue: ``alice$ zkc inbox`` is typed on alice's machine, and what follows,
to the next prompt, must come: ``…`` stands for any text, alone on a line for any number of lines. The programs of a
pipe have one terminal: the line of one may come among those of the other. Each command must end with 0, unless the next
one is ``echo $?``; one that goes on (a daemon) must only say what is shown, and a line ``^C`` ends it. ``alice# `` is
her machine's root.
What else a reader does is told by a comment above a block, which no reader sees:

- ``<!-- file: alice ~/bin/nightly -->``: puts the block into that file, in a folder that is there
- ``<!-- cron: alice -->``: does what the crontab says, once and now, in cron's bare environment
- ``<!-- python: alice -->``: runs it as a program
- ``<!-- not run: why -->``: nothing can be run here

and above the first of them ``<!-- clients: alice bob -->`` for a page that begins with machines that are joined.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

import pexpect
from markdown_it import MarkdownIt

from tests.support.waiting import DEADLINE
from zkc.testing import Fleet, HeldPort, Program

RUN: Final = frozenset({"console", "python", "sh", "bash"})
"""Languages of blocks that are run, or that say why not."""
PORT: Final = "7670"
"""On a page the coordinator is there; here the system chooses."""
INTERRUPT: Final = "^C"
_PROMPT: Final = re.compile(r"^([a-z0-9-]+)[$#] (.*)$")
_SHELL: Final = re.compile(r"<<(\d+)>>")
"""The shell's prompt, with the exit code of what was before it."""
_ID: Final = re.compile(r"\b(?:[0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]{16})\b")
"""An id or a fingerprint. Here it is another one, and what is typed later with it, or its first digits, means that."""
_SHORT: Final = re.compile(r"\b[0-9a-f]{4,64}\b")
_TIME: Final = re.compile(r"\d{4}\\-\d\d\\-\d\d\\ \d\d:\d\d")
_LOOKS: Final = re.compile(r"(zkc (inbox|outbox|peers|shares)|cat|ls)\b[^|&>]*")
"""Commands that only look: a reader who does not yet see it looks again."""
_GOES_ON: Final = re.compile(r"\bzkc .*(coordinator (run|top)|daemon|relay|--follow|--loop|--live)\b")
_NOTE: Final = re.compile(r"<!-- (file|cron|python|not run|clients): (.+?) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block, and what the comment above it says of it."""

    line: int
    language: str
    text: str
    note: str = ""
    words: str = ""

    def does_nothing(self) -> bool:
        return self.note == "not run"

    def calls(self) -> Iterator[Call]:
        """The dialogue of a ``console``."""
        host = next(match[1] for line in self.text.splitlines() if (match := _PROMPT.match(line)))
        call: Call | None = None
        for number, line in enumerate(self.text.splitlines(), self.line + 1):
            typed = _PROMPT.match(line)
            if typed is not None or line == INTERRUPT:
                if call is not None:
                    yield call
                host, command = (typed[1], typed[2]) if typed else (host, INTERRUPT)
                call = Call(number, host, command)
            elif call is None:
                raise ValueError(f"line {number}: nothing was typed before {line!r}")
            elif call.command.endswith("\\"):
                call = Call(call.line, call.host, f"{call.command}\n{line}")
            else:
                call.shown.append(line)
        if call is not None:
            yield call


@dataclass(frozen=True)
class Call:
    """What is typed, and what must come."""

    line: int
    host: str
    command: str
    shown: list[str] = field(default_factory=list)

    def goes_on(self) -> bool:
        """Whether it only ends by a signal."""
        return not self.command.endswith("&") and _GOES_ON.search(self.command) is not None

    def expected(self, port: str) -> re.Pattern[str]:
        """The whole of what comes, where the coordinator is at ``port``."""
        return re.compile("".join(_expected(line.replace(PORT, port)) for line in self.shown))

    def orders(self) -> Iterator[Call]:
        """As it is shown; of a pipe also with any one line at another place, where the other program was quicker."""
        yield self
        if " | " in self.command:
            for place, line in enumerate(self.shown):
                others = self.shown[:place] + self.shown[place + 1 :]
                for before in range(len(self.shown)):
                    yield replace(self, shown=[*others[:before], line, *others[before:]])


def _expected(line: str) -> str:
    if line.strip() == "…":
        return r"(?:.*\n)*?"
    text = ".*?".join(re.escape(part) for part in line.rstrip().split("…"))
    # Columns are as wide as what is in them.
    text = re.sub(r"(\\ ){2,}", r"\\ +", text)
    text = _TIME.sub(lambda _: r"\d{4}\-\d\d\-\d\d\ \d\d:\d\d", text)
    return _ID.sub(lambda found: f"([0-9a-f]{{{len(found[0])}}})", text) + r"[ ]*\n"


def read(page: Path) -> tuple[list[str], list[Block]]:
    """The clients that a page begins with, and its blocks."""
    blocks: list[Block] = []
    clients: list[str] = []
    above: tuple[str, str] = "", ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            for note, words in _NOTE.findall(token.content):
                if note == "clients":
                    clients = words.split()
                else:
                    above = note, words
        elif token.type == "fence" and token.map is not None:
            blocks.append(Block(token.map[0] + 1, token.info.strip(), token.content, *above))
            above = "", ""
    return clients, blocks


class Terminal:
    """A shell on one machine."""

    def __init__(self, name: str, environment: Mapping[str, str], home: Path) -> None:
        self.name: Final = name
        self._shell = pexpect.spawn(
            "bash", ["--noprofile", "--norc", "--noediting"], env=dict(environment) | {"PS1": "<<$?>>", "PS2": ""},
            cwd=str(home), echo=False, encoding="utf-8", dimensions=(50, 200), timeout=DEADLINE,
        )
        self._unread = ""
        self._prompted("a prompt")
        self.busy = ""
        """What was typed and has not ended."""

    def type(self, command: str, expected: re.Pattern[str], *, goes_on: bool) -> tuple[str, int | None]:
        """What came, and the exit code; None for a command that goes on."""
        if self.busy:
            _, code = self._prompted(f"the end of {self.busy}")
            assert code == 0, f"{self.busy} ended with {code}"
        self.busy = command
        self._shell.sendline(command)

        if goes_on:
            return self._await(expected.fullmatch, f"{command}: {expected.pattern}")[0], None
        said, code = self._prompted(f"the end of {command}")
        self.busy = ""
        return said, code

    def interrupt(self) -> int:
        """Ctrl-C, and how the command ends."""
        self._shell.sendintr()
        _, code = self._prompted(f"the end of {self.busy}")
        self.busy = ""
        return code

    def close(self) -> None:
        """Ends all that runs in it."""
        for each in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # Behind the name, which may have any letters in it: state, parent, group, session.
                if (each / "stat").read_text().rpartition(")")[2].split()[3] == str(self._shell.pid):
                    os.kill(int(each.name), signal.SIGKILL)
        self._shell.close(force=True)

    def _prompted(self, what: str) -> tuple[str, int]:
        said, prompt = self._await(_SHELL.search, what)
        # What a job in the background says may come behind the prompt.
        self._unread = said[prompt.end() :]
        return said[: prompt.start()], int(prompt[1])

    def _await(self, look: Callable[[str], re.Match[str] | None], what: str) -> tuple[str, re.Match[str]]:
        said, self._unread = self._unread, ""
        end = time.monotonic() + DEADLINE
        while (found := look(said)) is None:
            assert time.monotonic() < end, f"{self.name} waits for {what}\nand has:\n{said}"
            try:
                said += self._shell.read_nonblocking(65536, timeout=0.2).replace("\r\n", "\n")
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                raise AssertionError(f"the shell of {self.name} has ended: {said}") from None
        return said, found


class Machines(Fleet):
    """The computers of a page, ``hub`` with the coordinator: each with a home folder, zkc where pipx puts it, and a
    service manager that knows the one service there is."""

    def environment(self, name: str) -> dict[str, str]:
        return super().environment(name) | at_home(self.folder / f"at-{name}", name)

    def start_daemon(self, name: str) -> Program:
        program = super().start_daemon(name)
        provide(
            self.folder / f"at-{name}", "systemctl",
            f'#!/bin/sh\n[ "$*" = "reload zkc@{name}" ] && kill -HUP {program.process.pid}\n',
        )
        return program


def at_home(home: Path, user: str) -> dict[str, str]:
    """The environment of a login shell there."""
    provide(home, "zkc", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m zkc "$@"\n')
    return {
        "HOME": str(home), "LOGNAME": user, "PATH": f"{home}/.local/bin:{os.environ['PATH']}", "LANG": "C.UTF-8",
        "TERM": "dumb", "XDG_RUNTIME_DIR": str(home),
    }


def provide(home: Path, program: str, script: str) -> None:
    """``program`` on the PATH there."""
    path = home / ".local" / "bin" / program
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(script)
        path.chmod(0o755)


class Reader:
    """Somebody who does what a page says, on as many machines as it names. A context manager."""

    def __init__(self, folder: Path, clients: list[str], tell: Callable[[str], object] = lambda _: None) -> None:
        self._folder = folder
        self._clients = clients
        self._tell = tell
        self._terminals: dict[str, Terminal] = {}
        self._closing = ExitStack()
        self._machines: Machines | None = None
        self._port = ""
        self._ids: dict[str, str] = {}
        """By how the page has it."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._clients:
                self._machines = stack.enter_context(Machines(*self._clients, folder=self._folder))
                endpoint = self._machines.coordinator.endpoint
            else:
                held = HeldPort()
                stack.callback(held.close)
                endpoint = held.endpoint
            self._port = endpoint.rpartition(":")[2]
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for terminal in self._terminals.values():
            terminal.close()
        self._closing.close()

    def follow(self, block: Block) -> None:
        """Do what it says; `AssertionError` where something else happens."""
        match block.note, block.language:
            case "not run", _:
                return
            case "file", _:
                host, path = block.words.split()
                self._write(host, path, block.text)
            case "cron", _:
                self._cron(block.words, block.text)
            case "python", _:
                self._python(block)
            case _, "console":
                calls = list(block.calls())
                for call, after in zip(calls, [*calls[1:], None], strict=True):
                    self._call(call, after)
            case _, language:
                assert language not in RUN, f"line {block.line}: {language} is neither run nor says why not"

    def end(self) -> None:
        """What still runs is ended by Ctrl-C, and ends well."""
        for terminal in self._terminals.values():
            if terminal.busy:
                busy = terminal.busy
                assert terminal.interrupt() in {0, 130}, f"{busy} did not end well"

    # --- inside ---

    def _call(self, call: Call, after: Call | None) -> None:
        terminal = self._terminal(call.host)
        if call.command == INTERRUPT:
            busy, code = terminal.busy, terminal.interrupt()
            assert code in {0, 130}, f"line {call.line}: {busy} ended with {code}"
            return
        command = _SHORT.sub(self._real, self._here(call.command).replace(PORT, self._port))
        expected = call.expected(self._port)
        end = time.monotonic() + DEADLINE
        while True:
            said, code = terminal.type(command, expected, goes_on=call.goes_on())
            seen = ((order, order.expected(self._port).fullmatch(said)) for order in call.orders())
            order, found = next((each for each in seen if each[1]), (call, None))
            if found or not _LOOKS.fullmatch(command) or time.monotonic() > end:
                break
        if found:
            self._ids |= zip(_ID.findall("\n".join(order.shown)), found.groups(), strict=True)
        self._tell(f"{call.host}$ {call.command}\n{said}")
        assert found, f"line {call.line}: {call.command}\nsays:\n{said}\nand not:\n" + "\n".join(
            call.shown
        )
        if after is None or not (after.host == call.host and after.command == "echo $?"):
            assert code in {0, None}, f"line {call.line}: {call.command} ended with {code}:\n{said}"

    def _here(self, text: str) -> str:
        """With the homes of this machine in place of those of services."""
        return text.replace("/var/lib/zkc/", f"{self._folder}/")

    def _real(self, digits: re.Match[str]) -> str:
        """The id here that a page's id, or its beginning, stands for."""
        return next((real for told, real in self._ids.items() if told.startswith(digits[0])), digits[0])

    def _terminal(self, host: str) -> Terminal:
        if host not in self._terminals:
            environment = self._environment(host)
            self._terminals[host] = Terminal(host, environment, Path(environment["HOME"]))
        return self._terminals[host]

    def _environment(self, host: str) -> dict[str, str]:
        if self._machines is None:
            return at_home(self._folder / "home", "you")
        return self._machines.environment("coordinator" if host == "hub" else host)

    def _write(self, host: str, path: str, text: str) -> None:
        own = self._environment(host)
        file = Path(path.replace("~", own["HOME"]).replace("$ZKC_HOME", own.get("ZKC_HOME", "")))
        text = text.replace(f"/home/{host}", own["HOME"])
        if file.name == "config.toml" and file.exists():
            text = f"{file.read_text()}\n{text}"
        file.write_text(text)

    def _cron(self, host: str, table: str) -> None:
        own = self._environment(host)
        bare = {"HOME": own["HOME"], "LOGNAME": host, "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}
        for line in table.splitlines():
            if (set_to := re.fullmatch(r"(\w+)\s*=\s*(\S+)", line)) is not None:
                # cron expands nothing in it.
                bare[set_to[1]] = self._here(set_to[2]).replace("/usr/local/bin", f"{own['HOME']}/.local/bin")
            elif line and not line.startswith("#"):
                *when, command = line.split(None, 5)
                assert len(when) == 5, line
                assert all(re.fullmatch(r"\*|[\d*/,-]+", word) for word in when), line
                assert "%" not in command, "cron makes a new line of it"
                done = subprocess.run(
                    ["/bin/sh", "-c", command], env=bare, cwd=own["HOME"], capture_output=True, text=True,
                    timeout=DEADLINE, check=False,
                )
                said = done.stdout + done.stderr
                self._tell(f"cron of {host}: {command}\n{said}")
                assert (done.returncode, said) == (0, ""), f"cron would mail: {said}"

    def _python(self, block: Block) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", block.text], env=self._environment(block.words),
            cwd=self._environment(block.words)["HOME"], capture_output=True, text=True, timeout=DEADLINE, check=False,
        )
        self._tell(f"python on {block.words}:\n{done.stdout}{done.stderr}")
        assert done.returncode == 0, f"line {block.line}: {done.stderr}"


def follow(page: Path, folder: Path, tell: Callable[[str], object] = lambda _: None) -> None:
    """The whole page, from top to bottom."""
    clients, blocks = read(page)
    with Reader(folder, clients, tell) as reader:
        for block in blocks:
            reader.follow(block)
        reader.end()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory(prefix="zkc-page-") as made:
        follow(Path(sys.argv[1]), Path(made), lambda text: sys.stdout.write(f"{text}\n"))
