"""Can the places be reached where a recipient says that it listens? By TCP alone; nothing is said there."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from zkc.client.events import Place
from zkc.net.addresses import is_address
from zkc.wire.messages import Endpoints

REACH_SECONDS: Final = 3.0
NAMED: Final = "no address: names that another tells are not looked up"
SILENT: Final = "no answer: a firewall may drop what goes there, or nobody has that address"


async def reach(endpoints: Endpoints) -> list[Place]:
    """Each address of ``endpoints``, and what is wrong with its ports. All at once; within `REACH_SECONDS`."""
    return list(await asyncio.gather(*(_place(address, endpoints) for address in endpoints.addresses)))


async def _place(address: str, endpoints: Endpoints) -> Place:
    ports = endpoints.data_port, endpoints.ack_port
    if is_address(address):
        problems = await asyncio.gather(*(connect(address, port) for port in ports))
    else:
        problems = [NAMED, NAMED]
    host = f"[{address}]" if ":" in address else address
    data, acks = (f"tcp://{host}:{port}" for port in ports)
    return Place(data, problems[0], acks, problems[1], endpoints.relay)


async def connect(host: str, port: int) -> str:
    """Why nothing answers at ``host``; empty: something does."""
    try:
        async with asyncio.timeout(REACH_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return SILENT
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    writer.close()
    return ""
