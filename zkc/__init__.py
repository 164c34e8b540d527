"""zkc: sends files, pipes and messages straight from one computer to another, end-to-end encrypted, with a receipt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zkc.api import Client, SyncClient

__all__ = ["Client", "SyncClient", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The API, loaded at its first use: a command needs less."""
    if name in ("Client", "SyncClient"):
        from zkc import api

        return getattr(api, name)
    raise AttributeError(f"module 'zkc' has no attribute {name!r}")
