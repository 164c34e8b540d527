"""One PUSH, one PULL, and a PULL and PUSH for the word that all has arrived: what a delivery costs ZeroMQ alone.

``bare.py pull MODE TARGET`` prints where it listens; ``bare.py push MODE SOURCE DATA ACK [KEY]`` ends once it has been
told. MODE: ``null`` or ``curve``.
"""

from __future__ import annotations

import mmap
import sys

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
    print(*ports, *key, flush=True)
    with open(target, "wb", buffering=0) as file:
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
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for at in range(0, len(view), CHUNK):
            data.send(view[at : at + CHUNK], copy=False)
    data.send(b"")
    ack.recv()
    ctx.destroy(linger=0)


if __name__ == "__main__":
    if sys.argv[1] == "pull":
        pull(*sys.argv[2:])
    else:
        push(*sys.argv[2:])
