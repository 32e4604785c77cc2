"""The quick client against paho's own reading of the same bytes, and against brokers."""

import random
import socket
import threading

import paho.mqtt.client as paho
import pytest
from gateway_kit import broker_running, enrol_device, free_port, make_gateway, wait_until
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from gateway.client import BatchClient
from gateway.config import GatewayConfig


def publish(topic, payload, mid=0, flags=0):
    qos = 1 if mid else 0
    body = len(topic).to_bytes(2, "big") + topic + (mid.to_bytes(2, "big") if qos else b"")
    body += payload
    size, head = len(body), bytes([0x30 | qos << 1 | flags])
    while size > 127:
        head += bytes([size & 127 | 128])
        size >>= 7
    return head + bytes([size]) + body


class Scripted:
    """A socket that gives its bytes in pieces of random size and takes what is sent."""

    def __init__(self, data, rng):
        self.data, self.rng = data, rng
        self.sent = b""
        self.full = False

    def recv(self, n):
        if not self.data:
            raise BlockingIOError
        n = min(n, self.rng.randrange(1, 700))
        piece, self.data = self.data[:n], self.data[n:]
        return piece

    def send(self, data):
        if self.full:
            raise BlockingIOError
        n = self.rng.randrange(1, len(data) + 1)
        self.sent += data[:n]
        return n

    def fileno(self):
        return -1

    def close(self):
        pass


def client(sock):
    made = BatchClient(CallbackAPIVersion.VERSION2, "x", manual_ack=True)
    made._sock = sock
    return made


def drain(made, limit=10**9):
    got = []
    sink = lambda topic, payload, mid: got.append((topic, bytes(payload), mid))  # noqa: E731
    code = MQTTErrorCode.MQTT_ERR_SUCCESS
    while made._sock is not None and (made._sock.data or made.buffered()):
        before = len(got)
        code = made.take(sink, lambda before=before: len(got) - before < limit)
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            break
    return got, code


def test_packets_come_out_whole_however_they_were_cut():
    rng = random.Random(4)
    for round_ in range(60):
        sent, data = [], b""
        for n in range(rng.randrange(1, 30)):
            mid = rng.choice([0, rng.randrange(1, 65536)])
            topic = rng.choice([b"qis/1/00112233445566aa/up", b"a", b"\xff\xfe"])
            payload = rng.randbytes(rng.choice([0, 1, 90, 100, 200, 512, 20_000]))
            sent.append((topic, payload, mid))
            data += publish(topic, payload, mid, rng.choice([0, 1, 8]))
            if n % 5 == 0:
                data += b"\xd0\x00" + b"\x40\x02\x20\x01"  # PINGRESP, PUBACK of ours
        got, code = drain(client(Scripted(data, rng)), 1 + round_ % 7)
        assert code == MQTTErrorCode.MQTT_ERR_SUCCESS
        assert got == sent


def test_what_paho_reads_is_the_same():
    """One byte stream through both."""
    rng = random.Random(9)
    sent = [(b"t/%d" % n, rng.randbytes(n * 7), n + 1) for n in range(60)]
    data = b"".join(publish(*one) for one in sent)
    heard = []
    other = paho.Client(CallbackAPIVersion.VERSION2, "y", manual_ack=True)
    other.on_message = lambda c, u, m: heard.append((m.topic.encode(), bytes(m.payload), m.mid))
    other._sock = Scripted(data, rng)
    while len(heard) < len(sent):
        assert other.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS
    assert drain(client(Scripted(data, rng)))[0] == heard == sent


@pytest.mark.parametrize(
    "bad", [b"\x32\xff\xff\xff\xff\x01", b"\x32\x80\x80\x80\x80", b"\x32\xff\xff\xff\x7f"]
)
def test_bytes_that_are_no_mqtt_end_the_connection(bad):
    made = client(Scripted(bad, random.Random(1)))
    _, code = drain(made)
    assert code != MQTTErrorCode.MQTT_ERR_SUCCESS


@pytest.mark.parametrize(
    "bad", [b"\x32\x01\x00", b"\x32\x02\x00\x09", b"\x32\x03\x00\x01a", b"\x30\x00"]
)
def test_a_publish_cut_short_inside_is_never_handed_over(bad):
    got, _ = drain(client(Scripted(bad, random.Random(1))))
    assert got == []


def test_writing_survives_a_full_socket():
    rng = random.Random(2)
    made = client(Scripted(b"", rng))
    sock = made._sock
    sock.full = True
    expected = b""
    for mid in range(1, 300):
        made.ack(mid, 1)
        expected += b"\x40\x02" + mid.to_bytes(2, "big")
        if mid % 50 == 0:
            payload = b"x" * mid
            made.publish("t", payload)
            expected += publish(b"t", payload, made._mid)
            made.loop_write()
            assert made.want_write()
    sock.full = False
    while made.want_write():
        made.loop_write()
    assert sock.sent == expected


def test_the_broker_hangs_up():
    left, right = socket.socketpair()
    left.setblocking(False)
    made = client(left)
    made.data = b""
    right.sendall(publish(b"t", b"last words", 7))
    right.close()
    got = []
    code = made.take(lambda *m: got.append(m), lambda: True)
    assert got == [(b"t", b"last words", 7)]
    assert code != MQTTErrorCode.MQTT_ERR_SUCCESS
    assert made.socket() is None
    left.close()


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_on_a_real_broker(tmp_path, kind):
    """Both hooks are in use: a paho that no longer calls them fails here."""
    folder, port = tmp_path / "gw", free_port()
    make_gateway(folder, port)
    config = GatewayConfig(folder)
    enrol_device(folder, "d")
    with broker_running(kind, folder, port):
        made = BatchClient(
            CallbackAPIVersion.VERSION2, config.user, clean_session=False, manual_ack=True
        )
        made.username_pw_set(config.user, config.password)
        up = threading.Event()
        granted = threading.Event()
        made.on_connect = lambda c, *_: (up.set(), c.subscribe("qis/1/+/ack", 1))
        made.on_subscribe = lambda *_: granted.set()
        made.connect("127.0.0.1", port, 5)
        got = []

        def heard(topic, payload, mid):
            got.append(payload)
            made.ack(mid, 1)

        def turn():
            made.take(heard, lambda: True)
            made.loop_write()
            made.loop_misc()

        def until(condition):
            wait_until(lambda: (turn(), condition())[1], 10)

        until(granted.is_set)
        assert up.is_set()
        # iotcore has no rules: what is published comes back. Mosquitto lets it be written.
        for n in range(300):
            made.publish("qis/1/00112233445566aa/ack", b"%d" % n)
        if kind == "iotcore":
            until(lambda: len(got) == 300)
            assert [int(payload) for payload in got] == list(range(300))
        until(lambda: not made.want_write())
        for _ in range(20):
            turn()
        made.disconnect()
        made.loop_write()
        assert made.socket() is None
