"""Who may do what on a broker: mosquitto's rules as generated, the embedded one's limits."""

import contextlib
import json
import os
import threading
import time
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from gateway_kit import (
    CRYPTO,
    broker_running,
    enrol_device,
    free_port,
    gateway,
    listening,
    make_gateway,
    wait_until,
)
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.config import Config
from edge_agent.frame import DeviceKeys
from gateway.mosquitto import DOWN, hashed


class Client:
    """A plain MQTT client that notes what it gets."""

    def __init__(self, port, user, password, name=None, inflight=20):
        self.got = []
        self.granted = {}
        self.connected = threading.Event()
        self.refused = threading.Event()
        self.sent = set()
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=name or user or "nobody", clean_session=False
        )
        # Mosquitto hangs up on a client that publishes what it may not.
        self.client.reconnect_delay_set(0.05, 0.05)
        self.client.max_inflight_messages_set(inflight)
        if user:
            self.client.username_pw_set(user, password)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = lambda *_: self.refused.set()
        self.client.on_message = lambda c, u, m: self.got.append((m.topic, bytes(m.payload)))
        self.client.on_subscribe = self._on_subscribe
        self.client.on_publish = lambda c, u, mid, rc, p: self.sent.add(mid)
        self.client.connect("127.0.0.1", port, 20)
        self.client.loop_start()

    def _on_connect(self, _client, _data, _flags, reason, _props):
        (self.refused if reason.is_failure else self.connected).set()

    def _on_subscribe(self, _client, _data, mid, reasons, _props):
        self.granted[mid] = not reasons[0].is_failure

    def subscribe(self, topic):
        """Whether the broker granted it."""
        _, mid = self.client.subscribe(topic, 1)
        wait_until(lambda: mid in self.granted, 5)
        return self.granted[mid]

    def publish(self, topic, payload):
        mid = self.client.publish(topic, payload, 1).mid
        wait_until(lambda: mid in self.sent, 5)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def clients(tmp_path):
    """connect(user, password) on whatever broker the test runs."""
    opened_clients = []

    def connect(port, user, password, name=None, ok=True, inflight=20):
        client = Client(port, user, password, name, inflight)
        opened_clients.append(client)
        wait_until(lambda: client.connected.is_set() or client.refused.is_set(), 5)
        assert client.connected.is_set() is ok
        return client

    yield connect
    for client in opened_clients:
        with contextlib.suppress(Exception):
            client.close()


def credentials(path):
    config = Config.load(str(path))
    keys = DeviceKeys(CRYPTO, config.agent, config.key, config.generation)
    return config.agent.hex(), keys.mqtt_password()


@pytest.fixture
def place(tmp_path):
    folder, port = tmp_path / "gw", free_port()
    fields = make_gateway(folder, port)
    return folder, port, ("gateway-" + fields["gateway"], fields["password"])


def test_the_rules_on_a_real_mosquitto(place, clients):
    folder, port, owner = place
    one = credentials(enrol_device(folder, "one"))
    two = credentials(enrol_device(folder, "two"))
    me, other = f"qis/1/{one[0]}/", f"qis/1/{two[0]}/"
    with broker_running("mosquitto", folder, port):
        gate, device, neighbour = clients(port, *owner), clients(port, *one), clients(port, *two)
        assert gate.subscribe("qis/1/+/up") and gate.subscribe("qis/1/+/state")
        for name in DOWN:
            assert device.subscribe(me + name)
            assert neighbour.subscribe(other + name)
        # Mosquitto grants any subscription and checks when it delivers.
        for topic in (me + "up", other + "up", other + "ack", "qis/1/+/ack", "#", "$SYS/#"):
            device.subscribe(topic)

        # What a device may write arrives; what it may not goes nowhere.
        device.publish(other + "up", b"in another's name")
        device.publish(other + "state", b"in another's name")
        for name in DOWN:
            device.publish(me + name, b"to myself")
            device.publish(other + name, b"to another")
            gate.publish(me + name, name.encode())
        device.publish(me + "state", b"online")
        device.publish(me + "up", b"mine")
        wait_until(lambda: len(gate.got) >= 2 and len(device.got) >= 4, 5)
        time.sleep(0.3)  # for what must not come
        assert sorted(gate.got) == [(me + "state", b"online"), (me + "up", b"mine")]
        # Overlapping subscriptions may bring a message twice.
        assert set(device.got) == {(me + name, name.encode()) for name in DOWN}
        assert neighbour.got == []

        # The gateway is no device either.
        gate.publish(other + "up", b"forged by the gateway's user")
        device.got.clear()
        gate.publish(other + "ack", b"for the other")
        neighbour.publish(other + "up", b"theirs")
        wait_until(lambda: (other + "up", b"theirs") in gate.got, 5)
        time.sleep(0.3)
        assert device.got == []
        assert (other + "up", b"forged by the gateway's user") not in gate.got


