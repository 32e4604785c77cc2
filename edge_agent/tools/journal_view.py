"""Looking into a journal: depth, age, drops, quarantine, hours left, unsent frames.

Nothing here writes to the journal, takes its lock or counts as a start, so it works
while the agent runs. What it shows is the state at the last save plus the records found
behind it; frees since then (at most 32) and what waits in the agent's RAM are not seen.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

from edge_agent.cpython.store import FileStore
from edge_agent.errors import StoreError
from edge_agent.journal_quota import BAD_KEPT
from edge_agent.journal_start import start
from edge_agent.journal_state import SLOTS, State
from edge_agent.segment import (
    HEADER_BYTES,
    QUARANTINE,
    QUARANTINE_BYTES,
    Segment,
    read_record,
    walk,
)

PRIORITY_NAMES = ("urgent", "normal", "bulk")
REASON_NAMES = {
    0: "skipped (numbers never given to a durable record)",
    1: "quota (oldest made room)",
    2: "full (newest refused)",
    3: "expired",
    4: "coalesced (replaced, no loss)",
    5: "corrupt",
    6: "unreadable",
    7: "refused by the gateway, pushed out of quarantine",
}
_TRIES = 5


class View:
    """One look at the journal in `path`. StoreError when there is none."""

    def __init__(
        self,
        path: str,
        segment_bytes: int = 32768,
        max_segments: int = 64,
        quarantine_segments: int = 2,
    ) -> None:
        self.store = FileStore(path, read_only=True)
        self.capacity = (max_segments - quarantine_segments - BAD_KEPT) * segment_bytes
        self.state = self._load(path)

    def _load(self, path: str) -> State:
        if all(self.store.size(slot) < 0 for slot in SLOTS) and not self.store.names():
            self.store.close()
            raise StoreError("there is no journal", path, "Name the journal.path of the agent")
        for _ in range(_TRIES):
            # The agent may save, and remove a segment, while this reads.
            state, slot, _ = start(self.store)
            again, same, _ = start(self.store)
            if (state.generation, slot) == (again.generation, same):
                break
        return again

    def close(self) -> None:
        self.store.close()

    def _pending(self, chain: int) -> Iterator[tuple[Segment, Any]]:
        for segment in self.state.chains[chain]:
            if segment.pending:
                for r in walk(self.store, segment, HEADER_BYTES, segment.length):
                    if r is not None and not segment.is_freed(r.seq):
                        yield segment, r

    def records(self, frames: bool = False) -> Iterator[dict[str, Any]]:
        """Every record that waits for its ack, urgent first, oldest first.

        frames: with the frame itself, as hexadecimal text.
        """
        for chain in range(QUARANTINE):
            for segment, r in self._pending(chain):
                record = {
                    "journal": segment.journal.hex(),
                    "seq": r.seq,
                    "priority": PRIORITY_NAMES[chain],
                    "bytes": r.length,
                    "age_s": max(0, self.state.age - r.stamp),
                    "ttl_s": r.ttl,
                    "generation": r.generation,
                }
                if frames:
                    body = read_record(self.store, segment, r.offset, r.length, r.seq)
                    if not body:
                        continue  # freed and removed meanwhile
                    record["frame"] = body.hex()
                yield record

    def quarantine(self) -> Iterator[dict[str, Any]]:
        """What the gateway refused, oldest first, with its reason number."""
        for segment in self.state.chains[QUARANTINE]:
            for r in walk(self.store, segment, HEADER_BYTES, segment.length):
                if r is None:
                    continue
                body = read_record(self.store, segment, r.offset, r.length, r.seq)
                if len(body) > QUARANTINE_BYTES:
                    yield {
                        "journal": body[:4].hex(),
                        "seq": int.from_bytes(body[4:8], "big"),
                        "reason": body[8],
                        "bytes": len(body) - QUARANTINE_BYTES,
                        "age_s": max(0, self.state.age - r.stamp),
                        "frame": body[QUARANTINE_BYTES:].hex(),
                    }

    def rate(self) -> "float | None":
        """Bytes a second that have been written lately; None when that cannot be told.

        Over the newest two segments of each priority, counting time with power only.
        """
        total = 0.0
        for chain in range(QUARANTINE):
            newest = self.state.chains[chain][-2:]
            if newest and newest[0].count:
                span = self.state.age - newest[0].stamp
                if span > 0:
                    total += sum(s.length for s in newest) / span
        return total or None

    def stats(self) -> dict[str, Any]:
        """Figures, ready for JSON."""
        state = self.state
        pending = {}
        oldest: int | None = None
        for chain in range(QUARANTINE):
            pending[PRIORITY_NAMES[chain]] = sum(s.pending for s in state.chains[chain])
            for _, r in self._pending(chain):
                age = max(0, state.age - r.stamp)
                oldest = age if oldest is None else max(oldest, age)
                break
        used = sum(s.length for s in state.segments())
        rate = self.rate()
        return {
            "journal": state.journal.hex(),
            "boot": state.boot,
            "next_seq": state.next_seq,
            "pending": pending,
            "oldest_s": oldest,
            "bytes": used,
            "capacity_bytes": self.capacity,
            "segments": [len(chain) for chain in state.chains],
            "quarantined": sum(s.count for s in state.chains[QUARANTINE]),
            "drops": {REASON_NAMES[i]: state.drops[i] for i in REASON_NAMES if state.drops[i]},
            "gone": [list(pair) for pair in state.gone],
            "corrupt_segments": state.corrupt,
            "torn_tails": state.torn,
            "lost_states": state.lost_states,
            "bytes_per_hour": None if rate is None else round(rate * 3600),
            "hours_until_full": (
                None if rate is None else round(max(0, self.capacity - used) / rate / 3600, 1)
            ),
        }

    def export(self, target: str) -> int:
        """Write every unsent frame: JSON lines, or a file each when `target` is a directory.

        An existing file is not overwritten. Returns the number of frames; StoreError.
        """
        count = 0
        try:
            if os.path.isdir(target):
                for record in self.records(frames=True):
                    name = "{journal}-{seq:010d}.cbor".format(**record)
                    with open(os.path.join(target, name), "wb") as file:
                        file.write(bytes.fromhex(record["frame"]))
                    count += 1
                return count
            with open(target, "x", encoding="ascii") as file:
                for record in self.records(frames=True):
                    file.write(json.dumps(record) + "\n")
                    count += 1
        except FileExistsError:
            raise StoreError("exists already", target, "Name a new file or a directory") from None
        except OSError as error:
            raise StoreError(error.strerror or str(error), target, "", error.errno or 0) from error
        return count


def describe(stats: dict[str, Any]) -> list[tuple[str, object]]:
    """The figures as rows for people."""
    rows: list[tuple[str, object]] = [(name, count) for name, count in stats["pending"].items()]
    if stats["oldest_s"] is not None:
        rows.append(("oldest", f"{stats['oldest_s']} s"))
    percent = 100 * stats["bytes"] / stats["capacity_bytes"]
    rows.append(("space", f"{stats['bytes']} of {stats['capacity_bytes']} bytes ({percent:.1f} %)"))
    if stats["hours_until_full"] is not None:
        rows.append(("full in", f"{stats['hours_until_full']} h if nothing is delivered"))
    rows.append(("quarantine", stats["quarantined"]))
    rows += [("dropped: " + reason, count) for reason, count in stats["drops"].items()]
    for name, text in (
        ("corrupt_segments", "segments found damaged"),
        ("torn_tails", "tails cut by a power loss"),
        ("lost_states", "times the state was lost"),
    ):
        if stats[name]:
            rows.append((text, stats[name]))
    rows += [("journal id", stats["journal"]), ("boot", stats["boot"])]
    return rows
