"""The statements of retention and of reports: everything that ingest does not need."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gateway.blocks import pack_frames


def stream_key(stream: int, seq: int) -> int:
    """One whole number per identity: below 2^63 for 2^31 streams."""
    return stream << 32 | seq


class Queries:
    """Half of Store, which gives it `run`, `run_many`, `meta` and `frame`."""

    _block: tuple[int, list[bytes]]

    def run(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        raise NotImplementedError

    def run_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        raise NotImplementedError

    def meta(self, key: str, default: Any = None) -> Any:
        raise NotImplementedError

    def frame(self, row: int) -> bytes | None:
        raise NotImplementedError

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

    def block_before(self, row: int) -> tuple[int, bytes] | None:
        """(first row, frames) of the newest block that begins below `row`."""
        found: tuple[int, bytes] | None = self.run(
            "SELECT first, frames FROM blocks WHERE first < ? ORDER BY first DESC LIMIT 1", (row,)
        ).fetchone()
        return found

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

    def judgements(self, after: int, limit: int) -> list[tuple[int, bytes, int, int]]:
        """(id, about, result, label) of what people said, in order of arrival."""
        return self.run(
            "SELECT id, about, result, label FROM judgements WHERE id > ? ORDER BY id LIMIT ?",
            (after, limit),
        ).fetchall()

    def last_judgement(self) -> int:
        return int(self.run("SELECT coalesce(max(id), 0) FROM judgements").fetchone()[0])

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

    def _dicts(self, sql: str, values: Sequence[Any] = ()) -> Iterator[dict[str, Any]]:
        cursor = self.run(sql, values)
        names = [column[0] for column in cursor.description]
        for row in cursor:
            yield dict(zip(names, row, strict=True))

    def stream_reports(self) -> list[dict[str, Any]]:
        return list(self._dicts("SELECT * FROM streams ORDER BY id"))

    def label_counts(self) -> dict[int, list[tuple[bytes | None, int, int]]]:
        """stream -> [(domain id, label, outcomes)]. Reads the whole table."""
        found: dict[int, list[tuple[bytes | None, int, int]]] = {}
        for stream, domain, label, count in self.run(
            "SELECT o.stream, m.domain, o.label, count(*) FROM outcomes o"
            " LEFT JOIN domains m ON m.id = o.domain GROUP BY o.stream, o.domain, o.label"
        ):
            found.setdefault(stream, []).append((domain, label, count))
        return found

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

    def moment(self, row: int) -> dict[str, Any] | None:
        """One row of the view `timeline`, without its frame."""
        return next(self._dicts("SELECT * FROM timeline WHERE id = ?", (row,)), None)

    def arrivals(self, after: int, limit: int) -> list[int]:
        """Rows of outcomes above `after`, in order."""
        rows = self.run("SELECT id FROM outcomes WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
        return [row for (row,) in rows]

    def present(self, first: int, last: int) -> set[int]:
        """Which rows of a range still exist."""
        rows = self.run("SELECT id FROM outcomes WHERE id BETWEEN ? AND ?", (first, last))
        return {row for (row,) in rows}

    def devices_with(self, domain: bytes, label: int) -> int:
        """How many devices have outcomes with a label. Reads the whole table."""
        (count,) = self.run(
            "SELECT count(DISTINCT s.device) FROM outcomes o JOIN streams s ON s.id = o.stream"
            " WHERE o.label = ? AND o.domain = (SELECT id FROM domains WHERE domain = ?)",
            (label, domain),
        ).fetchone()
        return int(count)

    def timeline(self) -> Iterator[dict[str, Any]]:
        """Rows of the view of that name, oldest first, each with its frame."""
        for row in self._dicts("SELECT * FROM timeline ORDER BY id"):
            row["frame"] = self.frame(row["id"])
            yield row
