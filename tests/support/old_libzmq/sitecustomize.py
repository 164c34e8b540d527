"""Imported by every Python that has this folder on its path: its libzmq says that it is older (attack O12)."""

from __future__ import annotations

import zmq

zmq.zmq_version_info = lambda: (4, 3, 4)
