"""A route through a PostgreSQL database that all gateways reach.

The table is that of the SQLite route. Three connections: one for lookups, one for writes, one
that listens. A write and its NOTIFY are one statement, so watchers are told when and only
when it is committed; what they are told is the key, and they read it. Notifications sent
while a connection was down are lost, so after each reconnect every watched key is read again.

A server that is cut off in silence looks like a slow one. Every `BEAT_S` the writing connection
notifies this gateway's own channel and the listening one waits for it: this proves the
server, both connections and the way of a notification. When the beat stays away,
everything is closed and opened again.

A statement is not cancelled at its deadline, because cancelling needs the server too: the
caller goes, and a connection whose statement has not ended `_GRACE_S` later is shut down.

Give each gateway a database role of its own, `qis_<owner hex>`, and run `ACCESS_RULES` once
as the owner of the table: then no gateway can change another one's rows.

Needs psycopg (`pip install "edge-agent[sql]"`).
"""

import asyncio
import logging
import os
import socket
from collections.abc import Collection, Iterable
from typing import Any

from gateway.routes import PER_KEY, PER_OWNER, VALUE_MAX, RouteError
from gateway.routes.gather import Gather
from gateway.routes.held import Name
from gateway.routes.local import Away, LocalRoute

TYPE_CHECKING = False
if TYPE_CHECKING:
    import psycopg

log = logging.getLogger("edge_gateway.routes")

BEAT_S, _SILENCE_S = 1.0, 3.5
_GRACE_S = 1.0
_DEAD_S = 86400
_THOROUGH = 30  # every so many looks for lost rows compares each
_CHANNEL = "qis_route"
_LOCK = 0x716973  # of those who make the tables at the same time

SCHEMA = """
CREATE TABLE IF NOT EXISTS route_pointers (
  key bytea NOT NULL CHECK (octet_length(key) = 20),
  owner bytea NOT NULL CHECK (octet_length(owner) = 8),
  token bytea NOT NULL CHECK (octet_length(token) = 16),
  value bytea NOT NULL CHECK (octet_length(value) BETWEEN 1 AND 512),
  expires_s bigint NOT NULL,
  PRIMARY KEY (key, owner, token));
CREATE INDEX IF NOT EXISTS route_pointers_owner ON route_pointers (owner);
"""

ACCESS_RULES = """
ALTER TABLE route_pointers ENABLE ROW LEVEL SECURITY;
CREATE POLICY read_all ON route_pointers FOR SELECT USING (true);
CREATE POLICY own_insert ON route_pointers FOR INSERT
  WITH CHECK ('qis_' || encode(owner, 'hex') = current_user);
CREATE POLICY own_update ON route_pointers FOR UPDATE
  USING ('qis_' || encode(owner, 'hex') = current_user)
  WITH CHECK ('qis_' || encode(owner, 'hex') = current_user);
CREATE POLICY own_delete ON route_pointers FOR DELETE
  USING ('qis_' || encode(owner, 'hex') = current_user);
"""

_PUT = """WITH done AS (
  INSERT INTO route_pointers (key, owner, token, value, expires_s) VALUES (%s, %s, %s, %s, %s)
  ON CONFLICT (key, owner, token)
  DO UPDATE SET value = excluded.value, expires_s = excluded.expires_s RETURNING key)
SELECT pg_notify('qis_route', encode(key, 'hex')) FROM done"""
_DROP = """WITH done AS (
  DELETE FROM route_pointers WHERE key = %s AND owner = %s AND token = %s RETURNING key)
SELECT pg_notify('qis_route', encode(key, 'hex')) FROM done"""
_SELECT = """SELECT key, owner, value, expires_s FROM (
  SELECT *, row_number() OVER (PARTITION BY key ORDER BY known DESC, nth, owner) AS place FROM (
    SELECT key, owner, value, expires_s, owner = ANY(%s) AS known,
      row_number() OVER (PARTITION BY key, owner ORDER BY expires_s DESC) AS nth
    FROM route_pointers
    WHERE key = ANY(%s) AND expires_s > %s AND octet_length(value) <= %s) AS own
  WHERE nth <= %s) AS every
WHERE place <= %s"""
_SWEEP = "DELETE FROM route_pointers WHERE expires_s < extract(epoch FROM now()) - %s"
_OWNERS = "SELECT count(DISTINCT owner) FROM route_pointers"
_COUNT = "SELECT count(*) FROM route_pointers WHERE owner = %s"
_OWN = "SELECT key, token FROM route_pointers WHERE owner = %s"

