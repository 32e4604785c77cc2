"""Journal segments: what a segment file looks like, and how it is read back.

A segment is a header followed by records. Everything is big-endian.

    header  44 bytes: magic "QJS1", version, chain, 2 zero bytes, journal id, number,
            next seq, boot, age s, down counter, length of the segment before it, crc32
    record  length u16, crc32, seq u32, stamp u32, ttl u32, index u16, generation u8,
            flags u8, then `length` bytes of frame

The CRC of a record starts from a seed made of journal id, number and chain, so that
the remains of another segment, which a file system may show in a torn tail, are not
taken for records of this one. `index` counts the records of a segment, so that the
size of a hole is known. The flag FIRST marks the first record of each sync: a hole
with a FIRST behind it lies in data that had been synced.

A reader never believes a length that no CRC has confirmed, and never fails on
damaged bytes: it reports the hole and looks for the next record behind it.
"""

import binascii
import struct
from array import array
from collections import namedtuple

from edge_agent.errors import StoreError
from edge_agent.interfaces import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

VERSION = 1
MAX_FRAME = 512
# A quarantined frame has its journal id, seq and the reason in front.
QUARANTINE_BYTES = 9
MAX_BODY = MAX_FRAME + QUARANTINE_BYTES

HEADER_BYTES = 44
RECORD_BYTES = 22  # in front of the frame
MIN_RECORD = RECORD_BYTES + 1

QUARANTINE = 3  # the chain behind the three priorities
CHAINS = 4

FIRST = 1  # record flag: first of its sync

SEALED = 1  # segment flags
DAMAGED = 2
ANNOUNCED = 4  # a durable state names it

MAX_RANGES = 32  # freed ranges kept for one segment
_NO_RANGES: "list[int]" = []  # shared by all segments without frees, never changed
_BLOCK = 512  # bytes read at a time: a heap in pieces still has that much
_EIO = 5
_ENOENT = 2

_HEADER = ">4sBBH4sIIIIQI"
_RECORD = ">HIIIIHBB"

# offset: of the record in its file.  length: of the frame.
Record = namedtuple(
    "Record", ("offset", "length", "seq", "stamp", "ttl", "index", "generation", "flags")
)

# Where a record is. length: of the frame.  segment: 0 while it is in RAM only.
Ref = namedtuple("Ref", ("journal", "seq", "priority", "segment", "offset", "length"))

Header = namedtuple(
    "Header",
    ("chain", "journal", "number", "next_seq", "boot", "age", "counter", "previous_length"),
)


def segment_name(chain: int, number: int) -> str:
    return "%d-%08x" % (chain, number)


def left_name(name: str, dropped: bool) -> str:
    """The name of a segment that is let go before a full disk lets the state say so.

    dropped: by the quota; otherwise every record in it is freed.
    """
    return ("d" if dropped else "f") + name


def parse_name(name: str) -> "tuple[int, int] | None":
    """(chain, number) of a segment's file name; None for any other name."""
    if len(name) != 10 or name[1] != "-" or name[0] not in "0123":
        return None
    for c in name[2:]:
        if c not in "0123456789abcdef":
            return None
    return int(name[0]), int(name[2:], 16)


def pack_header(h: Header) -> bytes:
    head = struct.pack(
        _HEADER,
        b"QJS1",
        VERSION,
        h.chain,
        0,
        h.journal,
        h.number,
        h.next_seq,
        h.boot,
        h.age,
        h.counter,
        h.previous_length,
    )
    return head + struct.pack(">I", binascii.crc32(head))


def parse_header(data: bytes) -> "Header | None":
    """The header; None when the bytes are not one."""
    if len(data) < HEADER_BYTES:
        return None
    data = bytes(data[:HEADER_BYTES])
    if struct.unpack(">I", data[40:])[0] != binascii.crc32(data[:40]):
        return None
    f = struct.unpack(_HEADER, data[:40])
    if f[0] != b"QJS1" or f[1] != VERSION or f[2] >= CHAINS:
        return None
    return Header(f[2], f[4], f[5], f[6], f[7], f[8], f[9], f[10])


