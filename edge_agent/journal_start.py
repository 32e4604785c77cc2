"""Starting a journal: from what is on the medium to a `State`, without writing anything.

Usually the newer state slot tells all but what was appended since it was written.
That can only be in the newest segment of each chain, whose name the state knows, so
start-up reads two small files and the ends of at most four segments, whatever the
backlog, and lists no directory. In doubt (a slot is unreadable) the names behind the
newest known ones are tried as well. Only when both slots are unreadable is the
directory listed and every segment read.

What is found, and what it means:

- a tail that ends in the middle of a record: a sync was cut. The segment ends at its
  last good record. The seqs that the torn bytes might have held are skipped.
- seqs that no record has, skipped or lost with the batch in RAM: counted and named like
  drops (reason SKIPPED), so that the gateway does not take them for lost.
- a hole with a record of a later sync behind it: synced data was damaged. What is
  readable stays deliverable, the lost records are counted.
- a slot unreadable, or a file shorter than the state says: identities may have been
  used that are not known any more. next_seq jumps ahead and `doubt` asks for a new
  journal id.
"""

from edge_agent.interfaces import Store
from edge_agent.journal_state import CORRUPT, QUOTA, SKIPPED, SLOTS, UNREADABLE, State, load
from edge_agent.segment import (
    CHAINS,
    DAMAGED,
    FIRST,
    HEADER_BYTES,
    MIN_RECORD,
    QUARANTINE,
    SEALED,
    Header,
    Segment,
    left_name,
    parse_header,
    parse_name,
    read_bytes,
    segment_name,
    walk,
)

BOOT_JUMP = 1 << 10
_MAX_PROBES = 64


def start(store: Store, jump: int = 0) -> "tuple[State, int, list[str]]":
    """(state, its slot, names of files that may be in a cache only and need a sync).

    jump: how far seq moves on when it is not known which were used; more than fit
    into the segments that can have come and gone between two saved states.
    """
    state, slot, doubt, files = load(store)
    if state is None:
        return _rebuild(store, files, jump), 1, []
    low = state.next_seq
    if doubt:
        state.doubt = True
        state.skip = jump
    _drop_removed(state)
    touched = [SLOTS[slot]]
    for chain in range(CHAINS):
        _probe(store, state, chain)
        segments = state.chains[chain]
        for i in range(len(segments)):
            if segments[i].sealed:
                continue
            if store.size(segments[i].name) < 0 and was_let_go(store, segments[i]) is not None:
                # How far it had got is not known: its last numbers were used as well.
                state.doubt = True
                state.skip = max(state.skip, jump)
            limit = -1
            if i + 1 < len(segments):
                # The next header says how much of this one was ever believed.
                header = _header(store, segments[i + 1])
                limit = header.previous_length if header is not None else -1
            if limit == 0:
                # It was gone before the next one was made: all freed, or dropped and counted.
                segments[i].count = segments[i].freed_count = 0
            elif read_tail(store, state, segments[i], limit):
                touched.append(segments[i].name)
            if i + 1 < len(segments):
                segments[i].flags |= SEALED
    _finish(state, low)
    return state, slot, touched


def _drop_removed(state: State) -> None:
    gone = [pair[0] for pair in state.removing]
    for chain in range(CHAINS):
        state.chains[chain] = [s for s in state.chains[chain] if s.name not in gone]


def _header(store: Store, segment: Segment) -> "Header | None":
    header = parse_header(read_bytes(store, segment.name, 0, HEADER_BYTES))
    if header is None or header.chain != segment.chain or header.number != segment.number:
        return None
    return header


def _probe(store: Store, state: State, chain: int) -> None:
    """Adopt segments that are newer than the state."""
    for _ in range(_MAX_PROBES):
        number = state.next_number[chain]
        segment = Segment(chain, number, state.journal)
        if store.size(segment.name) < 0:
            return
        state.next_number[chain] = number + 1
        header = _header(store, segment)
        if header is not None:
            segment = Segment(chain, number, header.journal)
            state.next_seq = max(state.next_seq, header.next_seq)
        state.chains[chain].append(segment)
        state.doubt = True


def read_tail(store: Store, state: State, segment: Segment, limit: int = -1) -> bool:
    """Take in the records behind what the state knows of; True when there were any.

    limit: bytes of the file that count, -1 for all of them.
    """
    size = store.size(segment.name)
    if 0 <= limit < size:
        size = limit
    if size <= 0 and segment.length == 0:
        return False  # announced, never written
    if size < segment.length:
        settle(store, state, segment)
        return False
    offset = segment.length
    if offset == 0:
        header = _header(store, segment)
        if header is not None and header.journal == segment.journal:
            offset = HEADER_BYTES
    known = segment.count
    torn = damaged = False
    missing = hole = 0  # records missed so far and not yet explained, seq of the first
    last = segment.last
    for record in walk(store, segment, offset, size):
        if record is None:
            torn = True
            continue
        if record.index > segment.next_index:
            missing += record.index - segment.next_index
            hole = hole or last + 1
        if torn:
            segment.flags |= DAMAGED
            if record.flags & FIRST and record.index:
                # A later sync began behind the hole: the earlier one had returned.
                state.lose(segment, CORRUPT, missing, hole, record.seq - 1)
                torn = False
                damaged = True
                missing = hole = 0
        segment.add(record)
        last = record.seq
        if segment.chain != QUARANTINE:
            state.found.append(last)
        state.age = max(state.age, record.stamp)
    if damaged:
        state.corrupt += 1
        state.doubt = True
    if torn:
        state.torn += 1
        if segment.chain != QUARANTINE:
            # No seq that the torn bytes may have carried is used again.
            state.skip += size // MIN_RECORD
    if torn or segment.flags & DAMAGED:
        segment.flags |= SEALED
    if not segment.count:
        segment.length = 0  # nothing of it is believed: it is written again
        segment.flags &= ~(SEALED | DAMAGED)
    return segment.count > known


