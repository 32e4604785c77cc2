"""The parts of a route that do no I/O: fairness, wishes, differences, pages."""

import asyncio
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from route_kit import later, until

from gateway.routes import HELD_MAX, LIFETIME_MAX_S, PER_KEY, PER_OWNER, RouteError, pages
from gateway.routes.gather import Gather
from gateway.routes.held import Held
from gateway.routes.local import LocalRoute
from gateway.routes.watches import Watches

NOW = 1_800_000_000
K = b"k" * 20


def gather(known=()):
    return Gather([K], NOW, {}, known)


def test_a_flood_of_one_owner_takes_its_own_share_only():
    g = gather()
    for n in range(10_000):
        g.add(K, b"flood %d" % n, NOW + 10, b"floodown")
    g.add(K, b"good", NOW + 10, b"somebody")
    state = g.state(K)
    assert b"good" in state and len(state) == PER_OWNER + 1


def test_known_owners_come_first_then_owners_in_turns():
    g = gather(known=[b"friend%02d" % n for n in range(4)])
    for n in range(5000):
        g.add(K, b"stranger %d" % n, NOW + 10, b"%08d" % n)
    for n in range(4):
        for m in range(PER_OWNER):
            g.add(K, b"friend %d %d" % (n, m), NOW + 10, b"friend%02d" % n)
    state = g.state(K)
    assert len(state) == PER_KEY
    assert sum(value.startswith(b"friend") for value in state) == 4 * PER_OWNER


def test_what_is_expired_too_far_ahead_or_of_a_wrong_size_is_counted_not_taken():
    counters = {}
    g = Gather([K], NOW, counters)
    for value, expires_s in (
        (b"v", NOW), (b"v", 2**40), (b"", NOW + 1), (b"v" * 513, NOW + 1), (b"x", -5),
    ):  # fmt: skip
        g.add(K, value, expires_s)
    g.add(b"other".ljust(20), b"v", NOW + 1)
    assert g.state(K) == {} and g.missed() == [K]
    assert counters == {"expired": 2, "too_far_ahead": 1, "wrong_size": 2}


def test_memory_of_a_gather_is_bounded():
    g = gather()
    for n in range(20_000):
        g.add(K, b"%d" % n, NOW + 10)  # a medium without owners
    assert len(g._values[K][b""]) <= 4 * PER_KEY and len(g.state(K)) == PER_KEY


def name(n=0, key=K):
    return key, n.to_bytes(16, "big")


def test_a_wish_expires_into_a_withdrawal_and_is_forgotten_when_delivered():
    held = Held()
    held.want(name(), b"value", NOW + 10, NOW)
    assert held.live == 1 and list(held.due) == [name()]
    held.delivered(name(), held.slots[name()].version, NOW)
    assert not held.due
    held.expire(NOW + 9)
    assert held.values(K, NOW + 9) == {b"value": NOW + 10}
    held.expire(NOW + 10)
    assert held.values(K, NOW + 10) == {} and list(held.due) == [name()] and held.live == 0
    held.delivered(name(), held.slots[name()].version, NOW + 10)
    held.expire(NOW + 11)
    assert not held.slots and not held.entries(K)


def test_a_late_delivery_of_an_old_version_does_not_count():
    held = Held()
    held.want(name(), b"one", NOW + 10, NOW)
    version = held.slots[name()].version
    held.want(name(), b"two", NOW + 10, NOW)
    held.delivered(name(), version, NOW)
    assert list(held.due) == [name()]


def test_old_values_are_hidden_until_they_would_have_expired():
    held = Held()
    held.want(name(), b"one", NOW + 100, NOW)
    held.want(name(), b"two", NOW + 100, NOW)
    assert held.hidden(K) == {b"one"}
    held.drop(name(), NOW)
    assert held.hidden(K) == {b"one", b"two"}
    held.delivered(name(), held.slots[name()].version, NOW)
    held.expire(NOW + 99)
    assert held.hidden(K) == {b"one", b"two"}
    held.want(name(), b"one", NOW + 200, NOW + 99)
    assert held.hidden(K) == {b"two"}
    for n in range(50):
        held.want(name(), b"v%d" % n, NOW + 1000, NOW + 99)
    assert len(held.hidden(K)) <= 8


