"""What one medium has and another has not: files, locks, roles, brokers' rules, kills."""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import paho.mqtt.client as paho
import psycopg
import pytest
from brokers import Mosquitto, free_port
from gateway_kit import ROOT, broker_running, make_gateway
from paho.mqtt.enums import CallbackAPIVersion
from route_job import KEY, SIZE
from route_kit import find, finds, ground, key, later, story, token, until
from route_media import EVIL

from gateway.config import GatewayConfig
from gateway.routes import PER_OWNER, RouteError, file, pages
from gateway.routes.folder import FolderRoute
from gateway.routes.postgres import ACCESS_RULES, PostgresRoute
from gateway.routes.pubsub import PubsubRoute
from gateway.routes.sqlite import SqliteRoute

assert ground  # a fixture

A, B = b"A" * 8, b"B" * 8


def whole(value):
    return len(value) == SIZE and value == value[:8] * (SIZE // 8)


@pytest.mark.parametrize("kind", ["folder", "sqlite"])
def test_a_writer_killed_at_any_time_leaves_nothing_half(kind, tmp_path):
    """SIGKILL, again and again, while another member reads all the time."""
    path = tmp_path / ("route.db" if kind == "sqlite" else "share")
    if kind == "folder":
        path.mkdir()

    async def read_for(route, seconds):
        end, seen = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            values = await find(route, KEY)
            assert all(map(whole, values)), [v[:20] for v in values if not whole(v)]
            seen += len(values)
        return seen

    async def tell():
        reader = {"folder": FolderRoute, "sqlite": SqliteRoute}[kind](B, path)
        await reader.open()
        chance = random.Random(5)
        seen = 0
        try:
            for _ in range(5):
                job = subprocess.Popen(
                    [sys.executable, ROOT / "tests/host/route_job.py", kind, path, A.hex()],
                    cwd=ROOT, stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=str(ROOT)),
                )  # fmt: skip
                try:
                    assert await asyncio.to_thread(job.stdout.readline) == b"open\n"
                    seen += await read_for(reader, 0.1 + 0.2 * chance.random())
                finally:
                    job.send_signal(signal.SIGKILL)
                    job.wait()
                    job.stdout.close()
                seen += await read_for(reader, 0.05)
            assert seen > 50
            assert "damaged" not in reader.status()["counters"]
        finally:
            await reader.close()

    asyncio.run(tell())
    if kind == "folder":
        for found in path.glob(f"{A.hex()}/*/*"):
            assert found.parent.name == ".tmp" or file.decode(found.read_bytes()), found
        again = FolderRoute(A, path)
        asyncio.run(opened(again))
        assert list((path / A.hex() / ".tmp").iterdir()) == [], "swept"


async def opened(route, then=None):
    await route.open()
    try:
        return await then(route) if then else None
    finally:
        await route.close()


# -- folder ---------------------------------------------------------------------------------


def test_half_files_and_flipped_bits_are_not_values():
    data = file.encode(b"a value", later())
    assert file.decode(data)[0] == b"a value"
    assert all(file.decode(data[:n]) is None for n in range(len(data)))
    assert file.decode(data + b"x") is None and file.decode(bytes(len(data))) is None
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert file.decode(bytes(flipped)) is None, bit


@story(members=2, kinds=["folder"])
async def test_times_of_files_mean_nothing(medium, a, b):
    k, brief, end = key(), token(), later(2)
    await a.announce(k, b"lasting", later(), token())
    await a.announce(k, b"brief", end, brief)
    for n, path in enumerate(medium.share.glob("*/*/*")):
        os.utime(path, ((2**31 - 9) * (n % 2), (2**31 - 9) * (n % 2)))
    assert await find(b, k) == {b"lasting", b"brief"}
    await asyncio.sleep(max(0.0, end - time.time()))
    assert await find(b, k) == {b"lasting"}


@story(members=2, kinds=["folder"])
async def test_nothing_is_written_where_a_share_was(medium, a, b):
    await medium.down()
    assert await a.announce(key(), b"value", later(), token()) is False
    await asyncio.sleep(0.5)
    assert not medium.share.exists()
    assert a.status()["up"] is False
    await medium.up()


