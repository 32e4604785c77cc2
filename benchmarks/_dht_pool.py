"""Many DHT nodes in one process, for benchmarks/dht.py: JSON lines in, JSON lines out.

The nodes are `gateway.dht_engine.Node`, as in a sidecar; only the process is shared.
"""

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gateway.dht_engine import Node  # noqa: E402
from gateway.dht_settings import parse_seeds, settings  # noqa: E402
from gateway.dht_value import parse, value_id  # noqa: E402

MEET_S = 60.0
SECRET = b"b" * 32


def rss_kib() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") // 1024


class Pool:
    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.seeds: list[tuple[tuple[str, int], ...]] = []
        self.handles = 0
        self.empty_kib = rss_kib()
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self, count: int, network: int, seeds: list[int], one_of: list[int],
                    expire_s: int) -> Any:  # fmt: skip
        """Nodes that know the seeds, or (one_of) one node each, any that began before."""
        before = list(one_of)
        for _ in range(count):
            ports = [random.choice(before)] if before else seeds
            mine = tuple(f"127.0.0.1:{port}" for port in ports)
            where = settings(tempfile.gettempdir(), network, "127.0.0.1", 0, mine, expire_s)
            node = Node(where, os.urandom(20))
            node.start(0)
            self.nodes.append(node)
            self.seeds.append(where.seeds)
            if one_of:
                before.append(node.port)
        self.tasks.append(asyncio.create_task(self._meet()))
        return [node.port for node in self.nodes]

    async def _meet(self) -> None:
        while True:
            await asyncio.sleep(MEET_S)
            for node, seeds in zip(self.nodes, self.seeds, strict=True):
                await node.meet(seeds)

    async def meet(self, seeds: list[int]) -> Any:
        found = parse_seeds(f"127.0.0.1:{port}" for port in seeds)
        self.seeds = [(*known, *found) for known in self.seeds]
        for node in self.nodes:
            await node.meet(found)
        return True

    async def near(self, least: int, seconds: float) -> Any:
        """How many nodes each has near it, at least `least` or after so many seconds."""
        end = time.monotonic() + seconds
        for node in self.nodes:
            while await node.look() < least and time.monotonic() < end:
                await node.meet(node.settings.seeds)
                await asyncio.sleep(0.1)
        return [node.near for node in self.nodes]

    async def put(self, items: list[list[Any]], parallel: int) -> Any:
        room = asyncio.Semaphore(parallel)
        times: list[float] = []

        async def one(node: int, key: str, data: str) -> bool:
            async with room:
                self.handles += 1
                raw, began = bytes.fromhex(data), time.monotonic()
                work = self.nodes[node].put(
                    self.handles, bytes.fromhex(key), value_id(SECRET, raw), raw
                )
                try:
                    return await asyncio.wait_for(work, 10)
                except TimeoutError:
                    return False
                finally:
                    times.append(time.monotonic() - began)

        taken = await asyncio.gather(*(one(*item) for item in items))
        return [sum(taken), sorted(times)]

    async def get(self, node: int, keys: list[str], deadline_s: float) -> Any:
        """[good values under each key, seconds]; a good value begins with its key."""
        found: dict[bytes, set[bytes]] = {bytes.fromhex(key): set() for key in keys}

        def brought(key: bytes, values: list[bytes], done: bool) -> None:
            envelopes = (parse(data) for data in values)
            found[key].update(e.value for e in envelopes if e and e.value[:20] == key)

        while self.nodes[node].alone:
            await self.nodes[node].look()
            await asyncio.sleep(0.1)
        began = time.monotonic()
        await self.nodes[node].get(list(found), deadline_s, brought)
        took = time.monotonic() - began
        return [[len(found[bytes.fromhex(key)]) for key in keys], took]

    async def counts(self, node: int) -> Any:
        """Requests by kind since the last call, once nothing is under way."""
        while (counts := self.nodes[node].counts()) is None:
            await asyncio.sleep(0.05)
        return counts

    async def memory(self) -> Any:
        return [rss_kib(), self.empty_kib]


async def main() -> None:
    pool = Pool()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        name, *arguments = json.loads(line)
        answer = await getattr(pool, name)(*arguments)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
