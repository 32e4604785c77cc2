"""mailbox.db as a file: opened, shared by two processes, set aside when damaged.

The ingest process and the routing process both write here, in small transactions. Each is to
go on when the other is down, when the file is locked, and when it is damaged:

- a lock is waited for `busy_ms` at most (ingest: milliseconds), then StoreError(EBUSY);
- a damaged file is moved to mailbox.db.bad and a new one begun. What waited is lost, which is
  counted; senders put it again, and where a device is, the device says (postman.py);
- the process that did not move it notices that the name leads to another file and opens that.

Commits are synced (synchronous FULL): a number that was bound to an item and forgotten by a
power cut would be bound to another one, and the device may have taken the first.

boxes       one row a device that takes mail or has mail: postman.Standing, the head it uses
items       what waits (no number), is under way (number, not taken), and was taken (the
            newest HISTORY). lot: id of the first row of one `put_head`, else the row's own
counts      per device: what was put, coalesced, expired, gave way, was refused, was taken
judgements  what people say about outcomes, until gateway.db has it (judge.py)
"""

import contextlib
import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_agent.errors import StoreError
from gateway.wal import use_wal

CHECK_BYTES = 16 << 20

# Steps of the schema. One is never edited after a release: `user_version` says how many ran.
STEPS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
        """CREATE TABLE boxes (
            agent BLOB PRIMARY KEY CHECK (length(agent) = 8),
            taken INTEGER,
            top INTEGER NOT NULL DEFAULT 0,
            born INTEGER NOT NULL DEFAULT 0,
            hello_ms INTEGER NOT NULL DEFAULT 0,
            head INTEGER,
            head_ms INTEGER NOT NULL DEFAULT 0,
            put_head INTEGER,
            put_rows INTEGER NOT NULL DEFAULT 0,
            taken_head INTEGER,
            encrypts INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID""",
        # An id is never used again: senders keep it.
        """CREATE TABLE items (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            agent BLOB NOT NULL,
            lot INTEGER NOT NULL,
            type INTEGER NOT NULL,
            body BLOB NOT NULL,
            priority INTEGER NOT NULL,
            key BLOB NOT NULL,
            head INTEGER,
            put_ms INTEGER NOT NULL,
            expires_ms INTEGER NOT NULL,
            number INTEGER,
            taken_ms INTEGER)""",
        "CREATE INDEX items_open ON items (agent, number) WHERE taken_ms IS NULL",
        "CREATE INDEX items_taken ON items (agent, taken_ms) WHERE taken_ms IS NOT NULL",
        "CREATE INDEX items_key ON items (agent, key) WHERE key <> x''",
        """CREATE TABLE counts (
            agent BLOB NOT NULL,
            what TEXT NOT NULL,
            count INTEGER NOT NULL,
            PRIMARY KEY (agent, what)) WITHOUT ROWID""",
        """CREATE TABLE judgements (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            outcome BLOB NOT NULL UNIQUE CHECK (length(outcome) = 16),
            agent BLOB NOT NULL,
            said TEXT NOT NULL,
            put_ms INTEGER NOT NULL,
            domain BLOB,
            label INTEGER)""",
    ),
)


