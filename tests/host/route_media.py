"""The media of the suite: a shared folder, SQLite, PostgreSQL and mosquitto, all real."""

import asyncio
import os
import shutil
import signal
import sqlite3
import threading

import paho.mqtt.client as paho
import psycopg
from brokers import Mosquitto
from paho.mqtt.enums import CallbackAPIVersion
from postgres_kit import cluster
from route_kit import Cut, Medium, later

from gateway.mosquitto import hashed
from gateway.routes import pages
from gateway.routes.file import encode
from gateway.routes.folder import FolderRoute
from gateway.routes.postgres import PostgresRoute
from gateway.routes.pubsub import PubsubRoute, access_rules
from gateway.routes.sqlite import SqliteRoute

EVIL = b"\xee" * 8  # the owner that a hostile member writes as


class Folder(Medium):
    """One directory, seen by each member through a link of its own that can be cut."""

    query_max = 24 * (2 + 3) + 24

    async def begin(self):
        self.share = self.folder / "share"
        self.share.mkdir()

    def _link(self, member):
        return member.folder / "share"

    def make(self, member):
        link = self._link(member)
        if not link.is_symlink():
            link.symlink_to(self.share)
        return FolderRoute(member.owner, link)

    async def part(self, members):
        for member in members:
            self._link(member).unlink()

    async def heal(self):
        for member in self.members:
            if not self._link(member).is_symlink():
                self._link(member).symlink_to(self.share)

    async def junk(self, key, values):
        home = self.share / EVIL.hex() / key.hex()
        home.mkdir(parents=True, exist_ok=True)
        for value in values:
            (home / os.urandom(16).hex()).write_bytes(value)
            (home / os.urandom(16).hex()).write_bytes(encode(value, later()))
        (home / os.urandom(16).hex()).mkdir()
        os.mkfifo(home / os.urandom(16).hex())
        (home / os.urandom(16).hex()).symlink_to("/dev/zero")
        (home / "notes.txt").write_text("something else")

    async def down(self):
        self.share.rename(self.folder / "unmounted")

    async def up(self):
        (self.folder / "unmounted").rename(self.share)

    async def lose(self):
        for path in self.share.iterdir():
            shutil.rmtree(path)


