"""Every route keeps the contract of gateway/routes: one suite, real media."""

import asyncio
import time

import pytest
from route_kit import find, finds, ground, key, later, story, token, until

from gateway.routes import LIFETIME_MAX_S, LOOKUP_MAX, PER_OWNER, VALUE_MAX, RouteError

assert ground  # a fixture


class Heard:
    """A callback that keeps what it was told, and when."""

    def __init__(self):
        self.news = []

    def __call__(self, key, value):
        self.news.append((key, value, time.monotonic()))

    def values(self):
        return [value for _, value, _ in self.news]

    async def hears(self, value, seconds):
        async def heard():
            return value in self.values()

        return await until(heard, seconds, 0.01)


@story(members=2)
async def test_what_one_announces_others_find(medium, a, b):
    k, other = key(), key()
    assert await a.announce(k, b"here", later(), token()) is True
    assert await find(a, k) == {b"here"}, "at once, for oneself"
    await finds(b, k, [b"here"], b.seen_s)
    found = await b.lookup([other, k, k], 2.0)
    assert found.values == {other: [], k: [b"here"]} and found.missed == []
    assert await b.announce(k, b"me too", later(), token())
    await finds(a, k, [b"here", b"me too"], a.seen_s)


@story(members=2)
async def test_withdrawn_is_gone(medium, a, b):
    k, one, two = key(), token(), token()
    await a.announce(k, b"one", later(), one)
    await a.announce(k, b"two", later(), two)
    await finds(b, k, [b"one", b"two"], b.seen_s)
    assert await a.withdraw(k, one) is True
    assert await find(a, k) == {b"two"}, "at once, for oneself"
    await finds(b, k, [b"two"], b.gone_s)
    assert await a.withdraw(k, token()) is True, "what is not there"
    await a.announce(k, b"one", later(), one)
    await finds(b, k, [b"one", b"two"], b.seen_s)


@story(members=2)
async def test_others_cannot_withdraw(medium, a, b):
    k, t = key(), token()
    await a.announce(k, b"mine", later(), t)
    await finds(b, k, [b"mine"], b.seen_s)
    await b.withdraw(k, t)
    await asyncio.sleep(0.3)
    assert await find(a, k) == await find(b, k) == {b"mine"}


@story(members=2)
async def test_expired_is_gone(medium, a, b):
    k, end = key(), later(2)
    heard = Heard()
    await b.watch([k], heard)
    await a.announce(k, b"brief", end, token())
    await a.announce(k, b"lasting", later(), token())
    await finds(b, k, [b"brief", b"lasting"], min(b.seen_s, 1.0))
    await asyncio.sleep(max(0, end - time.time()))
    assert await find(a, k) == {b"lasting"}
    await finds(b, k, [b"lasting"], 0.5)
    await heard.hears(None, 1.5)

    async def forgotten():
        return a.status()["announced"] == 1

    await until(forgotten, 2.0)


@story(members=2)
async def test_update_replaces(medium, a, b):
    k, t = key(), token()
    for version in range(5):
        value = b"version %d" % version
        assert await a.announce(k, value, later(), t) is True
        assert await find(a, k) == {value}
    await finds(b, k, [b"version 4"], max(b.seen_s, b.gone_s))
    await a.announce(k, b"version 4", later(7200), t)
    await finds(b, k, [b"version 4"], b.seen_s)
    elsewhere = key()
    await a.announce(elsewhere, b"same token, other key", later(), t)
    await finds(b, k, [b"version 4"], b.seen_s)
    await finds(b, elsewhere, [b"same token, other key"], b.seen_s)


@story(members=2)
async def test_the_last_of_many_updates_at_once_wins(medium, a, b):
    k, t = key(), token()
    versions = [b"version %d" % n for n in range(20)]
    await asyncio.gather(*(a.announce(k, value, later(), t) for value in versions))
    assert await find(a, k) == {versions[-1]}
    await finds(b, k, versions[-1:], max(b.seen_s, b.gone_s))


