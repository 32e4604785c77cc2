"""SQLite files that several processes open at the same moment."""

import sqlite3
import time

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_LOOK_S = 0.01


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection is in the way: it may be tried again."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY  # whatever the extended code


def use_wal(db: sqlite3.Connection, patience_s: float) -> None:
    """Journal mode WAL, which the file keeps.

    The first one to open a new file changes its mode. While another does so, or writes to it,
    SQLite refuses at once, whatever the connection's timeout; so it is asked again for as long.
    """
    end = time.monotonic() + patience_s
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= end:
                raise
        time.sleep(_LOOK_S)
