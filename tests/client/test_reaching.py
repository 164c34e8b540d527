"""Whether the places can be reached where a recipient says that it listens."""

from __future__ import annotations

import asyncio
import socket

from zkc.client.reaching import NAMED, reach
from zkc.wire.messages import Endpoints


def test_a_name_is_not_looked_up_as_no_transfer_would() -> None:
    """`zkc doctor` said that all is well with a client whom no transfer could reach."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        there, named = asyncio.run(reach(Endpoints(["127.0.0.1", "localhost"], port, port, 0, "", b"")))
    assert (there.data_problem, there.acks_problem) == ("", "")
    assert (named.data_problem, named.acks_problem) == (NAMED, NAMED)