@story(members=2)
async def test_watch_pushes_within_a_second(medium, a, b):
    k, quiet, there = key(), key(), token()
    await a.announce(k, b"was there", later(), there)
    await finds(b, k, [b"was there"], b.seen_s)
    heard, other = Heard(), Heard()
    handle = await b.watch([k, quiet], heard)
    await b.watch([k], other)
    await heard.hears(b"was there", b.pushed_s)
    assert b.pushed_s <= 1.0
    times = []
    for n in range(5):
        value, at = b"news %d" % n, time.monotonic()
        await a.announce(k, value, later(), token())
        await heard.hears(value, b.pushed_s)
        times.append(next(t for _, v, t in heard.news if v == value) - at)
    print(f"\n{b.name}: pushed within {max(times) * 1000:.0f} ms")
    assert sorted(times)[2] <= b.pushed_s, times
    await other.hears(b"news 4", b.pushed_s)
    assert len(heard.values()) == len(set(heard.values())) == 6, "each value once"
    assert {k for k, _, _ in heard.news} == {k}
    await a.withdraw(k, there)
    await heard.hears(None, b.gone_s + b.pushed_s)
    await b.unwatch(handle)
    told = len(heard.news)
    await a.announce(k, b"after", later(), token())
    await other.hears(b"after", b.pushed_s)
    assert len(heard.news) == told
    await b.unwatch(handle)


@story(members=1)
async def test_a_watcher_that_fails_harms_nobody(medium, a):
    k = key()
    good = Heard()

    def bad(key, value):
        raise ValueError("on purpose")

    await a.watch([k], bad)
    await a.watch([k], good)
    await a.announce(k, b"value", later(), token())
    await good.hears(b"value", a.pushed_s)
    assert a.status()["counters"]["callback_errors"] == 1


@story(members=4)
async def test_many_writers(medium, *members):
    keys = [key() for _ in range(3)]
    wanted = {k: set() for k in keys}
    work = []
    for n, member in enumerate(members):
        for m in range(24):
            k, value = keys[m % 3], b"%d from %d" % (m, n)
            wanted[k].add(value)
            work.append(member.announce(k, value, later(), token()))
    assert all(await asyncio.gather(*work))
    for member in members:
        for k in keys:
            await finds(member, k, wanted[k], 4 * member.seen_s)


JUNK = [b"", b"x", b"\x00" * 40, b"\xff" * VALUE_MAX, b"y" * (VALUE_MAX + 1), b"z" * 60_000]


@story(members=2)
async def test_poison_neither_hides_nor_breaks(medium, a, b):
    k = key()
    heard = Heard()
    await b.watch([k], heard)
    await a.announce(k, b"good", later(), token())
    await medium.junk(k, JUNK)
    await finds_at_least(b, k, b"good", 2 * b.seen_s)
    await a.announce(k, b"good too", later(), token())
    await finds_at_least(b, k, b"good too", 2 * b.seen_s)
    await heard.hears(b"good", b.pushed_s)
    await heard.hears(b"good too", b.pushed_s)
    for value in (await find(b, k)) | {v for v in heard.values() if v is not None}:
        assert 0 < len(value) <= VALUE_MAX
    assert b.status()["up"]


async def finds_at_least(member, k, value, seconds):
    async def there():
        return value in await find(member, k)

    await until(there, seconds)


@story(members=2)
async def test_a_flood_under_a_key_hides_nobody(medium, a, b):
    k = key()
    await medium.junk(k, [b"flood %d" % n for n in range(medium.flood)])
    await a.announce(k, b"good", later(), token())
    started = time.monotonic()
    await finds_at_least(b, k, b"good", 4 * b.seen_s)
    found = await b.lookup([k], 3.0)
    assert len(found.values[k]) <= 512
    print(f"\n{b.name}: found beside {medium.flood} in {time.monotonic() - started:.2f} s")


