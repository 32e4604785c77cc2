"""Compares the sites' ledgers with the gateway's database. No I/O beyond reading them.

    lost         in a ledger, not in the database
    duplicate    a row of the database beyond the first for its window; the same frame
                 twice is the same window twice
    unexplained  a row whose frame no ledger knows, or that is filed under another site's
                 agent: something arrived that no site says it committed
    skipped      a window of the replay that no ledger speaks of

The database is read with SQL of its own, not with the gateway's store: the code under
test does not get to count itself.
"""

import hashlib
import sqlite3
import zlib
from collections import Counter, namedtuple
from pathlib import Path
from typing import Any

from examples.demo.ledger import Line

# agent: hex.  frame: the bytes.  hash: its SHA-256, hex.  label: index in the domain.
Row = namedtuple("Row", ("agent", "journal", "seq", "arrival_ms", "label", "frame", "hash"))

# site: number.  agent: hex.  windows: {window key: true label}, as given to the site.
Site = namedtuple("Site", ("site", "agent", "windows"))

_ROWS = """SELECT d.agent, s.journal, o.seq, o.arrival_ms, o.label, o.id
    FROM outcomes o JOIN streams s ON s.id = o.stream JOIN devices d ON d.id = s.device
    WHERE o.id > ? ORDER BY o.id"""
# Frames lie together by commit, deflated: outcome `first` + n is entry n of its block.
_BLOCKS = "SELECT first, frames FROM blocks WHERE first + count > ? ORDER BY first"


class Database:
    """The gateway's database, read-only, also while the gateway runs or is dead."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db: sqlite3.Connection | None = None
        self._last = 0

    def new_rows(self) -> list[Row]:
        """Rows committed since the last call. None yet, or busy: an empty list."""
        try:
            if self._db is None:
                if not self.path.exists():
                    return []
                self._db = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=2)
            self._db.execute("BEGIN")  # rows and frames of one moment
            found = self._db.execute(_ROWS, (self._last,)).fetchall()
            frames = {
                first + n: frame
                for first, block in self._db.execute(_BLOCKS, (self._last + 1,))
                for n, frame in enumerate(_unpack(block))
            }
        except sqlite3.OperationalError as error:
            # Just being made, or just being opened: there is nothing yet. All else is real.
            busy = error.sqlite_errorname.startswith("SQLITE_BUSY")
            if busy or "no such table" in str(error):
                return []
            raise
        finally:
            if self._db is not None and self._db.in_transaction:
                self._db.rollback()
        if found:
            self._last = found[-1][5]
        return [
            Row(
                agent.hex(), journal.hex(), seq, ms, label, frames[row],
                hashlib.sha256(frames[row]).hexdigest(),
            )
            for agent, journal, seq, ms, label, row in found
        ]  # fmt: skip

    def counters(self) -> dict[str, int]:
        """What the gateway itself counted: frames refused as duplicates or in conflict."""
        if self._db is None:
            return {}
        one = "SELECT total(duplicates), total(conflicts) FROM streams"
        duplicates, conflicts = self._db.execute(one).fetchone()
        rejected = self._db.execute("SELECT total(count) FROM rejected").fetchone()[0]
        return {
            "duplicates": int(duplicates),
            "conflicts": int(conflicts),
            "rejected": int(rejected),
        }

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _unpack(block: bytes) -> list[bytes]:
    """Frames of a block: zlib over [length, u16][bytes] of each."""
    raw = zlib.decompress(block)
    frames = []
    at = 0
    while at < len(raw):
        end = at + 2 + int.from_bytes(raw[at : at + 2], "big")
        frames.append(raw[at + 2 : end])
        at = end
    return frames


def judge(
    sites: list[Site], ledgers: dict[int, list[Line]], rows: list[Row], labels: int
) -> tuple[dict[int, dict[str, Any]], list[list[int]]]:
    """({site: figures}, confusion matrix of `labels` x `labels`: true by said).

    figures: windows, outcomes, delivered, lost, duplicates, unexplained, skipped, correct,
    judged (windows whose label could be compared) and frame_bytes (sum over `delivered`).
    """
    matrix = [[0] * labels for _ in range(labels)]
    owner = {site.agent: site.site for site in sites}
    unknown: Counter[int] = Counter()
    by_site: dict[int, list[Row]] = {site.site: [] for site in sites}
    known = {line.frame: number for number, lines in ledgers.items() for line in lines}
    for row in rows:
        number = owner.get(row.agent)
        if number is None or known.get(row.hash) != number:
            unknown[number if number is not None else sites[0].site] += 1
        else:
            by_site[number].append(row)

    figures = {}
    for site in sites:
        lines = ledgers[site.site]
        window_of = {line.frame: line.window for line in lines}
        delivered = {row.hash: row for row in by_site[site.site]}
        per_window = Counter(window_of[row.hash] for row in by_site[site.site])
        judged = correct = 0
        for key, row in {window_of[h]: r for h, r in delivered.items()}.items():
            true = site.windows.get(key)
            if true is not None and 0 <= row.label < labels:
                matrix[true][row.label] += 1
                judged += 1
                correct += row.label == true
        figures[site.site] = {
            "windows": len(site.windows),
            "outcomes": len(lines),
            "delivered": len(delivered),
            "lost": len(window_of.keys() - delivered.keys()),
            "duplicates": sum(n - 1 for n in per_window.values()),
            "unexplained": unknown[site.site],
            "skipped": len(site.windows.keys() - set(window_of.values())),
            "judged": judged,
            "correct": correct,
            "frame_bytes": sum(len(row.frame) for row in delivered.values()),
        }
    return figures, matrix
