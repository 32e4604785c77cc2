"""The journal: outcomes on their way, safe from power cuts.

Records wait in RAM until `sync`; what `sync` returned is durable. Each priority has
its own chain of segments (`segment.py`), the quarantine is a fourth. A record is held
until `free` names its journal id and seq; a segment goes when all its records are
freed, or when the quota drops it. Everything else that must outlive a power cut is in
the state (`journal_state.py`), which is saved

- when a segment is begun, before its first byte is written;
- when a segment goes, before its file is removed;
- after every 32 frees, at start-up, and when somebody asks.

Frees that were not saved yet are forgotten in a power cut: those records are sent
again and found duplicates. A seq is given to one frame only, for ever: see
`journal_start.py` for how that survives damage.

When a write fails (a full disk, say) the batch stays in RAM. What may have landed of
it is not believed: the segment ends at its last good record, and the next `sync`
writes the batch to a new one.
"""

from array import array
from collections import namedtuple

from edge_agent.errors import ConfigError, JournalError, JournalFull, StoreError
from edge_agent.interfaces import Entropy, Store
from edge_agent.journal_start import BOOT_JUMP, settle, start
from edge_agent.journal_state import (
    COALESCED,
    EXPIRED,
    FULL,
    MAX_SEGMENTS,
    QUOTA,
    REFUSED,
    State,
    save,
)
from edge_agent.segment import (
    DAMAGED,
    FIRST,
    HEADER_BYTES,
    MAX_BODY,
    MAX_FRAME,
    MIN_RECORD,
    QUARANTINE,
    QUARANTINE_BYTES,
    RECORD_BYTES,
    SEALED,
    Header,
    Record,
    Segment,
    pack_header,
    pack_mark,
    pack_record,
    parse_name,
    read_record,
    walk,
)

PRIORITIES = 3
MAX_BATCH = 64  # records in RAM
FREES_PER_SAVE = 32
BAD_KEPT = 2  # damaged segments kept for a look
MAX_INDEXES = 4  # segments whose seqs are kept in RAM, 4 bytes a record
DROP_OLDEST = "drop-oldest"
DROP_NEW = "drop-new"
_WRITE = 2048  # bytes handed to the store at a time
_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT
_NEVER = 0xFFFFFFFF

# Where a record is. length: of the frame.  segment: 0 while it is in RAM only.
Ref = namedtuple("Ref", ("journal", "seq", "priority", "segment", "offset", "length"))

_Entry = namedtuple("_Entry", ("seq", "body", "priority", "ttl", "stamp", "generation", "journal"))