def test_only_the_operator_judges_on_a_real_mosquitto(place, clients):
    folder, port, owner = place
    one = credentials(enrol_device(folder, "one"))
    access = json.loads(gateway("-C", folder, "feedback", "--access", "--json").stdout)
    topic = access["topic"].replace("AGENT", one[0])
    assert topic == f"qis/1/{one[0]}/judge" and access["port"] == port
    with broker_running("mosquitto", folder, port):
        gate, device = clients(port, *owner), clients(port, *one)
        operator = clients(port, access["user"], access["password"])
        assert gate.subscribe("qis/1/+/judge")
        leaves = [f"qis/1/{one[0]}/{leaf}" for leaf in ("up", "state", "ack", "box")]
        for leaf in (*leaves, topic):
            device.subscribe(leaf)
            operator.subscribe(leaf)
        operator.publish(topic, b"judged")
        gate.publish(f"qis/1/{one[0]}/ack", b"ack")
        # Mosquitto hangs up on who does this; the clients come back.
        device.publish(topic, b"my own judge")
        for leaf in leaves:
            operator.publish(leaf, b"not mine")
        wait_until(lambda: gate.got and device.got, 5)
        time.sleep(0.3)
        assert gate.got == [(topic, b"judged")] and operator.got == []
        assert device.got == [(f"qis/1/{one[0]}/ack", b"ack")]


def test_credentials_on_a_real_mosquitto_follow_the_registry(place, clients):
    folder, port, owner = place
    one = credentials(enrol_device(folder, "one"))
    with broker_running("mosquitto", folder, port):
        clients(port, *owner)
        clients(port, *one)
        clients(port, one[0], "0" * 32, ok=False)
        clients(port, "", "", ok=False)
        clients(port, "gateway", "", ok=False)
        # A device enrolled while it runs is let in, one that is revoked is not.
        two = credentials(enrol_device(folder, "two"))
        wait_until(lambda: _lets_in(port, *two), 5)
        gateway("-C", folder, "revoke", "one")
        wait_until(lambda: not _lets_in(port, *one), 5)
        # A rotated key brings a new password.
        gateway("-C", folder, "rotate", "two", "--out", folder.parent / "two-2.json")
        new = credentials(folder.parent / "two-2.json")
        assert new != two
        wait_until(lambda: _lets_in(port, *new) and not _lets_in(port, *two), 5)


def _lets_in(port, user, password):
    client = Client(port, user, password, name="probe")
    try:
        wait_until(lambda: client.connected.is_set() or client.refused.is_set(), 5)
        return client.connected.is_set()
    finally:
        client.close()


def test_mosquitto_keeps_a_long_backlog_and_survives_a_restart(place, clients):
    """Its default would drop everything beyond 1,000."""
    folder, port, owner = place
    one = credentials(enrol_device(folder, "one"))
    topic = f"qis/1/{one[0]}/up"
    with broker_running("mosquitto", folder, port):
        gate = clients(port, *owner)
        assert gate.subscribe("qis/1/+/up")
        gate.close()
        device = clients(port, *one, inflight=0)
        for n in range(2500):
            last = device.client.publish(topic, b"%d" % n, 1).mid
        wait_until(lambda: last in device.sent, 10)
        device.close()
    # SIGTERM wrote its queue; the files were not readable to others.
    stored = folder / "mosquitto" / "mosquitto.db"
    assert stored.stat().st_size > 0
    assert folder.stat().st_mode & 0o077 == 0
    with broker_running("mosquitto", folder, port):
        gate = clients(port, *owner)
        wait_until(lambda: len(gate.got) >= 2500, 10)
        assert [int(p) for _, p in gate.got] == list(range(2500))


def test_the_password_file_is_the_one_mosquitto_would_write(tmp_path):
    salt = bytes(range(12))
    assert hashed("x", salt).startswith("$7$101$AAECAwQFBgcICQoL$")
    assert hashed("x", salt) != hashed("y", salt)


def test_the_embedded_broker(place, clients):
    folder, port, owner = place
    one = credentials(enrol_device(folder, "one"))
    with broker_running("iotcore", folder, port) as process:
        gate, device = clients(port, *owner), clients(port, *one)
        clients(port, one[0], "0" * 32, ok=False)
        clients(port, "", "", ok=False)
        gate.subscribe("qis/1/+/up")
        device.publish(f"qis/1/{one[0]}/up", b"hello")
        wait_until(lambda: gate.got, 5)
        # Loopback only: nothing listens on other addresses of this machine.
        for line in Path("/proc/net/tcp").read_text().splitlines():
            address, number = (line.split() + ["", ""])[1].partition(":")[::2]
            if number == f"{port:04X}":
                assert address == "0100007F", line
        # Enrolment reaches it while it runs, in the same process.
        two = credentials(enrol_device(folder, "two"))
        wait_until(lambda: listening(port) and _lets_in(port, *two), 10)
        assert process.poll() is None
        os.kill(process.pid, 0)
    assert not listening(port)


def test_a_port_in_use_is_said_so(place):
    folder, port, _ = place
    with broker_running("iotcore", folder, port):
        done = gateway("-C", folder, "broker", check=False)
        assert done.returncode == 3
        assert "Choose a free port" in done.stderr