@story(members=2, kinds=["folder"])
async def test_what_somebody_removed_is_written_again(medium, a, b):
    k, other = key(), key()
    await a.announce(k, b"value", later(), token())
    await a.announce(other, b"other", later(), token())
    next(medium.share.glob(f"{a.owner.hex()}/{k.hex()}/*")).unlink()
    assert await find(b, k) == set()
    await finds(b, k, [b"value"], 2 * a.route.check_s + 1)
    assert a.status()["counters"]["lost"] == 1


@story(members=1, kinds=["folder"])
async def test_the_dead_are_buried_the_absent_are_not(medium, a):
    k = key()
    home = medium.share / EVIL.hex() / k.hex()
    home.mkdir(parents=True)
    dead, absent = home / os.urandom(16).hex(), home / os.urandom(16).hex()
    dead.write_bytes(file.encode(b"dead", later(-2 * 86400)))
    absent.write_bytes(file.encode(b"absent", later(-3600)))
    assert await find(a, k) == set()
    assert not dead.exists() and absent.exists()
    dead.parent.mkdir(exist_ok=True)
    dead.write_bytes(file.encode(b"dead, and nobody asks for its key", later(-2 * 86400)))

    async def buried():
        return not dead.exists()

    await until(buried, 2 * a.route.check_s + 1)
    assert absent.exists() and a.status()["up"]


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "no" / "such" / "place", tmp_path / "file"):
        with pytest.raises(RouteError):
            asyncio.run(opened(FolderRoute(A, path)))


# -- made-up owners ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "sqlite", "postgres"])
def test_those_we_know_come_first_among_made_up_owners(kind, ground, tmp_path):
    """5,000 owners that nobody knows put a value each under one key."""

    @story(members=0, kinds=[kind])
    async def tell(medium):
        (good,) = await medium.start(1)
        k = key()
        await good.announce(k, b"good", later(), token())
        strangers = [os.urandom(8) for _ in range(5000)]
        if kind == "folder":
            for owner in strangers:
                home = medium.share / owner.hex() / k.hex()
                home.mkdir(parents=True)
                (home / owner.hex().ljust(32, "0")).write_bytes(file.encode(b"bad", later()))
        elif kind == "sqlite":
            with medium._raw() as db:
                rows = [(k, o, bytes(16), b"bad" + o, later(7200)) for o in strangers]
                db.executemany("INSERT INTO pointers VALUES (?, ?, ?, ?, ?)", rows)
        else:
            with psycopg.connect(medium.shared.dsn(medium.database)) as db, db.cursor() as cursor:
                rows = [(k, o, bytes(16), b"bad" + o, later(7200)) for o in strangers]
                cursor.executemany("INSERT INTO route_pointers VALUES (%s, %s, %s, %s, %s)", rows)
        make = medium.make
        medium.make = lambda member: knowing(make(member), good.owner)
        (reader,) = await medium.start(1)
        found = await reader.lookup([k], 3.0)
        assert b"good" in found.values[k] and found.missed == []

    def knowing(route, owner):
        route.known = lambda: [owner]
        return route

    (told,) = [mark.args[1] for mark in tell.pytestmark]
    tell(told[0], ground, tmp_path)


# -- SQLite -----------------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "letters.txt"
    path.write_text("Dear Sir, " * 1000)
    with pytest.raises(RouteError):
        asyncio.run(opened(SqliteRoute(A, path)))
    assert path.read_text() == "Dear Sir, " * 1000


def test_a_new_file_that_another_writes_to_is_waited_for(tmp_path):
    """Nobody has changed its journal mode yet: then SQLite itself does not wait."""
    path = tmp_path / "route.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def story():
        route = SqliteRoute(A, path)
        opening = asyncio.create_task(route.open())
        await asyncio.sleep(0.3)
        other.execute("COMMIT")
        await opening
        up = route.up
        await route.close()
        return up

    assert asyncio.run(story())
    other.close()