# What a server says when waiting will not help.
_HOPELESS = ("authentication failed", "does not exist", "no pg_hba.conf", "no password")


class PostgresRoute(LocalRoute):
    """dsn: a libpq connection string or URI; a password belongs in it, in a private file
    (`passfile=`) or in PGPASSWORD. A message is a statement, or a notification heard."""

    name = "postgres"
    unit = "statements"
    check_s = 2.0

    def __init__(self, owner: bytes, dsn: str, **options: Any) -> None:
        super().__init__(owner, **options)
        self._dsn = dsn
        self._lines: dict[str, psycopg.AsyncConnection[Any]] = {}
        self._shutting: list[psycopg.AsyncConnection[Any]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[Any]] = set()
        self._beat_at = 0.0
        self._peers = 0
        self._checks = 0
        self._dirty: set[bytes] = set()
        self._news = asyncio.Event()

    # -- connections ------------------------------------------------------------------

    async def _start(self) -> None:
        try:
            import psycopg
        except ImportError:
            raise RouteError("psycopg is missing", "postgres", 'pip install "edge-agent[sql]"')
        try:
            async with asyncio.timeout(5.0):
                await self._connect()
        except (psycopg.Error, OSError, TimeoutError) as error:
            if any(text in str(error) for text in _HOPELESS):
                raise RouteError(str(error).strip().splitlines()[-1], "postgres", "See the dsn")
        self._tasks = [asyncio.create_task(self._refresh()), asyncio.create_task(self._beat())]

    async def _stop(self) -> None:
        for task in (*self._tasks, *self._background):
            task.cancel()
        self._abandon()
        await asyncio.gather(*self._tasks, *self._background, return_exceptions=True)
        for line in self._shutting:
            line.pgconn.finish()

    async def _probe(self) -> None:
        import psycopg

        try:
            await self._connect()
        except psycopg.Error as error:
            raise Away(str(error))

    async def _connect(self) -> None:
        """All three connections anew, the table, and what was missed meanwhile."""
        import psycopg

        self._abandon()
        lines: dict[str, psycopg.AsyncConnection[Any]] = {}
        try:
            for name in ("read", "write", "listen"):
                lines[name] = await psycopg.AsyncConnection.connect(
                    self._dsn, autocommit=True, connect_timeout=3, keepalives_idle=10,
                    application_name=f"edge-gateway {self.owner.hex()} {name}",
                )  # fmt: skip
            await self._make_table(lines["write"])
            await lines["listen"].execute(f"LISTEN {_CHANNEL}")
            await lines["listen"].execute(f"LISTEN {_CHANNEL}_{self.owner.hex()}")
            cursor = await lines["read"].execute(_OWNERS)
            self._peers = (await cursor.fetchone() or (0,))[0]
        except BaseException:
            for line in lines.values():
                _shut(line)
            raise
        self._lines = lines
        self._beat_at = asyncio.get_running_loop().time()
        self._background_task(self._hear(lines["listen"]))
        self._dirty.update(self._watched())
        self._news.set()
        self._set_up(True)

    async def _make_table(self, line: "psycopg.AsyncConnection[Any]") -> None:
        cursor = await line.execute("SELECT to_regclass('route_pointers')")
        if (await cursor.fetchone() or (None,))[0] is None:
            async with line.transaction():
                await line.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                await line.execute(SCHEMA)
        await line.execute(_SWEEP, (_DEAD_S,))

    def _abandon(self) -> None:
        lines, self._lines = self._lines, {}
        for line in lines.values():
            _shut(line)
        self._shutting = [n for n in self._shutting if not n.closed] + list(lines.values())
        self._set_up(False)

    def _background_task(self, work: Any) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _run(self, name: str, statement: str, values: tuple[Any, ...]) -> list[Any]:
        """Rows of a statement. Away when the server is; the caller may be cancelled."""
        line = self._lines.get(name)
        if line is None:
            raise Away("not connected")
        task = self._background_task(_rows(line, statement, values))
        try:
            rows: list[Any] | None = await asyncio.shield(task)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(_GRACE_S, self._give_up, line, task)
            raise
        if rows is None:
            if line is self._lines.get(name):
                self._abandon()
            raise Away("the statement failed")
        return rows

    def _give_up(self, line: "psycopg.AsyncConnection[Any]", task: "asyncio.Task[Any]") -> None:
        if not task.done():
            self._count("statements_abandoned")
            if line in self._lines.values():
                self._abandon()

    # -- verbs ------------------------------------------------------------------------

    async def _put(self, key: bytes, token: bytes, value: bytes, expires_s: int) -> bool:
        await self._run("write", _PUT, (key, self.owner, token, value, expires_s))
        self._spent("announce", 1)
        return True

    async def _drop(self, key: bytes, token: bytes) -> bool:
        await self._run("write", _DROP, (key, self.owner, token))
        self._spent("withdraw", 1)
        return True

    async def _fetch(self, gather: Gather) -> None:
        gather.messages += 1
        now = int(self.clock())
        limits = (list(gather.known), gather.keys, now, VALUE_MAX, PER_OWNER, PER_KEY)
        rows = await self._run("read", _SELECT, limits)
        for key, owner, value, expires_s in rows:
            gather.add(key, value, expires_s, owner)
        for key in gather.keys:
            gather.done(key)

    async def _lost(self) -> Iterable[Name]:
        """A look at their number every time; now and then at each, and at the dead."""
        self._checks += 1
        held = [name for name, slot in self._held.slots.items() if slot.value is not None]
        self._spent("announce", 1)
        ((count,),) = await self._run("write", _COUNT, (self.owner,))
        if count >= len(held) and self._checks % _THOROUGH:
            return ()
        await self._run("write", _SWEEP, (_DEAD_S,))
        rows = set(await self._run("write", _OWN, (self.owner,)))
        return [name for name in held if name not in rows]

    # -- watching ---------------------------------------------------------------------

    async def _listen(self, keys: Collection[bytes]) -> None:
        self._dirty.update(keys)
        self._news.set()

    async def _unlisten(self, keys: Collection[bytes]) -> None:
        self._dirty.difference_update(keys)

    async def _hear(self, line: "psycopg.AsyncConnection[Any]") -> None:
        import psycopg

        own = f"{_CHANNEL}_{self.owner.hex()}"
        try:
            async for note in line.notifies():
                self._spent("watch", 1)
                if note.channel == own:
                    self._beat_at = asyncio.get_running_loop().time()
                    continue
                try:
                    key = bytes.fromhex(note.payload)
                except ValueError:
                    self._count("damaged")
                    continue
                if key in self._watches.keys:
                    self._dirty.add(key)
                    self._news.set()
        except (psycopg.Error, OSError):
            pass
        if line is self._lines.get("listen"):
            self._abandon()

    async def _refresh(self) -> None:
        """Reads watched keys that changed, as many at once as have gathered."""
        while True:
            await self._news.wait()
            self._news.clear()
            keys, self._dirty = [k for k in self._dirty if k in self._watches.keys], set()
            for at in range(0, len(keys), 256):
                gather = self._gather(keys[at : at + 256])
                try:
                    await self._fetch(gather)
                except (Away, OSError):
                    self._dirty.update(keys)  # read when connected again
                    break
                self._spent("watch", gather.messages)
                for key in gather.keys:
                    self._told(key, gather.state(key))

    async def _beat(self) -> None:
        """Notify ourselves, and see that it is heard."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(BEAT_S)
            if not self._lines:
                continue
            if loop.time() - self._beat_at > _SILENCE_S:
                self._count("silences")
                self._abandon()
                continue
            try:
                async with asyncio.timeout(BEAT_S):
                    channel = f"{_CHANNEL}_{self.owner.hex()}"
                    await self._run("write", "SELECT pg_notify(%s, '')", (channel,))
            except (Away, OSError, TimeoutError):
                pass

    def _more_status(self) -> dict[str, Any]:
        return {"peers": max(0, self._peers - 1)}


async def _rows(
    line: "psycopg.AsyncConnection[Any]", statement: str, values: tuple[Any, ...]
) -> list[Any] | None:
    """None when the connection or the server failed; never raises for it."""
    import psycopg

    try:
        cursor = await line.execute(statement.encode(), values, binary=True)
        return await cursor.fetchall() if cursor.description else []
    except (psycopg.Error, OSError) as error:
        log.debug("postgres: %s", error)
        return None


def _shut(line: "psycopg.AsyncConnection[Any]") -> None:
    """Close at once, also when a statement waits for a server that is silent.

    Shutting the socket down makes whoever waits for it see the end; only then may the
    connection be freed."""
    try:
        with socket.socket(fileno=os.dup(line.fileno())) as sock:
            sock.shutdown(socket.SHUT_RDWR)
    except Exception:  # noqa: S110
        pass  # it is closed already
    asyncio.get_running_loop().call_later(0.5, line.pgconn.finish)
