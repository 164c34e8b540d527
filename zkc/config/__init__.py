"""Configuration: `keys` has every key with its type and default, `reading` where each value came from.

To add a key: one line of a section in `keys`, and its description in ``config/*.toml``.
"""

from zkc.config.keys import ClientConfig, CoordinatorConfig
from zkc.config.reading import Loaded, check_not_gone, load
from zkc.config.saving import put_back, save_client

__all__ = ["ClientConfig", "CoordinatorConfig", "Loaded", "check_not_gone", "load", "put_back", "save_client"]
