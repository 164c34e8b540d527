"""``python -m tests.support.tapped_send OUT WORDS``: ``zkc WORDS``, and what its bulk sockets carried, and K, into OUT.

Only for the side of the test that knows everything: what a thief may know is taken from OUT by the test.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.support.by_itself import send_by_itself
from tests.support.proxy import TcpProxy
from zkc.net import sockets
from zkc.net.pipe import dialling, sender
from zkc.net.pipe.sender import Attempts
from zkc.ui.cli.main import main


def tapped(out: Path, words: list[str]) -> int:
    """The exit code of ``zkc WORDS``."""
    taps: dict[str, TcpProxy] = {}
    seen: dict[str, Any] = {}
    connect = sockets.connect_bulk

    def connect_through(ctx: Any, host: str, data_port: int, ack_port: int, *rest: Any, **more: Any) -> Any:
        seen["where"] = [host, data_port, ack_port]
        for stream, port in (("data", data_port), ("ack", ack_port)):
            taps[stream] = TcpProxy((host, port))
        return connect(ctx, "127.0.0.1", taps["data"].port, taps["ack"].port, *rest, **more)

    class Telling(Attempts):
        def __init__(self, session: Any, *rest: Any) -> None:
            seen["k"] = session.k.reveal().hex()
            super().__init__(session, *rest)

    setattr(dialling, "connect_bulk", connect_through)  # noqa: B010  (where they are called by name)
    setattr(sender, "Attempts", Telling)  # noqa: B010
    send_by_itself()
    try:
        code = main(words)
    finally:
        for tap in taps.values():
            tap.close()
    seen |= {stream: [tap.recorded("up").hex(), tap.recorded("down").hex()] for stream, tap in taps.items()}
    out.write_text(json.dumps(seen))
    return code


if __name__ == "__main__":
    sys.exit(tapped(Path(sys.argv[1]), sys.argv[2:]))
