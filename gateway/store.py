"""The gateway's database: what is committed here may be acknowledged.

SQLite in WAL mode with synchronous=FULL: when `commit` has returned, the batch is on
disk. One process owns ingest (`owner=True` takes a lock that dies with the process);
enrolment and reports open the same file beside it.

Three things keep a commit small. The frames of a commit are deflated together: what they
share (headers, ids of agent, domain and model) is most of what can be saved. Rows go in
at the end of `outcomes`, which has no second index. Where each identity is, the ranges
held, and the bounds of boots are kept in memory by the owner and written by `merge` every
few thousand rows; `tail` gives the rows since the last merge, from which a restarted
owner makes the same memory again.
"""

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from edge_agent.errors import StoreError
from gateway.blocks import pack_frames, teach, unpack_frames
from gateway.migrations import migrate
from gateway.queries import Queries, stream_key

# Up to this size the whole file is checked before ingest begins; it takes about a second.
CHECK_BYTES = 64 << 20
SAMPLES_PER_REASON = 20
CONFLICTS_KEPT = 10_000
JUDGEMENTS_KEPT = 100_000
# Small pages: every commit rewrites a few part-filled ones. Measured by benchmarks/ingest.py.
PAGE = 512
CHECKPOINT_PAGES = 4000

_DAMAGED = (
    "Stop the gateway, move the file aside and put the newest backup in its place;"
    " devices send again what was not acknowledged"
)