class Synced(Folder):
    """A directory for each member, kept in step by a bad tool: every file appears under its
    final name first as half of it, then whole, with a time of its own; now and then a copy
    is left beside it. What a member removes is removed elsewhere."""

    settle_s = 4.0
    query_max = 24 * (3 + 3 * 2) + 24
    flood = 100  # this tool is slow

    async def begin(self):
        self.cut = set()
        self.shares = {}
        self.present = True
        self.evil = self.folder / "evil"
        self.evil.mkdir()
        self.share = self.evil
        self._ended = threading.Event()
        self._paused = threading.Lock()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    async def end(self):
        self._ended.set()
        await asyncio.to_thread(self._thread.join)

    def make(self, member):
        share = member.folder / "share"
        share.mkdir(exist_ok=True)
        self.shares[member.owner] = share
        return FolderRoute(member.owner, share)

    def _run(self):
        half = {}
        while not self._ended.wait(0.04):
            with self._paused:
                sources = [*self.shares.items(), (EVIL, self.evil)]
                for owner, source in sources:
                    for other, target in list(self.shares.items()):
                        if owner != other and not {owner, other} & self.cut and self.present:
                            self._mirror(source / owner.hex(), target / owner.hex(), half)

    def _mirror(self, source, target, half):
        for path in source.glob("*/*"):
            copy = target / path.parent.name / path.name
            try:
                if not path.is_file() or path.is_symlink():
                    continue
                data = path.read_bytes()
            except OSError:
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            if half.get(copy) == data and copy.exists():
                if copy.read_bytes() != data:
                    copy.write_bytes(data)
                    os.utime(copy, (17, 17))
            else:
                half[copy] = data
                copy.write_bytes(data[: len(data) // 2])
                (copy.parent / f"{copy.name}.sync-conflict").write_bytes(data)
        for copy in list(target.glob("*/*")):
            name = copy.name.removesuffix(".sync-conflict")
            if not (source / copy.parent.name / name).exists():
                copy.unlink()

    async def part(self, members):
        with self._paused:
            self.cut |= {member.owner for member in members}

    async def heal(self):
        with self._paused:
            self.cut.clear()

    async def down(self):
        with self._paused:
            self.present = False
            for share in self.shares.values():
                share.rename(share.with_name("gone"))

    async def up(self):
        with self._paused:
            for share in self.shares.values():
                share.with_name("gone").rename(share)
            self.present = True

    async def lose(self):
        with self._paused:
            for share in self.shares.values():
                for path in share.iterdir():
                    shutil.rmtree(path)


class Sqlite(Folder):
    """One database in a folder that each member reaches through a link of its own."""

    query_max = 1

    def make(self, member):
        link = self._link(member)
        if not link.is_symlink():
            link.symlink_to(self.share)
        return SqliteRoute(member.owner, link / "route.db")

    async def junk(self, key, values):
        """By someone who made the tables, without our checks."""
        with self._raw() as db:
            db.execute("PRAGMA ignore_check_constraints=ON")
            row = "INSERT INTO pointers VALUES (?, ?, ?, ?, ?)"
            for value in values:
                db.execute(row, (key, EVIL, os.urandom(16), value, later()))
            for wrong in ("text", 17, 1.5):
                db.execute(row, (key, EVIL, os.urandom(16), wrong, later()))
                db.execute(row, (key, wrong, os.urandom(16), b"wrong owner", later()))
                db.execute(row, (key, EVIL, wrong, b"wrong token", later()))
            db.execute(row, (key, EVIL, os.urandom(16), b"wrong expiry", "soon"))
            db.execute(row, (key, EVIL, os.urandom(16), b"far expiry", 2**62))
            bad = "INSERT INTO pointers VALUES (?, ?, ?, CAST(x'ff' AS TEXT), ?)"
            db.execute(bad, (key, EVIL, os.urandom(16), later()))
            db.execute("INSERT INTO changes (key) VALUES (?)", (key,))
            db.execute("INSERT INTO changes (key) VALUES ('text')")

    async def lose(self):
        with self._raw() as db:
            db.execute("DELETE FROM pointers")

    def _raw(self):
        return sqlite3.connect(self.share / "route.db", timeout=5)


class Wired(Medium):
    """A server that each member reaches through a way of its own that can be cut."""

    server_port = 0

    async def start(self, count=1):
        self._new = [await Cut(self.server_port).start() for _ in range(count)]
        return await super().start(count)

    def way(self, member):
        if not hasattr(member, "way"):
            member.way = self._new.pop()
        return member.way

    async def part(self, members):
        for member in members:
            member.way.cut()

    async def heal(self):
        for member in self.members:
            member.way.heal()

    async def end(self):
        for member in self.members:
            if hasattr(member, "way"):
                await member.way.stop()


class Postgres(Wired):
    """A cluster for all tests, a database for each."""

    query_max = 1
    settle_s = 8.0  # a silent server is given up after 3.5 s

    @classmethod
    def ground(cls, folder):
        return cluster()

    async def begin(self):
        self.server_port = self.shared.port
        self.database = f"d{os.urandom(6).hex()}"
        self.shared.run(f"CREATE DATABASE {self.database}")

    async def end(self):
        await super().end()
        self.shared.run(f"DROP DATABASE {self.database} WITH (FORCE)")

    def make(self, member):
        return PostgresRoute(member.owner, self.shared.dsn(self.database, self.way(member).port))

    async def junk(self, key, values):
        """As the owner of the table can: checks dropped, columns as wrong as types allow."""
        with psycopg.connect(self.shared.dsn(self.database)) as db:
            for column in ("key", "owner", "token", "value"):
                db.execute(
                    f"ALTER TABLE route_pointers DROP CONSTRAINT route_pointers_{column}_check"
                )
            row = "INSERT INTO route_pointers VALUES (%s, %s, %s, %s, %s)"
            with db.cursor() as cursor:
                cursor.executemany(
                    row, [(key, EVIL, os.urandom(16), value, later()) for value in values]
                )
            db.execute(row, (key, b"", os.urandom(16), b"no owner", later()))
            db.execute(row, (key, b"long owner" * 9, b"", b"no token", later()))
            db.execute(row, (key, EVIL, os.urandom(16), b"far expiry", 2**62))
            db.execute(row, (b"", EVIL, os.urandom(16), b"no key", later()))
            db.execute("SELECT pg_notify('qis_route', %s)", (key.hex(),))
            db.execute("SELECT pg_notify('qis_route', 'not hex')")

    async def down(self):
        await asyncio.to_thread(self.shared.stop)

    async def up(self):
        await asyncio.to_thread(self.shared.start)

    async def lose(self):
        self.shared.run("DROP TABLE route_pointers", self.database)


class Pubsub(Wired):
    """mosquitto with the access rules of the route; each member has its own user."""

    query_max = 4 + 2 * 24
    settle_s = 12.0  # a silent broker is given up after two keep-alives

    def owner(self, number):
        return bytes((number,)) * 8

    async def begin(self):
        owners = [self.owner(number) for number in range(1, 9)] + [EVIL]
        users = self.folder / "users"
        users.write_text("".join(f"{o.hex()}:{hashed('pw', o + b'salt')}\n" for o in owners))
        rules = self.folder / "rules"
        rules.write_text(access_rules())
        for file in (users, rules):
            file.chmod(0o600)
        self.broker = Mosquitto(
            self.folder, "allow_anonymous false", f"password_file {users}", f"acl_file {rules}",
            "persistence true", f"persistence_location {self.folder}/",
            "set_tcp_nodelay true",
        )  # fmt: skip
        await asyncio.to_thread(self.broker.start)
        self.server_port = self.broker.port

    async def end(self):
        await super().end()
        self.broker.kill()

    def make(self, member):
        return PubsubRoute(
            member.owner, "127.0.0.1", self.way(member).port, user=member.owner.hex(),
            password="pw",
        )  # fmt: skip

    async def junk(self, key, values):
        """As a member with a password: pages of garbage, full pages, and thousands of
        topics, which the rules forbid."""
        await asyncio.to_thread(self._junk, key, values)

    def _junk(self, key, values):
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.username_pw_set(EVIL.hex(), "pw")
        client.connect("127.0.0.1", self.broker.port)
        client.loop_start()
        try:
            under = f"qis/1/route/{key.hex()}"
            full = {os.urandom(16): (v, later()) for v in values if len(v) < 4000}
            whole = [dict(list(full.items())[n : n + 100]) for n in range(0, len(full), 100)]
            payloads = [v for v in values if v] + [pages.encode(items) for items in whole]
            sent = []
            for n, payload in enumerate(payloads):
                for topic in (f"{n % 8}", f"{n}", f"{n}/{n}", f"0{n % 8}"):
                    sent.append(client.publish(f"{under}/{EVIL.hex()}/{topic}", payload, 1, True))
                for owner in (self.members[0].owner.hex(), "x", "00"):
                    sent.append(client.publish(f"{under}/{owner}/{n % 8}", payload, 1, True))
            for info in sent:
                info.wait_for_publish(10)
        finally:
            client.disconnect()
            client.loop_stop()

    async def down(self):
        self.broker.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self.broker.process.wait, 10)

    async def up(self):
        await asyncio.to_thread(self.broker.start)

    async def lose(self):
        await asyncio.to_thread(self.broker.kill)
        for file in self.folder.glob("mosquitto*.db*"):
            file.unlink()
        await self.up()
