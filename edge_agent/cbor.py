"""Deterministic CBOR: the subset of RFC 8949 that SPEC.md allows, and nothing else.

Kept: integers, byte and text strings, arrays, maps with integer or text keys, tags,
false, true, null. Every value has exactly one encoding (RFC 8949 section 4.2.1):
shortest heads, definite lengths, map keys in ascending order of their encoded bytes.
So equal values are equal bytes, and a frame can be compared by hash.

The decoder checks all of that instead of being generous, because two readings of one
frame are a security hole. It reads at most `max_items` values, `max_depth` deep, and
raises CborError whatever it is given.

Reasons: "truncated", "trailing", "not-shortest", "indefinite", "float", "simple",
"utf8", "key", "key-order", "depth", "items", "range", "type".
"""

from collections import namedtuple

from edge_agent.errors import CborError

Tag = namedtuple("Tag", ("number", "value"))

_MAX_U64 = 0xFFFFFFFFFFFFFFFF
_ENCODE_DEPTH = 16
# MicroPython's decoder of text lets surrogates and overlong forms through, CPython's
# does not; both interpreters must refuse the same bytes. Smallest code point by length.
_UTF8_LEAST = (0, 0, 0x80, 0x800, 0x10000)


def encode(value: object) -> bytes:
    """The one encoding of `value`. CborError("type" or "range") for what has none."""
    out = bytearray()
    _put(out, value, _ENCODE_DEPTH)
    return bytes(out)


def head(major: int, n: int) -> bytes:
    """The shortest head for major type 0..7 and argument n."""
    out = bytearray()
    _head(out, major << 5, n)
    return bytes(out)


def _head(out: bytearray, major: int, n: int) -> None:
    if n < 24:
        out.append(major | n)
    elif n < 256:
        out.append(major | 24)
        out.append(n)
    elif n < 65536:
        out.append(major | 25)
        out.append(n >> 8)
        out.append(n & 255)
    elif n <= 0xFFFFFFFF:
        out.append(major | 26)
        out.extend(n.to_bytes(4, "big"))
    elif n <= _MAX_U64:
        out.append(major | 27)
        out.extend(n.to_bytes(8, "big"))
    else:
        raise CborError("range", "integer beyond 64 bits")


def _put(out: bytearray, value: object, depth: int) -> None:
    if value is None:
        out.append(0xF6)
    elif value is True:
        out.append(0xF5)
    elif value is False:
        out.append(0xF4)
    elif isinstance(value, int):
        if value >= 0:
            _head(out, 0x00, value)
        else:
            _head(out, 0x20, -1 - value)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        _head(out, 0x40, len(value))
        out.extend(value)
    elif isinstance(value, str):
        text = value.encode()
        _head(out, 0x60, len(text))
        out.extend(text)
    elif depth == 0:
        raise CborError("depth")
    elif isinstance(value, Tag):
        _head(out, 0xC0, value.number)
        _put(out, value.value, depth - 1)
    elif isinstance(value, (list, tuple)):
        _head(out, 0x80, len(value))
        for item in value:
            _put(out, item, depth - 1)
    elif isinstance(value, dict):
        _head(out, 0xA0, len(value))
        pairs = [(_key(key), item) for key, item in value.items()]
        pairs.sort(key=_first)
        for raw, item in pairs:
            out.extend(raw)
            _put(out, item, depth - 1)
    else:
        raise CborError("type", type(value).__name__)


def _key(key: object) -> bytes:
    if isinstance(key, str) or (isinstance(key, int) and key is not True and key is not False):
        out = bytearray()
        _put(out, key, 0)
        return bytes(out)
    raise CborError("key", type(key).__name__)


def _first(pair: "tuple[bytes, object]") -> bytes:
    return pair[0]


def decode(
    data: "bytes | bytearray | memoryview", max_depth: int = 8, max_items: int = 1024
) -> object:
    """The value of exactly these bytes, or CborError. Arrays come back as lists."""
    raw = bytes(data)
    try:
        value, pos = _item(raw, 0, max_depth, [max_items])
    except IndexError:
        raise CborError("truncated")
    if pos != len(raw):
        raise CborError("trailing", "%d bytes" % (len(raw) - pos))
    return value


