"""From what is worth announcing to what stands in the network.

The policy (announce.py) says what to announce, renew or withdraw; here it happens: the
cell's keys are read from the root down until there is room (cells.settle), the pointer is
sealed and announced on every route, under each codebook version in use, and written down
in routing.db, from where it is announced again after a restart with the same tokens.

A withdrawal is announced as a signed value in the place of the pointer it ends, until
that would have expired: routes forget at their own pace, readers go by the epoch. A full
cell without a split marker gets one from whoever meets it first; who put a marker renews it
for as long as it has pointers below.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from edge_agent.errors import EdgeError
from edge_agent.interfaces import Crypto
from gateway.agents import AgentAction
from gateway.announce import WITHDRAW, Action
from gateway.cells import Path, assign, path_key, settle
from gateway.network import Network
from gateway.pointer import AGENT, MARKER, OUTCOME, Pointer, seal
from gateway.query import SEED_BELOW, SPLITS_S
from gateway.reader import Reader
from gateway.routes import Found
from gateway.routing_db import Announced, RoutingDb

log = logging.getLogger("gateway.publish")

AT_ONCE = 8
AHEAD = 4  # levels read at a time on the way down
READ_S = 2.0
NOTHING = b""  # the `thing` of a marker


class Announcing(Protocol):
    """What is needed of routes: routeset.RouteSet."""

    async def announce(self, key: bytes, value: bytes, expires_s: int, token: bytes) -> bool: ...
    async def withdraw(self, key: bytes, token: bytes) -> bool: ...
    async def lookup(self, keys: Sequence[bytes], deadline_s: float) -> Found: ...


class Publisher:
    """readers(domain): of the codebooks in use, newest first.  endpoint(): put into pointers,
    "" when this gateway's card says it."""

    def __init__(
        self,
        network: Network,
        crypto: Crypto,
        routes: Announcing,
        readers: Callable[[bytes], Sequence[Reader]],
        db: RoutingDb,
        now_s: Callable[[], float],
        lifetime_s: int,
        endpoint: Callable[[], str] = lambda: "",
    ) -> None:
        self._network = network
        self._crypto = crypto
        self._routes = routes
        self._readers = readers
        self._db = db
        self._now_s = now_s
        self._lifetime_s = lifetime_s
        self._endpoint = endpoint
        self._tokens: dict[tuple[bytes, bytes], bytes] = {}  # (thing, key) -> as announced
        self.counters: Counter[str] = Counter()

    async def rekeyed(self) -> None:
        """The network has a new key. What stood is taken from the media; that it is announced
        again is the policies' business."""
        tokens, self._tokens = self._tokens, {}
        self._db.forget_network()
        names = [(key, token) for (_, key), token in tokens.items()]
        for at in range(0, len(names), 64):
            await asyncio.gather(*(self._routes.withdraw(*n) for n in names[at : at + 64]))

    async def restore(self) -> int:
        """Announce again what stood when the last process ended; how many values."""
        now = int(self._now_s())
        self._db.forget_expired(now)
        rows = list(self._db.announced(now))
        self._tokens.clear()
        for at in range(0, len(rows), 64):
            await asyncio.gather(*(self._put(row) for row in rows[at : at + 64]))
        return len(rows)

    async def perform(self, domain: bytes, actions: Iterable[Action]) -> None:
        """Carry out what the policy of one domain asked for."""
        by_id: dict[bytes, list[Action]] = {}
        for action in actions:
            by_id.setdefault(action.entry.id, []).append(action)
        todo = list(by_id.values())
        for at in range(0, len(todo), AT_ONCE):
            some = [self._in_order(domain, one) for one in todo[at : at + AT_ONCE]]
            for result in await asyncio.gather(*some, return_exceptions=True):
                if isinstance(result, EdgeError):
                    self.counters["errors"] += 1
                    log.warning("not announced: %s", result)
                elif isinstance(result, BaseException):
                    raise result

    async def _in_order(self, domain: bytes, actions: Sequence[Action]) -> None:
        """A corrected outcome is withdrawn and announced again: not at the same time."""
        for action in actions:
            await self._perform(domain, action)

    async def _perform(self, domain: bytes, action: Action) -> None:
        entry = action.entry
        local = self._db.local(entry.id)
        rows = self._db.announced_at(entry.id)
        placed: set[bytes] = set()
        if action.what != WITHDRAW and local is not None:
            since = min((row.since_s for row in rows if row.kind == OUTCOME), default=entry.since_s)
            for reader in list(self._readers(domain))[:2]:
                book = reader.codebook
                pointer = Pointer(
                    OUTCOME, book.domain_id, book.version, entry.label, (), self._network.gateway,
                    entry.id, action.epoch, action.expires_s, book.kind,
                    book.sketcher.encode(local.vector), entry.flags, entry.confidence,
                    self._endpoint(),
                )  # fmt: skip
                placed |= await self._place(reader, pointer, rows, since, entry.merged, entry.row)
        await self._clear(rows, placed, action.epoch)
        self.counters[action.what] += 1

    async def perform_agents(self, domain: bytes, actions: Iterable[AgentAction]) -> None:
        """The same for fingerprints of agents, under the newest codebook."""
        for action in actions:
            readers = self._readers(domain)
            rows = self._db.announced_at(action.agent)
            placed: set[bytes] = set()
            if action.what != WITHDRAW and readers:
                book = readers[0].codebook
                pointer = Pointer(
                    AGENT, book.domain_id, book.version, None, (), self._network.gateway,
                    action.agent, action.epoch, action.expires_s, book.kind,
                    book.sketcher.encode(action.vector), 0, 0, self._endpoint(),
                )  # fmt: skip
                placed = await self._place(readers[0], pointer, rows, action.epoch, 0, None)
            await self._clear(rows, placed, action.epoch)
            self.counters["agent " + action.what] += 1

    async def _place(
        self,
        reader: Reader,
        pointer: Pointer,
        rows: Sequence[Announced],
        since_s: int,
        merged: int,
        outcome: int | None,
    ) -> set[bytes]:
        """Find the cell and announce; the key it stands under, if any."""
        book = reader.codebook
        full = assign(book, book.sketcher.decode(pointer.sketch))[0]
        path = await self._settle(reader, pointer.label, full, pointer.id)
        if path is None:
            self.counters["no room"] += 1
            return set()
        pointer = pointer._replace(path=path)
        key = pointer.key(self._network)
        # Also above a tombstone of its own that still stands there.
        newest = max((row.epoch for row in rows if row.key == key), default=0)
        pointer = pointer._replace(epoch=max(pointer.epoch, newest + 1))
        await self._announce(pointer, since_s, merged, outcome)
        return {key}

    async def _clear(self, rows: Sequence[Announced], placed: set[bytes], epoch: int) -> None:
        """Take back what stands in other places."""
        for row in rows:
            if row.key not in placed and row.kind in (OUTCOME, AGENT):
                await self._take_back(row, epoch)

    async def _settle(
        self, reader: Reader, label: int | None, full: Path, id_: bytes
    ) -> Path | None:
        """The cell with room for a pointer; puts the markers that are missing above it."""
        book = reader.codebook
        now = int(self._now_s())
        known = self._db.splits(book.domain_id, book.version, label, now)
        seen: dict[Path, tuple[int, bool]] = {
            path: (0, True) for path in known if path == full[: len(path)]
        }
        while (settled := settle(full, seen)).read is not None:
            start = len(settled.read)
            wanted = [full[:n] for n in range(start, min(start + AHEAD, len(full) + 1))]
            keys = [self._key(book, label, path) for path in wanted]
            found = await self._routes.lookup(keys, READ_S)
            for path, key in zip(wanted, keys, strict=True):
                read = reader.read(key, found.values.get(key, ()), now)
                seen[path] = reader.room(read, id_)
                if read.split and len(read.claims) < SEED_BELOW:
                    self._db.learn_split(book.domain_id, book.version, label, path, now + SPLITS_S)
        for path in settled.markers:
            await self._mark(reader, label, path)
        place: Path | None = settled.place
        return place

    def _key(self, book: Any, label: int | None, path: Path) -> bytes:
        return path_key(self._network.key, book.domain_id, book.version, label, path)

    async def _mark(self, reader: Reader, label: int | None, path: Path) -> None:
        book, now = reader.codebook, int(self._now_s())
        marker = Pointer(
            MARKER, book.domain_id, book.version, label, path, self._network.gateway, NOTHING,
            now, now + self._lifetime_s,
        )  # fmt: skip
        await self._announce(marker, now, 0, None)
        self.counters["marker"] += 1

    async def renew_markers(self) -> None:
        """Those past half of their life that have pointers of this gateway below."""
        now = int(self._now_s())
        rows = list(self._db.announced(now))
        below = {
            (row.domain, row.version, row.label, row.path[:n])
            for row in rows
            if row.kind in (OUTCOME, AGENT)
            for n in range(1, len(row.path))
        }
        for row in rows:
            if row.kind != MARKER or row.expires_s > now + self._lifetime_s // 2:
                continue
            if (row.domain, row.version, row.label, row.path) not in below:
                continue
            for reader in self._readers(row.domain):
                if reader.codebook.version == row.version:
                    await self._mark(reader, row.label, row.path)

    # -- values -----------------------------------------------------------------------

    async def _announce(
        self, pointer: Pointer, since_s: int, merged: int, outcome: int | None
    ) -> Announced:
        row = Announced(
            pointer.id, pointer.key(self._network), pointer.kind, pointer.domain,
            pointer.version, pointer.label, pointer.path, pointer.epoch, pointer.expires_s,
            since_s, pointer.flags, pointer.confidence, merged, outcome, pointer.sketch,
            seal(pointer, self._network, self._crypto),
        )  # fmt: skip
        # Written down first: what is in the network must be known here after a crash.
        self._db.announce(row)
        await self._put(row)
        return row

    async def _take_back(self, row: Announced, epoch: int) -> None:
        """A signed withdrawal in the place of the pointer."""
        end = _pointer(row, self._network).withdrawal(max(epoch, row.epoch + 1))
        if end.expires_s <= self._now_s():
            return
        await self._announce(end, row.since_s, 0, row.outcome)
        self.counters["taken back"] += 1

    async def _put(self, row: Announced) -> None:
        token = _pointer(row, self._network).token(self._network)
        self._tokens[row.thing, row.key] = token
        if await self._routes.announce(row.key, row.value, row.expires_s, token):
            self.counters["in the medium"] += 1
        else:
            self.counters["held back"] += 1


def _pointer(row: Announced, network: Network) -> Pointer:
    return Pointer(
        row.kind, row.domain, row.version, row.label, row.path, network.gateway, row.thing,
        row.epoch, row.expires_s, 0, row.sketch, row.flags, row.confidence,
    )  # fmt: skip
