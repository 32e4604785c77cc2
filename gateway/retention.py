"""Deletes outcomes beyond the limits of the configuration, a little at a time.

By age: everything that arrived before the limit. By size: the oldest go first, and those
that are confirmed (their result is known, from themselves or from later feedback) only
when nothing else is left. The identity of what is deleted stays: numbers held are kept as
ranges for ever, and as long as the device might send a record again its hash is kept, so
that it is still told apart from a conflict.
"""

from hashlib import sha256

from gateway.store import Store

DAY_MS = 86_400_000
# Rows looked at in one transaction: a few milliseconds.
STEP = 500


class Retention:
    """keep_bytes, keep_days: 0 = no limit."""

    def __init__(self, store: Store, keep_bytes: int, keep_days: int) -> None:
        self.store = store
        self.keep_bytes = keep_bytes
        self.keep_days = keep_days
        self._unconfirmed_after = 0

    def step(self, now_ms: int) -> int:
        """Delete up to STEP rows when a limit is exceeded; returns how many went.

        Opens a transaction of its own. Call again while it returns more than 0.
        """
        store = self.store
        if self.keep_days:
            rows = store.oldest(0, STEP, now_ms - self.keep_days * DAY_MS)
            if rows:
                return self._delete([row[:4] for row in rows])
        if not self.keep_bytes or store.used_bytes() <= self.keep_bytes:
            return 0
        rows = store.oldest(self._unconfirmed_after, STEP)
        unconfirmed = [row[:4] for row in rows if not self._confirmed(row[3], row[4])]
        if rows:
            self._unconfirmed_after = rows[-1][0]
        if unconfirmed:
            return self._delete(unconfirmed)
        if rows:
            return self.step(now_ms)
        # Nothing but confirmed outcomes is left.
        self._unconfirmed_after = 0
        return self._delete([row[:4] for row in store.oldest(0, STEP)])

    def _confirmed(self, frame: bytes, result: int | None) -> bool:
        return result is not None or self.store.judged(sha256(frame).digest()[:16])

    def _delete(self, rows: list[tuple[int, int, int, bytes]]) -> int:
        store = self.store
        store.begin()
        try:
            store.bury([(stream, seq, sha256(frame).digest()) for _, stream, seq, frame in rows])
            store.delete_outcomes([row[0] for row in rows])
            store.commit()
        except BaseException:
            store.rollback()
            raise
        return len(rows)
