"""Messages and the CBOR maps that carry them; `frame` seals the maps.

Every message has one encoding: an absent value is an absent label, never null, zero or
an empty list, so that two readers cannot disagree. Labels are listed in SPEC.md and
frame.cddl. Unknown labels are ignored: that is how the format grows.
"""

from collections import namedtuple

from edge_agent import cbor
from edge_agent.errors import FrameError
from edge_agent.outcome import PARENTS_MAX, TAGS_MAX, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Map = dict[Any, Any]

OUTCOME = 1
HELLO = 2
ACK = 3
BOX = 4
CFG = 5

U8 = 0xFF
U16 = 0xFFFF
U32 = 0xFFFFFFFF
# Milliseconds stay exact in a double; a counter plus one in a signed 64-bit integer.
MS_MAX = 1 << 52
COUNTER_MAX = 1 << 62

RANGES_MAX = 16
REFUSED_MAX = 8
GONE_MAX = 8
DROPPED_MAX = 8
SETTINGS_MAX = 32
BODY_MAX = 440  # of a box, bytes: fits a frame in both forms
NUMBERED_MAX = 432  # of a box with a number
VERSION_MAX = 16  # bytes of UTF-8

# journal: 4 bytes.  seq: 1..2**32-1.  boot: counts from 1.  uptime_ms: since that boot.
# utc_s: Unix seconds, 0 when not known.  domain_id: 8 bytes.  fingerprint: 16 bytes or None.
OutcomeRecord = namedtuple(
    "OutcomeRecord",
    ("journal", "seq", "boot", "uptime_ms", "utc_s", "domain_id", "outcome", "fingerprint"),
)

# floor: lowest seq still held under this journal id, next_seq when none is.
# nonce: 8 random bytes of this connection.  counter: highest down counter seen.
# oldest_generation: of the keys of records still held.  pending: records held.
# dropped: {reason: count}.  gone: up to 8 (first, last) ranges that hold records dropped
# by policy, newest last.  model: 8 bytes or None.  version: of the agent, text.
# cfg_version: of the settings in force, 0 for those it was enrolled with.
# head: version of the head in force, None for the model's own last layer.
# taken: highest mailbox number durably taken; None: this device takes no mail.
Hello = namedtuple(
    "Hello",
    (
        "journal",
        "next_seq",
        "boot",
        "uptime_ms",
        "utc_s",
        "floor",
        "nonce",
        "counter",
        "oldest_generation",
        "pending",
        "dropped",
        "gone",
        "model",
        "version",
        "cfg_version",
        "head",
        "taken",
    ),
)

# ranges: up to 16 (first, last), the ones just committed first.  refused: up to 8
# (seq, reason number).  nonce: of the newest hello, b"" when there was none.
# utc_ms: gateway time.  counter: see SPEC.md, down counter.
Ack = namedtuple("Ack", ("journal", "ranges", "refused", "nonce", "utc_ms", "counter"))

# type: 0..255, what the body is.  body: at most 440 bytes, 432 with a number.
# number: of the mailbox, 0 when it has none.
Box = namedtuple("Box", ("counter", "type", "body", "number"))

# settings: {0..255: integer}, at most 32.
Cfg = namedtuple("Cfg", ("counter", "version", "settings"))


# ---- message -> entries of a map --------------------------------------------------


def entries(message: object, small: bool) -> "tuple[int, int, bytes]":
    """Kind, number of entries, and the bytes of the entries in ascending order."""
    if isinstance(message, OutcomeRecord):
        count, body = _outcome_entries(message, small)
        return OUTCOME, count, body
    if isinstance(message, Hello):
        kind, content = HELLO, _hello_map(message)
    elif isinstance(message, Ack):
        kind, content = ACK, _ack_map(message)
    elif isinstance(message, Box):
        kind, content = BOX, {22: message.counter, 33: message.type, 34: message.body}
        if message.number:
            content[37] = message.number
    elif isinstance(message, Cfg):
        kind = CFG
        content = {22: message.counter, 29: message.version, 35: message.settings}
    else:
        raise FrameError("bad-kind", type(message).__name__)
    read(kind, content)  # what a reader would refuse is not sent
    return kind, len(content), cbor.encode(content)[1:]


