"""Standing interests: what this gateway's devices would want to hear of, as it appears.

An *interest* is a vector of one device, with the label it had, or with none when the
device was unsure. Around a sure one the nearest cell of its own label is watched; around
an unsure one more cells, of every likely label: there others may know better. Interests
are made from the outcomes that devices send; one that is close to an interest the same
device has already adds nothing.

A new pointer under a watched key is told by the route within about a second. It is
verified like any other; when its sketch is near enough to an interest, as its domain's
measure sees it (likeness.py), the outcome is fetched from its origin as a voucher, held
against the pointer's promise (query.broken_promise) and handed over: one row in `found`
for each device concerned. What becomes of it there is the mailbox's business.

Limits, so that a busy network cannot drown a small gateway: keys watched, pointers
waiting (the oldest go), outcomes fetched per second, and per device and hour. An origin
that does not answer is tried again a few times, later and later.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edge_agent.errors import RemoteError
from gateway.answers import label_of
from gateway.cells import Path, Probe, path_key
from gateway.likeness import Likeness, by_cosine
from gateway.network import Network
from gateway.pointer import Pointer
from gateway.query import FETCH_AT_ONCE, broken_promise
from gateway.reader import Reader
from gateway.routes import Callback
from gateway.routing_db import Interest, RoutingDb
from gateway.sketch import Int8, as_rows
from gateway.voucher import Voucher

log = logging.getLogger("gateway.watch")

KEYS_MAX = 2048
WAITING_MAX = 4096
SEEN_MAX = 65_536
UNSURE_BELOW = 128  # confidence, of 255
CELLS_SURE, CELLS_UNSURE = 1, 3  # for each label
LIFE_S = 7 * 86_400
CLOSE = 0.95  # likeness at which two vectors of one device are one interest
PER_SECOND = 20.0  # outcomes fetched
PER_DEVICE_HOUR = 120
GATHER_S = 0.03  # pointers that come together are fetched together
TRIES, RETRY_S = 5, 2.0


class Watching(Protocol):
    """What a watch needs of routes: routeset.RouteSet."""

    async def watch(self, keys: Sequence[bytes], callback: Callback) -> int: ...
    async def unwatch(self, handle: int) -> None: ...


_Cell = tuple[int, Path]  # label, cell
Fetch = Callable[[bytes, str, Sequence[bytes], None, float], Awaitable[list[Voucher]]]


@dataclass(slots=True)
class _Key:
    handle: int
    reader: Reader
    label: int
    path: Path
    interests: list[Interest]


@dataclass(slots=True)
class _Waiting:
    pointer: Pointer
    reader: Reader
    interests: list[Interest]
    tries: int = 0
    not_before: float = 0.0


class Interests:
    """Which outcomes become interests."""

    def __init__(
        self,
        db: RoutingDb,
        now_s: Callable[[], float],
        likeness: Callable[[bytes], Likeness] = by_cosine,
    ) -> None:
        self._db = db
        self._now_s = now_s
        self._likeness = likeness
        self._known: dict[tuple[bytes, bytes], list[tuple[bytes, bool]]] = {}
        for one in db.interests(int(now_s())):
            self._keep(one.agent, one.domain, one.vector, one.label is None)

    def note(self, agent: bytes, domain: bytes, label: int, confidence: int, vector: bytes) -> bool:
        """Take in a new outcome of a device; True when it made an interest."""
        unsure = confidence < UNSURE_BELOW
        known = self._known.get((agent, domain), ())
        others = [other for other, was_unsure in known if was_unsure or not unsure]
        if others:
            likeness, mine = self._likeness(domain), as_rows(vector)[0]
            if likeness.same(mine, as_rows(others)).max() >= likeness.same_score(CLOSE, mine):
                return False
        self._db.add_interest(
            agent, domain, None if unsure else label, vector, confidence,
            int(self._now_s()) + LIFE_S,
        )  # fmt: skip
        self._keep(agent, domain, vector, unsure)
        return True

    def _keep(self, agent: bytes, domain: bytes, vector: bytes, unsure: bool) -> None:
        known = self._known.setdefault((agent, domain), [])
        known.append((vector, unsure))
        del known[:-64]  # the database keeps as many


class Watch:
    """Call `refresh` when interests or codebooks changed; `run` does the rest."""

    def __init__(
        self,
        network: Network,
        routes: Watching,
        readers: Callable[[bytes], Sequence[Reader]],
        likely: Callable[[bytes, bytes], Sequence[tuple[int, int]]],
        fetch: Fetch,
        db: RoutingDb,
        now_s: Callable[[], float],
        near: float = 0.5,
        likeness: Callable[[bytes], Likeness] = by_cosine,
    ) -> None:
        self._near = near
        self._likeness = likeness
        self._network = network
        self._routes = routes
        self._readers = readers
        self._likely = likely
        self._fetch = fetch
        self._db = db
        self._now_s = now_s
        self._keys: dict[bytes, _Key] = {}
        self._splits: dict[tuple[bytes, int], set[Path]] = {}
        self._seen_splits: dict[tuple[bytes, int], set[Path]] = {}
        # (interest, codebook) -> what is watched for it
        self._cells: dict[tuple[int, bytes], list[_Cell]] = {}
        self._told: list[tuple[bytes, bytes]] = []
        self._waiting: list[_Waiting] = []
        self._seen: OrderedDict[tuple[bytes, bytes, bytes], int] = OrderedDict()
        self._wake = asyncio.Event()
        self._stale = False
        self._level, self._level_at = PER_SECOND, 0.0
        self._hours: dict[bytes, tuple[int, int]] = {}
        self.counters: Counter[str] = Counter()

    # -- what is watched --------------------------------------------------------------

    async def refresh(self) -> None:
        """Bring the watched keys in line with interests, codebooks and known splits."""
        self._stale = False
        wanted = self._wanted()
        for key in [key for key in self._keys if key not in wanted]:
            await self._routes.unwatch(self._keys.pop(key).handle)
        for key, (reader, label, path, interests) in wanted.items():
            known = self._keys.get(key)
            if known is not None and {i.id for i in interests} <= {i.id for i in known.interests}:
                known.interests = interests
                continue
            entry = self._keys[key] = _Key(0, reader, label, path, interests)
            # A new watch is told what is there already: that may meet a new interest.
            entry.handle = await self._routes.watch([key], self._on_value)
            if known is not None:
                await self._routes.unwatch(known.handle)

    def _wanted(self) -> "dict[bytes, tuple[Reader, int, Path, list[Interest]]]":
        wanted: dict[bytes, tuple[Reader, int, Path, list[Interest]]] = {}
        # The unsure first, then the newest: they keep their keys when there are too many.
        interests = sorted(
            self._db.interests(int(self._now_s())), key=lambda i: (i.label is not None, -i.id)
        )
        self._splits.clear()
        cells: dict[tuple[int, bytes], list[_Cell]] = {}
        for interest in interests:
            for reader in list(self._readers(interest.domain))[:2]:
                name = (interest.id, reader.codebook.id)
                cells[name] = self._around(interest, reader, self._cells.get(name, []))
                for label, path in cells[name]:
                    book = reader.codebook
                    key = path_key(self._network.key, book.domain_id, book.version, label, path)
                    if key not in wanted and len(wanted) >= KEYS_MAX:
                        self.counters["too many keys"] += 1
                        continue
                    wanted.setdefault(key, (reader, label, path, []))[3].append(interest)
        self._cells = cells
        return wanted

    def _around(self, interest: Interest, reader: Reader, known: "list[_Cell]") -> "list[_Cell]":
        """(label, cell) around an interest. Found anew only where a cell was split since."""
        above = {(label, path[:-1]) for label, path in known}
        leaves = [one for one in known if one not in above]
        if leaves and not any(path in self._split(reader, label) for label, path in leaves):
            return known
        labels = [interest.label] if interest.label is not None else []
        if interest.label is None:
            labels = [label for label, _ in self._likely(interest.domain, interest.vector)]
        count = CELLS_UNSURE if interest.label is None else CELLS_SURE
        return [
            (label, path)
            for label in labels
            for path in self._nearest(reader, label, interest.vector, count)
        ]

    def _split(self, reader: Reader, label: int) -> set[Path]:
        """Cells known to be split; read once in a refresh."""
        book = reader.codebook
        found = self._splits.get((book.id, label))
        if found is None:
            now = int(self._now_s())
            found = set(self._db.splits(book.domain_id, book.version, label, now))
            found |= self._seen_splits.get((book.id, label), set())
            self._splits[book.id, label] = found
        return found

    def _nearest(self, reader: Reader, label: int, vector: bytes, count: int) -> list[Path]:
        """The nearest leaves, and every cell above them: pointers go to the first with room,
        and what is at a cell when it is split stays there until it is renewed."""
        probe = Probe(reader.codebook, vector, count)
        probe.seed_splits(self._split(reader, label))
        leaves = probe.take(1) + (probe.take(count - 1) if count > 1 else [])
        found = {leaf[:level] for leaf in leaves for level in range(1, len(leaf) + 1)}
        return sorted(found, key=lambda path: (len(path), path))

    # -- what is told -----------------------------------------------------------------

    def _on_value(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            return
        if len(self._told) >= WAITING_MAX:
            self._told.pop(0)
            self.counters["dropped"] += 1
        self._told.append((key, value))
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            later = min((w.not_before for w in self._waiting), default=self._now_s() + 1.0)
            try:
                async with asyncio.timeout(min(1.0, max(GATHER_S, later - self._now_s()))):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await asyncio.sleep(GATHER_S)
            try:
                self._read()
                if self._stale:
                    await self.refresh()
                await self._fetch_some()
            except Exception:
                self.counters["errors"] += 1
                log.exception("a turn of the watch failed; going on")

    def _read(self) -> None:
        """From values told to pointers to follow."""
        told, self._told = self._told, []
        by_key: dict[bytes, list[bytes]] = {}
        for key, value in told:
            by_key.setdefault(key, []).append(value)
        now = int(self._now_s())
        for key, values in by_key.items():
            entry = self._keys.get(key)
            if entry is None:
                continue
            read = entry.reader.read(key, values, now)
            self.counters["rejected"] += sum(read.rejected.values())
            name = (entry.reader.codebook.id, entry.label)
            if read.split and entry.path not in self._seen_splits.setdefault(name, set()):
                self._seen_splits[name].add(entry.path)
                self._stale = True
            for pointer in read.pointers:
                self._follow(pointer, entry)

    def _follow(self, pointer: Pointer, entry: _Key) -> None:
        """Keep a pointer for those interests that it is near enough to."""
        if pointer.gateway == self._network.gateway:
            return
        looks = as_rows(entry.reader.codebook.sketcher.decode(pointer.sketch))
        met = []
        for interest in entry.interests:
            name = (pointer.gateway, pointer.id, interest.agent)
            if self._seen.get(name, -1) >= pointer.epoch:
                continue
            if not self._near_enough(pointer.domain, as_rows(interest.vector)[0], looks):
                continue
            self._seen[name] = pointer.epoch
            met.append(interest)
        while len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)
        if not met:
            return
        self.counters["pointers"] += 1
        if len(self._waiting) >= WAITING_MAX:
            self._waiting.pop(0)
            self.counters["dropped"] += 1
        self._waiting.append(_Waiting(pointer, entry.reader, met))

    def _near_enough(self, domain: bytes, mine: Int8, looks: Int8) -> bool:
        likeness = self._likeness(domain)
        score = float(likeness.measure(mine, looks)[0])
        return score >= likeness.near_score(self._near, mine)

    # -- what is fetched --------------------------------------------------------------

    async def _fetch_some(self) -> None:
        now = self._now_s()
        self._level = min(PER_SECOND, self._level + max(0.0, now - self._level_at) * PER_SECOND)
        self._level_at = now
        due = [w for w in self._waiting if w.not_before <= now][: int(self._level)]
        if not due:
            return
        self._level -= len(due)
        chosen = {id(w) for w in due}
        self._waiting = [w for w in self._waiting if id(w) not in chosen]
        homes: dict[tuple[bytes, str], list[_Waiting]] = {}
        for one in due:
            homes.setdefault((one.pointer.gateway, one.pointer.endpoint), []).append(one)
        await asyncio.gather(*(self._fetch_from(home, some) for home, some in homes.items()))

    async def _fetch_from(self, home: tuple[bytes, str], waiting: list[_Waiting]) -> None:
        for at in range(0, len(waiting), FETCH_AT_ONCE):
            some = {w.pointer.id: w for w in waiting[at : at + FETCH_AT_ONCE]}
            try:
                vouchers = await self._fetch(home[0], home[1], list(some), None, 5.0)
            except RemoteError as error:
                self.counters["origin " + error.reason] += 1
                self._again(list(some.values()))
                continue
            for voucher in vouchers:
                one = some.get(voucher.facts.outcome)
                if one is not None:
                    self._hand_over(voucher, one)

    def _again(self, waiting: list[_Waiting]) -> None:
        for one in waiting:
            one.tries += 1
            if one.tries >= TRIES:
                for interest in one.interests:
                    self._seen.pop((one.pointer.gateway, one.pointer.id, interest.agent), None)
                self.counters["given up"] += 1
                continue
            one.not_before = self._now_s() + RETRY_S * 2**one.tries
            self._waiting.append(one)

    def _hand_over(self, voucher: Voucher, one: _Waiting) -> None:
        reason = broken_promise(voucher, one.pointer, one.reader)
        if reason:
            self.counters["broken promise: " + reason] += 1
            return
        facts = voucher.facts
        theirs = as_rows(voucher.record.outcome.vector)
        measure = self._likeness(one.pointer.domain).measure
        best: dict[bytes, float] = {}
        for interest in one.interests:
            score = float(measure(as_rows(interest.vector)[0], theirs)[0])
            best[interest.agent] = max(score, best.get(interest.agent, score))
        for agent, score in best.items():
            if not self._may(agent):
                self.counters["over a device's limit"] += 1
                continue
            new = self._db.add_found(
                agent, facts.outcome, voucher.gateway, one.pointer.domain, label_of(voucher),
                score, facts.utc_ms // 1000, int(self._now_s() * 1000), voucher.raw,
            )  # fmt: skip
            self.counters["found" if new else "found before"] += 1

    def _may(self, agent: bytes) -> bool:
        hour = int(self._now_s()) // 3600
        at, count = self._hours.get(agent, (hour, 0))
        count = count + 1 if at == hour else 1
        self._hours[agent] = (hour, count)
        return count <= PER_DEVICE_HOUR

    def status(self) -> dict[str, Any]:
        return {
            "keys": len(self._keys),
            "waiting": len(self._waiting),
            "counters": dict(self.counters),
        }
