"""The gateway's own code behind a client that is not paho.

`mqtt.Bridge` takes messages, makes batches and calls custody in its usual order; only its
client is replaced, and its loop, which waits on sockets. The database is a real file.

A crash is an exception that no code of the gateway catches, raised at one of STEPS; then
nothing in memory is used again and the database is opened anew:

    before-commit    the batch is written but not committed
    after-commit     committed; no acknowledgement has left
    between-acks     the first acknowledgement of the batch has left
    before-puback    all acknowledgements have left, no PUBACK
    between-pubacks  the first PUBACK has left

SQLite's own promise, that a commit which returned survives the loss of power, is not
tested here: `synchronous` is off, because this process does not lose power.
"""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gateway.custody
import gateway.mqtt
from edge_agent import frame as wire_format
from edge_agent.errors import StoreError
from gateway.custody import Custody
from gateway.keys import Registry
from gateway.mqtt import Bridge
from gateway.ranges import RangeSet
from gateway.store import Store, teach
from wire.link import Connection, Link, Packet

STEPS = ("before-commit", "after-commit", "between-acks", "before-puback", "between-pubacks")
ROOT = "qis/1"
GATEWAY = b"gateway1"
MASTER = bytes(range(32))
BATCH = 8
BATCH_MS = 20
NO_SPACE = ("no space left", "gateway.db", "Free some space", 28)


class Crash(BaseException):
    """The process is gone. Not an Exception, so that nothing handles it."""


class Client:
    """What Bridge asks of paho."""

    def __init__(self, owner: "Gateway") -> None:
        self.owner = owner

    def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        self.owner.step("after-commit")
        self.owner.send(("publish", self.owner.next_mid(), topic, payload, qos, False))
        self.owner.step("between-acks")

    def ack(self, mid: int, qos: int) -> None:
        self.owner.step("before-puback")
        self.owner.send(("puback", mid))
        self.owner.step("between-pubacks")

    def loop_write(self) -> None:
        pass

    def disconnect(self) -> None:
        self.owner.hang_up()

    def socket(self) -> None:
        return None


class Edge(Bridge):
    """The broker edge, driven by hand."""

    def __init__(self, owner: "Gateway", custody: Custody) -> None:
        self.owner = owner
        config: Any = SimpleNamespace(
            root=ROOT, batch=BATCH, batch_ms=BATCH_MS, folder=".", metrics_s=5, host="-", port=0
        )
        super().__init__(config, custody)

    def _client(self) -> Any:
        return Client(self.owner)

    def _process(self, messages: list[tuple[str, bytes]]) -> None:
        try:
            super()._process(messages)
        except StoreError:
            raise
        except Exception as error:
            # Bridge would go on message by message. Nothing in these worlds breaks the code.
            self.owner.ledger.fail("the gateway broke: %r", error)