def _uint(out: bytearray, label: int, value: "Any", top: int, low: int = 0) -> None:
    if type(value) is not int or not low <= value <= top:
        raise FrameError("bad-field", "label %d" % label)
    out.append(label)
    if value < 24:
        out.append(value)
    elif value < 256:
        out.append(0x18)
        out.append(value)
    elif value < 65536:
        out.append(0x19)
        out.append(value >> 8)
        out.append(value & 255)
    elif value <= U32:
        out.append(0x1A)
        out.extend(value.to_bytes(4, "big"))
    else:
        out.append(0x1B)
        out.extend(value.to_bytes(8, "big"))


def _fixed(out: bytearray, start: bytes, value: "Any", size: int) -> None:
    """start: the label and the head of a byte string of `size`."""
    if type(value) is not bytes or len(value) != size:
        raise FrameError("bad-field", "label %d" % start[0])
    out.extend(start)
    out.extend(value)


def _outcome_entries(record: OutcomeRecord, small: bool) -> "tuple[int, bytes]":
    # Written out by hand because every record passes here. cbor.encode of the same map
    # gives the same bytes; a test compares the two.
    outcome = record.outcome
    about = outcome.about
    out = bytearray()
    count = 6
    _fixed(out, b"\x01\x44", record.journal, 4)
    _uint(out, 2, record.seq, U32, 1)
    _uint(out, 3, record.boot, U32, 1)
    _uint(out, 4, record.uptime_ms, MS_MAX)
    if record.utc_s:
        count += 1
        _uint(out, 5, record.utc_s, U32)
    _fixed(out, b"\x06\x48", record.domain_id, 8)
    if outcome.model is not None and not small:
        count += 1
        _fixed(out, b"\x07\x48", outcome.model, 8)
    if about is None:
        count += 2
        _fixed(out, b"\x08\x58\x40", outcome.vector, 64)
        if not small:
            count += 1
            _fixed(out, b"\x09\x50", record.fingerprint, 16)
        _uint(out, 10, outcome.label, U16)
        _uint(out, 11, outcome.confidence, U8)
    else:
        if outcome.vector is not None or outcome.confidence is not None or record.fingerprint:
            raise FrameError("bad-field", "feedback carries no vector")
        if outcome.result is None:
            raise FrameError("missing-field", "label 14")
        _uint(out, 10, outcome.label, U16)
    if outcome.tags:
        count += 1
        _check_tags(outcome.tags)
        out.extend(b"\x0c")
        out.extend(cbor.encode(outcome.tags))
    if outcome.action is not None:
        count += 1
        _uint(out, 13, outcome.action, U16)
    if outcome.result is not None:
        count += 1
        _uint(out, 14, outcome.result, U16)
    if outcome.parents:
        count += 1
        parents = outcome.parents[:1] if small else outcome.parents
        _check_parents(parents)
        out.extend(b"\x0f")
        out.extend(cbor.encode(parents))
    if outcome.depth:
        count += 1
        _uint(out, 16, outcome.depth, U8)
    if outcome.head is not None:
        count += 1
        _uint(out, 17, outcome.head, U16)
    if about is not None:
        count += 1
        _fixed(out, b"\x12\x50", about, 16)
    if outcome.alone is not None:
        if about is not None:
            raise FrameError("bad-field", "label 19 in feedback")
        label, confidence = outcome.alone
        if type(label) is not int or not 0 <= label <= U16:
            raise FrameError("bad-field", "label 19")
        if type(confidence) is not int or not 0 <= confidence <= U8:
            raise FrameError("bad-field", "label 19")
        count += 1
        out.extend(bytes((0x13, 0x43, label >> 8, label & 255, confidence)))
    return count, bytes(out)