@story(members=2)
async def test_restart_of_a_member(medium, a, b):
    k, one, two = key(), token(), token()
    await a.announce(k, b"one", later(), one)
    await a.announce(k, b"two", later(), two)
    await finds(b, k, [b"one", b"two"], b.seen_s)
    await medium.stop(a)
    assert await find(b, k) == {b"one", b"two"}, "stays in the medium"
    await medium.restart(a)
    await a.announce(k, b"one", later(), one)
    await finds(b, k, [b"one", b"two"], medium.settle_s)
    await a.withdraw(k, two)
    await finds(b, k, [b"one"], max(b.gone_s, b.seen_s))
    with pytest.raises(RouteError):
        await (await old_route(medium, a)).announce(k, b"x", later(), one)


async def old_route(medium, member):
    route = member.route
    await medium.restart(member)
    await route.close()
    return route


@story(members=1)
async def test_alone(medium, a):
    k, t = key(), token()
    heard = Heard()
    await a.watch([k], heard)
    await a.announce(k, b"one", later(), t)
    await a.announce(k, b"two", later(), token())
    assert await find(a, k) == {b"one", b"two"}
    await heard.hears(b"one", a.pushed_s)
    await a.withdraw(k, t)
    assert await find(a, k) == {b"two"}
    await heard.hears(None, a.pushed_s)


@story(members=3)
async def test_partition_and_heal(medium, a, b, c):
    k, old = key(), token()
    heard = Heard()
    await c.watch([k], heard)
    await a.announce(k, b"before", later(), token())
    await a.announce(k, b"withdrawn meanwhile", later(), old)
    for member in (b, c):
        await finds(member, k, [b"before", b"withdrawn meanwhile"], member.seen_s)
    await medium.part([c])
    await a.withdraw(k, old)
    started = time.monotonic()
    await c.announce(k, b"by c, alone", later(), token())
    assert b"by c, alone" in await find(c, k, 1.0), "at once, for oneself"
    found = await c.lookup([k], 1.0)
    assert time.monotonic() - started < 8
    assert found.missed == [k] or b"before" in found.values[k]
    await a.announce(k, b"by a, meanwhile", later(), token())
    await finds_at_least(b, k, b"by a, meanwhile", b.seen_s)
    await medium.heal()
    whole = [b"before", b"by c, alone", b"by a, meanwhile"]
    for member in (a, b, c):
        await finds(member, k, whole, medium.settle_s + member.seen_s + member.gone_s)
    await heard.hears(b"by a, meanwhile", medium.settle_s + c.pushed_s)


@story(members=2)
async def test_late_joiner(medium, a, b):
    keys = [key() for _ in range(10)]
    for n, k in enumerate(keys):
        await a.announce(k, b"old %d" % n, later(), token())
    await b.announce(keys[0], b"update", later(), token())
    (late,) = await medium.start(1)
    heard = Heard()
    await late.watch(keys, heard)
    for n, k in enumerate(keys[1:], 1):
        await finds(late, k, [b"old %d" % n], medium.settle_s)
    await finds(late, keys[0], [b"old 0", b"update"], medium.settle_s)
    for n in range(10):
        await heard.hears(b"old %d" % n, medium.settle_s)
    await late.announce(keys[3], b"by the late one", later(), token())
    await finds(a, keys[3], [b"old 3", b"by the late one"], a.seen_s + medium.settle_s)


