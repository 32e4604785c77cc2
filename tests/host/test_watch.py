"""Standing interests on their own: real pointers and vouchers, a route in memory."""

import asyncio
import time

import pytest
from test_query import BOOK, DOMAIN, NOW, World, some

from gateway import watch as watching
from gateway.cells import assign
from gateway.peers import PeerError
from gateway.routing_db import RoutingDb
from gateway.similarity import rank
from gateway.watch import Interests, Watch

AGENT = b"\x0a" * 8


class Field(World):
    """A world whose clock can be turned, with watches."""

    def __init__(self, folder):
        super().__init__(folder)
        self.db = RoutingDb(folder / "routing.db")
        self.clock = float(NOW)
        self.watched = {}
        self.handle = 0
        self.watch_of = Watch(
            self.me, self, lambda _: [self.reader], lambda d, v: [(0, 200), (1, 100), (2, 90)],
            self.fetch, self.db, lambda: self.clock,
        )  # fmt: skip
        self.interests = Interests(self.db, lambda: self.clock)

    async def watch(self, keys, callback):
        self.handle += 1
        self.watched[self.handle] = (set(keys), callback)
        for key in keys:
            for value in self.values.get(key, ()):
                callback(key, value)
        return self.handle

    async def unwatch(self, handle):
        self.watched.pop(handle, None)

    def tell(self):
        """Every value to whoever watches its key."""
        for keys, callback in list(self.watched.values()):
            for key in keys:
                for value in self.values.get(key, ()):
                    callback(key, value)

    @property
    def keys_watched(self):
        return set().union(*(keys for keys, _ in self.watched.values()))

    async def turn(self, count=1):
        for _ in range(count):
            self.clock += 0.5
            self.watch_of._read()
            if self.watch_of._stale:
                await self.watch_of.refresh()
            await self.watch_of._fetch_some()

    def found(self):
        return [(row.agent, row.outcome, row.label) for row in self.db.found()]


@pytest.fixture
def field(tmp_path):
    made = Field(tmp_path)
    yield made
    made.db.close()


def test_the_unsure_watch_more_than_the_sure(field):
    vector, other = some(2)

    async def story():
        assert field.interests.note(AGENT, DOMAIN.id, 1, 220, vector)
        await field.watch_of.refresh()
        sure = len(field.keys_watched)
        assert field.interests.note(AGENT, DOMAIN.id, 1, 30, other)
        await field.watch_of.refresh()
        assert len(field.keys_watched) >= sure + 2

    asyncio.run(story())


def test_what_is_known_already_is_no_new_interest(field):
    vector = some(1)[0]
    assert field.interests.note(AGENT, DOMAIN.id, 1, 220, vector)
    assert not field.interests.note(AGENT, DOMAIN.id, 1, 220, vector)
    assert field.interests.note(AGENT, DOMAIN.id, 1, 20, vector), "unsure is more than sure"
    assert not field.interests.note(AGENT, DOMAIN.id, 1, 20, vector)
    assert field.interests.note(b"\x0b" * 8, DOMAIN.id, 1, 220, vector), "another device"
    again = Interests(field.db, lambda: NOW)
    assert not again.note(AGENT, DOMAIN.id, 1, 220, vector), "remembered over a restart"


def test_a_new_pointer_becomes_a_row_for_the_device(field):
    _, b, _ = field.networks
    vector, far = some(1)[0], some(1, 50)[0]
    field.interests.note(AGENT, DOMAIN.id, 1, 30, vector)

    async def story():
        await field.watch_of.refresh()
        id_ = field.has(b, vector, 2)
        assert cosine(vector, far) < 0.5
        field.has(b, far, 2)
        field.tell()
        await field.turn()
        assert field.found() == [(AGENT, id_, 2)]
        field.tell()
        await field.turn()
        assert field.watch_of.counters["found"] == 1 and len(field.asked) == 1, "once"

    asyncio.run(story())


def cosine(a, b):
    return float(rank("cosine", a, [b])[1][0])