def _hello_map(hello: Hello) -> "Map":
    content: Map = {
        1: hello.journal,
        2: hello.next_seq,
        3: hello.boot,
        4: hello.uptime_ms,
        20: hello.floor,
        21: hello.nonce,
        22: hello.counter,
        23: hello.oldest_generation,
        24: hello.pending,
        28: hello.version,
        29: hello.cfg_version,
    }
    if hello.utc_s:
        content[5] = hello.utc_s
    if hello.dropped:
        content[25] = hello.dropped
    if hello.gone:
        content[26] = [list(pair) for pair in hello.gone]
    if hello.model is not None:
        content[27] = hello.model
    if hello.head is not None:
        content[17] = hello.head
    if hello.taken is not None:
        content[38] = hello.taken
    return content


def _ack_map(ack: Ack) -> "Map":
    content: Map = {
        1: ack.journal,
        21: ack.nonce,
        22: ack.counter,
        30: [list(pair) for pair in ack.ranges],
        32: ack.utc_ms,
    }
    if ack.refused:
        content[31] = [list(pair) for pair in ack.refused]
    return content


# ---- map -> message -----------------------------------------------------------------


def read(kind: int, content: "Map") -> object:
    """The message in a decoded map. FrameError("missing-field" or "bad-field")."""
    padding = content.get(0, b"")
    if type(padding) is list and len(padding) == 1:
        padding = padding[0]
    if type(padding) is not bytes:
        raise FrameError("bad-field", "label 0")
    return _READERS[kind](content)


def _bad(content: "Map", label: int) -> FrameError:
    return FrameError("bad-field" if label in content else "missing-field", "label %d" % label)


def _take_uint(content: "Map", label: int, top: int, low: int = 0) -> int:
    value = content.get(label)
    if type(value) is int and low <= value <= top:
        return value
    raise _bad(content, label)


def _take_bytes(content: "Map", label: int, size: int) -> bytes:
    value = content.get(label)
    if type(value) is bytes and len(value) == size:
        return value
    raise _bad(content, label)


def _check_tags(tags: "Any") -> None:
    last = -1
    for tag in tags:
        if type(tag) is not int or not last < tag <= U16:
            raise FrameError("bad-field", "label 12")
        last = tag
    if len(tags) > TAGS_MAX:
        raise FrameError("bad-field", "label 12")


def _check_parents(parents: "Any") -> None:
    if len(parents) > PARENTS_MAX:
        raise FrameError("bad-field", "label 15")
    for parent in parents:
        if type(parent) is not bytes or len(parent) != 16:
            raise FrameError("bad-field", "label 15")


def _pairs(content: "Map", label: int, most: int, top: int) -> "tuple[tuple[int, int], ...]":
    """[[a, b], ...] with a in 1..u32 and b in 0..top."""
    values = content.get(label)
    if type(values) is not list or len(values) > most:
        raise _bad(content, label)
    pairs = []
    for pair in values:
        if type(pair) is not list or len(pair) != 2:
            raise _bad(content, label)
        first, second = pair
        if type(first) is not int or type(second) is not int:
            raise _bad(content, label)
        if not 1 <= first <= U32 or not 0 <= second <= top:
            raise _bad(content, label)
        pairs.append((first, second))
    return tuple(pairs)


def _ranges(content: "Map", label: int, most: int) -> "tuple[tuple[int, int], ...]":
    ranges = _pairs(content, label, most, U32)
    for first, last in ranges:
        if first > last:
            raise _bad(content, label)
    return ranges


def _read_outcome(content: "Map") -> OutcomeRecord:
    about = None
    vector = None
    confidence = None
    finger = None
    result = None
    if 18 in content:
        about = _take_bytes(content, 18, 16)
        for label in (8, 9, 11, 19):
            if label in content:
                raise FrameError("bad-field", "label %d in feedback" % label)
        result = _take_uint(content, 14, U16)
    else:
        vector = _take_bytes(content, 8, 64)
        confidence = _take_uint(content, 11, U8)
        if 9 in content:
            finger = _take_bytes(content, 9, 16)
        if 14 in content:
            result = _take_uint(content, 14, U16)
    tags: Any = ()
    if 12 in content:
        tags = content[12]
        if type(tags) is not list or not tags:
            raise FrameError("bad-field", "label 12")
        _check_tags(tags)
    parents: Any = ()
    if 15 in content:
        parents = content[15]
        if type(parents) is not list or not parents:
            raise FrameError("bad-field", "label 15")
        _check_parents(parents)
    alone = None
    if 19 in content:
        said = _take_bytes(content, 19, 3)
        alone = (said[0] << 8 | said[1], said[2])
    return OutcomeRecord(
        _take_bytes(content, 1, 4),
        _take_uint(content, 2, U32, 1),
        _take_uint(content, 3, U32, 1),
        _take_uint(content, 4, MS_MAX),
        _take_uint(content, 5, U32, 1) if 5 in content else 0,
        _take_bytes(content, 6, 8),
        Outcome(
            vector,
            _take_uint(content, 10, U16),
            confidence,
            tags,
            _take_uint(content, 13, U16) if 13 in content else None,
            result,
            parents,
            _take_uint(content, 16, U8, 1) if 16 in content else 0,
            _take_uint(content, 17, U16) if 17 in content else None,
            about,
            _take_bytes(content, 7, 8) if 7 in content else None,
            alone,
        ),
        finger,
    )


