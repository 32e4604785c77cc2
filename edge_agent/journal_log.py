"""The journal's files: the state and the four chains of segments, kept in step.

Three rules keep a power cut harmless:

- a state that names a segment is durable before the segment's first byte is written;
- a state without a segment is durable before its file is removed;
- a segment ends at its last synced record when a write to it fails. What may have
  landed behind that is never read, and the batch goes to a new segment.
"""

from array import array

from edge_agent.errors import JournalFull, StoreError
from edge_agent.interfaces import Entropy, Store
from edge_agent.journal_quota import BAD_KEPT, PRIORITIES, Entry, Quota
from edge_agent.journal_state import QUOTA, REFUSED, save
from edge_agent.segment import (
    ANNOUNCED,
    DAMAGED,
    FIRST,
    HEADER_BYTES,
    MIN_RECORD,
    QUARANTINE,
    RECORD_BYTES,
    SEALED,
    Header,
    Record,
    Segment,
    left_name,
    pack_header,
    pack_record,
    parse_name,
    read_record,
    walk,
)

FREES_PER_SAVE = 32
MAX_INDEXES = 4  # segments whose seqs are kept in RAM, 4 bytes a record
_WRITE = 256  # bytes handed to the store at a time: a heap in pieces still has that much
_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT
_NEVER = 0xFFFFFFFF
NO_GENERATION = 256