@story(members=2, kinds=["sqlite"])
async def test_a_blocked_writer_delays_no_lookup(medium, a, b):
    k, old = key(), token()
    await a.announce(k, b"before", later(), token())
    await a.announce(k, b"old", later(), old)
    blocker = sqlite3.connect(medium.share / "route.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(a.announce(k, b"blocked", later(), token()))
    dropping = asyncio.create_task(a.withdraw(k, old))
    await asyncio.sleep(0.1)
    started = time.monotonic()
    assert await find(a, k) == {b"before", b"blocked"}
    assert await find(b, k) == {b"before", b"old"}, "withdrawn, but not yet there"
    assert time.monotonic() - started < 1.5, "a writer waits 2 s"
    assert await waiting is False and await dropping is False
    blocker.execute("COMMIT")
    blocker.close()
    await finds(b, k, [b"before", b"blocked"], 3.0)


@story(members=2, kinds=["sqlite"])
async def test_a_database_put_in_place_of_another(medium, a, b):
    k = key()
    await a.announce(k, b"value", later(), token())
    for path in medium.share.iterdir():
        path.unlink()
    await finds(b, k, [b"value"], 5.0)
    with medium._raw() as db:
        db.execute("DROP TABLE pointers")
    await finds(b, k, [b"value"], 5.0)


# -- PostgreSQL -------------------------------------------------------------------------------


@story(members=1, kinds=["postgres"])
async def test_roles_keep_gateways_apart(medium, a):
    """ACCESS_RULES: everybody reads everything, and changes only what is its own."""
    run = lambda text: medium.shared.run(text, medium.database)  # noqa: E731
    run(ACCESS_RULES)
    routes = []
    for owner in (A, B):
        role = f"qis_{owner.hex()}"
        run(f"DROP ROLE IF EXISTS {role}")
        run(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        run(f"GRANT SELECT, INSERT, UPDATE, DELETE ON route_pointers TO {role}")
        dsn = medium.shared.dsn(medium.database, user=role, password="secret")
        routes.append((PostgresRoute(owner, dsn), dsn))
    (one, _), (two, dsn) = routes
    k, t = key(), token()
    try:
        await asyncio.gather(one.open(), two.open())
        assert await one.announce(k, b"of one", later(), t) is True
        assert await two.announce(k, b"of two", later(), t) is True
        assert await find(two, k) == {b"of one", b"of two"}
        with psycopg.connect(dsn, autocommit=True) as db:
            assert db.execute("DELETE FROM route_pointers").rowcount == 1, "its own"
            assert db.execute("UPDATE route_pointers SET value = 'x'").rowcount == 0
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                db.execute(
                    "INSERT INTO route_pointers VALUES (%s, %s, %s, 'forged', %s)",
                    (k, A, token(), later()),
                )
        assert b"of one" in await find(one, k)
    finally:
        await asyncio.gather(one.close(), two.close())
        run("DROP TABLE route_pointers")
        for owner in (A, B):
            run(f"DROP ROLE qis_{owner.hex()}")


@story(members=1, kinds=["postgres"])
async def test_a_server_that_falls_silent(medium, a):
    k = key()
    await a.announce(k, b"value", later(), token())
    await medium.part([a])
    started = time.monotonic()
    found = await a.lookup([k], 0.3)
    assert time.monotonic() - started < 2.0 and found.missed == [k] and found.values[k]

    async def noticed():
        return not a.status()["up"]

    took = await until(noticed, 6.0)
    print(f"\npostgres: silence noticed after {took:.1f} s")
    await medium.heal()
    await finds(a, k, [b"value"], medium.settle_s)

    async def up():
        return a.status()["up"] and (await a.lookup([k], 1.0)).missed == []

    await until(up, medium.settle_s)


@story(members=1, kinds=["postgres"])
async def test_what_waiting_cannot_cure_is_refused(medium, a):
    wrong = medium.shared.dsn(medium.database, password="wrong")
    for dsn in (wrong, medium.shared.dsn("no_such_database")):
        with pytest.raises(RouteError) as caught:
            await opened(PostgresRoute(A, dsn))
        assert "wrong" not in str(caught.value).lower()
    started = time.monotonic()
    away = PostgresRoute(A, medium.shared.dsn(port=free_port()))
    await opened(away)
    assert time.monotonic() - started < 12


# -- pubsub -----------------------------------------------------------------------------------


@story(members=2, kinds=["pubsub"])
async def test_rules_keep_gateways_apart(medium, a, b):
    k = key()
    await a.announce(k, b"value", later(), token())
    await asyncio.to_thread(overwrite, medium, k, a.owner)
    assert await find(b, k) == {b"value"}


def overwrite(medium, k, owner):
    """As another gateway: erase, replace and add under someone's name."""
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    reasons = []
    client.on_publish = lambda c, d, mid, reason, props: reasons.append(str(reason))
    client.username_pw_set(EVIL.hex(), "pw")
    client.connect("127.0.0.1", medium.broker.port)
    client.loop_start()
    forged = pages.encode({bytes(16): (b"forged", later())})
    for page in range(8):
        for payload in (b"", forged):
            topic = f"qis/1/route/{k.hex()}/{owner.hex()}/{page}"
            client.publish(topic, payload, 1, True).wait_for_publish(5)
    client.disconnect()
    client.loop_stop()
    assert set(reasons) == {"Not authorized"}


@story(members=1, kinds=["pubsub"])
async def test_a_wrong_password_is_refused(medium, a):
    port, user = medium.broker.port, a.owner.hex()
    with pytest.raises(RouteError) as caught:
        await opened(PubsubRoute(a.owner, "127.0.0.1", port, user=user, password="not it"))
    assert "not it" not in str(caught.value)


@story(members=2, kinds=["pubsub"])
async def test_the_broker_buries_the_dead(medium, a, b):
    k, end = key(), later(2)
    await a.announce(k, b"brief", end, token())
    await finds(b, k, [b"brief"], 1.0)
    await medium.stop(a)
    await asyncio.sleep(max(0, end - time.time()) + 1.5)
    before = b.status()["counters"].get("expired", 0)
    assert await find(b, k) == set()
    assert b.status()["counters"].get("expired", 0) == before, "the broker sent it still"


@story(members=3, kinds=["pubsub"])
async def test_a_full_key_of_largest_values(medium, a, b, c):
    k = key()
    values = {member: [os.urandom(512) for _ in range(PER_OWNER)] for member in (a, b)}
    for member, mine in values.items():
        assert all(await asyncio.gather(*(member.announce(k, v, later(), token()) for v in mine)))
    await finds(c, k, values[a] + values[b], 2.0)


def test_the_broker_of_a_gateway_lets_it_announce(tmp_path):
    """With the files that `edge-gateway init` writes: its own name, and no other."""
    port = free_port()
    make_gateway(tmp_path / "gw", port)
    config = GatewayConfig(tmp_path / "gw")

    async def tell():
        for owner, taken in ((config.gateway, True), (A, False)):
            route = PubsubRoute(
                owner, "127.0.0.1", port, user=config.user, password=config.password
            )
            k = key()
            await route.open()
            try:
                assert await route.announce(k, b"value", later(), token()) is taken
                assert route.status()["counters"].get("refused", 0) == (0 if taken else 1)
            finally:
                await route.close()

    with broker_running("mosquitto", tmp_path / "gw", port):
        asyncio.run(tell())


def test_a_broker_with_its_default_queue_gives_everything(tmp_path):
    """mosquitto by default drops what does not fit a client's queue of 1,000."""

    async def tell():
        broker = Mosquitto(tmp_path, "allow_anonymous true").start()
        routes = [PubsubRoute(bytes((n,)) * 8, "127.0.0.1", broker.port) for n in range(1, 9)]
        keys = [key() for _ in range(140)]
        try:
            await asyncio.gather(*(route.open() for route in routes))
            for route in routes:
                for at in range(0, 140, 20):
                    some = [
                        route.announce(k, route.owner * 30, later(), token())
                        for k in keys[at : at + 20]
                    ]
                    assert all(await asyncio.gather(*some))
            found = await routes[0].lookup(keys, 10.0)
            assert found.missed == [] and all(len(v) == 8 for v in found.values.values())
        finally:
            await asyncio.gather(*(route.close() for route in routes))
            broker.kill()

    asyncio.run(tell())
