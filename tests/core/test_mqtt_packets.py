"""The MQTT codec: roundtrip, every truncation, every flipped byte, another's bytes."""

import json
import unittest

import mqtt_peer as peer

from mpy_port.mqtt import packets
from mpy_port.mqtt.packets import Decoder, PacketError

HERE = __file__.rpartition("/")[0] or "."


def decode(data, step=0, **limits):
    """Every packet in the bytes, fed `step` at a time (0 = at once)."""
    decoder = Decoder(**limits)
    found = []
    for at in range(0, len(data), step or len(data) or 1):
        decoder.feed(data[at : at + (step or len(data))])
        while True:
            one = decoder.next()
            if one is None:
                break
            found.append(one)
    return found


FROM_BROKER = [
    (peer.connack(), packets.Connack(False, 0)),
    (peer.connack(True), packets.Connack(True, 0)),
    (peer.connack(False, 5), packets.Connack(False, 5)),
    (peer.puback(1), packets.Puback(1)),
    (peer.puback(65535), packets.Puback(65535)),
    (peer.suback(258, [0, 1, 2, 128]), packets.Suback(258, b"\x00\x01\x02\x80")),
    (peer.unsuback(7), packets.Unsuback(7)),
    (peer.PINGRESP, packets.Pingresp()),
    (peer.publish("a/b", b""), packets.Publish("a/b", b"", 0, False, False, 0)),
    (
        peer.publish("\u00e9/\u6c34", b"x" * 200, 1, True, True, 4660),
        packets.Publish("\u00e9/\u6c34", b"x" * 200, 1, True, True, 4660),
    ),
]


class FromTheBroker(unittest.TestCase):
    def test_each_packet(self):
        for data, expected in FROM_BROKER:
            self.assertEqual(decode(data), [expected])
            self.assertEqual(type(decode(data)[0]), type(expected))

    def test_a_stream_cut_anywhere(self):
        data = b"".join([d for d, _ in FROM_BROKER])
        expected = [e for _, e in FROM_BROKER]
        for step in (1, 2, 3, 7, 64, 0):
            self.assertEqual(decode(data, step), expected)

    def test_every_truncation_waits_or_is_refused(self):
        for data, expected in FROM_BROKER:
            for end in range(len(data)):
                self.assertEqual(decode(data[:end]), [])
            first, body = peer.split(data)[0][0]
            for end in range(len(body)):
                try:
                    shorter = packets.parse(first, body[:end])
                except PacketError:
                    continue
                # Shorter payloads and lists of codes are packets of their own.
                self.assertTrue(first >> 4 == 3 or (first >> 4 == 9 and end >= 3), repr(expected))
                self.assertNotEqual(shorter, expected)
            if first >> 4 not in (3, 9):
                self.refused("trailing", peer.packet(first, body + b"\x00"))

    def test_every_flipped_bit_is_read_or_refused(self):
        read = refused = 0
        for data, _ in FROM_BROKER:
            for at in range(len(data)):
                for bit in range(8):
                    flipped = bytearray(data)
                    flipped[at] ^= 1 << bit
                    try:
                        decode(bytes(flipped) + peer.PINGRESP * 4, max_packet=512)
                        read += 1
                    except PacketError as error:
                        self.assertTrue(error.reason)
                        refused += 1
        self.assertTrue(read > 100 and refused > 100, (read, refused))

    def refused(self, reason, data, **limits):
        try:
            decode(data, **limits)
        except PacketError as error:
            self.assertEqual(error.reason, reason)
        else:
            self.fail("taken: " + repr(data))

    def test_what_a_broker_may_not_send(self):
        for reason, data in (
            ("bad-type", b"\x00\x00"),
            ("bad-type", b"\xf0\x00"),
            ("bad-type", b"\x10\x00"),
            ("bad-type", b"\x62\x02\x00\x01"),
            ("bad-type", b"\xe0\x00"),
            ("bad-flags", b"\x21\x02\x00\x00"),
            ("bad-flags", b"\xd1\x00"),
            ("bad-flags", b"\x34\x05\x00\x01a\x00\x01"),  # QoS 2
            ("bad-flags", b"\x36\x05\x00\x01a\x00\x01"),  # QoS 3
            ("bad-flags", b"\x38\x03\x00\x01a"),  # DUP with QoS 0
            ("bad-length", b"\xd0\xff\xff\xff\xff\x01"),
            ("bad-code", b"\x20\x02\x02\x00"),
            ("bad-code", b"\x20\x02\x00\x06"),
            ("bad-code", b"\x20\x02\x01\x05"),
            ("bad-code", b"\x90\x03\x00\x01\x03"),
            ("truncated", b"\x90\x02\x00\x01"),
            ("truncated", b"\x30\x00"),
            ("truncated", b"\x30\x03\x00\x02a"),
            ("truncated", b"\x32\x04\x00\x01a\x00"),
            ("trailing", b"\xd0\x01\x00"),
            ("trailing", b"\x40\x03\x00\x01\x00"),
            ("bad-id", b"\x40\x02\x00\x00"),
            ("bad-id", b"\x32\x05\x00\x01a\x00\x00"),
            ("bad-text", b"\x30\x02\x00\x00"),
            ("bad-text", b"\x30\x03\x00\x01+"),
            ("bad-text", b"\x30\x04\x00\x02a#"),
            ("bad-text", b"\x30\x03\x00\x01\x00"),
            ("bad-text", b"\x30\x04\x00\x02\xff\xfe"),
        ):
            self.refused(reason, data)

    def test_the_first_byte_is_enough_to_refuse(self):
        """A port that speaks HTTP is not waited for until its 'length' has come."""
        self.refused("bad-flags", b"HTTP/1.0 400 Bad Request\r\n")