class MailDb:
    """One connection. Not for use from two threads."""

    def __init__(self, path: "Path | str", busy_ms: int = 1000) -> None:
        self.path = Path(path)
        self.set_aside = 0  # damaged files that this process moved away
        self._busy_ms = busy_ms
        self._inode = (0, 0)
        self.db = self._opened()

    # -- opening --------------------------------------------------------------------------

    def _opened(self) -> sqlite3.Connection:
        for _ in range(3):
            try:
                return self._open()
            except sqlite3.DatabaseError as error:
                if not _damaged(error):
                    raise self._error(error)
                self._move_away()
            except OSError as error:
                raise self._error(error)
        raise self._error(OSError(errno.EUCLEAN, "damaged again and again"))

    def _open(self) -> sqlite3.Connection:
        if not self.path.exists():
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        self._inode = self._look()
        db = sqlite3.connect(
            self.path, timeout=self._busy_ms / 1000, isolation_level=None, cached_statements=256
        )
        try:
            use_wal(db, self._busy_ms / 1000)
            db.execute("PRAGMA synchronous=FULL")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > len(STEPS):
                raise StoreError(
                    f"has schema {version}, this version knows {len(STEPS)}",
                    str(self.path),
                    "Install the version that wrote it, or remove the file: senders fill it again",
                )
            if version < len(STEPS):
                self._migrate(db)
            if self.path.stat().st_size <= CHECK_BYTES:  # reading it takes a fraction of a second
                (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
                if found != "ok":
                    raise sqlite3.DatabaseError(found)
        except BaseException:
            db.close()
            raise
        return db

    @staticmethod
    def _migrate(db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have been quicker.
            (version,) = db.execute("PRAGMA user_version").fetchone()
            for statements in STEPS[version:]:
                for statement in statements:
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {len(STEPS)}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _look(self) -> tuple[int, int]:
        found = self.path.stat()
        return found.st_dev, found.st_ino

    def _move_away(self) -> None:
        """Unless the other process has done so already."""
        with self._alone():
            try:
                mine = self._look() == self._inode
            except FileNotFoundError:
                return
            if not mine:
                return
            for suffix in ("-wal", "-shm", ""):
                old = self.path.with_name(self.path.name + suffix)
                with contextlib.suppress(FileNotFoundError):
                    old.replace(self.path.with_name(self.path.name + ".bad" + suffix))
            self.set_aside += 1

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        fd = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # held for a few renames
            yield
        finally:
            os.close(fd)

    def close(self) -> None:
        self.db.close()

    def _reopen(self) -> None:
        self.db.close()
        self.db = self._opened()

    # -- statements -----------------------------------------------------------------------

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """One transaction, on disk when this returns; StoreError: nothing of it is."""
        if self.db.in_transaction:
            yield
            return
        self._begin()
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self.db.execute("ROLLBACK")
            raise

    def _begin(self) -> None:
        self._check_file()
        self.run("BEGIN IMMEDIATE")

    def _check_file(self) -> None:
        """Open the file anew when another process has moved the damaged one away."""
        try:
            if self._look() == self._inode:
                return
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._error(error)
        self._reopen()

    def run(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self.db.execute(sql, values)
        except sqlite3.Error as error:
            if _damaged(error):
                self._move_away()
                self._reopen()
            raise self._error(error)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of a question asked outside a transaction, too."""
        if not self.db.in_transaction:
            self._check_file()
        try:
            return self.run(sql, values).fetchall()
        except sqlite3.Error as error:
            if _damaged(error):
                self._move_away()
                self._reopen()
            raise self._error(error)

    def foreign_changes(self) -> tuple[int, ...]:
        """Changes when another process has committed, or the file is a new one."""
        (version,) = self.rows("PRAGMA data_version")[0]
        return (*self._inode, int(version))

    def changes(self) -> int:
        """Rows that this connection has changed."""
        return self.db.total_changes

    def _error(self, error: Exception) -> StoreError:
        code = getattr(error, "errno", 0) or 0
        name = getattr(error, "sqlite_errorname", "") or ""
        fix = "Check disk space and permissions; the file can be removed, senders fill it again"
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            code, fix = errno.EBUSY, "Another process is writing; it is tried again"
        elif name.startswith("SQLITE_FULL"):
            code = errno.ENOSPC
        return StoreError(" ".join(str(error).split()), str(self.path), fix, code)


def _damaged(error: sqlite3.Error) -> bool:
    name = getattr(error, "sqlite_errorname", "") or ""
    if not name:  # what quick_check found
        return isinstance(error, sqlite3.DatabaseError) and type(error) is sqlite3.DatabaseError
    return name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))
