"""A route through one SQLite file, for gateways on one machine.

Each value is a row, named by key, owner and token. Readers never wait for writers (WAL); a
writer waits at most `_LOCK_S` for another, then the announcement stays due. A commit is
not synced (synchronous NORMAL): after a power cut the file is whole, and the owners see
within seconds that rows are gone and write them again.

Watching costs one PRAGMA per poll: `data_version` changes when another connection commits.
Then the table `changes` tells which keys; it keeps the last few thousand entries, and a
watcher that was away longer reads all its keys again.

The file may be replaced, deleted or unmounted under a running gateway: before each use
device and inode are compared with those of the open connection. Three threads (write,
read, poll) have a connection each, so that a blocked writer delays no lookup.

Not for network file systems: SQLite's locks are not safe there. Use `folder` or `postgres`.
"""

import asyncio
import os
import sqlite3
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

from gateway.routes import PER_KEY, PER_OWNER, VALUE_MAX, RouteError
from gateway.routes.gather import Gather
from gateway.routes.held import Name
from gateway.routes.local import VERB_S, Away, LocalRoute
from gateway.wal import is_busy, use_wal

POLL_S = 0.1
_LOCK_S = 2.0
_CHANGES = 4096  # entries of the change list kept
_DEAD_S = 86400
_THOROUGH = 30  # every so many looks for lost rows compares each
_PART = 4096  # keys and known owners of one statement

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS pointers ("
    " key BLOB NOT NULL, owner BLOB NOT NULL, token BLOB NOT NULL,"
    " value BLOB NOT NULL CHECK (length(value) BETWEEN 1 AND 512), expires_s INTEGER NOT NULL,"
    " PRIMARY KEY (key, owner, token)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS pointers_owner ON pointers (owner)",
    "CREATE TABLE IF NOT EXISTS changes (n INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL)",
)
_SELECT = """SELECT key, owner, value, expires_s FROM (
  SELECT *, row_number() OVER (PARTITION BY key ORDER BY known DESC, nth, owner) AS place FROM (
    SELECT key, owner, value, expires_s, owner IN (KNOWN) AS known,
      row_number() OVER (PARTITION BY key, owner ORDER BY expires_s DESC) AS nth
    FROM pointers WHERE key IN (KEYS) AND expires_s > ? AND length(value) <= ?)
  WHERE nth <= ?)
WHERE place <= ?"""

T = TypeVar("T")