class Gateway:
    """One gateway process and its folder. `up` False: it is not running."""

    def __init__(self, world: Any, folder: Path, template: Path) -> None:
        self.world = world
        self.time = world.time
        self.ledger = world.ledger
        self.rng: Random = world.rng
        self.folder = folder
        self.path = folder / "gateway.db"
        shutil.copyfile(template, self.path)
        self.link = Link(world.time, world.rng)
        self.crash_at: str | None = None
        self.disk_full = False
        self.up = False
        self.crashes = 0
        self.restores = 0
        self.backups: list[Path] = []
        self.connection: Connection | None = None
        self._mid = 0
        self._flush_at: int | None = None
        self._seen_row = 0
        self._failures = 0
        self.given_up: set[bytes] = set()
        self.sent: list[tuple[str, bytes]] = []
        self._patches = [
            mock.patch.object(gateway.mqtt, "_wall_ms", world.utc_ms),
            # Merge often: in a world there are a few hundred rows, not millions.
            mock.patch.object(gateway.custody, "MERGE_ROWS", 24),
        ]
        for patch in self._patches:
            patch.start()
        self.start()

    # -- process --------------------------------------------------------------------

    def start(self) -> None:
        if self.up:
            return
        self.store = Store(self.path, owner=True, now_ms=self.world.utc_ms())
        self.store.run("PRAGMA synchronous=OFF")
        commit = self.store.commit

        def watched() -> None:
            if self.disk_full:
                raise StoreError(*NO_SPACE)
            self.step("before-commit")
            commit()
            self._look()

        self.store.commit = watched  # type: ignore[method-assign]
        self.registry = Registry(self.store, MASTER, GATEWAY)
        self.custody = Custody(self.store, self.registry, self.world.domains, ROOT)
        self.edge = Edge(self, self.custody)
        self.up = True
        self._flush_at = None
        self._connect_later(50)

    def _look(self) -> None:
        """Tell the ledger what is committed now that was not before."""
        for row, data in self.store.db.execute(
            "SELECT id, frame FROM frames WHERE id > ? ORDER BY id", (self._seen_row,)
        ):
            self._seen_row = row
            self.ledger.store(data)

    def step(self, name: str) -> None:
        if self.crash_at == name:
            self.crash_at = None
            raise Crash(name)

    def crash(self, restart_ms: "int | None" = 3000) -> None:
        """The process dies: nothing in memory is used again."""
        if not self.up:
            return
        self.up = False
        self.crashes += 1
        if self.connection is not None:
            # What was handed to the kernel may still get out.
            self.connection.close("broker", under_way=self.rng.random() < 0.5, quiet=True)
            self.connection = None
        self._close()
        if restart_ms is not None:
            self.time.after(restart_ms, self.start)

    def _close(self) -> None:
        self.edge._wake_r.close()
        self.edge._wake_w.close()
        self.store.close()  # an open transaction is rolled back, as a start would do

    def close(self) -> None:
        if self.up:
            self.up = False
            self._close()
        while self._patches:
            self._patches.pop().stop()

    def backup(self) -> None:
        copy = self.folder / f"backup-{len(self.backups)}.db"
        here = sqlite3.connect(self.path)
        to = sqlite3.connect(copy)
        here.backup(to)
        to.close()
        here.close()
        self.backups.append(copy)

    def restore(self, which: int = -1) -> None:
        """Stop, put a backup in place of the database, start."""
        before = {data for *_, data in self.rows()}
        if self.up:
            self.crash(None)
        for part in ("", "-wal", "-shm"):
            Path(str(self.path) + part).unlink(missing_ok=True)
        shutil.copyfile(self.backups[which], self.path)
        self.restores += 1
        self._seen_row = 0
        self.start()
        self._look()
        self.ledger.restored_away |= before - {data for *_, data in self.rows()}

    # -- link -----------------------------------------------------------------------

    def _connect_later(self, delay_ms: int) -> None:
        edge = self.edge
        self.time.after(delay_ms, lambda: self._connect(edge))

    def _connect(self, edge: Edge) -> None:
        if not self.up or self.edge is not edge or self.connection is not None:
            return
        if not self.link.up or not self.world.broker.up:
            self._connect_later(2000)
            return
        connection = Connection(
            self.link,
            lambda packet: self._packet(connection, packet),
            lambda reason: self._lost(edge, connection),
        )
        self.connection = connection
        edge._on_connect(self, None, None, SimpleNamespace(is_failure=False), None)  # type: ignore[arg-type]
        self.world.broker.connect("gateway", connection, self.filters, None)

    def _lost(self, edge: Edge, connection: Connection) -> None:
        if self.up and self.edge is edge and self.connection is connection:
            self.hang_up()
            edge._drop()
            self._flush_at = None
            self._connect_later(500)

    def hang_up(self) -> None:
        if self.connection is not None:
            connection, self.connection = self.connection, None
            connection.close("closed", under_way=True, quiet=True)

    def subscribe(self, filters: list[tuple[str, int]]) -> None:
        """Bridge subscribes through the client it is handed."""
        self.filters = dict(filters)

    def next_mid(self) -> int:
        self._mid += 1
        return self._mid

    def send(self, packet: Packet) -> None:
        if packet[0] == "publish":
            self.sent.append((packet[2], packet[3]))
        if self.connection is not None:
            self.connection.send_up(packet)

    def _packet(self, connection: Connection, packet: Packet) -> None:
        if not self.up or self.connection is not connection or packet[0] != "publish":
            return
        _, mid, topic, payload, qos = packet
        self.edge._on_message(
            None,  # type: ignore[arg-type]
            None,
            SimpleNamespace(topic=topic, payload=payload, qos=qos, mid=mid),  # type: ignore[arg-type]
        )
        if len(self.edge._pending) >= BATCH:
            self.flush()
        elif self.edge._pending and self._flush_at is None:
            self._flush_at = self.time.now + BATCH_MS

    def wake(self) -> int | None:
        return self._flush_at

    def tick(self) -> None:
        if self._flush_at is not None and self.time.now >= self._flush_at:
            self.flush()

    def flush(self) -> None:
        self._flush_at = None
        if not self.up:
            return
        try:
            self.edge._flush()
            self._failures = 0
        except Crash:
            self.crash()
        except StoreError:
            # As Bridge.run does: drop the connection, come again later, and later still.
            self.edge._drop()
            self.hang_up()
            self._failures += 1
            self._connect_later(min(60_000, 500 << min(self._failures, 7)))

    def merge(self) -> None:
        """What an idle gateway does now and then."""
        if self.up and not self.disk_full:
            try:
                self.custody.merge()
            except Crash:
                self.crash()

    # -- what an operator does ------------------------------------------------------

    def rotate(self, agent: bytes) -> None:
        device = self.registry.device(agent)
        assert device is not None
        with self._operator():
            self.registry.rotate(device, self.world.utc_ms())

    def revoke(self, agent: bytes) -> None:
        device = self.registry.device(agent)
        assert device is not None
        with self._operator():
            self.registry.revoke(device, self.world.utc_ms())

    @contextmanager
    def _operator(self) -> Iterator[None]:
        """`edge-gateway rotate` is a process of its own: the crash is not for it."""
        crash_at, self.crash_at = self.crash_at, None
        yield
        self.crash_at = crash_at

    def give_up_keys_below(self, agent: bytes, generation: int) -> None:
        """As an operator does whose device was opened by a thief."""
        with self._operator():
            self.store.begin()
            self.registry.retire(agent, generation, self.world.utc_ms())
            self.store.commit()
        self.given_up.add(agent)

    def generation(self, agent: bytes) -> int:
        device = self.registry.device(agent)
        assert device is not None
        return int(device.generation)

    def send_cfg(self, agent: bytes, version: int, settings: dict[int, int]) -> None:
        def make(counter: int) -> Any:
            return wire_format.Cfg(counter, version, settings)

        self._send_down(agent, "cfg", make)

    def send_box(self, agent: bytes, kind: int, body: bytes, number: int = 0) -> None:
        def make(counter: int) -> Any:
            return wire_format.Box(counter, kind, body, number)

        self._send_down(agent, "box", make)

    def _send_down(self, agent: bytes, topic: str, make: Callable[[int], Any]) -> None:
        if not self.up or self.connection is None:
            return
        keys = self.registry(agent, self.generation(agent))
        if keys is None:
            return
        counter = self.custody.next_counter(agent, self.world.utc_ms())
        payload = wire_format.seal(keys, make(counter))
        name = f"{ROOT}/{agent.hex()}/{topic}"
        self.send(("publish", self.next_mid(), name, payload, 1, False))

    # -- looking --------------------------------------------------------------------

    def _query(self, sql: str) -> list[Any]:
        db = self.store.db if self.up else teach(sqlite3.connect(self.path))
        try:
            return db.execute(sql).fetchall()
        finally:
            if not self.up:
                db.close()

    def rows(self) -> list[tuple[bytes, bytes, int, bytes]]:
        """(agent, journal, seq, frame) of every outcome in the database."""
        return self._query(
            "SELECT d.agent, s.journal, o.seq, f.frame FROM outcomes o JOIN frames f ON f.id = o.id"
            " JOIN streams s ON s.id = o.stream JOIN devices d ON d.id = s.device ORDER BY o.id"
        )

    def conflicts(self) -> list[bytes]:
        return [data for (data,) in self._query("SELECT frame FROM conflicts")]

    def rejected(self) -> dict[str, int]:
        return dict(self._query("SELECT reason, count FROM rejected"))

    def streams(self, agent: bytes) -> list[Any]:
        return [s for s in self.custody.streams() if s.agent == agent]

    def reported(self) -> Callable[[tuple[bytes, bytes, int]], bool]:
        """Whether the gateway says of an identity that it is lost or was dropped."""
        told: dict[bytes, RangeSet] = {}
        for stream in self.custody.streams():
            ranges = told.setdefault(stream.agent, RangeSet())
            for known in (stream.lost, stream.gone):
                for first, last in known:
                    ranges.add_range(first, last)
        return lambda identity: identity[2] in told.get(identity[0], RangeSet())

    def revoked(self, agent: bytes) -> bool:
        return bool(self.registry.refusal(agent))

    def retired(self, agent: bytes, generation: int) -> bool:
        sql = (
            "SELECT g.generation FROM generations g JOIN devices d ON d.id = g.device"
            f" WHERE g.retired_ms IS NOT NULL AND d.agent = x'{agent.hex()}'"
        )
        return (generation,) in self._query(sql)
