"""Deletes outcomes beyond the limits of the configuration, a little at a time.

By age: everything that arrived before the limit. By size: the oldest go first, and those
that are confirmed (their result is known, from themselves or from later feedback) only
when nothing else is left. The identity of what is deleted stays: numbers held are kept as
ranges for ever, and as long as the device might send a record again its hash is kept, so
that it is still told apart from a conflict.
"""

from hashlib import sha256

from gateway.blocks import unpack_frames
from gateway.store import Store

DAY_MS = 86_400_000
# Blocks looked at in one transaction: a few milliseconds.
STEP = 16


class Retention:
    """keep_bytes, keep_days: 0 = no limit."""

    def __init__(self, store: Store, keep_bytes: int, keep_days: int) -> None:
        self.store = store
        self.keep_bytes = keep_bytes
        self.keep_days = keep_days
        self._spared_to = 0  # blocks up to here hold confirmed outcomes only

    def step(self, now_ms: int) -> int:
        """Look at the next few blocks if a limit is exceeded; returns rows deleted.

        A transaction of its own. Call again while it returns more than 0.
        """
        if self.keep_days:
            gone = self._sweep(0, now_ms - self.keep_days * DAY_MS, True)
            if gone:
                return gone
        if not self.keep_bytes or self.store.used_bytes() <= self.keep_bytes:
            return 0
        while True:
            before = self._spared_to
            gone = self._sweep(before, 1 << 62, False)
            if gone:
                return gone
            if self._spared_to == before:
                break
        # Nothing but confirmed outcomes is left.
        self._spared_to = 0
        return self._sweep(0, 1 << 62, True)

    def _sweep(self, after: int, before_ms: int, confirmed_too: bool) -> int:
        store = self.store
        count = 0
        store.begin()
        try:
            for first, size, packed in store.oldest_blocks(after, STEP):
                frames = unpack_frames(packed)
                doomed = []
                for row, stream, seq, arrival_ms, result in store.block_rows(first, size):
                    digest = sha256(frames[row - first]).digest()
                    if arrival_ms < before_ms and (
                        confirmed_too or (result is None and not store.judged(digest[:16]))
                    ):
                        doomed.append((row, stream, seq, digest))
                        frames[row - first] = b""
                if doomed:
                    store.bury([entry[1:] for entry in doomed])
                    store.delete_outcomes([entry[0] for entry in doomed])
                    store.replace_block(first, frames)
                    count += len(doomed)
                elif before_ms < 1 << 62:
                    break  # by age: what follows is younger
                if not confirmed_too:
                    self._spared_to = first
            store.commit()
        except BaseException:
            store.rollback()
            raise
        return count