def test_limits_of_what_is_held():
    held = Held()
    for n in range(PER_OWNER):
        held.want(name(n), b"v", NOW + 10, NOW)
    with pytest.raises(RouteError):
        held.want(name(PER_OWNER), b"v", NOW + 10, NOW)
    held.drop(name(3), NOW)
    held.want(name(PER_OWNER), b"v", NOW + 10, NOW)
    for expires_s in (NOW, NOW + LIFETIME_MAX_S + 1):
        with pytest.raises(RouteError):
            held.want(name(0), b"v", expires_s, NOW)
    for n in range(HELD_MAX - PER_OWNER):
        held.want(name(n, n.to_bytes(20, "big")), b"v", NOW + 10, NOW)
    with pytest.raises(RouteError):
        held.want(name(1, b"z" * 20), b"v", NOW + 10, NOW)
    held.expire(NOW + 10)
    assert held.live == 0


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.sampled_from("wdxta"), st.integers(0, 5), st.integers(1, 30)
        ),
        max_size=60,
    )
)
@settings(max_examples=200, deadline=None)
def test_what_is_held_is_what_was_last_wished(steps):
    """Against a dictionary: wish, drop, expire, deliver, lose, in any order."""
    held, model, now = Held(), {}, NOW
    for n, what, value, seconds in steps:
        if what == "w":
            held.want(name(n), b"%d" % value, now + seconds, now)
            model[n] = (b"%d" % value, now + seconds)
        elif what == "d":
            held.drop(name(n), now)
            model.pop(n, None)
        elif what == "x":
            now += seconds
            held.expire(now)
            model = {n: (v, t) for n, (v, t) in model.items() if t > now}
        elif what == "t":
            for due in list(held.due):
                held.delivered(due, held.slots[due].version, now)
        else:
            held.again()
        assert set(held.values(K, now)) == {v for v, _ in model.values()}
        assert held.live == len(model) and set(held.due) <= set(held.slots)
        assert {n for n in range(4) if name(n) in held.slots} >= set(model)


def test_watchers_hear_of_differences_only():
    heard = []
    watches = Watches({})
    handle, new = watches.add([K], lambda key, value: heard.append(value))
    assert new == [K]
    watches.told(K, {b"a": 0, b"b": 0})
    watches.told(K, {b"b": 0, b"c": 0})
    watches.told(K, {b"b": 0, b"c": 0})
    watches.appeared(K, b"c")
    watches.went(K, b"not there")
    watches.told(b"nobody watches this!", {b"z": 0})
    assert heard == [b"a", b"b", b"c", None]
    watches.appeared(K, b"brief", NOW + 1)
    watches.expire(NOW)
    assert heard[-1] == b"brief"
    watches.expire(NOW + 1)
    assert heard[-1] is None
    late = []
    second, new = watches.add([K], lambda key, value: late.append(value))
    assert not new and sorted(late) == [b"b", b"c"]
    assert watches.remove(handle) == [] and watches.remove(second) == [K]
    watches.appeared(K, b"after")
    assert b"after" not in heard


def test_a_watcher_may_end_itself_or_another_from_within():
    watches = Watches({})
    heard = []

    def first(key, value):
        heard.append(("first", value))
        watches.remove(one)
        watches.remove(two)

    one, _ = watches.add([K], first)
    two, _ = watches.add([K], lambda key, value: heard.append(("second", value)))
    watches.appeared(K, b"v")
    assert heard == [("first", b"v")] and not watches.keys