def pack_record(seed: int, r: Record, body: bytes) -> bytes:
    rest = struct.pack(">IIIHBB", r.seq, r.stamp, r.ttl, r.index, r.generation, r.flags)
    size = struct.pack(">H", r.length)
    crc = binascii.crc32(body, binascii.crc32(rest, binascii.crc32(size, seed)))
    return size + struct.pack(">I", crc) + rest + body


class Segment:
    """What is known of one segment; a few dozen bytes, however many records it holds.

    first, last: lowest and highest seq.  count: readable records.  freed_count: how
    many of them are freed.  length: bytes known to be good; 0 = not written yet.
    stamp: age of the first record.  generation: the lowest of all records.
    freed: flat list of seq ranges, first, last, first, last, ..., sorted, apart.
    """

    __slots__ = (
        "chain",
        "count",
        "first",
        "flags",
        "freed",
        "freed_count",
        "generation",
        "index",
        "journal",
        "last",
        "length",
        "next_index",
        "number",
        "skip",
        "stamp",
    )

    def __init__(self, chain: int, number: int, journal: bytes) -> None:
        self.chain = chain
        self.number = number
        self.journal = journal
        self.first = 0
        self.last = 0
        self.count = 0
        self.freed_count = 0
        self.length = 0
        self.stamp = 0
        self.generation = 255
        self.flags = 0
        self.next_index = 0
        self.freed: list[int] = _NO_RANGES
        # In RAM only: the seqs of the records, built when needed, and where the first
        # record is that is not freed.
        self.index: array[int] | None = None
        self.skip = 0

    @property
    def seed(self) -> int:
        """Where the CRC of this segment's records starts."""
        return binascii.crc32(self.journal + struct.pack(">IB", self.number, self.chain))

    @property
    def name(self) -> str:
        return segment_name(self.chain, self.number)

    @property
    def pending(self) -> int:
        return self.count - self.freed_count

    @property
    def sealed(self) -> bool:
        return self.flags & SEALED != 0

    def add(self, record: Record) -> None:
        """Take note of a record that was read or written behind the others."""
        if not self.count:
            self.first = record.seq
            self.stamp = record.stamp
        self.last = record.seq
        self.count += 1
        self.next_index = record.index + 1
        self.generation = min(self.generation, record.generation)
        self.length = record.offset + RECORD_BYTES + record.length
        if self.index is not None:
            self.index.append(record.seq)

    def is_freed(self, seq: int) -> bool:
        ranges = self.freed
        for i in range(0, len(ranges), 2):
            if seq <= ranges[i + 1]:
                return seq >= ranges[i]
        return False

    def floor(self) -> int:
        """No seq below this one is held here; it may be lower than the lowest held."""
        if self.freed and self.freed[0] <= self.first:
            return self.freed[1] + 1
        return self.first

    def free(self, first: int, last: int) -> int:
        """Free the records from seq `first` to `last`; how many were not freed before.

        Needs `index` unless the range covers the segment. When the ranges do not fit
        any more nothing is freed: the record is then sent again and found a duplicate.
        """
        if first <= self.first and last >= self.last:
            fresh = self.pending
            self.freed = [self.first, self.last]
            self.freed_count = self.count
            return fresh
        index = self.index
        if index is None:
            return 0
        low = _bisect(index, first)
        high = _bisect(index, last + 1)
        fresh = 0
        for i in range(low, high):
            if not self.is_freed(index[i]):
                fresh += 1
        if not fresh:
            return 0
        # Seqs between two records of this segment belong to other chains: taking
        # them in lets neighbouring ranges touch.
        first = index[low - 1] + 1 if low else self.first
        last = index[high] - 1 if high < len(index) else self.last
        merged = _merge(self.freed, first, last)
        if len(merged) > 2 * MAX_RANGES:
            return 0
        self.freed = merged
        self.freed_count += fresh
        return fresh