def _finish(state: State, low: int) -> None:
    """Set the next seq, and name the numbers from `low` on that no record has.

    low: -1 when it is not known which numbers were used: only those skipped now are named.
    """
    for segment in state.segments():
        if segment.count:
            state.next_seq = max(state.next_seq, segment.last + 1)
    state.next_seq = max(state.next_seq, state.top)
    low = state.next_seq if low < 0 else low
    state.next_seq += state.skip
    for seq in sorted(state.found) + [state.next_seq]:
        if seq > low:
            state.drop(SKIPPED, seq - low, low, seq - 1)
        low = max(low, seq + 1)
    state.top = state.next_seq
    state.skip = 0
    state.found = []


def _rebuild(store: Store, files: int, jump: int) -> State:
    """Both slots are unreadable or missing: read everything there is."""
    state = State()
    found: list[tuple[int, int]] = []
    for name in store.names():
        parsed = parse_name(name)
        if parsed is not None:
            found.append(parsed)
        elif name[:1] in "df" and parse_name(name[1:]) is not None:
            state.removing.append((name, ""))
    if not found and not files:
        return state  # an empty store
    found.sort()
    boot = 0
    ids: list[bytes] = []
    headers: list[Header | None] = []
    for chain, number in found:
        header = _header(store, Segment(chain, number, state.journal))
        headers.append(header)
        if header is not None:
            boot = max(boot, header.boot)
            state.next_seq = max(state.next_seq, header.next_seq)
            state.age = max(state.age, header.age)
            state.counter = max(state.counter, header.counter)
            if header.journal not in ids:
                ids.append(header.journal)
    for i in range(len(found)):
        chain, number = found[i]
        header = headers[i]
        state.next_number[chain] = number + 1
        aside = ""
        # Without a header the CRC tells which journal id the records belong to.
        for journal in [header.journal] if header is not None else ids:
            segment = Segment(chain, number, journal)
            if _holds_records(store, segment):
                limit = -1
                if i + 1 < len(found) and found[i + 1] == (chain, number + 1):
                    following = headers[i + 1]
                    limit = following.previous_length if following is not None else -1
                read_tail(store, state, segment, limit)
                if segment.count:
                    segment.flags |= SEALED
                    state.chains[chain].append(segment)
                break
        else:
            if header is None:
                state.corrupt += 1
                aside = "bad-%d" % state.next_bad
                state.next_bad += 1
        if not state.chains[chain] or state.chains[chain][-1].number != number:
            state.removing.append((segment_name(chain, number), aside))
    state.found = []
    state.skip += jump
    _finish(state, -1)
    if found:
        state.boot = boot + BOOT_JUMP
    if found or files == 2:
        state.lost_states = 1
    state.doubt = True
    return state


def _holds_records(store: Store, segment: Segment) -> bool:
    for record in walk(store, segment, HEADER_BYTES, max(0, store.size(segment.name))):
        if record is not None:
            return True
    return False


def was_let_go(store: Store, segment: Segment) -> "bool | None":
    """Whether the segment was let go on a full disk: True = dropped, False = all freed."""
    for dropped in (False, True):
        if store.size(left_name(segment.name, dropped)) >= 0:
            return dropped
    return None


def settle(store: Store, state: State, segment: Segment) -> None:
    """A record that should be in the segment cannot be read: find out what is left.

    What is readable stays deliverable; what is lost is counted and noted. Afterwards
    `segment.pending` is the number of records that can still be delivered.
    """
    before = segment.pending
    segment.flags |= SEALED
    segment.index = None
    segment.skip = 0
    size = store.size(segment.name)
    if size < 0:
        dropped = was_let_go(store, segment)
        segment.count = segment.freed_count = 0
        if dropped is None:
            state.lose(segment, UNREADABLE, before, segment.first, segment.last)
            state.doubt = True
        elif dropped:
            state.lose(segment, QUOTA, before, segment.first, segment.last)
        return
    count = freed = expect = lowest = hole = end = 0
    edge = segment.first - 1
    for record in walk(store, segment, HEADER_BYTES, min(size, segment.length)):
        if record is None:
            continue
        if record.index > expect:
            hole = hole or edge + 1
            end = record.seq - 1
        lowest = lowest or record.seq
        expect = record.index + 1
        edge = record.seq
        count += 1
        freed += segment.is_freed(edge)
    if expect < segment.next_index:
        hole = hole or edge + 1
        end = segment.last
    segment.count = count
    segment.freed_count = freed
    state.lose(segment, CORRUPT, before - segment.pending, hole, end)
    if count:
        segment.first = lowest
        segment.last = edge
    if not segment.flags & DAMAGED:
        segment.flags |= DAMAGED
        state.corrupt += 1
    state.doubt = True