class Picky(LocalRoute):
    """A medium in memory that never takes a value beginning with "bad"."""

    name = "picky"

    def __init__(self):
        super().__init__(b"A" * 8)
        self.has = {}

    async def _start(self):
        self._set_up(True)

    async def _stop(self):
        pass

    async def _put(self, key, token, value, expires_s):
        if value.startswith(b"bug"):
            raise ValueError("on purpose")
        if value.startswith(b"bad"):
            return False
        self.has[key, token] = value
        return True

    async def _drop(self, key, token):
        return self.has.pop((key, token), None) is not None or True

    async def _fetch(self, gather):
        raise ValueError("on purpose")

    async def _listen(self, keys):
        pass

    async def _unlisten(self, keys):
        pass


def test_what_is_refused_or_breaks_holds_up_nobody(caplog):
    """Many announcements that are never taken, and good ones made while the medium is away."""

    async def tell():
        route = Picky()
        await route.open()
        try:
            for n in range(20):
                for value in (b"bad %d", b"bug %d"):
                    k = bytes(19) + bytes((n,))
                    assert not await route.announce(k, value % n, later(), os.urandom(16))
            route._set_up(False)
            for n in range(20):
                k = b"k" * 19 + bytes((n,))
                assert not await route.announce(k, b"good", later(), os.urandom(16))
            route._set_up(True)

            async def all_good():
                return len(route.has) == 20

            await until(all_good, 2)
            assert route.status()["pending"] == 40
            found = await route.lookup([k], 1)
            assert found.values[k] == [b"good"] and found.missed == [k]
            assert route.status()["counters"]["errors"] >= 20
        finally:
            await route.close()

    asyncio.run(tell())
    assert "on purpose" in caplog.text


TOKENS = st.binary(min_size=16, max_size=16)
ITEMS = st.dictionaries(
    TOKENS, st.tuples(st.binary(min_size=1, max_size=512), st.integers(0, 2**32 - 1)), max_size=12
)


@given(ITEMS)
@settings(deadline=None)
def test_pages_come_back(items):
    data = pages.encode(items)
    assert pages.decode(data) == items if items else data == b""
    for cut in range(3, len(data)):
        shorter = pages.decode(data[:cut])
        assert shorter is None or shorter != items


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_no_bytes_break_the_reader_of_pages(data):
    assert pages.decode(data) is None or data.startswith(pages.HEAD)
    items = pages.decode(pages.HEAD + data)
    if items is not None:
        assert sum(len(value) + pages.ITEM.size for value, _ in items.values()) <= len(data)
    assert pages.decode(pages.HEAD + bytes(pages.PAGE_MAX)) is None


def test_a_book_holds_the_most_that_an_owner_may_have():
    book = pages.Book()
    for n in range(PER_OWNER):
        book.put(n.to_bytes(16, "big"), os.urandom(512), NOW + 10)
    sizes = [len(pages.encode(items)) for items in book.pages]
    assert max(sizes) <= pages.PAGE_MAX
    found = {
        t: v for items in book.pages for t, v in (pages.decode(pages.encode(items)) or {}).items()
    }
    assert len(found) == PER_OWNER
    with pytest.raises(ValueError):
        for n in range(PER_OWNER, 2 * PER_OWNER):
            book.put(n.to_bytes(16, "big"), os.urandom(512), NOW + 10)


def test_a_book_writes_only_the_page_that_changed():
    book = pages.Book()
    for n in range(30):
        book.put(n.to_bytes(16, "big"), b"x" * 500, NOW + 10)
    book.dirty.clear()
    book.put((7).to_bytes(16, "big"), b"y" * 400, NOW + 10)
    assert book.dirty == {0}
    book.dirty.clear()
    book.put((7).to_bytes(16, "big"), b"y" * 400, NOW + 10)
    assert not book.dirty, "nothing changed"
    book.expire(NOW + 10)
    assert book.dirty == {0, 1, 2} and not any(book.pages)
    book.dirty.clear()
    assert book.empty()
