"""Items of the inbox as ``inbox`` and ``recv`` tell of them, and where they are saved."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zkc.errors import LocalIOError, UsageError
from zkc.ui.cli.output import rfc3339

if TYPE_CHECKING:
    from zkc.stores.items import Item

CONFLICTS = ("skip", "overwrite", "rename")


def item_fields(item: Item, path: Path | None, together: Sequence[Path] = ()) -> dict[str, object]:
    """The object of one item; ``path``: where it was saved, or its file in the inbox.

    ``together``: where each of several paths is that were sent at once; ``path`` is the folder around them.
    """
    return {
        "id": item.id,
        "state": item.state,
        "from": item.sender,
        "name": item.name,
        "bytes": item.size,
        "digest": f"blake3:{item.digest.hex()}" if item.digest else None,
        "note": item.note,
        "key_source": item.key_source,
        "received": rfc3339(item.received),
        "path": None if path is None else str(path),
        "app": item.app or None,
        "kind": item.kind,
        "transfer": item.transfer,
        "asked_by": item.asked_by or None,
        "asker_fingerprint": item.asker.hex() or None,
        **({"paths": [str(each) for each in together]} if together else {}),
    }


@dataclass(frozen=True)
class Saved:
    """Where an item is now."""

    path: Path
    together: tuple[Path, ...] = ()
    """Several paths that were sent at once, each in the folder ``path``."""

    @property
    def lines(self) -> tuple[Path, ...]:
        return self.together or (self.path,)


def save(item: Item, output: str | None, conflict: Any) -> Saved | Path:
    """Put an item where ``-o`` (``output``) says; the path alone: something is there, and it was skipped."""
    from zkc.stores.saving import save_item, save_together
    from zkc.stores.trees import StoredTree

    path = destination(item, output)
    is_inside = output is None or output.endswith("/") or os.path.isdir(output)
    if item.kind == "tree" and item.state == "ready" and is_inside:
        with StoredTree.opened(item) as tree:
            is_rooted = tree.is_rooted
        if not is_rooted:
            places = save_together(item, path.parent, conflict)
            return path.parent if places is None else Saved(path.parent, tuple(places))
    saved = save_item(item, path, conflict)
    return path if saved is None else Saved(saved)


def destination(item: Item, output: str | None) -> Path:
    """Where ``-o`` (``output``) puts an item: exactly there, or into a folder under its name made safe.

    A folder is one that exists, or a path with a slash at its end (made if need be).
    Errors: `UsageError` (``not-a-file``) for a device or a pipe, which is neither replaced nor stepped around.
    """
    from zkc.rules.names import safe_name

    name = safe_name(item.name)
    if output is None:
        return Path(name)
    if output.endswith("/"):
        try:
            Path(output).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalIOError(
                f"cannot make the folder {output}: {error.strerror}", detail="unwritable", hint="name another with -o"
            ) from None
        return Path(output, name)
    if os.path.isdir(output):
        return Path(output, name)
    if _is_stream(output):
        raise UsageError(
            f"{output} is not a regular file", detail="not-a-file", hint="zkc recv -o - writes to standard output"
        )
    return Path(output)


def _is_stream(path: str) -> bool:
    """Whether what is at ``path``, behind links too, takes bytes but is no file; the names of a process's own streams
    are such, wherever they lead."""
    folder = os.path.realpath(os.path.dirname(path) or ".")
    if folder == "/dev" or folder.startswith("/proc/"):
        return True
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
