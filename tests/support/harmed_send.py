"""``python -m tests.support.harmed_send HARM WORDS``: ``zkc WORDS`` over links that are cut and damaged.

HARM is JSON, of `Harm`. Every connection goes through proxies of its own, in this process.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from tests.support.by_itself import send_by_itself
from tests.support.program import TOP
from tests.support.proxy import TcpProxy
from zkc.crypto.chunks import StreamSealer
from zkc.net import sockets
from zkc.net.pipe import dialling
from zkc.testing import Fleet
from zkc.wire.frames import DataHeader


@dataclass(frozen=True)
class Harm:
    """What is done to the connections of one ``zkc send``."""

    cut: int = 0
    """After so many bytes of data each connection breaks off; 0: never."""
    cuts: int = 1 << 30
    """How many of them do."""
    flips: int = 0
    """In how many of them a byte is damaged, of data or of acknowledgements."""
    hold: bool = False
    """The first one breaks off only when stdin ends."""
    log: str = ""
    """Where a line for each connection goes, and one for each frame that is sealed: which key, which nonce."""
    seed: int = 1


def harmed_send(fleet: Fleet, name: str, harm: Harm, *words: str, **pipes: Any) -> subprocess.Popen[bytes]:
    """``zkc send WORDS`` by a client, running."""
    own = fleet.environment(name) | {"PYTHONPATH": str(TOP)}
    command = [sys.executable, "-m", "tests.support.harmed_send", json.dumps(asdict(harm)), "send", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=own, cwd=fleet.folder, **pipes)


class _Network:
    def __init__(self, harm: Harm) -> None:
        self._harm = harm
        self._random = random.Random(harm.seed)
        self._made = 0
        self._connect = sockets.connect_bulk
        self._log = os.open(harm.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if harm.log else -1

    def note(self, *words: object) -> None:
        """One line, whole, before anything leaves."""
        if self._log >= 0:
            os.write(self._log, (" ".join(map(str, words)) + "\n").encode())

    def connect(self, ctx: Any, host: str, data_port: int, ack_port: int, *rest: Any, **more: Any) -> Any:
        """In place of `sockets.connect_bulk`."""
        number, self._made = self._made, self._made + 1
        data, ack = (TcpProxy((host, port)) for port in (data_port, ack_port))
        self.note("connection", number)
        if number < self._harm.flips:
            if number % 3 == 2:
                ack.flip("down", self._random.randrange(300), 1 << self._random.randrange(8))
            else:
                data.flip("up", self._random.randrange(60_000), 1 << self._random.randrange(8))
        if self._harm.cut and number < self._harm.cuts:
            threading.Thread(target=self._cut, args=(number, data, ack), daemon=True).start()
        return self._connect(ctx, "127.0.0.1", data.port, ack.port, *rest, **more)

    def _cut(self, number: int, data: TcpProxy, ack: TcpProxy) -> None:
        with suppress(AssertionError):  # it has ended before
            data.wait_for_bytes("up", self._harm.cut)
            if number == 0 and self._harm.hold:
                data.stall()
                sys.stdin.read()
        data.close()
        ack.close()


def main(words: list[str]) -> int:
    """The exit code of ``zkc``."""
    from zkc.ui.cli.main import main as zkc

    network = _Network(Harm(**json.loads(words[0])))
    seal = StreamSealer.seal

    def sealed(sealer: StreamSealer, *rest: Any) -> bytearray:
        frame = seal(sealer, *rest)
        header = DataHeader.unpack(frame)
        network.note("frame", header.xid_tag.hex(), int(header.stream), header.attempt, header.index)
        return frame

    setattr(dialling, "connect_bulk", network.connect)  # noqa: B010  (where it is called by name)
    setattr(StreamSealer, "seal", sealed)  # noqa: B010
    send_by_itself()
    return zkc(words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