def _bisect(values: "array[int]", wanted: int) -> int:
    """Index of the first value >= wanted."""
    low = 0
    high = len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


def _merge(ranges: "list[int]", first: int, last: int) -> "list[int]":
    out: list[int] = []
    i = 0
    while i < len(ranges) and ranges[i + 1] + 1 < first:
        out += ranges[i : i + 2]
        i += 2
    while i < len(ranges) and ranges[i] <= last + 1:
        first = min(first, ranges[i])
        last = max(last, ranges[i + 1])
        i += 2
    out += [first, last]
    out += ranges[i:]
    return out


def read_bytes(store: Store, name: str, offset: int, length: int) -> bytes:
    """Bytes of a file. What the medium cannot read is damage, not failure: zeros."""
    try:
        return store.read(name, offset, length)
    except StoreError as error:
        if error.code == _EIO:
            return bytes(length)
        if error.code == _ENOENT:
            return b""
        raise


class _Window:
    """A file read block by block."""

    def __init__(self, store: Store, name: str, end: int) -> None:
        self._store = store
        self._name = name
        self.end = end
        self._start = 0
        self._data = b""

    def get(self, offset: int, length: int) -> memoryview:
        """`length` bytes from `offset`, fewer where the file ends."""
        at = offset - self._start
        if at < 0 or at + length > len(self._data):
            want = min(max(length, _BLOCK), self.end - offset)
            self._start = offset
            self._data = b""  # not both in the heap
            self._data = read_bytes(self._store, self._name, offset, want)
            if len(self._data) < want:
                self.end = offset + len(self._data)  # the file is shorter than thought
            at = 0
        return memoryview(self._data)[at : at + length]


def _record_at(window: _Window, offset: int, seed: int) -> "Record | None":
    if offset + MIN_RECORD > window.end:
        return None
    head = window.get(offset, RECORD_BYTES)
    if len(head) < RECORD_BYTES:
        return None
    length = head[0] << 8 | head[1]
    if not 0 < length <= MAX_BODY or offset + RECORD_BYTES + length > window.end:
        return None
    data = window.get(offset, RECORD_BYTES + length)
    if len(data) < RECORD_BYTES + length:
        return None
    f = struct.unpack(_RECORD, data[:RECORD_BYTES])
    if binascii.crc32(data[6:], binascii.crc32(data[:2], seed)) != f[1]:
        return None
    return Record(offset, f[0], f[2], f[3], f[4], f[5], f[6], f[7])


def walk(store: Store, segment: Segment, offset: int, end: int) -> "Iterator[Record | None]":
    """Every good record from `offset` to `end`, oldest first; None for each hole.

    Behind a hole every byte is tried as the start of a record: the CRC decides.
    """
    window = _Window(store, segment.name, end)
    seed = segment.seed
    seq = 0
    while offset < end:
        record = _record_at(window, offset, seed)
        if record is None or record.seq <= seq:
            yield None
            offset += 1
            while offset < window.end:
                record = _record_at(window, offset, seed)
                if record is not None and record.seq > seq:
                    break
                offset += 1
            if offset >= window.end:
                return
            assert record is not None
        seq = record.seq
        yield record
        offset += RECORD_BYTES + record.length


def read_record(store: Store, segment: Segment, offset: int, length: int, seq: int) -> bytes:
    """The body of one record; empty when it is not there intact. seq: -1 for any."""
    data = read_bytes(store, segment.name, offset, RECORD_BYTES + length)
    if len(data) != RECORD_BYTES + length:
        return b""
    f = struct.unpack(_RECORD, data[:RECORD_BYTES])
    if f[0] != length or seq not in (-1, f[2]):
        return b""
    view = memoryview(data)
    if binascii.crc32(view[6:], binascii.crc32(view[:2], segment.seed)) != f[1]:
        return b""
    return bytes(view[RECORD_BYTES:])
