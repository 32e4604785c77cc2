"""Records that the gateway refused: kept, counted, listed, and bounded.

They live in a chain of their own, two segments by default; when it is full the older
segment goes, counted. In this chain a record is known by a number of its own, so that
numbers rise, and its body begins with the identity it was refused under:

    journal id (4), seq u32, reason u8, frame
"""

from edge_agent.journal_log import Log
from edge_agent.journal_quota import Entry
from edge_agent.journal_state import REFUSED
from edge_agent.segment import HEADER_BYTES, QUARANTINE, QUARANTINE_BYTES, Ref, read_record, walk

_ALL = 1 << 30


def keep(log: Log, ref: Ref, reason: int, frame: bytes) -> None:
    """Make a durable copy, unless there is one already. StoreError."""
    for known, _ in listed(log, _ALL):
        if known.journal == ref.journal and known.seq == ref.seq:
            return
    body = ref.journal + ref.seq.to_bytes(4, "big") + bytes([reason]) + frame
    journal = log.state.journal
    segment = log.writable(QUARANTINE, Entry(0, body, QUARANTINE, 0, log.age, 0, journal), [])
    number = segment.last + 1
    log.write(segment, [Entry(number, body, QUARANTINE, 0, log.age, 0, journal)])


def listed(log: Log, limit: int) -> "list[tuple[Ref, int]]":
    """(ref, reason), oldest first. The refs name the identity that was refused."""
    out: list[tuple[Ref, int]] = []
    for segment in log.state.chains[QUARANTINE]:
        for r in walk(log.store, segment, HEADER_BYTES, segment.length):
            if r is None:
                continue
            if len(out) >= limit:
                return out
            body = read_record(log.store, segment, r.offset, r.length, r.seq)
            if len(body) <= QUARANTINE_BYTES:
                continue
            seq = int.from_bytes(body[4:8], "big")
            length = r.length - QUARANTINE_BYTES
            out.append((Ref(body[:4], seq, QUARANTINE, segment.number, r.offset, length), body[8]))
    return out


def clear(log: Log) -> int:
    """Throw all of them away; how many there were. StoreError."""
    count = 0
    for segment in list(log.state.chains[QUARANTINE]):
        count += segment.count
        log.dispose(segment)
    log.state.drop(REFUSED, count)
    log.save()
    return count
