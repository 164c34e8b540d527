"""One PUSH, one PULL, and a PULL and PUSH for the word that all has arrived: what a delivery costs ZeroMQ alone.

``bare.py pull MODE TARGET`` says on stderr where it listens; ``bare.py push MODE SOURCE DATA ACK [KEY]`` ends once it
has been told. MODE: ``null`` or ``curve``. SOURCE and TARGET: a file, or ``-`` for the pipe that is there, of which
each chunk has memory of its own.
"""

from __future__ import annotations

import fcntl
import mmap
import sys
from collections.abc import Iterator

import zmq

CHUNK = 1 << 20


def pull(mode: str, target: str) -> None:
    ctx = zmq.Context()
    data, ack = ctx.socket(zmq.PULL), ctx.socket(zmq.PUSH)
    data.rcvhwm = 4
    key = []
    if mode == "curve":
        public, secret = zmq.curve_keypair()
        for sock in (data, ack):
            sock.curve_server, sock.curve_secretkey = True, secret
        key = [public.decode()]
    ports = [sock.bind_to_random_port("tcp://127.0.0.1") for sock in (data, ack)]
    print(*ports, *key, file=sys.stderr, flush=True)
    with open(_pipe(1) if target == "-" else target, "wb", buffering=0) as file:
        while frame := data.recv(copy=False).buffer:
            file.write(frame)
    ack.send(b"")
    ctx.destroy(linger=1000)


def push(mode: str, source: str, data_port: str, ack_port: str, *key: str) -> None:
    ctx = zmq.Context()
    data, ack = ctx.socket(zmq.PUSH), ctx.socket(zmq.PULL)
    data.sndhwm = 4
    if mode == "curve":
        public, secret = zmq.curve_keypair()
        for sock in (data, ack):
            sock.curve_publickey, sock.curve_secretkey, sock.curve_serverkey = public, secret, key[0].encode()
    data.connect(f"tcp://127.0.0.1:{data_port}")
    ack.connect(f"tcp://127.0.0.1:{ack_port}")
    for chunk in _piped() if source == "-" else _mapped(source):
        data.send(chunk, copy=False)
    data.send(b"")
    ack.recv()
    ctx.destroy(linger=0)


def _mapped(source: str) -> Iterator[bytes]:
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for at in range(0, len(view), CHUNK):
            yield view[at : at + CHUNK]


def _piped() -> Iterator[memoryview]:
    with open(_pipe(0), "rb", buffering=0) as file:
        while True:
            chunk, filled = memoryview(bytearray(CHUNK)), 0
            while filled < CHUNK and (got := file.readinto(chunk[filled:])):
                filled += got
            if not filled:
                return
            yield chunk[:filled]


def _pipe(descriptor: int) -> int:
    """As large as zkc has it."""
    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, CHUNK)
    return descriptor


if __name__ == "__main__":
    if sys.argv[1] == "pull":
        pull(*sys.argv[2:])
    else:
        push(*sys.argv[2:])
