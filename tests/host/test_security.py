"""Whom a gateway and its broker refuse: real mosquitto over TLS, real processes.

Each test is an attack; it asserts that nothing of it got through, that it was counted, and
where a person sees it. The honest device beside it is served all the while.
"""

import asyncio
import contextlib
import datetime
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from brokers import Pki, Server
from gateway_kit import (
    Publisher,
    domain_bytes,
    free_port,
    gateway,
    gateway_running,
    running,
    wait_until,
)
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.config import Config
from edge_agent.cpython.link_mqtt import MqttLink
from edge_agent.errors import LinkError
from edge_agent.frame import DeviceKeys
from gateway import ca
from gateway.broker_log import Refusals
from gateway.config import GatewayConfig
from gateway.keys import load_master
from gateway.opening import opened


class Site:
    """A gateway with TLS, its mosquitto and its ingest process; files of its devices."""

    def __init__(self, place: Path):
        self.place, self.folder = place, place / "gw"
        domain = place / "motion.domain"
        domain.write_bytes(domain_bytes())
        gateway(
            "init", self.folder, "--domain", domain, "--tls", "--name", "localhost",
            "--port", free_port(), "--device-port", free_port(),
        )  # fmt: skip
        self.config = GatewayConfig(self.folder)
        self.log = place / "gateway.log"

    def enrol(self, name):
        place = self.place / name
        place.mkdir()
        gateway("-C", self.folder, "enrol", name, "--out", place / "device.json")
        return place / "device.json"

    def device(self, path):
        """A publisher over TLS, with the certificate checked."""
        made = Publisher(path)
        fields = json.loads(path.read_text())["broker"]
        made.client.tls_set(str(path.parent / fields["tls"]["ca"]))
        made.client.connect_async(fields["host"], fields["port"], 10)
        made.client.loop_start()
        return made

    def client(self, user, password, name="x", version=paho.MQTTv311):
        """Somebody who has found the broker."""
        made = Somebody(user, password, name, version)
        made.client.tls_set(str(self.config.devices.ca))
        return made.start("localhost", self.config.devices.port)

    def status(self):
        return json.loads(gateway("-C", self.folder, "status", "--json").stdout)

    def refused(self):
        return (self.status()["broker"] or {"refused": {}})["refused"]

    def known(self, name):
        rows = json.loads(gateway("-C", self.folder, "devices", "--json").stdout)
        return next(row for row in rows if row["name"] == name)