@story(members=2)
async def test_the_medium_goes_away_and_comes_back(medium, a, b):
    k, t = key(), token()
    await a.announce(k, b"before", later(), t)
    await finds(b, k, [b"before"], b.seen_s)
    heard = Heard()
    await b.watch([k], heard)
    await medium.down()
    started = time.monotonic()
    found = await b.lookup([k, key()], 0.5)
    assert time.monotonic() - started < 2.0, "the deadline holds"
    assert found.missed
    assert await a.announce(k, b"meanwhile", later(), token()) is False
    assert b"meanwhile" in await find(a, k, 0.5)
    assert a.status()["pending"] >= 1
    await a.withdraw(k, t)
    await medium.up()
    took = await finds(b, k, [b"meanwhile"], medium.settle_s + b.seen_s + b.gone_s)
    await heard.hears(b"meanwhile", medium.settle_s)
    print(f"\n{a.name}: as before {took:.2f} s after the medium came back")

    async def calm():
        return a.status()["up"] and not a.status()["pending"]

    await until(calm, medium.settle_s)


@story(members=2)
async def test_a_medium_that_forgot_is_told_again(medium, a, b):
    keys = [key() for _ in range(20)]
    for k in keys:
        await a.announce(k, b"value", later(), token())
    await finds(b, keys[-1], [b"value"], b.seen_s)
    await medium.lose()
    started = time.monotonic()
    for k in keys:
        await finds(b, k, [b"value"], medium.settle_s + b.seen_s)
    print(f"\n{a.name}: all there again after {time.monotonic() - started:.2f} s")


@story(members=3)
async def test_messages_of_a_query(medium, a, b, c):
    keys = [key() for _ in range(24)]
    for member in (a, b):
        for k in keys:
            await member.announce(k, b"%d" % member.owner[0] * 100, later(), token())
    await finds(c, keys[-1], [b"1" * 100, b"2" * 100], c.seen_s)

    async def complete():
        return sum(map(len, (await c.lookup(keys, 2.0)).values.values())) == 48

    await until(complete, c.seen_s)
    started = time.monotonic()
    found = await c.lookup(keys, 2.0)
    took = time.monotonic() - started
    print(f"\n{c.name}: 24 keys, 48 values: {found.messages} {c.unit}, {took * 1000:.1f} ms")
    assert found.missed == [] and all(len(v) == 2 for v in found.values.values())
    assert 0 < found.messages <= medium.query_max
    assert c.status()["messages"]["lookup"] >= found.messages


@story(members=1)
async def test_limits_and_misuse(medium, a):
    k, t = key(), token()
    for arguments in (
        (k[:-1], b"v", later(), t), (k, b"", later(), t), (k, b"v" * (VALUE_MAX + 1), later(), t),
        (k, b"v", later(-1), t), (k, b"v", later(LIFETIME_MAX_S + 60), t), (k, b"v", later(), b"t"),
    ):  # fmt: skip
        with pytest.raises(RouteError):
            await a.announce(*arguments)
    with pytest.raises(RouteError):
        await a.lookup([key() for _ in range(LOOKUP_MAX + 1)], 1.0)
    with pytest.raises(RouteError):
        await a.lookup([b"short"], 1.0)
    with pytest.raises(RouteError):
        await a.watch([b"short"], print)
    for n in range(PER_OWNER):
        await a.announce(k, b"%d" % n, later(), n.to_bytes(16, "big"))
    with pytest.raises(RouteError):
        await a.announce(k, b"one more", later(), t)
    await a.announce(k, b"an update", later(), bytes(16))
    assert len(await find(a, k)) == PER_OWNER
    await a.unwatch(12345)
    status = a.status()
    assert status["route"] == a.name and status["up"] is True
    assert status["announced"] == PER_OWNER and status["pending"] == 0
    assert (await a.lookup([], 1.0)).values == {}
    await a.close()
    await a.close()
    for call in (a.lookup([k], 1.0), a.announce(k, b"v", later(), t), a.withdraw(k, t)):
        with pytest.raises(RouteError):
            await call


@story(members=2)
async def test_a_value_of_the_largest_size(medium, a, b):
    k, value = key(), bytes(range(256)) * (VALUE_MAX // 256)
    assert await a.announce(k, value, later(), token())
    await finds(b, k, [value], b.seen_s)