class Journal:
    """Use `Journal.open`. One user at a time; nothing here waits."""

    def __init__(
        self,
        store: Store,
        entropy: Entropy,
        segment_bytes: int,
        max_segments: int,
        reserve: "tuple[int, ...]",
        policy: "tuple[str, ...]",
        quarantine_segments: int,
    ) -> None:
        self._store = store
        self._entropy = entropy
        self._segment_bytes = segment_bytes
        self._quarantine_segments = quarantine_segments
        self._data_max = max_segments - quarantine_segments - BAD_KEPT
        self._reserve = reserve
        self._policy = policy
        self._batch: list[_Entry] = []
        self._done: list[Ref] = []  # durable, not yet returned by sync
        self._frees = 0
        self._saved = False
        self._dropped: list[str] = []  # names that the quota, not an ack, took
        self._indexed: list[Segment] = []
        self._floors: dict[bytes, tuple[int, int]] = {}
        jump = 24 * segment_bytes // MIN_RECORD
        self._s, self._slot, touched = start(store, jump)
        self._base = self._age = self._s.age
        # What an earlier process wrote but did not sync may be in a cache only.
        for name in touched:
            store.sync(name)
        self._ids: list[bytes] = []

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
    ) -> "Journal":
        """Open the journal in `store`, or make one when there is none.

        segment_bytes: 1024 to 1 MiB.  max_segments: the quota, quarantine and two
        damaged segments included.  reserve: per priority, segments that the others
        cannot take.  policy: per priority, what happens when there is no room.

        ConfigError; StoreError when the store cannot be used (a full one can: see
        `sync`); JournalError when a newer version wrote the journal.
        """
        if not 1024 <= segment_bytes <= 1 << 20:
            raise ConfigError("must be 1024 to 1048576", "journal.segment_bytes")
        if len(reserve) != PRIORITIES or min(reserve) < 0:
            raise ConfigError("needs three numbers", "journal.reserve")
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
        journal = cls(
            store, entropy, segment_bytes, max_segments, reserve, policy, quarantine_segments
        )
        journal._boot()
        return journal

    def _boot(self) -> None:
        s = self._s
        s.boot += 1
        if s.doubt or not s.minted:
            self._new_id()
        self._ids = [s.journal]
        self._floors = self._floors_now()
        self._clear_empty()
        try:
            self._sweep()
            self.save()
        except StoreError as error:
            # A full disk must not keep the backlog from being delivered.
            if error.code not in _NO_SPACE:
                raise

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
        """The newest ranges of seqs that contain dropped records, oldest first; at most 8."""
        return list(self._s.gone)

    def held(self) -> "list[tuple[bytes, int, int]]":
        """(journal id, floor, next seq) of each id that still has records; the current first.

        No record below the floor will ever be sent again: it follows the saved state,
        not frees that a power cut would undo.
        """
        now = self._floors_now()
        out: list[tuple[bytes, int, int]] = []
        for journal in [self._s.journal] + sorted(set(now) | set(self._floors)):
            if out and journal == self._s.journal:
                continue
            floor, following = now.get(journal, (_NEVER, 0))
            saved = self._floors.get(journal, (_NEVER, 0))
            if journal == self._s.journal:
                following = self._s.next_seq
            out.append((journal, min(floor, saved[0]), max(following, saved[1])))
        return out

    def _floors_now(self) -> "dict[bytes, tuple[int, int]]":
        floors = {self._s.journal: (self._s.next_seq, self._s.next_seq)}
        pairs = [(s.journal, s.floor(), s.last + 1) for s in self._s.segments() if s.pending]
        pairs += [(e.journal, e.seq, e.seq + 1) for e in self._batch]
        for journal, floor, following in pairs:
            old = floors.get(journal, (_NEVER, 0))
            floors[journal] = (min(old[0], floor), max(old[1], following))
        return floors

    def oldest_generation(self) -> "int | None":
        """The oldest key generation that a held record may have; None when none is held."""
        found = [s.generation for s in self._s.segments() if s.pending]
        found += [e.generation for e in self._batch]
        return min(found) if found else None

    def stats(self, uptime_s: int = 0) -> "dict[str, object]":
        """Figures for people and for the hello frame. Reads one record per priority."""
        self._tick(uptime_s)
        s = self._s
        pending = [sum([g.pending for g in s.chains[p]]) for p in range(PRIORITIES)]
        for e in self._batch:
            pending[e.priority] += 1
        oldest = self._age
        for p in range(PRIORITIES):
            for record in self._pending(p):
                oldest = min(oldest, record.stamp)
                break
        for e in self._batch:
            oldest = min(oldest, e.stamp)
        return {
            "pending": pending,
            "unsynced": len(self._batch),
            "bytes": sum([g.length for chain in s.chains for g in chain]),
            "segments": [len(chain) for chain in s.chains],
            "oldest_s": self._age - oldest,
            "drops": self.drops,
            "quarantined": sum([g.count for g in s.chains[QUARANTINE]]),
            "corrupt": s.corrupt,
            "torn": s.torn,
            "lost_states": s.lost_states,
            "ranges": sum([len(g.freed) // 2 for g in s.segments()]),
            "boot": s.boot,
            "next_seq": s.next_seq,
        }

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
        be the one before the last `mint`.

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
        if journal is None:
            journal = s.journal
        elif journal not in self._ids:
            raise JournalError("an unknown journal id", "journal")
        entry = _Entry(seq, bytes(frame), priority, ttl_s, self._age, generation, journal)
        batch = [e for e in self._batch if e.seq != seq]
        known = len(batch) < len(self._batch)
        if not known and seq != s.next_seq:
            raise JournalError(
                "seq %d is durable already or out of order, next is %d" % (seq, s.next_seq),
                "journal",
            )
        if s.next_seq >= _NEVER:
            raise JournalError("sequence numbers are used up", "journal", "Reformat the flash")
        batch.append(entry)
        batch.sort(key=lambda e: e.seq)
        if len(batch) > MAX_BATCH or not self._feasible(batch):
            s.drop(FULL, 1)
            raise JournalFull(
                "no room for priority %d" % priority,
                "journal",
                "Nothing that was taken before is lost; deliver the backlog or raise "
                "journal.max_segments",
            )
        self._batch = batch
        if known:
            s.drop(COALESCED, 1)
        else:
            s.next_seq = seq + 1
        return Ref(journal, seq, priority, 0, 0, len(frame))

    def sync(self, uptime_s: int = 0) -> "list[Ref]":
        """Make the batch durable; the refs of its records, by seq.

        On StoreError the rest of the batch stays in RAM: call again. A record may
        already be durable then; the next successful call returns its ref as well.
        """
        self._tick(uptime_s)
        if self._batch and not self._saved:
            self.save()
        for priority in range(PRIORITIES):
            while True:
                entries = [e for e in self._batch if e.priority == priority]
                if not entries:
                    break
                segment = self._writable(priority, entries[0])
                room = self._segment_bytes - max(segment.length, HEADER_BYTES)
                take = []
                for e in entries:
                    room -= RECORD_BYTES + len(e.body)
                    if room < 0 or e.journal != segment.journal:
                        break
                    take.append(e)
                self._done += self._write(segment, take)
                last = take[-1].seq
                self._batch = [e for e in self._batch if e.priority != priority or e.seq > last]
        done = sorted(self._done, key=lambda ref: ref.seq)
        self._done = []
        return done

    def _writable(self, chain: int, entry: _Entry) -> Segment:
        """The segment that takes the entry; a new one when it does not fit."""
        head = self._head(chain)
        if head is not None and head.journal == entry.journal:
            used = max(head.length, HEADER_BYTES) + RECORD_BYTES + len(entry.body)
            if used <= self._segment_bytes:
                if not head.announced:
                    self.save()
                return head
        if head is not None:
            head.flags |= SEALED
        self._clear_empty()
        self._make_room(chain)
        s = self._s
        segment = Segment(chain, s.next_number[chain], entry.journal)
        s.next_number[chain] += 1
        s.chains[chain].append(segment)
        self.save()
        return segment

    def _head(self, chain: int) -> "Segment | None":
        segments = self._s.chains[chain]
        if segments and not segments[-1].sealed:
            return segments[-1]
        return None

    def _write(self, segment: Segment, entries: "list[_Entry]") -> "list[Ref]":
        """Write and sync records; on failure nothing of them is believed."""
        s = self._s
        fresh = segment.length == 0
        out = bytearray()
        offset = segment.length
        if fresh:
            chain = s.chains[segment.chain]
            before = chain[-2].length if len(chain) > 1 else 0
            out += pack_header(
                Header(
                    segment.chain,
                    segment.journal,
                    segment.number,
                    s.next_seq,
                    s.boot,
                    self._age,
                    s.counter,
                    before,
                )
            )
            offset = HEADER_BYTES
        records: list[Record] = []
        flags = FIRST
        begun = not fresh
        # Sealed unless the sync returns: a failed write leaves an unknown tail.
        segment.flags |= SEALED
        try:
            for e in entries:
                index = segment.next_index + len(records)
                out += pack_record(
                    segment.seed, e.seq, e.stamp, e.ttl, index, e.generation, flags, e.body
                )
                records.append(
                    Record(offset, len(e.body), e.seq, e.stamp, e.ttl, index, e.generation, flags)
                )
                flags = 0
                offset += RECORD_BYTES + len(e.body)
                if len(out) >= _WRITE or e is entries[-1]:
                    if begun:
                        self._store.append(segment.name, bytes(out))
                    else:
                        self._store.write(segment.name, bytes(out))
                    begun = True
                    out = bytearray()
            self._store.sync(segment.name)
        except StoreError:
            if fresh:
                segment.flags &= ~SEALED  # it is written anew, from its first byte
            raise
        segment.flags &= ~SEALED
        refs = []
        for r in records:
            segment.add(r)
            refs.append(
                Ref(segment.journal, r.seq, segment.chain, segment.number, r.offset, r.length)
            )
        return refs

    # -- room ---------------------------------------------------------------

    def _feasible(self, batch: "list[_Entry]") -> bool:
        """Whether the whole batch will find room when it is synced."""
        s = self._s
        total = len(s.segments())
        if total + len(batch) + sum(self._reserve) <= self._data_max:
            return True
        counts = []
        need = []
        for p in range(PRIORITIES):
            entries = [e for e in batch if e.priority == p]
            used = [g for g in s.chains[p] if g.pending]
            head = self._head(p)
            counts.append(len(used) + (1 if head and entries and not head.pending else 0))
            room = self._segment_bytes - max(head.length, HEADER_BYTES) if head else 0
            journal = head.journal if head else b""
            rolls = 0
            for e in entries:
                size = RECORD_BYTES + len(e.body)
                if size > room or e.journal != journal:
                    rolls += 1
                    room = self._segment_bytes - HEADER_BYTES
                    journal = e.journal
                room -= size
            need.append(rolls)
        for p in range(PRIORITIES):
            for _ in range(need[p]):
                victim = self._choose(p, counts)
                while victim is not None and victim >= 0:
                    counts[victim] -= 1
                    victim = self._choose(p, counts)
                if victim is None:
                    return False
                counts[p] += 1
        return True

    def _choose(self, priority: int, counts: "list[int]") -> "int | None":
        """Who gives way to a new segment: a priority, -1 = there is room, None = nobody."""
        unmet = 0
        for q in range(PRIORITIES):
            if q != priority:
                unmet += max(0, self._reserve[q] - counts[q])
        if sum(counts) + 1 + unmet <= self._data_max:
            return -1
        if self._policy[priority] == DROP_NEW:
            return None
        for q in (2, 1):
            if q > priority and counts[q] > self._reserve[q]:
                return q
        return priority if counts[priority] else None

    def _make_room(self, chain: int) -> None:
        s = self._s
        if chain == QUARANTINE:
            while len(s.chains[chain]) >= self._quarantine_segments:
                oldest = s.chains[chain][0]
                s.drop(REFUSED, oldest.count)
                self._dispose(oldest)
            return
        waiting = [e.priority for e in self._batch]
        for segment in s.segments():
            # A head whose records are all freed is kept open only while there is room.
            if not segment.pending and segment.chain not in waiting:
                self._dispose(segment)
        while True:
            victim = self._choose(chain, [len(s.chains[p]) for p in range(PRIORITIES)])
            if victim is None:
                raise JournalFull("no room for priority %d" % chain, "journal")
            if victim < 0:
                return
            oldest = s.chains[victim][0]
            s.drop(QUOTA, oldest.pending, oldest.floor(), oldest.last)
            self._dropped.append(oldest.name)
            self._dispose(oldest)

    def _clear_empty(self) -> bool:
        found = False
        for chain in self._s.chains:
            for segment in list(chain):
                if segment.sealed and not segment.pending:
                    self._dispose(segment)
                    found = True
        return found

    def _dispose(self, segment: Segment) -> None:
        """Take a segment out; its file goes once the state without it is saved."""
        s = self._s
        s.chains[segment.chain].remove(segment)
        if segment in self._indexed:
            self._indexed.remove(segment)
        aside = ""
        if segment.flags & DAMAGED:
            aside = "bad-%d" % s.next_bad
            if s.next_bad > BAD_KEPT:
                s.removing.append(("bad-%d" % (s.next_bad - BAD_KEPT), ""))
            s.next_bad += 1
        s.removing.append((segment.name, aside))

    def _sweep(self) -> None:
        """Remove or rename the files that the saved state no longer counts on."""
        s = self._s
        if not s.removing:
            return
        for name, aside in s.removing:
            if self._store.size(name) < 0:
                continue
            if aside:
                self._store.rename(name, aside)
            else:
                self._store.remove(name)
        self._store.sync_names()
        s.removing = []
        self._dropped = []

    def save(self) -> None:
        """Save the state now. StoreError."""
        try:
            self._write_state()
        except StoreError as error:
            if error.code not in _NO_SPACE or not self._reclaim():
                raise
            self._write_state()
        self._sweep()

    def _write_state(self) -> None:
        s = self._s
        s.age = self._age
        s.generation += 1
        floors = self._floors_now()
        save(self._store, s, 1 - self._slot)
        self._slot = 1 - self._slot
        self._floors = floors
        self._frees = 0
        self._saved = True
        for chain in s.chains:
            for segment in chain:
                segment.announced = True

    def _reclaim(self) -> bool:
        """Free space on a full disk: replace segments that are to go by a few bytes."""
        freed = False
        for name, _ in self._s.removing:
            parsed = parse_name(name)
            if parsed is None or self._store.size(name) <= HEADER_BYTES:
                continue
            mark = pack_mark(parsed[0], parsed[1], name in self._dropped)
            try:
                self._store.write(name, mark)
                self._store.sync(name)
                freed = True
            except StoreError:
                pass
        return freed

    # -- out ----------------------------------------------------------------

    def read(self, ref: Ref) -> bytes:
        """The frame of a durable record.

        JournalError when it is not there any more. When it is damaged the segment is
        set aside and counted (`stats`, `drops`); its other records stay deliverable.
        """
        for segment in self._s.chains[ref.priority]:
            if segment.number == ref.segment:
                break
        else:
            raise JournalError("record %d is not held" % ref.seq, "journal")
        seq, extra = ref.seq, 0
        if ref.priority == QUARANTINE:
            seq, extra = -1, QUARANTINE_BYTES
        body = read_record(self._store, segment, ref.offset, ref.length + extra, seq)
        if not body:
            self._damaged(segment)
            raise JournalError(
                "record %d is damaged" % ref.seq,
                segment.name,
                "It is counted; the flash may be wearing out",
            )
        return body[extra:]

    def _damaged(self, segment: Segment) -> None:
        settle(self._store, self._s, segment)
        if self._clear_empty():
            self._try_save()

    def _pending(self, priority: int) -> "list[Record]":
        """The oldest record of a priority that is not freed, as a list of at most one."""
        for segment in self._s.chains[priority]:
            if segment.pending:
                for record in walk(
                    self._store, segment, segment.skip or HEADER_BYTES, segment.length
                ):
                    if record is not None and not segment.is_freed(record.seq):
                        return [record]
        return []

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
        if self._frees >= FREES_PER_SAVE or self._clear_empty():
            self._try_save()
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
            if r.ttl and self._age - r.stamp >= r.ttl:
                if self._free_in(segment, r.seq, r.seq):
                    self._s.drop(EXPIRED, 1, r.seq, r.seq)
                continue
            out.append(
                Ref(segment.journal, r.seq, segment.chain, segment.number, r.offset, r.length)
            )
            if len(out) >= limit:
                return
        if whole and seen != pending:
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
                if segment.journal != journal or not segment.pending:
                    continue
                if first <= segment.last and last >= segment.first:
                    count += self._free_in(segment, first, last)
        if self._clear_empty() or self._frees >= FREES_PER_SAVE:
            self._try_save()
        return count

    def _free_in(self, segment: Segment, first: int, last: int) -> int:
        if segment.index is None and (first > segment.first or last < segment.last):
            self._build_index(segment)
        count = segment.free(first, last)
        self._frees += count
        return count

    def _build_index(self, segment: Segment) -> None:
        """Read the seqs of a segment into RAM, for the few that are being freed."""
        for _ in range(2):
            index = array("I")
            for record in walk(self._store, segment, HEADER_BYTES, segment.length):
                if record is not None:
                    index.append(record.seq)
            if len(index) == segment.count:
                break
            settle(self._store, self._s, segment)
        segment.index = index
        self._indexed.append(segment)
        if len(self._indexed) > MAX_INDEXES:
            self._indexed.pop(0).index = None

    def _try_save(self) -> None:
        """Save when possible: what is at stake is only that records are sent again."""
        try:
            self.save()
        except StoreError:
            self._frees = 0

    # -- quarantine ---------------------------------------------------------

    def quarantine(self, ref: Ref, reason: int) -> None:
        """Keep a record that the gateway refused, out of the way of the others.

        reason: the gateway's, 0 to 255. JournalError when it is not held, StoreError.
        """
        frame = self.read(ref)
        known = [(q.journal, q.seq) for q, _ in self.quarantined(_NEVER)]
        if (ref.journal, ref.seq) not in known:
            body = ref.journal + ref.seq.to_bytes(4, "big") + bytes([reason]) + frame
            entry = _Entry(0, body, QUARANTINE, 0, self._age, 0, self._s.journal)
            segment = self._writable(QUARANTINE, entry)
            number = segment.last + 1
            entry = _Entry(number, body, QUARANTINE, 0, self._age, 0, segment.journal)
            self._write(segment, [entry])
        self.free(ref.journal, [(ref.seq, ref.seq)])

    def quarantined(self, limit: int = 32) -> "list[tuple[Ref, int]]":
        """(ref, reason) of refused records, oldest first. `read` takes these refs."""
        out: list[tuple[Ref, int]] = []
        for segment in self._s.chains[QUARANTINE]:
            for r in walk(self._store, segment, HEADER_BYTES, segment.length):
                if r is None:
                    continue
                if len(out) >= limit:
                    return out
                body = read_record(self._store, segment, r.offset, r.length, r.seq)
                if len(body) <= QUARANTINE_BYTES:
                    continue
                seq = int.from_bytes(body[4:8], "big")
                length = r.length - QUARANTINE_BYTES
                ref = Ref(body[:4], seq, QUARANTINE, segment.number, r.offset, length)
                out.append((ref, body[8]))
        return out

    def clear_quarantine(self) -> int:
        """Throw the quarantined records away; how many there were. StoreError."""
        count = 0
        for segment in list(self._s.chains[QUARANTINE]):
            count += segment.count
            self._dispose(segment)
        self._s.drop(REFUSED, count)
        self.save()
        return count

    # -- the rest -----------------------------------------------------------

    def mint(self) -> bytes:
        """Give new records a new journal id; the id. Held records keep theirs. StoreError.

        Frames sealed under the old id are still taken, when `append` is told the id.
        """
        s = self._s
        old, doubt = s.journal, s.doubt
        self._new_id()
        try:
            self.save()
        except StoreError:
            s.journal, s.doubt = old, doubt
            raise
        self._ids = [s.journal] + self._ids[:3]
        return s.journal

    def _new_id(self) -> None:
        s = self._s
        known = [g.journal for g in s.segments()] + [bytes(4), s.journal]
        while s.journal in known:
            s.journal = self._entropy.bytes(4)
        s.doubt = False
        s.minted += 1

    def close(self) -> None:
        """Make everything durable and let go of the store. StoreError."""
        try:
            if self._batch:
                self.sync()
            self.save()
        finally:
            self._store.close()

    def _tick(self, uptime_s: int) -> None:
        self._age = max(self._age, self._base + uptime_s)


__all__ = (
    "BOOT_JUMP",
    "DROP_NEW",
    "DROP_OLDEST",
    "MAX_BATCH",
    "MAX_BODY",
    "Journal",
    "Ref",
    "State",
)
