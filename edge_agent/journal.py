"""The journal: outcomes on their way, safe from power cuts.

Records wait in RAM until `sync`; what `sync` returned is durable. Each priority has
its own chain of segments (`segment.py`), the quarantine is a fourth. A record is held
until `free` names its journal id and seq; a segment goes when all its records are
freed, or when the quota drops it (`journal_quota.py`). Everything else that must
outlive a power cut is in the state (`journal_state.py`), which is saved

- when a segment is begun, before its first byte is written;
- when a segment goes, before its file is removed;
- after every 32 frees, at start-up, and when somebody asks.

Frees that were not saved yet are forgotten in a power cut: those records are sent
again and found duplicates. A seq is given to one frame only, for ever: see
`journal_start.py` for how that survives damage.

When a write fails (a full disk, say) the batch stays in RAM and `sync` may be called
again: see `journal_log.py`.
"""

from edge_agent.errors import JournalError, JournalFull, StoreError
from edge_agent.interfaces import Entropy, Store
from edge_agent.journal_log import NO_GENERATION, Log
from edge_agent.journal_quota import DROP_OLDEST, PRIORITIES, Entry, Quota
from edge_agent.journal_state import COALESCED, EXPIRED, FULL, QUOTA
from edge_agent.segment import (
    HEADER_BYTES,
    MAX_FRAME,
    QUARANTINE,
    QUARANTINE_BYTES,
    RECORD_BYTES,
    Record,
    Ref,
    Segment,
    walk,
)

MAX_BATCH = 64  # records in RAM
_NEVER = 0xFFFFFFFF


