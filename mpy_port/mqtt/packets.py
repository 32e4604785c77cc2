"""MQTT 3.1.1 control packets as a client needs them: bytes in, tuples out, and back. No I/O.

Theory of operation. `encode_*` return whole packets, checked against what the standard
allows a client to send; ValueError means that the caller asked for something it does not.
`Decoder` cuts a stream of bytes into packets: feed it what came, ask for `next()` until
it gives None. It holds one unfinished packet and what was fed after it, never more than
`max_packet` bytes of one packet. Of a longer PUBLISH it keeps topic and packet id and drops
the rest as it comes, so that one oversized message can be acknowledged and left behind
instead of coming back for ever.

Whatever a broker sends that the standard forbids raises PacketError; the connection must
then be closed. Numbers in comments are sections of MQTT Version 3.1.1, OASIS, 2014.
"""

from collections import namedtuple

from edge_agent.errors import RemoteError

CONNECT, CONNACK, PUBLISH, PUBACK = 1, 2, 3, 4
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK = 8, 9, 10, 11
_PINGREQ, PINGRESP, _DISCONNECT = 12, 13, 14

PINGREQ = b"\xc0\x00"
DISCONNECT = b"\xe0\x00"
REFUSED = 0x80  # a code of SUBACK
MAX_REMAINING = 268435455  # 2.2.3

# session_present: bool.  code: 0 accepted, 1..5 refused (3.2.2.3).
Connack = namedtuple("Connack", ("session_present", "code"))
# packet_id: 0 with QoS 0.  payload: bytes; None when the packet was too long to be kept.
Publish = namedtuple("Publish", ("topic", "payload", "qos", "retain", "dup", "packet_id"))
Puback = namedtuple("Puback", ("packet_id",))
# codes: bytes, one per filter asked for: the QoS granted, or REFUSED.
Suback = namedtuple("Suback", ("packet_id", "codes"))
Unsuback = namedtuple("Unsuback", ("packet_id",))
Pingresp = namedtuple("Pingresp", ())


class PacketError(RemoteError):
    """Bytes that are no packet a broker may send.

    `reason`: "bad-length", "bad-type", "bad-flags", "bad-text", "bad-id", "bad-code",
    "truncated", "trailing" or "too-long".
    """


# -- sending ------------------------------------------------------------------------------


def encode_connect(
    client_id: str,
    keepalive_s: int,
    clean: bool = False,
    username: str = "",
    password: str = "",
    will: "tuple[str, bytes] | None" = None,
    will_qos: int = 1,
    will_retain: bool = True,
) -> bytes:
    """will: (topic, payload). Empty user name: neither name nor password are sent."""
    if not 0 <= keepalive_s <= 0xFFFF:
        raise ValueError("keepalive_s out of range")
    if not client_id and not clean:
        raise ValueError("a session that persists needs a client id")  # 3.1.3.1
    flags = 0x02 if clean else 0
    rest = _text(client_id)
    if will is not None:
        _check_topic(will[0])
        flags |= 0x04 | _qos(will_qos) << 3 | (0x20 if will_retain else 0)
        rest += _text(will[0]) + _block(will[1])
    if username:
        flags |= 0x80
        rest += _text(username)
        if password:
            flags |= 0x40
            rest += _text(password)
    head = b"\x00\x04MQTT\x04" + bytes((flags,)) + _u16(keepalive_s)
    return _packet(0x10, head + rest)


def encode_publish(
    topic: str, payload: bytes, qos: int, retain: bool, dup: bool, packet_id: int
) -> bytes:
    """packet_id: 1..65535 with QoS 1, ignored with QoS 0."""
    _check_topic(topic)
    head = _text(topic)
    flags = 0x30 | (1 if retain else 0)
    if _qos(qos):
        flags |= 0x02 | (0x08 if dup else 0)
        head += _id(packet_id)
    return bytes((flags,)) + _length(len(head) + len(payload)) + head + payload


def encode_puback(packet_id: int) -> bytes:
    return b"\x40\x02" + _id(packet_id)


def encode_subscribe(packet_id: int, filters: "list[tuple[str, int]]") -> bytes:
    """filters: (topic filter, highest QoS wanted)."""
    asked = [_filter(name) + bytes((_qos(qos),)) for name, qos in filters]
    return _packet(0x82, _id(packet_id) + _filters(asked))


def encode_unsubscribe(packet_id: int, filters: "list[str]") -> bytes:
    return _packet(0xA2, _id(packet_id) + _filters([_filter(f) for f in filters]))


def _packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + _length(len(body)) + body


def _length(number: int) -> bytes:
    """The remaining length, 2.2.3."""
    if number > MAX_REMAINING:
        raise ValueError("packet too long")
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _u16(number: int) -> bytes:
    return bytes((number >> 8, number & 255))


def _id(packet_id: int) -> bytes:
    if not 1 <= packet_id <= 0xFFFF:
        raise ValueError("packet id out of range")
    return _u16(packet_id)


def _qos(qos: int) -> int:
    if qos not in (0, 1):
        raise ValueError("QoS must be 0 or 1")
    return qos


def _block(data: bytes) -> bytes:
    if len(data) > 0xFFFF:
        raise ValueError("longer than 65535 bytes")
    return _u16(len(data)) + data


def _text(text: str) -> bytes:
    if "\x00" in text:
        raise ValueError("text with a zero character")  # 1.5.3
    return _block(text.encode())


