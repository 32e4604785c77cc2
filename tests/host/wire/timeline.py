"""Virtual time: a heap of things to do, in milliseconds.

Nothing here sleeps. Thirty days pass as fast as the machines can handle what happens in
them; between two events nothing costs anything.
"""

import heapq
from collections.abc import Callable


class Timeline:
    """`now` in ms since the world began. Events of one instant run in the order given."""

    def __init__(self) -> None:
        self.now = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._n = 0

    def after(self, delay_ms: int, what: Callable[[], None]) -> None:
        self._n += 1
        heapq.heappush(self._heap, (self.now + max(0, delay_ms), self._n, what))

    def next_at(self) -> int | None:
        return self._heap[0][0] if self._heap else None

    def run_due(self) -> int:
        """Run everything due at `now`; how many events that were."""
        done = 0
        while self._heap and self._heap[0][0] <= self.now:
            what = heapq.heappop(self._heap)[2]
            what()
            done += 1
        return done
