"""The wheel has the man pages: made while it is built, installed below share/man."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface):  # type: ignore[type-arg]  # its parameter is the builder's configuration
    """Writes ``build/man``; an editable installation has none, `scripts/man` makes them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        top = Path(self.root)
        sys.path.insert(0, self.root)
        from scripts.lib.manuals import write  # noqa: PLC0415 (needs zkc's own dependencies)

        folder = top / "build" / "man"
        for page in write(folder):
            build_data["shared_data"][str(page)] = f"share/man/{page.relative_to(folder)}"
