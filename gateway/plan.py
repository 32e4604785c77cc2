"""What became of one batch: the hand-over between judging, committing and answering."""

from typing import Any

from gateway.ranges import RangeSet
from gateway.stream import Stream


class Plan:
    """One judged batch: what to write, and what to answer once it is written."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        # (stream, seq, columns of the row after these two, frame, outcome)
        self.rows: list[tuple[Stream, int, tuple[Any, ...], bytes, Any]] = []
        self.conflicts: list[tuple[Any, ...]] = []
        self.rejected: dict[str, int] = {}
        self.samples: list[tuple[Any, ...]] = []
        # Per stream: what to acknowledge, what to refuse. Also those that said hello.
        self.wanted: dict[Stream, RangeSet] = {}
        self.refused: dict[Stream, list[tuple[int, int]]] = {}
        # Streams that said hello, and whether it was a new one.
        self.greeted: dict[Stream, bool] = {}
        # What came before a new hello is answered with the nonce that was in force then:
        # the device that says the new one may be a copy, with other bytes in its numbers.
        self.earlier: list[tuple[Stream, bytes, list[tuple[int, int]], list[tuple[int, int]]]] = []
        self.hashes: dict[tuple[int, int], bytes] = {}
        # For the mailbox: (agent, hello) in order of arrival; devices that encrypt.
        self.hellos: list[tuple[bytes, Any]] = []
        self.encrypts: set[bytes] = set()
        self.retire: dict[bytes, int] = {}
        self.counts: dict[str, int] = {}

    def turn(self, agent: bytes, nonce: bytes) -> None:
        """A new hello of this device follows; `nonce` is the one it replaces."""
        for stream in [s for s in {**self.wanted, **self.refused} if s.agent == agent]:
            wanted = list(self.wanted.pop(stream, ()))
            refused = self.refused.pop(stream, [])
            self.earlier.append((stream, nonce, wanted, refused))

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by
