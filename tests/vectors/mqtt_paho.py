"""Writes mqtt_paho.json: MQTT packets as paho sends them, captured on a socket.

    python tests/vectors/mqtt_paho.py

A paho client talks to a socket of this script, which answers just enough; each packet is
kept with the arguments that our encoder needs to make the same bytes.
"""

import json
import socket
import sys
import threading
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "core"))

import mqtt_peer as peer  # noqa: E402
import paho.mqtt.client as paho  # noqa: E402
from paho.mqtt.enums import CallbackAPIVersion  # noqa: E402

CONNECTS = [
    {"client_id": "dev", "keepalive_s": 60, "clean": False},
    {"client_id": "", "keepalive_s": 1, "clean": True},
    {"client_id": "0102030405060708", "keepalive_s": 30, "clean": False,
     "username": "0102030405060708", "password": "secret",
     "will": ["qis/1/0102030405060708/state", list(b"offline")]},
    {"client_id": "x" * 200, "keepalive_s": 65535, "clean": True, "username": "ü",
     "will": ["w", []], "will_qos": 0, "will_retain": False},
]  # fmt: skip
PUBLISHES = [
    (topic, size, qos, retain)
    for topic in ("a", "qis/1/0102030405060708/up", "température/水")
    for size, qos, retain in ((0, 0, False), (5, 0, True), (130, 1, False), (512, 1, True))
]


class Capture:
    """Plays a broker for one connection; `packets` are what the client sent."""

    def __init__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.packets = []
        self.arrived = threading.Condition()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        sock, _ = self.server.accept()
        left = b""
        while True:
            data = sock.recv(4096)
            if not data:
                return
            found, left = peer.split(left + data)
            for first, body in found:
                with self.arrived:
                    self.packets.append(peer.packet(first, body))
                    self.arrived.notify_all()
                self.answer(sock, first, body)

    @staticmethod
    def answer(sock, first, body):
        kind = first >> 4
        if kind == 1:
            sock.sendall(peer.connack())
        elif kind == 8:
            sock.sendall(peer.suback(body[0] << 8 | body[1], [1]))
            sock.sendall(peer.publish("a/b/c", b"hello", 1, packet_id=4660))
        elif kind == 12:
            sock.sendall(peer.PINGRESP)

    def wait(self, count):
        with self.arrived:
            if not self.arrived.wait_for(lambda: len(self.packets) >= count, 10):
                raise SystemExit(f"only {len(self.packets)} of {count} packets came")


def run(fields, actions):
    """Packets of one connection; actions(client) yields (kind, fields) as it asks."""
    capture = Capture()
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=fields["client_id"],
        clean_session=fields["clean"],
        protocol=paho.MQTTv311,
    )
    client.max_inflight_messages_set(1000)
    if "username" in fields:
        client.username_pw_set(fields["username"], fields.get("password"))
    if "will" in fields:
        topic, payload = fields["will"]
        client.will_set(
            topic, bytes(payload), fields.get("will_qos", 1), fields.get("will_retain", True)
        )
    client.connect("127.0.0.1", capture.port, fields["keepalive_s"])
    client.loop_start()
    made = [("connect", fields)]
    capture.wait(1)
    while not client.is_connected():
        pass
    for count, action in actions(client):
        made += action
        capture.wait(count + 1)
    client.disconnect()
    made.append(("disconnect", {}))
    capture.wait(len(made))
    client.loop_stop()
    out = []
    for (kind, given), data in zip(made, capture.packets, strict=True):
        out.append({"kind": kind, "fields": given, "hex": data.hex()})
    return out


def nothing(client):
    return iter(())


def everything(client):
    count = 0
    for topic, size, qos, retain in PUBLISHES:
        payload = bytes(i & 255 for i in range(size))
        mid = client.publish(topic, payload, qos, retain).mid
        count += 1
        fields = {
            "topic": topic, "payload": list(payload), "qos": qos, "retain": retain,
            "dup": False, "packet_id": mid,
        }  # fmt: skip
        yield count, [("publish", fields)]
    _, mid = client.subscribe("a/+/c", 1)
    count += 2
    yield (
        count,
        [
            ("subscribe", {"packet_id": mid, "filters": [["a/+/c", 1]]}),
            ("puback", {"packet_id": 4660}),
        ],
    )


def rest(client):
    _, mid = client.unsubscribe(["a/+/c", "#"])
    yield 1, [("unsubscribe", {"packet_id": mid, "filters": ["a/+/c", "#"]})]
    client._send_pingreq()
    yield 2, [("pingreq", {})]


def main():
    made = []
    for fields, actions in zip(CONNECTS, (nothing, rest, nothing, nothing), strict=True):
        made += run(fields, actions)
    made += run({"client_id": "all", "keepalive_s": 60, "clean": True}, everything)
    content = {
        "source": f"paho-mqtt {version('paho-mqtt')}, tests/vectors/mqtt_paho.py",
        "packets": made,
    }
    text = json.dumps(content, indent=None, separators=(",", ":"), ensure_ascii=True)
    (HERE / "mqtt_paho.json").write_text(text.replace('{"kind"', '\n{"kind"') + "\n")
    print(f"{len(made)} packets")


if __name__ == "__main__":
    main()
