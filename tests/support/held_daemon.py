"""``python -m tests.support.held_daemon HOLD``: ``zkc daemon``, whose transfers stand still, or are slow, where HOLD
says (JSON, of `Hold`).

So what a test does to a daemon in the middle of its work happens there, however busy the machine is.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tests.support.program import TOP
from zkc.stores import files
from zkc.stores.inbox import Inbox
from zkc.stores.items import is_id
from zkc.stores.partials import Partial
from zkc.testing import Fleet, Program

Moment = Literal["synced", "renamed", "recorded"]
"""All bytes are on disk, of a partial item; its file is among those of items; the item and its receipt are recorded. At
none of them has the sender heard of it."""


@dataclass(frozen=True)
class Hold:
    at: Moment | Literal[""] = ""
    """Where the first transfer that comes there stands still for ever."""
    told: str = ""
    """The file that is made then."""
    slow: str = ""
    """While there is this file, each write to the disk takes `SLOW_SECONDS` longer."""


SLOW_SECONDS: Final = 0.05


@contextlib.contextmanager
def held_daemon(fleet: Fleet, name: str, hold: Hold) -> Iterator[Program]:
    """In the place of a client's daemon inside the block; killed then, and the usual one is started again."""
    own = fleet.environment(name) | {"PYTHONPATH": str(TOP)}
    command = [sys.executable, "-m", "tests.support.held_daemon", json.dumps(asdict(hold))]
    fleet.program(name).kill()
    program = Program(command, own, fleet.folder / f"{name}.log")
    try:
        program.wait_ready()
        fleet.wait_linked(name)
        yield program
    finally:
        program.kill()
        fleet.start_daemon(name)


def _stand_still(hold: Hold) -> None:
    Path(hold.told).touch()
    threading.Event().wait()


def _hold_at(hold: Hold) -> None:
    publish, commit, put, record = files.publish, Inbox.commit, Inbox.put, Inbox._record

    def published(source_folder: int, source: str, folder: int, name: str) -> None:
        # The same function gives other files their names.
        if hold.at == "synced" and is_id(name):
            _stand_still(hold)
        publish(source_folder, source, folder, name)
        if hold.at == "renamed" and is_id(name):
            _stand_still(hold)

    def committed(inbox: Inbox, *rest: Any) -> Any:
        item = commit(inbox, *rest)
        if hold.at == "recorded":
            _stand_still(hold)
        return item

    def put_whole(inbox: Inbox, *rest: Any) -> Any:
        item = put(inbox, *rest)
        if hold.at == "recorded":
            _stand_still(hold)
        return item

    def recorded(inbox: Inbox, *rest: Any) -> Any:
        if hold.at in ("synced", "renamed"):  # what is put there whole has its name before it is synced
            _stand_still(hold)
        return record(inbox, *rest)

    setattr(Inbox, "put", put_whole)  # noqa: B010
    setattr(Inbox, "_record", recorded)  # noqa: B010
    setattr(files, "publish", published)  # noqa: B010  (for the program, not for mypy)
    setattr(Inbox, "commit", committed)  # noqa: B010


def _be_slow(path: Path) -> None:
    write: Callable[[Partial, Any], None] = Partial.write
    tick = threading.Event()

    def slowly(partial: Partial, data: Any) -> None:
        if path.exists():
            tick.wait(SLOW_SECONDS)
        write(partial, data)

    setattr(Partial, "write", slowly)  # noqa: B010


def _main(words: list[str]) -> int:
    from zkc.ui.cli.main import main

    hold = Hold(**json.loads(words[0]))
    _hold_at(hold)
    if hold.slow:
        _be_slow(Path(hold.slow))
    return main(["daemon"])


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
