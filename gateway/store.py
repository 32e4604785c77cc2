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
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from edge_agent.errors import StoreError
from gateway.migrations import migrate

# Up to this size the whole file is checked before ingest begins; it takes about a second.
CHECK_BYTES = 64 << 20
SAMPLES_PER_REASON = 20
CONFLICTS_KEPT = 10_000
# Small pages: every commit rewrites a few part-filled ones. Measured by benchmarks/ingest.py.
PAGE = 512
CHECKPOINT_PAGES = 4000

_DAMAGED = (
    "Stop the gateway, move the file aside and put the newest backup in its place;"
    " devices send again what was not acknowledged"
)


def stream_key(stream: int, seq: int) -> int:
    """One whole number per identity: below 2^63 for 2^31 streams."""
    return stream << 32 | seq


def pack_frames(frames: Iterable[bytes]) -> bytes:
    """One block: zlib over [length, u16][bytes] of each frame; length 0 = deleted."""
    parts = []
    for frame in frames:
        parts.append(len(frame).to_bytes(2, "big"))
        parts.append(frame)
    return zlib.compress(b"".join(parts), 1)


def unpack_frames(block: bytes) -> list[bytes]:
    """The frames of a block; b"" for those that retention deleted."""
    raw = zlib.decompress(block)
    frames = []
    at = 0
    while at < len(raw):
        end = at + 2 + (raw[at] << 8 | raw[at + 1])
        frames.append(raw[at + 2 : end])
        at = end
    return frames


@lru_cache(maxsize=4)
def _opened(block: bytes) -> list[bytes]:
    return unpack_frames(block)


def teach(db: sqlite3.Connection) -> sqlite3.Connection:
    """Give any connection the SQL function that the view `frames` needs."""
    db.create_function(
        "unpack_frame", 2, lambda block, step: _opened(block)[step], deterministic=True
    )
    return db


class Store:
    """Every SQL statement of ingest. Not for use from two threads."""

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
            else:
                return StoreError(f"damaged ({text})", where, _DAMAGED, errno.EUCLEAN)
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
        result) with consecutive ids; frames: theirs, in the same order."""
        self.run_many("INSERT INTO outcomes VALUES (?,?,?,?,?,?,?,?,?,?)", rows)
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

    # -- retention ------------------------------------------------------------------

    def used_bytes(self) -> int:
        """Bytes of pages in use, without the write-ahead log."""
        pages = self.run("PRAGMA page_count").fetchone()[0]
        free = self.run("PRAGMA freelist_count").fetchone()[0]
        size = self.run("PRAGMA page_size").fetchone()[0]
        return int((pages - free) * size)

    def oldest_blocks(self, after: int, limit: int) -> list[tuple[int, int, bytes]]:
        """Blocks (first, count, frames) of merged rows, oldest first."""
        return self.run(
            "SELECT first, count, frames FROM blocks WHERE first > ? AND first + count - 1 <= ?"
            " ORDER BY first LIMIT ?",
            (after, self.meta("merged", 0), limit),
        ).fetchall()

    def block_rows(self, first: int, count: int) -> list[tuple[int, int, int, int, int | None]]:
        """(id, stream, seq, arrival_ms, result) of the rows a block still has."""
        return self.run(
            "SELECT id, stream, seq, arrival_ms, result FROM outcomes WHERE id BETWEEN ? AND ?"
            " ORDER BY id",
            (first, first + count - 1),
        ).fetchall()

    def replace_block(self, first: int, frames: Sequence[bytes]) -> None:
        """Write a block anew; one with no frames left goes."""
        self._block = (0, [])
        if any(frames):
            self.run("UPDATE blocks SET frames = ? WHERE first = ?", (pack_frames(frames), first))
        else:
            self.run("DELETE FROM blocks WHERE first = ?", (first,))

    def judged(self, outcome: bytes) -> bool:
        return self.judgement(outcome) is not None

    def judgement(self, outcome: bytes) -> tuple[int | None, int | None] | None:
        """(result, label) of the newest feedback about an outcome id."""
        found: tuple[int | None, int | None] | None = self.run(
            "SELECT result, label FROM feedback WHERE about = ?", (outcome,)
        ).fetchone()
        return found

    def bury(self, rows: Iterable[tuple[int, int, bytes]]) -> None:
        """Keep hashes (stream, seq, hash) of rows that the device may still send again."""
        self.run_many(
            "INSERT OR REPLACE INTO tombstones SELECT ?, ? FROM streams"
            " WHERE id = ? AND floor <= ?",
            ((stream_key(stream, seq), digest, stream, seq) for stream, seq, digest in rows),
        )

    def delete_outcomes(self, ids: Iterable[int]) -> None:
        self.run_many("DELETE FROM outcomes WHERE id = ?", ((row,) for row in ids))

    def check(self) -> str:
        """Read the whole file: "ok" or the first damage found."""
        return str(self.run("PRAGMA integrity_check(1)").fetchone()[0])

    # -- reports --------------------------------------------------------------------

    def _dicts(self, sql: str) -> Iterator[dict[str, Any]]:
        cursor = self.run(sql)
        names = [column[0] for column in cursor.description]
        for row in cursor:
            yield dict(zip(names, row, strict=True))

    def stream_reports(self) -> list[dict[str, Any]]:
        return list(self._dicts("SELECT * FROM streams ORDER BY id"))

    def outcome_counts(self) -> dict[int, int]:
        return dict(self.run("SELECT stream, count(*) FROM outcomes GROUP BY stream").fetchall())

    def generations(self, device: int) -> list[int]:
        """Key generations in service."""
        rows = self.run(
            "SELECT generation FROM generations WHERE device = ? AND retired_ms IS NULL"
            " ORDER BY generation",
            (device,),
        )
        return [row[0] for row in rows]

    def rejected_counts(self) -> dict[str, int]:
        return dict(self.run("SELECT reason, count FROM rejected ORDER BY reason").fetchall())

    def rejected_samples(self) -> dict[str, int]:
        """How many frames of each reason are kept for a look."""
        return dict(
            self.run("SELECT reason, count(*) FROM samples GROUP BY reason ORDER BY reason")
        )

    def timeline(self) -> Iterator[dict[str, Any]]:
        """Rows of the view of that name, oldest first, each with its frame."""
        for row in self._dicts("SELECT * FROM timeline ORDER BY id"):
            row["frame"] = self.frame(row["id"])
            yield row