class Journal:
    """Use `Journal.open`. One user at a time; nothing here waits."""

    def __init__(
        self, store: Store, entropy: Entropy, quota: Quota, woken: "tuple[int, int]" = (0, 0)
    ) -> None:
        self._store = store
        self._entropy = entropy
        self._quota = quota
        self._log = Log(store, quota)
        self._s = self._log.state
        self._base = self._log.age
        self._batch: list[Entry] = []
        self._done: list[Ref] = []  # durable, not yet returned by sync
        self._log.boot(entropy, woken[0])
        if self._s.boot == woken[0]:
            self._base = woken[1]
        self._ids = [self._s.journal]  # of this run, newest first

    @classmethod
    def open(
        cls,
        store: Store,
        entropy: Entropy,
        segment_bytes: int = 32768,
        max_segments: int = 64,
        reserve: "tuple[int, ...]" = (4, 8, 0),
        policy: "tuple[str, ...]" = (DROP_OLDEST, DROP_OLDEST, DROP_OLDEST),
        quarantine_segments: int = 2,
        woken: "tuple[int, int]" = (0, 0),
    ) -> "Journal":
        """Open the journal in `store`, or make one when there is none.

        segment_bytes: 1024 to 1 MiB.  max_segments: the quota, quarantine and two
        damaged segments included.  reserve: per priority, segments that the others
        cannot take.  policy: per priority, what happens when there is no room.
        woken: boot and age_base_s that go on after a deep sleep, if they are the last ones
        here and nothing is in doubt; else a new boot begins, as `boot` tells.

        ConfigError; StoreError when the store cannot be used (a full one can: only
        `sync` fails then); JournalError when a newer version wrote the journal.
        """
        quota = Quota(segment_bytes, max_segments, reserve, policy, quarantine_segments)
        return cls(store, entropy, quota, woken)

    # -- what it knows ------------------------------------------------------

    @property
    def journal_id(self) -> bytes:
        """4 bytes; the id that new records get."""
        return self._s.journal

    @property
    def boot(self) -> int:
        return self._s.boot

    @property
    def next_seq(self) -> int:
        return self._s.next_seq

    @property
    def age_base_s(self) -> int:
        """Seconds that earlier boots are known to have lasted, in all: a lower bound."""
        return self._base

    @property
    def doubt(self) -> bool:
        """True: damage was found, or an ack for a record that this flash never wrote.

        `mint` ends it; so does the next start.
        """
        return self._s.doubt

    @property
    def down_counter(self) -> int:
        return self._s.counter

    @down_counter.setter
    def down_counter(self, value: int) -> None:
        self._s.counter = value

    @property
    def cfg_version(self) -> int:
        return self._s.cfg_version

    @cfg_version.setter
    def cfg_version(self, value: int) -> None:
        self._s.cfg_version = value

    @property
    def drops(self) -> "dict[int, int]":
        """Dropped records by reason (`journal_state.py` names them); zeros left out."""
        drops = self._s.drops
        return {reason: drops[reason] for reason in range(len(drops)) if drops[reason]}

    def gone(self) -> "list[tuple[int, int]]":
        """At most 8 ranges of seqs that contain all dropped records, and others between them."""
        return list(self._s.gone)

    def held(self) -> "list[tuple[bytes, int, int]]":
        """(journal id, floor, next seq) of each id that still has records; the current first.

        No record below the floor will ever be sent again: it follows the saved state,
        not frees that a power cut would undo.
        """
        floors = self._log.floors_now()
        entries = [(e.journal, (e.seq, e.seq + 1)) for e in self._batch]
        for journal, (floor, following) in list(self._log.floors.items()) + entries:
            old = floors.get(journal, (_NEVER, 0))
            floors[journal] = (min(old[0], floor), max(old[1], following))
        current = self._s.journal
        out = [(current, floors.pop(current)[0], self._s.next_seq)]
        for journal in sorted(floors):
            out.append((journal, floors[journal][0], floors[journal][1]))
        return out

    def oldest_generation(self) -> "int | None":
        """The oldest key generation that a held record may have; None when none is held.

        Like the floors it follows the saved state: a record whose free a power cut undoes
        is sent again, and its key must still be good.
        """
        found = [self._log.generation, self._log.generation_now()]
        oldest = min(found + [e.generation for e in self._batch])
        return None if oldest == NO_GENERATION else oldest

    def stats(self, uptime_s: int = 0) -> "dict[str, object]":
        """Figures for people and for the hello frame. Reads one record per priority."""
        self._tick(uptime_s)
        s = self._s
        pending = [sum([g.pending for g in s.chains[p]]) for p in range(PRIORITIES)]
        stamps = [self._log.age]
        for e in self._batch:
            pending[e.priority] += 1
            stamps.append(e.stamp)
        for p in range(PRIORITIES):
            stamps += self._oldest_stamp(p)
        return {
            "pending": pending,
            "unsynced": len(self._batch),
            "bytes": sum([g.length for chain in s.chains for g in chain]),
            "segments": [len(chain) for chain in s.chains],
            "oldest_s": self._log.age - min(stamps),
            "drops": self.drops,
            "quarantined": sum([g.count for g in s.chains[QUARANTINE]]),
            "corrupt": s.corrupt,
            "torn": s.torn,
            "lost_states": s.lost_states,
            "ranges": sum([len(g.freed) // 2 for g in s.segments()]),
            "boot": s.boot,
            "next_seq": s.next_seq,
        }

    def _oldest_stamp(self, priority: int) -> "list[int]":
        for g in self._s.chains[priority]:
            if g.pending:
                for r in walk(self._store, g, g.skip or HEADER_BYTES, g.length):
                    if r is not None and not g.is_freed(r.seq):
                        return [r.stamp]
        return []

    # -- in -----------------------------------------------------------------

    def append(
        self,
        seq: int,
        frame: bytes,
        priority: int = 1,
        ttl_s: int = 0,
        uptime_s: int = 0,
        generation: int = 0,
        journal: "bytes | None" = None,
    ) -> Ref:
        """Take a record into the batch. It is durable only when `sync` has returned it.

        seq: `next_seq`, or that of a record still in the batch, which is then replaced.
        ttl_s: 0 = for ever.  journal: the id the frame was sealed under, when that may
        be one from before the last `mint`.

        JournalFull when there is no room and the policy keeps what is old, or when the
        batch is full because `sync` fails; the seq stays free. JournalError when the
        record is durable already.
        """
        s = self._s
        self._tick(uptime_s)
        if not 0 < len(frame) <= MAX_FRAME:
            raise JournalError("a frame of %d bytes" % len(frame), "journal")
        if not 0 <= priority < PRIORITIES:
            raise JournalError("there is no priority %d" % priority, "journal")
        if not (0 <= ttl_s <= _NEVER and 0 <= generation <= 255):
            raise JournalError("ttl_s %d or generation %d" % (ttl_s, generation), "journal")
        if journal is None:
            journal = s.journal
        elif journal not in self._ids:
            raise JournalError("an unknown journal id", "journal")
        if s.next_seq >= _NEVER:
            raise JournalError("sequence numbers are used up", "journal", "Reformat the flash")
        entry = Entry(seq, bytes(frame), priority, ttl_s, self._log.age, generation, journal)
        batch = self._batch
        at = len(batch)
        if seq != s.next_seq:
            at = 0
            while at < len(batch) and batch[at].seq != seq:
                at += 1
            if at == len(batch):
                raise JournalError(
                    "seq %d is durable already or out of order, next is %d" % (seq, s.next_seq),
                    "journal",
                )
        old = batch[at : at + 1]
        batch[at : at + 1] = [entry]
        if len(batch) > MAX_BATCH or not self._quota.feasible(s.chains, batch, priority):
            batch[at : at + 1] = old
            s.drop(FULL, 1)
            raise JournalFull(
                "no room for priority %d" % priority,
                "journal",
                "Nothing taken before is lost; deliver the backlog or raise journal.max_segments",
            )
        if old:
            s.drop(COALESCED, 1)
        else:
            s.next_seq = seq + 1
            s.unsynced = batch[0].seq
        return Ref(journal, seq, priority, 0, 0, len(frame))

    def sync(self, uptime_s: int = 0) -> "list[Ref]":
        """Make the batch durable; the refs of its records, by seq.

        On StoreError the rest of the batch stays in RAM: call again. A record may
        already be durable then; the next successful call returns its ref as well.
        When more important records of the same batch took the last room, the others are
        dropped by the quota, counted, and have no ref.
        """
        self._tick(uptime_s)
        if self._batch and not self._log.saved:
            self._log.save()
        for priority in range(PRIORITIES):
            while True:
                entries = [e for e in self._batch if e.priority == priority]
                if not entries:
                    break
                waiting = [e.priority for e in self._batch]
                try:
                    segment = self._log.writable(priority, entries[0], waiting)
                except JournalFull:
                    for e in entries:
                        self._s.drop(QUOTA, 1, e.seq, e.seq)
                    self._keep([e for e in self._batch if e.priority != priority])
                    self._log.try_save()
                    break
                room = self._quota.segment_bytes - max(segment.length, HEADER_BYTES)
                take = []
                for e in entries:
                    room -= RECORD_BYTES + len(e.body)
                    if room < 0 or e.journal != segment.journal:
                        break
                    take.append(e)
                for r in self._log.write(segment, take):
                    self._done.append(self._ref(segment, r))
                last = take[-1].seq
                self._keep([e for e in self._batch if e.priority != priority or e.seq > last])
        done = sorted(self._done, key=lambda ref: ref.seq)
        self._done = []
        return done

    def _keep(self, batch: "list[Entry]") -> None:
        self._batch = batch
        self._s.unsynced = batch[0].seq if batch else 0

    # -- out ----------------------------------------------------------------

    def read(self, ref: Ref) -> bytes:
        """The frame of a durable record.

        JournalError when it is not there any more. When it is damaged its segment is
        set aside and counted (`stats`, `drops`); the other records stay deliverable.
        """
        segment = self._log.find(ref.priority, ref.segment)
        if segment is None:
            raise JournalError("record %d is not held" % ref.seq, "journal")
        seq, extra = ref.seq, 0
        if ref.priority == QUARANTINE:
            seq, extra = -1, QUARANTINE_BYTES
        body = self._log.body(segment, ref.offset, ref.length + extra, seq)
        if not body:
            raise JournalError(
                "record %d is damaged" % ref.seq,
                segment.name,
                "It is counted; the flash may be wearing out",
            )
        return body[extra:]

    @staticmethod
    def _ref(segment: Segment, r: Record) -> Ref:
        return Ref(segment.journal, r.seq, segment.chain, segment.number, r.offset, r.length)

    def scan(
        self, priority: int, after: "Ref | None" = None, limit: int = 8, uptime_s: int = 0
    ) -> "list[Ref]":
        """Durable records that are neither freed nor expired, oldest first, behind `after`.

        Expired records are dropped and counted on the way.
        """
        self._tick(uptime_s)
        out: list[Ref] = []
        for segment in list(self._s.chains[priority]):
            if len(out) >= limit:
                break
            if segment.pending and (after is None or segment.number >= after.segment):
                self._scan_segment(segment, after, limit, out)
        self._log.tidy()
        return out

    def _scan_segment(
        self, segment: Segment, after: "Ref | None", limit: int, out: "list[Ref]"
    ) -> None:
        offset = segment.skip or HEADER_BYTES
        whole = True
        if after is not None and after.segment == segment.number and after.offset >= offset:
            offset = after.offset + RECORD_BYTES + after.length
            whole = False
        pending = segment.pending
        leading = whole
        seen = 0
        for r in walk(self._store, segment, offset, segment.length):
            if r is None:
                continue
            if segment.is_freed(r.seq):
                if leading:
                    segment.skip = r.offset + RECORD_BYTES + r.length
                continue
            leading = False
            seen += 1
            if r.ttl and self._log.age - r.stamp >= r.ttl:
                if self._log.free(segment, r.seq, r.seq):
                    self._s.drop(EXPIRED, 1, r.seq, r.seq)
                continue
            out.append(self._ref(segment, r))
            if len(out) >= limit:
                return
        if whole and seen != pending:
            from edge_agent.journal_start import settle

            settle(self._store, self._s, segment)

    def free(self, journal: bytes, ranges: "list[tuple[int, int]]") -> int:
        """Let go of delivered records; how many were held until now. Idempotent.

        ranges: (first, last) seqs, as the gateway acknowledged them.
        """
        s = self._s
        count = 0
        for first, last in ranges:
            if journal == s.journal and last >= s.next_seq:
                # The gateway has a record that this flash never wrote under this id:
                # it was restored from a copy, or there are two of it.
                s.doubt = True
            for segment in s.segments():
                if (
                    segment.journal == journal
                    and segment.pending
                    and first <= segment.last
                    and last >= segment.first
                ):
                    count += self._log.free(segment, first, last)
        self._log.tidy()
        return count

    # -- quarantine ---------------------------------------------------------

    def quarantine(self, ref: Ref, reason: int) -> None:
        """Keep a record that the gateway refused, out of the way of the others.

        reason: the gateway's, 0 to 255. JournalError when it is not held, StoreError.
        """
        from edge_agent.journal_quarantine import keep

        keep(self._log, ref, reason, self.read(ref))
        self.free(ref.journal, [(ref.seq, ref.seq)])

    def quarantined(self, limit: int = 32) -> "list[tuple[Ref, int]]":
        """(ref, reason) of refused records, oldest first. `read` takes these refs."""
        from edge_agent.journal_quarantine import listed

        return listed(self._log, limit)

    def clear_quarantine(self) -> int:
        """Throw the quarantined records away; how many there were. StoreError."""
        from edge_agent.journal_quarantine import clear

        return clear(self._log)

    # -- the rest -----------------------------------------------------------

    def mint(self) -> bytes:
        """Give new records a new journal id; the id. Held records keep theirs. StoreError.

        Frames sealed under the old id are still taken, when `append` is told the id.
        """
        s = self._s
        old, doubt = s.journal, s.doubt
        self._log.new_id(self._entropy)
        try:
            self._log.save()
        except StoreError:
            s.journal, s.doubt = old, doubt
            raise
        self._ids = [s.journal] + self._ids[:3]
        return s.journal

    def save(self) -> None:
        """Save the state now. StoreError."""
        self._log.save()

    def close(self) -> None:
        """Make everything durable and let go of the store. StoreError."""
        try:
            if self._batch:
                self.sync()
            self.save()
        finally:
            self._store.close()

    def _tick(self, uptime_s: int) -> None:
        self._log.age = min(max(self._log.age, self._base + uptime_s), _NEVER)