def _read_hello(content: "Map") -> Hello:
    next_seq = _take_uint(content, 2, U32, 1)
    dropped = content.get(25, {})
    if type(dropped) is not dict or len(dropped) > DROPPED_MAX or (25 in content and not dropped):
        raise _bad(content, 25)
    for reason, count in dropped.items():
        if type(reason) is not int or type(count) is not int:
            raise _bad(content, 25)
        if not 0 <= reason <= U8 or not 0 <= count <= U32:
            raise _bad(content, 25)
    gone = _ranges(content, 26, GONE_MAX) if 26 in content else ()
    if 26 in content and not gone:
        raise _bad(content, 26)
    version = content.get(28)
    if type(version) is not str or len(version.encode()) > VERSION_MAX:
        raise _bad(content, 28)
    return Hello(
        _take_bytes(content, 1, 4),
        next_seq,
        _take_uint(content, 3, U32, 1),
        _take_uint(content, 4, MS_MAX),
        _take_uint(content, 5, U32, 1) if 5 in content else 0,
        _take_uint(content, 20, next_seq, 1),
        _take_bytes(content, 21, 8),
        _take_uint(content, 22, COUNTER_MAX),
        _take_uint(content, 23, U8),
        _take_uint(content, 24, U32),
        dropped,
        gone,
        _take_bytes(content, 27, 8) if 27 in content else None,
        version,
        _take_uint(content, 29, U32),
        _take_uint(content, 17, U16) if 17 in content else None,
        _take_uint(content, 38, U32) if 38 in content else None,
    )


def _read_ack(content: "Map") -> Ack:
    refused = _pairs(content, 31, REFUSED_MAX, U8) if 31 in content else ()
    if 31 in content and not refused:
        raise _bad(content, 31)
    nonce = content.get(21)
    return Ack(
        _take_bytes(content, 1, 4),
        _ranges(content, 30, RANGES_MAX),
        refused,
        b"" if nonce == b"" else _take_bytes(content, 21, 8),
        _take_uint(content, 32, MS_MAX),
        _take_uint(content, 22, COUNTER_MAX),
    )


def _read_box(content: "Map") -> Box:
    number = _take_uint(content, 37, U32, 1) if 37 in content else 0
    body = content.get(34)
    if type(body) is not bytes or len(body) > (NUMBERED_MAX if number else BODY_MAX):
        raise _bad(content, 34)
    return Box(_take_uint(content, 22, COUNTER_MAX), _take_uint(content, 33, U8), body, number)


def _read_cfg(content: "Map") -> Cfg:
    settings = content.get(35)
    if type(settings) is not dict or len(settings) > SETTINGS_MAX:
        raise _bad(content, 35)
    for name, value in settings.items():
        if type(name) is not int or type(value) is not int:
            raise _bad(content, 35)
        if not 0 <= name <= U8 or not -(1 << 63) <= value < 1 << 63:
            raise _bad(content, 35)
    return Cfg(_take_uint(content, 22, COUNTER_MAX), _take_uint(content, 29, U32), settings)


_READERS = {
    OUTCOME: _read_outcome,
    HELLO: _read_hello,
    ACK: _read_ack,
    BOX: _read_box,
    CFG: _read_cfg,
}