class Log:
    """`state` is what is known, in RAM; `save` makes it durable."""

    def __init__(self, store: Store, quota: Quota) -> None:
        self.store = store
        self.quota = quota
        self.age = 0  # seconds; lower bound of the time since the first boot
        self.frees = 0  # since the last save
        self.saved = False  # this boot
        self.floors: dict[bytes, tuple[int, int]] = {}  # as of the last save
        self.generation = NO_GENERATION  # also
        self._dropped: list[str] = []  # names that the quota, not an ack, took
        self._indexed: list[Segment] = []
        from edge_agent.journal_start import start  # a board lets go of it again

        jump = 24 * quota.segment_bytes // MIN_RECORD
        self.state, self._slot, touched = start(store, jump)
        self.age = self.state.age
        # An earlier process may have been killed between a write and its sync.
        for name in touched:
            store.sync(name)

    def boot(self, entropy: Entropy, woken: int = 0) -> None:
        """Begin a boot: count it, make a new journal id when there is doubt, clean up.

        woken: the boot that goes on; it does when it is the last one, without doubt.
        """
        s = self.state
        if not woken or s.boot != woken or s.doubt or not s.minted:
            s.boot += 1
        if s.doubt or not s.minted:
            self.new_id(entropy)
        self.floors = self.floors_now()
        self.generation = self.generation_now()
        try:
            self._sweep()  # what the last state had still to do
            self.clear_empty()
            self.save()
        except StoreError as error:
            # A full disk must not keep the backlog from being delivered.
            if error.code not in _NO_SPACE:
                raise

    def new_id(self, entropy: Entropy) -> None:
        s = self.state
        known = [g.journal for g in s.segments()] + [bytes(4), s.journal]
        while s.journal in known:
            s.journal = entropy.bytes(4)
        s.doubt = False
        s.minted += 1

    def floors_now(self) -> "dict[bytes, tuple[int, int]]":
        """journal id -> (floor, next seq), of what is in segments."""
        s = self.state
        floors = {s.journal: (s.next_seq, s.next_seq)}
        for g in s.segments():
            if g.pending:
                old = floors.get(g.journal, (_NEVER, 0))
                floors[g.journal] = (min(old[0], g.floor()), max(old[1], g.last + 1))
        return floors

    def generation_now(self) -> int:
        """The oldest key generation of a record in segments; NO_GENERATION without any."""
        found = [g.generation for g in self.state.segments() if g.pending]
        return min(found) if found else NO_GENERATION

    # -- the state ----------------------------------------------------------

    def save(self) -> None:
        """Make the state durable, then let the files go that it no longer names."""
        try:
            self._write_state()
        except StoreError as error:
            if error.code not in _NO_SPACE or not self._reclaim():
                raise
            self._write_state()
        self._sweep()

    def try_save(self) -> None:
        """Save when possible: at stake is only that delivered records are sent again."""
        try:
            self.save()
        except StoreError:
            self.frees = 0

    def _write_state(self) -> None:
        s = self.state
        s.age = self.age
        s.generation += 1
        floors = self.floors_now()
        generation = self.generation_now()
        save(self.store, s, 1 - self._slot)
        self._slot = 1 - self._slot
        self.floors = floors
        self.generation = generation
        self.frees = 0
        self.saved = True
        for chain in s.chains:
            for segment in chain:
                segment.flags |= ANNOUNCED

    def _reclaim(self) -> bool:
        """Make room for the state on a full disk: empty the segments that are to go.

        They are renamed first, which is atomic: so a start that still has the old state
        knows that nothing is missing.
        """
        done = False
        for name, _ in self.state.removing:
            if parse_name(name) is None or self.store.size(name) < 0:
                continue
            left = left_name(name, name in self._dropped)
            try:
                self.store.rename(name, left)
                self.store.sync_names()
                self.store.write(left, b"")
                self.store.sync(left)
                done = True
            except StoreError:
                pass
        return done

    def _sweep(self) -> None:
        s = self.state
        if not s.removing:
            return
        for name, aside in s.removing:
            if self.store.size(name) < 0:
                for dropped in (False, True):
                    if self.store.size(left_name(name, dropped)) >= 0:
                        self.store.remove(left_name(name, dropped))
            elif aside:
                self.store.rename(name, aside)
            else:
                self.store.remove(name)
        self.store.sync_names()
        s.removing = []
        self._dropped = []

    # -- in -----------------------------------------------------------------

    def writable(self, chain: int, entry: Entry, waiting: "list[int]") -> Segment:
        """The segment that takes the entry; a new one when it does not fit.

        waiting: priorities with records in the batch; their open segments stay.
        """
        s = self.state
        chain_list = s.chains[chain]
        if chain_list and not chain_list[-1].sealed:
            head = chain_list[-1]
            used = max(head.length, HEADER_BYTES) + RECORD_BYTES + len(entry.body)
            if head.journal == entry.journal and used <= self.quota.segment_bytes:
                if not head.flags & ANNOUNCED:
                    self.save()
                return head
            head.flags |= SEALED
        self.clear_empty()
        if chain == QUARANTINE:
            self._trim_quarantine()
        else:
            self._make_room(chain, waiting)
        segment = Segment(chain, s.next_number[chain], entry.journal)
        s.next_number[chain] += 1
        s.chains[chain].append(segment)
        self._keep_index(segment, array("I"))
        self.save()
        return segment

    def write(self, segment: Segment, entries: "list[Entry]") -> "list[Record]":
        """Write and sync records. On StoreError none of them is believed."""
        fresh = segment.length == 0
        offset = segment.length
        out = bytearray()
        if fresh:
            out += self._header(segment)
            offset = HEADER_BYTES
        records: list[Record] = []
        seed = segment.seed
        flags = FIRST
        begun = not fresh
        # Sealed unless the sync returns: a failed write leaves an unknown tail.
        segment.flags |= SEALED
        try:
            for e in entries:
                r = Record(
                    offset,
                    len(e.body),
                    e.seq,
                    e.stamp,
                    e.ttl,
                    segment.next_index + len(records),
                    e.generation,
                    flags,
                )
                out += pack_record(seed, r, e.body)
                records.append(r)
                flags = 0
                offset += RECORD_BYTES + len(e.body)
                if len(out) >= _WRITE or len(records) == len(entries):
                    if begun:
                        self.store.append(segment.name, bytes(out))
                    else:
                        self.store.write(segment.name, bytes(out))
                    begun = True
                    out = bytearray()
            self.store.sync(segment.name)
        except StoreError:
            if fresh:
                segment.flags &= ~SEALED  # it is written anew, from its first byte
            raise
        segment.flags &= ~SEALED
        for r in records:
            segment.add(r)
            if segment.chain != QUARANTINE:
                self.state.top = max(self.state.top, r.seq + 1)
        return records

    def _header(self, segment: Segment) -> bytes:
        s = self.state
        chain = s.chains[segment.chain]
        return pack_header(
            Header(
                segment.chain,
                segment.journal,
                segment.number,
                s.next_seq,
                s.boot,
                self.age,
                s.counter,
                chain[-2].length if len(chain) > 1 else 0,
            )
        )

    # -- room ---------------------------------------------------------------

    def _make_room(self, priority: int, waiting: "list[int]") -> None:
        s = self.state
        for segment in s.segments():
            # A head whose records are all freed stays open only while nobody needs it.
            if not segment.pending and segment.chain not in waiting:
                self.dispose(segment)
        while True:
            counts = [len(s.chains[p]) for p in range(PRIORITIES)]
            victim = self.quota.choose(priority, counts)
            if victim is None:
                raise JournalFull("no room for priority %d" % priority, "journal")
            if victim < 0:
                return
            oldest = s.chains[victim][0]
            s.drop(QUOTA, oldest.pending, oldest.floor(), oldest.last)
            self._dropped.append(oldest.name)
            self.dispose(oldest)

    def _trim_quarantine(self) -> None:
        chain = self.state.chains[QUARANTINE]
        while len(chain) >= self.quota.quarantine_segments:
            self.state.drop(REFUSED, chain[0].count)
            self.dispose(chain[0])

    def clear_empty(self) -> bool:
        """Take out the sealed segments that hold nothing any more."""
        found = False
        for chain in self.state.chains:
            for segment in list(chain):
                if segment.sealed and not segment.pending:
                    self.dispose(segment)
                    found = True
        return found

    def dispose(self, segment: Segment) -> None:
        """Take a segment out; its file goes once the state without it is saved."""
        s = self.state
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

    # -- out ----------------------------------------------------------------

    def find(self, chain: int, number: int) -> "Segment | None":
        for segment in self.state.chains[chain]:
            if segment.number == number:
                return segment
        return None

    def body(self, segment: Segment, offset: int, length: int, seq: int) -> bytes:
        """The bytes of one record; empty when they are damaged, which is then dealt with."""
        body = read_record(self.store, segment, offset, length, seq)
        if not body:
            self.damaged(segment)
        return body

    def damaged(self, segment: Segment) -> None:
        from edge_agent.journal_start import settle

        settle(self.store, self.state, segment)
        if self.clear_empty():
            self.try_save()

    def free(self, segment: Segment, first: int, last: int) -> int:
        if segment.index is None and (first > segment.first or last < segment.last):
            self._build_index(segment)
        count = segment.free(first, last)
        self.frees += count
        return count

    def _build_index(self, segment: Segment) -> None:
        """Read the seqs of a segment into RAM, for the few that are being freed."""
        for _ in range(2):
            index = array("I")
            for record in walk(self.store, segment, HEADER_BYTES, segment.length):
                if record is not None:
                    index.append(record.seq)
            if len(index) == segment.count:
                break
            from edge_agent.journal_start import settle

            settle(self.store, self.state, segment)
        self._keep_index(segment, index)

    def _keep_index(self, segment: Segment, index: "array[int]") -> None:
        if segment in self._indexed:
            self._indexed.remove(segment)
        segment.index = index
        self._indexed.append(segment)
        if len(self._indexed) > MAX_INDEXES:
            self._indexed.pop(0).index = None

    def tidy(self) -> None:
        """After frees: remove what is empty, save when enough has changed."""
        if self.clear_empty() or self.frees >= FREES_PER_SAVE:
            self.try_save()
