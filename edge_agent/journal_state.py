"""The journal's state: what the segments cannot say themselves.

The state is one small block, written whole and in turn to the files `state0` and
`state1`; the readable one with the higher generation counts. It holds

- the current journal id, the seqs from which on records are not durable and were never
  durable, boot counter, age, down counter, settings version;
- a table of all segments with their good length, seq bounds and freed ranges;
- the next segment number of each chain;
- drop counters and the newest ranges of dropped seqs;
- file names that were still to be removed or set aside when it was written.

Byte by byte it is described in SPEC.md.
"""

import binascii
import struct

from edge_agent.errors import JournalError, StoreError
from edge_agent.interfaces import Store
from edge_agent.segment import ANNOUNCED, CHAINS, QUARANTINE, Segment, read_bytes

VERSION = 2
SLOTS = ("state0", "state1")
MAX_STATE = 24576  # bytes; a larger state file is not ours
MAX_STATE_RANGES = 256  # freed ranges in all that a saved state holds
MAX_GONE = 8
JOIN_GONE = 1024  # ranges nearer than this are joined when there are too many
REASONS = 8  # counters

# Why numbers are missing.
SKIPPED = 0  # never given to a durable record: passed over after a power cut
QUOTA = 1  # the oldest made room
FULL = 2  # a new one was refused
EXPIRED = 3  # older than its time to live
COALESCED = 4  # replaced by a newer one before it was durable; not a loss
CORRUPT = 5  # damaged on the medium
UNREADABLE = 6  # its segment is missing or cannot be read
REFUSED = 7  # refused by the gateway and pushed out of the quarantine

_FIXED = ">4sBBHI4sIIIIQI"
_COUNTS = ">%dI" % (CHAINS + REASONS + 5)
_SEGMENT = ">BBIIIIHHIIBB"
_DOUBT = 1
_U32 = 0xFFFFFFFF


class State:
    """Everything a journal remembers. `chains[c]` lists the segments of chain c, oldest first."""

    def __init__(self) -> None:
        self.generation = 0
        self.doubt = False  # identities may have been used that are not known here
        self.journal = bytes(4)
        self.next_seq = 1
        self.top = 1  # all that are durable, or ever were, are below
        self.boot = 0
        self.age = 0
        self.counter = 0
        self.cfg_version = 0
        self.next_number = [1] * CHAINS
        self.drops = [0] * REASONS
        self.corrupt = 0  # segments found damaged
        self.torn = 0  # tails cut short by a loss of power
        self.lost_states = 0  # times both slots were unreadable
        self.next_bad = 1  # number of the next file set aside
        self.minted = 0  # journal ids made so far
        self.gone: list[tuple[int, int]] = []
        self.removing: list[tuple[str, str]] = []  # (name, new name or "")
        self.chains: list[list[Segment]] = [[] for _ in range(CHAINS)]
        # In RAM only. unsynced: lowest number that is not durable yet, 0 = none.  skip: how
        # many numbers start-up passes over.  found: those it read behind the saved state.
        self.unsynced = 0
        self.skip = 0
        self.found: list[int] = []

    def segments(self) -> "list[Segment]":
        """Those of the three priorities, urgent first."""
        out: list[Segment] = []
        for chain in range(QUARANTINE):
            out += self.chains[chain]
        return out

    def drop(self, reason: int, count: int, first: int = 0, last: int = 0) -> None:
        """Count dropped records; remember that they were among seqs `first` to `last`."""
        if count <= 0:
            return
        self.drops[reason] = min(_U32, self.drops[reason] + count)
        if not first:
            return
        if self.gone and self.gone[-1][0] <= first <= self.gone[-1][1] + 1:
            self.gone[-1] = (self.gone[-1][0], max(last, self.gone[-1][1]))
        else:
            self.gone.append((first, last))
            if len(self.gone) > MAX_GONE:
                self._join_gone()

    def _join_gone(self) -> None:
        """Make one range of the two that are nearest to each other: better a range too wide
        than a dropped record that nobody was told of. Those far apart were told long ago."""
        self.gone.sort()
        nearest = 0
        least = JOIN_GONE
        for i in range(len(self.gone) - 1):
            gap = self.gone[i + 1][0] - self.gone[i][1]
            if gap < least:
                nearest, least = i, gap
        if least == JOIN_GONE:
            del self.gone[0]
            return
        first, last = self.gone[nearest]
        self.gone[nearest : nearest + 2] = [(first, max(last, self.gone[nearest + 1][1]))]

    def lose(self, segment: Segment, reason: int, count: int, first: int, last: int) -> None:
        """`drop` for records of one segment; those in quarantine have numbers of their own."""
        if segment.chain == QUARANTINE:
            first = last = 0
        self.drop(reason, count, first, last)

    def encode(self) -> bytes:
        out = bytearray(
            struct.pack(
                _FIXED,
                b"QJST",
                VERSION,
                _DOUBT if self.doubt else 0,
                0,
                self.generation,
                self.journal,
                # Those in RAM only are forgotten by a power cut and given out again,
                # but no number that was ever durable is.
                self.unsynced or self.next_seq,
                self.top,
                self.boot,
                min(self.age, _U32),
                self.counter,
                self.cfg_version,
            )
        )
        counts = self.next_number + self.drops
        counts += [self.corrupt, self.torn, self.lost_states, self.next_bad, self.minted]
        out += struct.pack(_COUNTS, *counts)
        out.append(len(self.gone))
        for first, last in self.gone:
            out += struct.pack(">II", first, last)
        removing = self.removing[:255]  # what is left over is done, or said again, next time
        out.append(len(removing))
        for pair in removing:
            for name in pair:
                out.append(len(name))
                out += name.encode()
        ids: list[bytes] = []
        for chain in self.chains:
            for segment in chain:
                if segment.journal not in ids:
                    ids.append(segment.journal)
        out.append(len(ids))
        for journal in ids:
            out += journal
        room = MAX_STATE_RANGES
        out += struct.pack(">H", sum([len(chain) for chain in self.chains]))
        for chain in self.chains:
            for s in chain:
                # Frees that do not fit are forgotten: those records are sent again.
                fits = len(s.freed) <= 2 * room
                ranges = s.freed if fits else []
                room -= len(ranges) // 2
                out += struct.pack(
                    _SEGMENT,
                    s.chain,
                    s.flags,
                    s.number,
                    s.first,
                    s.last,
                    s.length,
                    s.count,
                    s.freed_count if fits else 0,
                    s.stamp,
                    s.next_index,
                    s.generation,
                    len(ranges) // 2,
                )
                out.append(ids.index(s.journal))
                for value in ranges:
                    out += struct.pack(">I", value)
        out[6:8] = struct.pack(">H", len(out) + 4)
        out += struct.pack(">I", binascii.crc32(out))
        return bytes(out)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def bytes(self, n: int) -> bytes:
        self.at += n
        if self.at > len(self.data):
            raise ValueError("short")
        return self.data[self.at - n : self.at]

    def byte(self) -> int:
        return self.bytes(1)[0]

    def fields(self, form: str) -> "tuple[int, ...]":
        return struct.unpack(form, self.bytes(struct.calcsize(form)))

    def text(self) -> str:
        return self.bytes(self.byte()).decode()