class _Connection:
    """A connection of one thread, opened again when the file is another one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db: sqlite3.Connection | None = None
        self.fresh = True  # opened since the caller last looked
        self._file: tuple[int, int] | None = None

    def get(self) -> sqlite3.Connection:
        """OSError when the folder is not there, sqlite3.Error when the file is none of ours."""
        try:
            found = os.stat(self.path)
            now = (found.st_dev, found.st_ino)
        except FileNotFoundError:
            now = None
        if self.db is not None and now == self._file:
            return self.db
        self.close()
        if not self.path.parent.is_dir():
            raise FileNotFoundError(str(self.path.parent))
        db = sqlite3.connect(
            self.path, timeout=_LOCK_S, isolation_level=None, check_same_thread=False
        )
        try:
            use_wal(db, _LOCK_S)
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA trusted_schema=OFF")
            db.text_factory = bytes  # what others wrote as text need not be UTF-8
            for statement in SCHEMA:
                db.execute(statement)
            found = os.stat(self.path)
        except BaseException:
            db.close()
            raise
        self.db, self._file, self.fresh = db, (found.st_dev, found.st_ino), True
        return db

    def close(self) -> None:
        if self.db is not None:
            self.db.close()
            self.db = None


class SqliteRoute(LocalRoute):
    """path: the file, made when missing; its folder must exist. A message is a statement."""

    name = "sqlite"
    unit = "statements"
    check_s = 2.0

    def __init__(
        self, owner: bytes, path: "Path | str", *, poll_s: float = POLL_S, **options: Any
    ) -> None:
        super().__init__(owner, **options)
        self.path = Path(path)
        self.poll_s = poll_s
        self._connections = {name: _Connection(self.path) for name in ("write", "read", "poll")}
        self._poll_task: asyncio.Task[None] | None = None
        self._polling = asyncio.Event()
        self._version = self._last = -1
        self._again: set[bytes] = set()
        self._checks = 0
        self._peers = 0

    async def _use(self, pool: str, work: "Callable[..., T]", *arguments: Any) -> T:
        """`work(connection, ...)` in the thread of that pool. Away when it cannot be done."""

        connection = self._connections[pool]

        def use() -> T:
            try:
                return work(connection.get(), *arguments)
            except sqlite3.Error as error:
                if not is_busy(error):
                    connection.close()  # opened again, tables made again
                raise

        try:
            result = await self._in_thread(pool, use)
        except sqlite3.Error as error:
            if not is_busy(error):
                self._set_up(False)
            raise Away(str(error))
        except OSError:
            self._set_up(False)
            raise
        self._set_up(True)
        return result

    # -- verbs ------------------------------------------------------------------------

    async def _start(self) -> None:
        if not self.path.parent.parent.exists():
            raise RouteError("no such folder", str(self.path.parent), "Make it first")
        try:
            async with asyncio.timeout(VERB_S):
                await self._use("write", self._sweep)
        except (OSError, TimeoutError):
            pass
        except Away as error:
            if "not a database" in str(error):
                raise RouteError(str(error), str(self.path), "Name another file")
        self._poll_task = asyncio.create_task(self._poll())

    async def _stop(self) -> None:
        if self._poll_task is not None:
            self._poll_task.cancel()
            await asyncio.gather(self._poll_task, return_exceptions=True)
        for pool, connection in self._connections.items():
            if connection.db is not None:
                await self._in_thread(pool, connection.close)

    async def _probe(self) -> None:
        await self._use("write", self._sweep)

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Rows that expired a day ago, whoever wrote them."""
        (self._peers,) = db.execute("SELECT count(DISTINCT owner) FROM pointers").fetchone()
        db.execute("DELETE FROM pointers WHERE expires_s < ?", (int(self.clock()) - _DEAD_S,))

    async def _put(self, key: bytes, token: bytes, value: bytes, expires_s: int) -> bool:
        await self._use(
            "write", self._change, key,
            "INSERT INTO pointers (key, owner, token, value, expires_s) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET value = excluded.value, expires_s = excluded.expires_s",
            (key, self.owner, token, value, expires_s),
        )  # fmt: skip
        self._spent("announce", 4)
        return True

    async def _drop(self, key: bytes, token: bytes) -> bool:
        await self._use(
            "write", self._change, key,
            "DELETE FROM pointers WHERE key = ? AND owner = ? AND token = ?",
            (key, self.owner, token),
        )  # fmt: skip
        self._spent("withdraw", 4)
        return True

    @staticmethod
    def _change(db: sqlite3.Connection, key: bytes, statement: str, values: Any) -> None:
        db.execute("BEGIN IMMEDIATE")
        try:
            if db.execute(statement, values).rowcount:
                n = db.execute("INSERT INTO changes (key) VALUES (?)", (key,)).lastrowid or 0
                if n % 256 == 0:
                    db.execute("DELETE FROM changes WHERE n <= ?", (n - _CHANGES,))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    async def _fetch(self, gather: Gather) -> None:
        await self._use("read", self._select, gather)

    def _select(self, db: sqlite3.Connection, gather: Gather) -> None:
        known = list(gather.known)[:_PART]
        for at in range(0, len(gather.keys), _PART):
            part = gather.keys[at : at + _PART]
            statement = _SELECT.replace("KEYS", ",".join("?" * len(part)))
            statement = statement.replace("KNOWN", ",".join("?" * len(known)))
            limits = (int(self.clock()), VALUE_MAX, PER_OWNER, PER_KEY)
            rows = db.execute(statement, (*known, *part, *limits))
            gather.messages += 1
            for key, owner, value, expires_s in rows:
                if gather.closed:
                    return
                if isinstance(value, bytes) and isinstance(expires_s, int):
                    gather.add(key, value, expires_s, owner if isinstance(owner, bytes) else b"?")
                else:
                    gather.count("damaged")
            for key in part:
                gather.done(key)

    async def _lost(self) -> Iterable[Name]:
        held = [name for name, slot in self._held.slots.items() if slot.value is not None]
        self._checks += 1
        thorough = self._checks % _THOROUGH == 0
        if thorough:
            await self._use("write", self._sweep)
        rows = await self._use("read", self._own, len(held) if not thorough else sys.maxsize)
        return [name for name in held if name not in rows] if rows is not None else []

    def _own(self, db: sqlite3.Connection, expected: int) -> set[Name] | None:
        """Names of the own rows; None when there are as many as expected, or more."""
        (count,) = db.execute(
            "SELECT count(*) FROM pointers WHERE owner = ?", (self.owner,)
        ).fetchone()
        if count >= expected:
            return None
        rows = db.execute("SELECT key, token FROM pointers WHERE owner = ?", (self.owner,))
        return set(rows.fetchall())

    # -- watching ---------------------------------------------------------------------

    async def _listen(self, keys: Collection[bytes]) -> None:
        self._again.update(keys)
        self._polling.set()

    async def _unlisten(self, keys: Collection[bytes]) -> None:
        self._again.difference_update(keys)

    async def _poll(self) -> None:
        while True:
            if not self._watches.keys:
                self._polling.clear()
                await self._polling.wait()
            keys, again = set(self._watched()), self._again
            self._again = set()
            try:
                states = await self._use("poll", self._look, keys, again)
            except (OSError, Away):
                self._again |= again
                await asyncio.sleep(self.poll_s)
                continue
            for key, state in states.items():
                self._told(key, state)
            await asyncio.sleep(self.poll_s)

    def _look(
        self, db: sqlite3.Connection, keys: set[bytes], again: set[bytes]
    ) -> dict[bytes, dict[bytes, int]]:
        """The states of watched keys that changed, and of those to be told again."""
        wanted = again & keys
        (version,) = db.execute("PRAGMA data_version").fetchone()
        self.messages["watch"] += 1
        if self._connections["poll"].fresh:
            self._connections["poll"].fresh = False
            self._last = -1
        if version != self._version or self._last < 0:
            wanted |= self._changed(db, keys)
            self._version = version
        states: dict[bytes, dict[bytes, int]] = {}
        if wanted:
            gather = self._gather(wanted)
            self._select(db, gather)
            self.messages["watch"] += gather.messages
            states = {key: gather.state(key) for key in wanted}
        return states

    def _changed(self, db: sqlite3.Connection, keys: set[bytes]) -> set[bytes]:
        rows = db.execute("SELECT n, key FROM changes WHERE n > ? ORDER BY n", (self._last,))
        changed = rows.fetchall()
        self.messages["watch"] += 1
        gap = self._last < 0 or (changed and changed[0][0] > self._last + 1)
        if changed:
            self._last = changed[-1][0]
        elif gap:
            (newest,) = db.execute("SELECT coalesce(max(n), 0) FROM changes").fetchone()
            self._last = newest
        if gap:
            return set(keys)
        return keys.intersection(key for _, key in changed)

    def _more_status(self) -> dict[str, Any]:
        return {"peers": max(0, self._peers - 1), "file": str(self.path)}