class Somebody:
    def __init__(self, user, password, name, version):
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=version)
        self.client.username_pw_set(user, password)
        self.client.reconnect_on_failure = False
        self.codes, self.heard, self.acks = [], [], {}
        self.ended = threading.Event()
        self.client.on_connect = lambda c, d, f, reason, p: self.codes.append(reason)
        self.client.on_disconnect = lambda *_: self.ended.set()
        self.client.on_message = lambda c, d, m: self.heard.append((m.topic, m.payload))
        self.client.on_publish = lambda c, d, mid, reason, p: self.acks.update({mid: reason})

    def start(self, host, port):
        self.client.connect(host, port, 10)
        self.client.loop_start()
        wait_until(lambda: self.codes, 10)
        return self

    @property
    def inside(self):
        return not self.codes[-1].is_failure

    def send(self, topic, payload):
        """The broker's word on a publish."""
        mid = self.client.publish(topic, payload, 1).mid
        wait_until(lambda: mid in self.acks, 10)
        return self.acks[mid]

    def stop(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site"))
    command = [sys.executable, "-m", "gateway.cli", "-C", made.folder, "mosquitto"]
    said = made.place / "mosquitto.log"
    with (
        running(*command, log=said, ready=lambda: " running" in said.read_text()),
        gateway_running(made.folder, made.log),
    ):
        made.said = said
        yield made


@pytest.fixture(scope="module")
def honest(site):
    """A device that does nothing wrong."""
    made = site.device(site.enrol("honest"))
    assert made.ready.wait(10)
    yield made
    made.stop()


def serves(device, count=3):
    """The device's outcomes still arrive and are acknowledged."""
    device.make(count)
    device.send()
    wait_until(lambda: not device.held, 15)


def password(site, name):
    with opened(site.folder) as (_, _, registry):
        return registry.password(registry.find(name))


# -- strangers --------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["nobody", "wrong", "empty", "gateway"])
def test_a_stranger_is_refused(site, honest, who):
    agent = honest.device.agent.hex()
    user, word = {
        "nobody": ("00" * 8, "11" * 16),
        "wrong": (agent, "11" * 16),
        "empty": (agent, ""),
        "gateway": (site.config.user, "11" * 16),
    }[who]
    before = site.refused().get("login", 0)
    somebody = site.client(user, word)
    assert not somebody.inside
    somebody.stop()
    wait_until(lambda: site.refused().get("login", 0) > before, 10)
    serves(honest)


def test_without_tls_nobody_is_heard(site, honest):
    """Plain MQTT on the port for devices, and junk."""
    # Both ways in which mosquitto tells: as it accepts, and later.
    for first in (b"\x10\x10\0\x04MQTT\x04\2\0\x3c\0\4abcd", os.urandom(64)) * 4:
        before = site.refused().get("tls", 0)
        with socket.create_connection(("127.0.0.1", site.config.devices.port), 5) as sock:
            sock.sendall(first)
            sock.settimeout(10)
            answer = b""
            with contextlib.suppress(OSError):
                answer = sock.recv(64)
            assert not answer.startswith(b"\x20")
        wait_until(lambda before=before: site.refused().get("tls", 0) > before, 10)
    serves(honest)


def test_a_device_whose_connection_breaks_is_not_counted(site):
    """Without TLS's own goodbye, as when its process or its link goes."""
    device = site.device(site.enrol("broken"))
    assert device.ready.wait(10)
    before = site.refused()
    ended = threading.Event()
    device.client.on_disconnect = lambda *_: ended.set()
    socket.socket.shutdown(device.client.socket(), socket.SHUT_RDWR)
    assert ended.wait(10)
    device.stop()
    # What the broker says of the next one comes after what it said of this.
    somebody = site.client("00" * 8, "11" * 16)
    somebody.stop()
    wait_until(lambda: site.refused().get("login", 0) > before.get("login", 0), 10)
    assert site.refused()["tls"] == before.get("tls", 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_tls_is_refused(site):
    context = ssl.create_default_context(cafile=str(site.config.devices.ca))
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    before = site.refused().get("tls", 0)
    with (
        socket.create_connection(("127.0.0.1", site.config.devices.port), 5) as sock,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(sock, server_hostname="localhost")
    wait_until(lambda: site.refused().get("tls", 0) > before, 10)


def test_the_inner_listener_is_for_this_machine_alone(site):
    """Plain TCP listens on loopback only."""
    port = site.config.port
    local = [a for a in ca.found_names() if a[0].isdigit() and not a.startswith("127.")]
    listens = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True).stdout
    mine = [line.split()[1] for line in listens.splitlines()[1:] if line.split()[3] == "0A"]
    assert f"0100007F:{port:04X}" in mine and f"00000000:{port:04X}" not in mine
    for address in local:
        with pytest.raises(OSError):
            socket.create_connection((address, port), 1)


# -- devices that overstep -----------------------------------------------------------------


@pytest.mark.parametrize("leaf", ["up", "state", "ack", "box", "cfg", "judge"])
def test_a_device_cannot_publish_to_anothers_topic(site, honest, leaf):
    name = f"mallory-{leaf}"
    path = site.enrol(name)
    fields = json.loads(path.read_text())
    mallory = site.client(fields["agent"], password(site, name), version=paho.MQTTv5)
    assert mallory.inside
    accepted = site.known("honest")["outcomes"]
    before = site.refused().get("publish", 0)
    frame = honest.device.outcome(len(honest.made) + 1)
    assert str(mallory.send(honest.device.topic(leaf), frame)) == "Not authorized"
    wait_until(lambda: site.refused().get("publish", 0) == before + 1, 10)
    assert site.status()["broker"]["by"][fields["agent"]] >= 1
    newest = site.status()["broker"]["newest"][0]
    assert (newest["kind"], newest["who"], newest["what"]) == (
        "publish", fields["agent"], honest.device.topic(leaf),
    )  # fmt: skip
    mallory.stop()
    assert site.known("honest")["outcomes"] == accepted
    text = gateway("-C", site.folder, "status").stdout
    assert "broker     refused" in text and "publish" in text
    prom = (site.folder / "broker.prom").read_text()
    assert f'edge_gateway_broker_refused_total{{kind="publish"}} {before + 1}\n' in prom


@pytest.mark.parametrize("leaf", ["ack", "box", "cfg", "ota", "judge"])
def test_a_device_cannot_write_to_itself_what_only_its_gateway_may(site, leaf):
    """Its own acks above all: it could free what nobody holds."""
    name = f"self-{leaf}"
    fields = json.loads(site.enrol(name).read_text())
    topic = f"qis/1/{fields['agent']}/{leaf}"
    device = site.client(fields["agent"], password(site, name), version=paho.MQTTv5)
    device.client.subscribe(topic, 1)
    before = site.refused().get("publish", 0)
    assert str(device.send(topic, b"forged")) == "Not authorized"
    wait_until(lambda: site.refused().get("publish", 0) == before + 1, 10)
    assert device.heard == []
    device.stop()


def test_a_device_hears_nothing_that_is_for_another(site, honest):
    fields = json.loads(site.enrol("ear").read_text())
    ear = site.client(fields["agent"], password(site, "ear"))
    topics = ["#", "+/+/+/+", "qis/1/+/ack", honest.device.topic("ack"), honest.device.topic("up"),
              f"qis/1/{honest.device.agent.hex()}/#", "$SYS/#"]  # fmt: skip
    before = site.refused().get("subscribe", 0)
    for topic in topics:
        ear.client.subscribe(topic, 1)
    wait_until(lambda: site.refused().get("subscribe", 0) == before + len(topics), 10)
    serves(honest, 5)
    time.sleep(0.5)
    assert ear.heard == []
    ear.stop()


def test_a_device_cannot_take_over_anothers_session(site, honest):
    """MQTT throws out whoever has the same client id; here that is the user name's."""
    fields = json.loads(site.enrol("thief").read_text())
    gone = threading.Event()
    honest.client.on_disconnect = lambda *_: gone.set()
    thief = site.client(fields["agent"], password(site, "thief"), name=honest.device.agent.hex())
    assert thief.inside
    assert not gone.wait(1)
    honest.client.on_disconnect = None
    serves(honest)
    thief.stop()


def test_a_frame_of_another_device_on_ones_own_topic_is_refused(site, honest):
    """What the broker lets through, the gateway checks: agent, MAC and topic must agree."""
    name = "courier"
    path = site.enrol(name)
    fields = json.loads(path.read_text())
    courier = site.client(fields["agent"], password(site, name))
    frame = honest.device.outcome(len(honest.made) + 1)
    forged = bytearray(frame)
    forged[-1] ^= 1
    before = site.status()["rejected"].get("wrong-agent", 0)
    for payload in (frame, bytes(forged)):
        courier.send(f"qis/1/{fields['agent']}/up", payload)
    wait_until(lambda: site.status()["rejected"].get("wrong-agent", 0) == before + 2, 10)
    assert site.known(name)["outcomes"] == 0
    courier.stop()
    serves(honest)


# -- clones and stolen keys -------------------------------------------------------------------


def test_a_device_id_is_given_once(site, honest):
    out = site.place / "clone.json"
    done = gateway(
        "-C", site.folder, "enrol", "clone", "--agent", honest.device.agent.hex(), "--out", out,
        check=False,
    )  # fmt: skip
    assert done.returncode == 3 and "device id is in use" in done.stderr and not out.exists()


def test_a_clone_with_the_key_shows(site):
    """A copied flash: same id, key and journal, its own outcomes under the same numbers."""
    path = site.enrol("original")
    original = site.device(path)
    assert original.ready.wait(10)
    serves(original, 3)
    original.stop()
    clone = site.device(path)
    clone.device.journal = original.device.journal
    assert clone.ready.wait(10)
    clone.make(3, salt=99)
    clone.send()
    wait_until(lambda: len(clone.refused) == 3, 15)
    found = site.known("original")
    assert (found["outcomes"], found["conflicts"]) == (3, 3)
    assert found["forks"] >= 1
    assert site.status()["conflicts"] >= 3
    clone.stop()


def test_a_stolen_key_ends_with_its_revocation(site, honest):
    """At once: the thief is thrown out, and neither he nor his frames are let in again."""
    path = site.enrol("stolen")
    thief = site.device(path)
    assert thief.ready.wait(10)
    serves(thief)
    ended = threading.Event()
    thief.client.on_disconnect = lambda *_: ended.set()
    began = time.monotonic()
    gateway("-C", site.folder, "revoke", "stolen")
    assert ended.wait(5)
    assert time.monotonic() - began < 5
    thief.client.loop_stop()
    before = site.refused()["login"]
    again = site.client(thief.device.agent.hex(), thief.device.keys.mqtt_password())
    assert not again.inside
    wait_until(lambda: site.refused()["login"] > before, 10)
    # Nor through somebody who may connect.
    accomplice = json.loads(site.enrol("accomplice").read_text())
    other = site.client(accomplice["agent"], password(site, "accomplice"))
    other.send(f"qis/1/{accomplice['agent']}/up", thief.device.outcome(50))
    wait_until(lambda: site.status()["rejected"].get("wrong-agent", 0) >= 1, 10)
    other.stop()
    # Nor past the broker's rules, by whoever holds the gateway's own login.
    inner = Somebody(site.config.user, site.config.password, "inner", paho.MQTTv311)
    inner.start("127.0.0.1", site.config.port)
    assert inner.inside
    assert site.known("stolen")["outcomes"] == 3 and site.known("stolen")["revoked"]
    inner.stop()
    serves(honest)


def test_a_revoked_device_is_refused_by_the_gateway_itself(site):
    """Were the broker to let its frames through, as the embedded one may for a moment."""
    path = site.enrol("late")
    device = Publisher(path).device
    gateway("-C", site.folder, "revoke", "late")
    passwd = site.folder / "mosquitto" / "acl"
    rules = passwd.read_text()
    passwd.write_text(rules.replace("topic read qis/1/+/up", "topic readwrite qis/1/+/up"))
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: _reload(site))
        stack.callback(passwd.write_text, rules)
        _reload(site)
        inner = Somebody(site.config.user, site.config.password, "inner2", paho.MQTTv311)
        inner.start("127.0.0.1", site.config.port)
        inner.send(device.topic(), device.outcome(1))
        wait_until(lambda: site.status()["rejected"].get("revoked", 0) >= 1, 10)
        inner.stop()
    assert site.known("late")["outcomes"] == 0


def _reload(site):
    pid = int((site.folder / "mosquitto" / "mosquitto.pid").read_text())
    os.kill(pid, 1)
    time.sleep(0.3)


def test_an_old_password_ends_with_the_next_key_and_old_frames_do_not(site):
    path = site.enrol("rotated")
    device = site.device(path)
    assert device.ready.wait(10)
    serves(device, 2)
    device.stop()
    device.make(4)  # queued under the first key
    old = device.device.keys
    new = path.parent / "new.json"
    gateway("-C", site.folder, "rotate", "rotated", "--out", new)
    assert not site.client(device.device.agent.hex(), old.mqtt_password()).inside
    fresh = site.device(new)
    fresh.device.journal, fresh.made, fresh.held = device.device.journal, device.made, device.held
    assert fresh.ready.wait(10)
    fresh.send()
    wait_until(lambda: not fresh.held, 15)
    assert site.known("rotated")["outcomes"] == 6
    fresh.stop()


# -- brokers that are not ours -------------------------------------------------------------


def dated(pki, name, first, last):
    """A certificate with these days of validity, counted from today."""
    now = datetime.datetime.now(datetime.UTC)
    real = pki._builder

    def builder(subject, public):
        made = real(subject, public)
        made._not_valid_before = (now + datetime.timedelta(days=first)).replace(tzinfo=None)
        made._not_valid_after = (now + datetime.timedelta(days=last)).replace(tzinfo=None)
        return made

    pki._builder = builder
    try:
        return pki.issue(name)
    finally:
        pki._builder = real


FAULTS = ["none", "expired", "not yet", "self-made", "other name"]


def certificate_with(fault, tmp_path):
    """(the authority that is trusted, certificate, its key)."""
    pki, other = Pki(tmp_path), Pki(tmp_path, "other")
    certificate, key, _ = {
        "none": lambda: pki.issue("broker"),
        "expired": lambda: dated(pki, "broker", -9, -2),
        "not yet": lambda: dated(pki, "broker", 3, 9),
        "self-made": lambda: other.issue("broker"),
        "other name": lambda: pki.issue("broker", "other.example"),
    }[fault]()
    return pki, certificate, key


@pytest.mark.parametrize("fault", FAULTS)
def test_an_agent_talks_to_no_broker_it_cannot_trust(tmp_path, fault):
    """It does not even say who it is."""
    pki, certificate, key = certificate_with(fault, tmp_path)
    heard = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def talk(connection):
        with context.wrap_socket(connection, server_side=True) as secure:
            heard.append(secure.recv(1024))
            secure.sendall(b"\x20\x02\0\0")
            secure.recv(1024)

    server = Server(talk)
    broker = Config.from_json(
        {
            "agent": "11" * 8,
            "key": "22" * 32,
            "broker": {"host": "localhost", "port": server.port, "tls": {"ca": pki.ca}},
        }
    ).broker

    async def connect():
        link = MqttLink(broker, "11" * 8, "11" * 8, "password", [])
        await link.connect()
        await link.disconnect()

    try:
        if fault == "none":
            asyncio.run(connect())
            assert b"password" in heard[0]
        else:
            with pytest.raises(LinkError) as caught:
                asyncio.run(connect())
            assert caught.value.reason == "refused" and "TLS" in caught.value.detail
            assert not any(heard)
    finally:
        server.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_gateway_talks_to_no_broker_it_cannot_trust(tmp_path, fault):
    """A gateway whose broker is elsewhere: its certificate is checked, and what is wrong said."""
    pki, certificate, key = certificate_with(fault, tmp_path)
    folder, port = tmp_path / "gw", free_port()
    domain = tmp_path / "motion.domain"
    domain.write_bytes(domain_bytes())
    gateway(
        "init", folder, "--domain", domain, "--host", "localhost", "--port", port,
        "--tls-ca", pki.ca, "--tls-cert", certificate, "--tls-key", key,
    )  # fmt: skip
    mosquitto = ["/usr/sbin/mosquitto", "-c", folder / "mosquitto" / "mosquitto.conf"]
    command = [sys.executable, "-m", "gateway.cli", "-C", folder, "run"]
    log = tmp_path / "log"
    with running(*mosquitto, log=tmp_path / "m"), running(*command, log=log):

        def process():
            return json.loads(gateway("-C", folder, "status", "--json").stdout)["process"] or {}

        if fault == "none":
            wait_until(lambda: process().get("gauges", {}).get("connected") == 1, 20)
            return
        wait_until(lambda: process().get("counts", {}).get("broker_untrusted", 0) >= 1, 20)
        assert process()["gauges"]["connected"] == 0 and process()["counts"]["connects"] == 0
        shown = gateway("-C", folder, "status").stdout
        assert "NOT CONNECTED" in shown and "certificate" in shown.lower()
        prom = (folder / "metrics.prom").read_text()
        assert "edge_gateway_broker_untrusted_total" in prom


# -- what is secret stays secret --------------------------------------------------------------


def secrets_of(site):
    """Everything that nobody may see, as text."""
    master = load_master(site.config.master)
    found = {master.hex(), site.config.password}
    with opened(site.folder) as (_, _, registry):
        for device in registry.devices():
            for generation in range(1, device.generation + 1):
                secret = registry.secret(device.agent, generation)
                keys = DeviceKeys(registry.crypto, device.agent, secret, generation)
                found |= {secret.hex(), keys.mqtt_password()}
    for name in ("ca.key", "server.key"):
        pem = (site.folder / "tls" / name).read_text()
        found.add("".join(pem.splitlines()[1:-1]))
    return found


def test_no_secret_is_printed_logged_or_visible(site, honest):
    secrets = secrets_of(site)
    assert len(secrets) > 10
    seen = {"gateway log": site.log.read_text(), "mosquitto log": site.said.read_text()}
    for command in (("status",), ("devices",), ("tls",), ("claims",), ("export",)):
        for more in ((), ("--json",)):
            done = gateway("-C", site.folder, *command, *more)
            seen[" ".join((*command, *more))] = done.stdout + done.stderr
    for name in ("metrics.prom", "status.json", "broker.json", "broker.prom"):
        seen[name] = (site.folder / name).read_text()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            seen["command " + pid] = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    for where, text in seen.items():
        for secret in secrets:
            assert secret not in text, where
    with opened(site.folder) as (config, store, registry):
        assert not any(secret in repr(one) for secret in secrets for one in (config, registry))
    # The test would see one: in the files that do hold them.
    assert any(s in (site.folder / "gateway.json").read_text() for s in secrets)


def test_files_with_secrets_are_private(site):
    for path in site.folder.rglob("*"):
        text = path.read_bytes() if path.is_file() else b""
        if any(secret.encode() in text for secret in secrets_of(site)):
            assert path.stat().st_mode & 0o077 == 0, path
    assert site.folder.stat().st_mode & 0o077 == 0


def test_the_database_and_its_backup_hold_no_key(site, tmp_path):
    gateway("-C", site.folder, "backup", tmp_path / "copy")
    raw = (tmp_path / "copy").read_bytes() + (site.folder / "gateway.db").read_bytes()
    for secret in secrets_of(site):
        assert secret.encode() not in raw
        with contextlib.suppress(ValueError):
            assert bytes.fromhex(secret) not in raw


# -- what the counter of refusals reads ----------------------------------------------------


def test_refusals_survive_odd_lines_and_floods():
    refusals = Refusals("qis/1", frozenset({"gateway-1"}))
    for number in range(1000):
        line = b"1795340741: Denied PUBLISH from c%d (d0, q1, r0, m1, 'qis/1/x/up', ... (5 bytes))"
        assert not refusals.line(line % number, 1)
    assert refusals.counts["publish"] == 1000
    assert len(refusals.by) <= 256 and len(refusals.newest) == 20
    for odd in (
        b"", b"\xff\xfe", b": ", b"Denied", b"1: Denied PUBLISH from", bytes(range(256)),
        b"1: a 1 qis/1/a/ack", b"1: gateway-1 1 #", b"1: Sending CONNACK to a (0, 0)",
        b"1: New connection from 10.0.0.9:4711 on port 8883.",
        b"1: Client a closed its connection.",
        b"1: New client connected from 10.0.0.9:4711 as a (p2, c1, k10, u'a').",
        b"1: Client <unknown> disconnected: Protocol error.",
        b"1: OpenSSL Error[0]: error:0A000126:SSL routines::unexpected eof while reading",
    ):  # fmt: skip
        refusals.line(odd, 1)
    assert refusals.counts == {"publish": 1000, "login": 0, "subscribe": 0, "tls": 0}
    again = Refusals("qis/1")
    again.restore(json.loads(json.dumps(refusals.as_dict())))
    assert again.counts == refusals.counts
    again.restore({"refused": {"login": "many"}})
    again.restore(None)
    assert again.counts["login"] == 0
