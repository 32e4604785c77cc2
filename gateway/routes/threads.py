"""Threads for media that block: one per purpose, so that a stuck one delays nothing else.

A file system that hangs (a dead network share) holds its thread for as long as it likes; the
loop goes on, callers go at their deadlines, and work that would only queue up behind is
refused.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

QUEUED_MAX = 64

T = TypeVar("T")


class Away(Exception):
    """The medium cannot be reached now. Never leaves a route."""


class Threads:
    """Named threads, made when first used."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._queued: dict[str, int] = {}

    async def run(self, pool: str, work: "Callable[..., T]", *arguments: Any) -> T:
        """Work in the thread of that name, after what was given to it before.

        Away when QUEUED_MAX jobs wait already. A cancelled caller stops no running job."""
        if pool not in self._pools:
            self._pools[pool] = ThreadPoolExecutor(1, f"route-{self._name}-{pool}")
        if self._queued.get(pool, 0) >= QUEUED_MAX:
            raise Away(f"{pool} hangs")
        self._queued[pool] = self._queued.get(pool, 0) + 1
        loop = asyncio.get_running_loop()

        def ended() -> None:
            self._queued[pool] -= 1

        try:
            job = self._pools[pool].submit(work, *arguments)
        except RuntimeError:
            self._queued[pool] -= 1
            raise Away("closed")
        job.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(ended))
        return await asyncio.wrap_future(job)

    def end(self) -> None:
        """Waits for nothing; what is running runs to its end."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
