"""The link of MicroPython boards against real brokers: as a MicroPython process, and on
CPython. `link_job.py` is what runs there."""

import contextlib
import datetime
import json
import os
import queue
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from brokers import MOSQUITTO, IotCore, Mosquitto, Pki, Server, free_port
from cryptography.hazmat.primitives import serialization
from paho.mqtt.enums import CallbackAPIVersion

ROOT = Path(__file__).resolve().parents[2]
JOB = Path(__file__).with_name("link_job.py")
INTERPRETERS = {
    "micropython": [str(Path(sys.executable).with_name("micropython"))],
    "cpython": [sys.executable],
}
OUT, TOPIC = "qis/1/a/up", "qis/1/a/ack"
CONNACK, SUBACK = b"\x20\x02\x00\x00", b"\x90\x03\x00\x01\x01"


@pytest.fixture(params=list(INTERPRETERS))
def on(request):
    return INTERPRETERS[request.param]


class Job:
    """A running link_job."""

    def __init__(self, on, job, port, **fields):
        self.process = subprocess.Popen(
            [*on, str(JOB), json.dumps({"job": job, "port": port, **fields})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = queue.Queue()
        self.said = []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def line(self, seconds=20):
        line = self.lines.get(timeout=seconds)
        self.said.append(line)
        assert line, "ended:\n" + "".join(self.said)
        try:
            return json.loads(line)
        except ValueError:
            return {}

    def wait(self, key, seconds=20):
        while True:
            line = self.line(seconds)
            if key in line:
                return line[key]

    def result(self, seconds=20):
        try:
            return self.wait("result", seconds)
        finally:
            self.kill()

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def job(on):
    jobs = []

    def start(*args, **kw):
        jobs.append(Job(on, *args, **kw))
        return jobs[-1]

    yield start
    for one in jobs:
        one.kill()


@pytest.fixture(params=["mosquitto", "iotcore"])
def broker(request, tmp_path):
    if request.param == "mosquitto":
        made = Mosquitto(tmp_path, "allow_anonymous true", "max_queued_messages 0")
    else:
        made = IotCore(tmp_path, {"a": "secret"})
    yield made.start()
    made.kill()


USER = {"username": "a", "password": "secret"}


class Listener:
    """What arrives at a broker, through paho."""

    def __init__(self, port, topic=OUT):
        self.got = queue.Queue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, "listener")
        self.client.username_pw_set("a", "secret")
        ready = threading.Event()
        self.client.on_connect = lambda c, *a: c.subscribe(topic, 1)
        self.client.on_subscribe = lambda *a: ready.set()
        self.client.on_message = lambda c, d, m: self.got.put(m.payload)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert ready.wait(10)

    def collect(self, count, seconds=10):
        """Until `count` different payloads are there."""
        out = []
        end = time.monotonic() + seconds
        while len(set(out)) < count and time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                out.append(self.got.get(timeout=0.2))
        return out

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


class Proxy:
    """Between client and broker: counts bytes, cuts, or falls silent."""

    def __init__(self, port, cut_after=None):
        self.target = port
        self.cut_after = cut_after  # bytes from the client, for each connection
        self.cuts = 0
        self.silent = False
        self.server = Server(self.serve)
        self.port = self.server.port

    def serve(self, client):
        broker = socket.create_connection(("127.0.0.1", self.target))
        threading.Thread(target=self.pump, args=(broker, client, None), daemon=True).start()
        limit = self.cut_after[self.cuts % len(self.cut_after)] if self.cut_after else None
        self.pump(client, broker, limit)

    def pump(self, source, sink, limit):
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(4096)
                if not data:
                    break
                while self.silent:
                    time.sleep(0.05)
                if limit is not None:
                    limit -= len(data)
                    if limit < 0:
                        sink.sendall(data[:limit])
                        self.cuts += 1
                        break
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def test_window_order_and_end(broker, job):
    result = job("echo", broker.port, **USER).result()
    assert result == {
        "present": False,
        "in order": True,
        "most": 8,
        "after": ["network", "network"],
        "repr hides": True,
    }


def test_a_thousand_frames_over_a_link_that_breaks(broker, job):
    """Cut in the middle of packets, again and again: none is lost at QoS 1."""
    proxy = Proxy(broker.port, cut_after=[9000, 20011, 33333, 50500, 25555])
    listener = Listener(broker.port)
    result = job("flood", proxy.port, count=1000, **USER).result(40)
    got = listener.collect(1000)
    listener.close()
    assert sorted({int(p[:8]) for p in got}) == list(range(1000))
    assert all(len(p) == 200 for p in got)
    assert proxy.cuts >= 5
    assert result["losses"] >= 5
    assert result["pending"] == 0
    # Read from its source for every sending, never kept: at least once per frame.
    assert result["asked"] >= 1000
    assert result["longest"] < 500


def test_a_thousand_frames_resent_by_the_session(broker, job):
    proxy = Proxy(broker.port, cut_after=[20011, 33333, 50500])
    listener = Listener(broker.port)
    result = job("flood", proxy.port, count=1000, resend=True, **USER).result(40)
    got = listener.collect(1000)
    listener.close()
    assert sorted({int(p[:8]) for p in got}) == list(range(1000))
    assert result["resent"] >= 1
    assert result["asked"] >= 1000 + result["resent"]


def test_broker_killed_and_back(broker, job):
    running = job("flood", broker.port, count=3000, size=300, **USER)
    running.wait("up")
    # From now on nothing is acknowledged, so that the flood cannot be over before the kill.
    broker.process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    broker.kill()
    running.wait("down")
    time.sleep(0.3)
    broker.start()
    running.wait("up")
    listener = Listener(broker.port)
    result = running.result(40)
    assert result["losses"] >= 1
    assert set(result["reasons"]) <= {"broker", "network"}
    assert listener.collect(1, 5), "frames go on arriving"
    listener.close()


def test_the_session_outlives_the_connection(broker, job):
    running = job("session", broker.port, **USER)
    running.wait("up")
    sender = Listener(broker.port, "unused")
    for i in range(3):
        sender.client.publish(TOPIC, b"%d" % i, 1).wait_for_publish(5)
    running.process.stdin.write("\n")
    running.process.stdin.flush()
    result = running.result()
    sender.close()
    assert result == {"present": [True, True], "got": ["0", "1", "2", "2"]}


def test_more_messages_than_the_link_keeps(tmp_path, job):
    """A broker with as many on their way as it may; none of those stays unacknowledged."""
    count = 250
    limits = "max_queued_messages 0", "max_inflight_messages 200"
    broker = Mosquitto(tmp_path, "allow_anonymous true", *limits).start()
    try:
        running = job("flooded", broker.port, count=count, broker={"connect_timeout_s": 3}, **USER)
        running.wait("up")
        sender = Listener(broker.port, "unused")
        for i in range(count):
            sender.client.publish(TOPIC, b"%04d" % i + b"x" * 400, 1).wait_for_publish(5)
        running.process.stdin.write("\n")
        running.process.stdin.flush()
        result = running.result(30)
        sender.close()
    finally:
        broker.kill()
    assert result["got"] == count
    assert result["losses"] and all("did not fit" in why for why in result["losses"])


def test_last_will(broker, job):
    listener = Listener(broker.port, "qis/1/a/state")
    running = job("will", broker.port, **USER)
    running.wait("up")
    assert listener.collect(1) == [b"online"]
    running.kill()
    assert listener.collect(1) == [b"offline"]
    listener.close()


def test_silent_broker(job):
    """It accepts, and says nothing."""
    server = Server(lambda connection: time.sleep(30))
    result = job("connect", server.port, broker={"connect_timeout_s": 1}).result()
    assert result["error"][0] == "timeout"
    assert "no answer to CONNECT" in result["error"][1]
    assert 900 < result["ms"] < 3000
    assert result["longest"] < 500
    server.close()


def test_silence_in_the_tls_handshake(job):
    server = Server(lambda connection: time.sleep(30))
    tls = {"fingerprint": "00" * 32}
    result = job("connect", server.port, broker={"connect_timeout_s": 1, "tls": tls}).result()
    assert result["error"][0] == "network"
    assert result["ms"] < 3000
    assert result["longest"] < 500
    server.close()


def test_no_answer_to_the_tcp_handshake(job):
    """A full backlog: connections neither open nor fail."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        port = sock.getsockname()[1]
        fill = [socket.socket() for _ in range(4)]
        for one in fill:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        result = job("connect", port, broker={"connect_timeout_s": 1}).result()
        for one in fill:
            one.close()
    assert result["error"][0] == "network"
    assert 900 < result["ms"] < 3000
    assert result["longest"] < 500


def test_half_open(broker, job):
    """The way to the broker swallows everything, without a word of it."""
    proxy = Proxy(broker.port)
    running = job(
        "hang", proxy.port, count=0, broker={"keepalive_s": 2, "connect_timeout_s": 1}, **USER
    )
    running.wait("up")
    proxy.silent = True
    result = running.result()
    proxy.silent = False
    assert result["ended"][0] == "timeout"
    assert "PINGREQ" in result["ended"][1]
    assert result["ms"] < 5000
    assert result["longest"] < 500


def silent_after_suback(connection):
    connection.recv(1000)
    connection.sendall(CONNACK)
    connection.recv(1000)
    connection.sendall(SUBACK)


def test_no_puback(job):
    def talk(connection):
        silent_after_suback(connection)
        while connection.recv(4096):
            pass

    server = Server(talk)
    result = job("hang", server.port, count=20, puback_ms=1000).result()
    assert result["ended"][0] == "timeout"
    assert "PUBACK" in result["ended"][1]
    assert result["failed"] == 20
    assert result["pending"] == 0
    assert result["ms"] < 3000
    assert result["longest"] < 500
    server.close()


def test_a_broker_that_stops_reading(job):
    """The socket is full and stays full: the writer must not hold the loop, or for ever."""

    def talk(connection):
        silent_after_suback(connection)
        time.sleep(30)

    server = Server(talk)
    result = job(
        "hang", server.port, count=400, size=30000, window=64,
        broker={"keepalive_s": 2, "connect_timeout_s": 1},
    ).result()  # fmt: skip
    assert result["ended"][0] == "timeout"
    assert result["failed"] == 400
    assert result["ms"] < 6000
    assert result["longest"] < 1000
    server.close()


def test_dup_and_the_same_packet_id_on_the_next_connection(job):
    seen = []

    def talk(connection):
        first = not seen
        seen.append([])
        connection.recv(1000)
        connection.sendall(b"\x20\x02" + (b"\x00\x00" if first else b"\x01\x00"))
        subscribe = connection.recv(1000)
        connection.sendall(b"\x90\x03" + subscribe[2:4] + b"\x01")
        data = b""
        while len(data) < 3 * (6 + len(OUT) + 1 - 1):
            data += connection.recv(1000)
        seen[-1].append(data)
        if first:
            time.sleep(0.1)
            connection.close()
            return
        size = len(data) // 3
        for i in range(3):
            at = i * size + 4 + len(OUT)
            connection.sendall(b"\x40\x02" + data[at : at + 2])
        time.sleep(1)

    server = Server(talk)
    result = job("resend", server.port, resend=True).result()
    assert result == {"present": [False, True], "lost": "broker", "resent": 3}
    before, after = seen[0][0], seen[1][0]
    size = len(before) // 3
    for i in range(3):
        old, new = before[i * size : (i + 1) * size], after[i * size : (i + 1) * size]
        assert (old[0], new[0]) == (0x32, 0x3A)
        assert old[1:] == new[1:], "topic, packet id and payload as before"
    server.close()


def test_nothing_piles_up_over_a_hundred_connections(broker, job):
    result = job("again", broker.port, count=100, broker={"keepalive_s": 2}, **USER).result(40)
    (memory, files, tasks), (memory_end, files_end, tasks_end) = result["first"], result["last"]
    assert files_end <= files
    assert tasks_end == tasks == 0
    assert memory_end <= memory + 2000


def test_disconnect_while_connecting(job):
    server = Server(lambda connection: time.sleep(30))
    result = job("stop", server.port, broker={"tls": {"fingerprint": "00" * 32}}).result()
    assert result["error"][0] == "network"
    assert result["ms"] < 1000
    server.close()


def test_nobody_there_and_nonsense(job):
    assert job("connect", free_port()).result()["error"][0] == "broker"
    result = job("connect", 1883, broker={"host": "name.invalid"}).result()
    assert result["error"][0] == "network"
    for talk, reason in (
        (lambda c: (c.recv(1000), c.sendall(b"HTTP/1.0 400 Bad Request\r\n")), "broker"),
        (lambda c: (c.recv(1000), c.sendall(CONNACK), c.recv(1000),
                    c.sendall(b"\x90\x03\x00\x01\x80"), time.sleep(5)), "refused"),
    ):  # fmt: skip
        server = Server(talk)
        result = job("connect", server.port, broker={"connect_timeout_s": 2}).result()
        assert result["error"][0] == reason
        server.close()


def test_wrong_password(tmp_path, job):
    passwords = tmp_path / "passwords"
    subprocess.run(
        [MOSQUITTO.replace("sbin", "bin") + "_passwd", "-b", "-c", str(passwords), "a", "right"],
        check=True,
    )
    broker = Mosquitto(tmp_path, "allow_anonymous false", f"password_file {passwords}").start()
    try:
        error = job("connect", broker.port, username="a", password="hush").result()["error"]
        assert error[0] == "refused"
        assert "hush" not in error[1]
        assert job("connect", broker.port, username="a", password="right").result()["error"] is None
    finally:
        broker.kill()


def test_wrong_password_at_the_embedded_broker(tmp_path, job):
    broker = IotCore(tmp_path, {"a": "right"}).start()
    try:
        error = job("connect", broker.port, username="a", password="hush").result()["error"]
        assert error[0] in ("refused", "broker")
    finally:
        broker.kill()


class OldPki(Pki):
    """Certificates that were valid for two days in 2005: as a device sees today's, whose
    clock is far off."""

    def _builder(self, subject, public_key):
        builder = super()._builder(subject, public_key)
        builder._not_valid_before = builder._not_valid_after = None
        when = datetime.datetime(2005, 6, 1, tzinfo=datetime.UTC)
        return builder.not_valid_before(when).not_valid_after(when + datetime.timedelta(days=2))


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    made = {}
    for name, pki in (("old", OldPki), ("new", Pki)):
        folder = tmp_path_factory.mktemp(name)
        authority = pki(folder)
        cert, key, fingerprint = authority.issue("broker")
        lines = (f"cafile {authority.ca}", f"certfile {cert}", f"keyfile {key}")
        broker = Mosquitto(folder, "allow_anonymous true", *lines).start()
        made[name] = (broker, authority, fingerprint, cert)
    yield made
    for broker, *_ in made.values():
        broker.kill()


def test_tls_pinned_with_a_wrong_clock(secure, job):
    broker, authority, fingerprint, _ = secure["old"]
    host = {"host": "localhost"}
    result = job("connect", broker.port, broker={"tls": {"fingerprint": fingerprint}}).result()
    assert result["error"] is None
    assert result["longest"] < 1000
    # The chain of the same certificate is refused: its date has passed.
    result = job("connect", broker.port, broker={"tls": {"ca": authority.ca}, **host}).result()
    assert result["error"][0] == "refused"
    result = job("connect", broker.port, broker={"tls": {"fingerprint": "00" * 32}}).result()
    assert result["error"][0] == "refused"
    assert "pinned" in result["error"][1]


def test_tls_by_authority(secure, tmp_path, job):
    broker, authority, fingerprint, _ = secure["new"]
    stranger = Pki(tmp_path, "stranger")
    host = {"host": "localhost"}
    for tls, expected in (
        ({"ca": authority.ca}, None),
        ({"ca": authority.ca, "fingerprint": fingerprint}, None),
        ({"ca": stranger.ca}, "refused"),
        ({"ca": authority.ca, "fingerprint": "00" * 32}, "refused"),
        ({"ca": authority.ca, "server_name": "elsewhere"}, "refused"),
        ({"ca": str(tmp_path / "missing.pem")}, "config"),
    ):
        error = job("connect", broker.port, broker={"tls": tls, **host}).result()["error"]
        assert (error and error[0]) == expected, tls


def test_echo_over_tls(secure, job):
    broker, _, fingerprint, _ = secure["old"]
    result = job("echo", broker.port, broker={"tls": {"fingerprint": fingerprint}}).result()
    assert result["in order"]


def test_nothing_is_said_to_a_stranger(tmp_path, job):
    """A server with another certificate never gets to see the CONNECT, that is the password."""
    cert, key, fingerprint = Pki(tmp_path).issue("broker")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    heard = []

    def talk(connection):
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                heard.append(secure.recv(1000))
        except OSError as error:
            heard.append(error)

    server = Server(talk)
    tls = {"fingerprint": "11" * 32}
    error = job("connect", server.port, broker={"tls": tls}, **USER).result()["error"]
    assert error[0] == "refused"
    end = time.monotonic() + 5
    while not heard and time.monotonic() < end:
        time.sleep(0.02)
    assert len(heard) == 1
    assert heard[0] == b"" or isinstance(heard[0], OSError)
    # The same server does get it when it is the pinned one: the test can see it.
    tls = {"fingerprint": fingerprint}
    running = job("connect", server.port, broker={"tls": tls, "connect_timeout_s": 2}, **USER)
    running.result()
    assert b"secret" in heard[1]
    server.close()


def test_fingerprint_of_a_certificate_itself(secure):
    from cryptography import x509

    from mpy_port.mqtt.secure import fingerprint_of

    _, _, fingerprint, path = secure["new"]
    pem = Path(path).read_bytes()
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    assert fingerprint_of(pem).hex() == fingerprint_of(der).hex() == fingerprint


assert os.path.exists(INTERPRETERS["micropython"][0])
