"""Who gets room: the journal's quota in segments, its reserves and its policies.

The quota counts whole segments, so that what is dropped is a file, not a hole. Each
priority may have a reserve that the others cannot take. With drop-oldest a priority
makes room by dropping the oldest segment of the least important one that is above its
reserve, and in the end its own oldest; never one of a more important priority. With
drop-new it drops nothing and is refused.
"""

from collections import namedtuple

from edge_agent.errors import ConfigError
from edge_agent.segment import HEADER_BYTES, QUARANTINE, RECORD_BYTES, Segment

PRIORITIES = QUARANTINE
DROP_OLDEST = "drop-oldest"
DROP_NEW = "drop-new"
MAX_SEGMENTS = 240
BAD_KEPT = 2  # damaged segments kept for a look

# A record that is not in a segment yet.
Entry = namedtuple("Entry", ("seq", "body", "priority", "ttl", "stamp", "generation", "journal"))


class Quota:
    """max_segments: all files of the journal, quarantine and damaged ones included.

    ConfigError names the setting that does not fit.
    """

    def __init__(
        self,
        segment_bytes: int,
        max_segments: int,
        reserve: "tuple[int, ...]",
        policy: "tuple[str, ...]",
        quarantine_segments: int,
    ) -> None:
        if not 1024 <= segment_bytes <= 1 << 20:
            raise ConfigError("must be 1024 to 1048576", "journal.segment_bytes")
        if len(reserve) != PRIORITIES or min(reserve) < 0:
            raise ConfigError("needs three numbers, 0 or more", "journal.reserve")
        if len(policy) != PRIORITIES:
            raise ConfigError("needs three policies", "journal.policy")
        for p in policy:
            if p not in (DROP_OLDEST, DROP_NEW):
                raise ConfigError("must be drop-oldest or drop-new", "journal.policy")
        if quarantine_segments < 1:
            raise ConfigError("must be at least 1", "journal.quarantine_segments")
        least = sum(reserve) + PRIORITIES + quarantine_segments + BAD_KEPT
        if not least <= max_segments <= MAX_SEGMENTS:
            raise ConfigError(
                "must be %d to %d with these reserves" % (least, MAX_SEGMENTS),
                "journal.max_segments",
            )
        self.segment_bytes = segment_bytes
        self.quarantine_segments = quarantine_segments
        self.data_segments = max_segments - quarantine_segments - BAD_KEPT
        self.reserve = reserve
        self.policy = policy
        self._reserved = sum(reserve)

    def choose(self, priority: int, counts: "list[int]") -> "int | None":
        """Who gives way to a new segment of `priority`.

        counts: segments per priority. A priority; -1 = there is room; None = nobody.
        """
        unmet = 0
        for q in range(PRIORITIES):
            if q != priority:
                unmet += max(0, self.reserve[q] - counts[q])
        if sum(counts) + 1 + unmet <= self.data_segments:
            return -1
        if self.policy[priority] == DROP_NEW:
            return None
        for q in range(PRIORITIES - 1, priority, -1):
            if counts[q] > self.reserve[q]:
                return q
        return priority if counts[priority] else None

    def feasible(self, chains: "list[list[Segment]]", batch: "list[Entry]", priority: int) -> bool:
        """Whether the batch's records of `priority` will find room when it is synced.

        More important ones go first; less important ones in the batch may be dropped.
        """
        total = len(chains[0]) + len(chains[1]) + len(chains[2])
        if total + len(batch) + self._reserved <= self.data_segments:
            return True
        counts = []
        entries = []
        for p in range(PRIORITIES):
            entries.append([e for e in batch if e.priority == p])
            head = chains[p][-1] if chains[p] else None
            count = len([s for s in chains[p] if s.pending])
            if head is not None and not head.sealed and not head.pending and entries[p]:
                count += 1  # stays, because records wait for it
            counts.append(count)
        for p in range(priority + 1):
            head = chains[p][-1] if counts[p] and not chains[p][-1].sealed else None
            for _ in range(self._rolls(head, entries[p])):
                victim = self.choose(p, counts)
                while victim is not None and victim >= 0:
                    counts[victim] -= 1
                    victim = self.choose(p, counts)
                if victim is None:
                    return False
                counts[p] += 1
        return True

    def _rolls(self, head: "Segment | None", entries: "list[Entry]") -> int:
        """How many new segments the entries will begin."""
        room = 0
        journal = b""
        if head is not None:
            room = self.segment_bytes - max(head.length, HEADER_BYTES)
            journal = head.journal
        rolls = 0
        for e in entries:
            size = RECORD_BYTES + len(e.body)
            if size > room or e.journal != journal:
                rolls += 1
                room = self.segment_bytes - HEADER_BYTES
                journal = e.journal
            room -= size
        return rolls