def _argument(raw: bytes, pos: int) -> "tuple[int, int]":
    """Argument of the head at `pos` whose low bits are 25 or more; the position after it."""
    low = raw[pos] & 31
    if low == 25:
        n = raw[pos + 1] << 8 | raw[pos + 2]
        if n < 256:
            raise CborError("not-shortest")
        return n, pos + 3
    if low == 31:
        raise CborError("indefinite")
    if low > 27:
        raise CborError("range", "reserved head")
    size = 4 if low == 26 else 8
    if pos + size >= len(raw):
        raise CborError("truncated")
    n = int.from_bytes(raw[pos + 1 : pos + 1 + size], "big")
    if n >> (size * 4) == 0:
        raise CborError("not-shortest")
    return n, pos + 1 + size


def _item(raw: bytes, pos: int, depth: int, budget: "list[int]") -> "tuple[object, int]":
    first = raw[pos]
    if first >= 0xE0:
        return _simple(first), pos + 1
    n = first & 31
    if n < 24:
        pos += 1
    elif n == 24:
        n = raw[pos + 1]
        if n < 24:
            raise CborError("not-shortest")
        pos += 2
    else:
        n, pos = _argument(raw, pos)
    major = first >> 5
    if major == 0:
        return n, pos
    if major == 1:
        return -1 - n, pos
    if major < 4:
        end = pos + n
        if end > len(raw):
            raise CborError("truncated")
        if major == 2:
            return raw[pos:end], end
        return _text(raw[pos:end]), end
    if depth == 0:
        raise CborError("depth")
    if major == 6:
        value, pos = _item(raw, pos, depth - 1, budget)
        return Tag(n, value), pos
    # Every element takes a byte at least, so a length beyond the data is refused
    # before anything is allocated for it.
    count = n if major == 4 else n + n
    if count > len(raw) - pos:
        raise CborError("truncated")
    budget[0] -= count
    if budget[0] < 0:
        raise CborError("items")
    if major == 5:
        return _map(raw, pos, n, depth - 1, budget)
    items = []
    for _ in range(n):
        value, pos = _item(raw, pos, depth - 1, budget)
        items.append(value)
    return items, pos


def _map(
    raw: bytes, pos: int, n: int, depth: int, budget: "list[int]"
) -> "tuple[dict[int | str, object], int]":
    result: dict[int | str, object] = {}
    last_small = -1  # the last key when its encoding is one byte, else -1
    last = b""  # the encoding of the last key
    size = len(raw)
    for _ in range(n):
        first = raw[pos]
        if first < 24 and (last_small >= 0 or not last):
            # The common case: keys 0..23 are their own encoding and compare as numbers.
            if first <= last_small:
                raise CborError("key-order")
            last_small = first
            last = raw[pos : pos + 1]
            key: int | str = first
            pos += 1
        else:
            start = pos
            if first >> 5 not in (0, 1, 3):
                raise CborError("key")
            found, pos = _item(raw, pos, 0, budget)
            now = raw[start:pos]
            if now <= last:
                raise CborError("key-order")
            last = now
            last_small = -1
            key = found  # type: ignore[assignment]
        first = raw[pos]
        if first < 24:
            result[key] = first
            pos += 1
        elif 0x40 <= first < 0x58:
            # Short byte strings and integers are most of a payload: a call less for each.
            start = pos + 1
            pos = start + first - 0x40
            if pos > size:
                raise CborError("truncated")
            result[key] = raw[start:pos]
        elif 0x19 <= first < 0x20:
            result[key], pos = _argument(raw, pos)
        else:
            result[key], pos = _item(raw, pos, depth, budget)
    return result, pos


def _simple(first: int) -> "bool | None":
    if first == 0xF4:
        return False
    if first == 0xF5:
        return True
    if first == 0xF6:
        return None
    if first == 0xFF:
        raise CborError("indefinite")
    if 0xF9 <= first <= 0xFB:
        raise CborError("float")
    raise CborError("simple")


def _text(raw: bytes) -> str:
    i = 0
    while i < len(raw):
        first = raw[i]
        i += 1
        if first < 0x80:
            continue
        size = 2 if first >> 5 == 6 else 3 if first >> 4 == 14 else 4 if first >> 3 == 30 else 0
        if not size or i + size - 1 > len(raw):
            raise CborError("utf8")
        point = first & (0x7F >> size)
        for _ in range(size - 1):
            if raw[i] >> 6 != 2:
                raise CborError("utf8")
            point = point << 6 | (raw[i] & 0x3F)
            i += 1
        if point < _UTF8_LEAST[size] or 0xD800 <= point < 0xE000 or point > 0x10FFFF:
            raise CborError("utf8")
    return raw.decode()
