"""What the gateway remembers of one journal of one device. Pure.

A *stream* is one journal id of one agent. Its numbers only move one way: the floor rises,
held, refused, gone and lost ranges grow.

Lost by restore. A device frees a record when the gateway acknowledged it, so everything
below its floor was held here once, or was dropped by the device's own quota (reported in
its hello), or was refused. A number below the floor that is none of these was acknowledged
by a gateway whose database is no longer this one: it was restored from a backup. (Or the
device served another gateway before and its flash was not wiped: nobody can tell.)

Forks. A journal's hellos can only go forward: boot, then uptime, and the next number. One
that goes back comes from a copied or restored flash. It is counted and shown; nothing
depends on noticing it, because acknowledgements name only records whose bytes were just
compared. Only the answer to a new hello names all that is held: a device frees nothing on
it that it published before, and a copy learns from it that its numbers are taken.
"""

import json
from collections.abc import Sequence
from typing import Any

from gateway.ranges import RangeSet
from gateway.timebase import Boot

# Of a hello that a broker delivers again, the nonce is known: this many are remembered.
NONCES = 16
NONCE = 8
# Reasons of the device's drop counters that mean there is no record of that number (0: the
# number was skipped after a power cut, there never was one).
LOSSES = (0, 1, 3, 5, 6)


class Stream:
    """State of one (agent, journal). `dirty` means it differs from its row."""

    __slots__ = (
        "agent",
        "boots",
        "conflicts",
        "dirty",
        "duplicates",
        "floor",
        "forks",
        "gone",
        "held",
        "hello",
        "hello_ms",
        "id",
        "journal",
        "last_ms",
        "lost",
        "next_seq",
        "nonces",
        "recent",
        "refused",
        "start",
    )

    def __init__(self, id: int, agent: bytes, journal: bytes, start: int) -> None:
        self.id = id
        self.agent = agent
        self.journal = journal
        self.start = start
        self.floor = 0
        self.next_seq = 0
        self.held = RangeSet()
        self.refused = RangeSet()
        self.gone = RangeSet()
        self.lost = RangeSet()
        self.forks = 0
        self.conflicts = 0
        self.duplicates = 0
        self.last_ms = 0
        self.hello_ms = 0
        self.nonces = b""
        self.hello: dict[str, Any] = {}
        # seq -> row, for rows not yet merged into `runs`.
        self.recent: dict[int, int] = {}
        self.boots: dict[int, Boot] = {}
        self.dirty = False

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> "Stream":
        """From a row of Store.streams()."""
        stream = cls(row[0], row[1], row[2], row[3])
        stream.floor, stream.next_seq = row[4], row[5]
        stream.held, stream.refused = RangeSet.parse(row[6]), RangeSet.parse(row[7])
        stream.gone, stream.lost = RangeSet.parse(row[8]), RangeSet.parse(row[9])
        stream.forks, stream.conflicts, stream.duplicates = row[10], row[11], row[12]
        stream.last_ms, stream.hello_ms, stream.nonces = row[13], row[14], row[15]
        stream.hello = json.loads(row[16])
        return stream

    def to_row(self) -> tuple[Any, ...]:
        """For Store.save_streams()."""
        return (
            self.start,
            self.floor,
            self.next_seq,
            str(self.held),
            str(self.refused),
            str(self.gone),
            str(self.lost),
            self.forks,
            self.conflicts,
            self.duplicates,
            self.last_ms,
            self.hello_ms,
            self.nonces,
            json.dumps(self.hello, sort_keys=True),
            self.id,
        )

    def boot(self, number: int) -> Boot:
        found = self.boots.get(number)
        if found is None:
            found = self.boots[number] = Boot(number)
        return found

    def nonce(self) -> bytes:
        """The nonce of the newest hello, empty when there was none."""
        return self.nonces[-NONCE:]

    def heard(self, nonce: bytes) -> bool:
        """Whether a hello with this nonce was taken in before."""
        return nonce in self._known()

    def _known(self) -> list[bytes]:
        return [self.nonces[i : i + NONCE] for i in range(0, len(self.nonces), NONCE)]

    def greet(self, hello: Any, arrival_ms: int, generation: int) -> int:
        """Take in a hello that was sealed under this key generation.

        Returns how many records it shows to be lost by restore.

        One that a broker delivers again changes nothing; one that the device repeats on
        the same connection carries newer numbers.
        """
        said = (hello.boot, hello.uptime_ms)
        before = (self.hello.get("boot", 0), self.hello.get("uptime_ms", 0))
        if self.heard(hello.nonce):
            if said <= before:
                return 0
        else:
            if said < before or hello.next_seq < max(self.next_seq, self.held.last() + 1):
                self.forks += 1
        # The newest comes last, also when the device repeats one that an older hello,
        # delivered late, had overtaken.
        others = [n for n in self._known() if n != hello.nonce]
        self.nonces = b"".join(others + [hello.nonce])[-NONCES * NONCE :]
        self.dirty = True
        self.next_seq = max(self.next_seq, hello.next_seq)
        self.hello_ms = arrival_ms
        for first, last in hello.gone:
            self.gone.add_range(first, last)
        dropped = {int(k): int(v) for k, v in dict(hello.dropped).items()}
        self.hello = {
            "key": generation,
            "boot": hello.boot,
            "uptime_ms": hello.uptime_ms,
            "utc_s": hello.utc_s or 0,
            "next_seq": hello.next_seq,
            "floor": hello.floor,
            "counter": hello.counter,
            "oldest_generation": hello.oldest_generation,
            "pending": hello.pending,
            "dropped": {str(k): v for k, v in sorted(dropped.items())},
            "model": hello.model.hex() if hello.model else None,
            "version": hello.version,
            "cfg_version": hello.cfg_version,
        }
        if hello.floor <= self.floor:
            return 0
        self.floor = hello.floor
        return self._count_lost(dropped)

    def _count_lost(self, dropped: dict[int, int]) -> int:
        below = RangeSet([(self.start, self.floor - 1)])
        for known in (self.held, self.refused, self.gone, self.lost):
            below = below.without(known)
        if not below:
            return 0
        # Drops whose place is no longer told: the hello names only the newest ranges.
        unplaced = sum(dropped.get(reason, 0) for reason in LOSSES) - self.gone.count()
        unplaced = max(unplaced, 0)
        if below.count() <= unplaced:
            for first, last in below:
                self.gone.add_range(first, last)
            return 0
        for first, last in below:
            self.lost.add_range(first, last)
        return below.count()

    def all_held(self) -> list[tuple[int, int]]:
        """What the answer to a new hello names: all ranges from its floor on."""
        # A copy may ask from a lower floor than the original has reached.
        low = max(min(self.floor, self.hello.get("floor", self.floor)), 1)
        return list(self.held.clipped(low, self.held.last()))