class TooLong(unittest.TestCase):
    def test_a_long_message_is_left_out_and_the_stream_goes_on(self):
        long = peer.publish("a/b", b"x" * 5000, 1, False, False, 9)
        data = peer.puback(1) + long + peer.puback(2)
        expected = [
            packets.Puback(1),
            packets.Publish("a/b", None, 1, False, False, 9),
            packets.Puback(2),
        ]
        for step in (1, 5, 100, 4999, 0):
            self.assertEqual(decode(data, step, max_packet=64), expected)

    def test_what_waits_is_bounded(self):
        decoder = Decoder(max_packet=64)
        data = peer.publish("a/b", b"x" * 100000)
        seen = 0
        for at in range(0, len(data), 50):
            decoder.feed(data[at : at + 50])
            seen += decoder.next() is not None
            self.assertTrue(len(decoder._data) - decoder._at <= 64 + 50)
        self.assertEqual((seen, decoder.oversize), (1, 1))

    def test_only_messages_may_be_long(self):
        for data in (
            peer.suback(1, [1] * 100),
            b"\x40\xff\x7f",
            peer.publish("t" * 100, b"x" * 100),
            b"\x32\x80\x01\x00\x7f" + b"t" * 60,
        ):
            with self.assertRaises(PacketError):
                decode(data, max_packet=64)


