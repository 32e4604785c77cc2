"""A site's own record of what it committed: the witness that the demo judges by.

The ledger shares no code with the journal. It is a text file, one JSON object a line,
written and fsynced after the journal's sync has returned and before anything of that
batch is published:

    {"site": 4, "window": "4/0/3", "journal": "5d0c...", "seq": 17, "frame": "<SHA-256>",
     "at_ms": 1790000000000, "found": "sync"}

A kill can fall between the journal's sync and the ledger's fsync. Then a record is
committed that no ledger line speaks of: the restarted site would take its window for
unprocessed, process it again, and make a true duplicate. So a site that starts compares
the journal with the ledger first (`missing`) and writes the lines that are missing,
marked "found": "journal". Such a record is certain to be in the journal still: it was not
published before the kill, so no gateway can have acknowledged it, so it was not freed.
"""

import hashlib
import json
import os
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

# window: the replay's key.  journal: hex.  seq: number.  frame: SHA-256, hex.
# at_ms: Unix milliseconds.  found: "sync" or "journal" (written by a restart).
Line = namedtuple("Line", ("site", "window", "journal", "seq", "frame", "at_ms", "found"))


def read(path: Path, offset: int = 0) -> tuple[list[Line], int]:
    """The complete lines from byte `offset` on, and where they end."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data.rpartition(b"\n")[0]
    lines = [_line(json.loads(text)) for text in whole.split(b"\n") if text]
    return lines, offset + (len(whole) + 1 if whole else 0)


def _line(fields: dict[str, Any]) -> Line:
    return Line(*(fields[name] for name in Line._fields))


class Ledger:
    """Opened by its site only; the director just reads the file."""

    def __init__(self, path: Path, site: int) -> None:
        self.path = path
        self.site = site
        self.lines, whole = read(path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._file, whole)  # a line torn by a kill never counted
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    def add(self, records: list[tuple[str, bytes, int, bytes]], found: str) -> None:
        """records: (window, journal id, seq, frame). Returns when they are on the disk."""
        new = [
            Line(
                self.site,
                window,
                journal.hex(),
                seq,
                hashlib.sha256(frame).hexdigest(),
                time.time_ns() // 1_000_000,
                found,
            )
            for window, journal, seq, frame in records
        ]
        text = "".join(json.dumps(line._asdict(), separators=(",", ":")) + "\n" for line in new)
        data = text.encode()
        if os.write(self._file, data) != len(data):
            raise OSError(f"{self.path}: short write; is the disk full?")
        os.fsync(self._file)
        self.lines.extend(new)

    def missing(self, held: list[tuple[bytes, int, bytes]]) -> list[tuple[bytes, int, bytes]]:
        """Those of the journal's (journal id, seq, frame) that no line speaks of, by seq."""
        known = {line.frame for line in self.lines}
        lost = [record for record in held if hashlib.sha256(record[2]).hexdigest() not in known]
        return sorted(lost, key=lambda record: record[1])

    def close(self) -> None:
        os.close(self._file)
