"""The broker's half of MQTT 3.1.1, written apart from the client's, and a small broker.

For tests: reads what a client sends, strictly, and keeps what a broker keeps.
"""


class Bad(Exception):
    """The client sent what the standard forbids."""


def length(number):
    out = []
    while True:
        number, low = number // 128, number % 128
        out.append(low + (128 if number else 0))
        if not number:
            return bytes(out)


def packet(first, body):
    return bytes([first]) + length(len(body)) + body


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2, "big") + data


def connack(present=False, code=0):
    return packet(0x20, bytes([present, code]))


def puback(packet_id):
    return packet(0x40, packet_id.to_bytes(2, "big"))


def suback(packet_id, codes):
    return packet(0x90, packet_id.to_bytes(2, "big") + bytes(codes))


def unsuback(packet_id):
    return packet(0xB0, packet_id.to_bytes(2, "big"))


PINGRESP = b"\xd0\x00"


def publish(topic, payload, qos=0, retain=False, dup=False, packet_id=0):
    body = text(topic) + (packet_id.to_bytes(2, "big") if qos else b"") + payload
    return packet(0x30 | dup << 3 | qos << 1 | retain, body)


class Reader:
    """Reads fields of one packet's body."""

    def __init__(self, body):
        self.body, self.at = body, 0

    def take(self, n):
        if self.at + n > len(self.body):
            raise Bad("truncated")
        self.at += n
        return self.body[self.at - n : self.at]

    def u16(self):
        return int.from_bytes(self.take(2), "big")

    def block(self):
        return self.take(self.u16())

    def packet_id(self):
        number = self.u16()
        if not number:
            raise Bad("packet id 0")
        return number

    def rest(self):
        return self.take(len(self.body) - self.at)

    def end(self):
        if self.at != len(self.body):
            raise Bad("trailing bytes")


def split(data):
    """(packets as (first byte, body), what is left over)."""
    found = []
    while len(data) >= 2:
        number, shift, at = 0, 0, 1
        while at < len(data):
            number |= (data[at] & 127) << shift
            shift += 7
            at += 1
            if data[at - 1] < 128:
                break
        else:
            break
        if len(data) < at + number:
            break
        found.append((data[0], data[at : at + number]))
        data = data[at + number :]
    return found, data


def read(first, body):
    """A client's packet as a dict. Bad."""
    r = Reader(body)
    kind, flags = first >> 4, first & 15
    if kind == 1:
        if flags or r.block() != b"MQTT" or r.take(1) != b"\x04":
            raise Bad("not MQTT 3.1.1")
        bits = r.take(1)[0]
        out = {"kind": "connect", "clean": bits & 2 == 2, "keepalive": r.u16()}
        if bits & 1 or (bits & 0x40 and not bits & 0x80):
            raise Bad("connect flags")
        out["client"] = str(r.block(), "utf-8")
        if bits & 4:
            out["will"] = (str(r.block(), "utf-8"), r.block(), bits >> 3 & 3, bits & 0x20 == 0x20)
        elif bits & 0x38:
            raise Bad("will flags without will")
        if bits & 0x80:
            out["username"] = str(r.block(), "utf-8")
        if bits & 0x40:
            out["password"] = str(r.block(), "utf-8")
        r.end()
        return out
    if kind == 3:
        qos = flags >> 1 & 3
        if qos > 1 or (flags & 8 and not qos):
            raise Bad("publish flags")
        topic = str(r.block(), "utf-8")
        if not topic or "+" in topic or "#" in topic:
            raise Bad("topic")
        number = r.packet_id() if qos else 0
        return {
            "kind": "publish", "topic": topic, "id": number, "payload": r.rest(), "qos": qos,
            "retain": flags & 1 == 1, "dup": flags & 8 == 8,
        }  # fmt: skip
    if kind in (4, 8, 10):
        if flags != (0 if kind == 4 else 2):
            raise Bad("flags")
        number = r.packet_id()
        if kind == 4:
            r.end()
            return {"kind": "puback", "id": number}
        filters = []
        while r.at < len(body):
            name = str(r.block(), "utf-8")
            filters.append((name, r.take(1)[0]) if kind == 8 else name)
        if not filters:
            raise Bad("no filter")
        return {
            "kind": "subscribe" if kind == 8 else "unsubscribe",
            "id": number,
            "filters": filters,
        }
    if kind in (12, 14) and not flags and not body:
        return {"kind": "ping" if kind == 12 else "disconnect"}
    raise Bad("packet type %d" % kind)


class Broker:
    """A broker for one client: a session that persists, QoS 1 both ways.

    got: every PUBLISH taken, as (topic, payload, dup).  pubacks: ids acknowledged to us.
    """

    def __init__(self):
        self.session = False
        self.got = []
        self.connects = []
        self.queue = []  # messages for the client: [id, topic, payload, sent]
        self.next_id = 0
        self.silent = False
        self.link_down()

    def link_down(self):
        self.left = b""
        self.out = b""
        self.up = False
        for entry in self.queue:
            entry[3] = 0 if not entry[3] else -1

    def forget(self):
        """As after a loss of everything."""
        self.session = False
        self.queue = []

    def send(self, topic, payload):
        self.next_id += 1
        self.queue.append([self.next_id, topic, payload, 0])

    def take(self, data):
        found, self.left = split(self.left + data)
        for first, body in found:
            self.act(read(first, body))

    def act(self, p):
        kind = p["kind"]
        if not self.up and kind != "connect":
            raise Bad("before CONNECT")
        if kind == "connect":
            if self.up:
                raise Bad("second CONNECT")
            self.connects.append(p)
            self.up = True
            self.out += connack(self.session and not p["clean"])
            self.session = not p["clean"]
        elif kind == "subscribe":
            self.out += suback(p["id"], [q for _, q in p["filters"]])
        elif kind == "publish":
            self.got.append((p["topic"], p["payload"], p["dup"]))
            if p["qos"] and not self.silent:
                self.out += puback(p["id"])
        elif kind == "puback":
            self.queue = [e for e in self.queue if e[0] != p["id"]]
        elif kind == "ping":
            self.out += PINGRESP

    def give(self):
        """Bytes for the client."""
        if self.up:
            for entry in self.queue:
                if entry[3] != 1:
                    self.out += publish(entry[1], entry[2], 1, False, entry[3] == -1, entry[0])
                    entry[3] = 1
        out, self.out = self.out, b""
        return out