def _check_topic(topic: str) -> None:
    if not topic or "+" in topic or "#" in topic:
        raise ValueError("not a topic to publish on: %r" % topic)  # 4.7.1


def _filter(topic: str) -> bytes:
    if not topic:
        raise ValueError("empty topic filter")
    return _text(topic)


def _filters(encoded: "list[bytes]") -> bytes:
    if not encoded:
        raise ValueError("no topic filter")  # 3.8.3
    return b"".join(encoded)


# -- receiving ----------------------------------------------------------------------------


class Decoder:
    """Cuts a byte stream into packets.

    max_packet: longest body kept, bytes. `oversize` counts longer PUBLISH packets.
    """

    def __init__(self, max_packet: int = 4096) -> None:
        self.max_packet = max_packet
        self.oversize = 0
        self._data = b""
        self._at = 0
        self._drop = 0  # bytes still to come of a packet that is not kept

    def feed(self, data: bytes) -> None:
        """Add what came. Call `next` until it gives None before feeding more."""
        if self._drop:
            taken = min(self._drop, len(data))
            self._drop -= taken
            data = data[taken:]
        if self._at < len(self._data):
            self._data = self._data[self._at :] + data
        else:
            self._data = data
        self._at = 0

    def next(self) -> "tuple[object, ...] | None":
        """The next packet, None when more bytes are needed. PacketError."""
        data, at = self._data, self._at
        end = len(data)
        if end - at < 2:
            return None
        first = data[at]
        length = shift = 0
        body = at + 1
        while True:
            if body >= end:
                return None
            byte = data[body]
            body += 1
            length |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
            if shift > 21:
                raise PacketError("bad-length")
        # The standard does not forbid a longer spelling of a length, so it is taken.
        _check_first(first)
        if length > self.max_packet:
            return self._long(first, body, length)
        if end - body < length:
            return None
        self._at = body + length
        return parse(first, data[body : self._at])

    def _long(self, first: int, body: int, length: int) -> "tuple[object, ...] | None":
        """A packet that is not kept: what is needed to answer it, once that is there."""
        if first >> 4 != PUBLISH:
            raise PacketError("too-long", "%d bytes" % length)
        data = self._data
        have = len(data) - body
        if have < 2:
            return None
        need = 2 + (data[body] << 8 | data[body + 1]) + (2 if first & 6 else 0)
        if need > self.max_packet or need > length:
            raise PacketError("too-long", "topic")
        if have < need:
            return None
        found = _publish(first, data[body : body + need])
        taken = min(have, length)
        self._at = body + taken
        self._drop = length - taken
        self.oversize += 1
        return Publish(found.topic, None, found.qos, found.retain, found.dup, found.packet_id)


def parse(first: int, body: bytes) -> "tuple[object, ...]":
    """One packet from its first byte and what follows the length. PacketError."""
    _check_first(first)
    kind = first >> 4
    if kind == PUBLISH:
        return _publish(first, body)
    if kind == PINGRESP:
        _exactly(body, 0)
        return Pingresp()
    if kind == CONNACK:
        _exactly(body, 2)
        if body[0] > 1 or body[1] > 5 or (body[0] and body[1]):
            raise PacketError("bad-code", "CONNACK %d %d" % (body[0], body[1]))  # 3.2.2
        return Connack(body[0] == 1, body[1])
    if kind == SUBACK:
        if len(body) < 3:
            raise PacketError("truncated", "SUBACK")
        codes = bytes(body[2:])
        for code in codes:
            if code > 2 and code != REFUSED:
                raise PacketError("bad-code", "SUBACK %d" % code)
        return Suback(_read_id(body, 0), codes)
    _exactly(body, 2)
    return (Puback if kind == PUBACK else Unsuback)(_read_id(body, 0))


def _check_first(first: int) -> None:
    """Type and flags, 2.2: known as soon as the first byte is there."""
    kind = first >> 4
    if kind == PUBLISH:
        # QoS 2 is never asked for, so a broker may not use it; 3 does not exist.
        if first & 4 or (first & 8 and not first & 2):
            raise PacketError("bad-flags", "PUBLISH %02x" % first)
    elif kind not in (CONNACK, PUBACK, SUBACK, UNSUBACK, PINGRESP):
        raise PacketError("bad-type", "%d" % kind)
    elif first & 15:
        raise PacketError("bad-flags", "%02x" % first)


def _publish(first: int, body: bytes) -> "Publish":
    if len(body) < 2:
        raise PacketError("truncated", "PUBLISH")
    at = 2 + (body[0] << 8 | body[1])
    if len(body) < at:
        raise PacketError("truncated", "PUBLISH")
    try:
        topic = str(body[2:at], "utf-8")
    except (UnicodeError, ValueError):
        raise PacketError("bad-text", "topic")
    if not topic or "\x00" in topic or "+" in topic or "#" in topic:
        raise PacketError("bad-text", "topic")
    qos = first >> 1 & 3
    packet_id = 0
    if qos:
        packet_id = _read_id(body, at)
        at += 2
    return Publish(topic, bytes(body[at:]), qos, first & 1 == 1, first & 8 == 8, packet_id)


def _read_id(body: bytes, at: int) -> int:
    if len(body) < at + 2:
        raise PacketError("truncated", "packet id")
    number = body[at] << 8 | body[at + 1]
    if number == 0:
        raise PacketError("bad-id")  # 2.3.1
    return number


def _exactly(body: bytes, size: int) -> None:
    if len(body) != size:
        raise PacketError("truncated" if len(body) < size else "trailing")
