"""Imported by every Python that has this folder on its path: its zkc speaks another version, of what SPEAKS says.

``channel``: of the channel, the next one alone; ``terms``: of REQ and RESP, the one before; ``release``: of itself, it
says that it is an earlier one.
"""

from __future__ import annotations

import os

import zkc
import zkc.constants
from zkc.protocol import channel

match os.environ["SPEAKS"]:
    case "channel":
        channel.VERSIONS = (channel.VERSION + 1,)  # type: ignore[misc,assignment]
    case "terms":
        zkc.constants.TERMS_VERSION -= 1  # type: ignore[misc]
    case "release":
        zkc.__version__ = "0.0.1"
