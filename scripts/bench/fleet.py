"""alice and bob for a measurement, and how much memory their processes have had."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock

from scripts.bench.peers import SECONDS
from scripts.bench.report import timed
from zkc.testing import Fleet


class Pair:
    """A fleet of two whose commands are timed."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.peaks: dict[str, int] = {}
        """Bytes of resident memory at its highest, by process; of several commands at once the largest."""
        self._mutex = Lock()

    def send(self, *words: str | Path, stdin: int | Path = subprocess.DEVNULL) -> float:
        """Seconds of ``zkc send bob ...`` until it ends with 0."""
        if isinstance(stdin, Path):
            with stdin.open("rb") as file:
                return self.send(*words, stdin=file.fileno())
        took = timed(lambda: self._run("alice", "send", "bob", *map(str, words), stdin=stdin))
        self._remember("bob's daemon", self.fleet.program("bob").process.pid)
        # Of its two processes the one that serves; the other only watches over it.
        self._remember("coordinator", *_children(self.fleet.coordinator.process.pid))
        return took

    def save(self, folder: Path) -> float:
        """Seconds of ``zkc recv -o FOLDER/``."""
        return timed(lambda: self._run("bob", "recv", "-o", f"{folder}/"))

    def pipe(self, feed: Sequence[str | Path], drain: Sequence[str | Path], *, live: bool = False) -> float:
        """Seconds from one command's output to another's input, by way of the inbox or ``live``."""
        with (
            subprocess.Popen(feed, stdout=subprocess.PIPE) as source,
            subprocess.Popen(drain, stdin=subprocess.PIPE) as sink, ThreadPoolExecutor(1) as pool,
        ):
            if source.stdout is None or sink.stdin is None:
                raise RuntimeError("no pipe")
            fed, drained = source.stdout.fileno(), sink.stdin.fileno()

            waits = Event()
            words = ("recv", "--live") if live else ("recv", "-o", "-", "--wait", "1h")
            taking = pool.submit(self._run, "bob", *words, stdout=drained, on_word=waits.set)
            if live and not waits.wait(SECONDS):
                raise RuntimeError("nobody waits")

            def both() -> None:
                self._run("alice", "send", "bob", stdin=fed)
                taking.result()
                sink.communicate()

            return timed(both)

    @contextmanager
    def live(self, stdout: int) -> Iterator[None]:
        """``zkc recv --live`` of bob waits for a sender, who comes in this block, and takes all that he sends."""
        waits = Event()
        with ThreadPoolExecutor(1) as pool:
            words = ("recv", "--live", "-o", "-", "--wait", f"{SECONDS:.0f}s")
            taking = pool.submit(self._run, "bob", *words, stdout=stdout, on_word=waits.set)
            if not waits.wait(SECONDS):
                raise RuntimeError("nobody waits")
            yield
            taking.result()

    def _run(
        self, name: str, *words: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL,
        on_word: Callable[[], None] = lambda: None,
    ) -> None:
        process = self.fleet.popen(name, *words, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)
        if process.stderr is None:
            raise RuntimeError("no stderr")
        said = []
        for line in process.stderr:
            said.append(line)
            on_word()
            # The last line comes when all is done. What the system says of a process that has ended would not do: it
            # counts the memory of whoever started it.
            self._remember(f"zkc {words[0]}", process.pid)
        process.stderr.close()
        if process.wait():
            raise RuntimeError(b"".join(said).decode(errors="replace"))

    def _remember(self, name: str, *pids: int) -> None:
        for pid in pids:
            status = Path(f"/proc/{pid}/status").read_text()
            # Absent where the process has ended.
            peaks = [int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")]
            with self._mutex:
                self.peaks[name] = max([self.peaks.get(name, 0), *peaks])

    def clear(self) -> None:
        """Empty bob's inbox."""
        bob = self.fleet.client("bob")
        for _ in bob.items():
            with bob.receive():
                pass

    def memory(self) -> str:
        """The peaks in a line."""
        return "Resident memory at its highest: " + ", ".join(
            f"{name} {peak / 2**20:.0f} MiB" for name, peak in self.peaks.items()
        ) + "."


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def pair(folder: Path) -> Iterator[Pair]:
    """alice and bob, their homes below ``folder``."""
    with Fleet("alice", "bob", folder=folder / "fleet") as fleet:
        yield Pair(fleet)
