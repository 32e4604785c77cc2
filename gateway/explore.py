"""Learning the way down before anybody asks.

In a network with many outcomes most cells are split several times over, and a query that
knows no split spends its lookups on finding the way. So the routing process walks around
its own interests in the background, slowly, and writes down where splits are: the queries
that will be asked here are mostly about what its devices meet. One walk for each region
and label, again after an hour; a small network has nothing to learn and costs a few
lookups.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from gateway.cells import Path, Probe, assign, path_key
from gateway.network import Network
from gateway.query import SEED_BELOW, SPLITS_S
from gateway.reader import Reader
from gateway.routes import Found
from gateway.routing_db import Interest, RoutingDb

log = logging.getLogger("gateway.explore")

WALK = 200  # lookups of one walk
STEP = 4  # at a time
WALKS = 64  # in one round
ROUND_S = 3600.0
READ_S = 2.0

Lookup = Callable[[Sequence[bytes], float], Awaitable[Found]]


class Explorer:
    """likely(domain, vector): labels for interests that have none.  pause_s: between steps."""

    def __init__(
        self,
        network: Network,
        lookup: Lookup,
        readers: Callable[[bytes], Sequence[Reader]],
        likely: Callable[[bytes, bytes], Sequence[tuple[int, int]]],
        db: RoutingDb,
        now_s: Callable[[], float],
        pause_s: float = 1.0,
    ) -> None:
        self._network = network
        self._lookup = lookup
        self._readers = readers
        self._likely = likely
        self._db = db
        self._now_s = now_s
        self._pause_s = pause_s
        self._walked: dict[tuple[bytes, int, Path], float] = {}
        self.counters: Counter[str] = Counter()

    async def turn(self) -> None:
        """One round over the interests; then a pause."""
        for reader, label, vector in self._ways():
            await self._walk(reader, label, vector)
        await asyncio.sleep(30.0)

    def _ways(self) -> list[tuple[Reader, int, bytes]]:
        """Regions and labels that were not walked lately, one vector for each."""
        now = self._now_s()
        self._walked = {way: at for way, at in self._walked.items() if at > now - ROUND_S}
        ways: list[tuple[Reader, int, bytes]] = []
        for interest in self._db.interests(int(now)):
            readers = self._readers(interest.domain)
            if not readers:
                continue
            book = readers[0].codebook
            region = assign(book, book.sketcher.rounded(interest.vector))[0][: book.levels1]
            for label in self._labels(interest):
                way = (book.id, label, region)
                if way not in self._walked and len(ways) < WALKS:
                    self._walked[way] = now
                    ways.append((readers[0], label, interest.vector))
        return ways

    def _labels(self, interest: Interest) -> list[int]:
        if interest.label is not None:
            return [interest.label]
        return [label for label, _ in self._likely(interest.domain, interest.vector)]

    async def _walk(self, reader: Reader, label: int, vector: bytes) -> None:
        book = reader.codebook
        domain, version = book.domain_id, book.version
        probe = Probe(book, vector, WALK)
        now = int(self._now_s())
        probe.seed_splits(self._db.splits(domain, version, label, now))
        self.counters["walks"] += 1
        while paths := probe.take(STEP):
            keys = [path_key(self._network.key, domain, version, label, p) for p in paths]
            found = await self._lookup(keys, READ_S)
            now = int(self._now_s())
            self.counters["lookups"] += len(keys)
            for path, key in zip(paths, keys, strict=True):
                if key in found.missed:
                    continue
                read = reader.read(key, found.values.get(key, ()), now, verify=False)
                probe.saw(path, len(read.claims), read.split)
                if read.split and len(read.claims) < SEED_BELOW:
                    self._db.learn_split(domain, version, label, path, now + 2 * SPLITS_S)
                    self.counters["splits"] += 1
            await asyncio.sleep(self._pause_s)