def test_an_origin_that_is_away_is_asked_again_and_given_up(field):
    _, b, _ = field.networks
    vector = some(1)[0]
    field.interests.note(AGENT, DOMAIN.id, 1, 220, vector)

    async def away(ids, deadline_s):
        raise PeerError("unreachable")

    async def story():
        await field.watch_of.refresh()
        id_ = field.has(b, vector)
        field.behaviour[b.gateway] = away
        field.tell()
        await field.turn(3)
        assert len(field.asked) == 1, "not at once again"
        field.clock += watching.RETRY_S * 2
        await field.turn()
        assert len(field.asked) == 2 and not field.found()
        del field.behaviour[b.gateway]
        field.clock += watching.RETRY_S * 8
        await field.turn()
        assert field.found() == [(AGENT, id_, 1)]
        # Another one never comes back: that ends.
        field.behaviour[b.gateway] = away
        field.has(b, vector)
        field.tell()
        for _ in range(12):
            field.clock += 200
            await field.turn()
        assert field.watch_of.counters["given up"] == 1
        assert field.watch_of.status()["waiting"] == 0

    asyncio.run(story())


def test_a_split_cell_is_followed_down(field):
    _, b, _ = field.networks
    vector = some(1)[0]
    path = assign(BOOK, BOOK.sketcher.rounded(vector))[0]
    field.interests.note(AGENT, DOMAIN.id, 1, 220, vector)

    async def story():
        await field.watch_of.refresh()
        before = field.keys_watched
        field.split(b, path[:1])
        field.split(b, path[:2])
        field.tell()
        await field.turn()
        field.tell()
        await field.turn()
        assert len(field.keys_watched) > len(before)
        id_ = field.has(b, vector, level=3)
        field.tell()
        await field.turn()
        assert field.found() == [(AGENT, id_, 1)]

    asyncio.run(story())


def test_a_busy_network_does_not_drown_a_device(field):
    _, b, _ = field.networks
    vector = some(1)[0]
    field.interests.note(AGENT, DOMAIN.id, 1, 220, vector)
    field.clock = NOW // 3600 * 3600 + 10.0

    async def story():
        await field.watch_of.refresh()
        for _ in range(200):
            field.has(b, vector)
        field.tell()
        started = field.clock
        await field.turn()
        assert sum(count for _, count, _ in field.asked) <= watching.PER_SECOND
        for _ in range(60):
            await field.turn()
        per_second = sum(count for _, count, _ in field.asked) / (field.clock - started)
        assert per_second <= watching.PER_SECOND
        assert len(field.db.found(limit=1000)) <= watching.PER_DEVICE_HOUR

    asyncio.run(story())


def test_garbage_under_a_watched_key(field):
    _, b, _ = field.networks
    vector = some(1)[0]
    field.interests.note(AGENT, DOMAIN.id, 1, 220, vector)

    async def story():
        await field.watch_of.refresh()
        id_ = field.has(b, vector)
        (key,) = [k for k in field.values if field.values[k]]
        field.values[key] = [b"x" * n for n in range(1, 300, 7)] + field.values[key]
        # A voucher that is not what the pointer promised.
        other = field.outcome(b, some(1, 8)[0], 1)
        field.put(b, field.pointer(b, vector, 1, other))
        field.tell()
        await field.turn()
        assert field.found() == [(AGENT, id_, 1)]
        assert field.watch_of.counters["rejected"] >= 40
        assert field.watch_of.counters["broken promise: wrong-sketch"] == 1

    asyncio.run(story())


def test_told_within_a_moment(field):
    """The loop itself: from the route's callback to the row."""
    _, b, _ = field.networks
    vector = some(1)[0]
    field.interests.note(AGENT, DOMAIN.id, 1, 220, vector)
    field.watch_of._now_s = time.time

    async def story():
        field.watch_of._now_s = lambda: NOW + time.monotonic() % 1000
        await field.watch_of.refresh()
        task = asyncio.create_task(field.watch_of.run())
        try:
            await asyncio.sleep(0.1)
            field.has(b, vector)
            field.tell()
            started = time.monotonic()
            while not field.found():
                assert time.monotonic() - started < 1.0
                await asyncio.sleep(0.01)
        finally:
            task.cancel()

    asyncio.run(story())
