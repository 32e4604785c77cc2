"""routing.db: what the routing process knows. Every SQL statement of routing is here.

The gateway's own database stays the truth about outcomes; it is only read. What is kept here
can be lost: the index and the announcements are made again from gateway.db, and epochs start
from the clock, which is past all of them. So commits are cheap (WAL, synchronous NORMAL), and
a damaged file is set aside as routing.db.bad and begun anew.

announced   what stands in the network under this gateway's name, withdrawals included until
            what they withdraw has expired. One row per thing and key.
local       every local outcome's vector, with label and level-1 cell: one's own outcomes are
            asked before anybody else's. A cell is read as a block and ranked by numpy.
interests   vectors of devices around which new pointers are watched for
found       outcomes of others that a device should hear of, until its mailbox takes them
agents      the slow fingerprint of each device, as agents.py packs it
audit       who asked for what, and what the answer was; the newest AUDIT_KEPT
splits      cells of others known to be split, until the marker expires
rejected    reason -> values that were not believed
evidence    outcomes to learn from, local and fetched; heads: what was learnt (lessons.py)
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from edge_agent.errors import StoreError
from gateway.cells import Path
from gateway.pointer import number_of, path_of
from gateway.routing_rows import (
    AUDIT,
    STEPS,
    Announced,
    Found,
    Interest,
    Local,
    Near,
    audit_rows,
)
from gateway.similarity import Measure, rank
from gateway.sketch import Int8

__all__ = ["Announced", "Found", "Interest", "Local", "Near", "RoutingDb"]

AUDIT_KEPT = 100_000
FOUND_KEPT = 1000  # per device
INTERESTS_KEPT = 64  # per device
# A ranked answer needs a few times k candidates; fewer rows than this are simply all read.
SCAN_ROWS = 5_000
PROBES = 8


class RoutingDb:
    """One connection. Not for use from two threads."""

    def __init__(self, path: "FilePath | str") -> None:
        self.path = FilePath(path)
        self.set_aside = False
        try:
            self.db = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise self._error(error)
            self._set_aside()
            self.db = self._open()
        except OSError as error:
            raise self._error(error)

    def _open(self) -> sqlite3.Connection:
        if not self.path.exists():
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        db = sqlite3.connect(self.path, timeout=10.0, isolation_level=None, cached_statements=256)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA cache_size=-16384")
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > len(STEPS):
                raise StoreError(
                    f"has schema {version}, this version knows {len(STEPS)}",
                    str(self.path),
                    "Install the version that wrote it, or remove the file: it is made again",
                )
            for step in range(version, len(STEPS)):
                db.execute("BEGIN IMMEDIATE")
                for statement in STEPS[step]:
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {step + 1}")
                db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def _set_aside(self) -> None:
        self.set_aside = True
        for suffix in ("", "-wal", "-shm"):
            old = self.path.with_name(self.path.name + suffix)
            with contextlib.suppress(FileNotFoundError):
                old.replace(self.path.with_name(self.path.name + ".bad" + suffix))

    def _error(self, error: Exception) -> StoreError:
        code = getattr(error, "errno", 0) or 0
        fix = "Check disk space and permissions; the file can be removed, it is made again"
        return StoreError(" ".join(str(error).split()), str(self.path), fix, code)

    def close(self) -> None:
        self.db.close()

    def run(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self.db.execute(sql, values)
        except sqlite3.Error as error:
            raise self._error(error)

    def run_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        try:
            with self.batch():
                self.db.executemany(sql, rows)
        except sqlite3.Error as error:
            raise self._error(error)

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """All of it or nothing. May be nested: the outermost counts."""
        if self.db.in_transaction:
            yield
            return
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise

    def meta(self, key: str, default: Any = None) -> Any:
        row = self.run("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else default

    def set_meta(self, key: str, value: Any) -> None:
        self.run("INSERT OR REPLACE INTO meta VALUES (?,?)", (key, value))

    # -- announced ----------------------------------------------------------------------

    def announce(self, row: Announced) -> None:
        marks = ",".join("?" * len(row))
        values: list[Any] = list(row)
        values[row._fields.index("path")] = number_of(row.path)
        self.run(f"INSERT OR REPLACE INTO announced VALUES ({marks})", values)  # noqa: S608

    def announced(self, now_s: int = 0) -> Iterator[Announced]:
        """What has not expired at `now_s`, withdrawals included."""
        for row in self.run("SELECT * FROM announced WHERE expires_s > ?", (now_s,)).fetchall():
            yield _announced(row)

    def announced_at(self, thing: bytes) -> list[Announced]:
        """Where one outcome or agent stands."""
        rows = self.run("SELECT * FROM announced WHERE thing = ?", (thing,)).fetchall()
        return [_announced(row) for row in rows]

    def forget_expired(self, now_s: int) -> int:
        """Rows of the network's past; how many announcements."""
        self.run("DELETE FROM splits WHERE expires_s <= ?", (now_s,))
        return self.run("DELETE FROM announced WHERE expires_s <= ?", (now_s,)).rowcount

    def forget_network(self) -> None:
        """The network has another key: what stood under the old one is nobody's any more."""
        with self.batch():
            self.run("DELETE FROM announced")
            self.run("DELETE FROM splits")

    def set_merged(self, thing: bytes, merged: int) -> None:
        self.run("UPDATE announced SET merged = ? WHERE thing = ?", (merged, thing))

    # -- splits ------------------------------------------------------------------------

    def learn_split(
        self, domain: bytes, version: int, label: "int | None", path: Path, expires_s: int
    ) -> None:
        """A split marker was seen; queries that know it spend no lookup on the cell."""
        self.run(
            "INSERT INTO splits VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE SET"
            " expires_s = max(expires_s, excluded.expires_s)",
            (domain, version, -1 if label is None else label, number_of(path), expires_s),
        )

    def splits(self, domain: bytes, version: int, label: "int | None", now_s: int) -> list[Path]:
        """Cells known to be split, the widest first."""
        rows = self.run(
            "SELECT cell FROM splits WHERE domain = ? AND version = ? AND label = ?"
            " AND expires_s > ? ORDER BY cell",
            (domain, version, -1 if label is None else label, now_s),
        )
        return [path_of(cell) for (cell,) in rows]

    # -- local outcomes -----------------------------------------------------------------

    def add_local(self, rows: Iterable[Local]) -> None:
        self.run_many("INSERT OR REPLACE INTO local VALUES (?,?,?,?,?,?,?,?)", rows)

    def local(self, id_: bytes) -> Local | None:
        row = self.run("SELECT * FROM local WHERE id = ?", (id_,)).fetchone()
        return Local(*row) if row else None

    def judge(self, id_: bytes, label: int, result: "int | None") -> bool:
        """Feedback about a local outcome: its true label, and the result. False: not here."""
        changed = self.run(
            "UPDATE local SET label = ?, result = ? WHERE id = ?", (label, result, id_)
        )
        return changed.rowcount > 0

    def drop_local(self, outcomes: Iterable[int]) -> None:
        """Rows of gateway.db that retention has deleted."""
        self.run_many("DELETE FROM local WHERE outcome = ?", ((row,) for row in outcomes))

    def local_rows(self, after: int, limit: int) -> list[Local]:
        """In order of arrival: for assigning cells again, and for comparing with gateway.db."""
        rows = self.run(
            "SELECT * FROM local WHERE outcome > ? ORDER BY outcome LIMIT ?", (after, limit)
        )
        return [Local(*row) for row in rows]

    def set_cells(self, rows: Iterable[tuple[int, int]]) -> None:
        """rows: (cell, outcome), after a new codebook."""
        self.run_many("UPDATE local SET cell = ? WHERE outcome = ?", rows)

    def label_counts(self, domain: bytes) -> dict[int, int]:
        return dict(
            self.run("SELECT label, count(*) FROM local WHERE domain = ? GROUP BY label", (domain,))
        )

    def candidates(
        self,
        domain: bytes,
        label: "int | None" = None,
        cells: Sequence[int] = (),
        enough: int = 400,
    ) -> tuple[list[Local], Int8]:
        """Local outcomes to rank, and their vectors as rows; of one label or of any.

        cells: level-1 cells, nearest first. When given and the table is big, the first PROBES
        of them are read, and more until there are `enough` candidates.
        """
        labels = self._labels(domain) if label is None else [label]
        rows: list[Local] = []
        if cells and self._many(domain, labels):
            select = "SELECT * FROM local WHERE domain = ? AND label = ? AND cell = ?"
            for count, cell in enumerate(cells):
                if count >= PROBES and len(rows) >= enough:
                    break
                for one in labels:
                    rows += map(Local._make, self.run(select, (domain, one, cell)))
        else:
            select = "SELECT * FROM local WHERE domain = ? AND label = ?"
            for one in labels:
                rows += map(Local._make, self.run(select, (domain, one)))
        table = np.frombuffer(b"".join(row.vector for row in rows), np.int8)
        return rows, table.reshape(len(rows), -1) if rows else np.zeros((0, 64), np.int8)

    def near(
        self,
        domain: bytes,
        label: "int | None",
        vector: bytes,
        k: int,
        measure: "str | Measure" = "cosine",
        cells: Sequence[int] = (),
    ) -> list[Near]:
        """The k nearest local outcomes, nearest first; see `candidates`."""
        rows, table = self.candidates(domain, label, cells, 40 * k)
        order, scores = rank(measure, vector, table, [row.id for row in rows])
        return [
            Near(row.outcome, row.id, row.label, row.confidence, row.result, float(scores[i]))
            for i, row in ((i, rows[i]) for i in order[:k])
        ]

    def _labels(self, domain: bytes) -> list[int]:
        """Labels that occur, without reading the table."""
        found: list[int] = []
        while True:
            after = found[-1] if found else -1
            row = self.run(
                "SELECT min(label) FROM local WHERE domain = ? AND label > ?", (domain, after)
            ).fetchone()
            if row[0] is None:
                return found
            found.append(row[0])

    def _many(self, domain: bytes, labels: Sequence[int]) -> bool:
        left = SCAN_ROWS + 1
        for label in labels:
            left -= self.run(
                "SELECT count(*) FROM (SELECT 1 FROM local WHERE domain = ? AND label = ? LIMIT ?)",
                (domain, label, left),
            ).fetchone()[0]
        return left <= 0

    # -- interests and what was found ---------------------------------------------------

    def add_interest(
        self,
        agent: bytes,
        domain: bytes,
        label: "int | None",
        vector: bytes,
        confidence: int,
        expires_s: int,
    ) -> int:
        """Watch around a device's vector; the device's oldest gives way beyond the limit."""
        with self.batch():
            cursor = self.run(
                "INSERT INTO interests (agent, domain, label, vector, confidence, expires_s)"
                " VALUES (?,?,?,?,?,?)",
                (agent, domain, label, vector, confidence, expires_s),
            )
            self.run(
                "DELETE FROM interests WHERE agent = ? AND id NOT IN"
                " (SELECT id FROM interests WHERE agent = ? ORDER BY id DESC LIMIT ?)",
                (agent, agent, INTERESTS_KEPT),
            )
        return int(cursor.lastrowid or 0)

    def interests(self, now_s: int) -> list[Interest]:
        """Those in force; expired ones are deleted."""
        self.run("DELETE FROM interests WHERE expires_s <= ?", (now_s,))
        return [Interest(*row) for row in self.run("SELECT * FROM interests ORDER BY id")]

    def drop_interest(self, id_: int) -> None:
        self.run("DELETE FROM interests WHERE id = ?", (id_,))

    def add_found(
        self,
        agent: bytes,
        outcome: bytes,
        gateway: bytes,
        domain: bytes,
        label: int,
        score: float,
        utc_s: int,
        now_ms: int,
        voucher: bytes,
    ) -> bool:
        """Hand an outcome to a device's mailbox. False: it was handed over before."""
        with self.batch():
            cursor = self.run(
                "INSERT OR IGNORE INTO found (agent, outcome, gateway, domain, label, score,"
                " utc_s, found_ms, voucher) VALUES (?,?,?,?,?,?,?,?,?)",
                (agent, outcome, gateway, domain, label, score, utc_s, now_ms, voucher),
            )
            self.run(
                "DELETE FROM found WHERE agent = ? AND id NOT IN"
                " (SELECT id FROM found WHERE agent = ? ORDER BY id DESC LIMIT ?)",
                (agent, agent, FOUND_KEPT),
            )
        return cursor.rowcount > 0

    def found(self, agent: "bytes | None" = None, limit: int = 100) -> list[Found]:
        """What no mailbox has taken yet, oldest first; of one device or of all."""
        rows = self.run(
            "SELECT * FROM found WHERE taken_ms IS NULL AND (agent = ? OR ? IS NULL)"
            " ORDER BY id LIMIT ?",
            (agent, agent, limit),
        )
        return [Found(*row) for row in rows]

    def found_voucher(self, outcome: bytes) -> bytes | None:
        """The voucher of an outcome that was found for any device."""
        row = self.run(
            "SELECT voucher FROM found WHERE outcome = ?"
            " AND agent IN (SELECT DISTINCT agent FROM found) LIMIT 1",
            (outcome,),
        ).fetchone()
        return row[0] if row else None

    def take_found(self, ids: Iterable[int], now_ms: int) -> None:
        self.run_many("UPDATE found SET taken_ms = ? WHERE id = ?", ((now_ms, i) for i in ids))

    # -- agents -------------------------------------------------------------------------

    def save_agents(self, domain: bytes, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """rows: (agent id, state), see agents.Agents.dirty."""
        self.run_many(
            "INSERT OR REPLACE INTO agents VALUES (?,?,?)", ((a, domain, s) for a, s in rows)
        )

    def agents(self, domain: bytes) -> list[tuple[bytes, bytes]]:
        return self.run("SELECT agent, state FROM agents WHERE domain = ?", (domain,)).fetchall()

    def drop_agent(self, agent: bytes) -> None:
        self.run("DELETE FROM agents WHERE agent = ?", (agent,))

    # -- counters -----------------------------------------------------------------------

    def audit(
        self,
        gateway: bytes,
        op: str,
        count: int,
        now_ms: int,
        verdict: str = "ok",
        detail: str = "",
    ) -> None:
        cursor = self.run(
            "INSERT INTO audit (utc_ms, gateway, op, count, verdict, detail) VALUES (?,?,?,?,?,?)",
            (now_ms, gateway, op, count, verdict, detail[:200]),
        )
        if (last := cursor.lastrowid or 0) % 256 == 0:
            self.run("DELETE FROM audit WHERE id <= ?", (last - AUDIT_KEPT,))

    def audited(self, limit: int = 100) -> list[dict[str, Any]]:
        """The newest rows, newest first."""
        rows = self.run(AUDIT, (limit,))
        return audit_rows(rows)

    def count_rejected(self, reason: str, count: int, now_ms: int) -> None:
        self.run(
            "INSERT INTO rejected VALUES (?,?,?) ON CONFLICT DO UPDATE SET"
            " count = count + excluded.count, last_ms = excluded.last_ms",
            (reason, count, now_ms),
        )

    def rejected(self) -> dict[str, int]:
        return dict(self.run("SELECT reason, count FROM rejected ORDER BY reason").fetchall())


def _announced(row: Sequence[Any]) -> Announced:
    found = Announced(*row)
    return found._replace(path=path_of(int(found.path)))  # type: ignore[call-overload]
