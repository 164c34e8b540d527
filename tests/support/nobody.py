"""Another user of this machine, played by root, who knocks at a local socket."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NOBODY = 65534

_KNOCK = f"""
import os, socket, sys
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(20)
try:
    sock.connect(sys.argv[1])
    sock.sendall(bytes.fromhex(sys.argv[2]))
    print("answered" if sock.recv(1) else "closed")
except PermissionError:
    print("denied")
except (BrokenPipeError, ConnectionResetError):
    print("closed")
"""


def knock(path: Path, said: bytes, deadline: float = 60) -> str:
    """What becomes of `said`: "denied" (no connection), "closed" or "answered". What lies above the socket's folder may
    be closed to him: he starts inside. The program changes its user after it has loaded all that it needs."""
    done = subprocess.run(
        [sys.executable, "-c", _KNOCK, path.name, said.hex()],
        capture_output=True, text=True, timeout=deadline, check=True, cwd=path.parent,
    )
    return done.stdout.strip()