class ToTheBroker(unittest.TestCase):
    def read(self, data):
        found, left = peer.split(data)
        self.assertEqual((len(found), left), (1, b""))
        return peer.read(found[0][0], found[0][1])

    def test_connect(self):
        self.assertEqual(
            self.read(
                packets.encode_connect(
                    "dev", 60, username="u", password="p\u00e9", will=("a/state", b"off")
                )
            ),
            {
                "kind": "connect", "client": "dev", "keepalive": 60, "clean": False,
                "username": "u", "password": "p\u00e9", "will": ("a/state", b"off", 1, True),
            },
        )  # fmt: skip
        plain = {"kind": "connect", "client": "", "keepalive": 0, "clean": True}
        self.assertEqual(self.read(packets.encode_connect("", 0, True)), plain)

    def test_publish(self):
        for topic in ("a", "qis/1/ab/up", "\u6c34" * 50):
            for size in (0, 1, 120, 127, 128, 512, 16383, 20000):
                for qos, retain, dup in ((0, False, False), (1, True, False), (1, False, True)):
                    data = packets.encode_publish(topic, b"z" * size, qos, retain, dup, 513)
                    self.assertEqual(
                        self.read(data),
                        {
                            "kind": "publish", "topic": topic, "payload": b"z" * size,
                            "qos": qos, "retain": retain, "dup": dup, "id": 513 if qos else 0,
                        },
                    )  # fmt: skip

    def test_the_others(self):
        self.assertEqual(self.read(packets.encode_puback(65535)), {"kind": "puback", "id": 65535})
        wanted = [("a/+/c", 1), ("#", 0)]
        self.assertEqual(
            self.read(packets.encode_subscribe(3, wanted)),
            {"kind": "subscribe", "id": 3, "filters": wanted},
        )
        self.assertEqual(
            self.read(packets.encode_unsubscribe(4, ["a", "b"])),
            {"kind": "unsubscribe", "id": 4, "filters": ["a", "b"]},
        )
        self.assertEqual(self.read(packets.PINGREQ), {"kind": "ping"})
        self.assertEqual(self.read(packets.DISCONNECT), {"kind": "disconnect"})

    def test_what_a_client_may_not_send(self):
        for call in (
            lambda: packets.encode_publish("a/+", b"", 0, False, False, 0),
            lambda: packets.encode_publish("", b"", 0, False, False, 0),
            lambda: packets.encode_publish("a\x00", b"", 0, False, False, 0),
            lambda: packets.encode_publish("t" * 65536, b"", 0, False, False, 0),
            lambda: packets.encode_publish("a", b"", 2, False, False, 1),
            lambda: packets.encode_publish("a", b"", 1, False, False, 0),
            lambda: packets.encode_publish("a", b"", 1, False, False, 65536),
            lambda: packets.encode_puback(0),
            lambda: packets.encode_subscribe(1, []),
            lambda: packets.encode_subscribe(1, [("", 0)]),
            lambda: packets.encode_subscribe(1, [("a", 2)]),
            lambda: packets.encode_unsubscribe(1, []),
            lambda: packets.encode_connect("", 60),
            lambda: packets.encode_connect("a", 65536),
            lambda: packets.encode_connect("a", 60, will=("#", b"")),
            lambda: packets.encode_connect("a", 60, will=("a", b"x" * 65536)),
        ):
            with self.assertRaises(ValueError):
                call()


class Paho(unittest.TestCase):
    """Bytes that paho sent, captured by tests/vectors/mqtt_paho.py."""

    def test_same_bytes(self):
        with open(HERE + "/../vectors/mqtt_paho.json") as file:
            vectors = json.load(file)["packets"]
        self.assertTrue(len(vectors) >= 20)
        kinds = []
        for vector in vectors:
            fields = vector["fields"]
            kind = vector["kind"]
            if "payload" in fields:
                fields["payload"] = bytes(fields["payload"])
            if fields.get("will"):
                fields["will"] = (fields["will"][0], bytes(fields["will"][1]))
            if kind in ("pingreq", "disconnect"):
                data = getattr(packets, kind.upper())
            else:
                data = getattr(packets, "encode_" + kind)(**fields)
            self.assertEqual("".join(["%02x" % b for b in data]), vector["hex"], kind)
            kinds.append(kind)
        for kind in (
            "connect", "publish", "puback", "subscribe", "unsubscribe", "pingreq", "disconnect",
        ):  # fmt: skip
            self.assertTrue(kind in kinds, kind)


if __name__ == "__main__":
    unittest.main()