class Store(Queries):
    """One connection to the database. Not for use from two threads."""

    def __init__(self, path: "Path | str", owner: bool = False, now_ms: int = 0) -> None:
        self.path = Path(path)
        self._lock: int | None = None
        self._block: tuple[int, list[bytes]] = (0, [])
        if owner:
            self._take_lock()
        try:
            self.db = self._open(now_ms, owner)
        except BaseException:
            self._drop_lock()
            raise

    def _take_lock(self) -> None:
        name = str(self.path) + ".lock"
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._error(error)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.read(fd, 32).decode("ascii", "replace").strip() or "?"
            os.close(fd)
            raise StoreError(
                f"process {pid} is the gateway of this database",
                str(self.path),
                "Stop that process, or give this gateway a database of its own",
                errno.EBUSY,
            )
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        self._lock = fd

    def _drop_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self, now_ms: int, check: bool) -> sqlite3.Connection:
        fresh = not self.path.exists()
        db = None
        try:
            if fresh:
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            db = sqlite3.connect(
                self.path, timeout=10.0, isolation_level=None, cached_statements=256
            )
            teach(db)
            if fresh:
                db.execute(f"PRAGMA page_size={PAGE}")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
            db.execute("PRAGMA cache_size=-8192")
            if check and self.path.stat().st_size <= CHECK_BYTES:
                (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
                if found != "ok":
                    raise sqlite3.DatabaseError(found)
            migrate(db, now_ms)
        except (sqlite3.Error, OSError, ValueError) as error:
            if db is not None:
                db.close()
            raise self._error(error)
        return db

    def _error(self, error: Exception) -> StoreError:
        """What to tell a person about `error`."""
        text, where = " ".join(str(error).split()), str(self.path)
        code = getattr(error, "errno", 0) or 0
        if isinstance(error, ValueError):
            return StoreError(
                f"has schema step {text}, which this version does not know",
                where,
                "Install the version that wrote it, or a newer one",
            )
        if isinstance(error, sqlite3.Error) and not code:
            name = getattr(error, "sqlite_errorname", "") or ""
            if name.startswith("SQLITE_FULL"):
                code = errno.ENOSPC
            elif name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                code = errno.EBUSY
            elif name.startswith("SQLITE_READONLY"):
                code = errno.EROFS
            elif name.startswith("SQLITE_CANTOPEN"):
                code = errno.EACCES
            elif name.startswith("SQLITE_IOERR"):
                code = errno.EIO
            elif not name or name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                return StoreError(f"damaged ({text})", where, _DAMAGED, errno.EUCLEAN)
            else:
                return StoreError(
                    f"refused a statement ({text})",
                    where,
                    "The file is sound, the program is at fault: report this, with the version",
                    errno.EINVAL,
                )
        fix = {
            errno.ENOSPC: "Free some space; until then nothing is acknowledged and devices keep"
            " their records",
            errno.EFBIG: "Raise the file size limit of this process",
            errno.EBUSY: "Another process is writing; try again",
            errno.EROFS: "Make the file and its folder writable for this user",
            errno.EACCES: "Make the folder exist and writable for this user",
            errno.ENOENT: "Run `edge-gateway init`",
        }.get(code, "Check the disk; nothing that failed was acknowledged")
        return StoreError(text, where, fix, code)

    def close(self) -> None:
        try:
            self.db.close()
        finally:
            self._drop_lock()

    # -- transactions ---------------------------------------------------------------

    def begin(self) -> None:
        self.run("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Returns when everything since `begin` is on disk. StoreError: none of it is."""
        self.run("COMMIT")

    def rollback(self) -> None:
        self._block = (0, [])
        if self.db.in_transaction:
            self.run("ROLLBACK")

    def run(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self.db.execute(sql, values)
        except sqlite3.Error as error:
            raise self._error(error)

    def run_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        try:
            self.db.executemany(sql, rows)
        except sqlite3.Error as error:
            raise self._error(error)

    def foreign_changes(self) -> int:
        """A number that changes when another process has committed."""
        return int(self.run("PRAGMA data_version").fetchone()[0])

    # -- meta -----------------------------------------------------------------------

    def meta(self, key: str, default: Any = None) -> Any:
        row = self.run("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else row[0]

    def set_meta(self, key: str, value: Any) -> None:
        self.run(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
            (key, value),
        )

    # -- ingest ---------------------------------------------------------------------

    def insert_outcomes(self, rows: Sequence[Sequence[Any]], frames: Sequence[bytes]) -> None:
        """rows: (id, stream, seq, boot, uptime_ms, utc_s, arrival_ms, label, confidence,
        result, domain) with consecutive ids; frames: theirs, in the same order."""
        self.run_many("INSERT INTO outcomes VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows)
        self.run(
            "INSERT INTO blocks VALUES (?,?,?)", (rows[0][0], len(frames), pack_frames(frames))
        )

    def insert_feedback(self, rows: Iterable[Sequence[Any]]) -> None:
        """rows: (about, outcome row, result, label). The newest judgement counts."""
        self.run_many(
            "INSERT INTO feedback VALUES (?,?,?,?) ON CONFLICT (about) DO UPDATE SET"
            " outcome = excluded.outcome, result = excluded.result, label = excluded.label",
            rows,
        )

    def add_judgements(self, rows: Sequence[tuple[bytes, int, int]], now_ms: int) -> int:
        """What people said: (about, result, label). A transaction of its own; returns how many
        were news."""
        count = 0
        self.begin()
        try:
            for about, result, label in rows:
                if self.judgement(about) == (result, label):
                    continue
                count += 1
                self.insert_feedback([(about, 0, result, label)])
                self.run(
                    "INSERT INTO judgements (about, result, label, arrival_ms) VALUES (?,?,?,?)",
                    (about, result, label, now_ms),
                )
            self.run(
                "DELETE FROM judgements WHERE id <="
                " (SELECT coalesce(max(id), 0) FROM judgements) - ?",
                (JUDGEMENTS_KEPT,),
            )
            self.commit()
        except BaseException:
            self.rollback()
            raise
        return count

    def last_outcome(self) -> int:
        (row,) = self.run("SELECT max(id) FROM outcomes").fetchone()
        return max(int(row or 0), int(self.meta("merged", 0)))

    def tail(self, after: int) -> Iterator[tuple[int, int, int, int, int, int | None, int]]:
        """(id, stream, seq, boot, uptime_ms, utc_s, arrival_ms) of rows above `after`."""
        return self.run(
            "SELECT id, stream, seq, boot, uptime_ms, utc_s, arrival_ms FROM outcomes"
            " WHERE id > ? ORDER BY id",
            (after,),
        )

    def held_hash(self, stream: int, seq: int, row: int | None = None) -> bytes | None:
        """SHA-256 of the frame held for an identity, None when its bytes are gone.

        row: where it is, when the caller knows (rows since the last merge).
        """
        if row is None:
            row = self._find(stream, seq)
        if row is not None:
            found = self.run(
                "SELECT 1 FROM outcomes WHERE id = ? AND stream = ? AND seq = ?",
                (row, stream, seq),
            ).fetchone()
            frame = self.frame(row) if found else None
            if frame:
                return sha256(frame).digest()
        found = self.run(
            "SELECT hash FROM tombstones WHERE key = ?", (stream_key(stream, seq),)
        ).fetchone()
        return bytes(found[0]) if found else None

    def frame(self, row: int) -> bytes | None:
        """The frame of an outcome as it came."""
        first, frames = self._block
        if not first <= row < first + len(frames):
            found = self.run(
                "SELECT first, frames FROM blocks WHERE first <= ? ORDER BY first DESC LIMIT 1",
                (row,),
            ).fetchone()
            if found is None:
                return None
            # Neighbours are asked for together: keep the block last opened.
            first, frames = self._block = (found[0], unpack_frames(found[1]))
        step = row - first
        return (frames[step] or None) if step < len(frames) else None

    def _find(self, stream: int, seq: int) -> int | None:
        found = self.run(
            "SELECT key, count, first_id FROM runs WHERE key <= ? ORDER BY key DESC LIMIT 1",
            (stream_key(stream, seq),),
        ).fetchone()
        if found is None:
            return None
        key, count, first_id = map(int, found)
        step = stream_key(stream, seq) - key
        return first_id + step if step < count else None

    def insert_runs(self, rows: Iterable[Sequence[int]]) -> None:
        """rows: (key, count, first row)."""
        self.run_many("INSERT OR REPLACE INTO runs VALUES (?,?,?)", rows)

    def insert_conflict(
        self, stream: int, seq: int, arrival_ms: int, held: bytes, frame: bytes
    ) -> None:
        """Keeps the first CONFLICTS_KEPT; the stream counts them all."""
        self.run(
            "INSERT INTO conflicts (stream, seq, arrival_ms, held_hash, frame)"
            " SELECT ?,?,?,?,? WHERE (SELECT count(*) FROM conflicts) < ?"
            " AND NOT EXISTS (SELECT 1 FROM conflicts WHERE stream = ? AND seq = ?"
            " AND frame = ?)",
            (stream, seq, arrival_ms, held, frame, CONFLICTS_KEPT, stream, seq, frame),
        )

    def count_rejected(self, reason: str, count: int, now_ms: int) -> None:
        self.run(
            "INSERT INTO rejected VALUES (?,?,?) ON CONFLICT DO UPDATE SET"
            " count = count + excluded.count, last_ms = excluded.last_ms",
            (reason, count, now_ms),
        )

    def sample_rejected(
        self, reason: str, arrival_ms: int, topic: str, detail: str, frame: bytes
    ) -> None:
        """Keep the newest SAMPLES_PER_REASON of a reason, cut to a kilobyte each."""
        self.run(
            "INSERT INTO samples (reason, arrival_ms, topic, detail, frame) VALUES (?,?,?,?,?)",
            (reason, arrival_ms, topic[:200], detail[:200], frame[:1024]),
        )
        self.run(
            "DELETE FROM samples WHERE reason = ? AND id NOT IN"
            " (SELECT id FROM samples WHERE reason = ? ORDER BY id DESC LIMIT ?)",
            (reason, reason, SAMPLES_PER_REASON),
        )

    def domains(self) -> dict[bytes, int]:
        """The numbers under which `outcomes` names domains."""
        return dict(self.run("SELECT domain, id FROM domains").fetchall())

    def insert_domain(self, domain: bytes) -> int:
        return int(self.run("INSERT INTO domains (domain) VALUES (?)", (domain,)).lastrowid or 0)

    # -- streams and boots ----------------------------------------------------------

    def streams(self) -> list[tuple[Any, ...]]:
        return self.run(
            "SELECT s.id, d.agent, s.journal, s.start, s.floor, s.next_seq, s.held, s.refused,"
            " s.gone, s.lost, s.forks, s.conflicts, s.duplicates, s.last_ms, s.hello_ms,"
            " s.nonces, s.hello FROM streams s JOIN devices d ON d.id = s.device"
        ).fetchall()

    def insert_stream(self, agent: bytes, journal: bytes, start: int) -> int:
        cursor = self.run(
            "INSERT INTO streams (device, journal, start, floor, next_seq)"
            " SELECT id, ?, ?, 0, 0 FROM devices WHERE agent = ?",
            (journal, start, agent),
        )
        return int(cursor.lastrowid or 0)

    def save_streams(self, rows: Iterable[Sequence[Any]]) -> None:
        """rows: (start, floor, next_seq, held, refused, gone, lost, forks, conflicts,
        duplicates, last_ms, hello_ms, nonces, hello, id)."""
        self.run_many(
            "UPDATE streams SET start = ?, floor = ?, next_seq = ?, held = ?, refused = ?,"
            " gone = ?, lost = ?, forks = ?, conflicts = ?, duplicates = ?, last_ms = ?,"
            " hello_ms = ?, nonces = ?, hello = ? WHERE id = ?",
            rows,
        )

    def boots(self) -> list[tuple[Any, ...]]:
        return self.run(
            "SELECT stream, boot, low, high, last_up, clocked, floor, ceiling FROM boots"
        ).fetchall()

    def save_boots(self, rows: Iterable[Sequence[Any]]) -> None:
        """rows: (stream, boot, low, high, last_up, clocked, floor, ceiling, base,
        uncertainty_ms, source)."""
        self.run_many("INSERT OR REPLACE INTO boots VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows)

    def drop_tombstones(self, stream: int, floor: int) -> None:
        """Below the floor the device cannot send again: the range held says enough."""
        self.run(
            "DELETE FROM tombstones WHERE key BETWEEN ? AND ?",
            (stream_key(stream, 0), stream_key(stream, floor) - 1),
        )