def decode(data: bytes) -> "State | None":
    """The state in a slot; None when the bytes are not one.

    JournalError when another version of this software wrote it.
    """
    if len(data) < 8 or data[:4] != b"QJST":
        return None
    length = data[6] << 8 | data[7]
    if length < 12 or length > len(data):
        return None
    body = data[: length - 4]
    if struct.unpack(">I", data[length - 4 : length])[0] != binascii.crc32(body):
        return None
    if data[4] != VERSION:
        raise JournalError(
            "the journal has format %d, this software knows %d" % (data[4], VERSION),
            "state",
            "Install the edge-agent that wrote it again, or let that one deliver everything first",
        )
    try:
        return _decode(_Reader(body))
    except ValueError:
        return None


def _decode(r: _Reader) -> State:
    s = State()
    f = struct.unpack(_FIXED, r.bytes(struct.calcsize(_FIXED)))
    s.doubt = f[2] & _DOUBT != 0
    s.generation, s.journal, s.next_seq, s.top, s.boot = f[4:9]
    s.age, s.counter, s.cfg_version = f[9:]
    counts = list(r.fields(_COUNTS))
    s.next_number = counts[:CHAINS]
    s.drops = counts[CHAINS : CHAINS + REASONS]
    s.corrupt, s.torn, s.lost_states, s.next_bad, s.minted = counts[CHAINS + REASONS :]
    for _ in range(r.byte()):
        first, last = r.fields(">II")
        s.gone.append((first, last))
    for _ in range(r.byte()):
        name = r.text()
        s.removing.append((name, r.text()))
    ids = [r.bytes(4) for _ in range(r.byte())]
    for _ in range(r.fields(">H")[0]):
        f = r.fields(_SEGMENT)
        which = r.byte()
        if f[0] >= CHAINS or which >= len(ids):
            raise ValueError("segment")
        segment = Segment(f[0], f[2], ids[which])
        segment.flags = f[1] | ANNOUNCED
        segment.first, segment.last, segment.length, segment.count = f[3:7]
        segment.stamp, segment.next_index, segment.generation = f[8:11]
        if f[11]:
            segment.freed = [r.fields(">I")[0] for _ in range(2 * f[11])]
        segment.freed_count = f[7]
        s.chains[segment.chain].append(segment)
    return s


def load(store: Store) -> "tuple[State | None, int, bool, int]":
    """(newest readable state, its slot, doubt, number of slot files).

    Doubt means that a newer state may have existed and is gone.
    """
    best: State | None = None
    slot = 1
    unreadable = False
    missing = 0
    for i in range(2):
        size = store.size(SLOTS[i])
        if size < 0:
            missing += 1
            continue
        state = None
        if 0 < size <= MAX_STATE:
            state = decode(read_bytes(store, SLOTS[i], 0, size))
        if state is None:
            unreadable = True
        elif best is None or state.generation > best.generation:
            best = state
            slot = i
    doubt = unreadable
    if best is not None and missing and best.generation > 1:
        doubt = True
    return best, slot, doubt, 2 - missing


def save(store: Store, state: State, slot: int) -> None:
    """Write and sync one slot. StoreError leaves the other slot as it was."""
    data = state.encode()
    if len(data) > MAX_STATE:
        raise StoreError("the journal state has %d bytes" % len(data), SLOTS[slot])
    store.write(SLOTS[slot], data)
    store.sync(SLOTS[slot])
