"""Finds outcomes by their id in gateway.db, a little at a time.

The id of an outcome is a hash of its frame, and ingest keeps no index of them: an entry at a
random place for every frame would cost more than everything else it writes. The routing
process has such an index, for its own purposes. Where there is none, blocks are read from the
newest to the oldest; what people ask about is mostly new.
"""

from collections.abc import Iterable

from edge_agent.frame import outcome_id
from gateway.blocks import unpack_frames
from gateway.store import Store


class Search:
    """found: id -> row of `outcomes`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._wanted: set[bytes] = set()
        self._before = 0  # blocks from here on were read; 0: done
        self.found: dict[bytes, int] = {}

    def want(self, ids: Iterable[bytes]) -> None:
        """Look for these, too: from the newest block again."""
        new = {id_ for id_ in ids if id_ not in self._wanted and id_ not in self.found}
        if new:
            self._wanted |= new
            self.again()

    def again(self) -> None:
        """From the newest block: something has come."""
        self._before = self._store.last_outcome() + 1

    def forget(self, ids: Iterable[bytes]) -> None:
        for id_ in ids:
            self._wanted.discard(id_)
            self.found.pop(id_, None)

    def __contains__(self, id_: bytes) -> bool:
        return id_ in self._wanted

    def __len__(self) -> int:
        return len(self._wanted)

    def step(self, frames: int) -> bool:
        """Read about so many frames; False when there is nothing left to do."""
        while frames > 0 and self._wanted and self._before > 0:
            block = self._store.block_before(self._before)
            if block is None:
                self._before = 0
                break
            self._before, packed = block
            for i, frame in enumerate(unpack_frames(packed)):
                frames -= 1
                id_ = outcome_id(frame) if frame else b""
                if id_ in self._wanted:
                    self._wanted.discard(id_)
                    self.found[id_] = self._before + i
        return bool(self._wanted) and self._before > 0
