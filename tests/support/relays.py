"""A relay on a loop in a thread of its own, for tests that block."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, Self, TypeVar

from zkc.net.relay import RelayServer

T = TypeVar("T")


class Relay:
    """Use as a context manager."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, **options: int) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.server = RelayServer(monotonic, lambda event, fields: self.events.append((event, fields)), **options)
        self.host, self.port = self.run(self.server.start("127.0.0.1", 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        with warnings.catch_warnings():
            # Python 3.11's asyncio leaves a connection open that is accepted while its server closes.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        async def do() -> T:
            return function(*arguments)

        return self.run(do())

    def announce(self, *names: bytes, client: str = "bob") -> None:
        self.call(self.server.announce, names, client)

    def cut(self) -> int:
        """Break every connection; how many there were."""

        def abort() -> int:
            ends = list(self.server._ends)
            for end in ends:
                end.abort()
            return len(ends)

        return self.call(abort)
